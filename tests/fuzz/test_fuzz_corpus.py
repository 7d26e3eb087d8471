"""What fuzzing has found stays found: every kept input, and changes to them that are the same each time."""

from __future__ import annotations

import importlib
import random
import time

import pytest

from tests.fuzz.mutations import mutate
from tests.fuzz.run import CORPUS, MOST_BYTES, MOST_FILES, TARGETS

CHANGES = 400
LONGEST_S = 5.0


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs_and_changes_to_them_are_taken_or_refused(target: str):
    check = importlib.import_module(f"tests.fuzz.{target}").check
    kept = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    for data in kept:
        check(data)
    draws, end = random.Random(0), time.monotonic() + LONGEST_S
    for _ in range(CHANGES):
        data = mutate(draws.choice(kept), draws, draws.choice(kept))
        try:
            check(data)
        except BaseException as error:
            raise AssertionError(f"{target} fails at {data!r}") from error
        if time.monotonic() > end:
            break


@pytest.mark.parametrize("target", TARGETS)
def test_a_corpus_stays_small(target: str):
    sizes = [path.stat().st_size for path in (CORPUS / target).iterdir()]
    assert 1 <= len(sizes) <= MOST_FILES
    assert sum(sizes) <= MOST_BYTES
