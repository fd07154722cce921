"""Portable graphs over a table that stands on flash once: ids to vectors, in ONNX and in TFLite."""
