"""What a training run is asked for and works on. In: a request, a recipe's ``[train]``. Out: both, checked, with the windows; a
folder that an equal run finds again.

A run that is under way keeps its checkpoints under ``KYMO_HOME/cache/training``: one folder a run, named by the digest of
everything that decides its outcome, one folder a fit in it. A run that ends removes its own; what was left behind for a
week is removed by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kymo.models.bundle import raw_chain
from kymo.models.data.cache import Reading, build_dataset
from kymo.models.data.examples import Dataset
from kymo.models.data.samples import SplitData, link_runs, split_data
from kymo.models.data.splits import Split
from kymo.models.training.record import Candidate
from kymo.models.zoo import Epoch, architecture, takes
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.processors.recipe.tables import TrainTable
from kymo.streams.errors import TrainingError
from kymo.streams.files import lock
from kymo.streams.schema import SchemaError, kinds_of
from kymo.streams.settings import Settings

#: What is fitted beside the recipe's architecture unless the recipe says otherwise.
_BESIDE = "minirocket"
_WEEK_S = 7 * 86_400
#: ``on_stage(name, epochs)`` is told what begins, and gives what is told its epochs.
OnStage = Callable[[str, int], Callable[[Epoch], None]]


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train on, and where to."""

    paths: tuple[str, ...]  # files, folders, URLs, names of shipped data sets
    epochs: int | None = None  # instead of the recipe's
    seed: int | None = None
    out: Path | None = None  # the bundle's folder; None for the registry
    only: bool = False  # the recipe's architecture alone, whatever another would score
    search_minutes: float = 0.0  # wall time to try other parameters in; 0 for none
    promote: bool = True  # whether a bundle in the registry becomes the champion
    # ``chain`` or ``raw``: what the bundle's windows must be of, since running agents can only take over what fits
    # the sessions that they have open; empty for either
    windows_of: str = ""
    without: frozenset[str] = frozenset()  # sessions that are left out, as if they were not there
    report: bool = True  # whether the bundle's ``report/`` holds the page and its figures beside the numbers
    weights_out: Path | None = None  # files to save the weights (of the framework's own kind) and the epochs (JSON) to
    history_out: Path | None = None

    def windows(
        self, recipe: Recipe, chain: Chain, on_stage: OnStage | None = None, reading: Reading | None = None
    ) -> Dataset:
        """What to train on, behind a chain; on disk, and found there again."""
        tell, reading = on_stage("reading", 0) if on_stage else lambda _: None, reading or Reading()
        reading.on_progress = lambda recordings, windows: tell({"recordings": recordings, "windows": windows})
        dataset = build_dataset(self.paths, recipe, chain, reading=reading)
        if recipe.stateful:
            dataset.examples = link_runs(dataset, recipe.window_hop)
        if self.without:
            dataset.examples = [example for example in dataset.examples if example.session not in self.without]
            if not dataset.examples:
                raise TrainingError(f"all {len(self.without)} sessions are left out; there is nothing to learn from")
        return dataset


@dataclass(frozen=True, slots=True)
class FitPlan:
    name: str  # for people and for the record
    architecture: str  # in the zoo
    parameters: Mapping[str, Any]  # as a recipe's ``[model]`` has them
    folder: Path | None = None  # of its fits; None where nothing is to be kept

    @property
    def at_once(self) -> bool:
        """Whether it learns without epochs."""
        return bool(getattr(architecture(self.architecture), "at_once", False))


@dataclass(slots=True, eq=False)
class TrainingRun:
    """One run: what is asked for, what was read, who is told."""

    recipe: Recipe
    request: TrainRequest
    settings: dict[str, Any]  # ``[train]``, filled in
    dataset: Dataset
    on_stage: OnStage
    reading: Reading = field(default_factory=Reading)
    folder: Path | None = None
    raw: Dataset | None = None
    splits: int = 0  # how often windows are held out; a search may leave fewer of them to judge
    stopped: list[Candidate] = field(default_factory=list)  # trials cut short, and what could not be fitted

    def data(self, name: str, split: Split | None = None) -> SplitData:
        """A split's windows as an architecture takes them; without a split all windows, to learn from."""
        examples, raw = self.dataset.examples, None
        split = split or Split([*range(len(examples))], [], self.recipe.train.kind, self.settings["seed"])
        if takes(architecture(name)) == "raw":
            if self.raw is None:  # read when it is first asked for
                self.raw = self.request.windows(self.recipe, raw_chain(self.recipe.chain), self.on_stage, self.reading)
                self.reading.let_go()
            raw = self.raw.examples
        return split_data(self.recipe, examples, split, raw)

    @property
    def beside(self) -> tuple[str, ...]:
        """Architectures that are fitted beside the recipe's own."""
        compare, of_recipe = self.settings["compare"], self.recipe.model.architecture if self.recipe.model else ""
        names = () if self.request.only or compare is False else (_BESIDE,) if compare is True else compare
        return tuple(name for name in names if name != of_recipe)

    def plans(self) -> list[FitPlan]:
        """The recipe's own, then those of the architectures beside it."""
        assert self.recipe.model is not None
        own = self.plan(self.recipe.model.architecture, self.recipe.model.parameters, "own")
        return [own, *(self.plan(name, {}, f"beside-{name}") for name in self.beside)]

    def plan(self, name: str, parameters: Mapping[str, Any], stage: str) -> FitPlan:
        return FitPlan(name, name, parameters, self.folder / stage if self.folder else None)


def train_parameters(recipe: Recipe, request: TrainRequest) -> dict[str, Any]:
    """How to learn by ``[train]``, with the request's own numbers."""
    if recipe.model is None:
        raise TrainingError(f"recipe `{recipe.name}` has no [model]; add one with its architecture")
    settings = recipe.train.learning
    for name, value in (("epochs", request.epochs), ("seed", request.seed)):
        if value is not None:
            try:
                settings[name] = kinds_of(TrainTable)[name].take(value)
            except SchemaError as wrong:
                raise TrainingError(f"{name} = {value}: expected {wrong.expected}") from None
    if not isinstance(compare := settings["compare"], bool):
        for name in compare:
            architecture(name)  # an unknown one is said now, not after the first fit
        settings["compare"] = list(dict.fromkeys(compare))
    return settings


@contextlib.contextmanager
def checkpoints(fingerprint: Mapping[str, Any], home: Path | None = None) -> Iterator[Path | None]:
    """The folder of a run; None while an equal run is under way in another process."""
    base = (home or Settings.from_env().home) / "cache" / "training"
    folder = base / digest_of(fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(base, folder)
    with lock(folder / ".lock", wait=False) as file:
        if file is None:
            yield None
            return
        (folder / ".lock").touch()  # so that no other run takes it for one of last week
        yield folder
        shutil.rmtree(folder, ignore_errors=True)  # an error or a kill leaves it for the next run


def digest_of(facts: Any) -> str:
    """16 hexadecimal digits, the same for equal facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tidy(base: Path, current: Path) -> None:
    for folder in base.iterdir():
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if folder != current and time.time() - newest > _WEEK_S:
                shutil.rmtree(folder, ignore_errors=True)
