"""The leak guard. In: windows and a split of them. Out: an error that names the samples that stand on both sides, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.data.splits import Split, session_of
from streams.errors import TrainingError

if TYPE_CHECKING:
    from models.data.dataset import Example


def check_leaks(examples: Sequence[Example], split: Split) -> None:
    """Refuse a split in which samples of a session stand on both sides, unless it is one of windows at random.

    Windows are compared by the raw samples that they span; windows that only touch share none.
    """
    if split.kind == "window":
        return
    found = overlap(examples, split)
    if found is not None:
        one, other = (examples[i].window for i in found)
        raise TrainingError(
            f"the split leaks: session {one.session}, samples {one.start_index} to {one.end_index} are learned from, "
            f"samples {other.start_index} to {other.end_index} are held out, and they overlap; split by session, "
            f'subject or time, or say [train] split = "window" if a published protocol asks for it'
        )


def overlap(examples: Sequence[Example], split: Split) -> tuple[int, int] | None:
    """Numbers of a training and a validation window that share samples; None if there are none."""
    sides = [(i, False) for i in split.training] + [(i, True) for i in split.validation]
    # Times, not numbers: a session whose clock was set anew counts its samples from there.
    sides.sort(key=lambda item: (session_of(examples[item[0]]), examples[item[0]].window.start_ns))
    latest: dict[bool, int | None] = {}
    session = None
    for i, held in sides:
        example = examples[i]
        if session_of(example) != session:
            session, latest = session_of(example), {False: None, True: None}
        other = latest[not held]
        if other is not None and examples[other].window.end_ns > example.window.start_ns:
            return (other, i) if held else (i, other)
        own = latest[held]
        if own is None or example.window.end_ns > examples[own].window.end_ns:
            latest[held] = i
    return None
