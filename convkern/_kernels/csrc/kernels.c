/* The micro-kernels, one body each.
 *
 * The build compiles this file once per instruction set and dtype (see vec.h)
 * and each object exports one table.  Contracts are in ck.h.
 */
#include "ck.h"
#include "vec.h"

#include <math.h>

#ifdef CK_DTYPE_F64
#define CK_DTYPE_NAME f64
#else
#define CK_DTYPE_NAME f32
#endif
#define CK_JOIN_(dtype, what, isa) ck_##dtype##_##what##__##isa
#define CK_JOIN(dtype, what, isa) CK_JOIN_(dtype, what, isa)
/* Every symbol is ck_<dtype>_<what>__<isa>; CK_ISA comes from the build. */
#define CK_SYMBOL(what) CK_JOIN(CK_DTYPE_NAME, what, CK_ISA)

/* Make the compiler forget where a pointer came from, so that it keeps few of them in registers
 * and leaves the rest to the addressing modes. */
#define CK_HIDE(pointer) __asm__ volatile("" : "+r"(pointer))

CK_INLINE vec activate(vec v, int activation, vec slope)
{
    const vec zero = {0};
    switch (activation) {
    case CK_RELU:
        return v_select(v < zero, zero, v);
    case CK_RELU6:
        v = v_select(v < zero, zero, v);
        return v_select(v > v_set1(6), v_set1(6), v);
    case CK_LEAKY_RELU:
        return v_select(v < zero, v * slope, v);
    default:
        return v;
    }
}

#include "activation.inc"
#include "channels.inc"
#include "columns.inc"
#include "conv.inc"
#include "dense.inc"
#include "lanes.inc"
#include "optimizer.inc"
#include "pool.inc"
#include "square.inc"
#include "winograd.inc"

#define CK_TILE_ENTRY(MR, NV) [NV][MR] = CK_SYMBOL(tile_##MR##x##NV),
#define CK_OUTER_ENTRY(MR, NV) [NV][MR] = CK_SYMBOL(outer_##MR##x##NV),
#define CK_LANES_ENTRY(FILTERS, PIXELS) \
    [FILTERS][PIXELS] = CK_SYMBOL(lanes_tile_##FILTERS##x##PIXELS),
#define CK_LANES_OUTER_ENTRY(FILTERS, PIXELS) \
    [FILTERS][PIXELS] = CK_SYMBOL(lanes_outer_##FILTERS##x##PIXELS),
#define CK_DOT_ENTRY(MR, NR) [MR][NR] = CK_SYMBOL(dot_##MR##x##NR),
#define CK_WINOGRAD_ENTRY(M, R, N) \
    {M, R, N, 1, CK_SYMBOL(winograd_input_##N), CK_SYMBOL(winograd_weight_##M##x##R), \
     CK_SYMBOL(winograd_output_##M##x##R), CK_SYMBOL(winograd_gradient_##M##x##R), \
     CK_SYMBOL(winograd_weight_gradient_##M##x##R)},
#define CK_STRIDED_ENTRY(M, R, N) \
    {M, R, N, 2, CK_SYMBOL(winograd_input_strided), CK_SYMBOL(winograd_weight_strided), \
     CK_SYMBOL(winograd_output_strided), NULL, NULL},

const ck_kernels CK_SYMBOL(table) = {
    .dtype = sizeof(real) == 4 ? CK_F32 : CK_F64,
    .itemsize = sizeof(real),
    .lanes = VL,
    .max_pixels = CK_WIDEST,
    .max_dot_rows = CK_DOT_ROWS,
    .tile = {CK_TILES(CK_TILE_ENTRY)},
    .outer = {CK_TILES(CK_OUTER_ENTRY)},
    .dot = {CK_DOTS(CK_DOT_ENTRY)},
#ifndef CK_DTYPE_F64
    .short_vectors = CK_SHORT_VECTORS,
    .short_rows = {NULL, CK_SYMBOL(short_rows_1), CK_SYMBOL(short_rows_2), CK_SYMBOL(short_rows_3),
                   CK_SYMBOL(short_rows_4)},
#endif
    .winograd = {CK_WINOGRAD_TILES(CK_WINOGRAD_ENTRY) CK_WINOGRAD_STRIDED(CK_STRIDED_ENTRY)},
    .transpose = CK_SYMBOL(transpose),
    .scatter_transposed = CK_SYMBOL(scatter_transposed),
    .max_pool = CK_SYMBOL(max_pool),
    .max_pool_backward = CK_SYMBOL(max_pool_backward),
    .max_pool_pairs = CK_SYMBOL(max_pool_pairs),
    .scatter = CK_SYMBOL(scatter),
    .gather = CK_SYMBOL(gather),
    .box_pixels = CK_SYMBOL(box_pixels),
    .box_rows = CK_SYMBOL(box_rows),
    .split_rows = CK_SYMBOL(split_rows),
    .depthwise = CK_SYMBOL(depthwise),
    .depthwise_plane = CK_SYMBOL(depthwise_plane),
    .square = CK_SYMBOL(square),
    .square_input = CK_SYMBOL(square_input),
    .square_weight = CK_SYMBOL(square_weight),
    .depthwise_outer = CK_SYMBOL(depthwise_outer),
    .add = CK_SYMBOL(add),
    .gather_row = CK_SYMBOL(gather_row),
    .split_plane = CK_SYMBOL(split_plane),
    .spread_plane = CK_SYMBOL(spread_plane),
    .copy_rows = CK_SYMBOL(copy_rows),
    .copy_units = CK_SYMBOL(copy_units),
    .gather_taps = CK_SYMBOL(gather_taps),
    .scatter_row = CK_SYMBOL(scatter_row),
    .activate = CK_SYMBOL(activate),
    .activate_backward = CK_SYMBOL(activate_backward),
    .prelu_pixels = CK_SYMBOL(prelu_pixels),
    .softmax = CK_SYMBOL(softmax),
    .softmax_backward = CK_SYMBOL(softmax_backward),
    .plane_sum = CK_SYMBOL(plane_sum),
    .plane_pairs = CK_SYMBOL(plane_pairs),
    .pixel_sums = CK_SYMBOL(pixel_sums),
    .pixel_pairs = CK_SYMBOL(pixel_pairs),
    .affine_plane = CK_SYMBOL(affine_plane),
    .affine_pixels = CK_SYMBOL(affine_pixels),
    .local_response_norm = CK_SYMBOL(local_response_norm),
    .local_response_norm_backward = CK_SYMBOL(local_response_norm_backward),
    .sgd = CK_SYMBOL(sgd),
    .adam = CK_SYMBOL(adam),
    .spin_fma = CK_SYMBOL(spin_fma),
    .max_lanes_filters = CK_REGISTERS == 32 ? 5 : 4,
    .max_lanes_pixels = CK_LANES_WIDEST,
    .lanes_tile = {CK_LANES_TILES(CK_LANES_ENTRY)},
    .lanes_outer = {CK_LANES_TILES(CK_LANES_OUTER_ENTRY)},
    .sum_lanes = CK_SYMBOL(sum_lanes),
};
