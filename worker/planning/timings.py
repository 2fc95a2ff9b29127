"""What a step, a first token and a caption take on a BM1684X, added up from its nets' times.

The device runs one net at a time, so times add. They are the compiler's estimate of the device alone. It has none for
the embeddings, which copy 7 KB a token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sailq.shared.errors import Unsupported

from ..model_files.config_files import text_config

RECORDED = Path(__file__).parent / "bm1684x"
"""A file for each model. `make bench-tpu` writes it."""
HOST_SHARE = 0.05
"""ASSUMED: the part of a box's time in which the device waits for the host. Rates are lowered by it."""
CORE_RATIO = 8
"""ASSUMED: how many times slower a box's core is than the x86 core on which the host's part of a step is measured."""
RECENT, FLUSH = 16, 0.1
"""Steps after which several slots' newest rows are flushed (`RECENT` in deploy/models), and the
ASSUMED milliseconds of it for a layer: the compiler has no estimate of nets that only copy."""


class NotTimed(Unsupported):
    """A net that is larger than all that were timed."""


class Net(NamedTuple):
    """A net as compile.sh makes it.

    Attributes:
        length: tokens of a prompt (block), columns of a cache (block_cache), patches (vit); else 0.
        batch: slots.
        quantize: of the ViT's weights; empty: as the other nets of its kind.
    """

    net: str
    length: int = 0
    batch: int = 1
    quantize: str = ""

    def __str__(self) -> str:
        length = f", length {self.length}" if self.length else ""
        return f"{self.net}{length}, batch {self.batch}{f', {self.quantize}' if self.quantize else ''}"


@dataclass(frozen=True)
class Timing:
    """A net's time, and its parts of `DeviceMemory`, bytes."""

    milliseconds: float
    weights: int = 0
    commands: int = 0
    neurons: int = 0
    io: int = 0


@dataclass(frozen=True)
class Timings:
    """The times of one model. They are milliseconds; the methods raise NotTimed where a net was not timed.

    Attributes:
        model: the name of its directory.
        config: the sizes of its config.json.
        quantize, lm_head_quantize: compile.sh's options.
    """

    model: str
    compiler: str
    quantize: str
    lm_head_quantize: str
    config: Mapping[str, Any]
    nets: Mapping[Net, Timing]

    @classmethod
    def load(cls, path: Path) -> Timings:
        """Reads what `save` wrote."""
        fields = json.loads(path.read_text())
        del fields["what"]
        nets = {}
        for row in fields.pop("nets"):
            net = Net(*(row.pop(name) for name in Net._fields))
            nets[net] = Timing(**row)
        return cls(**fields, nets=nets)

    def save(self, path: Path) -> None:
        """As JSON, a net a line."""
        what = "the compiler's estimate of each net's time on a BM1684X, printed by `make bench-tpu`"
        about = {"what": what} | {name: value for name, value in vars(self).items() if name != "nets"}
        rows = [json.dumps(net._asdict() | asdict(timing)) for net, timing in self.nets.items()]
        head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
        path.write_text("{\n" + head + ' "nets": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n")

    def with_layers(self, layers: int) -> Timings:
        """The same model with another number of decoder layers."""
        config = {**self.config, "num_hidden_layers": layers}
        if "text_config" in config:
            config["text_config"] = {**config["text_config"], "num_hidden_layers": layers}
        return replace(self, config=config)

    @property
    def layers(self) -> int:
        return int(text_config(self.config)["num_hidden_layers"])

    @property
    def embedding_bytes(self) -> int:
        """The table of the embeddings, in half precision."""
        text = text_config(self.config)
        return int(text["vocab_size"] * text["hidden_size"] * 2)

    def step(self, slots: int, context: int) -> float:
        """One token for each of `slots` slots, whose caches have `context` columns."""
        flush = FLUSH / RECENT if slots > 1 else 0.0
        return self.layers * (self.time("block_cache", context, slots) + flush) + self.choice(slots)

    def prefill(self, tokens: int, slots: int) -> float:
        """A launch of `tokens` tokens, whose first tokens the host chooses. lm_head computes a row for each slot."""
        return self.layers * self.time("block", tokens) + self.time("lm_head", batch=slots)

    def choice(self, slots: int) -> float:
        """The scores of each slot, and their argmax."""
        return self.time("lm_head", batch=slots) + self.time("greedy_head", batch=slots)

    def time(self, net: str, length: int = 0, batch: int = 1, quantize: str = "") -> float:
        """See `timing`."""
        return self.timing(net, length, batch, quantize).milliseconds

    def timing(self, net: str, length: int = 0, batch: int = 1, quantize: str = "") -> Timing:
        """A net's timing; between sizes that were timed, on a straight line, first by length and then by batch. A net
        that is smaller than all of them takes as much as the smallest.

        Raises:
            NotTimed: it is larger than all of them.
        """
        wanted = Net(net, length, batch, quantize)
        if wanted in self.nets:
            return self.nets[wanted]
        lines: dict[int, dict[int, Timing]] = {}
        for known, timing in self.nets.items():
            if (known.net, known.quantize) == (net, quantize):
                lines.setdefault(known.batch, {})[known.length] = timing
        by_batch = {size: _between(line, length) for size, line in lines.items() if max(line) >= length}
        if not by_batch or max(by_batch) < batch:
            raise NotTimed(f"The compiler's times of {self.model} have no net as large as {wanted}.")
        return _between(by_batch, batch)


def _between(points: Mapping[int, Timing], at: int) -> Timing:
    """The timing at a size that is not above the largest."""
    above = min(size for size in points if size >= at)
    below = max((size for size in points if size <= at), default=above)
    if above == below:
        return points[above]
    share = (at - below) / (above - below)
    pairs = zip(astuple(points[below]), astuple(points[above]), strict=True)
    milliseconds, *sizes = ((1 - share) * low + share * high for low, high in pairs)
    return Timing(milliseconds, *map(round, sizes))
