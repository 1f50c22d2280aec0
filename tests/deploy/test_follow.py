"""Following promotions: what a record on the topic may make a worker do, and what not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_models import linear_onnx, manifest

from kymo.deploy.follow import bundle_of
from kymo.models.bundle import load_bundle
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.streams.errors import BundleError
from kymo.streams.promotions import Promotion

ONNX = linear_onnx(np.eye(3, 2))


def kept(home: Path, temperature: float) -> str:
    """Id of a version in the registry of a home."""
    return load_bundle(write_bundle(None, manifest(temperature=temperature), {MODEL: ONNX}, home, promote=False)).id


def test_a_bundle_comes_from_the_own_registry_whatever_the_record_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KYMO_REGISTRY", raising=False)
    own, alien = kept(tmp_path / "own", 1), kept(tmp_path / "alien", 2)
    for place in (
        "",
        "http://127.0.0.1:9/registry",
        str(tmp_path / "alien" / "registry"),
        f"file://{tmp_path}/alien/registry",
    ):
        record = Promotion("tiny", "champion", own, time.time_ns(), place)
        assert bundle_of(record, tmp_path / "own").path.is_relative_to(tmp_path / "own")
        with pytest.raises(BundleError, match=r"is not in this worker's registry.*KYMO_REGISTRY"):
            bundle_of(Promotion("tiny", "champion", alien, time.time_ns(), place), tmp_path / "own")
    monkeypatch.setenv("KYMO_REGISTRY", str(tmp_path / "alien" / "registry"))  # the operator's word counts
    assert bundle_of(Promotion("tiny", "champion", alien, time.time_ns()), tmp_path / "own").id == alien


@pytest.mark.parametrize(
    "members",
    [
        {"bundle": "tiny@../../../etc"},
        {"bundle": "tiny@/etc"},
        {"bundle": "../x@0123"},
        {"bundle": "other@0123"},
        {"bundle": "tiny"},
        {"bundle": "tiny@"},
        {"recipe": "../tiny", "bundle": ""},
        {"recipe": "..", "bundle": "..@0123"},
        {"alias": "a\nb"},
        {"promoted_ns": 1e3},
        {"registry": []},
        {"why": {"deep": 1}},
    ],
)
def test_a_record_whose_names_lead_elsewhere_is_no_promotion(members: dict[str, object]) -> None:
    record = {"recipe": "tiny", "alias": "champion", "bundle": "tiny@0123", "promoted_ns": 1}
    assert Promotion.from_json(json.dumps(record)).bundle == "tiny@0123"
    with pytest.raises(BundleError, match="promotion: "):
        Promotion.from_json(json.dumps(record | members))
