"""What the torch architectures share. In: a module, which takes windows ``(n, channels, time, bins)``. Out: an Architecture, its ONNX."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kymo.models.training.fit_torch import fit_torch, predict_torch
from kymo.models.zoo.network import Network
from kymo.models.zoo.onnx_graph import OPSET, clean_onnx
from kymo.streams.errors import TrainingError


class TorchArchitecture(Network):
    """A torch module as an :class:`~kymo.models.zoo.Architecture`; a subclass builds it."""

    layout: ClassVar[str] = "channels_first"
    fit_model, predict_model = staticmethod(fit_torch), staticmethod(predict_torch)

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def rescale(self, scale: NDArray[np.float32], offset: NDArray[np.float32]) -> None:
        last = [module for module in self.model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        assert last.bias is not None
        factors, terms = torch.from_numpy(scale), torch.from_numpy(offset)
        with torch.no_grad():
            last.weight.mul_(factors.reshape(-1, *(1,) * (last.weight.ndim - 1)))
            last.bias.mul_(factors).add_(terms)

    def weights(self) -> bytes:
        """Save the network's state dict, as torch does."""
        file = io.BytesIO()
        torch.save(self.model.state_dict(), file)
        return file.getvalue()

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        free = ({0: torch.export.Dim("n")},)
        write_onnx(path, self.model, (torch.zeros(2, *self.shape),), [input_name], [output_name], dynamic_shapes=free)


def pretrained(kind: Any, key: str, name: str, **options: Any) -> Any:
    """A model of transformers, of a class of theirs, from the folder or the hub name that a parameter of ``[model]`` gives."""
    try:
        return kind.from_pretrained(name, local_files_only=Path(name).is_dir(), **options)
    except Exception as error:  # whatever hub client, network or file has to say
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        what = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
        raise TrainingError(
            f"[model] {key} = {name!r}: neither a folder with {what}, nor to be had from the hub ({why}); without a "
            f"network, fetch it elsewhere and name its folder, or leave {key} out to learn from scratch"
        ) from None


def write_onnx(
    path: Path, model: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], outputs: Sequence[str], **more: Any
) -> None:
    """Write a module as it judges, from inputs of the shapes that it takes."""
    program = torch.onnx.export(
        model.eval(),
        inputs,
        input_names=names,
        output_names=outputs,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
        **more,
    )
    assert program is not None
    path.write_bytes(clean_onnx(program.model_proto))
