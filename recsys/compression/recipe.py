"""A recipe: how a variant is made, as people write it: `layers=2,vocabulary=2,int8`.

Methods stand in the order in which they are applied; the last word is the runtime that the result is
compiled for. `static` stands alone, because it leaves no network to compile.
"""

from __future__ import annotations

from dataclasses import dataclass

RUNTIMES = ("fp32", "bf16", "int8", "onnx-int8")
STATIC = "static"


@dataclass(frozen=True)
class Method:
    """What a word of a recipe may say.

    Attributes:
        low, high: range of its value, both allowed; equal where it takes none.
        whole: the value is an integer.
        lossy: embeddings change, so that recovery follows.
        meaning: one line for people.
    """

    low: float
    high: float
    whole: bool
    lossy: bool
    meaning: str

    @property
    def allowed(self) -> str:
        """The range as text."""
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} in {self.low:g}..{self.high:g}"


METHODS: dict[str, Method] = {
    "layers": Method(1, 48, True, True, "layers kept, evenly spread"),
    "heads": Method(0, 64, True, True, "attention heads kept a layer, by measured importance"),
    "neurons": Method(0, 65536, True, True, "feed-forward neurons kept a layer, likewise"),
    "gradual-heads": Method(0, 64, True, True, "heads kept, cut in rounds with recovery between them"),
    "gradual-neurons": Method(0, 65536, True, True, "neurons kept, likewise"),
    "modules": Method(1, 95, True, True, "whole attention or feed-forward parts left out"),
    "magnitude": Method(0.01, 0.99, False, True, "share of the smallest weights set to zero, stored sparse"),
    "vocabulary": Method(1, 1000, True, False, "least count in the catalogue of a word piece that stays"),
    "word-rank": Method(1, 4096, True, True, "rank of the word table, weighted by use"),
    "shared": Method(2, 48, True, True, "layers in a row that run with one set of weights"),
    "dims": Method(1, 4096, True, True, "numbers an embedding passes through, trained nested"),
    "pairs": Method(1, 65536, True, False, "neighbouring tokens with a vector of their own; for static"),
    "exit": Method(0.01, 1.0, False, False, "share of texts that leave after half of the layers"),
}
INT8_AWARE = "int8-aware"


@dataclass(frozen=True)
class Step:
    """One method with its value."""

    method: str
    value: float

    def __str__(self) -> str:
        return f"{self.method}={self.value:g}"

    @property
    def count(self) -> int:
        """The value of a method that takes whole numbers."""
        return int(self.value)


@dataclass(frozen=True)
class Recipe:
    """Steps in their order, then the runtime; before `static` stand `vocabulary` and `pairs` alone.

    Attributes:
        steps: methods with values.
        runtime: one of `RUNTIMES`, or `static`.
        aware: fine-tuned with simulated int8 before it is compiled.
    """

    steps: tuple[Step, ...]
    runtime: str
    aware: bool = False

    def __str__(self) -> str:
        return ",".join([*map(str, self.steps), *([INT8_AWARE] if self.aware else []), self.runtime])

    def value_of(self, method: str) -> float | None:
        """The value of the last step by this method, None where there is none."""
        return next((step.value for step in reversed(self.steps) if step.method == method), None)

    @property
    def sparse(self) -> bool:
        """Whether files leave its zeros out."""
        return self.value_of("magnitude") is not None

    @property
    def parent(self) -> str:
        """The recipe without its last step, `fp32` being the root; "" for the root itself."""
        if self.aware:
            return str(Recipe(self.steps, self.runtime))
        if self.steps:
            return str(Recipe(self.steps[:-1], self.runtime))
        return "" if self.runtime == "fp32" else "fp32"


def parse_recipe(text: str) -> Recipe:
    """Read what a person wrote; `int8` is meant where no runtime is named.

    Raises:
        ValueError: an unknown method or a value out of range, with what is allowed.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    runtime = words.pop() if words and words[-1] in (*RUNTIMES, STATIC) else "int8"
    aware = bool(words) and words[-1] == INT8_AWARE
    if aware:
        words.pop()
    recipe = Recipe(tuple(map(_parse_step, words)), runtime, aware)
    _check_order(recipe)
    return recipe


def _parse_step(word: str) -> Step:
    name, equals, text = word.partition("=")
    if name not in METHODS or not equals:
        raise ValueError(
            f"unknown method {word!r}: METHOD=VALUE with one of {', '.join(METHODS)}; "
            f"at the end {INT8_AWARE} and one of {', '.join((*RUNTIMES, STATIC))}"
        )
    method = METHODS[name]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not method.low <= value <= method.high or (method.whole and value != int(value)):
        raise ValueError(f"{name} must be {method.allowed}, not {text!r}")
    return Step(name, value)


def _check_order(recipe: Recipe) -> None:
    """Refuse what cannot be built, before hours are spent."""
    names = [step.method for step in recipe.steps]
    if recipe.runtime == STATIC and (recipe.aware or set(names) - {"vocabulary", "pairs"}):
        raise ValueError("static leaves no network: only vocabulary and pairs may stand before it")
    if "pairs" in names and (names[-1] != "pairs" or recipe.runtime != STATIC):
        raise ValueError("pairs stands last, before static")
    if recipe.aware and recipe.runtime != "int8":
        raise ValueError(f"{INT8_AWARE} is for the runtime int8, not {recipe.runtime}")
    if "exit" in names and (names[-1] != "exit" or recipe.runtime in ("onnx-int8", STATIC) or recipe.aware):
        raise ValueError("exit stands last, before one of fp32, bf16, int8")
    if "word-rank" in names and "vocabulary" in names[names.index("word-rank") :]:
        raise ValueError("vocabulary stands before word-rank")
