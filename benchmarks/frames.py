"""An hour of frames, caught up with. In: a Rig. Out: rows of figures; the most memory of a worker whose windows hold 12 MB of pixels, MB.

A session has sent 15 frames a second, JPEG images or pixels, 224 x 224; its worker begins at the oldest. Windows hold 78 frames (5.2 s);
images become pixels behind the window, and the model takes float32, 47 MB a window. It is the mean of each colour times weights, so that
what is measured is what holds frames, not a network.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.child import alive, check, memory
from benchmarks.drain import EventTopic
from benchmarks.load import ORIGIN_NS, fill
from benchmarks.report import Row
from benchmarks.rig import LABELS, Rig, network_of_means
from benchmarks.truth import compare_means
from kymo.streams.chunk import Array, Chunk, Header
from kymo.streams.codec import ChunkCodec

_RATE, _LENGTH, _SIZE, _CHUNK = 15, 78, 224, 15
_DISTINCT = 101  # frames after which a session repeats itself; prime
_WEIGHTS = np.random.default_rng(7).standard_normal((3, len(LABELS))).astype(np.float32) / 50
_TOLERANCE = 2e-3  # a mean of four million float32
_DECODE = f'[[window.steps]]\nstep = "decode"\nheight = {_SIZE}\nwidth = {_SIZE}\n'


def _recipe(name: str, dtype: str) -> str:
    shape, steps = (f"shape = [{_SIZE}, {_SIZE}]\n", "") if dtype == "uint8" else ("", _DECODE)
    source = f'[[input]]\nstream = "video"\nrate_hz = {_RATE}\nchannels = ["red", "green", "blue"]\ndtype = "{dtype}"\n'
    window = f"[window]\nlength_s = {_LENGTH / _RATE}\nhop_s = {_LENGTH / _RATE}\n"
    return f'name = "{name}"\n{source}{shape}{window}{steps}[model]\narchitecture = "spectrogram_cnn"\n'


def _frames(dtype: str) -> tuple[Array, Array]:
    """Frames as they are sent, and the mean of each one's colours."""
    random, sent, means = np.random.default_rng(3), np.empty(_DISTINCT, object), np.empty((_DISTINCT, 3))
    slope = np.linspace(0, 120, _SIZE)
    for i in range(_DISTINCT):
        colours = random.integers(0, 120, 3)
        pixels = (slope[:, None, None] + colours + np.zeros((_SIZE, _SIZE, 3))).astype(np.uint8)
        # Compressed, an hour of it stays within what the topic keeps.
        pixels[::8] += random.integers(0, 12, pixels[::8].shape, np.uint8)
        sent[i] = pixels
        if dtype == "jpeg":
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=90)
            sent[i], pixels = file.getvalue(), np.asarray(Image.open(file))
        means[i] = pixels.mean((0, 1), dtype=np.float64)
    return (sent if dtype == "jpeg" else np.stack(sent.tolist())), means


def _messages(sent: Array, header: Header, count: int) -> Iterator[tuple[str, bytes]]:
    codec = ChunkCodec()
    for first in range(0, count, _CHUNK):
        numbers = np.arange(first, min(first + _CHUNK, count))
        chunk = Chunk(header, first, sent[numbers % _DISTINCT], None, first + _CHUNK >= count)
        yield header.session, codec.encode(chunk)


def frames(rig: Rig, seconds: float = 3600.0) -> list[Row]:
    """A worker that catches up with so much of a session, of each kind of frame."""
    return [_caught_up(rig, dtype, seconds) for dtype in ("jpeg", "uint8")]


def _caught_up(rig: Rig, dtype: str, seconds: float) -> Row:
    prefix, count = f"bench-frames-{dtype}", int(seconds * _RATE)
    rig.names(prefix)
    recipe = rig.write(f"frames-{dtype}", _recipe(f"frames-{dtype}", dtype))
    sent, means = _frames(dtype)
    header = Header("hour", ORIGIN_NS, recipe.input_format())
    # Messages of 2 MB: not many at once, and none taken for another's while the broker still starts.
    sizes = {"message.max.bytes": 2**23, "queue.buffering.max.kbytes": 2**16}
    producer = rig.producer(**{"compression.type": "lz4", "enable.idempotence": False, "max.in.flight": 1} | sizes)
    producer.list_topics(f"{prefix}.video", 30)
    fill(producer, f"{prefix}.video", _messages(sent, header, count))
    child = rig.worker((recipe, rig.bundle(recipe, network_of_means(recipe, _WEIGHTS))), prefix)
    topic, windows, began_s = EventTopic(rig.settings.brokers, f"{prefix}.events"), count // _LENGTH, time.monotonic()
    with alive([child]):
        while (events := topic.count()) < windows:
            check([child])
            if time.monotonic() - began_s > 120 + seconds:
                raise RuntimeError(f"{events} of {windows} windows, slower than they came: {child.tail}")
            time.sleep(0.5)
        time.sleep(2)  # commits, and what goes with them
        used, took_s = memory(child.pid), time.monotonic() - began_s
    _compare(topic.read(), means, windows)
    topic.close()
    pixels = _LENGTH * _SIZE * _SIZE * 3 / 1e6
    sent_mb = count * float(np.mean([memoryview(f).nbytes for f in sent])) / 1e6
    figures = {"window_mb": pixels, "sent_mb": sent_mb, "caught_up_s": took_s, "peak_mb": used.peak_mb}
    return {"frames": dtype, "windows": windows, **figures}


def _compare(events: list[dict[str, Any]], means: Array, windows: int) -> None:
    """Raise RuntimeError unless every window is there once, and says what its pixels do."""
    starts = sorted(event["start_index"] for event in events)
    if starts != list(range(0, windows * _LENGTH, _LENGTH)):
        raise RuntimeError(f"{len(events)} events for {windows} windows")
    for event in events:
        numbers = np.arange(event["start_index"], event["start_index"] + _LENGTH) % _DISTINCT
        compare_means(event, means[numbers].mean(0), _WEIGHTS, _TOLERANCE)
