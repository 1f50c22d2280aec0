"""Files. In: names and paths, some of them chosen by somebody else. Out: whether a name may stand in a path; files that appear whole or
not at all; locks between processes.

One rule for all names: recipes, digests of bundles, and whatever else a path is made of. What may be called anything, such as a session,
goes through :func:`kymo.streams.archive.export.file_stem` instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kymo.streams.errors import RecipeError, SourceError

RULE = "letters, digits, `.`, `_` and `-`, no `.` first, 100 bytes at most"
_NAME = re.compile(r"[\w-][\w.-]*")
#: Windows keeps others from reading what is locked, so there the lock is on a byte far behind all that is written.
_LOCKED_BYTE = 2**30
_POLL_S = 0.05


def is_file_name(name: object) -> bool:
    """Whether it is a name by :data:`RULE`, which leads nowhere but into its own folder.

    >>> [is_file_name(name) for name in ("walk-07", "läufe.2", "..", "../up", "/etc", "", ".hidden", "a b", 7)]
    [True, True, False, False, False, False, False, False, False]
    """
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and len(name.encode(errors="replace")) <= 100


def is_inside(path: object) -> bool:
    """Whether a relative path, such as ``report/report.html``, stays inside the folder that it is joined to.

    >>> [is_inside(path) for path in ("model.onnx", "report/a b.svg", "../x", "a/../../x", "/etc/x", "a\\\\..\\\\x", "")]
    [True, True, False, False, False, False, False]
    """
    return (
        isinstance(path, str)
        and not set("\\\0") & set(path)
        and all(part not in ("", ".", "..") for part in path.split("/"))
    )


def read_text(path: str | Path, error: type[SourceError | RecipeError] = SourceError) -> str:
    """Text of a file that somebody names, in UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise error("is no UTF-8 text; save it as such", path) from None
    except OSError as wrong:
        raise error(f"cannot be read ({wrong.strerror or wrong})", path) from None


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give the path to write to: the file takes its name where the block ends (see :func:`take_name`), and is gone where it raises.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, whole_file(Path(folder, "a.txt")) as unfinished:
    ...     _ = unfinished.write_text("x")
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['a.txt.part']
    """
    unfinished = path.with_name(f"{path.name}.part")
    try:
        yield unfinished
        take_name(unfinished, path, durable=durable)
    except BaseException:
        with contextlib.suppress(OSError):  # that of the block says more
            unfinished.unlink()
        raise


def write_whole(path: Path, data: bytes | str, *, durable: bool = False) -> None:
    """Write a file by :func:`whole_file`; text in UTF-8."""
    with whole_file(path, durable=durable) as unfinished, unfinished.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        if durable:
            to_disk(file)


def to_disk(file: IO[bytes]) -> None:
    """Have the disk hold what was written."""
    file.flush()
    os.fsync(file.fileno())


def take_name(unfinished: Path, path: Path, *, durable: bool = False) -> None:
    """Give a written file its name; with `durable` it keeps that over a power cut (its content by :func:`to_disk`)."""
    unfinished.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename last over a power cut; Windows knows no such thing."""
    if sys.platform != "win32":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[IO[bytes] | None]:
    """Keep other processes, and other threads, from the same: the open file of the lock, or None where another one holds it.

    The file is made if it is missing, and stays. The lock is free when the block ends, or the process, however it does.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, lock(Path(folder, ".lock")) as first, lock(Path(folder, ".lock"), wait=False) as second:
    ...     first is not None, second is not None
    (True, False)
    """
    with path.open("a+b") as file:
        yield file if hold(file, wait=wait) else None


def hold(file: IO[Any], *, wait: bool = True) -> bool:
    """Lock a file until it is closed; False where another one holds it and `wait` is not asked for."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError:
                if not wait:
                    return False
                time.sleep(_POLL_S)
            else:
                return True
    else:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if wait:
                raise
            return False
        return True
