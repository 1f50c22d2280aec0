"""From recipe to chain: where steps stand, and that windows hold the same numbers wherever that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Array, Chunk, Header, Window
from kymo.streams.errors import RecipeError

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


SPECTROGRAM = '[[steps]]\nstep = "spectrogram"\nnperseg = 16\nnoverlap = {noverlap}\n[[steps]]\nstep = "log"\n'


def signal(recipe: Recipe, count: int) -> Chunk:
    """Noise on the recipe's input."""
    data = np.random.default_rng(3).standard_normal((count, len(recipe.inputs[0].channels))).astype(np.float32)
    return Chunk(Header("s", 0, recipe.input_format()), 0, data)


def windows_of(chain: Chain, chunk: Chunk) -> list[Window]:
    """Windows of a chunk that is a whole session."""
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
