"""The tokenizer of sailq-tiny: byte-level BPE of 896 tokens, with Qwen2-VL's special tokens.

It is trained on the questions and answers of the sample renderer. Text is fed word by word (Chinese words
from a small lexicon), so a merge never spans two words: ` circle` or `圆形` is one token wherever it stands.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from sailq.producer.samples import TRAINING_SEED
from sailq.producer.samples.dataset import sample

SIZE = 896
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
SYSTEM = "You are a helpful assistant."
# How Qwen2 cuts text before BPE (its published tokenizer.json).
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LEXICON = """
    红色 橙色 黄色 绿色 蓝色 紫色 白色 黑色 粉色 灰色 圆形 正方形 三角形 五角星 十字形 圆环 五边形 六边形
    向左 向右 向上 向下 移动 慢慢 靠近 远离 静止 不动 视频 图片 对话 描述 内容 发生 什么 颜色
    形状 物体 怎么 哪里 一下 一个 这个 这段 这张 这些 看到 按顺序 依次 每张 混合 得到 等于 多少
    几条 几张 你好 请 你 我 它 的 了 是 在 有 里 中 没有 谢谢 介绍 名字
    模型 第一 第二 第三 一共 说出 自己
"""
_WORDS = re.compile("|".join(sorted(map(re.escape, _LEXICON.split()), key=len, reverse=True)) + r"|[^一-鿿]+|.")


def build(out: Path, template: str, samples: int = 20_000) -> None:
    """Train the tokenizer and write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer = Tokenizer(BPE(byte_fallback=False, fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=SIZE - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(samples), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": list(SPECIAL[1:]),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def _words(samples: int) -> list[str]:
    """Every word of the corpus. Rare words are repeated, so that each becomes one token."""
    counts: Counter[str] = Counter()
    for index in range(samples):
        for text in (part for turn in sample(TRAINING_SEED, index).turns for part in turn):
            counts.update(_WORDS.findall(text))
    counts.update({SYSTEM: 1000, "system\n": 1000, "user\n": 1000, "assistant\n": 1000})
    words = []
    for word, count in sorted(counts.items()):
        words += [word] * int(2 + np.sqrt(count))
    return words
