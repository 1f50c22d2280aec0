"""`kymo models`: what it lists, compares, promotes and undoes, and whom it tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import foreign_bundle, linear_onnx, manifest
from verbs import invoke

from kymo.models.bundle import load_bundle
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MANIFEST, MODEL
from kymo.streams.errors import BundleError
from kymo.streams.promotions import PROMOTION_SCHEMA, Promotion

ONNX = linear_onnx(np.eye(3, 2))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def made(temperature: float, **changes: object) -> str:
    path = write_bundle(None, manifest(temperature=temperature, **changes), {MODEL: ONNX}, promote=False)
    return load_bundle(path).id


def test_heads_are_told_by_their_names() -> None:
    heads = [{"name": "surface", "labels": ["grass"], "temperature": 1.0}]
    a, b = made(1, heads=heads), made(1, heads=[heads[0] | {"labels": ["grass", "track"]}])
    assert '  heads.surface.labels: ["grass"]\n' in invoke("models", "show", a).stdout
    assert invoke("models", "diff", a, b).stdout == 'heads.surface.labels: ["grass"] | ["grass", "track"]\n'


def test_list_promote_and_roll_back() -> None:
    a, b = made(1, scores={"accuracy": 0.5, "macro_f1": 0.25, "n": 8}), made(2)
    assert invoke("models", "promote", a, "--why", "first").stdout == f"champion of tiny: {a} (before: none)\n"
    done = invoke("models", "promote", b[:12], "--json")
    said = json.loads(done.stdout)
    assert (said["bundle"], said["before"], said["announced"]) == (b, a, False)
    assert "no broker" in said["reason"]
    invoke("models", "promote", "tiny@champion", "--alias", "shadow")
    listed = {row["bundle"]: row for row in json.loads(invoke("models", "list", "tiny", "--json").stdout)}
    assert {name: row["aliases"] for name, row in listed.items()} == {a: [], b: ["champion", "shadow"]}
    assert listed[a]["scores"] == {"accuracy": 0.5, "macro_f1": 0.25, "n": 8}
    table = invoke("models", "list").stdout
    assert a in table
    assert "0.500" in table
    assert "basicmotions@" in table  # what ships with Kymo is listed too
    done = invoke("models", "rollback", "tiny")
    assert done.stdout == f"champion of tiny: {a} (before: {b})\n"
    assert "running agents were not told" in done.stderr
    assert load_bundle("tiny").id == a
    assert f"by {said['by']}: first" in invoke("models", "show", "tiny").stdout
    log = json.loads(invoke("models", "show", "tiny", "--json").stdout)["log"]
    assert [entry["action"] for entry in log] == ["promote", "promote", "promote", "rollback"]


def test_diff() -> None:
    a, b = made(1), made(2)
    found = json.loads(invoke("models", "diff", a, b, "--json").stdout)
    assert found["bundles"] == [a, b]
    assert found["differences"].pop("temperature") == [1, 2]
    assert set(found["differences"]) <= {"created"}
    assert "temperature: 1 | 2\n" in invoke("models", "diff", a, b).stdout
    assert not [
        line for line in invoke("models", "show", a).stdout.splitlines() if "files." in line
    ]  # sums are for machines
    assert invoke("models", "diff", a, a).stdout == "no difference\n"


def test_a_folder_is_taken_in(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "sent", manifest(), {MODEL: ONNX}, attached={"report/report.html": b"<p>"})
    invoke("models", "promote", path)
    found = load_bundle("tiny")
    assert (found.id, found.path != path) == (load_bundle(path).id, True)
    assert (found.path / "report" / "report.html").read_bytes() == b"<p>"


@pytest.mark.parametrize(
    "words", [("promote", "none"), ("promote", "tiny@ff"), ("rollback", "tiny"), ("show", "x/y"), ("diff", "a", "b")]
)
def test_failures_are_one_line(words: tuple[str, ...]) -> None:
    done = invoke("models", *words, status=1)
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)


def test_promotions_as_json() -> None:
    one = Promotion("walk", "champion", "walk@0", 5, "s3://b/m", "rollback", "eva", "wörse")
    assert Promotion.from_json(one.to_json()) == one
    assert set(json.loads(one.to_json())) == set(PROMOTION_SCHEMA["properties"])
    for raw in (b"x", b"[]", b"{}", b'{"recipe":"a","alias":"b","bundle":"c","promoted_ns":"5"}'):
        with pytest.raises(BundleError, match="promotion: "):
            Promotion.from_json(raw)


def test_a_bundle_whose_recipe_leads_elsewhere_is_not_taken(tmp_path: Path, home: Path) -> None:
    for number, name in enumerate(("../../escaped", str(tmp_path / "escaped"), "..")):
        done = invoke(
            "models",
            "promote",
            str(foreign_bundle(tmp_path / str(number), manifest(recipe=name), {MODEL: ONNX})),
            status=1,
        )
        assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
        assert name in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_damaged_version_is_told(home: Path) -> None:
    whole, damaged, odd = made(1), made(2), made(3)
    (home / "registry" / "tiny" / damaged.partition("@")[2] / MODEL).write_bytes(b"damaged")
    (home / "registry" / "tiny" / odd.partition("@")[2] / MANIFEST).write_bytes(b'{"id": ' + b"[" * 100_000)
    listed = {row["bundle"]: row for row in json.loads(invoke("models", "list", "tiny", "--json").stdout)}
    assert [bool(listed[name]["damaged"]) for name in (whole, damaged, odd)] == [False, True, True]
    assert f"{MODEL}: damaged, its checksum" in listed[damaged]["damaged"]
    done = invoke("models", "list")
    assert len([line for line in done.stdout.splitlines() if "damaged" in line]) == len(done.stderr.splitlines()) == 2


def test_odd_lines_of_a_log_are_passed_over(home: Path) -> None:
    a = made(1)
    invoke("models", "promote", a)
    with (home / "registry" / "tiny" / "log.jsonl").open("ab") as log:
        log.write(
            b'{"at_ns": 1e999}\n[]\n' + b"[" * 100_000 + b'\n{"at_ns": "x", "action": [], "alias": {}, "bundle": 7}\n'
        )
    invoke("models", "list")
    assert load_bundle("tiny").id == a


def test_folders_of_other_names(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = made(1)
    (home / "registry" / "not a recipe" / "x y").mkdir(parents=True)
    (home / "registry" / "tiny" / "not a version").mkdir()
    assert [row["bundle"] for row in json.loads(invoke("models", "list", "--json").stdout) if not row["shipped"]] == [a]
    monkeypatch.chdir(tmp_path)
    for name in ("my bundle", ".bundle"):
        write_bundle(Path(name), manifest(), {MODEL: ONNX})
        invoke("models", "show", name)
