"""The kinds of windows that the bundles of one recipe may take. In: chains up to their window. Out: what each needs of the input.

A recipe's own chain and the one cut back for raw windows (:mod:`models.raw`) stand on the same grid. So that a bundle of the one
kind can take over from one of the other while sessions are open, a session keeps the input that the next window of either rests on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from processors.chain import Chain
from processors.intake import Intake
from processors.windows import Windows
from streams.chunk import Format


@dataclass(frozen=True, slots=True)
class Kind:
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
    def of(cls, chain: Chain, fmt: Format) -> Kind:
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


def kinds_of(fmt: Format, *chains: Chain) -> tuple[Kind, ...]:
    """The kinds of some chains; none where they are all one."""
    kinds = {kind.digest: kind for kind in (Kind.of(chain, fmt) for chain in chains)}
    return tuple(kinds.values()) if len(kinds) > 1 else ()
