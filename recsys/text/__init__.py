"""The text encoder: teacher, distilled student, runtimes, item embeddings.

`runtime`, `openvino_runtime`, `onnx_runtime`, `static_runtime`, `exit_runtime`, `loading`, `tokenization`,
`item_text` and `embeddings` are the serving side and never import torch; `transformer`, `teacher`, `student`,
`torch_runtime` and `quantization` are the training side.

OpenVINO reports to its maker when it is imported, NNCF when it is called. This file runs before any
module of the package can import them, so it is where both are told not to: OpenVINO falls back to its
own empty stub when the reporting package is not importable, NNCF reads `NNCF_CI`.
"""

import os
import sys

os.environ["NNCF_CI"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
