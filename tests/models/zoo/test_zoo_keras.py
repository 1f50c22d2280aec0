"""The Keras architectures: their variants, what is frozen, several heads, what they refuse."""

from __future__ import annotations

import re
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo_checks import BATCHES, TOLERANCE

from kymo.models.onnx_model import OnnxModel
from kymo.models.training.export import INPUT, OUTPUT, export_model
from kymo.models.zoo import FitOptions, ModelHead, Samples, architecture
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError

pytestmark = pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
LABELS = ("a", "b", "c")
HEADS = (ModelHead("surface", ("track", "road")), ModelHead("seconds_10k", weight=0.5))


def made(name: str, rows: int, shape: tuple[int, ...], heads: tuple[ModelHead, ...] = (), **parameters: Any) -> Any:
    fmt = Format("spectrogram", ("c",) * shape[-1], (), Fraction(50), "float32", shape, rows=rows)
    make: Any = architecture(name)
    return make(fmt, LABELS, {**make.cpu_sized, **parameters}, 0, heads)


def noise(n: int, *shape: int) -> Array:
    return np.random.default_rng(n).standard_normal((n, *shape)).astype(np.float32)


def settled(model: Any, windows: Array) -> None:
    """One epoch, so that every weight and every running mean has moved away from where it began."""
    classes = np.arange(len(windows)) % 3
    targets = {"surface": classes % 2, "seconds_10k": np.linspace(2400, 4200, len(windows)).astype(np.float32)}
    model.fit(Samples(windows, classes, targets=targets), None, FitOptions(epochs=1), lambda _: None)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((46, 33, 12), {"front": "conv3d"}),
        ((19, 8, 2), {"front": "conv3d", "batch_norm": False}),
        ((23, 17, 6), {"front": "deep", "backbone": "resnet18"}),
        ((1, 1, 1), {"front": "none"}),
        ((300, 3), {"dropout": 0.5}),
    ],
)
def test_resnet_variants_export_what_they_compute(shape: tuple[int, ...], parameters: dict[str, Any]) -> None:
    model, windows = made("spectrogram_resnet", shape[0], shape[1:], **parameters), noise(16, *shape)
    settled(model, windows)
    exported = export_model(model, shape, windows)
    assert exported.batch == "any"
    assert exported.parity < 1e-5


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((19, 8, 2), {"bidirectional": True, "attention": True, "layers": 2, "cell": "gru"}),
        ((40, 3), {"units": [12, 5], "dense": 7, "bidirectional": True, "patch": 4}),
        ((900, 2), {"units": [6, 9], "dense": 4, "attention": True}),
        ((1, 3), {"masking": False}),
        ((9, 5), {"units": [8, 8, 8], "dense": 4, "batch_norm": True, "dropout": [0.2, 0.1, 0.1, 0.2], "half": True}),
    ],
)
def test_recurrent_variants_export_what_they_compute(shape: tuple[int, ...], parameters: dict[str, Any]) -> None:
    model, windows = made("recurrent", shape[0], shape[1:], **parameters), noise(16, *shape)
    windows[2, shape[0] // 3 :] = 0  # shorter than the others
    windows[3] = 0  # nothing at all
    windows[4, : shape[0] // 2] = 0  # zeros in front are values
    settled(model, windows)
    exported = export_model(model, shape, windows)
    assert exported.parity < 1e-5
    onnx_model = OnnxModel(exported.model, INPUT, OUTPUT)
    for length in (shape[0], shape[0] + 11, max(model.patch, shape[0] - 3)):
        other = noise(7, length, *shape[1:])
        other[1, length // 2 :] = 0
        np.testing.assert_allclose(onnx_model.run(other), model.predict(other), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "parameters", [{"bidirectional": True, "patch": 4}, {"attention": True, "cell": "gru", "layers": 2}]
)
def test_padding_changes_nothing(parameters: dict[str, Any]) -> None:
    model, short = made("recurrent", 24, (3,), **parameters), noise(4, 16, 3)
    padded = np.zeros((4, 24, 3), np.float32)
    padded[:, :16] = short
    np.testing.assert_allclose(model.predict(padded), model.predict(short), rtol=1e-5, atol=1e-6)
    blind = made("recurrent", 24, (3,), **parameters, masking=False)
    blind.model.set_weights(model.model.get_weights())
    assert np.abs(blind.predict(padded) - blind.predict(short)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "shape", "precision"),
    [("spectrogram_resnet", (19, 8, 3), "off"), ("recurrent", (19, 24), "on")],
)
def test_several_heads_learn_classes_and_numbers(name: str, shape: tuple[int, ...], precision: str) -> None:
    model, windows = made(name, shape[0], shape[1:], HEADS, learning_rate=0.01), noise(8, *shape)
    numbers = np.array([2400, 2700, 3000, np.nan, 3300, 3600, 3900, 4200], np.float32)
    surface = np.array([0, 1, 0, 1, -1, 0, 1, 0])
    samples = Samples(windows, np.arange(8) % 3, targets={"surface": surface, "seconds_10k": numbers})
    options = FitOptions(epochs=80, schedule="none", mixed_precision=precision)
    model.fit(samples, None, options, lambda _: None)
    out = model.predict(windows)
    assert out.shape == (8, 3 + 2 + 1)
    assert out[:, :3].argmax(1).tolist() == samples.classes.tolist()
    assert (out[:, 3:5].argmax(1) == surface)[surface >= 0].all()
    known = np.isfinite(numbers)
    assert np.abs(out[known, 5] - numbers[known]).max() < 200  # of 2400 to 4200 s
    exported = export_model(model, shape, windows)
    np.testing.assert_allclose(OnnxModel(exported.model, INPUT, OUTPUT).run(windows), out, rtol=1e-5, atol=1e-5)


def weights(model: Any) -> dict[str, list[bytes]]:
    return {layer.name: [w.tobytes() for w in layer.get_weights()] for layer in model.model.layers if layer.weights}


@pytest.mark.parametrize(
    ("frozen", "still"),
    [
        ({"frozen_names": "stem_conv, stage2_block1_0_*"}, ["stem_conv", "stage2_block1_0_conv", "stage2_block1_0_bn"]),
        ({"frozen_layers": 2}, ["stem_conv", "stem_bn"]),
        ({"frozen_share": 1.0}, None),
    ],
)
def test_frozen_layers_keep_their_weights(frozen: dict[str, Any], still: list[str] | None) -> None:
    model = made("spectrogram_resnet", 19, (8, 3), **frozen)
    front = {"front_1_conv", "front_1_bn", "front_2_conv", "front_2_bn", "logits"}
    before = weights(model)
    settled(model, noise(8, 19, 8, 3))
    after = weights(model)
    same = {name for name in before if before[name] == after[name]}
    assert same == (before.keys() - front if still is None else set(still))


def test_saved_weights_make_the_same_model(tmp_path: Path) -> None:
    trained, other = (made("spectrogram_resnet", 19, (8, 3)) for _ in range(2))
    windows = noise(8, 19, 8, 3)
    settled(trained, windows)
    assert other.predict(windows).tobytes() != trained.predict(windows).tobytes()
    (tmp_path / "saved.weights.h5").write_bytes(trained.weights())
    other.model.load_weights(tmp_path / "saved.weights.h5")
    assert other.predict(windows).tobytes() == trained.predict(windows).tobytes()


@pytest.fixture
def _no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit ends where its steps would begin."""
    from kymo.models.zoo.keras_onnx import KerasArchitecture

    monkeypatch.setattr(KerasArchitecture, "fit_model", staticmethod(lambda *_: None))


@pytest.mark.usefixtures("_no_steps")
def test_weights_come_from_a_file(tmp_path: Path) -> None:
    from kymo.models.training.fit_keras import keras

    keras.utils.set_random_seed(5)
    learned = keras.applications.EfficientNetB0(include_top=False, weights=None)
    learned.save_weights(tmp_path / "learned.weights.h5")
    path = str(tmp_path / "learned.weights.h5")
    model = made("spectrogram_resnet", 12, (10, 2), backbone="efficientnetb0", width=0, weights=path)
    settled(model, noise(4, 12, 10, 2))
    mine = {layer.name: layer.get_weights() for layer in model.model.layers}
    compared = 0
    for layer in learned.layers:
        for here, there in zip(mine.get(layer.name, []), layer.get_weights(), strict=False):
            assert here.tobytes() == there.tobytes(), layer.name
            compared += 1
    assert (compared > 300, model.notes) == (True, [])
    other = made("spectrogram_resnet", 12, (10, 2), backbone="resnet50", width=0, weights=path)
    with pytest.raises(TrainingError, match="not those of resnet50 without its top"):
        settled(other, noise(4, 12, 10, 2))


@pytest.mark.usefixtures("_no_steps")
def test_without_network_it_begins_fresh_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    model = made("spectrogram_resnet", 12, (10, 2), backbone="efficientnetb0", width=0)
    before = weights(model)
    settled(model, noise(4, 12, 10, 2))
    (note,) = model.notes
    assert re.match(r"no ImageNet weights of efficientnetb0: URL fetch failure .* begins with fresh ones", note)
    assert note in caplog.text
    assert weights(model) == before
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("spectrogram_resnet", {"backbone": "resnet5"}, "backbone = 'resnet5', expected one of small, resnet18"),
        ("spectrogram_resnet", {"front": "none", "backbone": "resnet50", "width": 0}, "resnet50 takes 3 channels"),
        (
            "spectrogram_resnet",
            {"weights": "none.h5"},
            "weights = 'none.h5': expected imagenet, fresh or, for resnet50",
        ),
        ("spectrogram_resnet", {"backbone": "resnet50"}, "width is for small and resnet18 alone"),
        ("spectrogram_resnet", {"frozen_names": "conv1*"}, r"small has no layer 'conv1\*'; it begins with stem_conv"),
        ("spectrogram_resnet", {"frozen_layers": 99}, "frozen_layers = 99, but small has"),
        ("spectrogram_resnet", {"frozen_layers": 1, "frozen_share": 0.5}, "takes one of frozen_names"),
        ("spectrogram_resnet", {"frozen_share": 1.5}, "frozen_share = 1.5, expected a number from 0 to 1"),
        ("spectrogram_resnet", {"momentum": 1.0}, "momentum = 1.0, expected a number from 0 to below 1"),
        ("spectrogram_resnet", {"dropout": 1.0}, "dropout = 1.0, expected a number from 0 to below 1"),
        ("recurrent", {"cell": "rnn"}, "cell = 'rnn', expected one of lstm, gru"),
        ("recurrent", {"units": 0}, "units = 0, expected a whole number from 1"),
        ("recurrent", {"units": [8, 0]}, "units = .8, 0., expected a whole number from 1, or one a layer"),
        ("recurrent", {"units": [8, 4.5]}, "units = .8, 4.5., expected a whole number from 1, or one a layer"),
        ("recurrent", {"units": [8, 4], "layers": 3}, "layers = 3, but units has 2"),
        ("recurrent", {"dense": -1}, "dense = -1, expected a whole number from 0"),
        ("recurrent", {"patch": 20}, "patch = 20, but a window has 19"),
        ("recurrent", {"learning_rate": 0.0}, "learning_rate = 0.0, expected a number above 0"),
        ("recurrent", {"attenton": True}, "has no parameter 'attenton' here; did you mean 'attention'"),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        made(name, 19, (8, 2), **parameters)


def test_other_axes_and_layers_are_refused(tmp_path: Path) -> None:
    from kymo.models.training.fit_keras import keras
    from kymo.models.zoo.keras_onnx import keras_to_onnx

    with pytest.raises(TrainingError, match="the recipe makes 4 axes"):
        made("spectrogram_resnet", 5, (8, 8, 3))
    source = keras.Input((5, 5, 2))
    model = keras.Model(source, keras.layers.Flatten()(keras.layers.LayerNormalization()(source)))
    with pytest.raises(
        TrainingError, match="is a LayerNormalization, which has no ONNX form here; known are Activation"
    ):
        keras_to_onnx(model, INPUT, OUTPUT)


@pytest.mark.large
@pytest.mark.parametrize("backbone", ["resnet50", "resnet152", "efficientnetb0"])
def test_large_networks(backbone: str, tmp_path: Path) -> None:
    """Spectrograms of 12 channels at 500 Hz: built, one step of training, exported, equal; not trained."""
    shape = (46, 223, 12)
    model = made("spectrogram_resnet", 46, (223, 12), backbone=backbone, width=0, weights="fresh", frozen_share=0.3)
    windows = noise(16, *shape)
    losses: list[float] = []
    samples = Samples(windows[:8], np.arange(8) % 3)
    model.fit(samples, None, FitOptions(epochs=1, batch_size=8), lambda epoch: losses.append(epoch["loss"]))
    assert np.isfinite(losses).all()
    spread_out(model)
    model.export(tmp_path / "model.onnx", INPUT, OUTPUT)
    onnx_model = OnnxModel(tmp_path / "model.onnx", INPUT, OUTPUT)
    expected = model.predict(windows)
    assert expected.std(0).min() > 100 * TOLERANCE
    for n in BATCHES:
        np.testing.assert_allclose(onnx_model.run(windows[:n]), expected[:n], rtol=TOLERANCE, atol=TOLERANCE)


def spread_out(model: Any) -> None:
    """Weights under which the outputs differ from window to window: after one step, they hardly do."""
    layer = model.model.get_layer("logits")
    kernel, bias = layer.get_weights()
    features = type(model.model)(model.model.inputs, layer.input)
    spread = np.asarray(features.predict_on_batch(noise(4, *model.model.input_shape[1:]))).std(0).mean()
    layer.set_weights([kernel / spread, bias])


def test_a_half_as_large_file_holds_what_the_network_keeps() -> None:
    import onnx

    graphs = []
    for half in (False, True):
        model, windows = made("recurrent", 9, (34,), units=[64, 64], half=half, masking=False), noise(16, 9, 34)
        settled(model, windows)
        before = model.predict(windows)
        exported = export_model(model, (9, 34), windows)
        graphs.append(exported.model)
        assert exported.parity < 1e-5
        assert np.abs(model.predict(windows) - before).max() < 0.01
    assert len(graphs[1]) < 0.55 * len(graphs[0])
    kinds = {tensor.data_type for tensor in onnx.load_from_string(graphs[1]).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_dropout_of_each_layer() -> None:
    model = made("recurrent", 9, (34,), units=[4, 4], dense=3, dropout=[0.3, 0.2, 0.1], batch_norm=True)
    layers = [layer for layer in model.model.layers if hasattr(layer, "rate") or "norm" in layer.name]
    assert [getattr(layer, "rate", "norm") for layer in layers] == [0.3, "norm", 0.2, "norm", 0.1]
    with pytest.raises(
        TrainingError, match="dropout has 1 numbers; expected one behind each layer, the dense one too: 3"
    ):
        made("recurrent", 9, (34,), units=[4, 4], dense=3, dropout=[0.3])


@pytest.mark.filterwarnings("ignore::UserWarning")  # the interpreter is about to move to a package of its own
def test_tflite_says_what_the_network_says() -> None:
    from kymo.models.training.fit_keras import tf

    model = made("recurrent", 9, (34,), units=[32, 32], dense=32, batch_norm=True, masking=False)
    windows, sizes = noise(5, 9, 34), []
    settled(model, windows)
    for int8, tolerance in ((False, 1e-4), (True, 0.05)):
        content = model.tflite(int8)
        interpreter = tf.lite.Interpreter(model_content=content)
        interpreter.allocate_tensors()
        (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
        for window, logits in zip(windows, model.predict(windows), strict=True):
            interpreter.set_tensor(taken["index"], window[None])
            interpreter.invoke()
            np.testing.assert_allclose(interpreter.get_tensor(given["index"])[0], logits, atol=tolerance)
        sizes.append(len(content))
    assert sizes[1] < 0.6 * sizes[0]
