# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Weights in the order in which the micro-kernels read them."""

cimport cython
from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_MAX_VECTORS,
    CK_WINOGRAD_TILES_COUNT,
    CK_WORK_OF_ELEMENT,
    CK_WORK_PER_THREAD,
    Block,
    block_of,
    ceil_div,
    ck_kernels,
    ck_patch,
    ck_winograd,
    give,
    kernels_of,
    run,
    take,
)

cnp.import_array()


cdef enum:
    PACK_CHANNELS = 16  # transposed at a time
    # So small a weight, times the threads, is packed by each of them for itself: lines that another
    # one has read take longer to get for writing, or has written to read, than to be packed.
    OWN_BYTES = 512 << 10

cdef struct Taps:
    # Taps of one axis of a window: first, first + step, ... (count of them).
    Py_ssize_t first, step, count

cdef struct PackJob:
    const ck_kernels *kernels
    const ck_winograd *winograd
    const char *weight
    Weights weights
    Py_ssize_t items  # of a copy
    Py_ssize_t groups, out_channels, channels, kh, kw, vectors, blocks
    Taps rows, columns
    bint transposed


cdef void place_taps(const PackJob *job, ptrdiff_t *offsets, Py_ssize_t count,
                     Py_ssize_t channels, Py_ssize_t width) noexcept nogil:
    """Say for `count` channels' taps, (c, tap), where they go in (tap, c) rows of `width`."""
    cdef Py_ssize_t r, s, c, tap, taps = job.kh * job.kw
    for tap in range(count * taps):
        offsets[tap] = -1
    for r in range(job.rows.count):
        for s in range(job.columns.count):
            tap = (job.rows.first + r * job.rows.step) * job.kw
            tap += job.columns.first + s * job.columns.step
            for c in range(count):
                offsets[c * taps + tap] = ((r * job.columns.count + s) * channels + c) * width


cdef inline void pack_channels(const PackJob *job, const char *weight, Py_ssize_t filters,
                               Py_ssize_t count, char *dst, const ptrdiff_t *offsets,
                               Py_ssize_t width) noexcept nogil:
    """Bring `count` input channels of some filters from (k, c, tap) into the order (tap, c, k).

    A transposed convolution swaps the parts of k and c in the weight that it reads.
    """
    cdef Py_ssize_t taps = job.kh * job.kw, size = job.kernels.itemsize, c
    if not job.transposed:
        job.kernels.scatter_transposed(weight, job.channels * taps, filters, count * taps, dst,
                                       offsets)
        return
    if taps == job.rows.count * job.columns.count == 1:  # they are in that order
        job.kernels.copy_rows(weight, job.out_channels, count, filters, dst, width)
        return
    for c in range(count):
        job.kernels.scatter_transposed(weight + c * job.out_channels * taps * size, taps, filters,
                                       taps, dst + c * width * size, offsets)


cdef void transform_weights(const PackJob *job, const char *taps, Py_ssize_t tap, Py_ssize_t count,
                            char *dst, Py_ssize_t element) noexcept nogil:
    """Turn the taps of `count` weights, `tap` elements apart, into elements of a Winograd tile."""
    cdef ck_patch patch
    cdef Py_ssize_t r, row = job.columns.count * tap * job.kernels.itemsize
    patch.first, patch.last = 0, job.winograd.taps
    for r in range(job.winograd.taps):
        patch.row[r], patch.step[r] = taps + r * row, tap
    job.winograd.weight(&patch, count, dst, element, job.kernels.lanes)


cdef void pack_part(const PackJob *job, Py_ssize_t item, char *packed,
                    char *scratch) noexcept nogil:
    """Pack some channels of one block of output channels, padded with zeros."""
    cdef Py_ssize_t part = min(<Py_ssize_t>PACK_CHANNELS, job.channels)
    cdef Py_ssize_t parts = ceil_div(job.channels, part), c = item % parts * part
    cdef Py_ssize_t group = item // parts // job.blocks, rows = job.channels
    cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes
    cdef Block span = block_of(job.kernels, job.vectors, job.blocks, item // parts % job.blocks)
    cdef Py_ssize_t width = span.width, k0 = span.first, row = width * size
    cdef Py_ssize_t filters = min(width, job.out_channels - k0)
    cdef Py_ssize_t taps = job.kh * job.kw, count = min(part, job.channels - c)
    cdef Py_ssize_t elements = job.rows.count * job.columns.count, element = job.channels
    if job.winograd != NULL:
        elements, rows = job.winograd.size * job.winograd.size, part
        element = element_rows(job.channels)
    cdef const char *weight = job.weight + (group * job.out_channels * job.channels + (
        k0 + c * job.out_channels if job.transposed else k0 * job.channels + c)) * taps * size
    cdef char *dst = packed + (
        (group * job.vectors * lanes + k0) * element * elements * size + c * row)
    cdef ptrdiff_t *offsets = <ptrdiff_t *>scratch
    cdef char *tapwise = scratch + ceil_div(part * taps * sizeof(ptrdiff_t), 64) * 64
    place_taps(job, offsets, 1 if job.transposed else part, rows, width)
    pack_channels(job, weight, filters, count, dst if job.winograd == NULL else tapwise, offsets,
                  width)
    if job.winograd != NULL:
        transform_weights(job, tapwise, rows * width, count * width, dst, element * width)


cdef void pack_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Pack a part of the only copy, or all of a thread's own."""
    cdef const PackJob *job = <const PackJob *>job_
    cdef Py_ssize_t part
    if job.weights.copies == 1:
        pack_part(job, item, job.weights.data, scratch)
        return
    for part in range(job.items):
        pack_part(job, part, job.weights.data + item * job.weights.bytes, scratch)


@cython.final
cdef class PackedConv:
    """The weights and bias of one convolution in the order that the register tile reads them.

    Per group and block of output channels: (tap row, tap column, input channel,
    output channel), the block as wide as the widest tile, its last vector
    padded with zeros.  For Winograd's algorithm the elements of a tile stand in the
    place of the taps.  A depthwise convolution keeps (tap, channel).
    """

    def __dealloc__(self):
        give(self.weights.data)
        give(self.bias)

    def __init__(self, cnp.ndarray weight, cnp.ndarray bias, Py_ssize_t groups, int threads,
                 int winograd=0, bint transposed=False, tuple row_taps=None,
                 tuple column_taps=None, int stride=1, bint once=False):
        """Pack a C-contiguous (OC, C/groups, KH, KW) weight and a bias (OC,) or None.

        `winograd` is how many outputs a tile has on each axis, 0 for the direct
        algorithm, and `stride` is the window's then.  With `transposed` the weight is read as
        (C, OC/groups, KH, KW).  Taps are chosen and ordered by (first, step, count); by default all
        of them.  What is packed `once` for many convolutions is one copy for all threads.
        """
        cdef PackJob job
        cdef const ck_kernels *kernels = kernels_of(weight)
        cdef Py_ssize_t lanes = kernels.lanes, size = kernels.itemsize, widest = CK_MAX_VECTORS, g
        cdef Py_ssize_t first = weight.shape[0] // groups, second = weight.shape[1]
        self.kernels, self.groups = kernels, groups
        self.out_channels, self.channels = (second, first) if transposed else (first, second)
        self.depthwise = self.channels == 1 and self.out_channels == 1
        while kernels.max_pixels[widest] == 0:
            widest -= 1
        self.vectors = ceil_div(self.out_channels, lanes)
        self.blocks = ceil_div(self.vectors, widest)
        job.kh, job.kw = weight.shape[2], weight.shape[3]
        job.rows.first, job.rows.step, job.rows.count = row_taps or (0, 1, job.kh)
        job.columns.first, job.columns.step, job.columns.count = column_taps or (0, 1, job.kw)
        self.kh, self.kw = job.rows.count, job.columns.count
        self.winograd = NULL
        cdef Py_ssize_t outputs = groups * self.out_channels, taps = job.kh * job.kw
        cdef Py_ssize_t elements = self.kh * self.kw, element = self.channels
        if winograd:
            self.winograd = winograd_tile(kernels, winograd, self.kh, stride)
            self.depthwise = False
            elements = self.winograd.size * self.winograd.size
            element = element_rows(self.channels)
        cdef Py_ssize_t padded = outputs if self.depthwise else groups * self.vectors * lanes
        cdef Py_ssize_t width = ceil_div(self.vectors, self.blocks) * lanes
        cdef Py_ssize_t part = min(<Py_ssize_t>PACK_CHANNELS, self.channels)
        cdef double work = CK_WORK_OF_ELEMENT * width * part * (taps + (elements if winograd else 0))
        job.items = 0 if self.depthwise else groups * self.blocks * ceil_div(self.channels, part)
        self.weights.copies = 1
        if (not (once or self.depthwise) and work * job.items >= CK_WORK_PER_THREAD
                and outputs * self.channels * taps * size * threads <= OWN_BYTES):
            self.weights.copies = threads
            work *= job.items
        self.weights.bytes = ceil_div(padded * element * elements * size, 64) * 64
        self.weights.data = take(<size_t>(self.weights.copies * self.weights.bytes) + 1)
        self.bias = take(<size_t>((padded + lanes) * size))
        memset(self.bias, 0, <size_t>((padded + lanes) * size))
        cdef Py_ssize_t biases = outputs if self.depthwise else self.out_channels
        if bias is not None:
            for g in range(outputs // biases):
                memcpy(self.bias + g * self.vectors * lanes * size,
                       <const char *>cnp.PyArray_DATA(bias) + g * biases * size,
                       <size_t>(biases * size))
        job.kernels, job.weight = kernels, <const char *>cnp.PyArray_DATA(weight)
        job.winograd = self.winograd
        job.weights, job.transposed = self.weights, transposed
        job.groups, job.out_channels, job.channels = groups, self.out_channels, self.channels
        job.vectors, job.blocks = self.vectors, self.blocks
        cdef Py_ssize_t r, s
        if self.depthwise:
            for r in range(self.kh):
                for s in range(self.kw):
                    kernels.transpose(
                        job.weight + ((job.rows.first + r * job.rows.step) * job.kw
                                      + job.columns.first + s * job.columns.step) * size,
                        taps, self.weights.data + (r * self.kw + s) * outputs * size, outputs,
                        outputs, 1)
            return
        cdef size_t scratch = <size_t>(PACK_CHANNELS * taps) * (
            sizeof(ptrdiff_t) + <size_t>(width * size * (winograd > 0))) + 64
        run(pack_item, &job, job.items if self.weights.copies == 1 else self.weights.copies, work,
            threads, scratch)


cdef const ck_winograd *winograd_tile(const ck_kernels *kernels, int outputs, Py_ssize_t taps,
                                      int stride=1) except NULL:
    """Find the tile of so many outputs for a window of so many taps, on each axis."""
    cdef int i
    cdef const ck_winograd *tile
    for i in range(CK_WINOGRAD_TILES_COUNT):
        tile = &kernels.winograd[i]
        if tile.outputs == outputs and tile.taps == taps and tile.stride == stride:
            return tile
    raise ValueError(f"no Winograd tile of {outputs} outputs for {taps} taps, stride {stride}")
