"""The fine-tuning benchmark: every variant in one table, its cost and its gain over the frozen encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.simulation import SimulationConfig, simulate

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["time", "slate"])
def test_every_variant_stands_in_the_table(protocol, tiny_teacher_folder, tmp_path):
    simulate(tmp_path / "world", SimulationConfig(users=150, items=90, days=6, seed=3))
    out = tmp_path / "finetuning.json"
    words = [str(tmp_path / "world"), "--protocol", protocol, "--minutes", "30", "--out", str(out)]
    words += [
        "--home",
        str(tmp_path / "home"),
        "--set",
        f"text.teacher={json.dumps(str(tiny_teacher_folder))}",
    ]
    for setting in ("distillation.layers=1", "distillation.max_epochs=1", "finetuning.max_steps=4"):
        words += ["--set", setting]
    command = [sys.executable, str(ROOT / "tests/benchmarks/finetuning.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())["rows"]
    assert len({row["variant"] for row in rows}) == len(rows) == 7
    frozen = rows[0]
    assert frozen["variant"] == "frozen"
    assert frozen["report"]["steps"] == 0
    for row in rows:
        metric = next(iter(row["gains"]))
        wanted = row["measures"][metric] - frozen["measures"][metric]
        assert row["gains"][metric]["mean"] == pytest.approx(wanted, abs=1e-9)
        if not row["report"]["improved"]:
            assert wanted == 0.0
    assert out.with_suffix(".md").read_text().strip() == done.stdout.strip()
