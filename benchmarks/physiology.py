"""How well a piece's genre is told from a listener's signals. In: the study's videos and sheets. Out: figures.

Protocols: the source's (a fifth of the clips at random tests, whosever they are; the accuracy of the last epoch, and of the epoch that is
best on those very clips), and two in which nothing of the person, or of the piece, was learned from; there an epoch is chosen by other
people's clips. Beside each accuracy stand its 90 % interval over people and how often labels that mean nothing do as well: the labels of
a person's halves are dealt anew, since genres came in blocks and what drifts in a session would pass for a genre.

What gives a genre away is shown apart: a piece's length, its place in the session, the person and half. All else sees as many seconds of
each clip.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.models.scores import HeldOut
from kymo.models.zoo import FitOptions, Samples, architecture
from kymo.streams.chunk import Format, signal_format
from kymo.streams.readers import read
from kymo.streams.words import NS

Floats = NDArray[np.float64]
#: Told the numbers of clips to learn from, of those to judge, and what all clips are (one column a permutation): probabilities.
Model = Callable[[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]], Floats]
#: A CRNN that two cores learn in seconds; the published sizes are the architecture's defaults.
SMALL = {"backbone": "small", "dense": (128, 64), "embedding": 64, "units": 32, "layers": 1, "decoder": 32}
EDA_HZ = 4


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """All clips; arrays have one row each."""

    frames: NDArray[np.uint8]  # ``(n, frames, h, w, 3)``
    eda: Floats  # ``(n, samples)`` of the same seconds, µS
    genre: NDArray[np.int64]
    labels: list[str]
    names: list[str]
    person: NDArray[np.str_]
    piece: NDArray[np.int64]
    place: NDArray[np.int64]  # in the session, from 1
    seconds: Floats  # of the whole piece
    format: Format  # of a window

    @property
    def half(self) -> NDArray[np.str_]:
        """Person and half of the session: a block of one genre."""
        return np.char.add(self.person, np.where(self.place > 4, "b", "a"))


def load(clips: Path, sheets: Path) -> Study:
    """Clips and the EDA of their seconds."""
    rows = []
    eda: dict[str, tuple[int, Floats]] = {}
    for recording in read([clips]):
        (stream,), facts, person = recording.streams, recording.metadata, str(recording.subject)
        if person not in eda:
            (skin,) = next(read([sheets / f"{person}.xlsx"])).streams
            eda[person] = skin.start_ns, skin.data[:, 0]
        start_ns, signal = eda[person]
        first = round((stream.start_ns - start_ns) * EDA_HZ / NS)
        part = signal[first : first + round(stream.duration_s * EDA_HZ)]
        numbers = (int(facts["piece"]), int(facts["place"]), float(facts["seconds"]))
        rows.append((stream.data, part, recording.labels[0].label, recording.session, person, *numbers))
    frames, skin, genres, names, persons, pieces, places, seconds = zip(*rows, strict=True)
    labels, genre = np.unique(genres, return_inverse=True)
    arrays = (np.array(persons), np.array(pieces), np.array(places), np.array(seconds))
    fmt = stream.header.format
    shape = Format(fmt.stream, fmt.channels, (), fmt.rate, "uint8", fmt.shape, rows=len(frames[0]))
    return Study(np.stack(frames), np.stack(skin), genre, labels.tolist(), list(names), *arrays, shape)


def skin_features(study: Study) -> Floats:
    """Level, slope and spread of the EDA, number and mean size of its responses, each relative to the person's other clips."""
    from scipy.signal import butter, find_peaks, sosfiltfilt

    rows = []
    smooth = sosfiltfilt(butter(2, 0.5, fs=EDA_HZ, output="sos"), study.eda, axis=1)
    phasic = sosfiltfilt(butter(2, 0.05, "high", fs=EDA_HZ, output="sos"), smooth, axis=1)
    for level, fast in zip(smooth, phasic, strict=True):
        peaks, facts = find_peaks(fast, prominence=max(0.01, 0.1 * fast.std()))
        sizes = facts["prominences"] if len(peaks) else np.zeros(1)
        slope = np.polyfit(np.arange(len(level)), level, 1)[0]
        rows.append((level.mean(), slope, level.std(), fast.std(), np.ptp(level), len(peaks), sizes.mean()))
    return _by_person(np.array(rows), study.person)


def video_features(study: Study) -> Floats:
    """Mean and spread over time of each colour in 16 squares of the frames, relative to the person's other clips."""
    n, frames, height, width, _ = study.frames.shape
    cut = study.frames[:, :, : height // 4 * 4, : width // 4 * 4].astype(np.float32)
    squares = cut.reshape(n, frames, 4, height // 4, 4, width // 4, 3).mean((3, 5)).reshape(n, frames, -1)
    features = np.concatenate([squares.mean(1), squares.std(1)], 1).astype(np.float64)
    return _by_person(features[:, features.std(0) > 0], study.person)


def _by_person(features: Floats, person: NDArray[np.str_]) -> Floats:
    out = features.copy()
    for name in np.unique(person):
        own = out[person == name]
        out[person == name] = (own - own.mean(0)) / (own.std(0) + 1e-9)
    return out


def logistic(features: Floats) -> Model:
    """Logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression

    def model(training: NDArray[np.intp], test: NDArray[np.intp], truths: NDArray[np.int64]) -> Floats:
        mean, spread = features[training].mean(0), features[training].std(0) + 1e-9
        scaled = (features - mean) / spread
        out = np.zeros((truths.shape[1], len(test), truths.max() + 1))
        for i, truth in enumerate(truths.T):
            fitted = LogisticRegression(C=0.3, max_iter=60, tol=1e-3).fit(scaled[training], truth[training])
            out[i][:, fitted.classes_] = fitted.predict_proba(scaled[test])
        return out

    return model


def rocket(study: Study) -> Model:
    """MiniRocket's features of the zoo, of each clip's EDA relative to itself, and ridge regression, for all permutations at once."""
    fmt = signal_format("eda", ("eda",), EDA_HZ)
    signals = (study.eda - study.eda.mean(1, keepdims=True)) / (study.eda.std(1, keepdims=True) + 1e-9)
    shape = replace(fmt, rows=signals.shape[1])
    made: Any = architecture("minirocket")(shape, study.labels, {"features": 1000}, 0)
    windows = signals[:, np.newaxis].astype(np.float32)
    made.fit(
        Samples(windows, study.genre), None, FitOptions(), lambda _: None
    )  # of its kernels alone, which see no genre
    return ridge(made.count(windows).astype(np.float64))


def ridge(features: Floats, penalty: float = 10.0) -> Model:
    """Ridge regression of the classes, one matrix product for all permutations."""

    def model(training: NDArray[np.intp], test: NDArray[np.intp], truths: NDArray[np.int64]) -> Floats:
        mean, spread = features[training].mean(0), features[training].std(0)
        scaled = (features - mean) / np.where(spread > 0, spread, np.inf)
        kernel = scaled @ scaled[training].T / scaled.shape[1]
        weights = np.linalg.solve(kernel[training] + penalty / 10 * np.eye(len(training)), np.eye(len(training)))
        hot = np.eye(truths.max() + 1)[truths[training]]  # (training, permutations, classes)
        centre = hot.mean(0)
        out = np.einsum("tk,kpc->ptc", kernel[test] @ weights, hot - centre) + centre[:, np.newaxis]
        powers = np.exp(5 * out)
        return np.asarray(powers / powers.sum(2, keepdims=True))

    return model


def nearest(*columns: NDArray[Any]) -> Model:
    """What the clips with the most like values of these columns mostly are: what sees only names, places or lengths."""
    values = np.stack(
        [
            column if column.dtype.kind in "fi" else np.unique(column, return_inverse=True)[1] * 1e6
            for column in columns
        ],
        1,
    )

    def model(training: NDArray[np.intp], test: NDArray[np.intp], truths: NDArray[np.int64]) -> Floats:
        far = np.abs(values[test][:, np.newaxis] - values[training]).sum(2)
        like = (far == far.min(1, keepdims=True)).astype(np.float64)
        hot = np.eye(truths.max() + 1)[truths[training]]
        return np.einsum("tk,kpc->ptc", like / like.sum(1, keepdims=True), hot)

    return model


def random_folds(count: int, splits: int = 10) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """The source's splits."""
    from kymo.models.training.crnn_run import random_split

    for seed in range(splits):
        test = random_split(count, seed=42 + seed)
        yield np.flatnonzero(~test), np.flatnonzero(test)


def permuted(study: Study, count: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Genres and pieces, ``(n, 1 + count)``: the real ones, then those of the halves of sessions dealt anew to the halves."""
    random, (halves, at) = np.random.default_rng(seed), np.unique(study.half, return_inverse=True)
    genre = np.array([study.genre[at == i][0] for i in range(len(halves))])
    genres = np.stack([study.genre, *(genre[random.permutation(len(genre))][at] for _ in range(count))], 1)
    return genres, genres * 4 + ((study.place - 1) % 4)[:, np.newaxis]


def judged(study: Study, model: Model, kind: str, nulls: int) -> dict[str, Any]:
    """Accuracy with each person or piece held out in its turn, its interval, and the share of permutations that do as well."""
    genres, pieces = permuted(study, nulls)
    said = np.zeros((genres.shape[1], len(genres), len(study.labels)))
    # People stay who they are; which clips are of one piece is dealt with the genres.
    rounds: list[tuple[slice, Any]] = [(slice(None), study.person)]
    if kind == "piece":
        rounds = [(slice(i, i + 1), pieces[:, i]) for i in range(nulls + 1)]
    for columns, groups in rounds:
        for name in np.unique(groups):
            test = np.flatnonzero(groups == name)
            said[columns, test] = model(np.flatnonzero(groups != name), test, genres[:, columns])
    right = (said.argmax(2) == genres.T).mean(1)
    names = {"sessions": study.names, "subjects": study.person.tolist()}
    scores = HeldOut(study.labels, study.genre, said[0], **names, start_index=np.zeros(len(genres), np.int64)).scores()
    null: dict[str, Any] = {}
    if nulls:
        share = float((1 + (right[1:] >= right[0]).sum()) / len(right))
        null = {"null_mean": float(right[1:].mean()), "null_95": float(np.quantile(right[1:], 0.95)), "p": share}
    return {"accuracy": float(right[0]), "interval": scores["interval"]["accuracy"], **null, "n": len(genres)}


def crnn(study: Study, epochs: int = 12, **parameters: Any) -> Model:
    """The CRNN on cached features; the epoch is chosen by a fifth of the people who were learned from."""
    chosen = {**SMALL, "learning_rate": 2e-3, "batch_size": 64, **parameters}
    make: Any = architecture("crnn")
    features = make(study.format, study.labels, chosen, 0).features(study.frames)

    def model(training: NDArray[np.intp], test: NDArray[np.intp], truths: NDArray[np.int64]) -> Floats:
        people = np.unique(study.person[training])
        out = np.zeros((truths.shape[1], len(test), len(study.labels)))
        for i, truth in enumerate(truths.T):
            net = make(study.format, study.labels, chosen, 0)
            net.model.takes_features, net.model.fixed = True, False  # cached here, once for all fits
            stop = np.random.default_rng(i).permutation(people)[: max(1, len(people) // 5)]
            stops = np.isin(study.person[training], stop)
            net.scale(features[training])
            sides = [Samples(features[rows], truth[rows]) for rows in (training[~stops], training[stops])]
            net.fit(*sides, FitOptions(epochs=epochs, patience=5), lambda _: None)
            logits = net.predict(features[test]).astype(np.float64)
            powers = np.exp(logits - logits.max(1, keepdims=True))
            out[i] = powers / powers.sum(1, keepdims=True)
        return out

    return model


def source_runs(study: Study, epochs: int = 25, splits: int = 10, **parameters: Any) -> dict[str, Any]:
    """The source's protocol with the CRNN: best and last epoch's test accuracy, over splits."""
    from kymo.models.training.crnn_run import ClipSet, CrnnRun, random_split

    made: Any = architecture("crnn")
    best, last = [], []
    for seed in range(splits):
        test = random_split(len(study.genre), seed=42 + seed)
        clips = ClipSet(Samples(study.frames, study.genre), study.names, study.person.tolist(), study.labels, test)
        with tempfile.TemporaryDirectory() as folder:
            model = made(study.format, study.labels, {**SMALL, "learning_rate": 1e-3, **parameters}, 0)
            accuracy = CrnnRun(model, clips, Path(folder), 42 + seed).train(epochs).curves["test_accuracy"]
        best.append(max(accuracy))
        last.append(accuracy[-1])
    return {
        when: {"accuracy": float(np.mean(each)), "sd": float(np.std(each)), "n": splits}
        for when, each in (("best epoch", best), ("last epoch", last))
    }


def music(data: Path, nulls: int = 1000) -> list[dict[str, Any]]:
    """A row each of what tells, and protocol; `nulls` permutations, and at most 20 of the CRNN."""
    from kymo.lab.prepare.physiology import ClipPlan, prepare_physiology

    with tempfile.TemporaryDirectory() as folder:
        facts = prepare_physiology(data, Path(folder), ClipPlan(size=64, videos=False))
        study = load(Path(facts["clips_file"]), data)
    models: dict[str, Model] = {
        "frames: CRNN, small": crnn(study),
        "EDA: MiniRocket": rocket(study),
        "EDA: level and responses, logistic regression": logistic(skin_features(study)),
        "colours of the video, logistic regression": logistic(video_features(study)),
        "length of the piece": nearest(study.seconds),
        "place in the session": nearest(study.place),
        "person and half of the session": nearest(study.half),
    }
    rows = [
        {"protocol": "published", "peer": f"frames: CRNN, small, {when}"} | scores
        for when, scores in source_runs(study).items()
    ]
    truths = study.genre[:, np.newaxis]
    for name, model in models.items():
        if model is not models["frames: CRNN, small"]:
            rights = [
                (model(*part, truths)[0].argmax(1) == study.genre[part[1]]).mean() for part in random_folds(len(truths))
            ]
            rows.append({"protocol": "published", "peer": name, "accuracy": float(np.mean(rights)), "n": len(rights)})
        most = min(nulls, 20) if name.startswith("frames") else nulls
        rows += [
            {"protocol": f"unknown {kind}", "peer": name} | judged(study, model, kind, most)
            for kind in ("person", "piece")
        ]
    return rows
