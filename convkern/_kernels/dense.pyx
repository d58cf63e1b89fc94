# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Linear layers and their gradients."""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_DOT_COLUMNS,
    CK_FIRST,
    CK_LAST,
    CK_MAX_VECTORS,
    ceil_div,
    ck_chunk,
    ck_dot_layout,
    ck_kernels,
    ck_tile_layout,
    give,
    kernels_of,
    run,
    take,
    transpose,
)

cnp.import_array()


cdef struct LinearJob:
    const ck_kernels *kernels
    const char *x
    const char *weight
    const char *bias
    char *out
    Py_ssize_t batch, inputs, outputs

cdef enum:
    LINEAR_ROWS = 32     # rows of the weight in an item
    LINEAR_BATCH = 48    # rows of the batch whose partial sums an item holds
    LINEAR_CHUNK = 1024  # a batch tile this long stays in the first-level cache


cdef void linear_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of output features for the whole batch."""
    cdef const LinearJob *job = <const LinearJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, begin = item * LINEAR_ROWS, vector = kernels.lanes * size
    cdef Py_ssize_t end = min(begin + LINEAR_ROWS, job.outputs), batch, batch_end, k, i, j, rows
    cdef Py_ssize_t columns, chunk
    cdef const char *bias = job.bias
    cdef ck_dot_layout layout
    layout.x_row = layout.w_row = job.inputs
    layout.out_row = job.outputs
    batch = 0
    while batch < job.batch:
        batch_end = min(batch + LINEAR_BATCH, job.batch)
        # One row streams the weights; several share them chunk by chunk.
        chunk = job.inputs if batch_end - batch <= kernels.max_dot_rows else LINEAR_CHUNK
        k = 0
        layout.flags = CK_FIRST
        while not layout.flags & CK_LAST:
            layout.length = min(chunk, job.inputs - k)
            if k + layout.length == job.inputs:
                layout.flags |= CK_LAST
            i = batch
            while i < batch_end:
                rows = min(<Py_ssize_t>kernels.max_dot_rows, batch_end - i)
                j = begin
                while j < end:
                    columns = CK_DOT_COLUMNS if end - j >= CK_DOT_COLUMNS else 1
                    kernels.dot[rows][columns](
                        &layout, job.x + (i * job.inputs + k) * size,
                        job.weight + (j * job.inputs + k) * size,
                        bias + j * size if bias else bias,
                        scratch + ((i - batch) * LINEAR_ROWS + rows * (j - begin)) * vector,
                        job.out + (i * job.outputs + j) * size)
                    j += columns
                i += rows
            k += layout.length
            layout.flags &= ~CK_FIRST
        batch = batch_end


def linear(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray out, int threads):
    """Compute out = x @ weight.T + bias for contiguous (batch, I), (O, I), (O,) or None, (batch, O)."""
    cdef LinearJob job
    job.kernels = kernels_of(x)
    job.x, job.out = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out)
    job.weight = <const char *>cnp.PyArray_DATA(weight)
    job.bias = NULL
    if bias is not None:
        job.bias = <const char *>cnp.PyArray_DATA(bias)
    job.batch, job.inputs, job.outputs = x.shape[0], x.shape[1], weight.shape[0]
    if job.batch == 0:
        return
    # A weight costs the time of a few operations to fetch, however small the batch.
    cdef double work = LINEAR_ROWS * (2.0 * job.batch + 8) * max(1, job.inputs)
    run(linear_item, &job, ceil_div(job.outputs, LINEAR_ROWS), work, threads,
        <size_t>(LINEAR_BATCH * LINEAR_ROWS * job.kernels.lanes * job.kernels.itemsize))


# ---------------------------------------------------------------- matrix product

cdef enum:
    # Products of one chain; longer ones lose digits, shorter ones reread the output more often.
    CHUNK = 128
    DIRECT_CHUNK = 32          # where b is read in place: rows long enough for the prefetcher
    PACKED_BYTES = 512 << 10   # of b that an item packs at a time
    PRODUCT_ROWS = 240         # of an item: a multiple of most tiles

cdef struct ProductJob:
    const ck_kernels *kernels
    const char *a
    const char *b
    char *out
    Py_ssize_t rows, length, columns
    # Columns are cut into panels as wide as the widest tile; an item has some panels.
    Py_ssize_t vectors, panels, width, group, row_blocks, chunk
    bint direct


cdef void pack_panel(const ProductJob *job, Py_ssize_t column, Py_ssize_t width, Py_ssize_t k,
                     Py_ssize_t length, char *packed) noexcept nogil:
    """Copy `length` rows of b, `width` columns of each, next to each other; zeros past the end."""
    cdef Py_ssize_t size = job.kernels.itemsize, count = min(width, job.columns - column), row
    cdef const char *src = job.b + (k * job.columns + column) * size
    for row in range(length):
        memcpy(packed, src, <size_t>(count * size))
        if count < width:
            memset(packed + count * size, 0, <size_t>((width - count) * size))
        packed += width * size
        src += job.columns * size


cdef void product_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of rows times a group of panels."""
    cdef const ProductJob *job = <const ProductJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, k = 0, length, row, stop, tile
    cdef Py_ssize_t block = item % job.row_blocks, first = item // job.row_blocks * job.group
    cdef Py_ssize_t last = min(first + job.group, job.panels), panel, column, vectors, tiles
    cdef Py_ssize_t begin = job.rows * block // job.row_blocks
    cdef Py_ssize_t rows = job.rows * (block + 1) // job.row_blocks - begin
    cdef char *zeros = scratch + job.group * job.chunk * job.width * size
    cdef char *packed
    cdef const char *b
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    memset(&layout, 0, sizeof(layout))
    memset(zeros, 0, <size_t>(job.width * size))
    layout.out_pixel, layout.x_pixel, layout.x_row = job.columns, job.length, 1
    chunk.flags = CK_FIRST
    chunk.ahead, chunk.ahead_step = job.b, 0
    while True:
        length = min(job.chunk, job.length - k)
        if k + length == job.length:
            chunk.flags |= CK_LAST
        chunk.x = chunk.w = 0
        chunk.columns = 1
        # Packed panels stay in the second-level cache while the tiles pass over them row by
        # row, so that each writes long pieces of a few rows.
        for panel in range(first, last):
            column = job.vectors * panel // job.panels * lanes
            vectors = job.vectors * (panel + 1) // job.panels - column // lanes
            if not job.direct or column + vectors * lanes > job.columns:
                pack_panel(job, column, vectors * lanes, k, length,
                           scratch + (panel - first) * job.chunk * job.width * size)
        tiles = ceil_div(rows, kernels.max_pixels[ceil_div(job.vectors, job.panels)])
        for tile in range(tiles):
            row, stop = rows * tile // tiles, rows * (tile + 1) // tiles
            for panel in range(first, last):
                column = job.vectors * panel // job.panels * lanes
                vectors = job.vectors * (panel + 1) // job.panels - column // lanes
                layout.tail = <int>min(lanes, job.columns - column - (vectors - 1) * lanes)
                if job.direct and column + vectors * lanes <= job.columns:
                    # One step of the sum is one row of b where it lies.
                    b = job.b + (k * job.columns + column) * size
                    chunk.rows, chunk.run, layout.w_row = length, 1, job.columns
                else:
                    b = scratch + (panel - first) * job.chunk * job.width * size
                    chunk.rows, chunk.run = 1, length
                kernels.tile[vectors][stop - row](
                    &layout, &chunk, job.a + ((begin + row) * job.length + k) * size, b, zeros,
                    job.out + ((begin + row) * job.columns + column) * size)
        k += length
        if chunk.flags & CK_LAST:
            return
        chunk.flags = 0


cdef int product(const ck_kernels *kernels, const char *a, const char *b, char *out,
                 Py_ssize_t rows, Py_ssize_t length, Py_ssize_t columns, int threads) except -1:
    """Compute out = a @ b for contiguous (rows, length) and (length, columns)."""
    cdef ProductJob job
    cdef Py_ssize_t widest = CK_MAX_VECTORS, groups
    if rows == 0 or columns == 0:
        return 0
    while kernels.max_pixels[widest] == 0:
        widest -= 1
    job.kernels, job.a, job.b, job.out = kernels, a, b, out
    job.rows, job.length, job.columns = rows, length, columns
    job.vectors = ceil_div(columns, kernels.lanes)
    job.panels = ceil_div(job.vectors, widest)
    job.width = ceil_div(job.vectors, job.panels) * kernels.lanes
    # The tiles of a few rows read b once: a packed copy would not be read again.
    job.direct = rows <= kernels.max_pixels[ceil_div(job.vectors, job.panels)]
    job.row_blocks = ceil_div(rows, PRODUCT_ROWS)
    job.chunk = max(1, min(length, <Py_ssize_t>(DIRECT_CHUNK if job.direct else CHUNK)))
    job.group = PACKED_BYTES // (job.chunk * job.width * kernels.itemsize)
    job.group = max(1, min(job.group, 16))
    while job.group > 1 and job.row_blocks * ceil_div(job.panels, job.group) < 4 * threads:
        job.group //= 2
    groups = ceil_div(job.panels, job.group)
    return run(product_item, &job, groups * job.row_blocks,
               (2.0 * min(rows, <Py_ssize_t>PRODUCT_ROWS) + 8) * length * job.group * job.width,
               threads, <size_t>((job.group * job.chunk + 1) * job.width * kernels.itemsize))


def linear_input_gradient(cnp.ndarray grad, cnp.ndarray weight, cnp.ndarray out, int threads):
    """Compute out = grad @ weight for contiguous (batch, O), (O, I), (batch, I)."""
    product(kernels_of(grad), <const char *>cnp.PyArray_DATA(grad),
            <const char *>cnp.PyArray_DATA(weight), <char *>cnp.PyArray_DATA(out),
            grad.shape[0], grad.shape[1], weight.shape[1], threads)


def linear_weight_gradient(cnp.ndarray grad, cnp.ndarray x, cnp.ndarray out, int threads):
    """Compute out = grad.T @ x for contiguous (batch, O), (batch, I), (O, I)."""
    cdef const ck_kernels *kernels = kernels_of(grad)
    cdef Py_ssize_t batch = grad.shape[0], outputs = grad.shape[1]
    cdef char *turned = take(<size_t>(batch * outputs * kernels.itemsize) + 1)
    try:
        transpose(kernels, <const char *>cnp.PyArray_DATA(grad), turned, 1, batch, outputs, threads)
        product(kernels, turned, <const char *>cnp.PyArray_DATA(x),
                <char *>cnp.PyArray_DATA(out), outputs, batch, x.shape[1], threads)
    finally:
        give(turned)
