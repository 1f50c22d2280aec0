"""Tables as recordings; what formats with rows share. In: a Table, whose rows come in blocks. Out: Recordings, one a session, a label for
each run of equal texts in a label column; times in Unix ns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import EmptyKeepError, SourceError
from kymo.streams.labels.labels import Label, canonical, identity, interval, rename
from kymo.streams.readers import grid
from kymo.streams.readers.columns import Block, ColumnRoles, Int, Table
from kymo.streams.readers.eyes import with_pupils
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData
from kymo.streams.words import NS, brief, many

_NO_LABEL = ("nan", "<na>", "nat", "na", "n/a", "#n/a", "\\n")  # as table programs and databases write it
_MAYBE_NO_LABEL = ("none", "null")  # a class in some data sets
_LATE = "empty in the first 2,000 rows, which say what a column is"
_SELDOM = 0.1  # rows with values say so seldom what marks say
_ON_GRID, _MOST_ON_GRID = 0.25, 0.95  # samples from the grid, and so many of them


def read_table(table: Table, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of a table; where it is long, each as soon as it is complete."""
    table, options = with_pupils(table, options)
    roles = ColumnRoles(table, options)
    gatherer = _Gatherer(table, roles, options)
    for block in table.blocks(roles):
        gatherer.note([*block.notes, *(roles.clock.notes if roles.clock else ())])
        if len(block.rows):
            yield from gatherer.add(block)
    yield from gatherer.finish()


@dataclass(slots=True)
class _Session:
    """Rows of a session as they come, and what is constant so far."""

    name: str
    blocks: list[Block] = field(default_factory=list)  # its rows of each block, with the texts of labels
    numbers: list[Int] = field(default_factory=list)  # of the rows in each, as `count` counts them
    texts: dict[str, set[str]] = field(default_factory=dict)  # by column that may be metadata: two of those that it has
    subject: str | None = None
    count: int = 0  # of rows
    kept_count: int = 0  # of those that `keep` leaves


class _Gatherer:
    """Sorts blocks into sessions and makes each a Recording."""

    def __init__(self, table: Table, roles: ColumnRoles, options: ReadOptions) -> None:
        self._table, self._path, self._roles, self._options = table, table.path, roles, options
        self._open: dict[tuple[str, ...], _Session] = {}
        self._done: set[tuple[str, ...]] = set()
        self._dropped = 0
        self._notes: list[str] = [*roles.notes]

    def note(self, notes: Sequence[str]) -> None:
        """Say notes of the next recording, each once."""
        self._notes += [note for note in notes if note not in self._notes]

    def add(self, block: Block) -> Iterator[Recording]:
        """Take a block; gives the recordings that are complete."""
        block = self._without_marks(block)
        keep = self._roles.keep
        mask = keep(block.texts) if keep else None
        last: tuple[str, ...] = ()
        for key, rows in self._keys(block):
            if key in self._done:
                wrong = f"session {brief(self._name(key))} comes again after others; sort a file this large by session"
                raise SourceError(wrong, self._path, int(block.rows[rows[0]]))
            session = self._open.setdefault(key, _Session(self._name(key)))
            numbers = np.arange(session.count, session.count + len(rows), dtype=np.int64)
            session.count += len(rows)
            picked = rows if mask is None else rows[mask[rows]]
            if len(picked):
                session.numbers.append(numbers if mask is None else numbers[mask[rows]])
                self._extend(session, block, picked)
            last = key
        if self._table.long:
            # The last one with rows stays, too: what is said of a session that `keep` leaves nothing of goes with it.
            with_rows = [key for key, session in self._open.items() if session.kept_count]
            for key in [key for key in self._open if key not in (last, *with_rows[-1:])]:
                yield from self._finish(key)

    def finish(self) -> Iterator[Recording]:
        if not self._open and not self._done:
            raise SourceError("has a header but no whole row", self._path)
        for key in sorted(self._open, key=lambda key: self._open[key].kept_count > 0):
            yield from self._finish(key)
        if self._dropped and self._dropped == len(self._done):
            raise EmptyKeepError(f"keep = {self._options.keep!r} leaves no row", self._path)

    def _without_marks(self, block: Block) -> Block:
        """A block without rows that have no value and say something that rows with values do not: marks of events."""
        empty: NDArray[np.bool_] = np.asarray(~np.isfinite(block.values).any(axis=1))
        if not empty.any() or empty.all():
            return block
        marks: NDArray[np.bool_] = np.zeros(len(empty), np.bool_)
        for name in self._roles.metadata:
            filled = np.array([bool(text.strip()) for text in block.texts[name]])
            if np.mean(filled[~empty]) < _SELDOM:
                marks = marks | (empty & filled)
        if not marks.any():
            return block
        first = block.rows[marks][0]
        self._notes.append(f"{many(int(marks.sum()), 'row')} of marks without a value left out, first at row {first}")
        return block.picked(np.flatnonzero(~marks))

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
                raise SourceError(f"column `{column}` is empty, it names the session", self._path, row)
            merged.setdefault(name, []).append(code)
        return [(key, np.flatnonzero(np.isin(raw, group))) for key, group in merged.items()]

    def _name(self, key: tuple[str, ...]) -> str:
        name = self._options.session_name
        return "-".join((name, *key) if name else key) if key else name or self._table.file.session

    def _extend(self, session: _Session, block: Block, picked: Int) -> None:
        roles = self._roles
        positions = picked.tolist()
        session.blocks.append(block.picked(picked, roles.labels))
        session.kept_count += len(picked)
        for name in roles.metadata:
            texts = session.texts.setdefault(name, set())
            texts |= {block.texts[name][i].strip() for i in positions}
            while len(texts) > 2:
                texts.pop()
        for text in dict.fromkeys(block.texts[roles.subject][i] for i in positions) if roles.subject else ():
            subject = identity(text) or None
            if session.subject is not None and subject not in (None, session.subject):
                two = f"session {brief(session.name)} has the subjects {brief(session.subject)} and {brief(subject)}"
                raise SourceError(f"{two}; add `{roles.subject}` to the columns that name a session", self._path)
            session.subject = subject or session.subject

    def _finish(self, key: tuple[str, ...]) -> Iterator[Recording]:
        session = self._open.pop(key)
        self._done.add(key)
        if not session.kept_count:
            self._dropped += 1
            self._notes.append(f"keep leaves no row of session {brief(session.name)}")
            return
        notes = [*self._notes]
        # What is said once of the file stays; a dropped session is said once, with the next recording.
        self._notes = [note for note in self._notes if not note.startswith("keep leaves")]
        if session.kept_count < session.count:
            notes.append(f"keep leaves {session.kept_count} of {session.count} rows")
        rows = _SessionRows(session, self._roles, self._table)
        notes += rows.clock_notes
        streams, labels = self._streams(rows, notes)
        texts = {name: next(iter(texts)) for name, texts in session.texts.items() if len(texts) == 1}
        metadata = {name: text for name, text in texts.items() if text and name != self._roles.subject}
        varied = [name for name in self._roles.metadata if name not in (*self._roles.labels, *texts)]
        late = [name for name in varied if name in self._table.late]
        kinds = {"neither channels nor constant": [name for name in varied if name not in late], _LATE: late}
        notes += [f"columns left out, {kind}: {', '.join(columns)}" for kind, columns in kinds.items() if columns]
        yield Recording(session.name, streams, labels, session.subject, metadata, self._path, notes)

    def _streams(self, rows: _SessionRows, notes: list[str]) -> tuple[list[StreamData], list[Label]]:
        streams: list[StreamData] = []
        several = len(self._roles.inputs) > 1
        longest, refused, silent = None, None, list[InputOptions]()
        for item in self._roles.inputs:
            try:
                stream_and_rows = rows.stream(item, several)
            except SourceError as error:
                if not several:
                    raise
                if self._options.inputs:
                    raise SourceError(f"stream `{item.stream}`: {error.message}", error.path, error.row) from None
                refused = refused or error
                notes.append(f"{item.stream}: {error.message}; read without it")
                continue
            if stream_and_rows is None:
                silent += [item] if item.rate_hz == 0 else []
                notes.append(
                    f"no value of stream `{item.stream}`: {'nothing happened' if item in silent else 'read without it'}"
                )
                continue
            stream, picked, stream_notes = stream_and_rows
            notes += [f"{item.stream}: {note}" if several else note for note in stream_notes if note not in notes]
            streams.append(stream)
            if longest is None or stream.count > longest[0].count:
                longest = stream, picked
                labels, label_notes = rows.labels(stream, picked, self._options.label_columns)
                notes += label_notes
        if not streams:
            raise refused or SourceError(f"session {brief(rows.session)} holds no value in any channel", self._path)
        streams += [StreamData.silent(item, rows.session, streams[0].start_ns) for item in silent]
        return streams, labels


class _SessionRows:
    """One session's rows, whole."""

    def __init__(self, session: _Session, roles: ColumnRoles, table: Table) -> None:
        """Take the rows of a session, which gives them away: they are held once."""
        self.session, self._path, self._start_ns = session.name, table.path, table.facts.start_ns
        self._channels = roles.channels
        self._rows = np.concatenate([block.rows for block in session.blocks])
        self._values = np.concatenate([block.values for block in session.blocks])
        numbers = np.concatenate(session.numbers)
        self._numbers = numbers - numbers[0]
        self._texts = {name: [text for block in session.blocks for text in block.texts[name]] for name in roles.labels}
        times = [block.times_ns for block in session.blocks if block.times_ns is not None]
        self._times: Int | None = np.concatenate(times) if times else None
        self.clock_notes: list[str] = []
        if self._times is not None and self._start_ns:
            self._times = self._times + self._start_ns
        if roles.clock and self._times is not None:
            self._times, self.clock_notes = roles.clock.going_on(self._times, self._rows)
        session.blocks.clear()

    def stream(self, item: InputOptions, several: bool) -> tuple[StreamData, Int, list[str]] | None:
        """One stream, the positions of its rows, and notes; None if it has no value.

        Where several streams share a table, a row without any value of one is no sample of it (their rates differ).
        """
        columns = [self._channels.index(name) for name in item.channels]
        whole = columns == list(range(self._values.shape[1]))
        values = self._values if whole else self._values[:, columns]  # (n, channels)
        bad = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        empty: NDArray[np.bool_] = np.asarray(bad.all(axis=1))
        kind = "" if several else self._kind_of(item, values, empty)
        picked = np.flatnonzero(~empty) if several or kind else np.arange(len(values))
        if not len(picked):
            return None
        if len(picked) < len(values):
            values, bad = values[picked], bad[picked]
        if np.isinf(values[bad]).any():
            values = np.where(bad, values.dtype.type(np.nan), values)
        fitted = self._grid(item, values, picked)
        notes = fitted.notes
        if kind:
            first = self._rows[np.argmax(empty)]
            notes.append(f"{many(int(empty.sum()), 'row')} without a value {kind}, left out, first at row {first}")
        missing = np.flatnonzero(bad.any(axis=1))
        if len(missing):
            where = f"row {self._rows[picked[missing[0]]]}"
            notes.append(f"{many(len(missing), 'row')} with empty or NaN cells, kept as missing, first at {where}")
        times = None if self._times is None else self._times[picked]
        return fitted.stream(self.session, item, values, times), picked[fitted.rows], notes

    def _kind_of(self, item: InputOptions, values: Array, empty: NDArray[np.bool_]) -> str:
        """What rows without a value are that are no samples: other sensors', where they are most or make no grid; or marks, where they
        lie between samples, so that none is missing where they stand."""
        if self._times is None or not empty.any() or empty.all():
            return ""
        others = "of it, as where sensors share a table"
        if 2 * int(empty.sum()) > len(empty):
            return others
        full = np.flatnonzero(~empty)
        try:
            self._grid(item, values, np.arange(len(values)))
        except SourceError:
            return others
        try:
            fitted = self._grid(item, values[full], full)
        except SourceError:
            return ""
        if not fitted.rate or 2 * int(empty.sum()) == len(empty):
            return ""
        at = (self._times - fitted.origin_ns).astype(np.float64) * float(fitted.rate) / NS
        off = np.abs(at[full][fitted.rows] - fitted.indexes)
        between = (np.abs(at - np.rint(at)) > _ON_GRID) | np.isin(np.rint(at), fitted.indexes)
        marks = np.mean(off < _ON_GRID) > _MOST_ON_GRID and between[empty].any()
        return "between samples, as marks are" if marks else ""

    def _grid(self, item: InputOptions, values: Array, picked: Int) -> grid.Grid:
        row_numbers = grid.RowNumbers(self._path, self._rows[picked], stream=item.stream)
        rate = item.rate_hz
        if self._times is not None:
            return grid.fit(self._times[picked], values, rate, row_numbers)
        if rate is None or rate == 0:
            need = "times of an irregular stream" if rate == 0 else "the sampling rate"
            add = "add a time column (`t` in s, `t_ns`, or `timestamp`), or say `rate_hz` in the recipe's [[input]]"
            raise SourceError(f"nothing gives {need}: {add}", self._path)
        numbers, notes = self._numbers[picked], list[str]()
        if len(jumps := np.flatnonzero(np.diff(numbers) != 1)):
            where = row_numbers.at(int(jumps[0]) + 1)
            notes = [f"rows left out between others make {many(len(jumps), 'gap')}, first before {where}"]
        return grid.Grid(Fraction(rate), self._start_ns, np.arange(len(numbers), dtype=np.int64), numbers, notes)

    def labels(
        self, stream: StreamData, picked: Int, columns: Mapping[str, Mapping[str, str]]
    ) -> tuple[list[Label], list[str]]:
        """Labels of a stream's samples, by the columns of labels with the names of their values; and what is doubtful of them."""
        labels, notes = list[Label](), list[str]()
        author = self._path.replace("\\", "/").rpartition("/")[2]
        for column, names in columns.items():
            if texts := self._texts.get(column):
                classes = {text: _class_of(text, names) for text in set(texts)}
                doubtful = {name for name in classes.values() if name.lower() in _MAYBE_NO_LABEL} - set(names.values())
                notes += [
                    f"`{name}` counts as a class of `{column}`; leave cells empty that have none"
                    for name in sorted(doubtful)
                ]
                labels += _label_runs([classes[texts[i]] for i in picked.tolist()], stream, column, author)
        return sorted(labels, key=lambda label: (label.start_ns, label.end_ns)), notes


def _class_of(text: str, names: Mapping[str, str]) -> str:
    """The canonical, renamed class that a cell says; empty for what table programs write for no value."""
    empty = text.strip().lower() in _NO_LABEL and text.strip() not in names
    return "" if empty else rename(canonical(text), names)


def _label_runs(texts: Sequence[str], stream: StreamData, name: str, author: str) -> Iterator[Label]:
    """Labels of a stream's samples: an interval for each run of equal texts, broken at gaps; an empty text is no label."""
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
                yield interval(stream.header.session, name, start, end, texts[at + a], author=author)
        at += len(piece)
