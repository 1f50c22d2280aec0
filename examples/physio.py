"""``make physio``: a listener as a live animation. In: a participant's workbook, else nothing. Out: frames in the terminal, and a film.

Four streams at four rates are replayed through the embedded Kafka, faster than they were recorded; a worker joins them and publishes frames
on ``kymo.animation``, which are shown as they come. Of a workbook the skin conductance is real; the pulse, the skin temperature and the
pupils, which it lacks, are simulated, and their streams are called so. Without one all are. With a recipe and its bundle a second worker
classifies the same streams, and its events are printed among the frames.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from kymo.deploy.children import Child
from kymo.examples.stage import Say, died, ended_after, perform, run_example, verb
from kymo.lab.look.film import write_film
from kymo.lab.synth.listeners import RATES, Part, simulate, simulate_parts
from kymo.processors.steps.images import pillow
from kymo.streams.chunk import Array, Chunk
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import SourceError
from kymo.streams.events import Event
from kymo.streams.labels.labels import Label, interval
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.words import NS

_INPUT = '[[input]]\nstream = "{}"\nrate_hz = {}\nchannels = ["{}"]\nbridge_ms = 500\n'
_TAGS = '[[input]]\nstream = "tags"\nrate_hz = 0\nchannels = ["tag"]\nsample = "count"\nrequired = false\n'
_RECIPE = """name = "figure"
{}
[join]
rate_hz = 16
grid = "{}"
[[steps]]
step = "animation"
rate_hz = 1
eda = [{:.6g}, {:.6g}]
[[steps]]
step = "encode"
[window]
length_s = 31
hop_s = 1
"""
#: What is simulated where there is no workbook: six minutes.
_PARTS = (Part(120, 4, 65, "classical"), Part(120, 6, 70, "instrumental"), Part(120, 9, 75, "pop"))
_PATIENCE_S = 60.0  # a worker may take so long to begin
_START_S, _WIDE = 1_600_000_000, 56  # of the picture in the terminal: columns, and half as many lines


@click.command()
@click.argument("workbook", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--speed", type=click.FloatRange(1, 1000), default=30.0, show_default=True, help="Times the pace.")
@click.option("--film", type=click.Path(path_type=Path, dir_okay=False), default="physio.mp4", show_default=True)
@click.option("--recipe", metavar="R", help="What tells genres, such as `listener`; with --bundle.")
@click.option("--bundle", metavar="V", help="The bundle's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def physio(workbook: Path | None, film: Path, as_json: bool, **options: Any) -> None:
    """Show a listener's signals as a live animation, and keep it as a film (X.mp4 or X.gif).

    Exit status 0 only if a frame came for every second but the first thirty, and with a bundle an event, too.

    Example: python -m kymo.examples.physio P01.xlsx --film p01.mp4
    """
    if bool(options["bundle"]) != bool(options["recipe"]):
        raise click.UsageError("--recipe and --bundle go together: what tells genres, and its bundle's folder")
    perform("physio", lambda settings, say: run_physio(settings, workbook, film, options, say), as_json)


def run_physio(
    settings: Settings, workbook: Path | None, film: Path, options: Mapping[str, Any], say: Say
) -> dict[str, Any]:
    """The whole of it; leaves no process behind."""
    folder = settings.home / (workbook.stem if workbook else "simulated")
    signals, start_ns, labels = signals_of(workbook)
    write_session(folder, signals, start_ns, labels)
    recipe, speed = settings.home / "figure.toml", options["speed"]
    recipe.write_text(recipe_text(signals))
    seconds = len(next(iter(signals.values()))) / RATES["eda"]
    say(f"{', '.join(signals)}: {seconds:.0f} s at {speed:g} times the pace")
    workers = [verb("worker", str(recipe), "--roles", "processor")]
    if options["bundle"]:
        workers.append(verb("worker", options["recipe"], "--bundle", options["bundle"]))
    replay = verb("replay", str(folder), "--recipe", str(recipe), "--speed", f"{speed:g}")
    screen, images, events, at_ns = Screen(), list[bytes](), 0, start_ns
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(ended_after(worker, replay))
            worker.start()
        replay.start()
        for item in live(settings, workers, replay):
            if isinstance(item, Event):
                events += 1
                say(f"{clock(item.end_ns - start_ns)}  {item.label} {item.probability:.0%}")
                continue
            for label in [label for label in labels if at_ns <= label.start_ns < newest_ns(item)]:
                say(f"{clock(label.start_ns - start_ns)}  {label.label} begins")
            images += item.data.tolist()
            at_ns = newest_ns(item)
            screen.show(item.data, clock(at_ns - start_ns))
    write_film(film, (np.asarray(pillow("physio").open(io.BytesIO(image)).convert("RGB")) for image in images), 30)
    say(f"{len(images)} frames, {events} events; {film} shows them at 30 times the pace")
    return {
        "ok": len(images) >= seconds - 31 and bool(events) >= len(workers) - 1,
        "frames": len(images),
        "events": events,
        "film": str(film),
        "streams": list(signals),
    }


def signals_of(workbook: Path | None) -> tuple[dict[str, Array], int, list[Label]]:
    """Signals by stream, the skin first, simulated ones at the place ``simulated``; when they begin, Unix ns; what is heard when."""
    if workbook is None:
        drawn, labels, at_ns = simulate_parts(_PARTS, seed=1), [], _START_S * NS
        for part in _PARTS:
            end_ns = at_ns + round(part.seconds * NS)
            labels.append(interval(session="simulated", set="genre", start_ns=at_ns, end_ns=end_ns, label=part.label))
            at_ns = end_ns
        return {f"{kind}.simulated": values for kind, values in drawn.items()}, _START_S * NS, labels
    recording = next(read([workbook], ReadOptions(label_column="genre")))
    eda = next((s for s in recording.streams if s.header.format.stream.partition(".")[0] == "eda"), None)
    if eda is None or eda.header.format.rate != RATES["eda"]:
        raise SourceError("holds no skin conductance at 4 Hz (stream `eda`)", workbook)
    values = eda.data[:, 0].astype(np.float64)
    drawn = simulate(len(values) / RATES["eda"], seed=1)
    others = {f"{kind}.simulated": signal for kind, signal in drawn.items() if kind != "eda"}
    return {"eda": values} | others, eda.start_ns, recording.labels


def write_session(folder: Path, signals: Mapping[str, Array], start_ns: int, labels: Sequence[Label]) -> None:
    """A CSV a stream, which together are one session, and a tag where each piece begins."""
    folder.mkdir()
    tags = (f"{label.start_ns},1" for label in labels)
    (folder / "tags.csv").write_text("\n".join(["t_ns,tag", *tags, ""]))
    for stream, values in signals.items():
        kind = stream.partition(".")[0]
        step_ns = NS / RATES[kind]
        rows = (
            f"{start_ns + round(i * step_ns)},{value:.6g}"
            for i, value in enumerate(values.tolist())
            if not math.isnan(value)
        )
        (folder / f"{stream}.csv").write_text("\n".join([f"t_ns,{kind}", *rows, ""]))


def recipe_text(signals: Mapping[str, Array]) -> str:
    """A recipe for these streams; conductance from the listener's own lowest to the highest hundredth."""
    inputs = ""
    for stream in signals:
        kind = stream.partition(".")[0]
        inputs += _INPUT.format(stream, RATES[kind], kind) + "required = false\n" * (kind == "pupil")
    low, high = np.quantile(next(iter(signals.values())).astype(np.float64), [0.01, 0.99]).tolist()
    return _RECIPE.format(inputs + _TAGS, next(iter(signals)), low, max(high, low + 0.01))


def live(settings: Settings, workers: Sequence[Child], replay: Child) -> Iterator[Chunk | Event]:
    """Frames and events as they come, until the stream of frames has ended and no more events come; a model's first may be late."""
    from kymo.streams.kafka.read import read_records

    names, codec, heard = Names(settings.prefix), ChunkCodec(), time.monotonic()
    awaited = {"end", "event"} if len(workers) > 1 else {"end"}

    def over() -> bool:
        nonlocal heard
        for worker in workers:
            if worker.status is not None:
                raise died(worker, "ended before its time")
        if replay.status:
            raise died(replay)
        if replay.status is None:
            heard = time.monotonic()
        return replay.status == 0 and time.monotonic() - heard > (_PATIENCE_S if awaited else 3)

    for record in read_records(settings, [names.of("animation"), names.of("events")], follow=True, stop=over):
        heard = time.monotonic()
        if record.topic == names.of("events"):
            awaited.discard("event")
            yield Event.from_json(record.value)
        elif record.value is not None:
            chunk = codec.decode(record.value)
            if chunk.end:
                awaited.discard("end")
            yield chunk


def newest_ns(chunk: Chunk) -> int:
    """The time of the newest sample of its last frame, Unix ns."""
    fmt = chunk.header.format
    return chunk.header.time_ns(chunk.end_index - 1) + round((fmt.span - 1) * NS / (fmt.rate * fmt.step))


def clock(elapsed_ns: int) -> str:
    """Minutes and seconds."""
    return "{:02d}:{:02d}".format(*divmod(elapsed_ns // NS, 60))


class Screen:
    """The newest frame, in a terminal of 24-bit colours, always at the same place."""

    def __init__(self) -> None:
        self._lines = 0

    def show(self, images: Array, caption: str) -> None:
        if not sys.stdout.isatty() or not len(images):
            return
        library = pillow("physio")
        picture = library.open(io.BytesIO(images[-1])).convert("RGB").resize((_WIDE, _WIDE))
        pixels = (
            np.asarray(picture).reshape(_WIDE // 2, 2, _WIDE, 3).transpose(0, 2, 1, 3).reshape(_WIDE // 2, _WIDE, 6)
        )
        lines = ["".join("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*two) for two in row) for row in pixels.tolist()]
        up = f"\x1b[{self._lines}A" * bool(self._lines)
        sys.stdout.write(up + "\x1b[0m\n".join([*lines, f"  {caption}  "]) + "\n")
        sys.stdout.flush()
        self._lines = len(lines) + 1


if __name__ == "__main__":
    run_example(physio)
