"""Trying a bundle in a child process with limits, before the server's own process parses a byte of it.

A damaged artefact can kill the process that parses it, hang it or eat its memory, without any exception. Here
that is the end of a child only (see `serving.lifecycle.trial_child`). Nothing is remembered between trials.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from msgspec import DecodeError
from msgspec.json import decode

from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.lifecycle.trial_child import OUT_OF_MEMORY, Line, Passed, Refused, Stage

_PASSED_ON = ("HOME", "LD_LIBRARY_PATH", "NUMBA_CACHE_DIR", "PATH", "PYTHONPATH", "TMPDIR", "XDG_CACHE_HOME")
"""What the child needs of the environment; keys and addresses of the server stay with the server."""

_ONE_THREAD = (
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
_OUT_OF_TIME = (signal.SIGXCPU, signal.SIGALRM)
_LONGEST_REPORT = 65_536


@dataclass(frozen=True)
class TrialLimits:
    """What a trial may cost.

    Attributes:
        wall_s: seconds from start to result. A trial of a 44 MB bundle takes about three.
        memory_bytes: of address space. Libraries reserve more than they use: 2 GiB for a small bundle.
        memory_factor: further address space as a multiple of the bundle's size on disk.
    """

    wall_s: float = 10.0
    memory_bytes: int = 4 * 2**30
    memory_factor: float = 12.0


def try_bundle(folder: Path, limits: TrialLimits | None = None) -> Passed:
    """Read, verify, parse and score the bundle in a child process; blocks until its end.

    Raises:
        RecsysError: of `read_bundle`, `check_golden` and the parts' `from_files`; `golden_missing`;
            `wrong_kind` for a bundle of an encoder alone; `trial_crashed` with the signal and the file that
            was being read; `trial_timeout`; `trial_out_of_memory`; `trial_failed` for any other exception.
    """
    limits = limits or TrialLimits()
    memory = limits.memory_bytes + int(limits.memory_factor * _size(folder))
    arguments = [str(folder), str(limits.wall_s), str(memory)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as noise:
        code = _run(arguments, out, noise, limits.wall_s)
        return _judge(code, _lines(out), _tail(noise), limits.wall_s)


def _run(arguments: list[str], out: IO[bytes], noise: IO[bytes], wall_s: float) -> int | None:
    """The exit status of the child, None where it had to be stopped."""
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "serving.lifecycle.trial_child", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=noise,
        env=environment(),
        start_new_session=True,
    )
    try:
        return child.wait(wall_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def environment() -> dict[str, str]:
    """What a trial sees of this process's environment, and one thread for every library."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    fixed = {"LC_ALL": "C.UTF-8", "NUMPY_MADVISE_HUGEPAGE": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1"), **fixed}


def _judge(code: int | None, lines: list[Line], noise: str, wall_s: float) -> Passed:
    """The report of a child that ended well; raises what its end means otherwise."""
    stage = next((line.name for line in reversed(lines) if isinstance(line, Stage)), "start")
    if code is None or -code in _OUT_OF_TIME:
        what = f"the trial was not done after {wall_s:g} s, at"
        raise RecsysError("trial_timeout", what, stage, exit_code=EXIT_TEMPORARY)
    result = lines[-1] if lines and code == 0 else None
    if isinstance(result, Passed):
        return result
    if isinstance(result, Refused):
        raise RecsysError(result.code, result.what, result.where, exit_code=result.exit_code)
    if any(sign in noise for sign in OUT_OF_MEMORY):
        raise RecsysError("trial_out_of_memory", "the trial needs more memory than it is given, at", stage)
    last_words = noise.strip().rpartition("\n")[2].partition(":")[0][:80]  # no path, no stack
    ending = signal.Signals(-code).name if code < 0 else f"status {code} ({last_words})"
    raise RecsysError("trial_crashed", f"the trial ended with {ending}, at", stage)


def _size(folder: Path) -> int:
    """Bytes of all files below; links are not followed, and what cannot be read counts nothing."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_REPORT))
    return file.read(_LONGEST_REPORT).decode(errors="replace")


def _lines(file: IO[bytes]) -> list[Line]:
    """What the child wrote, up to the first line that it could not finish."""
    found: list[Line] = []
    for line in _tail(file).splitlines():
        try:
            found.append(decode(line, type=Line))
        except DecodeError:
            break
    return found
