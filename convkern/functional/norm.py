"""Normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    ANY_NDIM,
    as_array,
    as_contiguous,
    as_images,
    checked_mask,
    cut_at,
    dense_channels_last,
    empty_images,
    from_memory,
    memory_order,
    to_contiguous,
    to_memory,
)
from convkern.functional.activation import relu_backward, relu_gradient
from convkern.functional.max_pool import Windows
from convkern.geometry import integer, number
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
    return _local_response_norm(input, size, alpha, beta, k)


def _local_response_norm(
    input: np.ndarray,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    grad: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise channels-last pixels, or compute the gradient of their input."""
    size = integer(size, "size", 1)
    alpha, beta, k = number(alpha, "alpha"), number(beta, "beta"), number(k, "k")
    x, channels_last = as_images(input)
    order = (0, 2, 3, 1)
    pixels = to_memory(x, order)
    out: np.ndarray = _kernels.empty(pixels.shape, x.dtype)
    if out.size:
        # Wider windows than this hold no further channel.
        window = min(size, 2 * x.shape[1])
        gradient = None
        if grad is not None:
            gradient = to_memory(grad if grad.ndim == 4 else grad[None], order)
        _kernels.local_response_norm(
            pixels,
            out,
            x.shape[1],
            window,
            alpha * window / size,
            beta,
            k,
            get_num_threads(),
            gradient,
        )
    result = from_memory(out, order)
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
    ndarray, shape, dtype and layout of `input`

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
    return _local_response_norm(input, size, alpha, beta, k, grad_output)


def _per_channel(value: Any, name: str, like: np.ndarray) -> np.ndarray | None:
    """Return one number per channel, contiguous and in the dtype of `like`, or None."""
    if value is None:
        return None
    array = as_array(value, name, (1,), like=like)
    if array.shape != like.shape[1:2]:
        raise ValueError(f"{name} must have shape {like.shape[1:2]}, got {array.shape}")
    return as_contiguous(array)


def _statistics(
    memory: np.ndarray,
    cut: tuple[int, int, int],
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    training: bool,
    unit: int,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and biased variance per channel in float64, of batches as they may be known."""
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("running_mean and running_var are needed outside training, got None")
        return running_mean.astype(np.float64), running_var.astype(np.float64)
    if cut[0] * cut[2] == 1:
        raise ValueError(
            f"input must have more than one value per channel in training, got one of {cut[1]}"
        )
    if not memory.size:
        return np.zeros(cut[1]), np.zeros(cut[1])
    if moments is None:
        moments = _kernels.moments(memory, cut, get_num_threads(), unit)
    return moments


def _unit(x: np.ndarray, order: tuple[int, ...]) -> int:
    """Return the pixels of a channels-last image, else 0: `conv2d_moments` adds them up apart."""
    return x.shape[2] * x.shape[3] if order == (0, 2, 3, 1) else 0


def _checked_eps(eps: float, training: bool) -> float:
    """Return `eps`; raise where a constant channel would be divided by zero."""
    checked = number(eps, "eps")
    if not checked >= 0 or (training and not checked):
        raise ValueError(f"eps must not be negative, and positive in training, got {eps}")
    return checked


def _affine(
    memory: np.ndarray,
    grad: np.ndarray | None,
    cut: tuple[int, int, int],
    coefficients: np.ndarray,
    relu: bool = False,
    rectified: np.ndarray | None = None,
    after_relu: bool = False,
) -> np.ndarray:
    """Return (x - center) * scale + shift + grad * gain per channel.

    With `relu` that is rectified; `rectified` are the coefficients of what grad is behind; with
    `after_relu` the result is taken through the gradient of the ReLU that has given x.
    """
    out: np.ndarray = _kernels.empty(memory.shape, memory.dtype)
    if out.size:
        threads = get_num_threads()
        _kernels.affine(memory, grad, out, coefficients, cut, threads, relu, rectified, after_relu)
    return out


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
    running_mean, running_var : ndarray, (C,), dtype of `input`, or both None
        Statistics to use; in training they are moved towards the batch's
        instead, in place, the variance without bias.
    weight, bias : ndarray, (C,), dtype of `input`, optional
        Scale and offset.
    training : bool
        Normalise with the batch's own mean and (biased) variance.
    momentum : float
        How far the running statistics move.
    eps : float
        Added to the variance; positive in training.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

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
    >>> batch_norm(x, mean, var, training=True).ravel().round(4), mean, var
    (array([-1.,  1.]), array([0.2]), array([1.1]))
    """
    return normalise(input, running_mean, running_var, weight, bias, training, momentum, eps)[0]


class Statistics(NamedTuple):
    """What a normalisation was made with."""

    mean: np.ndarray  #: of every channel, in float64
    var: np.ndarray  #: biased
    #: Of the affine map, (4, C), if a ReLU followed it directly.
    rectified: np.ndarray | None = None


def normalise(
    input: np.ndarray,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool = False,
    plus: np.ndarray | None = None,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, Statistics]:
    """Return what `batch_norm` does, and the statistics that it used.

    An array of the input's shape may be added to the output, and that be rectified.  `moments`
    are the batch's mean and biased variance, where they are known.
    """
    gain = 0.0 if plus is None else 1.0
    running, learned = (running_mean, running_var), (weight, bias)
    prepared = _prepared(input, running, learned, training, momentum, eps, gain, moments)
    other = None
    if plus is not None:
        other = to_memory(as_array(plus, "plus", (4,), like=prepared.memory), prepared.order)
    out = _affine(prepared.memory, other, prepared.cut, prepared.rows, relu)
    if training:
        _move_running(prepared, *running)
    rectified = prepared.rows if relu and plus is None else None
    return (
        from_memory(out, prepared.order),
        Statistics(prepared.mean, prepared.var, rectified),
    )


def normalise_and_pool(
    input: np.ndarray,
    running: tuple[np.ndarray | None, np.ndarray | None],
    learned: tuple[np.ndarray | None, np.ndarray | None],
    momentum: float,
    eps: float,
    windows: Windows,
    relu: bool = False,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, Statistics]:
    """Return `max_pool2d` of what `normalise` returns in training, its indices, and the statistics.

    The input is channels-last and dense; what is between the two is not kept.  `running` are mean
    and variance, `learned` weight and bias.
    """
    prepared = _prepared(input, running, learned, True, momentum, eps, 0.0, moments)
    size, rows, columns = windows
    shape = (*input.shape[:2], *size)
    maxima = empty_images(shape, input.dtype, True)
    indices = empty_images(shape, np.dtype(np.int64), True)
    if maxima.size:
        _kernels.max_pool2d(
            input, maxima, indices, rows, columns, True, get_num_threads(), prepared.rows, relu
        )
    _move_running(prepared, *running)
    statistics = Statistics(prepared.mean, prepared.var, prepared.rows if relu else None)
    return maxima, indices, statistics


class _Prepared(NamedTuple):
    """A normalisation before its pass over the input."""

    memory: np.ndarray
    cut: tuple[int, int, int]
    order: tuple[int, ...]
    mean: np.ndarray
    var: np.ndarray
    rows: np.ndarray  #: of the affine map
    #: Where the running statistics move to, mean and variance.
    moved: tuple[np.ndarray, np.ndarray] | None


def _prepared(
    input: np.ndarray,
    running: tuple[np.ndarray | None, np.ndarray | None],
    learned: tuple[np.ndarray | None, np.ndarray | None],
    training: bool,
    momentum: float,
    eps: float,
    gain: float,
    moments: tuple[np.ndarray, np.ndarray] | None,
) -> _Prepared:
    """Check the arguments of a normalisation and find its coefficients."""
    running_mean, running_var = running
    weight, bias = learned
    input = as_array(input, "input", ANY_NDIM[2:])
    scale, shift = _per_channel(weight, "weight", input), _per_channel(bias, "bias", input)
    old_mean = _per_channel(running_mean, "running_mean", input)
    old_var = _per_channel(running_var, "running_var", input)
    eps = _checked_eps(eps, training)
    momentum = number(momentum, "momentum")
    if training:
        _check_running(running_mean, running_var)
    order = memory_order(input)
    memory, cut = to_memory(input, order), cut_at(input, 1, order)
    unit = _unit(input, order)
    mean, var = _statistics(memory, cut, old_mean, old_var, training, unit, moments)
    rows = _kernels.normalising_rows(mean, var, scale, shift, eps, gain, memory.dtype)
    count, moved = cut[0] * cut[2], None
    if training and count and old_mean is not None and old_var is not None:
        moved = (
            _kernels.moved_statistics(old_mean, mean, momentum, 1.0),
            _kernels.moved_statistics(old_var, var, momentum, count / (count - 1)),
        )
    return _Prepared(memory, cut, order, mean, var, rows, moved)


def _move_running(
    prepared: _Prepared, running_mean: np.ndarray | None, running_var: np.ndarray | None
) -> None:
    """Move the running statistics, both or none, when nothing can fail any more."""
    if prepared.moved is not None:
        assert running_mean is not None and running_var is not None
        running_mean[...], running_var[...] = prepared.moved


def _check_running(running_mean: Any, running_var: Any) -> None:
    """Raise unless both running statistics can be moved in place, or there are none."""
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be both arrays or both None")
    for array, name in ((running_mean, "running_mean"), (running_var, "running_var")):
        if array is None:
            continue
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
        if not array.flags.writeable:
            raise ValueError(f"{name} must be writeable in training, got a read-only array")


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
    input = as_array(input, "input", ANY_NDIM[2:])
    old_mean = _per_channel(running_mean, "running_mean", input)
    old_var = _per_channel(running_var, "running_var", input)
    order = memory_order(input)
    memory, cut = to_memory(input, order), cut_at(input, 1, order)
    unit = _unit(input, order)
    statistics = Statistics(*_statistics(memory, cut, old_mean, old_var, training, unit))
    return normalise_backward(grad_output, input, statistics, weight, training, eps, output_mask)


def normalise_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    statistics: Statistics,
    weight: np.ndarray | None,
    training: bool,
    eps: float,
    output_mask: Sequence[bool],
    after_relu: bool = False,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients of `normalise`, from the statistics that it used.

    With `after_relu`, the input is the output of a ReLU, and its gradient that of the ReLU's input.
    """
    input = as_array(input, "input", ANY_NDIM[2:])
    grad = as_array(grad_output, "grad_output", (input.ndim,), like=input)
    if grad.shape != input.shape:
        raise ValueError(f"grad_output must have the input's shape {input.shape}, got {grad.shape}")
    scale = _per_channel(weight, "weight", input)
    want_input, want_weight, want_bias = checked_mask(output_mask)
    eps = _checked_eps(eps, training)
    mean, var, rectified = statistics
    order = memory_order(input)
    memory, cut, g = to_memory(input, order), cut_at(input, 1, order), to_memory(grad, order)
    if rectified is not None and not training:
        g = relu_backward(g, _affine(memory, None, cut, rectified))
    if g.size and (want_weight or want_bias or (want_input and training)):
        passed = rectified if training else None
        sums = _kernels.gradient_sums(g, memory, mean, cut, get_num_threads(), passed)
    else:
        sums = np.zeros((2, cut[1]))
    count = max(1, cut[0] * cut[2])
    rows, grad_weight, grad_bias = _kernels.normalising_gradient(
        mean, var, sums, scale, eps, count, g.dtype
    )
    grad_input = None
    if want_input:
        if training:
            gradient = _affine(memory, g, cut, rows, False, rectified, after_relu)
        else:
            zeros = np.zeros_like(mean)
            rows = _kernels.normalising_rows(zeros, var, scale, None, eps, 0.0, g.dtype)
            gradient = _affine(g, None, cut, rows)
            if after_relu:
                gradient = relu_gradient(gradient, memory, overwrite=True)
        grad_input = from_memory(gradient, order)
    return grad_input, grad_weight if want_weight else None, grad_bias if want_bias else None


def normalise_and_pool_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    statistics: Statistics,
    weight: np.ndarray | None,
    eps: float,
    output_mask: Sequence[bool],
    after_relu: bool,
    windows: Windows,
    maxima: np.ndarray,
    indices: np.ndarray,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients of `normalise_and_pool`, whose windows do not overlap or have gaps.

    With `after_relu`, the input is the output of a ReLU, and its gradient that of the ReLU's input.
    """
    grad = dense_channels_last(as_array(grad_output, "grad_output", (4,), like=input))
    scale = _per_channel(weight, "weight", input)
    want_input, want_weight, want_bias = checked_mask(output_mask)
    mean, var, rectified = statistics
    _, rows, columns = windows
    passed = None if rectified is None else maxima
    axes = rows, columns, get_num_threads(), passed
    if grad.size and (want_input or want_weight or want_bias):
        sums = _kernels.max_pool2d_sums(grad, indices, input, mean, *axes)
    else:
        sums = np.zeros((2, input.shape[1]))
    count = input.shape[0] * input.shape[2] * input.shape[3]
    coefficients, grad_weight, grad_bias = _kernels.normalising_gradient(
        mean, var, sums, scale, eps, max(1, count), input.dtype
    )
    grad_input = None
    if want_input:
        grad_input = empty_images(input.shape, input.dtype, True)
        if grad.size:
            _kernels.max_pool2d_backward(
                grad, indices, grad_input, *axes, input, coefficients, after_relu
            )
    return grad_input, grad_weight if want_weight else None, grad_bias if want_bias else None
