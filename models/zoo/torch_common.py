"""What the torch architectures share: the window's shape, output columns, and the model behind the protocol. In: a module. Out: an
Architecture.

A module takes windows ``(n, channels, time, bins)`` and has one output, ``(n, columns)``: logits of the classes, then what
each further head says, numbers in their own unit (see :class:`ColumnUnits`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from numpy.typing import NDArray
from torch import nn

from kymo.models.training.fit_torch import predict_torch
from kymo.models.training.learning import units_of
from kymo.models.zoo import ModelHead, Samples, check_axes
from kymo.models.zoo.onnx_graph import OPSET, clean_onnx
from kymo.streams.chunk import Array, Format


class ColumnUnits(nn.Module):
    """Columns times a scale plus an offset, set from the training windows and not learned; in float32 throughout."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(columns))
        self.register_buffer("offset", torch.zeros(columns))

    def set(self, scale: NDArray, offset: NDArray) -> None:  # type: ignore[type-arg]
        """Set the numbers of each column, float32."""
        self.load_state_dict({"scale": torch.from_numpy(scale), "offset": torch.from_numpy(offset)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Bring ``(n, columns)`` into their units."""
        scaled: torch.Tensor = x.float() * self.get_buffer("scale") + self.get_buffer("offset")
        return scaled


class TorchArchitecture:
    """A torch module as an :class:`~kymo.models.zoo.Architecture`; a subclass builds it and says how it learns."""

    layout: ClassVar[str] = "channels_first"
    several_heads: ClassVar[bool] = True
    net: nn.Module  # set by the subclass
    units: ColumnUnits | None = None  # its last layer, where the subclass has one

    def __init__(self, name: str, fmt: Format, labels: Sequence[str], heads: Sequence[ModelHead]) -> None:
        check_axes(name, fmt)
        # ``(channels, time, bins)`` or ``(channels, time)``
        self.shape = (fmt.shape[-1], fmt.rows or 1, *fmt.shape[:-1])
        self.labels, self.heads = len(labels), tuple(heads)
        self.columns = self.labels + sum(head.width for head in self.heads)  # of the output

    def set_units(self, training: Samples) -> None:
        """Have numbers come in the unit of what is learned from."""
        if self.units is not None:
            self.units.set(*units_of(self.labels, self.heads, training))

    def predict(self, windows: Array) -> Array:
        """Compute outputs, ``(n, columns)`` float32, by torch."""
        return predict_torch(self.net, windows)

    def weights(self) -> bytes:
        """Save the network's state dict, as torch does."""
        file = io.BytesIO()
        torch.save(self.net.state_dict(), file)
        return file.getvalue()

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size."""
        self.net.eval()
        program = torch.onnx.export(
            self.net,
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
