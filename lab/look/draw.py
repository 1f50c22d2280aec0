"""A recording as a figure. In: panels and bands, times in seconds. Out: a drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kymo.lab.look.curves import (
    COLUMNS,
    MOST_BANDS,
    MOST_GAPS,
    Band,
    Curve,
    Panel,
    Pictures,
    rows_of,
    split_constant,
    thin,
)
from kymo.lab.prepare.lines import Curves
from kymo.models.reports.plots import BLUE, FAINT, INK, ORANGE, Drawing, draw, grid, shorten

WIDTH = 7.4
#: Tints of classes, in order of their names; a class is always named too, since tints come again.
_TINTS = ("#e69f01", "#56b4e8", "#009e72", "#cc79a6", "#b3a200", "#7a68c8", "#c8553d")
_MOST_SETS = 3
_ROW, _AXES_ROW, _PICTURE_ROW, _LANE = 0.62, 0.98, 0.95, 0.27
#: Axes of one vector: hue and dashes.
_LINES: tuple[tuple[str, Any], ...] = (
    (BLUE, "-"),
    (ORANGE, (0, (4, 1.2))),
    ("#009e73", (0, (1.5, 1))),
    (INK, (0, (5, 1, 1, 1))),
)


def recording_figure(
    name: str, panels: Sequence[Panel], bands: Mapping[str, Sequence[Band]], classes: Sequence[str] = ()
) -> Drawing:
    """Streams one below the other on one time axis; labels as named bands above and as tints behind."""
    sets = list(bands)[:_MOST_SETS]
    heights = [_LANE] * len(sets)
    for panel in panels:
        if panel.pictures is not None:
            heights += [_PICTURE_ROW] * max(1, len(panel.pictures.names))
        else:
            heights += [_AXES_ROW if len(row) > 1 else _ROW for row in _rows(panel)] or [_ROW]

    def paint(figure: Figure) -> None:
        axes = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
        tints = tints_of(classes or [band.label for each in bands.values() for band in each])
        for ax, name_of_set in zip(axes, sets, strict=False):
            _lane(ax, name_of_set, bands[name_of_set], tints, _span(panels))
        row = len(sets)
        for panel in panels:
            row += _panel(axes[row:], panel)
        for ax in axes[len(sets) :]:
            for band in bands[sets[0]][:MOST_BANDS] if sets else ():
                ax.axvspan(band.start_s, band.end_s, color=tints[band.label], alpha=0.2, linewidth=0)
        axes[-1].set_xlim(*_span(panels))
        axes[-1].set_xlabel("seconds since the start")

    return draw(name, 0.5 + sum(heights), paint, WIDTH)


def tints_of(classes: Sequence[str]) -> dict[str, str]:
    return {name: _TINTS[i % len(_TINTS)] for i, name in enumerate(sorted(set(classes)))}


def _span(panels: Sequence[Panel]) -> tuple[float, float]:
    """First and last second of all that is drawn; never empty."""
    ends = [np.asarray(seconds) for panel in panels for seconds in _seconds(panel) if len(seconds)]
    low = min((float(times.min()) for times in ends), default=0.0)
    high = max((float(times.max()) for times in ends), default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _seconds(panel: Panel) -> list[Any]:
    return [curve.seconds for curve in panel.curves] + ([panel.pictures.seconds] if panel.pictures else [])


def _lane(ax: Axes, name: str, bands: Sequence[Band], tints: Mapping[str, str], span: tuple[float, float]) -> None:
    """One set of labels as named blocks."""
    inches = (WIDTH - 1.3) / (span[1] - span[0])
    for band in bands[:MOST_BANDS]:
        ax.axvspan(band.start_s, band.end_s, color=tints[band.label], alpha=0.5, linewidth=0)
        a, b = max(band.start_s, span[0]), min(band.end_s, span[1])
        letters = int((b - a) * inches / 0.068)
        if letters >= min(3, len(band.label)):
            text = shorten(band.label, max(3, letters))
            ax.text((a + b) / 2, 0.5, text, ha="center", va="center", fontsize=8, color=INK, clip_on=True)
    ax.set_ylim(0, 1)
    ax.set_ylabel(shorten(name, 14), rotation=0, ha="right", va="center", fontsize=8)
    ax.yaxis.set_label_coords(-0.012, 0.5)
    ax.tick_params(left=False, labelleft=False, bottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _panel(axes: Sequence[Axes], panel: Panel) -> int:
    """One stream; how many rows it took."""
    axes[0].set_title(
        shorten(panel.stream.header.format.stream, 40), loc="left", fontsize=8.5, pad=3, fontweight="bold"
    )
    if panel.pictures is not None:
        return _pictures(axes, panel.pictures)
    rows = _rows(panel)
    if still := split_constant(panel.curves)[1]:
        axes[0].set_title(shorten(still, 90), loc="right", fontsize=7.5, pad=3, color=FAINT)
    for ax, row in zip(axes, rows, strict=False):
        _row(ax, row)
        for start, end in panel.gaps[:MOST_GAPS]:
            ax.axvspan(start, end, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0)
    return max(1, len(rows))


def _rows(panel: Panel) -> list[list[Curve]]:
    return rows_of(split_constant(panel.curves)[0])


def _label(ax: Axes, text: str) -> None:
    """The name of a row, at one distance from all of them (matplotlib's own alignment takes seconds)."""
    ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    ax.yaxis.set_label_coords(-0.075, 0.5)


def _row(ax: Axes, curves: Sequence[Curve]) -> None:
    """One channel, or the axes of one vector."""
    noisy = any(len(curve.seconds) > 2 * COLUMNS for curve in curves)  # which hides dashes, and makes them slow to draw
    for curve, (hue, pattern) in zip(curves, _LINES, strict=False):
        lonely = len(curve.seconds) < 60
        dashes = "-" if noisy else pattern
        style: Any = {"color": hue, "linewidth": 0.9, "linestyle": dashes, "label": shorten(curve.name, 12)}
        ax.plot(curve.seconds, curve.values, marker="." if lonely else None, markersize=4, **style)
    unit = shorten(curves[0].unit, 12)
    name = shorten(curves[0].name, 12) if len(curves) == 1 else ""
    _label(ax, "\n".join(filter(None, (name, unit))))
    if len(curves) > 1:
        place: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "ncols": len(curves), "borderaxespad": 0.0}
        ax.legend(**place, frameon=False, fontsize=7.5, handlelength=2.2, columnspacing=1.2)
    ax.yaxis.set_major_locator(MaxNLocator(4 if len(curves) > 1 else 3))
    ax.tick_params(labelsize=7.5)
    grid(ax)


def _pictures(axes: Sequence[Axes], pictures: Pictures) -> int:
    for ax, name, image in zip(axes, pictures.names, pictures.images, strict=False):
        extent = (float(pictures.seconds[0]), float(pictures.seconds[-1]), 0.0, float(len(image)))
        ax.imshow(image, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest", extent=extent)
        _label(ax, f"{shorten(name, 12)}\nbin")
        ax.tick_params(labelsize=7.5)
    if pictures.names:
        return len(pictures.names)
    for i, image in enumerate(pictures.images):
        place = axes[0].inset_axes((i / len(pictures.images), 0.0, 0.96 / len(pictures.images), 0.86))
        frame = image if image.ndim == 2 or (image.shape[-1] == 3 and image.dtype == np.uint8) else image.mean(axis=-1)
        place.imshow(frame, cmap="cividis", interpolation="nearest")
        place.set_title(f"{pictures.seconds[i]:.4g} s", fontsize=7, pad=1)
        place.set_axis_off()
    axes[0].tick_params(left=False, labelleft=False)
    axes[0].set_ylim(0, 1)
    return 1


def fits_figure(name: str, fits: Sequence[tuple[str, float, Curves]]) -> Drawing:
    """How clocks were fitted, a row each: how well offsets fit, what each part says, and both lines where they move most, put together."""

    def paint(figure: Figure) -> None:
        for (title, offset_s, curves), (left, middle, right) in zip(
            fits, figure.subplots(len(fits), 3, squeeze=False), strict=True
        ):
            left.set_title(shorten(title, 60), loc="left", fontsize=8.5, fontweight="bold")
            sure = math.isfinite(offset_s)
            if len(curves.fits):
                left.plot(*thin(curves.offsets_s, curves.fits), color=BLUE, linewidth=0.9)
            left.set_xlabel("offset (s)")
            left.set_ylabel("fits (best = 1)")
            middle.plot(curves.parts_s, curves.parts_offset_s, ".", color=BLUE, markersize=4)
            middle.set_xlabel("time (s)")
            middle.set_ylabel("offset (s)")
            for ax, line in ((left, left.axvline), (middle, middle.axhline)) if sure else ():
                line(offset_s, color=ORANGE, linewidth=1.0, linestyle="--")
                grid(ax)
            if sure and len(curves.parts_offset_s):
                spread = 4 * float(np.median(np.abs(curves.parts_offset_s - offset_s))) + 1e-4
                middle.set_ylim(offset_s - spread, offset_s + spread)
            _both(right, curves, offset_s if sure else 0.0)

    return draw(name, 0.3 + 1.9 * len(fits), paint, 1.6 * WIDTH)


def _both(ax: Axes, curves: Curves, offset_s: float) -> None:
    """Ten seconds of both lines, the second moved."""
    (times, line), (others, other) = curves.first, curves.second
    others = others + offset_s
    width = max(1, int(10 / (times[1] - times[0])))
    power = np.convolve(np.abs(line) * (times >= others[0]) * (times <= others[-1]), np.ones(width), "valid")
    start = float(times[int(power.argmax())]) if len(power) else float(times[0])
    for at, values, hue, dashes in ((times, line, BLUE, "-"), (others, other, ORANGE, "--")):
        shown = (at >= start) & (at <= start + 10)
        ax.plot(at[shown], values[shown], color=hue, linewidth=0.8, linestyle=dashes)
    ax.set_xlabel("both, put together (s)")
    ax.tick_params(left=False, labelleft=False)
