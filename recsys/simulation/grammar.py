"""The text of made-up items: a vocabulary file and the sentences it is put into.

Every item has a made-up product name that no other item has, in its title and in its description, so
no two items are alike. It knows nothing about who likes what.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.draws import Draws
from recsys.events import Int64

_HEADS = tuple(
    start + vowel + middle
    for start in (
        *(
            "b",
            "br",
            "c",
            "ch",
            "d",
            "dr",
            "f",
            "fl",
            "fr",
            "g",
            "gl",
            "gr",
            "h",
            "j",
            "k",
            "kl",
            "l",
            "m",
            "n",
        ),
        *("p", "pl", "pr", "r", "s", "sh", "sk", "sl", "st", "sv", "t", "th", "tr", "v", "w", "wr", "y", "z"),
    )
    for vowel in "aeiou"
    for middle in (
        *(
            "b",
            "ck",
            "d",
            "dr",
            "ff",
            "g",
            "l",
            "lb",
            "ld",
            "ll",
            "lm",
            "lv",
            "m",
            "mb",
            "mp",
            "n",
            "nd",
            "ng",
            "nk",
        ),
        *(
            "nt",
            "ps",
            "r",
            "rd",
            "rk",
            "rl",
            "rm",
            "rn",
            "rt",
            "rv",
            "ss",
            "st",
            "t",
            "th",
            "v",
            "x",
            "z",
            "zz",
        ),
    )
)
_TAILS = tuple(
    vowel + end
    for vowel in "aeiou"
    for end in (
        *("", "ck", "d", "dal", "l", "la", "lan", "len", "lis", "m", "mar", "mo", "n", "na", "ne", "nor"),
        *("r", "ra", "ric", "rin", "ro", "s", "sk", "st", "t", "ta", "th", "ton", "va", "vik", "x"),
    )
)
NAME_CAPACITY = len(_HEADS) * len(_TAILS)
"""How many product names there are. A head ends at the last consonant before its word's second vowel,
so head and tail can be read off a name, and two different pairs never spell the same one."""

_STRIDE = 611_953
"""A prime that does not divide NAME_CAPACITY: stepping by it visits every name once."""

_TITLES = (
    "{name} {adjective} {noun}",
    "{Adjective} {noun} with {part} by {name}",
    "{name}, {a_adjective} {noun} for {use}",
    "{name} {noun} with {part}",
    "{Adjective} {noun} for {use}: the {name}",
    "The {adjective} {name} {noun}",
)
_OPENINGS = (
    "The {name} is {a_adjective} {noun} with {part}, made for {use}.",
    "For {use} there is the {name}, {a_adjective} {noun} with {part}.",
    "Meet the {name}: {a_adjective} {noun} for {use} that comes with {part}.",
    "With {part}, the {name} is {a_adjective} {noun} for anyone who enjoys {use}.",
    "Think of {use}, then of the {name}: {a_adjective} {noun} with {part}.",
)
_DRAWS_PER_ITEM = 12


@dataclass(frozen=True)
class Subcategory:
    """One shelf of the shop: its words."""

    category: str
    name: str
    nouns: tuple[str, ...]
    parts: tuple[str, ...]
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Attribute:
    """One value of an attribute family, in several wordings."""

    family: str
    value: str
    adjectives: tuple[str, ...]
    clauses: tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """All subcategories and attribute values; their places here are the codes used everywhere."""

    subcategories: tuple[Subcategory, ...]
    attributes: tuple[Attribute, ...]

    @classmethod
    def load(cls) -> Grammar:
        """Read the vocabulary that lies beside this module."""
        source = resources.files("recsys.simulation").joinpath("vocabulary.toml")
        words = tomllib.loads(source.read_text("utf-8"))
        return cls(
            tuple(Subcategory(**_frozen(entry)) for entry in words["subcategory"]),
            tuple(Attribute(**_frozen(entry)) for entry in words["attribute"]),
        )

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Category names in order of first appearance."""
        return tuple(dict.fromkeys(shelf.category for shelf in self.subcategories))

    @cached_property
    def category_of(self) -> NDArray[np.int16]:
        """(subcategories,) category code of each subcategory."""
        return np.array([self.categories.index(shelf.category) for shelf in self.subcategories], np.int16)

    @cached_property
    def families(self) -> tuple[NDArray[np.int8], ...]:
        """The attribute codes of each family."""
        names = dict.fromkeys(attribute.family for attribute in self.attributes)
        return tuple(
            np.array([code for code, a in enumerate(self.attributes) if a.family == name], np.int8)
            for name in names
        )

    def write(
        self, items: Int64, subcategory: NDArray[np.int16], attributes: NDArray[np.int8], draws: Draws
    ) -> tuple[list[str], list[str]]:
        """Titles and descriptions of items.

        Args:
            items: (n,) item numbers below `NAME_CAPACITY`; they alone decide the product name.
            subcategory: (n,) codes into `subcategories`.
            attributes: (n, families) codes into `attributes`, -1 where the item lacks the family. An
                item needs at least three.
            draws: where the choice of words comes from.

        Returns:
            n titles and n descriptions, each list without repetition.
        """
        order = np.where(
            attributes < 0, 2.0, draws.uniform("word order", items[:, None], np.arange(attributes.shape[1]))
        )
        mixed = np.take_along_axis(attributes, np.argsort(order, axis=1), axis=1).tolist()
        picks = draws.integers(1 << 16, "words", items[:, None], np.arange(_DRAWS_PER_ITEM)).tolist()
        texts = [
            self._one(name, self.subcategories[shelf], [a for a in codes if a >= 0], pick)
            for name, shelf, codes, pick in zip(
                names(items, draws), subcategory.tolist(), mixed, picks, strict=True
            )
        ]
        return [title for title, _ in texts], [description for _, description in texts]

    def _one(self, name: str, shelf: Subcategory, codes: list[int], pick: list[int]) -> tuple[str, str]:
        """Title and description of one item from its picks."""
        lead, second = self.attributes[codes[0]], self.attributes[codes[1]]
        shown = second if pick[0] & 1 else lead
        noun = _pick(shelf.nouns, pick[1])
        title = _TITLES[pick[2] % len(_TITLES)].format_map(
            _words(
                name,
                noun,
                _pick(shown.adjectives, pick[3]),
                _pick(shelf.parts, pick[4]),
                _pick(shelf.uses, pick[5]),
            )
        )
        opening = _OPENINGS[pick[6] % len(_OPENINGS)].format_map(
            _words(
                name,
                noun,
                _pick(lead.adjectives, pick[7]),
                _pick(shelf.parts, pick[8]),
                _pick(shelf.uses, pick[9]),
            )
        )
        clauses = [
            _pick(self.attributes[code].clauses, pick[10] // 7**place + place)
            for place, code in enumerate(codes[1:])
        ]
        if len(clauses) < 3:
            clauses.append(
                f"it also comes with {_pick(shelf.parts, pick[8] + 1 + pick[11] % (len(shelf.parts) - 1))}"
            )
        return title[0].upper() + title[1:], f"{opening} {_sentences(clauses)}"


def names(items: Int64, draws: Draws) -> list[str]:
    """Product names of items: a permutation of all names, so two numbers never share one.

    Raises:
        ValueError: if a number is not below `NAME_CAPACITY`.
    """
    if len(items) and (items.min() < 0 or items.max() >= NAME_CAPACITY):
        raise ValueError(f"item numbers must lie in 0..{NAME_CAPACITY - 1}")
    code = (items * _STRIDE + int(draws.integers(NAME_CAPACITY, "names"))) % NAME_CAPACITY
    heads, tails = np.divmod(code, len(_TAILS))
    return [
        (_HEADS[head] + _TAILS[tail]).capitalize()
        for head, tail in zip(heads.tolist(), tails.tolist(), strict=True)
    ]


def _words(name: str, noun: str, adjective: str, part: str, use: str) -> dict[str, str]:
    article = "an" if adjective[0].lower() in "aeiou" else "a"
    return {
        "name": name,
        "noun": noun,
        "adjective": adjective,
        "Adjective": adjective[0].upper() + adjective[1:],
        "a_adjective": f"{article} {adjective}",
        "part": part,
        "use": use,
    }


def _sentences(clauses: list[str]) -> str:
    """Join clauses two a sentence."""
    pairs = [clauses[start : start + 2] for start in range(0, len(clauses), 2)]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in (", and ".join(pair) for pair in pairs))


def _pick(choices: tuple[str, ...], number: int) -> str:
    return choices[number % len(choices)]


def _frozen(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
