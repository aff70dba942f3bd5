"""One process at a time in a folder: an open client does not see what another process writes."""

from __future__ import annotations

import errno
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from merger_plugins.errors import StoreUnavailableError

LOCK = ".merger_plugins.lock"

_held: dict[Path, tuple[IO[str], int]] = {}
_guard = threading.Lock()


def hold(folder: Path) -> None:
    """Keep other processes out of a folder; counted, so that several stores of this process may be in it.

    The operating system lets go of it when the process ends, however it ends.

    Raises:
        StoreUnavailableError: another process holds it.
        OSError: the folder cannot be written.
    """
    with _guard:
        if folder in _held:
            file, count = _held[folder]
            _held[folder] = file, count + 1
            return
        file = (folder / LOCK).open("a+", encoding="ascii")
        try:
            _lock(file)
        except OSError as error:
            file.seek(0)
            holder = _read(file)
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            raise StoreUnavailableError(
                f"The folder {folder} is in use by another process{holder}. Close the store there, or run a "
                "server (chroma run --path FOLDER) and pass its URL."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _held[folder] = file, 1


def let_go(folder: Path) -> None:
    """Undo one `hold`."""
    with _guard:
        file, count = _held.pop(folder)
        if count > 1:
            _held[folder] = file, count - 1
        else:
            file.close()


def _read(file: IO[str]) -> str:
    with suppress(OSError):
        if process := file.read(20).strip():
            return f" ({process})"
    return ""


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 20
    """Where the locked byte is, so that the others can be read."""

    def _lock(file: IO[str]) -> None:
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
