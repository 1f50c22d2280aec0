"""The tables of a recipe. In: TOML tables. Out: one dataclass a table, its values checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from kymo.processors.recipe.toml import Table, toml_value
from kymo.processors.registry import nearest

#: What a split keeps on one side: all of a subject, of a session, of a stretch of time; or nothing but the window.
SPLITS = ("subject", "session", "time", "window")
#: How windows are pooled over time.
POOLS = ("mean", "hmm")
BALANCES = ("none", "weights", "oversample")
#: What a head says: one of some classes, or a number (a regression).
HEAD_KINDS = ("classes", "number")


@dataclass(frozen=True)
class InputTable:
    """One ``[[input]]``: which stream the recipe takes."""

    stream: str  # ``kind`` for one at any place, or ``kind.place``
    rate_hz: Fraction  # samples per second, above 0
    channels: tuple[str, ...]  # by name, in this order
    units: tuple[str, ...] = ()  # one a channel, or empty to take them as they come
    dtype: str = "float32"  # float32 or float64: what the chain computes in
    bridge_ms: float = 0.0  # gaps of up to this length are interpolated
    max_missing: float = 0.0  # share of a window's samples that may be missing, 0 to 1


@dataclass(frozen=True)
class ModelTable:
    """``[model]``: architecture, probability below which a label is ``unknown``, the architecture's parameters.

    `pool` says how windows are pooled over time: ``{kind = "mean", windows = n}`` or ``{kind = "hmm", windows = n}``;
    empty for not at all.
    """

    architecture: str
    min_probability: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    pool: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stateful(self) -> bool:
        """Whether the model goes on from window to window."""
        return self.parameters.get("stateful") is True


@dataclass(frozen=True)
class LabelTable:
    """``[labels]``: a column, or a key of a labels JSON; class names; the share of a window that a label must cover."""

    column: str | None = "label"
    key: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    min_share: float = 0.5

    @property
    def set(self) -> str:
        """The label set that it asks for."""
        return self.key or self.column or ""


@dataclass(frozen=True)
class ColumnSplit:
    """``split = {column = …, train = […], test = […]}``: a column of the recordings' metadata says the side."""

    column: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class TrainTable:
    """``[train]``: how to split, to balance and to vary what is learned from, and the trainer's parameters."""

    split: str = "session"  # one of :data:`SPLITS`, or ``column``: see :mod:`kymo.models.data.splits`
    column: ColumnSplit | None = None  # where `split` is ``column``
    # parts of a cross-validation, from 2; 0 for a single split, -1 (``"each"``) for as many as there are groups
    folds: int = 0
    balance: str = "weights"  # one of :data:`BALANCES`: what is done about classes of unequal size
    # each ``[[train.augment]]`` as it stands: see :mod:`kymo.models.data.augment`
    augment: tuple[Mapping[str, Any], ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the other keys


@dataclass(frozen=True)
class SourceTable:
    """``[source]``: columns that together name a session, the subject's column, and which rows to keep."""

    session: tuple[str, ...] = ()
    subject: str | None = None
    keep: str | None = None


@dataclass(frozen=True)
class HeadTable:
    """One ``[[heads]]``: a question that the model answers beside the recipe's own."""

    name: str  # what an event's `head` says, and how its id ends
    kind: str = "classes"  # one of :data:`HEAD_KINDS`
    column: str | None = None  # where its labels stand, as in ``[labels]``; exactly one of them
    key: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # class name of each value; classes only
    min_share: float = 0.5  # the share of a window that a label must cover, 0 to 1
    weight: float = 1.0  # of its loss beside that of the recipe's classes, above 0 and finite

    @property
    def set(self) -> str:
        """The label set that it learns from."""
        return self.key or self.column or self.name


def read_inputs(root: Table) -> tuple[InputTable, ...]:
    known = ("stream", "rate_hz", "channels", "units", "dtype", "bridge_ms", "max_missing")
    tables = root.tables("input", known)
    if not tables:
        raise root.error("a recipe lacks [[input]]: which stream it takes, with rate_hz and channels")
    inputs = tuple(_input(table) for table in tables)
    if len(tables) > 1:
        raise tables[1].error("several [[input]]s: a recipe takes one stream; leave one, or write a recipe for each")
    return inputs


def _input(table: Table) -> InputTable:
    channels = table.texts("channels")
    if len(set(channels)) < len(channels):
        twice = next(c for c in channels if channels.count(c) > 1)
        raise table.error(f"channels: {twice!r} stands there twice", "channels")
    units = table.texts("units", (), empty=True)
    if units and len(units) != len(channels):
        raise table.error(f"units: {len(units)} for {len(channels)} channels, expected one each", "units")
    dtype = table.text("dtype", "float32")
    if dtype not in ("float32", "float64"):
        raise table.error(f'dtype = {toml_value(dtype)}: expected "float32" or "float64"', "dtype")
    bridge, missing = table.number("bridge_ms", 0, 0), table.number("max_missing", 0, 0, 1)
    return InputTable(table.text("stream"), table.fraction("rate_hz"), channels, units, dtype, bridge, missing)


def read_model(root: Table) -> ModelTable | None:
    table = root.table("model", ("architecture", "min_probability", "pool"), free=True)
    if table is None:
        return None
    return ModelTable(
        table.text("architecture"), table.number("min_probability", 0, 0, 1), table.parameters(), _pool(table)
    )


def _pool(table: Table) -> Mapping[str, Any]:
    pool = table.table("pool", ("kind", "windows"))
    if pool is None:
        return {}
    kind = pool.text("kind")
    if kind not in POOLS:
        raise pool.error(f"kind = {toml_value(kind)}{nearest(kind, POOLS)}", "kind")
    windows = pool.number("windows", 30 if kind == "hmm" else 5, 1)
    if windows % 1:
        raise pool.error(f"windows = {windows:g}: expected a whole number from 1", "windows")
    return {"kind": kind, "windows": int(windows)}


def read_labels(root: Table) -> LabelTable:
    table = root.table("labels", ("column", "key", "names", "min_share"))
    if table is None:
        return LabelTable()
    if "column" in table.values and "key" in table.values:
        raise table.error(
            "[labels] has both column and key; labels come from a column, or from a labels JSON by key", "key"
        )
    key = table.text("key") if "key" in table.values else None
    column = table.text("column", "label") if key is None else None
    names = table.table("names", (), free=True)
    renamed = {k: names.text(k) for k in names.values} if names else {}
    return LabelTable(column, key, renamed, table.number("min_share", 0.5, 0, 1))


def read_train(root: Table) -> TrainTable:
    table = root.table("train", ("split", "folds", "balance", "augment"), free=True)
    if table is None:
        return TrainTable()
    column = _column_split(table)
    split = "column" if column else table.text("split", "session")
    if not column and split not in SPLITS:
        raise table.error(f"split = {toml_value(split)}{nearest(split, SPLITS)}", "split")
    balance = table.text("balance", "weights")
    if balance not in BALANCES:
        raise table.error(f"balance = {toml_value(balance)}{nearest(balance, BALANCES)}", "balance")
    augment = tuple(inner.parameters() for inner in table.tables("augment", (), free=True))
    return TrainTable(split, column, _folds(table, split), balance, augment, table.parameters())


def _column_split(table: Table) -> ColumnSplit | None:
    if not isinstance(table.values.get("split"), Mapping):
        return None
    inner = table.table("split", ("column", "train", "test"))
    assert inner is not None
    split = ColumnSplit(inner.text("column"), inner.texts("train"), inner.texts("test"))
    if overlap := sorted(set(split.train) & set(split.test)):
        raise inner.error(f"split: {', '.join(overlap)} stands in train and in test", "test")
    return split


def _folds(table: Table, split: str) -> int:
    if table.values.get("folds") == "each":
        folds = -1.0
    else:
        folds = table.number("folds", 0, 0)
        if folds % 1 or folds == 1:
            raise table.error(f'folds = {folds:g}: expected a whole number from 2, 0 for one split, or "each"', "folds")
    if folds and split == "column":
        raise table.error("folds: a split by column has one training and one test side; leave folds out", "folds")
    return int(folds)


def read_source(root: Table) -> SourceTable:
    table = root.table("source", ("session", "subject", "keep"))
    if table is None:
        return SourceTable()
    subject, keep = (table.text(key) if key in table.values else None for key in ("subject", "keep"))
    return SourceTable(table.texts("session", ()), subject, keep)


def read_alerts(root: Table) -> tuple[Mapping[str, Any], ...]:
    rules = []
    for table in root.tables("alerts", ("name", "label", "min_probability", "windows", "notify")):
        rule: dict[str, Any] = {
            "label": list(table.texts("label")),
            "min_probability": table.number("min_probability", 0, 0, 1),
        }
        windows = table.number("windows", 1, 1)
        if windows % 1:
            raise table.error(f"windows = {windows:g}: expected a whole number", "windows")
        rule |= {"windows": int(windows), "notify": list(table.texts("notify", ()))}
        rules.append(rule | ({"name": table.text("name")} if "name" in table.values else {}))
    return tuple(rules)


def read_heads(root: Table, labels: LabelTable) -> tuple[HeadTable, ...]:
    """Read the recipe's heads, in its order."""
    heads: list[HeadTable] = []
    for table in root.tables("heads", ("name", "column", "key", "kind", "names", "min_share", "weight")):
        head = _head(table, labels)
        if any(head.name == earlier.name for earlier in heads):
            raise table.error(
                f"name = {toml_value(head.name)}: another head has it; each needs a name of its own", "name"
            )
        # A column is read once, so two that ask it must call its values the same.
        sources: list[LabelTable | HeadTable] = [labels, *heads]
        for earlier in sources:
            if earlier.set != head.set:
                continue
            if (earlier.column, earlier.key) != (head.column, head.key):
                raise table.error(
                    f"head `{head.name}`: a column and a key of a labels JSON are both called `{head.set}`, and become one "
                    f"label set; rename the column or the key",
                    "key" if head.key else "column",
                )
            if earlier.names != head.names:
                raise table.error(
                    f"head `{head.name}`: its names of the values of `{head.set}` differ from those that stand before; "
                    f"write the same ones, or copy the values to a column or key of its own",
                    "names",
                )
        heads.append(head)
    if heads and "model" not in root.values:
        raise root.error("[[heads]] without [model]: a head is a part of the model", "heads")
    return tuple(heads)


def _head(table: Table, labels: LabelTable) -> HeadTable:
    name, kind = table.text("name"), table.text("kind", HEAD_KINDS[0])
    if "/" in name or name != name.strip() or name == "unknown":
        raise table.error(
            f"name = {toml_value(name)}: it becomes part of event ids; use no slash, no blanks around it, not `unknown`",
            "name",
        )
    if kind not in HEAD_KINDS:
        raise table.error(f"kind = {toml_value(kind)}{nearest(kind, HEAD_KINDS)}", "kind")
    if "column" in table.values and "key" in table.values:
        raise table.error("a head has both column and key; labels come from one of them", "key")
    by_key = "key" in table.values or ("column" not in table.values and labels.key is not None)
    source = table.text("key" if by_key else "column", name)
    names = table.table("names", (), free=True)
    if names and kind == "number":
        raise table.error("a head of kind number has names; values of a number are taken as they are", "names")
    weight = table.number("weight", 1, 0)
    if not 0 < weight < math.inf:
        advice = "" if weight else "; leave the head out instead"
        raise table.error(f"weight = {weight:g}: expected a number above 0, and a finite one{advice}", "weight")
    return HeadTable(
        name,
        kind,
        None if by_key else source,
        source if by_key else None,
        {value: names.text(value) for value in names.values} if names else {},
        table.number("min_share", labels.min_share, 0, 1),
        weight,
    )
