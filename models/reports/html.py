"""Pieces of a page. In: texts as users write them, numbers, drawings. Out: HTML, everything from outside escaped.

The page stands alone: styles and figures are in it, nothing is fetched, and no script runs but the page's own, if it has one.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.reports.style import STYLE

#: What stands where there is no number.
NOTHING = "–"
# What HTML does not allow even as a reference, and lone surrogates, which file names may bring.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:{allowed}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header><h1>{title}</h1>
{lead}
<nav aria-label="Sections">{links}</nav></header>
<main id="main">
{body}
</main>
<footer class="soft">{foot}</footer>{script}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: its head, and whether it holds numbers (set to the right) or code."""

    name: str
    kind: str = ""


def clean(text: object) -> str:
    """A text without characters that no page may hold."""
    return _NOT_TEXT.sub("\ufffd", str(text))


def escape(text: object) -> str:
    """A text as HTML, fit for attributes too."""
    return html.escape(clean(text))


def percent(share: float | None) -> str:
    """``97.3 %``, which no line end divides, or a dash."""
    return NOTHING if share is None or not math.isfinite(share) else f"{share * 100:.1f}\u00a0%"


def percents(interval: tuple[float, float]) -> str:
    """``81.2–97.0 %``, or a dash."""
    low, high = interval
    return f"{low * 100:.1f}–{high * 100:.1f}\u00a0%" if math.isfinite(low + high) else NOTHING


def number(value: object, digits: int = 3) -> str:
    """A number with `digits` decimals; a whole one as it is; a dash for none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING if value is None else str(value)
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def counted(n: int, thing: str) -> str:
    """``1 window``, ``2,000 windows``."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}{'es' if thing.endswith('s') else 's'}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 10 s``, ``2 h 5 min``, or a dash."""
    if not math.isfinite(seconds) or seconds <= 0:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.2f}\u00a0s" if seconds < 10 else f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest}\u00a0s" if minutes < 60 else f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[object]], bold: Iterable[int] = ()) -> str:
    """A table whose first column heads its rows; it scrolls sideways where the page is narrow."""
    kinds = [f' class="{column.kind}"' if column.kind else "" for column in columns]
    stressed = set(bold)
    heads = "".join(f'<th scope="col"{k}>{escape(c.name)}</th>' for c, k in zip(columns, kinds, strict=True))
    body = []
    for i, row in enumerate(rows):
        cells = [f'<th scope="row"{kinds[0]}>{escape(row[0])}</th>']
        cells += [f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True)]
        opening = '<tr class="here">' if i in stressed else "<tr>"
        body.append(f"{opening}{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(svg: str, alt: str, caption: str = "", wide: bool = False) -> str:
    """A figure with what it shows in words, for those who do not see it; a wide one scrolls where the page is narrow."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    made = f'<figure><div role="img" aria-label="{escape(alt)}">{svg}</div>{below}</figure>'
    return f'<div class="scroll wide" role="region" aria-label="Figure" tabindex="0">{made}</div>' if wide else made


def figures(made: Sequence[str]) -> str:
    """Figures side by side where the page is wide enough."""
    return f'<div class="figures">{"".join(made)}</div>' if made else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is ``soft``, ``note`` or nothing."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    return f"{opening}{escape(text)}</p>"


def listed(items: Iterable[str]) -> str:
    """A list of texts."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def cards(made: Iterable[tuple[str, str, str]]) -> str:
    """The numbers that matter: what, how much, and a remark."""
    inner = (
        f"<div><dt>{escape(what)}</dt><dd>{escape(much)}</dd><dd>{escape(said)}</dd></div>" for what, much, said in made
    )
    return f'<dl class="cards">{"".join(inner)}</dl>'


def details(summary: str, inner: str) -> str:
    """What opens on demand; `inner` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def code(text: str) -> str:
    """A text as it was written."""
    return f"<pre>{escape(text)}</pre>"


def page(
    title: str, lead: str, sections: Sequence[tuple[str, str]], foot: str, live: tuple[str, str] = ("", "")
) -> str:
    """The whole page."""
    there = [(f"section-{i}", name, inner) for i, (name, inner) in enumerate(sections) if inner]
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in there)
    body = "\n".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(name)}</h2>\n{inner}</section>'
        for anchor, name, inner in there
    )
    script, style = live
    allowed = ""
    if script:
        checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed, script = f"; script-src 'sha256-{checksum}'", f"<script>{script}</script>"
    return _PAGE.format(
        title=escape(title),
        style=STYLE + style,
        lead=lead,
        links=links,
        body=body,
        foot=escape(foot),
        script=script,
        allowed=allowed,
    )
