"""The recipe and the input of the fault lab. In: a folder, a seed. Out: a bundle whose weights are chosen by hand; sessions that are
recorded badly, sent until told to end, and what they must give.

Gaps, repeated and late chunks, sessions that end and are sent again whole: all of it from the seed.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from recipes_made import STANDARDISE, recipe_text
from tiny_models import fitted, linear_onnx, manifest

from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Array, Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.kafka.publish import Publisher
from kymo.streams.recording import Recording, StreamData
from kymo.streams.settings import Settings
from kymo.streams.topics import Names

RECIPE = recipe_text(
    "lab",
    "x y",
    100,
    (0.16, 0.08),
    of_input={"bridge_ms": 30, "max_missing": 0.2},
    steps=[{"step": "scale", "factor": 0.5}],
    behind=STANDARDISE,
    model={"architecture": "spectrogram_cnn", "min_probability": 0.6, "pool": {"kind": "mean", "windows": 3}},
)


HEADS = """
[[heads]]
name = "surface"
[[heads]]
name = "score"
kind = "number"
"""


_HEADS = [
    {"name": "surface", "labels": ["grass", "track"], "temperature": 1.5},
    {"name": "score", "labels": [], "temperature": 1.0},
]


def lab_recipe(folder: Path, heads: bool = False, hop_s: float = 0.08, steps: str = "") -> tuple[Path, Path]:
    """The lab's recipe file and a bundle for it, made in `folder`; with heads, a window has three events; with more `steps` than it has."""
    path = folder / "lab.toml"
    text = RECIPE.replace("hop_s = 0.08", f"hop_s = {hop_s}").replace("[window]", f"{steps}\n[window]")
    path.write_text(text + HEADS * heads)
    weights = np.array([[-4.0, 1.0], [0.0, -2.0], [4.0, 1.0], [2.0, 1.0], [1.0, 2.0], [30.0, 7.0]])[
        : None if heads else 3
    ]
    model = {"input": "windows", "output": "logits", "shape": [2, 16], "dtype": "float32", "layout": "channels_first"}
    described = manifest(recipe="lab", chain=fitted(load_recipe(path).chain), model=model)
    described |= {"heads": _HEADS} if heads else {}
    return path, write_bundle(folder / "bundle", described, {MODEL: linear_onnx(weights, rows=16)})


FLUSH_S = 120.0


@dataclass
class Source:
    """One session that is being recorded, badly: gaps, repeated and late chunks."""

    name: str
    pick: random.Random
    at: int = 0
    taken: list[tuple[int, Array]] = field(default_factory=list)  # what a worker must make windows of
    sent: list[Chunk] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self.header = Header(self.name, 10**18, signal_format("imu.wrist", ("x", "y"), Fraction(100)))
        self._noise = np.random.default_rng(self.pick.randrange(2**32))

    def _chunk(self, end: bool = False) -> Chunk:
        data = self._noise.normal(0, 3, (self.pick.randint(10, 60), 2)).astype(np.float32)
        made = Chunk(self.header, self.at, data, None, end)
        self.at += len(data)
        self.sent.append(made)
        return made

    def _good(self, end: bool = False) -> Chunk:
        made = self._chunk(end)
        self.taken.append((made.first_index, made.data))
        return made

    def next(self) -> list[Chunk]:
        move = self.pick.random()
        if move < 0.02:
            self.at += self.pick.choice([1, 3, 4, 50])
        elif move < 0.04 and self.sent:
            return [self.pick.choice(self.sent)]
        elif move < 0.06 and self.sent:
            late = self._chunk()
            return [self._good(), late]
        return [self._good()]

    def end(self) -> Chunk:
        self.ended = True
        return self._good(end=True)

    def recording(self) -> Recording:
        pieces: list[tuple[int, Array]] = []
        for first, data in self.taken:
            if pieces and pieces[-1][0] + len(pieces[-1][1]) == first:
                pieces[-1] = (pieces[-1][0], np.concatenate([pieces[-1][1], data]))
            else:
                pieces.append((first, data))
        whole = np.concatenate([data for _, data in pieces])
        return Recording(self.name, [StreamData(self.header, whole, None, 0, pieces)])


class Place(Protocol):
    settings: Settings
    names: Names
    over: threading.Event

    def session_names(self) -> list[str]:
        """Sessions to begin with."""

    def next_name(self, name: str) -> str:
        """A new session's name, for one that has ended."""


class Feed(threading.Thread):
    """Sends chunks of many sessions until told to end; some sessions end on the way, some of those are sent again whole."""

    def __init__(self, lab: Place, seed: int, rate: float = 80.0, ending: float = 0.003) -> None:
        super().__init__(name="feed", daemon=True)
        self.lab, self.pick, self._period_s, self._ending = lab, random.Random(seed), 1 / rate, ending
        self.sources = [Source(name, random.Random(seed + i)) for i, name in enumerate(lab.session_names())]
        self.live = list(self.sources)
        self.failure: BaseException | None = None
        self._end, self._codec = lab.over, ChunkCodec()

    def run(self) -> None:
        try:
            with Publisher(self.lab.settings, self.lab.names) as publisher:
                while not self._end.wait(self._period_s):
                    self._step(publisher)
                for source in self.live:
                    self._send(publisher, [source.end()])
                publisher.flush(FLUSH_S)
        except BaseException as error:
            self.failure = error

    def _step(self, publisher: Publisher) -> None:
        place = self.pick.randrange(len(self.live))
        source = self.live[place]
        if source.sent and self.pick.random() < self._ending:
            self._send(publisher, [source.end()])
            if self.pick.random() < 0.5:
                self._send(publisher, source.sent)  # the whole recording again
            name = self.lab.next_name(source.name)
            self.live[place] = Source(name, random.Random(self.pick.randrange(2**32)))
            self.sources.append(self.live[place])
            return
        self._send(publisher, source.next())

    def _send(self, publisher: Publisher, chunks: list[Chunk]) -> None:
        for chunk in list(chunks):
            publisher.send("sensor", chunk.session, self._codec.encode(chunk))

    def end(self) -> None:
        """Close every session; returns when all is acknowledged."""
        self._end.set()
        self.join(2 * FLUSH_S)
        if self.failure is not None:
            raise self.failure
        assert not self.is_alive()
