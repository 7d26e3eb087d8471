"""The wheel: what it holds, that it works away from the source tree, and how little serving loads."""

import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.wheels import PACKAGES, ROOT, build_wheel, run

TRAINING_LIBRARIES = {"torch", "transformers", "peft", "nncf", "implicit", "mlflow"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist") / "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment's Python with the wheel in it; its dependencies are those of this environment."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    run(*pip, wheel, cwd=home)
    # A path in a .pth file adds that folder alone: the .pth of our own editable install in it stays unread.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
def test_wheel_holds_the_four_packages_and_their_licences_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    metadata = next(name.split("/")[0] for name in names if ".dist-info/" in name)

    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata}
    assert {f"{metadata}/licenses/LICENSE", f"{metadata}/licenses/NOTICE"} <= set(names)


@pytest.mark.slow
def test_wheel_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    program = (
        f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})), sep='\\n')"
    )
    files = run(installed, "-c", program, cwd=tmp_path).splitlines()

    environment = installed.parents[1].resolve()
    assert all(Path(file).resolve().is_relative_to(environment) for file in files), files
    assert "demo" in run(installed.parent / "recsys", "--help", cwd=tmp_path)


def test_serving_loads_no_training_library(tmp_path: Path) -> None:
    program = f"""
import importlib, pkgutil, sys
sys.path.insert(0, {str(ROOT)!r})
import serving
for module in pkgutil.walk_packages(serving.__path__, "serving."):
    importlib.import_module(module.name)
print(*{{name.split(".")[0] for name in sys.modules}})
"""
    loaded = set(run(sys.executable, "-c", program, cwd=tmp_path).split())

    assert "serving" in loaded
    assert loaded & TRAINING_LIBRARIES == set()
