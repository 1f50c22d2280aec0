"""Scores of classes and of numbers. In: held-out windows, with truths and answers. Out: numbers and counts, None where undefined.

A recording counts by the mean of its windows' probabilities. One with several classes counts once for each of them that
covers a window.

A further head of classes is scored as the recipe's own classes are. A number's errors are in its own unit; as with classes, a
recording counts once, by the mean of its windows: ``mae``, ``rmse``, ``r2`` and ``n`` are of recordings, ``window_mae``,
``window_rmse``, ``window_r2`` and ``windows`` of windows. Only windows whose truth is known count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.reports import html as h
from kymo.streams.chunk import Array

#: What stands for the answer where a recording gave no window.
UNCLASSIFIED = "unclassified"
#: Scores that stand for all of them where there is little room: of a subject, a fold, in a manifest.
BRIEF = ("accuracy", "macro_f1", "n", "window_accuracy", "windows")
#: What the short form of a head's scores keeps, in a manifest and for people.
SHORT = ("accuracy", "macro_f1", "mae", "rmse", "r2", "n")
#: Fewer people (or recordings) say nothing of how far others are from them.
_INTERVAL_OWNERS = 4
_LEVEL = 0.9
_MEANS = ("precision", "recall", "f1")
_NUMBERS_ALONE_KEYS = ("n", "unclassified", "windows", "heads")
Counts = NDArray[np.float64]
#: Whose a recording without a window is, and its class.
Missed = Iterable[tuple[str, str]]


@dataclass(slots=True, eq=False)
class HeldHead:
    """What a model said of held-out windows in a further head."""

    name: str
    labels: list[str]  # its classes; empty for a number
    truth: Array  # ``(n,)``: int64 numbers of the labels (-1: not known), or float64 (NaN: not known)
    said: Array  # ``(n, labels)`` probabilities, or ``(n,)`` numbers in the head's own unit (NaN: none)

    @classmethod
    def of(cls, name: str, labels: Sequence[str], rows: Sequence[Mapping[str, tuple[Any, Any]]]) -> HeldHead:
        """Windows with, by head, truth and answer of each; a class that was not learned has the probability 0."""
        truths, answers = ([row[name][i] for row in rows] for i in (0, 1))
        if labels:
            probabilities = [[answer.get(label, 0.0) for label in labels] for answer in answers]
            return cls(name, *_with_unlearned(labels, truths, probabilities))
        numbers = [math.nan if truth is None else truth for truth in truths]
        return cls(name, [], np.array(numbers, np.float64), np.array(answers, np.float64))

    def scores(self, sessions: Sequence[str], missed: Iterable[str] = ()) -> dict[str, Any]:
        """Its scores, given the windows' sessions and the truths of recordings that gave no window."""
        truth: Any = self.truth
        without = list(missed)
        known = np.flatnonzero(truth >= 0 if self.labels else ~np.isnan(truth))
        of_known = [sessions[i] for i in known]
        if not self.labels:
            rows = zip(of_known, truth[known].tolist(), self.said[known].tolist(), strict=True)
            return score_numbers(rows, len(without))
        if not of_known and not without:
            return {"n": 0, "windows": 0}
        held = HeldOut(self.labels, truth[known], self.said[known], of_known, [""] * len(known))
        return held.tally((UNCLASSIFIED, label) for label in without).scores()


@dataclass(slots=True, eq=False)
class HeldOut:
    """Windows that a model has not learned from, in order, with what it said of them."""

    labels: list[str] = field(default_factory=list)  # columns of `probabilities`
    y_true: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # ``(n,)``, numbers of the labels
    # ``(n, labels)``, as an event would carry them
    probabilities: Array = field(default_factory=lambda: np.zeros((0, 0)))
    sessions: list[str] = field(default_factory=list)  # ``n`` each; a subject is empty where it is not known
    subjects: list[str] = field(default_factory=list)
    # ``(n,)``, raw samples from the session's index 0
    start_index: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    heads: list[HeldHead] = field(default_factory=list)  # what was said in further heads

    @classmethod
    def of(cls, labels: Sequence[str], truths: Sequence[str], probabilities: Any, **known: Any) -> HeldOut:
        """Windows whose truths are texts; a class that was not learned has the probability 0."""
        return cls(*_with_unlearned(labels, truths, probabilities), **known)

    @classmethod
    def joined(cls, parts: Sequence[HeldOut]) -> HeldOut:
        """The windows of several, which have the same labels and heads, one behind the other."""

        def joined(pieces: Iterable[Any]) -> Any:
            first, *rest = pieces
            return np.concatenate([first, *rest]) if isinstance(first, np.ndarray) else list(chain(first, *rest))

        heads = [
            HeldHead(
                head.name, head.labels, *(joined(getattr(part, name) for part in same) for name in ("truth", "said"))
            )
            for head, *same in zip(parts[0].heads, *(part.heads for part in parts), strict=True)
        ]
        names = ("y_true", "probabilities", "sessions", "subjects", "start_index")
        columns = {name: joined(getattr(part, name) for part in parts) for name in names}
        return cls(parts[0].labels, **columns, heads=heads)

    @property
    def numbers_alone(self) -> bool:
        """Whether there are no classes, a regression alone."""
        return len(self.labels) == 1 and bool(self.heads)

    @property
    def owners(self) -> list[str]:
        """Whose the windows are: the subject's, or the session's where nobody is named."""
        return [subject or session for subject, session in zip(self.subjects, self.sessions, strict=True)]

    def recordings(self) -> dict[tuple[str, str, int], int]:
        """By whose it is, session and truth of a recording the number of its most probable class."""
        keys = list(zip(self.owners, self.sessions, self.y_true.tolist(), strict=True))
        sums: dict[tuple[str, str, int], Array] = {}
        for key, row in zip(keys, self.probabilities, strict=True):
            sums[key] = sums[key] + row if key in sums else row
        return {key: int(row.argmax()) for key, row in sums.items()}  # the largest sum is the largest mean

    def tally(self, missed: Missed = ()) -> Tally:
        """Count what was taken for what, recordings that gave no window among them."""
        without = list(missed)
        labels = [*self.labels, *sorted({label for _, label in without} - {*self.labels})]
        tally = Tally(tuple(labels))
        of_windows = self.probabilities.argmax(1).tolist() if len(self.y_true) else []
        for owner, truth, answer in zip(self.owners, self.y_true.tolist(), of_windows, strict=True):
            tally.of(owner)[1, truth, answer] += 1
        for (owner, _, truth), answer in self.recordings().items():
            tally.of(owner)[0, truth, answer] += 1
        for owner, label in without:
            tally.of(owner)[0, labels.index(label), -1] += 1
        return tally

    def scores(self, missed: Missed = (), missed_heads: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """All scores: of windows and recordings, of the people among them, of the heads."""
        tally = self.tally(missed)
        scores = {**tally.scores(), **tally.about_people(named=any(self.subjects))}
        if self.heads:
            heads = ((head, (missed_heads or {}).get(head.name, ())) for head in self.heads)
            scores["heads"] = {head.name: head.scores(self.sessions, without) for head, without in heads}
        return {name: scores[name] for name in _NUMBERS_ALONE_KEYS} if self.numbers_alone else scores

    def rank(self) -> float:
        """What models are compared by: mean of accuracy and macro F1 of recordings and accuracy of windows; numbers by their R2."""
        if self.numbers_alone:
            return number_rank({head.name: head.scores(self.sessions) for head in self.heads})
        brief = self.tally().brief()
        return float(np.mean([brief[name] for name in _SCORES]))


def _with_unlearned(
    labels: Sequence[str], truths: Sequence[str | None], probabilities: Any
) -> tuple[list[str], Array, Array]:
    """Labels with those of the truths that are not among them, numbers of the truths (-1: not known), probabilities."""
    classes = [*labels, *sorted({truth for truth in truths if truth is not None} - {*labels})]
    number = {label: i for i, label in enumerate(classes)}
    numbers = np.array([-1 if truth is None else number[truth] for truth in truths], np.int64)
    columns = np.asarray(probabilities, np.float64).reshape(len(truths), len(labels))
    return classes, numbers, np.pad(columns, ((0, 0), (0, len(classes) - len(labels))))


@dataclass(slots=True, eq=False)
class Tally:
    """What was taken for what, by person (by session, where nobody is named): the unit by which scores vary.

    Windows of a recording, and recordings of a person, resemble each other; other people do not. So intervals are over people: the
    variance is the jackknife's, a person left out in turn (Efron and Tibshirani 1993, chapter 11), and the limits are Wilson's (1927,
    JASA 22, 209) for as many answers as would vary so much if they were independent. Few people say little of how much they vary,
    and nothing where all are right: the variance is drawn towards that of people whose answers correlate by :data:`_ALIKE`, which
    counts as :data:`_PRIOR` people. Other people to learn from would have given another model, so it is raised by :data:`_LUCK`: a plain
    bootstrap over eight to twelve people, which leaves that out, holds new people less often (benchmarks/README.md).
    """

    labels: tuple[str, ...] = ()
    # by person: ``(2, truth, answer)``, of recordings and of windows; the last answer is none
    counts: dict[str, Counts] = field(default_factory=dict)

    def of(self, owner: str) -> Counts:
        width = len(self.labels)
        return self.counts.setdefault(owner, np.zeros((2, width, width + 1)))

    def total(self) -> Counts:
        """Of all people, ``(2, truth, answer)``."""
        total: Counts = np.sum(list(self.counts.values()), axis=0)
        return total

    def scores(self) -> dict[str, Any]:
        """Scores of the recordings, and of the windows that make them up."""
        recordings, windows = self.total()
        accuracy = {"window_accuracy": float(accuracies(windows[None])[0]), "windows": int(windows.sum())}
        return {**score(recordings, self.labels), **accuracy}

    def brief(self) -> dict[str, Any]:
        """The scores of :data:`BRIEF`."""
        total = self.total()
        scores = {name: float(score_of(total[None])[0]) for name, score_of in _SCORES.items()}
        return {**scores, "n": int(total[0].sum()), "windows": int(total[1].sum())}

    def about_people(self, named: bool) -> dict[str, Any]:
        """What scores are worth for other people: ``interval``, ``beats_guessing``, and ``per_subject`` the scores of each.

        Where nobody is named, sessions stand for people in the interval, and there is nothing by subject.
        """
        each = {name: Tally(self.labels, {name: self.counts[name]}).brief() for name in sorted(self.counts)}
        interval = {"kind": "subject" if named else "session", **self.intervals()}
        return {
            "interval": interval,
            "beats_guessing": self.beats_guessing(),
            "per_subject": each if named else {},
        }

    def intervals(self) -> dict[str, Any]:
        """By score the limits between which 90 % of such limits hold what new people would give; and how many people it is of."""
        found: dict[str, Any] = {"level": _LEVEL, "of": len(self.counts)}
        if len(self.counts) < _INTERVAL_OWNERS:
            return found
        each = np.stack(list(self.counts.values()))
        total, left = each.sum(0), each.sum(0) - each
        for name, score_of in _SCORES.items():
            size = float(total[int(name == "window_accuracy")].sum()) / len(each)
            found[name] = _interval(float(score_of(total[None])[0]), _jackknife(score_of(left)), len(each), size)
        return found

    def beats_guessing(self) -> bool | None:
        """Whether recordings are told better than by always saying the commonest class, by more than chance where that can be said.

        Rarer classes may be told at the cost of the commonest: so better is, too, what has a higher mean recall than one answer has.
        Where one class alone is judged, nothing can tell: None.
        """
        each = np.stack([counts[0] for counts in self.counts.values()])
        total, left = each.sum(0), each.sum(0) - each
        if np.count_nonzero(total.sum(1)) < 2:
            return None

        def over_commonest(counts: Counts) -> Counts:
            gains: Counts = accuracies(counts) - counts.sum(2).max(1) / np.maximum(counts.sum((1, 2)), 1)
            return gains

        def over_one_answer(counts: Counts) -> Counts:
            truths = counts.sum(2)
            right = np.diagonal(counts, axis1=1, axis2=2)
            recalls = np.divide(right, truths, out=np.zeros_like(right), where=truths > 0)
            gains: Counts = (recalls.sum(1) - 1) / np.maximum((truths > 0).sum(1), 1)
            return gains

        few = len(each) < _INTERVAL_OWNERS
        return any(
            float(gain(total[None])[0]) - (0 if few else _Z90 * math.sqrt(_LUCK * _jackknife(gain(left)))) > _ROUNDING
            for gain in (over_commonest, over_one_answer)
        )


#: See :class:`Tally`; and the normal distribution's point of the level.
_PRIOR, _ALIKE, _LUCK, _Z90, _ROUNDING = 6.0, 0.15, 1.35, 1.645, 1e-9


def _jackknife(left: Counts) -> float:
    """Variance of a score, from what it is without each person."""
    return float((len(left) - 1) / len(left) * np.square(left - left.mean()).sum())


def _interval(share: float, variance: float, people: int, size: float) -> list[float]:
    """Limits of a share, given its variance over people who have `size` answers each."""
    near = (share * people + 0.5) / (people + 1)  # never 0 or 1
    expected = near * (1 - near) * (_ALIKE + (1 - _ALIKE) / size) / people
    variance = _LUCK * (_PRIOR * expected + (people - 1) * variance) / (_PRIOR + people - 1)
    return share_limits(share, _Z90**2 * variance / (near * (1 - near)))


def share_limits(share: float, weight: float) -> list[float]:
    """Limits of a share (E. B. Wilson 1927, JASA 22, 209); the weight of one half beside it is z²/n where `n` answers are independent."""
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def score(counts: Counts, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, precision, recall, F1, confusion of counts ``(truth, answer)``, of which the last answer is none.

    Precision, recall and F1 of a class are 0 where they are undefined. `macro_precision`, `macro_recall` and `macro_f1` are
    their plain means over the classes that occur as truth or as answer (D. D. Lewis 1991, Evaluating Text Categorization).
    """
    right, truths, answers = (c.astype(int).tolist() for c in (counts.diagonal(), counts.sum(1), counts.sum(0)))
    *_, unclassified = answers
    classes = [i for i in range(len(labels)) if truths[i] + answers[i]]
    columns = [*classes, len(labels)] if unclassified else classes
    names, n = [*labels, UNCLASSIFIED], sum(truths)
    per_class = {names[i]: class_scores(right[i], answers[i], truths[i]) for i in classes}
    commonest = max(classes, key=lambda i: truths[i])
    return {
        "accuracy": sum(right) / n,
        **{f"macro_{key}": sum(c[key] for c in per_class.values()) / len(per_class) for key in _MEANS},
        "per_class": per_class,
        "confusion": {names[i]: {names[j]: int(counts[i, j]) for j in columns} for i in classes},
        "not_judged": [label for label, count in zip(labels, truths, strict=True) if not count],
        "commonest": {"label": names[commonest], "accuracy": truths[commonest] / n},
        "n": n,
        "unclassified": unclassified,
    }


def class_scores(right: int, answers: int, truths: int, undefined: float = 0.0) -> dict[str, float]:
    """Scores of one class, which was right so often, is the answer so often, and the truth."""
    return {
        "precision": right / answers if answers else undefined,
        "recall": right / truths if truths else undefined,
        "f1": 2 * right / (answers + truths) if answers + truths else undefined,
        "n": truths,
    }


def confusion(truths: Any, answers: Any, labels: int) -> NDArray[np.int64]:
    """Counts ``(labels, labels + 1)``: row the truth, column the answer, the last column no answer (-1)."""
    counts = np.zeros((labels, labels + 1), np.int64)
    np.add.at(counts, (truths, answers), 1)
    return counts


def accuracies(confusions: Counts) -> Counts:
    """Share of right answers of each matrix of ``(matrices, truth, answer)``; 0 of none."""
    shares: Counts = np.trace(confusions, axis1=1, axis2=2) / np.maximum(confusions.sum((1, 2)), 1)
    return shares


def macro_f1s(confusions: Counts) -> Counts:
    """Mean F1 of the classes that occur, as :func:`score` counts it, of each matrix of ``(matrices, truth, answer)``."""
    right = np.diagonal(confusions, axis1=1, axis2=2)
    occurrences = confusions.sum(2) + confusions.sum(1)[:, : right.shape[1]]
    f1 = np.divide(2 * right, occurrences, out=np.zeros_like(right), where=occurrences > 0)
    means: Counts = f1.sum(1) / np.maximum((occurrences > 0).sum(1), 1)
    return means


#: What has an interval, of ``(n, 2, truth, answer)``.
_SCORES: dict[str, Callable[[Counts], Counts]] = {
    "accuracy": lambda counts: accuracies(counts[:, 0]),
    "macro_f1": lambda counts: macro_f1s(counts[:, 0]),
    "window_accuracy": lambda counts: accuracies(counts[:, 1]),
}


def score_numbers(numbers: Iterable[tuple[str, float, float]], without: int = 0) -> dict[str, Any]:
    by_session: dict[str, list[tuple[float, float]]] = {}
    for session, truth, answer in numbers:
        pairs = by_session.setdefault(session, [])
        if math.isfinite(answer):
            pairs.append((truth, answer))
    windows = [pair for pairs in by_session.values() for pair in pairs]
    means = [tuple(np.mean(pairs, axis=0).tolist()) for pairs in by_session.values() if pairs]
    unclassified = without + sum(not pairs for pairs in by_session.values())
    if not windows and not unclassified:
        return {"n": 0, "windows": 0}
    of_windows = {f"window_{name}": value for name, value in _errors(windows).items()}
    counts = {"n": len(means), "unclassified": unclassified}
    return {**_errors(means), **counts, **of_windows, "windows": len(windows)}


def _errors(pairs: Sequence[tuple[float, ...]]) -> dict[str, float | None]:
    """Mean absolute error, root of the mean square error, and the share of the truths' variance that is explained.

    ``r2`` is 1 less the sum of squared errors over the sum of squared distances of the truths from their mean: 0 is what their
    mean would reach, below 0 is worse. It is undefined where all truths are equal.
    """
    if not pairs:
        return {"mae": None, "rmse": None, "r2": None}
    truth, answer = np.array(pairs, np.float64).T
    errors = answer - truth
    spread = float(np.square(truth - truth.mean()).sum())
    r2 = 1 - float(np.square(errors).sum()) / spread if spread > 0 and np.ptp(truth) > 0 else None
    return {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt(np.square(errors).mean())), "r2": r2}


def score_line(name: str, scores: Mapping[str, Any]) -> str:
    """A head's scores in a line for people."""
    if not scores.get("n") and not scores.get("unclassified"):
        return f"{name}: no labels"
    without = f", {scores['unclassified']} {UNCLASSIFIED}" if scores["unclassified"] else ""
    if "accuracy" in scores:
        return (
            f"{name}: {scores['n']} recordings: accuracy {scores['accuracy']:.1%}, macro F1 {scores['macro_f1']:.3f}{without}; "
            f"{scores['windows']} windows: accuracy {scores['window_accuracy']:.1%}"
        )
    if scores["mae"] is None:
        return f"{name}: no answers{without}"
    explained = f", R2 {scores['r2']:.3f}" if scores["r2"] is not None else ""
    return (
        f"{name}: {scores['n']} recordings: mean error {scores['mae']:.4g}, root mean square {scores['rmse']:.4g}{explained}"
        f"{without}; {scores['windows']} windows: mean error {scores['window_mae']:.4g}"
    )


def interval_line(limits: Mapping[str, Any]) -> str:
    """The intervals of scores in a line for people."""
    who = f"{limits['of']} {limits['kind']}{'s' * (limits['of'] != 1)}"
    if "accuracy" not in limits:
        return f"{who} {'is' if limits['of'] == 1 else 'are'} too few for an interval; {_INTERVAL_OWNERS} would do"
    accuracy, macro_f1, windows = (limits[name] for name in _SCORES)
    return (
        f"{limits['level']:.0%} interval, by {who}: accuracy {accuracy[0]:.1%} to {accuracy[1]:.1%}, "
        f"macro F1 {macro_f1[0]:.3f} to {macro_f1[1]:.3f}, windows {windows[0]:.1%} to {windows[1]:.1%}"
    )


def number_rank(heads: Mapping[str, Mapping[str, Any]]) -> float:
    """What regressions are compared by: the mean of their R2, of recordings (where all truths are equal, less is better of the
    error, from 0 to -1); a head of classes counts by its accuracy."""

    def worth(scores: Mapping[str, Any]) -> float:
        value = scores.get("r2", scores.get("accuracy"))
        if value is None and (rmse := scores.get("rmse")) is not None:
            value = -rmse / (1 + rmse)
        return float(value or 0.0)

    return float(np.mean([worth(scores) for scores in heads.values()]))


class Scores(dict[str, Any]):
    """Scores by name; in a notebook a table by class."""

    def __str__(self) -> str:
        if "per_class" not in self:
            return "; ".join(score_line(name, scores) for name, scores in self.get("heads", {}).items())
        return score_line(self.get("bundle", "held out"), self)

    def _repr_html_(self) -> str:
        columns = dict.fromkeys(("class", "recall", "precision", "F1", "recordings"), "")
        rows = [
            (label, *(row[name] for name in ("recall", "precision", "f1", "n")))
            for label, row in self.get("per_class", {}).items()
        ]
        return h.table(str(self), columns, rows) if rows else h.paragraph(str(self))
