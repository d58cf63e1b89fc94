"""Fast convolution kernels for NumPy: the public names, nothing else."""

from convkern import nn
from convkern.config import empty_cache, show_config
from convkern.freeze import Plan, freeze
from convkern.functional import (
    adaptive_avg_pool2d,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool_channels,
    batch_norm,
    col2im,
    conv2d,
    conv2d_backward,
    conv_output_size,
    conv_transpose2d,
    cross_entropy,
    im2col,
    linear,
    linear_backward,
    local_response_norm,
    lp_pool2d,
    max_pool2d,
    max_pool2d_backward,
    max_pool_channels,
    max_unpool2d,
)
from convkern.precision import get_float32_precision, set_float32_precision
from convkern.threads import get_num_threads, num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Plan",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool_channels",
    "batch_norm",
    "col2im",
    "conv2d",
    "conv2d_backward",
    "conv_output_size",
    "conv_transpose2d",
    "cross_entropy",
    "empty_cache",
    "freeze",
    "get_float32_precision",
    "get_num_threads",
    "im2col",
    "linear",
    "linear_backward",
    "local_response_norm",
    "lp_pool2d",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool_channels",
    "max_unpool2d",
    "nn",
    "num_threads",
    "set_float32_precision",
    "set_num_threads",
    "show_config",
]
