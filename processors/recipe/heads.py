"""Further heads of a recipe's model. In: the TOML tables ``[[heads]]``. Out: one HeadTable each, its values checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from processors.recipe.formats import toml_value
from processors.recipe.tables import LabelTable
from processors.recipe.toml import Table
from processors.registry import nearest

#: What a head says: one of some classes, or a number (a regression).
HEAD_KINDS = ("classes", "number")


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


def read_heads(root: Table, labels: LabelTable) -> tuple[HeadTable, ...]:
    """The recipe's heads, in its order."""
    heads: list[HeadTable] = []
    for table in root.tables("heads", ("name", "column", "key", "kind", "names", "min_share", "weight")):
        head = _head(table, labels)
        if head.name in {other.name for other in heads}:
            raise table.error(
                f"name = {toml_value(head.name)}: another head has it; each needs a name of its own", "name"
            )
        # A column is read once, so two that ask it must call its values the same.
        asked: list[LabelTable | HeadTable] = [labels, *heads]
        for other in (one for one in asked if one.set == head.set):
            if (other.column, other.key) != (head.column, head.key):
                raise table.error(
                    f"head `{head.name}`: a column and a key of a labels JSON are both called `{head.set}`, and become one "
                    f"label set; rename the column or the key",
                    "key" if head.key else "column",
                )
            if other.names != head.names:
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
    where = table.text("key" if by_key else "column", name)
    named = table.table("names", (), free=True)
    if named and kind == "number":
        raise table.error("a head of kind number has names; values of a number are taken as they are", "names")
    weight = table.number("weight", 1, 0)
    if not 0 < weight < math.inf:
        advice = "" if weight else "; leave the head out instead"
        raise table.error(f"weight = {weight:g}: expected a number above 0, and a finite one{advice}", "weight")
    return HeadTable(
        name,
        kind,
        None if by_key else where,
        where if by_key else None,
        {value: named.text(value) for value in named.values} if named else {},
        table.number("min_share", labels.min_share, 0, 1),
        weight,
    )
