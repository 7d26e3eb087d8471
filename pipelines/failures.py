"""How a command ends: one line on standard error for a failure, and a number of sysexits."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from typer.exceptions import TyperException

from recsys.errors import EXIT_DATA, EXIT_SOFTWARE, EXIT_UNAVAILABLE, EXIT_USAGE, RecsysError


def run_to_exit(command: Callable[[], Any]) -> NoReturn:
    """Run `command` and leave the process with its number, or with that of what it raised."""
    try:
        code = command()
    except RecsysError as error:
        _fail(error.code, error.what, error.where, error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except TyperException as error:
        _fail("usage", error.format_message() or "give a command: recsys --help lists them", "", EXIT_USAGE)
    except KeyboardInterrupt:
        _fail("interrupted", "stopped by the user", "", 130)
    except ModuleNotFoundError as error:
        what = f"module {error.name} is missing: install recsys[train]"
        _fail("missing_extra", what, "", EXIT_UNAVAILABLE)
    except Exception as error:
        if os.environ.get("RECSYS_TRACEBACK"):
            traceback.print_exc()
        what = f"{type(error).__name__}: {error} (RECSYS_TRACEBACK=1 shows where)"
        _fail("internal", " ".join(what.split())[:500], "", EXIT_SOFTWARE)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(code: str, what: str, where: str, exit_code: int) -> NoReturn:
    print(f"error: {code}: {' '.join(f'{what} {where}'.split())}", file=sys.stderr)
    sys.exit(exit_code or EXIT_DATA)
