"""Raw running recordings made ready. In: a folder of ``SENSOR…`` folders (:mod:`lab.prepare.raw`), what is wanted.
Out: ``Prepared/csv|parquet/treadmill|overground/SESSION.csv`` with both feet on one clock, and a report of every repair,
``report.json`` and the same in words, ``report.txt``.

A session is one trial of one subject at one speed on one surface. Nothing goes without a word: a row is written, or
counted under the reason why not; a file or a trial is written, or listed in ``left_out``.

Columns: ``t`` (s; ``t_ns``, Unix ns, where the sensors know the date), the channels in the raw files' units, ``session``,
``subject``, ``trial_id``, ``speed``, ``surface``, and ``seconds_10k``, ``score_10k`` where they are known. A missing sample
is a missing row, which the readers take as a gap.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.prepare import clean as cleaning
from lab.prepare import clocks
from lab.prepare.clean import RATE_HZ, CleanFoot, Repair, clean
from lab.prepare.clocks import align, fit_clocks
from lab.prepare.raw import CHANNELS, EPOCH_NS, RawFoot, Trial, raw_files, read_raw
from streams.errors import SourceError
from streams.labels.labels import canonical
from streams.readers.words import many

FEET = ("auto", "both", "left", "right")
FORMATS = ("csv", "parquet", "tfrecords")
_STEP_NS = 10**9 // RATE_HZ


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to take; an empty tuple takes all."""

    # values of the columns; numbers are equal by value; surfaces are ``treadmill`` and ``overground``
    subjects: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    speeds: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    # ``both``: 12 channels, trials without both feet are left out; ``left`` or ``right``: that foot's 6; ``auto``:
    # both if any trial has two sensors
    feet: str = "auto"
    skip_bad: bool = False  # whether a file that cannot be read is left out and listed, instead of an error

    def takes(self, trial: Trial) -> bool:
        """Whether a trial is wanted."""
        pairs = ((self.subjects, trial.subject), (self.trials, trial.trial), (self.speeds, trial.speed))
        chosen = all(not some or found in {canonical(text) for text in some} for some, found in pairs)
        return chosen and (not self.surfaces or trial.surface in self.surfaces)


@dataclass(slots=True)
class Report:
    """What was done."""

    files: list[dict[str, Any]] = field(default_factory=list)  # by file and trial: rows, repairs, notes
    sessions: list[dict[str, Any]] = field(default_factory=list)  # what was written: samples, set, clock, files
    left_out: list[dict[str, str]] = field(default_factory=list)  # what was not, with the reason
    # sessions that the choice of subjects, trials, speeds and surfaces leaves out
    not_chosen: list[str] = field(default_factory=list)

    def totals(self) -> dict[str, Any]:
        """Counts over all files and sessions."""
        repairs = [repair for file in self.files for repair in file["repairs"]]
        kinds = sorted({repair["kind"] for repair in repairs})
        return {
            "files": len({file["file"] for file in self.files}),
            "rows": sum(file["rows"] for file in self.files),
            "sessions": len(self.sessions),
            "samples_written": sum(session["samples"] for session in self.sessions),
            "left_out": len(self.left_out),
            "not_chosen": len(self.not_chosen),
            "repairs": {kind: sum(r["samples"] for r in repairs if r["kind"] == kind) for kind in kinds},
        }


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A session's samples."""

    channels: tuple[str, ...]  # 6 or 12 names
    values: NDArray[np.float64]  # ``(n, channels)``, all finite
    indexes: NDArray[np.int64]  # ``(n,)``, number of each sample at 500 Hz
    start_ns: int  # time of number 0
    results: Mapping[str, str]  # ``seconds_10k``, ``score_10k``, as far as they are known


def prepare_running(
    raw: Path,  # folder of the ``SENSOR…`` folders, or one with a folder ``Raw`` that holds them
    out: Path,  # ``out/Prepared`` must not be there
    wanted: Wanted,
    formats: Sequence[str] = ("csv",),
    on_file: Callable[[int, int], None] | None = None,  # told how many files are done, and of how many
) -> Report:
    """Read, clean, align and write."""
    files = raw_files(raw)
    target = out / "Prepared"
    if target.exists():
        raise SourceError("is there already; name another folder, or replace it with --force", target)
    order, both = _order(files)
    both = both if wanted.feet == "auto" else wanted.feet == "both"
    report = Report()
    pending: dict[Trial, dict[str, CleanFoot]] = {}
    try:
        for number, path in enumerate(order, 1):
            for foot in _read(path, wanted, report):
                _take(foot, path, pending, both, wanted, report)
                _write_ready(foot.trial, pending, both, target, formats, report)
            if on_file:
                on_file(number, len(order))
        for trial, feet in sorted(pending.items()):
            there, absent = next(iter(feet)), "right" if "left" in feet else "left"
            reason = f"only the {there} foot is there, no {absent} one; --feet {there} takes that foot alone"
            report.left_out.append({"what": trial.session, "reason": reason})
        if not report.sessions:
            raise SourceError(_nothing(report), raw)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # half a folder would pass for a whole one
        raise
    _write_report(target, {"raw": str(raw), "wanted": asdict(wanted)}, report.totals(), asdict(report))
    return report


def _nothing(report: Report) -> str:
    if report.left_out:
        first = report.left_out[0]
        return f"nothing is left to write; {len(report.left_out)} left out, first {first['what']}: {first['reason']}"
    return f"no trial is as chosen; there are {', '.join(sorted(set(report.not_chosen))[:12])}"


def _order(files: Sequence[Path]) -> tuple[list[Path], bool]:
    """Files so that the two feet of a trial come together, and whether there are two feet at all.

    It looks at the first row alone; what a file really holds is found when it is read.
    """
    keys: dict[Path, tuple[str, ...]] = {}
    both = False
    for path in files:
        names, cells = list[str](), list[str]()
        with contextlib.suppress(OSError, csv.Error), path.open(encoding="utf-8-sig", errors="replace") as text:
            head = text.readline()
            rows = csv.reader((head, text.readline()), delimiter=max(",;\t", key=head.count))
            names, cells = (next(rows, []) for _ in range(2))
        first = {name.strip().lower(): canonical(cell) for name, cell in zip(names, cells, strict=False)}
        words = ("subject_id", "trial_id", "speed", "tread or overground", "tread_or_overground", "surface")
        keys[path] = tuple(first.get(word, "") for word in words)
        both = both or ("ax" not in first and any(name.startswith("ax") for name in first))
    return sorted(files, key=lambda path: (keys[path], path)), both or len(set(keys.values())) < len(files)


def _read(path: Path, wanted: Wanted, report: Report) -> Iterator[RawFoot]:
    name = f"{path.parent.name}/{path.name}"
    try:
        found = read_raw(path, name)
    except SourceError as error:
        if not wanted.skip_bad:
            raise
        report.left_out.append({"what": name, "reason": str(error)})
        return
    for foot in found:
        if wanted.takes(foot.trial):
            yield foot
        else:
            report.not_chosen.append(foot.trial.session)


def _take(
    foot: RawFoot, path: Path, pending: dict[Trial, dict[str, CleanFoot]], both: bool, wanted: Wanted, report: Report
) -> None:
    """Clean a foot and put it beside the other one of its trial."""
    if both and not foot.foot:
        raise SourceError("nothing says which foot this is; add a column `foot` with left or right", path)
    if wanted.feet in ("left", "right") and foot.foot not in ("", wanted.feet):
        report.left_out.append({"what": f"{foot.path} ({foot.foot})", "reason": f"--feet {wanted.feet}"})
        return
    done = {session["session"] for session in report.sessions}
    if foot.trial.session in done or foot.foot in pending.get(foot.trial, {}):
        which = f"the {foot.foot} foot of " if foot.foot else ""
        report.left_out.append({"what": foot.path, "reason": f"{which}{foot.trial.session} is there already"})
        return
    cleaned = clean(foot, str(path))
    entry = {"file": foot.path, "session": foot.trial.session, "foot": foot.foot, "rows": len(foot.rows)}
    repairs = [repair.to_json() for repair in cleaned.repairs]
    report.files.append({**entry, "notes": foot.notes, "repairs": repairs})
    pending.setdefault(foot.trial, {})[foot.foot] = cleaned


def _write_ready(
    trial: Trial,
    pending: dict[Trial, dict[str, CleanFoot]],
    both: bool,
    target: Path,
    formats: Sequence[str],
    report: Report,
) -> None:
    """Write a trial of which all is there."""
    feet = pending.get(trial, {})
    if len(feet) < (2 if both else 1):
        return
    del pending[trial]
    if both:
        made, facts, reason = _merge(feet["left"], feet["right"])
    else:
        made, facts, reason = _single(next(iter(feet.values())))
    if made is None:
        report.left_out.append({"what": trial.session, "reason": reason})
        return
    written = _write_session(target, trial, made, formats)
    report.sessions.append(
        {
            "session": trial.session,
            **asdict(trial),
            "samples": len(made.values),
            "seconds": len(made.values) / RATE_HZ,
            **facts,
            "from": [foot.raw.path for foot in feet.values()],
            "files": written,
        }
    )


def _single(foot: CleanFoot) -> tuple[Prepared | None, dict[str, Any], str]:
    there = np.isfinite(foot.values).all(axis=1)
    kept = there & foot.usable
    facts = {"rows_left_out": {"not usable": int((there & ~foot.usable).sum())}}
    if not kept.any():
        return None, facts, "no usable row"
    return Prepared(CHANNELS, foot.values[kept], np.flatnonzero(kept), foot.start_ns, foot.raw.results), facts, ""


def _merge(left: CleanFoot, right: CleanFoot) -> tuple[Prepared | None, dict[str, Any], str]:
    """Both feet on the left one's clock."""
    fit = fit_clocks(left, right)
    if fit is None:
        return (
            None,
            {},
            "nothing tells how the two clocks stand to each other: no shared times, no knocks, no common gait",
        )
    length = len(left.values)
    moved = align(right.values, fit, length)
    nearest = np.rint(fit.right_times(np.arange(length) / RATE_HZ) * RATE_HZ).astype(np.int64)
    inside = (nearest >= 0) & (nearest < len(right.values))
    usable: NDArray[np.bool_] = left.usable & inside
    usable[inside] &= right.usable[nearest[inside]]
    here, other = np.isfinite(left.values).all(axis=1), np.isfinite(moved).all(axis=1)
    kept = here & other & usable
    facts = {
        "clock": fit.to_json(),
        "rows_left_out": {  # of the left foot's
            "outside the right foot's recording": int((here & ~inside).sum()),
            "not usable": int((here & inside & ~usable).sum()),
            "missing in the right foot": int((here & usable & ~other).sum()),
        },
    }
    if not kept.any():
        return None, facts, "no row in which both feet are usable"
    names = tuple(f"{channel}_{foot}" for foot in ("left", "right") for channel in CHANNELS)
    values = np.hstack([left.values, moved])[kept]
    return Prepared(names, values, np.flatnonzero(kept), left.start_ns, left.raw.results), facts, ""


def _write_session(target: Path, trial: Trial, made: Prepared, formats: Sequence[str]) -> list[str]:
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
    calendar = made.start_ns > EPOCH_NS
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


def _write_report(target: Path, asked: Mapping[str, Any], totals: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write ``report.json`` and the same in words."""
    rules = {"cleaning": cleaning.__doc__, "clocks": clocks.__doc__}
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
