"""Rows into a file. In: arrays ``(n, *shape)`` in any memory order, one after the other. Out: their bytes, time first.

Rows are collected in a block of :data:`BLOCK_BYTES`, so that the system is called with a lot at a time; what a full block
writes goes to the disk at once, while more is computed, and not all of it at the end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streams.chunk import Array

#: What is collected before it is written.
BLOCK_BYTES = 2 * 2**20


class RowWriter:
    """Writes rows into a file."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any) -> None:
        self.count = 0
        self._file = path.open("wb", buffering=0)
        self._row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        height = max(1, BLOCK_BYTES // max(1, self._row_bytes))
        self._block, self._filled, self._written = np.empty((height, *shape), dtype), 0, 0

    def add(self, rows: Array) -> None:
        """Take rows ``(n, *shape)``; they are copied."""
        self.count += len(rows)
        while len(rows):
            taken = rows[: len(self._block) - self._filled]
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == len(self._block):
                self._write()

    def _write(self) -> None:
        """Write what is in the block, and have the system begin to bring it to the disk."""
        filled: Any = self._block.reshape(-1).view(np.uint8)[: self._filled * self._row_bytes]
        left = memoryview(filled)
        size, self._filled = len(left), 0
        while left:
            left = left[self._file.write(left) :]
        if hasattr(os, "posix_fadvise"):  # "not needed" starts the writing and waits for nothing; :meth:`finish` does
            os.posix_fadvise(self._file.fileno(), self._written, size, os.POSIX_FADV_DONTNEED)
        self._written += size

    def finish(self) -> None:
        """Write what is left, and wait until everything is on the disk."""
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the file back, whether or not all was written."""
        self._file.close()
