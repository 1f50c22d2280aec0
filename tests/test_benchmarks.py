"""The comparisons run, small, and all peers find scipy's numbers. What they measure is in benchmarks/README.md."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.signal import spectrogram

from benchmarks import end_to_end, load, peer, report, truth
from benchmarks.__main__ import ALONE, main
from benchmarks.activity import forest, published
from benchmarks.animation import animation
from benchmarks.archive import TITLES, archive
from benchmarks.frames import frames
from benchmarks.listeners import GENRES, judged, planned
from benchmarks.load import Workload
from benchmarks.peer import Task
from benchmarks.peer_bare import take
from benchmarks.real_time import real_time
from benchmarks.rig import LABELS, NETWORK, Rig, recipe_text, rig
from benchmarks.slow import slow
from benchmarks.takeover import takeover
from kymo.models.onnx_model import OnnxModel
from kymo.processors.recipe.load import INSTALLED, parse_recipe
from kymo.streams.chunk_pb2 import Chunk as Message
from kymo.streams.codec import ChunkCodec

pytest.importorskip("confluent_kafka", reason="the peers need the 'bench' extra")


pytest.importorskip("quixstreams", reason="the peers need the 'bench' extra")


WORK = Workload(3)


@pytest.fixture(scope="module")
def made(broker: str) -> Iterator[Rig]:
    with rig(WORK, broker) as found:
        yield found


def truth_of(device: int, start: int) -> np.ndarray:
    """Log spectrogram (channels, time, bins) in float64, written out for the test alone."""
    window = load.samples(WORK, device, start, start + 1000).astype(np.float64)
    columns = [np.log(spectrogram(x, 500, nperseg=200, noverlap=160)[2] + 1e-6).T for x in window.T]
    return np.stack(columns)


def test_workload_sizes() -> None:
    assert (WORK.samples, WORK.events, WORK.columns, WORK.bins) == (1960, 24, 21, 101)
    assert Workload(2).sized(40e6).channel_samples == pytest.approx(40e6, rel=0.01)


def test_all_formats_carry_the_same_samples() -> None:
    codec, found = ChunkCodec(), {device: [] for device in range(8)}
    for _, value in load.chunks(WORK, 100):
        found[int(codec.decode(value).session[-1])].append(codec.decode(value).data)
    rows = [json.loads(value) for _, value in load.json_samples(WORK)]
    for device in range(8):
        expected = load.samples(WORK, device, 0, WORK.samples)
        mine = [row for row in rows if row["session"] == load.session(device)]
        assert np.array_equal(np.concatenate(found[device]), expected)
        assert np.array_equal(np.array([row["values"] for row in mine][:-1], np.float32), expected)
        assert [row["index"] for row in mine] == list(range(WORK.samples + 1))


@pytest.mark.parametrize("size", [37, 100, 500])
def test_bare_loop_gives_every_window(size: int) -> None:
    task, rings, found = Task("", "", "", "", "", WORK), {}, {}
    for _, value in load.chunks(WORK, size):
        assert Message.FromString(value).session
        found |= {(name, start): window for name, start, window in take(task, rings, value)}
    assert set(found) == set(itertools.product(map(load.session, range(8)), (0, 480, 960)))
    for (name, start), window in found.items():
        assert np.array_equal(window, load.samples(WORK, int(name[-1]), start, start + 1000))


def test_peers_give_scipys_spectrogram() -> None:
    windows = np.stack([load.samples(WORK, 2, start, start + 1000) for start in (0, 480)])
    expected = np.stack([truth_of(2, 0), truth_of(2, 480)])
    assert peer.batched(WORK, windows).shape == (2, 12, 21, 101)
    assert np.abs(peer.batched(WORK, windows) - expected).max() < 2e-3  # float32
    for window, right in zip(windows, expected, strict=True):
        assert np.allclose(peer.by_channel(WORK, window.astype(np.float64))[0], right, atol=1e-6)


def test_kymo_gives_scipys_spectrogram() -> None:
    stage, codec, found = parse_recipe(recipe_text("shape", WORK)).chain.build(), ChunkCodec(), {}
    for key, value in load.chunks(WORK, 100):
        if key == load.session(2):
            found |= {window.start_index: window.data for window in stage.push(codec.decode(value))}
    assert list(found) == [0, 480, 960]
    for start, data in found.items():
        assert np.abs(data.transpose(2, 0, 1) - truth_of(2, start)).max() < 2e-3


def test_animation() -> None:
    rows = animation(1)
    assert [row["peer"].partition(",")[0] for row in rows] == ["Kymo", "Kymo", "matplotlib"]
    assert rows[0]["kymo_is_faster_by"] == 1


def test_what_is_planted_in_listeners() -> None:
    for effect in (True, False):
        calm, *clips = planned(np.random.default_rng(1), effect)
        assert sorted(clip.label for clip in clips) == sorted(2 * GENRES)
        for clip in clips:
            i = GENRES.index(clip.label)
            assert clip.scr_per_min == pytest.approx(calm.scr_per_min * (0.67, 1, 1.5)[i] ** effect)
            assert clip.heart_rate == pytest.approx(calm.heart_rate + (-5, 0, 5)[i] * effect)


@pytest.mark.slow
def test_listeners() -> None:
    for needed in ("neurokit2", "torch", "sklearn"):
        pytest.importorskip(needed)
    text = (INSTALLED / "listener.toml").read_text()
    recipe = parse_recipe(text.replace("folds = 3", "folds = 0").replace("epochs = 10", "epochs = 1"))
    rows = judged(recipe, True, (2, 2), 80)
    assert [row["n"] for row in rows] == [12] * 3
    assert rows[1]["accuracy"] == 1  # what a classifier on rates beside the own tells
    assert report.table("listeners", rows).count("\n") == 4


def test_network_is_the_same_in_any_batch() -> None:
    model = OnnxModel(NETWORK, "windows", "logits")
    assert model.shape == (WORK.channels, WORK.columns, WORK.bins)
    assert model.invariant(model.shape, "float32")


def test_wrong_events_are_found_out() -> None:
    right = truth.expected(WORK, 1, 480)
    event = {"session": "sensor-1", "start_index": 480, "label": max(right, key=right.__getitem__)}
    assert truth.compare(WORK, [event | {"probabilities": right}]) == 0
    wrong = right | {LABELS[0]: right[LABELS[0]] + 1e-3}
    with pytest.raises(RuntimeError, match="sensor-1 at 480"):
        truth.compare(WORK, [event | {"probabilities": wrong}])
    with pytest.raises(RuntimeError, match="sensor-1 at 960"):
        truth.compare(WORK, [event | {"start_index": 960, "probabilities": right}])


@pytest.mark.chaos  # `test_another_checkout_beside_this_one` goes the same way
def test_throughput(made: Rig) -> None:
    small = tuple(end_to_end.Entry(e.title, e.peer, e.chunk) for e in end_to_end.ENTRIES)
    rows = end_to_end.throughput(made, WORK, 1, small)
    assert [row["windows"] for row in rows] == [24] * 6
    assert all(row["rate"] > 0 and row["pss_mb"] > 0 for row in rows)
    assert report.table("throughput", rows).count("\n") == 7


@pytest.mark.slow
def test_another_checkout_beside_this_one(made: Rig, tmp_path: Path) -> None:
    other, told = tmp_path / "other", tmp_path / "told"
    other.mkdir()
    for name in ("kymo", "recipes", "streams", "processors", "models", "lab", "deploy", "examples"):
        (other / name).symlink_to(report.ROOT / name)
    (other / "sitecustomize.py").write_text(f"with open({str(told)!r}, 'a') as file:\n    file.write('started ')\n")
    rows, ratios = end_to_end.beside(made, WORK, other, 1).values()
    assert told.read_text() == "started " * 2  # the other's worker, once for each size of chunks
    assert [row["windows"] for row in rows] == [24] * 6
    for i, ratio in enumerate(ratio for ratio in ratios if ratio["of"] == "the clock"):
        here, there, bare = (row["rate"] for row in rows[3 * i : 3 * i + 3])
        assert ratio["here_there"] == pytest.approx(here / there, rel=1e-3)
        assert (ratio["here_bare"], ratio["there_bare"]) == pytest.approx((here / bare, there / bare), rel=1e-3)
    assert report.table("throughput", rows).count("\n") == 7
    assert report.table("beside", ratios).count("\n") == 5


def test_a_comparison_is_shown_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"dtype": "float32", "peer": "a", "windows_per_s": 1234.4}, {"dtype": "float32", "peer": "b"}]
    monkeypatch.setitem(ALONE, "kernels", lambda extent: rows * extent.rounds)
    result = CliRunner().invoke(main, ["kernels", "--rounds", "1", "--out", str(tmp_path / "out" / "a.json")])
    assert "| - | float32 | a | 1,234 | - | - |\n| - | float32 | b | - | - | - |\n" in result.output
    assert json.loads((tmp_path / "out" / "a.json").read_text())["kernels"] == rows


def test_other_ways_to_tell_an_activity() -> None:
    pytest.importorskip("tensorflow")
    classes = np.arange(60) % 2
    windows = np.random.default_rng(0).normal(classes[:, None, None] * 3, 1, (60, 9, 34)).astype(np.float32)
    assert np.array_equal(forest(windows[:40], classes[:40], windows[40:]), classes[40:])
    assert published(windows[:40], classes[:40], windows[40:], epochs=60).tolist() == classes[40:].tolist()


def test_beside_wants_a_checkout(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["throughput", "--beside", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path} is no checkout of Kymo: it has no folder `streams`" in result.output.replace("\n", " ")


@pytest.mark.chaos  # `test_another_checkout_beside_this_one` goes the same way
def test_workers_and_devices(made: Rig) -> None:
    assert [row["workers"] for row in end_to_end.workers(made, WORK, 1, (2,))] == [2]
    rows = end_to_end.devices(made, WORK, 1, (3,))
    assert [(row["devices"], row["peer"]) for row in rows] == [(3, "kymo"), (3, "bare")]
    assert report.table("devices", rows).count("\n") == 3


@pytest.mark.chaos  # `test_another_checkout_beside_this_one` goes the same way
def test_real_time(made: Rig) -> None:
    (row,) = real_time(made, WORK, 10.0, ("kymo",))
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert row["windows"] > 0
    assert {"p99", "MB"} <= set(
        (report.table("latency", [row]) + report.table("memory", [row])).replace(",", "").split()
    )


@pytest.mark.chaos
def test_takeover(made: Rig) -> None:
    rows = takeover(made, WORK, 1, 5)
    assert [row["sessions"] for row in rows] == [0, 5]
    assert report.table("takeover", rows).count("\n") == 3


@pytest.mark.broker
@pytest.mark.slow
def test_slow(made: Rig) -> None:
    """What comes out of a slow step is compared, in order, and what does not is counted."""
    rows = slow(made, 4, 8.0)
    assert [row["step"] for row in rows] == ["waits", "computes"]
    assert rows[0]["out"] > 0
    assert report.table("slow", rows).count("\n") == 3


@pytest.mark.broker
@pytest.mark.slow
def test_frames(made: Rig) -> None:
    """A worker with windows of 12 MB stays under 1 GB, whatever the frames are."""
    rows = frames(made, 16)  # three windows; each event is compared with its pixels
    assert [(row["frames"], row["windows"]) for row in rows] == [("jpeg", 3), ("uint8", 3)]
    assert all(row["peak_mb"] < 1000 for row in rows)
    assert report.table("frames", rows).count("\n") == 3


pytest.importorskip("confluent_kafka", reason="the peers need the 'bench' extra")


TWO = Workload(2)


@pytest.mark.slow
def test_every_peer_takes_every_record(broker: str) -> None:
    with rig(TWO, broker) as made:
        rows = archive(made, TWO, 1, live_s=0.1)
    assert [row["peer"] for row in rows[:3]] == list(TITLES.values())
    assert all(row["mb_s"] > 0 and row["mb_cpu_s"] > 0 for row in rows)
    sent = rows[0]["sent_mb"]
    assert rows[2]["file_mb"] == pytest.approx(sent)  # the plain bytes, and nothing else
    assert report.table("archive", rows).count("\n") == 5
