"""What set-up does for first starts: bytecode, wherever it may be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from kymo.deploy.prepare import write_bytecode


def test_bytecode_of_all_modules_and_of_what_they_import_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    assert write_bytecode(["kymo.streams.replay"]).wait(60) == 0
    written = {path.relative_to(path.parents[1]).as_posix().partition(".")[0] for path in tmp_path.rglob("*.pyc")}
    assert written >= {"replay/schedule", "replay/cli", "streams/codec", "click/core", "kafka/__init__"}
