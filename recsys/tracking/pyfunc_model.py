"""A bundle in the shape that MLflow's own tools can load, by a loader that is named and not carried."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from recsys.bundle import Bundle
from recsys.golden import Golden

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec("string", "request"),
            ColSpec("string", "user_id"),
            ColSpec("string", "item_id"),
            ColSpec("string", "source", required=False),
            ColSpec("double", "timestamp", required=False),
        ]
    ),
    outputs=Schema([TensorSpec(np.dtype(np.float64), (-1,))]),
)
"""One row a (request, item) in, one score a row out, in the order of the rows."""

ENCODER_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "text")]), outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
)
"""One text a row in, one embedding a row out."""

SERVED_WITH = ("lightgbm", "numpy", "openvino", "pandas", "polars", "pydantic", "safetensors", "tokenizers")
"""What the version is served with, beside `recsys` itself, which comes from no public index."""


def contract(bundle: Bundle) -> dict[str, str]:
    """The tags that a version promises to hold: what it is, what it expects, until when it knows."""
    manifest = bundle.manifest
    return {
        "bundle_digest": bundle.digest,
        "feature_schema": manifest.feature_schema,
        "as_of": repr(manifest.as_of),
        "as_of_utc": datetime.fromtimestamp(manifest.as_of, UTC).isoformat(timespec="seconds"),
        "created_by": manifest.created_by,
    }


def save_model(folder: Path, bundle_folder: Path, bundle: Bundle, described: Model) -> None:
    """Write the model folder that MLflow keeps; the bundle's files go to `data/bundle`, byte for byte.

    Args:
        folder: new folder.
        bundle_folder: a folder whose last name is `bundle`, because MLflow keeps that name.
        bundle: the verified bundle that lies there; its golden requests become the input example.
        described: the identity of the model in MLflow.
    """
    golden = bundle.golden()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow 3.17 on its own type hints and on pandas 3
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module="serving.encoder_pyfunc" if bundle.is_encoder else "serving.pyfunc",
            data_path=str(bundle_folder),
            mlflow_model=described,
            signature=ENCODER_SIGNATURE if bundle.is_encoder else SIGNATURE,
            input_example=golden_frame(golden) if golden is not None and len(golden) else None,
            pip_requirements=[f"{name}=={installed_version(name)}" for name in SERVED_WITH],
        )


def golden_frame(golden: Golden) -> pd.DataFrame:
    """Golden requests as the input of the pyfunc: ids as text, one row a (request, item)."""
    return pd.DataFrame(
        {
            "request": list(golden.request),
            "user_id": [str(user) for user in golden.user_id],
            "item_id": [str(item) for item in golden.item_id],
            "source": list(golden.source),
            "timestamp": np.asarray(golden.timestamp, np.float64),
        }
    )
