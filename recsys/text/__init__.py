"""The text encoder: teacher, distilled student, runtimes, item embeddings.

`runtime`, `openvino_runtime`, `tokenization`, `item_text` and `embeddings` are the serving side and
never import torch; `transformer`, `teacher`, `student` and `quantization` are the training side.
"""
