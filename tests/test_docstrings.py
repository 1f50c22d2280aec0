"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest
from documents import ROOT

PACKAGES = ("streams", "processors", "models", "lab", "deploy", "examples")
MODULES = sorted(
    "kymo." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
