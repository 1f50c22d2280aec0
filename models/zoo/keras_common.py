"""What the Keras architectures share: output columns, and the model behind the protocol. In: layers. Out: an Architecture.

A model has one output, ``(n, columns)``: logits of the classes, then what each further head says. A number comes in its
own unit (3,000 s, 42.5 points): the last layer scales and shifts it by spread and mean of the training windows' own.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from models.training.fit import Learning, units_of
from models.training.fit_keras import fit_keras, keras, predict_keras
from models.zoo import Epoch, FitOptions, Head, Samples
from models.zoo.keras_onnx import Graph, keras_to_onnx, layer_form
from streams.chunk import Array, Format
from streams.errors import TrainingError


class Units(keras.layers.Layer):  # type: ignore[misc]
    """Columns times a scale plus an offset, both set from the training windows and not learned.

    Always in float32: in float16, as the rest may be while it learns, the next number behind 3,000 s is 3,002 s.
    """

    def build(self, shape: Any) -> None:
        """One scale and one offset a column."""
        options = {"shape": shape[-1:], "trainable": False, "autocast": False}
        self.scale = self.add_weight(initializer="ones", name="scale", **options)
        self.offset = self.add_weight(initializer="zeros", name="offset", **options)

    def call(self, x: Any) -> Any:
        """``(n, columns)``, each in its unit."""
        return keras.ops.cast(x, "float32") * self.scale + self.offset


@layer_form("Units")
def _units(graph: Graph, layer: Any, inputs: list[str], _: Any) -> str:
    scale, offset = (graph.constant(x.numpy().reshape(1, -1, 1, 1)) for x in (layer.scale, layer.offset))
    return graph.node("Add", [graph.node("Mul", [*inputs, scale]), offset])


class KerasArchitecture:
    """A Keras model as an :class:`~models.zoo.Architecture`; a subclass builds it."""

    layout: ClassVar[str] = "channels_last"
    packages: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "onnx")
    several_heads: ClassVar[bool] = True
    parameters: dict[str, Any]
    model: Any  # one input ``(n, *shape)``, one output ``(n, columns)``

    def __init__(self, labels: Sequence[str], heads: Sequence[Head]) -> None:
        self.labels, self.heads = tuple(labels), tuple(heads)
        self.notes: list[str] = []  # what the user should know of the fit

    def columns(self, features: Any) -> Any:
        """The output ``(n, columns)`` of features ``(n, width)``: a dense layer a head, then units."""
        parts = [keras.layers.Dense(len(self.labels), name="logits")(features)]
        parts += [keras.layers.Dense(head.width, name=f"head_{i}")(features) for i, head in enumerate(self.heads)]
        joined = keras.layers.Concatenate(name="columns")(parts) if len(parts) > 1 else parts[0]
        return Units(name="units")(joined) if any(not head.labels for head in self.heads) else joined

    def learning(self) -> Learning:
        """How the model learns, by its parameters."""
        p = self.parameters
        return Learning(
            len(self.labels),
            self.heads,
            learning_rate=p["learning_rate"],
            batch_size=p["batch_size"],
            schedule=p["schedule"],
            weight_decay=p["weight_decay"],
            clip_norm=1.0,  # a fresh network's first steps can be far too long
        )

    def fit(
        self, training: Samples, validation: Samples | None, options: FitOptions, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Learn by AdamW; with validation, keep the best epoch's weights."""
        self._set_units(training)
        fit_keras(self.model, self.learning(), training, validation, options, on_epoch)

    def _set_units(self, training: Samples) -> None:
        if any(not head.labels for head in self.heads):
            self.model.get_layer("units").set_weights(list(units_of(len(self.labels), self.heads, training)))

    def predict(self, windows: Array) -> Array:
        """Outputs, ``(n, columns)`` float32, by TensorFlow."""
        return predict_keras(self.model, windows)

    def weights(self) -> bytes:
        """All weights, in Keras' own format: the contents of a file ``*.weights.h5``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.weights.h5"
            self.model.save_weights(path)
            return path.read_bytes()

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        """Write ONNX with a free batch size."""
        path.write_bytes(keras_to_onnx(self.model, input_name, output_name))


def window_shape(fmt: Format) -> tuple[int, ...]:
    """``(time, …, channels)`` of the windows."""
    return (fmt.rows or 1, *fmt.shape)


def check_learning(parameters: Mapping[str, Any]) -> None:
    """Refuse values that nothing can be learned with."""
    p = parameters
    wrong = [
        f"{key} = {p[key]!r}, expected {expected}"
        for key, fits, expected in (
            ("batch_size", p["batch_size"] >= 1, "at least 1"),
            ("learning_rate", p["learning_rate"] > 0, "above 0"),
            ("weight_decay", p["weight_decay"] >= 0, "0 or more"),
            ("dropout", 0 <= p["dropout"] < 1, "from 0 to below 1"),
        )
        if not fits
    ]
    if wrong:
        raise TrainingError(f"[model] {wrong[0]}")


def one_of(parameters: Mapping[str, Any], key: str, choices: Sequence[str]) -> str:
    """A parameter that has a few values."""
    value = str(parameters[key])
    if value not in choices:
        raise TrainingError(f"[model] {key} = {value!r}, expected one of {', '.join(choices)}")
    return value


@contextlib.contextmanager
def output_aside() -> Iterator[None]:
    """Keras reports a download on the standard output, where results belong; here it goes to the other one."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
