"""Figures of a report. In: shares from 0 to 1, counts, window arrays ``(time, …, channels)``. Out: PNG as bytes, SVG as text.

Each figure is drawn twice: as PNG on white, and as an SVG without background, fonts and fixed colours, for a page that
has its own, light or dark. Equal input gives equal bytes for one version of matplotlib. Nothing is told by colour
alone: lines differ in dashes and markers, cells and bars carry their numbers.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from kymo.models.reports.html import clean
from kymo.models.reports.numbers import Calibration, Integers, RightShare
from kymo.streams.chunk import Array

#: What a page may set, and what stands in a PNG. Hues after M. Okabe and K. Ito 2008, Color Universal Design.
INK, FAINT, PAPER = "#1c2126", "#8a9199", "#fefefe"
BLUE, ORANGE, CELL = "#0071b2", "#d45e00", "#0071b3"
_VARIABLES = {INK: "--ink", FAINT: "--faint", PAPER: "--paper", BLUE: "--blue", ORANGE: "--orange", CELL: "--cell"}
WIDTH = 4.7  # inches; narrow, so that letters stay readable on a telephone
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are the user's: `$` is a dollar
    "font.size": 9.5,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",  # the page's own ground shows through
    "axes.unicode_minus": True,
    "path.simplify": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure: ``png`` for a file, ``svg`` (an element, no document) for a page."""

    png: bytes
    svg: str


def draw(figure_name: str, height: float, paint: Callable[[Figure], None], width: float = WIDTH) -> Drawing:
    """Draw a figure; sizes in inches. `figure_name` keeps apart the ids of several figures in one page."""
    settings: Any = {**_SETTINGS, "svg.hashsalt": figure_name}
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever style somebody has set: equal input, equal bytes
        mpl.rcParams.update(settings)
        warnings.simplefilter("ignore")  # such as a glyph that the font lacks: nothing that a user could mend
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        png, svg = io.BytesIO(), io.StringIO()
        FigureCanvasAgg(figure)
        figure.savefig(png, format="png", dpi=180, facecolor=PAPER, metadata={"Software": None})
        FigureCanvasSVG(figure)
        figure.savefig(
            svg, format="svg", facecolor="none", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return Drawing(png.getvalue(), _element(svg.getvalue()))


def _element(document: str) -> str:
    """An SVG document as an element for HTML: no header, metadata, fonts, unused ids; colours as CSS variables."""
    text = document[document.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    text = f'<svg {box.group()} aria-hidden="true" focusable="false">' + text[text.index(">") + 1 :]
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match.group() if match.group(1) in used else "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r">\s+<(?!/?text)", "><", text)


def shorten(text: str, most: int = 22) -> str:
    """A name that a font can draw, with its middle left out if it is longer than `most` letters."""
    text = " ".join(clean(text).split())
    return text if len(text) <= most else f"{text[: most - most // 2 - 1]}…{text[-(most // 2) :]}"


def grid(ax: Axes, axis: Any = "both") -> None:
    ax.grid(visible=True, axis=axis, color=FAINT, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def learning_curves(figure_name: str, history: Sequence[Mapping[str, float]], best: float | None) -> Drawing:
    """Loss and, where it was measured, validation accuracy by epoch; the best epoch, if one is, is marked."""
    panels = [(("loss", "training"), ("validation_loss", "validation"))]
    if any("validation_accuracy" in epoch for epoch in history):
        panels.append((("accuracy", "training"), ("validation_accuracy", "validation")))

    def paint(figure: Figure) -> None:
        axes: list[Axes] = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
        for ax, lines in zip(axes, panels, strict=True):
            for (key, label), (colour, dash) in zip(lines, ((BLUE, "-"), (ORANGE, "--")), strict=True):
                values = [(epoch["epoch"], epoch.get(key)) for epoch in history]
                points = [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]
                if points:
                    marker = "o" if len(points) < 3 else None
                    ax.plot(*zip(*points, strict=True), dash, color=colour, label=label, linewidth=1.6, marker=marker)
            ax.set_ylabel("accuracy" if "accuracy" in lines[1][0] else "loss")
            grid(ax)
            if best is not None:
                ax.axvline(best, color=FAINT, linewidth=1.4, linestyle=":", label=f"best ({best:g})")
        if len(panels) > 1:
            axes[1].yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        if axes[0].get_legend_handles_labels()[0]:
            axes[0].legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))

    return draw(figure_name, 1.5 + 1.6 * len(panels), paint)


def confusion_matrix(figure_name: str, counts: Integers, rows: Sequence[str], columns: Sequence[str]) -> Drawing:
    """Counts ``(rows, columns)`` as cells, shaded by their share of the row; with room, counts and shares in them."""
    letter = 0.073 if len(columns) <= 12 else 0.06  # inches
    names = letter * max(len(shorten(label)) for label in (*rows, *columns))
    size = max(0.2, min(0.62, (WIDTH - 0.6 - names) / len(columns)))

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        _cells(ax, counts, size)
        ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0), aspect="equal", xlabel="answer", ylabel="truth")
        ends: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(np.arange(len(columns)) + 0.5, [shorten(column) for column in columns], **ends)
        ax.set_yticks(np.arange(len(rows)) + 0.5, [shorten(row) for row in rows])
        ax.hlines(range(len(rows) + 1), 0, len(columns), color=FAINT, linewidth=0.4)
        ax.vlines(range(len(columns) + 1), 0, len(rows), color=FAINT, linewidth=0.4)
        ax.tick_params(length=0, labelsize=letter / 0.073 * 9)
        for spine in ax.spines.values():
            spine.set_visible(False)

    width = max(2.6, 0.6 + names + size * len(columns))
    return draw(figure_name, 0.5 + size * len(rows) + 0.7 * names, paint, width)


def _cells(ax: Axes, counts: Integers, size: float) -> None:
    """Cells of `size` inches."""
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    for (i, j), share in np.ndenumerate(shares):
        shade = 0.08 + 0.92 * float(share) if share > 0 else 0.0
        ax.add_patch(mpl.patches.Rectangle((j, i), 1, 1, facecolor=CELL, alpha=shade, linewidth=0))
        if counts[i, j]:
            text = f"{counts[i, j]}\n{share:.0%}" if size > 0.4 else f"{counts[i, j]}"
            letters = max(map(len, text.split("\n")))
            points = min(9.0, size * 30, size * 72 / (0.75 * letters))
            # Paper on dark cells, ink on light ones; where they change, contrast is 4 to 1 either way.
            colour = PAPER if shade > 0.86 else INK
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=colour, fontsize=points)


def group_scores(figure_name: str, groups: Sequence[RightShare], overall: float) -> Drawing:
    """Share of right windows of each group as a point with its interval, and the overall share as a line."""

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        for row, group in enumerate(groups):
            ax.plot(group.interval, (row, row), color=BLUE, linewidth=2, solid_capstyle="butt")
            ax.plot([group.share], [row], "o", color=BLUE, markersize=5)
        ax.axvline(overall, color=ORANGE, linestyle="--", linewidth=1.2, label=f"all windows {overall:.1%}")
        ax.set(xlim=(-0.02, 1.02), ylim=(len(groups) - 0.5, -0.5), xlabel="windows answered rightly")
        ax.set_yticks(range(len(groups)), [shorten(group.name) for group in groups])
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
        ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        grid(ax, "x")

    return draw(figure_name, 1.15 + 0.24 * len(groups), paint)


def said_against_true(figure_name: str, windows: Any, recordings: Any) -> Drawing:
    """What was said of numbers against what is true: points ``(n, 2)`` of windows, circles of recordings, truth first."""

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        low, high = (float(f(np.concatenate([windows, recordings]))) for f in (np.min, np.max))
        ends = (low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
        ax.plot(ends, ends, color=FAINT, linestyle="--", linewidth=1, label="the truth")
        ax.plot(*windows.T, ".", color=BLUE, alpha=0.35, markersize=3, label="windows")
        ax.plot(*recordings.T, "o", color=ORANGE, markersize=5, fillstyle="none", label="recordings")
        ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel="truth", ylabel="said")
        ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0)
        grid(ax)

    return draw(figure_name, 4.2, paint)


def reliability(figure_name: str, bins: Calibration) -> Drawing:
    """Accuracy against the answer's probability, a bin a bar, and below how many windows each bin holds."""

    def paint(figure: Figure) -> None:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        width, middle = np.diff(bins.edges), (bins.edges[:-1] + bins.edges[1:]) / 2
        top.bar(middle, np.nan_to_num(bins.accuracy), width * 0.92, color=BLUE, alpha=0.75, label="accuracy")
        top.plot(bins.confidence, bins.confidence, "D", color=ORANGE, markersize=4.5, label="mean probability")
        top.plot((0, 1), (0, 1), color=FAINT, linestyle="--", linewidth=1, label="ideal")
        top.set(xlim=(0, 1), ylim=(0, 1.04), ylabel="right answers")
        top.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0)
        below.bar(middle, bins.count, width * 0.92, color=FAINT)
        below.set(xlabel="probability of the answer", ylabel="windows")
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axis in (top.yaxis, below.xaxis):
            axis.set_major_formatter(PercentFormatter(1.0, 0))
        grid(top)

    return draw(figure_name, 4.0, paint)


def window_picture(figure_name: str, data: Array, channels: Sequence[str], seconds: tuple[float, float]) -> Drawing:
    """A window as the model saw it: signals ``(time, channels)`` as lines, spectrograms ``(time, bins, channels)`` as
    pictures, frames ``(time, height, width, channels)`` as a row of pictures; at most six channels or frames.
    """
    values = np.where(np.isfinite(np.asarray(data, float)), np.asarray(data, float), np.nan)
    names = list(channels) if len(channels) == values.shape[-1] else [str(i) for i in range(values.shape[-1])]
    if values.ndim >= 4:
        return draw(figure_name, 1.3, lambda figure: _frames(figure, values, seconds), WIDTH * 0.8)
    shown = min(6, values.shape[-1]) if values.ndim == 2 else min(3, values.shape[-1])

    def paint(figure: Figure) -> None:
        axes = figure.subplots(shown, 1, sharex=True, squeeze=False)[:, 0]
        for i, ax in enumerate(axes):
            if values.ndim == 2:
                ax.plot(np.linspace(*seconds, len(values), endpoint=False), values[:, i], color=BLUE, linewidth=1)
            else:
                whole: Any = {"aspect": "auto", "origin": "lower", "extent": (*seconds, 0, values.shape[1])}
                ax.imshow(values[:, :, i].T, cmap="cividis", interpolation="nearest", **whole)
            kind = "" if values.ndim == 2 else "\nbin"
            ax.set_ylabel(f"{shorten(names[i], 10)}{kind}", rotation=0, ha="right", va="center", fontsize=8)
            ax.yaxis.set_major_locator(MaxNLocator(2))
            ax.tick_params(labelsize=7.5)
        axes[-1].set_xlabel("time (s)", fontsize=8)
        figure.align_ylabels(list(axes))

    return draw(figure_name, 0.5 + shown * (0.36 if values.ndim == 2 else 0.55), paint, WIDTH * 0.8)


def _frames(figure: Figure, values: Any, seconds: tuple[float, float]) -> None:
    numbers = np.unique(np.linspace(0, len(values) - 1, min(6, len(values))).round().astype(int))
    for ax, i in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
        frame = values[i].reshape(*values.shape[1:3], -1)
        ax.imshow(frame.mean(axis=-1), cmap="cividis", interpolation="nearest")
        ax.set_title(f"{seconds[0] + (seconds[1] - seconds[0]) * i / len(values):.4g} s", fontsize=7)
        ax.set_axis_off()
