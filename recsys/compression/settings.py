"""Settings of `recsys compress`, apart from the code that needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from recsys.compression.choice import Prices, check_limits
from recsys.compression.recipe import parse_recipe
from recsys.text.settings import DistillationConfig

LADDER = (
    "int8",
    "layers=2,vocabulary=2,int8",
    "layers=1,vocabulary=2,int8",
    "vocabulary=1,pairs=4000,static",
    "vocabulary=2,static",
    "layers=3,int8",
    "bf16",
    "layers=4,int8",
    "vocabulary=1,int8",
    "layers=1,vocabulary=2,neurons=768,int8",
    "heads=8,int8",
    "gradual-neurons=768,int8",
    "modules=4,int8",
    "shared=2,int8",
    "word-rank=128,int8",
    "dims=128,int8",
    "exit=0.5,int8",
    "magnitude=0.5,int8",
    "layers=2,vocabulary=2,int8-aware,int8",
    "onnx-int8",
    "static",
)
"""Every method once, those that are most often chosen first: time may end."""

PARTS = ("trees=0.5", "factors=float16", "factors=int8", "embeddings=int8", "pairs=float16")

DEFAULT_LIMITS = {
    "quality_min_ratio": 0.98,
    "throughput_min_ratio": 4.0,
    "latency_p99_ms": 50.0,
    "explanation_fidelity_min": 0.5,
    "fairness_gap_max": 1.0,
}


@dataclass(frozen=True)
class CompressionConfig:
    """What is built, how it is measured, and what the choice must meet.

    Attributes:
        ladder: recipes that are measured first, in this order; see `recipe.METHODS`.
        parts: compressed parts of the rest of the bundle, `part=value`, measured beside them.
        limits: name to value, see `choice.LIMITS`; laid over the defaults key by key, and `inf` or `-inf`
            opens one.
        prices: what computing and storing cost.
        recovery: distillation after each lossy step; `layers` is not read.
        search: whether combinations are searched with the time that the ladder leaves.
        requests: requests of a window that are judged at most, drawn at random.
        speed_texts: texts in a round of a speed measurement.
        speed_rounds: rounds of it; six make their range a 97 % interval of the median.
    """

    ladder: tuple[str, ...] = LADDER
    parts: tuple[str, ...] = PARTS
    limits: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_LIMITS))
    prices: Prices = field(default_factory=Prices)
    recovery: DistillationConfig = field(
        default_factory=lambda: DistillationConfig(max_tokens_seen=200_000, similarity_weight=0.2)
    )
    search: bool = True
    requests: int = 25_000
    speed_texts: int = 200
    speed_rounds: int = 6

    def __post_init__(self) -> None:
        """Refuse what cannot be built or met.

        Raises:
            ValueError: an unknown method, runtime or limit, or a value out of range, with what is allowed.
        """
        for recipe in self.ladder:
            parse_recipe(recipe)
        check_limits({name: value for name, value in self.limits.items() if abs(value) != float("inf")})
        for name, value in (("requests", self.requests), ("speed_texts", self.speed_texts)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if self.speed_rounds < 1:
            raise ValueError(f"speed_rounds must be 1 or more, not {self.speed_rounds}")
