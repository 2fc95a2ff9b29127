"""Converts a checkpoint to nets for a CPU and for a BM1684X.

Run its commands from the root of the repository, such as `python -m deploy.models.export_onnx`.
"""
