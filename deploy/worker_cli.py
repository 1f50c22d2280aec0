"""`kymo worker`. In: recipes. Out: a worker until it is stopped."""

from __future__ import annotations

import click

from streams.settings import Settings


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE…")
@click.option("--bundle", metavar="V", help="A bundle's folder or name, instead of each recipe's own.")
@click.option("--prefix", metavar="P", help="Topic prefix, instead of KYMO_PREFIX; `kymo.N` for the run N of a replay.")
@click.option(
    "--roles",
    default="processor,model",
    show_default=True,
    metavar="R",
    help="processor: raw to derived streams; model: derived streams to events; both: raw to events, in memory.",
)
def worker(recipes: tuple[str, ...], bundle: str | None, prefix: str | None, roles: str) -> None:
    """Classify what arrives on the input topics until stopped; start as many workers as there are partitions.

    Example: kymo worker basicmotions
    """
    from deploy.worker import run_worker

    settings = Settings.from_env()
    run_worker(recipes, settings.under(prefix) if prefix else settings, bundle, roles)
