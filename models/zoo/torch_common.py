"""What the torch architectures share: the window's shape, output columns, and the model behind the protocol. In: a module. Out: an
Architecture.

A module takes windows ``(n, channels, time, bins)`` and has one output, ``(n, columns)``: logits of the classes, then what
each further head says, numbers in their own unit (see :class:`ColumnUnits`).
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from numpy.typing import NDArray
from torch import nn

from kymo.models.training.fit_torch import fit_torch, predict_torch
from kymo.models.training.learning import units_of
from kymo.models.zoo import Epoch, FitOptions, Samples, check_axes
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

    def set(self, scale: NDArray, offset: NDArray) -> None:  # type: ignore[type-arg]
        """Set the numbers of each column, float32."""
        self.load_state_dict({"scale": torch.from_numpy(scale), "offset": torch.from_numpy(offset)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Bring ``(n, columns)`` into their units."""
        scaled: torch.Tensor = x.float() * self.get_buffer("scale") + self.get_buffer("offset")
        return scaled


class TorchArchitecture(Network):
    """A torch module as an :class:`~kymo.models.zoo.Architecture`; a subclass builds it."""

    layout: ClassVar[str] = "channels_first"

    def make(self, seed: int) -> None:
        """Seed torch and build."""
        check_axes(self.name, self.fmt)
        # ``(channels, time, bins)`` or ``(channels, time)``
        self.shape = (self.fmt.shape[-1], self.fmt.rows or 1, *self.fmt.shape[:-1])
        self.units = ColumnUnits(self.columns)
        torch.manual_seed(seed)
        self.net = self.build()

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the module, whose last layer brings numbers into their `units`."""

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn by AdamW, with class weights; with validation, keep the best epoch's weights."""
        self.units.set(*units_of(self.labels, self.heads, training))
        fit_torch(self.net, self.learning(), training, validation, options, on_epoch)

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
