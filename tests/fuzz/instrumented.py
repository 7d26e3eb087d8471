"""The child of `run`: atheris over one target, until the time is over or something is found.

Everything of ours is instrumented but what numba compiles, which it could not any more.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path

import atheris

from tests.fuzz.mutations import mutate
from tests.fuzz.run import CORPUS, PACKAGES

ROOT = Path(__file__).parents[2]


def compiled() -> list[str]:
    """Names of the modules with kernels."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = [
        path.relative_to(ROOT).with_suffix("") for path in paths if "from numba import" in path.read_text()
    ]
    return [".".join(path.parts) for path in found]


def main(target: str, *words: str) -> None:
    """Fuzz `tests.fuzz.TARGET.check`; the words are libFuzzer's."""
    with atheris.instrument_imports(include=list(PACKAGES), exclude=compiled()):
        check = importlib.import_module(f"tests.fuzz.{target}").check
    for path in (CORPUS / target).iterdir():  # compiles kernels, while the clock stands
        check(path.read_bytes())
    atheris.Setup([sys.argv[0], *words], check, custom_mutator=_mutated)
    atheris.Fuzz()


def _mutated(data: bytes, most: int, seed: int) -> bytes:
    """Half of the changes know JSON and texts, half are libFuzzer's own, which learn from comparisons."""
    draws = random.Random(seed)
    changed = mutate(data, draws) if draws.random() < 0.5 else atheris.Mutate(data, len(data) + 64)
    return changed[:most]


if __name__ == "__main__":
    main(*sys.argv[1:])
