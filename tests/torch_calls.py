"""What torch says to a random call: its operators with convkern's arguments.

Arrays reach torch as fresh C-contiguous tensors: torch 2.13 errs in the weight's
gradient of some grouped channels-last convolutions.  Gradients are autograd's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

try:
    import torch
    from torch.nn import functional as F  # noqa: N812
except ImportError:  # tests that need them ask for the fixture `torch`
    torch = F = None

from .calls import Answer, Call, arguments, state


def torch_call(call: Call) -> Answer:
    """Return what torch says, as NumPy arrays and integers; it may raise."""
    given = {name: _for_torch(value) for name, value in arguments(call).items()}
    result = torch_function(call.name)(**given)
    results = result if isinstance(result, tuple) else (result,)
    results += state(call.name, given)
    return tuple(r.detach().numpy() if hasattr(r, "detach") else r for r in results)


def torch_function(name: str) -> Callable[..., Any]:
    """Return torch's operator as a function of tensors with convkern's arguments, by keyword."""
    return _TORCH.get(name) or getattr(F, name)


def _for_torch(value: Any) -> Any:
    """Return an array as a fresh tensor, NumPy's integers as Python's, anything else unchanged."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, (tuple, list)):
        return type(value)(map(_for_torch, value))
    return value.item() if isinstance(value, np.generic) else value


def _gradients(
    function: Callable[..., Any], grad_output: Any, *inputs: Any, mask: Sequence[bool] = (True,)
) -> tuple[Any, ...]:
    """Return the gradients of a function by its inputs, None where masked."""
    leaves = [tensor.requires_grad_() for tensor in inputs]
    gradients = torch.autograd.grad(function(*leaves), leaves, grad_output)
    return tuple(g if m else None for g, m in zip(gradients, mask, strict=True))


def _conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    activation: str | None = None,
    algorithm: str = "auto",
    out: Any = None,
) -> Any:
    """Convolve; padding of four numbers is done beforehand, the activation afterwards."""
    sides = _four_sides(padding)
    if sides:
        input, padding = F.pad(input, sides), 0
    with warnings.catch_warnings():
        # torch warns that an even kernel with "same" costs it a copy.
        warnings.filterwarnings("ignore", "Using padding='same'")
        result = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return result if activation is None else getattr(F, activation)(result)


def _conv2d_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    output_mask: Any = (True, True, True),
    algorithm: str = "auto",
    **window: Any,
) -> Any:
    convolve = partial(_conv2d, **window)
    bias = weight.new_zeros(len(weight))
    return _gradients(convolve, grad_output, input, weight, bias, mask=output_mask)


def _conv_transpose2d(input: Any, weight: Any, padding: Any = 0, **rest: Any) -> Any:
    """Convolve backwards; padding of four numbers is cut off afterwards."""
    sides = _four_sides(padding)
    if sides is None:
        return F.conv_transpose2d(input, weight, padding=padding, **rest)
    return F.pad(F.conv_transpose2d(input, weight, **rest), [-n for n in sides])


def _conv_transpose2d_backward(
    grad_output: Any, input: Any, weight: Any, output_mask: Any = (True, True, True), **window: Any
) -> Any:
    def convolve(x: Any, w: Any, b: Any) -> Any:
        return _conv_transpose2d(x, weight=w, bias=b, **window)

    bias = weight.new_zeros(weight.shape[1] * window.get("groups", 1))
    return _gradients(convolve, grad_output, input, weight, bias, mask=output_mask)


def _max_pool2d_backward(grad_output: Any, indices: Any, input_shape: Any) -> Any:
    """Differentiate the choice of elements by their indices."""

    def choose(x: Any) -> Any:
        return x.flatten(-2).gather(-1, indices.flatten(-2)).reshape(indices.shape)

    return _gradients(choose, grad_output, grad_output.new_zeros(input_shape))


def _max_unpool2d(**given: Any) -> Any:
    """Put elements back, in order: of equal indices one thread writes the last."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return F.max_unpool2d(**given)
    finally:
        torch.set_num_threads(threads)


def _avg_pool2d_backward(grad_output: Any, input_shape: Any, **window: Any) -> Any:
    average = partial(F.avg_pool2d, **window)
    return _gradients(average, grad_output, grad_output.new_zeros(input_shape))


def _adaptive_avg_pool2d_backward(grad_output: Any, input_shape: Any) -> Any:
    average = partial(F.adaptive_avg_pool2d, output_size=grad_output.shape[-2:])
    return _gradients(average, grad_output, grad_output.new_zeros(input_shape))


def _lp_pool2d_backward(grad_output: Any, input: Any, output: Any, **window: Any) -> Any:
    return _gradients(partial(F.lp_pool2d, **window), grad_output, input)


def _pool_channels(pool: str) -> Callable[..., Any]:
    """Return torch's pooling of three axes, of which the first are the channels."""

    def pooled(input: Any, kernel_size: int, stride: int | None = None) -> Any:
        if input.ndim not in (3, 4):
            raise ValueError("not images")
        step = kernel_size if stride is None else stride
        function = getattr(F, pool)
        if input.ndim == 4 and not len(input):  # torch refuses to pool an empty batch
            return input.unfold(-3, kernel_size, step)[..., 0]
        return function(input.unsqueeze(-4), (kernel_size, 1, 1), (step, 1, 1)).squeeze(-4)

    return pooled


def _linear_backward(
    grad_output: Any, input: Any, weight: Any, output_mask: Any = (True, True, True)
) -> Any:
    bias = weight.new_zeros(weight.shape[:-1])
    return _gradients(F.linear, grad_output, input, weight, bias, mask=output_mask)


def _batch_norm_backward(
    grad_output: Any,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    training: bool = False,
    eps: float = 1e-5,
    output_mask: Any = (True, True, True),
) -> Any:
    if training:  # torch would move them
        running_mean = running_var = None

    def normalise(x: Any, w: Any, b: Any) -> Any:
        return F.batch_norm(x, running_mean, running_var, w, b, training, eps=eps)

    scale = input.new_ones(input.shape[1]) if weight is None else weight
    shift = input.new_zeros(input.shape[1])
    return _gradients(normalise, grad_output, input, scale, shift, mask=output_mask)


def _cross_entropy_backward(grad_output: Any, input: Any, target: Any, **rest: Any) -> Any:
    if isinstance(grad_output, float):
        grad_output = torch.tensor(grad_output, dtype=input.dtype)
    return _gradients(partial(F.cross_entropy, target=target, **rest), grad_output, input)


def _leaky_relu_backward(grad_output: Any, input: Any, **rest: Any) -> Any:
    return _gradients(partial(F.leaky_relu, **rest), grad_output, input)


def _prelu_backward(grad_output: Any, input: Any, weight: Any) -> Any:
    return _gradients(F.prelu, grad_output, input, weight, mask=(True, True))


def _local_response_norm_backward(grad_output: Any, input: Any, **rest: Any) -> Any:
    return _gradients(partial(_local_response_norm, **rest), grad_output, input)


def _softmax_backward(grad_output: Any, output: Any, axis: int = 1) -> Any:
    return torch.ops.aten._softmax_backward_data(grad_output, output, axis, output.dtype)


def _local_response_norm(input: Any, **rest: Any) -> Any:
    """Normalise; torch reads (C, H, W) as (N, C, L)."""
    if input.ndim == 3:
        return F.local_response_norm(input[None], **rest)[0]
    return F.local_response_norm(input, **rest)


def _conv_output_size(
    input_size: Any, kernel_size: Any, ceil_mode: bool = False, **window: Any
) -> Any:
    """Ask a convolution, or in ceil mode a pooling, of one image."""
    x = torch.zeros((1, 1, *_both(input_size)))
    if ceil_mode:
        # A pooling's stride would be its window.
        y = F.max_pool2d(x, kernel_size, ceil_mode=True, **{"stride": 1, **window})
    else:
        y = _conv2d(x, torch.zeros((1, 1, *_both(kernel_size))), **window)
    OH, OW = y.shape[-2:]
    scalar = isinstance(input_size, int) and isinstance(kernel_size, int)
    return OH if scalar else (OH, OW)


_TORCH: dict[str, Callable[..., Any]] = {
    "adaptive_avg_pool2d_backward": _adaptive_avg_pool2d_backward,
    "avg_pool2d_backward": _avg_pool2d_backward,
    "avg_pool_channels": _pool_channels("avg_pool3d"),
    "batch_norm_backward": _batch_norm_backward,
    "col2im": lambda **given: F.fold(**given),
    "conv2d": _conv2d,
    "conv2d_backward": _conv2d_backward,
    "conv_output_size": _conv_output_size,
    "conv_transpose2d": _conv_transpose2d,
    "conv_transpose2d_backward": _conv_transpose2d_backward,
    "cross_entropy_backward": _cross_entropy_backward,
    "flatten": lambda input, start_dim=1: torch.flatten(input, start_dim),
    "im2col": lambda **given: F.unfold(**given),
    "leaky_relu_backward": _leaky_relu_backward,
    "linear_backward": _linear_backward,
    "local_response_norm": _local_response_norm,
    "local_response_norm_backward": _local_response_norm_backward,
    "lp_pool2d_backward": _lp_pool2d_backward,
    "max_pool2d_backward": _max_pool2d_backward,
    "max_unpool2d": _max_unpool2d,
    "max_pool_channels": _pool_channels("max_pool3d"),
    "prelu_backward": _prelu_backward,
    "relu_backward": lambda grad_output, output: torch.ops.aten.threshold_backward(
        grad_output, output, 0
    ),
    "sigmoid_backward": lambda grad_output, output: torch.ops.aten.sigmoid_backward(
        grad_output, output
    ),
    "softmax": lambda input, axis=1: F.softmax(input, axis),
    "softmax_backward": _softmax_backward,
}


def _both(value: Any) -> tuple[int, int]:
    """Return an int or a pair as a pair."""
    first, second = value if isinstance(value, (tuple, list)) else (value, value)
    return first, second


def _four_sides(padding: Any) -> tuple[int, int, int, int] | None:
    """Return ((top, bottom), (left, right)) in torch's order, None for another form."""
    nested = isinstance(padding, (tuple, list)) and isinstance(padding[0], (tuple, list))
    if not nested:
        return None
    (top, bottom), (left, right) = padding
    return left, right, top, bottom
