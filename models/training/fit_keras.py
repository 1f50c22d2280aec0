"""Keras: loaded such that torch can stand beside it, and its fit loop. In: a model with one output ``(n, columns)``, samples,
options. Out: the model, trained.

An architecture calls :func:`prepare_keras` before it builds its model, then :func:`fit_keras` and
:func:`predict_keras`. TensorFlow is imported by this module: import it only where a Keras model is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.training.learning import FitLoop, LearningSettings
from kymo.models.zoo import Epoch, FitOptions, Samples
from kymo.streams.chunk import Array

_PREDICT = 32


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what C++ writes to stderr while it loads, before any setting of its log holds; it is shown if loading fails."""
    try:
        stderr = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(stderr, 2)
            file.seek(0)
            sys.stderr.write(file.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


# TensorFlow and the compiler that torch brings along (triton) hold an LLVM each. Loaded behind TensorFlow, triton's registers its
# options a second time and ends the process; the other way round both work. Hence triton first, if it is there.
if "tensorflow" not in sys.modules:
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
# Else TensorFlow tells of its build, and on machines without a GPU of that, at every start; its errors are exceptions, too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On several threads, TensorFlow 2.21 corrupted memory in training convolutions (seen on an AMD EPYC, where an epoch's last
# batch is smaller); on one it did not.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

with _quiet():
    import keras
    import tensorflow as tf


def prepare_keras(seed: int) -> None:
    """Names, seeds and kernels such that the same seed builds and trains the same model; call it before building one."""
    keras.backend.clear_session()  # layer names count up in a process, and stand in the ONNX file
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def fit_keras(
    model: Any,  # its one output is ``(n, columns)``: logits of the classes, then what `learning.heads` say
    learning: LearningSettings,  # the architecture's own way
    training: Samples,  # as :meth:`~kymo.models.zoo.Architecture.fit` has them
    validation: Samples | None,
    options: FitOptions,
    on_epoch: Callable[[Epoch], None],
) -> None:
    """Train a model by AdamW; with validation, it ends with the best epoch's weights."""
    keras.utils.set_random_seed(options.seed)
    with _mixed_precision(model, options) as scaled:
        _KerasLoop(model, learning.under(options), options, scaled).run(training, validation, on_epoch)


def predict_keras(model: Any, windows: Array) -> Array:
    """Outputs, ``(n, columns)`` float32, 32 windows at a time."""
    parts = [
        np.asarray(model.predict_on_batch(np.array(windows[i : i + _PREDICT], np.float32)), np.float32)
        for i in range(0, len(windows), _PREDICT)
    ]
    return np.concatenate(parts)


def keras_to_tflite(model: Any, shape: Sequence[int], int8: bool) -> bytes:
    """Write a model as TFLite of built-in operations, for one window of this shape at a time; `int8`: its kernels in whole numbers."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    window = tf.TensorSpec((1, *shape), tf.float32)
    function = tf.function(lambda windows: model(windows, training=False)).get_concrete_function(window)
    # The converter itself freezes variables, but not in the body of a loop, as an LSTM is one.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([convert_variables_to_constants_v2(function)])
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if int8 else []
    return bytes(converter.convert())


class _KerasLoop(FitLoop):
    def __init__(self, model: Any, learning: LearningSettings, options: FitOptions, scaled: bool) -> None:
        super().__init__(learning, options)
        self.model = model
        inner = keras.optimizers.AdamW(
            learning.learning_rate, learning.weight_decay, global_clipnorm=learning.clip_norm
        )
        self.optimiser = keras.optimizers.LossScaleOptimizer(inner) if scaled else inner
        self.optimiser.build(model.trainable_variables)
        self.inner = inner
        self.best: list[Array] = []
        self._step = tf.function(self._train, reduce_retracing=True)

    def learn(self, windows: NDArray[np.float32], truths: Mapping[str, Array], step_rate: float) -> float:
        self.inner.learning_rate.assign(step_rate)
        return float(self._step(windows, truths, self.weights, self.scales))

    def _train(self, windows: Any, truths: Any, weights: Any, scales: Any) -> Any:
        with tf.GradientTape() as tape:
            out = tf.cast(self.model(windows, training=True), tf.float32)
            loss = self._loss(out, truths, weights, scales, self.learning.label_smoothing)
            scaled = self.optimiser.scale_loss(loss)
        gradients = tape.gradient(scaled, self.model.trainable_variables)
        self.optimiser.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss

    def _loss(self, out: Any, truths: Any, weights: Any, scales: Any, smoothing: float) -> Any:
        at = self.learning.labels
        loss = _cross_entropy(out[:, :at], truths[""], weights, smoothing)
        for head in self.learning.heads:
            part, truth = out[:, at : at + head.width], truths[head.name]
            at += head.width
            if head.labels:
                loss += head.weight * _cross_entropy(part, truth, tf.ones(head.width), smoothing)
            else:
                known = tf.math.is_finite(truth)
                error = tf.where(known, part[:, 0] - tf.where(known, truth, 0.0), 0.0) / scales[head.name]
                count = tf.maximum(tf.reduce_sum(tf.cast(known, tf.float32)), 1.0)
                loss += head.weight * tf.reduce_sum(error**2) / count
        return loss

    def judge(self, samples: Samples) -> Epoch:
        out = predict_keras(self.model, samples.windows)
        truths = self.truths(samples, slice(None))
        loss = self._loss(tf.constant(out), truths, tf.ones(self.learning.labels), self.scales, 0.0)
        right = out[:, : self.learning.labels].argmax(1) == samples.classes
        return {"validation_loss": float(loss), "validation_accuracy": float(right.mean())}

    def keep_best(self) -> None:
        self.best = [v.numpy() for v in self.model.variables]

    def take_best(self) -> None:
        for variable, value in zip(self.model.variables, self.best, strict=bool(self.best)):
            variable.assign(value)

    def state(self) -> bytes:
        file = io.BytesIO()
        groups = {"model": self.model.variables, "optimiser": self.optimiser.variables, "best": self.best}
        arrays: dict[str, Any] = {
            f"{name}{i}": np.asarray(v) for name, values in groups.items() for i, v in enumerate(values)
        }
        np.savez(file, **arrays)
        return file.getvalue()

    def restore(self, state: bytes) -> None:
        with np.load(io.BytesIO(state)) as arrays:
            for name, variables in (("model", self.model.variables), ("optimiser", self.optimiser.variables)):
                for i, variable in enumerate(variables):
                    variable.assign(arrays[f"{name}{i}"])
            self.best = [arrays[f"best{i}"] for i in range(sum(key.startswith("best") for key in arrays.files))]


def _cross_entropy(logits: Any, classes: Any, weights: Any, smoothing: float) -> Any:
    """Mean over the samples, each with the weight of its class; those without a class (-1) do not count."""
    labels = logits.shape[-1]
    targets = tf.one_hot(classes, labels) * (1 - smoothing) + smoothing / labels
    losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    weight = tf.gather(tf.convert_to_tensor(weights), tf.maximum(classes, 0)) * tf.cast(classes >= 0, tf.float32)
    return tf.reduce_sum(weight * losses) / tf.maximum(tf.reduce_sum(weight), 1e-9)


@contextlib.contextmanager
def _mixed_precision(model: Any, options: FitOptions) -> Iterator[bool]:
    """Compute in float16 while training where there is a GPU; variables, and the model afterwards, stay float32."""
    mixed = options.mixed_precision == "on" or (
        options.mixed_precision == "auto" and bool(tf.config.list_physical_devices("GPU"))
    )
    layers = [layer for layer in model._flatten_layers() if layer is not model] if mixed else []
    before = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = "mixed_float16"
    try:
        yield mixed
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy
        if mixed:
            model.predict_function = None  # compiled under the other policy


__all__ = ["fit_keras", "keras", "keras_to_tflite", "predict_keras", "prepare_keras", "tf"]
