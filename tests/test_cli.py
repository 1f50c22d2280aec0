"""The command line as others script against it: verbs, help, exit statuses; and the façade."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from documents import ROOT
from verbs import invoke, python

import kymo
from kymo.streams.errors import KymoError


def verb_that(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    monkeypatch.setattr(kymo, "load_verb", lambda _: click.Command("demo", callback=action))


def leaves(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if isinstance(command, click.Group):
        return [leaf for name, inner in command.commands.items() for leaf in leaves(inner, (*path, name))]
    return [path]


def test_help_lists_every_verb() -> None:
    result = invoke("--help")
    assert [line.split()[0] for line in result.stdout.partition("Verbs:\n")[2].splitlines()] == list(kymo.VERBS)


@pytest.mark.parametrize("name", kymo.VERBS)
def test_every_verb_has_help_with_an_example(name: str) -> None:
    for path in leaves(kymo.load_verb(kymo.VERBS[name]), (name,)):
        result = invoke(*path, "--help")
        assert "kymo " + name in result.stdout.partition("Example")[2], f"{' '.join(path)} --help has no example"


def roots_loaded(code: str) -> set[str]:
    """Names of the packages that a Python process has loaded at its end."""
    code += "\nimport sys; print(*sys.modules, sep='\\n')"
    return {name.partition(".")[0] for name in python(code).split()}


def test_help_waits_for_no_library() -> None:
    # Some of it at once would take longer to load than a person waits for a help text: 0.3 s.
    helps = (
        "import kymo\nfor name in kymo.VERBS: kymo.cli.main([name, '--help'], prog_name='kymo', standalone_mode=False)"
    )
    assert not roots_loaded(helps) & {"numpy", "kafka", "mcap", "onnxruntime", "psutil", "rich", "scipy", "torch"}


def test_version() -> None:
    assert invoke("--version").stdout.startswith("kymo ")


def test_wrong_usage_is_2() -> None:
    result = invoke("evnts", status=2)
    assert "no verb 'evnts'; did you mean 'events'?" in result.stderr
    invoke("run", status=2)
    invoke("--nothing", status=2)


def test_a_failure_is_one_line_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KymoError("x.csv, row 3: 'a' is no number; correct it")

    verb_that(monkeypatch, fail)
    result = invoke("demo", status=1)
    assert result.stdout == ""
    assert result.stderr == "kymo: x.csv, row 3: 'a' is no number; correct it\n"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (click.Abort, 130), (BrokenPipeError, 141)])
def test_interruptions_are_quiet(error: type[BaseException], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    # The real standard output must survive that the command line gives it up.
    monkeypatch.setattr("os.dup2", lambda *_: None)
    verb_that(monkeypatch, fail)
    result = invoke("demo", status=status)
    assert result.stderr == ""


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    verb_that(monkeypatch, fail)
    result = invoke("demo", status=1)
    assert result.stderr == "kymo: this needs torch, which is not installed: pip install 'kymo-streams[torch]'\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'streams.nothing'", name="streams.nothing")

    verb_that(monkeypatch, fail)
    assert isinstance(invoke("demo", status=1).exception, ModuleNotFoundError)


def test_the_embedded_broker_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_BROKERS", "")
    monkeypatch.setattr("kymo.deploy.broker.address", lambda _: "127.0.0.1:5")
    seen: list[str] = []
    monkeypatch.setattr(
        kymo, "load_verb", lambda _: click.Command("x", callback=lambda: seen.append(os.environ["KYMO_BROKERS"]))
    )
    invoke("events")
    monkeypatch.setenv("KYMO_BROKERS", "elsewhere:9")
    invoke("replay")
    assert seen == ["127.0.0.1:5", "elsewhere:9"]


def test_importing_kymo_is_light() -> None:
    heavy = {"numpy", "kafka", "faust", "aiokafka", "torch", "onnxruntime", "scipy", "rich", "mcap"}
    assert not roots_loaded("import kymo") & heavy


def help_into(target: int) -> tuple[int, str]:
    """Exit status and standard error of `kymo --help` with its output sent to a file descriptor."""
    command = [sys.executable, "-m", "kymo", "--help"]
    done = subprocess.run(command, check=False, cwd=ROOT, stdout=target, stderr=subprocess.PIPE, text=True)
    os.close(target)
    return done.returncode, done.stderr


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    assert help_into(write)[1] == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is not there")
def test_a_full_disk_is_one_line() -> None:
    assert help_into(os.open("/dev/full", os.O_WRONLY)) == (1, "kymo: No space left on device\n")


def test_facade() -> None:
    from kymo.models.run import run
    from kymo.processors.recipe.load import load_recipe
    from kymo.streams.readers import read

    assert (kymo.run, kymo.load_recipe, kymo.read) == (run, load_recipe, read)
    assert set(dir(kymo)) == set(kymo.__all__)
    for name in kymo.__all__:
        assert getattr(kymo, name) is not None
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = kymo.nothing


@pytest.mark.parametrize(("arguments", "status"), [("--version", 0), ("nonsense", 2), ("init x --from nowhere", 1)])
def test_without_a_stderr_the_exit_status_is_the_same(arguments: str, status: int) -> None:
    command = f"{sys.executable} -m kymo {arguments} 2>&- >/dev/null"
    assert subprocess.run(["sh", "-c", command], check=False, timeout=60).returncode == status
