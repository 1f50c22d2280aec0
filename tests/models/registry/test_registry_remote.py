"""A registry in an object store: it knows neither locks nor appending, and no promotion may be lost there unnoticed."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest
from tiny_models import linear_onnx, manifest

from kymo.models.bundle import load_bundle
from kymo.models.registry import CHAMPION, SHADOW, Registry, open_registry, write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.registry.store import CLAIM_S
from kymo.streams.errors import BundleError

ONNX = linear_onnx(np.eye(3, 2))


def version(home: Path, temperature: float, promote: bool = False) -> str:
    """Digest of a new version."""
    return write_bundle(None, manifest(temperature=temperature), {MODEL: ONNX}, home, promote=promote).name


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty registry in memory."""
    found = f"memory://r{uuid.uuid4().hex}/models"
    monkeypatch.setenv("KYMO_REGISTRY", found)
    return found


class Turns:
    """Lets threads take turns at the store, in an order that is drawn: one operation at a time, and always the same for a seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._changed = threading.Condition()
        self._waiting: set[str] = set()
        self._turn = ""
        self._running: set[str] = set()
        self.wall_s = 1_700_000_000.0

    def run(self, jobs: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        """What each job gives, or the BundleError that it raises."""
        found: dict[str, Any] = {}

        def work(name: str, job: Callable[[], Any]) -> None:
            try:
                found[name] = job()
            except BundleError as error:
                found[name] = error
            finally:
                with self._changed:
                    self._running.discard(name)
                    self._changed.notify_all()

        self._running = set(jobs)
        threads = [threading.Thread(target=work, args=item, name=item[0]) for item in jobs.items()]
        for thread in threads:
            thread.start()
        with self._changed:
            while self._running:
                self._changed.wait_for(lambda: not self._turn and self._waiting == self._running)
                if self._running:
                    self._turn = self._draw.choice(sorted(self._waiting))
                    self._changed.notify_all()
        for thread in threads:
            thread.join()
        return found

    def take(self) -> None:
        """Wait for this thread's turn."""
        name = threading.current_thread().name
        with self._changed:
            if name not in self._running:
                return
            self._waiting.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == name)
            self._waiting.discard(name)
            self._turn = ""

    def wall_ns(self) -> int:
        """Of a clock that goes on only while somebody waits."""
        return int(self.wall_s * 1e9)

    monotonic_ns = wall_ns

    def wait(self, seconds: float) -> None:
        """Time passes, and it is somebody's turn."""
        self.wall_s += seconds
        self.take()


class Stepped:
    """A file system whose every operation waits for its turn."""

    def __init__(self, fs: Any, turns: Turns) -> None:
        self._fs, self._turns = fs, turns

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)

        def stepped(*args: Any, **more: Any) -> Any:
            self._turns.take()
            return found(*args, **more)

        return stepped if callable(found) else found


def writer(turns: Turns, home: Path) -> Registry:
    """A registry whose operations take turns with those of others."""
    registry = open_registry(home)
    store: Any = registry.store
    store._fs, store._clock = Stepped(store._fs, turns), turns
    return registry


def names(url: str) -> list[str]:
    """All objects of a registry but bundles."""
    found = fsspec.filesystem("memory").find(url.removeprefix("memory:/"))
    return [name for name in found if "/tiny/." in name or name.endswith(".jsonl")]


@pytest.mark.parametrize("seed", range(25))
def test_of_promotions_at_the_same_moment_none_is_lost(tmp_path: Path, url: str, seed: int) -> None:
    a, b, c = (version(tmp_path, t) for t in (1, 2, 3))
    turns = Turns(seed)
    jobs: dict[str, Callable[[], Any]] = {
        "one": lambda: writer(turns, tmp_path).promote("tiny", a, why="one"),
        "two": lambda: writer(turns, tmp_path).promote("tiny", b, why="two"),
        "three": lambda: writer(turns, tmp_path).promote("tiny", c, SHADOW, why="three"),
    }
    found = turns.run(jobs)
    log = open_registry(tmp_path).log("tiny")
    told = {name for name, came in found.items() if not isinstance(came, BundleError)}
    assert {entry.why for entry in log} == told
    assert len(log) == len(told) == 3  # each waits for the other, so none has to give up
    standing = {CHAMPION: "", SHADOW: ""}
    for entry in log:
        assert entry.before == standing[entry.alias]
        standing[entry.alias] = entry.bundle
    assert not [name for name in names(url) if "claim" in name]


def test_a_claim_of_the_dead_is_not_waited_for_for_ever(tmp_path: Path, url: str) -> None:
    a, b = version(tmp_path, 1), version(tmp_path, 2)
    turns = Turns(0)
    killed = writer(turns, tmp_path)
    held = killed.store.lock("tiny")
    held.__enter__()
    begin_s = turns.wall_s
    writer(turns, tmp_path).promote("tiny", a)
    assert CLAIM_S <= turns.wall_s - begin_s < 2 * CLAIM_S
    held.__exit__(None, None, None)  # it was only slow: the claim is gone already
    assert open_registry(tmp_path).promote("tiny", b).before == f"tiny@{a}"


def test_who_is_overtaken_is_told_and_takes_its_line_back(tmp_path: Path, url: str) -> None:
    """A writer that was stopped for longer than its claim holds."""
    a, b = version(tmp_path, 1), version(tmp_path, 2)
    turns = Turns(0)
    stopped, other = writer(turns, tmp_path), writer(turns, tmp_path)
    with stopped.store.lock("tiny"):
        before = stopped.store.lines("tiny/log.jsonl")
        assert before == []
        turns.wall_s += CLAIM_S + 1
        assert other.promote("tiny", b).bundle == f"tiny@{b}"
        with pytest.raises(BundleError, match="another promotion came at the same moment; look at it, and do it again"):
            stopped.store.append("tiny/log.jsonl", [b'{"late": 1}'], before)
    log = open_registry(tmp_path).log("tiny")
    assert [entry.digest for entry in log] == [b]
    assert len(stopped.store.lines("tiny/log.jsonl")) == 1
    assert stopped.promote("tiny", a).before == f"tiny@{b}"


def test_who_waits_too_long_is_told(tmp_path: Path, url: str) -> None:
    digest = version(tmp_path, 1)
    turns = Turns(0)
    busy, patient = writer(turns, tmp_path), writer(turns, tmp_path)
    stack = [busy.store.lock("tiny")]
    stack[0].__enter__()
    wait = turns.wait

    def somebody_else(seconds: float) -> None:
        wait(seconds)
        stack[-1].__exit__(None, None, None)
        stack.append(busy.store.lock("tiny"))
        stack[-1].__enter__()

    patient.store._clock = type("Busy", (), {"wall_ns": turns.wall_ns, "wait": staticmethod(somebody_else)})()  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match="others have been promoting `tiny` for"):
        patient.promote("tiny", digest)
    assert open_registry(tmp_path).log("tiny") == []


def test_the_log_of_earlier_versions_goes_on(tmp_path: Path, url: str) -> None:
    a, b = version(tmp_path, 1, promote=True), version(tmp_path, 2)
    registry = open_registry(tmp_path)
    line = registry.store.lines("tiny/log.jsonl")[0]
    fs, root = fsspec.filesystem("memory"), url.removeprefix("memory:/")
    fs.rm(f"{root}/tiny/.log", recursive=True)
    fs.pipe_file(f"{root}/tiny/log.jsonl", line + b"\n")
    assert registry.log("tiny")[0].digest == a
    registry.promote("tiny", b)
    assert [entry.digest for entry in registry.log("tiny")] == [a, b]
    assert registry.rollback("tiny").digest == a


def test_a_bundle_is_fetched_once_and_verified(tmp_path: Path, url: str) -> None:
    digest = version(tmp_path / "one", 2, promote=True)
    bundle = load_bundle("tiny", tmp_path / "other")
    assert (bundle.temperature, bundle.path.is_relative_to(tmp_path / "other" / "cache")) == (2, True)
    store = fsspec.filesystem("memory")
    place = f"{url.removeprefix('memory:/')}/tiny/{digest}/{MODEL}"
    store.pipe_file(place, b"damaged on the way")
    assert load_bundle("tiny", tmp_path / "other").id == bundle.id  # from the cache
    with pytest.raises(BundleError, match="damaged"):
        load_bundle("tiny", tmp_path / "third")
    (bundle.path / MODEL).write_bytes(b"damaged at home")
    store.pipe_file(place, ONNX)
    assert load_bundle("tiny", tmp_path / "other").id == bundle.id  # fetched again
