"""Experiment JSON as input: which files it leads to, what is told where nothing is found, results written to a copy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes_made import MINIROCKET, recipe_text
from verbs import invoke

import kymo
from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.readers.files import find_experiment, load_experiment, write_results
from kymo.streams.recording import ReadOptions
from kymo.streams.replay.cli import choose

OPTIONS = ReadOptions(label_key="level")


def recording(path: Path, classes: str = "0", seconds_each: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random, rows, events = np.random.default_rng(len(path.name)), ["t,x"], []
    for k, name in enumerate(classes):
        events.append(
            {
                "startTime": {"sec": k * seconds_each, "nsec": 0},
                "endTime": {"sec": (k + 1) * seconds_each, "nsec": 0},
                "metadata": {"level": int(name), "": ""},
            }
        )
        rows += [
            f"{k * seconds_each + i / 10},{float(name) * 5 + random.normal():.4f}" for i in range(10 * seconds_each)
        ]
    path.write_text("\n".join(rows) + "\n")
    path.with_suffix(".labels.json").write_text(json.dumps({"events": events}))
    return path


def experiment(path: Path, *label_files: str, dirname: str | None = None, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = {"labelFiles": [{"filePath": name} for name in label_files]} if label_files else {}
    named = {} if dirname is None else {"dirname": dirname}
    path.write_text(json.dumps(named | listed | more))
    return path


@pytest.mark.parametrize(
    ("at", "dirname", "named"),
    [
        ("e.json", "set", "rec.labels.json"),  # in dirname, beside the JSON
        ("e.json", "set", "set/rec.labels.json"),  # from the JSON's folder
        ("set/e.json", "set", "rec.labels.json"),  # beside the JSON
        ("set/e.json", "set", "projects/other/data/set/rec.labels.json"),  # written on another machine
        ("set/e.json", "/elsewhere/set", "/elsewhere/set/rec.labels.json"),
        ("set/e.json", "C:\\data\\set", "C:\\data\\set\\rec.labels.json"),
        ("plans/e.json", "set", "set/rec.labels.json"),  # from the folder above
        ("plans/e.json", "../set", "rec.labels.json"),
        ("plans/deep/e.json", "", "../../set/rec.labels.json"),
    ],
)
def test_where_a_label_file_is_found(tmp_path: Path, at: str, dirname: str, named: str) -> None:
    recording(tmp_path / "set" / "rec.csv", "01")
    path = experiment(tmp_path / at, named, dirname=dirname)
    (found,) = read([path], OPTIONS)
    assert found.session == "rec"
    assert [(label.start_ns, label.end_ns, label.label) for label in found.labels] == [
        (0, 4 * 10**9, "0"),
        (4 * 10**9, 8 * 10**9, "1"),
    ]
    assert os.path.samefile(found.path, tmp_path / "set" / "rec.csv")


def test_the_longest_part_of_a_path_that_is_there_counts(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        recording(tmp_path / folder / "rec.csv")
    path = experiment(tmp_path / "e.json", "x/a/rec.labels.json", "x/b/rec.labels.json", dirname=".")
    assert [Path(one.path).parent.name for one in find_experiment(load_experiment(path))] == ["a", "b"]
    assert [one.session for one in read([path], OPTIONS)] == [f"{tmp_path.name}-a-rec", f"{tmp_path.name}-b-rec"]


def test_a_recording_may_stand_apart_from_its_labels(tmp_path: Path) -> None:
    recording(tmp_path / "data" / "rec.csv")
    (tmp_path / "data" / "rec.labels.json").rename(tmp_path / "rec.labels.json")
    (found,) = read([experiment(tmp_path / "e.json", "rec.labels.json", dirname="data")], OPTIONS)
    assert (len(found.labels), Path(found.path).parent.name) == (1, "data")


def test_without_label_files_all_of_the_folder_counts(tmp_path: Path) -> None:
    for name in ("two", "one"):
        recording(tmp_path / "set" / f"{name}.csv")
    for at in ("e.json", "set/e.json", "plans/e.json"):
        found = list(read([experiment(tmp_path / at, dirname="set")], OPTIONS))
        assert [(one.session, len(one.labels)) for one in found] == [("one", 1), ("two", 1)]


def test_only_what_is_listed_counts_and_in_its_order(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        recording(tmp_path / f"{name}.csv")
    path = experiment(tmp_path / "e.json", "c.labels.json", "a.labels.json", dirname=".")
    assert [one.session for one in read([path], OPTIONS)] == ["c", "a"]


def test_everything_is_read_from_a_url() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    event = {"startTime": {"sec": 0, "nsec": 0}, "endTime": {"sec": 2, "nsec": 0}, "metadata": {"level": 2}}
    memory.pipe("/exp/set/rec.csv", b"t,x\n" + b"".join(b"%.1f,1\n" % (i / 10) for i in range(20)))
    memory.pipe("/exp/set/rec.labels.json", json.dumps({"events": [event]}).encode())
    listed = [{"filePath": "projects/set/rec.labels.json"}]
    memory.pipe("/exp/e.json", json.dumps({"dirname": "set", "labelFiles": listed}).encode())
    memory.pipe("/exp/whole.json", json.dumps({"dirname": "set"}).encode())
    for name in ("e", "whole"):
        (found,) = read([f"memory://exp/{name}.json"], OPTIONS)
        assert [(one.label, one.end_ns) for one in found.labels] == [("2", 2 * 10**9)]
        assert found.streams[0].count == 20
    (plain,) = read(["memory://exp/set/rec.csv"], OPTIONS)
    assert len(plain.labels) == 1
    memory.pipe("/exp/lost.json", json.dumps({"labelFiles": [{"filePath": "no.labels.json"}]}).encode())
    with pytest.raises(
        SourceError, match=r"memory://exp/lost.json: labelFiles names `no.labels.json`, which is nowhere"
    ):
        list(read(["memory://exp/lost.json"], OPTIONS))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON ("),
        ("[]", "is no experiment JSON: expected"),
        ('{"events": []}', "labels alone are found beside their recording"),
        ('{"dirname": 3}', "`dirname` is 3, expected a folder's name"),
        ('{"dirname": "set", "segments": 1}', "`segments` is no list of objects"),
        ('{"labelFiles": {}}', "`labelFiles` is {}, expected a list"),
        ('{"dirname": "set", "description": 3}', "`description` is 3, expected a text"),
        ('{"dirname": "set", "metadata": [1]}', "`metadata` is [1], expected a table"),
        (
            '{"dirname": "set", "metadata": {"classification_type": 1}}',
            "`metadata.classification_type` is 1, expected a text",
        ),
        (
            '{"dirname": "set", "metadata": {"sample_rate": 0}}',
            "`metadata.sample_rate` is 0, expected a number above 0 to 1000000000",
        ),
        (
            '{"dirname": "set", "metadata": {"total_duration_s": NaN}}',
            "`metadata.total_duration_s` is nan, expected a number from 0 to 1000000000",
        ),
        (
            '{"dirname": "set", "metadata": {"distortion_levels": ["none", "medium"]}}',
            "`metadata.distortion_levels` is ['none', 'medium'], expected a list of none, low, high",
        ),
        (
            '{"dirname": "set", "segments": [{}, {"mag_distortion": {"level": "much"}}]}',
            "`segments[1].mag_distortion.level` is 'much', expected one of none, low, high",
        ),
        (
            '{"dirname": "set", "segments": [{"magnetic_distortion": -1}]}',
            "`segments[0].magnetic_distortion` is -1, expected a number from 0",
        ),
        ('{"labelFiles": [{"path": "x"}]}', "labelFiles[0] is {'path': 'x'}, expected"),
        ('{"labelFiles": [], "dirname": ""}', "names neither `labelFiles` nor `dirname`"),
        ('{"dirname": "absent"}', "`dirname` is absent, which is no folder: looked for HERE/absent, "),
        ('{"dirname": "empty"}', "empty holds no recording (.mcap, "),
        (
            '{"dirname": "set", "labelFiles": [{"filePath": "p/no.labels.json"}]}',
            "labelFiles names `p/no.labels.json`, which is nowhere: looked for HERE/p/no.labels.json, HERE/set/p/no.labels.json, ",
        ),
        ('{"labelFiles": [{"filePath": "alone.labels.json"}]}', "no recording alone.mcap (or .parquet, "),
        (
            '{"labelFiles": [{"filePath": "x/rec.labels.json"}, {"filePath": "rec.labels.json"}]}',
            "`x/rec.labels.json` and `rec.labels.json` both lead to HERE/rec.labels.json",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    recording(tmp_path / "rec.csv")
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone.labels.json").write_text("{}")
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(SourceError) as error:
        list(read([path], OPTIONS))
    assert str(error.value).startswith(f"{path}: ")
    assert said.replace("HERE", str(tmp_path)) in str(error.value)


#: As the published tool writes it, and its README shows it; the oldest ones name the data instead of the labels.
PUBLISHED: dict[str, Any] = {
    "dirname": "synthetic_datasets/training_sequence_0",
    "labelFiles": [
        {"filePath": "projects/nst/data/synthetic_datasets/training_sequence_0/training_sequence_0.labels.json"}
    ],
    "description": "Synthetic dataset: training_sequence_0",
    "segments": [
        {
            "name": "high_motion_0",
            "duration_s": 6.942836128288839,
            "rotation_rpy_degrees": {
                "roll": 1.5799431492871534,
                "pitch": -6.920307915411698,
                "yaw": -77.28209866177114,
            },
            "magnetic_distortion": 2.115377702012322,
            "mag_distortion": {"level": "high"},
        },
        {
            "name": "none_motion_1",
            "duration_s": 18.26988031964769,
            "rotation_rpy_degrees": {"roll": 18.08781247960689, "pitch": 6.5994098443636915, "yaw": 81.38743907152028},
            "magnetic_distortion": 0.0,
            "mag_distortion": {"level": "none"},
        },
    ],
    "metadata": {
        "generated_by": "synthetic_data.py",
        "sample_rate": 100,
        "total_duration_s": 600.6333273280001,
        "classification_type": "mag_distortion",
        "distortion_levels": ["none", "high", "low"],
    },
}


@pytest.mark.parametrize("at", ["", "training_sequence_0", "synthetic_datasets/training_sequence_0"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_published_experiment_is_read_as_it_is(tmp_path: Path, at: str, listed: bool) -> None:
    folder = tmp_path / at
    folder.mkdir(parents=True, exist_ok=True)
    written = {"initialization": {"sample_rate": 100}, "segments": PUBLISHED["segments"]}
    kymo.synth(written, folder / "training_sequence_0.mcap", folder / "training_sequence_0.labels.json")
    shown = (
        PUBLISHED
        if listed
        else {k: v for k, v in PUBLISHED.items() if k != "labelFiles"} | {"dataFilePath": "x/y.mcap"}
    )
    if not listed and not at:
        return  # a folder is only found by its name
    (tmp_path / "e.json").write_text(json.dumps(shown))
    (recording,) = read([tmp_path / "e.json"], ReadOptions(label_key="mag_distortion"))
    assert [(label.start_ns, label.label) for label in recording.labels] == [(0, "2"), (6_950_000_000, "0")]
    assert load_experiment(tmp_path / "e.json").content == shown


def test_an_experiment_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        list(read([tmp_path / "e.json"], OPTIONS))


def test_results_go_into_a_copy_that_leads_to_the_same_files(tmp_path: Path) -> None:
    recording(tmp_path / "set" / "rec.csv")
    listed = {"filePath": "projects/set/rec.labels.json", "note": "kept"}
    more = {"segments": [{"name": "one"}], "metadata": {"sample_rate": 10}, "labelFiles": [listed]}
    path = experiment(tmp_path / "set" / "e.json", dirname="set", **more)
    before = json.loads(path.read_text())
    loaded = load_experiment(path)
    assert (loaded.metadata, loaded.segments) == ({"sample_rate": 10}, ({"name": "one"},))
    (tmp_path / "out" / "deep").mkdir(parents=True)
    for out in (tmp_path / "set" / "beside.json", tmp_path / "out" / "deep" / "far.json"):
        write_results(loaded, out, {"accuracy": 0.5})
        made = json.loads(out.read_text())
        assert made.pop("results") == {"accuracy": 0.5}
        far = "../../set/rec.labels.json" if out.name == "far.json" else listed["filePath"]
        assert made == before | {"labelFiles": [{"filePath": far, "note": "kept"}]}
        assert [os.path.samefile(one.path, tmp_path / "set" / "rec.csv") for one in read([out], OPTIONS)] == [True]
    assert json.loads(path.read_text()) == before
    with pytest.raises(SourceError, match="cannot be written"):
        write_results(loaded, tmp_path / "absent" / "x.json", {})


RECIPE = recipe_text(
    "levels",
    "x",
    10,
    (2, 2),
    stream="sensor",
    model=MINIROCKET,
    labels={"key": "level", "names": {"0": "low", "1": "high"}},
    train={"split": "session"},
)


def test_train_evaluate_and_run_take_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    names = [f"r{i}" for i in range(6)]
    for name in names:
        recording(tmp_path / "set" / f"{name}.csv", "01" * 3)
    (tmp_path / "levels.toml").write_text(RECIPE)
    recipe, path = tmp_path / "levels.toml", tmp_path / "train.json"
    experiment(path, *(f"any/{name}.labels.json" for name in names), dirname="set")
    bundle = tmp_path / "bundle"
    invoke("train", recipe, "--data", path, "--out", bundle, "--no-report")
    out = tmp_path / "judged.json"
    done = invoke("evaluate", recipe, "--data", path, "--bundle", bundle, "--json", "--out", out)
    scores, made = json.loads(done.stdout), json.loads(out.read_text())
    assert (scores["windows"], scores["window_accuracy"] > 0.9) == (72, True)
    assert made["results"] == {"recipe": "levels", **{k: v for k, v in scores.items() if k != "results"}}
    assert made["labelFiles"] == json.loads(path.read_text())["labelFiles"]
    events = [json.loads(line) for line in invoke("run", recipe, out, "--bundle", bundle).stdout.splitlines()]
    assert (len(events), {event["session"] for event in events}) == (72, set(names))


def test_replay_chooses_its_sessions(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        recording(tmp_path / "set" / f"{name}.csv", "01")
    path = experiment(tmp_path / "e.json", "a.labels.json", "c.labels.json", dirname="set")
    assert [one.session for one in choose([str(path)], OPTIONS, None, None)] == ["a", "c"]
    (named,) = choose([str(path)], OPTIONS, "c", None)
    assert (named.session, len(named.labels)) == ("c", 2)
