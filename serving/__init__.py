"""Answering from a bundle: scoring without torch, transformers or MLflow."""
