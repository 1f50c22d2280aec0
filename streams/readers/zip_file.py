"""Zip files as folders, as apps of phones send them. In: a zip file. Out: its members, by paths that begin with the file's own."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from kymo.streams.errors import SourceError

SUFFIX = ".zip"
_IN_MEMORY = 2**26
_LARGEST = 4 * 2**30  # bytes of an unpacked member: text that unpacks to more is hardly a recording


class ZipFolder:
    """What :class:`kymo.streams.readers.files.File` needs of a file system."""

    def __init__(self, path: Path) -> None:
        self.path, self._root = path, path.as_posix()
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {
                    f"{self._root}/{item.filename}": item for item in archive.infolist() if not item.is_dir()
                }
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise SourceError(f"is no zip file that can be read ({error}); copy it again", path) from None

    def find(self, _: str) -> list[str]:
        """Paths of all members, but those that begin with a dot or are a system's own."""
        below = {path: PurePosixPath(path.removeprefix(f"{self._root}/")).parts for path in self._members}
        return sorted(
            path for path, parts in below.items() if not any(part.startswith((".", "__MACOSX")) for part in parts)
        )

    def isfile(self, path: str) -> bool:
        return path in self._members

    def size(self, path: str) -> int:
        """Bytes of a member, unpacked."""
        return self._members[path].file_size

    def open(self, path: str, _: str = "rb") -> IO[bytes]:
        """The bytes of a member, as they are unpacked."""
        if (member := self._members.get(path)) is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        if member.file_size > _LARGEST:
            raise SourceError(f"unpacks to {member.file_size / 2**30:.0f} GiB, more than 4; unpack it first", path)
        try:
            unpacked = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
            with zipfile.ZipFile(self.path) as archive, archive.open(member) as packed:
                shutil.copyfileobj(packed, unpacked)
        # Encrypted, packed in another way, damaged, or of a file that is gone.
        except (
            RuntimeError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
            LZMAError,
            EOFError,
            OSError,
        ) as error:
            why = "it needs a password" if member.flag_bits & 1 else error
            raise SourceError(f"cannot be unpacked ({why}); unpack it first, or copy it again", path) from None
        unpacked.seek(0)
        return unpacked

    def unstrip_protocol(self, path: str) -> str:
        return path
