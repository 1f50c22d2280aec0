"""Peer: Kymo's own worker, as the command line starts it. In: a Rig and a recipe's name. Out: its process."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rig import Rig
from kymo.deploy.children import Child, kymo_command, kymo_environment


def worker(rig: Rig, prefix: str, name: str, checkout: Path | None = None, **env: str) -> Child:
    """A worker under a prefix, for a recipe of this name (workers of one name share the work), not yet started.

    It is of the checkout that measures, or of another one, which runs in the same environment.
    """
    recipe, bundle = rig.recipe(name)
    changes = {"KYMO_BROKERS": rig.settings.brokers, "KYMO_HOME": str(rig.settings.home), "KYMO_METRICS_PORT": "0"}
    if checkout is not None:
        changes["PYTHONPATH"] = str(checkout)
    command = kymo_command("worker", str(recipe), "--bundle", str(bundle), "--prefix", prefix)
    return Child("kymo", command, kymo_environment(changes | env, keep=False))
