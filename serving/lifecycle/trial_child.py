"""What the child process of a trial does: limit itself, read a bundle, and say how it went.

It writes a JSON line for each stage that it enters and a last one with the result, so that its parent can
name what killed it. The limits keep accidents in. They are no wall against code that has taken the process
over: that is kept out by what `recsys.bundle` lets in.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from msgspec import Meta, Struct
from msgspec.json import encode

from recsys.bundle import Bundle, read_to_load
from recsys.errors import EXIT_DATA, RecsysError
from recsys.golden import GOLDEN

OUT_OF_MEMORY = (
    "memory allocation of",
    "bad_alloc",
    "Cannot allocate memory",
    "MemoryError",
    "failed to map segment",
)
"""How libraries say that they were given no more memory."""

_SEALED = (
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
    "socket.bind",
    "socket.connect",
    "socket.sendmsg",
    "socket.sendto",
    "subprocess.Popen",
)
_LARGEST_FILE = 32 * 2**20
_MOST_FILES = 256


class Stage(Struct, frozen=True, tag="stage"):
    """The child is about to read this part of the bundle."""

    name: Annotated[str, Meta(max_length=100)]


class Passed(Struct, frozen=True, tag="passed"):
    """A trial that was passed: of which bundle, and what it cost."""

    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    golden_rows: int
    seconds: float
    peak_bytes: int


class Refused(Struct, frozen=True, tag="refused"):
    """The failure that the child found, as it goes into a `RecsysError`."""

    code: Annotated[str, Meta(pattern=r"^[a-z_]{1,50}$")]
    what: Annotated[str, Meta(max_length=300)]
    where: Annotated[str, Meta(max_length=200)] = ""
    exit_code: int = EXIT_DATA


Line = Stage | Passed | Refused
Tell = Callable[[Line], None]


def main(words: list[str]) -> NoReturn:
    """Run the trial in this process, which is then of no further use: it limits and seals itself."""
    folder, wall_s, memory = Path(words[0]), float(words[1]), int(words[2])
    tell = _teller()
    _limit(wall_s, memory)
    sys.addaudithook(refuse_ways_out)
    tell(_result(folder, tell))
    os._exit(0)


def _result(folder: Path, tell: Tell) -> Line:
    started = time.monotonic()
    try:
        digest, rows = _try(folder, tell)
    except RecsysError as error:
        return Refused(error.code, error.what[:300], error.where[:200], error.exit_code)
    except BaseException as error:  # what Rust panics raise is no Exception
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        memory = any(sign in text for sign in OUT_OF_MEMORY)
        return Refused("trial_out_of_memory" if memory else "trial_failed", text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Passed(digest, rows, time.monotonic() - started, peak)


def _try(folder: Path, tell: Tell) -> tuple[str, int]:
    """Digest of the bundle and its number of golden rows; raises whatever is wrong with it."""
    tell(Stage("digests"))
    bundle = read_to_load(folder)
    if bundle.is_encoder:
        raise RecsysError("wrong_kind", "a text encoder alone cannot rank:", bundle.manifest.name)
    golden = bundle.golden()
    if golden is None or not len(golden):
        raise RecsysError("golden_missing", "no golden requests to hold the scores against:", GOLDEN)
    for stage, step in _steps(bundle):
        tell(Stage(stage))
        step()
    return bundle.digest, len(golden)


def _steps(bundle: Bundle) -> list[tuple[str, Callable[[], object]]]:
    """Everything that the server may later do with the bundle's bytes, each named by the file it reads."""
    from recsys.text.loading import load_encoder

    return [
        ("ranker.txt", lambda: _try_ranker(bundle)),
        ("text encoder", lambda: load_encoder(bundle.files, threads=1).encode(["a word"])),
        (GOLDEN, lambda: _try_model(bundle)),
    ]


def _try_ranker(bundle: Bundle) -> None:
    """Its trees, what explanations need of them, and LightGBM, which a damaged text kills elsewhere."""
    import numpy as np

    from recsys.ranking import Ranker

    ranker = Ranker.from_files(bundle.files)
    ranker.effects(np.zeros((1, len(ranker.features)), np.float32), ranker.schema_hash)
    _ = ranker.booster


def _try_model(bundle: Bundle) -> None:
    """The scores that training promised, lists as the server will make them, events as it will get them."""
    from serving.engine.live_model import LiveModel
    from serving.lifecycle.warm_up import golden_requests, take_in_events, warm_up
    from serving.messages import ModelName

    model, requests = (
        LiveModel.load(bundle, ModelName(name=bundle.manifest.name, version=0)),
        golden_requests(bundle),
    )
    warm_up(model, requests, bundle.manifest.as_of)
    take_in_events(model, requests)


def _teller() -> Tell:
    """Writes JSON lines to what was standard output; prints of libraries go to standard error from now on."""
    descriptor = os.dup(1)
    os.dup2(2, 1)

    def tell(line: Line) -> None:
        os.write(descriptor, encode(line) + b"\n")

    return tell


def _limit(wall_s: float, memory: int) -> None:
    """Bound what this process can take, also where its parent is gone and nobody waits for it."""
    seconds = math.ceil(wall_s)
    _bound(resource.RLIMIT_AS, memory)
    _bound(resource.RLIMIT_CPU, seconds + 1, grace=1)  # SIGXCPU says why, what follows it does not
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_FSIZE, _LARGEST_FILE)
    _bound(resource.RLIMIT_NOFILE, _MOST_FILES)
    signal.alarm(seconds + 1)


def _bound(kind: int, most: int, grace: int = 0) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY:
        hard = most + grace
    resource.setrlimit(kind, (min(most, hard), min(most + grace, hard)))


def refuse_ways_out(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: no other program is started and no connection opened from here on."""
    if event in _SEALED:
        raise PermissionError(f"{event} is not for a trial")


if __name__ == "__main__":
    main(sys.argv[1:])
