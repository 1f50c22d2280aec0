"""What a demo shows. In: events and results. Out: lines for people, or one JSON object."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from examples.demo_check import Checked, Latency
from streams.events import Event

NS = 10**9


class Screen:
    """Prints as it goes; or, for programs, nothing until the end."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._console = Console(highlight=False, soft_wrap=True, quiet=as_json)

    def step(self, text: str) -> None:
        """Say what is being done."""
        self._console.print(Text(text, style="dim"))

    def event(self, event: Event, truth: str | None, start_ns: int) -> None:
        """Show an event, its times counted from its session's start, and whether it is right."""
        right = truth is not None and event.label == truth
        begin, end = ((at - start_ns) / NS for at in (event.start_ns, event.end_ns))
        line = Text(f"{event.session}  {begin:5.1f} to {end:4.1f} s  ")
        line.append(f"{event.label:<10}", style="bold")
        line.append(f"{event.probability:6.1%}  truth {truth or 'unlabelled':<10} ")
        line.append("✓" if right else "✗", style="green" if right else "red")
        self._console.print(line)

    def result(self, result: dict[str, Any]) -> None:
        """Show everything that was found."""
        if self._json:
            print(json.dumps(result, ensure_ascii=False, allow_nan=False))
            return
        self._console.print()
        for name, text in _rows(result):
            self._console.print(Text(f"{name:<10}", style="bold").append(text, style="not bold"))
        self._console.print()
        for line in result["complaints"]:
            self._console.print(Text(f"✗ {line}", style="red"))
        if result["ok"]:
            came = f"all {result['out']['expected']} events came exactly once, and they equal the offline run's"
            self._console.print(Text(f"✓ {came}", style="green"))


def summary(
    given: dict[str, Any], checked: Checked, latencies: dict[str, Latency | None], complaints: list[str]
) -> dict[str, Any]:
    """The JSON object of a demo's result."""
    out = {"expected": checked.expected, "events": checked.events}
    out |= {name: len(getattr(checked, name)) for name in ("missing", "repeated", "unexpected", "different")}
    found = {name: value.to_dict() if value else None for name, value in latencies.items()}
    return {"ok": not complaints, **given, "out": out, "latency_ms": found, "complaints": complaints}


def _unknown(scores: dict[str, Any]) -> str:
    return f"; {scores['unknown']} said `unknown`, below min_probability" if scores["unknown"] else ""


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    came, out, scores, seconds = result["in"], result["out"], result["scores"], result["seconds"]
    wrong = scores["n"] - round(scores["accuracy"] * scores["n"])
    return [
        ("in", "{sessions} recordings, {samples} samples of {channels} channels in {chunks} chunks".format(**came)),
        ("pace", f"{came['speed_requested']:g} times the recorded one asked for, {came['speed_reached']:.1f} reached"),
        (
            "out",
            f"{out['events']} events of {out['expected']} windows, {out['repeated']} twice, {out['missing']} missing",
        ),
        ("accuracy", f"{scores['accuracy']:.1%} of {scores['n']} recordings ({wrong} wrong)"),
        (
            "",
            f"{scores['window_accuracy']:.1%} of {scores['windows']} windows, by their most probable class{_unknown(scores)}",
        ),
        (
            "latency",
            _latency(result["latency_ms"]["consumer"], "from a window's last chunk to its event in a consumer"),
        ),
        ("", _latency(result["latency_ms"]["record"], "from a window's last chunk to its event's record")),
        ("offline", f"{result['offline']['events']} events, {out['different']} of the online ones differ"),
        ("model", result["bundle"]),
        ("time", ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in seconds.items())),
    ]


def _latency(found: dict[str, float] | None, what: str) -> str:
    if found is None:
        return f"none measured, {what}"
    return f"p50 {found['p50']:.1f}, p95 {found['p95']:.1f}, p99 {found['p99']:.1f} ms, {what}"
