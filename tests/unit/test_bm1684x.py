"""The estimate of a BM1684X's speed: its arithmetic, the profile that it reads, and the figures that must hold."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import bm1684x, timings, tpu_nets
from tests.bench.timings import Net, Timing

ROOT = Path(__file__).parents[2]

PROFILE = """
MatMul_15|MM|s:18813650|b:3220|g:2149|e:18814169|t:520
--------------------------------------
API_END total_cycle:18833450|b:3224|g:2156
TCYC : 18833450
DDR BW USAGE : 84.32607190%
#######################################


flops: 1090012676, runtime: 18.833450ms, ComputationAbility: 0.057876T
"""

SMALL = timings.Timings("tpu_mlir 0", {
    Net("vit", 160): Timing(50.0, 1000.0), Net("block", 96): Timing(4.0, 120.0),
    Net("block_cache", 512, 4): Timing(2.5, 100.0), Net("lm_head", 0, 4): Timing(10.0, 600.0),
    Net("greedy_head", 0, 4): Timing(0.75, 5.0),
})


def test_a_step_a_first_token_and_a_caption_are_sums_of_their_nets() -> None:
    assert SMALL.step(4, 512) == 28 * 2.5 + 10.75 == 80.75
    assert timings.rate(80.0, 4) == 50
    assert SMALL.first_token(160, 96, 4) == 50 + 28 * 4 + 10.75 == 172.75
    assert SMALL.caption(160, 96, 4, 512, 60) == 172.75 + 59 * 80.75 / 4 == 1363.8125


def test_memory_is_every_weight_once_and_a_cache_for_each_slot() -> None:
    cache = 28 * 512 * 2 * 4 * 128 * 2 / 1e6  # layers, columns, keys and values, heads, dim, bytes: 29 MB
    # 1090 MB are the embedding: vocabulary, hidden, bytes. Each bmodel has 5 MB of the chip's kernels.
    assert SMALL.memory(4, 512) == pytest.approx(28 * 95 + 995 + 595 + 1089.995 + 4 * cache, abs=0.01)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "timings.json")
    assert timings.Timings.load(tmp_path / "timings.json") == SMALL
    with pytest.raises(KeyError):
        SMALL.step(3, 512)


def test_a_profile_ends_with_the_time(tmp_path: Path) -> None:
    profile = tmp_path / "net.profile"
    profile.write_text(PROFILE)
    assert tpu_nets.milliseconds(profile) == 18.83345


@pytest.mark.parametrize("text", ["", None])
def test_a_net_without_an_estimate_is_reported(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "net.profile").write_text(text)
    with pytest.raises(tpu_nets.BenchError, match="no estimate"):
        tpu_nets.milliseconds(tmp_path / "net.profile")


def test_a_vit_is_one_block_and_31_times_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = tpu_nets.Bench(tmp_path)
    of_depth = {"shallow": Timing(3.0, 60.0), "model": Timing(4.5, 100.0)}
    monkeypatch.setattr(bench, "_prepare", lambda: None)
    monkeypatch.setattr(bench, "_compiled", lambda net, model: of_depth[model.name])
    assert bench.time([Net("vit", 160)]) == {Net("vit", 160): Timing(3 + 31 * 1.5, 60 + 31 * 40)}


def test_what_was_timed_is_not_timed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nets, compiled = [Net("block", 96), Net("greedy_head", 0, 4)], []

    def compile_(self: object, net: object) -> object:
        compiled.append(net)
        if len(compiled) == 2:
            raise KeyboardInterrupt
        return Timing(2.0, 3.0)

    monkeypatch.setattr(tpu_nets.Bench, "_compile", compile_)
    with pytest.raises(KeyboardInterrupt):
        tpu_nets.Bench(tmp_path).time(nets)
    assert tpu_nets.Bench(tmp_path).time(nets) == dict.fromkeys(nets, Timing(2.0, 3.0))
    assert compiled == [nets[0], nets[1], nets[1]]


def test_a_checkpoint_can_be_exported_and_its_config_stays_as_it_was(tmp_path: Path) -> None:
    config = {**tpu_nets.CONFIG, "vocab_size": 64, "hidden_size": 256, "intermediate_size": 64,
              "num_attention_heads": 2, "num_key_value_heads": 1,
              "vision_config": {"depth": 1, "embed_dim": 160, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 256}}
    before = json.dumps(config)
    tpu_nets.write_checkpoint(tmp_path / "model", config)
    assert json.dumps(config) == before  # results are stored under a hash of their inputs
    for net, name in ((Net("block_cache", 32, 2), "block_cache_0"), (Net("block", 16), "block_0@16"),
                      (Net("vit", 16), "vit@16"), (Net("lm_head", 0, 2), "lm_head")):
        (tmp_path / name).mkdir()
        assert tpu_nets.export(net, tmp_path / "model", tmp_path / name) == tmp_path / name / f"{name}.onnx"


def test_an_interrupted_call_leaves_no_process(tmp_path: Path, eventually: Callable[..., None]) -> None:
    pid = tmp_path / "pid"
    script = f"from tests.bench import tpu_nets; tpu_nets.call('bash', '-c', 'sleep 60 & echo $! >{pid}; wait')"
    running = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
    eventually(lambda: pid.exists() and pid.read_text().strip(), 60)
    running.send_signal(signal.SIGINT)
    assert running.wait(30) != 0
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    eventually(lambda: not stat.exists() or " Z " in stat.read_text())


def test_a_missing_python_310_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TPU_ENV", str(tmp_path / "env"))
    monkeypatch.setenv("PYTHON310", "/nowhere/python3.10")
    with pytest.raises(tpu_nets.BenchError, match=r"tpu_env\.sh failed"):
        tpu_nets.Bench(tmp_path / "out").time([Net("greedy_head")])
    assert "needs Python 3.10" in capfd.readouterr().err
    assert not (tmp_path / "out/work").exists()


def test_every_table_says_whose_estimate_it_is_and_what_prints_it() -> None:
    printed = bm1684x.tables(timings.Timings.load())
    for part in printed.split("\n\n"):
        assert "the compiler's estimate" in part.lower() or part.startswith("| batch |")
    assert "make bench-tpu" in printed and "3.55" in printed and "9.19" in printed


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    bm1684x.draw(timings.Timings.load(), tmp_path / "new/plot.png")
    assert (tmp_path / "new/plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_recorded_timings_are_of_every_net_and_meet_the_bounds() -> None:
    recorded = timings.Timings.load()
    assert set(recorded.nets) == set(bm1684x.NETS)
    assert json.loads(timings.RECORDED.read_text())["lm_head_quantize"] == timings.LM_HEAD
    for row in bm1684x.rows(recorded):
        print(f"\nfigure: Qwen2-VL-7B INT4 on a BM1684X, the compiler's estimate: {row.what}: {row.estimate:.4g}")
        assert row.met, row
