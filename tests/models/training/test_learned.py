"""What a bundle says it has learned from, and what is said where it is judged by that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from archive_lab import BEGIN_MS, chunk_record, record, write_archive
from click.testing import CliRunner
from tiny_models import RECIPE, recipe, tiny_bundle

from kymo.models.data.dataset import add_input, read_dataset, stream_of
from kymo.models.data.samples import split_chain
from kymo.models.training.cli import evaluate_command
from kymo.models.training.lineage import TrainingOverlap, knows, learned_from, name_digest
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.readers import read


def write_csv(path: Path, level: float, subject: str = "") -> None:
    """2 s at 10 Hz."""
    head, cell = ("", "") if not subject else (",subject", f",{subject}")
    path.parent.mkdir(exist_ok=True)
    rows = [f"{i / 10:.1f},{level + i / 100:.2f},0.5,low{cell}" for i in range(20)]
    path.write_text("\n".join([f"t,x,y,label{head}", *rows]) + "\n")


def test_names_are_not_told_but_recognised(tmp_path: Path) -> None:
    for name, subject in (("a1", "ann"), ("a2", "ann"), ("b1", "ben")):
        write_csv(tmp_path / "data" / f"{name}.csv", 1.0, subject)
    dataset = read_dataset(read([tmp_path / "data"], recipe().read_options()), recipe(), split_chain(recipe().chain)[0])
    found = learned_from(dataset)
    assert [len(found["sessions"]), len(found["subjects"])] == [3, 2]
    assert not {"a1", "ann"} & set(json.dumps(found).split('"'))
    bundle = tiny_bundle(tmp_path / "bundle", lineage={"learned": found})
    assert [knows(bundle, name) for name in ("a1", "b1", "c1")] == [True, True, False]
    assert [knows(bundle, "a3", subject) for subject in ("ann", "cem", "")] == [True, False, False]
    assert knows(tiny_bundle(tmp_path / "older"), "a1") is None


def evaluated(folder: Path, *data: Path) -> tuple[dict[str, object], str]:
    (folder / "tiny.toml").write_text(RECIPE)
    words = [str(folder / "tiny.toml"), "--bundle", str(folder / "bundle"), "--data", *map(str, data)]
    done, shown = (CliRunner().invoke(evaluate_command, [*words, *more]) for more in (["--json"], []))
    assert (done.exit_code, shown.exit_code, done.stderr) == (0, 0, ""), done.output
    return json.loads(done.stdout), shown.stderr


def test_evaluate_says_what_the_bundle_was_trained_on(tmp_path: Path) -> None:
    for n in range(4):
        write_csv(tmp_path / "data" / f"r{n}.csv", float(n))
    inputs: dict[str, dict[str, object]] = {}
    for one in list(read([tmp_path / "data"], recipe().read_options()))[:2]:
        stream = stream_of(one, recipe())
        assert stream is not None
        add_input(inputs, one, stream)
    tiny_bundle(tmp_path / "bundle", lineage={"inputs": [{"path": path, **found} for path, found in inputs.items()]})
    scores, said = evaluated(tmp_path, tmp_path / "data")
    assert scores["trained_on"] == 2
    assert said.startswith("note: tiny@")
    assert said.endswith("was trained on 2 of these 4 recordings: the scores do not say how it does on new ones\n")
    (tmp_path / "data" / "r0.csv").rename(tmp_path / "elsewhere.csv")
    scores, _ = evaluated(tmp_path, tmp_path / "elsewhere.csv")
    assert scores["trained_on"] == 0  # a session of another name is another one
    write_csv(tmp_path / "other" / "r1.csv", 7.0)  # another recording of the same name
    assert evaluated(tmp_path, tmp_path / "other")[0]["trained_on"] == 0
    scores, said = evaluated(tmp_path, tmp_path / "data" / "r3.csv")
    assert (scores["trained_on"], said) == (0, "")


@pytest.mark.parametrize("learned", [{}, {"learned": {"sessions": [name_digest("s0")], "subjects": []}}])
def test_an_archive_that_has_grown_is_told_by_its_sessions(tmp_path: Path, learned: dict[str, object]) -> None:
    begin, parts = BEGIN_MS * 10**6, []
    import numpy as np

    for i in range(2):
        made = Chunk(Header(f"s{i}", begin, signal_format("imu", ("x", "y"), 10)), 0, np.zeros((20, 2), np.float32))
        label = {"id": "1", "session": f"s{i}", "set": "label", "start_ns": begin, "end_ns": begin + 2 * 10**9}
        value = json.dumps({**label, "label": "low", "author": "a", "created_ns": begin}).encode()
        parts.append([chunk_record(i, made), record("labels", i, f"s{i}", value)])
    write_archive(tmp_path / "archive", parts)
    lineage = {"inputs": [{"path": str(tmp_path / "archive"), "recordings": 1, "sha256": "of before"}], **learned}
    bundle = tiny_bundle(tmp_path / "bundle", lineage=lineage)
    watch = TrainingOverlap(bundle, recipe())
    assert [r.session for r in watch.through(read([tmp_path / "archive"], recipe().read_options()))] == ["s0", "s1"]
    assert (watch.count, watch.recordings) == (len(learned), 2)
