"""The tables of README and docs/ against the code: recipes, settings, topics, metrics, verbs, formats. What drifts, fails."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from documents import DOCUMENTS, ROOT, blocks, commands, section_of, table, text_of, words

import kymo
from kymo.models.zoo import ARCHITECTURES, architecture
from kymo.processors.recipe.fusion import EventInputTable
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.processors.recipe.tables import HeadTable
from kymo.processors.registry import STEPS
from kymo.streams.chunk_pb2 import Chunk
from kymo.streams.errors import ChunkError, RecipeError
from kymo.streams.events import EVENT_SCHEMA, Event
from kymo.streams.labels.labels import LABEL_SCHEMA
from kymo.streams.promotions import PROMOTION_SCHEMA
from kymo.streams.sessions import SESSION_SCHEMA
from kymo.streams.settings import Settings
from kymo.streams.topics import TABLE

NONSENSE = "zzqqk"
#: What a recipe cannot do without: exactly this, so that each of these lines is one that the tables must call required.
MINIMAL = {
    "name": 'name = "x"',
    "input": "[[input]]",
    "input.stream": 'stream = "s"',
    "input.rate_hz": "rate_hz = 10",
    "input.channels": 'channels = ["a", "b"]',
    "window": "[window]",
    "window.length_s": "length_s = 6.4",
    "window.hop_s": "hop_s = 3.2",
}
#: Steps whose parameters cannot all be left out.
ENOUGH = {"select": 'channels = ["a"]', "resample": "up = 1\ndown = 2", "mel": "n_mels = 1", "log_mel": "n_mels = 1"}


def recipe(more: str = "", without: str = "", steps: str = "") -> Recipe:
    """The minimal recipe with other tables behind it, or without a line."""
    lines = [text for name, text in MINIMAL.items() if not (without and f"{name}.".startswith(f"{without}."))]
    lines.insert(next((i for i, line in enumerate(lines) if line == "[window]"), len(lines)), steps)
    return parse_recipe("\n".join([*lines, more]) + "\n")


def known(more: str = "", steps: str = "", top: str = "") -> set[str]:
    """The words that the recipe reader offers in place of one that it does not know."""
    with pytest.raises(RecipeError, match=NONSENSE) as caught:
        parse_recipe(f"{top}\n" + "\n".join(MINIMAL.values()).replace("[window]", f"{steps}\n[window]") + f"\n{more}\n")
    return set(str(caught.value).partition("; there are ")[2].split(", "))


def cells(heading: str, first: str = "key") -> dict[str, str]:
    """Default by key, as the documents' table has it."""
    rows = table(heading, first)
    assert all(len(row) == 3 for row in rows)
    keys = [row[0].strip("`") for row in rows]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, (row[1] for row in rows), strict=True))


def same_default(cell: str, value: Any) -> bool:
    """Whether a table's cell says this default."""
    if cell == "none":
        return value in (None, (), {}, [])
    said = tomllib.loads(f"x = {cell.strip('`')}")["x"]
    value = list(value) if isinstance(value, tuple) else value
    return bool(said == value) and isinstance(said, bool) == isinstance(value, bool)


def check_table(heading: str, offered: set[str], default: Mapping[str, Any], first: str = "key") -> None:
    said = cells(heading, first)
    assert set(said) == offered, heading
    for key, cell in said.items():
        if cell != "required":
            assert same_default(cell, default.get(key)), f"{heading}: `{key}` is {default.get(key)!r}, not {cell}"


def values_of(thing: Any) -> dict[str, Any]:
    return {f.name: getattr(thing, f.name) for f in fields(thing)}


MODEL = '[model]\narchitecture = "spectrogram_cnn"'


def test_the_minimal_recipe_is_what_is_required() -> None:
    recipe()
    said = {"": "Top of the file", "input.": "`[[input]]`", "window.": "`[window]`"}
    wanted = {
        prefix + key for prefix, heading in said.items() for key, cell in cells(heading).items() if cell == "required"
    }
    assert wanted == set(MINIMAL)
    for name in MINIMAL:
        with pytest.raises(RecipeError):
            recipe(without=name)
    assert (
        cells("`[model]`")["architecture"]
        == cells("`[[alerts]]`")["label"]
        == cells("`[[heads]]`")["name"]
        == "required"
    )


def test_recipe_tables() -> None:
    found = recipe(f'{MODEL}\n[[alerts]]\nlabel = "a"')
    bad = f"{NONSENSE} = 1"
    check_table("Top of the file", known(top=bad), {})
    check_table("`[source]`", known(f"[source]\n{bad}"), values_of(found.source))
    check_table("`[[input]]`", known(steps=bad), values_of(found.inputs[0]))
    check_table("`[join]`", known(f"[join]\n{bad}"), {})
    check_table("`[window]`", known(bad), {"pad": False})
    assert found.model is not None
    check_table("`[model]`", {"architecture", "min_probability", "pool"}, values_of(found.model))
    check_table("`[labels]`", known(f"[labels]\n{bad}"), values_of(found.labels))
    heads = known(f'{MODEL}\n[[heads]]\nname = "h"\n{bad}')
    check_table("`[[heads]]`", heads, values_of(HeadTable("h")))
    check_table("`[train]`", known(f"[train]\n{bad}"), values_of(found.train))
    check_table("Late fusion", set(values_of(EventInputTable("r"))), values_of(EventInputTable("r")))
    check_table("`[[alerts]]`", known(f'[[alerts]]\nlabel = "a"\n{bad}'), values_of(found.alerts[0]))


def test_recipe_steps() -> None:
    rows = table("`[[steps]]`, `[[window.steps]]`", "step")
    before = known(steps=f'[[steps]]\nstep = "{NONSENSE}"')
    behind = known(f'[[window.steps]]\nstep = "{NONSENSE}"')
    said = {row[0].strip("`"): (row[1], row[2]) for row in rows}
    yes = {True: "yes", False: "no"}
    assert said == {name: (yes[name in before], yes[name in behind]) for name in before | behind}


_STEPS = [row[0].strip("`") for row in table("`[[steps]]`, `[[window.steps]]`", "step")]


@pytest.mark.parametrize("name", [name for name in _STEPS if name != "mask"])  # which has none of its own
def test_step_parameters(name: str) -> None:
    text = f'[[window.steps]]\nstep = "{name}"\n{NONSENSE} = 1' if not STEPS[name].before_window else ""
    offered = known(text, "" if text else f'[[steps]]\nstep = "{name}"\n{NONSENSE} = 1')
    if name == "log_mel":
        offered -= {f.name for f in fields(STEPS["mel"])}
    needed = {
        "select": "channels",
        "anew": "channel",
        "deviation": "channels",
        "field": "acc mag",
        "decode": "height width",
        "features": "measures",
    }
    required = set(needed.get(name, "").split())
    said = cells(f"`{name}`", "parameter")
    assert {key for key, cell in said.items() if cell == "required"} == required
    check_table(f"`{name}`", offered, {f.name: f.default for f in fields(STEPS[name])}, "parameter")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_parameters(name: str) -> None:
    pytest.importorskip("torch")
    made = architecture(name)(recipe().output_format(), ("a", "b"), {}, 0)
    check_table(f"`{name}`", set(made.parameters), made.parameters, "parameter")


class Asked(dict[str, str]):
    """An environment that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)


def shown(value: Any) -> str:
    """A setting's default as the table has it."""
    if value is False or value == "":
        return "off" if value is False else "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def test_settings() -> None:
    asked = Asked()
    found = Settings.from_env(asked)
    said = cells("Settings", "variable")
    assert set(said) == {name for name in asked.names if name.startswith("KYMO_")}
    for name, cell in said.items():
        member = name.removeprefix("KYMO_").removeprefix("KAFKA_").lower()
        member = member if hasattr(found, member) else member.removeprefix("security_")
        assert member == "home" or cell.strip("`") == shown(getattr(found, member)), name


def kept(topic: Any) -> str:
    if topic.compact:
        return "newest of each key"
    if topic.retention_ms < 0:
        return "for ever"
    hours = topic.retention_ms // 3_600_000
    return (
        f"{hours} h" * (hours < 48)
        + f"{hours // 24} days" * (hours >= 48)
        + f", {topic.retention_bytes >> 30} GiB a partition"
    )


def test_topics() -> None:
    rows = table("Topics", "topic")
    assert [(row[0].strip("`"), row[2]) for row in rows] == [(topic.name, kept(topic)) for topic in TABLE]


def test_metrics() -> None:
    from kymo.deploy.metrics import WorkerMetrics

    made = WorkerMetrics({"r": "r@1"})
    names = {metric.name for metric in made.registry.collect() if metric.name.startswith("kymo_")}
    assert set(words(table("Metrics", "metric"))) == names


def test_formats() -> None:
    assert set(words(table("Chunk", "field"))) >= {f.name for f in Chunk.DESCRIPTOR.fields}
    schemas = {"Event": EVENT_SCHEMA, "Label": LABEL_SCHEMA, "Session": SESSION_SCHEMA, "Promotion": PROMOTION_SCHEMA}
    for heading, schema in schemas.items():
        assert words(table(heading, "field")) == list(schema["properties"])
    assert {f.name for f in fields(Event)} == set(EVENT_SCHEMA["properties"])


@pytest.mark.parametrize(
    ("name", "schema"),
    [("event", EVENT_SCHEMA), ("label", LABEL_SCHEMA), ("session", SESSION_SCHEMA), ("promotion", PROMOTION_SCHEMA)],
)
def test_schemas_stand_as_files(name: str, schema: dict[str, Any]) -> None:
    assert json.loads((ROOT / "streams" / "schemas" / f"{name}.json").read_text()) == schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert f"streams/schemas/{name}.json" in section_of("JSON Schemas")[1]


def test_a_bundle_runs_without_kymo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("docs/bundle.md", "python")
    shipped = ROOT / "models" / "shipped"
    monkeypatch.chdir(shipped)
    exec(block.text.replace('"motions"', '"basicmotions"'), {})
    labels = json.loads((shipped / "basicmotions" / "manifest.json").read_text())["labels"]
    assert all(f"'{label}'" in capsys.readouterr().out for label in labels[:1])


def test_a_bundle_holds_what_its_page_says() -> None:
    members = set(words(table("The bundle", "member of the manifest")))
    for name in ("basicmotions", "magnetic", "activity"):
        manifest = json.loads((ROOT / "models" / "shipped" / name / "manifest.json").read_text())
        assert set(manifest) - members == set()


def test_names_that_python_has() -> None:
    named = [word.partition("(")[0] for word in words(table("What `import kymo` gives", "name"))]
    assert sorted(named) == sorted(set(kymo.__all__) - {"main"})


def test_verbs() -> None:
    said = [word.split()[1] for word in words(table("Command line", "verb")) if word.startswith("kymo ")]
    assert sorted(set(said)) == sorted(kymo.VERBS)


def test_reasons_of_rejection() -> None:
    text = section_of("Bad input on a topic")[1]
    assert "Reasons of rejection are " + ", ".join(f"`{r}`" for r in ChunkError.REASONS[:-1]) in text
    assert f"and `{ChunkError.REASONS[-1]}`" in text


def every_command() -> Iterator[tuple[str, list[str]]]:
    for name in DOCUMENTS:
        for line in commands(name):
            yield name, line


@pytest.mark.parametrize(("name", "line"), [(n, " ".join(w)) for n, w in every_command() if w[0] == "kymo"])
def test_every_kymo_command_is_one(name: str, line: str) -> None:
    """Verb and options are known to the command line; what it does is tried elsewhere."""
    command: Any = kymo.cli
    rest = line.split()[1:]
    context = command.make_context("kymo", list(rest))
    while hasattr(command, "resolve_command"):
        if command.invoke_without_command and (not rest or rest[0].startswith("-")):
            break  # a verb that does something by itself; its options are read already
        _, command, rest = command.resolve_command(context, rest)
        context = command.make_context(line, list(rest), parent=context)


def test_every_make_target_is_one() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = {word for _, w in every_command() if w[0] == "make" for word in w[1:] if "=" not in word}
    for name in DOCUMENTS:
        said |= set(re.findall(r"`make\s([a-z]+)", text_of(name)))
    assert said <= targets
    assert {"demo", "test", "setup"} <= said


def anchors_of(path: Path) -> set[str]:
    """What a link into a Markdown file may name behind its `#`."""
    heads = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", [*DOCUMENTS, "benchmarks/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(name)):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors_of(path), f"{name}: {target}"


def test_the_readme_leads_to_every_page() -> None:
    """It is where people begin: short, and every other document can be reached from it."""
    text = text_of("README.md")
    missing = {name for name in DOCUMENTS if f"]({name})" not in text} - {"README.md"}
    assert not missing, f"no link from README.md to {missing}"
    assert len(text.splitlines()) <= 350, "README.md is for newcomers; what is reference goes to a page of docs/"


def test_files_that_are_named_exist() -> None:
    for name in DOCUMENTS:
        for path in re.findall(
            r"`((?:streams|processors|models|deploy|tests|benchmarks|\.ci)/[\w./]*)`", text_of(name)
        ):
            if "norm.py" not in path and "softmax_regression.py" not in path:
                assert Path(ROOT / path).exists(), f"{name}: {path}"
