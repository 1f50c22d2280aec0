"""Values by their types, and JSON of topics and files: what is taken, what is refused and in which words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kymo.streams.errors import MessageError
from kymo.streams.messages import MAX_BYTES, MAX_DEPTH, read_object
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


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "0 bytes, expected JSON"),
        (b"", "0 bytes"),
        (b"null", "expected a JSON object, got NoneType"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"a": ', "are no JSON"),
        (b'{"a": "\xff"}', "are no JSON"),
        ('{"a": "b"}'.encode("utf-16"), "are no JSON"),
        (b'{"a": "\xed\xa0\x80"}', "are no JSON"),
        (b'{"a": 1e999}', "not finite"),
        (b'{"a": -1E+400}', "not finite"),
        (b'{"a": ' + b"1" * 400 + b".0}", "not finite"),
        (b'{"a": NaN}', "not finite"),
        (b'{"a": [{"b": -Infinity}]}', "not finite"),
        (b'{"a": 9223372036854775808}', "beyond 64 bits"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "are no JSON"),
        (rb'{"a": "\ud800"}', "surrogates not allowed"),
        (rb'{"\uDFFF": 1}', "surrogates not allowed"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "nested deeper"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper"),
        (b" " * (MAX_BYTES + 1), "expected JSON of up to"),
    ],
)
def test_odd_bytes_are_one_error_in_words(raw, words):
    with pytest.raises(MessageError, match=words) as caught:
        read_object(raw)
    assert "\n" not in str(caught.value)


def test_what_looks_odd_but_is_in_order_is_read():
    told = {"a": "NaN 1e999 99999999999999999999", "b": [[1]] * 100, "c": "\U0001f600", "d": 2**63 - 1, "e": 1e300}
    assert read_object(json.dumps(told).encode()) == told
    assert read_object(json.dumps(told)) == told


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters()), VALUES))
def test_what_is_read_can_be_written_again(members):
    try:
        value = read_object(json.dumps(members))
    except MessageError:
        return
    assert value == members
    assert json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def test_an_older_bundles_scores_may_be_undefined() -> None:
    assert read_object(b'{"scores": [NaN, -Infinity, 1.5]}', nan=True) == {"scores": [None, None, 1.5]}
