"""Splits: what stands where, that every class has its share, that nothing leaks; all against plain counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes_made import recipe_text

from kymo.models.data.examples import Example
from kymo.models.data.splits import (
    Split,
    check_leaks,
    hold_out_by_name,
    inner_split,
    judged_splits,
    leak_free,
    make_folds,
    make_split,
    notes_on_split,
    overlap,
)
from kymo.processors.augment import Jitter
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.recipe.tables import ColumnSplit, TrainTable
from kymo.streams.chunk import Header, Window, signal_format
from kymo.streams.errors import RecipeError, TrainingError

LENGTH, HOP = 10, 4


def example(session: str, number: int, label: str = "a", subject: str = "", hop: int = HOP, **known: str) -> Example:
    """The number-th window of a session: 10 samples at 1 kHz, one every 4."""
    header = Header(session, 7, signal_format("imu", ("x",), Fraction(1000)))
    start = number * hop
    times = [header.time_ns(start), header.time_ns(start + LENGTH)]
    window = Window(header, start, start + LENGTH, times[0], times[1], np.zeros((LENGTH, 1), np.float32))
    return Example(window, label, session, subject, f"{session}.csv", known)


def sessions(count: int, windows: int = 6, subjects: int = 0, hop: int = HOP) -> list[Example]:
    """Sessions of one class each, three classes by turns."""
    return [
        example(f"s{s}", n, "abc"[s % 3], f"p{s % subjects}" if subjects else "", hop)
        for s in range(count)
        for n in range(windows)
    ]


def shared(examples: Sequence[Example], split: Split) -> list[tuple[int, int]]:
    """Pairs of windows on two sides with a common sample, by trying all."""
    spans = [set(range(e.window.start_index, e.window.end_index)) for e in examples]
    return [
        (i, j)
        for i in split.training
        for j in split.validation
        if examples[i].session == examples[j].session and spans[i] & spans[j]
    ]


def check(examples: Sequence[Example], split: Split) -> None:
    """Every window once, no leak."""
    assert sorted([*split.training, *split.validation, *split.left_out]) == list(range(len(examples)))
    assert shared(examples, split) == []
    check_leaks(examples, split)


@pytest.mark.parametrize("kind", ["session", "subject"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_stay_together(kind: str, seed: int) -> None:
    examples = sessions(24, subjects=12)
    split = make_split(examples, TrainTable(kind), 0.25, seed)
    check(examples, split)
    held = Counter(examples[i].label for i in split.validation)
    assert held == {"a": 12, "b": 12, "c": 12}  # a quarter of 48 windows each
    assert not set(split.training_groups) & set(split.validation_groups)
    assert all(name.startswith("p" if kind == "subject" else "s") for name in split.validation_groups)
    assert split == make_split(examples, TrainTable(kind), 0.25, seed)
    assert split.left_out == ()


def test_the_seed_chooses() -> None:
    examples = sessions(30)
    assert len({make_split(examples, TrainTable(), 0.2, seed).validation_groups for seed in range(5)}) > 1


def test_a_session_without_a_subject_stands_for_itself() -> None:
    examples = [*sessions(6, subjects=3), *sessions(0), *(example("alone", n, "a") for n in range(3))]
    split = make_split(examples, TrainTable("subject"), 0.3, 0)
    assert set(split.training_groups) | set(split.validation_groups) == {"p0", "p1", "p2", "alone"}


@given(windows=st.integers(1, 30), share=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]), hop=st.integers(1, 14))
@settings(max_examples=80, deadline=None)
def test_by_time_the_end_is_held_out(windows: int, share: float, hop: int) -> None:
    examples = [example(f"s{s}", n, hop=hop) for s in range(2) for n in range(windows)]
    np.random.default_rng(windows).shuffle(examples)  # type: ignore[arg-type]
    split = make_split(examples, TrainTable("time"), share, 0)
    check(examples, split)
    for session in ("s0", "s1"):
        held = [examples[i].window for i in split.validation if examples[i].session == session]
        wanted = min(windows - 1, max(1, round(share * windows))) if share and windows > 1 else 0
        assert len(held) == wanted
        start = min((w.start_index for w in held), default=10**9)
        # Exactly those that end before the part held out are learned from; the others reach into it.
        assert sorted(examples[i].window.start_index for i in split.training if examples[i].session == session) == [
            n * hop for n in range(windows) if n * hop + LENGTH <= start
        ]


@pytest.mark.parametrize("subjects", [0, 1])
def test_one_subject_alone_is_split_by_session(subjects: int) -> None:
    examples = sessions(12, subjects=subjects)
    split = make_split(examples, TrainTable("subject"), 0.3, 0)
    assert split == make_split(examples, TrainTable("session"), 0.3, 0)
    assert split.validation
    two = make_split(sessions(12, subjects=2), TrainTable("subject"), 0.5, 0)
    assert (two.kind, two.validation_groups) in [("subject", ("p0",)), ("subject", ("p1",))]


def test_sessions_and_subjects_are_texts_other_columns_numbers() -> None:
    people = [example(f"s{n}", n, subject=name) for n, name in enumerate(("1.1", "1.10", "007", "7"))]
    split = make_split(people, TrainTable(ColumnSplit("subject", ("1.10", "7.0"), ("1.1",))), 0.2, 0)
    assert (split.training, split.validation, split.left_out) == ([1, 3], [0], (2,))
    sets = [example(f"s{n}", n, set=name) for n, name in enumerate(("1.0", "1", "2"))]
    split = make_split(sets, TrainTable(ColumnSplit("set", ("1",), ("2",))), 0.2, 0)
    assert (split.training, split.validation) == ([0, 1], [2])
    with pytest.raises(TrainingError, match="1 stands in train and in test"):
        make_split(sets, TrainTable(ColumnSplit("set", ("1",), ("1.0", "2"))), 0.2, 0)


def test_by_column() -> None:
    examples = [example(f"s{i}", n, set=value) for i, value in enumerate(("1", "1.0", "2", "3")) for n in range(2)]
    table = TrainTable(ColumnSplit("set", ("1",), ("2", "4")))
    split = make_split(examples, table, 0.2, 0)
    check(examples, split)
    assert (split.training_groups, split.validation_groups) == (("s0", "s1"), ("s2",))
    assert split.left_out == (6, 7)
    with pytest.raises(TrainingError, match="no window on the test side; values: 1, 2, 3"):
        make_split(examples, TrainTable(ColumnSplit("set", ("1",), ("9",))), 0.2, 0)
    with pytest.raises(TrainingError, match="no recording has this column"):
        make_split(examples, TrainTable(ColumnSplit("part", ("1",), ("9",))), 0.2, 0)
    people = sessions(4, subjects=4)
    by_name = make_split(people, TrainTable(ColumnSplit("subject", ("p0", "p1"), ("p3",))), 0.2, 0)
    assert by_name.validation_groups == ("s3",)


def test_random_windows_leak_and_say_so() -> None:
    examples = sessions(9, 20)
    split = make_split(examples, TrainTable("window"), 0.2, 3)
    assert Counter(examples[i].label for i in split.validation) == {"a": 12, "b": 12, "c": 12}
    assert shared(examples, split)
    check_leaks(examples, split)  # allowed, since it is what was asked for
    pair = overlap(examples, split)
    assert pair in shared(examples, split)
    beside = leak_free(examples, split, 0.2)
    check(examples, beside)
    assert (beside.kind, beside.seed) == ("session", 3)
    one = [example("only", n, "ab"[n % 2]) for n in range(20)]
    beside = leak_free(one, make_split(one, TrainTable("window"), 0.2, 0), 0.2)
    check(one, beside)
    assert beside.kind == "time"
    with pytest.raises(TrainingError, match="no split without a leak"):
        leak_free(one[:2], make_split(one[:2], TrainTable("window"), 0.2, 0), 0.2)


def test_a_leak_is_named() -> None:
    examples = [example("walk 7", n) for n in range(6)]
    with pytest.raises(TrainingError, match=r"session walk 7, samples 8 to 18 .* samples 12 to 22 .* overlap"):
        check_leaks(examples, Split([0, 1, 2], [3, 4, 5], "session"))
    check_leaks(examples, Split([0], [3], "session"))  # 0 to 10 and 12 to 22


@given(
    windows=st.lists(st.tuples(st.sampled_from("xy"), st.integers(0, 12), st.sampled_from("tv-")), max_size=14),
)
@settings(max_examples=200, deadline=None)
def test_the_guard_finds_every_leak(windows: list[tuple[str, int, str]]) -> None:
    examples = [example(session, number) for session, number, _ in windows]
    sides = {side: [i for i, w in enumerate(windows) if w[2] == side] for side in "tv"}
    split = Split(sides["t"], sides["v"], "session")
    found, right = overlap(examples, split), shared(examples, split)
    assert (found in right) if right else (found is None)


@pytest.mark.parametrize(("kind", "count"), [("subject", 4), ("session", 5), ("window", 5), ("time", 3)])
def test_folds_hold_every_window_out_once(kind: str, count: int) -> None:
    examples = sessions(24, 7, subjects=12)
    folds = make_folds(examples, TrainTable(kind, folds=count), 0)
    assert [fold.fold for fold in folds] == list(range(count))
    assert sorted(i for fold in folds for i in fold.validation) == list(range(len(examples)))
    for fold in folds:
        if kind != "window":
            check(examples, fold)
        assert len({examples[i].label for i in fold.training}) == 3
        sizes = Counter(examples[i].label for i in fold.validation)
        assert max(sizes.values()) <= min(sizes.values()) * 2 + 7  # a group at most is between two classes
    assert folds == make_folds(examples, TrainTable(kind, folds=count), 0)


def test_each_subject_by_itself() -> None:
    examples = sessions(10, subjects=5)
    folds = make_folds(examples, TrainTable("subject", folds=-1), 0)
    assert [fold.validation_groups for fold in folds] == [(f"p{i}",) for i in range(5)]
    for fold in folds:
        check(examples, fold)


def test_folds_that_cannot_be() -> None:
    with pytest.raises(TrainingError, match="folds = 5 by subject: the data has 3 of them"):
        make_folds(sessions(9, subjects=3), TrainTable("subject", folds=5), 0)


RECIPE = recipe_text("x", "a", 10, (1, 1)) + "[train]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", TrainTable()),
        ('split = "time"\nfolds = 5', TrainTable("time", folds=5)),
        ('split = "subject"\nfolds = "each"', TrainTable("subject", folds=-1)),
        (
            'split = {column = "set", train = ["a", "b"], test = "c"}\nepochs = 4',
            TrainTable(ColumnSplit("set", ("a", "b"), ("c",)), epochs=4),
        ),
        (
            'balance = "weights"\n[[train.augment]]\nkind = "jitter"\nshare = 0.1',
            TrainTable(balance="weights", augment=(Jitter(share=0.1),)),
        ),
    ],
)
def test_recipes_name_splits(text: str, expected: TrainTable) -> None:
    assert parse_recipe(RECIPE + text).train == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('split = "subjects"', r'line 10: split = "subjects": .*; did you mean'),
        ('split = {column = "set", train = ["a"]}', r"lacks test"),
        ('split = {column = "set", train = ["a"], test = ["a"]}', r"a stands in train and in test"),
        ('split = {column = "set", train = ["a"], test = ["b"]}\nfolds = 3', r"leave folds out"),
        ("folds = 1", r'folds = 1: expected a whole number from 2, 0 for one split, or "each"'),
        ('split = "time"\nfolds = "each"', r"a split by time has no folds of each"),
        ("folds = 2.5", r"folds = 2.5: expected a whole number"),
        ('balance = "weight"', r'balance = "weight": .*; did you mean'),
    ],
)
def test_wrong_splits_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(RECIPE + text)


@pytest.mark.parametrize(
    ("groups", "windows", "share", "count"),
    [
        (1, 9, 0.2, 0),
        (2, 9, 0.2, 2),
        (12, 9, 0.2, 12),
        (13, 9, 0.2, 10),
        (12, 300, 0.2, 5),
        (49, 2, 0.2, 10),
        (50, 2, 0.2, 1),
        (12, 9, 0.0, 0),
    ],
)
def test_how_often_is_decided_by_the_data(groups: int, windows: int, share: float, count: int) -> None:
    made = [example(f"s{s}", n, "ab"[n % 2], f"p{s}") for s in range(groups) for n in range(0, 18 * windows, 9)]
    made = made if groups > 1 else [example("s0", n, "ab"[n % 2], "p0") for n in range(1)]
    splits = judged_splits(made, TrainTable("subject"), share, 0)
    assert len(splits) == count
    assert len(splits) < 2 or sorted(i for split in splits for i in split.validation) == list(range(len(made)))
    for split in splits:
        assert not {*split.training_groups} & {*split.validation_groups}


def test_who_stands_where_is_said() -> None:
    made = [example(f"s{i}", 0, "ab"[i % 2], set=value) for i, value in enumerate("aabbcc")] + [example("s9", 0)]
    table = TrainTable(ColumnSplit("set", ("a", "d"), ("b",)))
    assert notes_on_split(made, table) == [
        "[train] split by `set` names d, which no recording has",
        "3 windows on neither side of the split by `set`: c, no value",
    ]
    named = [example(f"s{i}", 0, subject="p" * (i % 2)) for i in range(4)]
    assert notes_on_split(named, TrainTable("subject")) == [
        "2 sessions without a subject, each taken for a person of its own"
    ]
    assert notes_on_split(named[1::2], TrainTable("subject")) == notes_on_split(named, TrainTable("session")) == []


def test_what_says_when_to_stop_is_a_part_of_what_is_learned_from() -> None:
    made = sessions(9)
    split = make_split(made, TrainTable("session"), 0.3, 0)
    inner = inner_split(made, split, 0.3, 0)
    assert sorted([*inner.training, *inner.validation]) == split.training
    assert inner.validation
    check_leaks(made, inner)


def test_names_decide_the_same_way_every_time() -> None:
    assert sorted(hold_out_by_name({f"s{i}": "walk" for i in range(8)})) == ["s5", "s7"]
