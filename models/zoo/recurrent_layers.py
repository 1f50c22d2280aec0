"""Keras layers of the recurrent networks. In: sequences (n, time, features). Out: which steps count; their weighted sum."""

from __future__ import annotations

from typing import Any

from models.training.fit_keras import keras

ops = keras.ops
_NEVER = -1e9  # a score whose exponential is 0


class Padding(keras.layers.Layer):  # type: ignore[misc]
    """Which steps of `patch` samples each hold something: ``(n, steps)`` bool, at least the first one.

    What counts runs from the first sample to the last one that is not all zeros; zeros in between are values.
    """

    def __init__(self, patch: int, **options: Any) -> None:
        super().__init__(**options)
        self.patch = patch

    def call(self, x: Any) -> Any:
        """``(n, time, features)`` to ``(n, steps)``."""
        time = ops.shape(x)[1]
        filled = ops.cast(ops.any(ops.not_equal(x, 0), axis=-1), "int32")  # (n, time)
        length = ops.max(filled * ops.arange(1, time + 1, dtype="int32"), axis=1, keepdims=True)
        steps = ops.maximum((length + self.patch - 1) // self.patch, 1)
        return ops.arange(time // self.patch, dtype="int32")[None] < steps

    def compute_output_spec(self, x: Any) -> Any:
        """Its shape, without running it."""
        time = x.shape[1]
        return keras.KerasTensor((x.shape[0], None if time is None else time // self.patch), "bool")


class Filled(keras.layers.Layer):  # type: ignore[misc]
    """Sequences of several lengths, the shorter ones filled up with NaN at their end: zeros are values like any other.

    A step of `patch` samples is there or not as a whole.
    """

    def __init__(self, patch: int, **options: Any) -> None:
        super().__init__(**options)
        self.patch = patch

    def call(self, x: Any) -> tuple[Any, Any]:
        """``(n, time, features)`` with zeros for NaN, and which steps are there, ``(n, steps)``."""
        there = ops.logical_not(ops.isnan(x))
        steps = ops.shape(x)[1] // self.patch
        return ops.where(there, x, ops.zeros_like(x)), there[:, : steps * self.patch : self.patch, 0]

    def compute_output_spec(self, x: Any) -> tuple[Any, Any]:
        """Their shapes, without running it."""
        time = x.shape[1]
        steps = (x.shape[0], None if time is None else time // self.patch)
        return keras.KerasTensor(x.shape, x.dtype), keras.KerasTensor(steps, "bool")


class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Sum of the steps, weighted by the softmax of ``v . tanh(W h + b)`` over them.

    Yang et al. 2016, Hierarchical Attention Networks for Document Classification, section 2.2.
    """

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.supports_masking = True  # what came with a mask leaves without one: there are no steps any more

    def build(self, shape: Any) -> None:
        """W ``(features, units)``, b ``(units,)``, v ``(units, 1)``."""
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        self.score = self.add_weight(shape=(self.units, 1), name="score")

    def call(self, x: Any, steps: Any = None) -> Any:
        """``(n, steps, features)`` and which steps count, ``(n, steps)``, to ``(n, features)``."""
        score = ops.matmul(ops.tanh(ops.matmul(x, self.kernel) + self.bias), self.score)  # (n, steps, 1)
        if steps is not None:
            score = ops.where(steps[:, :, None], score, ops.cast(_NEVER, score.dtype))
        return ops.sum(ops.softmax(score, axis=1) * x, axis=1)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """None."""

    def compute_output_spec(self, x: Any, steps: Any = None) -> Any:
        """Its shape, without running it."""
        return keras.KerasTensor((x.shape[0], x.shape[-1]), x.dtype)
