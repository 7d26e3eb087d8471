import itertools
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import RecsysError
from serving.events.parsing import LONGEST_DETAIL, Window, check_events, event_of, raw_events, record_of
from serving.http.batches import METARANK, OURS, Batch, Dialect, pieces
from serving.http.decoding import LARGE_BODY
from serving.messages import KINDS, MOST_EVENTS, ImpressionEvent, InteractionEvent, ItemEvent
from serving.problems import Refusal

NOW = 1_760_000_000.0
DAY_S = 86_400.0


def click(**changes: object) -> dict[str, object]:
    event = {"event_id": "e1", "user_id": "u1", "item_id": 7, "event_type": "click", "timestamp": NOW - 5}
    return {name: value for name, value in {**event, **changes}.items() if value is not ...}


def impression(**changes: object) -> dict[str, object]:
    event = {"kind": "impression", "event_id": "s1", "user_id": 1, "timestamp": NOW, "shown": ["a", "b"]}
    return {**event, **changes}


def verdict(event: object, window: Window | None = None) -> tuple[str, str]:
    """Code and detail of a rejected event, ("", "") for a good one."""
    good, rejected = check_events([event], NOW, window)
    assert len(good) + len(rejected) == 1
    return (rejected[0].code, rejected[0].detail) if rejected else ("", "")


def lines(*events: object) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def body_error(body: bytes, content_type: str = "application/json") -> str:
    with pytest.raises(RecsysError) as caught:
        raw_events(body, content_type)
    return caught.value.code


def test_kind_picks_the_type_and_a_missing_one_is_an_interaction():
    item = {"kind": "item", "event_id": "i", "item_id": 7, "timestamp": NOW, "title": "A lamp"}

    good, rejected = check_events([click(), impression(), item], NOW)

    assert not rejected
    assert [type(event) for _, event, _ in good] == [InteractionEvent, ImpressionEvent, ItemEvent]
    assert [record.kind for _, _, record in good] == ["interaction", "impression", "item"]
    assert [place for place, _, _ in good] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["ranking", "", None, 3, ["item"], {}, "\ud800"])
def test_another_kind_is_rejected(kind: object):
    code, detail = verdict(click(kind=kind))

    assert code == "unknown_kind"
    assert all(name in detail for name in KINDS)


def test_record_holds_both_moments_and_bytes_that_give_the_event_back():
    [(_, event, record)], _ = check_events([click(value=2, position=3)], NOW)

    assert (record.event_id, record.event_ts, record.ingest_ts) == ("e1", NOW - 5, NOW)
    assert event_of(record) == event
    assert json.loads(record.payload)["value"] == 2.0


def test_the_same_event_has_the_same_digest_however_it_is_spelt():
    spellings = [
        click(),
        dict(reversed(click().items())),
        click(kind="interaction", value=None, impression_id=None, position=None),
        click(timestamp=int(NOW - 5)),
    ]

    digests = [
        check_events([event], moment)[0][0][2].digest for event in spellings for moment in (NOW, NOW + 9)
    ]

    assert len(digests) == 8
    assert len(set(digests)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"item_id": "7"},
        {"timestamp": NOW - 4},
        {"value": 0.0},
        {"event_type": "Click"},
        {"user_id": "u1\u0301"},
    ],
)
def test_another_event_has_another_digest(change: dict[str, object]):
    digests = {check_events([event], NOW)[0][0][2].digest for event in (click(), click(**change))}

    assert len(digests) == 2


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (click(user_id=None), "user_id"),
        (click(user_id=True), "user_id"),
        (click(user_id=1.5), "user_id"),
        (click(user_id=2**63), "user_id"),
        (click(user_id=""), "user_id"),
        (click(user_id="x" * 257), "user_id"),
        (click(item_id=...), "item_id"),
        (click(event_id=...), "event_id"),
        (click(event_id=5), "event_id"),
        (click(event_id=""), "event_id"),
        (click(event_type=7), "event_type"),
        (click(event_type="a\0b"), "event_type"),
        (click(event_type="\U0001f9e9" * 129), "event_type"),
        (click(position=0), "position"),
        (click(position=1.5), "position"),
        (click(value="3"), "value"),
        (click(value=float("nan")), "value"),
        (click(value=float("-inf")), "value"),
        (click(value=10**400), "value"),
        (click(value=1e39), "value"),
        (click(extra=1), "extra"),
        (click(timestamp=...), "timestamp"),
        (click(timestamp=True), "timestamp"),
        (click(timestamp=None), "timestamp"),
        (impression(shown=[]), "shown"),
        (impression(shown=["a", None]), "shown"),
        (impression(shown=["a"] * 1001), "shown"),
        (impression(propensity=[0.5]), "propensity"),
        (impression(propensity=[0.5, 0.0]), "propensity"),
        (impression(propensity=[0.5, 1.5]), "propensity"),
        (impression(propensity=[0.5, float("nan")]), "propensity"),
        (impression(propensity=[0.5, 1e-40]), "propensity"),
        ({"kind": "item", "event_id": "i", "item_id": 7, "timestamp": NOW}, "title"),
        ({"kind": "item", "event_id": "i", "item_id": 7, "timestamp": NOW, "title": "x" * 4097}, "title"),
        ({"kind": "item", "event_id": "i", "item_id": 7, "timestamp": NOW, "title": "a\0"}, "title"),
    ],
)
def test_what_is_wrong_is_rejected_by_name(event: dict[str, object], field: str):
    code, detail = verdict(event)

    assert code == "invalid_event"
    assert field in detail


@pytest.mark.parametrize("event", [None, 3, "click", [], [click()], True])
def test_what_is_no_object_is_rejected(event: object):
    assert verdict(event)[0] == "invalid_event"


@pytest.mark.parametrize("field", ["event_id", "user_id", "item_id", "impression_id"])
@pytest.mark.parametrize("text", ["a\0b", "\0", "\ud800", "a\udfff", "\U0001f9e9" * 129])
def test_an_id_that_no_dataset_could_hold_is_rejected(field: str, text: str):
    code, detail = verdict(click(**{field: text}))

    assert code == "invalid_id"
    assert field in detail


def test_shown_ids_are_looked_at_too():
    assert verdict(impression(shown=["a", "b\0"])) == (
        "invalid_id",
        "shown: NUL and halves of characters are not allowed",
    )


@pytest.mark.parametrize(
    "text",
    [
        "\\u0000",
        "e\u0301",
        "\u00e9",
        "\u202egnp",
        "\U0001f469\u200d\U0001f52c",
        "\U0010ffff",
        "\ufffe",
        "\ufeff",
        '"',
        "\\",
        "\n",
    ],
)
def test_other_text_comes_back_as_it_went_in(text: str):
    [(_, _, record)], rejected = check_events([click(user_id=text, event_id=text)], NOW)

    assert not rejected
    assert event_of(record).user_id == text
    assert record.event_id == text


@pytest.mark.parametrize(
    "moment",
    [
        NOW * 1e3,
        NOW * 1e9,
        int(NOW * 1e3),
        NOW + 365 * DAY_S,
        NOW + 301,
        NOW - 31 * DAY_S,
        0,
        -1,
        -1e300,
        1e300,
        10**400,
        float("inf"),
        float("nan"),
    ],
)
def test_moments_out_of_the_window_are_rejected_and_never_converted(moment: float):
    code, detail = verdict(click(timestamp=moment))

    assert code == "timestamp_out_of_range"
    assert "seconds since 1970-01-01 UTC" in detail


@pytest.mark.parametrize("moment", ["2026-03-01T00:00:00Z", "2026-03-01 00:00:00", "NaN", str(NOW), [NOW]])
def test_moments_have_one_unit_and_nothing_is_guessed(moment: object):
    code, detail = verdict(click(timestamp=moment))

    assert code == "invalid_event"
    assert "timestamp" in detail


@pytest.mark.parametrize("moment", [NOW, int(NOW), NOW + 300, NOW - 30 * DAY_S, NOW - 0.123456])
def test_moments_in_the_window_are_taken(moment: float):
    assert verdict(click(timestamp=moment)) == ("", "")


def test_window_is_the_callers():
    narrow = Window(back_s=10, ahead_s=0)

    assert verdict(click(timestamp=NOW - 10), narrow) == ("", "")
    assert verdict(click(timestamp=NOW - 11), narrow)[0] == "timestamp_out_of_range"
    assert verdict(click(timestamp=NOW + 1), narrow)[0] == "timestamp_out_of_range"


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800" * 5000, "\n\x1b[31m" * 100, "\U0001f9e9" * 3000])
def test_details_are_short_and_can_be_encoded(name: str):
    for event in (click(**{name: 1}), click(kind=name), click(event_type=name + "\0"), click(user_id=[name])):
        _, rejected = check_events([event], NOW)

        assert len(rejected[0].detail) <= LONGEST_DETAIL
        assert json.loads(msgspec.json.encode(rejected))


def test_bad_events_do_not_hold_up_good_ones():
    batch: list[object] = [click(event_id=f"e{n}") for n in range(100)]
    batch[3] = click(event_type=5)
    batch[50] = click(user_id="x" * 2_000_000)
    batch[99] = click(timestamp=0)

    good, rejected = check_events(batch, NOW)

    assert [place for place, _, _ in good] == [n for n in range(100) if n not in (3, 50, 99)]
    assert [(one.index, one.code) for one in rejected] == [
        (3, "invalid_event"),
        (50, "invalid_event"),
        (99, "timestamp_out_of_range"),
    ]


def test_bodies_are_an_array_an_object_or_lines():
    assert raw_events(b"[1, 2]", "application/json") == [1, 2]
    assert raw_events(b' {"a": 1} ', "application/json; charset=utf-8") == [{"a": 1}]
    assert raw_events(b"[]", "application/json") == []
    assert raw_events(b'{"a": 1}\r\n\n{"b": 2}', "application/x-ndjson; charset=utf-8") == [
        {"a": 1},
        {"b": 2},
    ]


def test_cut_last_line_spoils_only_itself():
    body = lines(click(), click(event_id="e2"), click(event_id="e3"))[:-20]

    good, rejected = check_events(raw_events(body, "application/x-ndjson"), NOW)

    assert [record.event_id for _, _, record in good] == ["e1", "e2"]
    assert [(one.index, one.code) for one in rejected] == [(2, "invalid_json")]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"[", "invalid_json"),
        (b"[{]", "invalid_json"),
        (b"[1] 2", "invalid_json"),
        (b"[NaN]", "invalid_json"),
        (b"[Infinity]", "invalid_json"),
        (b"[-Infinity]", "invalid_json"),
        (b"\xef\xbb\xbf[]", "invalid_json"),
        ("[]".encode("utf-16"), "invalid_utf8"),
        (b'["\xff"]', "invalid_utf8"),
        (b'[{"a": 1, "a": 1}]', "duplicate_key"),
        (b"[" + b"1" * 5000 + b"]", "invalid_json"),
        (b"[" * 33 + b"]" * 33, "too_deep"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "too_deep"),
    ],
)
def test_what_is_not_json_is_refused_whole(body: bytes, code: str):
    assert body_error(body) == code
    [line] = raw_events(body.replace(b"\n", b" ") or b"?", "application/x-ndjson")
    _, [rejected] = check_events([line], NOW)
    assert rejected.code == "invalid_json"


def test_numbers_that_are_not_finite_and_halves_of_characters_spoil_only_their_event():
    spoilt = [b"1e999", b"-1e999", b'"\\ud800"']
    body = b"[" + b",".join(lines(click())[:-2] + b', "value": ' + value + b"}" for value in spoilt)
    body += b"," + lines(click()) + b"]"

    good, rejected = check_events(raw_events(body, "application/json"), NOW)

    assert [place for place, _, _ in good] == [3]
    assert {one.code for one in rejected} == {"invalid_event"}


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
def test_too_many_events_are_refused_whole(content_type: str):
    most = [0] * MOST_EVENTS
    whole, over = (
        (lines(*most), lines(*most, 0))
        if "nd" in content_type
        else (json.dumps(most).encode(), json.dumps([*most, 0]).encode())
    )

    assert len(raw_events(whole, content_type)) == MOST_EVENTS
    assert body_error(over, content_type) == "too_many_events"


def test_refusals_do_not_repeat_the_input():
    with pytest.raises(RecsysError) as caught:
        raw_events(b'[{"' + b"secret" * 1000 + b'": 1, }]', "application/json")

    assert "secret" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({name for kind in KINDS.values() for name in kind.__struct_fields__})


@given(
    st.lists(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), VALUES, max_size=8), max_size=4)
)
def test_whatever_comes_each_event_is_taken_or_rejected(events: list[object]):
    good, rejected = check_events(events, NOW)

    assert sorted([place for place, _, _ in good] + [one.index for one in rejected]) == list(
        range(len(events))
    )
    msgspec.json.encode(rejected)


@given(
    st.builds(
        InteractionEvent,
        event_id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
        user_id=st.integers(-(2**63), 2**63 - 1) | st.just("u"),
        item_id=st.integers(-(2**63), 2**63 - 1) | st.just("i"),
        event_type=st.sampled_from(["click", "view"]),
        timestamp=st.floats(NOW - DAY_S, NOW),
        value=st.none() | st.floats(-3e38, 3e38),
        position=st.none() | st.integers(1, 32767),
    )
)
def test_every_good_event_survives_the_log(event: InteractionEvent):
    document = msgspec.to_builtins(event)

    [(_, taken, record)], rejected = check_events([document], NOW)

    assert not rejected
    assert taken == event == event_of(record)
    assert record_of(event_of(record), NOW) == record


def test_checking_is_cheap():
    """A batch of 1,000 events holds the interpreter for some ten milliseconds; ten times that would show."""
    body = json.dumps([click(event_id=f"event-{n:032d}") for n in range(MOST_EVENTS)]).encode()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        good, _ = check_events(raw_events(body, "application/json"), NOW)
        times.append(time.perf_counter() - started)

    assert len(good) == MOST_EVENTS
    assert min(times) < 0.15, f"best of {len(times)}: {min(times) * 1e3:.1f} ms"


def test_order_of_rejections_is_the_order_of_the_batch():
    batch = list(itertools.islice(itertools.cycle([click(), 5, click(timestamp=0)]), 30))

    _, rejected = check_events(batch, NOW)

    assert [one.index for one in rejected] == [n for n in range(30) if n % 3]


def batch_of(body: bytes, dialect: Dialect = OURS, media: str = "application/json") -> Batch:
    batch = Batch()
    for values in pieces(body, media, dialect):
        batch.add(values, NOW, None)
    return batch


@pytest.mark.parametrize("dialect", [OURS, METARANK])
@pytest.mark.parametrize("odd", [[], [[]], [click(event_id="e2")], None, 7, "x", {}])
def test_what_is_no_event_is_rejected_alone_in_a_batch_of_any_size(dialect: Dialect, odd: object):
    """Found by fuzzing: in a large body a list in the place of an event was taken for its first event."""
    good = {"event": "interaction", "id": "e1", "user": "u", "item": "i", "type": "c", "timestamp": NOW * 1e3}
    body = json.dumps([click() if dialect is OURS else good, odd]).encode()

    for sized in (body, body + b" " * LARGE_BODY):
        batch = batch_of(sized, dialect)
        assert [place for place, _, _ in batch.good] == [0]
        assert [each.index for each in batch.rejected] == [1]


@pytest.mark.parametrize(
    ("kind", "code"),
    [(b'"\xff"', "invalid_utf8"), (b"[" * 5000 + b"]" * 5000, "too_deep"), (b"[", "invalid_json")],
)
def test_a_large_event_of_an_unreadable_kind_is_refused_by_name(kind: bytes, code: str):
    """Found by fuzzing: looking for the kind of an event gave up on bytes that are no text."""
    with pytest.raises(Refusal) as caught:
        batch_of(b'{"kind": ' + kind + b"}" + b" " * LARGE_BODY)
    assert caught.value.code == code
