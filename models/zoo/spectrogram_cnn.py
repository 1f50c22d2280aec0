"""A small network over spectrograms, in torch. In: windows (n, channels, time, bins) float32. Out: logits (n, labels).

A first layer takes non-overlapping patches, which cuts the work of all that follows; two more convolutions, the mean
over time and bins, and a 1x1 convolution give the logits. There is no dense layer, whose bytes would depend on the
batch. A plain signal (time, channels) counts as a spectrogram of one bin.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.export import clean_onnx
from models.zoo import Epoch, FitOptions, Samples, read_parameters
from streams.chunk import Array, Format
from streams.errors import TrainingError

OPSET = 18
#: ``width`` channels behind the first layer and twice as many behind the others; patches of ``patch_time`` x
#: ``patch_bins`` (0: chosen by the window's shape); then how it learns: ``jitter`` (noise), ``scale`` (loudness of a
#: channel) and ``shift`` (in time) are shares of the spread, value and window by which they are varied.
DEFAULTS: dict[str, Any] = {
    "width": 16,
    "patch_time": 0,
    "patch_bins": 0,
    "dropout": 0.1,
    "learning_rate": 3e-3,
    "weight_decay": 1e-2,
    "batch_size": 32,
    "jitter": 0.1,
    "scale": 0.1,
    "shift": 0.1,
}


class SpectrogramCnn:
    """The network as an :class:`~models.zoo.Architecture`.

    Parameters
    ----------
    fmt : Format
        Of the windows: ``rows`` and shape ``(bins, channels)`` or ``(channels,)``.
    labels : sequence of str
        Classes.
    parameters : mapping
        See :data:`DEFAULTS`.
    seed : int
        Of the first weights.

    Raises
    ------
    TrainingError
        If the windows have another number of axes, or a parameter is out of range.
    """

    layout: ClassVar[str] = "channels_first"
    packages: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxscript")

    def __init__(self, fmt: Format, labels: Sequence[str], parameters: Mapping[str, Any], seed: int) -> None:
        if len(fmt.shape) not in (1, 2):
            raise TrainingError(
                f"architecture 'spectrogram_cnn' takes windows of (time, bins, channels), the recipe makes "
                f"{len(fmt.shape) + 1} axes; take another architecture"
            )
        p = self.parameters = read_parameters(parameters, DEFAULTS)
        if not (p["width"] >= 1 and p["batch_size"] >= 1 and p["learning_rate"] > 0 and 0 <= p["dropout"] < 1):
            raise TrainingError(
                "[model] width and batch_size start at 1, learning_rate is above 0, dropout from 0 to below 1"
            )
        self.shape = (fmt.shape[-1], fmt.rows or 1, *fmt.shape[:-1])  # (channels, time, bins)
        torch.manual_seed(seed)
        self.net = _network(self.shape, len(labels), p)

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn by AdamW with a cosine schedule and class weights; with validation, keep the best epoch's weights."""
        with _reproducible(options.seed):
            self._fit(training, validation, options, on_epoch)

    def _fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        p, random = self.parameters, np.random.default_rng(options.seed)
        loss_of = nn.CrossEntropyLoss(weight=_class_weights(training.classes, self._labels()), label_smoothing=0.02)
        batches = -(-len(training.classes) // p["batch_size"])
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=p["learning_rate"], weight_decay=p["weight_decay"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, p["learning_rate"], total_steps=options.epochs * batches
        )
        best, best_loss, since = None, float("inf"), 0
        for epoch in range(options.epochs):
            self.net.train()
            total = 0.0
            for windows, classes in _batches(training, p, random):
                optimiser.zero_grad()
                loss = loss_of(self.net(windows), classes)
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(classes)
            numbers: Epoch = {"epoch": epoch + 1, "loss": total / len(training.classes)}
            if validation is not None:
                numbers |= self._judge(validation)
                since += 1
                if numbers["validation_loss"] < best_loss:
                    best, best_loss, since = copy.deepcopy(self.net.state_dict()), numbers["validation_loss"], 0
            on_epoch(numbers)
            if since >= options.patience:
                break
        if best is not None:
            self.net.load_state_dict(best)
        self.net.eval()

    def _labels(self) -> int:
        head = self.net[-2]
        assert isinstance(head, nn.Conv2d)
        return head.out_channels

    def _judge(self, samples: Samples) -> Epoch:
        logits, classes = torch.from_numpy(self.predict(samples.windows)), torch.from_numpy(samples.classes)
        loss = nn.functional.cross_entropy(logits, classes).item()
        return {"validation_loss": loss, "validation_accuracy": (logits.argmax(1) == classes).double().mean().item()}

    def predict(self, windows: Array) -> Array:
        """Logits, ``(n, labels)`` float32, by torch."""
        self.net.eval()
        with torch.inference_mode():
            parts = [
                self.net(torch.from_numpy(windows[i : i + 256].copy())).numpy() for i in range(0, len(windows), 256)
            ]
        return np.concatenate(parts)

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size."""
        self.net.eval()
        program = torch.onnx.export(
            self.net,
            (torch.zeros(2, *self.shape),),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes={"input": {0: torch.export.Dim("n")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        path.write_bytes(clean_onnx(program.model_proto))


def _network(shape: tuple[int, ...], labels: int, parameters: Mapping[str, Any]) -> nn.Sequential:
    """The layers for windows of (channels, time, bins)."""
    channels, time, bins = (*shape, 1)[:3]
    width, dropout = parameters["width"], parameters["dropout"]
    # About 32 places an axis are left to the layers behind the patches; what is small already stays whole.
    patch_time = min(parameters["patch_time"] or _patch(time), time)
    patch_bins = min(parameters["patch_bins"] or _patch(bins), bins)
    patch = (patch_time, patch_bins)
    first = (time // patch_time, bins // patch_bins)
    second = (_halved(first[0]), _halved(first[1]))
    return nn.Sequential(
        *([nn.Unflatten(2, (time, 1))] if len(shape) == 2 else []),
        nn.Conv2d(channels, width, patch, patch, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, _stride(first), 1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, _stride(second), 1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Dropout(dropout),
        nn.Conv2d(2 * width, labels, 1),
        nn.Flatten(),
    )


def _patch(size: int) -> int:
    return 1 if size < 16 else 2 if size < 64 else max(4, size // 32)


def _stride(size: tuple[int, int]) -> tuple[int, int]:
    """2 along what is long enough to lose half of it."""
    return (2 if size[0] >= 8 else 1, 2 if size[1] >= 8 else 1)


def _halved(size: int) -> int:
    return (size + 1) // 2 if size >= 8 else size


def _class_weights(classes: Array, labels: int) -> Tensor:
    """Weight of each class: as if all were equally frequent; their mean over the samples is 1."""
    counts = np.bincount(classes, minlength=labels)
    return torch.from_numpy((len(classes) / (labels * np.maximum(counts, 1))).astype(np.float32))


def _batches(samples: Samples, p: Mapping[str, Any], random: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch's batches, shuffled and varied: noise, loudness of each channel, shift in time."""
    order = random.permutation(len(samples.classes))
    spread = float(samples.windows.std()) or 1.0
    for part in np.array_split(order, -(-len(order) // p["batch_size"])):
        windows: NDArray[np.float32] = samples.windows[part].astype(np.float32)  # (n, channels, time, …), a copy
        aside = (1,) * (windows.ndim - 2)
        windows *= 1 + p["scale"] * random.standard_normal((len(part), windows.shape[1], *aside), np.float32)
        windows += p["jitter"] * spread * random.standard_normal(windows.shape, np.float32)
        most = int(p["shift"] * windows.shape[2])
        if most:
            for window, by in zip(windows, random.integers(-most, most + 1, len(part)), strict=True):
                window[:] = np.roll(window, by, axis=1)
        yield torch.from_numpy(windows), torch.from_numpy(samples.classes[part])


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and deterministic kernels: the same seed gives the same weights on the same machine."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
