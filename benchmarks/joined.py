"""Four signals at four rates, joined live, as they come or conditioned. In: a Rig. Out: a worker's share of a core, and milliseconds from
the sending of the last chunk that a window needs to its event's arrival.

Each session sends EDA and temperature at 4 Hz, BVP at 64 Hz, pupil at 60 Hz, in chunks of 100 ms (of one sample where that is less),
when a device would. The model is the mean of each channel times weights, so that what is measured is the join and its delivery; and of
SIMULATED listeners (ten people, each several times) the steps and features of the recipe `stress`, beside repaired pupils.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.child import alive, processor_s
from benchmarks.drain import await_ready
from benchmarks.load import ORIGIN_NS, send_at_pace
from benchmarks.real_time import Observer, percentiles
from benchmarks.report import Row
from benchmarks.rig import LABELS, Deployed, Rig, network_of_means
from benchmarks.truth import compare_means
from kymo.deploy.children import Child
from kymo.lab.synth.listeners import simulate
from kymo.models.bundle import load_bundle
from kymo.models.predict import Classifier, Predictor
from kymo.processors.recipe.load import INSTALLED
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.topics import Names

#: By stream, samples a second, how it is sampled, and samples a chunk.
_STREAMS = {"eda": (4, "linear", 1), "bvp": (64, "block", 6), "temperature": (4, "linear", 1), "pupil": (60, "mean", 6)}
_TICK_HZ, _LENGTH, _HOP = 4, 40, 4  # ticks
_WARM_UP_S, _PATIENCE_S = 15.0, 120.0
_TOLERANCE = 1e-4
_EARLY_S = 0.002  # chunks that are due so soon are sent together
#: Ticks hold a block of so many samples, or one.
_CHANNELS = sum(rate // _TICK_HZ if sample == "block" else 1 for rate, sample, _ in _STREAMS.values())
_WEIGHTS = np.random.default_rng(7).standard_normal((_CHANNELS, len(LABELS))).astype(np.float32)
_PUPIL = '[[input]]\nstream = "pupil"\nrate_hz = 60\nchannels = ["pupil"]\n[[input.steps]]\nstep = "repair"\n'
_PEOPLE, _LOOKED_AT = 10, 5  # simulated; one in so many sessions is compared
Place = tuple[str, str, int]  # session, stream and number of a chunk
Message = tuple[float, str, Place, bytes]
Data = Mapping[tuple[int, str], NDArray[np.float32]]  # by number of the session, and stream


def _recipe(name: str) -> str:
    inputs = "".join(
        f'[[input]]\nstream = "{stream}"\nrate_hz = {rate}\nchannels = ["{stream}"]\nsample = "{sample}"\n'
        for stream, (rate, sample, _) in _STREAMS.items()
    )
    window = f"[window]\nlength_s = {_LENGTH / _TICK_HZ}\nhop_s = {_HOP / _TICK_HZ}\n"
    join = f'[join]\nrate_hz = {_TICK_HZ}\ngrid = "eda"\n'
    return f'name = "{name}"\n{inputs}{join}{window}[model]\narchitecture = "minirocket"\n'


def samples(number: int, stream: str, count: int) -> NDArray[np.float32]:
    """The first samples of a session's stream: ``(count, 1)``."""
    random = np.random.default_rng([number, list(_STREAMS).index(stream)])
    return random.standard_normal((count, 1)).astype(np.float32)


def _sends(sessions: int, seconds: float) -> Iterator[tuple[float, str, int, int]]:
    """When each chunk is due, s since the start, in order: time, stream, number of the chunk, session."""
    sends = [
        ((number + 1) * size / rate + i / sessions * 0.1, stream, number, i)
        for stream, (rate, _, size) in _STREAMS.items()
        for number in range(int(seconds * rate / size))
        for i in range(sessions)
    ]
    yield from sorted(sends)


def joined(rig: Rig, sessions: int = 100, seconds: float = 60.0) -> list[Row]:
    """A worker that joins so many sessions at their pace."""
    recipe = rig.write(f"joined{sessions}", _recipe(f"joined{sessions}"))
    data = {(i, s): samples(i, s, int(seconds * _STREAMS[s][0])) for i in range(sessions) for s in _STREAMS}
    deployed = recipe, rig.bundle(recipe, network_of_means(recipe, _WEIGHTS))
    cores, events, sent_s, tail = _live(rig, deployed, data, sessions, seconds)
    _compare([event for _, event in events], sessions, seconds, tail)
    latencies_ms = [
        1000 * (at_s - _complete_s(sent_s, event))
        for at_s, event in events
        if event["start_index"] / _TICK_HZ > _WARM_UP_S - _LENGTH / _TICK_HZ
    ]
    figures = {"sessions": sessions, "windows": len(events), "cores": cores}
    return [figures | percentiles(latencies_ms)]


def conditioned(rig: Rig, sessions: int = 100, seconds: float = 150.0) -> list[Row]:
    """A worker that conditions the signals of so many sessions at their pace, too; its events must be those of the chain alone.

    Windows are of 60 s, and responses are known 30 s late: what is shorter than 100 s gives no event.
    """
    text = (INSTALLED / "stress.toml").read_text().partition("[model]")[0]
    text = text.replace('[[window.steps]]\nstep = "standardise"\n', "").replace("[join]", f"{_PUPIL}[join]")
    name = f"conditioned{sessions}"
    recipe = rig.write(
        name, text.replace('name = "stress"', f'name = "{name}"') + '[model]\narchitecture = "minirocket"\n'
    )
    width = recipe.output_format().shape[-1]
    weights = np.random.default_rng(7).standard_normal((width, len(LABELS))).astype(np.float32) / 100
    people = [simulate(seconds, seed, 4 + seed / 2, 60 + 3 * seed) for seed in range(min(_PEOPLE, sessions))]
    data = {(i, s): people[i % len(people)][s][:, None].astype(np.float32) for i in range(sessions) for s in _STREAMS}
    deployed = recipe, rig.bundle(recipe, network_of_means(recipe, weights))
    expected, found = _expected(deployed, data, range(0, sessions, _LOOKED_AT), sessions, seconds), dict[str, float]()
    cores, events, sent_s, tail = _live(rig, deployed, data, sessions, seconds, expected)
    for at_s, event in events:
        if event["id"] in found or expected.get(event["id"], ("",))[0] not in ("", event | {"emitted_ns": 0}):
            raise RuntimeError(f"{event['id']} came twice, or is another than the chain alone gives\n{tail}")
        found[event["id"]] = at_s
    if not expected or expected.keys() - found.keys():
        raise RuntimeError(f"{len(expected)} events expected of some sessions, {len(found)} came of all\n{tail}")
    latencies_ms = [1000 * (found[name] - sent_s[place]) for name, (_, place) in expected.items()]
    return [{"sessions": sessions, "windows": len(events), "cores": cores} | percentiles(latencies_ms)]


def _live(
    rig: Rig, deployed: Deployed, data: Data, sessions: int, seconds: float, awaited: Collection[str] = ()
) -> tuple[float, list[tuple[float, dict[str, Any]]], dict[Place, float], str]:
    """A worker's share of a core, its events with the times of their coming, when each chunk was sent, and what the worker said."""
    prefix = f"bench-{deployed[0].name}"
    names, child = rig.names(prefix), rig.worker(deployed, prefix)
    producer = rig.producer(**{"linger.ms": 5, "socket.nagle.disable": True})
    messages, since = _messages(names, data, sessions, seconds), list[float]()  # processor time of the warm-up
    with alive([child]):
        await_ready([child], rig.settings.home)
        observer = Observer(rig.settings.brokers, f"{prefix}.events")
        sent_s = send_at_pace(producer, _watched(messages, child, since), _EARLY_S)
        give_up_s = time.perf_counter() + _PATIENCE_S
        while {*awaited} - {event["id"] for _, event in observer.events} and time.perf_counter() < give_up_s:
            time.sleep(0.5)
        # Of the data's time: who is late needs no less.
        cores = (processor_s(child.pid) - since[0]) / (seconds - _WARM_UP_S)
        time.sleep(2)
        tail = "\n".join(child.tail)
    observer.close()
    return cores, observer.events, sent_s, tail


def _messages(names: Names, data: Data, sessions: int, seconds: float) -> list[Message]:
    """What is sent, made before the clock runs: what measures must not be what is short of time."""
    codec, heads = ChunkCodec(), _heads(data)
    return [
        (due_s, names.for_stream(stream), (heads[i, stream].session, stream, number), codec.encode(chunk))
        for due_s, stream, number, i in _sends(sessions, seconds)
        for chunk in [_chunk(heads[i, stream], data[i, stream], number)]
    ]


def _heads(data: Data) -> dict[tuple[int, str], Header]:
    return {(i, s): Header(f"person-{i}", ORIGIN_NS, signal_format(s, (s,), _STREAMS[s][0])) for i, s in data}


def _chunk(head: Header, data: NDArray[np.float32], number: int) -> Chunk:
    size = _STREAMS[head.format.stream][2]
    return Chunk(head, number * size, data[number * size : (number + 1) * size])


def _expected(
    deployed: Deployed, data: Data, numbers: range, sessions: int, seconds: float
) -> dict[str, tuple[dict[str, Any], Place]]:
    """By id, the events of some sessions as the chain alone gives them, and the chunk with which each became whole."""
    recipe, path = deployed
    predictor, heads = Predictor(Classifier.for_recipe(load_bundle(path), recipe), recipe), _heads(data)
    stages, memories = {i: recipe.chain.build() for i in numbers}, {i: list[Any]() for i in numbers}
    expected = {}
    for _, stream, number, i in _sends(sessions, seconds):
        if i not in stages:
            continue
        windows = stages[i].push(_chunk(heads[i, stream], data[i, stream], number))
        for (event,) in predictor.predict(windows, [memories[i]] * len(windows)):
            expected[event.id] = json.loads(event.to_json(0)), (event.session, stream, number)
    return expected


def _watched(messages: list[Message], child: Child, since: list[float]) -> Iterator[Message]:
    """The messages; notes the worker's processor time at the end of the warm-up."""
    for message in messages:
        if not since and message[0] > _WARM_UP_S:
            since.append(processor_s(child.pid))
        yield message


def _complete_s(sent_s: dict[tuple[str, str, int], float], event: dict[str, Any]) -> float:
    """When the last chunk was sent that an event's window needs."""
    tick = event["start_index"] + _LENGTH - 1
    needed = {
        stream: tick if sample == "linear" else (tick + 1) * (rate // _TICK_HZ) - 1
        for stream, (rate, sample, _) in _STREAMS.items()
    }
    return max(sent_s[event["session"], stream, index // _STREAMS[stream][2]] for stream, index in needed.items())


def _compare(events: list[dict[str, Any]], sessions: int, seconds: float, tail: str) -> None:
    """Fail where a window is missing, comes twice, or is another than numpy finds."""
    ids = {event["id"] for event in events}
    most = int((seconds * _TICK_HZ - _LENGTH) // _HOP) * sessions
    if len(ids) != len(events) or len(events) < most:
        raise RuntimeError(f"{len(events)} events of {len(ids)} windows, expected {most}\n{tail}")
    for event in events[:: max(1, len(events) // 200)]:
        number, ticks = int(event["session"].rpartition("-")[2]), event["start_index"] + np.arange(_LENGTH)
        columns = []
        for stream, (rate, sample, _) in _STREAMS.items():
            each = rate // _TICK_HZ
            rows = samples(number, stream, int(seconds * rate))[: (ticks[-1] + 1) * each].reshape(-1, each)[ticks]
            columns.append(rows.mean(1, keepdims=True) if sample == "mean" else rows)
        compare_means(event, np.hstack(columns).astype(np.float64).mean(0), _WEIGHTS, _TOLERANCE)
