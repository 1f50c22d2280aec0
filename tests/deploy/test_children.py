"""Child processes, and what follows promotions."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import linear_onnx, manifest

from kymo.deploy.children import Backoff, Child, Supervisor, kymo_environment, stop
from kymo.deploy.follow import bundle_of
from kymo.deploy.prepare import write_bytecode
from kymo.deploy.worker_log import Sparse
from kymo.models.bundle import load_bundle
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.streams.errors import BundleError
from kymo.streams.promotions import Promotion

PATIENCE_S = 30.0


def python(code: str, said: Callable[[str], None] | None = None) -> Child:
    return Child("child", [sys.executable, "-uc", code], kymo_environment({}), said)


class Lines:
    def __init__(self) -> None:
        self.all: list[str] = []
        self._came = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._came:
            self.all.append(line)
            self._came.notify_all()

    def wait_for(self, line: str) -> None:
        with self._came:
            assert self._came.wait_for(lambda: line in self.all, PATIENCE_S), self.all


def test_lines_of_both_outputs_are_passed_on_and_kept() -> None:
    lines = Lines()
    child = python("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)", lines)
    child.start()
    assert child.wait(PATIENCE_S) == 3
    assert lines.all == list(child.tail) == ["one", "two"]
    assert child.ended() == "exit status 3"


def test_stop_ends_those_that_obey_and_kills_those_that_do_not() -> None:
    lines = Lines()
    forever = "import threading; print('up'); threading.Event().wait()"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + forever
    obedient, stubborn = python(forever, lines), python(deaf, lines)
    stubborn.name = "stubborn"
    for child in (obedient, stubborn):
        child.start()
        lines.wait_for("up")
        lines.all.clear()
    assert stop([obedient, stubborn], timeout_s=0.5) == ["stubborn"]
    assert obedient.status == -signal.SIGTERM
    assert obedient.ended() == "killed by SIGTERM"
    assert stubborn.status == -signal.SIGKILL


def test_a_child_never_started_is_stopped_already() -> None:
    assert stop([python("")]) == []


def test_the_folder_of_this_process_is_no_package_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_PREFIX", "mine")
    assert kymo_environment({"KYMO_HOME": "h"})["KYMO_PREFIX"] == "mine"
    alone = kymo_environment({"KYMO_HOME": "h"}, keep=False)
    assert {name for name in alone if name.startswith("KYMO_")} == {"KYMO_HOME"}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def checked_until_dead(supervisor: Supervisor, child: Child) -> None:
    assert child.wait(PATIENCE_S) is not None
    supervisor.check()


def test_a_child_that_dies_is_started_again_ever_more_slowly() -> None:
    clock, told = Clock(), []
    child = python("import sys; sys.exit(1)")
    supervisor = Supervisor([child], told.append, Backoff(first_s=1, max_s=3, steady_s=60), clock)
    supervisor.start()
    for delay in (1, 2, 3, 3):
        checked_until_dead(supervisor, child)
        before = supervisor.restarts
        clock.now_s += delay - 0.1
        supervisor.check()
        assert supervisor.restarts == before
        clock.now_s += 0.2
        supervisor.check()
        assert supervisor.restarts == before + 1
    child.wait(PATIENCE_S)
    clock.now_s += 60  # it ran for long: the next death counts as the first
    supervisor.check()
    assert told == [f"child ended (exit status 1); starting it again in {delay} s" for delay in (1, 2, 3, 3, 1)]


def test_a_child_that_lives_is_left_alone() -> None:
    told: list[str] = []
    child = python("import threading; threading.Event().wait()")
    supervisor = Supervisor([child], told.append)
    supervisor.start()
    try:
        pid, until = child.pid, time.monotonic() + 0.3
        while time.monotonic() < until:
            supervisor.check()
        assert child.pid == pid
        assert supervisor.restarts == 0
        assert told == []
    finally:
        stop([child])


def test_bytecode_of_all_modules_and_of_what_they_import_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    assert write_bytecode(["kymo.streams.replay"]).wait(240) == 0
    written = {path.relative_to(path.parents[1]).as_posix().partition(".")[0] for path in tmp_path.rglob("*.pyc")}
    assert written >= {"replay/schedule", "replay/cli", "streams/codec", "click/core", "kafka/__init__"}


def record(text: str, *args: object, name: str = "aiokafka") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, text, args, None)


def test_the_same_again_is_held_back_and_counted() -> None:
    clock = [0.0]
    sparse = Sparse(10.0, lambda: clock[0])
    assert sparse.filter(record("no answer from %s", "a"))
    assert [sparse.filter(record("no answer from %s", "b")) for _ in range(3)] == [False] * 3
    assert sparse.filter(record("no answer from %s", "a", name="other"))
    assert sparse.filter(record("another thing"))
    clock[0] = 10.0
    last = record("no answer from %s", "c")
    assert sparse.filter(last)
    assert last.getMessage() == "no answer from c (3 more like it)"
    assert not sparse.filter(record("no answer from %s", "c"))


def test_clients_that_look_for_a_broker_leave_the_telling_to_the_worker_for_a_while() -> None:
    clock = [0.0]
    sparse, looking = Sparse(10.0, lambda: clock[0]), "Unable connect to node with id %s: %s"
    assert not sparse.filter(record(looking, 1, "refused", name="aiokafka.client"))
    assert not sparse.filter(record("Unable to request metadata from node with id %s: %r", 1, "closed"))
    assert not sparse.filter(record("Bootstrap failed", name="kafka.net.manager"))
    assert sparse.reason(1.0) == "Bootstrap failed"
    assert not sparse.filter(record("Heartbeat failed for group %s because it is rebalancing", "g"))
    assert sparse.reason(1.0) == "Bootstrap failed"
    for second in range(1, 30):
        clock[0] = float(second)
        assert not sparse.filter(record(looking, 2, "refused"))
    clock[0] = 30.0  # a broker of several that only some need, and nobody has told
    assert sparse.filter(record(looking, 2, "refused"))
    assert not sparse.filter(record(looking, 2, "refused"))  # once in a while, as all else
    sparse.away, clock[0] = True, 45.0
    assert not sparse.filter(record(looking, 2, "refused"))
    assert sparse.reason(1.0).endswith("refused")
    clock[0] = 60.0
    assert not sparse.reason(1.0)


def test_what_a_broker_has_answered_is_said() -> None:
    sparse = Sparse()
    for text, name in (
        ("Unable connect", "models"),
        ("CorruptRecord", "aiokafka.consumer.fetcher"),
        ("Topic a not found in cluster metadata", "aiokafka.cluster"),
        ("Unable connect to node with id 1: SaslAuthenticationFailed", "aiokafka"),
    ):
        assert sparse.filter(record(text, name=name))
    broken = record("Unexpected error in coordinator routine")
    broken.exc_info = (ValueError, ValueError(), None)
    assert sparse.filter(broken)


def test_what_means_nothing_is_left_out() -> None:
    assert not Sparse().filter(record("[^-BatchApp]: Missing sensor state for rebalance #%s", 1))


ONNX = linear_onnx(np.eye(3, 2))


def kept(home: Path, temperature: float) -> str:
    return load_bundle(write_bundle(None, manifest(temperature=temperature), {MODEL: ONNX}, home, promote=False)).id


def test_a_bundle_comes_from_the_own_registry_whatever_the_record_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, alien = kept(tmp_path / "own", 1), kept(tmp_path / "alien", 2)
    for place in (
        "",
        "http://127.0.0.1:9/registry",
        str(tmp_path / "alien" / "registry"),
        f"file://{tmp_path}/alien/registry",
    ):
        record = Promotion("tiny", "champion", own, time.time_ns(), place)
        assert bundle_of(record, tmp_path / "own").path.is_relative_to(tmp_path / "own")
        with pytest.raises(BundleError, match=r"is not in this worker's registry.*KYMO_REGISTRY"):
            bundle_of(Promotion("tiny", "champion", alien, time.time_ns(), place), tmp_path / "own")
    monkeypatch.setenv("KYMO_REGISTRY", str(tmp_path / "alien" / "registry"))  # the operator's word counts
    assert bundle_of(Promotion("tiny", "champion", alien, time.time_ns()), tmp_path / "own").id == alien


@pytest.mark.parametrize(
    "members",
    [
        {"bundle": "tiny@../../../etc"},
        {"bundle": "tiny@/etc"},
        {"bundle": "../x@0123"},
        {"bundle": "other@0123"},
        {"bundle": "tiny"},
        {"bundle": "tiny@"},
        {"recipe": "../tiny", "bundle": ""},
        {"recipe": "..", "bundle": "..@0123"},
        {"alias": "a\nb"},
        {"promoted_ns": 1e3},
        {"registry": []},
        {"why": {"deep": 1}},
    ],
)
def test_a_record_whose_names_lead_elsewhere_is_no_promotion(members: dict[str, object]) -> None:
    record = {"recipe": "tiny", "alias": "champion", "bundle": "tiny@0123", "promoted_ns": 1}
    assert Promotion.from_json(json.dumps(record)).bundle == "tiny@0123"
    with pytest.raises(BundleError, match="promotion: "):
        Promotion.from_json(json.dumps(record | members))
