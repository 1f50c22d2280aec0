"""Frames as a film, X.mp4 or X.gif. In: recordings that hold frames, or signals of which a recipe makes some. Out: a file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kymo.lab.output import writing
from kymo.models.data.dataset import chunks_of, streams_of, why_not
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.join import Join
from kymo.processors.recipe.load import Recipe
from kymo.processors.spec import Spec
from kymo.processors.steps.images import pillow
from kymo.processors.windows import Windows
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import SourceError
from kymo.streams.files import whole_file
from kymo.streams.recording import Recording

Pixels = NDArray[np.uint8]  # (height, width, 3)
KINDS = (".mp4", ".gif")
_MOST_GIF = 3000  # frames, which are all kept until the last one is there


def is_frames(fmt: Format) -> bool:
    return fmt.dtype == "jpeg" or (fmt.dtype == "uint8" and len(fmt.shape) == 3)


def frames_of(recording: Recording, recipe: Recipe | None = None) -> tuple[Format, Iterator[Pixels]]:
    """Frames, and their format: those of a recording's first stream that has any, or those that a recipe's steps make."""
    if recipe is not None:
        return _drawn(recording, recipe)
    for stream in recording.streams:
        fmt = stream.header.format
        if is_frames(fmt) and fmt.rate:
            return fmt, (_pixels(frame) for _, frames in stream.pieces for frame in frames)
    names = ", ".join(stream.header.format.stream for stream in recording.streams)
    raise SourceError(
        f"session {recording.session} has no stream of frames, only {names}; name with --recipe one that makes them, such as by the "
        "step `animation`"
    )


def _drawn(recording: Recording, recipe: Recipe) -> tuple[Format, Iterator[Pixels]]:
    """A frame for each moment, also where the recipe makes them behind its window."""
    streams, specs, fmt = streams_of(recording, recipe), list[Spec](), recipe.inputs[0].format
    if not streams:
        raise SourceError(
            f"session {recording.session} is not what recipe `{recipe.name}` takes: {why_not(recording, recipe)}"
        )
    for placed in recipe.chain.specs:
        spec = placed.spec if isinstance(placed, PerWindow) else placed
        if isinstance(spec, Windows):
            continue
        if not spec.before_window:
            raise SourceError(
                f"recipe `{recipe.name}` makes frames behind `{spec.name}`, which learns or takes whole windows"
            )
        specs.append(spec if isinstance(spec, Join) else spec.shared(fmt))
        fmt = specs[-1].output({fmt.stream: fmt})
        if is_frames(fmt):
            break
    else:
        raise SourceError(f"recipe `{recipe.name}` has no step that makes frames, such as `animation`")
    steps = Chain(tuple(specs))
    stage = steps.build()
    items = chain((stage.push(chunk) for chunk in chunks_of(streams, steps, Fraction(1))), (stage.flush() for _ in "."))
    return fmt, (_pixels(frame) for chunks in items for chunk in chunks for frame in chunk.data)


def _pixels(frame: Array | bytes) -> Pixels:
    if isinstance(frame, bytes):
        with pillow("plot").open(io.BytesIO(frame), formats=("JPEG",)) as image:
            frame = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(np.broadcast_to(frame, (*frame.shape[:2], 3)), np.uint8)


def write_film(path: Path, frames: Iterable[Pixels], rate_hz: float) -> int:
    """Write frames of one size; how many.

    Raises
    ------
    SourceError
        If there are none, or what writes films is not installed.
    """
    iterator = iter(frames)
    if (first := next(iterator, None)) is None:
        raise SourceError(
            "no frame; a step that shows the past makes the first one once that has come without a gap "
            "(`bridge_ms` of an input, or a step `repair`, fills short ones)",
            path,
        )
    with writing(path), whole_file(path) as unfinished:
        every = chain([first], iterator)
        if path.suffix.lower() == ".gif":
            return _write_gif(unfinished, every, rate_hz)
        return _write_mp4(unfinished, every, first.shape, rate_hz)


def _write_mp4(path: Path, frames: Iterable[Pixels], shape: tuple[int, ...], rate_hz: float) -> int:
    try:
        import cv2
    except ModuleNotFoundError:
        raise SourceError("OpenCV is not installed; pip install 'kymo-streams[video]', or write X.gif", path) from None
    count, named = 0, path.with_name(f"{path.name}.mp4")  # the name tells it the kind of file
    writer = cv2.VideoWriter(str(named), cv2.VideoWriter.fourcc(*"mp4v"), rate_hz, shape[1::-1])
    try:
        if not writer.isOpened():
            raise SourceError(f"OpenCV writes no film there of {shape[1]} x {shape[0]} at {rate_hz:g} Hz", path)
        for count, frame in enumerate(frames, 1):  # noqa: B007
            writer.write(frame[..., ::-1])
        writer.release()
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)
    return count


def _write_gif(path: Path, frames: Iterable[Pixels], rate_hz: float) -> int:
    library = pillow("plot")
    images = [library.fromarray(frame).quantize(128) for frame in islice(frames, _MOST_GIF + 1)]
    if len(images) > _MOST_GIF:
        raise SourceError(
            f"a GIF has at most {_MOST_GIF} frames here; name a part with --start and --duration, or write X.mp4"
        )
    duration_ms = max(20, round(1000 / rate_hz))
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=duration_ms, loop=0, optimize=False)
    return len(images)
