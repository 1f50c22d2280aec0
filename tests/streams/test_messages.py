"""JSON of topics and files: whatever is in it, an object that can be worked with comes out, or one error in words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kymo.streams.errors import MessageError
from kymo.streams.messages import MAX_BYTES, MAX_DEPTH, read_object


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
