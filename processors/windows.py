"""Windows on a grid fixed to index 0. In: Chunks of samples or columns. Out: Windows of a fixed number of rows, in order.

``length`` and ``hop`` count raw input samples. Window ``k`` is ``[k*hop, k*hop + length)`` and holds exactly the rows whose samples all
lie inside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from kymo.processors.spec import Spec, Stage, derived_header, only, pack, unpack
from kymo.streams.chunk import Array, Chunk, Format, Header, Window
from kymo.streams.errors import FormatError
from kymo.streams.schema import Count


@dataclass(frozen=True)
class Windows(Spec):
    """Cuts a stream into windows.

    Parameters
    ----------
    length : int
        Raw input samples a window, at least 1.
    hop : int
        Raw input samples from one window's start to the next's, at least 1.
    """

    length: Count
    hop: Count
    name: ClassVar[str] = "windows"
    after_window: ClassVar[bool] = False

    def build(self) -> Stage:
        return WindowStage(self)

    def rows(self, fmt: Format) -> int:
        """Rows of `fmt` whose samples all lie inside a window."""
        return int((self.length - fmt.span) // fmt.step) + 1

    def memory_bytes(self, fmt: Format) -> int:
        """The rows of a window."""
        return self.rows(fmt) * fmt.sample_bytes

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format with ``rows`` set.

        Raises
        ------
        FormatError
            If a window would hold no row, or windows do not start on rows.
        """
        fmt = only(inputs)
        if not fmt.rate:
            raise FormatError(
                f"window: `{fmt.stream}` has no fixed rate, and windows count samples; join it with a stream that has one"
            )
        if self.hop % fmt.step:
            raise FormatError(
                f"window: a hop of {self.hop} samples is no multiple of the {fmt.step} samples between rows of `{fmt.stream}`; "
                f"make it one, or put the step behind the window"
            )
        if self.rows(fmt) < 1:
            raise FormatError(
                f"window: {self.length} samples are fewer than the {fmt.span} that one row of `{fmt.stream}` covers"
            )
        return replace(fmt, rows=self.rows(fmt))


@dataclass(frozen=True)
class PaddedWindows(Windows):
    """Cuts a stream into windows; what is left at a session's end makes a last one, filled up with zeros.

    It is the window of the grid that would come next, where it holds a row beyond what the one before it would hold: of a session
    shorter than a window, the first. Steps behind it see the rows that are there alone; behind all of them zeros fill up.

    Parameters
    ----------
    length, hop : int
        As of :class:`Windows`.
    """

    name: ClassVar[str] = "padded_windows"

    def build(self) -> Stage:
        return PaddedWindowStage(self)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format with ``rows`` set.

        Raises
        ------
        FormatError
            As of :class:`Windows`; or if rows are images.
        """
        if only(inputs).dtype == "jpeg":
            raise FormatError("window: pad fills up numbers, not images; leave it out")
        return super().output(inputs)


class WindowStage(Stage):
    """Stage of :class:`Windows`: the rows from the next window's start on."""

    def __init__(self, spec: Windows) -> None:
        super().__init__()
        self.spec = spec
        self._in: Header | None = None
        self._parts: deque[tuple[int, Array]] = deque()
        self._end = 0
        self._number = 0  # of the next window

    def _bind(self, header: Header) -> None:
        self._out = derived_header(header, self.spec)  # first: one that is refused must change nothing
        self._in = header
        self._rows, self._hop = self.spec.rows(header.format), int(self.spec.hop / header.format.step)
        # Raw samples that the rows rest on; a window may end with some that no whole row covers.
        self.covered = int((self._rows - 1) * header.format.step) + header.format.span
        raw_rate = header.format.rate * header.format.step
        self._ns_per_samples = raw_rate.denominator * 10**9, raw_rate.numerator  # so many ns every so many samples

    def push(self, item: Chunk) -> list[Window]:
        """Take rows; give the windows that became whole."""
        if not item.count:
            return []
        if item.header is not self._in and item.header == self._in:
            self._in = item.header  # the same header as another object, as after a restart
        if item.header is not self._in or item.first_index != self._end:
            if item.header is not self._in:
                self._bind(item.header)
            self._parts.clear()
            self._number = -(-item.first_index // self._hop)
        self._end = item.end_index
        self._parts.append((item.first_index, item.data))
        out = []
        while (start := self._number * self._hop) + self._rows <= self._end:
            out.append(self._window(start))
            self._number += 1
        parts = self._parts
        while parts and parts[0][0] + len(parts[0][1]) <= start:
            parts.popleft()
        return out

    def _window(self, start: int) -> Window:
        stop = start + self._rows
        pieces = [
            data[start - first if start > first else 0 : stop - first]
            for first, data in self._parts
            if first < stop and first + len(data) > start
        ]
        if self._hop > self._rows:  # else a window that waits would hold all that lies between, too
            pieces = [piece.copy() for piece in pieces]
        raw = self._number * self.spec.hop
        end = raw + self.spec.length
        return Window(self._out, raw, end, self._time(raw), self._time(end), pieces)

    def _time(self, raw_index: int) -> int:
        ns, samples = self._ns_per_samples
        return self._out.origin_ns + raw_index * ns // samples

    @property
    def next_start(self) -> int:
        """Raw sample that the next window begins at."""
        return self._number * self.spec.hop

    @property
    def needs_from(self) -> dict[str, int]:
        """First row of the next window."""
        return {} if self._in is None else {self._in.format.stream: self._number * self._hop}

    def snapshot(self) -> bytes:
        pieces = [data for _, data in self._parts]
        meta = {
            "header": self._in,
            "first": self._parts[0][0] if pieces else 0,
            "end": self._end,
            "number": self._number,
        }
        return pack(meta, {"rows": np.concatenate(pieces)} if pieces else {})

    def restore(self, snapshot: bytes) -> None:
        meta, arrays = unpack(snapshot)
        if meta["header"] is not None:
            self._bind(meta["header"])
        self._end, self._number = meta["end"], meta["number"]
        self._parts = deque([(meta["first"], arrays["rows"])] if "rows" in arrays else [])


class PaddedWindowStage(WindowStage):
    """Stage of :class:`PaddedWindows`."""

    def flush(self) -> list[Window]:
        """Give the last window, where something is left for it."""
        start = self._number * self._hop if self._in else 0
        before = start - self._hop + self._rows if self._number else 0
        if self._in is None or self._end <= max(start, before):
            return []
        window, fmt = self._window(start), self._out.format
        there = window.data  # (rows that came, *shape)
        data = np.zeros((self._rows, *there.shape[1:]), there.dtype)
        data[: len(there)] = there
        end = int((self._end - 1) * fmt.step) + fmt.span
        return [replace(window, pieces=data, end_index=end, end_ns=self._time(end), padded=self._rows - len(there))]
