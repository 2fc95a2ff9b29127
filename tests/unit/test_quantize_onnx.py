"""`--quantize w4`: what is stored, against ONNX Runtime's own quantiser and operators, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exporting import CONFIG, SMALL, run, tensors, write
from onnx import helper
from onnxruntime.capi import _pybind_state as ort
from rounding import w4_tiny
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from deploy.models.blocks import BLOCK, quantize
from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners.base import Prompt
from sailq.worker.runners.onnx import OnnxRunner

Array = np.ndarray[Any, Any]
ROWS = 7


def _dequantized(parts: list[Array], inputs: int, bits: int) -> Array:
    """What MatMulNBits makes of a matrix: its product with 1, in float32."""
    values, scales, zeros = parts
    names = ["values", "scales", "zeros"]
    node = helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", K=inputs, N=len(values), bits=bits,
        block_size=BLOCK, accuracy_level=1,
    )
    float32 = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, float32, None) for name in "xy"]
    stored = [onnx.numpy_helper.from_array(part, name) for part, name in zip(parts, names, strict=True)]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    product: Array = session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0]
    return product.T


def _by_onnxruntime(matrix: Array, bits: int) -> list[Array]:
    """The same parts, by the function of onnxruntime.quantization.matmul_nbits_quantizer."""
    rows, inputs = matrix.shape
    blocks = -(-inputs // BLOCK)
    values = np.zeros((rows, blocks, BLOCK * bits // 8), np.uint8)
    scales, zeros = np.zeros(rows * blocks, np.float32), np.zeros(rows * -(-blocks * bits // 8), np.uint8)
    by_bits = {4: ort.quantize_matmul_4bits, 8: ort.quantize_matmul_8bits}
    by_bits[bits](values, np.ascontiguousarray(matrix.T), scales, zeros, BLOCK, rows, inputs, False)
    return [values, scales, zeros]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [3 * BLOCK, 5 * BLOCK + 9])
def test_a_matrix_is_stored_as_onnxruntime_stores_it(bits: int, inputs: int) -> None:
    generator = np.random.default_rng(inputs)
    matrix = generator.standard_normal((ROWS, inputs)).astype(np.float32)
    matrix[0] = 0
    matrix[1] = np.abs(matrix[1])
    matrix[2] = -np.abs(matrix[2])
    parts = [part.numpy() for part in quantize(torch.from_numpy(matrix), bits)]
    found, theirs = (_dequantized(some, inputs, bits) for some in (parts, _by_onnxruntime(matrix, bits)))
    step = np.repeat(parts[1], BLOCK, axis=1)[:, :inputs]
    assert (np.abs(found - matrix) <= 0.5001 * step).all()  # each weight is the nearest of its block
    assert (np.abs(found - theirs) <= 1.0001 * step).all() and np.abs(found - theirs).mean() < 0.01 * step.mean()
    assert not found[0].any()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sailq-tiny's directory with quantised nets."""
    return w4_tiny(tmp_path_factory.mktemp("w4"))


def _kinds(path: Path) -> dict[str, set[int]]:
    """The bits of each kind of node that reads quantised weights."""
    kinds: dict[str, set[int]] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.domain == "com.microsoft":
            kinds.setdefault(node.op_type, set()).add(next(a.i for a in node.attribute if a.name == "bits"))
    return kinds


def test_matrices_have_4_bits_the_vits_8_and_a_tied_embedding_is_stored_once(quantized: Path) -> None:
    nets = quantized / "onnx"
    products = {"vit": 8, "lm_head": 4, **{f"block_{index}": 4 for index in range(3)}}
    expected = {name: {"MatMulNBits": {bits}} for name, bits in products.items()}
    expected["embedding"] = {"GatherBlockQuantized": {4}}
    assert {path.stem: _kinds(path) for path in nets.glob("*.onnx")} == expected
    places = [
        {one.name.split(".")[-1]: [entry.value for entry in one.external_data] for one in net.graph.initializer
         if "weight." in one.name}
        for net in (onnx.load(nets / f"{name}.onnx", load_external_data=False) for name in ("embedding", "lm_head"))
    ]
    assert len(places[0]) == 3 and places[0] == {name: places[1][name] for name in places[0]}
    assert (nets / "weights.bin").stat().st_size < 0.32 * (resolve("sailq-tiny") / "onnx/weights.bin").stat().st_size


def test_logits_and_vision_tokens_are_those_of_fp32(quantized: Path) -> None:
    fp32, w4 = (OnnxRunner(ModelSpec.load(path), slots=2) for path in (resolve("sailq-tiny"), quantized))
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (2 * 24, 1176), np.uint8)
    tokens = generator.integers(0, 880, 40).astype(np.int32)
    positions = np.tile(np.arange(41, dtype=np.int32), (3, 1))
    places = np.arange(3, 15, dtype=np.int32)
    rows = []
    for runner in (fp32, w4):
        (vision,) = runner.vision([(pixels, (2, 4, 6))])
        prompt = runner.prefill([Prompt(1, tokens, positions[:, :40], vision, places)]).row(0).copy()
        step = runner.decode([1], tokens[:1], positions[:, 40:]).row(0)
        rows.append([vision.ravel(), prompt, step])
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(*rows, strict=True)]
    print(f"\nfigure: sailq-tiny w4 against fp32: cosine of vision tokens {cosines[0]:.5f}, of logits after the prompt "
          f"{cosines[1]:.5f}, after a step {cosines[2]:.5f}")
    assert cosines[0] >= 0.999 and min(cosines[1:]) >= 0.97


def test_an_untied_head_has_weights_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = CONFIG | {"tie_word_embeddings": False}
    weights = tensors(Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config)).half())
    model = write(tmp_path / "model", config, weights)
    assert run(model, tmp_path / "onnx", "--dynamic", "--quantize", "w4") == 0
    for name, prefix, tensor in (
        ("embedding", "embedding.", "model.language_model.embed_tokens.weight"), ("lm_head", "", "lm_head.weight")
    ):
        net = onnx.load(tmp_path / f"onnx/{name}.onnx")
        found = {one.name: onnx.numpy_helper.to_array(one) for one in net.graph.initializer}
        expected = quantize(weights[tensor], 4)
        for field, part in zip(expected._fields, expected, strict=True):
            assert np.array_equal(found[f"{prefix}weight.{field}"].ravel(), part.numpy().ravel())


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_that_are_no_whole_blocks_give_the_logits_of_fp32(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(4)
    config = CONFIG | {
        "hidden_size": 144, "intermediate_size": 100, "vocab_size": 97, "tie_word_embeddings": tied,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 14, 14]},
        "vision_config": CONFIG["vision_config"] | {"hidden_size": 144},
    }
    weights = tensors(Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config)).half())
    rows = []
    for name, options in (("fp32", ()), ("w4", ("--quantize", "w4"))):
        model = write(tmp_path / name, config, weights)
        assert run(model, model / "onnx", "--dynamic", *options) == 0
        runner = OnnxRunner(ModelSpec.load(model))
        (vision,) = runner.vision([(np.arange(4 * 1176, dtype=np.uint8).reshape(4, 1176), (1, 2, 2))])
        tokens, positions = np.array([5, 91, 96], np.int32), np.arange(3, dtype=np.int32)
        prompt = Prompt(0, tokens, np.tile(positions, (3, 1)), vision, positions[1:2])
        rows.append(np.concatenate([runner.prefill([prompt]).row(0), vision[0].ravel()]))
    fp32, w4 = rows
    assert fp32 @ w4 / np.linalg.norm(fp32) / np.linalg.norm(w4) > 0.97


def test_nets_of_a_tpu_are_not_quantised_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(resolve("sailq-tiny"), tmp_path / "onnx", *SMALL, "--quantize", "w4") == 1
    error = capsys.readouterr().err
    assert "--dynamic" in error and error.count("\n") == 1 and not (tmp_path / "onnx").exists()
