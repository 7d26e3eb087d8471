"""What goes where: one JSON object on standard output, everything else on standard error."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.terminal import plain, table

SCRIPT = """
import sys, time
import numpy as np
from pipelines.terminal import Terminal, table

terminal = Terminal(as_json="--json" in sys.argv)
print("a library that prints")
terminal.note("a [note] for people")
with terminal.step("slow [step]") as progress:
    progress(1, 2)
    time.sleep(0.05)
with terminal.step("slow [step]"):
    pass
document = {
    "auc": {"mean": float("nan"), "low": -np.inf, "high": np.float32("nan")},
    "rows": [np.int64(3), np.arange(2), (1, None, True)],
    "step": terminal.seconds["slow [step]"] >= 0.05,
    1: "größer",
}
terminal.result(document, lambda out: out.print(table("Title", ["model", "auc"], [["full", "0.7"]])))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, encoding="utf-8")


def test_json_is_one_object_on_one_line_with_null_for_nan():
    done = run("--json")
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout, parse_constant=pytest.fail) == {
        "auc": {"mean": None, "low": None, "high": None},
        "rows": [3, [0, 1], [1, None, True]],
        "step": True,
        "1": "größer",
    }


def test_progress_notes_and_what_libraries_print_go_to_standard_error():
    err = run("--json").stderr
    assert "a library that prints" in err
    assert "a [note] for people" in err
    assert err.count("slow [step]: 0.") == 2


def test_people_get_the_lines_instead():
    out = run().stdout
    assert "Title" in out
    assert "full" in out
    assert "{" not in out


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.integers(-9, 9).map(np.int8),
    st.booleans().map(np.bool_),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.just(Path("a/b")),
)
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(documents)
def test_every_document_becomes_strict_json(document):
    text = json.dumps(plain(document), allow_nan=False)
    assert plain(json.loads(text)) == json.loads(text)


def test_only_nan_and_infinity_become_null():
    assert plain({"a": [1.5, math.nan, np.float64(2.5), np.float32(0.5), np.float32(math.inf)]}) == {
        "a": [1.5, None, 2.5, 0.5, None]
    }
    assert plain(Path("a/b")) == "a/b"


def test_tables_keep_every_row_and_a_wide_cell_whole():
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(table("T", ["model", "a"], [["full", "0.1"], ["x" * 60, "0.2"]]))
    text = console.export_text()
    assert "x" * 60 in text
    assert [line.split() for line in text.splitlines() if "0.1" in line]
