# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Winograd's gradient of a weight: the gradients of the output are the filters.

A tile of m x m output gradients and the (m + r - 1)^2 pixels that it meets give r x r
sums.  All tiles of all images are added up before the transform back, so that it is
done once:

    x --input--> V[element][channel / lanes][tile][lane]
    g --gradient--> Y[element][block of filters][tile][filter]
    M[element][block][channel][filter] += V x Y over the tiles  --register tile--
    M --weight_gradient--> dw
"""

cimport cython
from libc.string cimport memset

from convkern._kernels.core cimport (
    Axis,
    Block,
    Images,
    block_of,
    ceil_div,
    ck_kernels,
    ck_outer_layout,
    ck_patch,
    ck_target,
    ck_winograd,
    give,
    run,
    take,
)
from convkern._kernels.packing cimport winograd_tile
from convkern._kernels.winograd cimport patch_of

cdef enum:
    CHUNK = 256               # tiles summed in registers
    PASS_BYTES = 24 << 20     # of V and Y at a time, but
    FEWEST = 256              # so many tiles share what is read and written of M
    TILES = 4                 # transformed by one item
    WIDEST = 3                # vectors of filters: with more, too few channels would fit a tile
    UNPACK_CHANNELS = 16      # transposed at a time

cdef void transform_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A few tiles of a group of channels, of the input and of the gradient."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes, group = item % job.groups
    cdef Py_ssize_t begin = item // job.groups * TILES, tile, index, image, top, left
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    cdef char *v = job.v + group * elements * job.v_element * size
    cdef char *y = job.y + group * elements * job.y_element * size
    cdef const char *origin
    cdef ck_patch patch
    cdef Block block
    cdef Py_ssize_t i
    for tile in range(begin, min(begin + TILES, job.tiles)):
        index = job.first + tile
        image = index // job.per_image
        top = index % job.per_image // job.across * job.tile.outputs
        left = index % job.per_image % job.across * job.tile.outputs
        origin = job.x.data + (image * job.x.image + group * job.channels) * size
        patch_of(&job.x, origin, size, job.h.size, job.w.size, top - job.h.pad, left - job.w.pad,
                 job.tile.size, job.zeros, &patch)
        job.tile.input(&patch, job.channels, v + tile * lanes * size, job.v_element,
                       job.most * lanes)
        for i in range(job.blocks):
            block = block_of(job.kernels, job.vectors, job.blocks, i)
            origin = job.g.data + (image * job.g.image + group * job.out_channels + block.first) * size
            patch_of(&job.g, origin, size, job.h.out, job.w.out, top, left, job.tile.outputs,
                     job.zeros, &patch)
            job.tile.gradient(&patch, min(block.width, job.out_channels - block.first),
                              y + (block.first * job.most + tile * block.width) * size,
                              job.y_element, lanes)


cdef void product_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One element and block of filters: add up the products of all tiles of the pass."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes
    cdef Block block = block_of(kernels, job.vectors, job.blocks, item % job.blocks)
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    cdef Py_ssize_t group = item // job.blocks // elements, element = item // job.blocks % elements
    cdef const char *v = job.v + (group * elements + element) * job.v_element * size
    cdef const char *y = job.y + (
        (group * elements + element) * job.y_element + block.first * job.most) * size
    cdef char *m = job.sums + (
        (group * elements + element) * job.m_element + block.first * job.channels) * size
    cdef Py_ssize_t pieces = ceil_div(job.tiles, CHUNK), piece, start, c, count, rows, row, begin, end
    cdef ck_outer_layout layout
    memset(&layout, 0, sizeof(layout))
    layout.rows, layout.x_pixel, layout.g_pixel, layout.dw_row = 1, lanes, block.width, block.width
    for piece in range(pieces):
        start = job.tiles * piece // pieces
        layout.pixels = job.tiles * (piece + 1) // pieces - start
        c = 0
        while c < job.channels:
            count = min(lanes, job.channels - c)
            rows = ceil_div(count, kernels.max_pixels[block.vectors])
            begin = 0
            for row in range(rows):
                end = count * (row + 1) // rows
                kernels.outer[block.vectors][end - begin](
                    &layout, v + (c * job.most + start * lanes + begin) * size,
                    y + start * block.width * size, m + (c + begin) * block.width * size)
                begin = end
            c += lanes


cdef void store_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Transform the sums of one block and some channels into taps, in the order (k, c, tap)."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, parts = ceil_div(job.channels, UNPACK_CHANNELS)
    cdef Py_ssize_t first = item % parts * UNPACK_CHANNELS, c
    cdef Py_ssize_t count = min(<Py_ssize_t>UNPACK_CHANNELS, job.channels - first)
    cdef Block block = block_of(kernels, job.vectors, job.blocks, item // parts % job.blocks)
    cdef Py_ssize_t group = item // parts // job.blocks, taps = job.tile.taps * job.tile.taps
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    cdef const char *m = job.sums + (group * elements * job.m_element
                                     + (block.first * job.channels + first * block.width)) * size
    cdef ck_target target
    memset(&target, 0, sizeof(target))
    target.rows = target.columns = job.tile.taps
    target.row, target.column = job.tile.taps * block.width, block.width
    for c in range(count):
        target.out = scratch + c * taps * block.width * size
        job.tile.weight_gradient(m + c * block.width * size, job.m_element, block.width, &target)
    kernels.transpose(
        scratch, block.width, job.grad_weight + (
            (group * job.out_channels + block.first) * job.channels + first) * taps * size,
        job.channels * taps, count * taps, min(block.width, job.out_channels - block.first))


@cython.final
cdef class WinogradGradient:
    """The gradient of a weight, summed up over images and stored at the end."""

    def __cinit__(self):
        self.sums = NULL

    def __dealloc__(self):
        give(self.sums)

    cdef int prepare(self, const ck_kernels *kernels, int outputs, Py_ssize_t channels,
                     Py_ssize_t out_channels, Py_ssize_t groups, Axis h, Axis w) except -1:
        """Set the geometry of one convolution; channels are those of a group."""
        cdef Py_ssize_t widest = WIDEST
        self.kernels, self.tile = kernels, winograd_tile(kernels, outputs, h.kernel)
        self.h, self.w, self.groups = h, w, groups
        self.channels, self.out_channels = channels, out_channels
        while kernels.max_pixels[widest] == 0:
            widest -= 1
        self.vectors = ceil_div(out_channels, kernels.lanes)
        self.blocks = ceil_div(self.vectors, widest)
        cdef size_t bytes = <size_t>(groups * self.tile.size * self.tile.size * self.m_element()
                                     * kernels.itemsize)
        self.sums = take(bytes)
        memset(self.sums, 0, bytes)
        return 0

    cdef Py_ssize_t m_element(self) noexcept:
        return self.channels * self.vectors * self.kernels.lanes

    cdef GradientJob job(self) noexcept:
        cdef GradientJob job
        memset(&job, 0, sizeof(job))
        job.kernels, job.tile, job.h, job.w = self.kernels, self.tile, self.h, self.w
        job.channels, job.out_channels, job.groups = self.channels, self.out_channels, self.groups
        job.vectors, job.blocks, job.sums = self.vectors, self.blocks, self.sums
        job.m_element = self.m_element()
        job.across = ceil_div(self.w.out, self.tile.outputs)
        job.per_image = job.across * ceil_div(self.h.out, self.tile.outputs)
        return job

    cdef int add(self, const Images *x, const Images *g, Py_ssize_t images, int threads) except -1:
        """Add what channels-last images contribute."""
        cdef GradientJob job = self.job()
        cdef Py_ssize_t size = self.kernels.itemsize, lanes = self.kernels.lanes
        cdef Py_ssize_t elements = self.tile.size * self.tile.size
        cdef Py_ssize_t padded = ceil_div(self.channels, lanes) * lanes
        cdef Py_ssize_t filters = self.vectors * lanes, total = images * job.per_image
        cdef Py_ssize_t passes = PASS_BYTES // (self.groups * elements * size * (padded + filters))
        passes = ceil_div(total, max(<Py_ssize_t>FEWEST, passes))
        job.x, job.g = x[0], g[0]
        job.most = ceil_div(total, passes)
        # A line more between elements, so that they do not all fall into the same cache sets.
        job.v_element = job.most * padded + 64 // size
        job.y_element = job.most * filters + 64 // size
        cdef size_t v_bytes = <size_t>(self.groups * elements * job.v_element * size)
        cdef size_t y_bytes = <size_t>(self.groups * elements * job.y_element * size)
        cdef size_t zeros = <size_t>(max(padded, filters) * size)
        cdef char *memory = take(zeros + v_bytes + y_bytes)
        cdef Py_ssize_t index
        memset(memory, 0, zeros)
        job.zeros, job.v, job.y = memory, memory + zeros, memory + zeros + v_bytes
        try:
            for index in range(passes):
                job.first = total * index // passes
                job.tiles = total * (index + 1) // passes - job.first
                run(transform_item, &job, ceil_div(job.tiles, TILES) * self.groups,
                    4.0 * TILES * elements * (padded + filters), threads, 0)
                run(product_item, &job, self.groups * elements * self.blocks,
                    2.0 * job.tiles * self.channels * filters / self.blocks, threads, 0)
        finally:
            give(memory)
        return 0

    cdef int store(self, char *grad_weight, int threads) except -1:
        """Write the gradient, (OC, C/groups, KH, KW)."""
        cdef GradientJob job = self.job()
        cdef Py_ssize_t width = ceil_div(self.vectors, self.blocks) * self.kernels.lanes
        cdef Py_ssize_t taps = self.tile.taps * self.tile.taps
        job.grad_weight = grad_weight
        return run(store_item, &job,
                   self.groups * self.blocks * ceil_div(self.channels, UNPACK_CHANNELS),
                   8.0 * UNPACK_CHANNELS * self.tile.size * self.tile.size * width, threads,
                   <size_t>(UNPACK_CHANNELS * taps * width * self.kernels.itemsize))
