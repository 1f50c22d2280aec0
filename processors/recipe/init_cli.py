"""``kymo init``. In: a name, files. Out: a recipe file, and what was found."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from kymo.streams.errors import KymoError
from kymo.streams.files import RULE, is_file_name
from kymo.streams.words import grouped, many


@click.command("init")
@click.argument("name", metavar="NAME")
@click.option(
    "--from", "sources", multiple=True, required=True, metavar="PATH", help="File or folder; may be repeated."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="recipes", help="Folder; ./recipes.")
@click.option("--stream", "streams", multiple=True, metavar="S", help="Stream or MCAP topic to take; may be repeated.")
@click.option("--rate-hz", metavar="N", help="Samples per second, for files without times.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column of the class.")
@click.option(
    "--file-names",
    metavar="PATTERN",
    help="What names of files or folders say, such as {label}_{subject}; * is anything.",
)
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
    from kymo.processors.recipe.init import recipe_text, survey_of
    from kymo.processors.recipe.load import parse_recipe

    survey = survey_of(sources, look["streams"], _rate(look["rate_hz"]), look["label"], look["file_names"])
    text = recipe_text(name, survey)
    try:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise KymoError(f"{file}: cannot be written ({error.strerror or error})") from None
    for remark in (*grouped(survey.notes), *survey.remarks):
        click.echo(remark, err=True)
    recipe = parse_recipe(text, file)
    rate, inputs = float(survey.rate_hz), [survey, *survey.beside]
    channels = [channel for each in inputs for channel in each.channels]
    streams = " and ".join(f"{each.stream} at {float(each.rate_hz):g} Hz" for each in inputs)
    click.echo(
        f"{file}: {many(survey.recordings, 'recording')}, {streams}, {many(len(channels), 'channel')} "
        f"({', '.join(channels[:8])}{', …' if len(channels) > 8 else ''}), "
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
