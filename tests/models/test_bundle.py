"""Bundles are what was trained, whole, found by name, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import LABELS, RECIPE, foreign_bundle, linear_onnx, manifest, recipe, tiny_bundle

from kymo.models.bundle import find_bundle, load_bundle
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MANIFEST, MODEL
from kymo.streams.errors import BundleError

ONNX = linear_onnx(np.eye(3, 2))


def test_reads_what_was_written(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", temperature=2.0)
    assert (bundle.recipe, bundle.labels, bundle.shape, bundle.layout) == ("tiny", LABELS, (2, 4), "channels_first")
    assert (bundle.temperature, bundle.batch, bundle.model_path) == (2.0, "any", tmp_path / "b" / MODEL)
    assert bundle.chain.digest(learned=False) == recipe().chain.digest(learned=False)
    assert bundle.chain.digest() != recipe().chain.digest()
    bundle.check(recipe())


def test_id_depends_on_the_contents_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    first = write_bundle(tmp_path / "a", manifest(), {MODEL: ONNX, "report/report.json": b"{}"})
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000000000")
    second = write_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, "report/report.json": b"{}"})
    other = write_bundle(tmp_path / "c", manifest(temperature=1.5), {MODEL: ONNX, "report/report.json": b"{}"})
    ids = [load_bundle(path).id for path in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("tiny@")
    texts = [json.loads((path / MANIFEST).read_text()) for path in (first, second)]
    assert texts[0].pop("created") == "1970-01-01T00:00:01Z"
    assert texts[1].pop("created") == "2033-05-18T03:33:20Z"
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", [MODEL, "report/report.json"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = write_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, "report/report.json": b"{}"})
    file = path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BundleError, match=str(file)):
        load_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"format": 2}, "bundle format 2, expected 1"),
        (lambda m: m | {"labels": ["a", "b", "c"]}, "was changed after it was made"),
        (lambda m: m | {"files": {}}, "does not list model.onnx"),
        (lambda m: [m], "expected a JSON object"),
    ],
)
def test_changed_manifests_are_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tiny_bundle(tmp_path / "b").path
    (path / MANIFEST).write_text(json.dumps(change(json.loads((path / MANIFEST).read_text()))))
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def test_manifest_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"{")
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"labels": ["one"]}, {"temperature": 0}, {"temperature": "warm"}, {"chain": {"step": "sorcery"}}, {"model": {}}],
)
def test_senseless_manifests_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        tiny_bundle(tmp_path / "b", **changes)


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    for name in ("../secret", f"../../{tmp_path.name}/b/{MODEL}", str(tmp_path / "b" / MODEL), "a/../../secret"):
        with pytest.raises(BundleError, match="leads out of it"):
            write_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, name: ONNX})
        foreign = foreign_bundle(tmp_path / "b", manifest(), {MODEL: ONNX, name: ONNX})
        (tmp_path / "secret").write_bytes(ONNX)
        with pytest.raises(BundleError, match=r"not there, but manifest\.json lists it"):
            load_bundle(foreign)


@pytest.mark.parametrize(
    "name", ["../../escaped", "/tmp/escaped", "..", ".", "", "a/b", ".hidden", "a" * 101, "a\nb", 7, ["x"]]
)
def test_a_name_that_leads_elsewhere_is_no_recipe(tmp_path: Path, name: object) -> None:
    bundle = foreign_bundle(tmp_path / "b", manifest(recipe=name), {MODEL: ONNX})
    with pytest.raises(BundleError, match="`recipe` is"):
        load_bundle(bundle)
    with pytest.raises(BundleError):
        write_bundle(None, manifest(recipe=name), {MODEL: ONNX}, tmp_path / "home")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_finds_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kymo.models.bundle.SHIPPED", tmp_path / "shipped")
    home = tmp_path / "home"
    with pytest.raises(BundleError, match=r"no bundle `tiny` in .*registry.*kymo train tiny"):
        find_bundle("tiny", home)
    shipped = tiny_bundle(tmp_path / "shipped" / "tiny")
    assert find_bundle("tiny", home) == shipped.path
    assert find_bundle(shipped.id, home) == shipped.path
    first = write_bundle(None, manifest(temperature=2), {MODEL: ONNX}, home)
    second = write_bundle(None, manifest(temperature=3), {MODEL: ONNX}, home)
    assert load_bundle("tiny", home).temperature == 3
    assert find_bundle(f"tiny@{first.name}", home) == first
    assert find_bundle(f"tiny@{second.name[:6]}", home) == second
    assert find_bundle(shipped.id, home) == shipped.path
    assert find_bundle(str(first), home) == first
    with pytest.raises(BundleError, match="no bundle `tiny@ffffffff`"):
        find_bundle("tiny@ffffffff", home)
    shutil.copytree(first, first.with_name(first.name[:6] + "x"))
    with pytest.raises(BundleError, match="begin so; give more digits"):
        find_bundle(f"tiny@{first.name[:6]}", home)


def test_a_bundle_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    before = tiny_bundle(tmp_path / "b")
    with pytest.raises(TypeError):
        write_bundle(tmp_path / "b", manifest(temperature=2), {MODEL: ONNX, "report/report.json": "text"})  # type: ignore[dict-item]
    assert load_bundle(tmp_path / "b").id == before.id
    after = write_bundle(tmp_path / "b", manifest(temperature=2), {MODEL: ONNX})
    assert load_bundle(after).temperature == 2
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(BundleError, match="holds something that is no bundle"):
        write_bundle(tmp_path, manifest(), {MODEL: ONNX})
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "mine.txt" / "b", manifest(), {MODEL: ONNX})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("factor = 0.5", "factor = 0.25", "step 2 `scale`, factor is 0.5 in the bundle and 0.25 in the recipe"),
        ("length_s = 0.4", "length_s = 0.6", "step 3 `windows`, length is 4 in the bundle and 6 in the recipe"),
        ('step = "standardise"', 'step = "log"', "step 4 is `standardise` in the bundle and `log` in the recipe"),
        ("[model]", '[[window.steps]]\nstep = "log"\n[model]', "only the recipe has step 5 `log`"),
        ('[[window.steps]]\nstep = "standardise"\n', "", "only the bundle has step 4 `standardise`"),
        ('["x", "y"]', '["y", "x"]', r'step 1 `intake`, channels is \["x", "y"\] in the bundle'),
        (
            "[model]",
            '[labels]\nnames = {"middle" = "mid"}\n[model]',
            "tells label `middle`, which recipe `tiny` calls `mid`",
        ),
    ],
)
def test_refuses_another_recipe(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(BundleError, match=message):
        tiny_bundle(tmp_path / "b").check(recipe(RECIPE.replace(old, new)))


def test_refuses_another_shape(tmp_path: Path) -> None:
    section = manifest()["model"] | {"shape": [2, 5]}
    with pytest.raises(BundleError, match="takes windows of 2 x 5, recipe `tiny` makes 2 x 4"):
        tiny_bundle(tmp_path / "b", model=section).check(recipe())


@pytest.mark.parametrize(
    "names",
    ['"0" = "low"', '"0" = "low", "1" = "middle", "2" = "high"', '"low" = "high", "high" = "low"', '"9" = "odd"'],
)
def test_values_without_a_name_are_classes_as_they_stand(tmp_path: Path, names: str) -> None:
    tiny_bundle(tmp_path / "b").check(recipe(RECIPE.replace("[model]", f"[labels]\nnames = {{{names}}}\n[model]")))


def test_what_the_recipe_may_change(tmp_path: Path) -> None:
    text = RECIPE.replace("0.6", "0.9").replace("epochs = 3", "epochs = 4") + '[[alerts]]\nlabel = "high"\n'
    tiny_bundle(tmp_path / "b").check(recipe(text))
