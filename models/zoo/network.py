"""What all networks share, whatever their framework. In: an architecture's parameters. Out: checked ones, and how it learns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from kymo.models.training.learning import Learning
from kymo.models.zoo import ModelHead, Range, read_parameters
from kymo.streams.chunk import Format

_LEARNING = ("learning_rate", "batch_size", "schedule", "weight_decay", "label_smoothing")


class Network:
    """A network as an :class:`~kymo.models.zoo.Architecture`; a framework's subclass fits it, the architecture's builds it."""

    name: ClassVar[str]
    takes_parameters: ClassVar[type[Any]]  # a dataclass: what ``[model]`` takes
    habits: ClassVar[Mapping[str, Any]] = {"clip_norm": 1.0}  # a fresh network's first steps can be far too long
    several_heads: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Range]] = {}

    def __init__(
        self,
        fmt: Format,  # of the windows
        labels: Sequence[str],
        parameters: Mapping[str, Any],
        seed: int,  # of the first weights
        heads: Sequence[ModelHead] = (),  # what else it says
    ) -> None:
        self.fmt, self.labels, self.heads = fmt, len(labels), tuple(heads)
        self.columns = self.labels + sum(head.width for head in self.heads)  # of the output
        self.parameters = self.read(parameters)
        self.make(seed)

    def read(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Check parameters, and fill in defaults."""
        return read_parameters(parameters, self.takes_parameters)

    @abstractmethod
    def make(self, seed: int) -> None:
        """Make the network, in the framework's way."""

    def says_numbers(self) -> bool:
        """Whether some head is a number, which comes in a unit of its own."""
        return any(not head.labels for head in self.heads)

    def learning(self) -> Learning:
        """Say how the network learns, by its parameters."""
        own = {name: self.parameters[name] for name in _LEARNING if name in self.parameters}
        return Learning(self.labels, self.heads, **self.habits, **own)
