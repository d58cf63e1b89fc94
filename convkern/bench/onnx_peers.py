"""The peers that read ONNX models: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from convkern.bench.cases import Call, Case
from convkern.geometry import pair


@contextmanager
def onnx_runtime(threads: int) -> Iterator[Callable[[Case], dict[str, Call]]]:
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
def open_vino(threads: int) -> Iterator[Callable[[Case], dict[str, Call]]]:
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
