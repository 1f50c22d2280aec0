"""The trainer. In: a recipe and labelled recordings. Out: a bundle, its scores, and the record of the run.

Windows come from the very chain that runs live; steps that learn, learn from the training windows alone. Beside the
recipe's model MiniRocket is fitted on the raw windows of the same split, and the better is bundled: so one sees when a
network is not worth it. Scores are of recordings held out, once or each in its turn, that had no say in any choice
(:mod:`kymo.models.training.candidates`); the bundle's model is then learned from all of them (`refit`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kymo.models.bundle import Bundle, load_bundle
from kymo.models.data.cache import Reading
from kymo.models.data.examples import Dataset, notes_on, settle_bins
from kymo.models.data.samples import is_stateful, split_chain
from kymo.models.data.splits import group_of, leak_free, notes_on_split
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.reports import html as h
from kymo.models.reports.report import RECORD, bundle_report
from kymo.models.scores import BRIEF, SHORT, Scores
from kymo.models.training.candidates import (
    Contender,
    FittedModel,
    choose,
    contend,
    fit,
    fit_candidates,
    parts_of,
    peak_mb,
    pool_of,
)
from kymo.models.training.export import INPUT, OUTPUT, Exported, export_model, export_stateful, with_metadata
from kymo.models.training.record import LEARNED, RunRecord, cross_validation, learned_from, revision, versions
from kymo.models.training.run import OnStage, TrainingRun, TrainRequest, checkpoints, digest_of, train_parameters
from kymo.models.zoo import Epoch, architecture, takes
from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import TrainingError

_MOST_NOTES = 10  # of the readers
#: How files with the weights of a framework end.
_WEIGHTS = {"keras": "weights.h5", "tensorflow": "weights.h5", "torch": "pt"}


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    bundle: Bundle  # written and read back
    # of the validation windows; empty where there are none. See :mod:`kymo.models.scores`
    scores: Scores
    notes: list[str] = field(default_factory=list)  # what the user should know
    # all facts of the run; also ``report/run.json`` in the bundle
    record: RunRecord = field(default_factory=lambda: RunRecord(""))

    @property
    def report(self) -> Path:
        return self.bundle.path / "report" / "report.html"

    def _repr_html_(self) -> str:
        scores = self.scores._repr_html_() if self.scores else h.paragraph("nothing was held out")
        return h.paragraph(f"{self.bundle.id}, report: {self.report}") + scores + h.listed(self.notes)


def train(
    recipe: Recipe,
    request: TrainRequest,
    on_epoch: Callable[[Epoch], None] = lambda _: None,  # told the numbers of each epoch of every fit
    on_stage: OnStage | None = None,  # told what begins; gives what is told its epochs, instead of `on_epoch`
) -> Trained:
    """Train a recipe's model and write its bundle.

    Killed and started again with the same recipe, request and data, it goes on behind the last whole epoch and gives the
    same bundle; `--search` begins anew.
    """
    started = time.monotonic()
    settings = train_parameters(recipe, request)
    reading = Reading()
    dataset = request.windows(recipe, split_chain(recipe.chain)[0], on_stage, reading)
    recipe = settle_bins(recipe, dataset)
    on_stage = on_stage or (lambda name, _: on_epoch if name != "reading" else lambda _: None)
    run = TrainingRun(recipe, request, settings, dataset, on_stage, reading)
    if all(takes(architecture(plan.architecture)) != "raw" for plan in run.plans()):
        reading.let_go()
    with checkpoints(fingerprint(run)) as run.folder:
        contenders = fit_candidates(run)
        winner, choice = _choose(contenders, request.windows_of)
        final = _refit(run, winner)
        windows = final.training.windows
        if is_stateful(final.plan.parameters):
            exported = export_stateful(final.model, windows)
        else:
            exported = export_model(final.model, windows.shape[1:], windows)
        record = _record_of(run, contenders, winner, choice, final)
        if winner.parts and winner.data.split.kind == "window":
            plain = leak_free(dataset.examples, winner.parts[0].part.split, settings["validation"])
            plan = run.plan(winner.plan.architecture, winner.plan.parameters, "leak_free")
            scores = contend(run, plan, *parts_of(run, [plain])).scores
            record.split["leak_free"] = {"kind": plain.kind, "scores": scores}
        record.seconds, record.peak_mb = time.monotonic() - started, peak_mb()
        bundle = _write_run(run, winner, final, exported, record)
    return Trained(bundle, Scores(record.scores), record.notes, record)


def fingerprint(run: TrainingRun) -> dict[str, Any]:
    """All that decides what comes of a run."""
    recipe, request = run.recipe, run.request
    assert recipe.model is not None
    model = (recipe.model.architecture, dict(recipe.model.parameters))
    tables = (recipe.labels, recipe.heads, recipe.train, recipe.chain.to_json(), recipe.model.pool)
    options = (request.only, request.search_minutes, sorted(request.without))
    return {"recipe": recipe.name, "model": model, "tables": tables, "asked": options} | {
        "settings": run.settings,
        "inputs": run.dataset.inputs,
        "windows": _digest(run.dataset),
        "revision": revision(),
        # Another version's optimiser may keep other things, and its steps give other numbers.
        "packages": versions([package for name in (model[0], *run.beside) for package in architecture(name).packages]),
    }


def _digest(dataset: Dataset) -> str:
    """Digest what decides on which side a window stands, and what is learned of it; its samples are told by the inputs."""
    digest = hashlib.sha256()
    for example in (*dataset.examples, *dataset.unlabelled):
        known = (sorted(example.metadata.items()), sorted(example.targets.items()))
        facts = (example.session, example.subject, example.window.start_ns, example.label, known)
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _choose(contenders: list[Contender], windows_of: str) -> tuple[Contender, str]:
    winner = choose(contenders, windows_of)
    name, others = winner.plan.name, [other for other in contenders if other.plan is not winner.plan]
    if not winner.parts:
        return winner, f"{name}: nothing was held out to compare by"
    if not others:
        return winner, f"bundled {name}"
    folds = cross_validation({"kind": winner.data.split.kind, "folds": winner.folds})
    where = f"over {folds}" if folds else "of windows kept apart for the choice"
    mean = "the mean of accuracy, macro F1 and windows right" if "accuracy" in winner.scores else "the mean R2"
    losers = ", ".join(f"{other.plan.name} {other.rank():.3f}" for other in others)
    return winner, f"bundled {name}: {winner.rank():.3f}, {mean} {where}; {losers}"


def _refit(run: TrainingRun, winner: Contender) -> FittedModel:
    """The model that won, learned from all windows."""
    if winner.parts and (fitted := winner.parts[0].learned.fitted):
        return fitted
    plan, epochs = winner.plan, winner.epochs
    # Where the run was killed, a search may have chosen another one by now: each has a folder of its own.
    digest = digest_of([plan.architecture, dict(plan.parameters), {**run.settings, "epochs": epochs}])
    plan = replace(plan, folder=run.folder / f"refit-{digest}" if run.folder else None)
    on_epoch = run.on_stage(f"{plan.name}, all windows", epochs)
    return fit(run, run.data(plan.architecture), plan, epochs, on_epoch)


def _record_of(
    run: TrainingRun, contenders: list[Contender], winner: Contender, choice: str, final: FittedModel
) -> RunRecord:
    """All facts of a run but its time and memory."""
    recipe = run.recipe
    candidates = [contender.candidate() for contender in contenders]
    chosen = next(candidate for candidate in candidates if candidate.name == winner.plan.name)
    chosen.chosen, chosen.parameters = True, final.model.parameters
    if not winner.parts:
        chosen.history, chosen.seconds, chosen.peak_mb = final.history, final.seconds, final.peak_mb
    pool = pool_of(recipe, run.dataset.examples, run.dataset.labels)
    if run.splits == 1:  # as it judged
        pool = winner.parts[0].part.pool
    lineage = _lineage_of(run, winner)
    return RunRecord(
        recipe=recipe.name,
        recipe_text=recipe.path.read_text(encoding="utf-8-sig") if recipe.path else "",
        architecture=winner.plan.architecture,
        parameters=final.model.parameters,
        training=lineage["train"],
        history=chosen.history,
        split=_split_of(winner),
        scores=winner.scores,
        held_out=winner.held_out,
        candidates=[*candidates, *run.stopped],
        choice=choice,
        lineage={**lineage, "seed": run.settings["seed"], "revision": revision()},
        pooling=pool.to_json() if pool else {},
        notes=_notes(run, winner, final),
    )


def _split_of(winner: Contender) -> dict[str, Any]:
    split, facts = winner.data.split, dict[str, Any]()
    for name, numbers in (("training", split.training), ("validation", split.validation)):
        labels = dict(Counter(winner.data.examples[i].label for i in numbers))
        facts[name] = {"windows": len(numbers), "groups": list(getattr(split, f"{name}_groups")), "labels": labels}
    folds = {"folds": winner.folds} if winner.folds else {}
    return {"kind": split.kind, "seed": split.seed, **folds, **facts}


def _write_run(
    run: TrainingRun, winner: Contender, final: FittedModel, exported: Exported, record: RunRecord
) -> Bundle:
    """Write the bundle of `final`, with the scores of the choice, its report and what else is to be saved; read it back."""
    parity = {} if exported.parity is None else {"parity": exported.parity}
    facts = {"history": record.history, "validation": record.scores, **parity, "notes": dict(run.dataset.notes)}
    facts_text = json.dumps(facts, indent=1) + "\n"
    if run.request.report:
        attached = bundle_report(record, winner.window)
    else:
        attached = {f"report/{RECORD}": record.to_json().encode("utf-8", "backslashreplace")}
    manifest = _manifest_of(run, winner.temperatures, final, exported, record)
    path = write_bundle(
        run.request.out,
        manifest,
        {MODEL: with_metadata(exported.model, manifest, final.data.format), "report/report.json": facts_text.encode()},
        attached=attached,
        promote=run.request.promote and not unfit(record.scores),
    )
    weights_out, history_out = _places(run, final)
    if history_out:
        _save(history_out, (json.dumps(record.history, indent=1) + "\n").encode())
    if weights_out:
        _save(weights_out, _weights_of(final.model, weights_out.name) or exported.model)
    return load_bundle(path)


def _weights_of(model: Any, name: str) -> bytes:
    """The weights as a file of this name holds them; nothing where a model has none but its ONNX."""
    if not name.endswith(".tflite"):
        return bytes(model.weights()) if hasattr(model, "weights") else b""
    if not hasattr(model, "tflite"):
        raise TrainingError(f'{name}: only networks of Keras become TFLite, such as architecture = "recurrent"')
    return bytes(model.tflite(name.endswith(".int8.tflite")))


def _manifest_of(
    run: TrainingRun, temperatures: Sequence[float], final: FittedModel, exported: Exported, record: RunRecord
) -> dict[str, Any]:
    """A bundle's manifest: of the model `final`, with the scores of those that learned from a part of the windows."""
    scores, borders = record.scores, run.recipe.labels.bins
    lineage = {key: value for key, value in record.lineage.items() if key not in ("seed", "revision")}
    model: dict[str, Any] = {
        "input": INPUT,
        "output": OUTPUT,
        "shape": list(exported.shape),
        "dtype": "float32",
        "layout": final.model.layout,
        **({"state": exported.state} if exported.state else {}),
        **({"takes": final.data.takes} if final.data.takes != "chain" else {}),
    }
    manifest: dict[str, Any] = {
        "recipe": run.recipe.name,
        "architecture": {"name": final.plan.architecture, "parameters": final.model.parameters},
        "model": model,
        "labels": list(final.data.labels),
        "temperature": temperatures[0],
        "batch": exported.batch,
        "chain": final.data.chain.to_json(),
        "scores": {key: scores[key] for key in BRIEF if key in scores},
        "lineage": {**lineage, LEARNED: learned_from(run.dataset)},
        **({"bins": list(borders)} if isinstance(borders, tuple) else {}),
    }
    if heads := final.data.heads:
        manifest["heads"] = [
            {"name": head.name, "labels": list(head.labels), "temperature": temperature}
            for head, temperature in zip(heads, temperatures[1:], strict=True)
        ]
        if scores:
            of_heads = scores["heads"].items()
            manifest["scores"]["heads"] = {name: {k: s[k] for k in SHORT if k in s} for name, s in of_heads}
    beside = {"pool": record.pooling, "lengths": run.dataset.lengths}
    return manifest | {name: facts for name, facts in beside.items() if facts}


def _lineage_of(run: TrainingRun, winner: Contender) -> dict[str, Any]:
    """What a bundle's model was made of; the same for equal runs."""
    recipe, request, settings, data = run.recipe, run.request, run.settings, winner.data
    packages = architecture(winner.plan.architecture).packages
    folds = {"folds": len(winner.folds)} if winner.folds else {}
    return {
        "command": _command(recipe, request, settings["seed"]),
        "chain": recipe.chain.digest(learned=False),
        "train": {**settings, "split": recipe.train.kind, "balance": recipe.train.balance, **folds},
        "inputs": [{"path": path, **facts} for path, facts in run.dataset.inputs.items()],
        **({"without": sorted(request.without)} if request.without else {}),
        "windows": {"training": len(data.split.training), "validation": len(data.split.validation)},
        "validation_groups": sorted({group_of(example, data.split.kind) for example in data.validation}),
        "packages": versions(packages),
        "python": platform.python_version(),
    }


def _command(recipe: Recipe, request: TrainRequest, seed: int) -> str:
    name = str(recipe.path.with_suffix("").name) if recipe.path else recipe.name
    data = "".join(f" --data {path}" for path in request.paths)
    epochs = f" --epochs {request.epochs}" if request.epochs is not None else ""
    only = " --only" if request.only else ""
    search = f" --search {request.search_minutes:g}" if request.search_minutes else ""
    return f"kymo train {name}{data}{epochs} --seed {seed}{only}{search}"


def _places(run: TrainingRun, final: FittedModel) -> tuple[Path | None, Path | None]:
    """Where weights and history go: as the request says, else into the folder that ``[train] results`` names."""
    weights, history, folder = run.request.weights_out, run.request.history_out, run.settings["results"]
    if folder:
        own = "npz" if hasattr(final.model, "weights") else "onnx"
        kind = next((_WEIGHTS[name] for name in final.model.packages if name in _WEIGHTS), own)
        weights = weights or Path(folder) / "model_weights" / f"{run.recipe.name}.{kind}"
        history = history or Path(folder) / "model_history" / f"{run.recipe.name}.json"
    return weights, history


def unfit(scores: Mapping[str, Any]) -> str:
    """Why a model is promoted by nobody but a person; empty where nothing was held out, or it is better than guessing."""
    heads = [head for head in scores.get("heads", {}).values() if head.get("n")] if "accuracy" not in scores else []
    if heads and all("r2" in head and head["r2"] is not None and head["r2"] <= 0 for head in heads):
        return "on what was held out no number is told better than by always saying their mean (R2 is 0 or less)"
    if scores.get("beats_guessing") is not False:
        return ""
    common = scores["commonest"]
    return (
        f"on what was held out it is no better than guessing by more than chance: right in {scores['accuracy']:.1%} of recordings, "
        f"always saying {common['label']} in {common['accuracy']:.1%}"
    )


def _save(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _notes(run: TrainingRun, winner: Contender, final: FittedModel) -> list[str]:
    notes = run.dataset.note_lines()
    if len(notes) > _MOST_NOTES:
        more = len(notes) - _MOST_NOTES
        notes = [*notes[:_MOST_NOTES], f"and {more} more notes on the data; `kymo dataset show` gives all of them"]
    if not winner.parts:
        notes.append(
            "nothing was held out, so there are no scores: no recording can be spared, or [train] validation = 0"
        )
    notes += notes_on_split(run.dataset.examples, run.recipe.train)
    return [*notes, *notes_on(final.data.heads), *dict.fromkeys(getattr(final.model, "notes", []))]


__all__ = ["TrainRequest", "Trained", "fingerprint", "train"]
