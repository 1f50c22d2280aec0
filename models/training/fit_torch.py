"""The fit loop of torch modules. In: a module that gives ``(n, columns)``, samples, options. Out: the module, trained.

The same seed gives the same weights on the same machine: one thread, deterministic kernels, and the randomness of an
epoch known without that of the ones before. On a GPU it computes in bfloat16 (or float16, its loss scaled).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.training.fit import (
    PREDICT_BATCH,
    Course,
    Learning,
    batches,
    class_weights,
    epoch_random,
    load_state,
    rate,
    spread,
)
from models.training.fit import store_state as store
from models.zoo import Epoch, FitOptions, Samples
from streams.chunk import Array


def fit_torch(
    net: nn.Module,
    learning: Learning,  # the architecture's own way
    training: Samples,  # as :meth:`~models.zoo.Architecture.fit` has them
    validation: Samples | None,
    options: FitOptions,
    on_epoch: Callable[[Epoch], None],
) -> None:
    """Train a module by AdamW; with validation, it ends with the best epoch's weights."""
    with reproducible(options.seed):
        fit = _Fit(net, learning.under(options), options)
        try:
            fit.run(training, validation, on_epoch)
        finally:
            net.to("cpu").eval()


def predict_torch(net: nn.Module, windows: Array) -> Array:
    """Outputs, ``(n, columns)`` float32, 256 windows at a time."""
    net.eval()
    device = next(net.parameters()).device
    with torch.inference_mode():
        parts = [
            net(torch.from_numpy(np.array(windows[i : i + PREDICT_BATCH], np.float32)).to(device)).float().cpu().numpy()
            for i in range(0, len(windows), PREDICT_BATCH)
        ]
    return np.concatenate(parts)


class _Fit:
    """One fit: optimiser, and state on disk."""

    def __init__(self, net: nn.Module, learning: Learning, options: FitOptions) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net, self.learning, self.options = net.to(self.device), learning, options
        self.course = Course()
        self.best: dict[str, Tensor] | None = None
        self.optimiser = torch.optim.AdamW(
            [p for p in net.parameters() if p.requires_grad], learning.learning_rate, weight_decay=learning.weight_decay
        )
        mixed = options.mixed_precision == "on" or (options.mixed_precision == "auto" and self.device == "cuda")
        half = self.device == "cuda" and not torch.cuda.is_bf16_supported()
        self.autocast = torch.autocast(self.device, torch.float16 if half else torch.bfloat16, enabled=mixed)
        self.scaler = torch.amp.GradScaler(self.device, enabled=mixed and half)

    def run(self, training: Samples, validation: Samples | None, on_epoch: Callable[[Epoch], None]) -> None:
        self._restore(on_epoch)
        options, course = self.options, self.course
        weights = class_weights(training.classes, self.learning.labels, options)
        scales = {head.name: spread(training.targets[head.name]) for head in self.learning.heads if not head.labels}
        while not course.stopped:
            epoch = len(course.history)
            epoch_numbers: Epoch = {"epoch": epoch + 1, "loss": self._epoch(training, epoch, weights, scales)}
            if validation is not None:
                epoch_numbers |= self._judge(validation, scales)
            if course.add(epoch_numbers, options):
                self.best = copy.deepcopy(self.net.state_dict())
            self._store()
            on_epoch(epoch_numbers)
        if self.best is not None:
            self.net.load_state_dict(self.best)

    def _epoch(self, training: Samples, epoch: int, weights: Array, scales: Mapping[str, np.float32]) -> float:
        """Learn from every training window once; their mean loss."""
        options, count = self.options, len(training.classes)
        steps = max(1, -(-count // self.learning.batch_size))
        random = epoch_random(options.seed, epoch)
        torch.manual_seed(int(random.integers(2**31)))  # dropout's
        self.net.train()
        total = 0.0
        for i, (windows, numbers) in enumerate(batches(training, self.learning.batch_size, options, random)):
            step = epoch * steps + i
            for group in self.optimiser.param_groups:
                group["lr"] = rate(self.learning, self.course, step, options.epochs * steps, options.patience)
            self.optimiser.zero_grad()
            with self.autocast:
                out = self.net(torch.from_numpy(windows).to(self.device))
            loss = self._loss(out.float(), self._truths(training, numbers), torch.from_numpy(weights), scales)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if self.learning.clip_norm is not None:
                self.scaler.unscale_(self.optimiser)
                nn.utils.clip_grad_norm_(self.net.parameters(), self.learning.clip_norm)
            self.scaler.step(self.optimiser)
            self.scaler.update()
            total += loss.item() * len(numbers)
        return total / count

    def _truths(self, samples: Samples, numbers: Any) -> dict[str, Tensor]:
        arrays = {"": samples.classes} | {head.name: samples.targets[head.name] for head in self.learning.heads}
        return {name: torch.from_numpy(np.asarray(a[numbers])).to(self.device) for name, a in arrays.items()}

    def _loss(
        self, out: Tensor, truths: Mapping[str, Tensor], weights: Tensor | None, scales: Mapping[str, np.float32]
    ) -> Tensor:
        """Weighted by class in training; plain, and without smoothing, where `weights` is None."""
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
                else torch.mean(((part[:, 0] - truth) / float(scales[head.name])) ** 2)
            )
            loss = loss + head.weight * part_loss
        return loss

    def _judge(self, samples: Samples, scales: Mapping[str, np.float32]) -> Epoch:
        out = torch.from_numpy(predict_torch(self.net, samples.windows)).to(self.device)
        truths = self._truths(samples, slice(None))
        right = (out[:, : self.learning.labels].argmax(1) == truths[""]).double().mean().item()
        return {"validation_loss": self._loss(out, truths, None, scales).item(), "validation_accuracy": right}

    def _store(self) -> None:
        if self.options.checkpoints is None:
            return
        state = {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), "best": self.best or {}}
        file = io.BytesIO()
        torch.save(state | {"scaler": self.scaler.state_dict(), "course": json.dumps(asdict(self.course))}, file)
        store(self.options.checkpoints, file.getvalue())

    def _restore(self, on_epoch: Callable[[Epoch], None]) -> None:
        stored = load_state(self.options.checkpoints)
        if stored is None:
            return
        state = torch.load(io.BytesIO(stored), map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.best = state["best"] or None
        self.course = Course(**json.loads(state["course"]))
        for epoch in self.course.history:
            on_epoch(epoch)


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
