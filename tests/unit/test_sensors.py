"""A TPU's sensors through SAIL: plausible readings are used, others are left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from null_runner import NullRunner
from prometheus_client import CollectorRegistry

from sailq.worker.engine.chat_tokenizer import ChatTokenizer
from sailq.worker.engine.engine import Engine
from sailq.worker.engine.model import ModelSpec
from sailq.worker.engine.scheduler import Scheduler
from sailq.worker.model_files.model_paths import resolve
from sailq.worker.process.metrics import Metrics
from sailq.worker.runners import emulator
from sailq.worker.runners.sensors import Readings, read

MB = 1 << 20


def sail(total: int = 10_752, used: int = 7_000, percent: int = 93, celsius: int = 61) -> SimpleNamespace:
    """Their signatures and units are SAIL 3.10's, `src/tensor.cpp` and the manual's sample."""
    return SimpleNamespace(
        get_dev_stat=lambda tpu: [total, used, percent], get_chip_temp=lambda tpu: celsius + tpu,
    )


def test_the_sensors_of_a_chip_are_read() -> None:
    assert read(sail(), 1) == Readings(0.93, 62, 7_000 * MB, 10_752 * MB)


@pytest.mark.parametrize(("garbage", "expected"), [
    ({"percent": -1_208_467_840}, Readings(None, 61, 7_000 * MB, 10_752 * MB)),
    ({"percent": 101}, Readings(None, 61, 7_000 * MB, 10_752 * MB)),
    ({"celsius": 0}, Readings(0.93, None, 7_000 * MB, 10_752 * MB)),
    ({"celsius": 65_535}, Readings(0.93, None, 7_000 * MB, 10_752 * MB)),
    ({"total": 0, "used": 0}, Readings(0.93, 61)),
    ({"used": 20_000}, Readings(0.93, 61)),
    ({"total": 2**31 - 1}, Readings(0.93, 61)),
])
def test_impossible_readings_are_left_out(garbage: dict[str, int], expected: Readings) -> None:
    assert read(sail(**garbage), 0) == expected


def fail(tpu: int) -> int:
    raise emulator.SailDeviceError("bm_get_chip_temp failed")


@pytest.mark.parametrize(("sensors", "expected"), [
    ({"get_chip_temp": fail}, Readings(0.93, None, 7_000 * MB, 10_752 * MB)),
    ({"get_chip_temp": None}, Readings(0.93, None, 7_000 * MB, 10_752 * MB)),
    ({"get_dev_stat": fail}, Readings(None, 61)),
    ({"get_dev_stat": lambda tpu: [1]}, Readings(None, 61)),
    ({"get_dev_stat": fail, "get_chip_temp": fail}, Readings()),
])
def test_a_sensor_that_fails_loses_its_own_readings(sensors: dict[str, Any], expected: Readings) -> None:
    assert read(SimpleNamespace(**{**vars(sail()), **sensors}), 0) == expected


def test_the_emulator_has_no_sensors() -> None:
    assert read(emulator, 0) is None


class Chip(NullRunner):
    """A null runner with a chip's sensors, of which one fails."""

    def readings(self) -> Readings | None:  # type: ignore[override]
        sensors = sail(percent=-1)
        sensors.get_chip_temp = fail
        return read(sensors, 0)


def test_prometheus_gets_what_could_be_read() -> None:
    spec, registry = ModelSpec.load(resolve("sailq-tiny")), CollectorRegistry()
    engine = Engine(spec, Chip(spec, 1), ChatTokenizer(spec))
    Metrics(registry, engine).watch(Scheduler(engine), "worker")
    of = {"model": "sailq-tiny", "device": "null runner"}
    assert registry.get_sample_value("sailq:slots", of) == 1
    assert registry.get_sample_value("sailq:tpu_temperature_celsius", of) is None
    assert registry.get_sample_value("sailq:tpu_memory_used_bytes", of) == 7_000 * MB
    assert registry.get_sample_value("sailq:tpu_memory_total_bytes", of) == 10_752 * MB
    assert registry.get_sample_value("sailq:tpu_utilization_ratio", of) is None
