"""Whether a recipe fits into memory. In: its chain, the format of its input. Out: nothing, or the arithmetic of why it does not."""

from __future__ import annotations

import math

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.windows import Windows
from kymo.streams.budget import IMAGE, WINDOW
from kymo.streams.chunk import Format
from kymo.streams.topics import MIB


def misfit(chain: Chain, fmt: Format, most: int = WINDOW) -> str:
    """Why a session and one window of it on its way to the model take too much memory, in a sum; empty where they do not."""
    parts, total = list[str](), 0
    for spec in chain.specs:
        kept = spec.memory_bytes(fmt)
        fmt = spec.output({fmt.stream: fmt})
        if isinstance(spec, Windows):
            total += kept
            parts.append(f"a window of {_shape_of(fmt)} is {kept / MIB:,.1f} MiB")
        elif isinstance(spec, PerWindow):
            size = (fmt.rows or 0) * fmt.sample_bytes
            total += size
            parts.append(f"{size / MIB:,.1f} behind `{spec.spec.name}` ({_shape_of(fmt)})")
        elif kept:
            total += kept
            parts.append(f"`{spec.name}` keeps {kept / MIB:,.1f}")
    if fmt.dtype != "jpeg":
        copy = 4 * (fmt.rows or 0) * math.prod(fmt.shape)
        total += copy
        parts.append(f"{copy / MIB:,.1f} as the model takes it (float32)")
    if total <= most:
        return ""
    return (
        f"{', '.join(parts)}: {total / MIB:,.1f} MiB in all, expected {most / MIB:,.0f} at most, so that a worker stays under 1 GB; "
        "shorten length_s, or take smaller frames (the step `decode`), fewer channels or fewer samples a second"
    )


def _shape_of(fmt: Format) -> str:
    if fmt.dtype == "jpeg":
        return f"{fmt.rows} images of up to {IMAGE / MIB:g} MiB"
    return f"{' x '.join(str(length) for length in (fmt.rows, *fmt.shape))} {fmt.dtype}"
