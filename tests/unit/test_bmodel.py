"""Reading bmodels: the results equal model_tool's, and each invalid file gets one sentence."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path

import flatbuffers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sailq.shared.errors import Unsupported
from sailq.worker.model_files.bmodel import BmodelTensor, DeviceMemory, Stage, Weight, read_bmodel

TREE = Path(__file__).parents[2]
NETS = TREE / "tests/data/nets.bmodel"
BYTES = NETS.read_bytes()
HEADER = struct.Struct("<IIIQ")
_, HEADER_BYTES, STRUCTURE_BYTES, BINARY_BYTES = HEADER.unpack_from(BYTES)
STRUCTURE_END = HEADER_BYTES + STRUCTURE_BYTES


def refusal(path: Path) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(Unsupported) as refused:
        read_bmodel(path)
    sentence = str(refused.value)
    assert str(path) in sentence and sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_nets_stages_and_shapes() -> None:
    bmodel = read_bmodel(NETS)

    assert (bmodel.chip, bmodel.devices, list(bmodel.nets)) == ("BM1684X", 1, ["linear", "relu"])
    linear, relu = bmodel.nets["linear"], bmodel.nets["relu"]
    assert (linear.dynamic, linear.address_mode) == (False, 1)
    assert linear.stages == tuple(
        Stage((BmodelTensor("x", (1, rows, 64), "f16"),), (BmodelTensor("y_MatMul", (1, rows, 64), "f16"),))
        for rows in (4, 8)
    )
    assert (relu.dynamic, relu.address_mode) == (True, 0)
    assert relu.stages[0].inputs == (BmodelTensor("x", (2, 64), "f32"),)


def test_memory_is_what_model_tool_prints() -> None:
    bmodel = read_bmodel(NETS)

    # device mem size: 23044 (weight: 12288, instruct: 2564, runtime: 8192): both stages share one set of weights
    assert bmodel.memory == DeviceMemory(weights=12288, commands=2564, neurons=8192, io=8192, own_neurons=8192)
    assert bmodel.device_bytes == 23044 + 8192


def test_weights_are_named_by_their_operation() -> None:
    weights = read_bmodel(NETS).weights

    assert Weight("tpu.A16MatMul.weight", 4096) in weights["linear"]
    assert weights["relu"] == ()


@pytest.mark.tpu
@pytest.mark.parametrize("path", sorted((TREE / "models").glob("*/*.bmodel")), ids=lambda path: path.stem)
def test_memory_of_whole_models_is_what_model_tool_prints(path: Path) -> None:
    environment = Path(os.environ.get("TPU_ENV", TREE / ".venv-tpu"))
    done = subprocess.run([environment / "bin/model_tool", "--info", path], capture_output=True, text=True, check=True)
    bmodel = read_bmodel(path)
    if any(len(net.stages) > 1 for net in bmodel.nets.values()):
        pytest.skip("of several stages, model_tool counts the first again and again")
    memory = bmodel.memory

    total = memory.weights + memory.commands + memory.neurons
    parts = f"weight: {memory.weights}, instruct: {memory.commands}, runtime: {memory.neurons}"
    assert f"device mem size: {total} ({parts})" in done.stdout


@pytest.mark.parametrize("content", [b"", b"{}", b"\x7fELF" + bytes(100), bytes(4096)])
def test_a_file_that_is_not_a_bmodel_is_refused(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "other.bmodel"
    other.write_bytes(content)

    assert "is not a bmodel" in refusal(other)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "nowhere.bmodel" in refusal(tmp_path / "nowhere.bmodel")
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("size", [1, 3, 4, 19, 20, 63, 64, 100, STRUCTURE_END - 1, STRUCTURE_END, len(BYTES) - 1])
def test_a_truncated_file_is_reported(tmp_path: Path, size: int) -> None:
    part = tmp_path / "part.bmodel"
    part.write_bytes(BYTES[:size])

    assert f" {size:,} " in refusal(part)


def test_weights_beyond_the_end_are_damage(tmp_path: Path) -> None:
    """A header that states fewer binaries than the structure names, as a botched edit leaves."""
    other = tmp_path / "other.bmodel"
    other.write_bytes(HEADER.pack(0xFF55AAEE, HEADER_BYTES, STRUCTURE_BYTES, 4096) + BYTES[HEADER.size :])

    assert "is damaged" in refusal(other)


@pytest.mark.parametrize(
    ("header", "structure"), [(0, STRUCTURE_BYTES), (HEADER_BYTES, 0), (HEADER_BYTES, 3), (8, 2**32 - 1)]
)
def test_impossible_sizes_are_refused(tmp_path: Path, header: int, structure: int) -> None:
    other = tmp_path / "other.bmodel"
    with other.open("wb") as file:
        file.write(HEADER.pack(0xFF55AAEE, header, structure, 0) + BYTES[HEADER.size :])
        file.truncate(1 << 33)  # a sparse file: the stated size must not be read

    started = time.perf_counter()
    refusal(other)
    assert time.perf_counter() - started < 1


_flips = st.lists(st.tuples(st.integers(0, STRUCTURE_END - 1), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=1000)
@given(flips=_flips, size=st.none() | st.integers(0, len(BYTES)))
def test_damaged_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], size: int | None
) -> None:
    damaged = bytearray(BYTES)
    for place, value in flips:
        damaged[place] = value
    other = tmp_path_factory.getbasetemp() / "damaged.bmodel"
    other.write_bytes(damaged[:size])

    try:
        bmodel = read_bmodel(other)
    except Unsupported:
        return
    assert bmodel.nets and bmodel.device_bytes >= 0


@pytest.mark.parametrize("value", [b"\x00" * 4, b"\xff" * 4, b"\x01\x00\x00\x00", b"\xff\xff\xff\x7f"])
def test_each_damaged_word_is_read_or_refused(tmp_path: Path, value: bytes) -> None:
    other = tmp_path / "damaged.bmodel"
    for place in range(0, HEADER_BYTES + 0x800, 4):
        other.write_bytes(BYTES[:place] + value + BYTES[place + 4 :])
        try:
            read_bmodel(other)
        except Unsupported:
            continue


def test_one_table_named_many_times_ends_soon(tmp_path: Path) -> None:
    """3,000 nets that are one net, whose 3,000 stages are one stage, with 3,000 inputs that are one tensor."""
    builder = flatbuffers.Builder()

    def many(item: int, count: int = 3000) -> int:
        builder.StartVector(4, count, 4)
        for _ in range(count):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    def table(field: int, value: int) -> int:
        builder.StartObject(field + 1)
        builder.PrependUOffsetTRelativeSlot(field, value, 0)
        return int(builder.EndObject())

    builder.StartVector(8, 0, 8)
    tensor = table(5, many(table(0, builder.EndVector()), 1))
    builder.Finish(table(4, many(table(3, many(table(0, many(tensor)))))))
    structure = bytes(builder.Output())
    other = tmp_path / "loop.bmodel"
    other.write_bytes(HEADER.pack(0xFF55AAEE, 64, len(structure), 0) + bytes(64 - HEADER.size) + structure)

    started = time.perf_counter()
    assert "is damaged" in refusal(other)
    assert time.perf_counter() - started < 1
