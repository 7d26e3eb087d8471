import pytest

from recsys.errors import EXIT_USAGE, RecsysError
from recsys.versions import Version, check_gates, parse_model_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/recsys@champion", ("recsys", "champion")),
        ("models:/recsys/12", ("recsys", 12)),
        ("models:/news.v2 fr"[:15] + "@a-b_c", ("news.v2", "a-b_c")),
    ],
)
def test_model_uris_name_an_alias_or_a_number(uri: str, expected: tuple):
    assert parse_model_uri(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "recsys@champion",
        "models:/recsys",
        "models:/recsys@",
        "models:/recsys/latest",
        "models:/a/b/3",
        "models:/a@b@c",
        "models:/recsys/3\n",
        "models:/recsys/٣",
        "file:///etc/passwd",
        "models:/" + "a" * 300 + "/1",
    ],
)
def test_other_uris_are_refused(uri: str):
    with pytest.raises(RecsysError, match="model_uri_invalid") as caught:
        parse_model_uri(uri)
    assert caught.value.exit_code == EXIT_USAGE
    assert len(str(caught.value)) < 400


def test_gates_say_what_failed_with_figures():
    metrics = {"auc": 0.65, "ece": 0.03, "ndcg_at_10": float("nan")}
    gates = {"auc_min": 0.65, "ece_max": 0.02, "ndcg_at_10_min": 0.1, "recall_at_10_min": 0.1}
    assert check_gates(metrics, gates) == [
        "ece 0.03, at most 0.02 asked",
        "ndcg_at_10 missing, at least 0.1 asked",
        "recall_at_10 missing, at least 0.1 asked",
    ]
    assert check_gates(metrics, {}) == []


@pytest.mark.parametrize("gate", ["auc", "min", "_min", "auc_at_least"])
def test_a_misnamed_gate_is_refused(gate: str):
    with pytest.raises(ValueError, match="_min"):
        check_gates({"auc": 1.0}, {gate: 0.5})


def test_a_version_that_is_not_ours_has_no_contract():
    version = Version("other", 3, "", {})
    assert version.uri == "models:/other/3"
    assert version.digest == ""
    assert version.as_of != version.as_of  # NaN
