"""Reads what a bmodel contains from the file alone, without a device or a vendor library.

A bmodel is a header (64 bytes, little endian: magic, sizes), a FlatBuffer, and binaries (weights and commands), whose
extents are in the FlatBuffer. The field ids are those of TPU-MLIR's schema, `tpu_mlir/Builder/BM168x/bmodel.fbs`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from sailq.shared.errors import Unsupported

from .flatbuffer import Buffer, Corrupt, Table

_MAGIC = 0xFF55AAEE
_HEADER = struct.Struct("<IIIQ")  # magic; bytes of the header, of the FlatBuffer, of the binaries
_MOST_STRUCTURE = 1 << 26  # bytes; a 7B bmodel's FlatBuffer has under 1 MB
_BINARY = "QQ"  # bmodel.Binary: start within the binaries, bytes
_MOST_DIMS, _MOST_ROWS = 8, 2**31 - 1  # bm_shape_t
_DTYPES = ("f32", "f16", "i8", "u8", "i16", "u16", "i32", "u32", "bf16", "i4", "u4")  # bm_data_type_t
IO_ALONE = 1
"""The address mode of a net whose inputs and outputs have memory of their own."""


@dataclass(frozen=True)
class BmodelTensor:
    """One input or output; `shape` is the largest one of a dynamic net; `dtype` is f16, bf16, f32, i32, ..."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Stage:
    """A net as compiled for one set of shapes."""

    inputs: tuple[BmodelTensor, ...]
    outputs: tuple[BmodelTensor, ...]


@dataclass(frozen=True)
class BmodelNet:
    """`stages` are in file order, as SAIL numbers them; `address_mode` 1 is `IO_ALONE`."""

    name: str
    stages: tuple[Stage, ...]
    dynamic: bool
    address_mode: int


@dataclass(frozen=True)
class Weight:
    """A weight, bias or table of an operation: `tpu.MatMul.weight`, and its bytes in the file."""

    name: str
    bytes: int


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device's memory that BMRuntime takes to load a bmodel. The caller's own tensors come on top.

    The first three are `weight`, `instruct` and `runtime` of `model_tool --info`. That tool omits the others, and
    counts the first stage of a net again for each further stage.

    Attributes:
        weights: of all nets; weights with the same check code count once.
        commands: of all nets. If nets have equal commands, BMRuntime takes a few kB less.
        neurons: of the largest net: with BM_RUNTIME_SHARE_MEM all nets share them.
        io: inputs and outputs of the nets in mode `IO_ALONE`.
        own_neurons: of all nets, instead of `neurons`, if each net has its own (BMRuntime's default flags).
    """

    weights: int = 0
    commands: int = 0
    neurons: int = 0
    io: int = 0
    own_neurons: int = 0


@dataclass(frozen=True)
class Bmodel:
    """A bmodel. `chip`: "BM1684X"; `devices`: chips over which its nets are spread; `weights`: by net."""

    path: Path
    chip: str
    nets: Mapping[str, BmodelNet]
    memory: DeviceMemory = DeviceMemory()
    weights: Mapping[str, tuple[Weight, ...]] = field(default_factory=dict)
    devices: int = 1

    @property
    def device_bytes(self) -> int:
        """Device memory that loading takes where nets share their neurons, in bytes."""
        return self.memory.weights + self.memory.commands + self.memory.neurons + self.memory.io

    @property
    def unshared_bytes(self) -> int:
        """Device memory that loading takes where each net has its own neurons, in bytes."""
        return self.device_bytes - self.memory.neurons + self.memory.own_neurons


def read_bmodel(path: Path) -> Bmodel:
    """Reads the header and the structure, never the weights; raises Unsupported with one readable sentence."""
    structure, binary_bytes = _structure(path)
    try:
        return _Reader(path, binary_bytes).bmodel(Buffer(structure).root())
    except Corrupt:
        raise Unsupported(f"{path} is damaged: its structure is invalid; copy or compile it again.") from None


def _structure(path: Path) -> tuple[bytes, int]:
    """The FlatBuffer, and the number of bytes of the binaries after it. Raises Unsupported if the file lacks some of
    them."""
    if not path.is_file():
        raise Unsupported(f"{path} is not a file." if path.exists() else f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if not _MAGIC.to_bytes(4, "little").startswith(head[:4]) or not head:
                raise Unsupported(f"{path} is not a bmodel.")
            if len(head) < _HEADER.size:
                raise _truncated(path, len(head))
            _, header_bytes, structure_bytes, binary_bytes = _HEADER.unpack(head)
            held = path.stat().st_size
            if held < header_bytes + structure_bytes + binary_bytes:
                raise _truncated(path, held, header_bytes + structure_bytes + binary_bytes)
            if header_bytes < _HEADER.size or structure_bytes > _MOST_STRUCTURE:
                raise Unsupported(f"{path} is damaged: its header states impossible sizes; copy or compile it again.")
            file.seek(header_bytes)
            return file.read(structure_bytes), binary_bytes
    except OSError as error:
        raise Unsupported(f"{path} cannot be read: {error.strerror or error}.") from None


def _truncated(path: Path, held: int, stated: int | None = None) -> Unsupported:
    of = "" if stated is None else f" of {stated:,}"
    return Unsupported(f"{path} is cut short: it has {held:,}{of} bytes; copy or download it again.")


class _Reader:
    """Reads the FlatBuffer once and adds up the memory. Each method takes a table of the type in its name."""

    def __init__(self, path: Path, binary_bytes: int) -> None:
        self._path, self._binary_bytes = path, binary_bytes
        self._blobs: dict[bytes, int] = {}  # bytes of weights by check code
        self._commands = self._io = 0
        self._neurons: list[int] = []  # bytes, of each net

    def bmodel(self, model: Table) -> Bmodel:
        nets, weights = {}, {}
        for table in model.tables(4):
            net, held = self._net(table)
            if net.name not in nets:  # BMRuntime loads the first net of each name
                nets[net.name], weights[net.name] = net, held
        if not nets:
            raise Corrupt
        kernel = model.table(6)
        if kernel is not None:
            self._extent(kernel, 1)
        memory = DeviceMemory(
            weights=sum(self._blobs.values()),
            commands=self._commands,
            neurons=max(self._neurons),
            io=self._io,
            own_neurons=sum(self._neurons),
        )
        return Bmodel(
            path=self._path,
            chip=model.text(3),
            nets=MappingProxyType(nets),
            memory=memory,
            weights=MappingProxyType(weights),
            devices=max(1, model.number(7, "I")),
        )

    def _net(self, net: Table) -> tuple[BmodelNet, tuple[Weight, ...]]:
        stages: list[Stage] = []
        weights: list[Weight] = []
        neurons = io = 0
        dynamic = False
        for parameter in net.tables(3):
            stages.append(Stage(tuple(_tensors(parameter, 0)), tuple(_tensors(parameter, 1))))
            weights += self._weights(parameter)
            dynamic |= parameter.number(5, "i") != 0
            neurons = max(neurons, sum(parameter.numbers(14, "Q")) or parameter.number(3, "Q"))
            io = max(io, parameter.number(18, "Q"))
            self._count_commands(parameter)
        if not stages:
            raise Corrupt
        self._neurons.append(neurons)
        mode = net.number(5, "i")
        if mode == IO_ALONE:
            self._io += io
        return BmodelNet(net.text(0), tuple(stages), dynamic, mode), tuple(weights)

    def _weights(self, parameter: Table) -> Iterator[Weight]:
        held = parameter.table(4)
        if held is not None:
            self._blobs[bytes(held.numbers(1, "B"))] = self._extent(held, 2)
            for location in held.tables(3):
                yield Weight(location.text(0), location.number(2, "Q"))

    def _count_commands(self, parameter: Table) -> None:
        self._extent(parameter, 11)  # holds the commands of dynamic subnets
        for subnet in parameter.tables(12):
            if subnet.number(0, "i") != 0:  # runs on the host
                continue
            if subnet.number(5, "i"):
                self._commands += 4 * subnet.number(7, "I")
                continue
            cores = (group for core in subnet.tables(14) for group in core.tables(0))
            for group in chain(subnet.tables(1), cores):
                self._commands += self._extent(group, 2) + self._extent(group, 3)

    def _extent(self, table: Table, binary: int) -> int:
        """The length in bytes of the field `binary`, whose extent must lie in the file."""
        start, size = table.record(binary, _BINARY) or (0, 0)
        if start + size > self._binary_bytes:
            raise Corrupt
        return size


def _tensors(parameter: Table, place: int) -> Iterator[BmodelTensor]:
    for tensor in parameter.tables(place):
        shapes = [shape.numbers(0, "Q") for shape in tensor.tables(5)]
        if not shapes or len(shapes[0]) > _MOST_DIMS or any(rows > _MOST_ROWS for rows in shapes[0]):
            raise Corrupt
        dtype = tensor.number(1, "I")
        yield BmodelTensor(tensor.text(0), shapes[0], _DTYPES[dtype] if dtype < len(_DTYPES) else f"type {dtype}")
