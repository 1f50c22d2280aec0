"""The gate before a promotion. In: labelled recordings, old and new; two bundles. Out: whether the new one is better, and is champion.

Some sessions are kept from training, the same ones every time (:func:`kymo.models.data.splits.hold_out_by_name`); on them the new model
must beat the champion by more than chance. Whatever goes wrong, the champion stays.

Both judge the same sessions, so what is hard for both cancels out. Windows of one session resemble each other, and so do sessions of one
person, hence whole people are resampled (sessions, where nobody is named), never windows: the paired bootstrap of Efron and Tibshirani
1993, An Introduction to the Bootstrap, chapters 6 and 13. The new bundle passes if the lower end of the 95 % interval of the
difference lies above 0. Further heads do not count: what is compared are answers to the recipe's own question.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.bundle import Bundle, load_bundle, promote
from kymo.models.data.dataset import labels_of, streams_of
from kymo.models.data.splits import group_name, hold_out_by_name, split_kind
from kymo.models.evaluate import judge_recordings
from kymo.models.registry import open_registry, tell
from kymo.models.scores import UNCLASSIFIED, accuracies, macro_f1s
from kymo.models.training.record import knows
from kymo.models.training.run import OnStage, TrainRequest
from kymo.models.training.train import Trained, train, unfit
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import BundleError, KymoError, TrainingError
from kymo.streams.files import lock
from kymo.streams.readers import read
from kymo.streams.recording import Recording
from kymo.streams.settings import Settings
from kymo.streams.words import many

#: Fewer people, or sessions where nobody is named, cannot tell: one lucky draw would decide.
MIN_OWNERS = 6
_RESAMPLES = 10_000
_INTERVAL = 0.95
Numbers = NDArray[np.float64]
_NUMBERS = 2**23  # of resamples' weights, or of their confusions, at once
Score = Callable[[Numbers], Numbers]
#: What a bundle answers on one session: pairs of truth and answer, usually one.
Pair = tuple[str, str]
Answers = Mapping[str, Sequence[Pair]]


@dataclass(frozen=True, slots=True)
class Verdict:
    promote: bool  # whether the candidate is better by more than chance
    metric: str  # what was compared: ``accuracy`` or ``macro_f1`` of sessions, or ``window_accuracy``
    sessions: int  # how many judged
    champion: float  # their scores, 0 to 1
    candidate: float
    difference: float  # candidate less champion, and the ends of its 95 % interval
    low: float
    high: float
    text: str  # all of it on one line


def owners_of(subjects: Mapping[str, str]) -> dict[str, str]:
    """Say whose a session is: its subject's, or its own where nobody is named."""
    return {session: subject or session for session, subject in subjects.items()}


def judge(
    champion: Answers,
    candidate: Answers,
    metric: str = "accuracy",
    seed: int = 0,
    subjects: Mapping[str, str] | None = None,  # of sessions, empty where not known; None where each stands for itself
) -> Verdict:
    """Compare two bundles by their answers on the same sessions."""
    sessions = sorted(champion)
    if not sessions or sessions != sorted(candidate):
        raise TrainingError(
            f"the champion judged {len(champion)} sessions, the candidate {len(candidate)}; expected the same ones"
        )
    classes = sorted({name for side in (champion, candidate) for pairs in side.values() for p in pairs for name in p})
    owners, named = owners_of(dict.fromkeys(sessions, "") | dict(subjects or {})), any((subjects or {}).values())
    units = sorted({owners[session] for session in sessions})
    counts = [_confusions(side, owners, units, classes) for side in (champion, candidate)]
    score = macro_f1s if metric == "macro_f1" else accuracies
    before, after = (float(score(side.sum(0, keepdims=True))[0]) for side in counts)
    draws = _draws(counts, score, len(units), seed)
    low, high = (
        float(q) for q in np.quantile(draws, [(1 - _INTERVAL) / 2, (1 + _INTERVAL) / 2], method="inverted_cdf")
    )
    passed, why = low > 0 and len(units) >= MIN_OWNERS, "better by more than chance"
    if not passed:
        few = f"fewer than {MIN_OWNERS} {'people' if named else 'sessions'} are too few to tell"
        why = few if low > 0 else f"not {why}"
    whose = f" (people: {len(units)})" if named else ""
    text = (
        f"{metric.replace('_', ' ')} on {many(len(sessions), 'held-out session')}{whose}: {after:.3f} against the champion's {before:.3f}, "
        f"difference {after - before:+.3f} (95 % interval {low:+.3f} to {high:+.3f}): {why}"
    )
    return Verdict(passed, metric, len(sessions), before, after, after - before, low, high, text)


def _confusions(answers: Answers, owners: Mapping[str, str], units: Sequence[str], classes: Sequence[str]) -> Numbers:
    """Counts ``(people, truth, answer)``."""
    number, place = ({name: i for i, name in enumerate(names)} for names in (classes, units))
    counts = np.zeros((len(units), len(classes), len(classes)))
    for session, pairs in answers.items():
        for truth, answer in pairs:
            counts[place[owners[session]], number[truth], number[answer]] += 1
    return counts


def _draws(counts: Sequence[Numbers], score: Score, owners: int, seed: int) -> Numbers:
    """Differences of the score, one for each resample of the people."""
    random = np.random.default_rng(seed)
    parts: list[Numbers] = []
    chunk = max(1, _NUMBERS // max(owners, counts[0][0].size))
    for first in range(0, _RESAMPLES, chunk):
        size = min(chunk, _RESAMPLES - first)
        weights = random.multinomial(owners, np.full(owners, 1 / owners), size=size).astype(float)
        before, after = (score(np.tensordot(weights, side, 1)) for side in counts)
        parts.append(after - before)
    return np.concatenate(parts).round(12)  # what differs by rounding only is equal


def compare(
    champion: Bundle,
    candidate: Bundle,
    recordings: Iterable[Recording],
    recipe: Recipe,
    metric: str = "accuracy",
    subjects: Mapping[str, str] | None = None,  # see :func:`judge`
) -> Verdict:
    sessions = list(recordings)
    sides = [_answers(bundle, sessions, recipe, metric) for bundle in (champion, candidate)]
    for name in {*sides[0], *sides[1]}:  # a bundle that gives no window for a session has not answered
        for answers, others in (sides, sides[::-1]):
            answers.setdefault(name, [(truth, UNCLASSIFIED) for truth, _ in others.get(name, [])])
    verdict = judge(sides[0], sides[1], metric, subjects=subjects)
    truths = {truth for pairs in sides[1].values() for truth, _ in pairs}
    if missing := [label for label in candidate.labels if label not in truths]:
        text = f"{verdict.text}; not one held-out session is of {', '.join(missing)}, so nothing is known of that"
        return replace(verdict, promote=False, text=text)
    return verdict


def _answers(bundle: Bundle, recordings: Sequence[Recording], recipe: Recipe, metric: str) -> dict[str, list[Pair]]:
    """What a bundle answers on each labelled session: by truth, the label with the largest sum over the windows; or window by window."""
    held = judge_recordings(recipe, bundle, recordings).held_out
    rows: Any = ((session, truth, answer) for (_, session, truth), answer in held.recordings().items())
    if metric == "window_accuracy":
        rows = zip(held.sessions, held.y_true.tolist(), held.probabilities.argmax(1).tolist(), strict=True)
    answers: dict[str, list[Pair]] = {}
    for session, truth, answer in rows:
        answers.setdefault(session, []).append((held.labels[truth], held.labels[answer]))
    return answers


@dataclass(frozen=True, slots=True)
class GatePlan:
    """What is kept from training, and what the data are."""

    # sessions that are kept from training, with their subjects; empty where not known, or where sessions are split
    held_out: dict[str, str]
    sessions: int  # all of them
    signature: str  # of the sessions and their labels: the same for the same data


@dataclass(frozen=True, slots=True)
class Outcome:
    recipe: str
    promoted: bool = False  # whether there is a new champion
    bundle: str = ""  # the new model; empty where none was trained
    champion: str = ""  # the champion before
    sessions: int = 0  # sessions in the data; those of them that were kept from training and could judge
    held_out: int = 0
    # the gate's, see :class:`kymo.models.training.gate.Verdict`; None where nothing was compared
    verdict: dict[str, Any] | None = None
    reason: str = ""  # why it was promoted, or not, on one line
    told: bool = False  # whether running agents were told
    seconds: float = 0.0

    def line(self) -> str:
        if not self.bundle:
            return f"{self.recipe}: {self.champion or 'no champion'} stays: {self.reason}"
        what = f"{self.bundle} promoted" if self.promoted else f"{self.champion} stays, {self.bundle} is not promoted"
        return f"{self.recipe}: {what}: {self.reason} ({self.seconds:.0f} s)"


def plan_of(recipe: Recipe, paths: tuple[str, ...], share: float = 0.25) -> GatePlan:
    labelled: list[tuple[str, str, set[str]]] = []  # session, subject, classes
    digest, sets = hashlib.sha256(), {head.set for head in recipe.heads}
    for recording in read(paths, recipe.read_options()):
        if not streams_of(recording, recipe):  # another recipe's
            continue
        labels = sorted((label.start_ns, label.end_ns, label.label) for label in labels_of(recording, recipe))
        # What further heads learn from is no reason to hold a session out, but one to train again.
        of_heads = sorted((x.set, x.start_ns, x.end_ns, x.label) for x in recording.labels if x.set in sets)
        digest.update(repr((recording.session, recording.start_ns, recording.end_ns, labels, of_heads)).encode())
        if labels:
            labelled.append((recording.session, recording.subject or "", {label for _, _, label in labels}))
    if not labelled:
        raise TrainingError(f"no labelled session in {', '.join(paths)}; add labels (kymo label), or name other data")
    kind = split_kind(recipe.train, (subject for _, subject, _ in labelled))
    classes: dict[str, set[str]] = {}
    members: dict[str, dict[str, str]] = {}
    for session, subject, labels_there in labelled:
        group = group_name(kind, subject, session)
        classes.setdefault(group, set()).update(labels_there)
        members.setdefault(group, {})[session] = subject if kind == "subject" else ""
    # Where a group has several classes it cannot be counted to one: then groups are drawn whatever they hold.
    # Nor while numbers are no classes yet, as [labels] bins leaves the borders to the data.
    pure = isinstance(recipe.labels.bins, tuple) or not recipe.labels.bins
    pure = pure and all(len(names) == 1 for names in classes.values())
    judges = hold_out_by_name({group: next(iter(names)) if pure else "" for group, names in classes.items()}, share)
    sessions = {session: subject for group in sorted(judges) for session, subject in members[group].items()}
    return GatePlan(sessions, sum(map(len, members.values())), digest.hexdigest())


def train_behind_gate(
    recipe: Recipe,
    request: TrainRequest,  # data; `out`, `promote`, `without` and `windows_of` are set here
    settings: Settings,  # home of the registry, and the broker by which running agents are told
    on_stage: OnStage | None = None,  # for progress, see :func:`kymo.models.training.train.train`
    *,
    metric: str = "accuracy",
) -> tuple[Trained, Outcome]:
    """Train without the sessions that judge; promote what came of it if it beats the champion on them."""
    if not recipe.labels.classes:
        raise TrainingError("the gate compares classes, and this recipe has none; promote by `kymo models promote`")
    started = time.monotonic()
    begin = on_stage or (lambda name, epochs: lambda _: None)
    begin("choosing the sessions that judge", 0)
    plan = plan_of(recipe, request.paths)
    champion = champion_of(recipe, settings.home)
    kind = champion.takes if champion else ""
    request = replace(request, out=None, promote=False, without=frozenset(plan.held_out), windows_of=kind)
    trained = train(recipe, request, on_stage=on_stage)
    begin("judging", 0)
    champion = champion_of(recipe, settings.home)  # another may have been promoted meanwhile
    pair, why = (champion, trained.bundle), unfit(trained.scores)
    verdict, promoted, reason = _decide(recipe, pair, why, request.paths, plan, metric)
    untold = ""
    if promoted:
        entry = promote(trained.bundle.id, why=reason, home=settings.home)
        untold = tell(entry, recipe.name, settings)
    return trained, Outcome(
        recipe=recipe.name,
        promoted=promoted,
        bundle=trained.bundle.id,
        champion=champion.id if champion else "",
        sessions=plan.sessions,
        held_out=len(plan.held_out),
        verdict=asdict(verdict) if verdict else None,
        reason=reason,
        told=promoted and not untold,
        seconds=time.monotonic() - started,
    )


def train_and_promote(
    recipe: Recipe, request: TrainRequest, on_stage: OnStage, gated: bool
) -> tuple[Trained, dict[str, Any]]:
    """What `kymo train` does: train and promote at once, or behind the gate; with what to say of the promotion."""
    settings = Settings.from_env()
    if gated:
        trained, outcome = train_behind_gate(recipe, request, settings, on_stage)
        return trained, {name: getattr(outcome, name) for name in ("promoted", "champion", "verdict", "reason", "told")}
    trained = train(recipe, request, on_stage=on_stage)
    if request.out is not None or not request.promote:
        return trained, {"promoted": False}
    if why := unfit(trained.scores):
        advice = f"`kymo models promote {trained.bundle.id}` does it all the same"
        return trained, {"promoted": False, "reason": f"{why}; {advice}"}
    if entry := open_registry().current(recipe.name):
        tell(entry, recipe.name, settings)  # without a broker there is nobody to be told
    return trained, {"promoted": entry is not None}


def champion_of(recipe: Recipe, home: Path) -> Bundle | None:
    """A recipe's champion; None where there is none that can be loaded."""
    try:
        return load_bundle(recipe.name, home)
    except BundleError:
        return None


def _decide(
    recipe: Recipe, pair: tuple[Bundle | None, Bundle], why: str, paths: tuple[str, ...], plan: GatePlan, metric: str
) -> tuple[Verdict | None, bool, str]:
    champion, candidate = pair
    refused = why or ((misfit := _misfit(candidate, recipe)) and f"it could not be served ({misfit})")
    if refused:
        return None, False, refused
    if champion is None:
        return None, True, "there was no champion that could be loaded"
    if champion.id == candidate.id:
        return None, False, "it is the same model"
    if misfit := _misfit(champion, recipe):
        return None, True, f"the champion does not fit the recipe any more ({misfit})"
    borders, others = (bundle.manifest.get("bins") for bundle in (candidate, champion))
    if borders != others:
        text = (
            f"its classes have other borders ({borders}) than the champion's ({others}), so the two cannot be compared; give "
            "the champion's in [labels] bins, or promote it by hand"
        )
        return None, False, text
    if not plan.held_out:
        return None, False, "no session can be spared to judge: at least two of one class are needed"
    judges, remark = _judges(champion, plan)
    recordings = (r for r in read(paths, recipe.read_options()) if r.session in judges)
    verdict = compare(champion, candidate, recordings, recipe, metric, plan.held_out)
    verdict = replace(verdict, text=verdict.text + remark)
    return verdict, verdict.promote, verdict.text


def _misfit(bundle: Bundle, recipe: Recipe) -> str:
    """Why a recipe cannot be served by a bundle; empty where it can."""
    try:
        bundle.check(recipe)
    except BundleError as error:
        return str(error)
    return ""


def _judges(champion: Bundle, plan: GatePlan) -> tuple[frozenset[str], str]:
    """Which of the sessions held out judge, and what is to be said of that.

    The candidate has learned from none of them. A champion that was trained without the gate may have: that speaks for it, so those
    sessions judge only where too few others are there. Then a candidate that is better all the same is better indeed.
    """
    knowledge = {name: knows(champion, name, subject) for name, subject in plan.held_out.items()}
    if None in knowledge.values():
        return frozenset(knowledge), "; whether the champion has learned from them its manifest does not say"
    new = frozenset(name for name, known in knowledge.items() if not known)
    old = len(knowledge) - len(new)
    if not old:
        return new, ""
    if len({owners_of(plan.held_out)[name] for name in new}) >= MIN_OWNERS:
        return new, f"; {old} more were left out, as the champion has learned from them"
    return frozenset(knowledge), f"; the champion has learned from {old} of them, which speaks for it"


@contextlib.contextmanager
def alone(recipe: str, home: Path) -> Iterator[None]:
    """Keep a second refresh of a recipe out."""
    path = home / "run" / f"refresh-{recipe}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path, wait=False) as file:
        if file is None:
            raise KymoError(f"another refresh of `{recipe}` runs here ({path} is locked); wait for its end")
        yield


def refresh_for_ever(
    recipe: Recipe,
    train_once: Callable[[], Outcome],
    signature: Callable[[], str],  # of the data as they are now
    wait: Callable[[], bool],  # waits for the next round; False ends them
    champion: Callable[[], Bundle | None] = lambda: None,
) -> Iterator[Outcome]:
    """Round after round; one that fails says why and leaves the champion, one without new data is not run."""
    before = ""

    def stays(reason: str) -> Outcome:
        current = champion()
        return Outcome(recipe.name, reason=reason, champion=current.id if current else "")

    while True:
        try:
            current = signature()
            if current == before:
                yield stays("no new recordings or labels")
            else:
                yield train_once()
                before = current
        except (
            Exception
        ) as error:  # a full disk, a broker that is away, data that are half written: the next round may do
            yield stays(
                f"failed: {error}" if isinstance(error, KymoError) else f"failed: {type(error).__name__}: {error}"
            )
        if not wait():
            return
