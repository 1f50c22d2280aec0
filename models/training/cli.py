"""The verbs ``train``, ``evaluate`` and ``refresh``. In: a recipe and data. Out: a bundle; scores, and what came of a round, for
people or as JSON."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kymo.models.data.cli import DATA, MORE, progress
from kymo.models.training import METRICS
from kymo.streams.errors import KymoError
from kymo.streams.events_cli import LENGTH, SECONDS
from kymo.streams.settings import Settings
from kymo.streams.words import grouped, many, some

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kymo.models.training.gate import Outcome
    from kymo.models.training.train import Trained
    from kymo.streams.readers.files import Experiment

_MOST_COLUMNS, _MOST_NAMES, _MOST_PEOPLE = 8, 8, 100
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("train")
@click.argument("recipe")
@MORE
@DATA
@click.option("--epochs", type=click.IntRange(1), help="Most passes over the data.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of everything that is random.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; else the registry.")
@click.option("--only", is_flag=True, help="The recipe's architecture alone; MiniRocket is not fitted beside it.")
@click.option(
    "--search", "search_minutes", type=click.FloatRange(0), default=0.0, metavar="MINUTES", help="Try other settings."
)
@click.option(
    "--promote-if-better",
    "gated",
    is_flag=True,
    help="Keep a quarter of the sessions from training; promote only what beats the champion on them by more than chance.",
)
@click.option("--report/--no-report", default=True, help="Whether the bundle holds a page with figures.")
@click.option(
    "--weights-out",
    type=_FILE,
    help="Save the weights, of the framework's own kind, to this file too; X.tflite or X.int8.tflite: the network of Keras as TFLite.",
)
@click.option("--history-out", type=_FILE, help="Save the epochs' numbers to this JSON file too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train_command(
    recipe: str, more: tuple[str, ...], paths: tuple[str, ...], as_json: bool, gated: bool, **options: Any
) -> None:
    """Train RECIPE's model on labelled recordings.

    MiniRocket is fitted beside it on the same split, and the better on held-out recordings becomes the recipe's current
    version in the registry, or goes to --out. With [train] folds both are
    cross-validated first. Started again after a kill, the same command goes on where it was.

    Example: kymo train basicmotions --data basicmotions:train
    """
    from kymo.models.training.gate import train_and_promote
    from kymo.models.training.run import TrainRequest, train_parameters
    from kymo.processors.recipe.load import load_recipe

    if gated and options["out"]:
        raise click.UsageError("--promote-if-better promotes in the registry; leave --out away")
    loaded = load_recipe(recipe)
    request = TrainRequest((*paths, *more), **options)
    train_parameters(loaded, request)
    with progress() as on_stage:
        trained, promotion = train_and_promote(loaded, request, on_stage, gated)
    if as_json:
        click.echo(json.dumps(_facts(trained) | promotion))
        return
    _print_trained(trained)
    if "reason" in promotion:
        click.echo(f"{'promoted' if promotion['promoted'] else 'not promoted'}: {promotion['reason']}")
    if request.report:
        click.echo(f"report: {trained.report}")
    click.echo(f"{trained.bundle.id}  {trained.bundle.path}")


def _facts(trained: Trained) -> dict[str, Any]:
    bundle, record = trained.bundle, trained.record
    return {
        "bundle": bundle.id,
        "path": str(bundle.path),
        "scores": trained.scores,
        "split": {"kind": record.split["kind"], "folds": len(record.split.get("folds", ()))},
        "architecture": record.architecture,
        "choice": record.choice,
    }


def _print_trained(trained: Trained) -> None:
    for note in trained.notes:
        click.echo(f"note: {note}", err=True)
    if trained.scores:
        from rich.console import Console

        from kymo.models.training.record import cross_validation

        console, split = Console(), trained.record.split
        folds_text = cross_validation(split)
        who = some(split.get("validation", {}).get("groups") or [], _MOST_NAMES)
        click.echo(
            f"Over {folds_text}: {who}"
            if folds_text
            else f"On what was held out (by {split.get('kind')}{': ' * bool(who)}{who}):"
        )
        _print_scores(console, trained.scores)
        if trained.scores.get("interval", {}).get("kind") == "session":
            click.echo(
                "Nobody is named ([source] subject), so this is of new recordings; new people may be told worse."
            )
        elif split.get("kind") not in ("subject", "column"):
            click.echo(
                "The same people were learned from, so this is of new recordings of theirs; new people may be told worse."
            )
    click.echo(trained.record.choice)


@click.command("evaluate")
@click.argument("recipe")
@MORE
@DATA
@click.option("--bundle", help="Folder, recipe or recipe@digest; else the recipe's current one.")
@click.option("--without", multiple=True, metavar="S", help="As if this input had never come; may be repeated.")
@click.option(
    "--report", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write a report (HTML, PNG) into it."
)
@click.option(
    "--out", type=_FILE, metavar="F.json", help="Write a copy of the experiment JSON that --data names, with results."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_command(recipe: str, more: tuple[str, ...], paths: tuple[str, ...], **options: Any) -> None:
    """Score a bundle on labelled recordings.

    A recording counts by the mean of its windows; one without a window counts as an error. With --out the scores become the
    member `results` of a copy of the experiment that --data names.

    Example: kymo evaluate basicmotions --data basicmotions:test
    """
    from rich.console import Console

    from kymo.models.bundle import load_bundle
    from kymo.models.evaluate import judge_recordings, without
    from kymo.models.reports.report import evaluate_with_report, write_report
    from kymo.models.training.record import trained_on
    from kymo.processors.recipe.load import load_recipe
    from kymo.streams.readers import read
    from kymo.streams.readers.files import write_results

    loaded = load_recipe(recipe)
    experiment = _experiment((*paths, *more)) if options["out"] else None
    bundle, written = load_bundle(options["bundle"] or loaded.name), dict[str, str]()
    recordings = read((*paths, *more), loaded.read_options())
    if options["without"]:
        recordings = without(recordings, loaded, options["without"])
    if options["folder"]:
        judgement, files = evaluate_with_report(loaded, bundle, recordings)
        written["report"] = str(write_report(options["folder"], files))
    else:
        judgement = judge_recordings(loaded, bundle, recordings)
    scores, learned = judgement.scores(), trained_on(judgement)
    if experiment is not None:
        write_results(experiment, options["out"], {"recipe": loaded.name, **scores, "trained_on": learned})
        written["results"] = str(options["out"])
    if options["as_json"]:
        click.echo(json.dumps({**scores, "trained_on": learned, **written}, ensure_ascii=False))
        return
    _print_scores(Console(), scores)
    if learned:
        count = sum(facts["recordings"] for facts in judgement.inputs.values())
        click.echo(
            f"note: {bundle.id} was trained on {learned} of these {count} recordings: "
            "the scores do not say how it does on new ones",
            err=True,
        )
    for note in grouped(judgement.doubts.items()):
        click.echo(f"note: {note}", err=True)
    click.echo("".join(f"{name}: {path}\n" for name, path in written.items()), nl=False)


def _experiment(paths: tuple[str, ...]) -> Experiment:
    from kymo.streams.readers.files import EXPERIMENT_SUFFIX, load_experiment

    if len(paths) != 1 or not paths[0].lower().endswith(EXPERIMENT_SUFFIX):
        raise click.UsageError("--out copies an experiment: name one experiment JSON, and nothing else, with --data")
    return load_experiment(paths[0])


def _class_table(scores: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    answers = list(next(iter(scores["confusion"].values())))
    fits = len(answers) <= _MOST_COLUMNS  # more do not fit beside each other
    columns = answers if fits else ["n", "taken for"]
    options: dict[str, Any] = {"box": box.SIMPLE, "collapse_padding": True, "pad_edge": False}
    table = Table("truth", *columns, "recall", "precision", "F1", title=scores.get("bundle"), **options)
    for truth, row in scores["confusion"].items():
        class_scores = scores["per_class"][truth]
        counts = [str(row[answer]) if row[answer] else "·" for answer in answers]
        mistakes = sorted((answer for answer in answers if row[answer] and answer != truth), key=lambda a: -row[a])
        mistaken = ", ".join(f"{answer} {row[answer]}" for answer in mistakes[:2])
        cells = counts if fits else [str(class_scores["n"]), mistaken or "·"]
        table.add_row(truth, *cells, *(f"{class_scores[key]:.3f}" for key in ("recall", "precision", "f1")))
    for label in scores.get("not_judged", ()):
        if label not in scores["per_class"]:
            table.add_row(label, *["–"] * (len(columns) + 3))
    return table


def _print_classes(console: Console, scores: dict[str, Any]) -> None:
    from kymo.models.scores import UNCLASSIFIED, interval_line

    console.print(_class_table(scores))
    without = f", {scores['unclassified']} {UNCLASSIFIED}" if scores["unclassified"] else ""
    console.print(
        f"{many(scores['n'], 'recording')}: accuracy {scores['accuracy']:.1%}, macro F1 {scores['macro_f1']:.3f}{without}; "
        f"{many(scores['windows'], 'window')}: accuracy {scores['window_accuracy']:.1%}"
    )
    if limits := scores.get("interval"):
        click.echo(interval_line(limits))
    common = scores.get("commonest")
    if common and scores["beats_guessing"] is None:
        click.echo(f"{common['label']} alone is judged: nothing tells whether this is better than guessing")
    elif common and len(scores["per_class"]) > 1:
        text = f"to say {common['label']} every time is right in {common['accuracy']:.1%}"
        click.echo(text if scores["beats_guessing"] else f"no better than guessing by more than chance: {text}")
    if missing := scores.get("not_judged"):
        click.echo(f"not judged: {', '.join(missing)}; no recording of that is among these, so no score counts it")
    people = scores.get("per_subject", {})
    for subject, brief in people.items() if len(people) <= _MOST_PEOPLE else ():
        console.print(f"  {subject or 'no subject'}: {many(brief['n'], 'recording')} {brief['accuracy']:.1%}")


def _print_scores(console: Console, scores: dict[str, Any]) -> None:
    from kymo.models.scores import score_line

    if "confusion" in scores:
        _print_classes(console, scores)
    for head, head_scores in scores.get("heads", {}).items():
        console.print(score_line(head, head_scores))


def _period(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """Seconds of a time such as ``90s``, ``30m``, ``1h``, ``1d``."""
    match = LENGTH.fullmatch(value or "")
    if value is not None and match is None:
        raise click.BadParameter(f"{value!r}: expected a time such as 90s, 30m, 1h or 1d")
    return float(match[1]) * SECONDS[match[2]] if match else None


@click.command()
@click.argument("recipe")
@MORE
@click.option("--data", "paths", multiple=True, metavar="PATH…", help="Files, folders or URLs with labels.")
@click.option("--archive", type=click.Path(path_type=Path, file_okay=False), help="Folder of archived topics.")
@click.option("--every", callback=_period, metavar="TIME", help="Again and again, such as 1h; else once.")
@click.option("--metric", type=click.Choice(METRICS), default="accuracy", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Most passes over the data.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of everything that is random.")
@click.option("--only", is_flag=True, help="The recipe's architecture alone; MiniRocket is not fitted beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a round.")
def refresh(recipe: str, more: tuple[str, ...], paths: tuple[str, ...], **options: Any) -> None:
    """Train RECIPE on what is archived and labelled by now, and promote the model if it beats the champion.

    A quarter of the sessions is kept from training, the same ones every time; on them the new model must be better by more than
    chance. Running agents take it within seconds. Without --data and --archive the default archive is used.

    Example: kymo refresh running --archive archive --every 1h
    """
    from kymo.models.training.gate import alone, champion_of, plan_of, refresh_for_ever, train_behind_gate
    from kymo.models.training.run import TrainRequest
    from kymo.processors.recipe.load import load_recipe

    settings, loaded = Settings.from_env(), load_recipe(recipe)
    sources = _sources((*paths, *more), options["archive"], settings)
    request = TrainRequest(sources, epochs=options["epochs"], seed=options["seed"], only=options["only"])

    def one_round() -> Outcome:
        with progress() as on_stage:
            return train_behind_gate(loaded, request, settings, on_stage, metric=options["metric"])[1]

    def say(outcome: Outcome) -> None:
        click.echo(json.dumps(asdict(outcome), ensure_ascii=False) if options["as_json"] else outcome.line())

    with alone(loaded.name, settings.home):
        if options["every"] is None:
            say(one_round())
            return
        stop = threading.Event()
        wait = lambda: not stop.wait(options["every"])  # noqa: E731

        def signature() -> str:
            return plan_of(loaded, sources).signature

        signature()  # what was mistyped ends this at once; what goes wrong later, the next round may do
        champion = partial(champion_of, loaded, settings.home)
        for outcome in refresh_for_ever(loaded, one_round, signature, wait, champion):
            say(outcome)


def _sources(paths: tuple[str, ...], archive: Path | None, settings: Settings) -> tuple[str, ...]:
    if archive is None and not paths:
        from kymo.streams.archive.format import default_folder

        archive = default_folder(settings)
        if not archive.is_dir():
            raise KymoError(f"{archive}: no archive is there; name --data or --archive, or run `kymo archive`")
    return (*([str(archive)] if archive else []), *paths)
