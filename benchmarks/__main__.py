"""`python -m benchmarks`, which `make bench` runs. In: which comparisons. Out: tables, and with `--out` all figures as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

COMPARISONS = (
    "kernels",
    "dataset",
    "serving",
    "synth",
    "magnetic",
    "scores",
    "throughput",
    "latency",
    "memory",
    "workers",
    "devices",
    "archive",
    "takeover",
    "frames",
    "joined",
    "slow",
)

#: Those that need no broker.
_BY_THEMSELVES = ("kernels", "dataset", "serving", "synth", "magnetic", "scores")


@click.command()
@click.argument("chosen", nargs=-1, type=click.Choice((*COMPARISONS, "all")))
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
def main(
    chosen: tuple[str, ...], out: Path | None, rounds: int, size: float, seconds: float, beside: Path | None
) -> None:
    """Measure Kymo beside its peers, on this machine, in one run.

    Example: python -m benchmarks throughput latency --rounds 5
    """
    if beside is not None and not (beside / "streams").exists():
        raise click.BadParameter(f"{beside} is no checkout of Kymo: it has no folder `streams`", param_hint="--beside")
    from benchmarks.report import machine

    wanted = list(dict.fromkeys(chosen)) or ["all"]
    wanted = list(COMPARISONS) if "all" in wanted else wanted
    found: dict[str, Any] = {"machine": machine()}
    click.echo("".join(f"{key}: {value}\n" for key, value in found["machine"].items()))
    if "kernels" in wanted:
        _kernels(found, 20 * rounds)
    if "dataset" in wanted:
        _dataset(found, rounds)
    if "serving" in wanted:
        _serving(found, 3 * rounds)
    if "synth" in wanted:
        _synth(found, rounds)
    if "magnetic" in wanted:
        _magnetic(found)
    if "scores" in wanted:
        _scores(found, 20 * rounds)
    if through_kafka := [name for name in wanted if name not in _BY_THEMSELVES]:
        _through_kafka(found, through_kafka, rounds, (size * 1e6, seconds), beside)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


def _kernels(found: dict[str, Any], rounds: int) -> None:
    from rich.console import Console

    from benchmarks import kernels

    console, found["kernels"] = Console(width=100), []
    for shape in kernels.SHAPES:
        for dtype in ("float32", "float64"):
            found["kernels"].append(kernels.results(shape, dtype, rounds))
            kernels.show(found["kernels"][-1], console)


def _dataset(found: dict[str, Any], rounds: int) -> None:
    from rich.console import Console

    from benchmarks import dataset

    found["dataset"] = dataset.dataset(rounds)
    dataset.show(found["dataset"], Console(width=100))


def _serving(found: dict[str, Any], rounds: int) -> None:
    os.environ["TF_NUM_INTRAOP_THREADS"] = "0"  # as many as there are cores: nothing is trained here
    from rich.console import Console

    from benchmarks import serving

    found["serving"] = serving.results(rounds)
    serving.show(found["serving"], Console())


def _magnetic(found: dict[str, Any]) -> None:
    from rich.console import Console

    from benchmarks import magnetic

    found["magnetic"] = magnetic.magnetic()
    magnetic.show(found["magnetic"], Console(width=120))


def _scores(found: dict[str, Any], populations: int) -> None:
    from rich.console import Console

    from benchmarks import scores

    found["scores"] = scores.scores(populations)
    scores.show(found["scores"], Console(width=140))


def _synth(found: dict[str, Any], rounds: int) -> None:
    from rich.console import Console

    from benchmarks import synth

    found["synth"] = synth.results(rounds)
    synth.show(found["synth"], Console())


def _through_kafka(
    found: dict[str, Any], wanted: list[str], rounds: int, sizes: tuple[float, float], beside: Path | None
) -> None:
    from benchmarks import end_to_end, report
    from benchmarks.archive import archive
    from benchmarks.frames import frames
    from benchmarks.joined import joined
    from benchmarks.load import Workload
    from benchmarks.real_time import real_time
    from benchmarks.rig import rig
    from benchmarks.slow import slow
    from benchmarks.takeover import SESSIONS, takeover

    channel_samples, seconds = sizes
    work = Workload(2).sized(channel_samples)
    for name in wanted:
        with rig(work) as made:  # a broker with empty topics each time: what came before costs nothing
            if name == "archive":
                found[name] = archive(made, work, rounds, min(seconds, 20.0))
            elif name in ("latency", "memory"):
                # One run gives both.
                found[name] = found.get("latency" if name == "memory" else "memory") or real_time(made, work, seconds)
            elif name == "frames":
                found[name] = frames(made)
            elif name == "joined":
                found[name] = joined(made, seconds=seconds)
            elif name == "slow":
                found[name] = slow(made, seconds=min(seconds, 40.0))
            elif name == "takeover":
                found[name] = takeover(made, work, SESSIONS, rounds)
            elif name == "throughput" and beside is not None:
                found[name], found["beside"] = end_to_end.beside(made, work, beside, rounds)
            else:
                found[name] = getattr(end_to_end, name)(made, work, rounds=rounds)
        for title in (name, "beside") if name == "throughput" and beside is not None else (name,):
            click.echo(f"## {title}\n\n{report.table(title, found[title])}\n")
    click.echo(f"load after the run: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
