"""The bmodels that Sophgo publishes for the BM1684X, of models that sailq serves. `sailq model list` and
deploy/models/download.sh read them. The paths are those of LLM-TPU's READMEs (models/Qwen2_VL, Qwen2_5_VL and Qwen3_VL)
and of sophon-demo's scripts (sample/Qwen2-VL and Qwen3-VL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

_DEMO = "sophon-demo/Qwen2-VL"
_LLM_TPU = "/ext_model_information/LLM/LLM-TPU"


@dataclass(frozen=True)
class Published:
    """A published model. `name` is sailq's name for it.

    Attributes:
        bmodel, configs: paths for `dfss --url=open@sophgo.com:PATH`; empty `configs`: `hub` has them.
        gigabytes: rounded size of the bmodel as its publisher states it; 0 if not stated.
        hub: the Hugging Face repository whose config, tokenizer and processor files fit.
        about: quantisation and context, as in the file's name.
    """

    name: str
    bmodel: str
    configs: str
    gigabytes: int
    hub: str
    about: str


PUBLISHED = (
    Published(
        "qwen2-vl-7b", f"{_DEMO}/qwen2-vl-7b_int4_seq1536_1dev.bmodel", f"{_DEMO}/configs.zip", 7,
        "Qwen/Qwen2-VL-7B-Instruct", "int4, context 1536",
    ),
    Published(
        "qwen2-vl-2b", f"{_LLM_TPU}/qwen2-vl-2b-instruct-awq_w4bf16_seq2048_bm1684x_1dev_20250616_180313.bmodel", "", 0,
        "Qwen/Qwen2-VL-2B-Instruct-AWQ", "w4bf16, context 2048",
    ),
    Published(
        "qwen2.5-vl-3b", f"{_LLM_TPU}/qwen2.5-vl-3b-instruct-awq_w4bf16_seq2048_bm1684x_1dev_20250428_143625.bmodel",
        "", 0, "Qwen/Qwen2.5-VL-3B-Instruct-AWQ", "w4bf16, context 2048",
    ),
    Published(
        "qwen2.5-vl-3b-8k",
        f"{_LLM_TPU}/qwen2.5-vl-3b-instruct-awq_w4bf16_seq8192_bm1684x_1dev_dyn_20250722_203019.bmodel",
        "", 0, "Qwen/Qwen2.5-VL-3B-Instruct-AWQ", "w4bf16, context 8192, dynamic",
    ),
    Published(
        "qwen2.5-vl-7b", f"{_LLM_TPU}/qwen2.5-vl-7b-instruct-awq_w4bf16_seq2048_bm1684x_1dev_20250428_150810.bmodel",
        "", 0, "Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "w4bf16, context 2048",
    ),
    Published(
        "qwen2.5-vl-7b-8k", f"{_LLM_TPU}/qwen2.5-vl-7b-instruct-awq_w4bf16_seq8192_bm1684x_1dev_20250430_115515.bmodel",
        "", 0, "Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "w4bf16, context 8192",
    ),
    Published(
        "qwen3-vl-2b",
        f"{_LLM_TPU}/qwen3-vl-2b-instruct-w4a16_w4bf16_seq2048_bm1684x_1dev_dynamic_20260318_164243.bmodel",
        "", 0, "Qwen/Qwen3-VL-2B-Instruct", "w4bf16, context 2048, dynamic",
    ),
    Published(
        "qwen3-vl-2b-b4",
        f"{_LLM_TPU}/qwen3-vl-2b-instruct-w4a16_w4bf16_seq768_bm1684x_1dev_4b_static_20260224_174219.bmodel",
        "", 0, "Qwen/Qwen3-VL-2B-Instruct", "w4bf16, context 768, 4 slots",
    ),
    Published(
        "qwen3-vl-4b", f"{_LLM_TPU}/qwen3-vl-4b-instruct_w4bf16_seq2048_bm1684x_1dev_20251026_141347.bmodel",
        "", 0, "Qwen/Qwen3-VL-4B-Instruct", "w4bf16, context 2048",
    ),
    Published(
        "qwen3-vl-4b-dynamic",
        f"{_LLM_TPU}/qwen3-vl-4b-instruct-awq-4bit_w4bf16_seq2048_bm1684x_1dev_dynamic_20260318_165737.bmodel",
        "", 0, "Qwen/Qwen3-VL-4B-Instruct", "w4bf16 of an AWQ checkpoint, context 2048, dynamic",
    ),
    Published(
        "qwen3-vl-8b", f"{_LLM_TPU}/qwen3-vl-8b-instruct_w4bf16_seq2048_bm1684x_1dev_20251026_145323.bmodel",
        "", 0, "Qwen/Qwen3-VL-8B-Instruct", "w4bf16, context 2048",
    ),
    Published(
        "qwen3-vl-8b-dynamic",
        f"{_LLM_TPU}/qwen3-vl-8b-instruct-4bit-gptq_w4bf16_seq2048_bm1684x_1dev_dynamic_20260318_165042.bmodel",
        "", 0, "Qwen/Qwen3-VL-8B-Instruct", "w4bf16 of a GPTQ checkpoint, context 2048, dynamic",
    ),
)

TOKENIZERS: Mapping[str, str] = {
    "qwen2_vl": "Qwen/Qwen2-VL-2B-Instruct", "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-2B-Instruct",
}
"""By the `model_type` in config.json: the Hugging Face repository whose tokenizer and chat template are those of all
sizes of a family's Instruct models."""

if __name__ == "__main__":  # for download.sh: one line per model, fields separated by |
    for model in PUBLISHED:
        print("|".join(map(str, astuple(model))))
