"""Labelled windows on disk. In: Examples, one by one. Out: a folder; and from a folder a Dataset whose windows are
read-only views of a memory map.

::

    rows.bin       rows of all windows one behind the other, as they lie in memory; the chain's own dtype
    windows.npy    a record a window: where its rows begin, samples, times (ns), label, recording, header, absent inputs
    targets.npy    where there are further heads: a number a window and head, that of its class; NaN: not known
    dataset.json   recordings, headers, labels, heads, checksums, notes; written last

Windows that overlap share rows: rows that are, to the byte, the last ones of the window before are not written again.
Writing holds the last window, and 80 bytes and 8 a head for each window before.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kymo.models.data.examples import Dataset, Example, Targets
from kymo.processors.spec import header_from_json, header_to_json
from kymo.streams.chunk import Array, Header, Window
from kymo.streams.errors import TrainingError
from kymo.streams.files import to_disk

#: What is written before the system is asked to bring it to the disk.
BLOCK_BYTES = 2 * 2**20
ROWS, WINDOWS, TARGETS, DATASET = "rows.bin", "windows.npy", "targets.npy", "dataset.json"
_INTEGERS = ("row", "start_index", "end_index", "start_ns", "end_ns")
_RECORD = np.dtype(
    [*((name, "<i8") for name in _INTEGERS), ("missing", "<f8"), ("padded", "<i8"), ("anew", "<i8")]
    + [(name, "<i4") for name in ("label", "recording", "header", "absent")]
)


class StoreWriter:
    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._file, self._rows, self._waiting = (folder / ROWS).open("wb"), 0, 0
        self._records = bytearray()
        self._labels: dict[str, int] = {}
        self._recordings: dict[tuple[str, str, str], tuple[int, dict[str, str]]] = {}  # number, and metadata
        self._headers: dict[Header, int] = {}
        self._absences: dict[tuple[str, ...], int] = {}
        self._last: Window | None = None
        self._axes: tuple[int, ...] = ()
        # by head, a number for each window (NaN: not known), and the numbers of its classes
        self._targets: dict[str, tuple[array[float], dict[str, int]]] = {}

    def add_all(self, examples: Iterable[Example]) -> None:
        for example in examples:
            self.add(example)

    def add(self, example: Example) -> None:
        window = example.window
        shared = self._shared(window)
        self._axes = self._axes or _memory_order(window.data)
        first = self._rows - shared
        self._add_rows(window.data[shared:].transpose(self._axes))
        recording = example.session, example.subject, example.recording
        place = (window.start_index, window.end_index, window.start_ns, window.end_ns)
        record = (
            *(first, *place, window.missing, window.padded, window.anew),
            self._labels.setdefault(example.label, len(self._labels)),
            self._recordings.setdefault(recording, (len(self._recordings), dict(example.metadata)))[0],
            self._headers.setdefault(window.header, len(self._headers)),
            self._absences.setdefault(window.absent, len(self._absences)),
        )
        self._records += np.array(record, _RECORD).tobytes()
        for name in example.targets.keys() - self._targets.keys():
            self._targets[name] = array("d", [math.nan]) * self.count, {}
        for name, (values, classes) in self._targets.items():
            target = example.targets.get(name, math.nan)
            values.append(classes.setdefault(target, len(classes)) if isinstance(target, str) else target)
        self._last = window
        self.count += 1

    def _add_rows(self, rows: Array) -> None:
        """Write rows; of each block the system is asked to begin to bring it to the disk."""
        self._rows += len(rows)
        self._file.write(np.ascontiguousarray(rows).data)
        self._waiting += rows.nbytes
        if self._waiting >= BLOCK_BYTES and hasattr(os, "posix_fadvise"):
            self._file.flush()
            # "Not needed" starts the writing and waits for nothing; :meth:`finish` does.
            os.posix_fadvise(self._file.fileno(), self._file.tell() - self._waiting, 0, os.POSIX_FADV_DONTNEED)
            self._waiting = 0

    def _shared(self, window: Window) -> int:
        """Count how many of the first rows are the last ones of the window before."""
        if self._last is None:
            return 0
        before, rows = self._last, window.data
        if (before.data.shape, before.data.dtype) != (rows.shape, rows.dtype):
            raise TrainingError(
                f"session {window.session}: a window is {rows.dtype}{list(rows.shape)}, those before are "
                f"{before.data.dtype}{list(before.data.shape)}; use recordings of one kind"
            )
        hop = (window.start_index - before.start_index) / window.header.format.step
        if window.header is not before.header or hop.denominator != 1 or not 0 < hop < len(rows):
            return 0
        new = int(hop)
        return len(rows) - new if np.array_equal(_bits(before.data[new:]), _bits(rows[:-new])) else 0

    def finish(self, dataset: Dataset) -> None:
        """Write what is to know of all windows, and see to it that everything is on the disk."""
        assert self._last is not None
        np.save(self.folder / WINDOWS, np.frombuffer(bytes(self._records), _RECORD))
        heads = dict(sorted(self._targets.items()))
        if heads:
            np.save(self.folder / TARGETS, np.stack([np.array(values) for values, _ in heads.values()], 1))
        data = self._last.data
        about = {
            "rows": self._rows,
            "rows_a_window": len(data),
            "row_shape": [data.shape[axis] for axis in self._axes[1:]],
            "dtype": data.dtype.str,
            "axes": list(self._axes),
            "labels": list(self._labels),
            "heads": {name: list(classes) for name, (_, classes) in heads.items()},
            "recordings": [[*names, facts] for names, (_, facts) in self._recordings.items()],
            "headers": [header_to_json(header) for header in self._headers],
            "absences": list(self._absences),
            "inputs": dataset.inputs,
            "notes": dict(dataset.notes),
            "longest_s": dataset.longest_s,
            "lengths": dataset.lengths,
            "left_out": dataset.left_out,
        }
        (self.folder / DATASET).write_text(json.dumps(about))
        to_disk(self._file)
        for name in (WINDOWS, *([TARGETS] if heads else []), DATASET):
            with (self.folder / name).open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self._file.close()


def open_store(folder: Path) -> Dataset:
    about = json.loads((folder / DATASET).read_text())
    records = np.load(folder / WINDOWS)
    shape = (about["rows"], *about["row_shape"])
    rows: Array = np.asarray(np.memmap(folder / ROWS, np.dtype(about["dtype"]), "r", shape=shape))
    axes = tuple(about["axes"].index(axis) for axis in range(len(about["axes"])))
    headers = [header_from_json(header) for header in about["headers"]]
    recordings, labels, height = about["recordings"], about["labels"], about["rows_a_window"]
    targets = _targets(folder, about["heads"], len(records))
    absences = [tuple(streams) for streams in about["absences"]]
    dataset = Dataset(
        [], about["inputs"], Counter(about["notes"]), about["longest_s"], about["lengths"], about["left_out"]
    )
    for record, known in zip(records.tolist(), targets, strict=True):
        row, start, end, start_ns, end_ns, missing, padded, anew, label, recording, header, absent = record
        data = rows[row : row + height].transpose(axes)
        window = Window(headers[header], start, end, start_ns, end_ns, data, missing, padded, absences[absent], anew)
        session, subject, path, metadata = recordings[recording]
        dataset.put([Example(window, labels[label], session, subject, path, metadata, known)])
    return dataset


def _targets(folder: Path, heads: Mapping[str, Sequence[str]], count: int) -> list[Targets]:
    if not heads:
        return [{}] * count
    return [
        {
            name: classes[int(value)] if classes else value
            for (name, classes), value in zip(heads.items(), row, strict=True)
            if not math.isnan(value)
        }
        for row in np.load(folder / TARGETS).tolist()
    ]


def _memory_order(data: Array) -> tuple[int, ...]:
    """Order axes with time first, then from the slowest to the fastest in memory: so most of a copy is plain."""
    return (0, *sorted(range(1, data.ndim), key=lambda axis: -abs(data.strides[axis])))


def _bits(rows: Array) -> Any:
    """View rows as whole numbers: NaN equals itself, 0 is not -0."""
    return rows.view(f"u{rows.dtype.itemsize}")
