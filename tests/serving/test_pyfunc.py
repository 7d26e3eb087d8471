import subprocess
import sys

import pandas as pd
import pytest

from serving.pyfunc import BundleModel


def table(**changes: object) -> pd.DataFrame:
    return pd.DataFrame({"request": ["q", "q"], "user_id": ["u", "u"], "item_id": ["a", "b"]} | changes)


@pytest.mark.parametrize("column", ["request", "user_id", "item_id"])
def test_a_missing_or_null_column_is_named(column: str):
    model = BundleModel(None)  # type: ignore[arg-type]  # refused before any scorer is asked
    with pytest.raises(ValueError, match=f"missing columns.*{column}"):
        model.predict(table().drop(columns=column))
    with pytest.raises(ValueError, match=f"null values.*{column}"):
        model.predict(table(**{column: ["x", None]}))


def test_an_empty_table_gives_no_scores():
    assert BundleModel(None).predict(table().head(0)).shape == (0,)  # type: ignore[arg-type]


def test_the_loader_imports_no_training_library():
    code = (
        "import sys, serving.pyfunc; "
        "sys.exit(str(sorted({'torch', 'transformers', 'mlflow', 'implicit', 'pandas'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
