"""Checkpoints of training runs. In: what decides a run's outcome. Out: a folder that an equal run finds again.

Under ``KYMO_HOME/cache/training``: one folder a run, named by the digest of everything that decides its outcome, one
folder a fit in it. A run that ends removes its own; what was left behind for a week is removed by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streams.files import lock
from streams.settings import Settings

_WEEK_S = 7 * 86_400


@contextlib.contextmanager
def checkpoints(decisive: Mapping[str, Any], home: Path | None = None) -> Iterator[Path | None]:
    """The folder of a run; None while an equal run is under way in another process."""
    base = (home or Settings.from_env().home) / "cache" / "training"
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = base / digest
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(base, folder)
    with lock(folder / ".lock", wait=False) as held:
        if held is None:
            yield None
            return
        yield folder
        shutil.rmtree(folder, ignore_errors=True)  # an error or a kill leaves it for the next run


def _tidy(base: Path, but: Path) -> None:
    for other in base.iterdir():
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (other, *other.rglob("*")))
            if other != but and time.time() - newest > _WEEK_S:
                shutil.rmtree(other, ignore_errors=True)
