"""From a checkpoint to the nets of a CPU and of a BM1684X.

Its commands run from the tree's root, such as `python -m deploy.models.export_onnx`.
"""
