"""CNN and LSTM over frames, in torch. In: windows (n, frames, height, width, colours), pixels or numbers. Out: logits (n, labels) and more.

The ResNet is that of transformers: ImageNet's weights come from a folder or a hub name, and `small` learns on two cores. While it is
frozen its features are computed once. Frames of nothing but zeros at a window's end are padding. With ``stateful`` the LSTM's state goes on
from window to window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kymo.models.onnx_model import NEXT_STATE, STATE
from kymo.models.training.fit_torch import predict_torch
from kymo.models.zoo import Epoch, FitOptions, Range, Samples
from kymo.models.zoo.torch_common import TorchArchitecture, pretrained, write_onnx
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import TrainingError
from kymo.streams.schema import Amount, Below1, Count, Positive, Rules, Whole

#: Blocks a stage, filters of the stages, kind of block.
BACKBONES: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "small": ((1, 1, 1), (16, 32, 64), "basic"),
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512), "basic"),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512), "basic"),
    "resnet152": ((3, 8, 36, 3), (256, 512, 1024, 2048), "bottleneck"),
}
QUIRKS = ("softmax", "last_layer", "batch_norm")
_MEAN, _DEVIATION = (0.486, 0.457, 0.405), (0.228, 0.223, 0.226)  # of red, green, blue from 0 to 1, as published
_AT_ONCE = 64  # frames that features are computed of together
_TYPICAL, _FEW = 128, 16  # windows that batch normalisation is settled by, and of them at once


@dataclass(frozen=True)
class CrnnParameters:
    """What ``[model]`` takes; docs/architectures.md says what each means."""

    backbone: Annotated[str, Rules(enum=tuple(BACKBONES))] = "resnet152"
    weights: str = ""
    frozen: bool = True
    dense: tuple[Count, ...] = (1024, 768)
    embedding: Count = 512
    units: Count = 512
    layers: Count = 3
    decoder: Whole = 256
    dropout: Below1 = 0.1
    stateful: bool = False
    quirks: tuple[Annotated[str, Rules(enum=QUIRKS)], ...] = ()
    learning_rate: Positive = 1e-4
    weight_decay: Amount = 0.0
    batch_size: Count = 25
    schedule: str = "none"


class Crnn(TorchArchitecture):
    """The network as an :class:`~kymo.models.zoo.Architecture`."""

    name, takes_parameters, any_axes, layout = "crnn", CrnnParameters, True, "channels_last"
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", "onnx", "onnxscript")
    cpu_sized: ClassVar[Mapping[str, Any]] = {
        "backbone": "small",
        "frozen": False,
        "dense": (32,),
        "embedding": 16,
        "units": 16,
        "layers": 1,
        "decoder": 0,
        "dropout": 0.0,
        "learning_rate": 3e-3,
    }
    tolerance: ClassVar[float] = 1e-4  # of its ONNX: a difference grows from step to step
    search: ClassVar[Mapping[str, Range]] = {"learning_rate": (1e-4, 3e-4, 1e-3), "dropout": (0.1, 0.3)}

    def __init__(self, fmt: Format, *more: Any) -> None:
        self.pixels = fmt.dtype == "uint8"
        super().__init__(fmt, *more)

    def read(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        p = super().read(parameters)
        return p | {"dense": list(p["dense"]), "quirks": list(p["quirks"])}

    def build(self) -> nn.Module:
        p = self.parameters
        if p["frozen"] and not p["weights"]:
            self.notes.append(
                f"{p['backbone']} is frozen with fresh weights: what it sees is random. Give [model] weights, or say frozen = false"
            )
        return CrnnNetwork(self.shape, self.columns, p, self.pixels)

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn; of a frozen backbone what it sees is computed once."""
        net: CrnnNetwork = self.model
        before = net.takes_features
        if net.fixed:
            features = self.features(training.windows)
            self.scale(features)
        if net.fixed and options.augment is None:
            training = replace(training, windows=features)
            validation = validation and replace(validation, windows=self.features(validation.windows))
            net.takes_features = True
        if not net.frozen:
            net.typical = training.windows[:: -(-len(training.windows) // _TYPICAL)]
        try:
            super().fit(training, validation, options, on_epoch)
        finally:
            net.takes_features, net.typical = before, None

    def features(self, windows: Array) -> Array:
        """What the backbone sees in each frame, ``(n, frames, features)``; NaN in frames that are padding."""
        backbone = _FramesOnly(self.model)
        return np.concatenate([predict_torch(backbone, windows[i : i + 1]) for i in range(len(windows))])

    def scale(self, features: Array) -> None:
        """Have what a frozen backbone with fresh weights sees standardised by these features.

        It hardly varies from frame to frame, and batch normalisation's running means would lag behind by more than that.
        """
        if self.parameters["frozen"] and not self.parameters["weights"]:
            scale, values = self.model.encoder["scale"], features.astype(np.float64)
            spread = np.nanstd(values, axis=(0, 1))
            scale.mean.copy_(torch.from_numpy(np.nanmean(values, axis=(0, 1))))
            scale.deviation.copy_(torch.from_numpy(np.where(spread > 0, spread, 1)))

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size; of a stateful network one that takes and gives its state."""
        if not self.parameters["stateful"]:
            super().export(path, input_name, output_name)
            return
        inputs = (torch.zeros(1, *self.shape), torch.zeros(1, self.model.state_size))
        write_onnx(path, _Stateful(self.model), inputs, [input_name, STATE], [output_name, NEXT_STATE])


class CrnnNetwork(nn.Module):
    """Backbone and dense layers, a frame at a time (`encoder`); LSTM and dense layers behind (`decoder`)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: tuple[int, ...], columns: int, p: Mapping[str, Any], pixels: bool) -> None:
        super().__init__()
        _, *sides, colours = (*shape[:1], *(1,) * (4 - len(shape)), *shape[1:])
        self.frame, self.pixels, self.quirks = (colours, *sides), pixels, frozenset(p["quirks"])
        self.fixed, self.takes_features = p["frozen"] and "batch_norm" not in self.quirks, False
        self.frozen, self.state_size = p["frozen"], 2 * p["layers"] * p["units"]
        self.typical: Array | None = None  # windows that a backbone which learns is settled by
        self.layers, self.units = p["layers"], p["units"]
        backbone, width = _backbone(p, colours)
        backbone.requires_grad_(not p["frozen"])
        widths, dense = [width, *p["dense"]], list[nn.Module]()
        for i in range(len(p["dense"])):
            dense += [nn.Linear(widths[i], widths[i + 1]), nn.BatchNorm1d(widths[i + 1], momentum=0.01), nn.ReLU()]
        dense += [nn.Dropout(p["dropout"]), nn.Linear(widths[-1], p["embedding"])]
        self.encoder = nn.ModuleDict({"backbone": backbone, "scale": _Scale(width), "dense": nn.Sequential(*dense)})
        last: list[nn.Module] = [nn.Linear(p["units"], p["decoder"]), nn.ReLU()] if p["decoder"] else []
        last += [nn.Dropout(p["dropout"]), nn.Linear(p["decoder"] or p["units"], columns)]
        lstm = nn.LSTM(p["embedding"], p["units"], p["layers"], batch_first=True)
        self.decoder = nn.ModuleDict({"lstm": lstm, "dense": nn.Sequential(*last)})
        if "last_layer" in self.quirks:
            last[-1].requires_grad_(False)
        mean, deviation = (torch.tensor(t).reshape(3, 1, 1) for t in (_MEAN, _DEVIATION))
        scaled = pixels and colours == 3
        self.register_buffer("mean", mean * 255 if scaled else torch.zeros(1, 1, 1), persistent=False)
        self.register_buffer("deviation", deviation * 255 if scaled else torch.ones(1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> CrnnNetwork:
        """Learn or not; a frozen backbone stays as it is, but for the source's way."""
        if self.training and not mode and self.typical is not None:
            self._settle(self.typical)
        super().train(mode)
        if self.fixed:
            self.encoder["backbone"].eval()
        return self

    def _settle(self, windows: Array) -> None:
        """Have the backbone's batch normalisation know what its weights make of windows: its running statistics lag behind."""
        norms = [module for module in self.encoder["backbone"].modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # of all batches alike
        with torch.no_grad():
            for i in range(0, len(windows), _FEW):
                self.features(torch.from_numpy(np.array(windows[i : i + _FEW], np.float32)).to(self.mean.device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def features(self, windows: Tensor) -> Tensor:
        """Turn ``(n, frames, height, width, colours)`` into ``(n, frames, features)``."""
        images = windows.reshape(-1, *self.frame[1:], self.frame[0]).permute(0, 3, 1, 2)
        seen: Tensor = self.encoder["backbone"]((images - self.mean) / self.deviation).pooler_output
        return seen.flatten(1).unflatten(0, windows.shape[:2])  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, windows: Tensor) -> Tensor:
        """Turn windows, or what the backbone saw of them, into ``(n, columns)``."""
        steps = self.steps(windows)
        windows = torch.nan_to_num(windows)
        hidden, _ = self.hidden(windows if self.takes_features else self.features(windows))
        at = (steps - 1).reshape(-1, 1, 1).expand(-1, 1, self.units)
        return self.columns(hidden.gather(1, at)[:, 0])

    def steps(self, windows: Tensor) -> Tensor:
        """Count the frames before the padding, at least one: ``(n,)`` int64."""
        each = windows.flatten(2)
        real = ~each.isnan().any(2) if self.takes_features else (torch.nan_to_num(each) != 0).any(2)
        return (real * torch.arange(1, each.shape[1] + 1, device=each.device)).amax(1).clamp(min=1)

    def hidden(self, features: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        """LSTM outputs ``(n, frames, units)`` and the state behind them."""
        scaled = self.encoder["scale"](features.flatten(0, 1))
        embedded = self.encoder["dense"](scaled).unflatten(0, features.shape[:2])
        out: tuple[Tensor, Any] = self.decoder["lstm"](embedded, state)
        return out

    def columns(self, hidden: Tensor) -> Tensor:
        """Logits; probabilities where they are to go through a softmax once more."""
        logits: Tensor = self.decoder["dense"](hidden)
        return logits.softmax(1) if "softmax" in self.quirks else logits


class _Scale(nn.Module):
    """Features relative to a mean and a deviation, which are learned before all else, or 0 and 1."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """Turn ``(n, features)`` into the same."""
        return (features - self.mean) / self.deviation


class _FramesOnly(nn.Module):
    """The backbone alone."""

    def __init__(self, net: CrnnNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, windows: Tensor) -> Tensor:
        """Turn ``(1, frames, …)`` into ``(1, frames, features)``."""
        steps = self.net.steps(windows)
        frames = torch.nan_to_num(windows)
        parts = [self.net.features(frames[:, i : i + _AT_ONCE]) for i in range(0, frames.shape[1], _AT_ONCE)]
        seen = torch.cat(parts, 1)
        padding = torch.arange(seen.shape[1], device=seen.device) >= steps[:, None]
        return seen.masked_fill(padding[..., None], float("nan"))


class _Stateful(nn.Module):
    """The network with its state as an input and an output."""

    def __init__(self, net: CrnnNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, windows: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a window and the state before it, ``(1, size)``, into columns and the state behind it."""
        net = self.net
        before = state.reshape(2, net.layers, 1, net.units)
        hidden, (h, c) = net.hidden(net.features(windows), (before[0], before[1]))
        return net.columns(hidden[:, -1]), torch.stack([h, c]).reshape(1, -1)


def _backbone(p: Mapping[str, Any], colours: int) -> tuple[Any, int]:
    """A ResNet without its top, and how many features it gives."""
    from transformers import ResNetConfig, ResNetModel

    depths, widths, kind = BACKBONES[p["backbone"]]
    if not p["weights"]:
        config = ResNetConfig(
            num_channels=colours,
            depths=list(depths),
            hidden_sizes=list(widths),
            embedding_size=min(64, widths[0]),
            layer_type=kind,
        )
        return ResNetModel(config), widths[-1]  # type: ignore[no-untyped-call]
    model = pretrained(ResNetModel, "weights", p["weights"])
    if (tuple(model.config.depths), model.config.num_channels) != (depths, colours):
        raise TrainingError(
            f"[model] weights = {p['weights']!r} are not those of {p['backbone']} over {colours} colours"
        )
    return model, int(model.config.hidden_sizes[-1])
