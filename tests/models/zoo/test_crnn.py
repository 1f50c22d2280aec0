"""The CRNN: cached features, padding, the source's quirks, state carried, a run's files and how it goes on; else see zoo_checks.py."""

from __future__ import annotations

import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")

from kymo.models.training.crnn_run import ClipSet, CrnnRun, random_split  # noqa: E402
from kymo.models.training.export import export_stateful, load_stateful  # noqa: E402
from kymo.models.zoo import FitOptions, Samples  # noqa: E402
from kymo.models.zoo.crnn import Crnn  # noqa: E402
from kymo.processors.steps.animation import Animation  # noqa: E402
from kymo.streams.chunk import Format, signal_format  # noqa: E402
from kymo.streams.errors import TrainingError  # noqa: E402

LABELS = ("classical", "instrumental", "pop")


def network(rows: int = 6, **parameters: Any) -> Crnn:
    fmt = Format("animation", ("red", "green", "blue"), (), Fraction(2, 15), "uint8", (12, 12, 3), rows=rows)
    small = {
        "backbone": "small",
        "dense": (16,),
        "embedding": 8,
        "units": 8,
        "layers": 2,
        "decoder": 8,
        "learning_rate": 1e-2,
    }
    return Crnn(fmt, LABELS, {**small, **parameters}, 0)


def clips(count: int = 12, rows: int = 6) -> Any:
    return np.random.default_rng(1).integers(1, 255, (count, rows, 12, 12, 3)).astype(np.float32)


def learn(model: Crnn, epochs: int = 3) -> Crnn:
    model.fit(Samples(clips(), np.arange(12) % 3), None, FitOptions(epochs=epochs, schedule="none"), lambda _: None)
    return model


def test_published_layers() -> None:
    model = network(dense=(1024, 768), embedding=512, units=512, layers=3, decoder=256).model
    encoder = [(m.in_features, m.out_features) for m in model.encoder["dense"] if isinstance(m, torch.nn.Linear)]
    decoder = [(m.in_features, m.out_features) for m in model.decoder["dense"] if isinstance(m, torch.nn.Linear)]
    assert (encoder, decoder) == ([(64, 1024), (1024, 768), (768, 512)], [(512, 256), (256, 3)])
    assert (model.decoder["lstm"].num_layers, model.decoder["lstm"].hidden_size) == (3, 512)
    assert {m.momentum for m in model.encoder["dense"] if isinstance(m, torch.nn.BatchNorm1d)} == {0.01}


def test_a_frozen_backbone_keeps_its_weights_and_learns_the_same_with_and_without_cached_features() -> None:
    cached, whole = network(), network()
    before = {name: tensor.clone() for name, tensor in cached.model.encoder["backbone"].state_dict().items()}
    learn(cached)
    options = FitOptions(epochs=3, schedule="none", augment=lambda windows, random: windows)
    whole.fit(Samples(clips(), np.arange(12) % 3), None, options, lambda _: None)
    for name, tensor in cached.model.encoder["backbone"].state_dict().items():
        assert torch.equal(tensor, before[name]), name
    np.testing.assert_allclose(cached.predict(clips()), whole.predict(clips()), rtol=1e-3, atol=1e-4)
    assert "what it sees is random" in cached.notes[0]


def test_what_a_fresh_frozen_backbone_sees_is_learned_although_it_hardly_varies() -> None:
    """Batch normalisation's running means move by a hundredth a batch; what was learned must hold when they are used."""
    classes = np.arange(48) % 3
    windows = 128 + 3 * np.random.default_rng(0).standard_normal((48, 6, 12, 12, 3)).astype(np.float32)
    windows[..., 0] += 8 * classes[:, None, None, None]
    model = network(dense=(64, 32), embedding=16, units=16, layers=1, decoder=0)
    model.fit(Samples(windows, classes), None, FitOptions(epochs=25, schedule="none"), lambda _: None)
    assert (model.predict(windows).argmax(1) == classes).mean() > 0.9


@pytest.mark.parametrize("effect", [True, False])
def test_a_backbone_that_learns_tells_in_frames_how_often_the_skin_responds(effect: bool) -> None:
    """Of unseen clips; and what is not there it does not tell."""
    random, fmt = np.random.default_rng(0), signal_format("skin", ("eda",), 4)
    step = Animation(height=40, width=40, rate_hz="0.1", eda=(-2, 2)).at(fmt)
    classes, seconds, windows = np.arange(300) % 3, np.arange(180) / 4, []
    for i in classes:
        period_s = (4, 8, 20)[i if effect else random.integers(3)] * random.uniform(0.9, 1.1)
        wave = random.uniform(0.7, 1.3) * np.sin(2 * np.pi * (seconds / period_s + random.random()))
        signal = random.normal(0, 0.5) + wave + random.normal(0, 0.1, len(seconds))
        windows.append(step.kernel(signal[None].astype(np.float32), fmt).astype(np.float32))
    frames, learned = np.stack(windows), np.arange(300) < 200
    shape = replace(step.output({"skin": fmt}), rows=len(windows[0]))
    parameters = {**Crnn.cpu_sized, "dense": (), "batch_size": 10}
    model = Crnn(shape, LABELS, parameters, 0)
    model.fit(
        Samples(frames[learned], classes[learned]), None, FitOptions(epochs=12, schedule="cosine"), lambda _: None
    )
    right = (model.predict(frames[~learned]).argmax(1) == classes[~learned]).mean()
    assert right > 0.8 if effect else right < 0.55


@pytest.mark.parametrize("frozen", [True, False])
def test_black_frames_at_the_end_are_padding(frozen: bool) -> None:
    model, padded = learn(network(frozen=frozen)), clips()
    padded[:, 4:] = 0
    np.testing.assert_allclose(model.predict(padded), model.predict(padded[:, :4]), atol=1e-5)
    assert np.abs(model.predict(padded) - model.predict(clips())).max() > 1e-3


def test_the_quirks_of_the_source() -> None:
    plain = learn(network())
    fresh, last = network(), learn(network(quirks=("last_layer",)))
    assert torch.equal(fresh.model.decoder["dense"][-1].weight, last.model.decoder["dense"][-1].weight)
    assert not torch.equal(fresh.model.decoder["dense"][-1].weight, plain.model.decoder["dense"][-1].weight)
    np.testing.assert_allclose(learn(network(quirks=("softmax",))).predict(clips()).sum(1), 1, rtol=1e-5)
    assert np.abs(plain.predict(clips()).sum(1) - 1).max() > 1e-3
    moved = learn(network(quirks=("batch_norm",))).model.encoder["backbone"].state_dict()
    before = fresh.model.encoder["backbone"].state_dict()
    changed = {name.rpartition(".")[2] for name, tensor in moved.items() if not torch.equal(tensor, before[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


def test_state_carried_frame_by_frame_gives_what_the_whole_clip_gives() -> None:
    model = learn(network(rows=1, stateful=True))
    assert export_stateful(model, clips(3)).parity is not None  # compares within 1e-4, or raises
    stateful, clip = load_stateful(model), clips(1)[0]
    state = stateful.start()
    said = []
    for frame in clip:
        state, logits = stateful.step(state, frame[None])
        said.append(logits[0])
    for i in range(len(clip)):
        np.testing.assert_allclose(said[i], model.predict(clip[None, : i + 1])[0], rtol=1e-4, atol=1e-4)


def test_weights_come_from_a_folder(tmp_path: Path) -> None:
    source = network(frozen=False)
    source.model.encoder["backbone"].save_pretrained(tmp_path)
    taken = network(weights=str(tmp_path))
    assert not taken.notes
    wanted = source.model.encoder["backbone"].state_dict()
    assert all(torch.equal(tensor, wanted[n]) for n, tensor in taken.model.encoder["backbone"].state_dict().items())
    with pytest.raises(TrainingError, match="not those of resnet18"):
        network(backbone="resnet18", weights=str(tmp_path))
    with pytest.raises(TrainingError, match="neither a folder with a ResNetModel"):
        network(weights=str(tmp_path / "nothing"))


def run(folder: Path, epochs: int, seed: int = 0) -> CrnnRun:
    names = [f"P{i // 3:02d}_music{i % 3 + 1:02d}" for i in range(12)]
    test = random_split(12, seed=seed)
    data = ClipSet(Samples(clips(), np.arange(12) % 3), names, [name[:3] for name in names], LABELS, test)
    return CrnnRun(network(batch_size=4), data, folder).train(epochs)


def test_a_run_leaves_all_files_and_goes_on_from_them(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "stopped", 1)
    (tmp_path / "stopped" / "save_model" / "cnn_encoder_epoch2.pth").write_bytes(b"killed")
    resumed = run(tmp_path / "stopped", 3)
    assert resumed.curves == whole.curves
    scores = whole.write(2)
    folder = tmp_path / "whole"
    assert {path.name for path in (folder / "save_model").iterdir()} == {
        f"{part}_epoch{n}.pth" for part in ("cnn_encoder", "rnn_decoder", "optimizer") for n in (1, 2, 3)
    }
    assert np.load(folder / "CRNN_epoch_training_losses.npy").shape == (3, 3)  # 9 clips in batches of 3
    assert np.load(folder / "CRNN_epoch_test_accuracy.npy").shape == (3,)
    assert pickle.loads((folder / "3_classes.pkl").read_bytes()) == list(LABELS)
    table = pandas.read_pickle(folder / "Ginger_bread.pkl")
    test = random_split(12, seed=0)
    right = (table["y"] == table["y_pred"])[test].mean()
    assert right == whole.curves["test_accuracy"][1] == scores["window_accuracy"]
    parquet = pandas.read_parquet(folder / "clips.parquet")
    assert (parquet["side"] == "test").tolist() == test.tolist()
    np.testing.assert_allclose(parquet[list(LABELS)].sum(1), 1)
    assert (folder / "fig_Gingerbread_ResNetCRNN.png").stat().st_size > 1000
    page = (folder / "report" / "report.html").read_text()
    assert all(text in page for text in ("Epoch 2 of 3", "Learning curves", "Confusion", "Split by clip"))
    with pytest.raises(TrainingError, match="epoch 4 is not there"):
        whole.write(4)
