"""Normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    as_array,
    as_contiguous,
    as_images,
    checked_mask,
    to_channels_last,
    to_contiguous,
)
from convkern.geometry import integer
from convkern.threads import get_num_threads


def local_response_norm(
    input: np.ndarray, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> np.ndarray:
    r"""Normalise each element by its neighbours along the channels.

    .. math:: y_c = x_c \Big/ \Big(k + \frac{\alpha}{n} \sum_{c'} x_{c'}^2\Big)^\beta

    over the `n` channels from ``c - n // 2`` to ``c + (n - 1) // 2`` that exist
    (Krizhevsky, Sutskever and Hinton, *ImageNet classification with deep
    convolutional neural networks*, 2012, section 3.3; the division by `n` is torch's).

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    size : int
        Channels in the window, `n`.
    alpha, beta, k : float
        Scale, exponent and offset.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import local_response_norm
    >>> local_response_norm(np.ones((2, 1, 1)), size=2, alpha=2.0, beta=1.0).ravel().round(3)
    array([0.5  , 0.333])
    """
    input = as_array(input, "input", (3, 4))
    size = integer(size, "size", 1)
    x, channels_last = as_images(input)
    pixels = as_contiguous(to_channels_last(x).transpose(0, 2, 3, 1))
    out: np.ndarray = _kernels.empty(pixels.shape, x.dtype)
    if out.size:
        _kernels.local_response_norm(
            pixels,
            out,
            x.shape[1],
            min(size, 2 * x.shape[1]),
            float(alpha) * min(size, 2 * x.shape[1]) / size,
            float(beta),
            float(k),
            get_num_threads(),
        )
    result = out.transpose(0, 3, 1, 2)
    if not channels_last:
        result = to_contiguous(result)
    return result[0] if input.ndim == 3 else result


def local_response_norm_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> np.ndarray:
    r"""Return the gradient of `local_response_norm` by its input.

    .. math::

        \bar x_c = \bar y_c b_c^{-\beta}
            - \frac{2 \alpha \beta}{n} x_c \sum_{c' \ni c} \bar y_{c'} x_{c'} b_{c'}^{-\beta-1}

    with `b` the base of the power and the sum over the channels whose window holds `c`.

    Parameters
    ----------
    grad_output : ndarray, shape and dtype of `input`
        Gradient of the output.
    input, size, alpha, beta, k
        As given to `local_response_norm`.

    Returns
    -------
    ndarray, shape and dtype of `input`

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import local_response_norm_backward
    >>> x = np.ones((1, 1, 1))
    >>> local_response_norm_backward(x, x, 1, alpha=1.0, beta=1.0, k=1.0).ravel()
    array([0.])
    """
    input = as_array(input, "input", (3, 4))
    grad_output = as_array(grad_output, "grad_output", (input.ndim,), like=input)
    if grad_output.shape != input.shape:
        raise ValueError(
            f"grad_output must have the input's shape {input.shape}, got {grad_output.shape}"
        )
    size = integer(size, "size", 1)
    base = k + alpha / size * _sum_neighbours(input * input, size // 2, (size - 1) // 2)
    power = grad_output * base ** np.asarray(-beta, input.dtype)
    # Channel c lies in the windows of those from c - (size - 1) // 2 to c + size // 2.
    crossed = _sum_neighbours(power * input / base, (size - 1) // 2, size // 2)
    result: np.ndarray = power - np.asarray(2 * alpha * beta / size, input.dtype) * input * crossed
    return result.astype(input.dtype, copy=False)


def _sum_neighbours(x: np.ndarray, before: int, after: int) -> np.ndarray:
    """Sum each channel with so many channels before and after it."""
    channels = x.shape[-3]
    total = x.copy(order="K")
    for shift in range(1, min(max(before, after), channels - 1) + 1):
        if shift <= before:
            total[..., shift:, :, :] += x[..., : channels - shift, :, :]
        if shift <= after:
            total[..., : channels - shift, :, :] += x[..., shift:, :, :]
    return total


def _per_channel(value: Any, name: str, like: np.ndarray) -> np.ndarray | None:
    """Return one number per channel as (C, 1, ...), or None."""
    if value is None:
        return None
    array = as_array(value, name, (1,), like=like)
    if array.shape != like.shape[1:2]:
        raise ValueError(f"{name} must have shape {like.shape[1:2]}, got {array.shape}")
    return array.reshape(-1, *(1,) * (like.ndim - 2))


def _statistics(
    input: np.ndarray, running_mean: Any, running_var: Any, training: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return mean and biased variance per channel in float64, (C, 1, ...), and their count."""
    axes = (0, *range(2, input.ndim))
    count = input.size // max(1, input.shape[1])
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("running_mean and running_var are needed outside training")
        return running_mean.astype(np.float64), running_var.astype(np.float64), count
    if count < 2:
        raise ValueError(
            f"training needs more than one value per channel, got input of shape {input.shape}"
        )
    mean = input.mean(axis=axes, dtype=np.float64, keepdims=True)[0]
    centred = input - mean
    var = np.multiply(centred, centred, out=centred).mean(axis=axes, keepdims=True)[0]
    return mean, var, count


def batch_norm(
    input: np.ndarray,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> np.ndarray:
    r"""Normalise every channel to mean `bias` and standard deviation `weight`.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} w_c + b_c

    (Ioffe and Szegedy, *Batch normalization*, 2015, algorithm 1).

    Parameters
    ----------
    input : ndarray, (N, C, ...), at least 2-D, float32 or float64
        Any strides.
    running_mean, running_var : ndarray, (C,), dtype of `input`, or None
        Statistics to use; in training they are moved towards the batch's
        instead, in place, the variance without bias.
    weight, bias : ndarray, (C,), dtype of `input`, optional
        Scale and offset.
    training : bool
        Normalise with the batch's own mean and (biased) variance.
    momentum : float
        How far the running statistics move.
    eps : float
        Added to the variance.

    Returns
    -------
    ndarray, shape and dtype of `input`

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted, or dtypes differ.
    ValueError
        If shapes do not fit, statistics are missing, or in training there is
        one value per channel only.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import batch_norm
    >>> mean, var = np.zeros(1), np.ones(1)
    >>> x = np.array([1.0, 3.0]).reshape(2, 1)
    >>> batch_norm(x, mean, var, training=True, eps=0.0).ravel(), mean, var
    (array([-1.,  1.]), array([0.2]), array([1.1]))
    """
    input = as_array(input, "input", tuple(range(2, 33)))
    scale, shift = _per_channel(weight, "weight", input), _per_channel(bias, "bias", input)
    old_mean = _per_channel(running_mean, "running_mean", input)
    old_var = _per_channel(running_var, "running_var", input)
    for array, name in ((running_mean, "running_mean"), (running_var, "running_var")):
        if training and array is not None and not array.flags.writeable:
            raise ValueError(f"{name} must be writeable in training, got a read-only array")
    mean, var, count = _statistics(input, old_mean, old_var, training)
    factor = 1 / np.sqrt(var + eps)
    if scale is not None:
        factor = factor * scale
    out: np.ndarray = input - mean.astype(input.dtype)
    out *= factor.astype(input.dtype)
    if shift is not None:
        out += shift
    if training and running_mean is not None:
        running_mean += (momentum * (mean.ravel() - running_mean)).astype(input.dtype)
    if training and running_var is not None:
        unbiased = var.ravel() * count / (count - 1)
        running_var += (momentum * (unbiased - running_var)).astype(input.dtype)
    return out


def batch_norm_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    weight: np.ndarray | None = None,
    training: bool = False,
    eps: float = 1e-5,
    *,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients of `batch_norm` by its input, weight and bias.

    Parameters
    ----------
    grad_output : ndarray, shape and dtype of `input`
        Gradient of the output.
    input, running_mean, running_var, weight, training, eps
        As given to `batch_norm`; in training the running statistics are not read.
    output_mask : three bools
        Which of the three gradients are wanted.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray or None
        Of the shapes of input, (C,) and (C,); None where masked.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted, or dtypes differ.
    ValueError
        If shapes do not fit, or statistics are missing.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import batch_norm_backward
    >>> x, g = np.array([[1.0], [3.0]]), np.array([[1.0], [0.0]])
    >>> batch_norm_backward(g, x, np.zeros(1), np.ones(1), eps=0.0)[1:]
    (array([1.]), array([1.]))
    """
    input = as_array(input, "input", tuple(range(2, 33)))
    grad = as_array(grad_output, "grad_output", (input.ndim,), like=input)
    if grad.shape != input.shape:
        raise ValueError(f"grad_output must have the input's shape {input.shape}, got {grad.shape}")
    scale = _per_channel(weight, "weight", input)
    old_mean = _per_channel(running_mean, "running_mean", input)
    old_var = _per_channel(running_var, "running_var", input)
    want_input, want_weight, want_bias = checked_mask(output_mask)
    mean, var, count = _statistics(input, old_mean, old_var, training)
    factor = 1 / np.sqrt(var + eps)
    axes = (0, *range(2, input.ndim))
    normal = ((input - mean) * factor).astype(input.dtype, copy=False)
    sum_grad = grad.sum(axis=axes, dtype=np.float64, keepdims=True)[0]
    sum_product = (grad * normal).sum(axis=axes, dtype=np.float64, keepdims=True)[0]
    grad_input = None
    if want_input:
        if scale is not None:
            factor = factor * scale
        if training:
            grad_input = grad - (sum_grad / count).astype(input.dtype)
            grad_input -= normal * (sum_product / count).astype(input.dtype)
            grad_input *= factor.astype(input.dtype)
        else:
            grad_input = grad * factor.astype(input.dtype)
    return (
        grad_input,
        sum_product.ravel().astype(input.dtype) if want_weight else None,
        sum_grad.ravel().astype(input.dtype) if want_bias else None,
    )
