"""Fuzz one target for a while, and keep the inputs that reach code which no kept one reaches.

    python -m tests.fuzz.run decoder --seconds 600

What fails is kept in any case, so that the tests meet it. Words behind `--` go to libFuzzer.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
TARGETS = sorted(folder.name for folder in CORPUS.iterdir())
MOST_FILES, MOST_BYTES = 50, 200_000

PACKAGES = ("recsys", "features", "serving")
LONGEST_INPUT = 4096
LONGEST_CHECK_S = 20


def main() -> int:
    """Read the words, fuzz in a child process, and keep what is new; gives the child's exit code."""
    words = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    words.add_argument("target", choices=TARGETS)
    words.add_argument("--seconds", type=int, default=600)
    words.add_argument("more", nargs="*")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as work:
        code = fuzz(given.target, given.seconds, Path(work), given.more)
        kept = keep(given.target, Path(work) / "found")
    print(f"{given.target}: {kept} inputs kept beside those that were there")
    return code


def fuzz(target: str, seconds: int, work: Path, more: list[str]) -> int:
    """Run atheris; kernels are compiled anew with checks of every index, into a cache of their own."""
    (work / "found").mkdir()
    kernels = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(work / "kernels")}
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", f"-timeout={LONGEST_CHECK_S}"]
    folders = [str(work / "found"), str(CORPUS / target)]
    child = [sys.executable, "-m", "tests.fuzz.instrumented", target, *folders, *limits]
    printed = [f"-artifact_prefix={CORPUS / target}/", "-print_final_stats=1", *more]
    return subprocess.run([*child, *printed], env=os.environ | kernels, check=False).returncode


def keep(target: str, found: Path) -> int:
    """Copy what takes new ways through our code, the shortest first; gives how many."""
    check, folder = importlib.import_module(f"tests.fuzz.{target}").check, CORPUS / target
    kept = [path.read_bytes() for path in sorted(folder.iterdir())]
    known = {way for data in kept for way in ways(check, data)}
    files, size = len(kept), sum(map(len, kept))
    for data in sorted((path.read_bytes() for path in found.iterdir()), key=len):
        new = ways(check, data) - known
        if new and files < MOST_FILES and size + len(data) <= MOST_BYTES:
            known |= new
            files, size = files + 1, size + len(data)
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return files - len(kept)


def ways(check: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """Every step from line to line in our packages that a check takes; none for one that fails."""
    steps: set[tuple[str, int, int]] = set()

    def traced(frame: FrameType, event: str, _: Any) -> Any:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in PACKAGES:
            return None
        before = frame.f_lineno

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            steps.add((module, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line

    sys.settrace(traced)
    try:
        check(data)
    except Exception:  # the tests will say what it is
        return set()
    finally:
        sys.settrace(None)
    return steps


if __name__ == "__main__":
    sys.exit(main())
