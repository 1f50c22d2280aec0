"""Where the long campaign takes place. In: a folder, a broker of its own. Out: recipes, bundles of two kinds, workers, a log with times.

Two recipes read one input: `lab` by workers of both roles, `split` by workers of one role each. A bundle is of spectra or of raw samples
and takes 0, 50 or 500 ms a window; its quick twin, which no worker ever sees, gives the events that must be there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fault_feed import RECIPE
from fault_lab import Lab, await_that
from fuzzed import odd_record
from kafka import KafkaProducer
from onnx import TensorProto, helper
from tiny_models import manifest, onnx_bytes

from kymo.deploy import broker as embedded
from kymo.deploy.children import Child, kymo_command
from kymo.deploy.metrics_server import find_server
from kymo.models.bundle import promote, raw_chain
from kymo.models.registry import tell, write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.serving.partition import decode_record
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Array
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import ChunkError
from kymo.streams.kafka.client import client_arguments
from kymo.streams.topics import BY_NAME

#: Eight samples a column, every eight: the window of spectra is whole when the one of samples is.
_STEPS = 'step = "scale"\nfactor = 30\n[[steps]]\nstep = "spectrogram"\nnperseg = 8\nnoverlap = 0'


_LEFT_OUT = ('[[window.steps]]\nstep = "standardise"\n', 'pool = { kind = "mean", windows = 3 }\n')


_WEIGHTS = {True: [[-4.0, 0.0, 4.0], [1.0, -2.0, 1.0]], False: [[-0.04, 0.0, 0.04], [0.04, 0.01, -0.04]]}


_SHAPES = {True: (16, 2), False: (2, 5, 2)}


_LOUD = {True: (4.0, 25.0), False: (1e3, 1e9)}  # mean squares of the feed's windows, by kind


SLOW_MS = {"lab": (0, 50, 500), "split": (0, 50)}


PARTS = {"lab": ("processor,model",), "split": ("processor", "model")}


STOP_S = 20.0  # a worker that is told to end has so long


Place = tuple[str, int, int]  # topic, partition, offset


SLEPT_CLOCK = Path(__file__).with_name("slept_clock")


class Log:
    def __init__(self, path: Path, show: bool) -> None:
        self._file, self._show, self.started_s = path.open("w"), show, time.time()
        self.entries: list[tuple[float, str, str]] = []

    def __call__(self, kind: str, text: str) -> None:
        now = time.time()
        self.entries.append((now, kind, text))
        line = f"{now - self.started_s:8.2f} {kind}: {text}"
        self._file.write(line + "\n")
        self._file.flush()
        if self._show and kind in ("fault", "note", "wrong"):
            print(line, flush=True)

    def of(self, *kinds: str) -> list[str]:
        return [f"{at - self.started_s:.1f} s: {text}" for at, kind, text in self.entries if kind in kinds]

    def before(self, at_s: float, seconds: float = 30.0, kinds: tuple[str, ...] = ("fault",)) -> str:
        """What happened in the seconds before a time, the last first."""
        found = [(at, text) for at, kind, text in self.entries if kind in kinds and at_s - seconds < at <= at_s]
        return "; ".join(f"{text} ({at_s - at:.1f} s before)" for at, text in found[::-1]) or "no fault"


@dataclass
class Bundle:
    recipe: str
    id: str
    twin: Path
    raw: bool
    slow_ms: int


@dataclass
class Worker:
    child: Child
    recipe: str
    roles: str
    home: Path
    own: bool = True  # false: a second user's
    clock: Path | None = None
    started_s: float = field(default_factory=time.time)
    stopped_s: float | None = None  # since when it stands still
    told_s: float | None = None  # since when it is to end
    killed: bool = False
    seen: bool = False  # its end was looked at

    @property
    def lives(self) -> bool:
        """Whether it runs and shall go on."""
        return self.child.status is None and self.told_s is None and not self.killed

    def stop(self) -> None:
        self.stopped_s = time.time()
        self.child.send(signal.SIGSTOP)

    def go_on(self) -> None:
        if self.stopped_s is None:
            return
        if self.clock is not None:
            with self.clock.open("r+b") as file, mmap.mmap(file.fileno(), 8) as slept:
                struct.pack_into("<d", slept, 0, struct.unpack("<d", slept)[0] + time.time() - self.stopped_s)
                self.child.send(signal.SIGCONT)
        self.child.send(signal.SIGCONT)
        self.stopped_s = None

    def answer(self, path: str) -> str:
        """HTTP status of ``livez`` or ``readyz``."""
        server = find_server(self.home, "worker", self.child.pid)
        try:
            return str(urllib.request.urlopen(f"{server}/{path}", timeout=3).status) if server else "no server"
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            return type(error).__name__


def _is_refused(codec: ChunkCodec, key: bytes | None, value: bytes | None) -> bool:
    try:
        decode_record(codec, SimpleNamespace(key=key, value=value))
    except ChunkError:
        return True
    return False


class CampaignLab(Lab):
    def __init__(self, folder: Path, jars: Path, prefix: str, log: Log) -> None:
        self._data, self._jars, self.log = folder / "broker", jars, log
        self.broker = embedded.start(self._data, jars_dir=jars)
        self.away: list[tuple[float, float]] = []  # when the broker was killed or stopped, and back
        super().__init__(folder, self.broker.bootstrap, prefix)
        self.folder, self.all, self.due = folder, list[Worker](), 0  # events that were accounted for
        (folder / "recipes").mkdir()
        self.recipes = {name: folder / "recipes" / f"{name}.toml" for name in PARTS}
        self.bundles = [
            b for name in PARTS for raw in (False, True) for ms in SLOW_MS[name] for b in self._bundle(name, raw, ms)
        ]
        self.champion, self.promoted = dict[str, Bundle](), dict[str, Bundle]()
        for name in PARTS:
            self.promote(next(bundle for bundle in self.bundles if bundle.recipe == name and bundle.slow_ms == 50))

    def _bundle(self, name: str, raw: bool, slow_ms: int) -> list[Bundle]:
        text = RECIPE.replace('name = "lab"', f'name = "{name}"').replace('step = "scale"\nfactor = 0.5', _STEPS)
        for part in _LEFT_OUT:
            text = text.replace(part, "")
        self.recipes[name].write_text(text)
        loaded = load_recipe(self.recipes[name])
        chain = (raw_chain(loaded.chain) if raw else loaded.chain).to_json()
        model = {"input": "windows", "output": "logits", "shape": list(_SHAPES[raw]), "dtype": "float32"}
        model |= {"layout": "channels_last"} | ({"takes": "raw"} if raw else {})
        weights = np.array(_WEIGHTS[raw]) * (1 + slow_ms / 1000 + (name == "split") / 7)
        written = []
        for home, ms in ((self.settings.home, slow_ms), (self.folder / "twins", 0)):
            described = manifest(recipe=name, chain=chain, model=model, batch="single" if slow_ms else "any")
            onnx = slow_onnx(weights, _SHAPES[raw], _LOUD[raw], ms)
            written.append(write_bundle(None, described, {MODEL: onnx}, home, promote=False))
        return [Bundle(name, f"{name}@{written[0].name}", written[1], raw, slow_ms)]

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for worker in self.all:
            worker.child.send(signal.SIGKILL)
            worker.child.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.broker.pid, signal.SIGCONT)
        if self._asking is not None:
            self._asking.close()
        embedded.stop(self._data)

    def promote(self, bundle: Bundle) -> None:
        entry = promote(bundle.id, home=self.settings.home)
        self.champion[bundle.recipe] = bundle
        self.promoted[bundle.id] = bundle
        await_that(lambda: tell(entry, bundle.recipe, self.settings) == "", "a promotion")

    def send_odd(self, pick: random.Random, number: int) -> dict[Place, bool]:
        """Odd records on every topic; by (topic, partition, offset), whether it is one that must be rejected."""
        sent, codec = list[tuple[bool, Any]](), ChunkCodec()
        with KafkaProducer(**client_arguments(self.settings), acks="all", metrics_enabled=False) as producer:
            for index in range(number):
                name, (key, value) = odd_record(pick, index)
                key = b"" if key is None and (value is None or BY_NAME[name].compact) else key  # else Kafka refuses it
                place = pick.randrange(BY_NAME[name].partitions or self.settings.partitions)
                told = producer.send(self.names.of(name), key=key, value=value, partition=place)
                sent.append((name == "sensor" and _is_refused(codec, key, value), told))
            found = [(refused, future.get(120)) for refused, future in sent]
        return {(about.topic, about.partition, about.offset): refused for refused, about in found}

    def start(self, recipe: str, roles: str, *, other_user: bool = False, sleeps: bool = False) -> Worker:
        number, home = len(self.all), self.folder / "other-user" if other_user else self.settings.home
        changes = {
            "KYMO_HOME": str(home),
            "KYMO_REGISTRY": str(self.settings.home / "registry"),
            "KYMO_METRICS_PORT": "0",
        }
        environment, clock = self.environment() | changes, None
        if sleeps:
            clock = self.folder / f"clock-{number}"
            clock.write_bytes(bytes(8))
            path = os.pathsep.join([str(SLEPT_CLOCK), environment["PYTHONPATH"]])
            environment |= {"PYTHONPATH": path, "KYMO_TEST_SLEPT": str(clock)}
        name = f"w{number}{'u' if other_user else ''}{'c' if sleeps else ''} {recipe} {roles}"
        command = kymo_command("worker", str(self.recipes[recipe]), "--roles", roles)
        worker = Worker(
            Child(name, command, environment, lambda line: self.log(name, line)),
            recipe,
            roles,
            home,
            not other_user,
            clock,
        )
        worker.child.start()
        self.all.append(worker)
        return worker

    def living(self, recipe: str = "", roles: str = "") -> list[Worker]:
        return [w for w in self.all if w.lives and recipe in ("", w.recipe) and roles in ("", w.roles)]

    def look_after(self) -> None:
        for worker in self.all:
            if worker.seen:
                continue
            name, status = worker.child.name, worker.child.status
            took_s = time.time() - (worker.told_s or time.time())
            if status is None:
                if took_s > 2 * STOP_S:
                    self.log(
                        "wrong",
                        f"{name} did not end within {took_s:.0f} s of SIGTERM, killed: {self.last_lines(worker)}",
                    )
                    worker.killed, worker.told_s = True, None
                    worker.go_on()
                    worker.child.send(signal.SIGKILL)
                continue
            worker.seen = True
            if worker.killed and status in (-signal.SIGKILL, 0):
                continue
            if worker.told_s is None:
                # One that is started while no broker answers says so after 10 s, and ends.
                excused = status == 1 and "Unable to bootstrap" in self.last_lines(worker) and bool(self.away)
                text = f"{name} ended by itself ({worker.child.ended()}): {self.last_lines(worker)}"
                self.log("note" if excused else "wrong", text)
            elif status != 0 or took_s > STOP_S:
                excused = any(start < time.time() and worker.told_s < end for start, end in self.away)
                text = f"{name} after SIGTERM: {worker.child.ended()} after {took_s:.1f} s: {self.last_lines(worker)}"
                self.log("note" if excused else "wrong", text + (" (the broker was away)" if excused else ""))
            else:
                self.log("ended", f"{name} after {took_s:.1f} s")

    def last_lines(self, worker: Worker) -> str:
        return " | ".join(list(worker.child.tail)[-4:])[-600:]

    def kill_broker(self, away_s: float) -> None:
        began_s = time.time()
        self.away.append((began_s, float("inf")))
        os.kill(self.broker.pid, signal.SIGKILL)
        await_that(lambda: embedded.status(self._data).state == "died", "the broker's death")
        time.sleep(away_s)
        self.broker = embedded.start(self._data, self.broker.port, jars_dir=self._jars, timeout_s=180)
        self.away[-1] = (began_s, time.time() + 10)  # clients need some seconds to find it again

    def stop_broker(self, seconds: float) -> None:
        began_s = time.time()
        self.away.append((began_s, float("inf")))
        os.kill(self.broker.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.broker.pid, signal.SIGCONT)
        self.away[-1] = (began_s, time.time() + 10)


_WIDE = np.linalg.qr(np.random.default_rng(0).standard_normal((160, 160)))[0].astype(np.float32)


def slow_onnx(weights: Array, shape: Sequence[int], band: tuple[float, float], ms: float = 0.0) -> bytes:
    """Logits = means of each channel over time and bins, times ``weights`` (channels, labels); `shape` is channels last."""
    return _onnx(weights, tuple(shape), band, round(ms / _turn_ms()) if ms else 0)


def _onnx(weights: Array, shape: tuple[int, ...], band: tuple[float, float], turns: int) -> bytes:
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["windows", "inner"], ["means"], keepdims=0),
        node("MatMul", ["means", "weights"], ["quick"]),
        node("Mul", ["windows", "windows"], ["squares"]),
        node("ReduceMean", ["squares", "all"], ["level"], keepdims=0),
        node("Greater", ["level", "low"], ["above"]),
        node("Less", ["level", "high"], ["below"]),
        node("And", ["above", "below"], ["within"]),
        node("Cast", ["within"], ["ones"], to=TensorProto.INT64),
        node("ReduceSum", ["ones"], ["count"], keepdims=0),
        node("Mul", ["count", "turns"], ["trips"]),
        node("Loop", ["trips", "true", "wide"], ["last"], body=_turn()),
        node("ReduceMax", ["last"], ["top"], keepdims=0),
        node("Mul", ["top", "zero"], ["nothing"]),
        node("Add", ["quick", "nothing"], ["logits"]),
    ]
    constants = {
        "inner": np.arange(1, len(shape)),
        "all": np.arange(1, len(shape) + 1),
        "weights": weights.astype(np.float32),
        "low": np.float32(band[0]),
        "high": np.float32(band[1]),
        "turns": np.int64(turns),
        "true": np.array(True),
        "wide": _WIDE,
        "zero": np.float32(0),
    }
    return onnx_bytes(nodes, constants, {"windows": ["n", *shape]}, {"logits": ["n", weights.shape[1]]})


def _turn() -> Any:
    """One turn: a product of matrices."""
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("MatMul", ["before", "wide"], ["after"]), helper.make_node("Identity", ["going"], ["goes"])],
        "turn",
        [
            info("i", TensorProto.INT64, []),
            info("going", TensorProto.BOOL, []),
            info("before", TensorProto.FLOAT, _WIDE.shape),
        ],
        [info("goes", TensorProto.BOOL, []), info("after", TensorProto.FLOAT, _WIDE.shape)],
    )


@cache
def _turn_ms(turns: int = 400) -> float:
    """Milliseconds that one turn takes here, at best."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = _onnx(np.ones((2, 2)), (16, 2), (0, 99), turns)
    session, windows = onnxruntime.InferenceSession(graph, options), np.ones((1, 16, 2), np.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        session.run(None, {"windows": windows})
        best = min(best, time.perf_counter() - started)
    return best / turns * 1000
