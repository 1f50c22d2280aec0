"""Splits. In: labelled windows. Out: numbers of those to learn from and of those to judge by.

========= =============================================================================================================
split     what it does
========= =============================================================================================================
subject   a subject's windows (its sessions', where it has no subject) stand on one side; as ``session`` where all is
          of one subject
session   a session's windows stand on one side
time      the last share of each session is held out; windows that reach into it are left out, so that the last window
          to learn from ends where the first held out begins, or before
column    a value of the recording's metadata (or `session`, `subject`) says the side; other values are left out
window    single windows at random, which leaks samples wherever windows overlap: only for protocols that ask for it
========= =============================================================================================================

No sample stands on both sides but in the last kind; :func:`check_leaks` proves it. All are the same for the same examples and
seed. Groups and windows are taken so that every class has its share, as far as the groups allow it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kymo.models.data.examples import Example
from kymo.processors.recipe.tables import ColumnSplit, TrainTable
from kymo.streams.errors import TrainingError
from kymo.streams.labels.labels import canonical, identity
from kymo.streams.words import many, some

Counts = NDArray[np.float64]
#: Groups of which a fifth is enough to be judged by; those up to which each is held out by itself; windows to learn from, over
#: all folds, beyond which there are no more folds than five.
_MANY, _EACH, _BUDGET = 50, 12, 30_000


@dataclass(frozen=True, slots=True)
class Split:
    training: list[int]  # numbers of examples, ascending
    validation: list[int]
    kind: str  # ``subject``, ``session``, ``time``, ``column`` or ``window``
    seed: int = 0  # which of several equally good splits
    training_groups: tuple[str, ...] = ()  # subjects or sessions of each side, sorted
    validation_groups: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()  # on neither side
    fold: int | None = None  # number of the part of a cross-validation that is held out, from 0


def make_split(examples: Sequence[Example], table: TrainTable, share: float, seed: int) -> Split:
    if isinstance(table.split, ColumnSplit):
        return _by_column(examples, table.split, seed)
    if table.split == "time":
        sessions = _by_session(examples)
        blocks = {n: (len(numbers) - _tail(len(numbers), share), len(numbers)) for n, numbers in sessions.items()}
        return _without_blocks(examples, sessions, blocks, seed)
    if table.split == "window":
        return _held_out(examples, "window", seed, _random_windows(examples, share, seed))
    kind = split_kind(table, (example.subject for example in examples))
    groups = [group_of(example, kind) for example in examples]
    names = hold_out(groups, _labels(examples), share, seed)
    return _held_out(examples, kind, seed, [i for i, group in enumerate(groups) if group in names])


def judged_splits(examples: Sequence[Example], table: TrainTable, share: float, seed: int) -> list[Split]:
    """Make the splits whose held-out sides are judged: one or, in turn, several; none where nothing can be held out.

    Where ``[train] folds`` leaves it open and subjects or sessions are kept apart, the data decide: each of few is held
    out in its turn, many are dealt into five or ten parts, and of :data:`_MANY` and more one part says enough. A window
    of a class that only its own fold has is judged in none: nothing could have learned it.
    """
    kind = split_kind(table, (example.subject for example in examples))
    folds = table.folds
    if folds is None:
        count = len({group_of(example, kind) for example in examples}) if kind in ("subject", "session") else 0
        folds = _turns(count, len(examples)) if share else 0
    if not folds:
        split = make_split(examples, table, share, seed)
        return [split] if split.validation else []
    splits, few = [], min(2, len({*_labels(examples)}))  # a number alone has one class
    for split in make_folds(examples, replace(table, split=kind, folds=folds), seed):
        labels = {examples[i].label for i in split.training}
        judged = [i for i in split.validation if examples[i].label in labels]
        if (table.folds is None and len(labels) < few) or (split.validation and not judged and len(labels) >= few):
            continue
        without = {*split.validation}.difference(judged) if len(labels) >= few else set[int]()
        kept = [i for i in split.validation if i not in without]
        splits.append(replace(split, validation=kept, left_out=tuple(sorted({*split.left_out, *without}))))
    return splits


def _turns(groups: int, windows: int) -> int:
    """Count the parts that groups are dealt into, each held out once: what bounds the time that training takes."""
    if groups < 2 or groups >= _MANY:
        return 0
    turns = groups if groups <= _EACH else 10
    return turns if turns * windows <= _BUDGET else min(groups, 5)


def make_folds(examples: Sequence[Example], table: TrainTable, seed: int) -> list[Split]:
    """Make the splits of a cross-validation: every window is held out once (by time: in the block that it lies in)."""
    kind, count = split_kind(table, (example.subject for example in examples)), table.folds or 0
    if kind == "time":
        sessions = _by_session(examples)
        cuts = {n: [len(numbers) * i // count for i in range(count + 1)] for n, numbers in sessions.items()}
        blocks = [{n: (c[i], c[i + 1]) for n, c in cuts.items()} for i in range(count)]
        return [replace(_without_blocks(examples, sessions, b, seed), fold=i) for i, b in enumerate(blocks)]
    groups = [str(i) if kind == "window" else group_of(example, kind) for i, example in enumerate(examples)]
    names = sorted(set(groups))
    if count > len(names) or len(names) < 2:
        folds = '"each"' if count < 0 else count
        raise TrainingError(
            f"[train] folds = {folds} by {kind}: the data has {len(names)} of them; lower folds, or add recordings"
        )
    part = {n: i for i, n in enumerate(names)} if count < 0 else deal(groups, _labels(examples), count, seed)
    total = len(names) if count < 0 else count
    parts: list[list[int]] = [[] for _ in range(total)]
    for i, group in enumerate(groups):
        parts[part[group]].append(i)
    return [replace(_held_out(examples, kind, seed, numbers), fold=i) for i, numbers in enumerate(parts)]


def split_kind(table: TrainTable, subjects: Iterable[str]) -> str:
    """Tell the split that the data allow: where all is of one subject, or of none that is named, sessions are kept apart."""
    return "session" if table.split == "subject" and len({*subjects}) == 1 else table.kind


def notes_on_split(examples: Sequence[Example], table: TrainTable) -> list[str]:
    """Say what a user should know of who stands where: values that nobody has, values on neither side, people without a name."""
    if isinstance(rule := table.split, ColumnSplit):
        column, same = rule.column, _same(rule.column)
        asked = {same(value) for value in (*rule.train, *rule.test)}
        counts = Counter(_value(example, column) for example in examples)
        absent, beside = sorted(asked - {*counts}), sorted(value or "no value" for value in {*counts} - asked)
        notes = [f"[train] split by `{column}` names {some(absent, 8)}, which no recording has"] if absent else []
        unsaid = sum(count for value, count in counts.items() if value not in asked)
        what = some(beside, 8) or "no value at all"
        return notes + (
            [f"{many(unsaid, 'window')} on neither side of the split by `{column}`: {what}"] if unsaid else []
        )
    nameless = len({example.session for example in examples if not example.subject})
    if table.split == "subject" and nameless and any(example.subject for example in examples):
        return [f"{many(nameless, 'session')} without a subject, each taken for a person of its own"]
    return []


def leak_free(examples: Sequence[Example], split: Split, share: float) -> Split:
    """Make the split to show beside one of windows at random: by session, or by time where there is only one session."""
    for kind in ("session", "time"):
        plain = make_split(examples, TrainTable(kind), share, split.seed)
        if plain.validation and plain.training:
            return plain
    raise TrainingError("no session can be spared and none is long enough to be cut: there is no split without a leak")


def inner_split(examples: Sequence[Example], split: Split, share: float, seed: int) -> Split:
    """Make a split of one's training side: as it is itself if that can be, else by session, else by time."""
    inside, labels = [examples[i] for i in split.training], {examples[i].label for i in split.training}
    for kind in dict.fromkeys(("subject" if split.kind == "column" else split.kind, "session", "time")):
        inner = make_split(inside, TrainTable(kind), share, seed)
        learned = {inside[i].label for i in inner.training}
        if inner.validation and learned == labels:
            training, validation = ([split.training[i] for i in side] for side in (inner.training, inner.validation))
            return replace(inner, training=training, validation=validation, left_out=())
    return replace(split, validation=[], validation_groups=())


def kept_apart(
    examples: Sequence[Example], splits: Sequence[Split], share: float, seed: int, several: bool
) -> list[tuple[Split, frozenset[int]]]:
    """Make the splits whose other side says when to stop, and say of which folds it holds somebody.

    Of one hold-out that is a part of what is learned from, of folds two parts, neither of which holds all of them; with `several`
    more than one class must be left to learn.
    """
    if len(splits) < 2:
        inner = [inner_split(examples, split, share, seed) for split in splits]
        return [(split, frozenset()) for split in inner if split.validation]
    fold_of = {i: f"{number:06d}" for number, split in enumerate(splits) for i in split.validation}
    classes: dict[str, set[str]] = {}
    for i, name in fold_of.items():
        classes.setdefault(name, set()).add(examples[i].label)
    parts: list[set[str]] = []
    for _ in range(2):
        left = [i for i in sorted(fold_of) if not any(fold_of[i] in part for part in parts)]
        names, labels = [fold_of[i] for i in left], [examples[i].label for i in left]
        part = hold_out(names, labels, share * len(fold_of) / max(1, len(left)), seed) or {*names[-1:]}
        part |= _lacking({name: classes[name] for name in names}, classes, part)
        learned = {examples[i].label for i in fold_of if fold_of[i] not in part}
        if len(learned) > 1 or not several:
            parts.append(part)
    apart = []
    for folds in (frozenset(map(int, part)) for part in parts):
        training = set.intersection(*({*splits[i].training} for i in folds))
        validation = sorted(i for i in fold_of if int(fold_of[i]) in folds)
        split = replace(splits[0], training=sorted(training), validation=validation, left_out=(), fold=None)
        apart.append((split, folds))
    return apart


def _lacking(free: Mapping[str, set[str]], classes: Mapping[str, set[str]], part: set[str]) -> set[str]:
    """Folds to add, so that a part holds every class that several folds have, as far as training keeps all of them."""
    every, added = Counter(label for labels in classes.values() for label in labels), set[str]()

    def learned(apart: set[str]) -> set[str]:
        return set().union(*(labels for name, labels in classes.items() if name not in apart))

    while True:
        apart = part | added
        held, rest = set().union(*(classes[name] for name in apart)), learned(apart)
        missing = {label for label, count in every.items() if count > 1} - held
        able = [name for name in sorted(free) if free[name] & missing and learned(apart | {name}) == rest]
        if not able:
            return added
        added.add(max(able, key=lambda name: len(free[name] & missing)))


def _random_windows(examples: Sequence[Example], share: float, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    classes: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        classes.setdefault(example.label, []).append(i)
    validation: list[int] = []
    for _, numbers in sorted(classes.items()):
        validation += random.permutation(numbers)[: _tail(len(numbers), share)].tolist()
    return sorted(validation)


def _tail(count: int, share: float) -> int:
    """Count how many of `count` to hold out: at least one where one can be spared and any is asked for."""
    return min(count - 1, max(1, round(share * count))) if share and count > 1 else 0


def _by_session(examples: Sequence[Example]) -> dict[str, list[int]]:
    """List the numbers of each session's windows, in the order of time."""
    sessions: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        sessions.setdefault(example.session, []).append(i)
    for numbers in sessions.values():
        numbers.sort(key=lambda i: examples[i].window.start_ns)
    return sessions


def _without_blocks(
    examples: Sequence[Example], sessions: Mapping[str, list[int]], blocks: Mapping[str, tuple[int, int]], seed: int
) -> Split:
    """Hold out a block of each session's windows; what shares samples with it is left out."""
    training: list[int] = []
    validation: list[int] = []
    for name, numbers in sessions.items():
        first, last = blocks[name]
        block = numbers[first:last]
        validation += block
        start = min((examples[i].window.start_ns for i in block), default=None)
        end = max((examples[i].window.end_ns for i in block), default=None)
        for i in numbers[:first] + numbers[last:]:
            window = examples[i].window
            if start is None or end is None or window.end_ns <= start or window.start_ns >= end:
                training.append(i)
    return _sides(examples, "time", seed, training, validation)


def _by_column(examples: Sequence[Example], rule: ColumnSplit, seed: int) -> Split:
    same = _same(rule.column)
    train, test = ({same(value) for value in values} for values in (rule.train, rule.test))
    if shared := train & test:
        raise TrainingError(
            f"[train] split by column `{rule.column}`: {', '.join(sorted(shared))} stands in train and in test"
        )
    values = [_value(example, rule.column) for example in examples]
    training = [i for i, value in enumerate(values) if value in train]
    validation = [i for i, value in enumerate(values) if value in test]
    for side, numbers in (("train", training), ("test", validation)):
        if not numbers:
            present = sorted({value for value in values if value is not None})
            listing = ", ".join(present[:10]) if present else "no recording has this column"
            raise TrainingError(
                f"[train] split by column `{rule.column}`: no window on the {side} side; values: {listing}"
            )
    return _sides(examples, "column", seed, training, validation)


def _value(example: Example, column: str) -> str | None:
    names = {"session": example.session, "subject": example.subject}
    value = example.metadata.get(column, names.get(column))
    return None if value is None else _same(column)(value)


def _same(column: str) -> Callable[[str], str]:
    """Give what makes equal texts of equal values of a column: names are texts, other values may be numbers."""
    return identity if column in ("session", "subject") else canonical


def _labels(examples: Sequence[Example]) -> list[str]:
    return [example.label for example in examples]


def _held_out(examples: Sequence[Example], kind: str, seed: int, numbers: Iterable[int]) -> Split:
    """Make a split in which all that is not held out is learned from."""
    validation = set(numbers)
    training = [i for i in range(len(examples)) if i not in validation]
    return _sides(examples, kind, seed, training, sorted(validation))


def _sides(examples: Sequence[Example], kind: str, seed: int, training: list[int], validation: list[int]) -> Split:
    group = "session" if kind == "window" else kind
    groups = [tuple(sorted({group_of(examples[i], group) for i in numbers})) for numbers in (training, validation)]
    either = {*training, *validation}
    left_out = tuple(i for i in range(len(examples)) if i not in either)
    return Split(sorted(training), sorted(validation), kind, seed, groups[0], groups[1], left_out)


def group_of(example: Example, kind: str) -> str:
    """Name what must stand on one side of a split of this kind: the window, its subject if that is known, or its session."""
    if kind == "window":
        return f"{example.session}/{example.window.start_index}"
    return group_name(kind, example.subject, example.session)


def group_name(kind: str, subject: str, session: str) -> str:
    """Name what a recording belongs to: its subject if that is asked for and known, or its session."""
    return (kind == "subject" and subject) or session


def hold_out(groups: Sequence[str], labels: Sequence[str], share: float, seed: int) -> set[str]:
    """Choose groups to hold out.

    They are taken one by one, each the one that brings the count of every class held out nearest to its share, as long
    as every class stays in training.
    """
    names, counts = _count(groups, labels)
    shuffled = list(names)
    np.random.default_rng(seed).shuffle(shuffled)
    row = {name: i for i, name in enumerate(names)}
    windows = counts[[row[name] for name in shuffled]] if names else counts  # (groups, classes)
    total, groups_out = counts.sum(0), set[str]()
    windows_out, free = np.zeros(counts.shape[1]), np.ones(len(names), bool)
    while share and free.any():
        candidates = np.flatnonzero(free & (windows_out + windows < total).all(1))
        if not len(candidates):
            break
        # In shares of each class, so that rare ones count as much as frequent ones.
        distance = np.sum(((windows_out + windows[candidates]) / total - share) ** 2, axis=1)
        best = int(distance.argmin())
        if groups_out and distance[best] >= np.sum((windows_out / total - share) ** 2):
            break
        windows_out = windows_out + windows[candidates[best]]
        free[candidates[best]] = False
        groups_out.add(shuffled[candidates[best]])
    return groups_out


def hold_out_by_name(groups: Mapping[str, str], share: float = 0.25) -> set[str]:
    """Choose groups to hold out, given each one's class, by a hash of their names: the same ones every time.

    A model that was trained without them yesterday and one that is trained today can thus be compared on them fairly.
    """
    groups_out: set[str] = set()
    for label in sorted(set(groups.values())):
        names = [name for name, group_label in groups.items() if group_label == label]
        ranked = sorted((hashlib.sha256(name.encode()).digest()[:8], name) for name in names)
        lowest = [name for digest, name in ranked if int.from_bytes(digest, "big") / 2**64 < share] or [ranked[0][1]]
        groups_out.update(lowest[: len(ranked) - 1])
    return groups_out


def deal(groups: Sequence[str], labels: Sequence[str], count: int, seed: int) -> dict[str, int]:
    """Deal groups to parts: large ones first, each to where it leaves the parts' classes most alike."""
    names, counts = _count(groups, labels)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    shares = counts / counts.sum(0)
    filled, sizes = np.zeros((count, counts.shape[1])), np.zeros(count)
    part: dict[str, int] = {}
    for dealt, i in enumerate(order):
        # The sum of squares grows least where the part has least of these classes; parts without a group come first
        # when there are just enough groups left to give each of them one.
        cost = ((filled + shares[i]) ** 2 - filled**2).sum(1)
        if (sizes == 0).sum() >= len(order) - dealt:
            cost = np.where(sizes == 0, cost, np.inf)
        best = int(np.lexsort((sizes, cost))[0])
        filled[best] += shares[i]
        sizes[best] += 1
        part[names[i]] = best
    return part


def _count(groups: Sequence[str], labels: Sequence[str]) -> tuple[list[str], Counts]:
    """Count windows, ``(groups, classes)``, beside the groups' names, sorted."""
    classes = {label: i for i, label in enumerate(sorted(set(labels)))}
    names = sorted(set(groups))
    row = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(classes)))
    for group, label in zip(groups, labels, strict=True):
        counts[row[group], classes[label]] += 1
    return names, counts


def check_leaks(examples: Sequence[Example], split: Split) -> None:
    """Refuse a split in which samples of a session stand on both sides, unless it is one of windows at random.

    Windows are compared by the raw samples that they span; windows that only touch share none.
    """
    if split.kind == "window":
        return
    pair = overlap(examples, split)
    if pair is not None:
        training, validation = (examples[i].window for i in pair)
        raise TrainingError(
            f"the split leaks: session {training.session}, samples {training.start_index} to {training.end_index} are learned from, "
            f"samples {validation.start_index} to {validation.end_index} are held out, and they overlap; split by session, "
            f'subject or time, or say [train] split = "window" if a published protocol asks for it'
        )


def overlap(examples: Sequence[Example], split: Split) -> tuple[int, int] | None:
    """Find the numbers of a training and a validation window that share samples; None if there are none."""
    sides = [(i, False) for i in split.training] + [(i, True) for i in split.validation]
    # Times, not numbers: a session whose clock was set anew counts its samples from there.
    sides.sort(key=lambda item: (examples[item[0]].session, examples[item[0]].window.start_ns))
    latest: dict[bool, int | None] = {}
    session = None
    for i, held_out in sides:
        example = examples[i]
        if example.session != session:
            session, latest = example.session, {False: None, True: None}
        opposite, same = latest[not held_out], latest[held_out]
        if opposite is not None and examples[opposite].window.end_ns > example.window.start_ns:
            return (opposite, i) if held_out else (i, opposite)
        if same is None or example.window.end_ns > examples[same].window.end_ns:
            latest[held_out] = i
    return None
