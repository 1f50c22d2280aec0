"""Cross-validation: equal to folds worked out by hand, nothing held out is ever learned from, and a kill costs one fold."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report_pages import read_record
from tiny_models import RECIPE, recipe, window
from verbs import invoke

from kymo.models.data.dataset import read_dataset
from kymo.models.data.examples import EVERY, Example
from kymo.models.data.samples import SplitData, fit_steps, split_chain, to_samples, with_steps
from kymo.models.data.splits import Split, _lacking, hold_out, judged_splits, make_folds
from kymo.models.pooling import learn_hmm, pool_windows
from kymo.models.predict import fit_temperature, softmax
from kymo.models.scores import HeldHead, HeldOut, number_rank
from kymo.models.training.candidates import Contender, JudgedPart, choose
from kymo.models.training.run import FitPlan
from kymo.models.training.train import Trained, TrainRequest, train
from kymo.models.zoo import Epoch, FitOptions, Samples, architecture
from kymo.models.zoo.minirocket import MiniRocket
from kymo.models.zoo.spectrogram_cnn import SpectrogramCnn
from kymo.processors.recipe.load import Recipe
from kymo.processors.recipe.tables import TrainTable
from kymo.streams.errors import RecipeError, TrainingError
from kymo.streams.readers import read
from kymo.streams.settings import Settings

pytest.importorskip("torch", reason="training needs torch")

SOURCE = '[source]\nsubject = "who"\n'
SUBJECTS = ("anna", "ben", "cleo")


def text(train_table: str, length_s: float = 0.4) -> str:
    """The small recipe, split by subject, with more in its ``[train]``."""
    made = RECIPE.replace("length_s = 0.4", f"length_s = {length_s}").replace("[model]", SOURCE + "[model]")
    return made.replace("folds = 0\nepochs = 3", f'epochs = 5\npatience = 2\nsplit = "subject"\n{train_table}')


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects, each with two recordings of each class; classes lie close together."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(4)
    for n, who in enumerate(SUBJECTS):
        for i in range(4):
            level = 1.2 * (i % 2) + 0.5 * n
            rows = [
                f"{t / 10:.1f},{level + random.normal():.3f},{random.normal():.3f},{'ab'[i % 2]},{who}"
                for t in range(30)
            ]
            (folder / f"{who}{i}.csv").write_text("\n".join(["t,x,y,label,who", *rows]) + "\n")
    return folder


def trained(loaded: Recipe, data: Path, out: Path, **request: Any) -> Trained:
    return train(loaded, TrainRequest((str(data),), out=out, report=False, **request))


def by_hand(loaded: Recipe, data: Path) -> dict[tuple[str, int], list[float]]:
    """Probabilities of each window, by session and first sample, from a plain loop over the folds."""
    examples = read_dataset(read([data], loaded.read_options()), loaded, split_chain(loaded.chain)[0]).examples
    labels, steps = ("a", "b"), split_chain(loaded.chain)[1]
    fmt = loaded.input_format()
    folds = make_folds(examples, loaded.train, 0)
    fold_of = {i: str(n) for n, fold in enumerate(folds) for i in fold.validation}

    def samples(numbers: Sequence[int], learned: Any) -> Samples:
        return to_samples(list(with_steps([examples[i] for i in numbers], learned)), labels, "channels_first")

    def fitted(training: list[int], stop: list[int], epochs: int) -> tuple[Any, Any, list[Epoch]]:
        learned = fit_steps(steps, [examples[i].window for i in training])
        model, history = architecture("spectrogram_cnn")(loaded.chain.output({fmt.stream: fmt}), labels, {}, 0), []
        side = samples(stop, learned) if stop else None
        model.fit(samples(training, learned), side, FitOptions(epochs, 0, 2), history.append)
        return model, learned, history

    stops: list[tuple[set[str], int, float]] = []  # folds kept apart, best epoch, temperature
    for _ in range(2):
        left = [i for i in fold_of if all(fold_of[i] not in part for part, _, _ in stops)]
        names = [fold_of[i] for i in left]
        share = 0.2 * len(fold_of) / len(left)
        part = hold_out(names, [examples[i].label for i in left], share, 0) or {names[-1]}
        stop = [i for i in sorted(fold_of) if fold_of[i] in part]
        model, learned, history = fitted([i for i in sorted(fold_of) if fold_of[i] not in part], stop, 5)
        side = samples(stop, learned)
        best = min(history, key=lambda epoch: epoch["validation_loss"])["epoch"]
        stops.append((part, int(best), fit_temperature(model.predict(side.windows).tolist(), side.classes.tolist())))
    assert not stops[0][0] & stops[1][0]
    said = {}
    for n, fold in enumerate(folds):
        heard = [(epochs, temperature) for part, epochs, temperature in stops if str(n) not in part]
        model, learned, _ = fitted(fold.training, [], round(float(np.mean([epochs for epochs, _ in heard]))))
        held = [examples[i] for i in fold.validation]
        rows = [softmax(row, heard[0][1]) for row in model.predict(samples(fold.validation, learned).windows).tolist()]
        order = sorted((examples[i] for i in fold.training), key=lambda e: (e.session, e.window.start_index))
        pool = learn_hmm([labels.index(e.label) for e in order], [e.session for e in order], 2, True)
        places = [(e.session, e.window.start_index) for e in held]
        pooled = pool_windows(pool, rows, [s for s, _ in places], [i for _, i in places])
        said |= dict(zip(places, map(list, pooled), strict=True))
    return said


@pytest.mark.parametrize("folds", ['"each"', "2"])
def test_equal_to_folds_by_hand(data: Path, tmp_path: Path, folds: str) -> None:
    loaded = recipe(text(f"folds = {folds}\ncalibrate = true\n[model.pool]\nkind = 'hmm'"))
    record = trained(loaded, data, tmp_path / "b", only=True).record
    held = record.held_out
    places = list(zip(held.sessions, held.start_index.tolist(), strict=True))
    expected = by_hand(loaded, data)
    assert sorted(places) == sorted(expected)  # each window once
    np.testing.assert_array_equal(held.probabilities, [expected[place] for place in places])
    truth: dict[str, int] = dict(zip(held.sessions, held.y_true.tolist(), strict=True))
    sums: dict[str, Any] = defaultdict(lambda: np.zeros(2))
    for (session, _), row in expected.items():
        sums[session] += row
    right = {session: int(sums[session].argmax()) == truth[session] for session in sums}
    assert (record.scores["n"], record.scores["accuracy"]) == (12, sum(right.values()) / 12)
    subjects = {who: [ok for session, ok in right.items() if who in session] for who in SUBJECTS}
    said = {who: (found["n"], found["accuracy"]) for who, found in record.scores["per_subject"].items()}
    assert said == {who: (4, sum(own) / 4) for who, own in subjects.items()}


def test_no_held_out_group_is_learned_from(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each `fit` was given, told apart by the windows' own numbers."""
    loaded = recipe(text('folds = "each"', 1.2).replace('[[window.steps]]\nstep = "standardise"\n', ""))
    examples = read_dataset(read([data], loaded.read_options()), loaded, loaded.chain).examples
    owner = {np.moveaxis(e.window.data, -1, 0).tobytes(): e.subject for e in examples}
    raw = {np.moveaxis(e.window.data / np.float32(0.5), -1, 0).tobytes(): e.subject for e in examples}
    given: dict[str, list[tuple[set[str], set[str]]]] = {"own": [], "beside": []}

    def watched(cls: Any, key: str, whose: dict[bytes, str]) -> None:
        real = cls.fit

        def fit(self: Any, training: Samples, validation: Samples | None, *rest: Any) -> None:
            sides = [
                {whose[window.tobytes()] for window in np.asarray(side.windows)} if side else set()
                for side in (training, validation)
            ]
            given[key].append((sides[0], sides[1]))
            real(self, training, validation, *rest)

        monkeypatch.setattr(cls, "fit", fit)

    watched(SpectrogramCnn, "own", owner)
    watched(MiniRocket, "beside", raw)
    record = trained(loaded, data, tmp_path / "b").record
    chosen, other = ("own", "beside") if record.architecture == "spectrogram_cnn" else ("beside", "own")
    assert given[chosen].pop() == (set(SUBJECTS), set())  # what is bundled learns from all
    stops = [given["own"].pop(0) for _ in range(2)]
    assert [learned | stopped for learned, stopped in stops] == [set(SUBJECTS)] * 2
    assert not stops[0][1] & stops[1][1]
    for fits in (given[chosen], given[other]):
        assert fits == [(set(SUBJECTS) - {held}, set()) for held in SUBJECTS]
    assert [fold["groups"] for fold in record.split["folds"]] == [[who] for who in SUBJECTS]
    assert record.split["validation"]["windows"] == len(examples) == record.scores["windows"]
    assert [one.scores["windows"] for one in record.candidates] == [len(examples)] * 2


def test_the_choice_and_the_pages_rest_on_it(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(text('folds = "each"', 1.2))
    arguments = [str(tmp_path / "tiny.toml"), "--data", str(data), "--out", str(tmp_path / "b")]
    done = invoke("train", *arguments)
    assert "Over a cross-validation of 3 folds by subject:" in done.output
    record = read_record((tmp_path / "b" / "report" / "run.json").read_bytes())
    names = ("accuracy", "macro_f1", "window_accuracy")
    ranks = {one.name: float(np.mean([one.scores[name] for name in names])) for one in record.candidates}
    assert list(ranks) == ["spectrogram_cnn", "minirocket"]
    best = max(ranks, key=lambda name: ranks[name])
    assert record.architecture == best == next(one.name for one in record.candidates if one.chosen)
    where = "the mean of accuracy, macro F1 and windows right over a cross-validation of 3 folds by subject"
    assert f"bundled {best}: {ranks[best]:.3f}, {where}; " in done.output
    page = (tmp_path / "b" / "report" / "report.html").read_text()
    assert "Scores are over a cross-validation of 3 folds by subject" in page
    assert all(who in page for who in SUBJECTS)
    done = invoke("train", *arguments, "--json", "--only")
    said = json.loads(done.stdout)
    assert said["split"] == {"kind": "subject", "folds": 3}
    assert set(said["scores"]["per_subject"]) == set(SUBJECTS)


def test_a_finished_fold_is_not_fitted_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe(text('folds = "each"'))
    whole = trained(loaded, data, tmp_path / "a", only=True)
    real, fits, stages = SpectrogramCnn.fit, [0], list[str]()

    def fit(self: Any, *rest: Any) -> None:
        fits[0] += 1
        if fits[0] == 5:
            raise KeyboardInterrupt
        real(self, *rest)

    monkeypatch.setattr(SpectrogramCnn, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        trained(loaded, data, tmp_path / "b", only=True)

    def on_stage(name: str, _: int) -> Any:
        stages.append(name)
        return lambda epoch: stages.append(epoch["epoch"]) if name.endswith("fold 1 of 3") else None

    resumed = train(loaded, TrainRequest((str(data),), out=tmp_path / "b", only=True, report=False), on_stage=on_stage)
    assert fits == [7]  # four, the one that was broken off, that one again, all windows
    assert resumed.bundle.id == whole.bundle.id
    assert resumed.record.history == whole.record.history
    np.testing.assert_array_equal(resumed.record.held_out.probabilities, whole.record.held_out.probabilities)
    assert [name for name in stages if isinstance(name, str)] == [
        "reading",
        *(f"spectrogram_cnn, when to stop, {i} of 2" for i in (1, 2)),
        *(f"spectrogram_cnn, fold {i} of 3" for i in (1, 2, 3)),
        "spectrogram_cnn, all windows",
    ]
    assert stages[stages.index("spectrogram_cnn, fold 1 of 3") + 1] == 1  # the epochs that were are told again
    assert not list((Settings.from_env().home / "cache" / "training").iterdir())


def test_all_windows_are_learned_for_the_mean_of_the_epochs(data: Path, tmp_path: Path) -> None:
    told: dict[str, list[Epoch]] = defaultdict(list)
    loaded = recipe(text('folds = "each"'))
    request = TrainRequest((str(data),), out=tmp_path / "b", only=True, report=False)
    train(loaded, request, on_stage=lambda name, _: told[name].append)
    best = [min(epochs, key=lambda e: e["validation_loss"])["epoch"] for n, epochs in told.items() if "stop" in n]
    assert len(best) == 2
    assert told["spectrogram_cnn, all windows"][-1]["epoch"] == round(sum(best) / 2)


@pytest.mark.parametrize("kind", ["session", "time", "window"])
def test_other_kinds_of_folds(data: Path, tmp_path: Path, kind: str) -> None:
    loaded = recipe(text("folds = 3\ncompare = false").replace('split = "subject"', f'split = "{kind}"'))
    record = trained(loaded, data, tmp_path / "b").record
    held = record.held_out
    places = set(zip(held.sessions, held.start_index.tolist(), strict=True))
    assert len(places) == len(held.y_true) == 12 * 14  # each window of 4 samples, every 2 of 30, once
    assert (record.split["kind"], len(record.split["folds"])) == (kind, 3)
    assert sum(fold["windows"] for fold in record.split["folds"]) == 12 * 14
    assert ("leak_free" in record.split) == (kind == "window")


def test_notes_of_the_model_are_the_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SpectrogramCnn.fit

    def fit(self: Any, *rest: Any) -> None:
        real(self, *rest)
        self.notes.append("its weights are fresh")

    monkeypatch.setattr(SpectrogramCnn, "fit", fit)
    assert trained(recipe(text("")), data, tmp_path / "b", only=True).notes.count("its weights are fresh") == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("folds = 4", "folds = 4 by subject: the data has 3 of them; lower folds, or add recordings"),
        ('folds = "each"\nrefit = false', "refit = false bundles the model of one split"),
    ],
)
def test_what_cannot_be(data: Path, tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises((TrainingError, RecipeError), match=message):
        trained(recipe(text(table)), data, tmp_path / "b", only=True)


def test_those_by_whom_a_search_compares_are_not_judged(data: Path, tmp_path: Path) -> None:
    record = trained(recipe(text("")), data, tmp_path / "b", only=True, search_minutes=0.01).record
    groups = [fold["groups"] for fold in record.split["folds"]]
    assert len(groups) == 2
    assert {group for (group,) in groups} == {*record.scores["per_subject"]} < {*SUBJECTS}


def test_an_hmm_is_learned_from_all_windows_where_a_search_leaves_one_fold(data: Path, tmp_path: Path) -> None:
    loaded = recipe(text("folds = 2\n[model.pool]\nkind = 'hmm'"))
    record = trained(loaded, data, tmp_path / "b", only=True, search_minutes=0.01).record
    assert len({session[:-1] for session in record.held_out.sessions}) < len(SUBJECTS)
    # Six recordings a class of 14 windows each, and no change of class: 78 stays, half a count for the other.
    assert record.pooling["transitions"] == pytest.approx(np.array([[78.5, 0.5], [0.5, 78.5]]) / 79)


def test_of_one_subject_sessions_are_left_out(data: Path, tmp_path: Path) -> None:
    request = TrainRequest(tuple(map(str, data.glob("anna*"))), out=tmp_path / "b", only=True, report=False)
    record = train(recipe(text('folds = "each"')), request).record
    assert (record.split["kind"], len(record.split["folds"])) == ("session", 4)


def test_a_class_of_one_person_is_not_judged(data: Path, tmp_path: Path) -> None:
    """Nothing could have learned it where that person is held out."""
    paths = []
    for file in data.iterdir():
        paths.append(tmp_path / file.name)
        paths[-1].write_text(file.read_text().replace(",b,", ",c,") if file.stem == "anna1" else file.read_text())
    record = train(recipe(text("")), TrainRequest(tuple(map(str, paths)), out=tmp_path / "b", report=False)).record
    assert (record.scores["n"], record.scores["not_judged"]) == (11, ["c"])
    assert set(record.held_out.labels) == {"a", "b", "c"}  # the bundle tells it all the same


@pytest.mark.parametrize("folds", [-1, 5])
def test_a_fold_of_a_class_of_its_own_is_passed_over(folds: int) -> None:
    examples = [Example(window(np.zeros((4, 2)), f"s{i}"), c, f"s{i}", f"p{i}") for i, c in enumerate("ababc")]
    splits = judged_splits(examples, TrainTable("subject", folds=folds), 0.2, 0)
    assert sorted(name for split in splits for name in split.validation_groups) == ["p0", "p1", "p2", "p3"]
    assert all(split.validation for split in splits)


def test_of_one_person_sessions_are_kept_apart_and_of_one_session_windows() -> None:
    """By what each group gets from a model without it, MiniRocket's penalty and temperature are chosen."""
    loaded = recipe(text("", 1.2))
    for sessions, groups in (("ssss", [0, 1, 2, 3]), ("sstt", [0, 0, 1, 1])):
        examples = [
            Example(window(np.zeros((12, 2)), name, 12 * i), "ab"[i % 2], name, "p") for i, name in enumerate(sessions)
        ]
        data = SplitData(loaded, loaded.chain, ("a", "b"), (), examples, Split([0, 1, 2, 3], [], "subject"))
        learned = data.samples("channels_first", {}, 0)[0].groups
        assert learned is not None
        assert learned.tolist() == groups


def test_what_says_when_to_stop_holds_what_several_folds_have() -> None:
    classes = {str(i): {label} for i, label in enumerate("abcabcd")}
    assert _lacking(classes, classes, {"0"}) == {"1", "2"}
    assert _lacking({"5": {"c"}}, classes, {"0"}) == {"5"}
    assert _lacking(classes, {str(i): {label} for i, label in enumerate("aabc")}, {"0"}) == set()


def parts_of(right: Sequence[float], numbers: bool) -> list[Any]:
    """Parts of ten recordings each, so many of them right, or numbers off by what is left to 1."""
    parts = []
    for n, share in enumerate(right):
        said = np.array([[float(i < 10 * share), float(i >= 10 * share)] for i in range(10)])
        head = HeldHead("n", [], np.arange(10.0), np.arange(10) + 4.0 * (1 - share))
        held = HeldOut(
            [EVERY] if numbers else ["a", "b"],
            np.zeros(10, np.int64),
            np.ones((10, 1)) if numbers else said,
            [f"{n}/{i}" for i in range(10)],
            [f"p{n}"] * 10,
            np.zeros(10, np.int64),
            [head] if numbers else [],
        )
        parts.append(JudgedPart(*[None] * 4, [2.0 + n], held))  # type: ignore[arg-type]
    return parts


@pytest.mark.parametrize("numbers", [False, True])
def test_nobody_has_a_say_in_which_model_judges_them(numbers: bool) -> None:
    data: Any = SimpleNamespace(takes="chain", labels=("a", "b"))
    run: Any = SimpleNamespace(settings={"calibrate": False})
    made = [
        Contender(run, FitPlan(name, name, {}), data, parts_of(right, numbers))
        for name, right in (("one", [1.0, 0.0, 0.6]), ("other", [0.5, 0.5, 0.5]))
    ]
    winner = choose(made, "")
    assert winner.plan is made[numbers].plan
    chosen = [next(i for i, one in enumerate(made) if part in one.parts) for part in winner.judged]
    assert sorted({*chosen}) == [0, 1]
    assert winner.temperatures == made[numbers].temperatures  # the bundle's own
    wanted = [part.held_out.probabilities for part in winner.judged]
    np.testing.assert_array_equal(winner.held_out.probabilities, np.concatenate(wanted))


def test_numbers_alone_are_ranked_by_how_near_they_come() -> None:
    near, far = (parts_of([share], numbers=True)[0].held_out.rank() for share in (0.9, 0.1))
    assert near > 0.9
    assert far < near
    same = {"r2": None, "rmse": 1.0, "n": 1}  # of one person, whose truth is one
    assert (
        number_rank({"n": same | {"rmse": 4.0}}) < number_rank({"n": same}) < number_rank({"n": same | {"rmse": 0.0}})
    )


def test_a_fold_that_leaves_one_class(data: Path, tmp_path: Path) -> None:
    paths = (*data.glob("anna[02].csv"), *data.glob("ben[13].csv"))
    with pytest.raises(TrainingError, match="fold 1 of 2, without anna: all windows that are left have the label `b`"):
        train(recipe(text("folds = 2")), TrainRequest(tuple(map(str, paths)), out=tmp_path / "b"))
