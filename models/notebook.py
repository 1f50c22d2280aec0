"""Training, scoring and windows from Python, as the verbs do it. In: a recipe and paths. Out: a bundle, scores, arrays; a notebook shows
tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.models.bundle import Bundle, load_bundle
from kymo.models.data.examples import settle_bins
from kymo.models.data.samples import split_chain
from kymo.models.data.splits import group_of
from kymo.models.evaluate import evaluate as score
from kymo.models.reports import html as h
from kymo.models.scores import Scores
from kymo.models.training.run import TrainRequest
from kymo.models.training.train import Trained
from kymo.models.training.train import train as run_training
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.readers import read

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


class LabelledWindows(NamedTuple):
    """Windows for any library that takes X, y and groups, such as scikit-learn's ``cross_val_score``.

    Attributes
    ----------
    X : ndarray
        ``(n, time, ..., channels)`` float32: behind all steps of the recipe but those that learn, such as `standardise`. Of several
        inputs, what is missing is NaN.
    y : ndarray of str
        ``(n,)``, the classes.
    groups : ndarray of str
        ``(n,)``, what must stand on one side of a split: the subject, or the session where the subject is not known.
    """

    X: NDArray[np.float32]
    y: NDArray[np.str_]
    groups: NDArray[np.str_]

    def _repr_html_(self) -> str:
        counts = {label: (self.y == label) for label in sorted(set(self.y.tolist()))}
        columns = dict.fromkeys(("class", "windows", "groups"), "")
        rows = [(label, at.sum(), len(set(self.groups[at].tolist()))) for label, at in counts.items()]
        return h.table(f"{len(self.y)} windows of {self.X.shape[1:]}", columns, rows)


def train(
    recipe: Recipe | str,
    data: Paths,
    *,
    epochs: int | None = None,
    seed: int | None = None,
    out: str | PathLike[str] | None = None,
    promote: bool = True,
) -> Trained:
    """Train a recipe's model, as ``kymo train`` does.

    Parameters
    ----------
    recipe : Recipe or str
        A recipe, or its name or path.
    data : path or sequence of paths
        Files, folders, URLs or names of data sets that come along, labelled.
    epochs, seed : int, optional
        Instead of the recipe's.
    out : path, optional
        The bundle's folder; by default it becomes a version in the registry.
    promote : bool
        Whether a version in the registry becomes the champion, which workers take over.

    Raises
    ------
    KymoError
        If the recipe has no model, or the data cannot be read or learned from.
    """
    folder = Path(out) if out is not None else None
    return run_training(_loaded(recipe), TrainRequest(_texts(data), epochs, seed, folder, promote=promote))


def evaluate(recipe: Recipe | str, data: Paths, bundle: Bundle | str | None = None) -> Scores:
    """Score a bundle on labelled recordings, as ``kymo evaluate`` does.

    Parameters
    ----------
    recipe : Recipe or str
        A recipe, or its name or path.
    data : path or sequence of paths
        Files, folders, URLs or names of data sets that come along, labelled.
    bundle : Bundle or str, optional
        A bundle, its folder, or ``recipe@digest``; by default the recipe's champion.

    Raises
    ------
    KymoError
        If the bundle does not fit the recipe, or no label covers a window.
    """
    loaded = _loaded(recipe)
    judged = bundle if isinstance(bundle, Bundle) else load_bundle(bundle or loaded.name)
    return score(loaded, judged, read(_texts(data), loaded.read_options()))


def windows(recipe: Recipe | str, data: Paths) -> LabelledWindows:
    """The labelled windows of recordings as arrays, as the trainer takes them.

    Parameters
    ----------
    recipe : Recipe or str
        A recipe, or its name or path.
    data : path or sequence of paths
        Files, folders, URLs or names of data sets that come along, labelled.

    Raises
    ------
    KymoError
        If the data cannot be read, or no label covers a window.
    """
    loaded = _loaded(recipe)
    dataset = TrainRequest(_texts(data)).windows(loaded, split_chain(loaded.chain)[0])
    settle_bins(loaded, dataset)
    examples = dataset.examples
    return LabelledWindows(
        np.stack([example.window.data.astype(np.float32, copy=False) for example in examples]),
        np.array([example.label for example in examples]),
        np.array([group_of(example, "subject") for example in examples]),
    )


def _loaded(recipe: Recipe | str) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _texts(paths: Paths) -> tuple[str, ...]:
    return (fspath(paths),) if isinstance(paths, str | PathLike) else tuple(fspath(path) for path in paths)
