"""Further heads: what a recipe says of them, and that a file's labels of every head are read."""

from __future__ import annotations

import json
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from recipes_made import recipe_text

from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.processors.recipe.tables import HeadTable
from kymo.processors.recipe.toml import format_recipe
from kymo.streams.errors import RecipeError
from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, LabelOptions, ReadOptions

TEXT = recipe_text(
    "small", "x y", 32, (2, 1), model={"architecture": "minirocket"}, labels={"column": "speed", "min_share": 0.8}
)
HEADS = """\
[[heads]]
name = "surface"
names = {"0" = "grass"}
[[heads]]
name = "score"
column = "score_10k"
kind = "number"
min_share = 0.25
weight = 0.5
"""


def recipe(heads: str = HEADS, text: str = TEXT) -> Recipe:
    return parse_recipe(text + heads)


def test_heads_and_what_they_leave_out() -> None:
    surface = HeadTable("surface", "classes", "surface", None, {"0": "grass"}, 0.8, 1.0)
    score = HeadTable("score", "number", "score_10k", None, {}, 0.25, 0.5)
    assert recipe().heads == (surface, score)
    assert [head.set for head in recipe().heads] == ["surface", "score_10k"]
    assert recipe("").heads == ()
    by_key = recipe("[[heads]]\nname = 'gait'\n", TEXT.replace("column", "key"))
    assert by_key.heads == (HeadTable("gait", "classes", None, "gait", {}, 0.8),)


def test_reading_asks_for_all_label_sets() -> None:
    options = recipe().read_options()
    assert options.more_labels == (LabelOptions("surface", None, {"0": "grass"}), LabelOptions("score_10k"))
    assert list(options.label_columns) == ["speed", "surface", "score_10k"]
    assert options.label_keys == {}


def test_a_recipe_with_heads_is_written_as_it_was_read() -> None:
    tables = tomllib.loads(TEXT + HEADS)
    assert parse_recipe(format_recipe(tables)).heads == recipe().heads


@pytest.mark.parametrize(
    ("heads", "line", "says"),
    [
        ("[[heads]]\nkind = 'number'", 14, "[heads] lacks name"),
        ("[[heads]]\nname = 'a/b'", 15, "no slash"),
        ("[[heads]]\nname = ' a'", 15, "no blanks"),
        ("[[heads]]\nname = ''", 15, "expected a text"),
        ("[[heads]]\nname = 'unknown'", 15, "not `unknown`"),
        ("[[heads]]\nname = 'a'\nkind = 'numbr'", 16, "did you mean 'number'?"),
        ("[[heads]]\nname = 'a'\n[[heads]]\nname = 'a'\ncolumn = 'b'", 17, "another head has it"),
        ("[[heads]]\nname = 'a'\ncolumn = 'b'\nkey = 'c'", 17, "both column and key"),
        ("[[heads]]\nname = 'a'\nweight = 0", 16, "expected a number above 0"),
        ("[[heads]]\nname = 'a'\nweight = inf", 16, "weight = inf: expected a number above 0, and a finite one"),
        ("[[heads]]\nname = 'a'\nweight = 1e999", 16, "and a finite one"),
        ("[[heads]]\nname = 'a'\nweigth = 1", 16, "did you mean 'weight'?"),
        ("[[heads]]\nname = 'a'\nkind = 'number'\nnames = {1 = 'x'}", 17, "a number are taken as they are"),
        ("[[heads]]\nname = 'a'\ncolumn = 'speed'\nnames = {1 = 'x'}", 17, "differ from those that stand before"),
        ("[[heads]]\nname = 'a'\nkey = 'speed'", 16, "a column and a key of a labels JSON are both called `speed`"),
        ("[[heads]]\nname = 'b'\n[[heads]]\nname = 'a'\nkey = 'b'", 18, "both called `b`"),
    ],
)
def test_mistakes_are_named_with_their_line(heads: str, line: int, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(heads)
    assert says in str(caught.value)
    assert caught.value.line == line


def test_heads_need_a_model() -> None:
    text = TEXT.replace('[model]\narchitecture = "minirocket"\n', "")
    with pytest.raises(RecipeError, match=r"\[\[heads\]\] without \[model\]"):
        recipe(text=text)


def test_columns_of_all_heads_become_labels(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    rows = ["0,1,2.5,0,", "1,2,2.5,0,47.50", "2,3,3.0,1,47.5", "3,4,3.0,1,47.5"]
    path.write_text("\n".join(["t,x,speed,surface,score", *rows]))
    options = ReadOptions(
        inputs=(InputOptions("imu", ("x",), Fraction(1)),),
        label_column="speed",
        more_labels=(LabelOptions("surface", None, {"0": "grass"}), LabelOptions("score"), LabelOptions("absent")),
    )
    (recording,) = read([path], options)
    found = {(one.set, one.label, one.start_ns // 10**9, one.end_ns // 10**9) for one in recording.labels}
    assert found == {
        ("speed", "2.5", 0, 2),
        ("speed", "3", 2, 4),
        ("surface", "grass", 0, 2),
        ("surface", "1", 2, 4),
        ("score", "47.5", 1, 4),
    }
    assert [one.start_ns for one in recording.labels] == sorted(one.start_ns for one in recording.labels)
    assert recording.notes[0] == "no label column `absent`: read without labels"
    assert not any("left out" in note for note in recording.notes)


def test_a_heads_column_that_is_constant_stays_metadata(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("t,x,label,surface\n0,1,a,track\n1,2,a,track\n")
    options = ReadOptions(inputs=(InputOptions("imu", ("x",), Fraction(1)),), more_labels=(LabelOptions("surface"),))
    (recording,) = read([path], options)
    assert recording.metadata == {"surface": "track"}


def test_keys_of_a_labels_json(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text("\n".join(["t,x", *(f"{i},{i}" for i in range(9))]))
    event = {"startTime": {"sec": 1, "nsec": 0}, "endTime": {"sec": 3, "nsec": 0}, "metadata": {"mood": "1", "pace": 5}}
    (tmp_path / "run.labels.json").write_text(json.dumps({"events": [event]}))
    more = (LabelOptions(None, "pace"), LabelOptions(None, "absent"), LabelOptions("surface"))
    (recording,) = read([tmp_path / "run.csv"], ReadOptions(label_key="mood", more_labels=more))
    assert [(one.set, one.label) for one in recording.labels] == [("mood", "1"), ("pace", "5")]
    assert "run.labels.json: 1 events without `absent` left out" in recording.notes
    assert "no label column `surface`: read without labels" in recording.notes
