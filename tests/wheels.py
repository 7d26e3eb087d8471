"""Building the wheel, and running programs of the environments that it is installed in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("recsys", "features", "pipelines", "serving")


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a program that has to end well."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """The wheel of a copy of what a checkout holds, built in the new folder without a network."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in (*PACKAGES, "mlflow", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=source)
    return next(folder.glob("*.whl"))
