"""A chain of Specs is a Spec. In: raw Chunks. Out: Windows (or derived Chunks, where no window step is in it)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from kymo.processors.intake import Derived, EntryStage, Intake
from kymo.processors.spec import SlowSpec, Spec, Stage, chain_digest, derived_header, pack_list, unpack_list
from kymo.processors.steps.maps import Anew
from kymo.processors.windows import Windows, WindowStage
from kymo.streams.chunk import Chunk, Format, Header, Window
from kymo.streams.errors import FormatError


@dataclass(frozen=True)
class PerWindow(Spec):
    """A step behind the window: the same Spec, on each window's rows.

    Parameters
    ----------
    spec : Spec
        The step.
    """

    spec: Spec
    name: ClassVar[str] = "per_window"

    def __post_init__(self) -> None:
        if not isinstance(self.spec, Spec):
            raise FormatError(f"per_window: {str(self.spec)[:80]} is no step")
        if not self.spec.after_window:
            raise FormatError(f"{self.spec.name}: cannot stand behind the window")

    def build(self) -> Stage:
        return PerWindowStage(self)

    def at(self, fmt: Format) -> PerWindow:
        """With the step as it stands there."""
        spec = self.spec.at(fmt)
        return self if spec is self.spec else replace(self, spec=spec)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """The step's output, with its number of rows."""
        ((stream, fmt),) = inputs.items()
        if fmt.rows is None:
            raise FormatError(f"{self.spec.name}: stands behind the window, but no window comes before it")
        out = self.spec.output({stream: fmt})
        rows = int(((fmt.rows - 1) * fmt.step + fmt.span - out.span) // out.step) + 1
        if rows < 1:
            raise FormatError(f"{self.spec.name}: a window of {fmt.rows} rows is too short for it")
        return replace(out, rows=rows)


class PerWindowStage(Stage):
    """Stage of :class:`PerWindow`: no memory."""

    def __init__(self, spec: PerWindow) -> None:
        super().__init__()
        self.spec = spec
        self._in: Header | None = None

    def push(self, item: Window) -> list[Window]:
        """Take a Window; give it transformed."""
        if item.header is not self._in:
            self._in, self._out = item.header, derived_header(item.header, self.spec)
        if item.padded:
            return [self._padded(item)]
        spec, fmt = self.spec.spec, item.header.format
        if isinstance(spec, Anew) and (row := spec.newest(item.data, fmt)) >= 0:
            item = replace(item, anew=item.start_index + int(row * fmt.step))
        return [replace(item, header=self._out, pieces=spec.apply(item.data, fmt))]

    def _padded(self, item: Window) -> Window:
        """Transform the rows that are there; zeros behind them."""
        fmt, out = item.header.format, self._out.format
        data = np.zeros((out.rows or 0, *out.shape), out.dtype)
        if (len(item.real) - 1) * fmt.step + fmt.span >= out.span:
            there = self.spec.spec.apply(item.real, fmt)
            data[: len(there)] = there
            return replace(item, header=self._out, pieces=data, padded=len(data) - len(there))
        return replace(item, header=self._out, pieces=data, padded=len(data))

    @property
    def needs_from(self) -> dict[str, int]:
        """Nothing: a window that came in has gone out."""
        return {}

    def snapshot(self) -> bytes:
        return b""

    def restore(self, snapshot: bytes) -> None:
        """Nothing: it has no memory."""


@dataclass(frozen=True)
class Chain(Spec):
    """Specs one behind the other.

    Parameters
    ----------
    specs : tuple of Spec
        At least one; an :class:`~kymo.processors.intake.Intake` first where raw input is to be cleaned.
    """

    specs: tuple[Spec, ...]
    name: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        if not self.specs:
            raise FormatError("chain: no steps, expected at least one")
        for spec in self.specs:
            if not isinstance(spec, Spec):
                raise FormatError(f"chain: {str(spec)[:80]} is no step")

    def build(self) -> ChainStage:
        return ChainStage(self)

    def output(self, inputs: Mapping[str, Format]) -> Format:
        """Format behind the last step; fails where a step cannot take what comes before it."""
        for spec in self.specs:
            if any(fmt.rows is not None for fmt in inputs.values()) and not isinstance(spec, PerWindow):
                raise FormatError(f"{spec.name}: takes a stream, but stands behind the window")
            fmt = spec.output(inputs)
            inputs = {fmt.stream: fmt}
        return fmt

    def memory_bytes(self, fmt: Format) -> int:
        """What all steps keep of a session at most, in bytes."""
        total = 0
        for spec in self.specs:
            total += spec.memory_bytes(fmt)
            fmt = spec.output({fmt.stream: fmt})
        return total

    @property
    def endless(self) -> bool:
        return any(spec.endless for spec in self.specs)

    def widest(self, fmt: Format) -> float:
        """Bytes that a sample of `fmt` becomes at most on its way to the window, on average; of images, once they are decoded."""
        known = self.__dict__.setdefault("_widest", {})
        if fmt not in known:  # asked for with every session
            formats = [fmt]
            for spec in self.specs[: self._window_at]:
                formats.append(spec.output({fmt.stream: formats[-1]}))
            widest = max((f.sample_bytes / float(f.step) for f in formats if f.dtype != "jpeg"), default=1.0)
            self.__dict__["_widest"] = dict([*known.items(), (fmt, widest)][-_FORMATS:])
        return float(self.__dict__["_widest"][fmt])

    def input_index(self, index: int) -> int:
        """Oldest input index that output `index` rests on."""
        for spec in reversed(self.specs):
            index = spec.input_index(index)
        return index

    def split(self, source: Format) -> tuple[Chain, Chain]:
        """What stands up to the slow step, or before the window where none is slow, and the rest, which takes the former's chunks.

        The former depends on nothing that the rest says, and so does what its chunks say of how they were made: recipes whose windows
        differ share it. It fills gaps as long as any of them may fill; the rest leaves out what rests on one that is too long for it.

        Raises
        ------
        FormatError
            If no step stands before the window: then there is no derived stream.
        """
        at, first = self.specs.index(self.slow) + 1 if self.slow is not None else self._window_at, self.specs[0]
        if at < 2 or at == len(self.specs) or isinstance(first, Derived):
            raise FormatError(
                "no step stands before the window, so there is no derived stream; run both roles in one worker"
            )
        before, fmt = list[Spec](), source
        for spec in self.specs[:at]:
            before.append(spec.shared(fmt))
            fmt = spec.output({fmt.stream: fmt})
        most, fill = 0.0, 0
        if isinstance(first, Intake):
            most, fill = first.max_missing, first.fill
            if not all(spec.spans_all for spec in before):  # what rests on a gap cannot be told behind them
                before[0] = replace(first.shared(source), fill=fill)
        chain = Chain(tuple(before))
        about = f"{chain.derived_digest()} {source.stream} {source.rate}"
        digest = hashlib.sha256(about.encode()).hexdigest()[:16]
        return chain, Chain((Derived(digest, most, fill), *self.specs[at:]))

    @property
    def slow(self) -> SlowSpec | None:
        """The step that is done in processes of its own, where there is one."""
        slow = [spec for spec in self.specs if isinstance(spec, SlowSpec)]
        if len(slow) > 1:
            raise FormatError(
                f"{' and '.join(spec.name for spec in slow)} are both slow; a recipe has one slow step, whose results others may take"
            )
        return slow[0] if slow else None

    def cut_behind_window(self) -> tuple[Chain, tuple[PerWindow, ...]]:
        """What stands up to the window, and the steps behind it."""
        behind = self._window_at + 1
        return Chain(self.specs[:behind]), tuple(spec for spec in self.specs[behind:] if isinstance(spec, PerWindow))

    @property
    def hop(self) -> int:
        """Raw samples from a window to the next one; 0 where none are cut."""
        return next((spec.hop for spec in self.specs if isinstance(spec, Windows)), 0)

    @property
    def _window_at(self) -> int:
        """Place of the window step; one past the last step where there is none."""
        return next((i for i, spec in enumerate(self.specs) if isinstance(spec, Windows)), len(self.specs))

    def derived_digest(self) -> str:
        """What chunks behind this chain carry as their `chain`, before they are published."""
        digest = ""
        for spec in self.specs:
            digest = chain_digest(digest, spec)
        return digest

    def digest(self, learned: bool = True) -> str:
        """16 hexadecimal digits; with ``learned=False`` the same for chains that differ in learned numbers only."""
        text = json.dumps(self.to_json(learned), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_FORMATS = 64  # of which the widest is remembered
_NOTHING: Counter[str] = Counter()  # asked for with every chunk, so made once


class ChainStage(Stage):
    """Stage of a :class:`Chain`: the stages of its Specs."""

    def __init__(self, spec: Chain) -> None:
        super().__init__()
        self.spec = spec
        self.stages = [s.build() for s in spec.specs]
        self._intake = self.stages[0] if isinstance(self.stages[0], EntryStage) else None
        # How an index at each stage's input maps back to the chain's input.
        self._before = [spec.specs[:i][::-1] for i in range(len(spec.specs))]

    def push(self, item: Any) -> list[Any]:
        """Take a raw Chunk; give what came out behind the last step."""
        return self._admit(self._through([item], 0))

    def decide(self, decision: Any) -> list[Any]:
        """Let the entry, which joins several inputs, hear of a decision; give what came out behind the last step."""
        assert self._intake is not None
        return self._admit(self._through(self._intake.decide(decision), 1))

    def _through(self, items: list[Any], first: int) -> list[Any]:
        for stage in self.stages[first:]:
            if not items:
                break
            items = stage.push(items[0]) if len(items) == 1 else [out for item in items for out in stage.push(item)]
        return items

    def flush(self) -> list[Any]:
        """Flush every stage in order, each into the next.

        What may come behind the end begins anew, but for what came already: no window spans the end, and nothing of one is kept.
        """
        out: list[Any] = []
        for i, stage in enumerate(self.stages):
            if items := stage.flush():
                out += self._through(items, i + 1)
        admitted = self._admit(out)
        first = 0 if self._intake is None else 1
        self.stages[first:] = [spec.build() for spec in self.spec.specs[first:]]
        return admitted

    def _admit(self, items: list[Any]) -> list[Any]:
        """Say of each window what share of it was interpolated, and leave out those with too much."""
        if self._intake is None or not self._intake.filled:
            return items
        admitted = []
        for item in items:
            if isinstance(item, Window):
                length = item.end_index - item.start_index
                covered = next((stage.covered for stage in self.stages if isinstance(stage, WindowStage)), length)
                if not self._intake.admits(item, covered):
                    self.counts["windows_with_gaps"] += 1
                    continue
            elif isinstance(item, Chunk):
                self._tell(item)
            admitted.append(item)
        self._intake.forget(min(self._needs_behind_intake(), default=self._intake.seen))
        return admitted

    def _tell(self, chunk: Chunk) -> None:
        """Say of a chunk what beneath it was interpolated, or not there."""
        assert self._intake is not None
        start, end = chunk.header.format.beneath(chunk.first_index, chunk.end_index)
        chunk.filled = tuple(gap for gap in self._intake.filled if gap[0] < end and start < gap[1])
        absent = ((a, b, stream) for stream, ranges in self._intake.absent.items() for a, b, _ in ranges)
        chunk.absent = tuple(ticks for ticks in absent if ticks[0] < end and start < ticks[1])

    def _needs_behind_intake(self) -> list[int]:
        needs = []
        for i, stage in enumerate(self.stages[1:], 1):
            for needed in stage.needs_from.values():
                index = needed
                for spec in self._before[i]:
                    index = spec.input_index(index)
                needs.append(index)
        return needs

    @property
    def needs_from(self) -> dict[str, int]:
        """Oldest raw sample that any stage still needs."""
        first = self.stages[0].needs_from
        if not first:
            return {}
        if len(first) > 1:  # of several inputs: what was joined already is in a snapshot alone
            return first
        ((stream, index),) = first.items()
        need = min([index, *self._needs_behind_intake()])
        return {stream: need if self._intake is None else self._intake.input_needed(need)}

    def take_counts(self) -> Counter[str]:
        """What was noticed since the last call, of all stages."""
        if not self.counts and not any(stage.counts for stage in self.stages):
            return _NOTHING
        total: Counter[str] = Counter()
        for stage in (self, *self.stages):
            if stage.counts:
                total.update(stage.counts)
                stage.counts.clear()
        return total

    def snapshot(self) -> bytes:
        return pack_list([stage.snapshot() for stage in self.stages])

    def restore(self, snapshot: bytes) -> None:
        for stage, part in zip(self.stages, unpack_list(snapshot), strict=True):
            stage.restore(part)
