"""Refreshing a recipe's model. In: labelled recordings, old and new. Out: a model trained on them that is champion if it is better.

Some sessions are kept from training, the same ones every time (:func:`kymo.models.data.splits.hold_out_by_name`); on them the new model
must beat the champion by more than chance. Whatever goes wrong, the champion stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kymo.models.bundle import Bundle, load_bundle, promote
from kymo.models.data.dataset import labels_of, stream_of
from kymo.models.data.splits import group_name, hold_out_by_name, split_kind
from kymo.models.registry import open_registry, tell
from kymo.models.training.gate import MIN_OWNERS, Verdict, compare, owners_of
from kymo.models.training.lineage import knows
from kymo.models.training.request import OnStage, TrainRequest
from kymo.models.training.train import Trained, train, unfit
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import BundleError, KymoError, TrainingError
from kymo.streams.files import lock
from kymo.streams.readers import read
from kymo.streams.recording import Recording
from kymo.streams.settings import Settings


@dataclass(frozen=True, slots=True)
class GatePlan:
    """What is kept from training, and what the data are."""

    # sessions that are kept from training, with their subjects; empty where not known, or where sessions are split
    held_out: dict[str, str]
    sessions: int  # all of them
    signature: str  # of the sessions and their labels: the same for the same data


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round came to."""

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

    def to_dict(self) -> dict[str, Any]:
        """JSON object."""
        return asdict(self)

    def line(self) -> str:
        """All of it on one line."""
        if not self.bundle:
            return f"{self.recipe}: {self.champion or 'no champion'} stays: {self.reason}"
        what = f"{self.bundle} promoted" if self.promoted else f"{self.champion} stays, {self.bundle} is not promoted"
        return f"{self.recipe}: {what}: {self.reason} ({self.seconds:.0f} s)"


def plan_of(recipe: Recipe, paths: tuple[str, ...], share: float = 0.25) -> GatePlan:
    """What to keep from training."""
    labelled: list[tuple[str, str, set[str]]] = []  # session, subject, classes
    digest = hashlib.sha256()
    for recording in read(paths, recipe.read_options()):
        if stream_of(recording, recipe) is None:  # another recipe's
            continue
        labels = sorted((label.start_ns, label.end_ns, label.label) for label in labels_of(recording, recipe))
        digest.update(repr((recording.session, recording.start_ns, recording.end_ns, labels)).encode())
        digest.update(_head_labels(recipe, recording))
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


def _head_labels(recipe: Recipe, recording: Recording) -> bytes:
    """What further heads learn from: it is no reason to hold a session out, but one to train again."""
    sets = {head.set for head in recipe.heads}
    labels = sorted((x.set, x.start_ns, x.end_ns, x.label) for x in recording.labels if x.set in sets)
    return repr(labels).encode() if labels else b""


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
    champion = _champion(recipe, settings.home)
    kind = champion.takes if champion else ""
    request = replace(request, out=None, promote=False, without=frozenset(plan.held_out), windows_of=kind)
    trained = train(recipe, request, on_stage=on_stage)
    begin("judging", 0)
    champion = _champion(recipe, settings.home)  # another may have been promoted meanwhile
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
        verdict=verdict.to_dict() if verdict else None,
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


def champion_of(recipe: Recipe, home: Path) -> str:
    """Name of a recipe's champion; empty for none."""
    champion = _champion(recipe, home)
    return champion.id if champion else ""


def _champion(recipe: Recipe, home: Path) -> Bundle | None:
    try:
        return load_bundle(recipe.name, home)
    except BundleError:
        return None


def _decide(
    recipe: Recipe, pair: tuple[Bundle | None, Bundle], why: str, paths: tuple[str, ...], plan: GatePlan, metric: str
) -> tuple[Verdict | None, bool, str]:
    champion, candidate = pair
    if why:
        return None, False, why
    try:
        candidate.check(recipe)
    except BundleError as error:
        return None, False, f"it could not be served ({error})"
    if champion is None:
        return None, True, "there was no champion that could be loaded"
    if champion.id == candidate.id:
        return None, False, "it is the same model"
    try:
        champion.check(recipe)
    except BundleError as error:
        return None, True, f"the champion does not fit the recipe any more ({error})"
    borders, others = (bundle.manifest.get("bins") for bundle in (candidate, champion))
    if borders != others:
        return (
            None,
            False,
            (
                f"its classes have other borders ({borders}) than the champion's ({others}), so the two cannot be compared; give "
                "the champion's in [labels] bins, or promote it by hand"
            ),
        )
    if not plan.held_out:
        return None, False, "no session can be spared to judge: at least two of one class are needed"
    judges, remark = _judges(champion, plan)
    recordings = (r for r in read(paths, recipe.read_options()) if r.session in judges)
    verdict = compare(champion, candidate, recordings, recipe, metric, plan.held_out)
    verdict = replace(verdict, text=verdict.text + remark)
    return verdict, verdict.promote, verdict.text


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
    champion: Callable[[], str] = lambda: "",
) -> Iterator[Outcome]:
    """Round after round; one that fails says why and leaves the champion, one without new data is not run."""
    before = ""
    while True:
        try:
            current = signature()
            if current == before:
                yield Outcome(recipe.name, reason="no new recordings or labels", champion=champion())
            else:
                yield train_once()
                before = current
        except (
            Exception
        ) as error:  # a full disk, a broker that is away, data that are half written: the next round may do
            why = str(error) if isinstance(error, KymoError) else f"{type(error).__name__}: {error}"
            yield Outcome(recipe.name, reason=f"failed: {why}", champion=champion())
        if not wait():
            return
