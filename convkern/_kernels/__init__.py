"""The compiled drivers, and under them the micro-kernels of `csrc`.

Everything here trusts its arguments; `convkern.functional` is what checks them.
"""

try:
    from convkern._kernels.activation import activate, add, prelu, softmax
    from convkern._kernels.blocks import gather_blocks, spread_steps, take_steps
    from convkern._kernels.channels import (
        ImageMoments,
        affine,
        gradient_sums,
        local_response_norm,
        moments,
        moved_statistics,
        negative_products,
        normalising_gradient,
        normalising_rows,
        rounded_totals,
        totals,
    )
    from convkern._kernels.columns import col2im, im2col
    from convkern._kernels.conv import conv2d, conv2d_planes
    from convkern._kernels.core import (
        are_plain,
        empty,
        empty_cache,
        empty_images_last,
        fma_peak,
        from_memory,
        idle_bytes,
        is_contiguous,
        is_operand,
        isa,
        isa_names,
        lanes,
        layout_of,
        memory_order,
        memory_view,
        openmp,
        spin_fma,
        to_channels_last,
        to_contiguous,
    )
    from convkern._kernels.dense import (
        SHORT_ROWS,
        ShortWeight,
        linear,
        linear_input_gradient,
        linear_weight_gradient,
        short_linear,
    )
    from convkern._kernels.depthwise import depthwise_planes
    from convkern._kernels.grad_input import dense_taps, input_gradient
    from convkern._kernels.grad_weight import weight_gradient
    from convkern._kernels.images_last import (
        from_images_last,
        is_images_last,
        lanes_conv2d,
        lanes_input_gradient,
        lanes_weight_gradient,
        to_images_last,
    )
    from convkern._kernels.loss import (
        class_loss,
        class_losses,
        class_weights,
        shares_of_samples,
        subtract_shares,
        wrong_class,
    )
    from convkern._kernels.optimizer import adam, are_alike, sgd, share_extents, squares
    from convkern._kernels.packing import PackedConv
    from convkern._kernels.planes_gradient import planes_weight_gradient
    from convkern._kernels.pool import (
        box_sums,
        gather,
        max_pool2d,
        max_pool2d_backward,
        max_pool2d_sums,
        scatter,
    )
    from convkern._kernels.square import square_gradients, square_planes
except ModuleNotFoundError as error:
    raise ImportError(
        "convkern's compiled modules are missing: this looks like a source folder that was not "
        "built; run `pip install -e .` in it"
    ) from error

__all__ = [
    "SHORT_ROWS",
    "ImageMoments",
    "PackedConv",
    "ShortWeight",
    "activate",
    "adam",
    "add",
    "affine",
    "are_alike",
    "are_plain",
    "box_sums",
    "class_loss",
    "class_losses",
    "class_weights",
    "col2im",
    "conv2d",
    "conv2d_planes",
    "dense_taps",
    "depthwise_planes",
    "empty",
    "empty_cache",
    "empty_images_last",
    "fma_peak",
    "from_images_last",
    "from_memory",
    "gather",
    "gather_blocks",
    "gradient_sums",
    "idle_bytes",
    "im2col",
    "input_gradient",
    "is_contiguous",
    "is_images_last",
    "is_operand",
    "isa",
    "isa_names",
    "lanes",
    "lanes_conv2d",
    "lanes_input_gradient",
    "lanes_weight_gradient",
    "layout_of",
    "linear",
    "linear_input_gradient",
    "linear_weight_gradient",
    "local_response_norm",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_sums",
    "memory_order",
    "memory_view",
    "moments",
    "moved_statistics",
    "negative_products",
    "normalising_gradient",
    "normalising_rows",
    "openmp",
    "planes_weight_gradient",
    "prelu",
    "rounded_totals",
    "scatter",
    "sgd",
    "share_extents",
    "shares_of_samples",
    "short_linear",
    "softmax",
    "spin_fma",
    "spread_steps",
    "square_gradients",
    "square_planes",
    "squares",
    "subtract_shares",
    "take_steps",
    "to_channels_last",
    "to_contiguous",
    "to_images_last",
    "totals",
    "weight_gradient",
    "wrong_class",
]
