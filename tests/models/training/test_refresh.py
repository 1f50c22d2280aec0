"""`kymo refresh` and `kymo train --promote-if-better`: the whole loop from data to champion, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from archive_lab import BEGIN_MS, chunk_record, record, write_archive
from click.testing import Result
from recipes_made import MINIROCKET, recipe_text
from tiny_models import RECIPE, linear_onnx, manifest, recipe, tiny_bundle, write_csv
from verbs import invoke

from kymo.models.bundle import Bundle, load_bundle
from kymo.models.registry import open_registry, write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.training.gate import Outcome, _decide, alone, plan_of, refresh_for_ever, train_behind_gate
from kymo.models.training.record import name_digest
from kymo.models.training.run import TrainRequest
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.errors import BundleError, KymoError, TrainingError
from kymo.streams.settings import Settings

SESSIONS = 16  # a class
WRONG = np.array([[1.0, 0.0], [-1.0, 0.0]])  # says rest of what is work


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, labelled recordings, and a home with a champion that is wrong."""
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 20"))
    (tmp_path / "data").mkdir()
    for label, level in (("rest", 0.0), ("work", 8.0)):
        for i in range(SESSIONS):
            write_csv(tmp_path / "data" / f"{label}{i}.csv", label, level)
    return tmp_path


def wrong_champion() -> str:
    write_bundle(None, manifest(labels=["rest", "work"]), {MODEL: linear_onnx(WRONG)})
    return load_bundle("tiny").id


def learn(verb: str, folder: Path, *more: str, **options: Any) -> Result:
    return invoke(verb, folder / "tiny.toml", "--data", folder / "data", "--only", *more, **options)


def test_sessions_of_other_recipes_in_the_archive_do_not_judge(tmp_path: Path) -> None:
    begin, records, sessions = BEGIN_MS * 10**6, [], []
    for i in range(24):
        stream, asked = (("imu", "label"), ("eda", "label"), ("imu", "mood"))[i % 3]
        name, what = f"s{i}", "rest" if i % 2 else "work"
        made = Chunk(Header(name, begin, signal_format(stream, ("x", "y"), 10)), 0, np.zeros((20, 2), np.float32))
        records.append(chunk_record(len(records) // 2, made))
        label = {"id": name, "session": name, "set": asked, "start_ns": begin, "end_ns": begin + 2 * 10**9}
        value = json.dumps({**label, "label": what, "author": "a", "created_ns": begin}).encode()
        records.append(record("labels", len(records) // 2, name, value))
        sessions += [name] if i % 3 == 0 else []
    write_archive(tmp_path / "archive", [records])
    plan = plan_of(recipe(), (str(tmp_path / "archive"),))
    assert plan.sessions == len(sessions) == 8
    assert plan.held_out
    assert set(plan.held_out) < set(sessions)


def test_a_better_model_is_promoted_and_an_equal_one_is_not(folder: Path) -> None:
    pytest.importorskip("torch")
    before = wrong_champion()
    first = learn("refresh", folder, "--json")
    said = json.loads(first.stdout)
    assert (said["promoted"], said["champion"], said["sessions"]) == (True, before, 2 * SESSIONS)
    assert said["verdict"]["promote"]
    assert said["verdict"]["sessions"] == said["held_out"] >= 6
    assert said["verdict"]["candidate"] > said["verdict"]["champion"]
    assert load_bundle("tiny").id == said["bundle"]
    assert open_registry().log("tiny")[-1].why == said["reason"]
    assert not said["told"]
    # The sessions that judged were not learned from.
    windows = load_bundle("tiny").manifest["lineage"]["windows"]
    assert sum(windows.values()) == 9 * (2 * SESSIONS - said["held_out"])
    again = learn("train", folder, "--promote-if-better", "--seed", "7")
    assert "not promoted: accuracy on" in again.stdout
    assert load_bundle("tiny").id == said["bundle"]
    assert len(open_registry().versions("tiny")) == 3  # kept, all the same


def test_without_a_champion_the_first_is_promoted(folder: Path) -> None:
    pytest.importorskip("torch")
    done = learn("refresh", folder, "--epochs", "1")
    assert done.stdout.startswith(f"tiny: {load_bundle('tiny').id} promoted: there was no champion")


RAW = recipe_text("tiny", "x y", 10, (1, 0.5), labels={"names": {"rest": "quiet"}}, model=MINIROCKET)


def test_the_gate_compares_where_not_every_label_has_a_name(folder: Path) -> None:
    request = TrainRequest((str(folder / "data"),), only=True)
    _, first = train_behind_gate(recipe(RAW), request, Settings(home=folder / "home"))
    champion = load_bundle("tiny")
    assert (first.promoted, champion.labels) == (True, ("quiet", "work"))
    champion.check(recipe(RAW))
    write_csv(folder / "data" / "more.csv", "work", 8.0)
    _, second = train_behind_gate(recipe(RAW), request, Settings(home=folder / "home"))
    assert second.bundle != first.bundle
    assert second.verdict is not None
    assert (second.promoted, load_bundle("tiny").id) == (False, first.bundle)


def test_what_no_recipe_serves_is_not_promoted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(bundle: Bundle, recipe: Recipe) -> None:
        raise BundleError(f"{bundle.id} does not fit")

    monkeypatch.setattr(Bundle, "check", refuse)
    request = TrainRequest((str(folder / "data"),), only=True)
    _, outcome = train_behind_gate(recipe(RAW), request, Settings(home=folder / "home"))
    assert (outcome.promoted, outcome.verdict) == (False, None)
    assert outcome.reason == f"it could not be served ({outcome.bundle} does not fit)"
    assert open_registry().current("tiny") is None


def test_a_failure_leaves_the_champion(folder: Path) -> None:
    before = wrong_champion()
    for path in (folder / "data").iterdir():
        write_csv(path, "rest", 0.0)
    done = learn("refresh", folder, status=1)
    *stages, failure = done.stderr.splitlines()
    assert done.stdout == ""
    assert stages == ["kymo: choosing the sessions that judge", "kymo: reading"]
    assert "at least two classes" in failure
    assert load_bundle("tiny").id == before
    done = invoke("refresh", folder / "tiny.toml", status=1)
    assert "no archive is there" in done.stderr
    learn("refresh", folder, "--every", "soon", status=2)
    done = invoke("refresh", folder / "tiny.toml", "--data", folder / "absent", "--every", "1h", status=1)
    assert "no such file or folder" in done.stderr


def test_rounds_go_on_after_a_failure_and_wait_for_new_data() -> None:
    signatures = iter(["a", "a", "a", "b", "b"])
    rounds = iter([OSError("disk full"), Outcome("tiny", True, "tiny@1"), KymoError("no broker"), Outcome("tiny")])
    waits = iter([True, True, True, True, False])

    def one_round() -> Outcome:
        came = next(rounds)
        if isinstance(came, Exception):
            raise came
        return came

    champion: Any = lambda: SimpleNamespace(id="tiny@0")  # noqa: E731
    said = list(refresh_for_ever(recipe(), one_round, lambda: next(signatures), lambda: next(waits), champion))
    assert said[2].line() == "tiny: tiny@0 stays: no new recordings or labels"
    assert [(o.promoted, o.reason) for o in said] == [
        (False, "failed: OSError: disk full"),
        (True, ""),
        (False, "no new recordings or labels"),
        (False, "failed: no broker"),
        (False, ""),
    ]


def test_a_champion_promoted_meanwhile_is_the_one_to_beat(folder: Path) -> None:
    pytest.importorskip("torch")
    wrong_champion()
    meanwhile: list[str] = []

    def on_stage(name: str, epochs: int) -> Any:
        if not meanwhile:
            write_bundle(None, manifest(labels=["rest", "work"]), {MODEL: linear_onnx(-WRONG)})
            meanwhile.append(load_bundle("tiny").id)
        return lambda epoch: None

    request = TrainRequest((str(folder / "data"),), only=True, epochs=1)
    _, outcome = train_behind_gate(recipe(), request, Settings(home=folder / "home"), on_stage)
    assert [outcome.champion] == meanwhile


@pytest.mark.parametrize(("known", "judging"), [(0, 8), (2, 6), (3, 8)])
def test_what_the_champion_has_learned_from_judges_only_where_it_must(folder: Path, known: int, judging: int) -> None:
    pytest.importorskip("torch")
    paths = (str(folder / "data"),)
    for i in range(5):
        write_csv(folder / "data" / f"rest5{i}.csv", "rest", 0.0)
    held = sorted(plan_of(recipe(), paths).held_out)
    assert len(held) == 8
    learned = {"sessions": [name_digest(name) for name in [*held[:known], "rest77"]], "subjects": []}
    lineage = {"lineage": {"learned": learned}}
    write_bundle(None, manifest(labels=["rest", "work"], **lineage), {MODEL: linear_onnx(WRONG)})
    request = TrainRequest(paths, only=True, epochs=1)
    _, outcome = train_behind_gate(recipe(), request, Settings(home=folder / "home"))
    assert outcome.verdict is not None
    assert (outcome.held_out, outcome.verdict["sessions"]) == (8, judging)
    said = {
        0: "more than chance",
        2: "; 2 more were left out, as the champion has learned from them",
        3: "; the champion has learned from 3 of them, which speaks for it",
    }
    assert outcome.reason.endswith(said[known])


def test_models_whose_classes_have_other_borders_are_not_compared(folder: Path) -> None:
    champion, candidate = (tiny_bundle(folder / str(border), bins=[border]) for border in (2500, 2600))
    paths = (str(folder / "data"),)
    plan = plan_of(recipe(), paths)
    verdict, promoted, why = _decide(recipe(), (champion, candidate), "", paths, plan, "accuracy")
    assert (verdict, promoted) == (None, False)
    assert "other borders ([2600]) than the champion's ([2500])" in why


def test_two_do_not_run_at_once(folder: Path) -> None:
    home = folder / "home"
    with alone("tiny", home), pytest.raises(KymoError, match="another refresh of `tiny` runs"), alone("tiny", home):
        pass
    with alone("tiny", home):
        pass


def test_what_is_kept_from_training(folder: Path) -> None:
    paths = (str(folder / "data"),)
    plan = plan_of(recipe(), paths)
    assert plan.sessions == 2 * SESSIONS
    assert {name[:4] for name in plan.held_out} == {"rest", "work"}
    assert plan_of(recipe(), paths) == plan
    write_csv(folder / "data" / "rest99.csv", "rest", 0.0)
    more = plan_of(recipe(), paths)
    assert more.signature != plan.signature
    assert more.held_out.keys() - {"rest99"} == plan.held_out.keys()
    (folder / "empty").mkdir()
    (folder / "empty" / "a.csv").write_text("t,x,y\n" + "".join(f"{i / 10:.1f},0,0\n" for i in range(20)))
    with pytest.raises(TrainingError, match="no labelled session"):
        plan_of(recipe(), (str(folder / "empty"),))


def test_what_is_no_better_than_guessing_is_promoted_by_nobody(folder: Path) -> None:
    """Labels that say nothing of the data: without a gate, behind it, and without a champion to beat."""
    for i, file in enumerate(sorted((folder / "data").iterdir())):
        write_csv(file, ("rest", "work")[i % 2], 0.0)
    for more in ([], ["--promote-if-better"]):
        done = learn("train", folder, *more)
        assert "no better than guessing by more than chance" in done.output
        assert "not promoted: on what was held out it is no better than guessing" in done.output
        assert open_registry().current("tiny") is None
