"""What the script of a plot's page draws. In: streams and bands of labels, in seconds. Out: an element that holds them as JSON.

Curves are float32 in base64, thinned only as far as a page's size asks for: each column of a thinned curve keeps its smallest and
its largest number.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lab.look.plot import COLUMNS, MOST_BANDS, MOST_GAPS, Band, Curve, Panel, curves_of, rows_of, split_constant
from models.reports.html import clean, escape

#: Columns of all the curves of a page together, and of one at most.
PAGE_COLUMNS, MOST_COLUMNS = 400_000, 50_000
_MOST_SETS = 6


def live_plot(
    panels: Sequence[Panel],  # streams; those with pictures are left out
    bands: Mapping[str, Sequence[Band]],
    tints: Mapping[str, str],  # colour of each class
    words: str,  # what it shows, for those who do not see it
    at: tuple[int, int],  # Unix time that seconds count from, ns, and columns of a curve
) -> str:
    """The element of one recording; empty where there is no signal to draw."""
    signals = [panel for panel in panels if panel.curves]
    if not signals:
        return ""
    start_ns, columns = at
    arrays: dict[bytes, int] = {}
    rows: list[dict[str, Any]] = []
    for panel in signals:
        drawn, still = split_constant(curves_of(panel.stream, start_ns, columns))
        for i, curves in enumerate(rows_of(drawn)):
            title = "" if i else panel.stream.header.format.stream
            rows.append(
                {
                    "title": clean(title),
                    "still": "" if i else clean(still),
                    "unit": clean(curves[0].unit),
                    "gaps": [[round(a, 6), round(b, 6)] for a, b in panel.gaps[:MOST_GAPS]],
                    "curves": [_curve(curve, arrays) for curve in curves],
                }
            )
    ends = [panel.stream for panel in signals]
    low = min((stream.start_ns - start_ns) / 1e9 for stream in ends)
    high = max((stream.end_ns - start_ns) / 1e9 for stream in ends)
    data = {
        "words": clean(words),
        "span": [low, high] if high > low else [low - 0.5, low + 0.5],
        "sets": [_set(name, found) for name, found in list(bands.items())[:_MOST_SETS]],
        "tints": {clean(name): tint for name, tint in tints.items()},
        "rows": rows,
        "arrays": [base64.b64encode(content).decode() for content in arrays],
    }
    # No tag can begin in it, whatever names hold.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c").replace("/", "\\/")
    note = escape(
        "Drag to zoom, double-click for all; Ctrl and the wheel zoom, Shift and the wheel move. A click on a label zooms to it, "
        "one on a channel's name hides it."
    )
    return f'<div class="plot"><script type="application/json">{text}</script></div><p class="soft">{note}</p>'


def columns_for(curves: int) -> int:
    """How many columns each of so many curves of a page may have."""
    return int(min(MOST_COLUMNS, max(COLUMNS, PAGE_COLUMNS // max(1, curves))))


def _set(name: str, bands: Sequence[Band]) -> dict[str, Any]:
    shown = bands[: 4 * MOST_BANDS]
    return {"name": clean(name), "bands": [[round(b.start_s, 6), round(b.end_s, 6), clean(b.label)] for b in shown]}


def _curve(curve: Curve, arrays: dict[bytes, int]) -> dict[str, Any]:
    """Its numbers, those that several curves share once."""
    found = {}
    for name, values in (("times", curve.seconds), ("values", curve.values)):
        content = values.astype("<f4").tobytes()
        found[name] = arrays.setdefault(content, len(arrays))
    return {"name": clean(curve.name), **found}
