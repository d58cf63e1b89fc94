# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Drivers: how the work of an operator is cut, packed and handed to the micro-kernels.

The callers in `functional` have checked every argument; nothing here chooses a
dtype or judges a shape.  An operator is a *job* (a C struct) that is cut into
*items* by its shape alone, and `run` gives the items to the threads.  Each
output element belongs to one item and its sum has one order, so results do not
depend on the number of threads.
"""

import os
from time import perf_counter

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport parallel, prange, threadid
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp
import numpy as np

cnp.import_array()


cdef extern from "csrc/ck.h" nogil:
    enum: CK_F32, CK_F64, CK_OPENMP
    enum: CK_FIRST, CK_LAST, CK_DOT_COLUMNS
    ctypedef struct ck_tile_layout:
        ptrdiff_t x_pixel, x_row, x_column, w_row, out_pixel
        int tail, activation
        double slope
    ctypedef struct ck_chunk:
        ptrdiff_t x, w, rows, columns, run
        int flags
    ctypedef void (*ck_tile_fn)(const ck_tile_layout *, const ck_chunk *, const void *,
                                const void *, const void *, void *) noexcept nogil
    ctypedef struct ck_dot_layout:
        ptrdiff_t length, x_row, w_row, out_row
        int flags
    ctypedef void (*ck_dot_fn)(const ck_dot_layout *, const void *, const void *, const void *,
                               void *, void *) noexcept nogil
    ctypedef struct ck_window:
        ptrdiff_t pixels, channels, rows, columns, x_pixel, x_row, x_column, out_pixel
        int64_t index, index_pixel
        int32_t index_row, index_column
        ptrdiff_t w_row, w_column
        int activation
        double slope
    ctypedef struct ck_kernels:
        int itemsize, lanes, max_dot_rows
        int max_pixels[5]
        ck_tile_fn tile[5][15]
        ck_dot_fn dot[7][5]
        void (*transpose)(const void *, ptrdiff_t, void *, ptrdiff_t, ptrdiff_t,
                          ptrdiff_t) noexcept nogil
        void (*max_pool)(const ck_window *, const void *, void *, int64_t *) noexcept nogil
        void (*max_pool_row)(const ck_window *, const void *, const ptrdiff_t *, const int32_t *,
                             void *, int64_t *) noexcept nogil
        void (*split_row)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *,
                          ptrdiff_t) noexcept nogil
        void (*depthwise)(const ck_window *, const void *, const void *, const void *,
                          void *) noexcept nogil
        void (*activate)(const void *, void *, ptrdiff_t, int, double) noexcept nogil
        void (*local_response_norm)(const void *, void *, ptrdiff_t, ptrdiff_t, double, double,
                                    double, void *) noexcept nogil
        double (*spin_fma)(ptrdiff_t, void *) noexcept nogil
    const char *const *ck_isa_names()
    int ck_isa_supported(const char *)
    const ck_kernels *ck_table(const char *, int)
    uint64_t ck_fp_default()
    void ck_fp_restore(uint64_t)
    int ck_grow_team(int)
    int ck_in_parallel()

cdef extern from "csrc/memory.h":
    void *ck_take(size_t) nogil
    void ck_give(void *) nogil
    void *ck_resize(void *, size_t) nogil
    void ck_release_idle()
    size_t ck_idle_bytes()


# ---------------------------------------------------------------- instruction set

cdef const ck_kernels *active[2]
isa = ""


def isa_names(supported_only=True):
    """Names of the instruction sets in this build, best last."""
    cdef const char *const *names = ck_isa_names()
    found = []
    while names[len(found)] != NULL:
        found.append(names[len(found)].decode())
    return [name for name in found if not supported_only or ck_isa_supported(name.encode())]


cdef select_isa(name):
    """Make one instruction set's tables the active ones."""
    global isa
    supported = isa_names()
    if name not in supported:
        known = isa_names(supported_only=False)
        reason = "not supported by this CPU" if name in known else "not in this build"
        raise ImportError(
            f"CONVKERN_ISA={name!r} is {reason}; accepted here: {', '.join(supported)}"
        )
    active[CK_F32] = ck_table(name.encode(), CK_F32)
    active[CK_F64] = ck_table(name.encode(), CK_F64)
    isa = name


select_isa(os.environ.get("CONVKERN_ISA") or isa_names().pop())
openmp = CK_OPENMP


cdef inline const ck_kernels *kernels_of(cnp.ndarray array) noexcept:
    return active[CK_F64 if cnp.PyArray_TYPE(array) == cnp.NPY_DOUBLE else CK_F32]


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


# ---------------------------------------------------------------- memory

cdef extern from *:
    """
    #include "csrc/memory.h"
    static void *kept_malloc(void *ctx, size_t size) { (void)ctx; return ck_take(size); }
    static void *kept_calloc(void *ctx, size_t count, size_t size)
    {
        (void)ctx;
        void *block = size && count > (size_t)-1 / size ? NULL : ck_take(count * size);
        return block ? memset(block, 0, count * size) : NULL;
    }
    static void *kept_realloc(void *ctx, void *block, size_t size)
    {
        (void)ctx;
        return ck_resize(block, size);
    }
    static void kept_free(void *ctx, void *block, size_t size)
    {
        (void)ctx, (void)size;
        ck_give(block);
    }
    /* How NumPy gets the memory of our larger results (NEP 49): they own it like any array. */
    static PyDataMem_Handler kept_handler = {
        "convkern", 1, {NULL, kept_malloc, kept_calloc, kept_realloc, kept_free}};
    """
    void *kept_handler_address "(&kept_handler)"
    object PyDataMem_SetHandler(object)

cdef object kept_capsule = PyCapsule_New(kept_handler_address, "mem_handler", NULL)

cdef enum:
    KEEP_BYTES = 1 << 18  # below this the system's allocator keeps pages by itself


def empty(tuple shape, dtype, bint channels_last=False):
    """Return a new array, its pages kept from earlier ones if large; 4-D may be channels-last."""
    cdef object previous
    cdef cnp.ndarray array
    physical = (shape[0], shape[2], shape[3], shape[1]) if channels_last else shape
    cdef double size = dtype.itemsize
    for extent in physical:
        size *= extent
    if size < KEEP_BYTES:
        array = np.empty(physical, dtype)
    else:
        previous = PyDataMem_SetHandler(kept_capsule)
        try:
            array = np.empty(physical, dtype)
        finally:
            PyDataMem_SetHandler(previous)
    return array.transpose(0, 3, 1, 2) if channels_last else array


def empty_cache():
    """Return all idle kept memory to the system."""
    ck_release_idle()


def idle_bytes():
    """Return how much memory is kept but not in use."""
    return ck_idle_bytes()


cdef char *take(size_t size) except NULL:
    cdef void *block = ck_take(size)
    if block == NULL:
        raise MemoryError(f"cannot allocate {size} bytes of working memory")
    return <char *>block


# ---------------------------------------------------------------- threads

ctypedef void (*item_fn)(const void *job, Py_ssize_t item, char *scratch) noexcept nogil

# Work is counted in floating-point operations or what takes as long.
cdef double WORK_PER_THREAD = 1e6   # less is not worth waking a thread for
cdef double WORK_PER_REGION = 1e9   # per thread, between two looks at pending signals: < 100 ms


cdef int run(item_fn function, const void *job, Py_ssize_t items, double work, int threads,
             size_t scratch_bytes) except -1:
    """Call ``function(job, item, scratch)`` for every item; the only place that starts threads.

    `work` is that of one item, `scratch_bytes` what one thread needs.
    """
    cdef double total = work * items
    cdef Py_ssize_t i, start = 0, stop, step
    cdef uint64_t saved = 0
    cdef char *scratch
    if items <= 0:
        return 0
    if threads > items:
        threads = <int>items
    if threads > 1 and total < threads * WORK_PER_THREAD:
        threads = max(1, <int>(total / WORK_PER_THREAD))
    if threads > 1:
        threads = 1 if ck_in_parallel() else ck_grow_team(threads)
    scratch_bytes = (scratch_bytes + 127) // 128 * 128
    scratch = take(scratch_bytes * threads + 1)
    step = max(threads, <Py_ssize_t>min(<double>items, threads * WORK_PER_REGION / max(work, 1.0)))
    try:
        while start < items:
            stop = min(items, start + step)
            if threads == 1:
                with nogil:
                    saved = ck_fp_default()
                    for i in range(start, stop):
                        function(job, i, scratch)
                    ck_fp_restore(saved)
            else:
                with nogil, parallel(num_threads=threads):
                    saved = ck_fp_default()
                    for i in prange(start, stop, schedule="dynamic"):
                        function(job, i, scratch + scratch_bytes * <size_t>threadid())
                    ck_fp_restore(saved)
            start = stop
            if start < items:
                PyErr_CheckSignals()
    finally:
        ck_give(scratch)
    return 0


# ---------------------------------------------------------------- windows

cdef struct Axis:
    # One spatial axis of a window operator.
    Py_ssize_t size, out, kernel, stride, pad, dilation

cdef struct Span:
    # Output positions start .. stop-1, whose windows hold exactly the taps first .. last-1.
    Py_ssize_t start, stop, first, last


cdef Axis axis(Py_ssize_t size, Py_ssize_t out, tuple window) noexcept:
    """One axis from its (kernel, stride, leading padding, dilation)."""
    cdef Axis a
    a.size, a.out = size, out
    a.kernel, a.stride, a.pad, a.dilation = window
    return a


cdef Py_ssize_t cut_spans(const Axis *a, Span *spans) noexcept nogil:
    """Cut an axis where windows begin or cease to hang over an edge; at most 2*kernel + 1 spans.

    Taps in the padding are thereby never visited and no padded copy is needed.
    """
    cdef Py_ssize_t o, origin, first, last, count = 0
    for o in range(a.out):
        origin = o * a.stride - a.pad
        first = 0 if origin >= 0 else min(a.kernel, ceil_div(-origin, a.dilation))
        last = a.size - origin
        last = 0 if last <= 0 else min(a.kernel, ceil_div(last, a.dilation))
        last = max(first, last)
        if count and spans[count - 1].first == first and spans[count - 1].last == last:
            spans[count - 1].stop = o + 1
        else:
            spans[count] = Span(o, o + 1, first, last)
            count += 1
    return count


cdef Span *new_spans(const Axis *a, Py_ssize_t *count) except NULL:
    cdef Span *spans = <Span *>take(<size_t>min(2 * a.kernel + 1, a.out) * sizeof(Span) + 1)
    count[0] = cut_spans(a, spans)
    return spans


# ---------------------------------------------------------------- layout

cdef struct TransposeJob:
    const ck_kernels *kernels
    const char *src
    char *dst
    # One image: `rows` x `columns` elements, rows `src_row` apart, become columns.
    Py_ssize_t rows, columns, src_image, dst_image, src_row, dst_row, blocks, block


cdef void transpose_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const TransposeJob *job = <const TransposeJob *>job_
    cdef Py_ssize_t image = item // job.blocks, start = item % job.blocks * job.block
    cdef Py_ssize_t stop = min(start + job.block, job.columns), size = job.kernels.itemsize
    job.kernels.transpose(job.src + (image * job.src_image + start) * size, job.src_row,
                          job.dst + (image * job.dst_image + start * job.dst_row) * size,
                          job.dst_row, job.rows, stop - start)


cdef int transpose(const ck_kernels *kernels, const char *src, char *dst, Py_ssize_t images,
                   Py_ssize_t rows, Py_ssize_t columns, int threads) except -1:
    """Transpose each of `images` contiguous matrices; NCHW to channels-last is C x (H*W)."""
    cdef TransposeJob job
    job.kernels, job.src, job.dst = kernels, src, dst
    job.rows, job.columns = rows, columns
    job.src_image = job.dst_image = rows * columns
    job.src_row, job.dst_row = columns, rows
    job.block = max(64, 16384 // max(rows, 1) // 64 * 64)
    job.blocks = ceil_div(columns, job.block)
    return run(transpose_item, &job, images * job.blocks, 4.0 * rows * min(job.block, columns),
               threads, 0)


def to_channels_last(cnp.ndarray x, cnp.ndarray out, int threads):
    """Copy a contiguous NCHW array into a channels-last one."""
    cdef Py_ssize_t plane = x.shape[2] * x.shape[3]
    transpose(kernels_of(x), <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out),
              x.shape[0], x.shape[1], plane, threads)


def to_contiguous(cnp.ndarray x, cnp.ndarray out, int threads):
    """Copy a channels-last array into a contiguous NCHW one."""
    cdef Py_ssize_t plane = x.shape[2] * x.shape[3]
    transpose(kernels_of(x), <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out),
              x.shape[0], plane, x.shape[1], threads)


# ---------------------------------------------------------------- convolution

cdef enum:
    PACK_CHANNELS = 16  # transposed at a time

cdef struct PackJob:
    const ck_kernels *kernels
    const char *weight
    char *packed
    Py_ssize_t groups, out_channels, channels, taps, vectors, blocks


cdef void pack_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Pack one block of output channels: (k, c, tap) becomes (tap, c, k), k padded with zeros."""
    cdef const PackJob *job = <const PackJob *>job_
    cdef Py_ssize_t block = item % job.blocks, group = item // job.blocks, tap
    cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes
    cdef Py_ssize_t first = job.vectors * block // job.blocks
    cdef Py_ssize_t width = (job.vectors * (block + 1) // job.blocks - first) * lanes
    cdef Py_ssize_t k0 = first * lanes, count = min(width, job.out_channels - k0)
    cdef Py_ssize_t filter_size = job.channels * job.taps
    cdef const char *src = job.weight + (group * job.out_channels + k0) * filter_size * size
    cdef char *dst = job.packed + (group * job.vectors * lanes + k0) * filter_size * size
    cdef Py_ssize_t row = width * size, c, step, part
    if job.taps == 1:
        memset(dst, 0, <size_t>(filter_size * row) if count < width else 0)
        job.kernels.transpose(src, filter_size, dst, width, count, filter_size)
        return
    # (k, c, tap) -> (c, tap, k) by transposing a few channels into the first-level cache, and
    # from there to (tap, c, k) row by row.
    memset(scratch, 0, <size_t>(PACK_CHANNELS * job.taps * row))
    for step in range(ceil_div(job.channels, PACK_CHANNELS)):
        c = step * PACK_CHANNELS
        part = min(<Py_ssize_t>PACK_CHANNELS, job.channels - c)
        job.kernels.transpose(src + c * job.taps * size, filter_size, scratch, width, count,
                              part * job.taps)
        for tap in range(job.taps):
            for c in range(part):
                memcpy(dst + (tap * job.channels + step * PACK_CHANNELS + c) * row,
                       scratch + (c * job.taps + tap) * row, <size_t>row)


@cython.final
cdef class PackedConv:
    """The weights and bias of one convolution in the order that the register tile reads them.

    Per group and block of output channels: (tap row, tap column, input channel,
    output channel), the block as wide as the widest tile, its last vector
    padded with zeros.  A depthwise convolution keeps (tap, channel).
    """

    cdef char *weight
    cdef char *bias
    cdef const ck_kernels *kernels
    cdef Py_ssize_t out_channels, channels, groups, kh, kw, vectors, blocks
    cdef bint depthwise

    def __dealloc__(self):
        ck_give(self.weight)
        ck_give(self.bias)

    def __init__(self, cnp.ndarray weight, cnp.ndarray bias, Py_ssize_t groups, int threads):
        """Pack a C-contiguous (OC, C/groups, KH, KW) weight and a bias (OC,) or None."""
        cdef PackJob job
        cdef const ck_kernels *kernels = kernels_of(weight)
        cdef Py_ssize_t lanes = kernels.lanes, size = kernels.itemsize, widest = 4, g
        self.kernels, self.groups = kernels, groups
        self.out_channels = weight.shape[0] // groups
        self.channels = weight.shape[1]
        self.kh, self.kw = weight.shape[2], weight.shape[3]
        self.depthwise = self.channels == 1 and self.out_channels == 1
        while kernels.max_pixels[widest] == 0:
            widest -= 1
        self.vectors = ceil_div(self.out_channels, lanes)
        self.blocks = ceil_div(self.vectors, widest)
        cdef Py_ssize_t taps = self.kh * self.kw
        cdef Py_ssize_t padded = weight.shape[0] if self.depthwise else groups * self.vectors * lanes
        self.weight = take(<size_t>(padded * self.channels * taps * size))
        self.bias = take(<size_t>((padded + lanes) * size))
        memset(self.bias, 0, <size_t>((padded + lanes) * size))
        if bias is not None:
            for g in range(1 if self.depthwise else groups):
                memcpy(self.bias + g * self.vectors * lanes * size,
                       <const char *>cnp.PyArray_DATA(bias) + g * self.out_channels * size,
                       <size_t>((weight.shape[0] if self.depthwise else self.out_channels) * size))
        job.kernels, job.weight = kernels, <const char *>cnp.PyArray_DATA(weight)
        job.packed = self.weight
        if self.depthwise:
            kernels.transpose(job.weight, taps, job.packed, weight.shape[0], weight.shape[0], taps)
            return
        job.groups, job.out_channels, job.channels = groups, self.out_channels, self.channels
        job.taps, job.vectors, job.blocks = taps, self.vectors, self.blocks
        cdef Py_ssize_t block = widest * lanes * self.channels * taps
        run(pack_item, &job, groups * self.blocks, 4.0 * block, threads,
            0 if taps == 1 else <size_t>(PACK_CHANNELS * taps * widest * lanes * size))


cdef struct ConvJob:
    const ck_kernels *kernels
    const char *x
    const char *weight
    const char *bias
    char *out
    Axis h, w
    Span *rows
    Span *columns
    Py_ssize_t row_spans, column_spans
    # Strides between images, rows and columns; channels are contiguous.
    Py_ssize_t x_image, x_row, x_column, out_image, out_row, out_column
    # Channels of one group; vectors and blocks of output channels.
    Py_ssize_t channels, out_channels, groups, vectors, blocks
    # How the output is cut into items: `positions` row and column blocks of images times groups'
    # blocks of filters; the one whose data is smaller varies faster.
    Py_ssize_t row_blocks, column_blocks, positions
    bint filters_fastest
    int activation
    double slope

cdef enum:
    # Products summed in registers before they are added to the output: longer chains lose digits,
    # and this many steps of weights stay in the cache while the tiles of an item pass over them.
    CHUNK = 256


cdef void conv_box(const ConvJob *job, Py_ssize_t vectors, int tail, const char *x,
                   const char *weight, const char *bias, char *out, const Span *rows,
                   const Span *columns) noexcept nogil:
    """Compute the output pixels of one row span x column span, which all see the same taps."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, width = vectors * kernels.lanes
    cdef Py_ssize_t height = rows.stop - rows.start, breadth = columns.stop - columns.start
    cdef Py_ssize_t widest = kernels.max_pixels[vectors]
    cdef Py_ssize_t lines = height, length = breadth, tiles, line, tile, start, stop
    cdef Py_ssize_t x_line = job.h.stride * job.x_row, out_line = job.out_row
    cdef Py_ssize_t tap_rows = rows.last - rows.first, tap_columns = columns.last - columns.first
    cdef Py_ssize_t run_length = job.channels, row_step, column_step, pieces, r, c, piece, e0, e1
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    cdef const char *tile_x
    cdef const char *tile_w
    cdef char *tile_out

    layout.x_pixel = job.w.stride * job.x_column
    layout.out_pixel = job.out_column
    # Tiles lie along the rows, or down the columns where that takes fewer of them.
    if breadth * ceil_div(height, widest) < height * ceil_div(breadth, widest):
        lines, length = breadth, height
        x_line, layout.x_pixel = layout.x_pixel, x_line
        out_line, layout.out_pixel = layout.out_pixel, out_line
    tiles = ceil_div(length, widest)
    layout.x_row = job.h.dilation * job.x_row
    layout.x_column = job.w.dilation * job.x_column
    layout.w_row = job.w.kernel * job.channels * width
    layout.tail = tail
    layout.activation, layout.slope = job.activation, job.slope

    # Taps of a row that are contiguous with their channels form one run.
    if layout.x_column == job.channels:
        run_length *= tap_columns
        tap_columns = 1
    row_step, column_step, pieces = 1, tap_columns, 1
    if run_length * tap_columns * tap_rows == 0:
        tap_rows = 0
    elif run_length * tap_columns <= CHUNK:
        row_step = CHUNK // (run_length * tap_columns)
    elif run_length <= CHUNK:
        column_step = CHUNK // run_length
    else:
        column_step, pieces = 1, ceil_div(run_length, CHUNK)

    chunk.flags = CK_FIRST
    r = c = piece = 0
    while True:
        chunk.rows = min(row_step, tap_rows - r)
        chunk.columns = min(column_step, tap_columns - c)
        e0 = run_length * piece // pieces & ~3
        e1 = run_length if piece == pieces - 1 else run_length * (piece + 1) // pieces & ~3
        chunk.run = e1 - e0
        tile_x = x + (((rows.first + r) * job.h.dilation + rows.start * job.h.stride - job.h.pad)
                      * job.x_row
                      + ((columns.first + c) * job.w.dilation + columns.start * job.w.stride
                         - job.w.pad) * job.x_column + e0) * size
        tile_w = weight + (((rows.first + r) * job.w.kernel + columns.first + c) * job.channels
                           + e0) * width * size
        # The next chunk, innermost first.
        piece += 1
        if piece == pieces:
            piece, c = 0, c + column_step
        if c >= tap_columns:
            c, r = 0, r + row_step
        if r >= tap_rows:
            chunk.flags |= CK_LAST
        tile_out = out + (rows.start * job.out_row + columns.start * job.out_column) * size
        for line in range(lines):
            start = 0
            for tile in range(tiles):
                stop = length * (tile + 1) // tiles
                kernels.tile[vectors][stop - start](
                    &layout, &chunk, tile_x + start * layout.x_pixel * size, tile_w, bias,
                    tile_out + start * layout.out_pixel * size)
                start = stop
            tile_x += x_line * size
            tile_out += out_line * size
        if chunk.flags & CK_LAST:
            return
        chunk.flags = 0


cdef inline bint clip(const Span *span, Py_ssize_t start, Py_ssize_t stop, Span *part) noexcept nogil:
    """Intersect a span with start .. stop-1; tell whether anything is left."""
    part[0] = span[0]
    part.start, part.stop = max(span.start, start), min(span.stop, stop)
    return part.start < part.stop


cdef void conv_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One block of rows and columns of an image, one block of filters of a group."""
    cdef const ConvJob *job = <const ConvJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes, i, j
    cdef Py_ssize_t filters = item // job.positions, position = item % job.positions
    if job.filters_fastest:
        position = item // (job.groups * job.blocks)
        filters = item % (job.groups * job.blocks)
    cdef Py_ssize_t group = filters // job.blocks, block = filters % job.blocks
    cdef Py_ssize_t column_block = position % job.column_blocks
    position //= job.column_blocks
    cdef Py_ssize_t row_block = position % job.row_blocks, image = position // job.row_blocks
    cdef Py_ssize_t first = job.vectors * block // job.blocks
    cdef Py_ssize_t vectors = job.vectors * (block + 1) // job.blocks - first
    cdef Py_ssize_t k0 = first * lanes
    cdef int tail = <int>lanes
    if block == job.blocks - 1:
        tail = <int>(job.out_channels - (job.vectors - 1) * lanes)
    cdef const char *x = job.x + (image * job.x_image + group * job.channels) * size
    cdef const char *weight = job.weight + (group * job.vectors * lanes + k0) * (
        job.h.kernel * job.w.kernel * job.channels * size)
    cdef const char *bias = job.bias + (group * job.vectors * lanes + k0) * size
    cdef char *out = job.out + (image * job.out_image + group * job.out_channels + k0) * size
    cdef Span rows, columns
    for i in range(job.row_spans):
        if clip(&job.rows[i], job.h.out * row_block // job.row_blocks,
                job.h.out * (row_block + 1) // job.row_blocks, &rows):
            for j in range(job.column_spans):
                if clip(&job.columns[j], job.w.out * column_block // job.column_blocks,
                        job.w.out * (column_block + 1) // job.column_blocks, &columns):
                    conv_box(job, vectors, tail, x, weight, bias, out, &rows, &columns)


cdef void depthwise_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One image and output row, all channels."""
    cdef const ConvJob *job = <const ConvJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, image = item // job.h.out, i
    cdef Py_ssize_t row = item % job.h.out
    cdef const Span *rows = job.rows
    cdef const Span *columns
    cdef ck_window window
    while rows.stop <= row:
        rows += 1
    window.channels = job.groups
    window.x_pixel, window.out_pixel = job.w.stride * job.x_column, job.out_column
    window.x_row, window.x_column = job.h.dilation * job.x_row, job.w.dilation * job.x_column
    window.w_row, window.w_column = job.w.kernel * job.groups, job.groups
    window.activation, window.slope = job.activation, job.slope
    window.rows = rows.last - rows.first
    cdef const char *x = job.x + (
        image * job.x_image
        + (row * job.h.stride - job.h.pad + rows.first * job.h.dilation) * job.x_row) * size
    cdef char *out = job.out + (image * job.out_image + row * job.out_row) * size
    for i in range(job.column_spans):
        columns = &job.columns[i]
        window.pixels = columns.stop - columns.start
        window.columns = columns.last - columns.first
        job.kernels.depthwise(
            &window,
            x + (columns.start * job.w.stride - job.w.pad + columns.first * job.w.dilation)
            * job.x_column * size,
            job.weight + (rows.first * job.w.kernel + columns.first) * job.groups * size,
            job.bias, out + columns.start * job.out_column * size)


cdef void cut_output(ConvJob *job, Py_ssize_t images, int threads) noexcept:
    """Choose the items: what one reads and writes stays in the second-level cache, and there are
    enough of them for the threads.  Where the cuts lie changes no sum."""
    cdef Py_ssize_t per_pixel = job.kernels.itemsize * (
        job.groups * (job.channels * min(job.h.stride, job.h.kernel)
                      * min(job.w.stride, job.w.kernel) + job.out_channels))
    cdef Py_ssize_t pixels = max(64, (320 << 10) // per_pixel)
    cdef Py_ssize_t others = images * job.groups * job.blocks
    # A few items cannot be shared out evenly; fewer than 64 pixels reuse weights too little.
    while pixels > 64 and others * ceil_div(job.h.out * job.w.out, pixels) < 4 * threads:
        pixels = max(64, pixels // 2)
    job.column_blocks = ceil_div(job.w.out, pixels)
    if job.column_blocks == 1:
        job.row_blocks = ceil_div(job.h.out, max(1, pixels // job.w.out))
    else:
        job.row_blocks = job.h.out
    job.positions = images * job.row_blocks * job.column_blocks
    cdef Py_ssize_t filter_bytes = job.kernels.itemsize * (
        ceil_div(job.out_channels, job.blocks) * job.channels * job.h.kernel * job.w.kernel)
    job.filters_fastest = filter_bytes < pixels * per_pixel


cdef int conv_images(ConvJob *job, Py_ssize_t images, bint depthwise, int threads) except -1:
    """Convolve channels-last images; the job's weights, axes and strides are set."""
    cdef Py_ssize_t taps = job.h.kernel * job.w.kernel
    cdef double flops
    # A 1x1 window over contiguous pixels is one long row of them: a matrix product.
    if (taps == 1 and job.h.stride == 1 and job.w.stride == 1 and job.h.out == job.h.size
            and job.w.out == job.w.size and job.x_row == job.w.size * job.x_column
            and job.out_row == job.w.out * job.out_column):
        job.w.size = job.w.out = job.h.size * job.w.size
        job.h.size = job.h.out = 1
        if (job.x_image == job.w.size * job.x_column
                and job.out_image == job.w.out * job.out_column):
            job.w.size = job.w.out = images * job.w.size
            images = 1
    job.rows = new_spans(&job.h, &job.row_spans)
    try:
        job.columns = new_spans(&job.w, &job.column_spans)
        if depthwise:
            flops = 8.0 * job.w.out * job.groups * taps
            return run(depthwise_item, job, images * job.h.out, flops, threads, 0)
        cut_output(job, images, threads)
        flops = 2.0 * ceil_div(job.h.out, job.row_blocks) * ceil_div(job.w.out, job.column_blocks)
        flops *= ceil_div(job.out_channels, job.blocks) * job.channels * taps
        return run(conv_item, job, job.positions * job.groups * job.blocks, flops, threads, 0)
    finally:
        ck_give(job.rows)
        ck_give(job.columns)


cdef enum:
    GROUP_BYTES = 8 << 20  # channels-last copies that an NCHW convolution holds at a time


def conv2d(cnp.ndarray x, PackedConv packed, cnp.ndarray out, tuple rows, tuple columns,
           int activation, double slope, bint channels_last, int threads):
    """Convolve x into out; rows and columns are (stride, leading padding, dilation).

    Both arrays are channels-last (contiguous channels, any other strides) or
    both contiguous NCHW; the latter pass through channels-last copies of a few
    images at a time.
    """
    cdef ConvJob job
    cdef const ck_kernels *kernels = packed.kernels
    cdef Py_ssize_t size = kernels.itemsize, images = x.shape[0], n, count
    cdef Py_ssize_t channels = x.shape[1], out_channels = out.shape[1]
    cdef Py_ssize_t plane = x.shape[2] * x.shape[3], out_plane = out.shape[2] * out.shape[3]
    job.kernels, job.weight, job.bias = kernels, packed.weight, packed.bias
    job.channels, job.out_channels = packed.channels, packed.out_channels
    job.groups, job.vectors, job.blocks = packed.groups, packed.vectors, packed.blocks
    job.activation, job.slope = activation, slope
    job.rows = job.columns = NULL
    cdef Axis h = axis(x.shape[2], out.shape[2], (packed.kh, *rows))
    cdef Axis w = axis(x.shape[3], out.shape[3], (packed.kw, *columns))
    job.h, job.w = h, w
    cdef const char *x_data = <const char *>cnp.PyArray_DATA(x)
    cdef char *out_data = <char *>cnp.PyArray_DATA(out)
    if channels_last:
        job.x, job.out = x_data, out_data
        job.x_image, job.x_row, job.x_column = (
            x.strides[0] // size, x.strides[2] // size, x.strides[3] // size)
        job.out_image, job.out_row, job.out_column = (
            out.strides[0] // size, out.strides[2] // size, out.strides[3] // size)
        conv_images(&job, images, packed.depthwise, threads)
        return
    cdef Py_ssize_t x_image = channels * plane, out_image = out_channels * out_plane
    cdef Py_ssize_t group = max(1, min(images, GROUP_BYTES // ((x_image + out_image) * size)))
    cdef char *copies = take(<size_t>((x_image + out_image) * group * size))
    cdef char *out_copies = copies + x_image * group * size
    try:
        n = 0
        while n < images:
            count = min(group, images - n)
            transpose(kernels, x_data + n * x_image * size, copies, count, channels, plane, threads)
            job.h, job.w = h, w
            job.x, job.out = copies, out_copies
            job.x_image, job.x_row, job.x_column = x_image, x.shape[3] * channels, channels
            job.out_image = out_image
            job.out_row, job.out_column = out.shape[3] * out_channels, out_channels
            conv_images(&job, count, packed.depthwise, threads)
            transpose(kernels, out_copies, out_data + n * out_image * size, count, out_plane,
                      out_channels, threads)
            n += count
    finally:
        ck_give(copies)


# ---------------------------------------------------------------- max pooling

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
    # Contiguous planes only: how rows are split into phases of the stride, and how many output
    # rows make an item.
    Py_ssize_t phases, phase, row_blocks
    ptrdiff_t *starts
    int32_t *first


cdef inline Py_ssize_t first_tap(const Axis *a, Py_ssize_t o, Py_ssize_t tap) noexcept nogil:
    """Input position of a window's tap, moved inside where the whole window is in the padding."""
    return min(o * a.stride - a.pad + tap * a.dilation, a.size - 1)


cdef void max_pool_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One image and output row, channels-last."""
    cdef const PoolJob *job = <const PoolJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, image = item // job.h.out, row = item % job.h.out
    cdef Py_ssize_t i, at_row, at_column, out_at
    cdef const Span *rows = job.rows
    cdef const Span *columns
    cdef ck_window window
    while rows.stop <= row:
        rows += 1
    at_row = first_tap(&job.h, row, rows.first)
    window.channels = window.out_pixel = job.channels
    window.rows = rows.last - rows.first
    window.x_pixel = job.w.stride * job.x_column
    window.x_row, window.x_column = job.h.dilation * job.x_row, job.w.dilation * job.x_column
    window.index_pixel = job.w.stride
    window.index_row, window.index_column = (
        <int32_t>(job.h.dilation * job.w.size), <int32_t>job.w.dilation)
    for i in range(job.column_spans):
        columns = &job.columns[i]
        at_column = first_tap(&job.w, columns.start, columns.first)
        window.pixels = columns.stop - columns.start
        window.columns = columns.last - columns.first
        window.index = at_row * job.w.size + at_column
        out_at = ((image * job.h.out + row) * job.w.out + columns.start) * job.channels
        job.kernels.max_pool(
            &window,
            job.x + (image * job.x_image + at_row * job.x_row + at_column * job.x_column) * size,
            job.out + out_at * size, NULL if job.indices == NULL else job.indices + out_at)


cdef void max_pool_plane_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of output rows of one contiguous plane.

    Input rows are split into the phases of the stride, edges filled with -inf,
    so that every tap of a row of windows is a contiguous load.
    """
    cdef const PoolJob *job = <const PoolJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, plane = item // job.row_blocks
    cdef Py_ssize_t block = item % job.row_blocks, row, out_at, split = job.phases * job.phase, top_row
    cdef Py_ssize_t begin = job.h.out * block // job.row_blocks
    cdef Py_ssize_t end = job.h.out * (block + 1) // job.row_blocks
    cdef Py_ssize_t top = max(0, begin * job.h.stride - job.h.pad)
    cdef Py_ssize_t bottom = min(job.h.size, (end - 1) * job.h.stride - job.h.pad
                                 + (job.h.kernel - 1) * job.h.dilation + 1)
    cdef const char *x = job.x + plane * job.h.size * job.w.size * size
    cdef const Span *rows = job.rows
    cdef ck_window window
    for row in range(top, bottom):
        kernels.split_row(x + row * job.w.size * size, job.w.size, job.w.stride, job.phases,
                          job.w.pad, scratch + (row - top) * split * size, job.phase)
    window.pixels, window.columns = job.w.out, job.w.kernel
    window.x_row = job.h.dilation * split
    window.index_pixel = job.w.stride
    window.index_row, window.index_column = (
        <int32_t>(job.h.dilation * job.w.size), <int32_t>job.w.dilation)
    for row in range(begin, end):
        while rows.stop <= row:
            rows += 1
        top_row = first_tap(&job.h, row, rows.first)
        window.rows = rows.last - rows.first
        window.index = top_row * job.w.size - job.w.pad
        out_at = (plane * job.h.out + row) * job.w.out
        kernels.max_pool_row(&window, scratch + (top_row - top) * split * size, job.starts,
                             job.first, job.out + out_at * size,
                             NULL if job.indices == NULL else job.indices + out_at)


def max_pool2d(cnp.ndarray x, cnp.ndarray out, cnp.ndarray indices, tuple rows, tuple columns,
               bint channels_last, int threads):
    """Pool x into out and indices (or None); rows, columns: (kernel, stride, padding, dilation).

    `out` and `indices` have the layout of x: channels-last (x may have gaps
    between its rows, columns and images) or contiguous NCHW.
    """
    cdef PoolJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, s, o, block, split_rows
    cdef double work
    job.kernels, job.x = kernels, <const char *>cnp.PyArray_DATA(x)
    job.out = <char *>cnp.PyArray_DATA(out)
    job.indices = NULL if indices is None else <int64_t *>cnp.PyArray_DATA(indices)
    job.h = axis(x.shape[2], out.shape[2], rows)
    job.w = axis(x.shape[3], out.shape[3], columns)
    job.channels = x.shape[1]
    job.rows, job.columns, job.starts, job.first = NULL, NULL, NULL, NULL
    cdef Py_ssize_t taps = job.h.kernel * job.w.kernel
    try:
        job.rows = new_spans(&job.h, &job.row_spans)
        if channels_last:
            job.columns = new_spans(&job.w, &job.column_spans)
            job.x_image, job.x_row, job.x_column = (
                x.strides[0] // size, x.strides[2] // size, x.strides[3] // size)
            work = 2.0 * job.w.out * job.channels * taps
            run(max_pool_item, &job, x.shape[0] * job.h.out, work, threads, 0)
            return
        job.starts = <ptrdiff_t *>take(<size_t>job.w.kernel * sizeof(ptrdiff_t))
        job.first = <int32_t *>take(<size_t>job.w.out * sizeof(int32_t))
        job.phases = min(job.w.stride, (job.w.kernel - 1) * job.w.dilation + 1)
        job.phase = (ceil_div(job.w.out, lanes) * lanes
                     + (job.w.kernel - 1) * job.w.dilation // job.w.stride)
        for s in range(job.w.kernel):
            job.starts[s] = (s * job.w.dilation % job.w.stride * job.phase
                             + s * job.w.dilation // job.w.stride)
        for o in range(job.w.out):
            s = max(0, ceil_div(job.w.pad - o * job.w.stride, job.w.dilation))
            job.first[o] = <int32_t>(first_tap(&job.w, o, s) - o * job.w.stride + job.w.pad)
        # Rows whose split copies stay in the first-level cache.
        block = max(1, (24 << 10) // (job.h.stride * job.phases * job.phase * size))
        job.row_blocks = ceil_div(job.h.out, block)
        block = ceil_div(job.h.out, job.row_blocks)
        split_rows = min(job.h.size,
                         (block - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1)
        work = 2.0 * block * job.phase * taps
        run(max_pool_plane_item, &job, x.shape[0] * job.channels * job.row_blocks, work, threads,
            <size_t>(split_rows * job.phases * job.phase * size))
    finally:
        ck_give(job.rows)
        ck_give(job.columns)
        ck_give(job.starts)
        ck_give(job.first)


# ---------------------------------------------------------------- linear

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


# ---------------------------------------------------------------- elementwise and rows

cdef struct MapJob:
    const ck_kernels *kernels
    const char *x
    char *y
    Py_ssize_t length, block
    int activation                        # of activate
    double slope
    Py_ssize_t channels, window           # of local_response_norm
    double alpha, beta, k


cdef void activate_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const MapJob *job = <const MapJob *>job_
    cdef Py_ssize_t start = item * job.block, size = job.kernels.itemsize
    job.kernels.activate(job.x + start * size, job.y + start * size,
                         min(job.block, job.length - start), job.activation, job.slope)


def activate(cnp.ndarray x, cnp.ndarray y, int activation, double slope, int threads):
    """Apply an activation to x, element by element in memory order; y is laid out like x."""
    cdef MapJob job
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.length, job.block = x.size, 16384
    job.activation, job.slope = activation, slope
    run(activate_item, &job, ceil_div(job.length, job.block), 8.0 * job.block, threads, 0)


cdef void local_response_norm_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of channels-last pixels."""
    cdef const MapJob *job = <const MapJob *>job_
    cdef Py_ssize_t pixel, size = job.kernels.itemsize
    for pixel in range(item * job.block, min((item + 1) * job.block, job.length)):
        job.kernels.local_response_norm(
            job.x + pixel * job.channels * size, job.y + pixel * job.channels * size,
            job.channels, job.window, job.alpha, job.beta, job.k, scratch)


def local_response_norm(cnp.ndarray x, cnp.ndarray y, Py_ssize_t channels, Py_ssize_t window,
                        double alpha, double beta, double k, int threads):
    """Normalise pixels of `channels` contiguous elements over `window` neighbouring channels."""
    cdef MapJob job
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.length, job.block = x.size // channels, 16
    job.channels, job.window, job.alpha, job.beta, job.k = channels, window, alpha, beta, k
    run(local_response_norm_item, &job, ceil_div(job.length, job.block),
        30.0 * channels * job.block, threads,
        <size_t>((channels + window) * job.kernels.itemsize))


# ---------------------------------------------------------------- peak

cdef struct SpinJob:
    const ck_kernels *kernels
    Py_ssize_t iterations
    double operations


cdef void spin_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef SpinJob *job = <SpinJob *>job_
    cdef double operations = job.kernels.spin_fma(job.iterations, scratch)
    if item == 0:
        job.operations = operations


def spin_fma(dtype, Py_ssize_t iterations, int threads):
    """Keep `threads` threads busy with independent FMAs; return the operations of one of them."""
    cdef SpinJob job
    job.kernels = active[CK_F64 if np.dtype(dtype) == np.float64 else CK_F32]
    job.iterations, job.operations = iterations, 0.0
    run(spin_item, &job, threads, 1e9, threads, 64)
    return job.operations


def fma_peak(int threads, dtype=np.float32):
    """Measure how many GFLOP/s `threads` threads reach with FMAs alone; the best of some trials."""
    best, iterations = 0.0, 200_000
    for _ in range(12):
        start = perf_counter()
        operations = spin_fma(dtype, iterations, threads) * threads
        elapsed = perf_counter() - start
        if elapsed < 5e-3:
            iterations *= 2
        best = max(best, operations / elapsed / 1e9)
    return best
