"""Raw running recordings made ready. In: a folder of ``SENSOR…`` folders (:mod:`kymo.lab.prepare.raw`), which of them.
Out: ``Prepared/csv|parquet/treadmill|overground/SESSION.csv`` with both feet on one clock, and a report of every repair,
``report.json`` and the same in words, ``report.txt``.

A session is one trial of one subject at one speed on one surface. Nothing goes without a word: a row is written, or
counted under the reason why not; a file or a trial is written, or listed in ``left_out``.

Columns: ``t`` (s; ``t_ns``, Unix ns, where the sensors know the date), the channels in the raw files' units, ``session``,
``subject``, ``trial_id``, ``speed`` (empty where it is not known), ``surface``, and ``seconds_10k``, ``score_10k`` where they are
known. A missing sample is a missing row, which the readers take as a gap.

``RECIPE.toml`` beside them is the recipe as these files answer it: their channels, and the heads that they have labels for.
``steady/SESSION.png`` shows what was taken for the steady part, where the signal had to tell.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.lab.output import Progress
from kymo.lab.prepare import clean as cleaning
from kymo.lab.prepare import clocks
from kymo.lab.prepare import steady as steady_part
from kymo.lab.prepare.clean import RATE_HZ, CleanFoot, Repair, clean
from kymo.lab.prepare.clocks import align, fit_clocks
from kymo.lab.prepare.lines import to_json
from kymo.lab.prepare.raw import (
    CHANNELS,
    EPOCH_NS,
    RESULTS,
    RawFoot,
    Trial,
    first_row,
    raw_files,
    read_overview,
    read_raw,
)
from kymo.lab.prepare.steady import Steady, find_steady
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.processors.recipe.toml import format_recipe
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import canonical, interval
from kymo.streams.recording import Recording, StreamData
from kymo.streams.words import many

_STEP_NS = 10**9 // RATE_HZ


@dataclass(frozen=True, slots=True)
class Selection:
    """What to take; an empty tuple takes all."""

    # values of the columns; numbers are equal by value; surfaces are ``treadmill`` and ``overground``
    subjects: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    speeds: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    # ``both``: 12 channels, trials without both feet are left out; ``left`` or ``right``: that foot's 6; ``auto``:
    # both if any trial has two sensors
    feet: str = "auto"
    whole: bool = False  # whether all rows are kept where no column ``usabledata`` marks the steady part
    skip_bad: bool = False  # whether a file that cannot be read is left out and listed, instead of an error

    def takes(self, trial: Trial) -> bool:
        """Whether a trial is selected."""
        pairs = ((self.subjects, trial.subject), (self.trials, trial.trial), (self.speeds, trial.speed))
        named = all(not texts or value in {canonical(text) for text in texts} for texts, value in pairs)
        return named and (not self.surfaces or trial.surface in self.surfaces)


@dataclass(slots=True)
class RunningReport:
    files: list[dict[str, Any]] = field(default_factory=list)  # by file and trial: rows, repairs, notes
    sessions: list[dict[str, Any]] = field(default_factory=list)  # what was written: samples, set, clock, files
    left_out: list[dict[str, str]] = field(default_factory=list)  # what was not, with the reason
    # sessions that the choice of subjects, trials, speeds and surfaces leaves out
    not_chosen: list[str] = field(default_factory=list)
    overview: str = ""  # the table that 10 km results were taken from

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
class SessionSamples:
    channels: tuple[str, ...]  # 6 or 12 names
    values: NDArray[np.float64]  # ``(n, channels)``, all finite
    indexes: NDArray[np.int64]  # ``(n,)``, number of each sample at 500 Hz
    start_ns: int  # time of number 0
    results: Mapping[str, str]  # ``seconds_10k``, ``score_10k``, as far as they are known
    marked: bool  # whether a column ``usabledata`` said which rows these are
    facts: Mapping[str, Any]  # what else is to be said: rows left out by reason, clocks, the steady part


def prepare_running(
    raw: Path,  # folder of the ``SENSOR…`` folders, or one with a folder ``Raw`` that holds them
    out: Path,  # ``out/Prepared`` must not be there
    selection: Selection,
    formats: Sequence[str] = ("csv",),
    on_file: Progress = lambda done, of: None,
    overview: Path | None = None,  # table of 10 km results; by default one that lies beside the raw folders
) -> RunningReport:
    """Read, clean, align and write."""
    files = raw_files(raw)
    table, results = read_overview(raw, overview)
    target = out / "Prepared"
    if target.exists():
        raise SourceError("is there already; name another folder, or replace it with --force", target)
    first = {path: first_row(path) for path in files}
    order = sorted(files, key=lambda path: (first[path][0], path))
    # A trial in two files, or columns of a left and a right foot.
    two_feet = len({key for key, _ in first.values()}) < len(files) or any(named for _, named in first.values())
    if selection.feet != "auto":
        two_feet = selection.feet == "both"
    trials = _Trials(selection, two_feet, target, formats, results)
    report = trials.report
    report.overview = str(table or "")
    try:
        for number, path in enumerate(order, 1):
            trials.read(path)
            on_file(number, len(order))
        trials.finish()
        if not report.sessions:
            raise SourceError(_nothing(report), raw)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # half a folder would pass for a whole one
        raise
    _write_report(target, {"raw": str(raw), "wanted": asdict(selection)}, report)
    return report


def write_own_recipe(target: Path, recipe: Recipe, report: RunningReport) -> Recipe:
    """Write a recipe as the prepared files answer it: with their channels, without the heads that none has a label for."""
    if recipe.path is None:
        raise SourceError("the recipe has no file to be copied")
    tables = tomllib.loads(recipe.path.read_text(encoding="utf-8-sig"))
    channels = report.sessions[0]["channels"]
    for table in tables["input"]:
        foot = table["stream"].partition(".")[2]
        if foot or not set(table["channels"]) <= set(channels):
            plain = {_without_foot(name) for name in table["channels"]}
            table["channels"] = [
                name for name in channels if _without_foot(name) in plain and (not foot or name.endswith(f"_{foot}"))
            ]
    if not all(table["channels"] for table in tables["input"]):
        raise SourceError(f"recipe `{recipe.name}` takes both feet, and one was prepared; take another --recipe")
    known = {"surface"} | {name for session in report.sessions for name in session["known"]}
    tables["heads"] = [head for head in tables.get("heads", []) if head.get("column", head["name"]) in known]
    column = tables.get("labels", {}).get("column", "label")
    if column not in known and column in ("speed", *RESULTS):  # as where all runs are over ground, at no known speed
        tables["labels"] = {**tables["labels"], "column": "surface"}
        tables["heads"] = [head for head in tables["heads"] if head["name"] != "surface"]
    path = target / f"{recipe.name}.toml"
    path.write_text(format_recipe({name: table for name, table in tables.items() if table}), encoding="utf-8")
    return load_recipe(path)


def _without_foot(channel: str) -> str:
    return re.sub(r"_(left|right)$", "", channel)


def _nothing(report: RunningReport) -> str:
    if report.left_out:
        first = report.left_out[0]
        return f"nothing is left to write; {len(report.left_out)} left out, first {first['what']}: {first['reason']}"
    return f"no trial is as chosen; there are {', '.join(sorted(set(report.not_chosen))[:12])}"


class _Trials:
    """Trials as their files come: cleaned, and written as soon as all of one is there."""

    def __init__(
        self,
        selection: Selection,
        two_feet: bool,
        target: Path,
        formats: Sequence[str],
        results: Mapping[str, Mapping[str, str]],  # by subject, as the overview has them; what a file says goes before
    ) -> None:
        self._selection, self._two_feet, self._target, self._formats = selection, two_feet, target, formats
        self._results = results
        self._pending: dict[Trial, dict[str, CleanFoot]] = {}
        self.report = RunningReport()

    def _leave_out(self, name: str, reason: str) -> None:
        self.report.left_out.append({"what": name, "reason": reason})

    def read(self, path: Path) -> None:
        """Take the feet of a file that are selected."""
        name = f"{path.parent.name}/{path.name}"
        try:
            feet = read_raw(path, name)
        except SourceError as error:
            if not self._selection.skip_bad:
                raise
            self._leave_out(name, str(error))
            return
        for foot in feet:
            if self._selection.takes(foot.trial):
                self._add(foot, path)
            else:
                self.report.not_chosen.append(foot.trial.session)

    def _add(self, raw: RawFoot, path: Path) -> None:
        """Clean a foot and put it beside the other one of its trial."""
        trial, side = raw.trial, self._selection.feet
        if self._two_feet and not raw.foot:
            raise SourceError("nothing says which foot this is; add a column `foot` with left or right", path)
        if side in ("left", "right") and raw.foot not in ("", side):
            self._leave_out(f"{raw.path} ({raw.foot})", f"--feet {side}")
            return
        feet = self._pending.get(trial, {})
        if raw.foot in feet or any(trial.session == session["session"] for session in self.report.sessions):
            which = f"the {raw.foot} foot of " if raw.foot else ""
            self._leave_out(raw.path, f"{which}{trial.session} is there already")
            return
        foot = clean(raw, str(path))
        entry = {"file": raw.path, "session": trial.session, "foot": raw.foot, "rows": len(raw.rows)}
        repairs = [repair.to_json() for repair in foot.repairs]
        self.report.files.append({**entry, "notes": raw.notes, "repairs": repairs})
        self._pending[trial] = feet = feet | {raw.foot: foot}
        if len(feet) == (2 if self._two_feet else 1):
            del self._pending[trial]
            try:
                self._write(trial, feet)
            except SourceError as error:
                self._leave_out(trial.session, str(error))

    def _write(self, trial: Trial, feet: Mapping[str, CleanFoot]) -> None:
        samples = _merge(feet["left"], feet["right"]) if self._two_feet else _single(*feet.values())
        samples = replace(samples, results={**self._results.get(trial.subject, {}), **samples.results})
        if not samples.marked and not self._selection.whole:
            samples = _only_steady(self._target, trial, samples)
        known = [*(["speed"] if trial.speed else []), *samples.results]
        self.report.sessions.append(
            {
                "session": trial.session,
                **asdict(trial),
                "samples": len(samples.values),
                "channels": list(samples.channels),
                "known": known,
                "seconds": len(samples.values) / RATE_HZ,
                **samples.facts,
                "from": [foot.raw.path for foot in feet.values()],
                "files": _write_session(self._target, trial, samples, self._formats),
            }
        )

    def finish(self) -> None:
        """Leave out the trials of which the other foot did not come."""
        for trial, feet in sorted(self._pending.items()):
            side, absent = next(iter(feet)), "right" if "left" in feet else "left"
            reason = f"only the {side} foot is there, no {absent} one; --feet {side} takes that foot alone"
            self._leave_out(trial.session, reason)


def _single(foot: CleanFoot) -> SessionSamples:
    """A foot's usable samples."""
    whole, marked = np.isfinite(foot.values).all(axis=1), foot.raw.usable is not None
    rows = np.flatnonzero(whole & foot.usable)
    if not len(rows):
        raise SourceError("no usable row")
    facts = {"rows_left_out": {"not usable": int((whole & ~foot.usable).sum())}}
    return SessionSamples(CHANNELS, foot.values[rows], rows, foot.start_ns, foot.raw.results, marked, facts)


def _only_steady(target: Path, trial: Trial, samples: SessionSamples) -> SessionSamples:
    """The steady part of a session, and a picture that shows which it is."""
    steady = find_steady(samples.values[:, :3], trial.surface)
    lost = {**samples.facts["rows_left_out"], "outside the steady part": int((~steady.mask).sum())}
    _draw_steady(target / "steady" / f"{trial.session}.png", trial, samples, steady)
    facts = {**samples.facts, "rows_left_out": lost, "steady": steady.note}
    return replace(samples, values=samples.values[steady.mask], indexes=samples.indexes[steady.mask], facts=facts)


def _draw_steady(path: Path, trial: Trial, samples: SessionSamples, steady: Steady) -> None:
    """Draw the first foot's accelerations, the steady part shaded; nothing where the library for figures is not installed."""
    with contextlib.suppress(ModuleNotFoundError):
        from kymo.lab.look.plot import plot_recording

        names = samples.channels[:3]
        header = Header(trial.session, samples.start_ns, signal_format("imu", names, Fraction(RATE_HZ)))
        stream = StreamData.from_indexes(header, samples.values[:, :3].astype(np.float32), samples.indexes)
        last = len(samples.indexes) - 1
        labels = []
        for stretch in steady.stretches:
            start_ns, end_ns = (header.time_ns(int(samples.indexes[min(i, last)])) for i in stretch)
            labels.append(interval(session=trial.session, set="part", start_ns=start_ns, end_ns=end_ns, label="steady"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plot_recording(Recording(trial.session, [stream], labels))[0].png)


def _merge(left: CleanFoot, right: CleanFoot) -> SessionSamples:
    """Both feet on the left one's clock."""
    fit = fit_clocks(left, right)
    if fit is None:
        raise SourceError(
            "nothing tells how the two clocks stand to each other: no shared times, no knocks, no common gait"
        )
    length = len(left.values)
    moved = align(right.values, fit, length)
    nearest = np.rint(fit.right_times(np.arange(length) / RATE_HZ) * RATE_HZ).astype(np.int64)
    inside = (nearest >= 0) & (nearest < len(right.values))
    usable: NDArray[np.bool_] = left.usable & inside
    usable[inside] &= right.usable[nearest[inside]]
    whole, right_whole = np.isfinite(left.values).all(axis=1), np.isfinite(moved).all(axis=1)
    rows = np.flatnonzero(whole & right_whole & usable)
    if not len(rows):
        raise SourceError("no row in which both feet are usable")
    facts = {
        "clock": to_json(asdict(fit)),
        "rows_left_out": {  # of the left foot's
            "outside the right foot's recording": int((whole & ~inside).sum()),
            "not usable": int((whole & inside & ~usable).sum()),
            "missing in the right foot": int((whole & usable & ~right_whole).sum()),
        },
    }
    names = tuple(f"{channel}_{foot}" for foot in ("left", "right") for channel in CHANNELS)
    values = np.hstack([left.values, moved])[rows]
    marked = left.raw.usable is not None or right.raw.usable is not None
    results = {**right.raw.results, **left.raw.results}
    return SessionSamples(names, values, rows, left.start_ns, results, marked, facts)


def _write_session(target: Path, trial: Trial, samples: SessionSamples, formats: Sequence[str]) -> list[str]:
    constant = {
        "session": trial.session,
        "subject": trial.subject,
        "trial_id": trial.trial,
        "speed": trial.speed,  # empty where it is not known
        "surface": trial.surface,
        **samples.results,
    }
    files = []
    for kind, write in (("csv", _csv), ("parquet", _parquet)):
        if kind in formats:
            path = target / kind / trial.surface / f"{trial.session}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, samples, constant)
            files.append(path.relative_to(target).as_posix())
    return files


def _csv(path: Path, samples: SessionSamples, constant: Mapping[str, str]) -> None:
    calendar = samples.start_ns > EPOCH_NS
    head = ",".join(["t_ns" if calendar else "t", *samples.channels, *constant])
    tail = "," + ",".join(text.replace(",", " ").replace('"', " ") for text in constant.values())
    row = ",".join(["%s", *["%.7g"] * len(samples.channels)]) + tail.replace("%", "%%")
    times = samples.start_ns + samples.indexes * _STEP_NS
    stamps = times.tolist() if calendar else [f"{time / 1e9:.3f}" for time in times.tolist()]
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write(head + "\n")
        out.writelines(
            row % (stamp, *cells) + "\n" for stamp, cells in zip(stamps, samples.values.tolist(), strict=True)
        )


def _parquet(path: Path, samples: SessionSamples, constant: Mapping[str, str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {"t_ns": samples.start_ns + samples.indexes * _STEP_NS}
    columns |= {name: samples.values[:, i].astype(np.float32) for i, name in enumerate(samples.channels)}
    columns |= {name: pa.array([text] * len(samples.values)).dictionary_encode() for name, text in constant.items()}
    parquet.write_table(pa.table(columns), path, compression="zstd")


def _write_report(target: Path, request: Mapping[str, Any], report: RunningReport) -> None:
    """Write ``report.json`` and the same in words."""
    totals = report.totals()
    rules = {"cleaning": cleaning.__doc__, "clocks": clocks.__doc__, "steady": steady_part.__doc__}
    document = {"asked": request, "totals": totals, **asdict(report), "rules": rules}
    (target / "report.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (target / "report.txt").write_text("\n".join(_words(request["raw"], totals, report)) + "\n", encoding="utf-8")


def _words(raw: str, totals: Mapping[str, Any], report: RunningReport) -> list[str]:
    repairs = ", ".join(f"{count} {kind}" for kind, count in totals["repairs"].items()) or "none"
    lines = [
        f"Prepared from {raw}",
        f"read: {many(totals['files'], 'file')}, {many(totals['rows'], 'row')}",
        f"written: {many(totals['sessions'], 'session')} of {many(totals['samples_written'], 'sample')}",
        f"left out: {totals['left_out']}; not chosen: {totals['not_chosen']}",
        f"samples repaired or left out: {repairs}",
    ]
    lines += [f"10 km results: {report.overview}"] if report.overview else []
    lines += ["", "Sessions"]
    for session in report.sessions:
        lines.append(f"{session['session']}: {session['seconds']:.1f} s from {' and '.join(session['from'])}")
        reasons = ", ".join(f"{n} {reason}" for reason, n in session["rows_left_out"].items() if n)
        lines += [f"  left out: {reasons}"] if reasons else []
        lines += [f"  steady part: {session['steady']}"] if "steady" in session else []
        lines += [f"  clocks: {_clock(session['clock'])}"] if "clock" in session else []
    lines += ["", "Left out"] + [f"{item['what']}: {item['reason']}" for item in report.left_out]
    lines += ["", "Not chosen", *report.not_chosen]
    for file in report.files:
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
