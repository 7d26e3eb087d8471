"""Every failure that a client can see: its code, its status and its words.

RFC 9457 documents of at most 8 KB. What a client sent is never repeated at length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from recsys.errors import RecsysError
from serving.messages import Problem, Rejected

MEDIA_TYPE = b"application/problem+json"
LONGEST_PROBLEM = 8192
LONGEST_DETAIL = 200
LONGEST_STEP = 80
MOST_STEPS = 8
MOST_ERRORS = 10
RETRY_AFTER_S = 1

Place = tuple[str | int, ...]


class Kind(NamedTuple):
    """What a code stands for."""

    status: int
    title: str


_BUNDLE = Kind(422, "The bundle is refused")

CODES: dict[str, Kind] = {
    "bad_request": Kind(400, "This is not HTTP as the server speaks it"),
    "incomplete_body": Kind(400, "The body ended too early"),
    "invalid_json": Kind(400, "The body is not JSON"),
    "invalid_utf8": Kind(400, "The body is not UTF-8"),
    "too_deep": Kind(400, "The body is nested too deeply"),
    "duplicate_key": Kind(400, "A key stands twice in one object"),
    "key_missing": Kind(401, "An API key is needed"),
    "key_unknown": Kind(401, "The API key is not known"),
    "key_expired": Kind(401, "The API key has expired"),
    "scope_missing": Kind(403, "The API key is not good for this"),
    "no_shadow": Kind(404, "No version is tried beside the one that answers"),
    "not_found": Kind(404, "There is nothing here"),
    "unknown_alias": Kind(404, "The registry has no such alias"),
    "unknown_item": Kind(404, "The item is not known"),
    "unknown_model": Kind(404, "The model is not served here"),
    "unknown_version": Kind(404, "The registry has no such version"),
    "method_not_allowed": Kind(405, "This method is not allowed here"),
    "request_timeout": Kind(408, "The request came too slowly"),
    "nothing_to_roll_back": Kind(409, "There is no version to go back to"),
    "reload_running": Kind(409, "Another reload is running"),
    "rolled_back": Kind(409, "The version was taken back and waits for the alias to move"),
    "body_too_large": Kind(413, "The body is too large"),
    "too_many_events": Kind(413, "Too many events in one batch"),
    "url_too_long": Kind(414, "The URL is too long"),
    "unsupported_encoding": Kind(415, "The body is encoded in a way that is not read"),
    "unsupported_media_type": Kind(415, "The body is of a type that is not read"),
    "all_rejected": Kind(422, "No event of the batch was taken"),
    "bad_character": Kind(422, "A text holds a character that is not allowed"),
    "id_conflict": Kind(422, "The event's id was used for another one"),
    "invalid_event": Kind(422, "The event does not fit the schema"),
    "invalid_id": Kind(422, "An id cannot be kept"),
    "invalid_value": Kind(422, "A value does not fit the schema"),
    "number_out_of_range": Kind(422, "A number is out of range"),
    "text_too_long": Kind(422, "A text is too long"),
    "timestamp_out_of_range": Kind(422, "A moment is out of range"),
    "too_many_candidates": Kind(422, "Too many candidates"),
    "too_many_items": Kind(422, "A list is too long"),
    "unknown_kind": Kind(422, "There is no such kind of event"),
    "rate_limited": Kind(429, "Too many requests"),
    "too_many_failures": Kind(429, "Too many requests with a wrong API key"),
    "head_too_large": Kind(431, "The header is too large"),
    "catch_up_slow": Kind(503, "The events since the version was made took too long to read"),
    "draining": Kind(503, "The server is going down"),
    "events_blocked": Kind(503, "Events cannot be stored now"),
    "events_busy": Kind(503, "Too many events are waiting"),
    "events_slow": Kind(503, "Events took too long to store"),
    "internal_failure": Kind(503, "The server failed at this request"),
    "load_slow": Kind(503, "The version took too long to load"),
    "missing_extra": Kind(503, "A library that this needs is not installed"),
    "not_ready": Kind(503, "No model is loaded yet"),
    "overloaded": Kind(503, "The server has too much to do"),
    "registry_unavailable": Kind(503, "The registry cannot be reached"),
    "storage_failed": Kind(503, "The disk failed"),
    "trial_timeout": Kind(503, "The trial of the version took too long"),
    "storage_full": Kind(507, "There is no room left for events"),
    **dict.fromkeys(
        (
            "artifact_policy_violation",
            "artifact_unreadable",
            "bundle_exists",
            "calibration_invalid",
            "collaborative_invalid",
            "digest_mismatch",
            "embeddings_invalid",
            "embeddings_not_finite",
            "embeddings_shape",
            "encoder_invalid",
            "feature_mismatch",
            "golden_mismatch",
            "golden_missing",
            "head_invalid",
            "live_state_format",
            "load_failed",
            "manifest_invalid",
            "non_finite_scores",
            "pairs_invalid",
            "ranker_invalid",
            "rule_invalid",
            "sequence_invalid",
            "signature_invalid",
            "signature_missing",
            "table_invalid",
            "too_many_event_types",
            "trial_crashed",
            "trial_failed",
            "trial_out_of_memory",
            "wrong_kind",
        ),
        _BUNDLE,
    ),
}
"""Code -> status and title. Codes are part of the API."""

_UNLISTED = Kind(422, "Refused")
_ENCODER = msgspec.json.Encoder()


class Refusal(Exception):  # noqa: N818 - no error of the server's
    """A request that is answered with a problem document."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        place: Place | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        rejected: Sequence[Rejected] = (),
    ) -> None:
        """Name the failure.

        Args:
            code: a key of `CODES`.
            detail: what is wrong and what to do about it; cut at 200 characters.
            place: path of the offending value in the body, None where it is not about one.
            headers: further headers of the answer.
            rejected: the events of a batch of which none was taken.
        """
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.place = place
        self.headers = list(headers)
        self.rejected = rejected

    @property
    def status(self) -> int:
        """HTTP status."""
        return kind_of(self.code).status

    @classmethod
    def of(cls, error: RecsysError) -> Refusal:
        """The same failure as a client sees it: paths stay inside, the name of a field does not."""
        place = (error.where,) if error.where.isidentifier() else None
        return cls(error.code, error.what, place)

    @classmethod
    def of_any(cls, error: BaseException, failed: Callable[[str, BaseException], None]) -> Refusal:
        """Any failure as a client sees it; `failed` hears of one that is ours."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, RecsysError):
            return cls.of(error)
        failed("request_failed", error)
        return cls("internal_failure")


def kind_of(code: str) -> Kind:
    """Status and title of a code; one that is not listed is a 422."""
    return CODES.get(code, _UNLISTED)


def problem_bytes(refusal: Refusal, request_id: str = "") -> bytes:
    """The document, at most 8 KB of strict JSON."""
    kind = kind_of(refusal.code)
    problem = Problem(
        type=f"urn:problem-type:recsys:{refusal.code}",
        title=kind.title,
        status=kind.status,
        code=refusal.code,
        detail=_whole(refusal.detail, LONGEST_DETAIL),
        errors=_errors(refusal),
        request_id=request_id,
    )
    return _ENCODER.encode(problem)


def problem_headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """Headers beside the length: the type, when to come again, and what the refusal brings."""
    headers = [(b"content-type", MEDIA_TYPE), *refusal.headers]
    waits = refusal.status in (429, 503, 507)
    if waits and not any(name == b"retry-after" for name, _ in refusal.headers):
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    return headers


def _errors(refusal: Refusal) -> list[dict[str, object]]:
    if refusal.rejected:
        return [
            {"loc": [each.index], "code": each.code, "detail": _whole(each.detail, LONGEST_STEP)}
            for each in refusal.rejected[:MOST_ERRORS]
        ]
    if refusal.place is None:
        return []
    steps = refusal.place[:MOST_STEPS]
    place = [_whole(step, LONGEST_STEP) if isinstance(step, str) else step for step in steps]
    return [{"loc": place, "detail": _whole(refusal.detail, LONGEST_DETAIL)}]


def _whole(text: str, most: int) -> str:
    """The text cut, with a question mark for each half of a character."""
    return text[:most].encode("utf-8", "replace").decode()
