"""What a step, a first token and a caption take on a BM1684X, added up from its nets' times.

The device runs one net at a time, so times add. They are the compiler's estimate, and of the device alone: copies
between host and device, and what the host computes, are not in them. Nor are the embeddings, for which the compiler
has no estimate: they copy 7 KB a token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

RECORDED = Path(__file__).with_name("bm1684x.json")
"""What `make bench-tpu` last found."""

LAYERS, KV_WIDTH, EMBEDDING = 28, 4 * 128, 152064 * 3584 * 2 / 1e6
"""Qwen2-VL-7B's decoder layers, elements of a token's keys in one of them, and megabytes of its embedding."""
QUANTIZE, LM_HEAD = "w4f16", "w8f16"
"""compile.sh's --quantize and --lm_head_quantize."""
HEAP = 7615 * 2**20 / 1e6
"""Megabytes of an SE7's npu heap, split as Sophgo recommends."""


class Net(NamedTuple):
    """A net as compile.sh makes it.

    `length`: tokens of a prompt (block), columns of a cache (block_cache), patches (vit); else 0.
    """

    net: str
    length: int = 0
    batch: int = 1

    def __str__(self) -> str:
        return self.net + (f", length {self.length}" if self.length else "") + f", batch {self.batch}"


@dataclass(frozen=True)
class Timing:
    """One run of a net, milliseconds, and the size of its bmodel, MB."""

    milliseconds: float
    megabytes: float


@dataclass(frozen=True)
class Timings:
    """All times are milliseconds. A KeyError says that a net was not timed at such a batch or length."""

    compiler: str
    nets: Mapping[Net, Timing]

    @classmethod
    def load(cls, path: Path = RECORDED) -> Timings:
        """Read what `save` wrote."""
        fields = json.loads(path.read_text())
        nets = {Net(row["net"], row["length"], row["batch"]): Timing(row["milliseconds"], row["megabytes"])
                for row in fields["nets"]}
        return cls(fields["compiler"], nets)

    def save(self, path: Path) -> None:
        """As JSON, a net a line."""
        about = {"what": "the compiler's estimate of each net's time on a BM1684X, printed by `make bench-tpu`",
                 "model": "Qwen2-VL-7B", "compiler": self.compiler, "quantize": QUANTIZE, "lm_head_quantize": LM_HEAD}
        rows = [json.dumps(net._asdict() | asdict(timing)) for net, timing in self.nets.items()]
        head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
        path.write_text("{\n" + head + ' "nets": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n")

    def step(self, batch: int, context: int) -> float:
        """One token for each of `batch` slots, whose caches have `context` columns."""
        return LAYERS * self._of("block_cache", context, batch) + self._choice(batch)

    def first_token(self, patches: int, tokens: int, batch: int) -> float:
        """A clip of one temporal grid, at the sizes that its nets have. lm_head computes a row for each slot."""
        return self._of("vit", patches) + LAYERS * self._of("block", tokens) + self._choice(batch)

    def caption(self, patches: int, tokens: int, batch: int, context: int, answer: int) -> float:
        """The device's time for an answer of so many tokens, of which the first comes from the prefill, where all slots
        are always taken."""
        return self.first_token(patches, tokens, batch) + (answer - 1) * self.step(batch, context) / batch

    def memory(self, batch: int, context: int) -> float:
        """Megabytes of weights, commands and caches. Nets of one layer, and both embeddings, share their weights."""
        weights = EMBEDDING + LAYERS * self._size("block_cache") + self._size("vit") + self._size("lm_head")
        return weights + batch * LAYERS * context * 2 * KV_WIDTH * 2 / 1e6

    def _of(self, net: str, length: int = 0, batch: int = 1) -> float:
        return self.nets[Net(net, length, batch)].milliseconds

    def _choice(self, batch: int) -> float:
        return self._of("lm_head", 0, batch) + self._of("greedy_head", 0, batch)

    def _size(self, net: str) -> float:
        """Without the chip's kernels, which a combined bmodel has once: they are all there is of greedy_head's."""
        largest, kernels = (max(timing.megabytes for key, timing in self.nets.items() if key.net == name)
                            for name in (net, "greedy_head"))
        return largest - kernels


def rate(step: float, batch: int = 1) -> float:
    """Tokens a second, of all slots."""
    return 1000 * batch / step


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
