"""Reports for tests: a page as a parser sees it, and the record of a made-up run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from kymo.models.reports.report import Picture, report_files
from kymo.models.scores import HeldHead, HeldOut
from kymo.models.training.record import Candidate, RunRecord

LABELS = ["sit", "walk", "run"]
VOID = {"meta", "br", "hr", "img", "input", "link"}


@dataclass
class Page(HTMLParser):
    """What a page holds: tables by caption, headings, labels of figures, all text."""

    source: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(self.source)
        self.close()
        assert self._open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [value for value in [found.get("id")] if value]
        self.figures += [found["aria-label"] or ""] if found.get("role") == "img" else []
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "h2":
            self.heads.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "tags cross"
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif self._open and self._open[-1] in ("td", "th"):
            self._rows[-1][-1] += data.replace("\u00a0", " ")
        elif self._open and self._open[-1] == "h2":
            self.heads[-1] += data


def page(record: RunRecord, drawn: dict[int, Picture] | None = None) -> Page:
    """A record's page, parsed."""
    return Page(report_files(record, drawn)["report.html"].decode())


def record(sessions: int = 6, windows: int = 10, labels: list[str] = LABELS, **changes: Any) -> RunRecord:
    """A run whose answers are right in about two of three windows; two sessions a subject."""
    random = np.random.default_rng(0)
    n = sessions * windows
    truth = np.repeat(np.arange(sessions) % len(labels), windows)
    logits = random.normal(size=(n, len(labels)))
    logits[np.arange(n), truth] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [f"walk {i // windows}" for i in range(n)]
    held = HeldOut(labels, truth, probabilities, names, [f"P{i // windows // 2}" for i in range(n)], np.arange(n) * 2)
    scores = held.tally().scores()
    history = [
        {"epoch": i, "loss": 1 / i, "validation_loss": 1 / i + i / 16, "validation_accuracy": 0.5} for i in range(1, 9)
    ]
    made = RunRecord(
        recipe="wrist",
        recipe_text='name = "wrist"\n',
        architecture="cnn",
        parameters={"width": 32},
        training={"epochs": 8},
        history=history,
        split={
            "kind": "subject",
            "seed": 3,
            "training": {"windows": 90, "groups": ["P7", "P8"], "labels": {"sit": 50, "walk": 40}},
            "validation": {"windows": n, "groups": ["P0", "P1", "P2"], "labels": {"sit": 20, "walk": 20, "run": 20}},
        },
        scores=scores,
        held_out=held,
        candidates=[
            Candidate("cnn", {"width": 32}, scores, history, 75.0, 812.4, chosen=True),
            Candidate("minirocket", {}, {"accuracy": 0.5, "macro_f1": None}, [], 3.25, 640.0, note="failed"),
        ],
        choice="cnn is bundled, since it is better.",
        lineage={
            "command": "kymo train wrist --data x.csv --seed 0",
            "inputs": [{"path": "x.csv", "recordings": 12, "sha256": "ab" * 32}],
            "packages": {"numpy": "2.3.5", "absent": None},
            "python": "3.11.2",
            "seed": 0,
            "revision": "0123abc",
        },
        notes=["gaps bridged (3 times)"],
        seconds=131.4,
        peak_mb=1240.0,
    )
    return replace(made, **changes)


def read_record(text: str | bytes) -> RunRecord:
    """The record that ``run.json`` holds."""
    facts = json.loads(text)
    held, candidates = facts.pop("held_out"), facts.pop("candidates")
    kinds = {"y_true": np.int64, "probabilities": np.float64, "start_index": np.int64}
    held |= {name: np.array(held[name], kind) for name, kind in kinds.items()}
    held["probabilities"] = held["probabilities"].reshape(len(held["y_true"]), len(held["labels"]))
    held["heads"] = [_head(head) for head in held["heads"]]
    return RunRecord(**facts, held_out=HeldOut(**held), candidates=[Candidate(**one) for one in candidates])


def _head(facts: dict[str, Any]) -> HeldHead:
    truth = np.array(facts["truth"], np.int64 if facts["labels"] else np.float64)
    shape = (len(truth), len(facts["labels"])) if facts["labels"] else (len(truth),)
    return HeldHead(facts["name"], facts["labels"], truth, np.array(facts["said"], np.float64).reshape(shape))
