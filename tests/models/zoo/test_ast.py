"""The Audio Spectrogram Transformer: tiles and channels, a pretrained one, what is refused; else see zoo_checks.py."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kymo.models.training.export import export_model  # noqa: E402
from kymo.models.zoo import FitOptions, Samples  # noqa: E402
from kymo.models.zoo.ast import Ast  # noqa: E402
from kymo.streams.chunk import Format  # noqa: E402
from kymo.streams.errors import TrainingError  # noqa: E402


def network(rows: int, shape: tuple[int, ...], **parameters: Any) -> Ast:
    fmt = Format("spectrogram", ("c",) * shape[-1], (), Fraction(50), "float32", shape, rows=rows)
    return Ast(fmt, ("a", "b", "c"), {"width": 16, "depth": 1, "heads": 2, **parameters}, 0)


def batch(count: int, *shape: int) -> Any:
    return np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "shape", "parameters"),
    [
        (16, (16, 3), {}),
        (17, (9, 2), {"patch_time": 4, "patch_bins": 3, "stride_time": 2, "stride_bins": 2}),
        (16, (16, 3), {"layout": "channels", "patch_bins": 8}),
        (30, (4,), {}),
        (3, (5, 1), {}),
    ],
)
def test_takes_any_shape(rows: int, shape: tuple[int, ...], parameters: dict[str, Any]) -> None:
    made = network(rows, shape, **parameters)
    windows = batch(5, shape[-1], rows, *shape[:-1])
    logits = made.predict(windows)
    assert (logits.shape, logits.dtype) == ((5, 3), np.float32)
    assert export_model(made, windows.shape[1:], windows).parity <= 1e-5
    assert np.ptp(logits, 0).min() > 0


def stored(folder: Path, bins: int, time: int) -> Any:
    """A tiny model of transformers in a folder, with positions that are not 0."""
    torch.manual_seed(3)
    config = transformers.ASTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        patch_size=4,
        frequency_stride=2,
        time_stride=3,
        num_mel_bins=bins,
        max_length=time,
    )
    model = transformers.ASTModel(config).eval()
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(folder)
    return model


def test_a_pretrained_one_gives_its_own_features(tmp_path: Path) -> None:
    model = stored(tmp_path, 8, 13)
    made = network(13, (8, 1), pretrained=str(tmp_path))
    windows = batch(4, 1, 13, 8)
    with torch.inference_mode():
        pooled = model(torch.from_numpy(windows[:, 0])).pooler_output
        wanted = made.model.head(pooled).numpy()
    np.testing.assert_allclose(made.predict(windows), wanted, rtol=1e-5, atol=1e-6)


def test_a_pretrained_one_is_fitted_to_the_window(tmp_path: Path) -> None:
    stored(tmp_path, 8, 13)
    for layout, channels in (("tiles", 2), ("channels", 3)):
        made = network(20, (8, channels), pretrained=str(tmp_path), layout=layout)
        windows = batch(8, channels, 20, 8)
        before = made.model.model.layers[0].mlp.fc1.weight.detach().clone()
        made.fit(Samples(windows, np.arange(8) % 3), None, FitOptions(epochs=1), lambda _: None)
        assert not torch.equal(before, made.model.model.layers[0].mlp.fc1.weight)
        assert export_model(made, windows.shape[1:], windows).parity <= 1e-5
    with pytest.raises(TrainingError, match=r"patches of 4 x 4, the recipe makes only 3 bins and 20 columns"):
        network(20, (3, 1), pretrained=str(tmp_path))


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"neither a folder with an ASTModel, nor to be had .*leave pretrained out"):
        network(13, (8, 1), pretrained=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingError, match=r"pretrained = 'nobody/nothing': .*without a network, fetch it elsewhere"):
        network(13, (8, 1), pretrained="nobody/nothing")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 15}, "width = 15 is no multiple of heads = 2"),
        ({"depth": 0}, "depth = 0, expected a whole number from 1"),
        ({"stride_time": -1}, "stride_time = -1, expected a whole number from 0"),
        ({"layout": "rows"}, "expected one of tiles, channels"),
        ({"dropout": 1.0}, "dropout = 1.0, expected a number from 0 to below 1"),
        ({"learnin_rate": 1.0}, "did you mean 'learning_rate'"),
    ],
)
def test_refuses_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        network(16, (8, 2), **parameters)


def test_refuses_other_axes() -> None:
    with pytest.raises(TrainingError, match=r"makes 4 axes"):
        network(6, (8, 8, 3))
