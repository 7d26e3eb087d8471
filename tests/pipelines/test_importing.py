"""Options of `recsys import` from key=value words."""

from __future__ import annotations

import pytest

from pipelines.importing import import_options
from recsys.errors import RecsysError


def test_words_are_options_files_and_column_maps():
    words = [
        "reviews=r.json",
        "events.file=log.csv",
        "items.file=catalogue.parquet",
        "events.user_id=customer",
        "events.timestamp=when it was",
        "items.item_id=sku",
    ]
    assert import_options(words) == {
        "reviews": "r.json",
        "files": {"events": "log.csv", "items": "catalogue.parquet"},
        "columns": {
            "events": {"user_id": "customer", "timestamp": "when it was"},
            "items": {"item_id": "sku"},
        },
    }


def test_no_words_are_no_options():
    assert import_options([]) == {}


def test_only_the_first_equals_sign_and_dot_divide():
    assert import_options(["url=a=b", "items.extra=x.y=z", "items.a.b=c"]) == {
        "url": "a=b",
        "columns": {"items": {"extra": "x.y=z", "a.b": "c"}},
    }


def test_the_last_of_two_equal_words_wins():
    assert import_options(["reviews=a", "reviews=b"]) == {"reviews": "b"}


@pytest.mark.parametrize("word", ["reviews", "", "events.file"])
def test_a_word_without_equals_is_a_usage_error(word):
    with pytest.raises(RecsysError) as caught:
        import_options(["a=b", word])
    assert caught.value.exit_code == 64
    assert str(caught.value) == f"usage: an option has the form key=value, not {word!r}"
