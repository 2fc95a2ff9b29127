"""The bmodels that Sophgo publishes for the BM1684X, of models that sailq serves. `sailq model list` and
deploy/models/download.sh read them."""

from __future__ import annotations

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
)

if __name__ == "__main__":  # for download.sh: one line per model, fields separated by |
    for model in PUBLISHED:
        print("|".join(map(str, astuple(model))))
