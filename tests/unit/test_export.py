"""The exporter: names and layout of its nets, the checkpoints that it reads, and what it refuses."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exporting import CONFIG, SMALL, hub_name, run, tensors, write
from qwen2vl import random_model
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from deploy.models import checkpoint, export_onnx
from deploy.models.layout import RECENT
from sailq.worker.engine.model import ModelSpec
from sailq.worker.model_files.model_paths import resolve

H, V, KV, D = 256, 896, 1, 128
LAYOUT = {
    "vit": ({"pixels": ["N", 1176], "pos_ids": ["N", 2], "mask": [1, "N", "N"]}, {"embeds": ["M", H]}),
    "embedding": (
        {"input_ids": ["B", "S"], "position_ids": [3, "B", "S"]},
        {"hidden": ["B", "S", H], "cos": ["B", "S", 1, D], "sin": ["B", "S", 1, D]},
    ),
    "block_1": (
        {"hidden": ["B", "S", H], "cos": ["B", "S", 1, D], "sin": ["B", "S", 1, D], "mask": ["B", 1, "S", "T"],
         "past_k": ["B", KV, "L", D], "past_v": ["B", KV, "L", D]},
        {"hidden_out": ["B", "S", H], "k": ["B", "S", KV, D], "v": ["B", "S", KV, D]},
    ),
    "lm_head": ({"hidden": ["B", H]}, {"logits": ["B", V]}),
}


def _shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values
    }


def _graph(path: Path) -> Any:
    return onnx.load(path, load_external_data=False).graph


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """float16 tensors of `CONFIG`'s model, by transformers 5's names."""
    torch.manual_seed(3)
    return tensors(Qwen2VLForConditionalGeneration(Qwen2VLConfig(**CONFIG)).half())


@pytest.fixture(scope="module")
def exported(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static nets of that model, from a checkpoint as the hub has it."""
    folder = tmp_path_factory.mktemp("exported")
    assert run(write(folder / "model", CONFIG, weights), folder / "onnx", *SMALL) == 0
    return folder / "onnx"


def _same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names
    )


@pytest.mark.parametrize("name", LAYOUT)
def test_names_and_shapes(name: str) -> None:
    model = onnx.load(random_model() / f"onnx/{name}.onnx", load_external_data=False)
    inputs, outputs = LAYOUT[name]
    assert _shapes(list(model.graph.input)) == inputs
    found = _shapes(list(model.graph.output))
    assert list(found) == list(outputs) and all(len(found[key]) == len(outputs[key]) for key in found)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


def test_each_weight_is_stored_once() -> None:
    directory = random_model()
    files = sorted(path.name for path in (directory / "onnx").iterdir())
    layers = json.loads((directory / "config.json").read_text())["num_hidden_layers"]
    blocks = [f"block_{index}.onnx" for index in range(layers)]
    assert files == sorted([*blocks, "vit.onnx", "embedding.onnx", "lm_head.onnx", "weights.bin"])
    model = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    tables = ModelSpec.load(directory).context * D
    assert (directory / "onnx/weights.bin").stat().st_size < 4 * (weights + tables) * 1.02


def test_the_shipped_nets_are_what_the_exporter_makes(tmp_path: Path) -> None:
    shipped = resolve("sailq-tiny")
    assert run(shipped, tmp_path, "--dynamic") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in (shipped / "onnx").iterdir())
    for path in tmp_path.glob("*.onnx"):
        assert filecmp.cmp(path, shipped / "onnx" / path.name, shallow=False), path.name
    made, there = (np.fromfile(folder / "weights.bin", np.float32) for folder in (tmp_path, shipped / "onnx"))
    np.testing.assert_allclose(made, there, rtol=1e-6, atol=1e-6)  # CPUs differ in the last bit of a sine


def test_static_nets_have_one_shape_and_no_other_axes(tmp_path: Path) -> None:
    assert run(random_model(), tmp_path, "--seq_length", "32", "--vision_seq_length", "8") == 0
    expected = {
        "vit": [[8, 1176], [8, 2], [1, 8, 8]],
        "embedding": [[1, 32]],
        "embedding_cache": [[1, 1]],
        "block_1": [[1, 32, H], [3, 1, 32], [1, 1, 32, 32]],
        "block_cache_1": [[1, 1, H], [3, 1, 1], [1, 1, 1, 33], [1, 32, KV, D], [1, 32, KV, D]],
        "lm_head": [[1, H]],
        "greedy_head": [[1, V]],
    }
    for name, shapes in expected.items():
        assert list(_shapes(_graph(tmp_path / f"{name}.onnx").input).values()) == shapes, name
    assert list(_shapes(_graph(tmp_path / "block_cache_1.onnx").output)) == ["hidden_out", "k", "v"]


def test_batched_nets_share_their_recent_rows_and_shorter_ones_join(tmp_path: Path) -> None:
    options = ["--batch", "3", "--prefill_lengths", "8,16", "--vision_lengths", "4"]
    assert run(random_model(), tmp_path, "--seq_length", "32", "--vision_seq_length", "8", *options) == 0
    names = {path.stem for path in tmp_path.glob("*.onnx")}
    assert {"vit@4", "embedding@8", "embedding@16", "block_0@8", "block_1@16"} < names
    assert not [name for name in names if "cache" in name and "@" in name]
    cache = _graph(tmp_path / "block_cache_1.onnx")
    past, recent = [3, 32, KV, D], [RECENT, 3, KV, D]
    inputs = [[3, 1, H], [3, 3, 1], [3, 1, 1, 32 + RECENT + 1], past, past, recent, recent]
    assert list(_shapes(cache.input).values()) == inputs
    assert _shapes(cache.output) == {"hidden_out": [3, 1, H], "k": [3, 1, KV, D], "v": [3, 1, KV, D]}
    flush = _graph(tmp_path / "flush.onnx")
    assert list(_shapes(flush.input).values()) == [recent, recent]
    rows = {f"{kind}_{slot}": [1, RECENT, KV, D] for kind in "kv" for slot in range(3)}
    assert _shapes(flush.output) == rows and list(_shapes(flush.output)) == list(rows)
    for name, shape in {"embedding_cache": [3, 1], "lm_head": [3, H], "greedy_head": [3, V], "embedding@8": [1, 8],
                        "block_0@16": [1, 16, H], "vit@4": [4, 1176]}.items():
        assert next(iter(_shapes(_graph(tmp_path / f"{name}.onnx").input).values())) == shape, name
    chosen = _graph(tmp_path / "greedy_head.onnx").output
    assert [one.type.tensor_type.elem_type for one in chosen] == [onnx.TensorProto.INT32, onnx.TensorProto.FLOAT]
    assert _shapes(chosen) == {"token": [3, 1], "sum": [3, 1]}
    places = [[entry.value for entry in one.external_data] for net in ("block_1", "block_1@8", "block_cache_1")
              for one in _graph(tmp_path / f"{net}.onnx").initializer if one.name == "layer.q.weight"]
    assert len(places) == 3 and places[0] == places[1] == places[2]


@pytest.mark.parametrize(("named", "shards"), [(hub_name, 3), (str, 1), (str, 2)], ids=["hub-3", "v5", "v5-2"])
def test_names_and_files_of_a_checkpoint_do_not_matter(
    named: Any, shards: int, exported: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = write(tmp_path / "model", CONFIG, weights, named=named, shards=shards)
    assert run(model, tmp_path / "onnx", *SMALL) == 0
    assert _same(exported, tmp_path / "onnx")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_raised_to_float32(dtype: torch.dtype, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = {name: tensor.to(dtype) for name, tensor in weights.items()}
    assert run(write(tmp_path / "model", CONFIG, model), tmp_path / "onnx", *SMALL, "--opset", "13") == 0
    net = onnx.load(tmp_path / "onnx/block_0.onnx")
    found = {one.name: onnx.numpy_helper.to_array(one) for one in net.graph.initializer}
    expected = model["model.language_model.layers.0.mlp.down_proj.weight"].float().numpy().T
    assert np.array_equal(found["layer.down.weight"], expected)
    assert [(entry.domain, entry.version) for entry in net.opset_import] == [("", 13)]


def test_an_untied_head_has_weights_of_its_own(
    exported: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    untied = CONFIG | {"tie_word_embeddings": False}
    head = {"lm_head.weight": torch.randn(96, 256).half()}
    assert run(write(tmp_path / "model", untied, weights | head), tmp_path / "onnx", *SMALL) == 0
    more = [(folder / "weights.bin").stat().st_size for folder in (tmp_path / "onnx", exported)]
    assert more[0] - more[1] == 4 * 96 * 256
    net = onnx.load(tmp_path / "onnx/lm_head.onnx")
    found = {one.name: onnx.numpy_helper.to_array(one) for one in net.graph.initializer}
    assert np.array_equal(found["weight"], head["lm_head.weight"].float().numpy())
    # A tied checkpoint may also store its head: the embedding is used, as in transformers.
    assert run(write(tmp_path / "both", CONFIG, weights | head), tmp_path / "tied", *SMALL) == 0
    assert _same(exported, tmp_path / "tied")


def test_an_earlier_export_is_replaced_whole(weights: dict[str, torch.Tensor], exported: Path, tmp_path: Path) -> None:
    model, out = write(tmp_path / "model", CONFIG, weights), tmp_path / "onnx"
    assert run(model, out, *SMALL, "--prefill_lengths", "4") == 0 and (out / "block_0@4.onnx").is_file()
    (out / "notes.txt").write_text("mine")
    assert run(model, out, *SMALL) == 0
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert _same(exported, out)


def test_an_interrupted_export_leaves_the_directory_as_it_was(
    weights: dict[str, torch.Tensor], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, fresh = write(tmp_path / "model", CONFIG, weights), tmp_path / "onnx", tmp_path / "fresh"
    assert run(model, out, *SMALL) == 0
    export_net = export_onnx.export_net

    def interrupted(net: Any, *rest: Any) -> None:
        export_net(net, *rest)
        if net.name == "block_0":
            raise KeyboardInterrupt

    monkeypatch.setattr(export_onnx, "export_net", interrupted)
    for directory in (out, fresh):
        assert run(model, directory, *SMALL, "--batch", "2") == 130
    assert _same(exported, out) and not list(fresh.iterdir())


def test_a_model_of_the_hub_is_fetched(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write(tmp_path / "model", CONFIG, weights)
    cached = {"Qwen/Qwen2-VL-2B-Instruct": str(model)}
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda name, **_: cached[name])
    assert run(Path("Qwen/Qwen2-VL-2B-Instruct"), tmp_path / "onnx", *SMALL) == 0

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no connection\nmore about it")

    monkeypatch.setattr(checkpoint, "snapshot_download", offline)
    capsys.readouterr()
    assert run(Path("Qwen/none"), tmp_path / "none", *SMALL) == 1
    error = capsys.readouterr().err
    assert error.startswith("export_onnx: Qwen/none ") and "no connection" in error and error.count("\n") == 1


Q = "model.language_model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("config", "change", "named"),
    [
        ({"model_type": "llama"}, {}, "'llama'"),
        ({"num_attention_heads": 3}, {}, "hidden_size"),
        ({"hidden_size": "wide"}, {}, "config.json"),
        ({}, {Q: None}, "model.layers.0.self_attn.q_proj.weight"),
        ({"tie_word_embeddings": False}, {}, "lm_head.weight"),
        ({}, {Q: torch.zeros(256, 255)}, "[256, 255]"),
        ({}, {Q: torch.zeros(256, 256, dtype=torch.int8)}, " I8"),
    ],
)
def test_incomplete_checkpoints_are_refused(
    config: dict[str, Any], change: dict[str, Any], named: str, weights: dict[str, torch.Tensor], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
    assert run(write(tmp_path / "model", CONFIG | config, kept), tmp_path / "onnx", *SMALL) == 1
    error = capsys.readouterr().err
    assert named in error and error.startswith("export_onnx: ") and error.count("\n") == 1
    assert not (tmp_path / "onnx").exists()


def test_files_that_are_missing_or_broken_are_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"

    def complaint() -> str:
        assert run(model, tmp_path / "onnx", *SMALL) == 1
        error = capsys.readouterr().err
        assert error.startswith("export_onnx: ") and error.count("\n") == 1
        return error

    assert str(model) in complaint()
    model.mkdir()
    assert "config.json" in complaint()
    (model / "config.json").write_text("{")
    assert "config.json" in complaint()
    (model / "config.json").write_text(json.dumps(CONFIG))
    assert "model.safetensors" in complaint()
    write(model, CONFIG, weights, shards=2)
    second = model / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1000])
    assert "model-00002-of-00002.safetensors" in complaint()
    second.unlink()
    assert "model-00002-of-00002.safetensors" in complaint()
    write(model, CONFIG, weights)
    (tmp_path / "onnx").write_text("a file")
    assert "onnx" in complaint()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seq_length", "65"], "2 to 64"),
        (["--seq_length", "0"], "2 to 64"),
        (["--vision_seq_length", "10"], "10 patches"),
        (["--vision_lengths", "4,0"], "0 patches"),
        (["--vision_lengths", "8"], "between 0 and 8"),
        (["--prefill_lengths", "12"], "between 0 and 12"),
        (["--prefill_lengths", "4,4"], "4"),
        (["--batch", "0"], "1"),
        (["--num_threads", "0"], "1"),
        (["--dynamic"], "--dynamic"),
    ],
)
def test_invalid_lengths_are_refused(
    options: list[str], named: str, weights: dict[str, torch.Tensor], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(write(tmp_path / "model", CONFIG, weights), tmp_path / "onnx", *SMALL, *options) == 1
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not (tmp_path / "onnx").exists()


def test_the_defaults_are_sophon_demos() -> None:
    arguments = vars(export_onnx._parser().parse_args(["--out", "out"]))
    assert (arguments["model_path"], arguments["device"]) == ("Qwen/Qwen2-VL-7B-Instruct", "cpu")
    sizes = export_onnx._sizes(export_onnx._parser().parse_args(["--out", "out"]))
    assert (sizes.seq_length, sizes.vision_seq_length, sizes.batch, arguments["num_threads"]) == (512, 1024, 1, 1)
    options = {"-m": "DIR", "-d": "cuda", "-s": "128", "-vs": "256", "-n": "2", "--out": "out"}
    short = export_onnx._parser().parse_args([word for option in options.items() for word in option])
    assert (short.model_path, short.seq_length, short.vision_seq_length, short.num_threads) == ("DIR", 128, 256, 2)
