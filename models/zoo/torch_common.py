"""What the torch architectures share: output columns, and ONNX. In: a module. Out: an Architecture.

A module takes windows ``(n, channels, time, bins)``; its last layer brings numbers into their unit.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from kymo.models.training.fit_torch import fit_torch, predict_torch
from kymo.models.zoo.network import Network
from kymo.models.zoo.onnx_graph import OPSET, clean_onnx
from kymo.streams.chunk import Array


class ColumnUnits(nn.Module):
    """Columns times a scale plus an offset, set from the training windows and not learned; in float32 throughout.

    They are 1 and 0 but for numbers, which come in their own unit.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.register_buffer("scale", torch.ones(columns))
        self.register_buffer("offset", torch.zeros(columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Bring ``(n, columns)`` into their units."""
        scaled: torch.Tensor = x.float() * self.get_buffer("scale") + self.get_buffer("offset")
        return scaled


class TorchArchitecture(Network):
    """A torch module as an :class:`~kymo.models.zoo.Architecture`; a subclass builds it."""

    layout: ClassVar[str] = "channels_first"
    fit_model, predict_model = staticmethod(fit_torch), staticmethod(predict_torch)

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.units = ColumnUnits(self.columns)

    def set_units(self, scale: Array, offset: Array) -> None:
        self.units.load_state_dict({"scale": torch.from_numpy(scale), "offset": torch.from_numpy(offset)})

    def weights(self) -> bytes:
        """Save the network's state dict, as torch does."""
        file = io.BytesIO()
        torch.save(self.model.state_dict(), file)
        return file.getvalue()

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size."""
        self.model.eval()
        program = torch.onnx.export(
            self.model,
            (torch.zeros(2, *self.shape),),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        path.write_bytes(clean_onnx(program.model_proto))
