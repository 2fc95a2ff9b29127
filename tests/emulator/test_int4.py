"""INT4 weights on the emulator: the values that the device multiplies with, and sailq-tiny's answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from conftest import SEED, Compile
from rounding import int4_tiny
from tiny import RIGHT_SIZED, answer, identical, load
from transformers import AutoTokenizer

from deploy.models import round_weights
from sailq.producer.samples import sample
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.preprocessor import PreparedPrompt
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.runners import emulator
from sailq.worker.runners.logits import Logits

IN, OUT, GROUP = 256, 128, 64
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The CPU engine with the weights that the bmodel should have."""
    return Engine.load(int4_tiny(tmp_path_factory.mktemp("int4")), slots=1, threads=1)


class Said(NamedTuple):
    """An engine's output for prompts."""

    tokens: list[list[int]]
    logits: list[np.ndarray]  # float32 [tokens, vocabulary] of each answer


def ask(engine: Engine, prompts: Sequence[PreparedPrompt], monkeypatch: pytest.MonkeyPatch) -> Said:
    said, rows, runner = Said([], []), [], engine.runner

    def keeping(call: Callable[..., Logits]) -> Callable[..., Logits]:
        def keep(*arguments: Any) -> Logits:
            logits = call(*arguments)
            rows.append(logits.row(0).copy())
            return logits

        return keep

    with monkeypatch.context() as patch:
        for name in ("prefill", "decode"):
            patch.setattr(runner, name, keeping(getattr(runner, name)))
        for prompt in prompts:
            rows.clear()
            said.tokens.append(answer(engine, prompt))
            said.logits.append(np.stack(rows))
    return said


def apart(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in pairs)


def test_int4_answers_as_its_rounded_weights_do_on_a_cpu_and_as_well_as_fp16(
    golden: Engine, cpu: Engine, samples: list[PreparedPrompt], compiled: Compile, full: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = samples[: 20 if full else 4]
    device = load(compiled(*RIGHT_SIZED, "--quantize", "w4f16"))
    int4, rounded, fp16 = (ask(engine, chosen, monkeypatch) for engine in (device, golden, cpu))
    right, right_before = exact(int4.tokens), exact(fp16.tokens)
    print(f"\nfigure: int4 (w4f16) on the emulator, {len(chosen)} held-out prompts: "
          f"{identical(int4.tokens, rounded.tokens):.2%} of the rounded model's tokens on a CPU; "
          f"{right} answers exact, {right_before} in fp16")
    assert int4.tokens == rounded.tokens
    assert right_before - right <= 0.05 * len(chosen)
    # sailq-tiny is so sure of its answers that other weights give the same tokens; logits tell them apart. Those of
    # the first token are comparable whatever the answers are.
    error = apart(zip(int4.logits, rounded.logits, strict=True))
    moved = apart((one[0], other[0]) for one, other in zip(fp16.logits, rounded.logits, strict=True))
    print(f"figure: int4 (w4f16) on the emulator: logits within {error:.3f} of the rounded model's; rounding moves the "
          f"first token's by up to {moved:.3f}")
    assert error <= moved / 10


def exact(answers: list[list[int]]) -> int:
    """The number of answers that equal the true answers of the first samples."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("sailq-tiny"))
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
    return sum(text == sample(SEED, index).turns[-1][1] for index, text in enumerate(texts))


@pytest.mark.parametrize("quantize", round_weights.SCHEMES)
def test_the_device_multiplies_with_the_rounded_weights(quantize: str, environment: Path, tmp_path: Path) -> None:
    scheme = round_weights.SCHEMES[quantize]
    half = HALVES[scheme.dtype]
    device = run(compile_matmul(environment, weights(), quantize, tmp_path), 3 * torch.eye(IN, dtype=half))
    # Three times a weight shows whether the weight itself was rounded to half precision, or only the product.
    product = 3 * torch.from_numpy(round_weights.rounded(weights(), scheme, GROUP))
    assert torch.equal(device, product.to(half).T)


def weights() -> np.ndarray:
    """float32 [OUT, IN], with groups that are special cases in TPU-MLIR."""
    generator = np.random.default_rng(0)
    w = generator.normal(0, 0.05, (OUT, IN)).astype(np.float32)
    w[0, :64], w[0, 64:128], w[0, 128:192] = 0, 0.3, -0.3  # one value: the minimum scale
    w[0, 192:] = np.abs(w[0, 192:]) + 0.5  # zero is outside the range, so the zero point is clipped
    w[1, :64] = -np.abs(w[1, :64]) - 0.2
    w[1, 64:128] *= 1e-5
    w[1, 128:192] *= 1e3
    w[2, :64] = np.linspace(-7.5, 7.5, 64)
    w[2, 64:128] = np.arange(64) % 31 / 2 - 7.5  # halves of the scale: ties
    w[2, 128] = 100
    return w


def compile_matmul(environment: Path, weight: np.ndarray, quantize: str, folder: Path) -> Path:
    """A bmodel of y = x weight.T, x [IN, IN], with the options that compile.sh has for a decoder's layer."""
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1, IN, size]) for name, size in (("x", IN), ("y", OUT)))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "matmul", [x], [y],
                                   [onnx.numpy_helper.from_array(weight.T.copy(), "w")])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "matmul.onnx")
    path = f"{environment}/bin:{os.environ['PATH']}"
    for command in (
        "model_transform.py --model_name matmul --model_def matmul.onnx --mlir matmul.mlir",
        f"model_deploy.py --mlir matmul.mlir --quantize {quantize.upper()} --q_group_size {GROUP} --quant_input "
        "--quant_output --chip bm1684x --model matmul.bmodel",
    ):
        done = subprocess.run(command.split(), cwd=folder, env=os.environ | {"PATH": path}, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "matmul.bmodel"


def run(bmodel: Path, x: torch.Tensor) -> torch.Tensor:
    """The net's output for x, in x's half precision."""
    engine = emulator.EngineLLM(str(bmodel), [0])
    (net,) = engine.get_graph_names()
    handle = emulator.Handle(0)
    given = emulator.Tensor(handle, engine.get_input_shape(net, 0), engine.get_input_dtype(net, 0), False, True)
    made = emulator.Tensor(handle, engine.get_output_shape(net, 0), engine.get_output_dtype(net, 0), False, True)
    given.update_data(x[None].view(torch.int16).numpy().view(np.uint16))
    engine.process(net, {0: given}, {0: made})
    return torch.from_numpy(made.asnumpy()[0].view(np.int16)).view(x.dtype)
