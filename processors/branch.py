"""One input of a join, as a recipe says it. In: a stream's name and rate, its steps, a way to sample. Out: what a tick holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar

from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.samplers import SAMPLERS, samples_a_tick
from kymo.processors.spec import Spec, Stage
from kymo.streams.chunk import Format, signal_format
from kymo.streams.errors import FormatError
from kymo.streams.schema import Name, Rules, Whole


def fraction_of(step: str, rate: str, *, may_be_0: bool = False) -> Fraction:
    """Read a rate, a fraction as text."""
    try:
        number = Fraction(rate)
    except (ValueError, ZeroDivisionError, TypeError):
        number = Fraction(-1)
    if number < 0 or (number == 0 and not may_be_0):
        raise FormatError(f'{step}: rate {rate!r}, expected a number above 0 as text, such as "4" or "30000/1001"')
    return number


@dataclass(frozen=True)
class Branch(Spec):
    """One input of a join: a stream, the steps at its own rate, and how it is put onto the ticks.

    Parameters
    ----------
    stream : str
        ``kind`` for one at any place, or ``kind.place``.
    rate : str
        Its raw samples per second, as a fraction; 0 for an irregular stream.
    chain : Chain
        From its raw chunks to clean ones; begins with an Intake that names its channels.
    sample : str
        ``linear`` between the samples around a tick, ``hold`` the newest, ``nearest``; of those from a tick to the next ``mean``,
        ``block`` (all of them) or ``count``.
    required : bool
        Whether a tick without it is left out.
    offset_ns : int
        What its times are late by, ns: it is added to them.
    reach_ns : int
        Of an irregular stream: how long a value holds, how far the nearest may be, or how far apart two are for a line between them.
    """

    stream: Name
    rate: str
    chain: Chain
    sample: Annotated[str, Rules(enum=tuple(SAMPLERS))] = "linear"
    required: bool = False
    offset_ns: int = 0
    reach_ns: Whole = 0
    name: ClassVar[str] = "branch"
    after_window: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.irregular and self.sample == "block":
            raise FormatError(
                f'branch `{self.stream}`: sample = "block" takes evenly sampled streams, this one is irregular'
            )
        if self.irregular and not self.reach_ns and self.sample not in ("mean", "count"):
            raise FormatError(
                f"branch `{self.stream}`: reach_ns 0, expected how long a value of this irregular stream holds"
            )
        first = self.chain.specs[0]
        if not isinstance(first, Intake) or not first.channels:
            raise FormatError(
                f"branch `{self.stream}`: its chain does not begin with an intake that names its channels"
            )

    def build(self) -> Stage:
        return self.chain.build()

    @property
    def irregular(self) -> bool:
        """Whether its samples have times of their own."""
        return not fraction_of("branch", self.rate, may_be_0=True)

    @property
    def counts_alone(self) -> bool:
        """Whether it is there without a sample, and so is no reason for a tick."""
        return self.sample == "count" or (self.irregular and self.sample == "hold")

    @property
    def raw(self) -> Format:
        """Format of its raw stream, as far as it is known without it."""
        intake = self.chain.specs[0]
        assert isinstance(intake, Intake)
        rate = fraction_of("branch", self.rate, may_be_0=True)
        return signal_format(self.stream, intake.channels, rate, intake.dtype, intake.units)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Format of its chunks, before they are sampled."""
        return self.chain.output(inputs or {self.stream: self.raw})

    def takes(self, stream: str) -> bool:
        """Whether a stream of this name is its input."""
        return self.stream in (stream, stream.partition(".")[0])

    def sampled(self, fmt: Format, ticks: Fraction) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Channels and shape of what a tick holds of it."""
        if fmt.dtype not in ("float32", "float64"):
            raise FormatError(f"`{fmt.stream}`: samples are {fmt.dtype}, a join takes float32 or float64")
        if self.sample == "count":
            return ("count",), (1,)
        if self.sample != "block":
            return fmt.channels, fmt.shape
        if len(fmt.shape) != 1:
            raise FormatError(f'`{fmt.stream}`: sample = "block" takes one number a channel, not {fmt.shape}')
        numbers = range(samples_a_tick(fmt.rate, ticks))
        channels = tuple(f"{channel}.{number}" for number in numbers for channel in fmt.channels)
        return channels, (len(channels),)
