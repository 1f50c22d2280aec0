"""Clips of the music study. In: videos ``nn.mp4`` and sheets ``Pnn.xlsx``. Out: pieces, frames and tables as the published preparation
names them, and ``clips{k}.mcap``, which recipes read.

A video begins when its person's first piece does and shows a frame a sample of EDA: 4 frames of recording a second, at 30 a second. Time
`t` of the recording is second ``round((round(t) - round(t0)) * 4 / 30)`` of the video. The first piece's clip begins 2 s late.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, Writer
from numpy.typing import NDArray

from kymo.lab.look.film import write_film
from kymo.lab.output import Progress, writing
from kymo.processors.steps.images import COLOURS
from kymo.streams.archive.segment import chunk_schema
from kymo.streams.chunk import Chunk, Format, Header
from kymo.streams.codec import CHUNK_SCHEMA, ChunkCodec
from kymo.streams.errors import SourceError
from kymo.streams.files import whole_file
from kymo.streams.labels.labels import Label
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions
from kymo.streams.words import NS, some

GENRES = ("Classical", "Instrumental", "Pop")  # pieces 1 to 4, 5 to 8, 9 to 12
SHARES = (100, 80, 50)
VIDEO_HZ, RECORDING_HZ = 30, 4
_LATE_S = 2  # of video: how much later the first piece's clip begins
_SHORTEST = 26  # seconds of video that every whole piece has
_EXTRA = "needs the extras `excel` and `video`: pip install 'kymo-streams[excel,video]'"
_PERSON = re.compile(r"P(\d+)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Which frames of a clip are taken, counted from 1: those of ``range(begin, end, skip)``."""

    per_second: int = 1  # frames kept of a second of video: 1, 2 or 3
    begin: int = 1
    end: int = 0  # half open; 0 for what every whole piece has
    skip: int = 1
    share: int = 100  # per cent of them, from the first on
    size: int = 0  # pixels of a side in `clips{k}.mcap`; 0 for the video's own
    videos: bool = True  # whether the pieces are written as videos, too
    shift: int = 0  # how much larger a video's number is than its sheet's

    @property
    def numbers(self) -> range:
        """Numbers of the frames."""
        end = self.end or _SHORTEST * self.per_second
        return range(self.begin, math.ceil(Fraction(end * self.share, 100)), self.skip)

    @property
    def rate(self) -> Fraction:
        """Frames a second of recording."""
        return Fraction(self.per_second * RECORDING_HZ, VIDEO_HZ * self.skip)


@dataclass(frozen=True, slots=True)
class Clip:
    """A piece that a person heard."""

    person: str
    piece: int
    place: int  # in the session, from 1
    start_s: int  # of the video
    end_s: int
    start_ns: int  # Unix time at which the video begins
    seconds: float  # that the piece took
    left_out: str = ""  # why it is

    @property
    def genre(self) -> str:
        return GENRES[(self.piece - 1) // 4]

    @property
    def session(self) -> str:
        return f"{self.person}_music{self.piece:02d}"


def video_second(t_s: float, first_s: float) -> int:
    """Second of the video at which a time of the recording stands."""
    return round((round(t_s) - round(first_s)) * RECORDING_HZ / VIDEO_HZ)


def clips_of(sheet: Path, plan: ClipPlan) -> tuple[list[Clip], list[str]]:
    """What a sheet says its person heard, and what is odd about it."""
    person = sheet.stem.upper()
    rows, notes = _pieces(sheet)
    clips = []
    for place, (piece, start_s, end_s) in enumerate(rows, 1):
        start, end = (video_second(t, rows[0][1]) for t in (start_s, end_s))
        clip = Clip(person, piece, place, start + _LATE_S * (place == 1), end, round(rows[0][1]) * NS, end_s - start_s)
        there, wanted = (clip.end_s - clip.start_s) * plan.per_second, plan.numbers[-1] if plan.numbers else 0
        short = f"cut short: {there} frames, of which number {wanted} is wanted" if there < wanted else ""
        clips.append(replace(clip, left_out=short))
    return clips, notes


def _pieces(sheet: Path) -> tuple[list[tuple[int, float, float]], list[str]]:
    """Number, start and end, Unix s, of the pieces in the sheet `info`; and what is odd about the sheet."""
    recording = next(read([sheet], ReadOptions(label_column="piece")))
    rows = [(int(label.label), label.start_ns / NS, label.end_ns / NS) for label in recording.labels]
    if not rows or not all(0 < piece <= 4 * len(GENRES) for piece, _, _ in rows):
        pieces = some([str(piece) for piece, _, _ in rows], 12) or "none"
        raise SourceError(
            f"sheet `info` tells of the pieces {pieces}, expected 1 to 12, each with start and end", sheet
        )
    return rows, [f"{sheet.name}: {note}" for note in recording.notes[1:]]  # the first says what its head is


class Video:
    """Frames of a person's videos, one behind the other, each asked for once and in order."""

    def __init__(self, paths: list[Path]) -> None:
        try:
            import cv2
        except ModuleNotFoundError:
            raise SourceError(_EXTRA, paths[0]) from None
        self._cv2, self._waiting, self.path, self._next = cv2, list(paths), paths[0], 0
        self._open()

    def _open(self) -> None:
        self.path = self._waiting.pop(0)
        self._capture = self._cv2.VideoCapture(str(self.path))
        rate = self._capture.get(self._cv2.CAP_PROP_FPS) if self._capture.isOpened() else 0
        if round(rate) != VIDEO_HZ:
            why = f"shows {rate:g} frames a second, expected {VIDEO_HZ}" if rate else "is no video that can be read"
            raise SourceError(why, self.path)

    def frames(self, start: int, end: int) -> Iterator[NDArray[np.uint8]]:
        """Frames by number, ``(h, w, 3)`` blue, green, red; fewer where the video ends. Where pieces overlap, it goes back."""
        if start < self._next and not self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, start):
            raise SourceError("cannot be read from an earlier frame again", self.path)
        self._next = min(self._next, start)
        while self._next < end:
            if not self._capture.grab():
                if not self._waiting:
                    return
                self._open()
                continue
            self._next += 1
            if self._next > start:
                yield self._capture.retrieve()[1].astype(np.uint8, copy=False)


def prepare_physiology(
    source: Path, out: Path, plan: ClipPlan, progress: Progress = lambda done, of: None
) -> dict[str, Any]:
    """Write all that there is of a study: what came of it, for people and programs."""
    if not plan.numbers:
        raise SourceError(f"frames {plan.begin} to {plan.end} are none; let begin be below end")
    sheets = sorted(path for path in source.glob("*.xlsx") if _PERSON.match(path.stem))
    films = _videos(source)
    pairs = [(s, paths) for s in sheets if (paths := films.pop(int(s.stem[1:]) + plan.shift, []))]
    others = [path.name for paths in films.values() for path in paths]
    if not pairs:
        there = f"; --shift says how much larger the numbers of {some(others, 4)} are" if others and sheets else ""
        raise SourceError(f"no sheet Pnn.xlsx with a video nn.mp4 beside it{there}", source)
    notes = [f"{sheet.name}: no video" for sheet in sheets if sheet not in dict(pairs)]
    notes += [f"{name}: no sheet" for name in others]
    clips: list[Clip] = []
    with _Output(out, plan) as files:
        for done, (sheet, videos) in enumerate(pairs):
            progress(done, len(pairs))
            own, odd = clips_of(sheet, plan)
            notes += odd
            video = Video(videos)
            clips += [files.add(clip, video) for clip in own]
    left = [f"{clip.session}: {clip.left_out}" for clip in clips if clip.left_out]
    taken = Counter(clip.genre for clip in clips if not clip.left_out)
    facts = {"clips": dict(taken), "frames": files.frames, "left_out": left, "notes": notes, "plan": asdict(plan)}
    return {"path": str(out), "clips_file": str(files.mcap), **facts}


def _videos(source: Path) -> dict[int, list[Path]]:
    """Videos by number: ``nn.mp4``, and ``nn_….mp4``, ``nn (2).mp4`` or the like behind it where a person's stands in several files."""
    videos: dict[int, list[Path]] = {}
    for path in sorted(source.glob("*.mp4"), key=lambda path: path.stem):
        if name := re.match(r"P?(\d+)", path.stem):
            videos.setdefault(int(name[1]), []).append(path)
    return videos


class _Output:
    """The folders, tables and the MCAP file of a preparation."""

    def __init__(self, out: Path, plan: ClipPlan) -> None:
        import contextlib

        self.out, self.plan, self.frames = out, plan, 0
        self.mcap = out / f"clips{plan.per_second}.mcap"
        self._stack, self._codec, self._running = contextlib.ExitStack(), ChunkCodec(), Counter[str]()
        self._table: list[list[Any]] = []
        self._clips: list[Clip] = []

    def __enter__(self) -> _Output:
        for name in ("Video Segments", f"train_all{self.plan.per_second}", "training_csv", self._split):
            with writing(self.out):
                (self.out / name).mkdir(parents=True, exist_ok=True)
        unfinished = self._stack.enter_context(whole_file(self.mcap))
        file = self._stack.enter_context(unfinished.open("wb"))
        self._writer = Writer(file, compression=CompressionType.ZSTD)
        self._writer.start(profile="", library="kymo prepare")
        schema = self._writer.register_schema(CHUNK_SCHEMA, "protobuf", chunk_schema())
        self._channels = {"kymo.video": self._writer.register_channel("kymo.video", "protobuf", schema)}
        for name in ("labels", "sessions"):
            self._channels[f"kymo.{name}"] = self._writer.register_channel(f"kymo.{name}", "json", 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            self._writer.finish()  # type: ignore[no-untyped-call]
        self._stack.__exit__(kind, *error)
        if kind is not None:
            return
        _csv(self.out / "training_csv" / f"train_all{self.plan.per_second}.csv", ("image", "class"), self._table)
        facts = ("person", "piece", "place", "genre", "start_s", "end_s", "seconds", "left_out")
        rows = [[getattr(clip, name) for name in facts] for clip in self._clips]
        _csv(self.out / f"clips{self.plan.per_second}.csv", facts, rows)

    @property
    def _split(self) -> str:
        return f"training_split{self.plan.per_second}"

    def add(self, clip: Clip, video: Video) -> Clip:
        """Write a clip; as it is noted, since its video may end before it does."""
        kept = list[NDArray[np.uint8]]()
        frames = self._taken(clip, video, kept)
        if self.plan.videos and (first := next(frames, None)) is not None:
            segment = self.out / "Video Segments" / clip.person / f"music{clip.piece:02d}.mp4"
            segment.parent.mkdir(parents=True, exist_ok=True)
            write_film(segment, chain([first], frames), VIDEO_HZ)
        for _ in frames:  # where none is written
            pass
        if not clip.left_out and len(kept) < self.plan.numbers[-1]:
            clip = replace(clip, left_out=f"its video ends after {len(kept)} of its frames")
        self._clips.append(clip)
        if not clip.left_out:
            self._learned_from(clip, [kept[number - 1] for number in self.plan.numbers])
        return clip

    def _taken(self, clip: Clip, video: Video, kept: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Frames of a clip, red, green, blue; those that the published preparation keeps are written, and kept."""
        step = VIDEO_HZ // self.plan.per_second
        for number, frame in enumerate(video.frames(clip.start_s * VIDEO_HZ, clip.end_s * VIDEO_HZ), 1):
            if number % step == 0:
                self._image(f"train_all{self.plan.per_second}/{clip.session}_frame{len(kept):03d}.jpg", frame)
                self._table.append([f"{clip.session}_frame{len(kept):03d}.jpg", clip.genre])
                kept.append(frame)
            yield frame[..., ::-1]

    def _learned_from(self, clip: Clip, frames: list[NDArray[np.uint8]]) -> None:
        """Write what a model learns from: images in the clip's folder, and its session."""
        import cv2

        name = f"{clip.genre}music{(clip.piece - 1) % 4 + 1}"
        self._running[name] += 1
        folder = f"{self._split}/{name}_{self._running[name]}"
        (self.out / folder).mkdir(exist_ok=True)
        for number, frame in enumerate(frames, 1):
            self._image(f"{folder}/frame{number:03d}.jpg", frame)
        side = (self.plan.size,) * 2
        small = [cv2.resize(frame, side, interpolation=cv2.INTER_AREA) for frame in frames] if side[0] else frames
        data = np.stack(small)[..., ::-1]
        fmt = Format("animation", COLOURS, (), self.plan.rate, "uint8", data.shape[1:])
        first = (
            clip.start_s * VIDEO_HZ + VIDEO_HZ // self.plan.per_second * self.plan.begin - 1
        )  # of the video's frames
        chunk = Chunk(Header(clip.session, clip.start_ns + first * NS // RECORDING_HZ, fmt), 0, data, end=True)
        end_ns = chunk.header.time_ns(len(data))
        label = Label("", clip.session, "label", chunk.start_ns, end_ns, clip.genre.lower(), "the sheet `info`")
        facts = {"piece": str(clip.piece), "place": str(clip.place), "seconds": f"{clip.seconds:.2f}"}
        record = {"session": clip.session, "subject": clip.person, "start_ns": chunk.start_ns, "end_ns": end_ns}
        self._message("kymo.sessions", json.dumps(record | {"metadata": facts}).encode(), chunk.start_ns)
        self._message("kymo.labels", json.dumps(label.to_json()).encode(), chunk.start_ns)
        for part in chunk.parts(2**20):
            self._message("kymo.video", self._codec.encode(part), part.start_ns)

    def _message(self, topic: str, data: bytes, at_ns: int) -> None:
        self._writer.add_message(self._channels[topic], at_ns, data, at_ns)

    def _image(self, name: str, frame: NDArray[np.uint8]) -> None:
        import cv2

        self.frames += name.startswith("train_all")
        if not cv2.imwrite(str(self.out / name), frame):
            raise SourceError("cannot be written; is there room?", self.out / name)


def _csv(path: Path, head: tuple[str, ...], rows: list[list[Any]]) -> None:
    with writing(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def words(facts: dict[str, Any]) -> str:
    """What came of a preparation, in lines."""
    clips = ", ".join(f"{count} {genre}" for genre, count in sorted(facts["clips"].items()))
    left = some(facts["left_out"], 4) or "none"
    return "\n".join(
        [f"clips     {clips}; {facts['frames']} frames", f"left out  {left}", f"recipes   {facts['clips_file']}"]
    )
