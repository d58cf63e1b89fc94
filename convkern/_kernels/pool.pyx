# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Pooling: maxima with indices, moves by index, sums over boxes."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

cimport numpy as cnp
import numpy as np

from convkern._kernels.core cimport (
    CK_RELU,
    CK_WORK_OF_ELEMENT,
    Axis,
    Span,
    axis,
    ceil_div,
    ck_affine,
    ck_boxes,
    ck_kernels,
    ck_note,
    ck_pool,
    data_of,
    give,
    kernels_of,
    moved,
    new_spans,
    run,
    take,
)

cnp.import_array()


# ---------------------------------------------------------------- maxima

cdef enum:
    BLOCK_BYTES = 192 << 10  # of input that an item reads, more or less
    LEAST_ITEMS = 64         # that work is cut into if it is little, for the threads to share
    SPLIT_BYTES = 24 << 10   # of split rows: they stay in the first-level cache


cdef struct PoolJob:
    const ck_kernels *kernels
    const char *x
    char *out
    int64_t *indices
    Axis h, w
    Span *rows
    Span *columns
    Py_ssize_t row_spans, column_spans
    Py_ssize_t channels, x_image, x_row, x_column
    # Of output rows, in an image or a plane.
    Py_ssize_t blocks
    # Where the taps of a row of windows begin, and the window's first element inside the image.
    ptrdiff_t *taps
    int32_t *first
    # Contiguous planes only: how many there are; blocks of rows in an item; how rows are split, all
    # of a block as one if they are `joined`; what an output row takes of the split ones.
    Py_ssize_t planes, group, phases, used, length, step
    bint joined
    # A normalisation of the pixels before the maxima, which are contiguous then, or NULL.
    const ck_affine *map
    # Backwards x is the gradient of the output, and out the output if a ReLU came before, or NULL.
    char *grad_input
    Py_ssize_t covered  # columns at the left of the input that have no gaps between windows
    const char *pixels  # what the normalisation has met, or NULL
    # Instead of that: sums of the gradients, and of their products with pixels less a center, of each
    # item.
    const double *center
    double *sums


cdef double window_work(const PoolJob *job) noexcept nogil:
    """Work of one output, in what `run` counts."""
    return CK_WORK_OF_ELEMENT / 2 * job.h.kernel * job.w.kernel + CK_WORK_OF_ELEMENT


cdef inline Py_ssize_t first_tap(const Axis *a, Py_ssize_t o, Py_ssize_t tap) noexcept nogil:
    """Input position of a window's tap, moved inside where the whole window is in the padding."""
    return min(o * a.stride - a.pad + tap * a.dilation, a.size - 1)


cdef void fill_gaps(const PoolJob *job, Py_ssize_t image, Py_ssize_t row, Py_ssize_t first,
                    Py_ssize_t rows) noexcept nogil:
    """Write gradients of what no window meets from an output row's first input row to the next."""
    cdef Py_ssize_t r, covered, at
    cdef Py_ssize_t end = (row + 1) * job.h.stride - job.h.pad if row + 1 < job.h.out else job.h.size
    for r in range(first, end):
        covered = job.covered if r < first + rows else 0
        if covered == job.w.size:
            continue
        at = (image * job.x_image + r * job.x_row + covered * job.x_column) * job.kernels.itemsize
        if job.map != NULL:
            job.kernels.affine_pixels(job.map, job.pixels + at, NULL, job.grad_input + at,
                                      job.w.size - covered)
        else:
            memset(job.grad_input + at, 0, <size_t>(
                (job.w.size - covered) * job.x_column * job.kernels.itemsize))


cdef void max_pool_pixels_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of output rows of one image, channels-last, or what belongs to the gradients."""
    cdef const PoolJob *job = <const PoolJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, image = item // job.blocks
    cdef Py_ssize_t block = item % job.blocks, row, i, at_row, at_column, at, out_at
    cdef const Span *rows = job.rows
    cdef const Span *columns
    cdef double *sums = NULL
    cdef ck_pool pool
    if job.sums != NULL:
        sums = job.sums + item * 2 * job.channels
        memset(sums, 0, <size_t>(2 * job.channels) * sizeof(double))
    pool.map = job.map
    pool.width = pool.out_step = job.channels
    pool.x_step, pool.tap_row = job.w.stride * job.x_column, job.w.kernel
    pool.taps, pool.first, pool.ordered = job.taps, NULL, False
    pool.index_step, pool.index_lane = job.w.stride, 0
    pool.index_row, pool.index_column = (
        <int32_t>(job.h.dilation * job.w.size), <int32_t>job.w.dilation)
    for row in range(job.h.out * block // job.blocks, job.h.out * (block + 1) // job.blocks):
        while rows.stop <= row:
            rows += 1
        at_row = first_tap(&job.h, row, rows.first)
        pool.rows = rows.last - rows.first
        if job.grad_input != NULL:
            fill_gaps(job, image, row, at_row, pool.rows)
        for i in range(job.column_spans):
            columns = &job.columns[i]
            at_column = first_tap(&job.w, columns.start, columns.first)
            pool.steps = columns.stop - columns.start
            pool.columns = columns.last - columns.first
            pool.index = at_row * job.w.size + at_column
            out_at = ((image * job.h.out + row) * job.w.out + columns.start) * job.channels
            at = image * job.x_image + at_row * job.x_row + at_column * job.x_column
            if sums != NULL:
                job.kernels.max_pool_pairs(
                    &pool, job.x + out_at * size, job.indices + out_at,
                    moved(job.out, out_at * size), job.pixels + at * size, job.center, sums,
                    sums + job.channels)
                continue
            if job.grad_input != NULL:
                job.kernels.max_pool_backward(
                    &pool, job.x + out_at * size, job.indices + out_at,
                    moved(job.out, out_at * size), moved(job.pixels, at * size),
                    job.grad_input + at * size)
                continue
            job.kernels.max_pool(&pool, job.x + at * size, job.out + out_at * size,
                                 NULL if job.indices == NULL else job.indices + out_at)


cdef void max_pool_plane(const PoolJob *job, Py_ssize_t plane, Py_ssize_t begin, Py_ssize_t end,
                         char *scratch) noexcept nogil:
    """Output rows begin .. end-1 of one contiguous plane.

    Input rows are split into the phases of the stride, edges filled with -inf,
    so that every tap of a row of windows is a contiguous load.
    """
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, at_row, out_at, i
    cdef Py_ssize_t top = max(0, begin * job.h.stride - job.h.pad)
    cdef Py_ssize_t bottom = min(job.h.size, (end - 1) * job.h.stride - job.h.pad
                                 + (job.h.kernel - 1) * job.h.dilation + 1)
    cdef Py_ssize_t height = bottom - top, width = job.w.size
    cdef const Span *rows
    cdef ck_pool pool
    if job.joined:
        height, width = 1, height * width
    pool.ordered = not kernels.split_rows(
        job.x + (plane * job.h.size + top) * job.w.size * size, height, width, job.w.stride,
        job.w.pad, scratch, job.phases, job.used, job.length)
    pool.width = pool.out_step = job.w.out
    pool.map = NULL
    pool.columns, pool.first = job.w.kernel, job.first
    pool.taps, pool.tap_row, pool.x_step = job.taps, job.w.kernel, job.step
    pool.index_step, pool.index_lane = job.h.stride * job.w.size, <int32_t>job.w.stride
    pool.index_row, pool.index_column = (
        <int32_t>(job.h.dilation * job.w.size), <int32_t>job.w.dilation)
    for i in range(job.row_spans):
        rows = &job.rows[i]
        pool.steps = min(end, rows.stop) - max(begin, rows.start)
        if pool.steps <= 0:
            continue
        at_row = first_tap(&job.h, max(begin, rows.start), rows.first)
        pool.rows = rows.last - rows.first
        pool.index = at_row * job.w.size - job.w.pad
        out_at = (plane * job.h.out + max(begin, rows.start)) * job.w.out
        kernels.max_pool(&pool, scratch + (at_row - top) * job.step // job.h.stride * size,
                         job.out + out_at * size,
                         NULL if job.indices == NULL else job.indices + out_at)


cdef void max_pool_planes_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of blocks of output rows of contiguous planes."""
    cdef const PoolJob *job = <const PoolJob *>job_
    cdef Py_ssize_t i, block
    for i in range(item * job.group, min((item + 1) * job.group, job.planes * job.blocks)):
        block = i % job.blocks
        max_pool_plane(job, i // job.blocks, job.h.out * block // job.blocks,
                       job.h.out * (block + 1) // job.blocks, scratch)


cdef void cut_rows(PoolJob *job) noexcept:
    """Cut the output rows of channels-last images into blocks."""
    cdef double row_bytes = job.h.stride * job.x_row * job.kernels.itemsize
    job.blocks = <Py_ssize_t>min(<double>job.h.out, job.h.out * row_bytes / BLOCK_BYTES + 1)


cdef int max_pool_pixels(PoolJob *job, Py_ssize_t images, int threads) except -1:
    cdef Py_ssize_t r, s
    cdef double row_work = job.w.out * job.channels * window_work(job)
    job.columns = new_spans(&job.w, &job.column_spans)
    for r in range(job.h.kernel):
        for s in range(job.w.kernel):
            job.taps[r * job.w.kernel + s] = (
                r * job.h.dilation * job.x_row + s * job.w.dilation * job.x_column)
    cut_rows(job)
    return run(max_pool_pixels_item, job, images * job.blocks,
               row_work * ceil_div(job.h.out, job.blocks), threads, 0)


cdef int max_pool_planes(PoolJob *job, int threads) except -1:
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t lanes = kernels.lanes, stride = job.w.stride, size = kernels.itemsize
    cdef Py_ssize_t extent = (job.w.kernel - 1) * job.w.dilation + 1
    cdef Py_ssize_t padded = ceil_div(job.w.out, lanes) * lanes, block, height, row, r, s, o, at
    # Rows of windows that keep inside the row and begin in the same phase are split as one.
    job.joined = (job.h.pad == 0 and job.w.pad == 0 and job.h.stride * job.w.size % stride == 0
                  and (job.w.out - 1) * stride + extent <= job.w.size)
    job.phases = stride if job.joined else min(stride, extent)
    job.used = 0 if job.joined else job.w.out + (extent - 1) // stride
    row = max(job.used, ceil_div(job.w.pad + job.w.size, stride)) + 2 * lanes
    block = max(1, SPLIT_BYTES // (job.h.stride * job.phases * row * size))
    job.blocks = ceil_div(job.h.out, block)
    block = ceil_div(job.h.out, job.blocks)
    height = min(job.h.size,
                 (block - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1)
    if job.joined:
        job.length = (height * job.w.size // stride // lanes + 2) * lanes
        job.step = job.h.stride * job.w.size // stride
        row, height = job.length, 1
    else:
        job.length = row // lanes * lanes
        job.step = job.h.stride * job.phases * job.length
    for r in range(job.h.kernel):
        for s in range(job.w.kernel):
            at = s * job.w.dilation + (r * job.h.dilation * job.w.size if job.joined else 0)
            job.taps[r * job.w.kernel + s] = at % stride * job.length + at // stride
            if not job.joined:
                job.taps[r * job.w.kernel + s] += r * job.h.dilation * job.phases * job.length
    if job.w.pad > 0:
        job.first = <int32_t *>take(<size_t>padded * sizeof(int32_t))
        for o in range(padded):
            s = max(0, ceil_div(job.w.pad - o * stride, job.w.dilation))
            job.first[o] = <int32_t>(first_tap(&job.w, o, s) - o * stride + job.w.pad)
    job.group = max(1, min(job.planes * job.blocks // LEAST_ITEMS,
                           BLOCK_BYTES // (job.h.stride * block * job.w.size * size)))
    return run(max_pool_planes_item, job, ceil_div(job.planes * job.blocks, job.group),
               window_work(job) * job.group * block * padded, threads,
               <size_t>(height * job.phases * job.length * size))


cdef int pool_maxima(PoolJob *job, Py_ssize_t images, bint channels_last, int threads) except -1:
    """Run a job that knows its arrays and axes."""
    job.rows, job.columns, job.taps, job.first = NULL, NULL, NULL, NULL
    try:
        job.rows = new_spans(&job.h, &job.row_spans)
        job.taps = <ptrdiff_t *>take(
            <size_t>(job.h.kernel * job.w.kernel) * sizeof(ptrdiff_t))
        if channels_last:
            max_pool_pixels(job, images, threads)
        else:
            max_pool_planes(job, threads)
    finally:
        give(job.rows)
        give(job.columns)
        give(job.taps)
        give(job.first)
    return 0


cdef PoolJob new_job(cnp.ndarray x, cnp.ndarray out, cnp.ndarray indices, tuple rows,
                     tuple columns) noexcept:
    """Return the job of pooling dense images."""
    cdef PoolJob job
    memset(&job, 0, sizeof(job))
    job.kernels = kernels_of(x)
    job.indices = <int64_t *>data_of(indices)
    job.h, job.w = axis(x.shape[2], out.shape[2], rows), axis(x.shape[3], out.shape[3], columns)
    job.channels = x.shape[1]
    job.x_column, job.x_row = job.channels, job.channels * job.w.size
    job.x_image = job.x_row * job.h.size
    return job


def max_pool2d(cnp.ndarray x, cnp.ndarray out, cnp.ndarray indices, tuple rows, tuple columns,
               bint channels_last, int threads, cnp.ndarray coefficients=None, bint relu=False):
    """Pool x into out and indices (or None); rows, columns: (kernel, stride, padding, dilation).

    `out` and `indices` have the layout of x: channels-last (x may have gaps
    between its rows, columns and images) or contiguous NCHW.  With the `coefficients` of `affine`,
    channels-last pixels are mapped first, and rectified if wanted.
    """
    cdef PoolJob job = new_job(x, out, indices, rows, columns)
    cdef ck_affine map
    job.x, job.out = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out)
    job.planes = x.shape[0] * x.shape[1]
    job.x_image, job.x_row, job.x_column = (
        x.strides[0] // job.kernels.itemsize, x.strides[2] // job.kernels.itemsize,
        x.strides[3] // job.kernels.itemsize)
    if coefficients is not None:
        map = ck_affine(cnp.PyArray_DATA(coefficients), NULL, job.channels,
                        CK_RELU if relu else 0, 0)
        job.map = &map
    pool_maxima(&job, x.shape[0], channels_last, threads)


def max_pool2d_backward(cnp.ndarray grad, cnp.ndarray indices, cnp.ndarray out, tuple rows,
                        tuple columns, int threads, cnp.ndarray rectified=None,
                        cnp.ndarray x=None, cnp.ndarray coefficients=None, bint after_relu=False):
    """Write the gradient of a pooling whose windows do not overlap, without dilation.

    All arrays are dense and channels-last.  `rectified` is the pooling's output, if its input was
    that of a ReLU: `out` is then the gradient of the ReLU's input.  With the `coefficients` of
    `affine`, it is what this makes of x and of these gradients.
    """
    cdef PoolJob job = new_job(out, grad, indices, rows, columns)
    cdef ck_affine map
    job.x, job.out, job.pixels = data_of(grad), <char *>data_of(rectified), data_of(x)
    job.grad_input = <char *>cnp.PyArray_DATA(out)
    if job.w.stride <= job.w.kernel:
        job.covered = min(job.w.size, (job.w.out - 1) * job.w.stride - job.w.pad + job.w.kernel)
    if coefficients is not None:
        map = ck_affine(cnp.PyArray_DATA(coefficients), NULL, job.channels, 0, after_relu)
        job.map = &map
    pool_maxima(&job, grad.shape[0], True, threads)


def max_pool2d_sums(cnp.ndarray grad, cnp.ndarray indices, cnp.ndarray x, cnp.ndarray center,
                    tuple rows, tuple columns, int threads, cnp.ndarray rectified=None):
    """Return the `gradient_sums` of x and of what `max_pool2d_backward` gives, (2, channels).

    Windows may overlap here; otherwise arguments are as there.
    """
    cdef PoolJob job = new_job(x, grad, indices, rows, columns)
    cdef Py_ssize_t i, c
    cdef cnp.ndarray result = np.zeros((2, job.channels))
    cdef double *sums = <double *>cnp.PyArray_DATA(result)
    job.x, job.out, job.pixels = data_of(grad), <char *>data_of(rectified), data_of(x)
    job.center = <const double *>cnp.PyArray_DATA(center)
    cut_rows(&job)
    job.sums = <double *>take(
        <size_t>(grad.shape[0] * job.blocks * 2 * job.channels) * sizeof(double))
    try:
        pool_maxima(&job, grad.shape[0], True, threads)
        for i in range(grad.shape[0] * job.blocks):
            for c in range(2 * job.channels):
                sums[c] += job.sums[i * 2 * job.channels + c]
    finally:
        give(job.sums)
    return result


# ---------------------------------------------------------------- back to where maxima were

cdef enum Move:
    PUT   # elements to their indices, zero elsewhere; the last of several stays
    ADD   # the same, several are added up
    TAKE  # elements from their indices

cdef struct MoveJob:
    const ck_kernels *kernels
    const char *src
    const int64_t *indices
    char *out
    Move what
    # Indices and elements per plane; channels of a pixel and of a block; blocks of an image, of all
    # and of an item.
    Py_ssize_t count, size, channels, block, blocks, all_blocks, group
    int *outside


cdef void move_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Blocks of channels of images, or planes where `channels` is 1: their only owner."""
    cdef const MoveJob *job = <const MoveJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, i, image, first, channels, few, many
    cdef int outside
    for i in range(item * job.group, min((item + 1) * job.group, job.all_blocks)):
        image, first = i // job.blocks, i % job.blocks * job.block
        channels = min(job.block, job.channels - first)
        few = image * job.count * job.channels + first
        many = image * job.size * job.channels + first
        if job.what == TAKE:
            outside = kernels.gather(job.src + many * size, job.indices + few, job.count, channels,
                                     job.channels, job.size, job.out + few * size)
        else:
            outside = kernels.scatter(job.src + few * size, job.indices + few, job.count, channels,
                                      job.channels, job.size, job.what == ADD,
                                      job.out + many * size)
        if outside:
            ck_note(job.outside)


cdef bint move(Move what, cnp.ndarray src, cnp.ndarray indices, cnp.ndarray out, Py_ssize_t size,
               int threads) except -1:
    """Move elements; return whether all indices lie inside the plane.

    The arrays are dense: (images, pixels, channels) for channels-last ones,
    (planes, pixels, 1) for contiguous NCHW.
    """
    cdef MoveJob job
    cdef int outside = 0
    job.kernels, job.what, job.outside = kernels_of(src), what, &outside
    job.src, job.out = <const char *>cnp.PyArray_DATA(src), <char *>cnp.PyArray_DATA(out)
    job.indices = <const int64_t *>cnp.PyArray_DATA(indices)
    job.count, job.size, job.channels = indices.shape[1], size, indices.shape[2]
    # All channels where the images are enough for the threads, otherwise whole cache lines of them.
    job.blocks = min(ceil_div(job.channels, 16), ceil_div(LEAST_ITEMS // 4, indices.shape[0]))
    job.block = ceil_div(ceil_div(job.channels, job.blocks), 16) * 16
    job.blocks = ceil_div(job.channels, job.block)
    job.all_blocks = indices.shape[0] * job.blocks
    job.group = max(1, min(job.all_blocks // LEAST_ITEMS,
                           BLOCK_BYTES // (size * job.block * job.kernels.itemsize)))
    run(move_item, &job, ceil_div(job.all_blocks, job.group),
        (20.0 * job.count + size) * min(job.block, job.channels) * job.group, threads, 0)
    return not outside


def scatter(cnp.ndarray src, cnp.ndarray indices, cnp.ndarray out, bint add, int threads):
    """Put elements where the indices say, zeros elsewhere; with `add` sum up those that meet."""
    return move(ADD if add else PUT, src, indices, out, out.shape[1], threads)


def gather(cnp.ndarray src, cnp.ndarray indices, cnp.ndarray out, int threads):
    """Take elements from where the indices say."""
    return move(TAKE, src, indices, out, src.shape[1], threads)


# ---------------------------------------------------------------- sums over boxes

cdef struct BoxJob:
    const ck_kernels *kernels
    const char *x
    char *out
    const ptrdiff_t *row_begin
    const ptrdiff_t *row_end
    const char *row_divisors
    ck_boxes boxes
    # Output rows and columns, blocks of rows in an image or plane, blocks in an item, all blocks.
    Py_ssize_t height, width, blocks, group, count
    Py_ssize_t x_image, out_pixel
    bint channels_last


cdef void box_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of blocks of output rows."""
    cdef const BoxJob *job = <const BoxJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, i, row, end
    cdef ck_boxes boxes = job.boxes
    cdef const char *x
    cdef char *out
    for i in range(item * job.group, min((item + 1) * job.group, job.count)):
        row = job.height * (i % job.blocks) // job.blocks
        end = job.height * (i % job.blocks + 1) // job.blocks
        x = job.x + i // job.blocks * job.x_image * size
        out = job.out + (i // job.blocks * job.height + row) * job.width * job.out_pixel * size
        if not job.channels_last:
            job.kernels.box_rows(&boxes, end - row, job.row_begin + row, job.row_end + row, x,
                                 moved(job.row_divisors, row * size), scratch, out)
            continue
        for row in range(row, end):
            boxes.rows = job.row_end[row] - job.row_begin[row]
            job.kernels.box_pixels(&boxes, x + job.row_begin[row] * boxes.x_row * size,
                                   moved(job.row_divisors, row * size), out)
            out += job.width * job.out_pixel * size


def box_sums(cnp.ndarray x, cnp.ndarray out, tuple rows, tuple columns, divisors,
             bint channels_last, int threads):
    """Sum x over boxes of rows and columns, divide.

    rows and columns are (begin, end), int64 arrays of out's height or width;
    divisors is None or two arrays of these sizes and x's dtype, whose products
    divide.  `out` has the layout of x: channels-last (x may have gaps) or contiguous.
    """
    cdef BoxJob job
    cdef Py_ssize_t size, images, j, start, block
    cdef cnp.ndarray row_begin = rows[0], row_end = rows[1]
    cdef cnp.ndarray column_begin = columns[0], column_end = columns[1]
    cdef double row_bytes, taps
    cdef size_t scratch
    job.kernels, job.x = kernels_of(x), <const char *>cnp.PyArray_DATA(x)
    size = job.kernels.itemsize
    job.out, job.channels_last = <char *>cnp.PyArray_DATA(out), channels_last
    job.row_begin = <const ptrdiff_t *>cnp.PyArray_DATA(row_begin)
    job.row_end = <const ptrdiff_t *>cnp.PyArray_DATA(row_end)
    job.row_divisors, job.boxes.divisors = NULL, NULL
    if divisors is not None:
        job.row_divisors, job.boxes.divisors = data_of(divisors[0]), data_of(divisors[1])
    job.boxes.begin = <const ptrdiff_t *>cnp.PyArray_DATA(column_begin)
    job.boxes.end = <const ptrdiff_t *>cnp.PyArray_DATA(column_end)
    job.height, job.width = out.shape[2], out.shape[3]
    job.boxes.count = job.width
    if channels_last:
        images, job.out_pixel = x.shape[0], x.shape[1]
        job.boxes.width = x.shape[1]
        job.x_image, job.boxes.x_row, job.boxes.x_pixel = (
            x.strides[0] // size, x.strides[2] // size, x.strides[3] // size)
    else:
        images, job.out_pixel = x.shape[0] * x.shape[1], 1
        job.boxes.width = job.boxes.x_row = x.shape[3]
        job.x_image, job.boxes.x_pixel = x.shape[2] * x.shape[3], 1
    # The longest run of columns whose boxes are alike and one column apart.
    job.boxes.run_begin = job.boxes.run_end = start = 0
    for j in range(1, job.width + 1):
        if (j < job.width and job.boxes.begin[j] == job.boxes.begin[j - 1] + 1
                and job.boxes.end[j] == job.boxes.end[j - 1] + 1):
            continue
        if j - start > job.boxes.run_end - job.boxes.run_begin:
            job.boxes.run_begin, job.boxes.run_end = start, j
        start = j
    row_bytes = <double>size * (job.width * job.out_pixel
                                + x.shape[2] * x.shape[3] * job.out_pixel / <double>job.height)
    job.blocks = <Py_ssize_t>min(
        <double>job.height,
        job.height * row_bytes / (BLOCK_BYTES if channels_last else SPLIT_BYTES) + 1)
    job.count = images * job.blocks
    block = ceil_div(job.height, job.blocks)
    job.group = <Py_ssize_t>max(1.0, min(job.count / <double>LEAST_ITEMS,
                                         BLOCK_BYTES / (row_bytes * block)))
    sizes = np.subtract(column_end, column_begin)
    job.boxes.least, job.boxes.most = sizes.min(), sizes.max()
    scratch = 0
    if not channels_last:
        scratch = <size_t>(block * (job.boxes.width + job.boxes.most) * size)
    taps = <double>np.subtract(row_end, row_begin).mean() * <double>sizes.mean()
    run(box_item, &job, ceil_div(job.count, job.group),
        job.group * block * job.width * job.out_pixel * (2 * taps + 4),
        threads, scratch)
