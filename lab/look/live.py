"""Curves that can be zoomed, moved and read. In: streams and bands of labels, in seconds. Out: an element that holds them as JSON, and
the script that draws it, which needs nothing else.

Each ``<div class="plot">`` holds its data and a figure for browsers without scripts. The script draws on a canvas: bands of labels
above, a row for each group of channels below, one time axis for all. Curves are float32 in base64, thinned only as far as a page's
size asks for: each column of a thinned curve keeps its smallest and its largest number.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kymo.lab.look.curves import COLUMNS, MOST_BANDS, MOST_GAPS, Band, Curve, Panel, curves_of, rows_of, split_constant
from kymo.models.reports.html import clean, escape

#: Columns of all the curves of a page together, and of one at most.
_PAGE_COLUMNS, _MOST_COLUMNS = 400_000, 50_000
_MOST_SETS = 6


def live_plot(
    panels: Sequence[Panel],  # streams; those with pictures are left out
    bands: Mapping[str, Sequence[Band]],
    tints: Mapping[str, str],  # colour of each class
    words: str,  # what it shows, for those who do not see it
    start_ns: int,  # Unix time that seconds count from, ns
    columns: int,  # of a curve
) -> str:
    """The element of one recording; empty where there is no signal to draw."""
    signals = [panel for panel in panels if panel.curves]
    if not signals:
        return ""
    arrays: dict[bytes, int] = {}
    rows: list[dict[str, Any]] = []
    for panel in signals:
        moving, still = split_constant(curves_of(panel.stream, start_ns, columns))
        for i, curves in enumerate(rows_of(moving)):
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
        "sets": [_set(name, items) for name, items in list(bands.items())[:_MOST_SETS]],
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
    return int(min(_MOST_COLUMNS, max(COLUMNS, _PAGE_COLUMNS // max(1, curves))))


def _set(name: str, bands: Sequence[Band]) -> dict[str, Any]:
    first = bands[: 4 * MOST_BANDS]
    return {"name": clean(name), "bands": [[round(b.start_s, 6), round(b.end_s, 6), clean(b.label)] for b in first]}


def _curve(curve: Curve, arrays: dict[bytes, int]) -> dict[str, Any]:
    """Its numbers, those that several curves share once."""
    numbers = {}
    for name, values in (("times", curve.seconds), ("values", curve.values)):
        content = values.astype("<f4").tobytes()
        numbers[name] = arrays.setdefault(content, len(arrays))
    return {"name": clean(curve.name), **numbers}


SCRIPT = """
"use strict";
(() => {
const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3]], HUES = ["--blue", "--orange", "--third", "--ink"];
const RIGHT = 12, LANE = 20, HEAD = 19, AXIS = 40, TALL = 104, LOW = 58, SPACE = 15, NEAR = 5;
const hue = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const numbers = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const shown = value => Number.isFinite(value) ? String(+value.toPrecision(5)).replace("-", "\\u2212") : "\\u2013";

function after(times, at) {  // number of the first time that is not before `at`
  let low = 0, high = times.length;
  while (low < high) { const mid = (low + high) >> 1; if (times[mid] < at) low = mid + 1; else high = mid; }
  return low;
}

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(f => f * power >= rough * 0.75);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  const digits = Math.min(9, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  const large = Math.max(Math.abs(low), Math.abs(high)) >= 1e6;
  return found.map(v => [v, (large ? v.toPrecision(4) : v.toFixed(digits)).replace("-", "\\u2212")]);
}

class Plot {
  constructor(holder) {
    const data = JSON.parse(holder.querySelector("script").textContent);
    const arrays = data.arrays.map(numbers);
    this.sets = data.sets; this.tints = data.tints; this.all = data.span; this.view = [...data.span];
    this.rows = data.rows.map(row => ({...row, curves: row.curves.map((c, i) =>
      ({name: c.name, times: arrays[c.times], values: arrays[c.values], hue: HUES[i % 4], dash: DASHES[i % 4], on: true}))}));
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0; this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", data.words + " Keys: arrows move, plus and minus zoom, 0 shows all.");
    this.bar = document.createElement("div"); this.bar.className = "bar";
    this.said = document.createElement("output");
    for (const [text, name, act] of [["+", "Zoom in", () => this.zoom(0.5)], ["\\u2212", "Zoom out", () => this.zoom(2)],
        ["\\u2190", "Earlier", () => this.move(-0.4)], ["\\u2192", "Later", () => this.move(0.4)],
        ["all", "Show all", () => this.show(...this.all)]]) {
      const button = document.createElement("button");
      button.textContent = text; button.title = name; button.setAttribute("aria-label", name); button.onclick = act;
      this.bar.append(button);
    }
    this.bar.append(this.said);
    holder.append(this.bar, this.canvas);
    this.listen();
    new ResizeObserver(() => requestAnimationFrame(() => this.width !== holder.clientWidth && this.draw())).observe(holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  listen() {
    const c = this.canvas, place = e => { const box = c.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
    c.addEventListener("pointerdown", e => {
      if (e.button) return;
      const [x, y] = place(e); this.from = x;
      try { c.setPointerCapture(e.pointerId); } catch { /* a pointer that is no longer there */ }
      this.pressed = [x, y];
    });
    c.addEventListener("pointermove", e => { [this.x, this.y] = place(e); this.draw(); });
    c.addEventListener("pointerleave", () => { this.x = undefined; this.draw(); });
    c.addEventListener("pointerup", e => {
      if (this.from === undefined) return;
      const [x, y] = place(e), [a, b] = [this.from, x].sort((p, q) => p - q);
      this.from = undefined;
      if (b - a > NEAR) this.show(this.time(a), this.time(b)); else this.click(x, y);
    });
    c.addEventListener("pointercancel", () => { this.from = undefined; this.draw(); });
    c.addEventListener("dblclick", () => this.show(...this.all));
    c.addEventListener("wheel", e => {
      if (!e.ctrlKey && !e.shiftKey) return;
      e.preventDefault();
      const turned = e.deltaY || e.deltaX;
      if (e.ctrlKey) this.zoom(1.002 ** turned, this.time(place(e)[0])); else this.move(turned / 1500);
    }, {passive: false});
    c.addEventListener("keydown", e => {
      const act = {ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2), "+": () => this.zoom(0.5),
        "-": () => this.zoom(2), "0": () => this.show(...this.all)}[e.key];
      if (act) { e.preventDefault(); act(); }
    });
  }

  click(x, y) {
    const hit = (this.boxes || []).find(b => x >= b[0] && x <= b[2] && y >= b[1] && y <= b[3]);
    if (hit) hit[4]();
  }

  time(x) { return this.view[0] + (x - this.left) / (this.width - this.left - RIGHT) * (this.view[1] - this.view[0]); }
  place(t) { return this.left + (t - this.view[0]) / (this.view[1] - this.view[0]) * (this.width - this.left - RIGHT); }

  show(a, b) {
    const [low, high] = this.all, wide = Math.min(high - low, Math.max(b - a, (high - low) * 1e-5));
    const start = Math.min(Math.max(a, low), high - wide);
    this.view = [start, start + wide]; this.draw();
  }
  zoom(factor, at = (this.view[0] + this.view[1]) / 2) {
    this.show(at - (at - this.view[0]) * factor, at + (this.view[1] - at) * factor);
  }
  move(share) { const by = share * (this.view[1] - this.view[0]); this.show(this.view[0] + by, this.view[1] + by); }

  draw() {
    const heights = this.rows.map(row => (row.title ? HEAD : 0) + (row.curves.length > 1 ? TALL : LOW) + SPACE);
    const high = this.sets.length * LANE + 6 + heights.reduce((a, b) => a + b, 0) + AXIS, ratio = devicePixelRatio || 1;
    this.width = this.canvas.parentNode.clientWidth;
    if (!this.width) return;
    this.canvas.style.height = high + "px";
    this.canvas.width = this.width * ratio; this.canvas.height = high * ratio;
    const g = this.g = this.canvas.getContext("2d");
    g.scale(ratio, ratio); g.font = '12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif'; g.textBaseline = "middle";
    this.boxes = [];
    this.left = Math.min(150, Math.max(66, ...this.sets.map(set => g.measureText(set.name).width + 12)));
    this.bottom = high - AXIS;
    let y = this.lanes() + 6;
    this.rows.forEach((row, i) => { this.row(row, y, heights[i] - SPACE); y += heights[i]; });
    this.axis(high);
    this.pointer(high);
  }

  lanes() {
    const g = this.g, under = LANE * this.sets.length + 4;
    this.sets.forEach((set, i) => {
      const y = i * LANE;
      this.text(set.name, this.left - 8, y + LANE / 2, "right", this.left - 10);
      for (const [a, b, label] of set.bands) {
        const from = Math.max(this.left, this.place(a)), to = Math.min(this.width - RIGHT, this.place(b));
        if (to <= from) continue;
        g.fillStyle = this.tints[label];
        g.globalAlpha = 0.5; g.fillRect(from, y + 1, to - from, LANE - 2);
        g.globalAlpha = 0.16;
        if (i === 0) g.fillRect(from, under, to - from, this.bottom - under);
        g.globalAlpha = 1;
        if (to - from > 18) this.text(label, (from + to) / 2, y + LANE / 2, "center", to - from - 4);
        const room = (b - a) * 0.05;
        this.boxes.push([from, y, to, y + LANE, () => this.show(a - room, b + room)]);
      }
    });
    return this.sets.length * LANE;
  }

  text(words, x, y, align, most) {
    const g = this.g; let cut = words;
    while (most && cut.length > 1 && g.measureText(cut).width > most) cut = cut.replace(/.\\u2026?$/, "\\u2026");
    g.fillStyle = hue("--ink"); g.textAlign = align; g.fillText(cut, x, y);
    return g.measureText(cut).width;
  }

  row(row, y, height) {
    const g = this.g, top = y + (row.title ? HEAD : 0), base = y + height;
    let wide = 0;
    if (row.title) {
      g.save(); g.font = "600 " + g.font; wide = this.text(row.title, this.left, y + HEAD / 2, "left", 260); g.restore();
      g.globalAlpha = 0.7; this.text(row.still, this.left + wide + 14, y + HEAD / 2, "left", this.width - this.left - wide - 120);
      g.globalAlpha = 1;
    }
    let low = Infinity, high = -Infinity, many = false;
    const parts = row.curves.map(curve => {
      const from = Math.max(0, after(curve.times, this.view[0]) - 1);
      const to = Math.min(curve.times.length, after(curve.times, this.view[1]) + 1);
      if (curve.on) for (let i = from; i < to; i++) { const v = curve.values[i]; if (v < low) low = v; if (v > high) high = v; }
      many ||= to - from > 4 * this.width;
      return [from, to];
    });
    let x = this.width - RIGHT;
    for (const curve of [...row.curves].reverse())
      x = this.legend(curve, x, row.title ? y + HEAD / 2 : top + 7, row.curves.length > 1, many);
    if (!(low <= high)) { low = -1; high = 1; }
    const pad = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    low -= pad; high += pad;
    const at = v => base - (v - low) / (high - low) * (base - top);
    g.lineWidth = 1;
    for (const [v, word] of ticks(low, high, row.curves.length > 1 ? 4 : 3)) {
      g.strokeStyle = hue("--rule"); g.beginPath(); g.moveTo(this.left, at(v)); g.lineTo(this.width - RIGHT, at(v)); g.stroke();
      if (Math.abs(at(v) - (top + base) / 2) < (base - top) / 2 - 3) this.text(word, this.left - 6, at(v), "right", this.left - 20);
    }
    const name = row.curves.length === 1 ? row.curves[0].name : row.unit;
    if (name) {
      g.save(); g.translate(this.left - 56, (top + base) / 2); g.rotate(-Math.PI / 2);
      this.text(name, 0, 0, "center", base - top); g.restore();
    }
    g.save(); g.beginPath(); g.rect(this.left, top - 1, this.width - this.left - RIGHT, base - top + 2); g.clip();
    g.globalAlpha = 0.16; g.fillStyle = hue("--ink");
    for (const [a, b] of row.gaps) g.fillRect(this.place(a), top, Math.max(1, this.place(b) - this.place(a)), base - top);
    g.globalAlpha = 1;
    row.curves.forEach((curve, i) => { if (curve.on) this.line(curve, parts[i], at, many); });
    g.restore();
  }

  legend(curve, right, y, several, many) {
    const g = this.g, i = this.x === undefined ? -1 : this.nearest(curve);
    if (!several && i < 0) return right;
    const words = several ? curve.name + (i < 0 ? "" : " " + shown(curve.values[i])) : shown(curve.values[i]);
    const wide = Math.max(g.measureText(words).width, several && i >= 0 ? 84 : 0), left = right - wide - (several ? 30 : 0);
    if (several) {
      g.globalAlpha = curve.on ? 1 : 0.35;
      g.strokeStyle = hue(curve.hue); g.setLineDash(many ? [] : curve.dash); g.lineWidth = 1.6;
      g.beginPath(); g.moveTo(left, y); g.lineTo(left + 24, y); g.stroke(); g.setLineDash([]);
      this.boxes.push([left, y - 9, right, y + 9, () => { curve.on = !curve.on; this.draw(); }]);
    }
    this.text(words, several ? left + 29 : left, y, "left", 0); g.globalAlpha = 1;
    return left - 14;
  }

  nearest(curve) {
    const at = this.time(this.x), i = after(curve.times, at);
    if (this.x < this.left || this.x > this.width - RIGHT || !curve.times.length) return -1;
    return i > 0 && (i === curve.times.length || at - curve.times[i - 1] < curve.times[i] - at) ? i - 1 : i;
  }

  line(curve, [from, to], at, many) {
    const g = this.g;
    g.strokeStyle = g.fillStyle = hue(curve.hue); g.lineWidth = 1.2; g.lineJoin = "round"; g.setLineDash(many ? [] : curve.dash);
    g.beginPath();
    let open = false, column = null, low, high;
    const flush = () => { if (column !== null) { g.lineTo(column, at(low)); g.lineTo(column, at(high)); column = null; } };
    for (let i = from; i < to; i++) {
      const v = curve.values[i], x = this.place(curve.times[i]);
      if (Number.isNaN(v)) { flush(); open = false; continue; }
      if (!open) { g.moveTo(x, at(v)); open = true; }
      if (!many) { g.lineTo(x, at(v)); continue; }
      const pixel = Math.round(x);
      if (pixel !== column) { flush(); column = pixel; low = high = v; }
      else { if (v < low) low = v; if (v > high) high = v; }
    }
    flush(); g.stroke(); g.setLineDash([]);
    if (to - from < this.width / 8)
      for (let i = from; i < to; i++) if (!Number.isNaN(curve.values[i]))
        g.fillRect(this.place(curve.times[i]) - 1.5, at(curve.values[i]) - 1.5, 3, 3);
  }

  axis(high) {
    const g = this.g, y = this.bottom;
    g.strokeStyle = hue("--faint"); g.lineWidth = 1;
    g.beginPath(); g.moveTo(this.left, y + 0.5); g.lineTo(this.width - RIGHT, y + 0.5); g.stroke();
    for (const [t, word] of ticks(this.view[0], this.view[1], Math.max(2, Math.floor((this.width - this.left) / 90)))) {
      g.beginPath(); g.moveTo(this.place(t), y); g.lineTo(this.place(t), y + 4); g.stroke();
      this.text(word, this.place(t), y + 13, "center", 0);
    }
    this.text("seconds since the start", (this.left + this.width - RIGHT) / 2, high - 9, "center", 0);
  }

  pointer(high) {
    const g = this.g;
    if (this.x === undefined || this.x < this.left || this.x > this.width - RIGHT) { this.said.textContent = ""; return; }
    const at = this.time(this.x), there = this.sets.flatMap(s =>
      s.bands.filter(([a, b]) => a <= at && at < b).map(b => s.name + " " + b[2]));
    this.said.textContent = [at.toFixed(3) + " s", ...there].join(" \\u00b7 ");
    if (this.from !== undefined) { g.globalAlpha = 0.15; g.fillStyle = hue("--blue");
      g.fillRect(this.from, 0, this.x - this.from, this.bottom); g.globalAlpha = 1; }
    g.strokeStyle = hue("--faint"); g.beginPath(); g.moveTo(this.x + 0.5, 0); g.lineTo(this.x + 0.5, this.bottom); g.stroke();
  }
}

document.querySelectorAll(".plot").forEach(holder => new Plot(holder));
})();
"""

STYLE = """
:root { --third: #00805c; } @media (prefers-color-scheme: dark) { :root { --third: #3fc79b; } }
.plot { margin: .8rem 0; } .plot canvas { display: block; width: 100%; touch-action: pan-y; cursor: crosshair; }
.plot canvas:focus-visible { outline: 2px solid var(--orange); outline-offset: 2px; }
.bar { display: flex; flex-wrap: wrap; gap: .35rem; align-items: center; margin-bottom: .4rem; min-height: 2rem; }
.bar button { font: inherit; font-size: .88rem; min-width: 2rem; padding: .1rem .5rem; border: 1px solid var(--rule);
  border-radius: .35rem; background: var(--band); color: var(--ink); cursor: pointer; }
.bar output { margin-left: .6rem; font-size: .88rem; color: var(--soft); font-variant-numeric: tabular-nums; }
@media print { .bar { display: none; } }
"""
