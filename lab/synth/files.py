"""A plan's recording as files. In: a plan and paths. Out: MCAP, labels JSON, experiment JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.synth.labels import experiment_of, labels_of, write_json
from lab.synth.messages import Progress, write_mcap
from lab.synth.plan import Plan
from lab.synth.simulate import Synthesis, simulate


def synth(
    plan: Plan | Mapping[str, Any] | str | Path,
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
    plan : Plan, dict, str or Path
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
    made = simulate(plan, seed)
    write_mcap(made, out, progress)
    if labels is not None:
        write_json(Path(labels), labels_of(made, Path(labels).name))
    if experiment is not None:
        home = Path(experiment).absolute().parent
        listed = [] if labels is None else [_from(home, labels)]
        write_json(Path(experiment), experiment_of(made, _from(home, Path(out).parent), listed))
    return made


def _from(home: Path, path: str | Path) -> str:
    return Path(os.path.relpath(Path(path).absolute(), home)).as_posix()
