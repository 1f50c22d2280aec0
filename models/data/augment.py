"""Variations of training windows. In: ``(n, time, …, channels)`` float32 and a random generator. Out: the same shape, varied.

====================  ==================  =======================================================================
kind                  defined on          what it does to a window
====================  ==================  =======================================================================
``jitter``            any                 adds noise, a share of each channel's standard deviation in the window
``scale``             any                 multiplies each channel by a factor
``rotate``            signals             turns the 3-axis groups, as if the sensor were worn turned
``time_warp``         any                 runs faster here and slower there; beginning and end stay
``channel_dropout``   any                 sets channels to 0, never all of them
``time_mask``         any                 sets a stretch of rows to 0
``bin_mask``          spectrograms        sets a stretch of bins to 0
====================  ==================  =======================================================================

Signals are ``(n, time, channels)``, spectrograms ``(n, time, bins, channels)``. They act on what the model is given: behind
``standardise`` 0 is a channel's mean, and turning makes sense only where the axes of a group keep their unit (windows
without that step). Every window is varied by itself, with probability `p`; the same generator gives the same windows, and
what is given is never changed. Only training windows are varied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from models.data.augment_kinds import (
    BinMask,
    ChannelDropout,
    Jitter,
    Random,
    Scale,
    TimeMask,
    TimeWarp,
    Variation,
    Windows,
)
from models.data.augment_rotate import Rotate
from processors.registry import nearest
from streams.chunk import Array, Format
from streams.errors import TrainingError

Augment = Callable[[Array, Random], Array]

KINDS: dict[str, type[Variation]] = {
    cls.kind: cls for cls in (Jitter, Scale, Rotate, TimeWarp, ChannelDropout, TimeMask, BinMask)
}


def augmenter(tables: Sequence[Mapping[str, Any]], fmt: Format) -> Augment:
    """What varies batches of training windows."""
    steps = []
    for table in tables:
        made = variation(table)
        steps.append((made.p, made.fit(fmt)))

    def augment(windows: Array, random: Random) -> Array:
        out: Windows = windows.astype(np.float32)
        for p, vary in steps:
            chosen = random.random(len(out)) < p
            if chosen.any():
                out[chosen] = vary(out[chosen], random)
        return out

    return augment


def variation(table: Mapping[str, Any]) -> Variation:
    """The variation of one ``[[train.augment]]`` table."""
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TrainingError(f"[[train.augment]] kind = {kind!r}{nearest(str(kind), KINDS)}")
    known = [field.name for field in fields(KINDS[kind])]
    given = {key: value for key, value in table.items() if key != "kind"}
    for key in given:
        if key not in known:
            raise TrainingError(f"[[train.augment]] {kind} has no parameter {key!r}{nearest(key, known)}")
    return KINDS[kind](**given)
