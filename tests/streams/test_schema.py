"""Values by their types: what is taken, what is refused and in which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import pytest

from kymo.streams.schema import Count, Name, Rules, SchemaError, Share, json_schema, kind_of, read


@dataclass(frozen=True)
class Inner:
    size: Count
    share: Share = 0.5


@dataclass(frozen=True)
class Outer:
    """Holds others."""

    name: Name
    inner: tuple[Inner, ...] = ()
    either: Annotated[str, Rules(enum=("walk", "run"))] | Inner | None = None
    point: tuple[float, float] = (0.0, 0.0)
    shares: Mapping[str, Share] = field(default_factory=dict)
    rest: Annotated[Mapping[str, Any], Rules(rest=True)] = field(default_factory=dict)


def test_values_become_what_their_types_say() -> None:
    values = {
        "name": "a",
        "inner": [{"size": Decimal("2.0")}],
        "either": {"size": 1},
        "point": [1, 2.5],
        "more": Decimal(3),
    }
    assert read(Outer, values) == Outer("a", (Inner(2),), Inner(1), (1.0, 2.5), rest={"more": 3.0})
    assert kind_of(Fraction).take("30000/1001") == Fraction(30000, 1001)
    assert [kind_of(hint).take_text(text) for hint, text in ((int, "3.0"), (float, "1e3"), (bool, "Off"))] == [
        3,
        1000.0,
        False,
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "`name` is absent, expected a text that is not empty"),
        ({"name": ""}, "`name` is '', expected a text that is not empty"),
        ({"name": "a", "nam": 1}, "has no `nam`; did you mean 'name'?"),
        ({"name": "a", "inner": [{"size": 1}, {"size": True}]}, "`inner[1].size` is True, expected a whole number from 1"),
        ({"name": "a", "inner": [{"size": 1, "share": 1.5}]}, "`inner[0].share` is 1.5, expected a number from 0 to 1"),
        ({"name": "a", "inner": [{"size": 1, "more": 1}]}, "has no `inner[0].more`; there are share, size"),
        ({"name": "a", "inner": {"size": 1}}, "`inner` is {'size': 1}, expected an array of tables"),
        ({"name": "a", "either": "wlak"}, "`either` is 'wlak', expected one of walk, run; did you mean 'walk'?"),
        ({"name": "a", "either": {}}, "`either.size` is absent, expected a whole number from 1"),
        ({"name": "a", "either": 3}, "`either` is 3, expected one of walk, run or a table"),
        ({"name": "a", "point": [1, "x"]}, "`point` is [1, 'x'], expected an array of 2 numbers"),
        ({"name": "a", "point": [1, float("nan")]}, "`point` is [1, nan], expected an array of 2 numbers"),
        ({"name": "a", "point": [1]}, "`point` is [1], expected an array of 2 numbers"),
        ({"name": "a", "shares": {"b": -1}}, "`shares.b` is -1, expected a number from 0 to 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(values: dict[str, Any], text: str) -> None:
    with pytest.raises(SchemaError) as caught:
        read(Outer, values)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("hint", "value"), [(int, 2**63), (int, Decimal("2.5")), (int, 5.0), (float, 10**400), (float, True)]
)
def test_numbers_that_do_not_fit(hint: Any, value: Any) -> None:
    with pytest.raises(SchemaError, match="number"):
        kind_of(hint).take(value)


def test_the_schema_says_the_same() -> None:
    schema = json_schema(Inner, "Inner")
    assert schema["properties"] == {
        "size": {"type": "integer", "minimum": 1},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
    }
    assert schema["required"] == ["size"]
