"""Stands in for `sophon.sail` on a machine without a BM1684X: what sailq uses of it, with ONNX Runtime as the device.

It runs the nets in the folder `onnx` beside the bmodel, which are those that bmodels are compiled from. ONNX Runtime
lies where a box has libsophon. What the file FAULT says goes wrong with the device:

    hold    loading and each call wait for as long as the file says so
    fail    each call raises
    noise   it does not compute the same twice
    leak    a call takes memory until there is no more
"""

import os
import sys
import time
from enum import IntEnum
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from math import prod
from pathlib import Path

import numpy as np

LIBRARIES = "/opt/sophon/libsophon-current/lib"
FAULT = Path("/opt/sophon/fault")


def load_onnxruntime():
    """ONNX Runtime's module, from a folder that Python does not search."""
    spec = PathFinder.find_spec("onnxruntime", [LIBRARIES])
    if spec is None:
        raise ModuleNotFoundError(f"{LIBRARIES} holds no onnxruntime", name="onnxruntime")
    sys.modules["onnxruntime"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


onnxruntime = sys.modules.get("onnxruntime") or load_onnxruntime()


class Dtype(IntEnum):
    BM_FLOAT32 = 0
    BM_FLOAT16 = 1
    BM_INT32 = 6
    BM_BFLOAT16 = 8


NUMPY = {Dtype.BM_FLOAT32: np.float32, Dtype.BM_FLOAT16: np.uint16, Dtype.BM_INT32: np.int32,
         Dtype.BM_BFLOAT16: np.uint16}


def get_available_tpu_num():
    return 1


class Handle:
    """Opens the devices, as libsophon does: the unit must let it."""

    def __init__(self, tpu_id):
        self._nodes = [os.open(f"/dev/{name}", os.O_RDWR) for name in (f"bm-tpu{tpu_id}", "bmdev-ctl", "ion")]


class Tensor:
    """A new tensor, or with `src` a view of another's elements from `offset`."""

    def __init__(self, shape, handle=None, dtype=None, own_sys_data=False, own_dev_data=False, src=None, offset=0):
        if src is not None:
            self._dtype = src._dtype
            self.data = src.data.reshape(-1)[offset : offset + prod(shape)].reshape(shape)
        else:
            self._dtype = Dtype(dtype)
            self.data = np.zeros(shape, NUMPY[self._dtype])

    def shape(self):
        return list(self.data.shape)

    def dtype(self):
        return self._dtype

    def update_data(self, data):
        self.data[...] = data

    def asnumpy(self):
        return self.data.copy()

    def sync_d2d(self, src, offset_src, offset_dst, len):
        self.data.reshape(-1)[offset_dst : offset_dst + len] = src.data.reshape(-1)[offset_src : offset_src + len]

    def sync_s2d(self, size=None):
        pass

    def sync_d2s(self, size=None):
        pass


class EngineLLM:
    def __init__(self, bmodel_path, tpu_ids):
        fault()
        self._nets = {
            file.stem: onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            for file in (Path(bmodel_path).parent / "onnx").glob("*.onnx")
        }
        self._random = np.random.default_rng()

    def get_input_tensors(self, graph_name, stage=0):
        return {}

    def get_input_tensors_addrmode0(self, graph_name):
        return {}

    def process(self, graph, inputs, outputs):
        said = fault()
        if said == "fail":
            raise RuntimeError("stands in for what SAIL raises")
        given = [inputs[index].data for index in sorted(inputs)]
        if graph == "flush":
            made = [rows for recent in given for rows in recent.swapaxes(0, 1)]
        elif graph.startswith("embedding"):
            made = self._embed(given[0], np.zeros((3, *given[0].shape), np.int32))[:1]
        elif graph == "add":
            made = [sum(given)]
        elif graph.startswith("block_"):
            made = self._block(graph.replace("_cache", ""), *given)
        else:
            made = self._run(graph, *given)
        if said == "noise" and graph == "lm_head":
            made = [self._random.standard_normal(made[0].shape)]
        for index, values in enumerate(made):  # a dynamic net writes only as many rows as it reads
            outputs[index].data.reshape(-1)[: values.size] = values.reshape(-1)

    def _run(self, name, *given):
        net = self._nets[name]
        return net.run(None, {one.name: value for one, value in zip(net.get_inputs(), given, strict=True)})

    def _embed(self, tokens, positions):
        """Hidden states, and the cosine and sine of each angle."""
        return self._run("embedding", tokens, positions)

    def _block(self, name, hidden, positions, mask, *past):
        """A CPU's net takes angles instead of positions, a past for a prompt too, heads before columns, and no recent
        rows. If the mask is no wider than the past, the new rows belong in the past's last row."""
        in_place = len(past) == 2 and mask.shape[-1] == past[0].shape[1]
        last_rows = [rows[:, -1:] for rows in past] if in_place else []
        if in_place:
            past = [rows[:, :-1] for rows in past]
            positions = positions.swapaxes(0, 1)
        if positions.shape[:2] == (1, 3):  # of a prompt in the same layout
            positions = positions.swapaxes(0, 1)
        angles = self._embed(np.zeros(positions.shape[1:], np.int32), positions)[1:]
        if len(past) == 4:
            past = [np.concatenate((past[i], past[i + 2].swapaxes(0, 1)), axis=1) for i in (0, 1)]
        if not past:
            _, kv_heads, _, dim = self._nets[name].get_inputs()[4].shape
            past = [np.zeros((1, 0, kv_heads, dim), np.float32)] * 2
        past = [rows.swapaxes(1, 2) for rows in past]
        made = self._run(name, hidden, *angles, mask, *past)
        for last, rows in zip(last_rows, made[1:], strict=False):
            last[...] = rows
        return made[:1] if in_place else made


def fault():
    """The current fault of the device."""
    taken = []
    while (said := FAULT.read_text().strip()) in ("hold", "leak"):
        if said == "leak":
            taken.append(b"x" * (16 << 20))
        else:
            time.sleep(0.02)
    return said
