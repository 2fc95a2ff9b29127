"""Export a Qwen2-VL checkpoint as the ONNX nets that every runner drives.

    python deploy/models/export_onnx.py --model_path DIR --out DIR/onnx [--opset 17]
    python deploy/models/export_onnx.py --model_path DIR --out OUT --seq_length 512 --vision_seq_length 600

`--model_path` is a Hugging Face Qwen2-VL directory. `--out` gets `vit`, `embedding`, `block_i` (prefill),
`block_cache_i` (decode) and `lm_head`, named and shaped as in sophon-demo, and one `weights.bin` that they
share: each parameter once, fp32. Without lengths the axes are dynamic, for a CPU. With them they are static,
for the TPU's compiler, and `embedding_cache` and `greedy_head` join; see `qwen2_vl_nets.Sizes`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from pathlib import Path
from typing import BinaryIO

import onnx
import torch
from qwen2_vl_nets import Net, Sizes, cut
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

WEIGHTS = "weights.bin"
_ALIGN = 64
_PROCESSOR = {  # transformers' defaults: CLIP's mean and standard deviation
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


class Weights:
    """The shared data file: each content is written once, whichever nets and names it has."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[bytes, int] = {}

    def initializer(self, name: str, tensor: Tensor) -> onnx.TensorProto:
        """An ONNX initializer of this name whose data lie in the file."""
        data = tensor.detach().contiguous().numpy().tobytes()
        digest = hashlib.blake2b(data).digest()
        if digest not in self._offsets:
            self._offsets[digest] = self._file.seek(-(-self._file.tell() // _ALIGN) * _ALIGN)
            self._file.write(data)
        proto = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=tensor.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        for field, value in (
            ("location", WEIGHTS), ("offset", self._offsets[digest]), ("length", len(data))
        ):
            proto.external_data.add(key=field, value=str(value))
        return proto


def export_net(net: Net, weights: Weights, out: Path, opset: int) -> None:
    """Write `out/<name>.onnx`. The graph is traced without its parameters, which stay in `weights`."""
    path = out / f"{net.name}.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and its notes on traced shapes
        torch.onnx.export(
            net.module.eval(), tuple(net.inputs.values()), path, input_names=list(net.inputs),
            output_names=list(net.outputs), dynamic_axes=net.axes or None, opset_version=opset, dynamo=False,
            export_params=False, do_constant_folding=False,
        )
    model = onnx.load(path)
    tensors = dict(net.module.named_parameters()) | dict(net.module.named_buffers())
    kept = [value for value in model.graph.input if value.name in net.inputs]
    for value in model.graph.input:
        if value.name not in net.inputs:
            model.graph.initializer.append(weights.initializer(value.name, tensors[value.name]))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.save(model, path)
    onnx.checker.check_model(path)


def export(model_path: Path, out: Path, opset: int = 17, sizes: Sizes | None = None) -> None:
    """Export every net of the checkpoint in `model_path` into `out`; `sizes`: see `cut`."""
    out.mkdir(parents=True, exist_ok=True)
    file = model_path / "preprocessor_config.json"
    processor = _PROCESSOR | (json.loads(file.read_text("utf-8")) if file.exists() else {})
    model = Qwen2VLForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32)
    with (out / WEIGHTS).open("wb") as data:
        weights = Weights(data)
        for net in cut(model, processor, sizes):
            export_net(net, weights, out, opset)
            data.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a Qwen2-VL checkpoint as ONNX nets.")
    parser.add_argument("--model_path", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, help="directory for the nets, e.g. DIR/onnx")
    parser.add_argument("--opset", type=int, default=17, choices=range(13, 18), help="default: %(default)s")
    parser.add_argument("--seq_length", type=int, help="static nets: tokens of the context")
    parser.add_argument("--vision_seq_length", type=int, help="static nets: patches of one temporal grid")
    parser.add_argument("--batch", type=int, default=1, help="static nets: slots; default: %(default)s")
    arguments = parser.parse_args()
    if (arguments.seq_length is None) != (arguments.vision_seq_length is None):
        parser.error("--seq_length and --vision_seq_length go together")
    sizes = None
    if arguments.seq_length is not None:
        sizes = Sizes(arguments.batch, arguments.seq_length, arguments.vision_seq_length)
        if min(sizes) < 1 or sizes.vision_seq_length % 4:
            parser.error("lengths are positive, and --vision_seq_length is a multiple of 4: patches merge by 2 x 2")
    export(arguments.model_path, arguments.out, arguments.opset, sizes)


if __name__ == "__main__":
    main()
