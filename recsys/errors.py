"""The failures that a user can do something about, each with a stable code and a sysexits number."""

from __future__ import annotations

EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_NO_INPUT = 66
EXIT_UNAVAILABLE = 69
EXIT_SOFTWARE = 70
EXIT_IO = 74
EXIT_TEMPORARY = 75
EXIT_CONFIG = 78


class RecsysError(Exception):
    """A refused input or an unavailable service; prints as `error: <code>: <what> <where>`."""

    def __init__(self, code: str, what: str, where: str = "", *, exit_code: int = EXIT_DATA) -> None:
        """Name the failure.

        Args:
            code: stable snake_case name, part of the API.
            what: what is wrong and what to do about it, one line.
            where: file, column, alias or address concerned.
            exit_code: sysexits number the command line ends with.
        """
        super().__init__(f"{code}: {what} {where}".rstrip())
        self.code = code
        self.what = what
        self.where = where
        self.exit_code = exit_code
