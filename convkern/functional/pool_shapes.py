"""What the poolings share: shapes, and images in the lanes as channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkern.arrays import as_array, is_images_last
from convkern.geometry import integer


def lies_images_last(x: np.ndarray) -> bool:
    """Tell whether an array is images-last; with N and C swapped it then is channels-last."""
    return x.ndim == 4 and is_images_last(x)


def swapped(x: np.ndarray) -> np.ndarray:
    """Return images with the channels for images and the images for channels, or undo that."""
    return x.transpose(1, 0, 2, 3)


def sizes_of(shape: Any, name: str = "input_shape") -> tuple[int, ...]:
    """Return the sizes of a shape, or raise."""
    if not hasattr(shape, "__len__") or isinstance(shape, str):
        raise TypeError(f"{name} must be a sequence of integers, got {shape!r}")
    return tuple(integer(size, name, 0) for size in shape)


def checked_input_shape(input_shape: Any, grad_output: np.ndarray) -> tuple[int, ...]:
    """Return the shape of the input whose pooling has this gradient."""
    shape = sizes_of(input_shape)
    lead = grad_output.shape[:-2]
    if len(shape) != grad_output.ndim or shape[:-2] != lead or 0 in shape[-3:]:
        raise ValueError(
            f"input_shape must be {(*lead, 'H', 'W')} for grad_output of shape "
            f"{grad_output.shape}, got {shape}"
        )
    if 0 in grad_output.shape[-2:]:
        raise ValueError(f"grad_output must have no empty axis but N, got {grad_output.shape}")
    return shape


def checked_output_gradient(
    grad_output: Any, shape: tuple[int, ...], like: np.ndarray | None = None
) -> np.ndarray:
    """Return the gradient as an array of the output's shape, or raise."""
    grad = as_array(grad_output, "grad_output", (len(shape),), like=like)
    if grad.shape != shape:
        raise ValueError(f"grad_output must have the output's shape {shape}, got {grad.shape}")
    return grad
