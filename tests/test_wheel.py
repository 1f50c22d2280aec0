"""Installed, Kymo is one package: nothing of a user's own is in its way, and everything it needs came along."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from documents import ROOT

USE = """
import kymo
print(kymo.load_bundle("magnetic").id, kymo.load_recipe("running").name)
from kymo.deploy.kafka_server import LOCK_FILE
print(LOCK_FILE.is_file())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: what an installation puts beside other packages."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files belong to it")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    command = [sys.executable, "-m", "uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the wheel cannot be built here: {done.stderr[-300:]}")
    (path,) = folder.glob("kymo_streams-*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_installs_one_name(wheel: Path) -> None:
    names = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"kymo"}
    held = {
        path.relative_to(ROOT).as_posix() for top in ("recipes", "streams/schemas") for path in (ROOT / top).iterdir()
    }
    held |= {"streams/chunk.proto", "deploy/kafka.lock", "models/shipped/magnetic/model.onnx"}
    assert {name for name in held if not (wheel / "kymo" / name).is_file()} == set()
    tops = [path.resolve() for path in (ROOT / "kymo").iterdir() if path.is_symlink()]
    modules = {path.relative_to(ROOT).as_posix() for top in tops for path in top.rglob("*.py")}
    assert {name for name in modules if not (wheel / "kymo" / name).is_file()} == set()


@pytest.mark.slow
def test_it_works_beside_files_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    for name in ("streams", "models", "processors", "deploy", "examples", "lab"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a user wrote this')\n")
    environment = {"PYTHONPATH": str(wheel), "PATH": "", "KYMO_HOME": str(tmp_path / "home")}
    for command in (["-c", USE], ["-m", "kymo", "--help"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "Classify live streams" in done.stdout


def test_a_checkout_works_beside_files_of_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("raise SystemExit('a user wrote this')\n")
    code = "import kymo, kymo.models.run as m; print(m.__file__)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert Path(done.stdout.strip()) == ROOT / "models" / "run.py", done.stderr
