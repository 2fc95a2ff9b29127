"""`sailq worker` on a null runner that does not survive every prompt.

    python tests/dying_worker.py --redis-url URL
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from null_runner import NullRunner, Timing
from sailq.shared.settings import load_settings
from sailq.worker.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.prompt import Prompter
from sailq.worker.runners.base import Float, Int
from sailq.worker.runners.logits import ChosenTokens
from sailq.worker.serve import serve

FAILING_PROMPT, DEADLY_PROMPT = 200, 600
"""Tokens from which on a prefill fails, and from which on it takes the process down."""
SLOTS = 8
DECODE_SECONDS = 0.02


class DyingRunner(NullRunner):
    def prefill(self, slot: int, tokens: Int, positions: Int, vision: Float, places: Int) -> ChosenTokens:
        if len(tokens) >= DEADLY_PROMPT:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(tokens) >= FAILING_PROMPT:
            raise RuntimeError("the device is out of memory")
        return super().prefill(slot, tokens, positions, vision, places)


def load(model: Path) -> Engine:
    spec = ModelSpec.load(model)
    return Engine(spec, DyingRunner(spec, SLOTS, Timing(decode=DECODE_SECONDS)), Prompter(spec))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis-url")
    serve(load_settings(redis_url=parser.parse_args().redis_url), load)
