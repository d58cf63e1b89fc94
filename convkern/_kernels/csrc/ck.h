/* The kernel table: what every instruction set provides, for each dtype.
 *
 * A micro-kernel works in registers on memory that its caller laid out.  It
 * never threads, allocates or fails, and it touches no element that its
 * contract does not name: an input may end at an unmapped page.
 *
 * Sizes and strides are in elements.  `real` stands for float or double; the
 * table is the same for both, so pointers are void and the drivers above need
 * no copy per dtype.
 */
#ifndef CK_H
#define CK_H

#include <stddef.h>
#include <stdint.h>

enum { CK_F32, CK_F64, CK_DTYPES };
enum { CK_MAX_VECTORS = 4, CK_MAX_PIXELS = 14, CK_DOT_COLUMNS = 4, CK_MAX_DOT_ROWS = 6 };
enum { CK_SHORT_ROWS = 4 }; /* most rows of the batch in one call of `short_rows` */

/* Activations, but for the sigmoid fused into an epilogue; NaN passes through all of them. */
enum { CK_IDENTITY, CK_RELU, CK_RELU6, CK_LEAKY_RELU, CK_SIGMOID };

/* Terms of a channel's sum: x, (x - center)^2, (x - center)*g, and x*g unless x is positive. */
enum { CK_SUM, CK_SQUARES, CK_NEGATIVE_PRODUCTS };

enum { CK_MAX_LANES_FILTERS = 5, CK_MAX_LANES_PIXELS = 6 };

enum { CK_AHEAD = 128 };

enum { CK_SOFTMAX_COLUMNS = 128 }; /* most columns of one call of softmax */

/* Where a call stands in a sum that is cut into chunks; whether its weights come from the outer
 * caches, so that they had better be fetched some kilobytes ahead; or from memory, for this call
 * alone, which then reads nothing `ahead`; whether something is wanted `also`; and whether the outputs
 * are likely to be in no cache. */
enum { CK_FIRST = 1, CK_LAST = 2, CK_STREAM = 4, CK_ONCE = 8, CK_ALSO = 16, CK_CLAIM = 32 };

/* ---- Convolution: a tile of output pixels x vectors of output channels ----
 *
 * out[i][k] = activation(bias[k] + sum over rows r, columns c, elements e of
 *     x[i*x_pixel + r*x_row + c*x_column + e]
 *     * w[r*w_row + c*run*w_step + e*w_step + k])
 *
 * for i < MR pixels and k < K = NV * lanes; a w_step of 0 stands for K, the
 * order of packed weights.  Without CK_FIRST the sum of this call is added to
 * what `out` holds and bias is not read; the activation is applied with CK_LAST
 * only.  The last of the NV vectors is stored up to `tail` lanes.  `bias` holds K
 * elements; x may be read at exactly the elements of the formula.
 */
typedef struct {
    ptrdiff_t x_pixel, x_row, x_column;
    ptrdiff_t w_row, w_step;
    ptrdiff_t out_pixel;
    int tail;
    int bias_by_pixel; /* bias holds MR elements, and bias[i] stands for bias[k] */
    int activation;
    double slope;
} ck_tile_layout;

/* One chunk of the sum: a box of taps and the element range within them. */
typedef struct {
    ptrdiff_t x, w;             /* offsets of the first element; w in units of K */
    ptrdiff_t rows, columns, run;
    int flags;
    /* Memory that is wanted soon: every four elements of a run, CK_AHEAD bytes are fetched towards
     * the caches, or twice as many where the elements of a tile's pixels are more than that, and the
     * address moves on by `ahead_step` bytes; with CK_ALSO there is a second address, which moves on
     * by CK_AHEAD. */
    const char *ahead, *also;
    ptrdiff_t ahead_step;
} ck_chunk;

typedef void (*ck_tile_fn)(const ck_tile_layout *layout, const ck_chunk *chunk, const void *x,
                           const void *w, const void *bias, void *out);

/* ---- Gradient of the weight: a tile of input channels x vectors of output channels ----
 *
 * dw[i*dw_row + k] += sum over rows r, pixels p of
 *     x[r*x_row + p*x_pixel + i] * g[r*g_row + p*g_pixel + k]
 *
 * for i < MR and k < NV * lanes; the sum starts from zero and is added once.
 */
typedef struct {
    ptrdiff_t rows, pixels, x_row, x_pixel, g_row, g_pixel, dw_row;
} ck_outer_layout;

typedef void (*ck_outer_fn)(const ck_outer_layout *layout, const void *x, const void *g, void *dw);

/* ---- Linear: a tile of dot products, lanes along the contiguous sum axis ----
 *
 * out[i*out_row + j] = bias[j] + sum over k < length of x[i*x_row + k] * w[j*w_row + k]
 *
 * for i < MR rows and j < NR columns.  `partial` holds MR * NR vectors between
 * the chunks of one sum; the result does not depend on where a sum is cut, as
 * long as every cut is a multiple of the lanes.  bias may be NULL.
 */
typedef struct {
    ptrdiff_t length, x_row, w_row, out_row;
    int flags;
} ck_dot_layout;

typedef void (*ck_dot_fn)(const ck_dot_layout *layout, const void *x, const void *w,
                          const void *bias, void *partial, void *out);

/* ---- Windows over channels-last pixels: lanes along the channels ----
 *
 * `pixels` output pixels, each over rows x columns taps of `channels`
 * contiguous elements.  The first `left` and the last `right` columns of the windows together are
 * not there, and count for nothing: fewer than a window has, for `depthwise` alone, and where
 * CK_DEPTHWISE_EDGES.
 */
typedef struct {
    ptrdiff_t pixels, channels;
    ptrdiff_t rows, columns;
    ptrdiff_t x_pixel, x_row, x_column;
    ptrdiff_t out_pixel;
    ptrdiff_t w_row, w_column;
    ptrdiff_t left, right;
    int activation;
    double slope;
} ck_window;

/* Windows, of neighbouring columns, that may hang over the edges. */
#define CK_DEPTHWISE_EDGES(columns, stride) \
    (((columns) == 3 && ((stride) == 1 || (stride) == 2)) || ((columns) == 2 && (stride) == 1))

/* So many lines of output pixels, and how far apart they and their windows are. */
typedef struct {
    ptrdiff_t lines, x_line, g_line;
} ck_lines;

/* ---- Affine maps of channels ----
 *
 * y = activation((x - center)*scale + shift + g*gain), the last not where g is NULL; an activation
 * has no slope here.  `coefficients` holds four rows of `channels`: center, scale, shift, gain.
 *
 * With `rectified`, rows of the same kind, g counts as 0 where (x - center)*scale + shift <= 0 with
 * these: to the last bit where a ReLU after that map has let nothing pass.  With `after_relu` y is
 * 0 where x <= 0.
 */
typedef struct {
    const void *coefficients, *rectified;
    ptrdiff_t channels;
    int activation, after_relu;
} ck_affine;

/* ---- Max pooling: lanes along a pixel's channels, or along a row of outputs ----
 *
 * out[j*out_step + i] = max over taps r < rows, s < columns of
 *     x[j*x_step + taps[r*tap_row + s] + i]
 *
 * for j < steps and i < width; the index of such an element is
 *     index + j*index_step + i*index_lane + r*index_row + s*index_column.
 *
 * The first maximum wins, the last NaN does before it; where nothing is above -inf, the index is
 * that of an element first[i] (NULL: 0) further than the first tap; `first` is readable up to a
 * multiple of the lanes.  With `map` the maxima, and where they are, are those of what it makes of
 * x without g, where i is the channel.
 */
typedef struct {
    ptrdiff_t steps, width, rows, columns;
    ptrdiff_t x_step, tap_row, out_step;
    const ptrdiff_t *taps;
    const int32_t *first;
    int64_t index, index_step;
    int32_t index_lane, index_row, index_column;
    int ordered; /* no element is NaN: faster */
    const ck_affine *map;
} ck_pool;

/* ---- Sums over boxes: averages and their gradients ----
 *
 * Box j < count is columns begin[j] .. end[j]-1 of `rows` rows; its sum is divided by
 * divisor * divisors[j] (`divisors` NULL: not at all).
 *
 * box_pixels, channels-last with `width` channels:
 *     out[j*width + c] = sum of x[r*x_row + s*x_pixel + c] over the box
 * box_rows, rows of `width` elements:
 *     out[j] = sum of x[r*x_row + s] over the box
 *
 * In box_rows boxes run_begin .. run_end-1 have one size and each begins a column after the last;
 * boxes have from `least` to `most` columns.
 */
typedef struct {
    ptrdiff_t count, width, rows, x_row, x_pixel, run_begin, run_end, least, most;
    const ptrdiff_t *begin, *end;
    const void *divisors;
} ck_boxes;

/* ---- Winograd: tiles of pixels to elements and back, lanes along the channels ---- */
enum { CK_WINOGRAD_TILES_COUNT = 10, CK_PATCH = 8 };

/* Pixels of a tile: pixel j of row i has its channels at row[i] + j*step[i].  Columns outside
 * first .. last-1 are zeros and not read; a row of zeros has a step of 0. */
typedef struct {
    const void *row[CK_PATCH];
    ptrdiff_t step[CK_PATCH];
    int first, last;
} ck_patch;

/* Where the first rows x columns outputs of a tile go; bias may be NULL. */
typedef struct {
    void *out;
    ptrdiff_t row, column;
    int rows, columns, activation;
    double slope;
    const void *bias;
} ck_target;

/* Channel c of element e is stored at e*element + c/lanes*vector + c%lanes; the lanes beyond the
 * last channel are written too, with zeros. */
typedef void (*ck_patch_fn)(const ck_patch *patch, ptrdiff_t channels, void *elements,
                            ptrdiff_t element, ptrdiff_t vector);
/* Channel c of element e is read at e*element + c, in whole vectors. */
typedef void (*ck_output_fn)(const void *elements, ptrdiff_t element, ptrdiff_t channels,
                             const ck_target *target);

/* One tile: outputs x outputs of a window of taps x taps with a stride, whose windows meet
 * size x size pixels.  With a stride of 2 there are no gradients. */
typedef struct {
    int outputs, taps, size, stride;
    ck_patch_fn input;           /* size x size pixels */
    ck_patch_fn weight;          /* taps x taps weights */
    ck_output_fn output;         /* to outputs x outputs pixels */
    ck_patch_fn gradient;        /* outputs x outputs gradients, as filters of the input */
    ck_output_fn weight_gradient; /* to taps x taps weights */
} ck_winograd;

/* ---- Optimisers: one step of n parameters p by their gradients g, in place ----
 *
 * d = (maximize ? -g : g) + p*weight_decay, the second only if that is not 0; then
 *
 * sgd:  without a momentum buffer b: p = p - d*rate
 *       b = b*momentum + d*share; p = p - (nesterov ? d + b*momentum : b)*rate
 * adam: m = m*beta1 + d*(1 - beta1); v = v*beta2 + d*d*(1 - beta2);
 *       p = p*shrink - m / (sqrt(v) / root + eps) * rate
 *       with a buffer `most` of the largest v so far, its new value takes the place of v
 *
 * Every operation is rounded to `real`, in the order of NumPy.
 */
typedef struct {
    double rate, weight_decay, momentum, share;
    int nesterov, maximize;
} ck_sgd;

typedef struct {
    double rate, weight_decay, shrink, beta1, beta2, root, eps;
    int maximize;
} ck_adam;

/* ---- Depthwise convolution of one contiguous plane: lanes along its rows ----
 *
 * out[i*columns + j] = activation(bias + sum over taps r, s of
 *     w[r*taps + s] * x[i*x_step + r*x_tap + offsets[s] + j])
 *
 * for i < rows, j < columns.  x may be read up to the next multiple of the lanes in j.
 */
typedef struct {
    ptrdiff_t rows, columns, tap_rows, taps, x_step, x_tap;
    const ptrdiff_t *offsets;
    int activation;
    double slope;
} ck_plane;

/* ---- Windows of 3x3 over one contiguous plane, read where it lies: lanes along its rows ----
 *
 * out[i*columns + j] = activation(bias + sum over taps r, s < 3 of
 *     w[3*r + s] * x[(i*stride + r - top)*width + j*stride + s - left])
 *
 * for i < rows, j < columns; x is zero outside height x width.  The stride is 1 or 2; `top` and
 * `left` may be negative, but not for a gradient.  Meanwhile a plane of x and one of out, so many
 * elements behind these, are brought into the caches.
 *
 * With two `planes` the next one of each is taken too, with the next window and bias.  Then the lanes
 * are at least twice the columns, and the stride is 1, `left` 1 and the width that of out; or it is 2,
 * `left` 0 or 1, and lanes >= left + width.
 */
typedef struct {
    ptrdiff_t height, width, rows, columns, stride, top, left;
    ptrdiff_t x_later, out_later;
    int planes, activation;
    double slope;
} ck_square;

/* ---- Images side by side: a tile of filters x output pixels, a lane is an image ----
 *
 * out[f*out_filter + p*out_pixel + i] = activation(bias[f] + sum over channels c, rows r, columns s
 *     of x[c*x_channel + r*x_row + s*x_column + p*x_pixel + i]
 *      * w[f*w_filter + c*w_channel + r*w_row + s*w_column])
 *
 * for f < FILTERS, p < PIXELS, i < lanes.  The sum is cut every `chunk` channels.  bias may be NULL.
 */
typedef struct {
    ptrdiff_t channels, rows, columns, chunk;
    ptrdiff_t x_channel, x_row, x_column, x_pixel;
    ptrdiff_t w_filter, w_channel, w_row, w_column;
    ptrdiff_t out_filter, out_pixel;
    int activation;
    double slope;
} ck_lanes;

typedef void (*ck_lanes_fn)(const ck_lanes *layout, const void *x, const void *w, const void *bias,
                            void *out);

/* ---- Gradient of the weight from such images: a tile of filters x taps of a row ----
 *
 * sums[(f*sums_filter + s)*lanes + i] += sum over rows r, pixels p of
 *     x[s*x_column + r*x_row + p*x_pixel + i] * g[f*g_filter + r*g_row + p*g_pixel + i]
 *
 * for f < FILTERS, s < TAPS, i < lanes.
 */
typedef struct {
    ptrdiff_t rows, pixels;
    ptrdiff_t x_column, x_row, x_pixel, g_filter, g_row, g_pixel, sums_filter;
} ck_lanes_outer;

typedef void (*ck_lanes_outer_fn)(const ck_lanes_outer *layout, const void *x, const void *g,
                                  void *sums);

/* ---- Linear from weights of three bytes, lanes over outputs; float32 alone ----
 *
 * out[i*out_pixel + j] += sum over k < run of x[i*x_pixel + k] * scale[j] * q[k][j]
 *
 * for i < MR rows and j < `short_vectors` vectors, of which `outputs` are stored; CK_FIRST, CK_LAST
 * and what is before and after the sum as for a convolution tile.  q are integers of 24 bits in
 * groups of four k, the last one filled up with zeros: per vector of outputs the words
 *
 *     q[k] << 8 | d[0]    q[k+1] << 8 | d[1]    q[k+2] << 8 | d[2]
 *
 * where d are the bytes of q[k+3], the highest first.
 */
typedef struct {
    ptrdiff_t x_pixel, out_pixel, run, outputs;
    int flags, activation;
    double slope;
} ck_short_layout;

typedef void (*ck_short_fn)(const ck_short_layout *layout, const void *x, const void *w,
                            const void *scale, const void *bias, void *out);

typedef struct {
    int dtype, itemsize, lanes;
    int max_pixels[CK_MAX_VECTORS + 1]; /* widest tile for each number of vectors, 0: none */
    int max_dot_rows;
    ck_tile_fn tile[CK_MAX_VECTORS + 1][CK_MAX_PIXELS + 1];
    ck_outer_fn outer[CK_MAX_VECTORS + 1][CK_MAX_PIXELS + 1];
    ck_dot_fn dot[CK_MAX_DOT_ROWS + 1][CK_DOT_COLUMNS + 1]; /* 1 or CK_DOT_COLUMNS columns */
    int short_vectors;
    ck_short_fn short_rows[CK_SHORT_ROWS + 1];

    ck_winograd winograd[CK_WINOGRAD_TILES_COUNT];

    /* dst[j*dst_row + i] = src[i*src_row + j] for i < rows, j < columns */
    void (*transpose)(const void *src, ptrdiff_t src_row, void *dst, ptrdiff_t dst_row,
                      ptrdiff_t rows, ptrdiff_t columns);
    /* dst[offsets[j] + i] = src[i*src_row + j] for i < rows, j < columns, where the offset is not
     * negative; i goes on to a multiple of the lanes, with zeros */
    void (*scatter_transposed)(const void *src, ptrdiff_t src_row, ptrdiff_t rows,
                               ptrdiff_t columns, void *dst, const ptrdiff_t *offsets);
    /* See ck_pool; indices may be NULL without a map. */
    void (*max_pool)(const ck_pool *pool, const void *x, void *out, int64_t *indices);
    /* The gradient of max_pool where windows do not overlap: element j, i of g goes to that tap of its
     * window which the index names, zeros to the others; it is zero itself where y is not NULL and not
     * positive, which is the gradient of a ReLU before the pooling.  Here out has the taps and x_step, and
     * g, y and the indices have out_step; `first` and `index_lane` do not count.  With `map` what it
     * makes of x, which lies as out does, and of these gradients is stored. */
    void (*max_pool_backward)(const ck_pool *pool, const void *g, const int64_t *indices,
                              const void *y, const void *x, void *out);
    /* first[i] += sum over j of element j, i of these g; second[i] += that of their products with
     * x - center[i], where x is the element that the index names. */
    void (*max_pool_pairs)(const ck_pool *pool, const void *g, const int64_t *indices, const void *y,
                           const void *x, const double *center, double *first, double *second);
    /* out[i*row + c] = 0 for i < size, then out[indices[o*row + c]*row + c] = src[o*row + c], or +=
     * with `add`, for o < count in that order; c < inner.  An index outside 0 .. size-1 is passed over;
     * returns whether there was one. */
    int (*scatter)(const void *src, const int64_t *indices, ptrdiff_t count, ptrdiff_t inner,
                   ptrdiff_t row, ptrdiff_t size, int add, void *out);
    /* out[o*row + c] = src[indices[o*row + c]*row + c], zero for an index outside; returns whether
     * there was one. */
    int (*gather)(const void *src, const int64_t *indices, ptrdiff_t count, ptrdiff_t inner,
                  ptrdiff_t row, ptrdiff_t size, void *out);
    /* See ck_boxes.  `divisor` points to one element. */
    void (*box_pixels)(const ck_boxes *boxes, const void *x, const void *divisor, void *out);
    /* Output row i < rows is made of rows begin[i] .. end[i]-1 of x and has a divisor of its own;
     * `scratch` holds `width` + `most` elements for each. */
    void (*box_rows)(const ck_boxes *boxes, ptrdiff_t rows, const ptrdiff_t *begin,
                     const ptrdiff_t *end, const void *x, const void *divisors, void *scratch,
                     void *out);
    /* dst[(r*phases + p)*length + i] = src[r*width + i*stride + p - left], -inf where that is
     * outside the row, for r < rows, p < phases, i < used.  `length` is at least `used` and
     * (left + width + stride - 1)/stride, plus the lanes: what lies between is scratch.  Returns
     * whether an element is NaN. */
    int (*split_rows)(const void *src, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
                       ptrdiff_t left, void *dst, ptrdiff_t phases, ptrdiff_t used,
                       ptrdiff_t length);
    /* out[c] = activation(bias[c] + sum over taps x[c] * w[tap][c]) */
    void (*depthwise)(const ck_window *window, const void *x, const void *w, const void *bias,
                      void *out);
    void (*depthwise_plane)(const ck_plane *plane, const void *x, const void *w, double bias,
                            void *out);
    /* See ck_square.  square_input: the gradient dx of x by that, g, of out, for a stride of 2.
     * square_weight: sums[(3*r + s)*lanes + j%lanes] += x's element of the formula * g[i*columns + j],
     * of two planes sums[(3*r + s)*2 + plane], of whole vectors of which the last is filled up. */
    void (*square)(const ck_square *square, const void *x, const void *w, const double *bias,
                   void *out);
    void (*square_input)(const ck_square *square, const void *g, const void *w, void *dx);
    void (*square_weight)(const ck_square *square, const void *x, const void *g, void *sums);
    /* dw[tap][c] += sum over lines and pixels x[c] * g[c], the pixel of g being that of an output,
     * and sums[c] += sum of g[c], unless `sums` is NULL; both start from zero and are added once */
    void (*depthwise_outer)(const ck_window *window, const ck_lines *lines, const void *x,
                            const void *g, void *dw, void *sums);
    /* y[i] += x[i] for i < n */
    void (*add)(const void *x, void *y, ptrdiff_t n);
    /* dst[i] = src[i*stride] for begin <= i < end, 0 for the others of i < n; what lies between
     * the first and the last of those elements may be read */
    void (*gather_row)(const void *src, ptrdiff_t stride, ptrdiff_t begin, ptrdiff_t end, void *dst,
                       ptrdiff_t n);
    /* dst[r*dst_row + p*length + i] = src[r*src_row + i*stride + p - left] for r < rows, p < stride,
     * i < length, where that is one of the row's `width` elements; the others are left as they are */
    void (*split_plane)(const void *src, ptrdiff_t src_row, ptrdiff_t width, ptrdiff_t rows,
                        ptrdiff_t stride, ptrdiff_t left, void *dst, ptrdiff_t dst_row,
                        ptrdiff_t length);
    /* dst[r*row_step*width + i*column_step] = src[r*columns + i] for r < rows, i < columns, 0 for
     * the others of height * width elements */
    void (*spread_plane)(const void *src, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t row_step,
                         ptrdiff_t column_step, void *dst, ptrdiff_t height, ptrdiff_t width);
    /* dst[r*width + i] = src[r*src_row + i] for i < n, 0 for n <= i < width; r < rows */
    void (*copy_rows)(const void *src, ptrdiff_t src_row, ptrdiff_t rows, ptrdiff_t n, void *dst,
                      ptrdiff_t width);
    /* dst[i*dst_step + j] = src[i*src_step + j] for i < units, j < unit */
    void (*copy_units)(const void *src, ptrdiff_t src_step, ptrdiff_t unit, ptrdiff_t units,
                       void *dst, ptrdiff_t dst_step);
    /* dst[s*dst_row + i] = src[s*tap + i*stride] for s < taps, i < n, in the same way */
    void (*gather_taps)(const void *src, ptrdiff_t stride, ptrdiff_t tap, ptrdiff_t taps, void *dst,
                        ptrdiff_t dst_row, ptrdiff_t n);
    /* dst[i*stride] += src[i] for i < n */
    void (*scatter_row)(const void *src, void *dst, ptrdiff_t stride, ptrdiff_t n);
    /* y[i] = activation(x[i]) for i < n; x and y may be the same */
    void (*activate)(const void *x, void *y, ptrdiff_t n, int activation, double slope);
    /* dx[i] = g[i] * the activation's derivative, from its output y (ReLU, sigmoid) or its input
     * (leaky ReLU); g and dx may be the same */
    void (*activate_backward)(const void *g, const void *y, void *dx, ptrdiff_t n, int activation,
                              double slope);
    /* y[p][c] = g[p][c], times weight[c] unless x[p][c] > 0 */
    void (*prelu_pixels)(const void *x, const void *g, const void *weight, void *y,
                         ptrdiff_t pixels, ptrdiff_t channels);
    /* y = exp(x) / sum of exp(x) * scale, or its logarithm without the scale, over `length`
     * elements that lie `inner` apart, for `columns` neighbours (at most CK_SOFTMAX_COLUMNS); with
     * an `inner` of 1 for any number of rows.  scale has one element per column, NULL: ones. */
    void (*softmax)(const void *x, void *y, ptrdiff_t length, ptrdiff_t inner, ptrdiff_t columns,
                    const void *scale, int logs);
    /* dx = y * (g - sum of g*y), over the same elements */
    void (*softmax_backward)(const void *g, const void *y, void *dx, ptrdiff_t length,
                             ptrdiff_t inner, ptrdiff_t columns);
    /* The sum of n terms of one channel. */
    double (*plane_sum)(int term, const void *x, const void *g, ptrdiff_t n);
    /* *first and *second += the sums of v = x - center and of v*v, or with g those of g and of v*g,
     * over n elements of one channel.  With `map`, the coefficients of that channel in rows of
     * `channels`, as for ck_affine, g counts as 0 where that is what a ReLU after that map makes. */
    void (*plane_pairs)(const void *x, const void *g, double center, const void *map,
                        ptrdiff_t channels, ptrdiff_t n, double *first, double *second);
    /* sums[c] = the sum of the terms of channel c over pixels that lie `row` apart */
    void (*pixel_sums)(int term, const void *x, const void *g,
                       ptrdiff_t pixels, ptrdiff_t row, ptrdiff_t channels, double *sums);
    /* first[c] and second[c] = the sums of v = x - center and of v*v, or with g those of g and of v*g,
     * in the same way; `map` begins with the first of these channels, in rows of map_channels */
    void (*pixel_pairs)(const void *x, const void *g, const double *center, const void *map,
                        ptrdiff_t map_channels, ptrdiff_t pixels, ptrdiff_t row, ptrdiff_t channels,
                        double *first, double *second);
    /* See ck_affine; a plane is n elements of one channel. */
    void (*affine_plane)(const ck_affine *affine, ptrdiff_t channel, const void *x, const void *g,
                         void *y, ptrdiff_t n);
    void (*affine_pixels)(const ck_affine *affine, const void *x, const void *g, void *y,
                          ptrdiff_t pixels);
    /* y[c] = x[c] / (k + alpha/size * sum of x^2 over the window of `size` channels around c)^beta;
     * `scratch` holds channels + size elements, for the gradient twice as many */
    void (*local_response_norm)(const void *x, void *y, ptrdiff_t channels, ptrdiff_t size,
                                double alpha, double beta, double k, void *scratch);
    void (*local_response_norm_backward)(const void *g, const void *x, void *dx,
                                         ptrdiff_t channels, ptrdiff_t size, double alpha,
                                         double beta, double k, void *scratch);
    /* Buffers may be NULL: that of the momentum, and `most`. */
    void (*sgd)(const ck_sgd *rule, const void *g, void *p, void *momentum, ptrdiff_t n);
    void (*adam)(const ck_adam *rule, const void *g, void *p, void *mean, void *square, void *most,
                 ptrdiff_t n);
    /* Spin on independent FMA chains; returns the number of floating-point operations done. */
    double (*spin_fma)(ptrdiff_t iterations, void *sink);

    int max_lanes_filters;
    int max_lanes_pixels[CK_MAX_LANES_FILTERS + 1]; /* for each number of filters */
    ck_lanes_fn lanes_tile[CK_MAX_LANES_FILTERS + 1][CK_MAX_LANES_PIXELS + 1];
    ck_lanes_outer_fn lanes_outer[CK_MAX_LANES_FILTERS + 1][CK_MAX_LANES_PIXELS + 1];
    /* out[j] = the sum of the lanes of vector j, for j < n rounded up to a multiple of the lanes */
    void (*sum_lanes)(const void *vectors, ptrdiff_t n, void *out);
} ck_kernels;

/* ---- dispatch.c ---- */

/* Names of the instruction sets that this build holds, best last, NULL-terminated. */
const char *const *ck_isa_names(void);
int ck_isa_supported(const char *name);
/* The table of an instruction set, or NULL for an unknown or unsupported one. */
const ck_kernels *ck_table(const char *name, int dtype);

/* Put the floating-point environment into its default state (round to nearest, subnormals kept)
 * and return what it was; give that back to ck_fp_restore. */
uint64_t ck_fp_default(void);
void ck_fp_restore(uint64_t saved);

/* How many threads a parallel region of the calling thread may have, at most `wanted`; looks
 * whether they can be started, because the OpenMP runtime ends the process where they cannot.
 * The caller holds the GIL, and `start` starts them at once: nobody else takes their places. */
int ck_grow_team(int wanted, void (*start)(int threads));

/* Floating-point operations, or what takes as long; less is not worth waking a thread for.  Checkers
 * (tools/sanitize.py) see threads at the smallest work. */
#ifdef CK_CHECKED
#define CK_WORK_PER_THREAD 0.0
#else
#define CK_WORK_PER_THREAD 1e6
#endif
/* The same of an element that is read, changed a little and written: the caches take longer over it
 * than the arithmetic. */
#define CK_WORK_OF_ELEMENT 64.0

/* The items that are a thread's own, next .. end-1.  Others take those before `lent`: before `kept`
 * only as soon as the thread is there, which need not come.  Each share has cache lines to itself. */
typedef struct {
    ptrdiff_t next, end, lent, kept;
    char apart[128 - 4 * sizeof(ptrdiff_t)];
} ck_share;

/* Say that its thread is there. */
static inline void ck_begin_share(ck_share *share)
{
    __atomic_store_n(&share->lent, share->kept, __ATOMIC_RELAXED);
}

/* Take an item from a share, or return -1: it is used up. */
static inline ptrdiff_t ck_take_item(ck_share *share)
{
    const ptrdiff_t item = __atomic_fetch_add(&share->next, 1, __ATOMIC_RELAXED);
    return item < share->end ? item : -1;
}

/* The same of another thread's share: -1 as well where it keeps what is left. */
static inline ptrdiff_t ck_borrow_item(ck_share *share)
{
    const ptrdiff_t lent = __atomic_load_n(&share->lent, __ATOMIC_RELAXED);
    return __atomic_load_n(&share->next, __ATOMIC_RELAXED) < lent ? ck_take_item(share) : -1;
}

/* Note something that several threads may find at the same time. */
static inline void ck_note(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }

/* Memory that is wanted soon, to be read or written: `bytes` of every `step` from `at` up to `end`,
 * so many of these steps at a time. */
typedef struct {
    const char *at, *end;
    ptrdiff_t step, bytes, count;
    int write;
} ck_prefetch;

/* Ask for the next part of it.  Prefetches alone would make this a function without effects, whose
 * calls a compiler removes. */
static inline void ck_prefetch_next(ck_prefetch *coming)
{
    for (ptrdiff_t i = 0; i < coming->count && coming->at < coming->end; i++) {
        for (ptrdiff_t byte = 0; byte < coming->bytes; byte += 64) {
            if (coming->write)
                __builtin_prefetch(coming->at + byte, 1);
            else
                __builtin_prefetch(coming->at + byte);
        }
        coming->at += coming->step;
    }
    __asm__ volatile("");
}

#ifdef _OPENMP
#include <omp.h>
static inline int ck_in_parallel(void) { return omp_in_parallel(); }
static inline void ck_start_team(int threads)
{
#pragma omp parallel num_threads(threads)
    __asm__ volatile("");
}
enum { CK_OPENMP = _OPENMP };
#else
static inline int ck_in_parallel(void) { return 0; }
static inline void ck_start_team(int threads) { (void)threads; }
enum { CK_OPENMP = 0 };
#endif

#endif
