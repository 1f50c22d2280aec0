"""``python -m kymo.deploy.prepare``: what first starts, of the embedded broker and of Python, would otherwise spend their time on.

In: nothing (``KYMO_HOME`` says where). Out: the jars, verified, and the JVM's startup cache beside them, 67 MB, made by
one trial run in a throw-away folder; bytecode of all modules and of what they import. With either a start costs half the
processor time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kymo.deploy import broker, kafka_server
from kymo.streams.errors import BrokerError, KymoError
from kymo.streams.settings import Settings

TRIAL_TIMEOUT_S = 180
#: The mel steps need librosa, which compiles some of its own to machine code, for some 20 s, when it is first imported.
PACKAGES = ("kymo.streams", "kymo.processors", "kymo.models", "kymo.deploy", "librosa.util")
# What a module wants that is not installed is of no use here.
IMPORT_ALL = """
import contextlib, importlib, pkgutil, sys
for name in sys.argv[1:]:
    with contextlib.suppress(Exception):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, name + "."):
            with contextlib.suppress(Exception):
                importlib.import_module(module.name)
"""


def write_bytecode(packages: Sequence[str] = PACKAGES) -> subprocess.Popen[bytes]:
    """Import these packages in a process that writes bytecode, whatever this one may: the process, for whoever waits for it.

    Installers leave none, and where PYTHONDONTWRITEBYTECODE is set each start would compile anew. It takes a quarter of what
    compiling all that is installed does, most of which nobody imports.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    quiet = subprocess.DEVNULL
    line = [sys.executable, "-c", IMPORT_ALL, *packages]
    return subprocess.Popen(line, env=env, stdin=quiet, stdout=quiet, stderr=quiet)


def prepare(jars_dir: Path) -> None:
    """Fetch the jars and make the startup cache, where they are not there yet."""
    jars = kafka_server.class_path(jars_dir.absolute())
    cache = kafka_server.aot_cache(jars)
    if not cache.exists():
        with tempfile.TemporaryDirectory(dir=jars_dir, prefix="trial-") as folder:
            _trial_run(jars, Path(folder).absolute()).replace(cache)


def _trial_run(jars: list[Path], folder: Path) -> Path:
    cache = folder / "kafka.aot"
    kafka_server.rotate_log(folder)
    info = broker.launch(folder, broker.free_port(), jars, TRIAL_TIMEOUT_S, f"-XX:AOTCacheOutput={cache}")
    broker.end(info, TRIAL_TIMEOUT_S)  # the JVM writes the cache on its way out
    if not cache.exists():
        raise BrokerError(kafka_server.explain(folder, "wrote no startup cache"))
    return cache


def main() -> None:
    """Prepare the folder of this user; a failure is told, and left to the first start."""
    compiling = write_bytecode()
    try:
        prepare(Settings.from_env().home / "kafka")
    except (KymoError, OSError) as error:
        print(f"the embedded broker is not prepared: {error}", file=sys.stderr)
    finally:
        compiling.wait()


if __name__ == "__main__":
    main()
