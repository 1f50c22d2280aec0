"""How many files of the product three trips enter: a sample's from topic to event, a training's, a promotion's to a running worker.

    python -m benchmarks.trips [--names]

In: nothing; it makes three small recordings, starts a broker and a worker, and trains two epochs. Out: the numbers, and with `--names` the
files. A file counts if a function of it was called; what a worker does beside (heartbeats, commits, metrics) is counted, too.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("streams", "processors", "models", "lab", "deploy", "examples", "kymo")
RECIPE = "basicmotions"
#: Runs a verb and notes the files of the functions that it calls; where a file OUT.ask appears, it writes them down and begins anew.
TRACED = """
import os, runpy, sys, threading, time
out, *sys.argv[1:] = sys.argv[1:]
files = set()
def note(frame, event, _):
    if event == "call" and frame.f_code.co_flags & 1:  # neither a module's nor a class's body
        files.add(frame.f_code.co_filename)
def write():
    names = list(files)
    files.clear()
    with open(out, "w") as file:
        file.write("\\n".join(names) + "\\n.")
def listen():
    while True:
        time.sleep(0.05)
        if os.path.exists(out + ".ask"):
            os.remove(out + ".ask")
            write()
threading.Thread(target=listen, daemon=True).start()
threading.setprofile(note)
sys.setprofile(note)
try:
    runpy.run_module("kymo", run_name="__main__", alter_sys=True)
finally:
    sys.setprofile(None)
    write()
"""


class Traced:
    def __init__(self, folder: Path, *arguments: str) -> None:
        self._out = folder / f"{arguments[0]}-{time.monotonic_ns()}.files"
        self.log = self._out.with_suffix(".log")
        command = [sys.executable, "-c", TRACED, str(self._out), *arguments]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def files(self) -> set[str]:
        """Files since the last time; it goes on."""
        self._out.unlink(missing_ok=True)
        self._out.with_name(f"{self._out.name}.ask").touch()
        wait(lambda: self._out.exists() and self._out.read_text().endswith("."))
        return product_files(self._out.read_text())

    def end(self) -> set[str]:
        """Files until its end, which is awaited."""
        if self._process.wait(300):
            raise RuntimeError(self.log.read_text())
        return product_files(self._out.read_text())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def product_files(text: str) -> set[str]:
    """Those of the product, from the root."""
    inside = [Path(line).relative_to(ROOT) for line in text.split() if line.startswith(str(ROOT))]
    return {path.as_posix() for path in inside if path.parts[0] in PRODUCT}


def wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("what was awaited did not come")
        time.sleep(0.1)


def kymo(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "kymo", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def write_recordings(folder: Path) -> None:
    """A few minutes of numbers of two classes, and one recording to replay."""
    random.seed(1)
    (folder / "data").mkdir()
    for name, strength in [(f"data/{label}-{n}", s) for label, s in (("calm", 1), ("wild", 9)) for n in range(4)] + [
        ("live", 1)
    ]:
        label = name.partition("/")[2].partition("-")[0] or "calm"
        rows = [
            f"{i / 10},{','.join(f'{random.gauss(0, strength):.3f}' for _ in range(6))},{label}" for i in range(200)
        ]
        (folder / f"{name}.csv").write_text("\n".join(["t,ax,ay,az,gx,gy,gz,label", *rows]))


def trips(folder: Path) -> dict[str, set[str]]:
    write_recordings(folder)
    training = Traced(folder, "train", RECIPE, "--data", "data", "--epochs", "2").end()
    kymo(folder, "broker", "start")
    worker = Traced(folder, "worker", RECIPE)
    try:
        wait(lambda: "ready" in worker.log.read_text())
        time.sleep(2)
        worker.files()
        kymo(folder, "replay", "live.csv", "--recipe", RECIPE, "--speed", "max")
        wait(lambda: len(kymo(folder, "events", "--recipe", RECIPE).splitlines()) >= 10)
        sample = worker.files()
        champion, *_ = (
            line for line in kymo(folder, "models", "list", "--json").split('"') if line.startswith(f"{RECIPE}@")
        )
        before = worker.log.read_text()
        promotion = Traced(folder, "models", "promote", champion, "--why", "trip").end()
        wait(lambda: worker.log.read_text() != before)
        promotion |= worker.files()
    finally:
        worker.stop()
        kymo(folder, "broker", "stop")
    return {"a sample, topic to event": sample, "a training, command to bundle": training, "a promotion": promotion}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="kymo-trips-") as folder:
        os.environ |= {"KYMO_HOME": f"{folder}/home", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        for trip, files in trips(Path(folder)).items():
            print(f"{trip}: {len(files)} files")
            if "--names" in sys.argv:
                print("".join(f"    {name}\n" for name in sorted(files)), end="")


if __name__ == "__main__":
    main()
