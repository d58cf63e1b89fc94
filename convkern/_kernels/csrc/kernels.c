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

#define CK_UNROLL _Pragma("GCC unroll 16")
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

/* ---------------------------------------------------------------- convolution tile */

/* MR pixels x NV vectors of output channels, all in registers:
 *
 *            w[k][0]  w[k][1]  ...  w[k][NV-1]      NV loads
 *   x[0][k]  acc 0,0  acc 0,1                       MR broadcasts
 *   x[1][k]  acc 1,0  acc 1,1                       MR * NV fused multiply-adds
 *   ...
 */
CK_INLINE void tile_step(const int MR, const int NV, vec acc[][CK_MAX_VECTORS],
                         const real *const base[], ptrdiff_t x_pixel, const real *w, ptrdiff_t k)
{
    vec b[CK_MAX_VECTORS];
    CK_UNROLL
    for (int j = 0; j < NV; j++)
        b[j] = v_load(w + (k * NV + j) * VL);
    CK_UNROLL
    for (int i = 0; i < MR; i++) {
        vec a = v_set1((base[i / 3] + (i % 3) * x_pixel)[k]);
        CK_UNROLL
        for (int j = 0; j < NV; j++)
            v_accumulate(&acc[i][j], a, b[j]);
    }
}

CK_INLINE void tile(const int MR, const int NV, const ck_tile_layout *layout, const ck_chunk *chunk,
                    const real *x, const real *w, const real *bias, real *out)
{
    enum { BASES = (CK_MAX_PIXELS + 2) / 3 };
    const ptrdiff_t x_pixel = layout->x_pixel, out_pixel = layout->out_pixel;
    const int first = chunk->flags & CK_FIRST, tail = layout->tail;
    vec acc[CK_MAX_PIXELS][CK_MAX_VECTORS];

    CK_UNROLL
    for (int i = 0; i < MR; i++)
        CK_UNROLL
        for (int j = 0; j < NV; j++)
            acc[i][j] = first ? v_load(bias + j * VL) : (vec){0};

    for (ptrdiff_t r = 0; r < chunk->rows; r++) {
        const real *w_run = w + r * layout->w_row;
        for (ptrdiff_t c = 0; c < chunk->columns; c++) {
            /* Three pixels share a base pointer: base, base + x_pixel, base + 2*x_pixel are
             * addressing modes, so five pointers reach 14 pixels. */
            const real *base[BASES];
            CK_UNROLL
            for (int b = 0; b < BASES; b++) {
                base[b] = x + r * layout->x_row + c * layout->x_column + 3 * b * x_pixel;
                if (3 * b < MR)
                    CK_HIDE(base[b]);
            }
            ptrdiff_t k = chunk->run;
            for (; k >= 4; k -= 4) {
                CK_UNROLL
                for (int step = 0; step < 4; step++)
                    tile_step(MR, NV, acc, base, x_pixel, w_run, step);
                w_run += 4 * NV * VL;
                CK_UNROLL
                for (int b = 0; 3 * b < MR; b++) {
                    base[b] += 4;
                    CK_HIDE(base[b]);
                }
            }
            for (; k > 0; k--) {
                tile_step(MR, NV, acc, base, x_pixel, w_run, 0);
                w_run += NV * VL;
                CK_UNROLL
                for (int b = 0; 3 * b < MR; b++) {
                    base[b] += 1;
                    CK_HIDE(base[b]);
                }
            }
        }
    }

    if (!first)
        CK_UNROLL
        for (int i = 0; i < MR; i++)
            CK_UNROLL
            for (int j = 0; j < NV; j++)
                acc[i][j] += v_load_n(out + i * out_pixel + j * VL, j < NV - 1 ? VL : tail);

    if ((chunk->flags & CK_LAST) && layout->activation != CK_IDENTITY) {
        const vec slope = v_set1((real)layout->slope);
        const int activation = layout->activation;
        CK_UNROLL
        for (int i = 0; i < MR; i++)
            CK_UNROLL
            for (int j = 0; j < NV; j++)
                acc[i][j] = activate(acc[i][j], activation, slope);
    }

    CK_UNROLL
    for (int i = 0; i < MR; i++)
        CK_UNROLL
        for (int j = 0; j < NV; j++)
            v_store_n(out + i * out_pixel + j * VL, acc[i][j], j < NV - 1 ? VL : tail);
}

/* The tiles that fit the register file: accumulators, NV weights and one broadcast. */
#define CK_TILES_NARROW(X) X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1) X(7, 1) X(8, 1) \
    X(9, 1) X(10, 1) X(11, 1) X(12, 1) X(1, 2) X(2, 2) X(3, 2) X(4, 2) X(5, 2) X(6, 2) \
    X(1, 3) X(2, 3) X(3, 3) X(4, 3)
#define CK_TILES_WIDE(X) CK_TILES_NARROW(X) X(13, 1) X(14, 1) X(7, 2) X(8, 2) X(9, 2) X(10, 2) \
    X(11, 2) X(12, 2) X(13, 2) X(14, 2) X(5, 3) X(6, 3) X(7, 3) X(8, 3) \
    X(1, 4) X(2, 4) X(3, 4) X(4, 4) X(5, 4) X(6, 4)
#if CK_REGISTERS == 32
#define CK_TILES(X) CK_TILES_WIDE(X)
#define CK_WIDEST {0, 14, 14, 8, 6}
#define CK_DOT_ROWS 6
#else
#define CK_TILES(X) CK_TILES_NARROW(X)
#define CK_DOT_ROWS 2
#ifdef CK_ISA_AVX2
#define CK_WIDEST {0, 12, 6, 4, 0}
#else /* no fused multiply-add: the product needs a register too */
#define CK_WIDEST {0, 10, 4, 3, 0}
#endif
#endif

#define CK_DEFINE_TILE(MR, NV) \
    static void CK_SYMBOL(tile_##MR##x##NV)(const ck_tile_layout *layout, const ck_chunk *chunk, \
                                            const void *x, const void *w, const void *bias, \
                                            void *out) \
    { \
        tile(MR, NV, layout, chunk, x, w, bias, out); \
    }
CK_TILES(CK_DEFINE_TILE)

/* ---------------------------------------------------------------- dot products */

CK_INLINE void dot(const int MR, const int NR, const ck_dot_layout *layout, const real *x,
                   const real *w, const real *bias, vec *partial, real *out)
{
    const ptrdiff_t x_row = layout->x_row, w_row = layout->w_row;
    vec acc[CK_MAX_DOT_ROWS][CK_DOT_COLUMNS];
    CK_UNROLL
    for (int i = 0; i < MR; i++)
        CK_UNROLL
        for (int j = 0; j < NR; j++)
            acc[i][j] = layout->flags & CK_FIRST ? (vec){0} : partial[i * NR + j];

    for (ptrdiff_t k = 0; k < layout->length; k += VL) {
        const ptrdiff_t left = layout->length - k, n = left < VL ? left : VL;
        vec a[CK_MAX_DOT_ROWS];
        CK_UNROLL
        for (int i = 0; i < MR; i++)
            a[i] = v_load_n(x + i * x_row + k, n);
        CK_UNROLL
        for (int j = 0; j < NR; j++) {
            /* One row of the batch reads each weight once: what limits it is memory. */
            if (MR == 1)
                __builtin_prefetch(w + j * w_row + k + 4096 / sizeof(real));
            vec b = v_load_n(w + j * w_row + k, n);
            CK_UNROLL
            for (int i = 0; i < MR; i++)
                acc[i][j] = v_fma(a[i], b, acc[i][j]);
        }
    }

    CK_UNROLL
    for (int i = 0; i < MR; i++)
        CK_UNROLL
        for (int j = 0; j < NR; j++)
            if (layout->flags & CK_LAST)
                out[i * layout->out_row + j] = v_sum(acc[i][j]) + (bias ? bias[j] : 0);
            else
                partial[i * NR + j] = acc[i][j];
}

#if CK_REGISTERS == 32
#define CK_DOTS(X) X(1, 1) X(1, 4) X(2, 1) X(2, 4) X(3, 1) X(3, 4) X(4, 1) X(4, 4) \
    X(5, 1) X(5, 4) X(6, 1) X(6, 4)
#else
#define CK_DOTS(X) X(1, 1) X(1, 4) X(2, 1) X(2, 4)
#endif
#define CK_DEFINE_DOT(MR, NR) \
    static void CK_SYMBOL(dot_##MR##x##NR)(const ck_dot_layout *layout, const void *x, \
                                           const void *w, const void *bias, void *partial, \
                                           void *out) \
    { \
        dot(MR, NR, layout, x, w, bias, partial, out); \
    }
CK_DOTS(CK_DEFINE_DOT)

/* ---------------------------------------------------------------- transpose */

/* Transpose VL x VL in log2(VL) rounds of zipping row i with row i + VL/2; row i is read up to
 * `columns` lanes, and the result's rows are written up to `rows` lanes. */
enum { TRANSPOSE_AHEAD = 1024 };
CK_INLINE void transpose_block(const real *src, ptrdiff_t src_row, real *dst, ptrdiff_t dst_row,
                               ptrdiff_t rows, ptrdiff_t columns)
{
    vec a[VL], b[VL];
    CK_UNROLL
    for (int i = 0; i < VL; i++) {
        /* Rows may lie pages apart, where the processor foresees nothing. */
        __builtin_prefetch(src + i * src_row + TRANSPOSE_AHEAD / sizeof(real));
        a[i] = i < rows ? v_load_n(src + i * src_row, columns) : (vec){0};
    }
    CK_UNROLL
    for (int round = 1; round < VL; round *= 2) {
        CK_UNROLL
        for (int i = 0; i < VL / 2; i++) {
            b[2 * i] = v_zip_low(a[i], a[i + VL / 2]);
            b[2 * i + 1] = v_zip_high(a[i], a[i + VL / 2]);
        }
        CK_UNROLL
        for (int i = 0; i < VL; i++)
            a[i] = b[i];
    }
    CK_UNROLL
    for (int i = 0; i < VL; i++)
        if (i < columns)
            v_store_n(dst + i * dst_row, a[i], rows);
}

static void CK_SYMBOL(transpose)(const void *src_, ptrdiff_t src_row, void *dst_, ptrdiff_t dst_row,
                                 ptrdiff_t rows, ptrdiff_t columns)
{
    const real *src = src_;
    real *dst = dst_;
    for (ptrdiff_t j = 0; j < columns; j += VL)
        for (ptrdiff_t i = 0; i < rows; i += VL) {
            const real *s = src + i * src_row + j;
            real *d = dst + j * dst_row + i;
            const ptrdiff_t r = rows - i, c = columns - j;
            if (r >= VL && c >= VL)
                transpose_block(s, src_row, d, dst_row, VL, VL);
            else
                transpose_block(s, src_row, d, dst_row, r < VL ? r : VL, c < VL ? c : VL);
        }
}

/* ---------------------------------------------------------------- max pooling */

/* Store n lanes of window-relative offsets as int64 positions. */
CK_INLINE void store_indices(int64_t *indices, mask offset, int64_t start, ptrdiff_t n)
{
    lane_int lane[VL];
    memcpy(lane, &offset, sizeof offset);
    if (n == VL)
        CK_UNROLL
        for (int i = 0; i < VL; i++)
            indices[i] = start + lane[i];
    else
        for (ptrdiff_t i = 0; i < n; i++)
            indices[i] = start + lane[i];
}

/* Take v where it is greater than the maximum so far, or NaN: torch's rule. */
CK_INLINE void max_update(vec *max, mask *where, vec v, lane_int offset)
{
    const mask take = (v > *max) | (v != v);
    *max = v_select(take, v, *max);
    *where = (take & (offset - (mask){0})) | (~take & *where);
}

static void CK_SYMBOL(max_pool)(const ck_window *window, const void *x_, void *out_,
                                int64_t *indices)
{
    const ck_window t = *window;
    const real *x = x_;
    real *out = out_;
    for (ptrdiff_t p = 0; p < t.pixels; p++, x += t.x_pixel, out += t.out_pixel) {
        for (ptrdiff_t c = 0; c < t.channels; c += VL) {
            const ptrdiff_t left = t.channels - c, n = left < VL ? left : VL;
            vec max = v_set1((real)-INFINITY);
            mask where = {0};
            for (ptrdiff_t r = 0; r < t.rows; r++)
                for (ptrdiff_t s = 0; s < t.columns; s++)
                    max_update(&max, &where, v_load_n(x + r * t.x_row + s * t.x_column + c, n),
                               (lane_int)(r * t.index_row + s * t.index_column));
            v_store_n(out + c, max, n);
            if (indices)
                store_indices(indices + c, where, t.index + p * t.index_pixel, n);
        }
        if (indices)
            indices += t.out_pixel;
    }
}

static void CK_SYMBOL(max_pool_row)(const ck_window *window, const void *x_,
                                    const ptrdiff_t *columns, const int32_t *first, void *out_,
                                    int64_t *indices)
{
    const ck_window t = *window;
    const real *x = x_;
    real *out = out_;
    for (ptrdiff_t p = 0; p < t.pixels; p += VL) {
        const ptrdiff_t left = t.pixels - p, n = left < VL ? left : VL;
        vec max = v_set1((real)-INFINITY);
        mask where = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            where[i] = first[p + i];
        for (ptrdiff_t r = 0; r < t.rows; r++)
            for (ptrdiff_t s = 0; s < t.columns; s++)
                max_update(&max, &where, v_load(x + r * t.x_row + columns[s] + p),
                           (lane_int)(r * t.index_row + s * t.index_column));
        v_store_n(out + p, max, n);
        if (indices) {
            lane_int lane[VL];
            memcpy(lane, &where, sizeof where);
            for (ptrdiff_t i = 0; i < n; i++)
                indices[p + i] = t.index + (p + i) * t.index_pixel + lane[i];
        }
    }
}

static void CK_SYMBOL(split_row)(const void *src_, ptrdiff_t width, ptrdiff_t stride,
                                 ptrdiff_t phases, ptrdiff_t left, void *dst_, ptrdiff_t dst_phase)
{
    const real *src = src_;
    real *dst = dst_;
    for (ptrdiff_t p = 0; p < phases; p++, dst += dst_phase) {
        /* Elements begin .. end-1 of this phase lie inside the row. */
        const ptrdiff_t begin = p >= left ? 0 : (left - p + stride - 1) / stride;
        const ptrdiff_t past = width + left - p;
        ptrdiff_t end = past <= 0 ? 0 : (past + stride - 1) / stride, i = 0;
        if (end > dst_phase)
            end = dst_phase;
        for (; i < begin && i < dst_phase; i++)
            dst[i] = (real)-INFINITY;
        const real *s = src + p - left;
        if (stride == 1 && i < end) {
            memcpy(dst + i, s + i, (size_t)(end - i) * sizeof(real));
            i = end;
        } else if (stride == 2) {
            for (; i < end; i++)
                dst[i] = s[2 * i];
        }
        for (; i < end; i++)
            dst[i] = s[stride * i];
        for (; i < dst_phase; i++)
            dst[i] = (real)-INFINITY;
    }
}

/* ---------------------------------------------------------------- depthwise convolution */

/* PIXELS output pixels share each weight vector. */
CK_INLINE void depthwise_block(const int PIXELS, const ck_window *t, const real *x, const real *w,
                               const real *bias, real *out, ptrdiff_t n)
{
    vec acc[8];
    CK_UNROLL
    for (int i = 0; i < PIXELS; i++)
        acc[i] = v_load_n(bias, n);
    for (ptrdiff_t r = 0; r < t->rows; r++)
        for (ptrdiff_t s = 0; s < t->columns; s++) {
            const vec b = v_load_n(w + r * t->w_row + s * t->w_column, n);
            const real *tap = x + r * t->x_row + s * t->x_column;
            CK_UNROLL
            for (int i = 0; i < PIXELS; i++)
                acc[i] = v_fma(v_load_n(tap + i * t->x_pixel, n), b, acc[i]);
        }
    const vec slope = v_set1((real)t->slope);
    CK_UNROLL
    for (int i = 0; i < PIXELS; i++)
        v_store_n(out + i * t->out_pixel, activate(acc[i], t->activation, slope), n);
}

static void CK_SYMBOL(depthwise)(const ck_window *t, const void *x_, const void *w_,
                                 const void *bias_, void *out_)
{
    const real *w = w_, *bias = bias_;
    for (ptrdiff_t c = 0; c < t->channels; c += VL) {
        const ptrdiff_t left = t->channels - c, n = left < VL ? left : VL;
        const real *x = (const real *)x_ + c;
        real *out = (real *)out_ + c;
        ptrdiff_t p = t->pixels;
        for (; p >= 8; p -= 8, x += 8 * t->x_pixel, out += 8 * t->out_pixel)
            depthwise_block(8, t, x, w + c, bias + c, out, n);
        if (p >= 4) {
            depthwise_block(4, t, x, w + c, bias + c, out, n);
            p -= 4, x += 4 * t->x_pixel, out += 4 * t->out_pixel;
        }
        for (; p > 0; p--, x += t->x_pixel, out += t->out_pixel)
            depthwise_block(1, t, x, w + c, bias + c, out, n);
    }
}

/* ---------------------------------------------------------------- elementwise */

static void CK_SYMBOL(activate)(const void *x_, void *y_, ptrdiff_t n, int activation, double slope_)
{
    const real *x = x_;
    real *y = y_;
    const vec slope = v_set1((real)slope_);
    for (ptrdiff_t i = 0; i < n; i += VL) {
        const ptrdiff_t left = n - i, lanes = left < VL ? left : VL;
        v_store_n(y + i, activate(v_load_n(x + i, lanes), activation, slope), lanes);
    }
}

static void CK_SYMBOL(local_response_norm)(const void *x_, void *y_, ptrdiff_t channels,
                                           ptrdiff_t size, double alpha, double beta, double k,
                                           void *squares_)
{
    const real *x = x_;
    real *y = y_, *squares = squares_;
    const ptrdiff_t before = size / 2;
    for (ptrdiff_t c = 0; c < before; c++)
        squares[c] = 0;
    for (ptrdiff_t c = 0; c < channels; c++)
        squares[before + c] = x[c] * x[c];
    for (ptrdiff_t c = before + channels; c < channels + size; c++)
        squares[c] = 0;

    const real scale = (real)(alpha / (double)size), offset = (real)k;
    for (ptrdiff_t c = 0; c < channels; c += VL) {
        const ptrdiff_t left = channels - c, n = left < VL ? left : VL;
        vec sum = {0};
        for (ptrdiff_t i = 0; i < size; i++)
            sum += v_load_n(squares + c + i, n);
        vec base = v_fma(v_set1(scale), sum, v_set1(offset)), power;
        if (beta == 0.75) { /* the usual exponent: two square roots instead of pow */
            for (int i = 0; i < VL; i++) {
                const real root = (real)sqrt((double)base[i]);
                power[i] = root * (real)sqrt((double)root);
            }
        } else {
            for (int i = 0; i < VL; i++)
                power[i] = (real)pow((double)base[i], beta);
        }
        v_store_n(y + c, v_load_n(x + c, n) / power, n);
    }
}

/* ---------------------------------------------------------------- peak */

static double CK_SYMBOL(spin_fma)(ptrdiff_t iterations, void *sink)
{
    enum { CHAINS = 12 };
    vec acc[CHAINS], x = v_set1((real)0.999), y = v_set1((real)1e-6);
    CK_UNROLL
    for (int i = 0; i < CHAINS; i++)
        acc[i] = v_set1((real)i);
    for (ptrdiff_t k = 0; k < iterations; k++)
        CK_UNROLL
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = v_fma(acc[i], x, y);
#if defined(__x86_64__)
            __asm__ volatile("" : "+v"(acc[i])); /* identical chains would be merged */
#elif defined(__aarch64__)
            __asm__ volatile("" : "+w"(acc[i]));
#endif
        }
    CK_UNROLL
    for (int i = 1; i < CHAINS; i++)
        acc[0] += acc[i];
    v_store_part(sink, acc[0], 1);
    return 2.0 * VL * CHAINS * (double)iterations;
}

/* ---------------------------------------------------------------- the table */

#define CK_TILE_ENTRY(MR, NV) [NV][MR] = CK_SYMBOL(tile_##MR##x##NV),
#define CK_DOT_ENTRY(MR, NR) [MR][NR] = CK_SYMBOL(dot_##MR##x##NR),

const ck_kernels CK_SYMBOL(table) = {
    .dtype = sizeof(real) == 4 ? CK_F32 : CK_F64,
    .itemsize = sizeof(real),
    .lanes = VL,
    .max_pixels = CK_WIDEST,
    .max_dot_rows = CK_DOT_ROWS,
    .tile = {CK_TILES(CK_TILE_ENTRY)},
    .dot = {CK_DOTS(CK_DOT_ENTRY)},
    .transpose = CK_SYMBOL(transpose),
    .max_pool = CK_SYMBOL(max_pool),
    .max_pool_row = CK_SYMBOL(max_pool_row),
    .split_row = CK_SYMBOL(split_row),
    .depthwise = CK_SYMBOL(depthwise),
    .activate = CK_SYMBOL(activate),
    .local_response_norm = CK_SYMBOL(local_response_norm),
    .spin_fma = CK_SYMBOL(spin_fma),
};
