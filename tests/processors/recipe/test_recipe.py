"""Recipes: what a TOML text means, that every mistake is named with its line, and where steps stand in the chain."""

from __future__ import annotations

import contextlib
import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.processors.recipe.tables import AlertTable
from kymo.processors.recipe.toml import Document, format_recipe
from kymo.processors.registry import spec_from_json
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Array, Chunk, Header, Window, signal_format
from kymo.streams.errors import RecipeError

RECIPES = ROOT / "recipes"


TEXT = """\
name = "running"
[source]
session = ["subject_id", "trial_id"]
subject = "subject_id"
keep = "usabledata == 1"
[[input]]
stream = "imu"
rate_hz = 500
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
[[steps]]
step = "spectrogram"
nperseg = 1000
noverlap = 800
keep_bins = 223
[window]
length_s = 20
hop_s = 10
[[window.steps]]
step = "standardise"
[model]
architecture = "spectrogram_resnet"
min_probability = 0.5
width = 1.5
[labels]
column = "speed"
[train]
split = "subject"
epochs = 5
[[alerts]]
label = "3.5"
min_probability = 0.8
windows = 2
notify = ["webhook:${KYMO_WEBHOOK}"]
"""


SMALL = """\
name = "small"
[[input]]
stream = "imu"
rate_hz = 32
channels = ["x", "y"]
[window]
length_s = 2
hop_s = {hop}
"""


def test_every_table_is_read() -> None:
    recipe = parse_recipe(TEXT)
    assert (recipe.name, recipe.window_length, recipe.window_hop) == ("running", 10_000, 5_000)
    assert recipe.inputs[0].rate_hz == 500
    assert recipe.model is not None
    assert (recipe.model.architecture, recipe.model.parameters) == ("spectrogram_resnet", {"width": 1.5})
    assert (recipe.train.split, recipe.train.epochs) == ("subject", 5)
    assert recipe.source.session == ("subject_id", "trial_id")
    assert recipe.alerts == (AlertTable(("3.5",), None, 0.8, 2, ("webhook:${KYMO_WEBHOOK}",)),)
    options = recipe.read_options()
    assert (options.label_column, options.keep) == ("speed", "usabledata == 1")
    out = recipe.output_format()
    assert (out.rows, out.shape) == (46, (223, 6))


def test_labels_by_key() -> None:
    recipe = parse_recipe(SMALL.format(hop=1) + '[labels]\nkey = "mag"\nnames = {"0" = "none"}\nmin_share = 0.8\n')
    assert (recipe.labels.column, recipe.labels.key, recipe.labels.min_share) == (None, "mag", 0.8)
    assert recipe.read_options().label_names == {"0": "none"}


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('name = "running"', "name = running", 1, "no valid TOML"),
        ('name = "running"', 'nmae = "running"', 1, "no table or key 'nmae'; did you mean 'name'?"),
        ('name = "running"', 'name = "a/b"', 1, "ids and folders"),
        ("[model]", "[modl]", 20, "did you mean 'model'?"),
        ("rate_hz = 500\n", "", 6, "[input] lacks rate_hz"),
        ("rate_hz = 500", "rate_hz = -1", 8, "rate_hz = -1: expected a number above 0"),
        ("rate_hz = 500", "rate_hz = nan", 8, "expected a number above 0"),
        ("rate_hz = 500", "rate_hz = 1979-05-27", 8, "expected a number above 0"),
        ("rate_hz = 500", "rate = 500", 8, "did you mean 'rate_hz'?"),
        ('channels = ["ax", "ay",', 'channels = ["ax", "ax",', 9, "'ax' stands there twice"),
        ('channels = ["ax"', "channels = [1", 9, "expected an array of texts"),
        ('stream = "imu"', 'stream = "imu"\nunits = ["g"]', 8, "1 for 6 channels"),
        ('"spectrogram"\n', '"spectogram"\n', 11, "no step 'spectogram'; did you mean 'spectrogram'?"),
        ('step = "spectrogram"', 'step = "standardise"', 11, "move it to [[window.steps]]"),
        ('step = "spectrogram"', 'step = "windows"', 11, "no step 'windows'"),
        ("noverlap = 800", "overlap = 800", 13, "did you mean 'noverlap'?"),
        ("noverlap = 800", "chunk_frames = 2", 13, "no parameter 'chunk_frames'"),
        ('step = "standardise"', 'step = "standardise"\nmean = [1.0]', 20, "no parameter 'mean'"),
        ("noverlap = 800", 'noverlap = "800"', 13, "noverlap '800', expected a whole number"),
        ("noverlap = 800", "noverlap = 1000", 13, "noverlap 1000"),
        ("length_s = 20", "length_s = 20.0001", 16, "the nearest is 20 (10000 samples)"),
        ("length_s = 20", "length_s = 1", 15, "window: 500 samples are fewer than the 1000"),
        ("hop_s = 10", "hop_s = 0", 17, "hop_s = 0"),
        ("[[window.steps]]", "[window.steps]", 18, "write [[window.steps]]"),
        ("min_probability = 0.5", "min_probability = 5", 22, "a number from 0 to 1"),
        ("min_probability = 0.5", "min_probabilty = 0.5", 22, "did you mean 'min_probability'?"),
        ('column = "speed"', 'column = "speed"\nkey = "k"', 26, "both column and key"),
        ('split = "subject"', 'split = "subjects"', 27, "did you mean 'subject'?"),
        ("epochs = 5", "epochs = 0.5", 28, "epochs = 0.5: expected a whole number from 1"),
        ("epochs = 5", "epoch = 5", 28, "[train] has no key 'epoch'; did you mean 'epochs'?"),
        ("epochs = 5", "validation = 1", 28, "validation = 1: expected a number from 0 to below 1"),
        ("epochs = 5", "seed = -1", 28, "expected a whole number from 0 to 2147483647"),
        ("epochs = 5", 'schedule = "cosin"', 28, "expected one of none, cosine, plateau; did you mean 'cosine'?"),
        ("epochs = 5", "compare = [1]", 28, "compare = [1]: expected true or false or names of architectures"),
        ("epochs = 5", "[[train.augment]]\nkind = 'jiter'", 29, "did you mean 'jitter'?"),
        ("epochs = 5", "[[train.augment]]\nkind = 'jitter'\np = 2", 30, "p = 2: expected a number from 0 to 1"),
        ("epochs = 5", "[[train.augment]]\nkind = 'jitter'\nshares = 1", 30, "did you mean 'share'?"),
        ("epochs = 5", "[[train.augment]]\np = 0.2", 28, "[train.augment] lacks kind, one of jitter"),
        ("epochs = 5", "refit = false\nfolds = 3", 28, "leave it out, or folds"),
        ("windows = 2", "windows = 2.5", 32, "expected a whole number"),
        ("windows = 2", "window = 2", 32, "did you mean 'windows'?"),
        ("[[alerts]]", "[[input]]\nstream = 'eda'\nrate_hz = 4\nchannels = ['eda']\n[[alerts]]", 29, "several"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(old: str, new: str, line: int, says: str) -> None:
    assert old in TEXT
    with pytest.raises(RecipeError, match=r"^running\.toml:\d+: ") as caught:
        parse_recipe(TEXT.replace(old, new, 1), Path("running.toml"))
    assert says in str(caught.value)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "lacks name"), ('name = "x"', "lacks [[input]]"), (SMALL.partition("[window]")[0], "lacks [window]")],
)
def test_what_must_be_there(text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert says in str(caught.value)


def test_exact_rates_and_seconds() -> None:
    text = SMALL.format(hop='"1001/30000"').replace("= 32", '= "30000/1001"').replace("= 2\n", '= "1001/300"\n')
    recipe = parse_recipe(text)
    assert recipe.inputs[0].rate_hz == Fraction(30000, 1001)
    assert (recipe.window_length, recipe.window_hop) == (100, 1)
    # 0.1 s is three samples at 30 Hz although 0.1 is no binary fraction.
    assert parse_recipe(SMALL.format(hop=0.1).replace("= 32", "= 30")).window_hop == 3


def test_missing_samples_are_counted_in_samples() -> None:
    text = SMALL.format(hop=1).replace("rate_hz", "bridge_ms = 100\nmax_missing = 0.1\nrate_hz")
    intake = parse_recipe(text).chain.specs[0]
    assert (intake.bridge, intake.fill, intake.max_missing) == (3, 6, 0.1)  # type: ignore[attr-defined]


def test_lines_of_keys() -> None:
    text = """\
a.b = 1  # [not.a.table]
"c d" = '''
[x]
e = 1
'''
list = [  # [
  "]", ']',
  { x = 1 },
]
f = "a # b" # [
[[t]]
g = 1
[t.sub]
h = 2
[[t]]
[[t.u]]
i = 3
[[t.u]]
"""
    lines = {
        ("a", "b"): 1,
        ("c d",): 2,
        ("list",): 6,
        ("f",): 10,
        ("t", 0): 11,
        ("t", 0, "g"): 12,
        ("t", 0, "sub"): 13,
        ("t", 0, "sub", "h"): 14,
        ("t", 1): 15,
        ("t", 1, "u", 0): 16,
        ("t", 1, "u", 0, "i"): 17,
        ("t", 1, "u", 1): 18,
        ("t", 1, "u", 1, "absent"): 18,
        ("absent",): None,
    }
    for end in ("\n", "\r\n"):
        document = Document(text.replace("\n", end))
        assert {where: document.line(where) for where in lines} == lines


def test_chain_survives_json() -> None:
    chain = parse_recipe(TEXT).chain
    assert spec_from_json(chain.to_json()) == chain


def test_which_streams_match() -> None:
    text = SMALL.format(hop=1).replace("rate_hz", 'units = ["m/s^2", "g"]\nrate_hz')
    recipe = parse_recipe(text)
    good = signal_format("imu.left", ("y", "t", "x"), 32, units=("g", "s", "g"))
    assert recipe.matches(good) is None
    assert recipe.matches(replace(good, stream="imu", units=())) is None
    assert recipe.matches(replace(good, stream="eda")) == "stream `eda` is not `imu`"
    assert recipe.matches(replace(good, stream="imus")) == "stream `imus` is not `imu`"
    assert recipe.matches(replace(good, channels=("y", "t", "z"))) == "`imu.left` has no channel x; it has y, t, z"
    assert recipe.matches(replace(good, rate=Fraction(31))) == "`imu.left` is 31 Hz, expected 32 Hz"
    assert recipe.matches(replace(good, rate=Fraction(0))) == "`imu.left` is irregular, expected 32 Hz"
    assert "cannot be converted" in (recipe.matches(replace(good, units=("g", "s", "deg/s"))) or "")
    assert "uint8" in (recipe.matches(replace(good, dtype="uint8")) or "")
    placed = parse_recipe(text.replace('"imu"', '"imu.left"'))
    assert placed.matches(good) is None
    assert placed.matches(replace(good, stream="imu.right")) == "stream `imu.right` is not `imu.left`"


def test_names_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text(SMALL.format(hop=1))
    assert load_recipe("mine").name == "small"
    assert load_recipe("basicmotions").path == RECIPES / "basicmotions.toml"
    with pytest.raises(RecipeError, match=r"no recipe 'basicmotion'.*did you mean 'basicmotions'\?"):
        load_recipe("basicmotion")
    with pytest.raises(RecipeError, match=r"absent\.toml: cannot be read"):
        load_recipe("absent.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "x" / "y.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe("latin.toml")


def test_basicmotions() -> None:
    recipe = load_recipe("basicmotions")
    assert (recipe.window_length, recipe.window_hop) == (50, 10)
    out = recipe.output_format()
    assert (out.rows, out.shape) == (18, (9, 6))
    assert recipe.notes == ()


def test_written_recipes_read_the_same() -> None:
    tables = tomllib.loads(TEXT)
    assert tomllib.loads(format_recipe(tables)) == tables
    odd = {"name": 'quo"te\n\x7f', "a b": 1, "f": 1e-6, "g": True, "t": {"x y": [1.5, "z"], "i": {"1": "é"}}}
    assert tomllib.loads(format_recipe(odd)) == odd
    exact = tomllib.loads(format_recipe({"r": Fraction(30000, 1001), "s": Fraction(1, 8), "n": Fraction(3)}))
    assert exact == {"r": "30000/1001", "s": 0.125, "n": 3}


MUTATIONS: tuple[str, ...] = (
    "1",
    '"x"',
    "-1",
    "[]",
    "{}",
    "true",
    "1e400",
    "nan",
    "-inf",
    '["a"]',
    "1979-05-27",
    '""',
    "9" * 5000,
)


MUTATIONS += ('"1e999999999"', "1e999999999", '"1/0"', "[{}]", "[" * 50 + "]" * 50)


@pytest.mark.parametrize("line", [i for i, line in enumerate(TEXT.splitlines()) if "=" in line])
def test_any_wrong_value_is_a_recipe_error(line: int) -> None:
    for value in MUTATIONS:
        lines = TEXT.splitlines()
        lines[line] = f"{lines[line].partition('=')[0]}= {value}"
        with contextlib.suppress(RecipeError):
            parse_recipe("\n".join(lines))


SPECTROGRAM = '[[steps]]\nstep = "spectrogram"\nnperseg = 16\nnoverlap = {noverlap}\n[[steps]]\nstep = "log"\n'


def signal(recipe: Recipe, count: int) -> Chunk:
    data = np.random.default_rng(3).standard_normal((count, len(recipe.inputs[0].channels))).astype(np.float32)
    return Chunk(Header("s", 0, recipe.input_format()), 0, data)


def windows_of(chain: Chain, chunk: Chunk) -> list[Window]:
    stage = chain.build()
    return [*stage.push(chunk), *stage.flush()]


def test_a_hop_that_fits_shares_columns() -> None:
    recipe = parse_recipe(SMALL.format(hop=0.5) + SPECTROGRAM.format(noverlap=12))
    spectrogram = recipe.chain.specs[1]
    assert isinstance(spectrogram, Spectrogram)
    # 64 samples hold 13 columns; a hop of 16 samples makes 4 new ones: a block ends with each window's 13th.
    assert (spectrogram.chunk_frames, spectrogram.chunk_phase) == (4, 1)
    assert recipe.notes == ()
    stage, whole = recipe.chain.build(), signal(recipe, 128)
    seen = {}
    for i in range(128):
        for window in stage.push(replace(whole, first_index=i, data=whole.data[i : i + 1])):
            seen[window.start_index] = i + 1
    assert seen == {start: start + 64 for start in range(0, 65, 16)}, "each window is whole with its last sample"


def test_a_hop_that_does_not_fit_moves_steps_behind_the_window() -> None:
    recipe = parse_recipe(SMALL.format(hop=0.5) + SPECTROGRAM.format(noverlap=11))
    (note,) = recipe.notes
    assert "no multiple of the 5" in note
    assert "10 rows a window instead of 3.2 new ones, 3.1 times the work" in note
    behind = (SMALL.format(hop=0.5) + SPECTROGRAM.format(noverlap=11)).replace("[[steps]]", "[[window.steps]]")
    assert recipe.chain == parse_recipe(behind).chain
    assert [type(s) for s in recipe.chain.specs[1:]] == [Windows, PerWindow, PerWindow]


def test_moved_steps_give_the_same_numbers() -> None:
    texts = [SMALL.format(hop=hop) + SPECTROGRAM.format(noverlap=12) for hop in ("0.5", "0.46875")]
    shared, moved = (parse_recipe(text) for text in texts)
    assert moved.notes
    assert not shared.notes
    at: list[dict[int, Array]] = [
        {w.start_index: w.data for w in windows_of(r.chain, signal(r, 600))} for r in (shared, moved)
    ]
    common = at[0].keys() & at[1].keys()
    assert common == {0, 240, 480}
    for start in common:
        np.testing.assert_array_equal(at[0][start], at[1][start])
    out = moved.output_format()
    assert at[1][0].shape == (out.rows, *out.shape)


@pytest.mark.parametrize(
    ("length_s", "hop_s", "noverlap"),
    [(2, 0.5, 12), (2, 3, 12), (0.5, 0.5, 0), (2, 2, 15), (1.5, 0.25, 8), (2.03125, 1, 14), (2, 0.75, 11)],
)
def test_windows_hold_what_each_would_alone(length_s: float, hop_s: float, noverlap: int) -> None:
    text = (SMALL.format(hop=hop_s) + SPECTROGRAM.format(noverlap=noverlap)).replace("= 2\n", f"= {length_s}\n", 1)
    recipe = parse_recipe(text)
    length, hop, chunk = recipe.window_length, recipe.window_hop, signal(recipe, 500)
    found = {w.start_index: w.data for w in windows_of(recipe.chain, chunk)}
    assert list(found) == list(range(0, 500 - length + 1, hop))
    steps = [s.spec if isinstance(s, PerWindow) else s for s in recipe.chain.specs[1:] if not isinstance(s, Windows)]
    for start, data in found.items():
        alone, fmt = chunk.data[start : start + length], recipe.input_format()
        for step in steps:
            alone, fmt = step.apply(alone, fmt), step.output({fmt.stream: fmt})
        np.testing.assert_array_equal(data, alone)


def test_a_step_that_cannot_move_is_an_error_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spectrogram, "after_window", False)
    with pytest.raises(RecipeError, match=r"line 9: .*make the hop a multiple"):
        parse_recipe(SMALL.format(hop=0.5) + SPECTROGRAM.format(noverlap=11))
