"""The public operators: check, geometry, allocate, one kernel call.

Names, argument order and semantics are those of ``torch.nn.functional``, on
NumPy arrays.  Logical order is NCHW; the memory layout is whatever the strides
say, and channels-last in gives channels-last out.
"""

from convkern.arrays import to_channels_last
from convkern.functional.activation import leaky_relu, relu, sigmoid, softmax
from convkern.functional.conv import (
    PackedConv2d,
    conv2d,
    conv2d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
)
from convkern.functional.linear import flatten, linear
from convkern.functional.norm import local_response_norm
from convkern.functional.pool import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool_channels,
    lp_pool2d,
    lp_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool_channels,
    max_unpool2d,
)
from convkern.geometry import conv_output_size

__all__ = [
    "PackedConv2d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool_channels",
    "conv2d",
    "conv2d_backward",
    "conv_output_size",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "flatten",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "lp_pool2d",
    "lp_pool2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool_channels",
    "max_unpool2d",
    "relu",
    "sigmoid",
    "softmax",
    "to_channels_last",
]
