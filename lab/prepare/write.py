"""What `kymo prepare running` writes. In: a session's samples on one clock; the report's facts. Out: CSV and Parquet files,
``report.json`` and ``report.txt``.

Columns: ``t`` (s; ``t_ns``, Unix ns, where the sensors know the date), the channels in the raw files' units, ``session``,
``subject``, ``trial_id``, ``speed``, ``surface``, and ``seconds_10k``, ``score_10k`` where they are known. A missing sample
is a missing row, which the readers take as a gap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.prepare.clean import RATE_HZ, Repair
from lab.prepare.raw import Trial
from streams.readers.words import many

_STEP_NS = 10**9 // RATE_HZ
_EPOCH_NS = 10**17


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A session's samples."""

    channels: tuple[str, ...]  # 6 or 12 names
    values: NDArray[np.float64]  # ``(n, channels)``, all finite
    indexes: NDArray[np.int64]  # ``(n,)``, number of each sample at 500 Hz
    start_ns: int  # time of number 0
    results: Mapping[str, str]  # ``seconds_10k``, ``score_10k``, as far as they are known


def write_session(target: Path, trial: Trial, made: Prepared, formats: Sequence[str]) -> list[str]:
    """Write a session in each format."""
    constant = {
        "session": trial.session,
        "subject": trial.subject,
        "trial_id": trial.trial,
        "speed": trial.speed,
        "surface": trial.surface,
        **made.results,
    }
    written = []
    for kind, write in (("csv", _csv), ("parquet", _parquet)):
        if kind in formats:
            path = target / kind / trial.surface / f"{trial.session}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, made, constant)
            written.append(path.relative_to(target).as_posix())
    return written


def _csv(path: Path, made: Prepared, constant: Mapping[str, str]) -> None:
    calendar = made.start_ns > _EPOCH_NS
    head = ",".join(["t_ns" if calendar else "t", *made.channels, *constant])
    tail = "," + ",".join(text.replace(",", " ").replace('"', " ") for text in constant.values())
    row = ",".join(["%s", *["%.7g"] * len(made.channels)]) + tail.replace("%", "%%")
    times = made.start_ns + made.indexes * _STEP_NS
    shown = times.tolist() if calendar else [f"{time / 1e9:.3f}" for time in times.tolist()]
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write(head + "\n")
        out.writelines(row % (time, *cells) + "\n" for time, cells in zip(shown, made.values.tolist(), strict=True))


def _parquet(path: Path, made: Prepared, constant: Mapping[str, str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {"t_ns": made.start_ns + made.indexes * _STEP_NS}
    columns |= {name: made.values[:, i].astype(np.float32) for i, name in enumerate(made.channels)}
    columns |= {name: pa.array([text] * len(made.values)).dictionary_encode() for name, text in constant.items()}
    parquet.write_table(pa.table(columns), path, compression="zstd")


def write_report(target: Path, asked: Mapping[str, Any], totals: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write ``report.json`` and the same in words."""
    from lab.prepare import clean as prepare_clean
    from lab.prepare import clocks as prepare_clocks

    rules = {"cleaning": prepare_clean.__doc__, "clocks": prepare_clocks.__doc__}
    document = {"asked": asked, "totals": totals, **found, "rules": rules}
    (target / "report.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (target / "report.txt").write_text("\n".join(_words(asked, totals, found)) + "\n", encoding="utf-8")


def _words(asked: Mapping[str, Any], totals: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    repairs = ", ".join(f"{count} {kind}" for kind, count in totals["repairs"].items()) or "none"
    lines = [
        f"Prepared from {asked['raw']}",
        f"read: {many(totals['files'], 'file')}, {many(totals['rows'], 'row')}",
        f"written: {many(totals['sessions'], 'session')} of {many(totals['samples_written'], 'sample')}",
        f"left out: {totals['left_out']}; not chosen: {totals['not_chosen']}",
        f"samples repaired or left out: {repairs}",
    ]
    lines += ["", "Sessions"]
    for session in found["sessions"]:
        lines.append(f"{session['session']}: {session['seconds']:.1f} s from {' and '.join(session['from'])}")
        out = ", ".join(f"{n} {reason}" for reason, n in session["rows_left_out"].items() if n)
        lines += [f"  left out: {out}"] if out else []
        lines += [f"  clocks: {_clock(session['clock'])}"] if "clock" in session else []
    lines += ["", "Left out"] + [f"{item['what']}: {item['reason']}" for item in found["left_out"]]
    lines += ["", "Not chosen", *found["not_chosen"]]
    for file in found["files"]:
        lines += ["", f"{file['file']} ({file['session']}, {file['foot'] or 'one foot'}): {many(file['rows'], 'row')}"]
        lines += [f"  {note}" for note in file["notes"]]
        lines += [f"  {Repair(**repair)}" for repair in file["repairs"]]
    return lines


def _clock(clock: Mapping[str, Any]) -> str:
    unsure = clock["drift_uncertainty_ppm"]
    drift = "drift not measured" if unsure is None else f"drift {clock['drift_ppm']:+.1f} ± {unsure:.1f} ppm"
    offset = f"{1000 * clock['offset_s']:+.2f} ± {1000 * clock['offset_uncertainty_s']:.2f} ms"
    return f"right after left {offset}, {drift}, by {clock['method']}" + (
        f" ({clock['note']})" if clock["note"] else ""
    )
