"""What a worker publishes, and how it knows that it did. In: what comes out of a chain. Out: places, and what is still to be published.

A chain that ends at windows makes events; one that ends before them makes the chunks of a derived stream. What was published is read
back as *marks*: for events the windows' start indices with the head that each is of, for chunks their end indices, and whether the
stream ends there.

The kinds of windows that the bundles of one recipe may take stand here, too. A recipe's own chain and the one cut back for raw windows
(:func:`kymo.models.bundle.raw_chain`) stand on the same grid. So that a bundle of the one kind can take over from one of the other while
sessions are open, a session keeps the input that the next window of either rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from kymo.processors.chain import Chain
from kymo.processors.intake import Derived, Intake
from kymo.processors.spec import derived_header
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Format, Header, Window
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import MessageError
from kymo.streams.messages import read_object

Output = Window | Chunk
Mark = tuple[int, str]
#: What is published of a session, and which bundle made it; empty for derived chunks.
Marks = dict[Mark, str]
_END = "end"
ENDLESS = 2**63 - 1  # as a memory: an output rests on all before it


@dataclass(frozen=True, slots=True)
class WindowKind:
    """A chain up to its window."""

    chain: Chain
    digest: str  # of it, without learned numbers
    step: Fraction  # raw samples from one of a window's rows to the next
    margin: int  # raw samples before what a window rests on that an interpolated sample may rest on
    window: Windows  # how it is cut, in raw samples
    waits: int = field(init=False)  # raw samples behind a window's begin after which it must be whole, or never will be

    def __post_init__(self) -> None:
        far = 10**6 * self.window.hop  # no window there rests on what a session's begin leaves out
        object.__setattr__(self, "waits", 2 * (self.window.length + far - self._oldest(far)))

    @classmethod
    def of(cls, chain: Chain, fmt: Format) -> WindowKind:
        """The kind of a chain, for raw input of `fmt`."""
        (window,) = (spec for spec in chain.specs if isinstance(spec, Windows))
        before = Chain(tuple(spec for spec in chain.specs if spec is not window))
        first = chain.specs[0]
        margin = max(first.bridge, first.fill) + 1 if isinstance(first, Intake) else 0
        return cls(chain, chain.digest(learned=False), before.output({fmt.stream: fmt}).step, margin, window)

    def needs(self, start: int, seen: int) -> int:
        """Oldest raw sample that windows still to come rest on."""
        hop = self.window.hop
        return max(0, self._oldest(max(start, (seen - self.waits) // hop * hop)))

    def _oldest(self, start: int) -> int:
        """Oldest raw sample that must be there for the window that begins at raw sample `start`."""
        index = start * self.step.denominator // self.step.numerator
        for spec in reversed(self.chain.specs):
            if not isinstance(spec, Windows):
                index = spec.input_index(index)
        return index - self.margin


def window_kinds(fmt: Format, *chains: Chain) -> tuple[WindowKind, ...]:
    """The kinds of some chains; none where they are all one."""
    kinds = {kind.digest: kind for kind in (WindowKind.of(chain, fmt) for chain in chains)}
    return tuple(kinds.values()) if len(kinds) > 1 else ()


class Outputs(Protocol):
    """What a chain's outputs are, to the delivery."""

    @property
    def kinds(self) -> tuple[WindowKind, ...]:
        """Kinds of windows that the recipe's bundles take, where they differ."""

    @property
    def records(self) -> int:
        """Records that an output becomes."""

    @property
    def memory(self) -> int:
        """Outputs before it that an output rests on; :data:`ENDLESS` for all."""

    def place(self, item: Any) -> int:
        """Oldest input index that `item` rests on."""

    def fresh(self, item: Any, marks: Marks) -> tuple[Any, frozenset[int]]:
        """What of `item` is not published yet, and the numbers of its records that are; where all of them are, nothing is left."""

    def ahead(self, marks: Iterable[Mark], given_to: int, seen: int = ENDLESS) -> set[Mark]:
        """Those of `marks` that are of outputs still to come."""

    def ending(self, header: Header, end: int) -> list[Any]:
        """What follows the last output, which had `header` and ended before `end`, at the session's end mark."""

    def read(self, value: bytes | None) -> tuple[str, Mark, str] | None:
        """Session, mark and bundle of a published record; None if it is not one of ours."""

    def add(self, marks: Marks, mark: Mark, bundle: str) -> None:
        """Note a published record."""

    def bundle(self, item: Any, marks: Marks) -> str:
        """What made those records of `item` that are published; empty for none."""

    def published_to(self, end: int) -> Marks:
        """What is published of a session whose newest derived chunk ended before `end`; nothing of events."""


@dataclass(frozen=True, slots=True)
class Events:
    """Windows that become events."""

    recipe: str
    step: Fraction = Fraction(1)  # raw samples from one input sample to the next
    # windows before it that an event rests on, where the recipe pools; :data:`ENDLESS` for a stateful model
    memory: int = 0
    # of each window's events, in order: empty for the recipe's own classes, then the names of the recipe's heads
    heads: tuple[str, ...] = ("",)
    kinds: tuple[WindowKind, ...] = ()  # of windows that the recipe's bundles take, where they differ

    @property
    def records(self) -> int:
        return len(self.heads)

    def place(self, item: Window) -> int:
        # For every window of every session: a division of fractions would cost as much as many of its samples.
        return item.start_index * self.step.denominator // self.step.numerator

    def fresh(self, item: Window, marks: Marks) -> tuple[Window, frozenset[int]]:
        """See :meth:`Outputs.fresh`: a crash may come between the events of one window."""
        return item, frozenset(n for n, head in enumerate(self.heads) if (item.start_index, head) in marks)

    def ahead(self, marks: Iterable[Mark], given_to: int, seen: int = ENDLESS) -> set[Mark]:
        end = seen * self.step
        return {mark for mark in marks if given_to < mark[0] < end}

    def ending(self, header: Header, end: int) -> list[Window]:
        """Nothing."""
        return []

    def read(self, value: bytes | None) -> tuple[str, Mark, str] | None:
        event = read_object(value)
        session, start, head = event.get("session"), event.get("start_index"), event.get("head", "")
        if type(session) is not str or type(start) is not int or type(head) is not str:
            raise MessageError(f"an event of session {session!r:.40}, start_index {start!r:.40}, head {head!r:.40}")
        return (session, (start, head), str(event.get("bundle", ""))) if event.get("recipe") == self.recipe else None

    def add(self, marks: Marks, mark: Mark, bundle: str) -> None:
        marks[mark] = bundle

    def bundle(self, item: Window, marks: Marks) -> str:
        return next((marks[item.start_index, head] for head in self.heads if (item.start_index, head) in marks), "")

    def published_to(self, end: int) -> Marks:
        return {}


class DerivedChunks:
    """Chunks of a derived stream."""

    memory = 0
    records = 1
    kinds: tuple[WindowKind, ...] = ()

    def __init__(self, chain: Chain, digest: str = "") -> None:
        self._chain, self._digest = chain, digest or chain.derived_digest()
        self._encoder, self._decoder = ChunkCodec(), ChunkCodec()  # one a thread
        self._header: Header | None = None  # of the chunk that was encoded last, and as it is published
        self._published_header: Header

    def place(self, item: Chunk) -> int:
        return self._chain.input_index(item.first_index)

    def fresh(self, item: Chunk, marks: Marks) -> tuple[Chunk, frozenset[int]]:
        """See :meth:`Outputs.fresh`: after a restart a chunk may begin before what is published."""
        published = max((index for index, _ in marks), default=0)
        ended = max((index for index, head in marks if head == _END), default=-1)
        if item.end_index <= (ended if item.end else published):
            return item, frozenset((0,))
        if item.end or item.first_index >= published:
            return item, frozenset()
        start = published - item.first_index
        times_ns = None if item.times_ns is None else item.times_ns[start:]
        fresh = Chunk(item.header, published, item.data[start:], times_ns, filled=item.filled, absent=item.absent)
        return fresh, frozenset()

    def ahead(self, marks: Iterable[Mark], given_to: int, seen: int = ENDLESS) -> set[Mark]:
        """None: chunks come in one order only, so that behind one that is not published, and behind a snapshot, none is."""
        return set()

    def ending(self, header: Header, end: int) -> list[Chunk]:
        """The derived stream's own end mark."""
        if self._chain.slow is not None:
            header = derived_header(header, self._chain.slow)
        header = replace(header, chain=self._digest)
        return [Chunk(header, end, np.empty((0, *header.format.shape), header.format.array_dtype), end=True)]

    def encode(self, chunks: Sequence[Chunk], _: object) -> list[list[bytes]]:
        """The values of each chunk's records; called in a thread of its own."""
        return [[self._encoder.encode(self._published(chunk))] for chunk in chunks]

    def _published(self, chunk: Chunk) -> Chunk:
        """A chunk that says what made it in the name that recipes share."""
        if chunk.header is not self._header:  # those of a session come one after the other
            self._header, self._published_header = chunk.header, replace(chunk.header, chain=self._digest)
        return replace(chunk, header=self._published_header)

    def read(self, value: bytes | None) -> tuple[str, Mark, str] | None:
        chunk = self._decoder.decode(value or b"")
        if chunk.header.chain != self._digest:
            return None
        return chunk.session, (chunk.end_index, _END if chunk.end else ""), ""

    def add(self, marks: Marks, mark: Mark, bundle: str) -> None:
        """See :meth:`Outputs.add`: chunks come in one order, so that the newest says it all."""
        older = [(index, head) for index, head in marks if head == mark[1] and index < mark[0]]
        for overtaken in older:
            del marks[overtaken]
        if older or not any(head == mark[1] for _, head in marks):
            marks[mark] = bundle

    def bundle(self, item: Chunk, marks: Marks) -> str:
        """See :meth:`Outputs.bundle`: no bundle makes chunks."""
        return ""

    def published_to(self, end: int) -> Marks:
        return {(end, ""): ""}


def outputs_of(chain: Chain, events: Events) -> Outputs:
    """How the outputs of a chain are published: as `events`, if it ends at windows."""
    return events if any(isinstance(spec, Windows) for spec in chain.specs) else DerivedChunks(chain)


def taken_chain(chain: Chain) -> str:
    """The `chain` of the chunks that a chain takes: empty for raw ones."""
    first = chain.specs[0]
    return first.chain if isinstance(first, Derived) else ""
