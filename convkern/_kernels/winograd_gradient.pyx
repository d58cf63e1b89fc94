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
    WIDEST = 3                # vectors of filters: with more, too few channels would fit a tile
    UNPACK_CHANNELS = 16      # transposed at a time
    # The threads share V and Y, in passes:
    PASS_BYTES = 24 << 20     # of V and Y at a time, but
    FEWEST = 256              # so many tiles share what is read and written of M
    TILES = 4                 # transformed by one item
    # or slices of the tiles have an M of their own, and V and Y stay in a thread's cache:
    SLICES = 16
    SLICE_TILES = 32          # of a slice, at least
    SLICES_BYTES = 40 << 20   # of all M together, at most
    SLICE_BYTES = 1 << 19     # of V and Y at a time, but
    SLICE_FEWEST = 32         # so many tiles


cdef void transform_tile(const GradientJob *job, Py_ssize_t tile, Py_ssize_t group,
                         Py_ssize_t place, char *v, char *y) noexcept nogil:
    """Transform one tile of a group of channels, of the input and of the gradient, to a place."""
    cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes, i
    cdef Py_ssize_t image = tile // job.per_image
    cdef Py_ssize_t top = tile % job.per_image // job.across * job.tile.outputs
    cdef Py_ssize_t left = tile % job.per_image % job.across * job.tile.outputs
    cdef const char *x = job.x.data + (image * job.x.image + group * job.channels) * size
    cdef const char *g = job.g.data + (image * job.g.image + group * job.out_channels) * size
    cdef Block block
    cdef ck_patch patch
    patch_of(&job.x, x, size, job.h.size, job.w.size, top - job.h.pad, left - job.w.pad,
             job.tile.size, job.zeros, &patch)
    job.tile.input(&patch, job.channels, v + place * lanes * size, job.v_element, job.most * lanes)
    for i in range(job.blocks):
        block = block_of(job.kernels, job.vectors, job.blocks, i)
        patch_of(&job.g, g + block.first * size, size, job.h.out, job.w.out, top, left,
                 job.tile.outputs, job.zeros, &patch)
        job.tile.gradient(&patch, min(block.width, job.out_channels - block.first),
                          y + (block.first * job.most + place * block.width) * size, job.y_element,
                          lanes)


cdef void add_products(const GradientJob *job, const char *v, const char *y, Py_ssize_t tiles,
                       Block block, char *m) noexcept nogil:
    """Add the products of one element and block of filters, for some tiles, to M."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes
    cdef Py_ssize_t pieces = ceil_div(tiles, CHUNK), piece, start, c, count, rows, row, begin, end
    cdef ck_outer_layout layout
    memset(&layout, 0, sizeof(layout))
    layout.rows, layout.x_pixel, layout.g_pixel, layout.dw_row = 1, lanes, block.width, block.width
    for piece in range(pieces):
        start = tiles * piece // pieces
        layout.pixels = tiles * (piece + 1) // pieces - start
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


cdef void transform_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A few tiles of a group of channels, into the V and Y that the threads share."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, group = item % job.groups
    cdef Py_ssize_t begin = item // job.groups * TILES, end = min(begin + TILES, job.tiles), tile
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    for tile in range(begin, end):
        transform_tile(job, job.first + tile, group, tile,
                       job.v + group * elements * job.v_element * size,
                       job.y + group * elements * job.y_element * size)


cdef void product_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One element and block of filters: the products of all tiles of the pass."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, part = item // job.blocks
    cdef Block block = block_of(job.kernels, job.vectors, job.blocks, item % job.blocks)
    add_products(job, job.v + part * job.v_element * size,
                 job.y + (part * job.y_element + block.first * job.most) * size, job.tiles, block,
                 job.sums + (part * job.m_element + block.first * job.channels) * size)


cdef void slice_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One slice of the tiles and a group of channels, with sums of its own."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, elements = job.tile.size * job.tile.size
    cdef Py_ssize_t group = item % job.groups, slice_ = item // job.groups, element, i, tile
    cdef Py_ssize_t begin = job.tiles * slice_ // job.slices, end
    cdef Py_ssize_t stop = job.tiles * (slice_ + 1) // job.slices
    cdef char *y = scratch + elements * job.v_element * size
    cdef char *m = job.sums + (slice_ * job.groups + group) * elements * job.m_element * size
    cdef Block block
    while begin < stop:
        end = min(begin + job.most, stop)
        for tile in range(begin, end):
            transform_tile(job, tile, group, tile - begin, scratch, y)
        for element in range(elements):
            for i in range(job.blocks):
                block = block_of(job.kernels, job.vectors, job.blocks, i)
                add_products(job, scratch + element * job.v_element * size,
                             y + (element * job.y_element + block.first * job.most) * size,
                             end - begin, block,
                             m + (element * job.m_element + block.first * job.channels) * size)
        begin = end


cdef void store_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Transform the sums of one block and some channels into taps, in the order (k, c, tap)."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, parts = ceil_div(job.channels, UNPACK_CHANNELS)
    cdef Py_ssize_t first = item % parts * UNPACK_CHANNELS, c, element, slice_
    cdef Py_ssize_t count = min(<Py_ssize_t>UNPACK_CHANNELS, job.channels - first)
    cdef Block block = block_of(kernels, job.vectors, job.blocks, item // parts % job.blocks)
    cdef Py_ssize_t group = item // parts // job.blocks, taps = job.tile.taps * job.tile.taps
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    cdef Py_ssize_t slice_bytes = job.groups * elements * job.m_element * size
    cdef char *m = job.sums + (group * elements * job.m_element
                               + block.first * job.channels + first * block.width) * size
    cdef ck_target target
    for slice_ in range(1, job.slices):
        for element in range(elements):
            kernels.add(m + slice_ * slice_bytes + element * job.m_element * size,
                        m + element * job.m_element * size, count * block.width)
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
        self.job.sums = NULL

    def __dealloc__(self):
        give(self.job.sums)

    cdef int prepare(self, const ck_kernels *kernels, int outputs, Py_ssize_t channels,
                     Py_ssize_t out_channels, Py_ssize_t groups, Axis h, Axis w,
                     Py_ssize_t images) except -1:
        """Set the geometry of one convolution; channels are those of a group."""
        cdef GradientJob *job = &self.job
        cdef Py_ssize_t widest = WIDEST, lanes = kernels.lanes, elements
        memset(job, 0, sizeof(job[0]))
        job.kernels, job.tile = kernels, winograd_tile(kernels, outputs, h.kernel)
        job.h, job.w, job.groups = h, w, groups
        job.channels, job.out_channels = channels, out_channels
        while kernels.max_pixels[widest] == 0:
            widest -= 1
        job.vectors = ceil_div(out_channels, lanes)
        job.blocks = ceil_div(job.vectors, widest)
        job.across = ceil_div(w.out, outputs)
        job.per_image = job.across * ceil_div(h.out, outputs)
        job.m_element = channels * job.vectors * lanes
        # Slices write and read M so many times, the threads together V and Y.
        cdef Py_ssize_t tiles = images * job.per_image, padded = ceil_div(channels, lanes) * lanes
        elements = job.tile.size * job.tile.size
        cdef size_t bytes = <size_t>(groups * elements * job.m_element * kernels.itemsize)
        job.slices = min(<Py_ssize_t>SLICES, tiles // SLICE_TILES,
                         <Py_ssize_t>(SLICES_BYTES // bytes))
        if (job.slices < SLICES // 4
                or 3 * job.slices * job.m_element > 2 * tiles * (padded + job.vectors * lanes)):
            job.slices = 1
        bytes *= <size_t>job.slices
        job.sums = take(bytes)
        memset(job.sums, 0, bytes)
        return 0

    cdef int add(self, const Images *x, const Images *g, Py_ssize_t images, int threads) except -1:
        """Add what channels-last images contribute."""
        cdef GradientJob *job = &self.job
        cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes
        cdef Py_ssize_t elements = job.tile.size * job.tile.size
        cdef Py_ssize_t padded = ceil_div(job.channels, lanes) * lanes
        cdef Py_ssize_t filters = job.vectors * lanes, total = images * job.per_image, passes = 1
        cdef Py_ssize_t tile_bytes = elements * (padded + filters) * size
        job.x, job.g = x[0], g[0]
        if job.slices > 1:
            job.most = max(<Py_ssize_t>SLICE_FEWEST, SLICE_BYTES // tile_bytes)
        else:
            passes = ceil_div(total, max(<Py_ssize_t>FEWEST, PASS_BYTES // tile_bytes // job.groups))
            job.most = ceil_div(total, passes)
        # A line more between elements, so that they do not all fall into the same cache sets.
        job.v_element = job.most * padded + 64 // size
        job.y_element = job.most * filters + 64 // size
        cdef size_t v_bytes = <size_t>(elements * job.v_element * size)
        cdef size_t y_bytes = <size_t>(elements * job.y_element * size)
        cdef size_t zeros = <size_t>(max(padded, filters) * size)
        cdef size_t shared = 0 if job.slices > 1 else <size_t>job.groups * (v_bytes + y_bytes)
        cdef double transform = 4.0 * elements * (padded + filters)
        cdef double product = 2.0 * elements * job.channels * filters
        cdef char *memory = take(zeros + shared)
        cdef Py_ssize_t index
        memset(memory, 0, zeros)
        job.zeros, job.v = memory, memory + zeros
        job.y = job.v + <size_t>job.groups * v_bytes
        try:
            if job.slices > 1:
                job.tiles = total
                run(slice_item, job, job.slices * job.groups,
                    (transform + product) * total / job.slices, threads, v_bytes + y_bytes)
            else:
                for index in range(passes):
                    job.first = total * index // passes
                    job.tiles = total * (index + 1) // passes - job.first
                    run(transform_item, job, ceil_div(job.tiles, TILES) * job.groups,
                        transform * TILES, threads, 0)
                    run(product_item, job, job.groups * elements * job.blocks,
                        product * job.tiles / elements / job.blocks, threads, 0)
        finally:
            give(memory)
        return 0

    cdef int store(self, char *grad_weight, int threads) except -1:
        """Write the gradient, (OC, C/groups, KH, KW)."""
        cdef GradientJob *job = &self.job
        cdef Py_ssize_t width = ceil_div(job.vectors, job.blocks) * job.kernels.lanes
        cdef Py_ssize_t taps = job.tile.taps * job.tile.taps
        job.grad_weight = grad_weight
        return run(store_item, job,
                   job.groups * job.blocks * ceil_div(job.channels, UNPACK_CHANNELS),
                   8.0 * UNPACK_CHANNELS * job.tile.size * job.tile.size * width * job.slices,
                   threads, <size_t>(UNPACK_CHANNELS * taps * width * job.kernels.itemsize))
