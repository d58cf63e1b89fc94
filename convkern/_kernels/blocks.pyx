# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Blocks of pixels as channels, and back: a strided convolution becomes a dense one."""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_WORK_OF_ELEMENT,
    Images,
    ceil_div,
    ck_kernels,
    ck_prefetch,
    ck_prefetch_next,
    images_of,
    kernels_of,
    run,
)

cnp.import_array()


cdef struct BlockJob:
    const ck_kernels *kernels
    Images blocks, pixels
    # Of the pixels in elements: item size, rows, row length; block and first place of both axes.
    Py_ssize_t size, height, width, block_rows, top, left
    Py_ssize_t lines, unit  # lines of one row of pixels, and how long a block's part of one is
    Py_ssize_t rows, columns  # of blocks


cdef void place_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One row of pixels: `unit` elements from each block that it crosses."""
    cdef const BlockJob *job = <const BlockJob *>job_
    cdef Py_ssize_t image = item // job.height, row = item % job.height, line, at, begin, end, units
    cdef Py_ssize_t place = (row + job.top) % job.block_rows
    cdef const char *src
    cdef char *out
    for line in range(job.lines):
        src = job.blocks.data + (
            image * job.blocks.image + (row + job.top) // job.block_rows * job.blocks.row
            + (line * job.block_rows + place) * job.unit) * job.size
        out = job.pixels.data + (image * job.pixels.image + line * job.pixels.column
                                 + row * job.pixels.row) * job.size
        # The first block may begin before the row, the last end after it.
        at = -job.left
        while at < job.width:
            begin, end, units = max(at, 0), min(at + job.unit, job.width), 1
            if end - begin == job.unit:
                units = (job.width - at) // job.unit
            job.kernels.copy_units(src + (begin - at) * job.size, job.blocks.column, end - begin,
                                   units, out + begin * job.size, job.unit)
            at += units * job.unit
            src += units * job.blocks.column * job.size


def place_pixels(cnp.ndarray blocks, cnp.ndarray out, tuple rows, tuple columns,
                 bint channels_last, int threads):
    """Copy blocks (channels-last) to the pixels they stand for.

    rows and columns are (pixels of a block, place of the first pixel in its block); the
    channels of a block are (row, column, channel) for channels-last pixels, else (channel,
    row, column).
    """
    cdef BlockJob job
    cdef Py_ssize_t channels = out.shape[1], elements
    job.kernels, job.size, job.height = kernels_of(out), out.itemsize, out.shape[2]
    job.blocks = images_of(blocks)
    job.block_rows, job.top = rows
    if channels_last:  # the output was made for this: its rows are dense
        job.pixels, job.lines, elements = images_of(out), 1, channels
    else:
        job.pixels = Images(<char *>cnp.PyArray_DATA(out), channels * out.shape[2] * out.shape[3],
                            out.shape[3], out.shape[2] * out.shape[3])
        job.lines, elements = channels, 1
    job.unit, job.left, job.width = columns[0] * elements, columns[1] * elements, (
        out.shape[3] * elements)
    run(place_item, &job, blocks.shape[0] * job.height, 2.0 * job.width * job.lines, threads, 0)


cdef inline void gather_edge(const BlockJob *job, const char *src, Py_ssize_t at,
                             char *to) noexcept nogil:
    """Copy the part of a line that a block has which begins at `at`; zeros outside."""
    cdef Py_ssize_t begin = min(max(at, 0), job.width)
    cdef Py_ssize_t end = max(begin, min(at + job.unit, job.width))
    memset(to, 0, <size_t>(job.unit * job.size))
    memcpy(to + (begin - at) * job.size, src + begin * job.size, <size_t>((end - begin) * job.size))


cdef void gather_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One row of blocks, from the rows of pixels that it stands for."""
    cdef const BlockJob *job = <const BlockJob *>job_
    cdef Py_ssize_t image = item // job.rows, block_row = item % job.rows, r, y, i, line
    # Blocks that lie in the rows as a whole.
    cdef Py_ssize_t first = min(job.columns, ceil_div(max(0, job.left), job.unit))
    cdef Py_ssize_t last = max(first, min(job.columns, (job.width + job.left) // job.unit))
    cdef Py_ssize_t step = job.blocks.column
    cdef const char *src
    cdef char *to
    for line in range(job.lines):
        for r in range(job.block_rows):
            y = block_row * job.block_rows + r - job.top
            to = job.blocks.data + (image * job.blocks.image + block_row * job.blocks.row
                                    + (line * job.block_rows + r) * job.unit) * job.size
            if not 0 <= y < job.height:
                for i in range(job.columns):
                    memset(to + i * step * job.size, 0, <size_t>(job.unit * job.size))
                continue
            src = job.pixels.data + (image * job.pixels.image + line * job.pixels.column
                                     + y * job.pixels.row) * job.size
            for i in range(first):
                gather_edge(job, src, i * job.unit - job.left, to + i * step * job.size)
            job.kernels.copy_units(src + (first * job.unit - job.left) * job.size, job.unit,
                                   job.unit, last - first, to + first * step * job.size, step)
            for i in range(last, job.columns):
                gather_edge(job, src, i * job.unit - job.left, to + i * step * job.size)


def gather_blocks(cnp.ndarray x, cnp.ndarray blocks, tuple rows, tuple columns, bint channels_last,
                  int threads):
    """Copy pixels, channels-last in dense rows or contiguous NCHW, into channels-last blocks.

    There are zeros outside.  See `place_pixels`.
    """
    cdef BlockJob job
    cdef Py_ssize_t channels = x.shape[1], elements = 1
    job.kernels, job.size, job.height, job.blocks = kernels_of(x), x.itemsize, x.shape[2], (
        images_of(blocks))
    job.block_rows, job.top = rows
    if channels_last:
        job.pixels, job.lines, elements = images_of(x), 1, channels
    else:
        job.pixels = Images(<char *>cnp.PyArray_DATA(x), channels * x.shape[2] * x.shape[3],
                            x.shape[3], x.shape[2] * x.shape[3])
        job.lines = channels
    job.unit, job.left = columns[0] * elements, columns[1] * elements
    job.width = x.shape[3] * elements
    job.rows, job.columns = blocks.shape[2], blocks.shape[3]
    run(gather_item, &job, blocks.shape[0] * job.rows,
        2.0 * job.columns * job.block_rows * job.lines * job.unit, threads, 0)


cdef enum:
    PLANE_BYTES = 32 << 10  # of an item that takes or spreads steps,
    FETCHED_BYTES = 4 << 10 # ahead of what it takes

cdef struct StepJob:
    const ck_kernels *kernels
    char *steps
    char *pixels
    # Of a plane with the pixels at every step, of one with all, and the steps.
    Py_ssize_t rows, columns, height, width, row_step, column_step
    Py_ssize_t planes, per_item


cdef void take_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """The pixels at every step of some planes."""
    cdef const StepJob *job = <const StepJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, plane
    cdef ck_prefetch coming
    coming.step = coming.bytes = job.height * job.width * size
    coming.count, coming.write = 1, 0
    coming.at = job.pixels + (item * job.per_item + FETCHED_BYTES // coming.step + 1) * coming.step
    coming.end = job.pixels + job.planes * coming.step
    for plane in range(item * job.per_item, min((item + 1) * job.per_item, job.planes)):
        ck_prefetch_next(&coming)
        job.kernels.gather_taps(job.pixels + plane * job.height * job.width * size,
                                job.column_step, job.row_step * job.width, job.rows,
                                job.steps + plane * job.rows * job.columns * size, job.columns,
                                job.columns)


cdef void spread_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some planes with the pixels of smaller ones at every step."""
    cdef const StepJob *job = <const StepJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, plane
    for plane in range(item * job.per_item, min((item + 1) * job.per_item, job.planes)):
        job.kernels.spread_plane(job.steps + plane * job.rows * job.columns * size, job.rows,
                                 job.columns, job.row_step, job.column_step,
                                 job.pixels + plane * job.height * job.width * size, job.height,
                                 job.width)


cdef StepJob step_job(cnp.ndarray pixels, cnp.ndarray steps, tuple step) noexcept:
    cdef StepJob job
    job.kernels = kernels_of(pixels)
    job.steps, job.pixels = <char *>cnp.PyArray_DATA(steps), <char *>cnp.PyArray_DATA(pixels)
    job.rows, job.columns = steps.shape[2], steps.shape[3]
    job.height, job.width = pixels.shape[2], pixels.shape[3]
    job.row_step, job.column_step = step
    job.planes = pixels.shape[0] * pixels.shape[1]
    job.per_item = max(1, PLANE_BYTES // (job.height * job.width * job.kernels.itemsize))
    return job


def take_steps(cnp.ndarray pixels, cnp.ndarray steps, tuple step, int threads):
    """Copy every step-th pixel of contiguous NCHW images, from the first on."""
    cdef StepJob job = step_job(pixels, steps, step)
    run(take_item, &job, ceil_div(job.planes, job.per_item),
        CK_WORK_OF_ELEMENT * job.per_item * job.rows * job.columns, threads, 0)


def spread_steps(cnp.ndarray steps, cnp.ndarray pixels, tuple step, int threads):
    """Put pixels at every step of contiguous NCHW images, zeros between them."""
    cdef StepJob job = step_job(pixels, steps, step)
    run(spread_item, &job, ceil_div(job.planes, job.per_item),
        2.0 * job.per_item * job.height * job.width, threads, 0)
