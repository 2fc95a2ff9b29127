"""Qwen2-VL itself, in numpy over a runner: prompt, patches, positions, sampling and text."""

from .engine import Engine, Generation
from .preprocessor import PreparedPrompt

__all__ = ["Engine", "Generation", "PreparedPrompt"]
