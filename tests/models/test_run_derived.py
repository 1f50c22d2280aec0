"""`kymo run --write-derived`: the raw streams and every window as the model sees it, in one MCAP file."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mcap.reader import make_reader
from PIL import Image

import kymo
from kymo.models.bundle import load_bundle
from kymo.processors.recipe.load import load_recipe
from kymo.streams.codec import ChunkCodec
from kymo.streams.readers import read
from kymo.streams.recording import Recording

COLUMNS = ("ax", "ay", "az", "gx", "gy", "gz")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s of a random walk at 10 Hz: 8 windows of the shipped recipe."""
    path = tmp_path_factory.mktemp("derived") / "walk.csv"
    rows = np.random.default_rng(4).standard_normal((120, 6)).cumsum(0)
    np.savetxt(path, rows, "%.5f", ",", header=",".join(COLUMNS), comments="")
    return path


def run(*words: Any) -> list[dict[str, Any]]:
    done = CliRunner().invoke(kymo.cli, ["run", "basicmotions", *map(str, words)])
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [{key: value for key, value in event.items() if key != "emitted_ns"} for event in found]


def test_holds_what_the_model_saw(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.mcap"
    events = run(recording, "--write-derived", out)
    assert events == run(recording)
    recipe, codec, found = load_recipe("basicmotions"), ChunkCodec(), []
    with out.open("rb") as file:
        for _, channel, message in make_reader(file).iter_messages(topics=["kymo.spectrogram"]):
            found.append((channel.topic, message.log_time, codec.decode(message.data)))
    (raw,) = read([recording], recipe.read_options())
    stage = load_bundle("basicmotions").chain.build()
    windows = [window for chunk in raw.streams[0].chunks(7) for window in stage.push(chunk)] + stage.flush()
    assert [(topic, at) for topic, at, _ in found] == [("kymo.spectrogram", window.start_ns) for window in windows]
    assert len(windows) == len(events) == 8
    for (_, _, chunk), window in zip(found, windows, strict=True):
        assert (chunk.header.chain, chunk.session) == (window.header.chain, "walk")
        assert (chunk.stream, chunk.header.origin_ns) == ("spectrogram", window.start_ns)
        np.testing.assert_array_equal(chunk.data, window.data)


def test_a_viewer_finds_pictures_and_classes(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.mcap"
    events, labels = run(recording, "--write-derived", out), load_bundle("basicmotions").labels
    with out.open("rb") as file:
        found = [
            (channel.topic, schema.name, message.log_time, json.loads(message.data))
            for schema, channel, message in make_reader(file).iter_messages(["spectrogram", "classification"])
            if schema is not None
        ]
    classes = [
        (at, value) for topic, schema, at, value in found if (topic, schema) == ("classification", "classification")
    ]
    assert [(at, value["label"], value["probability"]) for at, value in classes] == [
        (event["end_ns"], event["label"], event["probability"]) for event in events
    ]
    for event, (at, value) in zip(events, classes, strict=True):
        assert labels[value["predicted_class_id"]] == max(event["probabilities"], key=event["probabilities"].get)
        assert (value["timestamp"], value["session"]) == ({"sec": at // 10**9, "nsec": at % 10**9}, "walk")
    pictures = [
        value for topic, schema, _, value in found if (topic, schema) == ("spectrogram", "foxglove.CompressedImage")
    ]
    assert len(pictures) == len(events)
    stage, (raw,) = (
        load_bundle("basicmotions").chain.build(),
        read([recording], load_recipe("basicmotions").read_options()),
    )
    (window, *_) = [window for chunk in raw.streams[0].chunks(7) for window in stage.push(chunk)]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]["data"]))))
    times, bins, channels = window.data.shape
    factor = pixels.shape[1] // times
    assert pixels.shape == (bins * channels * factor, times * factor)
    assert max(pixels.shape) >= 256
    low, high = window.data.min(), window.data.max()
    for time, bin_, channel in ((0, 0, 0), (times - 1, bins - 1, channels - 1), (1, 0, 1)):
        row = channel * bins + bins - 1 - bin_  # bins upwards
        expected = 255 * (window.data[time, bin_, channel] - low) / (high - low)
        assert abs(int(pixels[row * factor, time * factor]) - expected) <= 1


def test_is_a_recording_itself(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.mcap"
    events = run(recording, "--write-derived", out)
    assert run(out) == events
    (again,) = read([out], load_recipe("basicmotions").read_options())
    assert isinstance(again, Recording)
    assert [stream.header.format.stream for stream in again.streams] == ["imu"]
    assert run(out, "--write-derived", tmp_path / "again.mcap") == events
    assert (tmp_path / "again.mcap").read_bytes() == out.read_bytes()


def test_a_failure_leaves_no_file(recording: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "seen.mcap"
    done = CliRunner().invoke(kymo.cli, ["run", "basicmotions", str(recording), "--write-derived", str(nowhere)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"kymo: {nowhere}: cannot be written")
    short = tmp_path / "empty.csv"
    short.write_text(",".join(COLUMNS) + "\n")
    out = tmp_path / "seen.mcap"
    done = CliRunner().invoke(
        kymo.cli, ["run", "basicmotions", str(recording), str(short), "--write-derived", str(out)]
    )
    assert done.exit_code == 1
    assert list(tmp_path.iterdir()) == [short]
