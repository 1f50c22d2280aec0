"""What goes with a synthetic recording. In: a :class:`Synthesis`. Out: its labels JSON and its experiment JSON; times in Unix ns.

A label's class is its segment's level as 0 (none), 1 (low) or 2 (high), under the key :data:`KEY`. Labels lie side by side: each ends
where the next segment's first sample stands.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.synth.plan import LEVELS, NS
from lab.synth.simulate import Synthesis
from streams.errors import PlanError

KEY = "mag_distortion"
#: The recipe's names for the classes: ``[labels] key = "mag_distortion"``, ``names = {"0" = "none", …}``.
NAMES = {str(number): level for number, level in enumerate(LEVELS)}
GENERATED_BY = "kymo synth"
CLASSIFICATION_TYPE = "magnetic_distortion"


def labels_of(made: Synthesis, collection: str) -> dict[str, Any]:
    """The labels JSON: one event a segment."""
    counts = np.array(made.plan.counts)
    ends = np.cumsum(counts)
    interval = made.plan.interval_ns
    events = []
    for number, (segment, first, end) in enumerate(zip(made.plan.segments, ends - counts, ends, strict=True)):
        start_ns, end_ns = (made.plan.start_time_ns + int(index) * interval for index in (first, end))
        events.append(
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{collection}#{made.seed}.{number}")),
                "endTime": {"sec": end_ns // NS, "nsec": end_ns % NS},
                "startTime": {"sec": start_ns // NS, "nsec": start_ns % NS},
                "metadata": {KEY: str(LEVELS.index(segment.level))},
                "collection": collection,
            }
        )
    return {"events": events}


def experiment_of(made: Synthesis, folder: str, label_files: Sequence[str]) -> dict[str, Any]:
    """The experiment JSON: where recording and labels stand, and what was planned."""
    return {
        "dirname": folder,
        "labelFiles": [{"filePath": path} for path in label_files],
        "segments": [dict(segment) for segment in made.plan.planned],
        "metadata": {
            "generated_by": GENERATED_BY,
            "sample_rate": _plain(made.plan.rate_hz),
            "total_duration_s": len(made.times_ns) * made.plan.interval_ns / NS,
            "classification_type": CLASSIFICATION_TYPE,
            "distortion_levels": sorted({s.level for s in made.plan.segments}, key=LEVELS.index),
        },
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise PlanError(f"cannot be written ({error.strerror or error})", path) from None


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number
