"""One small job from the command line, shared by the tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "from pipelines.cli import main; main()"]
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """A simulated world, a home with one trained and promoted version, and the settings that made it."""

    data: Path
    home: Path
    settings: list[str]
    trained: dict[str, Any]

    def run(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command in this home and expect an exit code."""
        return recsys(*words, home=self.home, code=code)

    def json(self, *words: str | Path) -> Any:
        """The one JSON object that a command prints."""
        return json.loads(self.run(*words, "--json").stdout)


def recsys(*words: str | Path, home: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RECSYS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, env=environment, check=False, cwd=home
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def job(tiny_teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    home = tmp_path_factory.mktemp("home")
    data = home / "world"
    recsys("simulate", data, "--users", "300", "--items", "200", "--days", "8", home=home)
    settings = [
        f"--set=text.teacher={json.dumps(str(tiny_teacher_folder))}",
        "--set=distillation.layers=1",
        "--set=distillation.max_epochs=2",
        "--set=finetuning.max_steps=6",
        "--set=collaborative.embedding_dim=16",
        "--set=sequence.embedding_dim=16",
        "--set=sequence.epochs=2",
        "--set=head.epochs=2",
        "--set=ranker.rounds=40",
        "--set=ranker.min_data_in_leaf=20",
    ]
    key = home / "signing.key"
    key.touch(0o600)
    key.write_text("ab" * 32)
    signed = f"--set=signing.key={json.dumps(str(key))}"
    trained = json.loads(recsys("train", data, *settings, signed, "--json", home=home).stdout)
    recsys("promote", "--force", home=home)
    return Job(data, home, settings, trained)
