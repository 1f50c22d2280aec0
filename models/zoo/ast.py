"""Audio Spectrogram Transformer, in torch. In: windows (n, channels, time, bins) float32. Out: logits (n, labels) and more.

The network is the one of transformers (Gong, Chung and Glass, Interspeech 2021), of any size: small ones learn on two cores from
scratch, published ones are fine-tuned from a folder or a hub name. A window of several channels is laid out as tiles, one channel
above the other along the bins, so that a patch sees one channel and attention joins them; or the first layer takes all channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from kymo.models.zoo import Between, Range
from kymo.models.zoo.torch_common import TorchArchitecture, pretrained
from kymo.streams.errors import TrainingError
from kymo.streams.schema import Amount, Below1, Count, Positive, Rules, SchemaError, Whole

LAYOUTS = ("tiles", "channels")


@dataclass(frozen=True)
class AstParameters:
    patch_time: Count = 8
    patch_bins: Whole = 0
    stride_time: Whole = 0
    stride_bins: Whole = 0
    layout: Annotated[str, Rules(enum=LAYOUTS)] = "tiles"
    width: Count = 64
    depth: Count = 2
    heads: Count = 4
    dropout: Below1 = 0.0
    pretrained: str = ""
    learning_rate: Positive = 1e-3
    weight_decay: Amount = 1e-2
    batch_size: Count = 32
    label_smoothing: Below1 = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SchemaError(("width",), why=f"width = {self.width} is no multiple of heads = {self.heads}")


class Ast(TorchArchitecture):
    name, takes_parameters = "ast", AstParameters
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", "onnx", "onnxscript")
    search: ClassVar[Mapping[str, Range]] = {
        "width": (32, 64, 128),
        "depth": (2, 4),
        "dropout": (0.0, 0.1),
        "learning_rate": Between(3e-4, 3e-3),
    }

    def build(self) -> nn.Module:
        return _Network(self.shape, self.columns, self.parameters)


class _Network(nn.Module):
    """Patches of a window, the transformer, a new head."""

    def __init__(self, shape: tuple[int, ...], columns: int, p: Mapping[str, Any]) -> None:
        super().__init__()
        self.tiles = p["layout"] == "tiles"
        self.channels, self.time, self.bins = (*shape, 1)[:3]
        # (channels, bins, time) of what the first layer takes
        plane = (1, self.bins * self.channels, self.time) if self.tiles else (self.channels, self.bins, self.time)
        self.model = _pretrained(p["pretrained"], plane) if p["pretrained"] else _fresh(p, plane, self.bins)
        width = self.model.config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(p["dropout"]), nn.Linear(width, columns))

    def forward(self, windows: Tensor) -> Tensor:
        """Turn ``(n, channels, time, bins)`` into ``(n, columns)``."""
        x = windows.reshape(-1, self.channels, self.time, self.bins).transpose(2, 3)  # (n, channels, bins, time)
        if self.tiles:
            x = x.reshape(-1, 1, self.channels * self.bins, self.time)
        x = self.model.embeddings(x)
        for layer in self.model.layers:
            x = layer(x)
        x = self.model.layernorm(x)
        columns: Tensor = self.head((x[:, 0] + x[:, 1]) / 2)  # of the two class tokens
        return columns


class _Patches(nn.Module):
    """What transformers' own patch embedding does, of any patch, over any number of channels."""

    def __init__(self, projection: nn.Conv2d) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, plane: Tensor) -> Tensor:
        """Turn ``(n, channels, bins, time)`` into ``(n, patches, width)``."""
        patches: Tensor = self.projection(plane).flatten(2).transpose(1, 2)
        return patches


def _fresh(p: Mapping[str, Any], plane: tuple[int, int, int], bins: int) -> Any:
    from transformers import ASTConfig, ASTModel

    patch = (min(p["patch_bins"] or bins, bins), min(p["patch_time"], plane[2]))
    stride = (p["stride_bins"] or patch[0], p["stride_time"] or patch[1])
    config = ASTConfig(
        hidden_size=p["width"],
        num_hidden_layers=p["depth"],
        num_attention_heads=p["heads"],
        intermediate_size=4 * p["width"],
        hidden_dropout_prob=p["dropout"],
        attention_probs_dropout_prob=p["dropout"],
        patch_size=1,
    )
    config._attn_implementation = "eager"  # whose operations ONNX has
    model: Any = ASTModel(config)
    projection = nn.Conv2d(plane[0], p["width"], patch, stride)
    count = ((plane[1] - patch[0]) // stride[0] + 1) * ((plane[2] - patch[1]) // stride[1] + 1)
    model.embeddings.patch_embeddings = _Patches(projection)
    model.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, count + 2, p["width"]))
    nn.init.trunc_normal_(model.embeddings.position_embeddings, std=0.02)
    nn.init.trunc_normal_(model.embeddings.cls_token, std=0.02)
    nn.init.trunc_normal_(model.embeddings.distillation_token, std=0.02)
    return model


def _pretrained(name: str, plane: tuple[int, int, int]) -> Any:
    """Load an ASTModel from a folder or the hub, its positions interpolated to the window's size."""
    from transformers import ASTModel

    model = pretrained(ASTModel, "pretrained", name, attn_implementation="eager")
    config, embeddings = model.config, model.embeddings
    before = embeddings.get_shape(config)
    patch, stride = config.patch_size, (config.frequency_stride, config.time_stride)
    size = ((plane[1] - patch) // stride[0] + 1, (plane[2] - patch) // stride[1] + 1)
    if min(plane[1:]) < patch:
        raise TrainingError(
            f"[model] pretrained = {name!r} looks at patches of {patch} x {patch}, the recipe makes only {plane[1]} bins and "
            f"{plane[2]} columns; make the window longer, or take more bins"
        )
    projection = embeddings.patch_embeddings.projection
    if plane[0] > 1:
        wide = nn.Conv2d(plane[0], config.hidden_size, patch, stride)
        wide.weight = nn.Parameter(projection.weight.repeat(1, plane[0], 1, 1) / plane[0])
        wide.bias = projection.bias
        projection = wide
    embeddings.patch_embeddings = _Patches(projection)
    if size != before:
        tokens, grid = embeddings.position_embeddings[:, :2], embeddings.position_embeddings[:, 2:]
        grid = grid.reshape(1, *before, -1).permute(0, 3, 1, 2)  # (1, width, bins, time)
        grid = nn.functional.interpolate(grid, size, mode="bilinear", align_corners=False)
        placed = torch.cat([tokens, grid.flatten(2).transpose(1, 2)], 1)
        embeddings.position_embeddings = nn.Parameter(placed.detach())
    return model
