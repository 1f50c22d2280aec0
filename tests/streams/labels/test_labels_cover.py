"""Which labels hold, against painting them instant by instant; and which class covers an interval, against counting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kymo.streams.labels.labels import Cover, Label, Spans, current_labels
from kymo.streams.recording import Recording

LENGTH = 12

spans = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted)
made_labels = st.lists(
    st.builds(
        lambda name, kind, span, text, created, replaces: Label(
            name, "s", kind, span[0], span[1], text, "", created, replaces
        ),
        st.sampled_from("pqrst"),
        st.sampled_from(["speed", "surface"]),
        spans,
        st.sampled_from(["a", "b", ""]),
        st.integers(0, 3),
        st.sampled_from(["", "p", "q", "r"]),
    ),
    max_size=7,
)


def painted(made: list[Label]) -> set[tuple[str, int, str]]:
    """(set, instant, class) that hold, by the five rules as they are written, one instant at a time."""
    order = [label for moment in range(4) for label in made if label.created_ns == moment]
    counting = []
    for i, label in enumerate(order):
        if any(later.id == label.id for later in order[i + 1 :]):
            continue
        if any(later.replaces == label.id and later.id != label.id for later in order[i + 1 :]):
            continue
        counting.append(label)
    found = set()
    for kind in ("speed", "surface"):
        for instant in range(LENGTH):
            there = [x for x in counting if x.set == kind and x.start_ns <= instant < x.end_ns]
            newest = max((x.created_ns for x in there), default=0)
            found |= {(kind, instant, x.label) for x in there if x.created_ns == newest and x.label}
    return found


@given(made_labels)
@settings(max_examples=400, deadline=None)
def test_what_holds_is_what_painting_gives(made: list[Label]) -> None:
    held = current_labels(made)
    assert {(x.set, i, x.label) for x in held for i in range(x.start_ns, x.end_ns)} == painted(made)
    assert len({x.id for x in held}) == len(held)
    assert all(x.start_ns < x.end_ns for x in held)
    assert [x.start_ns for x in held] == sorted(x.start_ns for x in held)
    settled = [replace(x, replaces="") for x in held]
    assert current_labels(settled) == settled


def label(start: int, end: int, text: str, created: int = 0, name: str = "", replaces: str = "") -> Label:
    return Label(name or f"{text}{start}", "s", "label", start, end, text, "me", created, replaces)


def test_a_later_label_cuts_an_earlier_one() -> None:
    long, middle = label(0, 100, "walk", 1, "w"), label(40, 60, "run", 2, "r")
    assert current_labels([long, middle]) == [
        replace(long, end_ns=40),
        middle,
        replace(long, id="w~2", start_ns=60),
    ]
    assert current_labels([middle, long]) == current_labels([long, middle])


def test_labels_of_one_moment_leave_each_other_alone() -> None:
    both = [label(0, 10, "a"), label(5, 15, "b")]
    assert current_labels(both) == both


def test_replacing_takes_all_of_the_earlier_one_away() -> None:
    wrong, right = label(0, 100, "walk", 1, "w"), label(20, 80, "run", 2, "r", replaces="w")
    assert current_labels([wrong, right]) == [right]
    third = label(30, 50, "sit", 3, "t", replaces="r")
    assert current_labels([wrong, right, third]) == [third]  # the first does not come back


def test_one_that_is_said_again_under_its_id_moves() -> None:
    assert current_labels([label(0, 10, "a", 1, "x"), label(20, 30, "a", 2, "x")]) == [label(20, 30, "a", 2, "x")]


def test_an_empty_class_takes_away() -> None:
    held = current_labels([label(0, 100, "walk", 1, "w"), label(90, 200, "", 2, "e")])
    assert [(x.start_ns, x.end_ns, x.label) for x in held] == [(0, 90, "walk")]


def test_sessions_and_sets_do_not_cut_each_other() -> None:
    labels = [
        label(0, 10, "a", 1),
        replace(label(0, 10, "b", 2), session="other"),
        replace(label(0, 9, "c", 3), set="k"),
    ]
    assert len(current_labels(labels)) == 3


@given(st.lists(spans, max_size=10), spans)
@settings(max_examples=300, deadline=None)
def test_spans_are_sets_of_instants(added: list[list[int]], asked: list[int]) -> None:
    there, instants = Spans(), set()
    for start, end in added:
        there.add(start, end)
        instants |= set(range(start, end))
    wanted = set(range(*asked))
    gaps = there.gaps(*asked)
    assert [i for start, end in gaps for i in range(start, end)] == sorted(wanted - instants)
    assert all(a < b for a, b in gaps)
    assert [i for start, end in there.parts(*asked) for i in range(start, end)] == sorted(wanted & instants)


@given(st.lists(st.tuples(spans, st.sampled_from("abc")), max_size=8), spans, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=400, deadline=None)
def test_the_class_that_covers_most(given: list[tuple[list[int], str]], asked: list[int], share: float) -> None:
    labels = [label(start, end, text) for (start, end), text in given]
    start, end = asked
    covered = {
        text: {i for x in labels if x.label == text for i in range(x.start_ns, x.end_ns)} & set(range(start, end))
        for text in "abc"
    }
    most = max(map(len, covered.values()))
    best = {text for text, instants in covered.items() if len(instants) == most and most}
    found = Cover(labels).label_of(start, end, share)
    assert found == Recording("s", [], labels).label_of(start, end, share)
    if not best or most < share * (end - start):
        assert found is None
    else:
        assert found == min(best, key=lambda text: (min(covered[text]), text))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([label(0, 40, "a"), label(60, 100, "b")], "a"),  # equal parts: what begins first
        ([label(60, 100, "b"), label(0, 40, "a")], "a"),
        ([label(0, 30, "a"), label(10, 40, "a"), label(40, 99, "b")], "b"),  # overlapping ones count once
        ([label(0, 20, "a"), label(20, 50, "b"), label(50, 70, "a")], "a"),
    ],
)
def test_ties_and_overlaps(labels: list[Label], expected: str) -> None:
    assert Cover(labels).label_of(0, 100, 0.3) == expected
