"""torch: eager in both memory formats, and its ways to compile a network.

Everything imports torch inside functions: it is needed by nobody else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from convkern.bench.cases import Array, Call, Case, Operation, as_call
from convkern.interop.torch_nn import to_torch


@contextmanager
def _session(threads: int) -> Iterator[Any]:
    """Import torch and give it so many threads, without gradients."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield torch
    finally:
        torch.set_num_threads(before)


def instruction_set() -> str:
    """Return which one torch's own kernels use, and to which one its oneDNN is held, if any."""
    import torch

    name = torch.backends.cpu.get_cpu_capability().lower()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{name} (oneDNN at most {limit})" if limit else name


@contextmanager
def eager(threads: int) -> Iterator[Callable[[Case], dict[str, Call]]]:
    """Time torch as it comes, images and filters in either memory format."""
    with _session(threads) as torch:

        def prepare(case: Case) -> dict[str, Call]:
            if case.input.ndim != 4:
                return {"torch": _operator(case, torch.contiguous_format)}
            make = _operator
            if case.network:
                make = _network if case.network.target is None else _training_step
            return {
                "torch nchw": make(case, torch.contiguous_format),
                "torch channels_last": make(case, torch.channels_last),
            }

        yield prepare


@contextmanager
def jit(threads: int) -> Iterator[Callable[[Case], dict[str, Call]]]:
    """Time a network that torch has traced and frozen, and one that it has optimized as well."""
    with _session(threads) as torch:

        def prepare(case: Case) -> dict[str, Call]:
            module, x = _module_and_images(case, torch.channels_last)
            with _no_warnings():
                frozen = torch.jit.freeze(torch.jit.trace(module, x))
                optimized = torch.jit.optimize_for_inference(torch.jit.trace(module, x))
                for _ in range(3):  # the first calls look at the shapes and compile
                    frozen(x)
                    optimized(x)
            return {"torch jit": lambda: frozen(x), "torch jit-opt": lambda: optimized(x)}

        yield prepare


@contextmanager
def compiled(threads: int) -> Iterator[Callable[[Case], dict[str, Call]]]:
    """Time a network that ``torch.compile`` has compiled, its weights constants."""
    with _session(threads) as torch:

        def prepare(case: Case) -> dict[str, Call]:
            module, x = _module_and_images(case, torch.channels_last)
            with _no_warnings():
                call = torch.compile(module, options={"freezing": True})
                call(x)
            return {"torch compile": lambda: call(x)}

        yield prepare


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Ignore what compilers say: that they are deprecated, or could do better elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _operator(case: Case, memory_format: Any) -> Call:
    """Return a call of torch's operator on tensors in a memory format."""
    import torch

    [operation] = case.operations
    if operation.function == "conv2d_backward":
        operation = _convolution_backward(operation)
    weights = [_tensor(weight, memory_format) for weight in operation.weights]
    functions = SimpleNamespace(
        **vars(torch.nn.functional),
        convolution_backward=torch.ops.aten.convolution_backward.default,
    )
    x = _tensor(case.input, memory_format)
    return as_call([operation._replace(weights=weights)], functions, x)


def _convolution_backward(operation: Operation) -> Operation:
    """Return the operation in the words of torch's own backward pass."""
    given = operation.arguments
    _, weight = operation.weights
    return Operation(
        "convolution_backward",
        operation.weights,
        {
            "bias_sizes": [len(weight)],
            **{name: [given[name]] * 2 for name in ("stride", "padding", "dilation")},
            "transposed": False,
            "output_padding": [0, 0],
            "groups": given["groups"],
            "output_mask": given["output_mask"],
        },
    )


def _tensor(array: Array, memory_format: Any) -> Any:
    """Return an array as a tensor, images and filters in a memory format."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.contiguous(memory_format=memory_format) if array.ndim == 4 else tensor


def _network(case: Case, memory_format: Any) -> Call:
    """Return a call of the network."""
    module, x = _module_and_images(case, memory_format)
    return lambda: module(x)


def _training_step(case: Case, memory_format: Any) -> Call:
    """Return a training step; the update is torch's fastest, in one pass."""
    import torch

    assert case.network is not None
    with torch.inference_mode(False):
        module, x = _module_and_images(case, memory_format)
        target = torch.from_numpy(case.network.target)
        parameters = list(module.train().parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)

    @torch.inference_mode(False)
    def step() -> list[Any]:
        optimizer.zero_grad()
        loss: Any = torch.nn.functional.cross_entropy(module(x), target)
        loss.backward()
        optimizer.step()
        return [loss.detach(), *(parameter.grad for parameter in parameters)]

    return step


def _module_and_images(case: Case, memory_format: Any) -> tuple[Any, Any]:
    """Return the network of a case with weights of its own, in eval mode, and its images."""
    assert case.network is not None
    module = to_torch(case.network.layer, inplace=True).eval().to(memory_format=memory_format)
    return module, _tensor(case.input, memory_format)
