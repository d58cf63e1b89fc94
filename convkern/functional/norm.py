"""Normalisation."""

from __future__ import annotations

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, as_contiguous, as_images, to_channels_last, to_contiguous
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
