"""The entry of a chain that goes on where another one ended. In: derived Chunks as they came. Out: the same, in rising order, each once.

A processor that publishes a derived stream and a model agent that reads it share a chain: the one runs what stands before the window, the
other the rest. Which raw samples were interpolated travels with the chunks, so that windows come out as from the whole chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from processors.intake import EntryStage
from processors.memory import pack, unpack
from processors.spec import Spec, Stage, only
from streams.chunk import Chunk, Format, Header
from streams.errors import FormatError


@dataclass(frozen=True)
class Derived(Spec):
    """Takes the chunks of a derived stream.

    Parameters
    ----------
    chain : str
        Digest of the chain whose chunks they are.
    max_missing : float
        Share of a window's raw samples (0 to 1) that may be missing.
    """

    chain: str = ""
    max_missing: float = 0.0
    name: ClassVar[str] = "derived"
    after_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_missing <= 1:
            raise FormatError(f"derived: max_missing {self.max_missing}, expected 0 to 1")

    def build(self) -> Stage:
        """A Stage for one session."""
        return DerivedStage(self)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The input's format."""
        return only(inputs)


class DerivedStage(EntryStage):
    """Stage of :class:`Derived`."""

    def __init__(self, spec: Derived) -> None:
        super().__init__()
        self.spec = spec
        self._in: Header | None = None

    def push(self, item: Chunk) -> list[Chunk]:
        """Take a derived Chunk; give what of it is new."""
        data, first = item.data, item.first_index
        if not len(data):
            return []
        if first < self._seen:
            self.counts["duplicates"] += 1
            if item.end_index <= self._seen:
                return []
            data, first = data[self._seen - first :], self._seen
        self._in, self._seen = item.header, item.end_index
        for gap in item.filled:  # one that two chunks rest on comes with both, and twice with both as one
            if not self.filled or gap[0] >= self.filled[-1][1]:
                self.filled.append(gap)
        return [Chunk(item.header, first, data)]

    def forget(self, before: int) -> None:
        """Forget interpolated ranges that end before row `before`."""
        super().forget(int(before * self._in.format.step) if self._in else 0)

    @property
    def needs_from(self) -> dict[str, int]:
        """The next row."""
        return {} if self._in is None else {self._in.format.stream: self._seen}

    def snapshot(self) -> bytes:
        """See :meth:`Stage.snapshot`."""
        return pack({"header": self._in, "seen": self._seen, "filled": self.filled})

    def restore(self, snapshot: bytes) -> None:
        """See :meth:`Stage.restore`."""
        meta, _ = unpack(snapshot)
        self._in, self._seen = meta["header"], meta["seen"]
        self.filled = [(a, b, bool(c)) for a, b, c in meta["filled"]]
