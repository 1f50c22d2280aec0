"""The verb ``models``. In: names of recipes and bundles. Out: what the registry holds; promotions, told to running agents."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from kymo.models.registry import ALIASES, CHAMPION, SHIPPED, Entry, Registry, open_registry, tell
from kymo.models.registry.manifest import read_manifest, verified
from kymo.streams.errors import BundleError
from kymo.streams.settings import Settings
from kymo.streams.words import utc

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ALIAS = click.option(
    "--alias",
    type=click.Choice(ALIASES),
    default=CHAMPION,
    show_default=True,
    help="champion makes the events; shadow scores the same windows onto kymo.shadow.",
)
_WHY = click.option("--why", default="", metavar="TEXT", help="The reason, for the log.")
_SCORES = ("accuracy", "macro_f1", "n")
# They differ whatever differs, and tell a reader nothing.
_SUMS = ("id", "digest", "files.", "attached.", "lineage.learned.")


@click.group()
def models() -> None:
    """Versions of trained models: list, compare, promote, roll back.

    Example: kymo models list; kymo models promote running@3f2a --why "better outdoors"
    """


@models.command("list")
@click.argument("recipe", required=False)
@_JSON
def list_command(recipe: str | None, as_json: bool) -> None:
    """List the versions of RECIPE, or of all.

    Example: kymo models list running --json
    """
    shipped = [path.name for path in SHIPPED.iterdir() if path.is_dir()] if SHIPPED.is_dir() else []
    recipes = [recipe] if recipe else sorted({*open_registry().recipes(), *shipped})
    rows = [row for name in recipes for row in _rows(name)]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        click.echo(f"no bundle{f' of {recipe}' if recipe else ''} in {open_registry().url}; train one: kymo train")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("bundle", "is", "made", "accuracy", "macro F1", "recordings", box=box.SIMPLE, pad_edge=False)
    for row in rows:
        scores, remarks = row["scores"], [*row["aliases"], *(["damaged"] if row["damaged"] else [])]
        numbers = [f"{scores[key]:.3f}" if isinstance(scores.get(key), float | int) else "" for key in _SCORES[:2]]
        table.add_row(row["bundle"], ", ".join(remarks), row["created"], *numbers, str(scores.get("n", "")))
    Console(width=None if Console().is_terminal else 140).print(table)
    for row in rows:
        if row["damaged"]:
            click.echo(f"note: {row['damaged']}", err=True)


def _rows(recipe: str) -> list[dict[str, Any]]:
    """Describe the versions of a recipe, the oldest first; one that also ships with Kymo stands once."""
    registry = open_registry()
    standing = {alias: entry.bundle for alias in ALIASES if (entry := registry.current(recipe, alias))}
    manifests = [m for digest in registry.versions(recipe) if (m := _manifest(registry, recipe, digest))]
    if (SHIPPED / recipe).is_dir():
        manifests.append(read_manifest(SHIPPED / recipe) | {"shipped": True})
    rows: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        shipped = bool(manifest.get("shipped"))
        if shipped and not standing.get(CHAMPION):
            standing[CHAMPION] = manifest["id"]
        row = {
            "bundle": manifest["id"],
            "recipe": recipe,
            "aliases": [alias for alias, bundle in standing.items() if bundle == manifest["id"]],
            "created": manifest.get("created", ""),
            "scores": manifest.get("scores", {}),
            "shipped": shipped,
            "damaged": manifest.get("damaged", ""),
        }
        rows.setdefault(manifest["id"], row)
    return sorted(rows.values(), key=lambda row: row["created"])


def _manifest(registry: Registry, recipe: str, digest: str) -> dict[str, Any] | None:
    """Read a version's manifest; of a damaged one what is wrong with it; None where none is whole yet."""
    try:
        folder = registry.folder(recipe, digest)
        manifest = verified(folder) if folder else None
        if manifest and manifest["id"] != f"{recipe}@{digest}":
            raise BundleError(f"{folder}: holds {manifest['id']}; copy the bundle again")
    except BundleError as error:
        return {"id": f"{recipe}@{digest}", "damaged": str(error)}
    return manifest


@models.command("show")
@click.argument("bundle")
@_JSON
def show_command(bundle: str, as_json: bool) -> None:
    """Show a bundle's manifest, and the log of its recipe.

    Example: kymo models show running@champion
    """
    from kymo.models.bundle import load_bundle

    loaded = load_bundle(bundle)
    log = open_registry().log(loaded.recipe)
    if as_json:
        facts = {"path": str(loaded.path), "manifest": loaded.manifest, "log": [asdict(entry) for entry in log]}
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    click.echo(f"{loaded.id}  {loaded.path}")
    for name, value in sorted(_flat(loaded.manifest).items()):
        if not name.startswith((*_SUMS, "chain.")):
            click.echo(f"  {name}: {_short(value)}")
    for entry in log:
        why = f": {entry.why}" if entry.why else ""
        what = f"{entry.action} {entry.alias} {entry.bundle or 'none'} by {entry.by or 'unknown'}{why}"
        click.echo(f"  {utc(entry.at_ns)} {what}")


@models.command("diff")
@click.argument("first", metavar="ONE")
@click.argument("second", metavar="OTHER")
@_JSON
def diff_command(first: str, second: str, as_json: bool) -> None:
    """Say in what two bundles differ: scores, parameters, data, versions.

    Example: kymo models diff running@champion running@shadow
    """
    from kymo.models.bundle import load_bundle

    pair = [load_bundle(name) for name in (first, second)]
    a, b = (_flat(bundle.manifest) for bundle in pair)
    names = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name) and not name.startswith(_SUMS)]
    if as_json:
        differences = {name: [a.get(name), b.get(name)] for name in names}
        click.echo(json.dumps({"bundles": [bundle.id for bundle in pair], "differences": differences}))
        return
    for name in names:
        click.echo(f"{name}: {_short(a.get(name))} | {_short(b.get(name))}")
    if not names:
        click.echo("no difference")


@models.command("promote")
@click.argument("bundle")
@_ALIAS
@_WHY
@_JSON
def promote_command(bundle: str, alias: str, why: str, as_json: bool) -> None:
    """Make BUNDLE, a name, recipe@digest or folder, the champion (or shadow) of its recipe.

    Running agents take it between two windows, within seconds.

    Example: kymo models promote running@3f2a --why "better outdoors"
    """
    from kymo.models.bundle import promote

    entry = promote(bundle, alias, why=why)
    _report(entry, entry.bundle.partition("@")[0], as_json)


@models.command("rollback")
@click.argument("recipe")
@_ALIAS
@_WHY
@_JSON
def rollback_command(recipe: str, alias: str, why: str, as_json: bool) -> None:
    """Undo the last promotion of RECIPE's champion (or shadow).

    Example: kymo models rollback running --why "worse indoors"
    """
    _report(open_registry().rollback(recipe, alias, why=why), recipe, as_json)


def _report(entry: Entry, recipe: str, as_json: bool) -> None:
    from kymo.models.bundle import find_bundle

    untold = tell(entry, recipe, Settings.from_env())
    if as_json:
        facts = {"recipe": recipe, **asdict(entry), "announced": not untold, "reason": untold}
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    bundle = entry.bundle
    if not bundle and entry.alias == CHAMPION:
        bundle = read_manifest(find_bundle(recipe))["id"]
    click.echo(f"{entry.alias} of {recipe}: {bundle or 'none'} (before: {entry.before or 'none'})")
    if untold:
        click.echo(f"note: running agents were not told ({untold}); they take it at their next start", err=True)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Name members of nested objects by their dotted path; lists stay as they are, but what has a name goes by it: heads."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {item["name"]: {key: inner for key, inner in item.items() if key != "name"} for item in value}
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}
    return {name: value}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
