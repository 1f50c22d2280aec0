"""The recipe `activity` and the bundle that ships with it."""

from __future__ import annotations

from collections import Counter

import pytest
from documents import SHARED

from kymo import Classifier, load_bundle, load_recipe, read, run
from kymo.models.registry import SHIPPED

REAL = SHARED / "data" / "pose_kinetics"


def test_the_shipped_bundle_is_small_and_of_the_recipe() -> None:
    bundle, recipe = load_bundle("activity"), load_recipe("activity")
    assert bundle.path == SHIPPED / "activity"
    bundle.check(recipe)
    assert (bundle.labels, bundle.shape) == (("guitar", "yoga"), (9, 53))
    assert sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()) < 1_000_000
    assert bundle.manifest["scores"]["accuracy"] >= 0.85  # of videos that it had not seen
    assert recipe.train.folds == 5


@pytest.mark.skipif(not REAL.is_dir(), reason="no keypoints beside the checkout")
def test_the_shipped_bundle_tells_the_published_videos() -> None:
    bundle, recipe = load_bundle("activity"), load_recipe("activity")
    recordings = read([REAL / f"training_data_{name}.csv" for name in bundle.labels], recipe.read_options())
    events = list(run(recipe, recordings, Classifier.for_recipe(bundle, recipe)))
    assert Counter(event.session[14:-4] for event in events) == {"guitar": 366, "yoga": 359}
    right = [max(bundle.labels, key=lambda label: event.probabilities[label]) in event.session for event in events]
    assert sum(right) / len(right) > 0.85
