"""``kymo doctor``. In: options. Out: a line a check, or JSON; exit status 1 if anything is wrong."""

from __future__ import annotations

import click

from deploy.doctor import NOTE, OK, WRONG, Check, as_json, check_machine, with_broker
from processors.recipe.load import Recipe, load_recipe
from streams.errors import KymoError
from streams.settings import Settings

_MARKS = {OK: "ok   ", NOTE: "note ", WRONG: "WRONG"}


@click.command("doctor")
@click.option("--recipe", "recipe_name", metavar="R", help="Check this recipe and its bundle too.")
@click.option("--session", metavar="S", help="Say why this session yields no events (needs --recipe and a broker).")
@click.option(
    "--repair-topics", is_flag=True, help="First configure the topics that are there as Kymo's table has them."
)
@click.option("--json", "json_out", is_flag=True, help="Print one JSON object.")
def doctor(recipe_name: str | None, session: str | None, repair_topics: bool, json_out: bool) -> None:
    """Say what is wrong on this machine, and why a session yields no events.

    Example: kymo doctor --recipe basicmotions --session basicmotions-test-00
    """
    if session is not None and recipe_name is None:
        raise click.UsageError("--session needs --recipe: whose events are missed?")
    settings = Settings.from_env()
    if repair_topics:
        _repair(settings)
    checks = list(check_machine(settings))
    if recipe_name is not None:
        recipe, found = check_recipe(recipe_name, settings)
        checks += found
        if recipe is not None and session is not None:
            checks += check_session(recipe, session, settings)
    if json_out:
        click.echo(as_json(checks))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(f"{_MARKS[check.state]} {check.name:{width}}  {check.text}")
    if any(check.state == WRONG for check in checks):
        click.get_current_context().exit(1)


def _repair(settings: Settings) -> None:
    from streams.kafka.promises import repair_topics
    from streams.topics import Names

    for topic in repair_topics(with_broker(settings), Names(settings.prefix)) or ["no topic"]:
        click.echo(f"{topic} was altered", err=True)


def check_recipe(name: str, settings: Settings) -> tuple[Recipe | None, list[Check]]:
    """Whether a recipe holds together and its bundle fits."""
    try:
        recipe = load_recipe(name)
    except KymoError as error:
        return None, [Check("recipe", WRONG, str(error))]
    rate = float(recipe.inputs[0].rate_hz)
    length, hop = recipe.window_length / rate, recipe.window_hop / rate
    checks = [Check("recipe", OK, f"{recipe.name}: windows of {length:g} s every {hop:g} s at {rate:g} Hz")]
    checks += [Check("recipe", NOTE, note) for note in recipe.notes]
    problem = bundle_problem(recipe, settings)
    checks.append(Check("bundle", WRONG, problem) if problem else Check("bundle", OK, "fits the recipe"))
    return recipe, checks


def bundle_problem(recipe: Recipe, settings: Settings) -> str | None:
    """Why the recipe's bundle cannot be used; None if it can."""
    from models.bundle import load_bundle

    if recipe.model is None:
        return f"recipe `{recipe.name}` has no [model], so it gives no events"
    try:
        load_bundle(recipe.name, settings.home).check(recipe)
    except KymoError as error:
        return str(error)
    return None


def check_session(recipe: Recipe, session: str, settings: Settings) -> list[Check]:
    """Why a session yields no events of a recipe."""
    try:
        from deploy.doctor_session import explain, gather

        return explain(recipe, gather(recipe, session, with_broker(settings)))
    except KymoError as error:
        return [Check("session", WRONG, str(error))]
    except ModuleNotFoundError as error:
        return [Check("session", WRONG, f"{error.name} is not installed: pip install 'kymo[kafka]'")]
