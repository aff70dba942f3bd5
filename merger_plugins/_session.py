"""The only importer of ONNX Runtime: providers, threads, and a look at what really loaded and runs."""

import json
import mmap
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from merger_plugins._extras import require
from merger_plugins.errors import ArtefactError, InputError, MissingExtraError, ProviderError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_PURPOSE = "Running an ONNX model"
_GRAPH_ERRORS = frozenset({"InvalidProtobuf", "InvalidGraph", "NotImplemented", "NoSuchFile", "NoModel"})


@dataclass(frozen=True)
class SessionConfig:
    """How a graph is to be run.

    Attributes:
        providers: ONNX Runtime's names in order of preference, every one of which must load; None for
            CUDA where it works, else the CPU.
        threads: CPU threads of one session; None for `default_threads`.

    Raises:
        InputError: no provider at all, a bare string of them, fewer than one thread, or more than this
            process may use at once.
    """

    providers: Sequence[str] | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.providers is not None:
            if not self.providers or isinstance(self.providers, str):
                raise InputError(
                    f"providers is {self.providers!r}; it takes names such as ({CPU!r},), or None."
                )
            object.__setattr__(self, "providers", tuple(self.providers))
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise InputError(f"threads is {self.threads!r}; it takes a number from 1 on, or None.")
        if self.threads is not None and self.threads > usable_threads():
            raise InputError(
                f"threads is {self.threads}, and this process may use {usable_threads()} at once: more would "
                "wait for each other. Pass at most that, or None for one a physical core."
            )


class Session(Protocol):
    """What is used of an ``onnxruntime.InferenceSession``; it may run in several threads at once."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Compute the named outputs, or all of them."""

    def get_inputs(self) -> list[Any]:
        """Descriptions (name, shape, type) of the inputs."""

    def get_outputs(self) -> list[Any]:
        """Descriptions (name, shape, type) of the outputs."""

    def get_providers(self) -> list[str]:
        """The providers that loaded."""

    def io_binding(self) -> Any:
        """Inputs and outputs on devices of the caller's choice."""

    def run_with_iobinding(self, iobinding: Any) -> None:
        """Compute what was bound."""

    def end_profiling(self) -> str:
        """The file with the profile."""


def create_session(
    path: str | os.PathLike[str], config: SessionConfig | None = None, *, profile: Path | None = None
) -> Session:
    """Load an ONNX file.

    Args:
        path: the file; data that it keeps in other files must lie in its folder.
        config: providers and threads; None for the defaults.
        profile: where to write a profile, a path without its ending; None for none.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ProviderError: a provider that was asked for is not available, or did not load.
        ArtefactError: the file is missing, damaged, cannot be run, or points outside its folder.
    """
    config = config or SessionConfig()
    runtime = _onnxruntime()
    path = Path(path)
    refuse_outside_data(path)
    available: list[str] = runtime.get_available_providers()
    if config.providers is not None:
        absent = [name for name in config.providers if name not in available]
        if absent:
            raise _provider_error(absent, available, "not available here")
        session = _load(runtime, path, config, config.providers, profile)
        # ONNX Runtime answers a provider that fails to start with the CPU, and no error.
        absent = [name for name in config.providers if name not in session.get_providers()]
        if absent:
            raise _provider_error(absent, session.get_providers(), "installed but did not start")
        return session
    if CUDA in available:
        try:
            return _load(runtime, path, config, (CUDA, CPU), profile)
        except ProviderError:
            pass  # a GPU build on a machine without a working GPU
    return _load(runtime, path, config, (CPU,), profile)


def run(session: Session, output: str, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Compute one output; on CUDA through bound memory, whose inputs and output are copied once each."""
    if session.get_providers()[0] == CUDA:
        return run_bound(session, output, feed, device="cuda")
    result: NDArray[Any] = session.run([output], feed)[0]
    return result


def run_bound(
    session: Session, output: str, feed: Mapping[str, NDArray[Any]], *, device: str
) -> NDArray[Any]:
    """Compute one output in the memory of a device (``"cuda"``, ``"cpu"``) and copy it from there."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    binding.bind_output(output, device)
    session.run_with_iobinding(binding)
    result: NDArray[Any] = binding.copy_outputs_to_cpu()[0]
    return result


class DeviceArray:
    """(rows, width) float32 in the memory of a device, which only sessions write and read.

    Args:
        rows, width: its shape.
        session: one that runs on the device.

    Attributes:
        device: ONNX Runtime's name of it: ``"cuda"`` or ``"cpu"``.
    """

    def __init__(self, rows: int, width: int, session: Session) -> None:
        self.device = device_of(session)
        values = _onnxruntime().OrtValue
        self._value = values.ortvalue_from_shape_and_type([rows, width], np.float32, self.device, 0)
        self.shape = (rows, width)

    def bind(self, binding: Any, name: str) -> None:
        """Make it an input."""
        binding.bind_ortvalue_input(name, self._value)

    def bind_rows(self, binding: Any, name: str, start: int, count: int) -> None:
        """Make some of its rows an output."""
        rows, width = self.shape
        if start + count > rows:
            raise ValueError(f"rows {start} to {start + count} of {rows}")
        place = self._value.data_ptr() + 4 * start * width
        binding.bind_output(name, self.device, 0, np.float32, [count, width], place)


def device_of(session: Session) -> str:
    """Where a session's own memory is, by ONNX Runtime's name."""
    return "cuda" if session.get_providers()[0] == CUDA else "cpu"


def placement(
    path: str | os.PathLike[str], config: SessionConfig | None, feed: Mapping[str, NDArray[Any]]
) -> dict[str, int]:
    """How many of a graph's operators each provider ran for an input; raises as `create_session`.

    A provider that loaded leaves operators that it does not have to the next one.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = create_session(path, config, profile=Path(folder) / "profile")
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    ran = (event["args"] for event in events if event.get("cat") == "Node" and event.get("args"))
    return dict(Counter(args["provider"] for args in ran if "provider" in args))


_NO_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "bad_alloc", "bad allocation")
"""What messages of ONNX Runtime, CUDA and cuBLAS say, in lower case: there is no class for it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of a session says that memory ran out, the processor's or a device's."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY)


def free_device_memory() -> int | None:
    """Bytes that are free on the GPU that a session uses; None where nobody tells."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", "-i", first, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(asked.stdout.split()[0]) << 20  # it answers in MiB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def default_threads() -> int:
    """Physical cores among those that this process may use; fewer where OMP_NUM_THREADS says so.

    numpy's own pool obeys that variable too, and frameworks set it for the processes that they start.
    """
    cores = {
        _read(f"/sys/devices/system/cpu/cpu{index}/topology/thread_siblings_list", str(index))
        for index in _allowed()
    }
    wished = os.environ.get("OMP_NUM_THREADS", "")
    most = int(wished) if wished.isdigit() and int(wished) else len(cores)
    return min(len(cores), most, usable_threads())


def usable_threads() -> int:
    """Threads that can run at once in this process: its processors, within its control group's quota."""
    count = len(_allowed())
    quota, _, period = _read("/sys/fs/cgroup/cpu.max", "max").partition(" ")
    limit = -(-int(quota) // int(period)) if quota.isdigit() and period.isdigit() else count
    return max(1, min(count, limit))


def _allowed() -> Sequence[int]:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return sorted(affinity(0)) if affinity else range(os.cpu_count() or 1)


def _read(path: str, absent: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return absent


def _onnxruntime() -> Any:
    try:
        return require("onnxruntime", extra="cpu", purpose=_PURPOSE)
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{error} For an NVIDIA GPU: pip install 'merger-plugins[gpu]' instead, not beside it."
        ) from error


def _load(
    runtime: Any, path: Path, config: SessionConfig, providers: Sequence[str], profile: Path | None
) -> Session:
    states = require("onnxruntime.capi.onnxruntime_pybind11_state", extra="cpu", purpose=_PURPOSE)
    options = runtime.SessionOptions()
    # Settings may come from a larger machine, in a pickle.
    options.intra_op_num_threads = min(config.threads or default_threads(), usable_threads())
    options.inter_op_num_threads = 1
    # Waiting threads sleep: spinning gained nothing here and takes the cores from everyone else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Its cache of allocation plans, one for every shape of input ever seen, would grow without end.
    options.enable_mem_pattern = False
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if CUDA in providers and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    try:
        session = runtime.InferenceSession(path, options, providers=list(providers), enable_fallback=0)
    except _error_classes(states) as error:
        if type(error).__name__ in _GRAPH_ERRORS or set(providers) == {CPU}:
            raise ArtefactError(f"ONNX Runtime {runtime.__version__} cannot run {path}: {error}") from error
        raise ProviderError(f"{path} could not be loaded with {', '.join(providers)}: {error}") from error
    return session  # type: ignore[no-any-return]


def _error_classes(module: Any) -> tuple[type[Exception], ...]:
    """ONNX Runtime's errors, which have no base of their own, and the builtin ones that it raises."""
    own = (item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Exception))
    return (RuntimeError, ValueError, *own)


def _provider_error(absent: Sequence[str], present: Sequence[str], state: str) -> ProviderError:
    if CUDA in absent:
        remedy = (
            "For CUDA run: pip uninstall onnxruntime onnxruntime-gpu; pip install 'merger-plugins[gpu]' "
            "(the two packages overwrite each other), and check that nvidia-smi lists a GPU."
        )
    else:
        remedy = "Ask for one of those, or install a build of ONNX Runtime that has it."
    return ProviderError(f"{', '.join(absent)}: {state}. There is {', '.join(present)}. {remedy}")


# Where a message of onnx.proto (ONNX 1.17) can hold a TensorProto: {message: {field number: message}}.
_HOLDERS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}


def refuse_outside_data(path: Path) -> list[str]:
    """Check that an ONNX file keeps its data in itself or in files of its own folder.

    Returns:
        Those files, relative to the folder, sorted.

    Raises:
        ArtefactError: it points elsewhere, is missing, or is no ONNX file.
    """
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            locations = set(_locations(data))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing. Download or export it again.") from error
    except (OSError, ValueError, IndexError) as error:
        raise ArtefactError(f"{path} is no ONNX file: {error}. Download or export it again.") from error
    # In a Hugging Face cache both files are links into one folder of blobs, hence the second base.
    bases = [path.parent.resolve(), path.resolve().parent]
    for location in locations:
        parts = PureWindowsPath(location)  # knows both separators and drives
        target = (path.parent / location).resolve()
        inside = any(target.is_relative_to(base) for base in bases)
        if parts.anchor or ".." in parts.parts or not inside:
            raise ArtefactError(
                f"{path} keeps data in {location!r}, outside its folder. Do not use this file."
            )
    return sorted(locations)


def _locations(data: mmap.mmap) -> Iterator[str]:
    """The files that an ONNX model says hold its data, found without a protobuf library."""
    open_messages = [(0, len(data), "Model")]
    while open_messages:
        start, stop, message = open_messages.pop()
        entry = {1: b"", 2: b""}  # a StringStringEntryProto: key, value
        for number, begin, end in _fields(data, start, stop):
            held = _HOLDERS[message].get(number)
            if held:
                open_messages.append((begin, end, held))
            elif message == "Entry" and number in entry:
                entry[number] = data[begin:end]
        if entry[1] == b"location":
            yield entry[2].decode()


def _fields(data: mmap.mmap, position: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each length-delimited field of a protobuf message; others are stepped over."""
    while position < stop:
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, position = _varint(data, position)
        elif wire_type == 1:
            position += 8
        elif wire_type == 5:
            position += 4
        elif wire_type == 2:
            length, position = _varint(data, position)
            yield number, position, position + length
            position += length
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
    if position != stop:
        raise ValueError(f"a message is cut short at byte {stop}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"an overlong number at byte {position}")
