"""`recsys serve` on the command line."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.errors import EXIT_UNAVAILABLE, RecsysError
from serving.commands.opening import (
    HomeOption,
    JsonOption,
    RedisNameOption,
    RedisOption,
    home_folder,
    log_place,
)

if TYPE_CHECKING:
    from serving.events.place import LogPlace
    from serving.experiments.experiment import Experiment
    from serving.hosting import HostSettings

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Of numerical libraries, read when they are imported: products of one request are too small to share."""
_HUGE_PAGES = "NUMPY_MADVISE_HUGEPAGE"
"""Off: pages of 2 MiB are what a virtual machine gives back to its host, and it waits to get them again."""


def serve(
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/NUMBER, or a folder with a bundle.")
    ] = "models:/recsys@champion",
    host: Annotated[str | None, typer.Option(help="Address; any but loopback needs API keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. Default: 8000.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Loopback port of reload and rollback. Default: 8001.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys: KEY SCOPES [EXPIRY] a line; or RECSYS_API_KEYS.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Event log; default: events.db in the home.")] = None,
    redis: RedisOption = None,
    redis_name: RedisNameOption = "recsys",
    experiment: Annotated[
        Path | None, typer.Option(help="TOML file: name, control, treatment, share, mode, salt.")
    ] = None,
    shadow: Annotated[
        str | None, typer.Option(help="Another version, as --model, tried on a share of the requests.")
    ] = None,
    public_key: Annotated[
        list[Path] | None, typer.Option(help="Serve only what is signed with this key; may be repeated.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with tables server, watch and shadow.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="One setting: server.deadline_s=0.05")
    ] = None,
    home: HomeOption = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow tracking server; default: an SQLite file in the home.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer rank calls and take events over HTTP, with the version that an alias points to."""
    place = home_folder(home)
    _prepare_libraries(place)
    with _serve_extra(), _no_collections():
        from serving.commands.serve_settings import read_settings
        from serving.hosting import HostSettings
    options = (("host", host), ("port", port), ("admin_port", admin_port), ("keys_file", keys))
    given = {name: value for name, value in options if value is not None}
    settings = read_settings(config, given, overrides or [])
    hosted = HostSettings(
        model=model,
        home=place,
        tracking_uri=tracking_uri,
        public_keys=tuple(public_key or ()),
        experiment=_experiment(experiment),
        shadow=shadow,
        server=settings.server,
        watch=settings.watch,
        shadowing=settings.shadow,
    )
    _serve(hosted, log_place(log, redis, redis_name, place), as_json=as_json)


def _prepare_libraries(home: Path) -> None:
    """Settings that are read when the libraries are imported."""
    for variable in _THREADS:
        os.environ.setdefault(variable, "1")
    os.environ.setdefault(_HUGE_PAGES, "0")
    if not os.access(Path(__file__).parent, os.W_OK):  # numba would keep its kernels beside the sources
        os.environ.setdefault("NUMBA_CACHE_DIR", str(home / "cache" / "kernels"))


def _serve(settings: HostSettings, place: LogPlace, *, as_json: bool) -> None:
    """Serve until a signal; what is wrong with keys and addresses is told before anything else begins."""
    with _no_collections():
        from serving.hosting import Host
        from serving.http.intake_process import IntakeProcess
        from serving.http.keys import VARIABLE as KEYS_VARIABLE
        from serving.http.keys import check_bind, read_keys
        from serving.http.server import bind, room_for_connections, run
        from serving.http.site import log_to, make_site
        from serving.logs import LineLog
        from serving.meters import Meters

    keys = read_keys(settings.server.keys_file, os.environ)
    os.environ.pop(KEYS_VARIABLE, None)  # no child of this process needs them
    check_bind(settings.server.host, keys)
    server = replace(settings.server, most_connections=room_for_connections(settings.server))
    with ExitStack() as open_ones:
        public = open_ones.enter_context(bind(server.host, server.port))
        admin = open_ones.enter_context(bind("127.0.0.1", server.admin_port))
        intake = open_ones.enter_context(closing(IntakeProcess(place, server)))
        meters = Meters()
        log = open_ones.enter_context(closing(LineLog(sys.stderr.fileno(), meters.lines_dropped)))
        log_to(log)
        host = Host(replace(settings, server=server), place, intake, meters, log)
        site = make_site(host.parts(), keys, server, public, admin)
        ports = (public.getsockname()[1], admin.getsockname()[1])
        run(site, lambda: _say(server.host, *ports, as_json=as_json))
    _leave_hanging_calls()


def _leave_hanging_calls() -> None:
    """End here where a thread still is in a library's call: some abort a process that ends while they work.

    Everything is on the disk by now.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _say(host: str, port: int, admin_port: int, *, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"host": host, "port": port, "admin_port": admin_port, "pid": os.getpid()})
    else:
        name = f"[{host}]" if ":" in host else host
        line = f"http://{name}:{port} takes requests, http://127.0.0.1:{admin_port} reload and rollback"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _experiment(path: Path | None) -> Experiment | None:
    if path is None:
        return None
    from serving.experiments.experiment import load_experiment

    return load_experiment(path)


@contextmanager
def _no_collections() -> Iterator[None]:
    """What is imported stays: to look through it for garbage, again and again, takes a fifth of a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def _serve_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        what = f"module {error.name} is missing: install recsys[serve]"
        raise RecsysError("missing_extra", what, exit_code=EXIT_UNAVAILABLE) from error
