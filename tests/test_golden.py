"""Behaviour that stays: what version 0.1 wrote and said stands in `golden/`, and is read and said today.

`PYTHONPATH=tests:. python tests/test_golden.py` writes what is absent there, and nothing anew: whoever changes behaviour on purpose
deletes the file first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_lab import chunk, chunk_record, record, some_records, write_segment

import kymo
from kymo.models.registry import SHIPPED
from kymo.models.serving.snapshots import SessionSnapshot
from kymo.processors.chain import Chain, ChainStage, PerWindow
from kymo.streams.archive.format import read_segment
from kymo.streams.archive.read import segment_records
from kymo.streams.chunk import Chunk, Header, Window, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.events import Event
from kymo.streams.labels.labels import Label
from kymo.streams.promotions import Promotion

GOLDEN = Path(__file__).parent / "golden"
RECIPES = ("basicmotions", "magnetic", "running", "running_recurrent")
STORED = ("basicmotions", "magnetic", "running")
BUNDLES = ("basicmotions", "magnetic")
ORIGIN_NS = 1_700_000_000_123_000_000


def samples(recipe: kymo.Recipe, windows: int) -> Chunk:
    """A session of waves and noise for a recipe, in steps of 1/64, so that every machine makes the same."""
    wanted, random = recipe.inputs[0], np.random.default_rng(7)
    fmt = signal_format(wanted.stream, wanted.channels, wanted.rate_hz)
    t = np.arange(recipe.window_length + (windows - 1) * recipe.window_hop)[:, None]
    waves = np.round(64 * np.sin(t * random.uniform(0.01, 1.0, len(wanted.channels))))
    noise = random.integers(-32, 32, (len(t), len(wanted.channels)))
    return Chunk(Header("golden", ORIGIN_NS, fmt), 0, ((waves + noise) / 64).astype(np.float32))


def steps(recipe: kymo.Recipe) -> Chain:
    return Chain(
        tuple(spec for spec in recipe.chain.specs if not (spec.spec if isinstance(spec, PerWindow) else spec).learned)
    )


def pieces(whole: Chunk, size: int) -> list[Chunk]:
    return [Chunk(whole.header, i, whole.data[i : i + size]) for i in range(0, whole.count, size)]


def made(stage: ChainStage, chunks: Iterable[Chunk]) -> list[Window]:
    return [window for piece in chunks for window in stage.push(piece)]


def summary(window: Window) -> list[float]:
    """Place and content of a window in a few numbers."""
    data, weights = window.data.astype(np.float64), np.random.default_rng(1)
    return [window.start_index, window.start_ns, *(float((data * weights.random(data.shape)).mean()) for _ in range(3))]


def tell_recipe(name: str) -> Any:
    recipe = kymo.load_recipe(name)
    windows = made(steps(recipe).build(), pieces(samples(recipe, 4), 700))
    return {
        "chain": recipe.chain.to_json(),
        "digest": recipe.chain.digest(),
        "digest_unlearned": recipe.chain.digest(learned=False),
        "shape": list(windows[0].shape),
        "windows": [summary(window) for window in windows],
    }


def tell_bundle(name: str, folder: Path) -> Any:
    """A shipped bundle's id, and its events of a CSV file."""
    recipe, bundle = kymo.load_recipe(name), kymo.load_bundle(str(SHIPPED / name))
    whole = samples(recipe, 6)
    times = [str(whole.header.time_ns(i)) for i in range(whole.count)]
    rows = [",".join((t, *map(str, row))) for t, row in zip(times, whole.data.tolist(), strict=True)]
    path = folder / "golden.csv"
    path.write_text("\n".join([",".join(("t_ns", *whole.header.format.channels)), *rows]))
    events = kymo.run(recipe, kymo.read([path], recipe.read_options()), kymo.Classifier(bundle, name))
    return {"bundle": bundle.id, "events": [event.to_dict() | {"emitted_ns": 0} for event in events]}


def tell_messages() -> Any:
    event = Event("s/r/0", "r", "r@1", "s", "imu", 0, 5, 9, "walk", 0.75, {"walk": 0.75, "run": 0.25}, emitted_ns=3)
    label = Label("s/class/5", "s", "class", 5, 9, "walk", "ann", 7)
    promotion = Promotion("r", "champion", "r@1", 11, "folder", "promote", "ann", "better")
    return {
        "event": event.to_json().decode(),
        "label": label.to_json(),
        "promotion": promotion.to_json().decode(),
        "chunk": ChunkCodec().encode(chunk("s1", 250)).hex(),
        "chunk_end": ChunkCodec().encode(chunk("s1", 250, 0, end=True)).hex(),
    }


def archived() -> list[Any]:
    return [*some_records(1, 60), chunk_record(600, chunk("s1", 250)), record("labels", 0, "s1", b'{"session": "s1"}')]


def told_records(segment: Path) -> list[list[Any]]:
    return [
        [r.topic, r.partition, r.offset, r.timestamp, _hex(r.key), hashlib.sha256(r.value or b"").hexdigest()]
        for r in segment_records(read_segment(segment))
    ]


def _hex(raw: bytes | None) -> str | None:
    return None if raw is None else raw.hex()


def stored_half(recipe: kymo.Recipe) -> bytes:
    """A session's snapshot, as `kymo.state` holds it, in the midst of its third window."""
    stage, whole = steps(recipe).build(), samples(recipe, 4)
    half = recipe.window_length + recipe.window_hop * 2 - recipe.window_hop // 3
    made(stage, [Chunk(whole.header, 0, whole.data[:half])])
    told = {
        "chain": recipe.chain.digest(learned=False),
        "topic": "kymo.sensor",
        "topic_id": "id",
        "upto": 41,
        "open": 17,
    }
    meta = {"half": half}
    return SessionSnapshot.of(told | {"ended": False}, meta, [part.snapshot() for part in stage.stages]).encode()


def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def same(now: Any, then: Any) -> None:
    """Equal, numbers that were computed to 1e-5."""
    if isinstance(then, dict):
        assert list(now) == list(then)
        for key in then:
            same(now[key], then[key])
    elif isinstance(then, list):
        assert len(now) == len(then)
        for ours, theirs in zip(now, then, strict=True):
            same(ours, theirs)
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=1e-5, abs=1e-5)
    else:
        assert now == then


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_same_windows(name: str) -> None:
    same(json.loads(json.dumps(tell_recipe(name))), read(f"recipe_{name}"))


@pytest.mark.parametrize("name", BUNDLES)
def test_a_shipped_bundle_gives_the_same_events(name: str, tmp_path: Path) -> None:
    same(json.loads(json.dumps(tell_bundle(name, tmp_path))), read(f"bundle_{name}"))


def test_messages_are_the_same_to_the_byte() -> None:
    assert tell_messages() == read("messages")


def test_an_archive_of_then_is_read(tmp_path: Path) -> None:
    assert told_records(GOLDEN / "segment.mcap") == read("segment")
    assert told_records(write_segment(tmp_path, 1, archived())) == told_records(GOLDEN / "segment.mcap")


@pytest.mark.parametrize("name", STORED)
def test_a_session_goes_on_from_a_snapshot_of_then(name: str) -> None:
    recipe = kymo.load_recipe(name)
    snapshot = SessionSnapshot.decode((GOLDEN / f"snapshot_{name}.bin").read_bytes())
    assert (snapshot.chain, snapshot.upto, snapshot.open) == (recipe.chain.digest(learned=False), 41, 17)
    stage, whole = steps(recipe).build(), samples(recipe, 4)
    for part, memory in zip(stage.stages, snapshot.stages(), strict=True):
        part.restore(memory)
    half = snapshot.meta["half"]
    behind = made(stage, [Chunk(whole.header, half, whole.data[half:])])
    undisturbed = made(steps(recipe).build(), [whole])
    for ours, theirs in zip(behind, undisturbed[-len(behind) :], strict=True):
        assert (ours.start_index, ours.end_ns) == (theirs.start_index, theirs.end_ns)
        assert np.array_equal(ours.data, theirs.data)
    assert behind[0].start_index == 2 * recipe.window_hop


def main() -> None:
    import tempfile

    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in RECIPES:
            _write(f"recipe_{name}.json", lambda name=name: tell_recipe(name))
        for name in STORED:
            _write(f"snapshot_{name}.bin", lambda name=name: stored_half(kymo.load_recipe(name)))
        for name in BUNDLES:
            _write(f"bundle_{name}.json", lambda name=name: tell_bundle(name, Path(folder)))
        _write("messages.json", tell_messages)
        _write("segment.mcap", lambda: write_segment(Path(folder), 1, archived()).read_bytes())
        _write("segment.json", lambda: told_records(GOLDEN / "segment.mcap"))


def _write(name: str, make: Any) -> None:
    path = GOLDEN / name
    if not path.exists():
        content = make()
        path.write_bytes(content if isinstance(content, bytes) else (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
