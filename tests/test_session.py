"""Sessions against the installed ONNX Runtime, and against one whose CUDA does not start."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from merger_plugins import _session
from merger_plugins._session import (
    CPU,
    CUDA,
    SessionConfig,
    create_session,
    default_threads,
    free_device_memory,
    run_bound,
    usable_threads,
)
from merger_plugins.errors import ArtefactError, InputError, MissingExtraError, ProviderError

onnx = pytest.importorskip("onnx", reason="graphs are made with onnx: install the extra export")
ort = pytest.importorskip("onnxruntime", reason="install the extra cpu")


def adder(*, outside: str | None = None, where: str = "graph") -> Any:
    """A model that adds two; `outside` says which file holds the two, `where` in which part it is kept."""
    two = onnx.numpy_helper.from_array(np.array([2.0], np.float32), "two")
    if outside is not None:
        two.ClearField("raw_data")
        two.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", outside), ("length", "4")):
            two.external_data.add(key=key, value=value)
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
    nodes, initializers = [onnx.helper.make_node("Add", ["x", "two"], ["y"])], [two]
    if where == "attribute":
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["two"], value=two))
        initializers = []
    graph = onnx.helper.make_graph(nodes, "adder", info[:1], info[1:], initializers)
    if where == "subgraph":
        inner = onnx.helper.make_graph([], "inner", [], [], [two])
        branch = onnx.helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
        graph.node.insert(0, branch)
        del graph.initializer[:]
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    if where == "function":
        constant = onnx.helper.make_node("Constant", [], ["z"], value=two)
        opset = [onnx.helper.make_opsetid("", 17)]
        model.functions.append(onnx.helper.make_function("own", "f", [], ["z"], [constant], opset))
        del model.graph.initializer[:]
    if where == "default":
        function = onnx.FunctionProto(name="f", domain="own")
        function.attribute_proto.append(onnx.helper.make_attribute("two", two))
        model.functions.append(function)
        del model.graph.initializer[:]
    return model


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save(adder(), tmp_path / "adder.onnx")
    return tmp_path / "adder.onnx"


def run(session: Any) -> float:
    return float(session.run(["y"], {"x": np.array([3.0], np.float32)})[0][0])


def test_runs_on_the_cpu_by_default(graph: Path) -> None:
    session = create_session(graph)
    assert run(session) == 5.0
    assert session.get_providers()[-1] == CPU


def test_explicit_provider_and_threads(graph: Path) -> None:
    session = create_session(str(graph), SessionConfig(providers=(CPU,), threads=1))
    assert session.get_providers() == [CPU]
    assert session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("name", ["NoSuchProvider", CUDA])
def test_unavailable_provider_lists_those_available(graph: Path, name: str) -> None:
    if name in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA")
    with pytest.raises(ProviderError, match=rf"{name}: not available.*There is .*{CPU}"):
        create_session(graph, SessionConfig(providers=(name, CPU)))


def test_unavailable_cuda_names_the_package_to_install(graph: Path) -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has CUDA")
    with pytest.raises(ProviderError, match=r"merger-plugins\[gpu\]"):
        create_session(graph, SessionConfig(providers=(CUDA,)))


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed runtime as a GPU build without a GPU: it offers CUDA and quietly loads the CPU."""

    def load(path: Path, options: Any, *, providers: list[str], **more: Any) -> Any:
        assert CUDA in providers
        return ort.InferenceSession(path, options, providers=[CPU])

    fake = SimpleNamespace(**{**vars(ort), "InferenceSession": load})
    fake.get_available_providers = lambda: [CUDA, CPU]
    monkeypatch.setattr(_session, "_onnxruntime", lambda: fake)


@pytest.mark.usefixtures("gpu_build")
def test_cuda_that_quietly_became_the_cpu_is_an_error(graph: Path) -> None:
    with pytest.raises(ProviderError, match=rf"{CUDA}: installed but did not start. There is {CPU}"):
        create_session(graph, SessionConfig(providers=(CUDA,)))


@pytest.mark.usefixtures("gpu_build")
def test_without_a_wish_the_cpu_does(graph: Path) -> None:
    assert run(create_session(graph)) == 5.0


@pytest.mark.usefixtures("gpu_build")
def test_a_bad_graph_is_not_blamed_on_the_provider(tmp_path: Path) -> None:
    model = adder()
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtefactError, match=r"cannot run .*odd\.onnx"):
        create_session(tmp_path / "odd.onnx", SessionConfig(providers=(CUDA,)))


def test_cuda_that_raises_leaves_the_cpu(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, options: Any, *, providers: list[str], **more: Any) -> Any:
        if CUDA in providers:
            raise RuntimeError("CUDA driver version is insufficient")
        return ort.InferenceSession(path, options, providers=providers)

    fake = SimpleNamespace(**{**vars(ort), "InferenceSession": load})
    fake.get_available_providers = lambda: [CUDA, CPU]
    monkeypatch.setattr(_session, "_onnxruntime", lambda: fake)
    assert run(create_session(graph)) == 5.0
    with pytest.raises(ProviderError, match="driver version is insufficient"):
        create_session(graph, SessionConfig(providers=(CUDA,)))


def test_without_onnxruntime_both_extras_are_named(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"merger-plugins\[cpu\].*merger-plugins\[gpu\]"):
        create_session(graph)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x80" * 20,
        b"\x0b",
        b"\x3a\x02\x0a\x7f" + bytes(200),
    ],
)
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"broken\.onnx is no ONNX file"):
        create_session(path)


def test_truncated_file(graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:-3])
    with pytest.raises(ArtefactError, match="is no ONNX file"):
        create_session(graph)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is missing"):
        create_session(tmp_path / "none.onnx")


def test_graph_that_cannot_run(tmp_path: Path) -> None:
    model = adder()
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtefactError, match=rf"{ort.__version__} cannot run .*odd\.onnx"):
        create_session(tmp_path / "odd.onnx")


@pytest.mark.parametrize("where", ["graph", "attribute", "subgraph", "function", "default"])
@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret"]
)
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str, where: str) -> None:
    (tmp_path / "secret").write_bytes(np.array([7.0], np.float32).tobytes())
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "adder.onnx"
    path.write_bytes(adder(outside=location, where=where).SerializeToString())
    with pytest.raises(ArtefactError, match="outside its folder"):
        create_session(path)


def test_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.array([7.0], np.float32).tobytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "data").symlink_to("../secret")
    (tmp_path / "model" / "adder.onnx").write_bytes(adder(outside="data").SerializeToString())
    with pytest.raises(ArtefactError, match="outside its folder"):
        create_session(tmp_path / "model" / "adder.onnx")


@pytest.mark.parametrize("location", ["data.bin", "sub/data.bin", "./data.bin"])
def test_data_beside_the_graph_is_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / location).write_bytes(np.array([7.0], np.float32).tobytes())
    (tmp_path / "adder.onnx").write_bytes(adder(outside=location).SerializeToString())
    assert run(create_session(tmp_path / "adder.onnx")) == 10.0


def test_relative_path(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(graph.parent)
    assert run(create_session("adder.onnx")) == 5.0
    Path("adder.onnx").write_bytes(adder(outside="../secret").SerializeToString())
    with pytest.raises(ArtefactError, match="outside its folder"):
        create_session("adder.onnx")


@pytest.mark.parametrize("providers", [(), "CPUExecutionProvider"])
def test_providers_are_a_sequence_of_names(providers: Any) -> None:
    with pytest.raises(InputError, match="providers is"):
        SessionConfig(providers=providers)


@pytest.mark.parametrize("threads", [0, -1, True, "2"])
def test_threads_are_counted_from_one(threads: Any) -> None:
    with pytest.raises(InputError, match="threads is"):
        SessionConfig(threads=threads)


def test_more_threads_than_the_process_may_use_are_refused_with_both_numbers() -> None:
    most = usable_threads()
    assert SessionConfig(threads=most).threads == most
    with pytest.raises(InputError, match=rf"threads is {most + 1}, and this process may use {most}"):
        SessionConfig(threads=most + 1)


def test_settings_from_a_larger_machine_run_with_the_threads_there_are(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as larger:
        larger.setattr(_session, "usable_threads", lambda: 512)
        config = SessionConfig(threads=512)
    session = create_session(graph, config)
    assert session.get_session_options().intra_op_num_threads == usable_threads()


def test_bound_memory_gives_what_a_plain_run_gives(graph: Path) -> None:
    values = np.arange(12, dtype=np.float32)[::2]  # not contiguous
    session = create_session(graph, SessionConfig(providers=(CPU,)))
    bound = run_bound(session, "y", {"x": values}, device="cpu")
    assert np.array_equal(bound, session.run(["y"], {"x": values})[0])


def test_free_memory_is_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_device_memory() is None
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$2" = 3 ] && echo 1024\n')
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert free_device_memory() == 1 << 30
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert free_device_memory() is None  # it failed: there is no GPU 0


@pytest.mark.parametrize(("wished", "expected"), [("1", 1), ("2", 2), ("64", 4), ("0", 4), ("many", 4)])
def test_fewer_threads_where_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, wished: str, expected: int
) -> None:
    monkeypatch.setattr(_session, "_read", lambda _, absent: absent)
    monkeypatch.setattr(_session, "_allowed", lambda: range(4))
    monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert default_threads() == expected


@pytest.mark.parametrize(
    ("siblings", "quota", "expected"),
    [
        ({}, "max 100000", 8),
        ({}, "150000 100000", 2),
        ({}, "50000 100000", 1),
        ({0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}, "max 100000", 6),
        ({}, "", 8),
    ],
)
def test_default_threads(
    monkeypatch: pytest.MonkeyPatch, siblings: dict[int, str], quota: str, expected: int
) -> None:
    def read(path: str, absent: str) -> str:
        if path.endswith("cpu.max"):
            return quota
        return siblings.get(int(path.split("/cpu/cpu")[1].split("/")[0]), absent)

    monkeypatch.setattr(_session, "_read", read)
    monkeypatch.setattr(_session.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads() == expected
