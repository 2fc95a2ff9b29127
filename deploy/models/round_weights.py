"""Round a checkpoint's weights as TPU-MLIR does, to see on a CPU what a quantisation costs before compiling.

    python -m deploy.models.round_weights --model_path DIR --out DIR2 --quantize w4f16
    python -m deploy.models.export_onnx --dynamic --model_path DIR2 --out DIR2/onnx
    sailq worker --model DIR2

DIR2 is a copy of DIR. The decoder layers' and the ViT's matrices have the values that a BM1684X multiplies with if
`compile.sh` gets the same `--quantize` and `--vision_quantize`. Everything else is unchanged. transformers can read
DIR2, too: use float32, because another half precision than that of the rounded matrices would round them again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from . import exit_codes
from .checkpoint import Checkpoint, ExportError, locate

Floats = npt.NDArray[np.float32]

_MATRIX = re.compile(
    r"model\.(language_model\.)?layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.weight"
)
_VISION_MATRIX = re.compile(
    r"(model\.)?visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.((linear_)?fc[12]|(gate|up|down)_proj))|merger\.mlp\.[02]"
    r"|(merger|deepstack_merger_list\.\d+)\.linear_fc[12])\.weight"
)
VISION_GROUP = 64
"""Weights that share a scale in the ViT. The compiler leaves matrices whose rows do not divide into such groups in half
precision. The patch embedding is one of these."""
_PARTIAL = ".partial"
_PIECE = 2**22
"""The most elements, or bytes, that are in memory at a time."""
_SETTINGS = (".json", ".jinja", ".txt")


class Scheme(NamedTuple):
    """A quantisation of weights: the bits of the stored integers, and safetensors' name of the half precision to
    compute in."""

    bits: int
    dtype: str


SCHEMES = {"w4f16": Scheme(4, "F16"), "w4bf16": Scheme(4, "BF16"), "w8f16": Scheme(8, "F16")}
KEPT = ("f16", "bf16")
"""Choices of compile.sh that round nothing."""


class Rounding(NamedTuple):
    """How one matrix is rounded: `group` neighbours in a row share a scale."""

    scheme: Scheme
    group: int


class Plan(NamedTuple):
    """What is rounded. None: nothing in this part of the model."""

    layers: Rounding | None
    vision: Rounding | None = None

    def of(self, name: str, shape: Sequence[int]) -> Rounding | None:
        """The rounding of a tensor. Raises ExportError if a decoder layer's matrix cannot be split into groups."""
        if self.layers and _MATRIX.fullmatch(name):
            if shape[1] % self.layers.group:
                raise ExportError(f"{name} has {shape[1]} columns, not a multiple of {self.layers.group}: see --group.")
            return self.layers
        if self.vision and _VISION_MATRIX.fullmatch(name) and shape[1] % self.vision.group == 0:
            return self.vision
        return None


def rounded(weight: Floats, scheme: Scheme, group: int) -> Floats:
    """The values that the device multiplies with instead of `weight`.

    Each `group` of neighbours in a row has a scale s and a zero point z. In float32, with n = 2**bits - 1:

        s = max(max w - min w, 1e-5) / n
        z = clamp(-round(min w / s), 0, n)
        q = clamp(round(w / s) + z, 0, n)

    round() takes halves away from zero. The bmodel holds q, z and half(s), and the device multiplies with
    half((q - z) half(s)), where half() goes to the nearest value, ties to even. The formula is that of
    computePerGroupParam and weightQuantization in TPU-MLIR's pass for A16MatMul. TPU-MLIR 1.30.2's compiled q, z and
    s, and what the BM1684X's C model multiplies with, are the same bit for bit, in each scheme.

    Args:
        weight: float32 [outputs, inputs], inputs a multiple of `group`.

    Returns:
        float32 [outputs, inputs]; each value is one of the scheme's half precision.
    """
    most = np.float32(2**scheme.bits - 1)
    groups = weight.reshape(-1, group)
    least = groups.min(axis=1, keepdims=True)
    scale = np.maximum(groups.max(axis=1, keepdims=True) - least, np.float32(1e-5)) / most
    zero = np.clip(-_round(least / scale), 0, most)
    integers = np.clip(_round(groups / scale) + zero, 0, most)
    return _half((integers - zero) * _half(scale, scheme.dtype), scheme.dtype).reshape(weight.shape)


def _round(x: Floats) -> Floats:
    """C's round: halves go away from zero. Adding 0.5 would not do: it rounds the largest float below 0.5 up."""
    whole = np.trunc(x)
    return whole + np.trunc(2 * (x - whole))


def _half(x: Floats, dtype: str) -> Floats:
    """`x` rounded to a half precision; ties go to even."""
    if dtype == "F16":
        return x.astype(np.float16).astype(np.float32)
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _floats(data: bytes, dtype: str) -> Floats:
    """Converts the bytes of a safetensors file in this dtype to float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)


def _bytes(x: Floats, dtype: str) -> bytes:
    """Converts float32 to the bytes of a safetensors file. Each value must be exact in the dtype."""
    if dtype == "BF16":
        return (x.view(np.uint32) >> 16).astype("<u2").tobytes()
    return x.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def round_checkpoint(directory: Path, out: Path, plan: Plan) -> None:
    """Write the copy of `directory`, rounded, as the new directory `out`: settings, tokenizer and safetensors files.

    Raises:
        ExportError: `directory` has no checkpoint, its matrices cannot be split into such groups, or `out`
            exists.
    """
    if plan.layers and plan.layers.group < 1:
        raise ExportError(f"--group is {plan.layers.group}, and must be at least 1.")
    if out.exists():
        raise ExportError(f"{out} already exists: --out must name a new directory.")
    Checkpoint(directory)  # raises if the checkpoint is invalid
    partial = out.with_name(out.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for path in directory.iterdir():
            if path.suffix in _SETTINGS:
                shutil.copyfile(path, partial / path.name)
        files = sorted(directory.glob("*.safetensors"))
        for number, path in enumerate(files, 1):
            print(f"[{number}/{len(files)}] {path.name}", file=sys.stderr, flush=True)
            round_file(path, partial / path.name, plan)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def round_file(source: Path, target: Path, plan: Plan) -> None:
    """Copy a safetensors file with its matrices rounded; a piece at a time.

    Each tensor keeps its place: where it had 16 bits it has the scheme's 16 bits, and float32 stays float32, so that
    the rounded values are stored as they are.
    """
    with source.open("rb") as old, target.open("wb") as new:
        # https://huggingface.co/docs/safetensors: the header's length in 8 bytes, the header, the data without gaps.
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        roundings = {name: found for name, entry in tensors.items() if (found := plan.of(name, entry["shape"]))}
        for name, (scheme, _) in roundings.items():
            header[name] = tensors[name] | {"dtype": _kept(tensors[name]["dtype"], scheme)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        new.write(len(text).to_bytes(8, "little") + text)
        for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            if name in roundings:
                _round_matrix(old, new, entry, *roundings[name])
            else:
                _copy(old, new, end - start)


def _kept(dtype: str, scheme: Scheme) -> str:
    return dtype if dtype == "F32" else scheme.dtype


def _round_matrix(old: BinaryIO, new: BinaryIO, entry: dict[str, Any], scheme: Scheme, group: int) -> None:
    """Round the next matrix in `old`, some rows at a time."""
    (rows, columns), dtype = entry["shape"], entry["dtype"]
    size = columns * (4 if dtype == "F32" else 2)
    step = max(1, _PIECE // columns)
    for start in range(0, rows, step):
        weight = _floats(old.read(min(step, rows - start) * size), dtype).reshape(-1, columns)
        new.write(_bytes(rounded(weight, scheme, group), _kept(dtype, scheme)))


def _copy(old: BinaryIO, new: BinaryIO, length: int) -> None:
    for start in range(0, length, _PIECE):
        new.write(old.read(min(_PIECE, length - start)))


def main(command: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own; its exit code."""
    arguments = _parser().parse_args(command)
    return exit_codes.run("round_weights", lambda: _run(arguments), "nothing was made")


def _run(arguments: argparse.Namespace) -> None:
    source, out = locate(arguments.model_path), arguments.out.absolute()
    layers, vision = SCHEMES.get(arguments.quantize), SCHEMES.get(arguments.vision_quantize)
    round_checkpoint(source, out, Plan(
        Rounding(layers, arguments.group) if layers else None, Rounding(vision, VISION_GROUP) if vision else None
    ))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.models.round_weights",
        description="Copy a checkpoint with its weights rounded as TPU-MLIR rounds them.",
        epilog="A CPU worker runs DIR2 after: "
               "python -m deploy.models.export_onnx --dynamic --model_path DIR2 --out DIR2/onnx",
    )
    add = parser.add_argument
    add("-m", "--model_path", required=True, metavar="DIR",
        help="Hugging Face directory, or a model of its hub, fetched if need be")
    add("--out", type=Path, required=True, metavar="DIR2", help="directory to make, a checkpoint again")
    choices = [*SCHEMES, *KEPT]
    add("-q", "--quantize", choices=choices, default="w4f16",
        help="the decoder layers' weights, as compile.sh's; default: %(default)s")
    add("--vision_quantize", choices=choices, default="f16",
        help="the ViT's weights, as compile.sh's; default: %(default)s, which leaves them")
    add("-g", "--group", type=int, default=64,
        help="weights of a decoder layer that share a scale; default: %(default)s, compile.sh's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
