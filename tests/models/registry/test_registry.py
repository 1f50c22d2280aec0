"""The registry: versions never change, aliases are what the log says, whoever writes at the same time, whoever is killed, and in an
object store, too."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest
from documents import ROOT
from tiny_models import linear_onnx, manifest

from kymo.models.bundle import find_bundle, load_bundle
from kymo.models.registry import CHAMPION, SHADOW, Registry, open_registry, write_bundle
from kymo.models.registry.manifest import MANIFEST, MODEL
from kymo.streams.errors import BundleError

ONNX = linear_onnx(np.eye(3, 2))


def version(home: Path, temperature: float, promote: bool = False) -> str:
    return write_bundle(None, manifest(temperature=temperature), {MODEL: ONNX}, home, promote=promote).name


@pytest.fixture(params=["folder", "memory"])
def home(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose registry is a folder, or a store that knows neither locks nor appending."""
    if request.param == "memory":
        monkeypatch.setenv("KYMO_REGISTRY", f"memory://r{uuid.uuid4().hex}/models")
    return tmp_path / "home"


def test_promotions_are_told_and_undone(home: Path) -> None:
    a, b, c = (version(home, t) for t in (1, 2, 3))
    registry = open_registry(home)
    assert registry.current("tiny") is None
    for digest, why in ((a, ""), (b, "better"), (c, "ünder test")):
        assert registry.promote("tiny", digest, why=why).bundle == f"tiny@{digest}"
    assert registry.promote("tiny", c) == registry.log("tiny")[-1]  # what stands already is not written again
    registry.promote("tiny", a, SHADOW)
    assert load_bundle("tiny", home).id == f"tiny@{c}"
    assert load_bundle("tiny@shadow", home).id == f"tiny@{a}"
    assert registry.rollback("tiny", why="worse").bundle == f"tiny@{b}"
    assert registry.rollback("tiny").bundle == f"tiny@{a}"
    with pytest.raises(BundleError, match="first champion"):
        registry.rollback("tiny")
    assert registry.promote("tiny", c).before == f"tiny@{a}"
    assert registry.rollback("tiny").bundle == f"tiny@{a}"
    assert registry.rollback("tiny", SHADOW).bundle == ""
    log = open_registry(home).log("tiny")
    assert [(e.action, e.alias, e.digest) for e in log] == [
        *(("promote", CHAMPION, digest) for digest in (a, b, c)),
        ("promote", SHADOW, a),
        ("rollback", CHAMPION, b),
        ("rollback", CHAMPION, a),
        ("promote", CHAMPION, c),
        ("rollback", CHAMPION, a),
        ("rollback", SHADOW, ""),
    ]
    assert [e.why for e in log[:3]] == ["", "better", "ünder test"]
    assert [e.at_ns for e in log] == sorted({e.at_ns for e in log})
    assert all(e.by for e in log)
    with pytest.raises(BundleError, match="no version tiny@ffff"):
        registry.promote("tiny", "ffff")
    with pytest.raises(BundleError, match="no bundle `tiny@shadow`"):
        find_bundle("tiny@shadow", home)


def test_what_is_not_there_is_told_with_what_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = sorted(version(home, t) for t in (1, 2))
    with pytest.raises(
        BundleError, match=f"no bundle `tiny@zzzz` in .*; the versions of `tiny` are {', '.join(digests)}"
    ):
        find_bundle("tiny@zzzz", home)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks").mkdir()  # data, say
    with pytest.raises(
        BundleError, match=r"no bundle `walks` .*the folder walks is none.*kymo train walks --data PATH"
    ):
        find_bundle("walks", home)


def test_versions_never_change(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    digest = version(home, 1)
    folder = open_registry(home).folder("tiny", digest)
    assert folder is not None
    before = (folder / MANIFEST).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2")
    write_bundle(None, manifest(temperature=1), {MODEL: ONNX}, home, {"report/report.html": b"other"}, promote=False)
    assert (folder / MANIFEST).read_bytes() == before
    assert open_registry(home).versions("tiny") == [digest]


def test_what_is_attached_is_checked_but_no_part_of_the_id(tmp_path: Path) -> None:
    paths = [
        write_bundle(tmp_path / name, manifest(), {MODEL: ONNX}, attached=more)
        for name, more in (("a", None), ("b", {"report/x.html": b"1 s"}), ("c", {"report/x.html": b"2 s"}))
    ]
    assert len({load_bundle(path).id for path in paths}) == 1
    (paths[1] / "report" / "x.html").write_bytes(b"3 s")
    with pytest.raises(BundleError, match=r"x\.html: damaged"):
        load_bundle(paths[1])


def test_the_champion_of_earlier_versions_stays(tmp_path: Path) -> None:
    digests = [version(tmp_path, t) for t in (1, 2)]
    folder = tmp_path / "registry" / "tiny"
    (folder / "current").write_text(digests[0] + "\n")
    assert load_bundle("tiny", tmp_path).id == f"tiny@{digests[0]}"
    registry = open_registry(tmp_path)
    registry.promote("tiny", digests[1])
    (folder / "current").unlink()
    assert registry.rollback("tiny").digest == digests[0]


def test_damaged_versions_are_not_promoted(tmp_path: Path) -> None:
    digest = version(tmp_path, 1)
    model = tmp_path / "registry" / "tiny" / digest / MODEL
    model.write_bytes(b"x")
    with pytest.raises(BundleError, match="damaged"):
        open_registry(tmp_path).promote("tiny", digest)
    assert version(tmp_path, 1) == digest  # written again, it is whole
    open_registry(tmp_path).promote("tiny", digest)


def test_half_a_line_is_ignored_and_closed(tmp_path: Path) -> None:
    a, b = version(tmp_path, 1, promote=True), version(tmp_path, 2)
    log = tmp_path / "registry" / "tiny" / "log.jsonl"
    with log.open("ab") as file:
        file.write(b'{"at_ns":1,"action":"prom')
    registry = open_registry(tmp_path)
    assert [e.digest for e in registry.log("tiny")] == [a]
    registry.promote("tiny", b)
    assert [e.digest for e in registry.log("tiny")] == [a, b]


def _promote_often(home: Path, digests: list[str], seed: int, times: int) -> None:
    pick = random.Random(seed)
    for number in range(times):
        alias = pick.choice([CHAMPION, SHADOW])
        open_registry(home).promote("tiny", pick.choice(digests), alias, why=f"{seed}/{number}")


def test_processes_that_promote_at_once(tmp_path: Path) -> None:
    digests = [version(tmp_path, t) for t in (1, 2, 3)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_promote_often, args=(tmp_path, digests, seed, 40)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    check_log(tmp_path)


def check_log(home: Path) -> int:
    """Every line is whole, each names what stood before it; gives their number."""
    log = open_registry(home).log("tiny")
    lines = (home / "registry" / "tiny" / "log.jsonl").read_bytes().splitlines()
    standing: dict[str, str] = {}
    for entry in log:
        assert entry.before == standing.get(entry.alias, "")
        assert entry.bundle != entry.before
        standing[entry.alias] = entry.bundle
    whole = [line for line in lines if line.endswith(b"}") and line.startswith(b"{")]
    assert len(log) == len(whole)
    assert [e.at_ns for e in log] == sorted({e.at_ns for e in log})
    return len(log)


def test_kills_in_between(tmp_path: Path) -> None:
    digests = [version(tmp_path, t) for t in (1, 2, 3)]
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = ['tests', 'tests/models/registry']\n"
        "from test_registry import _promote_often, version\n"
        f"home, digests = Path({str(tmp_path)!r}), {digests!r}\n"
        "print('ready', flush=True)\n"
        "for seed in range(10**9):\n"
        "    _promote_often(home, digests, seed, 5)\n"
        "    version(home, 1 + (int(sys.argv[1]) * 100 + seed % 50) / 1000, promote=True)\n"
    )
    pick, lines = random.Random(0), 0
    for _ in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT, stdout=subprocess.PIPE) for n in (1, 2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        target = lines + pick.randrange(10, 60)
        while len(open_registry(tmp_path).log("tiny")) < target:
            assert all(writer.poll() is None for writer in writers)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.communicate()
        lines = check_log(tmp_path)
        assert lines >= target
    for digest in open_registry(tmp_path).versions("tiny"):
        load_bundle(f"tiny@{digest}", tmp_path)
    open_registry(tmp_path).promote("tiny", version(tmp_path, 9))
    assert load_bundle("tiny", tmp_path).temperature == 9


def test_a_registry_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_REGISTRY", "nowhere://x")
    with pytest.raises(BundleError, match="KYMO_REGISTRY=nowhere://x"):
        find_bundle("tiny", tmp_path)
    monkeypatch.undo()
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot be written"):
        Registry.at(str(tmp_path / "file"), tmp_path).add({"recipe": "tiny", "digest": "0"}, {})


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
        name = threading.current_thread().name
        with self._changed:
            if name not in self._running:
                return
            self._waiting.add(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == name)
            self._waiting.discard(name)
            self._turn = ""


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
    store._fs = Stepped(store._fs, turns)
    return registry


def names(url: str) -> list[str]:
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
    assert len(log) == len(told) == 3  # who is overtaken goes on behind the other
    standing = {CHAMPION: "", SHADOW: ""}
    for entry in log:
        assert entry.before == standing[entry.alias]
        standing[entry.alias] = entry.bundle
    assert len(names(url)) == 3


def test_who_is_overtaken_goes_on_behind_the_other(tmp_path: Path, url: str) -> None:
    """A writer that was stopped between reading the log and adding to it."""
    a, b = version(tmp_path, 1), version(tmp_path, 2)
    stopped, other = open_registry(tmp_path), open_registry(tmp_path)
    store: Any = stopped.store
    read = store.lines

    def slow(path: str) -> list[bytes]:
        lines: list[bytes] = read(path)
        if not lines:
            assert other.promote("tiny", b).bundle == f"tiny@{b}"
        return lines

    store.lines = slow
    assert stopped.promote("tiny", a).before == f"tiny@{b}"
    assert [entry.digest for entry in open_registry(tmp_path).log("tiny")] == [b, a]
    assert not store.append("tiny/log.jsonl", [b'{"late": 1}'], read("tiny/log.jsonl")[:1])
    assert len(names(url)) == 2


def test_a_store_that_refuses_to_write_is_told(tmp_path: Path, url: str) -> None:
    digest = version(tmp_path, 1)
    registry = open_registry(tmp_path)
    store: Any = registry.store

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no right to write")

    store._write = refuse
    with pytest.raises(BundleError, match=r"writing .*/tiny/\.log/00000000\.jsonl: no right to write"):
        registry.promote("tiny", digest)
    assert open_registry(tmp_path).log("tiny") == []
    fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/tiny/.log/00000000.jsonl", b"no line")
    with pytest.raises(BundleError, match=r"writing .*/tiny/\.log/00000000\.jsonl: FileExistsError"):
        open_registry(tmp_path).promote("tiny", digest)  # what somebody else left there is not waited for


@pytest.mark.parametrize("answer", [TimeoutError("read timed out"), FileExistsError()])
def test_a_line_that_is_written_while_its_answer_is_lost_stands_once(
    tmp_path: Path, url: str, answer: Exception
) -> None:
    """The client's own second try is refused, as the line is there by then."""
    a, b, c = (version(tmp_path, t, promote=True) for t in (1, 2, 3))
    registry = open_registry(tmp_path)
    store: Any = registry.store
    write, other = store._write, open_registry(tmp_path)
    overtaken = False

    def lost(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        if overtaken:
            other.promote("tiny", c)
        raise answer

    store._write = lost
    assert registry.rollback("tiny").bundle == f"tiny@{b}"
    assert [(e.action, e.digest) for e in open_registry(tmp_path).log("tiny")[3:]] == [("rollback", b)]
    overtaken = True
    assert registry.rollback("tiny").bundle == f"tiny@{a}"
    last = [(e.action, e.digest) for e in open_registry(tmp_path).log("tiny")[4:]]
    assert last == [("rollback", a), ("promote", c)]
    assert len(names(url)) == 6


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
