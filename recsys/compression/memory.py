"""Peak memory of an encoder: a process of its own loads it from its files and encodes.

Run as `python -m recsys.compression.memory FOLDER`, where `texts.json` lies beside the encoder's files; it
prints the peak of its resident memory in bytes, Python and the runtime's libraries counted. Linux only: it
reads /proc.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from recsys.text.loading import load_encoder

TEXTS_FILE = "texts.json"
SECONDS = 300.0


def peak_memory(files: Mapping[str, bytes], texts: Sequence[str]) -> int:
    """Bytes at the peak of loading the encoder of these files and encoding these texts.

    Raises:
        RuntimeError: the process failed; its last line tells why.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        Path(folder, TEXTS_FILE).write_text(json.dumps(list(texts)))
        command = [sys.executable, "-m", "recsys.compression.memory", folder]
        done = subprocess.run(  # noqa: S603, our own module in our own interpreter
            command, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    if done.returncode:
        raise RuntimeError(f"memory could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def _main(folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    texts = json.loads(files.pop(TEXTS_FILE))
    load_encoder(files).encode(texts)
    print(_peak())


def _peak() -> int:
    """Highest resident memory of this process; `getrusage` would tell that of the one it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
