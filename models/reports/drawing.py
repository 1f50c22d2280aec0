"""Figures for files and for pages. In: what paints a figure, sizes in inches. Out: PNG as bytes, SVG as text.

Each figure is drawn twice: as PNG on white, and as an SVG without background, fonts and fixed colours, for a page that
has its own, light or dark. Equal input gives equal bytes for one version of matplotlib. Nothing is told by colour
alone: lines differ in dashes and markers, cells and bars carry their numbers.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from models.reports.html import clean

#: What a page may set, and what stands in a PNG. Hues after M. Okabe and K. Ito 2008, Color Universal Design.
INK, FAINT, PAPER = "#1c2126", "#8a9199", "#fefefe"
BLUE, ORANGE, CELL = "#0071b2", "#d45e00", "#0071b3"
VARIABLES = {INK: "--ink", FAINT: "--faint", PAPER: "--paper", BLUE: "--blue", ORANGE: "--orange", CELL: "--cell"}
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


def draw(name: str, height: float, paint: Callable[[Figure], None], width: float = WIDTH) -> Drawing:
    """Draw a figure; sizes in inches. `name` keeps apart the ids of several figures in one page."""
    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
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
    text = re.sub(r' id="([^"]+)"', lambda found: found.group() if found.group(1) in used else "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r">\s+<(?!/?text)", "><", text)


def shorten(text: str, most: int = 22) -> str:
    """A name that a font can draw, with its middle left out if it is longer than `most` letters."""
    text = " ".join(clean(text).split())
    return text if len(text) <= most else f"{text[: most - most // 2 - 1]}…{text[-(most // 2) :]}"


def grid(ax: Axes, axis: Any = "both") -> None:
    """Faint lines behind the data."""
    ax.grid(visible=True, axis=axis, color=FAINT, alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
