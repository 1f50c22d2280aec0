"""The end of a training run. In: the models fitted, the one chosen. Out: its record, its report, the bundle."""

from __future__ import annotations

import json
from pathlib import Path

from models.bundle import Bundle, load_bundle
from models.data.examples import notes_on
from models.pooling import Pool
from models.registry import write_bundle
from models.registry.manifest import MODEL
from models.training.candidate import Fitted
from models.training.export import Exported
from models.training.learned import LEARNED, learned_from
from models.training.lineage import lineage_of, manifest_of, revision, split_of
from models.training.record import RunRecord
from models.training.request import Run
from streams.errors import TrainingError

_MOST_NOTES = 10  # of the readers


def record_of(
    run: Run, found: list[Fitted], chosen: Fitted, choice: str, final: Fitted, pool: Pool | None
) -> RunRecord:
    """All facts of a run but its time and memory."""
    recipe = run.recipe
    candidates = [one.candidate() for one in found]
    candidates[found.index(chosen)].chosen = True
    lineage = lineage_of(recipe, run.request, run.dataset, chosen)
    return RunRecord(
        recipe=recipe.name,
        recipe_text=recipe.path.read_text(encoding="utf-8-sig") if recipe.path else "",
        architecture=chosen.plan.architecture,
        parameters=chosen.model.parameters,
        training=lineage["train"],
        history=chosen.history,
        split=split_of(chosen),
        scores=chosen.scores,
        held_out=chosen.held_out(),
        candidates=[*candidates, *run.stopped],
        choice=choice,
        lineage={**lineage, "seed": run.settings["seed"], "revision": revision()},
        pooling=pool.to_json() if pool else {},
        notes=_notes(run, chosen, final),
    )


def write_run(
    run: Run, final: Fitted, chosen: Fitted, exported: Exported, pool: Pool | None, record: RunRecord
) -> Bundle:
    """Write the bundle of `final`, with the scores of `chosen`, its report and what else is to be saved; read it back."""
    from models.reports.report import RECORD, bundle_report

    lineage = {key: value for key, value in record.lineage.items() if key not in ("seed", "revision")}
    lineage[LEARNED] = learned_from(run.dataset)
    facts = {"history": chosen.history, "validation": chosen.scores, "parity": exported.parity}
    said = json.dumps({**facts, "notes": dict(run.dataset.notes)}, indent=1) + "\n"
    if run.request.report:
        attached = bundle_report(record, chosen.window)
    else:
        attached = {f"report/{RECORD}": record.to_json().encode("utf-8", "backslashreplace")}
    path = write_bundle(
        run.request.out,
        manifest_of(run.recipe, final, chosen, exported, pool, lineage),
        {MODEL: exported.model, "report/report.json": said.encode()},
        attached=attached,
        promote=run.request.promote,
    )
    if run.request.history_out:
        _save(run.request.history_out, (json.dumps(chosen.history, indent=1) + "\n").encode())
    if run.request.weights_out:
        own = getattr(final.model, "weights", None)
        _save(run.request.weights_out, own() if callable(own) else exported.model)
    return load_bundle(path)


def _save(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _notes(run: Run, chosen: Fitted, final: Fitted) -> list[str]:
    notes = [f"{text} ({count} times)" if count > 1 else text for text, count in run.dataset.notes.items()]
    if len(notes) > _MOST_NOTES:
        left = len(notes) - _MOST_NOTES
        notes = [*notes[:_MOST_NOTES], f"and {left} more notes on the data; `kymo dataset show` gives all of them"]
    if not chosen.scores:
        notes.append(
            "nothing was held out, so there are no scores: no recording can be spared, or [train] validation = 0"
        )
    said = [text for one in (chosen, final) for text in getattr(one.model, "notes", [])]
    return [*notes, *notes_on(chosen.prepared.heads), *dict.fromkeys(said)]
