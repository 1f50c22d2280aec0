"""The fit loop of torch modules. In: a module that gives ``(n, columns)``, samples, options. Out: the module, trained.

The same seed gives the same weights on the same machine: one thread, deterministic kernels, and the randomness of an
epoch known without that of the ones before. On a GPU it computes in bfloat16 (or float16, its loss scaled).
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kymo.models.training.learning import FitLoop, LearningSettings, predict_batch
from kymo.models.zoo import Epoch, FitOptions, Samples
from kymo.streams.chunk import Array


def fit_torch(
    net: nn.Module,
    learning: LearningSettings,  # the architecture's own way
    training: Samples,  # as :meth:`~kymo.models.zoo.Architecture.fit` has them
    validation: Samples | None,
    options: FitOptions,
    on_epoch: Callable[[Epoch], None],
) -> None:
    """Train a module by AdamW; with validation, it ends with the best epoch's weights."""
    with reproducible(options.seed):
        fit = _TorchLoop(net, learning.under(options), options)
        try:
            fit.run(training, validation, on_epoch)
        finally:
            net.to("cpu").eval()


def predict_torch(net: nn.Module, windows: Array) -> Array:
    """Outputs, ``(n, columns)`` float32, some windows at a time."""
    net.eval()
    device, each = next(net.parameters()).device, predict_batch(windows)
    with torch.inference_mode():
        parts = [
            net(torch.from_numpy(np.array(windows[i : i + each], np.float32)).to(device)).float().cpu().numpy()
            for i in range(0, len(windows), each)
        ]
    return np.concatenate(parts)


class _TorchLoop(FitLoop):
    def __init__(self, net: nn.Module, learning: LearningSettings, options: FitOptions) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(learning, options)
        self.net = net.to(self.device)
        self.best: dict[str, Tensor] | None = None
        self.optimiser = torch.optim.AdamW(
            [p for p in net.parameters() if p.requires_grad], learning.learning_rate, weight_decay=learning.weight_decay
        )
        mixed = options.mixed_precision == "on" or (options.mixed_precision == "auto" and self.device == "cuda")
        half = self.device == "cuda" and not torch.cuda.is_bf16_supported()
        self.autocast = torch.autocast(self.device, torch.float16 if half else torch.bfloat16, enabled=mixed)
        self.scaler = torch.amp.GradScaler(self.device, enabled=mixed and half)

    def begin_epoch(self, random: np.random.Generator) -> None:
        torch.manual_seed(int(random.integers(2**31)))  # dropout's
        self.net.train()

    def learn(self, windows: NDArray[np.float32], truths: Mapping[str, Array], step_rate: float) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = step_rate
        self.optimiser.zero_grad()
        with self.autocast:
            out = self.net(torch.from_numpy(windows).to(self.device))
        loss = self._loss(out.float(), truths, torch.from_numpy(self.weights))
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.learning.clip_norm is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.learning.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()

    def _loss(self, out: Tensor, arrays: Mapping[str, Array], weights: Tensor | None) -> Tensor:
        """Weighted by class in training; plain, and without smoothing, where `weights` is None."""
        truths = {name: torch.from_numpy(values).to(self.device) for name, values in arrays.items()}
        smoothing = self.learning.label_smoothing if weights is not None else 0.0
        at = self.learning.labels
        weight = weights.to(out.device) if weights is not None else None
        loss = cross_entropy(out[:, :at], truths[""], weight, label_smoothing=smoothing)
        for head in self.learning.heads:
            part, truth = out[:, at : at + head.width], truths[head.name]
            at += head.width
            known = truth >= 0 if head.labels else torch.isfinite(truth)
            if not known.any():
                continue
            part, truth = part[known], truth[known]
            part_loss = (
                cross_entropy(part, truth, label_smoothing=smoothing)
                if head.labels
                else torch.mean(((part[:, 0] - truth) / float(self.scales[head.name])) ** 2)
            )
            loss = loss + head.weight * part_loss
        return loss

    def judge(self, samples: Samples) -> Epoch:
        out = torch.from_numpy(predict_torch(self.net, samples.windows)).to(self.device)
        truths = self.truths(samples, slice(None))
        classes = torch.from_numpy(truths[""]).to(self.device)
        right = (out[:, : self.learning.labels].argmax(1) == classes).double().mean().item()
        return {"validation_loss": self._loss(out, truths, None).item(), "validation_accuracy": right}

    def keep_best(self) -> None:
        self.best = copy.deepcopy(self.net.state_dict())

    def take_best(self) -> None:
        if self.best is not None:
            self.net.load_state_dict(self.best)

    def state(self) -> bytes:
        state = {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), "best": self.best or {}}
        file = io.BytesIO()
        torch.save(state | {"scaler": self.scaler.state_dict()}, file)
        return file.getvalue()

    def restore(self, state: bytes) -> None:
        parts = torch.load(io.BytesIO(state), map_location=self.device, weights_only=True)
        self.net.load_state_dict(parts["net"])
        self.optimiser.load_state_dict(parts["optimiser"])
        self.scaler.load_state_dict(parts["scaler"])
        self.best = parts["best"] or None


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread and deterministic kernels: the same seed gives the same weights on the same machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's matrix kernels need for it
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
