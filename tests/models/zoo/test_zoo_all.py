"""Every architecture of the zoo, by the checks in zoo_checks.py; a new entry of the table is checked without a new test."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import zoo_checks

from kymo.models.zoo import ARCHITECTURES

pytestmark = [
    pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
    for package in ("onnx", "tensorflow", "torch")
]
every = pytest.mark.parametrize("name", ARCHITECTURES)


@every
@pytest.mark.parametrize(
    "check", [zoo_checks.check_builds, zoo_checks.check_overfits, zoo_checks.check_exports, zoo_checks.check_agrees]
)
def test_behind_every_kind_of_recipe(name: str, check: Callable[[str, str], None]) -> None:
    for kind in zoo_checks.kinds(name):
        check(name, kind)


@every
def test_goes_through_a_bundle_into_an_agent(name: str, tmp_path: Path) -> None:
    for kind in zoo_checks.kinds(name):
        zoo_checks.check_bundle(name, kind, tmp_path / kind)


@every
def test_further_heads_learn_and_agree(name: str) -> None:
    if not zoo_checks.has_heads(name):
        pytest.skip(f"{name} has no further heads")
    for kind in zoo_checks.kinds(name):
        zoo_checks.check_heads(name, kind)


@every
def test_heads_may_know_nothing(name: str) -> None:
    if not zoo_checks.has_heads(name):
        pytest.skip(f"{name} has no further heads")
    zoo_checks.check_no_known_targets(name)


def test_these_have_further_heads() -> None:
    wanted = ["minirocket", "recurrent", "spectrogram_cnn", "spectrogram_resnet"]
    assert [name for name in wanted if zoo_checks.has_heads(name)] == wanted
