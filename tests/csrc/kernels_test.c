/* The micro-kernels against plain loops, without Python: for processors that are emulated, and for
 * compilers that no interpreter is at hand for (tools/neon.py).
 *
 *     kernels_test [INSTRUCTION SET ...]
 *
 * Values are small integers, so that sums are exact and must agree to the last bit; what rounds
 * has a tolerance.  Every array ends at an unmapped page, and whatever a kernel writes beyond its
 * contract, or leaves unwritten, is a difference.
 */
#include "ck.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const ck_kernels *kernels;
static const char *isa;
static long checks, failures;

/* ---- random numbers and arrays ---- */

static uint64_t state = 1;

static ptrdiff_t draw(ptrdiff_t least, ptrdiff_t most)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return least + (ptrdiff_t)((state >> 33) % (uint64_t)(most - least + 1));
}

enum { MOST_ARRAYS = 64 };
static struct {
    void *pages;
    size_t bytes;
} arrays[MOST_ARRAYS];
static int array_count;

/* Memory of n bytes that ends at an unmapped page, or begins so many bytes earlier. */
static void *guarded(size_t n, size_t before_end)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t bytes = (n + before_end + page - 1) / page * page + page;
    char *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || array_count == MOST_ARRAYS
        || mprotect(pages + bytes - page, page, PROT_NONE) != 0) {
        perror("guarded memory");
        exit(2);
    }
    arrays[array_count].pages = pages;
    arrays[array_count++].bytes = bytes;
    return pages + bytes - page - before_end - n;
}

static void release_all(void)
{
    while (array_count > 0) {
        array_count--;
        munmap(arrays[array_count].pages, arrays[array_count].bytes);
    }
}

static double at(const void *p, ptrdiff_t i)
{
    return kernels->dtype == CK_F64 ? ((const double *)p)[i] : (double)((const float *)p)[i];
}

static void put(void *p, ptrdiff_t i, double v)
{
    if (kernels->dtype == CK_F64)
        ((double *)p)[i] = v;
    else
        ((float *)p)[i] = (float)v;
}

static void *further(const void *p, ptrdiff_t i)
{
    return (char *)(uintptr_t)p + i * kernels->itemsize;
}

/* n elements, integers of -8 .. 8. */
static void *integers(ptrdiff_t n)
{
    void *p = guarded((size_t)(n * kernels->itemsize), 0);
    for (ptrdiff_t i = 0; i < n; i++)
        put(p, i, (double)draw(-8, 8));
    return p;
}

/* n elements to be written, and a copy of them in double for the plain loops. */
typedef struct {
    void *mine;
    double *true_;
    ptrdiff_t n;
} output;

static output new_output(ptrdiff_t n)
{
    output out = {integers(n), guarded((size_t)n * sizeof(double), 0), n};
    for (ptrdiff_t i = 0; i < n; i++)
        out.true_[i] = at(out.mine, i);
    return out;
}

static void compare(const char *what, output out, double tolerance)
{
    checks++;
    for (ptrdiff_t i = 0; i < out.n; i++) {
        const double mine = at(out.mine, i), wanted = out.true_[i];
        if (mine == wanted || (isnan(mine) && isnan(wanted))
            || fabs(mine - wanted) <= tolerance * (1 + fabs(wanted)))
            continue;
        printf("%s %s %s: element %td of %td is %g, not %g\n", isa,
               kernels->dtype == CK_F64 ? "f64" : "f32", what, i, out.n, mine, wanted);
        failures++;
        return;
    }
}

static double rounding(void) { return kernels->dtype == CK_F64 ? 1e-12 : 3e-5; }

static double activated(double v, int activation, double slope)
{
    switch (activation) {
    case CK_RELU:
        return v < 0 ? 0 : v;
    case CK_RELU6:
        return v < 0 ? 0 : v > 6 ? 6 : v;
    case CK_LEAKY_RELU:
        return v < 0 ? v * slope : v;
    case CK_SIGMOID:
        return 1 / (1 + exp(-v));
    default:
        return v;
    }
}

/* ---- tiles ---- */

static void test_tile(int MR, int NV)
{
    const ptrdiff_t lanes = kernels->lanes, K = NV * lanes;
    ck_chunk chunk = {0};
    chunk.rows = draw(1, 3), chunk.columns = draw(1, 3), chunk.run = draw(1, 9);
    chunk.flags = (int)draw(0, 15);
    chunk.ahead = (const char *)&chunk;
    ck_tile_layout t = {0};
    t.x_pixel = draw(0, 5), t.x_row = draw(0, 30), t.x_column = draw(0, 12);
    t.w_step = draw(0, 1) ? K + draw(0, 20) : 0;
    const ptrdiff_t step = t.w_step ? t.w_step : K;
    t.w_row = chunk.columns * chunk.run * step + draw(0, 3);
    t.tail = (int)draw(1, lanes);
    t.out_pixel = K - lanes + t.tail + draw(0, 3);
    t.bias_by_pixel = (int)draw(0, 1);
    t.activation = (int)draw(CK_IDENTITY, CK_LEAKY_RELU), t.slope = 0.5;
    const ptrdiff_t end = (MR - 1) * t.x_pixel + (chunk.rows - 1) * t.x_row
        + (chunk.columns - 1) * t.x_column + chunk.run;
    const void *x = integers(end), *bias = integers(t.bias_by_pixel ? MR : K);
    const void *w = integers((chunk.rows - 1) * t.w_row + (chunk.columns * chunk.run - 1) * step + K);
    output out = new_output((MR - 1) * t.out_pixel + K - lanes + t.tail);
    for (int i = 0; i < MR; i++)
        for (ptrdiff_t k = 0; k < K - lanes + t.tail; k++) {
            double *o = &out.true_[i * t.out_pixel + k];
            double sum = chunk.flags & CK_FIRST ? at(bias, t.bias_by_pixel ? i : k) : *o;
            for (ptrdiff_t r = 0; r < chunk.rows; r++)
                for (ptrdiff_t c = 0; c < chunk.columns; c++)
                    for (ptrdiff_t e = 0; e < chunk.run; e++)
                        sum += at(x, i * t.x_pixel + r * t.x_row + c * t.x_column + e)
                            * at(w, r * t.w_row + (c * chunk.run + e) * step + k);
            *o = chunk.flags & CK_LAST ? activated(sum, t.activation, t.slope) : sum;
        }
    kernels->tile[NV][MR](&t, &chunk, x, w, bias, out.mine);
    compare("tile", out, 0);
}

static void test_outer(int MR, int NV)
{
    const ptrdiff_t K = NV * kernels->lanes;
    ck_outer_layout t = {draw(1, 3), draw(1, 9), draw(0, 20), draw(0, 5), 0, 0, 0};
    t.g_pixel = K + draw(0, 3), t.g_row = t.pixels * t.g_pixel, t.dw_row = K + draw(0, 3);
    const void *x = integers((t.rows - 1) * t.x_row + (t.pixels - 1) * t.x_pixel + MR);
    const void *g = integers((t.rows - 1) * t.g_row + (t.pixels - 1) * t.g_pixel + K);
    output dw = new_output((MR - 1) * t.dw_row + K);
    for (int i = 0; i < MR; i++)
        for (ptrdiff_t k = 0; k < K; k++)
            for (ptrdiff_t r = 0; r < t.rows; r++)
                for (ptrdiff_t p = 0; p < t.pixels; p++)
                    dw.true_[i * t.dw_row + k] += at(x, r * t.x_row + p * t.x_pixel + i)
                        * at(g, r * t.g_row + p * t.g_pixel + k);
    kernels->outer[NV][MR](&t, x, g, dw.mine);
    compare("outer", dw, 0);
}

static void test_dot(int MR, int NR)
{
    const ptrdiff_t lanes = kernels->lanes, chunk = draw(1, 3) * lanes, rest = draw(1, 3 * lanes);
    ck_dot_layout t = {chunk, chunk + rest + draw(0, 3), chunk + rest + draw(0, 3),
                       NR + draw(0, 3), CK_FIRST};
    const void *x = integers((MR - 1) * t.x_row + chunk + rest);
    const void *w = integers((NR - 1) * t.w_row + chunk + rest);
    const void *bias = draw(0, 1) ? integers(NR) : NULL;
    void *partial = guarded((size_t)(MR * NR * lanes * kernels->itemsize), 0);
    output out = new_output((MR - 1) * t.out_row + NR);
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) {
            double sum = bias ? at(bias, j) : 0;
            for (ptrdiff_t k = 0; k < chunk + rest; k++)
                sum += at(x, i * t.x_row + k) * at(w, j * t.w_row + k);
            out.true_[i * t.out_row + j] = sum;
        }
    kernels->dot[MR][NR](&t, x, w, bias, partial, out.mine);
    t.length = rest, t.flags = CK_LAST;
    kernels->dot[MR][NR](&t, further(x, chunk), further(w, chunk), bias, partial, out.mine);
    compare("dot", out, 0);
}

/* ---- layout ---- */

static void test_transpose(void)
{
    const ptrdiff_t rows = draw(1, 40), columns = draw(1, 40), row = columns + draw(0, 3);
    const ptrdiff_t dst_row = rows + draw(0, 3);
    const void *src = integers((rows - 1) * row + columns);
    output dst = new_output((columns - 1) * dst_row + rows);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < columns; j++)
            dst.true_[j * dst_row + i] = at(src, i * row + j);
    kernels->transpose(src, row, dst.mine, dst_row, rows, columns);
    compare("transpose", dst, 0);

    const ptrdiff_t lanes = kernels->lanes, padded = (rows + lanes - 1) / lanes * lanes;
    ptrdiff_t *offsets = guarded((size_t)columns * sizeof *offsets, 0);
    dst = new_output(columns * padded);
    for (ptrdiff_t j = 0; j < columns; j++) {
        offsets[j] = draw(0, 4) ? (columns - 1 - j) * padded : -1;
        if (offsets[j] >= 0)
            for (ptrdiff_t i = 0; i < padded; i++)
                dst.true_[offsets[j] + i] = i < rows ? at(src, i * row + j) : 0;
    }
    kernels->scatter_transposed(src, row, rows, columns, dst.mine, offsets);
    compare("scatter_transposed", dst, 0);
}

static void test_rows(void)
{
    const ptrdiff_t n = draw(1, 50), stride = draw(1, 5), taps = draw(1, 4), tap = draw(0, 7);
    const ptrdiff_t begin = draw(0, n), end = draw(begin, n), row = n + draw(0, 3);
    /* Elements before `begin` are not read: the source starts where the first is read. */
    const ptrdiff_t length = begin < end ? (end - 1 - begin) * stride + 1 : 1;
    const void *src = further(integers(length), -begin * stride);
    output dst = new_output(n);
    for (ptrdiff_t i = 0; i < n; i++)
        dst.true_[i] = i >= begin && i < end ? at(src, i * stride) : 0;
    kernels->gather_row(src, stride, begin, end, dst.mine, n);
    compare("gather_row", dst, 0);

    src = integers((taps - 1) * tap + (n - 1) * stride + 1);
    dst = new_output((taps - 1) * row + n);
    for (ptrdiff_t s = 0; s < taps; s++)
        for (ptrdiff_t i = 0; i < n; i++)
            dst.true_[s * row + i] = at(src, s * tap + i * stride);
    kernels->gather_taps(src, stride, tap, taps, dst.mine, row, n);
    compare("gather_taps", dst, 0);

    src = integers(n);
    dst = new_output((n - 1) * stride + 1);
    for (ptrdiff_t i = 0; i < n; i++)
        dst.true_[i * stride] += at(src, i);
    kernels->scatter_row(src, dst.mine, stride, n);
    compare("scatter_row", dst, 0);

    const ptrdiff_t rows = draw(1, 4), width = draw(1, 70), left = draw(0, 5), phase = draw(1, 40);
    const ptrdiff_t src_row = width + draw(0, 3), dst_row = stride * phase + draw(0, 3);
    src = integers((rows - 1) * src_row + width);
    dst = new_output(rows * dst_row);
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t p = 0; p < stride; p++)
            for (ptrdiff_t i = 0; i < phase; i++) {
                const ptrdiff_t pixel = i * stride + p - left;
                if (pixel >= 0 && pixel < width)
                    dst.true_[r * dst_row + p * phase + i] = at(src, r * src_row + pixel);
            }
    kernels->split_plane(src, src_row, width, rows, stride, left, dst.mine, dst_row, phase);
    compare("split_plane", dst, 0);

    const ptrdiff_t row_step = draw(1, 3), height = (rows - 1) * row_step + draw(1, 3);
    const ptrdiff_t spread = (n - 1) * stride + draw(1, 4);
    src = integers(rows * n);
    dst = new_output(height * spread);
    for (ptrdiff_t y = 0; y < height; y++)
        for (ptrdiff_t i = 0; i < spread; i++) {
            const int met = y % row_step == 0 && y / row_step < rows && i % stride == 0
                && i / stride < n;
            dst.true_[y * spread + i] = met ? at(src, y / row_step * n + i / stride) : 0;
        }
    kernels->spread_plane(src, rows, n, row_step, stride, dst.mine, height, spread);
    compare("spread_plane", dst, 0);

    dst = new_output(n);
    for (ptrdiff_t i = 0; i < n; i++)
        dst.true_[i] += at(src, i);
    kernels->add(src, dst.mine, n);
    compare("add", dst, 0);
}

/* ---- pooling ---- */

static void test_max_pool(void)
{
    const ptrdiff_t lanes = kernels->lanes, H = 7, W = 8;
    ck_pool t = {0};
    t.steps = draw(1, 3), t.width = draw(1, 3 * lanes), t.rows = draw(1, 3), t.columns = draw(1, 3);
    t.x_step = t.width * draw(1, 2), t.tap_row = 3, t.out_step = t.width + draw(0, 2);
    t.index = draw(0, 9), t.index_step = draw(1, 2), t.index_lane = (int32_t)draw(0, 1);
    t.index_row = (int32_t)W, t.index_column = 1;
    ptrdiff_t *taps = guarded(9 * sizeof *taps, 0);
    for (ptrdiff_t r = 0; r < 3; r++)
        for (ptrdiff_t s = 0; s < 3; s++)
            taps[r * 3 + s] = (r * W + s) * t.width;
    t.taps = taps;
    const ptrdiff_t size = (t.steps - 1) * t.x_step + H * W * t.width;
    void *x = integers(size);
    t.ordered = (int)draw(0, 1);
    for (ptrdiff_t i = 0; i < size && draw(0, 1); i++) {
        if (draw(0, 9) == 0)
            put(x, i, -INFINITY);
        if (!t.ordered && draw(0, 20) == 0)
            put(x, i, NAN);
    }
    /* Windows of nothing above -inf take the index of `first`. */
    const ptrdiff_t whole = (t.width + lanes - 1) / lanes * lanes;
    int32_t *first = guarded((size_t)whole * sizeof *first, 0);
    for (ptrdiff_t i = 0; i < whole; i++)
        first[i] = (int32_t)draw(0, 5);
    t.first = draw(0, 1) ? first : NULL;
    output out = new_output((t.steps - 1) * t.out_step + t.width);
    int64_t *indices = guarded((size_t)out.n * sizeof *indices, 0);
    memset(indices, 0xff, (size_t)out.n * sizeof *indices);
    int64_t *wanted = guarded((size_t)out.n * sizeof *wanted, 0);
    memset(wanted, 0xff, (size_t)out.n * sizeof *wanted);
    for (ptrdiff_t j = 0; j < t.steps; j++)
        for (ptrdiff_t i = 0; i < t.width; i++) {
            double best = -INFINITY;
            int64_t place = t.first ? first[i] : 0;
            for (ptrdiff_t r = 0; r < t.rows; r++)
                for (ptrdiff_t s = 0; s < t.columns; s++) {
                    const double v = at(x, j * t.x_step + taps[r * t.tap_row + s] + i);
                    if (v > best || isnan(v)) {
                        best = v;
                        place = r * t.index_row + s * t.index_column;
                    }
                }
            out.true_[j * t.out_step + i] = best;
            wanted[j * t.out_step + i] = t.index + j * t.index_step + i * t.index_lane + place;
        }
    kernels->max_pool(&t, x, out.mine, indices);
    compare("max_pool", out, 0);
    checks++;
    if (memcmp(indices, wanted, (size_t)out.n * sizeof *indices) != 0) {
        printf("%s max_pool: wrong indices\n", isa);
        failures++;
    }
    memset(out.mine, 0, (size_t)(out.n * kernels->itemsize));
    for (ptrdiff_t j = 0; j + 1 < t.steps; j++) /* what lies between rows stays */
        for (ptrdiff_t i = t.width; i < t.out_step; i++)
            out.true_[j * t.out_step + i] = 0;
    kernels->max_pool(&t, x, out.mine, NULL);
    compare("max_pool without indices", out, 0);
}

static void test_max_pool_backward(void)
{
    const ptrdiff_t lanes = kernels->lanes, step = draw(3, 4);
    ck_pool t = {0};
    t.steps = draw(1, 4), t.width = draw(1, 3 * lanes), t.rows = draw(1, 3), t.columns = draw(1, 3);
    t.x_step = step * t.width, t.tap_row = 3, t.out_step = t.width + draw(0, 2);
    t.index = draw(0, 1) ? draw(0, 9) : INT64_MAX / 2, t.index_step = step;
    t.index_row = (int32_t)(step * t.steps), t.index_column = 1;
    ptrdiff_t *taps = guarded(9 * sizeof *taps, 0);
    for (ptrdiff_t r = 0; r < 3; r++)
        for (ptrdiff_t s = 0; s < 3; s++)
            taps[r * 3 + s] = (r * t.index_row + s) * t.width;
    t.taps = taps;
    const ptrdiff_t size = (t.steps - 1) * t.out_step + t.width;
    void *g = integers(size), *y = integers(size);
    int64_t *indices = guarded((size_t)size * sizeof *indices, 0);
    memset(indices, 0xff, (size_t)size * sizeof *indices);
    if (draw(0, 1))
        put(y, draw(0, t.width - 1), NAN);
    const int rectified = (int)draw(0, 1);
    output out = new_output((t.steps - 1) * t.x_step + taps[(t.rows - 1) * 3 + t.columns - 1] + t.width);
    for (ptrdiff_t j = 0; j < t.steps; j++)
        for (ptrdiff_t i = 0; i < t.width; i++) {
            const ptrdiff_t chosen = draw(0, t.rows - 1), column = draw(0, t.columns - 1);
            const ptrdiff_t from = j * t.out_step + i;
            indices[from] = t.index + j * t.index_step + chosen * t.index_row + column;
            for (ptrdiff_t r = 0; r < t.rows; r++)
                for (ptrdiff_t s = 0; s < t.columns; s++)
                    out.true_[j * t.x_step + taps[r * 3 + s] + i] =
                        r == chosen && s == column && !(rectified && at(y, from) <= 0) ? at(g, from)
                                                                                      : 0;
        }
    kernels->max_pool_backward(&t, g, indices, rectified ? y : NULL, NULL, out.mine);
    compare("max_pool_backward", out, 0);
}

static void test_scatter(void)
{
    const ptrdiff_t inner = draw(1, 5), row = draw(0, 1) ? inner : inner + 2, count = draw(1, 30);
    const ptrdiff_t size = draw(1, 40);
    const int add = (int)draw(0, 1);
    const ptrdiff_t elements = (count - 1) * row + inner;
    const void *src = integers(elements);
    int64_t *indices = guarded((size_t)elements * sizeof *indices, 0);
    int outside = 0, wrong = draw(0, 3) == 0;
    for (ptrdiff_t i = 0; i < elements; i++) {
        static const int64_t far_away[] = {-1, INT64_MIN, INT64_MAX, (1ll << 32) + 3};
        indices[i] = wrong && draw(0, 9) == 0 ? far_away[draw(0, 3)] : draw(0, size - 1);
    }
    output out = new_output((size - 1) * row + inner), back = new_output(elements);
    for (ptrdiff_t p = 0; p < size; p++)
        for (ptrdiff_t c = 0; c < inner; c++)
            out.true_[p * row + c] = 0;
    for (ptrdiff_t o = 0; o < count; o++)
        for (ptrdiff_t c = 0; c < inner; c++) {
            const int64_t i = indices[o * row + c];
            if (i < 0 || i >= size) {
                outside = 1;
                continue;
            }
            double *place = &out.true_[i * row + c];
            *place = (add ? *place : 0) + at(src, o * row + c);
        }
    checks++;
    if (kernels->scatter(src, indices, count, inner, row, size, add, out.mine) != outside) {
        printf("%s scatter: an index outside goes unnoticed\n", isa);
        failures++;
    }
    compare("scatter", out, 0);
    for (ptrdiff_t o = 0; o < count; o++)
        for (ptrdiff_t c = 0; c < inner; c++) {
            const int64_t i = indices[o * row + c];
            back.true_[o * row + c] = i < 0 || i >= size ? 0 : at(out.mine, i * row + c);
        }
    if (kernels->gather(out.mine, indices, count, inner, row, size, back.mine) != outside) {
        printf("%s gather: an index outside goes unnoticed\n", isa);
        failures++;
    }
    compare("gather", back, 0);
}

static void test_boxes(void)
{
    const ptrdiff_t lanes = kernels->lanes, pixels = draw(1, 70), kernel = draw(1, 5);
    const ptrdiff_t stride = draw(1, 3), rows = draw(1, 4), height = rows + 4, pad = draw(0, 2);
    ck_boxes t = {0};
    t.count = (pixels + 2 * pad - 1) / stride + 1;
    ptrdiff_t *begin = guarded((size_t)t.count * sizeof *begin, 0);
    ptrdiff_t *end = guarded((size_t)t.count * sizeof *end, 0);
    t.least = pixels;
    for (ptrdiff_t j = 0; j < t.count; j++) {
        const ptrdiff_t b = j * stride - pad, e = b + kernel;
        begin[j] = b < 0 ? 0 : b > pixels ? pixels : b;
        end[j] = e < begin[j] ? begin[j] : e > pixels ? pixels : e;
        t.least = end[j] - begin[j] < t.least ? end[j] - begin[j] : t.least;
        t.most = end[j] - begin[j] > t.most ? end[j] - begin[j] : t.most;
    }
    /* The longest run of boxes that move on by one column. */
    for (ptrdiff_t j = 0, from = 0; j < t.count; j++) {
        if (j > from && (begin[j] != begin[j - 1] + 1 || end[j] != end[j - 1] + 1))
            from = j;
        if (j + 1 - from > t.run_end - t.run_begin)
            t.run_begin = from, t.run_end = j + 1;
    }
    t.begin = begin, t.end = end;
    void *divisors = integers(t.count), *divisor = integers(height);
    for (ptrdiff_t j = 0; j < t.count; j++)
        put(divisors, j, (double)(1 << draw(0, 3)));
    for (ptrdiff_t j = 0; j < height; j++)
        put(divisor, j, (double)(1 << draw(0, 3)));
    t.divisors = draw(0, 1) ? divisors : NULL;

    t.width = draw(1, 5 * lanes), t.rows = rows, t.x_pixel = t.width + draw(0, 2);
    t.x_row = pixels * t.x_pixel;
    const void *x = integers((rows - 1) * t.x_row + (pixels - 1) * t.x_pixel + t.width);
    output out = new_output(t.count * t.width);
    for (ptrdiff_t j = 0; j < t.count; j++)
        for (ptrdiff_t c = 0; c < t.width; c++) {
            double sum = 0;
            for (ptrdiff_t r = 0; r < rows; r++)
                for (ptrdiff_t s = begin[j]; s < end[j]; s++)
                    sum += at(x, r * t.x_row + s * t.x_pixel + c);
            out.true_[j * t.width + c] = t.divisors ? sum / at(divisor, 0) / at(divisors, j) : sum;
        }
    kernels->box_pixels(&t, x, divisor, out.mine);
    compare("box_pixels", out, 0);

    t.width = pixels, t.x_row = pixels + draw(0, 3);
    x = integers((height - 1) * t.x_row + pixels);
    ptrdiff_t row_begin[4], row_end[4];
    void *scratch = integers(4 * (t.width + t.most));
    out = new_output(rows * t.count);
    for (ptrdiff_t r = 0; r < rows; r++) {
        row_begin[r] = r && draw(0, 3) == 0 ? row_begin[r - 1] : draw(0, height - 1);
        row_end[r] = r && row_begin[r] == row_begin[r - 1] ? row_end[r - 1] : draw(row_begin[r], height);
        if (r && row_begin[r] == row_begin[r - 1]) /* such rows share their sums and divisor */
            put(divisor, r, at(divisor, r - 1));
        for (ptrdiff_t j = 0; j < t.count; j++) {
            double sum = 0;
            for (ptrdiff_t i = row_begin[r]; i < row_end[r]; i++)
                for (ptrdiff_t s = begin[j]; s < end[j]; s++)
                    sum += at(x, i * t.x_row + s);
            out.true_[r * t.count + j] = t.divisors ? sum / at(divisor, r) / at(divisors, j) : sum;
        }
    }
    kernels->box_rows(&t, rows, row_begin, row_end, x, divisor, scratch, out.mine);
    compare("box_rows", out, 0);
}

static void test_split_rows(void)
{
    const ptrdiff_t rows = draw(1, 3), width = draw(1, 50), stride = draw(1, 4), left = draw(0, 3);
    const ptrdiff_t phases = draw(1, stride), used = (left + width + 3 + stride - 1) / stride;
    const ptrdiff_t length = used + (left + width + stride - 1) / stride + kernels->lanes;
    void *src = integers(rows * width);
    const int nan = (int)draw(0, 1);
    if (nan)
        put(src, (rows - 1) * width + width / stride * stride - (width % stride == 0 ? stride : 0), NAN);
    output dst = new_output(rows * phases * length);
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t p = 0; p < phases; p++)
            for (ptrdiff_t i = 0; i < used; i++) {
                const ptrdiff_t column = i * stride + p - left;
                dst.true_[(r * phases + p) * length + i] =
                    column >= 0 && column < width ? at(src, r * width + column) : -INFINITY;
            }
    const int found = kernels->split_rows(src, rows, width, stride, left, dst.mine, phases, used, length);
    int kept = 0; /* the NaN may be in a phase that is not wanted */
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t p = 0; p < phases; p++) {
            for (ptrdiff_t i = 0; i < used; i++)
                kept |= isnan(dst.true_[(r * phases + p) * length + i]) != 0;
            for (ptrdiff_t i = used; i < length; i++) /* scratch */
                dst.true_[(r * phases + p) * length + i] = at(dst.mine, (r * phases + p) * length + i);
        }
    compare("split_rows", dst, 0);
    checks++;
    if (kept && !found) {
        printf("%s split_rows: a NaN goes unnoticed\n", isa);
        failures++;
    }
}

/* ---- depthwise ---- */

static void test_depthwise(void)
{
    const ptrdiff_t lanes = kernels->lanes, channels = draw(1, 6 * lanes);
    ck_window t = {0};
    t.pixels = draw(1, 19), t.channels = channels, t.rows = draw(1, 3);
    t.columns = draw(0, 1) ? 3 : draw(1, 4);
    t.x_column = channels + draw(0, 2), t.x_pixel = draw(1, 3) * t.x_column;
    t.x_row = draw(1, 60), t.out_pixel = channels + draw(0, 2);
    t.w_column = channels, t.w_row = t.columns * channels;
    t.activation = (int)draw(CK_IDENTITY, CK_LEAKY_RELU), t.slope = 0.5;
    const ptrdiff_t step = t.x_pixel / t.x_column, width = (t.pixels - 1) * step + t.columns;
    if (CK_DEPTHWISE_EDGES(t.columns, step))
        t.left = draw(0, t.columns - 1), t.right = draw(0, t.columns - 1);
    const void *x = integers((t.pixels - 1) * t.x_pixel + (t.rows - 1) * t.x_row
                             + (t.columns - 1) * t.x_column + channels);
    const void *w = integers(t.rows * t.w_row), *bias = integers(channels);
    output out = new_output((t.pixels - 1) * t.out_pixel + channels);
    for (ptrdiff_t p = 0; p < t.pixels; p++)
        for (ptrdiff_t c = 0; c < channels; c++) {
            double sum = at(bias, c);
            for (ptrdiff_t r = 0; r < t.rows; r++)
                for (ptrdiff_t s = 0; s < t.columns; s++)
                    if (p * step + s >= t.left && p * step + s < width - t.right)
                        sum += at(x, p * t.x_pixel + r * t.x_row + s * t.x_column + c)
                            * at(w, r * t.w_row + s * t.w_column + c);
            out.true_[p * t.out_pixel + c] = activated(sum, t.activation, t.slope);
        }
    kernels->depthwise(&t, x, w, bias, out.mine);
    compare("depthwise", out, 0);

    t.left = t.right = 0;
    ck_lines l = {draw(1, 3), draw(0, 9), draw(0, 9)};
    output dw = new_output(t.rows * t.w_row), sums = new_output(channels);
    const int summed = (int)draw(0, 1);
    const void *g = integers((l.lines - 1) * l.g_line + (t.pixels - 1) * t.out_pixel + channels);
    x = integers((l.lines - 1) * l.x_line + (t.pixels - 1) * t.x_pixel + (t.rows - 1) * t.x_row
                 + (t.columns - 1) * t.x_column + channels);
    for (ptrdiff_t i = 0; i < l.lines * t.pixels * t.rows * t.columns * channels; i++) {
        const ptrdiff_t c = i % channels, s = i / channels % t.columns;
        const ptrdiff_t r = i / (channels * t.columns) % t.rows;
        const ptrdiff_t p = i / (channels * t.columns * t.rows) % t.pixels;
        const ptrdiff_t line = i / (channels * t.columns * t.rows * t.pixels);
        dw.true_[r * t.w_row + s * t.w_column + c] +=
            at(x, line * l.x_line + p * t.x_pixel + r * t.x_row + s * t.x_column + c)
            * at(g, line * l.g_line + p * t.out_pixel + c);
    }
    for (ptrdiff_t i = 0; i < summed * l.lines * t.pixels * channels; i++)
        sums.true_[i % channels] += at(g, i / channels / t.pixels * l.g_line
                                          + i / channels % t.pixels * t.out_pixel + i % channels);
    kernels->depthwise_outer(&t, &l, x, g, dw.mine, summed ? sums.mine : NULL);
    compare("depthwise_outer", dw, 0);
    compare("sums of depthwise_outer", sums, 0);

    ck_plane q = {draw(1, 19), draw(1, 3 * lanes), draw(1, 3), draw(1, 3), 0, 0, NULL, 0, 0.5};
    const ptrdiff_t whole = (q.columns + lanes - 1) / lanes * lanes;
    q.x_tap = draw(1, 70), q.x_step = draw(1, 70);
    q.activation = (int)draw(CK_IDENTITY, CK_LEAKY_RELU);
    ptrdiff_t *offsets = guarded((size_t)q.taps * sizeof *offsets, 0), most = 0;
    for (ptrdiff_t s = 0; s < q.taps; s++) {
        offsets[s] = draw(0, 9);
        most = offsets[s] > most ? offsets[s] : most;
    }
    q.offsets = offsets;
    x = integers((q.rows - 1) * q.x_step + (q.tap_rows - 1) * q.x_tap + most + whole);
    w = integers(q.tap_rows * q.taps);
    out = new_output(q.rows * q.columns);
    for (ptrdiff_t i = 0; i < q.rows; i++)
        for (ptrdiff_t j = 0; j < q.columns; j++) {
            double sum = 3;
            for (ptrdiff_t r = 0; r < q.tap_rows; r++)
                for (ptrdiff_t s = 0; s < q.taps; s++)
                    sum += at(w, r * q.taps + s) * at(x, i * q.x_step + r * q.x_tap + offsets[s] + j);
            out.true_[i * q.columns + j] = activated(sum, q.activation, q.slope);
        }
    kernels->depthwise_plane(&q, x, w, 3, out.mine);
    compare("depthwise_plane", out, 0);
}

static void test_square(void)
{
    const ptrdiff_t lanes = kernels->lanes;
    ck_square t = {draw(1, 20), draw(1, 5 * lanes), 0, 0, draw(1, 2), draw(0, 4), draw(0, 4),
                   0, 0, 1, 0, 0.5};
    t.rows = draw(1, 20), t.columns = draw(1, 4 * lanes);
    ptrdiff_t left = draw(-3, 4); /* of the convolution alone */
    if (lanes > 1 && draw(0, 1)) {
        t.planes = 2, t.columns = draw(1, lanes / 2);
        t.left = left = t.stride == 1 ? 1 : draw(0, 1);
        t.width = t.stride == 1 ? t.columns : draw(1, lanes - left);
    }
    const ptrdiff_t pixels = t.height * t.width, outputs = t.rows * t.columns;
    t.x_later = t.planes * pixels, t.out_later = t.planes * outputs;
    t.activation = (int)draw(CK_IDENTITY, CK_LEAKY_RELU);
    const void *x = integers(t.planes * pixels), *w = integers(t.planes * 9);
    const void *g = integers(t.planes * outputs);
    const ptrdiff_t back_top = t.top, back_left = t.left;
    const double bias[2] = {3, 4};
    t.top = draw(-3, 4), t.left = left;
    output out = new_output(t.planes * outputs);
    for (ptrdiff_t i = 0; i < t.planes * outputs; i++) {
        const ptrdiff_t plane = i / outputs, y = i % outputs / t.columns, z = i % t.columns;
        double sum = bias[plane];
        for (ptrdiff_t tap = 0; tap < 9; tap++) {
            const ptrdiff_t h = y * t.stride + tap / 3 - t.top, c = z * t.stride + tap % 3 - t.left;
            if (h >= 0 && h < t.height && c >= 0 && c < t.width)
                sum += at(w, plane * 9 + tap) * at(x, plane * pixels + h * t.width + c);
        }
        out.true_[i] = activated(sum, t.activation, t.slope);
    }
    kernels->square(&t, x, w, bias, out.mine);
    compare("square", out, 0);

    t.top = back_top, t.left = back_left;
    const ptrdiff_t vectors = t.planes == 1 ? 9 : (18 + lanes - 1) / lanes;
    output sums = new_output(vectors * lanes), dx = new_output(t.planes * pixels);
    for (ptrdiff_t p = 0; p < t.planes * pixels; p++)
        dx.true_[p] = 0;
    for (ptrdiff_t i = 0; i < t.planes * outputs; i++)
        for (ptrdiff_t tap = 0; tap < 9; tap++) {
            const ptrdiff_t plane = i / outputs, y = i % outputs / t.columns, z = i % t.columns;
            const ptrdiff_t h = y * t.stride + tap / 3 - t.top, c = z * t.stride + tap % 3 - t.left;
            if (h < 0 || h >= t.height || c < 0 || c >= t.width)
                continue;
            const ptrdiff_t pixel = plane * pixels + h * t.width + c;
            sums.true_[t.planes == 1 ? tap * lanes + z % lanes : tap * 2 + plane] +=
                at(x, pixel) * at(g, i);
            dx.true_[pixel] += at(w, plane * 9 + tap) * at(g, i);
        }
    kernels->square_weight(&t, x, g, sums.mine);
    compare("square_weight", sums, 0);
    if (t.stride == 2) {
        kernels->square_input(&t, g, w, dx.mine);
        compare("square_input", dx, 0);
    }
}

/* ---- images in the lanes ---- */

static void test_lanes(int filters, int pixels)
{
    const ptrdiff_t lanes = kernels->lanes;
    ck_lanes t = {draw(1, 5), draw(0, 3), draw(0, 3), draw(1, 3), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                  (int)draw(CK_IDENTITY, CK_LEAKY_RELU), 0.5};
    t.x_pixel = draw(1, 3) * lanes, t.x_column = draw(1, 3) * lanes;
    t.x_row = draw(1, 30) * lanes, t.x_channel = draw(1, 60) * lanes;
    t.w_filter = draw(1, 20), t.w_channel = draw(1, 20), t.w_row = draw(1, 9), t.w_column = draw(1, 3);
    t.out_pixel = draw(1, 2) * lanes, t.out_filter = pixels * t.out_pixel + draw(0, 2) * lanes;
    const ptrdiff_t rows = t.rows ? t.rows - 1 : 0, columns = t.columns ? t.columns - 1 : 0;
    const void *x = integers((t.channels - 1) * t.x_channel + rows * t.x_row + columns * t.x_column
                             + (pixels - 1) * t.x_pixel + lanes);
    const void *w = integers((filters - 1) * t.w_filter + (t.channels - 1) * t.w_channel
                             + rows * t.w_row + columns * t.w_column + 1);
    const void *bias = draw(0, 1) ? integers(filters) : NULL;
    output out = new_output((filters - 1) * t.out_filter + (pixels - 1) * t.out_pixel + lanes);
    for (int f = 0; f < filters; f++)
        for (int p = 0; p < pixels; p++)
            for (ptrdiff_t i = 0; i < lanes; i++) {
                double sum = bias ? at(bias, f) : 0;
                for (ptrdiff_t c = 0; c < t.channels; c++)
                    for (ptrdiff_t r = 0; r < t.rows; r++)
                        for (ptrdiff_t s = 0; s < t.columns; s++)
                            sum += at(x, c * t.x_channel + r * t.x_row + s * t.x_column
                                             + p * t.x_pixel + i)
                                * at(w, f * t.w_filter + c * t.w_channel + r * t.w_row
                                            + s * t.w_column);
                out.true_[f * t.out_filter + p * t.out_pixel + i] =
                    activated(sum, t.activation, t.slope);
            }
    kernels->lanes_tile[filters][pixels](&t, x, w, bias, out.mine);
    compare("lanes_tile", out, 0);

    ck_lanes_outer o = {draw(1, 4), draw(1, 9), 0, 0, 0, 0, 0, 0, pixels + draw(0, 2)};
    o.x_column = draw(1, 3) * lanes, o.x_row = draw(1, 30) * lanes, o.x_pixel = draw(1, 3) * lanes;
    o.g_filter = draw(1, 60) * lanes, o.g_row = draw(1, 30) * lanes, o.g_pixel = draw(1, 3) * lanes;
    x = integers((o.rows - 1) * o.x_row + (o.pixels - 1) * o.x_pixel + (pixels - 1) * o.x_column
                 + lanes);
    const void *g = integers((o.rows - 1) * o.g_row + (o.pixels - 1) * o.g_pixel
                             + (filters - 1) * o.g_filter + lanes);
    output sums = new_output(((filters - 1) * o.sums_filter + pixels) * lanes);
    for (int f = 0; f < filters; f++)
        for (int s = 0; s < pixels; s++)
            for (ptrdiff_t r = 0; r < o.rows; r++)
                for (ptrdiff_t p = 0; p < o.pixels; p++)
                    for (ptrdiff_t i = 0; i < lanes; i++)
                        sums.true_[(f * o.sums_filter + s) * lanes + i] +=
                            at(x, s * o.x_column + r * o.x_row + p * o.x_pixel + i)
                            * at(g, f * o.g_filter + r * o.g_row + p * o.g_pixel + i);
    kernels->lanes_outer[filters][pixels](&o, x, g, sums.mine);
    compare("lanes_outer", sums, 0);

    const ptrdiff_t vectors = draw(1, 3) * lanes;
    x = integers(vectors * lanes);
    output totals = new_output(vectors);
    for (ptrdiff_t j = 0; j < vectors; j++) {
        totals.true_[j] = 0;
        for (ptrdiff_t i = 0; i < lanes; i++)
            totals.true_[j] += at(x, j * lanes + i);
    }
    kernels->sum_lanes(x, vectors - draw(0, lanes - 1), totals.mine);
    compare("sum_lanes", totals, 0);
}

/* ---- element by element, and along channels ---- */

static void test_activations(void)
{
    const ptrdiff_t n = draw(1, 70), pixels = draw(1, 5);
    const void *x = integers(n), *g = integers(n);
    for (int activation = CK_IDENTITY; activation <= CK_SIGMOID; activation++) {
        output y = new_output(n), dx = new_output(n);
        for (ptrdiff_t i = 0; i < n; i++)
            y.true_[i] = activated(at(x, i), activation, 0.5);
        kernels->activate(x, y.mine, n, activation, 0.5);
        compare("activate", y, activation == CK_SIGMOID ? rounding() : 0);
        if (activation == CK_IDENTITY || activation == CK_RELU6)
            continue;
        const void *from = activation == CK_LEAKY_RELU ? x : y.mine;
        for (ptrdiff_t i = 0; i < n; i++) {
            const double v = at(from, i);
            dx.true_[i] = at(g, i)
                * (activation == CK_SIGMOID          ? v * (1 - v)
                   : activation == CK_LEAKY_RELU ? (v > 0 ? 1 : 0.5)
                                                 : v > 0);
        }
        kernels->activate_backward(g, from, dx.mine, n, activation, 0.5);
        compare("activate_backward", dx, activation == CK_SIGMOID ? rounding() : 0);
    }
    x = integers(pixels * n), g = integers(pixels * n);
    const void *weight = integers(n);
    output y = new_output(pixels * n);
    for (ptrdiff_t i = 0; i < pixels * n; i++)
        y.true_[i] = at(g, i) * (at(x, i) > 0 ? 1 : at(weight, i % n));
    kernels->prelu_pixels(x, g, weight, y.mine, pixels, n);
    compare("prelu_pixels", y, 0);
}

static void test_softmax(void)
{
    const ptrdiff_t inner = draw(0, 1) ? 1 : draw(2, 40), length = draw(1, 100);
    const ptrdiff_t columns = inner == 1 ? draw(1, 3) : inner < CK_SOFTMAX_COLUMNS ? inner : 1;
    const ptrdiff_t n = length * columns;
    const int logs = (int)draw(0, 1);
    const void *x = integers(n), *scale = !logs && draw(0, 1) ? integers(columns) : NULL;
    const void *g = integers(n);
    output y = new_output(n), dx = new_output(n);
    for (ptrdiff_t j = 0; j < columns; j++) {
        double sum = 0, dots = 0;
        const ptrdiff_t step = inner == 1 ? 1 : inner, base = inner == 1 ? j * length : j;
        for (ptrdiff_t i = 0; i < length; i++)
            sum += exp(at(x, base + i * step));
        for (ptrdiff_t i = 0; i < length; i++) {
            const double p = exp(at(x, base + i * step)) / sum;
            y.true_[base + i * step] = logs ? log(p) : p * (scale ? at(scale, j) : 1);
        }
        for (ptrdiff_t i = 0; i < length; i++)
            dots += at(g, base + i * step) * at(x, base + i * step);
        for (ptrdiff_t i = 0; i < length; i++)
            dx.true_[base + i * step] = at(x, base + i * step) * (at(g, base + i * step) - dots);
    }
    kernels->softmax(x, y.mine, length, inner, columns, scale, logs);
    compare("softmax", y, rounding());
    kernels->softmax_backward(g, x, dx.mine, length, inner, columns);
    compare("softmax_backward", dx, 0);
}

static double term_of(int term, double x, double g)
{
    switch (term) {
    case CK_SQUARES:
        return x * x;
    case CK_NEGATIVE_PRODUCTS:
        return x > 0 ? 0 : x * g;
    default:
        return x;
    }
}

/* Element i of an affine map of channel c. */
static double map_of(const void *coefficients, ptrdiff_t channels, ptrdiff_t c, double x)
{
    return (x - at(coefficients, c)) * at(coefficients, channels + c)
        + at(coefficients, 2 * channels + c);
}

/* Gradient i of channel c, if the ReLU after a map, NULL for none, has let it pass. */
static double passed_of(ptrdiff_t c, ptrdiff_t channels, const void *x, const void *g, ptrdiff_t i,
                        const void *map)
{
    return map && map_of(map, channels, c, at(x, i)) <= 0 ? 0 : at(g, i);
}

static double affine_of(const ck_affine *affine, ptrdiff_t c, const void *x, const void *g,
                        ptrdiff_t i)
{
    const ptrdiff_t channels = affine->channels;
    double y = map_of(affine->coefficients, channels, c, at(x, i));
    if (g)
        y += passed_of(c, channels, x, g, i, affine->rectified)
            * at(affine->coefficients, 3 * channels + c);
    return (affine->after_relu && at(x, i) <= 0) || (affine->activation == CK_RELU && y < 0) ? 0 : y;
}

static void test_channels(void)
{
    const ptrdiff_t channels = draw(1, 70), pixels = draw(1, 9), row = channels + draw(0, 3);
    const void *x = integers((pixels - 1) * row + channels), *g = integers((pixels - 1) * row + channels);
    double *center = guarded((size_t)channels * sizeof *center, 0);
    double *sums = guarded((size_t)channels * sizeof *sums, 0);
    for (ptrdiff_t c = 0; c < channels; c++)
        center[c] = (double)draw(-3, 3);
    for (int term = CK_SUM; term <= CK_NEGATIVE_PRODUCTS; term++) {
        const int of_pixels = term == CK_SUM || term == CK_NEGATIVE_PRODUCTS;
        if (of_pixels)
            kernels->pixel_sums(term, x, g, pixels, row, channels, sums);
        checks++;
        double whole = 0;
        for (ptrdiff_t c = 0; c < channels; c++) {
            double sum = 0;
            for (ptrdiff_t p = 0; p < pixels; p++)
                sum += term_of(term, at(x, p * row + c), at(g, p * row + c));
            whole += term_of(term, at(x, c), at(g, c));
            if (of_pixels && sums[c] != sum) {
                printf("%s pixel_sums: channel %td is %g, not %g\n", isa, c, sums[c], sum);
                failures++;
            }
        }
        if (kernels->plane_sum(term, x, g, channels) != whole) {
            printf("%s plane_sum: not %g\n", isa, whole);
            failures++;
        }
    }
    double *second = guarded((size_t)channels * sizeof *second, 0);
    const ptrdiff_t map_channels = channels + draw(0, 3);
    const void *map = integers(3 * map_channels);
    for (int kind = 0; kind < 3; kind++) { /* of x alone, with gradients, with those behind a ReLU */
        const void *others = kind ? g : NULL, *relu = kind == 2 ? map : NULL;
        kernels->pixel_pairs(x, others, center, relu, map_channels, pixels, row, channels, sums, second);
        checks++;
        double plane = 1, plane_products = 2, plane_sum = 1, plane_product = 2;
        kernels->plane_pairs(x, others, 3, relu, map_channels, channels, &plane, &plane_products);
        for (ptrdiff_t c = 0; c < channels; c++) {
            const double other = kind ? passed_of(0, map_channels, x, g, c, relu) : at(x, c) - 3;
            plane_sum += other;
            plane_product += (at(x, c) - 3) * other;
        }
        if (plane != plane_sum || plane_products != plane_product) {
            printf("%s plane_pairs: %g and %g, not %g and %g\n", isa, plane, plane_products, plane_sum,
                   plane_product);
            failures++;
        }
        for (ptrdiff_t c = 0; c < channels; c++) {
            double sum = 0, products = 0;
            for (ptrdiff_t p = 0; p < pixels; p++) {
                const ptrdiff_t i = p * row + c;
                const double v = at(x, i) - center[c];
                const double other = kind ? passed_of(c, map_channels, x, g, i, relu) : v;
                sum += other;
                products += v * other;
            }
            if (sums[c] != sum || second[c] != products) {
                printf("%s pixel_pairs: channel %td is %g and %g, not %g and %g\n", isa, c, sums[c],
                       second[c], sum, products);
                failures++;
                break;
            }
        }
    }
    const void *coefficients = integers(4 * channels), *xs = integers(pixels * channels);
    const void *gs = draw(0, 1) ? integers(pixels * channels) : NULL;
    const ck_affine affine = {coefficients, draw(0, 1) ? integers(4 * channels) : NULL, channels,
                              draw(0, 1) ? CK_RELU : CK_IDENTITY, (int)draw(0, 1)};
    const ptrdiff_t c = draw(0, channels - 1);
    output y = new_output(pixels * channels), plane = new_output(pixels);
    for (ptrdiff_t i = 0; i < pixels * channels; i++)
        y.true_[i] = affine_of(&affine, i % channels, xs, gs, i);
    for (ptrdiff_t i = 0; i < pixels; i++)
        plane.true_[i] = affine_of(&affine, c, xs, gs, i);
    kernels->affine_pixels(&affine, xs, gs, y.mine, pixels);
    compare("affine_pixels", y, 0);
    kernels->affine_plane(&affine, c, xs, gs, plane.mine, pixels);
    compare("affine_plane", plane, 0);
}

/* Maxima of an affine map, and what their gradients are added up and mapped to. */
static void test_max_pool_of_a_map(void)
{
    const ptrdiff_t lanes = kernels->lanes, step = draw(3, 4), channels = draw(1, 3 * lanes);
    ck_pool t = {0};
    t.steps = draw(1, 4), t.width = channels, t.rows = draw(1, 3), t.columns = draw(1, 3);
    t.x_step = step * channels, t.tap_row = 3, t.out_step = channels + draw(0, 2);
    t.index = draw(0, 9), t.index_step = step;
    t.index_row = (int32_t)(step * t.steps), t.index_column = 1;
    ptrdiff_t *taps = guarded(9 * sizeof *taps, 0);
    for (ptrdiff_t r = 0; r < 3; r++)
        for (ptrdiff_t s = 0; s < 3; s++)
            taps[r * 3 + s] = (r * t.index_row + s) * channels;
    t.taps = taps;
    const ptrdiff_t last = taps[(t.rows - 1) * 3 + t.columns - 1];
    const void *x = integers((t.steps - 1) * t.x_step + last + channels);
    const ptrdiff_t size = (t.steps - 1) * t.out_step + channels;
    const void *g = integers(size), *y = draw(0, 1) ? integers(size) : NULL;
    ck_affine map = {integers(4 * channels), NULL, channels, draw(0, 1) ? CK_RELU : CK_IDENTITY, 0};
    t.map = &map;
    output maxima = new_output(size);
    int64_t *indices = guarded((size_t)size * sizeof *indices, 0);
    memset(indices, 0xff, (size_t)size * sizeof *indices);
    double *center = guarded((size_t)channels * sizeof *center, 0);
    double *sums = guarded(2 * (size_t)channels * sizeof *sums, 0);
    double *wanted = guarded(2 * (size_t)channels * sizeof *wanted, 0);
    for (ptrdiff_t c = 0; c < channels; c++) {
        center[c] = (double)draw(-3, 3);
        sums[c] = wanted[c] = 1, sums[channels + c] = wanted[channels + c] = 2;
    }
    output back = new_output((t.steps - 1) * t.x_step + last + channels);
    const int after_relu = (int)draw(0, 1);
    int wrong = 0;
    for (ptrdiff_t j = 0; j < t.steps; j++)
        for (ptrdiff_t c = 0; c < channels; c++) {
            double best = -INFINITY;
            for (ptrdiff_t i = 0; i < t.rows * t.columns; i++) {
                const ptrdiff_t tap = taps[i / t.columns * 3 + i % t.columns];
                const double v = affine_of(&map, c, x, NULL, j * t.x_step + tap + c);
                best = v > best ? v : best;
            }
            maxima.true_[j * t.out_step + c] = best;
        }
    kernels->max_pool(&t, x, maxima.mine, indices);
    compare("max_pool of a map", maxima, 0);
    for (ptrdiff_t j = 0; j < t.steps; j++)
        for (ptrdiff_t c = 0; c < channels; c++) {
            const ptrdiff_t from = j * t.out_step + c;
            const double passed = y && at(y, from) <= 0 ? 0 : at(g, from);
            for (ptrdiff_t i = 0; i < t.rows * t.columns; i++) {
                const ptrdiff_t row = i / t.columns, column = i % t.columns;
                const ptrdiff_t place = j * t.x_step + taps[row * 3 + column] + c;
                const int hit = indices[from] - t.index - j * t.index_step
                    == row * t.index_row + column * t.index_column;
                if (hit) {
                    wrong |= affine_of(&map, c, x, NULL, place) != maxima.true_[from];
                    wanted[c] += passed;
                    wanted[channels + c] += passed * (at(x, place) - center[c]);
                }
                back.true_[place] = after_relu && at(x, place) <= 0
                    ? 0
                    : map_of(map.coefficients, channels, c, at(x, place))
                        + (hit ? passed * at(map.coefficients, 3 * channels + c) : 0);
            }
        }
    map.activation = CK_IDENTITY, map.after_relu = after_relu;
    kernels->max_pool_backward(&t, g, indices, y, x, back.mine);
    compare("max_pool_backward of a map", back, 0);
    kernels->max_pool_pairs(&t, g, indices, y, x, center, sums, sums + channels);
    checks++;
    if (wrong || memcmp(sums, wanted, 2 * (size_t)channels * sizeof *sums) != 0) {
        printf("%s max_pool_pairs: wrong %s\n", isa, wrong ? "indices" : "sums");
        failures++;
    }
}

static void test_local_response_norm(void)
{
    const ptrdiff_t channels = draw(1, 50), size = draw(1, 9);
    const double alpha = 0.3, beta = draw(0, 1) ? 0.75 : 0.6, k = 2;
    const void *x = integers(channels), *g = integers(channels);
    void *scratch = integers(2 * (channels + size));
    output y = new_output(channels), dx = new_output(channels);
    double base[50];
    for (ptrdiff_t c = 0; c < channels; c++) {
        base[c] = k;
        for (ptrdiff_t i = c - size / 2; i < c - size / 2 + size; i++)
            if (i >= 0 && i < channels)
                base[c] += alpha / (double)size * at(x, i) * at(x, i);
        y.true_[c] = at(x, c) / pow(base[c], beta);
    }
    for (ptrdiff_t i = 0; i < channels; i++) {
        dx.true_[i] = at(g, i) / pow(base[i], beta);
        for (ptrdiff_t c = 0; c < channels; c++)
            if (i >= c - size / 2 && i < c - size / 2 + size)
                dx.true_[i] -= 2 * beta * alpha / (double)size * at(x, i) * at(x, c) * at(g, c)
                    / pow(base[c], beta + 1);
    }
    kernels->local_response_norm(x, y.mine, channels, size, alpha, beta, k, scratch);
    compare("local_response_norm", y, rounding());
    kernels->local_response_norm_backward(g, x, dx.mine, channels, size, alpha, beta, k, scratch);
    compare("local_response_norm_backward", dx, rounding());
}

static void test_optimisers(void)
{
    const ptrdiff_t n = draw(1, 70);
    const void *g = integers(n);
    /* Powers of two keep every product exact. */
    const ck_sgd rule = {0.5, draw(0, 1) ? 0.25 : 0, 0.5, 0.75, (int)draw(0, 1), (int)draw(0, 1)};
    output p = new_output(n), b = new_output(n);
    const int momentum = (int)draw(0, 1);
    for (ptrdiff_t i = 0; i < n; i++) {
        double d = (rule.maximize ? -at(g, i) : at(g, i)) + p.true_[i] * rule.weight_decay;
        if (momentum) {
            b.true_[i] = b.true_[i] * rule.momentum + d * rule.share;
            d = rule.nesterov ? d + b.true_[i] * rule.momentum : b.true_[i];
        }
        p.true_[i] -= d * rule.rate;
    }
    kernels->sgd(&rule, g, p.mine, momentum ? b.mine : NULL, n);
    compare("sgd", p, 0);
    compare("sgd's momentum", b, 0);

    const ck_adam adam = {0.01, 0.125, 0.5, 0.75, 0.875, 0.9, 1e-3, (int)draw(0, 1)};
    const int ams = (int)draw(0, 1);
    output q = new_output(n), m = new_output(n), v = new_output(n), top = new_output(n);
    for (ptrdiff_t i = 0; i < n; i++) {
        v.true_[i] = fabs(v.true_[i]), put(v.mine, i, v.true_[i]);
        const double d = (adam.maximize ? -at(g, i) : at(g, i)) + q.true_[i] * adam.weight_decay;
        m.true_[i] = m.true_[i] * adam.beta1 + d * (1 - adam.beta1);
        v.true_[i] = v.true_[i] * adam.beta2 + d * d * (1 - adam.beta2);
        double second = v.true_[i];
        if (ams)
            second = top.true_[i] = second <= top.true_[i] ? top.true_[i] : second;
        q.true_[i] = q.true_[i] * adam.shrink
            - m.true_[i] / (sqrt(second) / adam.root + adam.eps) * adam.rate;
    }
    kernels->adam(&adam, g, q.mine, m.mine, v.mine, ams ? top.mine : NULL, n);
    compare("adam", q, rounding());
    compare("adam's mean", m, 0);
    compare("adam's squares", v, 0);
    compare("adam's largest", top, 0);
}

/* ---- Winograd: elements multiplied one by one and transformed back are a correlation ---- */

static ck_patch patch_of(const void *x, ptrdiff_t size, ptrdiff_t channels)
{
    ck_patch patch = {.first = 0, .last = (int)size};
    for (ptrdiff_t i = 0; i < size; i++) {
        patch.row[i] = further(x, i * size * channels);
        patch.step[i] = channels;
    }
    return patch;
}

/* Multiply n*n elements, channel by channel, into whole vectors. */
static void *products(const void *a, const void *b, ptrdiff_t n, ptrdiff_t element)
{
    void *c = guarded((size_t)(n * n * element * kernels->itemsize), 0);
    for (ptrdiff_t i = 0; i < n * n * element; i++)
        put(c, i, at(a, i) * at(b, i));
    return c;
}

static void test_winograd(const ck_winograd *w)
{
    const ptrdiff_t lanes = kernels->lanes, channels = draw(1, 3 * lanes);
    const ptrdiff_t element = (channels + lanes - 1) / lanes * lanes, size = w->size;
    const ptrdiff_t m = w->outputs, taps = w->taps;
    const size_t bytes = (size_t)(size * size * element * kernels->itemsize);
    void *pixels = integers(size * size * channels), *weight = integers(taps * taps * channels);
    void *grad = integers(m * m * channels);
    void *V = guarded(bytes, 0), *U = guarded(bytes, 0), *Y = guarded(bytes, 0);
    ck_patch patch = patch_of(pixels, size, channels);
    /* Rows and columns outside the image are zeros, and are not read. */
    const void *zeros = memset(guarded((size_t)(channels * kernels->itemsize), 0), 0,
                               (size_t)(channels * kernels->itemsize));
    patch.first = (int)draw(0, 1), patch.last = (int)(size - draw(0, 1));
    if (draw(0, 1))
        patch.row[0] = zeros, patch.step[0] = 0;
    for (ptrdiff_t i = 0; i < size; i++)
        for (ptrdiff_t j = 0; j < size; j++)
            if (j < patch.first || j >= patch.last || patch.row[i] == zeros)
                for (ptrdiff_t c = 0; c < channels; c++)
                    put(pixels, (i * size + j) * channels + c, 0);
    const ck_patch filter = patch_of(weight, taps, channels), given = patch_of(grad, m, channels);
    w->input(&patch, channels, V, element, lanes);
    w->weight(&filter, channels, U, element, lanes);
    if (w->gradient)
        w->gradient(&given, channels, Y, element, lanes);
    const double tolerance = kernels->dtype == CK_F64 ? 1e-8 : 2;

    const void *bias = draw(0, 1) ? integers(channels) : NULL;
    ck_target target = {.rows = (int)draw(1, m), .columns = (int)draw(1, m), .bias = bias};
    target.activation = (int)draw(CK_IDENTITY, CK_LEAKY_RELU), target.slope = 0.5;
    target.column = channels + draw(0, 2), target.row = m * target.column;
    output out = new_output((target.rows - 1) * target.row + (target.columns - 1) * target.column
                            + channels);
    for (ptrdiff_t i = 0; i < target.rows; i++)
        for (ptrdiff_t j = 0; j < target.columns; j++)
            for (ptrdiff_t c = 0; c < channels; c++) {
                double sum = bias ? at(bias, c) : 0;
                for (ptrdiff_t r = 0; r < taps; r++)
                    for (ptrdiff_t s = 0; s < taps; s++)
                        sum += at(pixels, ((i * w->stride + r) * size + j * w->stride + s) * channels + c)
                            * at(weight, (r * taps + s) * channels + c);
                out.true_[i * target.row + j * target.column + c] =
                    activated(sum, target.activation, target.slope);
            }
    target.out = out.mine;
    w->output(products(V, U, size, element), element, channels, &target);
    compare("winograd", out, tolerance / 100);
    if (!w->gradient)
        return;

    out = new_output(taps * taps * channels);
    for (ptrdiff_t r = 0; r < taps; r++)
        for (ptrdiff_t s = 0; s < taps; s++)
            for (ptrdiff_t c = 0; c < channels; c++) {
                double *sum = &out.true_[(r * taps + s) * channels + c];
                *sum = 0;
                for (ptrdiff_t i = 0; i < m; i++)
                    for (ptrdiff_t j = 0; j < m; j++)
                        *sum += at(pixels, ((i + r) * size + j + s) * channels + c)
                            * at(grad, (i * m + j) * channels + c);
            }
    const ck_target whole = {out.mine, taps * channels, channels, (int)taps, (int)taps, 0, 0, NULL};
    w->weight_gradient(products(V, Y, size, element), element, channels, &whole);
    compare("winograd's gradient", out, tolerance / 100);
}

/* ---- all of it ---- */

static void test_all(int times)
{
    for (int NV = 1; NV <= CK_MAX_VECTORS; NV++)
        for (int MR = 1; MR <= kernels->max_pixels[NV]; MR++)
            for (int i = 0; i < times; i++, release_all()) {
                test_tile(MR, NV);
                test_outer(MR, NV);
            }
    for (int MR = 1; MR <= kernels->max_dot_rows; MR++)
        for (int i = 0; i < times; i++, release_all()) {
            test_dot(MR, 1);
            test_dot(MR, CK_DOT_COLUMNS);
        }
    for (int filters = 1; filters <= kernels->max_lanes_filters; filters++)
        for (int pixels = 1; pixels <= kernels->max_lanes_pixels[filters]; pixels++)
            for (int i = 0; i < times; i++, release_all())
                test_lanes(filters, pixels);
    for (int i = 0; i < CK_WINOGRAD_TILES_COUNT * times; i++, release_all())
        test_winograd(&kernels->winograd[i % CK_WINOGRAD_TILES_COUNT]);
    static void (*const tests[])(void) = {
        test_transpose, test_rows, test_max_pool, test_max_pool_backward, test_scatter, test_boxes,
        test_split_rows, test_depthwise, test_square, test_activations, test_softmax, test_channels,
        test_max_pool_of_a_map, test_local_response_norm, test_optimisers};
    for (size_t t = 0; t < sizeof tests / sizeof *tests; t++)
        for (int i = 0; i < 10 * times; i++, release_all())
            tests[t]();
}

int main(int argc, char **argv)
{
    const char *text = getenv("CONVKERN_TEST_TIMES");
    const int times = text ? atoi(text) : 10;
    for (const char *const *name = ck_isa_names(); *name; name++) {
        int wanted = argc == 1;
        for (int i = 1; i < argc; i++)
            wanted |= strcmp(argv[i], *name) == 0;
        if (!wanted || !ck_isa_supported(*name))
            continue;
        const long earlier_checks = checks, earlier_failures = failures;
        isa = *name;
        for (int dtype = 0; dtype < CK_DTYPES; dtype++) {
            kernels = ck_table(isa, dtype);
            test_all(times);
        }
        printf("%s: %ld comparisons, %ld failures\n", isa, checks - earlier_checks,
               failures - earlier_failures);
        fflush(stdout);
    }
    return failures > 0 || checks == 0;
}
