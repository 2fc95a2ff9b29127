"""Export a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint as the ONNX nets that the runners use.

    python -m deploy.models.export_onnx --model_path DIR --dynamic --out DIR/onnx
    python -m deploy.models.export_onnx --model_path DIR --dynamic --quantize w4 --out DIR/onnx
    python -m deploy.models.export_onnx --model_path DIR --out OUT --seq_length 512 --vision_seq_length 600 --batch 4

`--out` gets `vit`, `embedding`, `block_i` (prefill), `block_cache_i` (decode) and `lm_head`, named and shaped as in
sophon-demo, and one `weights.bin` that they share: each parameter once, fp32. They are static, for the TPU's compiler
(see `layout.Sizes`), and `embedding_cache` and `greedy_head` join, with several slots `flush`, and `add` for a model
whose vision features are added after several layers. With `--dynamic` the axes are open, for a CPU: `embedding` also
computes the angles of the positions, and `block_i` also decodes. `--quantize w4` then stores matrices with 4 bits a
weight, the ViT's with 8. Any checkpoint of transformers' or the hub's needs little memory: the nets are traced without
data, and the weights go through a slice at a time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch

from . import exit_codes, quantize_onnx
from .checkpoint import Checkpoint, ExportError, locate
from .layout import Net, Sizes, cut
from .weights import WEIGHTS, WeightsFile

_W4 = "w4"
_BITS, _VIT_BITS = 4, 8
"""Of a weight under --quantize w4."""
_PARTIAL = ".partial"
_NET = re.compile(r"(vit|embedding(_cache)?|block(_cache)?_\d+|lm_head|greedy_head|flush|add)(@\d+)?\.onnx")


def export(model_path: Path, out: Path, sizes: Sizes | None, opset: int = 17, quantize: bool = False) -> None:
    """Export every net of the checkpoint in `model_path` into `out`; `sizes`: see `cut`; `quantize`: as --quantize w4.

    At the end, all files of an earlier export in `out` are replaced: nets only fit their own weights.

    Raises:
        ExportError: the checkpoint cannot be exported, or not with these sizes.
    """
    checkpoint = Checkpoint(model_path)
    if sizes:
        merged = checkpoint.config.vision_config.spatial_merge_size**2
        sizes.check(checkpoint.config.text_config.max_position_embeddings, merged)
    nets = list(cut(checkpoint, sizes))
    partial = out / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with (partial / WEIGHTS).open("wb") as file:
            weights = WeightsFile(file, checkpoint)
            for number, net in enumerate(nets, 1):
                print(f"[{number}/{len(nets)}] {net.name}", file=sys.stderr, flush=True)
                bits = _VIT_BITS if net.name == "vit" else _BITS
                export_net(net, weights, partial, opset, bits if quantize else None)
        _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def export_net(net: Net, weights: WeightsFile, out: Path, opset: int, bits: int | None = None) -> None:
    """Write `out/<name>.onnx`. The graph is traced without parameter data, which are written to `weights`. `bits`: of
    the weights of its matrices; None: all are float32."""
    path = out / f"{net.name}.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's deprecation warning, and its warnings about traced shapes
        torch.onnx.export(
            net.module.eval(), tuple(net.inputs.values()), path, input_names=list(net.inputs),
            output_names=list(net.outputs), dynamic_axes=net.axes or None, opset_version=opset, dynamo=False,
            export_params=False, do_constant_folding=False,
            keep_initializers_as_inputs=True,  # otherwise it would compare parameters' data, which are missing here
        )
    model = onnx.load(path)
    parameters = dict(net.module.named_parameters())
    if bits:
        quantize_onnx.quantize(model, parameters, weights, bits)
    used = {name for node in model.graph.node for name in node.input}
    kept = [value for value in model.graph.input if value.name in net.inputs]
    for value in model.graph.input:
        if value.name not in net.inputs and value.name in used:
            model.graph.initializer.append(weights.initializer(value.name, parameters[value.name]))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.save(model, path)
    onnx.checker.check_model(path)


def _replace(partial: Path, out: Path) -> None:
    """Replace an earlier export with a finished one."""
    for path in out.iterdir():
        if _NET.fullmatch(path.name):
            path.unlink()
    for path in sorted(partial.iterdir(), reverse=True):  # write the weights first
        os.replace(path, out / path.name)


def main(command: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own, and return its exit code."""
    arguments = _parser().parse_args(command)
    return exit_codes.run("export_onnx", lambda: _run(arguments), "the directory is as it was before")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.num_threads < 1:
        raise ExportError(f"--num_threads is {arguments.num_threads}, and must be at least 1.")
    torch.set_num_threads(arguments.num_threads)
    if arguments.quantize and not arguments.dynamic:
        raise ExportError("--quantize is for --dynamic nets: compile.sh has its own for a TPU's.")
    sizes = _sizes(arguments)
    export(locate(arguments.model_path), arguments.out, sizes, arguments.opset, arguments.quantize == _W4)


def _sizes(arguments: argparse.Namespace) -> Sizes | None:
    names = ("seq_length", "vision_seq_length", "batch", "prefill_lengths", "vision_lengths")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if not arguments.dynamic:
        return Sizes(**given)
    if given:
        raise ExportError(f"--dynamic nets have no --{next(iter(given))}: they take any.")
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.models.export_onnx",
        description="Export a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint as ONNX nets.",
    )
    add, default = parser.add_argument, Sizes()
    add("-m", "--model_path", default="Qwen/Qwen2-VL-7B-Instruct",
        help="Hugging Face directory, or a model of its hub, fetched if need be; default: %(default)s")
    add("--out", type=Path, required=True, help="directory for the nets, e.g. DIR/onnx; replaces an earlier export")
    add("--dynamic", action="store_true", help="nets with open axes, for a CPU worker; without it: static, for a TPU")
    add("-q", "--quantize", choices=(_W4,),
        help="with --dynamic: store matrices with 4 bits a weight, the ViT's with 8; default: all as float32")
    add("-s", "--seq_length", type=int, help=f"tokens of the context; default: {default.seq_length}")
    add("-vs", "--vision_seq_length", type=int, metavar="PATCHES",
        help=f"most patches of one temporal grid; default: {default.vision_seq_length}")
    add("--batch", type=int, metavar="SLOTS", help=f"slots that are decoded together; default: {default.batch}")
    add("--prefill_lengths", type=lengths, metavar="N,N",
        help="also embedding@N and block_i@N, for prompts of up to N tokens")
    add("--vision_lengths", type=lengths, metavar="N,N", help="also vit@N, for temporal grids of up to N patches")
    add("--opset", type=int, default=17, choices=range(13, 18), help="default: %(default)s")
    add("-d", "--device", choices=("cpu", "cuda"), default="cpu",
        help="taken for sophon-demo's sake, and without effect: no net is computed here, only traced")
    add("-n", "--num_threads", type=int, default=1,
        help="threads that convert and transpose weights; default: %(default)s")
    return parser


def lengths(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
