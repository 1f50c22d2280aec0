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
    """What an agent does for one recipe."""

    recipe: str  # its name; of a processor, that of its steps, which recipes may share
    state: str  # under which name its snapshots stand
    # full names of the topics that it reads; the group may have others, for members whose windows are of another kind
    inputs: tuple[str, ...]
    chain: Chain  # from the input's chunks to windows, or to derived chunks
    outputs: Outputs  # what the chain's outputs are
    topic: str  # full name of the topic for them
    matches: Callable[[Format], str | None]  # none for a stream that the recipe takes, else the reason why not
    # outputs, with their sessions' memories, to the values of each one's records; called in a thread of its own
    classify: Callable[[Sequence[Any], Sequence[list[Any]]], list[list[bytes]]]
    shadow: Shadow | None = None  # what scores the same windows aside
    serving: Serving | None = None
    anew: Callable[[Bundle], Job] | None = None  # the job for a bundle whose windows are of another kind


class TopicReader(Protocol):
    """What reads topics without a group."""

    async def limits(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """By partition, the first offset there is, and the one behind the last."""

    async def read(self, ranges: Mapping[TopicPartition, tuple[int, int]], visit: Callable[[Any], None]) -> None:
        """Visit every record between two offsets of each partition."""

    async def close(self) -> None:
        """Close the connection."""


class Kafka(Protocol):
    """What the agent asks of its Faust app."""

    lease: Lease  # how long the agent may act on its partitions
    consumer_generation_id: int  # the group's generation

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
    """What is around an agent."""

    kafka: Kafka
    names: Names
    read_back: TopicReader  # for what an earlier life left
    observer: Observer
    failed: Callable[[BaseException], None]  # called once, with the first error that makes going on unsafe
    topic_ids: Callable[[Sequence[str]], Awaitable[dict[str, str]]]  # Kafka's ids of topics, by name
    tell: Callable[[str], None]  # called with a line for a person
