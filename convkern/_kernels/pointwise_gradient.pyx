# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""The gradient of the weight of a 1x1 window: a matrix product over the pixels.

    dw[k][c] = sum over pixels p of g[p][k] * x[p][c]

It runs on the tile of the convolution: channels take the place of pixels, and a chunk of
pixels that of the channels which are summed over.  For that a chunk of x is packed as rows of
one channel each, and one of g as panels whose rows are a block of filters.  Planes of x are such
rows, and channels-last pixels of g such panels: they are read in place where that pays.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from convkern._kernels.core cimport (
    CK_FIRST,
    CK_MAX_VECTORS,
    Axis,
    Block,
    Images,
    block_of,
    ceil_div,
    ck_chunk,
    ck_kernels,
    ck_tile_layout,
    data_of,
    give,
    images_of,
    kernels_of,
    run,
    take,
)

cnp.import_array()

cdef enum:
    PIXELS = 256   # of a chunk: products summed in registers, as in the convolution
    SIDE = 256     # channels, and filters, of an item: they share what it packs
    ITEMS = 16     # wanted for the threads' sake
    ROW = PIXELS + 16  # of packed x: a line more, so that not all fall into the same cache sets
    LONG = 32      # pixels of planes that are read in place
    FEW = 256      # channels, for which a panel of g is read in place

cdef struct PointwiseJob:
    const ck_kernels *kernels
    Images x, g
    bint planes       # they are contiguous NCHW, and a pixel one element
    bint flat         # all pixels of an image are one step apart
    bint x_in_place   # as rows of planes
    bint g_in_place   # as pixels that are all one step apart
    Axis h, w
    Py_ssize_t channels, out_channels, groups, vectors, blocks
    Py_ssize_t pixels, total  # of an image, of all images
    # An item: a slice of the pixels, which has a sum of its own, a group, some channels and blocks.
    Py_ssize_t slices, ranges, block_ranges
    char *dw          # (slice, group, block, channel, filter)
    Py_ssize_t dw_slice
    char *grad_weight
    char *grad_bias   # or NULL; its sums are those of one more channel, of `ones`
    const char *ones
    Py_ssize_t dw_rows  # channels, with that


cdef Py_ssize_t together(const PointwiseJob *job, Py_ssize_t pixel, Py_ssize_t stop) noexcept nogil:
    """Count the pixels from one on, before `stop`, that lie one step apart in x and in g."""
    if job.flat:
        return min(stop, (pixel // job.pixels + 1) * job.pixels) - pixel
    return min(stop, (pixel // job.w.out + 1) * job.w.out) - pixel


cdef Py_ssize_t chunk_end(const PointwiseJob *job, Py_ssize_t pixel, Py_ssize_t end) noexcept nogil:
    """Tell where the chunk ends that begins with a pixel: in place it is part of one image, or
    some whole ones.
    """
    cdef Py_ssize_t place = pixel % job.pixels, length
    if not job.x_in_place:
        return min(end, pixel + PIXELS)
    if place == 0 and end - pixel >= job.pixels and 2 * job.pixels <= PIXELS:
        return pixel + min(PIXELS, end - pixel) // job.pixels * job.pixels
    length = ceil_div(job.pixels, ceil_div(job.pixels, PIXELS))
    return min(end, pixel - place + min(job.pixels, (place // length + 1) * length))


cdef void pack(const PointwiseJob *job, const Images *images, const Axis *h, const Axis *w,
               bint across, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t first,
               Py_ssize_t channels, char *packed, Py_ssize_t row) noexcept nogil:
    """Copy some channels of `count` pixels: each into a row, or `across` from row to row.

    h and w tell the size of the images and how far the window moves on them.
    """
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, place = pixel % job.pixels, plane = h.size * w.size, c
    cdef Py_ssize_t at = (place // job.w.out * h.stride * w.size + place % job.w.out * w.stride)
    cdef const char *src = images.data + pixel // job.pixels * images.image * size
    if not job.planes:
        src += (place // job.w.out * h.stride * images.row
                + place % job.w.out * w.stride * images.column + first) * size
        if across:
            kernels.copy_rows(src, w.stride * images.column, count, channels, packed, row)
        else:
            kernels.transpose(src, w.stride * images.column, packed, row, count, channels)
        return
    src += (first * plane + at) * size
    if across:
        if channels < row:
            memset(packed, 0, <size_t>(count * row * size))
        kernels.transpose(src, plane, packed, row, channels, count)
        return
    for c in range(channels):
        kernels.gather_row(src + c * plane * size, w.stride, 0, count, packed + c * row * size,
                           count)


cdef void pointwise_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One slice of the pixels, group, range of channels and of blocks of filters."""
    cdef const PointwiseJob *job = <const PointwiseJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, index, tile, tiles, c, c_stop
    cdef Py_ssize_t items = job.ranges * job.block_ranges * job.groups
    cdef Py_ssize_t part = item // items, pixel, stop, chunk, count, done, first_block, last_block
    cdef Py_ssize_t end = job.total * (part + 1) // job.slices
    pixel = job.total * part // job.slices
    item %= items
    cdef Py_ssize_t begin = job.channels * (item % job.ranges) // job.ranges
    cdef Py_ssize_t channels = job.channels * (item % job.ranges + 1) // job.ranges - begin
    item //= job.ranges
    first_block = job.blocks * (item % job.block_ranges) // job.block_ranges
    last_block = job.blocks * (item % job.block_ranges + 1) // job.block_ranges
    cdef Py_ssize_t group = item // job.block_ranges, first
    cdef char *panel = scratch + channels * ROW * size
    cdef char *zeros = panel + CK_MAX_VECTORS * lanes * PIXELS * size
    cdef char *dw
    cdef const char *rows = scratch
    cdef const char *filters
    cdef Axis dense_h = Axis(job.h.out, job.h.out, 1, 1, 0, 1)
    cdef Axis dense_w = Axis(job.w.out, job.w.out, 1, 1, 0, 1)
    cdef Block block
    cdef bint sums_up = job.grad_bias != NULL and begin + channels == job.channels
    cdef ck_tile_layout layout, of_ones
    cdef ck_chunk sums
    memset(&layout, 0, sizeof(layout))
    memset(zeros, 0, <size_t>(CK_MAX_VECTORS * lanes * size))
    layout.tail, layout.x_pixel = <int>lanes, job.pixels if job.x_in_place else <Py_ssize_t>ROW
    layout.x_row = job.x.image
    sums.rows = sums.columns = 1
    sums.ahead, sums.ahead_step, sums.flags = scratch, 0, CK_FIRST
    while pixel < end:
        stop = chunk_end(job, pixel, end)
        sums.run = chunk = stop - pixel
        done = 0
        if job.x_in_place:
            rows = job.x.data + (pixel // job.pixels * job.x.image + pixel % job.pixels + (
                group * job.channels + begin) * job.pixels) * size
            sums.rows, done = max(<Py_ssize_t>1, chunk // job.pixels), chunk
            sums.run = chunk // sums.rows
        while done < chunk:
            count = together(job, pixel + done, stop)
            pack(job, &job.x, &job.h, &job.w, False, pixel + done, count,
                 group * job.channels + begin, channels, scratch + done * size, ROW)
            done += count
        for index in range(first_block, last_block):
            block = block_of(kernels, job.vectors, job.blocks, index)
            first = group * job.out_channels + block.first
            filters, layout.w_step, done = panel, 0, 0
            if job.g_in_place and block.first + block.width <= job.out_channels:
                filters = job.g.data + (pixel * job.g.column + first) * size
                layout.w_step, done = job.g.column, chunk
            while done < chunk:
                count = together(job, pixel + done, stop)
                pack(job, &job.g, &dense_h, &dense_w, True, pixel + done, count, first,
                     min(block.width, job.out_channels - block.first),
                     panel + done * block.width * size, block.width)
                done += count
            layout.out_pixel, layout.w_row = block.width, sums.run * block.width
            dw = job.dw + (part * job.dw_slice + (group * job.vectors * lanes + block.first)
                           * job.dw_rows + begin * block.width) * size
            tiles = ceil_div(channels, kernels.max_pixels[block.vectors])
            c = 0
            for tile in range(tiles):
                c_stop = channels * (tile + 1) // tiles
                kernels.tile[block.vectors][c_stop - c](
                    &layout, &sums, rows + c * layout.x_pixel * size, filters, zeros,
                    dw + c * block.width * size)
                c = c_stop
            if sums_up:
                of_ones = layout
                of_ones.x_row = 0
                kernels.tile[block.vectors][1](&of_ones, &sums, job.ones, filters, zeros,
                                               dw + channels * block.width * size)
        sums.flags = 0
        pixel = stop


cdef void store_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Add up the slices of one block of filters, and bring it into the order of the weight."""
    cdef const PointwiseJob *job = <const PointwiseJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Block block = block_of(kernels, job.vectors, job.blocks, item % job.blocks)
    cdef Py_ssize_t group = item // job.blocks, size = kernels.itemsize, part
    cdef Py_ssize_t first = group * job.out_channels + block.first
    cdef Py_ssize_t filters = min(block.width, job.out_channels - block.first)
    cdef char *dw = job.dw + (group * job.vectors * kernels.lanes + block.first) * job.dw_rows * size
    for part in range(1, job.slices):
        kernels.add(dw + part * job.dw_slice * size, dw, block.width * job.dw_rows)
    kernels.transpose(dw, block.width, job.grad_weight + first * job.channels * size, job.channels,
                      job.channels, filters)
    if job.grad_bias != NULL:
        memcpy(job.grad_bias + first * size, dw + job.channels * block.width * size,
               <size_t>(filters * size))


cdef int pointwise_weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight,
                                   cnp.ndarray grad_bias, Axis h, Axis w, Py_ssize_t groups,
                                   bint channels_last, int threads) except -1:
    """Write the gradients of a 1x1 weight and of the bias, unless that is None.

    No window hangs over an edge.  Images are channels-last, or contiguous NCHW.
    """
    cdef PointwiseJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize, widest = CK_MAX_VECTORS, items, channels
    while kernels.max_pixels[widest] == 0:
        widest -= 1
    job.kernels, job.groups, job.h, job.w = kernels, groups, h, w
    job.x, job.g, job.planes = images_of(x), images_of(grad), not channels_last
    job.channels, job.out_channels = x.shape[1] // groups, grad.shape[1] // groups
    job.vectors = ceil_div(job.out_channels, kernels.lanes)
    job.blocks = ceil_div(job.vectors, widest)
    job.pixels = h.out * w.out
    # A transposed convolution may have pixels at the end of a row that no window reaches.
    job.flat = h.stride == 1 and w.stride == 1 and w.size == w.out and (job.planes or (
        job.x.row == w.size * job.x.column and job.g.row == w.out * job.g.column))
    job.total = x.shape[0] * job.pixels
    job.x_in_place = job.planes and job.flat and job.pixels >= LONG
    job.g_in_place = (not job.planes and job.flat and job.channels <= FEW
                      and job.g.image == job.pixels * job.g.column)
    job.ranges, job.block_ranges = ceil_div(job.channels, SIDE), ceil_div(job.out_channels, SIDE)
    job.block_ranges = min(job.block_ranges, job.blocks)
    items = groups * job.ranges * job.block_ranges
    # All of it follows from the shape, so that the sums do not depend on the threads.
    job.slices = max(1, min(ceil_div(ITEMS, items), ceil_div(job.total, PIXELS)))
    job.grad_weight = <char *>cnp.PyArray_DATA(grad_weight)
    job.grad_bias = <char *>data_of(grad_bias)
    job.dw_rows = job.channels + (grad_bias is not None)
    job.dw_slice = groups * job.vectors * kernels.lanes * job.dw_rows
    channels = ceil_div(job.channels, job.ranges)
    cdef size_t scratch = <size_t>(
        (channels * ROW + CK_MAX_VECTORS * kernels.lanes * (PIXELS + 1)) * size)
    cdef double work = 2.0 * job.total * job.channels * job.out_channels * groups
    cdef cnp.ndarray ones = np.ones(PIXELS, x.dtype)
    job.ones = <const char *>cnp.PyArray_DATA(ones)
    job.dw = take(<size_t>(job.slices * job.dw_slice * size))
    try:
        run(pointwise_item, &job, items * job.slices, work / (items * job.slices), threads, scratch)
        run(store_item, &job, groups * job.blocks,
            4.0 * widest * kernels.lanes * job.channels * job.slices, threads, 0)
    finally:
        give(job.dw)
    return 0
