"""``kymo init``. In: recordings. Out: a recipe for them as TOML text, whose values are a start that works."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from processors.recipe.load import format_recipe, parse_recipe, seconds_of
from processors.recipe.survey import Survey, survey
from streams.errors import KymoError
from streams.files import RULE, is_file_name

MIN_SAMPLES = 8


def window_samples(shortest: int, rate_hz: Fraction) -> int:
    """Length of a window: a third of the shortest recording, but 2 to 5 s, and never more than it holds.

    Examples
    --------
    >>> window_samples(100, Fraction(10)), window_samples(60_000, Fraction(500)), window_samples(40, Fraction(32))
    (32, 2500, 32)
    """
    wanted = min(5 * rate_hz, max(2 * rate_hz, Fraction(shortest, 3)))
    longest = min(shortest, max(int(wanted), 32))
    for halves in range(int(2 * longest / rate_hz), 0, -1):
        samples = halves * rate_hz / 2
        if samples < max(0.75 * longest, min(32, shortest)):
            break
        if samples % 2 == 0:
            return int(samples)
    return longest - longest % (8 if longest >= 32 else 2)


def frames(length: int, hop: int) -> tuple[int, int]:
    """``nperseg`` and ``noverlap`` for a window: frames of at most a third of it, whose step divides the hop.

    Examples
    --------
    >>> frames(128, 64), frames(2500, 1250)
    ((32, 24), (512, 387))
    """
    nperseg = 2 ** max(2, (length // 3).bit_length() - 1)
    step = next(s for s in range(max(1, nperseg // 4), 0, -1) if hop % s == 0)
    return nperseg, nperseg - step


def recipe_text(name: str, found: Survey) -> str:
    """A recipe of this name for what was found."""
    if found.shortest < MIN_SAMPLES:
        raise KymoError(f"the shortest recording holds {found.shortest} samples, expected at least {MIN_SAMPLES}")
    length = window_samples(found.shortest, found.rate_hz)
    hop = length // 2
    nperseg, noverlap = frames(length, hop)
    source: dict[str, Any] = {"stream": found.stream, "rate_hz": found.rate_hz, "channels": list(found.channels)}
    if found.units:
        source["units"] = list(found.units)
    by_subject = len(found.subjects) >= 3
    by_key = found.label_key is not None and not found.labels
    tables = {
        "name": name,
        "input": [source],
        "steps": [{"step": "spectrogram", "nperseg": nperseg, "noverlap": noverlap}, {"step": "log"}],
        "window": {
            "length_s": seconds_of(length, found.rate_hz),
            "hop_s": seconds_of(hop, found.rate_hz),
            "steps": [{"step": "standardise"}],
        },
        "model": {"architecture": "spectrogram_cnn", "min_probability": 0.5},
        "labels": {"key": found.label_key} if by_key else {"column": found.label_column or "label"},
        "train": {"split": "subject" if by_subject else "session"},
    }
    text = format_recipe(tables, _comments(found, length, nperseg, noverlap))
    head = (
        f"# Made by `kymo init` from {_recordings(found)}.\n"
        "# Every value is a start that works; change what you know better.\n"
    )
    text = head + text
    parse_recipe(text)
    return text


def _comments(found: Survey, length: int, nperseg: int, noverlap: int) -> dict[str, str]:
    columns = (length - nperseg) // (nperseg - noverlap) + 1
    shortest = float(found.shortest / found.rate_hz)
    bins = nperseg // 2 + 1
    classes = f"found: {', '.join(sorted(found.labels)[:8])}" if found.labels else "none found yet"
    subjects = len(found.subjects)
    return {
        "name": "part of every event's id",
        "input": "which stream of a session this recipe takes",
        "input.stream": "kind[.place]; a kind alone takes any place",
        "input.rate_hz": "samples per second; a stream of another rate is not taken",
        "input.channels": "by name; delete those that are no signal",
        "input.units": "other known units are converted",
        "steps": "before the window: each column is computed once, however much windows overlap",
        "steps.nperseg": f"samples a column covers ({_show(nperseg / found.rate_hz)} s), {bins} frequency bins",
        "steps.noverlap": f"a column every {nperseg - noverlap} samples, which divide the hop",
        "window.length_s": f"{length} samples, {columns} columns; the shortest recording has {shortest:.3g} s",
        "window.hop_s": "an event this often: half a window",
        "window.steps": "behind the window: learned at training, saved in the bundle",
        "model.min_probability": "below it the label is `unknown`",
        "labels": f"the classes are those that training finds ({classes})",
        "train.split": f"{subjects} subjects: none on both sides"
        if subjects >= 3
        else "no recording on both sides (a `subject` column with 3 or more subjects is better)",
    }


def _recordings(found: Survey) -> str:
    return f"{found.recordings} recording{'s' * (found.recordings != 1)}"


def _show(value: Fraction) -> str:
    return f"{float(value):.3g}"


@click.command("init")
@click.argument("name", metavar="NAME")
@click.option(
    "--from", "sources", multiple=True, required=True, metavar="PATH", help="File or folder; may be repeated."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="recipes", help="Folder; ./recipes.")
@click.option("--stream", "streams", multiple=True, metavar="S", help="Stream or MCAP topic to take; may be repeated.")
@click.option("--rate-hz", metavar="N", help="Samples per second, for files without times.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column of the class.")
@click.option("--force", is_flag=True, help="Overwrite a recipe that is there.")
def init(name: str, sources: tuple[str, ...], out: Path, force: bool, **look: Any) -> None:
    """Write a recipe from data: rate, channels, a window, a spectrogram.

    Example: kymo init shaking --from recordings/
    """
    if not is_file_name(name):
        raise click.BadParameter(f"{name!r}: expected {RULE}", param_hint="NAME")
    file = out / f"{name}.toml"
    if file.exists() and not force:
        raise KymoError(f"{file} is there already; choose another name, or --force to overwrite it")
    found = survey(sources, look["streams"], _rate(look["rate_hz"]), look["label"])
    text = recipe_text(name, found)
    try:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise KymoError(f"{file}: cannot be written ({error.strerror or error})") from None
    for remark in found.remarks:
        click.echo(remark, err=True)
    recipe = parse_recipe(text, file)
    rate = float(found.rate_hz)
    click.echo(
        f"{file}: {_recordings(found)}, {found.stream} at {rate:g} Hz, {len(found.channels)} channels "
        f"({', '.join(found.channels[:8])}{', …' if len(found.channels) > 8 else ''}), "
        f"windows of {recipe.window_length / rate:g} s every {recipe.window_hop / rate:g} s"
    )
    where = name if out == Path("recipes") else str(file)
    click.echo(f"next: kymo train {where} --data {' '.join(sources)}")


def _rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise click.BadParameter(f"{text!r}: expected a number above 0", param_hint="--rate-hz")
    return rate
