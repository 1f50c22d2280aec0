"""From recordings to a bundle and its events: sessions of any length, classes made of a number, numbers alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from checks import windows_of
from memory_kafka import MemoryKafka, Worker, until
from recipes_made import MINIROCKET, STANDARDISE, recipe_text
from verbs import invoke

from kymo.models.data.dataset import read_dataset
from kymo.models.data.examples import Dataset, Example, bin_of, ordered, settle_bins
from kymo.models.data.samples import fit_steps, split_chain, with_steps
from kymo.models.data.store import StoreWriter, open_store
from kymo.models.predict import Memory, Predictor
from kymo.models.serving.operator import Operator
from kymo.models.serving.outputs import Events
from kymo.models.training.gate import plan_of
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.streams.chunk import Header, Window
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import RecipeError, TrainingError
from kymo.streams.events import Event
from kymo.streams.readers import read
from kymo.streams.recording import StreamData
from kymo.streams.topics import Names

PADDED = recipe_text("tiny", "x y", 10, (2, 1), of_window={"pad": True}, behind=STANDARDISE, model=MINIROCKET)


#: Samples of each session, and of each of its windows what is there.
LENGTHS = {7: [7], 20: [20], 25: [20, 15], 31: [20, 20, 11], 40: [20, 20, 20]}


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, length in enumerate([*LENGTHS] * 2):
        values = np.random.default_rng(number).standard_normal((length, 2)) + (5 if number > 4 else 0)
        rows = [f"{i / 10},{x:.3f},{y:.3f},{'ab'[number > 4]}" for i, (x, y) in enumerate(values)]
        (folder / f"s{number}.csv").write_text("\n".join(["t,x,y,label", *rows]) + "\n")
    return folder


def test_windows_say_what_is_there_and_end_in_zeros(lengths: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(PADDED)
    head, steps = split_chain(recipe.chain)
    dataset = read_dataset(read([lengths], recipe.read_options()), recipe, head)
    by_session: dict[str, list[int]] = {}
    for example in dataset.examples:
        window = example.window
        assert (window.data.shape, len(window.real)) == ((20, 2), window.end_index - window.start_index)
        assert window.end_ns - window.start_ns == len(window.real) * 10**8
        by_session.setdefault(window.session, []).append(len(window.real))
    assert list(by_session.values()) == [*LENGTHS.values()] * 2
    (fitted,) = fit_steps(steps, [example.window for example in dataset.examples])
    every = np.concatenate([example.window.real for example in dataset.examples])
    np.testing.assert_allclose(fitted.to_json()["spec"]["mean"], every.mean(0, np.float64), rtol=1e-6)
    writer = StoreWriter(tmp_path)
    writer.add_all(dataset.examples)
    writer.finish(dataset)
    writer.close()
    for example in with_steps(open_store(tmp_path).examples, [fitted]):
        window = example.window
        assert not window.data[len(window.real) :].any()
        assert np.abs(window.real).max() > 0


def test_sessions_of_any_length_have_events(lengths: Path, tmp_path: Path) -> None:
    recipe, bundle = tmp_path / "tiny.toml", str(tmp_path / "bundle")
    recipe.write_text(PADDED)
    done = invoke("train", recipe, "--data", lengths, "--out", bundle, "--no-report")
    done = invoke("run", recipe, lengths, "--bundle", bundle)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [round((event["end_ns"] - event["start_ns"]) / 1e8) for event in events] == [
        count for counts in LENGTHS.values() for count in counts
    ] * 2


def test_a_stateful_model_takes_no_padding() -> None:
    text = PADDED.replace("hop_s = 1", "hop_s = 2").replace(
        '"minirocket"\nfeatures = 84', '"recurrent"\nstateful = true'
    )
    with pytest.raises(RecipeError, match=r"pad = true: a stateful model takes what came"):
        parse_recipe(text)


def test_online_is_as_offline_whenever_a_worker_is_killed() -> None:
    """Sessions of several lengths, read by workers one after the other: each window there once, and as it is offline."""
    names, topic = Names("t"), TopicPartition("t.sensor", 0)
    recipe = parse_recipe(PADDED)
    head = recipe.chain.cut_behind_window()[0]

    def described(window: Window) -> dict[str, Any]:
        digest = sha256(np.ascontiguousarray(window.data).tobytes()).hexdigest()
        start, end = window.start_index, window.end_index
        return {"recipe": "tiny", "session": window.session, "start_index": start, "end": end, "data": digest}

    def classify(windows: Sequence[Window], _: object) -> list[list[bytes]]:
        return [[json.dumps(described(window)).encode()] for window in windows]

    kafka, codec, wanted = MemoryKafka(), ChunkCodec(), list[dict[str, Any]]()
    for number, length in enumerate([*LENGTHS, 93]):
        values = np.random.default_rng(number).standard_normal((length, 2)).astype(np.float32)
        stream = StreamData(Header(f"s{number}", 0, recipe.input_format()), values)
        wanted += [described(window) for window in windows_of([stream], head)]
        for chunk in stream.chunks(1 + number):
            kafka.append(topic.topic, 0, f"s{number}".encode(), codec.encode(chunk))

    def published() -> list[dict[str, Any]]:
        return [json.loads(value) for value in kafka.values(names.of("events"))]

    async def work() -> None:
        for count in (3, 6, len(wanted)):
            events = Events("tiny")
            operator = Operator(
                "tiny", "tiny.x", (topic.topic,), head, events, names.of("events"), recipe.matches, classify
            )
            worker = Worker(kafka, operator, names)
            worker.start(topic)
            await until(lambda count=count: len(published()) >= count)
            await worker.stop()
            assert worker.failures == []

    asyncio.run(work())
    by_place = {(event["session"], event["start_index"]): event for event in published()}
    assert len(by_place) == len(published()) == len(wanted)
    assert sorted(map(str, published())) == sorted(map(str, wanted))


BINNED = recipe_text(
    "tiny", "x y", 10, (2, 1), model=MINIROCKET, labels='column = "seconds_10k"\n{bins}', train={"split": "subject"}
)


def settled(numbers: list[float], bins: str) -> tuple[Any, dict[str, str]]:
    """The recipe with its borders, and the class of each person."""
    window: Any = SimpleNamespace(session="s")
    dataset = Dataset([Example(window, f"{number:g}", f"s{i}", f"p{i}") for i, number in enumerate(numbers)])
    recipe = settle_bins(parse_recipe(BINNED.format(bins=bins)), dataset)
    return recipe.labels.bins, {example.subject: example.label for example in dataset.examples}


@pytest.mark.parametrize(
    ("bins", "borders", "sizes"),
    [
        ("bins = 3", (2600, 3200), [4, 1, 1]),
        ('bins = 3\nbins_by = "people"', (2150, 2450), [2, 2, 2]),
        ("bins = [2200, 3000]", (2200, 3000), [2, 3, 1]),
    ],
)
def test_borders(bins: str, borders: tuple[float, ...], sizes: list[int]) -> None:
    numbers = [2000, 2100, 2200, 2300, 2600, 3800]
    if bins.startswith("bins = ["):
        recipe = parse_recipe(BINNED.format(bins=bins))
        assert recipe.labels.bins == borders
        classes = {str(i): bin_of(str(number), borders) for i, number in enumerate(numbers)}
    else:
        found, classes = settled([float(number) for number in numbers], bins)
        assert found == borders
    names = ordered(classes.values())
    assert names == (f"under {borders[0]}", f"{borders[0]} to {borders[1]}", f"{borders[1]} and more")
    assert [list(classes.values()).count(name) for name in names] == sizes


@pytest.mark.parametrize("bins_by", ["range", "people"])
@pytest.mark.parametrize(("first", "last"), [(101300, 101400), (7000100, 7000109), (1.00001, 1.00009)])
def test_numbers_near_each_other_have_borders_and_names(bins_by: str, first: float, last: float) -> None:
    numbers = np.linspace(first, last, 8)
    window: Any = SimpleNamespace(session="s")
    dataset = Dataset([Example(window, repr(float(number)), f"s{i}") for i, number in enumerate(numbers)])
    recipe = settle_bins(parse_recipe(BINNED.format(bins=f'bins = 4\nbins_by = "{bins_by}"')), dataset)
    assert isinstance(recipe.labels.bins, tuple)
    assert len(dataset.labels) == 4
    assert [dataset.labels.index(example.label) for example in dataset.examples] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_equal_numbers_are_in_one_class() -> None:
    borders, classes = settled([2000, 2500, 2500, 2500, 2500, 3000], 'bins = 2\nbins_by = "people"')
    assert len({classes[f"p{i}"] for i in range(1, 5)}) == 1
    assert len(borders) == 1
    with pytest.raises(TrainingError, match="6 people have only 2 numbers; take fewer bins"):
        settled([2000, 2000, 2000, 2500, 2500, 2500], 'bins = 3\nbins_by = "people"')


@pytest.mark.parametrize(
    "bins", ["bins = 1", "bins = [3000, 2500]", 'bins_by = "runners"', 'bins = 2\nnames = {a = "b"}']
)
def test_what_is_no_bins(bins: str) -> None:
    with pytest.raises(RecipeError, match="bins"):
        parse_recipe(BINNED.format(bins=bins))


def people(folder: Path, bins: str) -> tuple[list[str], str]:
    """A file each of 8 people with a number of their own, and the recipe."""
    (folder / "tiny.toml").write_text(BINNED.format(bins=bins))
    for person in range(8):
        values = np.random.default_rng(person).standard_normal((60, 2)) * (1 + person // 4)
        rows = [f"{i / 10},{x:.3f},{y:.3f},p{person},{2000 + 100 * person}" for i, (x, y) in enumerate(values)]
        (folder / f"s{person}.csv").write_text("\n".join(["t,x,y,subject,seconds_10k", *rows]) + "\n")
    return [str(folder / f"s{person}.csv") for person in range(8)], str(folder / "tiny.toml")


def test_people_with_a_number_of_their_own_can_be_spared_to_judge(tmp_path: Path) -> None:
    files, recipe = people(tmp_path, "bins = 2")
    assert 1 < len(plan_of(load_recipe(recipe), tuple(files)).held_out) < 5


@pytest.mark.parametrize("bins", ["bins = 2", "bins = [2350]"])
def test_what_is_exported_by_subject_is_learned_from(tmp_path: Path, bins: str) -> None:
    files, recipe = people(tmp_path, bins)
    out = str(tmp_path / "windows")
    invoke("dataset", "export", recipe, "--data", *files, "--format", "tfrecord", "--by", "subject", "--out", out)
    plain, read = (
        json.loads(invoke("dataset", "show", recipe, "--data", *paths, "--json").stdout) for paths in (files, [out])
    )
    assert plain == read
    assert plain["training"].keys() == {"under 2350", "2350 and more"}
    (tmp_path / "tiny.toml").write_text(BINNED.format(bins="bins = [2400]"))
    stale = bins == "bins = [2350]"
    shown = invoke("dataset", "show", recipe, "--data", out, status=int(stale)).output
    assert ("take these, or export anew" in shown) == stale


def test_from_training_to_events(tmp_path: Path) -> None:
    files, recipe = people(tmp_path, 'bins = 2\nbins_by = "people"')
    words = ["--data", *files, "--out", str(tmp_path / "bundle"), "--no-report", "--json"]
    invoke("train", recipe, *words)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert (manifest["bins"], manifest["labels"]) == ([2350], ["under 2350", "2350 and more"])
    # One slow person alone would give other borders, were they not the bundle's.
    words = ["evaluate", recipe, "--data", files[7], "--bundle", str(tmp_path / "bundle"), "--json"]
    scores = json.loads(invoke(*words).stdout)
    assert scores["confusion"]["2350 and more"] == {"2350 and more": 1}
    done = invoke("run", recipe, files[0], "--bundle", tmp_path / "bundle")
    assert {json.loads(line)["label"] for line in done.stdout.splitlines()} <= {
        "under 2350",
        "2350 and more",
        "unknown",
    }


NUMBERS = recipe_text(
    "tiny",
    "x y",
    10,
    (2, 1),
    behind=STANDARDISE,
    model="{model}",
    labels={"classes": False},
    heads=[{"name": "seconds_10k", "kind": "number"}],
    train={"split": "subject", "folds": 2, "epochs": 2},
)


@pytest.mark.parametrize(
    "model",
    [
        'architecture = "minirocket"\nfeatures = 84',
        'architecture = "spectrogram_cnn"',
        'architecture = "recurrent"\nunits = 4',
    ],
)
def test_from_training_to_report_and_events(model: str, tmp_path: Path) -> None:
    if "cnn" in model:
        pytest.importorskip("torch")
    if "recurrent" in model:
        pytest.importorskip("tensorflow")
    (tmp_path / "tiny.toml").write_text(NUMBERS.format(model=model))
    for person in range(8):
        values = np.random.default_rng(person).standard_normal((60, 2)) * (1 + person)
        rows = [f"{i / 10},{x:.3f},{y:.3f},p{person},{2000 + 100 * person}" for i, (x, y) in enumerate(values)]
        (tmp_path / f"s{person}.csv").write_text("\n".join(["t,x,y,subject,seconds_10k", *rows]) + "\n")
    files, recipe, bundle = [tmp_path / f"s{i}.csv" for i in range(8)], tmp_path / "tiny.toml", tmp_path / "b"
    done = invoke("train", recipe, "--data", *files, "--out", bundle)
    assert "seconds_10k:" in done.stdout
    assert "accuracy" not in done.stdout
    page = (tmp_path / "b" / "report" / "report.html").read_text()
    assert "seconds_10k" in page
    assert "Recordings right" not in page
    assert "Confusion" not in page
    scores = json.loads(invoke("evaluate", recipe, "--data", *files, "--bundle", bundle, "--json").stdout)
    assert (scores["n"], scores["windows"], scores["heads"]["seconds_10k"]["n"]) == (8, 40, 8)
    assert "accuracy" not in scores
    done = invoke("evaluate", recipe, "--data", *files, "--bundle", bundle, "--report", tmp_path / "r")
    assert "seconds_10k: 8 recordings: mean error" in done.stdout
    assert "accuracy" not in done.stdout
    events = [json.loads(line) for line in invoke("run", recipe, files[3], "--bundle", bundle).stdout.splitlines()]
    assert len(events) == 2 * 5
    assert {event["label"] for event in events} == {""}
    assert all(event["values"].keys() == {"seconds_10k"} for event in events)
    assert events[0]["values"] == events[1]["values"]


def numbers(pool: str = "") -> Recipe:
    """A recipe of two numbers, pooled where asked."""
    text = NUMBERS.format(model=f'architecture = "minirocket"\n{pool}')
    return parse_recipe(text.replace("[train]", '[[heads]]\nname = "cadence"\nkind = "number"\n[train]'))


@pytest.mark.parametrize("kind", ["mean", "hmm"])
def test_pooled_numbers_do_not_mix(kind: str) -> None:
    """The window's own event says what its heads say."""
    recipe = numbers(f'pool = {{kind = "{kind}", windows = 2}}')

    def classify(windows: Sequence[Any]) -> list[Event]:
        said = [{"seconds_10k": 40.0 + 2 * n, "cadence": 3.0 + n} for n in windows]
        return [
            Event(f"{n}", "tiny", "b", "s", "imu", n, n, n + 1, "", 0.0, {}, v, head)
            for n, values in zip(windows, said, strict=True)
            for head, v in (("", values), *((name, {name: value}) for name, value in values.items()))
        ]

    heads = [SimpleNamespace(name=head.name) for head in recipe.heads]
    learned = {"kind": "hmm", "transitions": [[1.0]], "start": [1.0]}
    bundle = SimpleNamespace(heads=heads, chain=recipe.chain, state=0, id="b", manifest={"pool": learned})
    fake: Any = SimpleNamespace(bundle=bundle, classify=classify)
    predictor, memory = Predictor(fake, recipe), Memory()
    windows: Any = [0, 1, 2]
    *_, (own, *others) = predictor.predict(windows, [memory] * 3)
    last = {"seconds_10k": 43.0, "cadence": 4.5} if kind == "mean" else {"seconds_10k": 44.0, "cadence": 5.0}
    assert own.values == last
    assert [head.values for head in others] == [{name: value} for name, value in last.items()]


def test_without_a_number_there_is_nothing_to_learn() -> None:
    text = NUMBERS.format(model='architecture = "minirocket"').replace('kind = "number"', "")
    with pytest.raises(RecipeError, match=r"classes = false.*add \[\[heads\]\] with kind = \"number\""):
        parse_recipe(text)
