"""Exports of wristbands, spreadsheets and eye trackers, made up after public documentation: imitations, none is a real one."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openpyxl

START = 1_700_000_000
RATES = {"EDA": 4, "BVP": 64, "TEMP": 4, "HR": 1, "ACC": 32}


def e4_files(seconds: float = 20, start: float = START, **texts: str) -> dict[str, str]:
    """Files of an export of Empatica's E4 by name; `texts` takes others' places."""
    t = {name: np.arange(round(seconds * rate)) / rate for name, rate in RATES.items()}
    columns: dict[str, Sequence[str]] = {
        "EDA": [f"{2 + 0.1 * np.sin(x):.6f}" for x in t["EDA"]],
        "BVP": [f"{40 * np.sin(7 * x):.2f}" for x in t["BVP"]],
        "TEMP": [f"{33 + 0.01 * x:.2f}" for x in t["TEMP"]],
        "HR": [f"{70 + 5 * np.sin(x / 9):.2f}" for x in t["HR"]],
        "ACC": [f"{round(10 * np.sin(x))},{round(10 * np.cos(x))},63" for x in t["ACC"]],
    }
    files = {}
    for name, rows in columns.items():
        width = 3 if name == "ACC" else 1
        head = [", ".join([f"{start:.6f}"] * width), ", ".join([f"{RATES[name]:.6f}"] * width)]
        files[name] = "\n".join([*head, *rows]) + "\n"
    files["IBI"] = f"{start:.6f}, IBI\n" + "".join(f"{at:.6f},0.859402\n" for at in np.arange(1, seconds - 1, 0.859402))
    files["tags"] = f"{start + 5:.2f}\n{start + 12:.2f}\n"
    return {f"{name}.csv": text for name, text in (files | texts).items()}


def write_e4(folder: Path, files: Mapping[str, str] | None = None) -> Path:
    """Write an export as a folder or, by the name, as a zip file."""
    files = e4_files() if files is None else files
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.suffix == ".zip":
        with zipfile.ZipFile(folder, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def write_workbook(path: Path, sheets: Mapping[str, Sequence[Sequence[object]]]) -> Path:
    """Write a workbook of sheets of rows."""
    book = openpyxl.Workbook()
    for name, rows in sheets.items():
        sheet = book.active if book.active is not None and book.active.title == "Sheet" else book.create_sheet()
        sheet.title = name
        for row in rows:
            sheet.append(list(row))
    book.save(path)
    return path


def write_rows(path: Path, rows: Sequence[Sequence[object]], sign: str = ",", above: Sequence[str] = ()) -> Path:
    """Write a table of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*above, *(sign.join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def eye_rows(tracker: str, seconds: float = 20, start: float = START) -> tuple[list[list[object]], str, list[str]]:
    """An export of an eye tracker with a blink from 5 to 5.2 s: rows, what parts columns, lines above."""
    rate = {"pupil_labs": 120, "gazepoint": 60}.get(tracker, 60)
    t = np.arange(round(seconds * rate)) / rate
    left, right, shut = 3 + 0.5 * np.sin(t), 3.2 + 0.5 * np.sin(t), (t >= 5) & (t < 5.2)
    each = list(zip(t.tolist(), left.round(6).tolist(), right.round(6).tolist(), shut.tolist(), strict=True))
    if tracker == "pupil_labs":  # each eye has rows of its own, each datum stands there by two methods
        rows: list[list[object]] = [
            [
                "pupil_timestamp",
                "world_index",
                "eye_id",
                "confidence",
                "norm_pos_x",
                "diameter",
                "method",
                "diameter_3d",
            ]
        ]
        for x, a, b, s in each:
            for eye, size, late in ((1, a, 0.0), (0, b, 0.003)):
                sure = 0.1 if s else 0.99 - 0.1 * eye
                at = f"{3000 + x + late:.6f}"
                rows.append([at, int(30 * x), eye, sure, 0.5, 20 * size, "2d c++", ""])
                rows.append([at, int(30 * x), eye, sure, 0.5, 20 * size, "pye3d 0.3.0 real-time", 99 if s else size])
        return rows, ",", []
    if tracker == "tobii":  # decimal commas, tabs, words of validity, empty where there is none
        names = [
            "Recording timestamp",
            "Participant name",
            "Pupil diameter left",
            "Pupil diameter right",
            "Validity left",
            "Validity right",
        ]
        rows = [list(names)]
        rows += [
            [
                round(1e6 * x),
                "P07",
                *("" if s else f"{v:.6f}".replace(".", ",") for v in (a, b)),
                *["Invalid" if s else "Valid"] * 2,
            ]
            for x, a, b, s in each
        ]
        return rows, "\t", []
    if tracker == "studio":  # -1 where there is none, 4 is lost
        rows = [["RecordingTimestamp", "PupilLeft", "ValidityLeft", "PupilRight", "ValidityRight"]]
        return (
            [*rows, *([round(1e3 * x), -1 if s else a, 4 * s, -1 if s else b, 4 * s] for x, a, b, s in each)],
            "\t",
            [],
        )
    if tracker == "gazepoint":
        names = [
            "CNT",
            "TIME(2023/11/14 22:13:20.000)",
            "FPOGX",
            "LPD",
            "LPV",
            "RPD",
            "RPV",
            "BKID",
            "LPMM",
            "LPMMV",
            "RPMM",
            "RPMMV",
        ]
        rows = [list(names)]
        rows += [
            [n, f"{x:.5f}", 0.5, 20 * a, 1 - s, 20 * b, 1 - s, 7 * s, a, 1 - s, b, 1 - s]
            for n, (x, a, b, s) in enumerate(each)
        ]
        return rows, ",", []
    if tracker == "eyelink":
        rows = [["time", "xp_left", "yp_left", "ps_left", "xp_right", "yp_right", "ps_right"]]
        return (
            [
                *rows,
                *([int(1000 * x) + 400_000, 0.5, 0.4, 0 if s else a, 0.5, 0.4, "." if s else b] for x, a, b, s in each),
            ],
            ",",
            [],
        )
    rows = [["Timestamp", "EventSource", "ET_GazeLeftx", "ET_PupilLeft", "ET_PupilRight"]]  # iMotions
    rows += [[f"{1000 * x:.4f}", 2, 0.5, -1 if s else a, -1 if s else b] for x, a, b, s in each]
    return rows, ",", ["#Study name : music", "#Respondent Name : P07"]
