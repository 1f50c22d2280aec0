"""Pieces of a page. In: texts as users write them, numbers, drawings. Out: HTML, everything from outside escaped.

The page stands alone: styles and figures are in it, nothing is fetched, and no script runs but the page's own, if it has one.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

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


#: Hues are those that people with the common kinds of colour blindness tell apart; text keeps a contrast of 4.5 to 1 on
#: paper and on dark.
_STYLE = """
:root { color-scheme: light dark; --paper: #fefefe; --ink: #1c2126; --soft: #59626b; --faint: #8a9199;
  --rule: #dfe3e6; --band: #f4f6f7; --blue: #0071b2; --orange: #d45e00; --cell: #0071b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e6e9eb; --soft: #a4adb5; --faint: #767f88;
  --rule: #31373d; --band: #1e2327; --blue: #5ab4ea; --orange: #f0954a; --cell: #3d97d2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans",
  sans-serif; overflow-wrap: anywhere; }
main, header, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 1.6rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, caption, figcaption, dt { color: var(--soft); font-size: .88rem; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; }
a { color: var(--blue); text-underline-offset: .2em; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--orange); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.1rem 0;
  padding: 0; }
.cards > div { background: var(--band); border-radius: .5rem; padding: .7rem .9rem; }
.cards dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.cards dd + dd { font-size: .82rem; font-weight: 400; color: var(--soft); line-height: 1.35; }
.note { border-left: 3px solid var(--orange); padding: .1rem 0 .1rem .8rem; margin: .7rem 0; max-width: 46rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem 2rem;
  align-items: start; }
figure { margin: .8rem 0; min-width: 0; } figure svg { display: block; width: 100%; height: auto; max-width: 34rem; }
.wide figure svg { max-width: none; min-width: 38rem; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; overflow-wrap: normal; } tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 6rem; }
td.n, th.n { text-align: right; white-space: nowrap; padding-left: .5rem; } tr.here > * { font-weight: 600; }
code, pre, td.code { font: .84rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
td.code { min-width: 11rem; }
.figures td.n, .figures th.n { padding-left: 0; padding-right: .7rem; } .figures tbody th { min-width: 4.5rem; }
pre { background: var(--band); padding: .8rem; border-radius: .5rem; overflow-x: auto; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--blue); }
ul { padding-left: 1.2rem; margin: .3rem 0 .8rem; } footer { padding: 1.4rem 1.1rem 3rem; }
@media (max-width: 34rem) { body { font-size: 15px; } .cards { grid-template-columns: 1fr 1fr; }
  table { font-size: .84rem; } th, td { padding-right: .45rem; } td.n, th.n { padding-left: .1rem; }
  tbody th { min-width: 4.5rem; } }
@media print { nav, .skip { display: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def clean(text: object) -> str:
    """A text without characters that no page may hold."""
    return _NOT_TEXT.sub("\ufffd", str(text))


def escape(text: object) -> str:
    """A text as HTML, fit for attributes too."""
    return html.escape(clean(text))


def percent(share: float | None) -> str:
    """``97.3 %``, which no line end divides, or a dash."""
    return NOTHING if share is None or not math.isfinite(share) else f"{share * 100:.1f}\u00a0%"


def percents(interval: Sequence[float]) -> str:
    """``81.2–97.0 %``, or a dash."""
    low, high = interval
    return f"{low * 100:.1f}–{high * 100:.1f}\u00a0%" if math.isfinite(low + high) else NOTHING


def number(value: object) -> str:
    """A number with three decimals; a whole one as it is, a text too; a dash for none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING if value is None else str(value)
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def counted(n: int, thing: str) -> str:
    """``1 window``, ``2,000 windows``."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}{'es' if thing.endswith('s') else 's'}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 10 s``, ``2 h 5 min``, or a dash."""
    if not math.isfinite(seconds) or seconds <= 0:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.2f}\u00a0s" if seconds < 10 else f"{seconds:.1f}\u00a0s"
    minutes, remainder = divmod(round(seconds), 60)
    return (
        f"{minutes}\u00a0min {remainder}\u00a0s" if minutes < 60 else f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"
    )


def numbers(*names: str) -> dict[str, str]:
    """Columns of numbers, for :func:`table`."""
    return dict.fromkeys(names, "n")


def table(
    caption: str,
    columns: Mapping[str, str],  # by what stands above each: ``n`` (numbers, set to the right), ``code``, or nothing
    rows: Iterable[Sequence[object]],  # numbers are written by :func:`number`
    bold: Collection[int] = (),
) -> str:
    """A table whose first column heads its rows; it scrolls sideways where the page is narrow."""
    kinds = [f' class="{kind}"' if kind else "" for kind in columns.values()]
    heads = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(columns, kinds, strict=True))
    body = []
    for i, row in enumerate(rows):
        first, *others = map(escape, map(number, row))
        cells = [f"<td{kind}>{cell}</td>" for cell, kind in zip(others, kinds[1:], strict=True)]
        opening = '<tr class="here">' if i in bold else "<tr>"
        body.append(f'{opening}<th scope="row"{kinds[0]}>{first}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(svg: str, alt: str, caption: str = "", wide: bool = False) -> str:
    """A figure with what it shows in words, for those who do not see it; a wide one scrolls where the page is narrow."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    element = f'<figure><div role="img" aria-label="{escape(alt)}">{svg}</div>{below}</figure>'
    return (
        f'<div class="scroll wide" role="region" aria-label="Figure" tabindex="0">{element}</div>' if wide else element
    )


def figures(elements: Iterable[str]) -> str:
    """Figures side by side where the page is wide enough; what is empty is left out."""
    inner = "".join(elements)
    return f'<div class="figures">{inner}</div>' if inner else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is ``soft``, ``note`` or nothing."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    return f"{opening}{escape(text)}</p>"


def listed(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """The numbers that matter: what, how much, and a remark."""
    inner = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(remark)}</dd></div>"
        for name, value, remark in items
    )
    return f'<dl class="cards">{"".join(inner)}</dl>'


def details(summary: str, inner: str) -> str:
    """What opens on demand; `inner` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def page(
    title: str, lead: str, sections: Sequence[tuple[str, str]], foot: str, live: tuple[str, str] = ("", "")
) -> str:
    shown = [(f"section-{i}", name, inner) for i, (name, inner) in enumerate(sections) if inner]
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in shown)
    body = "\n".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(name)}</h2>\n{inner}</section>'
        for anchor, name, inner in shown
    )
    script, style = live
    allowed = ""
    if script:
        checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed, script = f"; script-src 'sha256-{checksum}'", f"<script>{script}</script>"
    return _PAGE.format(
        title=escape(title),
        style=_STYLE + style,
        lead=lead,
        links=links,
        body=body,
        foot=escape(foot),
        script=script,
        allowed=allowed,
    )
