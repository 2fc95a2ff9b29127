"""What a bmodel is, in words and numbers, for a person who has the file and no device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

from sailq.shared.errors import Unsupported

from ..engine.model import ModelSpec
from ..runners.devices import only_bmodel
from ..runners.layout import Layout, read_layout
from .bmodel import Bmodel, BmodelNet, read_bmodel

_BITS = (4, 8, 16, 32)
_BY_NAME = re.compile(r"(?<![a-z0-9])(w[48]b?f16|int[48]|bf16|f16|f32)(?![a-z0-9])")


@dataclass(frozen=True)
class Inspection:
    """A bmodel, and what the worker can do with it.

    Attributes:
        layout: None where the worker cannot drive it; `problem` then says why.
        quantisation: of the decoder's layers; None where the file does not tell.
    """

    bmodel: Bmodel
    file_bytes: int
    layout: Layout | None
    problem: str | None
    quantisation: str | None


def inspect(path: Path) -> Inspection:
    """Inspect a bmodel, or the one of a model directory, whose config.json must then fit it.

    Raises:
        Unsupported: the file is no whole bmodel, or the directory does not hold exactly one.
    """
    file = only_bmodel(path) if path.is_dir() else path
    bmodel = read_bmodel(file)
    layout, problem = None, None
    try:
        layout = read_layout(bmodel, ModelSpec.load(path) if path.is_dir() else None)
    except Unsupported as error:
        problem = str(error)
    return Inspection(bmodel, file.stat().st_size, layout, problem, quantisation(bmodel))


def quantisation(bmodel: Bmodel) -> str | None:
    """`w4f16`, `bf16`, ... from the decoder's first layer.

    A layer's smallest matrix is that of k or v, hidden size times a row of the cache: its bytes give the bits of a
    weight. Fewer bits than its inputs have are named as TPU-MLIR does. None: no such layer, or its weights unnamed.
    """
    net = bmodel.nets.get("block_cache_0")
    if net is None or len(net.stages[0].outputs) < 2 or not all(t.shape for t in net.stages[0].outputs):
        return None
    hidden, row = net.stages[0].outputs[0], net.stages[0].outputs[1]
    matrices = [weight for weight in bmodel.weights.get(net.name, ()) if weight.name.endswith("MatMul.weight")]
    size = hidden.shape[-1] * prod(row.shape[-2:])
    if not matrices or not size:
        return None
    bits = 8 * min(weight.bytes for weight in matrices) // size
    if bits not in _BITS:
        return None
    if any("A16MatMul" in weight.name for weight in matrices):
        return f"w{bits}{hidden.dtype}" if hidden.dtype in ("f16", "bf16") else f"w{bits}"
    return {16: hidden.dtype if hidden.dtype == "bf16" else "f16", 32: "f32"}.get(bits, f"int{bits}")


def quantisation_by_name(path: Path) -> str | None:
    """What the file's name claims."""
    found = _BY_NAME.search(path.name.lower().replace("_", " "))
    return found[1] if found else None


def alike(bmodel: Bmodel) -> Iterator[tuple[str, BmodelNet]]:
    """The nets, those of the layers that differ in nothing but their number as one: `block_0 to block_27`."""

    def kind(net: BmodelNet) -> tuple[object, ...]:
        return re.sub(r"_\d+$", "", net.name), net.stages, net.dynamic, net.address_mode

    for _, group in groupby(bmodel.nets.values(), kind):
        nets = list(group)
        yield nets[0].name if len(nets) == 1 else f"{nets[0].name} to {nets[-1].name}", nets[0]
