"""What the repository may hold: its folders, the files of mlflow/, and source that runs no code from data."""

import ast
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("recsys", "features", "pipelines", "serving")
FOLDERS = {*PACKAGES, "mlflow", "tests"}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES_THAT_RUN_DATA = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
CALLS_THAT_RUN_DATA = {
    "torch.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
    "builtins.eval",
    "builtins.exec",
    "__import__",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
}
KEYWORDS_THAT_RUN_DATA = {"allow_pickle", "trust_remote_code", "shell"}


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(line) for line in listing.stdout.splitlines()]


def imports(tree: ast.Module) -> dict[str, str]:
    """Local name -> dotted name of everything that is imported anywhere in the module."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def imported_packages(tree: ast.Module) -> set[str]:
    return {name.split(".")[0] for name in imports(tree).values()}


def dotted_name(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name that is called; a dot in front stands for any expression (`f().load` is ".load")."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def code_run_from_data(source: str) -> Iterator[str]:
    """Name everything in the source that would let a file or a model decide what code runs."""
    tree = ast.parse(source)
    names = imports(tree)
    yield from sorted(imported_packages(tree) & MODULES_THAT_RUN_DATA)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = dotted_name(call.func, names)
        if name in CALLS_THAT_RUN_DATA or name.endswith(".extractall"):
            yield name
        if name.startswith("mlflow.") and name.endswith(".load_model"):
            yield name
        for keyword in call.keywords:
            harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
            if keyword.arg in KEYWORDS_THAT_RUN_DATA and not harmless:
                yield f"{name}({keyword.arg}=…)"


def test_top_level_folders_are_those_of_the_design() -> None:
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1}

    assert {folder for folder in folders if not folder.startswith(".")} <= FOLDERS


def test_mlflow_folder_never_shadows_the_mlflow_package() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))
    named = [path for path in tracked() if "mlflow" in {path.stem, *path.parts[1:]}]
    assert not named, "a second thing named mlflow would be imported in place of the package"


def test_tests_are_not_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_test_files_have_unique_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_says_what_it_is_and_runs_no_code_from_data(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)

    assert ast.get_docstring(tree), "the module has no docstring"
    assert list(code_run_from_data(source)) == []
    if path.parent != ROOT / "recsys" / "tracking":
        assert "mlflow" not in imported_packages(tree), "only recsys.tracking may import mlflow"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def later():\n    import cloudpickle as quiet",
        "import torch\ntorch.load(path)",
        "from torch import load as read\nread(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "import yaml\nyaml.load(text)",
        "eval(text)",
        "exec(text)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(name, trust_remote_code=True)",
        "import mlflow\nmlflow.pyfunc.load_model(uri)",
        "from mlflow.lightgbm import load_model\nload_model(uri)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "import tarfile\ntarfile.open(path).extractall(folder)",
        "import zipfile\nwith zipfile.ZipFile(path) as archive:\n    archive.extractall()",
    ],
)
def test_gate_finds_code_run_from_data(source: str) -> None:
    assert list(code_run_from_data(source))


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "model.eval()",
        "import yaml\nyaml.safe_load(text)",
        "import json\njson.load(stream)",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
        "from recsys.bundle import load\nload(path)",
    ],
)
def test_gate_lets_data_be_read_as_data(source: str) -> None:
    assert list(code_run_from_data(source)) == []


def test_pins_name_one_public_version_each() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]

    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^+ ]*", pin) for pin in pins), pins
    assert "torch==2.13.0" in pins
    assert len({pin.split("==")[0].lower() for pin in pins}) == len(pins)


def project_commands() -> list[tuple[str, list[str]]]:
    project = yaml.safe_load((ROOT / "mlflow" / "MLproject").read_text())
    return [(name, shlex.split(entry["command"])) for name, entry in project["entry_points"].items()]


def test_mlproject_offers_the_main_jobs() -> None:
    assert {name for name, _ in project_commands()} == {"demo", "train", "evaluate", "compress", "score"}


@pytest.mark.skipif(
    importlib.util.find_spec("pipelines.cli") is None, reason="the command line is not written yet"
)
@pytest.mark.parametrize(("entry", "words"), project_commands())
def test_mlproject_entry_points_are_real_commands(entry: str, words: list[str]) -> None:
    from typer.main import get_command

    from pipelines.cli import app

    assert words[:4] == ["cd", "..", "&&", "recsys"]
    command = get_command(app).commands[words[4]]
    options = {option for parameter in command.params for option in parameter.opts}
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]

    given = [word for word in words[5:] if word.startswith("--")]
    assert set(given) <= options
    assert len(words[5:]) - 2 * len(given) <= len(arguments)


def test_tracking_server_is_pinned_healthy_and_holds_no_password() -> None:
    text = (ROOT / "mlflow" / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]

    assert set(services) == {"database", "tracking"}
    for service in services.values():
        assert re.search(r":\d+\.\d+", service["image"])
        assert service["healthcheck"]["test"]
        for name, value in service["environment"].items():
            if "PASSWORD" in name:
                assert value.startswith("${MLFLOW_DB_PASSWORD:?")
    tracking = services["tracking"]
    assert tracking["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert tracking["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert all(port.startswith("127.0.0.1:") for port in tracking["ports"])
