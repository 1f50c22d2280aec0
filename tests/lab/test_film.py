"""`kymo plot --out X.mp4`: the frames of a recipe's steps, or of a recording, as a film."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verbs import invoke

from kymo.lab.look.film import frames_of, write_film
from kymo.processors.recipe.load import load_recipe
from kymo.processors.steps.animation import Animation
from kymo.processors.steps.images import Encode
from kymo.streams.chunk import Array, Format, Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
cv2 = pytest.importorskip("cv2", reason="the extra `video` is not installed")

RECIPE = """
name = "skin"
[[input]]
stream = "eda"
rate_hz = 4
channels = ["eda"]
{}
[window]
length_s = 20
hop_s = 5
"""
STEP = 'step = "animation"\nrate_hz = 2\nheight = 50\nwidth = 64\neda = [0, 3]\n'
EDA = signal_format("eda", ("eda",), 4)


@pytest.fixture
def skin(tmp_path: Path) -> Array:
    """A minute and a half of EDA, in eda.csv."""
    values = (1.5 + np.sin(np.arange(360) / 15)).astype(np.float32)
    rows = [f"{1000 + i / 4},{value}" for i, value in enumerate(values.tolist())]
    (tmp_path / "eda.csv").write_text("\n".join(["t,eda", *rows, ""]))
    return values[:, None]


def frames_in(path: Path) -> list[Array]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1].astype(int))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(15)
    return frames


@pytest.mark.parametrize("table", ["[[steps]]", "[[window.steps]]"])
def test_what_a_recipe_draws_as_mp4(tmp_path: Path, skin: Array, table: str) -> None:
    behind = table == "[[window.steps]]"
    text = RECIPE.format("") + f"{table}\n{STEP}" if behind else RECIPE.format(f"{table}\n{STEP}")
    (tmp_path / "skin.toml").write_text(text)
    out = tmp_path / "eda.mp4"
    done = invoke("plot", tmp_path / "eda.csv", "--recipe", tmp_path / "skin.toml", "--fps", 15, "--out", out)
    assert done.stdout.strip() == str(out)
    wanted = Animation(rate_hz=2, height=50, width=64, eda=(0, 3)).at(EDA).apply(skin, EDA)
    film = frames_in(out)
    assert len(film) == len(wanted)
    for i in (0, 60, len(film) - 1):
        assert np.abs(film[i] - wanted[i].astype(int)).mean() < 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eda.csv", "eda.mp4", "skin.toml"]


def test_as_gif(tmp_path: Path, skin: Array) -> None:
    from PIL import Image

    (tmp_path / "skin.toml").write_text(RECIPE.format(f"[[steps]]\n{STEP}"))
    words = ["--recipe", tmp_path / "skin.toml", "--start", 10, "--duration", 30, "--out", tmp_path / "a.gif"]
    invoke("plot", tmp_path / "eda.csv", *words)
    wanted = Animation(rate_hz=2, height=50, width=64, eda=(0, 3)).at(EDA).apply(skin[40:160], EDA)
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.info["duration"]) == (len(wanted), 500)
        for i in (0, 20):
            film.seek(i)
            assert np.abs(np.asarray(film.convert("RGB"), int) - wanted[i]).max() < 20


def test_frames_of_a_recording() -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (3, 1, 1, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    fmt = Format("video", ("red", "green", "blue"), (), Fraction(5), "uint8", (16, 16, 3))
    for data, of in ((pixels, fmt), (Encode().apply(pixels, fmt), Encode().output({"video": fmt}))):
        stream = StreamData.from_indexes(Header("s", 0, of), data, np.array([0, 1, 7]))
        found, frames = frames_of(Recording("s", [stream], []))
        assert found.rate == 5
        assert np.abs(np.stack(list(frames)).astype(int) - pixels).max() < 5


def test_what_has_no_frames(tmp_path: Path, skin: Array) -> None:
    (tmp_path / "skin.toml").write_text(RECIPE.format(""))
    (recording,) = read([str(tmp_path / "eda.csv")])

    def why(recipe: Any = None) -> str:
        with pytest.raises(SourceError) as failed:
            frames_of(recording, recipe)
        return str(failed.value)

    assert "has no stream of frames, only sensor; name with --recipe one" in why()
    recipe = load_recipe(tmp_path / "skin.toml")
    (recording,) = read([str(tmp_path / "eda.csv")], recipe.read_options())
    assert "recipe `skin` has no step that makes frames" in why(recipe)
    with pytest.raises(SourceError, match="no frame"):
        write_film(tmp_path / "a.mp4", [], 4)
    (tmp_path / "other.csv").write_bytes((tmp_path / "eda.csv").read_bytes())
    done = invoke("plot", tmp_path, "--recipe", tmp_path / "skin.toml", "--out", tmp_path / "a.gif", status=1)
    assert "a film shows one session; name one with --session" in done.stderr
