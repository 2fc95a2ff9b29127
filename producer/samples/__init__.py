"""Rendered clips and images with true answers, as sailq-tiny was trained on and is tested with.

`python -m sailq.producer.samples --seed 7 --count 20 --out DIR` writes MP4 clips, PNG images and
`truth.jsonl`, one row per sample: `{"task", "lang", "messages", "answer"}`.
"""

from .dataset import TASKS, TRAINING_SEED, Medium, Sample, SampleError, sample, write_samples
from .scene import COLOURS, MOTIONS, SHAPES, Scene

__all__ = [
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "TASKS",
    "TRAINING_SEED",
    "Medium",
    "Sample",
    "SampleError",
    "Scene",
    "sample",
    "write_samples",
]
