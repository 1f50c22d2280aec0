"""`python -m benchmarks`, which `make bench` runs. In: which comparisons. Out: tables, and with `--out` all figures as JSON.

A comparison gives rows, or rows by table (`report.TABLES`). What it needs is loaded when it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from benchmarks.report import machine, table


@dataclass(frozen=True, slots=True)
class Extent:
    rounds: int
    channel_samples: float
    seconds: float
    beside: Path | None
    data: Path | None = None

    @property
    def work(self) -> Any:
        return _of("load").Workload(2).sized(self.channel_samples)


def _of(module: str) -> Any:
    return import_module(f"benchmarks.{module}")


def _throughput(rig: Any, extent: Extent) -> Any:
    end_to_end = _of("end_to_end")
    if extent.beside is not None:
        return end_to_end.beside(rig, extent.work, extent.beside, extent.rounds)
    return end_to_end.throughput(rig, extent.work, extent.rounds)


def _real_time(rig: Any, extent: Extent) -> Any:
    """One run gives both."""
    return dict.fromkeys(("latency", "memory"), _of("real_time").real_time(rig, extent.work, extent.seconds))


ALONE: dict[str, Callable[[Extent], Any]] = {
    "kernels": lambda extent: _of("kernels").kernels(20 * extent.rounds),
    "animation": lambda extent: _of("animation").animation(3 * extent.rounds),
    "dataset": lambda extent: _of("dataset").dataset(extent.rounds),
    "serving": lambda extent: _of("serving").serving(3 * extent.rounds),
    "synth": lambda extent: _of("synth").synth(extent.rounds),
    "magnetic": lambda _: _of("magnetic").magnetic(),
    "scores": lambda extent: _of("scores").scores(20 * extent.rounds),
    "listeners": lambda _: _of("listeners").listeners(),
    "music": lambda extent: _of("physiology").music(extent.data),
}
THROUGH_KAFKA: dict[str, Callable[[Any, Extent], Any]] = {
    "throughput": _throughput,
    "latency": _real_time,
    "memory": _real_time,
    "workers": lambda rig, extent: _of("end_to_end").workers(rig, extent.work, extent.rounds),
    "devices": lambda rig, extent: _of("end_to_end").devices(rig, extent.work, extent.rounds),
    "archive": lambda rig, extent: _of("archive").archive(rig, extent.work, extent.rounds, min(extent.seconds, 20.0)),
    "takeover": lambda rig, extent: _of("takeover").takeover(rig, extent.work, extent.rounds),
    "frames": lambda rig, _: _of("frames").frames(rig),
    "joined": lambda rig, extent: _of("joined").joined(rig, seconds=extent.seconds),
    "conditioned": lambda rig, extent: [
        row for sessions in (60, 100) for row in _of("joined").conditioned(rig, sessions, max(extent.seconds, 115.0))
    ],
    "slow": lambda rig, extent: _of("slow").slow(rig, seconds=min(extent.seconds, 40.0)),
}


@click.command()
@click.argument("chosen", nargs=-1, type=click.Choice((*ALONE, *THROUGH_KAFKA, "all")))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure to this JSON file.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each peer, by turns.")
@click.option(
    "--size", type=click.FloatRange(0.1), default=40.0, show_default=True, help="Million channel-samples a run."
)
@click.option("--seconds", type=click.FloatRange(12.0), default=60.0, show_default=True, help="At real-time pace.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Another checkout of Kymo; `throughput` then runs its worker, this one's and the bare loop, by turns.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="For `music`: the study's sheets Pnn.xlsx and videos nn.mp4.",
)
def main(chosen: tuple[str, ...], out: Path | None, beside: Path | None, data: Path | None, **sizes: Any) -> None:
    """Measure Kymo beside its peers, on this machine, in one run.

    Example: python -m benchmarks throughput latency --rounds 5
    """
    if beside is not None and not (beside / "streams").exists():
        raise click.BadParameter(f"{beside} is no checkout of Kymo: it has no folder `streams`", param_hint="--beside")
    if "music" in chosen and data is None:
        raise click.UsageError("music needs --data, the folder of the study's sheets and videos")
    found: dict[str, Any] = {"machine": machine()}
    click.echo("".join(f"{key}: {value}\n" for key, value in found["machine"].items()))
    extent = Extent(sizes["rounds"], sizes["size"] * 1e6, sizes["seconds"], beside, data)
    for name in (*ALONE, *THROUGH_KAFKA) if not chosen or "all" in chosen else chosen:
        if name not in found and (name != "music" or data):
            rows = _measured(name, extent)
            tables = rows if isinstance(rows, dict) else {name: rows}
            click.echo("".join(f"## {title}\n\n{table(title, rows)}\n\n" for title, rows in tables.items()))
            found |= tables
    click.echo(f"load after the run: {os.getloadavg()[0]:.1f}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


def _measured(name: str, extent: Extent) -> Any:
    if name in ALONE:
        return ALONE[name](extent)
    with _of("rig").rig(extent.work) as rig:  # a broker with empty topics each time: what came before costs nothing
        return THROUGH_KAFKA[name](rig, extent)


if __name__ == "__main__":
    main()
