"""The tables of a recipe. In: TOML tables. Out: one dataclass a table; its types say what each key takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any

from kymo.processors.augment import Augmentation
from kymo.processors.samplers import SAMPLERS
from kymo.streams.chunk import Format, signal_format
from kymo.streams.errors import FormatError
from kymo.streams.files import RULE, is_file_name
from kymo.streams.schema import Amount, Below1, Count, Positive, Rules, SchemaError, Share
from kymo.streams.units import factor

#: How windows are pooled over time.
POOLS = ("mean", "hmm")
#: ``none``: the same rate throughout; ``cosine``: up over the first tenth, then down to 0 along a half cosine;
#: ``plateau``: half as large each time the validation loss was not better for a third of `patience` epochs.
SCHEDULES = ("none", "cosine", "plateau")

#: What samples that are images are.
FRAMES = ("uint8", "jpeg")
Text = Annotated[str, Rules(pattern=r"\S", expected="a text in quotation marks")]
Texts = Annotated[tuple[Text, ...], Rules(minItems=1, alone=True, expected="an array of texts")]
Exact = Annotated[
    Fraction, Rules(exclusiveMinimum=0, expected='a number above 0, or a fraction as text such as "30000/1001"')
]
ExactOr0 = Annotated[
    Fraction,
    Rules(
        minimum=0, expected='a number above 0, a fraction as text such as "30000/1001", or 0 for an irregular stream'
    ),
]
Names = Mapping[str, Text]
Rest = Annotated[Mapping[str, Any], Rules(rest=True)]
Steps = tuple[Mapping[str, Any], ...]
_OF_LABELS: Any = None  # what ``[labels]`` says, filled in once a recipe's tables stand together
_BINS = "a whole number from 2, or borders in rising order, such as [2500, 3000]"
_FOLDS = 'a whole number from 2, 0 for one split, or "each"'


def refuse(wrong: object, why: str, *where: str | int) -> None:
    """Refuse what keys of a table say together, at one of them."""
    if wrong:
        raise SchemaError(where, why=why)


def check_name(name: str) -> None:
    """Refuse a recipe's name that cannot be part of ids and folders."""
    if not is_file_name(name):
        raise SchemaError(("name",), f"{RULE}, as it becomes part of ids and folders", name)


@dataclass(frozen=True)
class InputTable:
    """One ``[[input]]``: which stream the recipe takes."""

    stream: Text  # ``kind`` for one at any place, or ``kind.place``
    rate_hz: ExactOr0  # samples per second; 0 for an irregular stream
    channels: Texts  # by name, in this order
    # one a channel, of which some may be empty; none to take them as they come
    units: Annotated[tuple[str, ...], Rules(minItems=1, alone=True, expected="an array of texts")] = ()
    # what the chain computes in; of frames, which are taken as they come, what they are
    dtype: Annotated[str, Rules(enum=("float32", "float64", *FRAMES))] = "float32"
    shape: tuple[Count, ...] = ()  # of frames of uint8: height and width
    bridge_ms: Amount = 0  # gaps of up to this length are interpolated
    max_missing: Share = 0  # share of a window's samples that may be missing
    # in a recipe with [join]: how it is put onto the ticks, what it is late by, whether there are windows without it, how far the
    # others may be ahead, and after how much silence it is not waited for at all
    sample: Annotated[str, Rules(enum=tuple(SAMPLERS))] = "linear"
    offset_ms: float = 0
    required: bool = True
    lateness_s: Positive = 10
    idle_s: Positive = 60
    steps: Steps = ()  # at its own rate

    def __post_init__(self) -> None:
        twice = next((name for name in self.channels if self.channels.count(name) > 1), None)
        refuse(twice is not None, f"channels: {twice!r} stands there twice", "channels")
        counts = f"{len(self.units)} for {len(self.channels)} channels"
        refuse(len(self.units) not in (0, len(self.channels)), f"units: {counts}, expected one each", "units")
        why = f'shape: height and width are of frames of dtype = "uint8", this input is {self.dtype}; leave it out'
        refuse(self.shape and self.dtype != "uint8", why, "shape")
        why = f'shape: {len(self.shape)} numbers, frames of dtype = "uint8" have two: height and width'
        refuse(len(self.shape) != 2 and self.dtype == "uint8", why, "shape")
        for name in ("units", "bridge_ms", "max_missing") if self.frames else ():
            if name == "bridge_ms" and not self.rate_hz:  # how long a frame counts
                continue
            why = f"{name}: the input's samples are frames, of which none is made up and none converted; leave it out"
            refuse(getattr(self, name), why, name)

    def check(self, *, joined: bool) -> None:
        """Refuse what means nothing without a ``[join]``, or with one."""
        for name in () if joined else ("sample", "offset_ms", "required", "lateness_s", "idle_s", "steps"):
            where = "write [[steps]]" if name == "steps" else "leave it out"
            why = f"{name}: says how an input is joined to others, and there is no [join]; {where}"
            refuse(getattr(self, name) != InputTable.__dataclass_fields__[name].default, why, name)
        why = (
            "rate_hz = 0: windows count samples, and an irregular stream has none at fixed times; write a second [[input]] that is evenly "
            "sampled, and [join]"
        )
        refuse(not joined and not self.rate_hz, why, "rate_hz")
        why = 'sample = "block" takes so many samples a tick, which an irregular stream has not; "count" or "mean" take those there are'
        refuse(not self.rate_hz and self.sample == "block", why, "sample")
        why = (
            f'rate_hz = 0: sample = "{self.sample}" of an irregular stream; say with bridge_ms how long a value counts, such as '
            'bridge_ms = 5000, or take the "mean" or the "count" of the samples from a tick to the next'
        )
        counts = self.bridge_ms or self.sample in ("mean", "count")
        refuse(not self.rate_hz and not counts, why, "rate_hz")
        why = (
            "max_missing: where inputs are joined, what is missing of one is absent; bridge_ms interpolates short gaps, and "
            "required = false with the step `mask` takes windows without it"
        )
        refuse(joined and self.max_missing, why, "max_missing")
        why = f"idle_s = {self.idle_s:g} is less than lateness_s = {self.lateness_s:g}"
        refuse(joined and self.idle_s < self.lateness_s, why, "idle_s")

    @property
    def format(self) -> Format:
        fmt = signal_format(self.stream, self.channels, self.rate_hz, self.dtype, self.units)
        return replace(fmt, shape=(*self.shape, *fmt.shape) if self.dtype == "uint8" else ()) if self.frames else fmt

    @property
    def frames(self) -> bool:
        return self.dtype in FRAMES

    def mismatch(self, fmt: Format, units: tuple[str, ...]) -> str | None:
        """Why a raw stream of its name is not this input, whose channels come in `units`; the first reason, in words."""
        carries = f"`{fmt.stream}` carries {fmt.dtype}{list(fmt.shape)} a sample, expected"
        if self.frames:
            own = self.format
            if fmt.dtype != own.dtype or fmt.shape[:-1] != own.shape[:-1]:
                return f"{carries} {own.dtype}{list(own.shape)}"
        elif len(fmt.shape) != 1 or fmt.dtype in FRAMES:
            return f"{carries} one number a channel"
        absent = [c for c in self.channels if c not in fmt.channels]
        if absent:
            return f"`{fmt.stream}` has no channel {', '.join(absent)}; it has {', '.join(fmt.channels)}"
        if fmt.rate != self.rate_hz:
            rate, wanted = (f"{float(hz):g} Hz" if hz else "irregular" for hz in (fmt.rate, self.rate_hz))
            return f"`{fmt.stream}` is {rate}, expected {wanted}"
        for channel, unit in zip(self.channels, units if fmt.units else (), strict=False):
            given = fmt.units[fmt.channels.index(channel)]
            try:
                size = factor(given, unit)
            except FormatError as error:
                advice = "" if self.units else "; if that is right, say [[input]] units and change the step `scale`"
                return f"`{fmt.stream}` {channel}: {error}{advice}"
            if size != 1 and not self.units:
                return f"`{fmt.stream}` {channel} is in {given}, expected {unit}; [[input]] units would convert it"
        return None


@dataclass(frozen=True)
class JoinTable:
    """``[join]``: the ticks that all inputs are put onto."""

    rate_hz: Exact  # ticks per second
    grid: Text  # the input whose sample 0 is tick 0


@dataclass(frozen=True)
class WindowTable:
    """``[window]``: how long windows are and how far apart they begin, and the steps behind them."""

    length_s: Exact
    hop_s: Exact
    pad: bool = False  # whether what is left at a session's end makes a last window, filled up with zeros
    steps: Steps = ()


@dataclass(frozen=True)
class PoolTable:
    """``[model.pool]``: how windows are pooled over time."""

    kind: Annotated[str, Rules(enum=POOLS)]
    windows: Count = 0  # 0 for the kind's own number

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", self.windows or (30 if self.kind == "hmm" else 5))


@dataclass(frozen=True)
class ModelTable:
    """``[model]``: architecture, probability below which a label is ``unknown``, the architecture's parameters."""

    architecture: Text
    min_probability: Share = 0
    parameters: Rest = field(default_factory=dict)
    pool: PoolTable | None = None

    @property
    def stateful(self) -> bool:
        return self.parameters.get("stateful") is True


@dataclass(frozen=True)
class LabelTable:
    """``[labels]``: a column, or a key of a labels JSON; class names; the share of a window that a label must cover."""

    column: Text | None = None  # ``label`` where there is no key
    key: Text | None = None
    names: Names = field(default_factory=dict)
    min_share: Share = 0.5
    # classes of a number: how many, or the borders between them; 0 where labels are classes themselves
    bins: Annotated[int, Rules(minimum=0, expected=_BINS)] | tuple[float, ...] = 0
    bins_by: Annotated[str, Rules(enum=("range", "people"))] = (
        "range"  # what is equal: their width, or how many people they hold
    )
    classes: bool = True  # false for a regression alone: the heads say all that there is to say

    def __post_init__(self) -> None:
        borders = list(self.bins) if isinstance(self.bins, tuple) else [0.0]
        if self.bins == 1 or not borders or sorted(set(borders)) != borders:
            raise SchemaError(("bins",), _BINS, borders if isinstance(self.bins, tuple) else self.bins)
        why = "[labels] has both names and bins; bins make classes of numbers, and name them"
        refuse(self.bins and self.names, why, "bins")
        why = "[labels] has both column and key; labels come from a column, or from a labels JSON by key"
        refuse(self.column and self.key, why, "key")
        if not self.key:
            object.__setattr__(self, "column", self.column or "label")

    @property
    def set(self) -> str:
        """The label set that it asks for."""
        return self.key or self.column or ""


@dataclass(frozen=True)
class ColumnSplit:
    """``split = {column = …, train = […], test = […]}``: a column of the recordings' metadata says the side."""

    column: Text
    train: Texts
    test: Texts

    def __post_init__(self) -> None:
        overlap = sorted(set(self.train) & set(self.test))
        refuse(overlap, f"split: {', '.join(overlap)} stands in train and in test", "test")


@dataclass(frozen=True)
class TrainTable:
    """``[train]``: how to split, to balance and to vary what is learned from, and how to learn."""

    # what is kept on one side: all of a subject, of a session, of a stretch of time; or nothing but the window
    split: Annotated[str, Rules(enum=("subject", "session", "time", "window"))] | ColumnSplit = "session"
    # parts of a cross-validation, from 2; 0 for a single split, -1 (``each``) for as many as there are groups; None: the
    # data decide
    folds: Annotated[int, Rules(minimum=0, texts={"each": -1}, expected=_FOLDS)] | None = None
    balance: Annotated[str, Rules(enum=("none", "weights", "oversample"))] = (
        "weights"  # what is done about classes of unequal size
    )
    augment: tuple[Augmentation, ...] = ()
    epochs: Count = 60  # most passes over the data
    patience: Count = 15  # epochs without a better validation loss after which learning stops
    min_gain: Amount = 0  # by which a validation loss must be lower to count as better
    seed: Annotated[int, Rules(minimum=0, maximum=2**31 - 1)] = 0  # what every framework takes
    schedule: Annotated[str, Rules(enum=("", *SCHEDULES))] = ""  # empty for the architecture's own
    # share of the windows that are held out
    validation: Below1 = 0.2
    calibrate: bool = False  # whether the temperature is fitted to those or stays 1
    refit: bool = True  # whether the final model learns from them, too
    # whether MiniRocket (or what is listed) is fitted beside the architecture
    compare: bool | Annotated[tuple[Text, ...], Rules(expected="names of architectures")] = True
    sequence: Count = 20  # windows that a stateful model learns from at once
    results: str = ""  # the folder in which weights and history are left

    def __post_init__(self) -> None:
        if self.folds == 1:
            raise SchemaError(("folds",), _FOLDS, 1)
        why = "folds: a split by column has one training and one test side; leave folds out"
        refuse(self.folds and self.kind == "column", why, "folds")
        why = f"folds: a split by {self.kind} has no folds of each; write how many"
        refuse(self.folds == -1 and self.kind in ("time", "window"), why, "folds")
        why = "refit = false bundles the model of one split; leave it out, or folds"
        refuse(self.folds and not self.refit, why, "refit")

    @property
    def learning(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in list(self.__dataclass_fields__)[4:]}

    @property
    def kind(self) -> str:
        return "column" if isinstance(self.split, ColumnSplit) else self.split


@dataclass(frozen=True)
class SourceTable:
    """``[source]``: columns that together name a session, the subject's column, which rows to keep, and what names of files say."""

    session: Texts = ()
    subject: Text | None = None
    keep: Text | None = None
    file_names: Annotated[str, Rules(pattern=r"\{\w+\}", expected='a pattern such as "{label}_{subject}"')] | None = (
        None
    )


@dataclass(frozen=True)
class HeadTable:
    """One ``[[heads]]``: a question that the model answers beside the recipe's own."""

    name: Text  # what an event's `head` says, and how its id ends
    kind: Annotated[str, Rules(enum=("classes", "number"))] = (
        "classes"  # one of some classes, or a number (a regression)
    )
    column: Text | None = None  # where its labels stand, as in ``[labels]``; exactly one of them
    key: Text | None = None
    names: Names = field(default_factory=dict)  # class name of each value; classes only
    min_share: Share = _OF_LABELS  # the share of a window that a label must cover
    # of its loss beside that of the recipe's classes
    weight: Annotated[float, Rules(exclusiveMinimum=0, expected="a number above 0, and a finite one")] = 1

    def __post_init__(self) -> None:
        if "/" in self.name or self.name != self.name.strip() or self.name == "unknown":
            rule = "a name for event ids: no slash, no blanks around it, not `unknown`"
            raise SchemaError(("name",), rule, self.name)
        refuse(self.column and self.key, "a head has both column and key; labels come from one of them", "key")
        why = "a head of kind number has names; values of a number are taken as they are"
        refuse(self.names and self.kind == "number", why, "names")

    @property
    def set(self) -> str:
        """The label set that it learns from."""
        return self.key or self.column or self.name

    def beside(self, labels: LabelTable) -> HeadTable:
        """This head with what it leaves out taken from ``[labels]``: where its labels stand by its name, and the share."""
        changes: dict[str, Any] = {} if self.min_share is not None else {"min_share": labels.min_share}
        if not self.column and not self.key:
            changes["key" if labels.key else "column"] = self.name
        return replace(self, **changes)

    def check(self, earlier: Sequence[LabelTable | HeadTable]) -> None:
        """Refuse what has the name of one before it, or means something else by the same labels: a column is read once."""
        if self.name in [table.name for table in earlier if isinstance(table, HeadTable)]:
            raise SchemaError(("name",), "a name of its own, another head has it", self.name)
        for table in earlier:
            if table.set == self.set:
                why = (
                    f"head `{self.name}`: a column and a key of a labels JSON are both called `{self.set}`, and become one "
                    f"label set; rename the column or the key"
                )
                refuse((table.column, table.key) != (self.column, self.key), why, "key" if self.key else "column")
                why = (
                    f"head `{self.name}`: its names of the values of `{self.set}` differ from those that stand before; "
                    f"write the same ones, or copy the values to a column or key of its own"
                )
                refuse(table.names != self.names, why, "names")


@dataclass(frozen=True)
class AlertTable:
    """One ``[[alerts]]``: which labels, how sure, for how many windows, and who is told."""

    label: Texts
    name: Text | None = None
    min_probability: Share = 0
    windows: Count = 1
    notify: Texts = ()


@dataclass(frozen=True)
class RecipeTables:
    """All that a recipe's file says."""

    name: Text  # part of every event's id
    input: Annotated[
        tuple[InputTable, ...],
        Rules(minItems=1, expected="[[input]]: which stream it takes, with rate_hz and channels"),
    ]
    window: Annotated[WindowTable, Rules(expected="[window] with length_s and hop_s")]
    join: JoinTable | None = None
    steps: Steps = ()
    model: ModelTable | None = None
    labels: LabelTable = field(default_factory=LabelTable)
    heads: tuple[HeadTable, ...] = ()  # what the model says beside the recipe's own classes
    train: TrainTable = field(default_factory=TrainTable)
    source: SourceTable = field(default_factory=SourceTable)
    alerts: tuple[AlertTable, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_inputs()
        why = '[labels] classes = false: then a head says what there is to say; add [[heads]] with kind = "number"'
        refuse(not self.labels.classes and all(head.kind != "number" for head in self.heads), why, "labels", "classes")
        refuse(self.heads and not self.model, "[[heads]] without [model]: a head is a part of the model", "heads")
        if self.model and self.model.stateful:
            self._check_stateful()
        heads = tuple(head.beside(self.labels) for head in self.heads)
        object.__setattr__(self, "heads", heads)
        for i, head in enumerate(heads):
            try:
                head.check((self.labels, *heads[:i]))
            except SchemaError as wrong:
                wrong.path = ("heads", i, *wrong.path)
                raise

    @property
    def rate_hz(self) -> Fraction:
        """Samples per second that windows are counted in: of its input, or the ticks of its ``[join]``."""
        return self.input[0].rate_hz if self.join is None else self.join.rate_hz

    def _check_inputs(self) -> None:
        why = "several [[input]]s: write [join] with rate_hz and grid, the ticks that all of them are put onto"
        refuse(len(self.input) > 1 and self.join is None, why, "input", 1)
        streams, joined = [table.stream for table in self.input], self.join is not None
        for i, table in enumerate(self.input):
            refuse(table.stream in streams[:i], f"stream: another [[input]] is {table.stream!r}", "input", i, "stream")
            try:
                table.check(joined=joined)
            except SchemaError as wrong:
                wrong.path = ("input", i, *wrong.path)
                raise
        if self.join is not None and self.join.grid not in streams:
            raise SchemaError(("join", "grid"), f"the stream of an [[input]]: {', '.join(streams)}", self.join.grid)
        masked = any(step.get("step") == "mask" for step in self.window.steps)
        marks = [(step.get("channel"),) for step in self.window.steps if step.get("step") == "anew"]
        for i, table in enumerate(self.input):
            why = (
                f"required = false: windows without `{table.stream}` hold nothing where it should be, which no model takes; add "
                '[[window.steps]] step = "mask", or leave it out'
            )
            channels = ("count",) if table.sample == "count" else table.channels
            lacks = not table.required and channels not in marks
            refuse(lacks and not masked and self.model, why, "input", i, "required")

    def _check_stateful(self) -> None:
        why = (
            f"[train] split = {self.train.kind!r} divides sessions, but a stateful model goes through whole ones; "
            f"split by subject or session"
        )
        refuse(self.train.kind in ("time", "window"), why, "train", "split")
        why = "[window] pad = true: a stateful model takes what came, window by window; leave it out"
        refuse(self.window.pad, why, "window", "pad")
        why = "[[train.augment]] varies windows one by one, but a stateful model learns from sequences of them; leave it out"
        refuse(self.train.augment, why, "train", "augment", 0)
