"""A plan's recording as files. In: a plan and paths. Out: MCAP, labels JSON, experiment JSON; times in Unix ns.

A label's class is its segment's level as 0 (none), 1 (low) or 2 (high), under the key :data:`KEY`. Labels lie side by side: each ends
where the next segment's first sample stands.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kymo.lab.output import Progress, write_json
from kymo.lab.synth.mcap_file import GENERATED_BY, write_mcap
from kymo.lab.synth.plan import LEVELS, MotionPlan
from kymo.lab.synth.simulate import Synthesis, simulate
from kymo.streams.errors import PlanError
from kymo.streams.words import NS

KEY = "mag_distortion"
#: The recipe's names for the classes: ``[labels] key = "mag_distortion"``, ``names = {"0" = "none", …}``.
NAMES = {str(number): level for number, level in enumerate(LEVELS)}


def synth(
    plan: MotionPlan | Mapping[str, Any] | str | Path,
    out: str | Path,
    labels: str | Path | None = None,
    *,
    seed: int = 0,
    experiment: str | Path | None = None,
    progress: Progress | None = None,
) -> Synthesis:
    """Carry out a motion plan and write its synthetic recording.

    Parameters
    ----------
    plan : MotionPlan, dict, str or Path
        A plan, its JSON, or the path of its file.
    out : str or Path
        ``X.mcap``; ``X.labels.json`` beside it is found by whatever reads labels.
    labels : str or Path, optional
        Where to write the labels.
    seed : int
        Of all random numbers; the same plan and seed give the same bytes.
    experiment : str or Path, optional
        Where to write the experiment JSON.
    progress : callable, optional
        Is given the number of samples written and of all.

    Returns
    -------
    Synthesis
        What was written, as arrays.

    Raises
    ------
    PlanError
        If the plan cannot be carried out (the text names the field), or a file cannot be written.
    """
    recording = simulate(plan, seed)
    write_mcap(recording, out, progress)
    if labels is not None:
        write_json(Path(labels), labels_of(recording, Path(labels).name), PlanError)
    if experiment is not None:
        home = Path(experiment).absolute().parent
        listed = [] if labels is None else [_from(home, labels)]
        document = experiment_of(recording, Path(out).stem, _from(home, Path(out).parent), listed)
        write_json(Path(experiment), document, PlanError)
    return recording


def labels_of(recording: Synthesis, collection: str) -> dict[str, Any]:
    """The labels JSON: one event a segment."""
    plan = recording.plan
    events = [
        {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{collection}#{recording.seed}.{number}")),
            "endTime": {"sec": end_ns // NS, "nsec": end_ns % NS},
            "startTime": {"sec": start_ns // NS, "nsec": start_ns % NS},
            "metadata": {KEY: str(LEVELS.index(segment.level))},
            "collection": collection,
        }
        for number, (segment, (start_ns, end_ns)) in enumerate(zip(plan.segments, plan.spans, strict=True))
    ]
    return {"events": events}


def experiment_of(recording: Synthesis, name: str, folder: str, label_files: Sequence[str]) -> dict[str, Any]:
    """The experiment JSON: where recording and labels stand, and what was planned."""
    rate = recording.plan.sample_rate
    return {
        "dirname": folder,
        "labelFiles": [{"filePath": path} for path in label_files],
        "description": f"Synthetic dataset: {name}",
        "segments": [dict(segment) for segment in recording.plan.planned],
        "metadata": {
            "generated_by": GENERATED_BY,
            "sample_rate": int(rate) if rate.is_integer() else rate,
            "total_duration_s": len(recording.times_ns) * recording.plan.interval_ns / NS,
            "classification_type": KEY,
            "distortion_levels": sorted({s.level for s in recording.plan.segments}, key=LEVELS.index),
        },
    }


def _from(home: Path, path: str | Path) -> str:
    return Path(os.path.relpath(Path(path).absolute(), home)).as_posix()
