"""Gives a net's matrices 8 or 4 bits a weight, for ONNX Runtime on a CPU.

A MatMul with a parameter becomes `MatMulNBits`, which computes with 8-bit integers. The Gather of an embedding becomes
`GatherBlockQuantized`. ONNX Runtime's docs/ContribOperators.md describes both. They read the same bytes, so an
embedding that is also the head is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper
from torch import Tensor

from .blocks import BLOCK
from .lazy import Lazy
from .weights import WeightsFile

_DOMAIN = "com.microsoft"
_INT8 = 4
"""The `accuracy_level` at which a product's inputs, too, are rounded to 8 bits."""


def quantize(model: onnx.ModelProto, parameters: Mapping[str, Tensor], weights: WeightsFile, bits: int) -> None:
    """Quantise the products and the embedding of a net whose parameters are inputs of its graph, without data.

    A product with an input of the net stays float32, because pixels have no precision to spare.
    """
    graph = model.graph
    given = {value.name for value in graph.input} - parameters.keys()
    transposes = {node.output[0]: node for node in graph.node if node.op_type == "Transpose"}

    for node in list(graph.node):
        if node.op_type == "MatMul" and node.input[0] not in given:
            transpose = transposes.get(node.input[1])
            name = transpose.input[0] if transpose else node.input[1]
            if name not in parameters:
                continue  # a product of two activations
            matrix = weights.quantized(name, parameters[name], bits, transposed=not transpose)
            outputs, inputs = parameters[name].shape if transpose else reversed(parameters[name].shape)
            sizes = {"K": inputs, "N": outputs, "accuracy_level": _INT8}
            _replace(node, "MatMulNBits", [node.input[0], *(part.name for part in matrix)], bits, **sizes)
            if transpose:
                graph.node.remove(transpose)
        elif node.op_type == "Gather" and _is_embedding(parameters.get(node.input[0])):
            name, ids = node.input
            values, scales, zeros = matrix = weights.quantized(name, parameters[name], bits, transposed=False)
            values.dims[:] = [values.dims[0], values.dims[1] * values.dims[2]]
            axes = {"gather_axis": 0, "quantize_axis": 1}
            _replace(node, "GatherBlockQuantized", [values.name, ids, scales.name, zeros.name], bits, **axes)
        else:
            continue
        graph.initializer.extend(matrix)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _is_embedding(parameter: Tensor | None) -> bool:
    """Whether rows of whole blocks are gathered from a checkpoint's own matrix: tables of angles are computed, and
    GatherBlockQuantized would also return what fills the last block."""
    return parameter is not None and not isinstance(parameter, Lazy) and parameter.shape[1] % BLOCK == 0


def _replace(node: onnx.NodeProto, kind: str, inputs: list[str], bits: int, **attributes: Any) -> None:
    new = helper.make_node(
        kind, inputs, node.output, node.name, domain=_DOMAIN, bits=bits, block_size=BLOCK, **attributes
    )
    node.CopyFrom(new)
