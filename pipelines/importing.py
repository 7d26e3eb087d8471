"""Options of `recsys import`, from key=value words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys.errors import EXIT_USAGE, RecsysError


def import_options(words: Sequence[str]) -> dict[str, Any]:
    """Read `reviews=FILE`, and for tables `events.file=FILE` and `events.user_id=COLUMN`.

    `TABLE.file` names a file, any other `TABLE.ours=theirs` maps a column; a word without a dot is an
    option of the format.

    Raises:
        RecsysError: `usage` (exit 64) for a word without "=".
    """
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise RecsysError(
                "usage", "an option has the form key=value, not", repr(word), exit_code=EXIT_USAGE
            )
        table, dot, column = key.partition(".")
        if not dot:
            options[key] = value
        elif column == "file":
            options.setdefault("files", {})[table] = value
        else:
            options.setdefault("columns", {}).setdefault(table, {})[column] = value
    return options
