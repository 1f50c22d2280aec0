"""What an agent does and what is around it. In: a recipe with its bundle, a Faust app, metrics. Out: the parts an agent is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka.structs import OffsetAndMetadata, TopicPartition

from models.bundle import Bundle
from models.serving.outputs import Outputs
from models.serving.partition import Partition
from models.serving.served import Serving
from models.serving.shadow import Shadow
from processors.chain import Chain
from processors.lease import Lease
from streams.chunk import Format
from streams.topics import Names


class Observer(Protocol):
    """Told what happens, for metrics."""

    def took(self, partition: Partition, records: int, seconds: float) -> None:
        """Records were decoded and pushed through the chain."""

    def classified(self, windows: int, seconds: float) -> None:
        """A batch was classified."""

    def emitted(self, seconds: float) -> None:
        """An event was acknowledged, so long after its window's last chunk was sent."""

    def rejected(self, reason: str) -> None:
        """A record was rejected."""

    def committed(self, seconds: float) -> None:
        """Offsets were committed."""


@dataclass(frozen=True, slots=True)
class Job:
    """What an agent does for one recipe.

    Attributes
    ----------
    recipe : str
        Its name; of a processor, that of its steps, which recipes may share.
    state : str
        Under which name its snapshots stand.
    inputs : tuple of str
        Full names of the topics that it reads; the group may have others, for members whose windows are of another kind.
    chain : Chain
        From the input's chunks to windows, or to derived chunks.
    outputs : Outputs
        What the chain's outputs are.
    topic : str
        Full name of the topic for them.
    matches : callable
        None for a stream that the recipe takes, else the reason why not.
    classify : callable
        Outputs, with their sessions' memories, to the values of each one's records; called in a thread of its own.
    shadow : Shadow, optional
        What scores the same windows aside.
    serving : Serving, optional
        What classifies.
    anew : callable, optional
        The job for a bundle whose windows are of another kind.
    """

    recipe: str
    state: str
    inputs: tuple[str, ...]
    chain: Chain
    outputs: Outputs
    topic: str
    matches: Callable[[Format], str | None]
    classify: Callable[[Sequence[Any], Sequence[list[Any]]], list[list[bytes]]]
    shadow: Shadow | None = None
    serving: Serving | None = None
    anew: Callable[[Bundle], Job] | None = None


class TopicReader(Protocol):
    """What reads topics without a group."""

    async def limits(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """By partition, the first offset there is, and the one behind the last."""

    async def read(self, ranges: Mapping[TopicPartition, tuple[int, int]], visit: Callable[[Any], None]) -> None:
        """Visit every record between two offsets of each partition."""

    async def close(self) -> None:
        """Close the connection."""


class Kafka(Protocol):
    """What the agent asks of its Faust app.

    Attributes
    ----------
    lease : Lease
        How long the agent may act on its partitions.
    consumer_generation_id : int
        The group's generation.
    """

    lease: Lease
    consumer_generation_id: int

    def hold(self) -> None:
        """Let no record come, nor any that was fetched before."""

    async def begin(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let records of these partitions come, from there on; no others."""

    def aiokafka_producer(self) -> Any:
        """The producer."""

    async def commit_with(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit."""

    async def committed_with(self, partitions: Any) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed offsets."""

    def assigned(self) -> list[TopicPartition]:
        """The partitions that are this worker's."""


@dataclass(frozen=True, slots=True)
class Around:
    """What is around an agent.

    Attributes
    ----------
    kafka : Kafka
        The app.
    names : Names
        Topic names.
    read_back : TopicReader
        For what an earlier life left.
    observer : Observer
        For metrics.
    failed : callable
        Called once, with the first error that makes going on unsafe.
    topic_ids : callable
        Kafka's ids of topics, by name.
    tell : callable
        Called with a line for a person.
    """

    kafka: Kafka
    names: Names
    read_back: TopicReader
    observer: Observer
    failed: Callable[[BaseException], None]
    topic_ids: Callable[[Sequence[str]], Awaitable[dict[str, str]]]
    tell: Callable[[str], None]
