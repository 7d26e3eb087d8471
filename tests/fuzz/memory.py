"""A folder that costs no disk, for checks that read files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def private_folder() -> Path:
    """A new empty folder of ours, in memory where there is some; gone when the process ends."""
    memory = "/dev/shm"  # noqa: S108 - a folder of its own is made in it
    folder = tempfile.mkdtemp(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
