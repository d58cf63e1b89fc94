"""The public operators: check, geometry, allocate, one kernel call.

Names, argument order and semantics are those of ``torch.nn.functional``, on
NumPy arrays.  Logical order is NCHW; the memory layout is whatever the strides
say, and channels-last in gives channels-last out.
"""

from convkern.arrays import to_channels_last
from convkern.functional.activation import (
    leaky_relu,
    leaky_relu_backward,
    prelu,
    prelu_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    softmax,
    softmax_backward,
)
from convkern.functional.avg_pool import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    avg_pool2d,
    avg_pool2d_backward,
)
from convkern.functional.channel_pool import (
    avg_pool_channels,
    avg_pool_channels_backward,
    max_pool_channels,
    max_pool_channels_backward,
)
from convkern.functional.columns import col2im, im2col
from convkern.functional.conv import PackedConv2d, conv2d
from convkern.functional.conv_gradient import conv2d_backward
from convkern.functional.conv_transpose import conv_transpose2d, conv_transpose2d_backward
from convkern.functional.linear import flatten, linear, linear_backward
from convkern.functional.loss import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_backward,
    cross_entropy,
    cross_entropy_backward,
    mse_loss,
    mse_loss_backward,
)
from convkern.functional.lp_pool import lp_pool2d, lp_pool2d_backward
from convkern.functional.max_pool import (
    max_pool2d,
    max_pool2d_backward,
    max_unpool2d,
    max_unpool2d_backward,
)
from convkern.functional.norm import (
    batch_norm,
    batch_norm_backward,
    local_response_norm,
    local_response_norm_backward,
)
from convkern.geometry import conv_output_size

__all__ = [
    "PackedConv2d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool_channels",
    "avg_pool_channels_backward",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "col2im",
    "conv2d",
    "conv2d_backward",
    "conv_output_size",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "flatten",
    "im2col",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "local_response_norm",
    "local_response_norm_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool_channels",
    "max_pool_channels_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "mse_loss",
    "mse_loss_backward",
    "prelu",
    "prelu_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
    "to_channels_last",
]
