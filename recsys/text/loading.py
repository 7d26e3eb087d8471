"""Which encoder some files hold, and loading it. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from recsys.errors import RecsysError
from recsys.text import exit_runtime, onnx_runtime, openvino_runtime, static_runtime
from recsys.text.exit_runtime import ExitEncoder
from recsys.text.onnx_runtime import OnnxEncoder
from recsys.text.openvino_runtime import OpenVinoEncoder
from recsys.text.runtime import SavedEncoder
from recsys.text.static_runtime import StaticEncoder

Loader = Callable[[Mapping[str, bytes], int], SavedEncoder]

LOADERS: dict[str, Loader] = {
    static_runtime.TABLE_FILE: lambda files, threads: StaticEncoder.from_files(files),
    exit_runtime.FIRST_GRAPH: lambda files, threads: ExitEncoder.from_files(files, threads=threads),
    onnx_runtime.GRAPH_FILE: lambda files, threads: OnnxEncoder.from_files(files, threads=threads),
    openvino_runtime.GRAPH_FILE: lambda files, threads: OpenVinoEncoder.from_files(files, threads=threads),
}
"""The file that tells a kind of encoder, and how to load that kind; the first that is there counts."""


def load_encoder(files: Mapping[str, bytes], *, threads: int = 2) -> SavedEncoder:
    """The encoder that `to_files` of any kind wrote.

    Args:
        files: bytes by name; files of other parts of a bundle are not looked at.
        threads: cores used; the static table uses one.

    Raises:
        RecsysError: `encoder_invalid` where no encoder is among the files, or one that is damaged;
            `missing_extra` where its runtime is not installed.
    """
    for marker, load in LOADERS.items():
        if marker in files:
            return load(files, threads)
    raise RecsysError("encoder_invalid", f"no text encoder: none of {', '.join(LOADERS)} is there")
