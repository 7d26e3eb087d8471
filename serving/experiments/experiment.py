"""Who sees which of two models, and the label by which the log remembers it.

Nothing is stored. A user's place is a number in [0, 1) that every program in every language can work out:

    digest = BLAKE2b of 8 bytes, without key, over the UTF-8 bytes of SALT, one zero byte and ID
    place  = floor(digest as a big-endian number / 2**11) / 2**53

SALT is the experiment's, ID the user's id as text (a whole number in decimal digits). Whose place is below
the share gets the treatment. So a user stays on one side for as long as share and salt stay, another share
moves only those between the two shares, and another salt deals all users anew. Whoever has no id is assigned
by the id of the request; that does not stick to anybody, and the label says so.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

import msgspec

from recsys.errors import EXIT_CONFIG, RecsysError

Mode = Literal["split", "interleave"]
"""`split`: a user gets the lists of one model. `interleave`: each list is drafted from both."""

Unit = Literal["user", "request"]
"""By what the arm was chosen."""

LONGEST_SALT = 256

_NAME = r"[A-Za-z0-9_.-]{1,32}"
_LABEL = re.compile(
    rf"({_NAME}):(control|treatment|interleaved):(user|request):([0-9.e-]{{1,24}})(?::((?:[\w-]{{2}})*))?",
    re.ASCII,
)


class Arm(StrEnum):
    """Whose list it is."""

    CONTROL = "control"
    TREATMENT = "treatment"
    INTERLEAVED = "interleaved"


_ARMS = {arm.value: arm for arm in Arm}


@dataclass(frozen=True, slots=True)
class Label:
    """What an impression carries in the log: `NAME:ARM:UNIT:SHARE`, of a draft with `:TEAMS` more.

    The answer gives it as `arm`, and the client sends it back in the impression's `arm` as it came. A
    comparison needs nothing else but the clicks.

    Attributes:
        name: of the experiment.
        arm: whose list it was.
        unit: by what the arm was chosen.
        share: of the experiment at that moment, as Python writes the number.
        teams: who placed what, for an interleaved list; `interleaving.Teams` reads it.
    """

    name: str
    arm: Arm
    unit: Unit
    share: float
    teams: str = ""

    def __str__(self) -> str:
        text = f"{self.name}:{self.arm}:{self.unit}:{self.share!r}"
        return f"{text}:{self.teams}" if self.arm is Arm.INTERLEAVED else text

    @classmethod
    def parse(cls, text: str) -> Label | None:
        """The label of a text, None where another program wrote it."""
        found = _LABEL.fullmatch(text)
        if found is None:
            return None
        name, arm, unit, share, teams = found.groups()
        try:
            label = cls(name, _ARMS[arm], "user" if unit == "user" else "request", float(share), teams or "")
        except ValueError:
            return None
        return label if label.share <= 1.0 and str(label) == text else None


@dataclass(frozen=True)
class Experiment:
    """Two aliases of one model, and who gets which.

    Attributes:
        name: in the labels; use another one for another question.
        control, treatment: aliases.
        share: of the users, 0 to 1: those who get the treatment, or whose lists are interleaved. All others
            get the control; in mode `interleave` they are no part of the experiment.
        mode: see `Mode`.
        salt: decides with the user's id; the name where it is empty.
    """

    name: str
    control: str
    treatment: str
    share: float = 0.5
    mode: Mode = "split"
    salt: str = ""

    def __post_init__(self) -> None:
        """Raise RecsysError `experiment_invalid` (exit 78) for settings that mean nothing."""
        for name in ("name", "control", "treatment"):
            if not re.fullmatch(_NAME, getattr(self, name)):
                raise _invalid(f"{name} is 1 to 32 letters, digits, dots, - or _")
        if self.control == self.treatment:
            raise _invalid("control and treatment are two different aliases")
        if not 0.0 <= self.share <= 1.0:
            raise _invalid("share is a number from 0 to 1")
        if self.mode not in get_args(Mode):
            raise _invalid(f"mode is one of {', '.join(get_args(Mode))}")
        if len(self.salt) > LONGEST_SALT or "\0" in self.salt:
            raise _invalid(f"salt is at most {LONGEST_SALT} characters without NUL")

    def assign(self, user_id: str | int | None, request_id: str) -> Label | None:
        """The label of a request (an interleaved one still without teams), None where it takes no part."""
        unit: Unit = "request" if user_id is None else "user"
        is_chosen = place_of(self._salt, request_id if user_id is None else user_id) < self.share
        if self.mode == "interleave":
            arm = Arm.INTERLEAVED if is_chosen else None
        else:
            arm = Arm.TREATMENT if is_chosen else Arm.CONTROL
        return None if arm is None else Label(self.name, arm, unit, float(self.share))

    def seed(self, request_id: str) -> int:
        """63 bits for the draft of one list; they tell nothing of the assignment."""
        return _digest(f"{self._salt}\0teams", request_id) >> 1

    @property
    def _salt(self) -> str:
        return self.salt or self.name


def place_of(salt: str, unit_id: str | int) -> float:
    """The place in [0, 1) of a user or a request; see the module's formula."""
    return float((_digest(salt, unit_id) >> 11) / 2**53)


def load_experiment(path: Path) -> Experiment:
    """Read the settings from a TOML file.

    Raises:
        RecsysError: `experiment_invalid` (exit 78), also for an unknown or missing setting.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        unknown = document.keys() - Experiment.__dataclass_fields__.keys()
        if unknown:
            raise _invalid(f"there is no setting {min(unknown)!r}")
        return msgspec.convert(document, Experiment)
    except RecsysError as error:
        raise _invalid(error.what, path) from None
    except OSError as error:
        raise _invalid(error.strerror or "it cannot be read", path) from None
    except ValueError as error:  # TOML, UTF-8 and types
        raise _invalid(str(error), path) from None


def _digest(salt: str, unit_id: str | int) -> int:
    return int.from_bytes(blake2b(f"{salt}\0{unit_id}".encode(), digest_size=8).digest())


def _invalid(what: str, where: object = "") -> RecsysError:
    return RecsysError("experiment_invalid", what, str(where), exit_code=EXIT_CONFIG)
