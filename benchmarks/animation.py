"""Frames per second of the animation step, and of matplotlib. In: nothing (made-up signals). Out: rows of figures.

Both draw four sources at 224 x 224 from 64 samples a second, by turns in one thread, in the time that the thread itself spent. matplotlib
(Agg) keeps its figure: a frame gives new colours to 56 circles a source, draws, and copies the pixels. It neither cuts them off at the body
nor adds colours, which would cost it more.
"""

from __future__ import annotations

from statistics import median
from time import thread_time
from typing import Any

import numpy as np

from benchmarks.turns import Call, faster, measure
from kymo.processors.steps.animation import SOURCES, Animation
from kymo.streams.chunk import Array, Chunk, Header, signal_format

_RATE, _SIZE, _CIRCLES = 64, 224, 56
_FORMAT = signal_format("joined", tuple(SOURCES), _RATE)
_STREAM, _WINDOW, _PEER = "Kymo, as a stream, a frame a chunk", "Kymo, behind a window of 26 frames", "matplotlib"


def _signals(seconds: int) -> Array:
    t = np.arange(seconds * _RATE) / _RATE
    beats = 90 * np.sin(2 * np.pi * t / 0.8)
    return np.stack([2 + np.sin(t / 3), beats, 32 + np.sin(t / 30), 4 + np.sin(t)], 1).astype(np.float32)


def _stream(spec: Animation) -> Call:
    stage, header, data, at = spec.build(), Header("s", 0, _FORMAT), _signals(8), 0

    def call() -> Any:
        nonlocal at
        first = at * spec.frame_step % len(data)
        chunk = Chunk(header, at * spec.frame_step, data[first : first + spec.frame_step])
        at += 1
        return stage.push(chunk)

    while not call():
        pass  # until there is a past
    return call


def _matplotlib() -> Call:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    figure = Figure(figsize=(_SIZE / 100, _SIZE / 100), dpi=100)
    canvas, axes, circles = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1)), []
    axes.set(xlim=(0, 1), ylim=(1, 0))
    axes.set_axis_off()
    for source in SOURCES.values():
        radii = np.linspace(source.reach, 0.005, _CIRCLES)
        circles.append(PatchCollection([Circle(source.places[0], radius) for radius in radii], linewidths=0))
        axes.add_collection(circles[-1])
    data, at = _signals(8), 0

    def call() -> Array:
        nonlocal at
        at = (at + 16) % (len(data) - _CIRCLES)
        for i, (source, collection) in enumerate(zip(SOURCES.values(), circles, strict=True)):
            past = data[at : at + _CIRCLES, i]
            bright = 1 - (past - past.min()) / max(float(np.ptp(past)), 1e-6)
            collection.set_facecolor(bright[:, None] * np.array(source.lights, float))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    return call


def animation(rounds: int) -> list[dict[str, Any]]:
    """Frames per second, and how many times as fast the stream is."""
    spec = Animation(rate_hz=4).at(_FORMAT)
    window = _signals(60)[: spec.frame_length + 25 * spec.frame_step]
    calls: dict[str, tuple[int, Call]] = {
        _STREAM: (1, _stream(spec)),
        _WINDOW: (26, lambda: spec.apply(window, _FORMAT)),
        _PEER: (1, _matplotlib()),
    }
    taken = measure({name: call for name, (_, call) in calls.items()}, rounds, 0.02, thread_time)
    frames = {name: [seconds / count for seconds in taken[name]] for name, (count, _) in calls.items()}
    return [
        {"peer": name, "frames_per_s": 1 / median(each), "kymo_is_faster_by": faster(frames[_STREAM], each)}
        for name, each in frames.items()
    ]
