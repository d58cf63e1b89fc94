"""Who convkern is measured against: other libraries, on the same threads and numbers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from convkern.bench.cases import Array, Call, Case, as_call
from convkern.geometry import pair

# The peers: context managers that take the number of threads and give a function from a Case to
# calls by name.


Prepare: TypeAlias = Callable[[Case], dict[str, Call]]


@contextmanager
def _torch(threads: int) -> Iterator[Prepare]:
    """Time torch in eager mode, images and filters in either memory format."""
    import torch

    # In place where torch's own networks are.
    others = {"relu": torch.relu_, "flatten": torch.flatten}
    functions = SimpleNamespace(**vars(torch.nn.functional) | others)

    def prepare(case: Case) -> dict[str, Call]:
        if case.input.ndim != 4:
            return {"torch": in_format(case, torch.contiguous_format)}
        return {
            "torch nchw": in_format(case, torch.contiguous_format),
            "torch channels_last": in_format(case, torch.channels_last),
        }

    def in_format(case: Case, memory_format: Any) -> Call:
        def tensor(array: Array) -> Any:
            made = torch.from_numpy(array)
            return made.contiguous(memory_format=memory_format) if array.ndim == 4 else made

        operations = [
            operation._replace(weights=[tensor(weight) for weight in operation.weights])
            for operation in case.operations
        ]
        return as_call(operations, functions, tensor(case.input))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield prepare
    finally:
        torch.set_num_threads(before)


@contextmanager
def _onnxruntime(threads: int) -> Iterator[Prepare]:
    """Time ONNX Runtime on its own threads, which wait asleep."""
    _onnx()  # here already, so that a missing package is named at once
    import onnxruntime

    def prepare(case: Case) -> dict[str, Call]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            _onnx_model(case), options, providers=["CPUExecutionProvider"]
        )
        feed = {"input": np.ascontiguousarray(case.input)}
        return {"onnxruntime": lambda: session.run(None, feed)[0]}

    yield prepare


@contextmanager
def _openvino(threads: int) -> Iterator[Prepare]:
    """Time OpenVINO in float32, its input and output shared with NumPy."""
    _onnx()
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }

    def prepare(case: Case) -> dict[str, Call]:
        model = core.compile_model(core.read_model(_onnx_model(case)), "CPU", settings)
        request = model.create_infer_request()
        feed = [np.ascontiguousarray(case.input)]
        return {
            "openvino": lambda: request.infer(feed, share_inputs=True, share_outputs=True)[0],
        }

    yield prepare


#: Adding a peer is adding an entry.
PEERS: dict[str, Callable[[int], AbstractContextManager[Prepare]]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}

# Names in ONNX: of the operator, with what it always needs, and of the keywords.
_ONNX_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv2d": ("Conv", {}),
    "max_pool2d": ("MaxPool", {}),
    "relu": ("Relu", {}),
    "flatten": ("Flatten", {}),
    "linear": ("Gemm", {"transB": 1}),
}
_ONNX_ATTRIBUTES: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "kernel_size": lambda value: ("kernel_shape", pair(value, "kernel_size")),
    "stride": lambda value: ("strides", pair(value, "stride")),
    "padding": lambda value: ("pads", pair(value, "padding", 0) * 2),
    "dilation": lambda value: ("dilations", pair(value, "dilation")),
    "groups": lambda value: ("group", value),
    "start_dim": lambda value: ("axis", value),
}


def _onnx() -> Any:
    """Return the package that writes models for the peers which read them."""
    return importlib.import_module("onnx")


def _onnx_model(case: Case) -> bytes:
    """Return the operations as a serialized ONNX model from "input" to "output"."""
    onnx = _onnx()
    helper, from_array = onnx.helper, onnx.numpy_helper.from_array
    nodes: list[Any] = []
    initializers: list[Any] = []
    x = "input"
    for index, operation in enumerate(case.operations):
        operator, fixed = _ONNX_OPERATORS[operation.function]
        attributes = fixed | dict(
            _ONNX_ATTRIBUTES[name](value) for name, value in operation.arguments.items()
        )
        weights = [f"weight{index}.{i}" for i in range(len(operation.weights))]
        initializers += map(from_array, operation.weights, weights)
        y = "output" if operation is case.operations[-1] else f"x{index}"
        nodes.append(helper.make_node(operator, [x, *weights], [y], **attributes))
        x = y
    value = partial(helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "bench",
        [value("input", shape=case.input.shape)],
        [value("output", shape=None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized
