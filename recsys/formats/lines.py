"""Text files read line by line in chunks, plain or gzip, with an account of the lines that were refused."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import polars as pl

from recsys.cells import marked_text
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.schema import REASON, refused

LINE = "line"
TEXT = "text"
BLOCK_BYTES = 8 * 2**20
MAX_LINE_BYTES = 64 * 2**20
KEPT_TEXT = 2_000
GZIP_MAGIC = b"\x1f\x8b"

Refusal = tuple[int, str, str]
"""Line number (from 1), reason, the line."""


@dataclass
class LineLog:
    """What became of the lines of one file: `lines_in` = good + refused."""

    source: str
    lines_in: int = 0
    refusals: list[pl.DataFrame] = field(default_factory=list)

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Count these lines as refused and keep the beginning of each."""
        if refusals:
            frame = pl.DataFrame(
                refusals, {LINE: pl.UInt32, REASON: pl.String, TEXT: pl.String}, orient="row"
            )
            self._keep(frame)

    def sift(self, chunk: pl.DataFrame, reason: pl.Expr) -> pl.DataFrame:
        """The rows of a chunk (`line`, `text`, …) for which `reason` is null; the others are refused."""
        judged = chunk.with_columns(reason.alias(REASON))
        self._keep(judged.filter(pl.col(REASON).is_not_null()).select(LINE, REASON, TEXT))
        return judged.filter(pl.col(REASON).is_null()).drop(REASON)

    def _keep(self, frame: pl.DataFrame) -> None:
        if frame.height:
            name = pl.lit(Path(self.source).name).alias("file")
            self.refusals.append(frame.select(name, LINE, REASON, pl.col(TEXT).str.slice(0, KEPT_TEXT)))

    @property
    def refused(self) -> int:
        """Number of refused lines."""
        return sum(frame.height for frame in self.refusals)

    def reasons(self) -> dict[str, int]:
        """Refused lines by reason, sorted by name."""
        counts: dict[str, int] = {}
        for frame in self.refusals:
            for reason, rows in frame[REASON].value_counts().iter_rows():
                counts[reason] = counts.get(reason, 0) + rows
        return dict(sorted(counts.items()))


def line_chunks(path: Path, log: LineLog, encoding: str = "utf-8") -> Iterator[pl.DataFrame]:
    """Chunks of lines as frames of `line` (number from 1) and `text`, without blank and damaged lines.

    Args:
        path: the file; gzip is told by its first bytes.
        log: counts every line, and keeps the refused ones (`empty_line`, `damaged_text`).
        encoding: of the text; a line that is not in it, or holds a NUL, is refused.

    Raises:
        RecsysError: `no_input` (exit 66), `input_invalid` (exit 65) for a damaged gzip file.
    """
    for lines in _line_blocks(path):
        first = log.lines_in + 1
        log.lines_in += len(lines)
        numbers = pl.int_range(first, first + len(lines), dtype=pl.UInt32, eager=True)
        chunk = pl.DataFrame({LINE: numbers, TEXT: _decoded(lines, encoding)})
        empty = pl.when(pl.col(TEXT).str.strip_chars() == "").then(pl.lit("empty_line"))
        damaged = pl.when(pl.col(TEXT).str.contains("\0", literal=True)).then(pl.lit("damaged_text"))
        yield log.sift(chunk, pl.coalesce(empty, damaged))


def _line_blocks(path: Path) -> Iterator[list[bytes]]:
    rest = b""
    try:
        with _opened(path) as file:
            while block := file.read(BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise refused(f"a line is over {MAX_LINE_BYTES:,} bytes", str(path))
                yield lines
    except FileNotFoundError as error:
        raise RecsysError("no_input", "no such file", str(path), exit_code=EXIT_NO_INPUT) from error
    except (OSError, EOFError, zlib.error) as error:
        raise refused(f"cannot read the file: {error}", str(path)) from error
    if rest:
        yield [rest]


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def _decoded(lines: list[bytes], encoding: str) -> list[str]:
    try:
        return [line.decode(encoding).removesuffix("\r") for line in lines]
    except UnicodeDecodeError:
        return [marked_text(line, encoding).removesuffix("\r") for line in lines]
