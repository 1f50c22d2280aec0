"""Tables as recordings; what CSV and Parquet share. In: blocks of rows. Out: Recordings, one a session, a label for each run
of equal texts in a label column; times in Unix ns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array, Header, signal_format
from kymo.streams.errors import EmptyKeepError, SourceError
from kymo.streams.labels.labels import Label, canonical, identity, interval, rename
from kymo.streams.readers import grid
from kymo.streams.readers.columns import ColumnRoles
from kymo.streams.readers.files import File
from kymo.streams.readers.times import TimeColumn
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData
from kymo.streams.words import NS, brief, many

Int = NDArray[np.int64]
_NO_LABEL = ("nan", "<na>", "nat", "na", "n/a", "#n/a", "\\n")  # as table programs and databases write it
_MAYBE_NO_LABEL = ("none", "null")  # a class in some data sets
_LATE = "empty in the first 2,000 rows, which say what a column is"
_SELDOM = 0.1  # rows with values say so seldom what marks say
_ON_GRID, _MOST_ON_GRID = 0.25, 0.95  # samples from the grid, and so many of them


@dataclass(slots=True)
class Block:
    """Rows of a table."""

    rows: Int  # ``(n,)``, as a user counts them
    values: Array  # ``(n, channels)`` in the order of `channels`; NaN where missing
    texts: dict[str, list[str]]  # each text column's n texts
    times_ns: Int | None = None


@dataclass(slots=True)
class _Session:
    """Rows of a session as they come, and what is constant so far."""

    name: str
    blocks: list[Block] = field(default_factory=list)  # its rows of each block, without texts
    numbers: list[Int] = field(default_factory=list)  # of the rows in each, as `count` counts them
    labels: dict[str, list[str]] = field(default_factory=dict)  # by column, a text a row
    constant: dict[str, str | None] = field(default_factory=dict)  # None: several values
    subject: str | None = None
    count: int = 0  # of rows
    kept_count: int = 0  # of those that `keep` leaves


class Gatherer:
    """Sorts blocks into sessions and makes each a Recording."""

    def __init__(
        self,
        file: File,
        roles: ColumnRoles,
        options: ReadOptions,
        together: bool,
        time_column: TimeColumn | None = None,
    ) -> None:
        self._file, self._roles, self._options, self._together = file, roles, options, together
        self._time_column = time_column
        self._open: dict[tuple[str, ...], _Session] = {}
        self._done: set[tuple[str, ...]] = set()
        self._dropped = 0
        self.notes: list[str] = [*roles.notes]

    def add(self, block: Block) -> Iterator[Recording]:
        """Take a block; gives the recordings that are complete."""
        block = self._without_marks(block)
        keys = self._keys(block)
        keep = self._roles.keep
        mask = keep(block.texts) if keep else None
        last: tuple[str, ...] = ()
        for key, picked in keys:
            if key in self._done:
                row = int(block.rows[picked[0]])
                raise SourceError(
                    f"session {brief(self._name(key))} comes again after others; sort a file this large by session",
                    self._file.path,
                    row,
                )
            session = self._open.setdefault(key, _Session(self._name(key)))
            numbers = np.arange(session.count, session.count + len(picked), dtype=np.int64)
            session.count += len(picked)
            if mask is not None:
                numbers, picked = numbers[mask[picked]], picked[mask[picked]]  # noqa: PLW2901
            self._extend(session, block, picked, numbers)
            last = key
        if self._together:
            # The last one with rows stays, too: what is said of a session that `keep` leaves nothing of goes with it.
            with_rows = [key for key, session in self._open.items() if session.kept_count]
            for key in [key for key in self._open if key not in (last, *with_rows[-1:])]:
                self._done.add(key)
                yield from self._finish(key)

    def _without_marks(self, block: Block) -> Block:
        """A block without rows that have no value and say something that rows with values do not: marks of events."""
        empty: NDArray[np.bool_] = np.asarray(~np.isfinite(block.values).any(axis=1))
        if not empty.any() or empty.all():
            return block
        marks: NDArray[np.bool_] = np.zeros(len(empty), np.bool_)
        for name in self._roles.metadata:
            said = np.array([bool(text.strip()) for text in block.texts[name]])
            if np.mean(said[~empty]) < _SELDOM:
                marks = marks | (empty & said)
        if not marks.any():
            return block
        self.notes.append(
            f"{many(int(marks.sum()), 'row')} of marks without a value left out, first at row {block.rows[marks][0]}"
        )
        kept = np.flatnonzero(~marks)
        texts = {name: [column[i] for i in kept.tolist()] for name, column in block.texts.items()}
        return Block(
            block.rows[kept], block.values[kept], texts, None if block.times_ns is None else block.times_ns[kept]
        )

    def finish(self) -> Iterator[Recording]:
        """The recordings that are left."""
        if not self._open and not self._done:
            raise SourceError("has a header but no whole row", self._file.path)
        for key in sorted(self._open, key=lambda key: self._open[key].kept_count > 0):
            yield from self._finish(key)
        if self._dropped and self._dropped == len(self._done):
            raise EmptyKeepError(f"keep = {self._options.keep!r} leaves no row", self._file.path)

    def _keys(self, block: Block) -> list[tuple[tuple[str, ...], Int]]:
        """Sessions in a block, in order of appearance, with the positions of their rows."""
        columns = [block.texts[name] for name in self._roles.session]
        if not columns:
            return [((), np.arange(len(block.rows)))]
        codes: dict[tuple[str, ...], int] = {}
        raw = np.array([codes.setdefault(key, len(codes)) for key in zip(*columns, strict=True)])
        merged: dict[tuple[str, ...], list[int]] = {}
        for key, code in codes.items():
            name = tuple(map(identity, key))
            if not all(name):
                row = int(block.rows[np.argmax(raw == code)])
                column = self._roles.session[name.index("")]
                raise SourceError(f"column `{column}` is empty, it names the session", self._file.path, row)
            merged.setdefault(name, []).append(code)
        return [(key, np.flatnonzero(np.isin(raw, group))) for key, group in merged.items()]

    def _name(self, key: tuple[str, ...]) -> str:
        override = self._options.session_name
        if not key:
            return override or self._file.session
        return "-".join((override, *key) if override else key)

    def _extend(self, session: _Session, block: Block, picked: Int, numbers: Int) -> None:
        if not len(picked):
            return
        roles = self._roles
        whole = len(picked) == len(block.rows)
        values = block.values if whole else block.values[picked]
        times = None if block.times_ns is None else block.times_ns[picked]
        session.blocks.append(Block(block.rows[picked], values, {}, times))
        session.numbers.append(numbers)
        session.kept_count += len(picked)
        positions = picked.tolist()
        for name in roles.labels:
            texts = block.texts[name]
            session.labels.setdefault(name, []).extend([texts[i] for i in positions])
        for name in (*roles.metadata, *([roles.subject] if roles.subject else [])):
            texts = block.texts[name]
            different = {texts[i].strip() for i in positions}
            if name in session.constant:
                different.add(session.constant[name] or "")
            session.constant[name] = (
                different.pop() if len(different) == 1 and session.constant.get(name, "") is not None else None
            )
            if name == roles.subject:
                self._check_subject(session, name, [texts[i] for i in positions])

    def _check_subject(self, session: _Session, column: str, texts: Sequence[str]) -> None:
        for text in dict.fromkeys(texts):
            subject = identity(text) or None
            if session.subject is not None and subject not in (None, session.subject):
                raise SourceError(
                    f"session {brief(session.name)} has the subjects {brief(session.subject)} and {brief(subject)}; "
                    f"add `{column}` to the columns that name a session",
                    self._file.path,
                )
            session.subject = subject or session.subject

    def _finish(self, key: tuple[str, ...]) -> Iterator[Recording]:
        session = self._open.pop(key)
        self._done.add(key)
        if not session.kept_count:
            self._dropped += 1
            self.notes.append(f"keep leaves no row of session {brief(session.name)}")
            return
        notes = [*self.notes]
        # What is said once of the file stays; a dropped session is said once, with the next recording.
        self.notes = [note for note in self.notes if not note.startswith("keep leaves")]
        if session.kept_count < session.count:
            notes.append(f"keep leaves {session.kept_count} of {session.count} rows")
        table = _Table.of(session, self._file.path, self._roles.start_ns)
        if self._time_column and table.times is not None:
            table.times, clock_notes = self._time_column.going_on(table.times, table.rows)
            notes += clock_notes
        streams, labels = self._streams(table, session.labels, notes)
        metadata = {name: text for name, text in session.constant.items() if text and name != self._roles.subject}
        left_out = [name for name in self._roles.metadata if name not in self._roles.labels]
        varied = [name for name in left_out if session.constant.get(name) is None]
        late = [name for name in varied if name in self._roles.late]
        kinds = {"neither channels nor constant": [name for name in varied if name not in late], _LATE: late}
        notes += [f"columns left out, {kind}: {', '.join(columns)}" for kind, columns in kinds.items() if columns]
        yield Recording(session.name, streams, labels, session.subject, metadata, self._file.path, notes)

    def _streams(
        self, table: _Table, texts: dict[str, list[str]], notes: list[str]
    ) -> tuple[list[StreamData], list[Label]]:
        streams: list[StreamData] = []
        labels: list[Label] = []
        several = len(self._roles.inputs) > 1
        author = self._file.path.replace("\\", "/").rpartition("/")[2]
        longest, refused = -1, None
        for item in self._roles.inputs:
            columns = [self._roles.channels.index(name) for name in item.channels]
            try:
                stream_and_rows = table.stream(item, columns, several)
            except SourceError as error:
                if not several or self._options.inputs:
                    raise
                refused = refused or error
                notes.append(f"{item.stream}: {error.message}; read without it")
                continue
            if stream_and_rows is None:
                notes.append(f"no value of stream `{item.stream}`: read without it")
                continue
            stream, picked, stream_notes = stream_and_rows
            notes += [f"{item.stream}: {note}" if several else note for note in stream_notes if note not in notes]
            streams.append(stream)
            if texts and stream.count > longest:
                longest = stream.count
                labels = []
                for column, names in self._options.label_columns.items():
                    classes = _canonical_all(texts.get(column, []), names)
                    if classes:
                        doubtful = sorted(
                            {text for text in set(classes) if text.lower() in _MAYBE_NO_LABEL} - set(names.values())
                        )
                        notes += [
                            f"`{text}` counts as a class of `{column}`; leave cells empty that have none"
                            for text in doubtful
                        ]
                        labels += _label_runs([classes[i] for i in picked.tolist()], stream, column, author)
        if not streams:
            raise refused or SourceError(f"session {brief(table.session)} holds no value in any channel", table.path)
        return streams, sorted(labels, key=lambda label: (label.start_ns, label.end_ns))


@dataclass(slots=True)
class _Table:
    """One session's rows, whole."""

    path: str
    session: str
    rows: Int
    values: Array
    times: Int | None
    numbers: Int
    start_ns: int  # of row 0, where there are no times

    @classmethod
    def of(cls, session: _Session, path: str, start_ns: int) -> _Table:
        """The rows of a session, which gives them away: they are held once."""
        rows = np.concatenate([block.rows for block in session.blocks])
        values = np.concatenate([block.values for block in session.blocks])
        times = [block.times_ns for block in session.blocks if block.times_ns is not None]
        numbers = np.concatenate(session.numbers)
        times_ns = np.concatenate(times) if times else None
        table = cls(path, session.name, rows, values, times_ns, numbers - numbers[0], start_ns)
        session.blocks.clear()
        return table

    def stream(self, item: InputOptions, columns: list[int], several: bool) -> tuple[StreamData, Int, list[str]] | None:
        """One stream, the positions of its rows, and notes; None if it has no value.

        Where several streams share a table, a row without any value of one is no sample of it (their rates differ).
        """
        whole = columns == list(range(self.values.shape[1]))
        values = self.values if whole else self.values[:, columns]  # (n, channels)
        picked = np.arange(len(values))
        bad = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        empty: NDArray[np.bool_] = np.asarray(bad.all(axis=1))
        others = not several and self._are_others(item, values, empty)
        marks = not (several or others) and self._are_marks(item, values, empty)
        if several or marks or others:
            picked = np.flatnonzero(~empty)
            if not len(picked):
                return None
            values, bad = values[picked], bad[picked]
        if np.isinf(values[bad]).any():
            values = np.where(bad, values.dtype.type(np.nan), values)
        row_numbers = grid.RowNumbers(self.path, self.rows[picked], stream=item.stream)
        fitted = self._grid(item, values, picked, row_numbers)
        notes = fitted.notes
        if marks or others:
            what = "between samples, as marks are" if marks else "of it, as where sensors share a table"
            first = self.rows[np.argmax(empty)]
            notes.append(f"{many(int(empty.sum()), 'row')} without a value {what}, left out, first at row {first}")
        missing = np.flatnonzero(bad.any(axis=1))
        if len(missing):
            rows = many(len(missing), "row")
            where = row_numbers.at(int(missing[0]))
            notes.append(f"{rows} with empty or NaN cells, kept as missing, first at {where}")
        fmt = signal_format(item.stream, item.channels, fitted.rate, values.dtype.name, item.units)
        header = Header(self.session, fitted.origin_ns, fmt)
        in_order = len(fitted.rows) == len(values) and bool((np.diff(fitted.rows) == 1).all())
        data = np.ascontiguousarray(values if in_order else values[fitted.rows])
        times = None
        if fitted.rate == 0 and self.times is not None:
            times = self.times[picked][fitted.rows]
        return StreamData.from_indexes(header, data, fitted.indexes, times), picked[fitted.rows], notes

    def _are_others(self, item: InputOptions, values: Array, empty: NDArray[np.bool_]) -> bool:
        """Whether rows without a value are other sensors': most of them, or times with them make no grid."""
        if self.times is None or not empty.any() or empty.all():
            return False
        if 2 * int(empty.sum()) > len(empty):
            return True
        try:
            self._grid(item, values, np.arange(len(values)), grid.RowNumbers(self.path, self.rows, stream=item.stream))
        except SourceError:
            return True
        return False

    def _are_marks(self, item: InputOptions, values: Array, empty: NDArray[np.bool_]) -> bool:
        """Whether rows without a value lie between samples, as those of events do: no sample is missing where they stand."""
        if self.times is None or not 0 < 2 * int(empty.sum()) < len(empty):
            return False
        full = np.flatnonzero(~empty)
        try:
            fitted = self._grid(
                item, values[full], full, grid.RowNumbers(self.path, self.rows[full], stream=item.stream)
            )
        except SourceError:
            return False
        if not fitted.rate:
            return False
        at = (self.times - fitted.origin_ns).astype(np.float64) * float(fitted.rate) / NS
        off = np.abs(at[full][fitted.rows] - fitted.indexes)
        between = (np.abs(at - np.rint(at)) > _ON_GRID) | np.isin(np.rint(at), fitted.indexes)
        return bool(np.mean(off < _ON_GRID) > _MOST_ON_GRID and between[empty].any())

    def _grid(self, item: InputOptions, values: Array, picked: Int, row_numbers: grid.RowNumbers) -> grid.Grid:
        rate = item.rate_hz
        if self.times is not None:
            times = self.times[picked]
            return grid.fit(times, values, rate, row_numbers)
        if rate is None or rate == 0:
            need = "times of an irregular stream" if rate == 0 else "the sampling rate"
            raise SourceError(
                f"nothing gives {need}: add a time column (`t` in s, `t_ns`, or `timestamp`), "
                "or say `rate_hz` in the recipe's [[input]]",
                self.path,
            )
        numbers = self.numbers[picked]
        notes, rows = _skipped(numbers, row_numbers), np.arange(len(numbers), dtype=np.int64)
        return grid.Grid(Fraction(rate), self.start_ns, rows, numbers, notes)


def _skipped(numbers: Int, row_numbers: grid.RowNumbers) -> list[str]:
    jumps = np.flatnonzero(np.diff(numbers) != 1)
    if not len(jumps):
        return []
    where = row_numbers.at(int(jumps[0]) + 1)
    return [f"rows left out between others make {many(len(jumps), 'gap')}, first before {where}"]


def _canonical_all(texts: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Canonical, renamed text of each; each different one is worked out once. What table programs write for no value is none."""
    empty = {text for text in set(texts) if text.strip().lower() in _NO_LABEL and text.strip() not in names}
    canonical_texts = {text: "" if text in empty else rename(canonical(text), names) for text in set(texts)}
    return [canonical_texts[text] for text in texts]


def _label_runs(texts: Sequence[str], stream: StreamData, name: str, author: str) -> list[Label]:
    """Labels of a stream's samples: an interval for each run of equal texts, broken at gaps; an empty text is no label."""
    labels: list[Label] = []
    codes: dict[str, int] = {}
    coded = np.array([codes.setdefault(text, len(codes)) for text in texts], np.int64)
    at = 0
    for first, piece in stream.pieces:
        part = coded[at : at + len(piece)]
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
        for a, b in pairwise(cuts):
            if b > a and texts[at + a]:
                if stream.times_ns is None:
                    start, end = stream.header.time_ns(first + a), stream.header.time_ns(first + b)
                else:
                    start, end = (int(stream.times_ns[min(at + i, len(texts) - 1)]) for i in (a, b))
                labels.append(
                    interval(
                        session=stream.header.session,
                        set=name,
                        start_ns=start,
                        end_ns=end,
                        label=texts[at + a],
                        author=author,
                    )
                )
        at += len(piece)
    return labels
