# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""The gradient of a convolution's weight: a sum over pixels for each tap, channel and filter.

It is made on the tile of the convolution from rows that are turned round, or by outer
products of pixels.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.conv cimport GROUP_BYTES
from convkern._kernels.core cimport (
    CK_AHEAD,
    CK_FIRST,
    CK_MAX_VECTORS,
    Axis,
    Block,
    Images,
    axis,
    block_of,
    ceil_div,
    ck_chunk,
    ck_kernels,
    ck_outer_layout,
    ck_tile_layout,
    give,
    images_of,
    kernels_of,
    packed_images,
    run,
    take,
    transpose,
)
from convkern._kernels.depthwise_gradient cimport depthwise_weight_gradient
from convkern._kernels.pointwise_gradient cimport pointwise_weight_gradient
from convkern._kernels.winograd_gradient cimport WinogradGradient

cnp.import_array()


cdef enum:
    CHUNK_BYTES = 24 << 10  # gradients of one sum's pixels, in the first-level cache
    MOST_SLICES = 64
    RANGE = 32              # channels of an item
    TURNED_RANGE = 64       # the same where they are turned round
    TURNED_BLOCKS = 4       # and blocks of filters, which share that
    TURNED_PIXELS = 256     # of one sum, as many products as in the convolution
    # What is not turned round: so few channels that `outer` takes the taps of a row together, and,
    # of channels-last images, short rows and elements of so few uses, times a row's outputs, that
    # it would not pay.
    FEW_CHANNELS = 8
    SHORT_ROW = 12
    FEW_USES = 400
    TURNED_BYTES = 1 << 20  # at most, of an item
    LINE = 64               # bytes of a cache line
    UNPACK_CHANNELS = 16    # transposed at a time

cdef struct WeightJob:
    const ck_kernels *kernels
    Images x, g
    const char *packed    # (image, group, block of output channels, pixel, output channel)
    char *dw              # (slice, group, block, tap row, tap column, input channel, ...)
    char *grad_weight     # the result, (OC, C/groups, KH, KW)
    Axis h, w
    Py_ssize_t images, channels, out_channels, groups, vectors, blocks
    # How items are cut: row and column chunks of an image, slices of all chunks with a sum of
    # their own, ranges of the input channels.
    Py_ssize_t row_chunks, column_chunks, slices, ranges
    Py_ssize_t dw_slice
    bint fold
    bint dense   # g is NCHW
    bint direct  # g is read where it is: channels-last, one block of full vectors
    # Turned round, a row of each channel has `phases` of the horizontal stride, one after the
    # other, with the padding: column f + q*stride - pad is element q of phase f.
    bint turned, planes  # planes: x is NCHW
    # Phases, and elements of a phase, a row, an image and a channel, which has `joined` images.
    Py_ssize_t phases, phase, row, image, channel, joined
    Py_ssize_t block_ranges, pieces
    bint fresh                # dw has no sums yet
    const char *zeros


cdef void gather_gradients(const WeightJob *job, Py_ssize_t image, Py_ssize_t group, Block block,
                           Py_ssize_t row, Py_ssize_t row_stop, char *dst) noexcept nogil:
    """Copy some rows of an image's gradients of a block of output channels, pixel by pixel."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, column
    cdef Py_ssize_t count = min(block.width, job.out_channels - block.first)
    cdef Py_ssize_t plane = job.h.out * job.w.out, pixels = (row_stop - row) * job.w.out
    cdef Py_ssize_t first = group * job.out_channels + block.first
    cdef const char *src
    if count < block.width:
        memset(dst, 0, <size_t>(pixels * block.width * size))
    if job.dense:  # NCHW planes
        kernels.transpose(
            job.g.data + (image * job.g.image + first * plane + row * job.w.out) * size, plane, dst,
            block.width, count, pixels)
        return
    for row in range(row, row_stop):
        src = job.g.data + (image * job.g.image + row * job.g.row + first) * size
        for column in range(job.w.out):
            memcpy(dst, src, <size_t>(count * size))
            dst += block.width * size
            src += job.g.column * size


cdef void pack_gradient_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Gather one image's gradients of a block of output channels."""
    cdef const WeightJob *job = <const WeightJob *>job_
    cdef Block block = block_of(job.kernels, job.vectors, job.blocks, item % job.blocks)
    cdef Py_ssize_t group = item // job.blocks % job.groups, image = item // job.blocks // job.groups
    gather_gradients(job, image, group, block, 0, job.h.out, <char *>job.packed + (
        (image * job.groups + group) * job.vectors * job.kernels.lanes + block.first) * (
            job.h.out * job.w.out * job.kernels.itemsize))


cdef inline void valid(const Axis *a, Py_ssize_t tap, Py_ssize_t *start, Py_ssize_t *stop) noexcept nogil:
    """Shrink start .. stop-1 to the outputs for which a tap lies inside the input."""
    cdef Py_ssize_t lead = a.pad - tap * a.dilation, last = a.size - 1 + lead
    start[0] = max(start[0], ceil_div(max(0, lead), a.stride))
    stop[0] = min(stop[0], 0 if last < 0 else last // a.stride + 1)


cdef void outer_box(const WeightJob *job, const char *x, const char *g, char *dw,
                    ck_outer_layout *layout, Py_ssize_t length, Block block) noexcept nogil:
    """Add the products of `length` contiguous input elements of each pixel to rows of dw."""
    cdef Py_ssize_t size = job.kernels.itemsize, tile, begin = 0, end
    cdef Py_ssize_t tiles = ceil_div(length, job.kernels.max_pixels[block.vectors])
    if layout.rows <= 0 or layout.pixels <= 0:
        return
    for tile in range(tiles):
        end = length * (tile + 1) // tiles
        job.kernels.outer[block.vectors][end - begin](
            layout, x + begin * size, g, dw + begin * block.width * size)
        begin = end


cdef inline (Py_ssize_t, Py_ssize_t) gradient_strides(const WeightJob *job, Block block) noexcept nogil:
    """From one row and one column of gradients to the next."""
    if job.direct:
        return job.g.row, job.g.column
    return job.w.out * block.width, block.width


cdef void weight_chunk(const WeightJob *job, const char *x, const char *g, char *dw, Block block,
                       Py_ssize_t tap_row, Py_ssize_t row, Py_ssize_t row_stop, Py_ssize_t column,
                       Py_ssize_t column_stop, Py_ssize_t c, Py_ssize_t c_stop) noexcept nogil:
    """Add a rectangle of output pixels to one tap row of dw; x, g, dw: origins of the image,
    of its block of gradients and of the block of weights."""
    cdef Py_ssize_t size = job.kernels.itemsize, s, a, b, inner = 0, inner_stop = job.w.out, side
    cdef ck_outer_layout layout
    layout.x_row, layout.x_pixel = job.h.stride * job.x.row, job.w.stride * job.x.column
    layout.g_row, layout.g_pixel = gradient_strides(job, block)
    layout.dw_row = block.width
    valid(&job.h, tap_row, &row, &row_stop)
    layout.rows = row_stop - row
    x += (row * job.h.stride - job.h.pad + tap_row * job.h.dilation) * job.x.row * size
    g += row * layout.g_row * size
    dw += tap_row * job.w.kernel * job.channels * block.width * size
    if job.fold:
        # Where all taps of the row lie inside, they are one contiguous run with their channels.
        valid(&job.w, 0, &inner, &inner_stop)
        valid(&job.w, job.w.kernel - 1, &inner, &inner_stop)
        inner_stop = max(inner, inner_stop)
        a, b = max(column, inner), min(column_stop, inner_stop)
        layout.pixels = b - a
        outer_box(job, x + (a * job.w.stride - job.w.pad) * job.x.column * size,
                  g + a * layout.g_pixel * size, dw, &layout, job.w.kernel * job.channels, block)
    for s in range(job.w.kernel):
        # With folding the outputs left and right of the inner ones remain, otherwise all.
        for side in range(2 if job.fold else 1):
            a, b = column, column_stop
            if job.fold and side == 0:
                b = min(b, inner)
            elif job.fold:
                a = max(a, inner_stop)
            valid(&job.w, s, &a, &b)
            layout.pixels = b - a
            outer_box(job, x + ((a * job.w.stride - job.w.pad + s * job.w.dilation) * job.x.column
                                + c) * size,
                      g + a * layout.g_pixel * size,
                      dw + (s * job.channels + c) * block.width * size, &layout, c_stop - c, block)


cdef void weight_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One slice of the chunks, group, block of output channels, tap row and range of channels."""
    cdef const WeightJob *job = <const WeightJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, pixels = job.h.out * job.w.out
    # Neighbouring items are of one slice: so a thread has the images that it has in other passes,
    # and sums of its own.
    cdef Py_ssize_t items = job.ranges * job.h.kernel * job.blocks * job.groups
    cdef Py_ssize_t part = item // items
    item %= items
    cdef Py_ssize_t index = item % job.ranges
    item //= job.ranges
    cdef Py_ssize_t tap_row = item % job.h.kernel
    item //= job.h.kernel
    cdef Block block = block_of(kernels, job.vectors, job.blocks, item % job.blocks)
    cdef Py_ssize_t group = item // job.blocks
    cdef Py_ssize_t c = job.channels * index // job.ranges
    cdef Py_ssize_t c_stop = job.channels * (index + 1) // job.ranges
    cdef Py_ssize_t per_image = job.row_chunks * job.column_chunks, total = job.images * per_image
    cdef Py_ssize_t first = group * job.vectors * kernels.lanes + block.first
    cdef char *dw = job.dw + (part * job.dw_slice + first * job.channels * job.h.kernel
                              * job.w.kernel) * size
    cdef const char *x
    cdef const char *g
    cdef Py_ssize_t chunk, image, rest, row, row_stop, column, column_stop
    for chunk in range(total * part // job.slices, total * (part + 1) // job.slices):
        image, rest = chunk // per_image, chunk % per_image
        row = job.h.out * (rest // job.column_chunks) // job.row_chunks
        row_stop = job.h.out * (rest // job.column_chunks + 1) // job.row_chunks
        column = job.w.out * (rest % job.column_chunks) // job.column_chunks
        column_stop = job.w.out * (rest % job.column_chunks + 1) // job.column_chunks
        if job.direct:
            g = job.g.data + image * job.g.image * size
        else:
            g = job.packed + (
                image * job.groups * job.vectors * kernels.lanes + first) * pixels * size
        x = job.x.data + (image * job.x.image + group * job.channels) * size
        weight_chunk(job, x, g, dw, block, tap_row, row, row_stop, column, column_stop, c, c_stop)


cdef void turn(const WeightJob *job, const char *x, Py_ssize_t channels, Py_ssize_t top,
               Py_ssize_t bottom, char *turned) noexcept nogil:
    """Copy some rows of an image, channel by channel; x: the first channel's first element."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, stride = job.w.stride, h, f, c, begin, end, last
    cdef Py_ssize_t first = max(0, top), stop = min(bottom, job.h.size)
    cdef const char *src
    if job.planes:
        for c in range(channels if first < stop else 0):
            kernels.split_plane(x + (c * job.h.size + first) * job.x.row * size, job.x.row,
                                job.w.size, stop - first, stride, job.w.pad,
                                turned + (c * job.channel + (first - top) * job.row) * size,
                                job.row, job.phase)
        return
    for f in range(job.phases):
        begin, last = ceil_div(max(0, job.w.pad - f), stride), job.w.size - 1 + job.w.pad - f
        end = 0 if last < 0 else min(job.phase, last // stride + 1)
        if end <= begin:
            continue
        for h in range(first, stop):
            src = x + (h * job.x.row + (f + begin * stride - job.w.pad) * job.x.column) * size
            kernels.transpose(src, stride * job.x.column,
                              turned + ((h - top) * job.row + f * job.phase + begin) * size,
                              job.channel, end - begin, channels)


cdef struct Piece:
    # Some output rows of an image, or all of several; first: of a sum.
    Py_ssize_t image, images, row, row_stop
    bint first


cdef void turned_block(const WeightJob *job, const Piece *piece, Py_ssize_t group, Block block,
                       Py_ssize_t c, Py_ssize_t channels, const char *turned, char *gathered,
                       char *dw) noexcept nogil:
    """Add the products of a piece to the rows of dw of some channels and a block of filters."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, r, s, tile, i, i_stop, begin, stop
    cdef Py_ssize_t first = group * job.vectors * lanes + block.first, row = block.width * size
    cdef Py_ssize_t tiles = ceil_div(channels, kernels.max_pixels[block.vectors])
    cdef Py_ssize_t g_row = job.w.out * block.width, g_image = (piece.row_stop - piece.row) * g_row
    cdef const char *g = gathered
    cdef const char *x
    cdef char *sum
    cdef ck_tile_layout layout
    cdef ck_chunk sums
    if job.direct:
        g, g_image = job.g.data + (piece.image * job.g.image + piece.row * g_row) * size, job.g.image
    else:
        for i in range(piece.images):
            gather_gradients(job, piece.image + i, group, block, piece.row, piece.row_stop,
                             gathered + i * g_image * size)
    memset(&layout, 0, sizeof(layout))
    layout.tail, layout.x_pixel, layout.out_pixel = <int>lanes, job.channel, block.width
    layout.x_row, layout.w_row, layout.x_column = job.image, g_image, job.h.stride * job.row
    sums.rows, sums.run, sums.ahead_step = piece.images, job.w.out, CK_AHEAD
    sums.flags = CK_FIRST if piece.first else 0
    dw += (first * job.h.kernel * job.w.kernel * job.channels + c * block.width) * size
    for r in range(job.h.kernel):
        begin, stop = piece.row, piece.row_stop
        valid(&job.h, r, &begin, &stop)
        sums.columns = max(0, stop - begin)
        if sums.columns == 0 and not piece.first:
            continue
        for s in range(job.w.kernel):
            x = turned + (((begin - piece.row) * job.h.stride + r * job.h.dilation) * job.row
                          + s * job.w.dilation % job.w.stride * job.phase
                          + s * job.w.dilation // job.w.stride) * size
            i = 0
            for tile in range(tiles):
                i_stop = channels * (tile + 1) // tiles
                # What the sum is added to arrives while it is formed.
                sums.ahead = sum = dw + ((r * job.w.kernel + s) * job.channels + i) * row
                kernels.tile[block.vectors][i_stop - i](
                    &layout, &sums, x + i * job.channel * size,
                    g + (begin - piece.row) * g_row * size, job.zeros, sum)
                i = i_stop


cdef void turned_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One slice of the pieces, group, range of blocks of output channels and of channels.

    The tile of the convolution adds up the products: a channel's pixels take the place of a
    pixel's channels, and gradients that of the weights.
    """
    cdef const WeightJob *job = <const WeightJob *>job_
    cdef Py_ssize_t items = job.ranges * job.block_ranges * job.groups
    cdef Py_ssize_t part = item // items, index, i, row, images
    item %= items
    cdef Py_ssize_t c = job.channels * (item % job.ranges) // job.ranges
    cdef Py_ssize_t channels = job.channels * (item % job.ranges + 1) // job.ranges - c
    item //= job.ranges
    cdef Py_ssize_t first_block = job.blocks * (item % job.block_ranges) // job.block_ranges
    cdef Py_ssize_t last_block = job.blocks * (item % job.block_ranges + 1) // job.block_ranges
    cdef Py_ssize_t group = item // job.block_ranges, size = job.kernels.itemsize
    cdef Py_ssize_t begin = job.pieces * part // job.slices
    cdef Py_ssize_t end = job.pieces * (part + 1) // job.slices, number
    cdef char *gathered = scratch + channels * job.channel * size
    cdef const char *x
    cdef Piece piece
    memset(scratch, 0, <size_t>(channels * job.channel * size))  # the padding, once
    for number in range(begin, end):
        # Either images are cut into pieces, or pieces are of whole images.
        images = job.pieces // job.row_chunks
        piece.image = job.images * (number // job.row_chunks) // images
        piece.images = job.images * (number // job.row_chunks + 1) // images - piece.image
        row = job.h.out * (number % job.row_chunks) // job.row_chunks
        piece.row, piece.first = row, job.fresh and number == begin
        piece.row_stop = job.h.out * (number % job.row_chunks + 1) // job.row_chunks
        for i in range(piece.images):
            x = job.x.data + ((piece.image + i) * job.x.image + (group * job.channels + c) * (
                job.h.size * job.x.row if job.planes else 1)) * size
            turn(job, x, channels, row * job.h.stride - job.h.pad,
                 (piece.row_stop - 1) * job.h.stride - job.h.pad
                 + (job.h.kernel - 1) * job.h.dilation + 1, scratch + i * job.image * size)
        for index in range(first_block, last_block):
            turned_block(job, &piece, group, block_of(job.kernels, job.vectors, job.blocks, index),
                         c, channels, scratch, gathered, job.dw + part * job.dw_slice * size)


cdef void unpack_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Add up the slices of some channels of a block and bring (tap, c, k) into the order (k, c, tap).
    """
    cdef const WeightJob *job = <const WeightJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t parts = ceil_div(job.channels, UNPACK_CHANNELS), c = item % parts * UNPACK_CHANNELS
    cdef Block block = block_of(job.kernels, job.vectors, job.blocks, item // parts % job.blocks)
    cdef Py_ssize_t group = item // parts // job.blocks, size = kernels.itemsize, part, i, tap
    cdef Py_ssize_t taps = job.h.kernel * job.w.kernel, row = block.width * size
    cdef Py_ssize_t filters = min(block.width, job.out_channels - block.first)
    cdef Py_ssize_t count = min(<Py_ssize_t>UNPACK_CHANNELS, job.channels - c)
    cdef Py_ssize_t first = (group * job.vectors * kernels.lanes + block.first) * job.channels * taps
    cdef char *dw
    for tap in range(taps):
        dw = job.dw + first * size + (tap * job.channels + c) * row
        for part in range(1, job.slices):
            kernels.add(dw + part * job.dw_slice * size, dw, count * block.width)
        for i in range(count):
            memcpy(scratch + (i * taps + tap) * row, dw + i * row, <size_t>row)
    kernels.transpose(
        scratch, block.width, job.grad_weight + (
            ((group * job.out_channels + block.first) * job.channels + c) * taps * size),
        job.channels * taps, count * taps, filters)


cdef bint turns_round(WeightJob *job, bint planes) noexcept nogil:
    """Choose whether to turn the input round; if so, lay out a channel of an item."""
    cdef Py_ssize_t span = (job.w.kernel - 1) * job.w.dilation, line = LINE // job.kernels.itemsize
    cdef Py_ssize_t rows = min(job.h.out, max(1, TURNED_PIXELS // job.w.out))
    rows = (rows - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1
    job.phases, job.phase = job.w.stride, job.w.out + span // job.w.stride
    job.row = job.phases * job.phase
    if max(rows, job.row) > TURNED_BYTES:
        return False
    # Small images are joined.
    job.joined = max(1, TURNED_PIXELS // (job.h.out * job.w.out))
    job.image = rows * job.row
    # An odd number of lines, so that channels do not meet in the same sets of the cache.
    job.channel = (ceil_div(job.joined * job.image, line) | 1) * line
    # Vectors that each turned element is multiplied with.
    cdef double uses = <double>(job.h.kernel * job.w.kernel) / (job.h.stride * job.w.stride) * min(
        job.vectors, TURNED_BLOCKS * ceil_div(job.vectors, job.blocks))
    if job.channels < FEW_CHANNELS:
        return False
    # What lies channels-last need not be copied otherwise.
    if not planes and (job.w.out < SHORT_ROW or uses * job.w.out < FEW_USES):
        return False
    return (job.channel * min(job.channels, <Py_ssize_t>TURNED_RANGE) * job.kernels.itemsize
            <= TURNED_BYTES)


cdef inline bint is_point(const Axis *a) noexcept nogil:
    """Tell whether a window is one element that never hangs over an edge."""
    return a.kernel == 1 and a.pad == 0 and (a.out - 1) * a.stride < a.size


def weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight, tuple rows,
                    tuple columns, Py_ssize_t groups, bint channels_last, int threads,
                    int winograd=0, bint turned=False, cnp.ndarray grad_bias=None):
    """Write the gradient of a convolution's weight.

    Return whether that of the bias has been written, too.

    x and grad have one layout: channels-last with any other strides, or contiguous NCHW.
    rows and columns are (kernel, stride, leading padding, dilation); `winograd` is how
    many outputs a tile has on each axis, 0 for the direct algorithm.  With a tile grad may be
    `turned`, in the other layout than x.
    """
    if winograd:
        winograd_weight_gradient(x, grad, grad_weight, grad_bias, rows, columns, groups,
                                 channels_last, channels_last != turned, threads, winograd)
        return grad_bias is not None
    cdef WeightJob job
    job.h = axis(x.shape[2], grad.shape[2], rows)
    job.w = axis(x.shape[3], grad.shape[3], columns)
    if x.shape[1] == groups == grad.shape[1]:
        depthwise_weight_gradient(x, grad, grad_weight, grad_bias, job.h, job.w, channels_last,
                                  threads)
        return grad_bias is not None
    if is_point(&job.h) and is_point(&job.w):
        pointwise_weight_gradient(x, grad, grad_weight, grad_bias, job.h, job.w, groups,
                                  channels_last, threads)
        return grad_bias is not None
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, images = x.shape[0]
    cdef Py_ssize_t widest = CK_MAX_VECTORS, n, count, k
    job.kernels, job.groups = kernels, groups
    job.channels, job.out_channels = x.shape[1] // groups, grad.shape[1] // groups
    job.grad_weight = <char *>cnp.PyArray_DATA(grad_weight)
    while kernels.max_pixels[widest] == 0:
        widest -= 1
    job.vectors = ceil_div(job.out_channels, lanes)
    job.blocks = ceil_div(job.vectors, widest)
    cdef Py_ssize_t outputs = groups * job.vectors * lanes
    cdef Py_ssize_t taps = job.h.kernel * job.w.kernel, pixels = job.h.out * job.w.out
    cdef Py_ssize_t x_image = x.shape[1] * x.shape[2] * x.shape[3], g_image = outputs * pixels
    cdef Py_ssize_t sum_pixels = CHUNK_BYTES // (ceil_div(job.vectors, job.blocks) * lanes * size)
    job.turned = turns_round(&job, not channels_last)
    if job.turned:
        sum_pixels = TURNED_PIXELS
    job.column_chunks = 1 if job.turned else ceil_div(job.w.out, sum_pixels)
    job.row_chunks = ceil_div(job.h.out, max(1, sum_pixels * job.column_chunks // job.w.out))
    cdef Py_ssize_t items = groups * job.blocks * job.h.kernel
    # Images held at a time: many items read the same pixels, which then stay in the second-level
    # cache; few items rather work through many images.
    cdef Py_ssize_t held = GROUP_BYTES // 8 if items >= 16 else 2 * GROUP_BYTES
    cdef Py_ssize_t group = max(1, min(images, held // ((x_image + g_image) * size)))
    # Enough items for many threads: ranges of channels, then slices of the pixels with sums of
    # their own.  All of it follows from the shape.
    job.ranges = ceil_div(job.channels, TURNED_RANGE)
    job.block_ranges = ceil_div(job.blocks, TURNED_BLOCKS)
    if job.turned:
        items = groups * job.block_ranges
    else:
        job.ranges = min(ceil_div(job.channels, RANGE), ceil_div(32, items))
    cdef Py_ssize_t cuts = group * job.row_chunks * job.column_chunks
    if job.turned:
        cuts = ceil_div(group, job.joined) * job.row_chunks
    job.slices = min(ceil_div(16 if job.turned else 32, items * job.ranges), cuts)
    job.slices = max(1, min(job.slices, MOST_SLICES))
    job.dw_slice = outputs * job.channels * taps
    cdef size_t dw_bytes = <size_t>(job.slices * job.dw_slice * size)
    cdef size_t zeros = <size_t>(CK_MAX_VECTORS * lanes * size)
    cdef char *sums = take(dw_bytes + zeros)
    cdef char *copies = NULL
    job.dw, job.zeros = sums, sums + dw_bytes
    if not job.turned:
        memset(sums, 0, dw_bytes)
    memset(sums + dw_bytes, 0, zeros)
    cdef bint copy_x = not channels_last and not job.turned
    cdef const char *x_data = <const char *>cnp.PyArray_DATA(x)
    cdef char *g_data = <char *>cnp.PyArray_DATA(grad)
    cdef double flops
    try:
        copies = take(<size_t>((x_image * copy_x + g_image * (not job.turned)) * group * size) + 1)
        job.packed = copies + x_image * copy_x * group * size
        job.planes = not channels_last and not copy_x
        if channels_last:
            job.x = images_of(x)
        elif copy_x:
            job.x = packed_images(copies, x)
        else:
            job.x = Images(<char *>x_data, x_image, x.shape[3], 1)
        job.fold = (job.channels < 8 and groups == 1 and job.w.dilation == 1
                    and job.x.column == job.channels)
        n = 0
        while n < images:
            count = job.images = min(group, images - n)
            if channels_last:
                job.x.data = <char *>x_data + n * x.strides[0]
                job.g = images_of(grad)
                job.g.data += n * grad.strides[0]
            else:
                if copy_x:
                    transpose(kernels, x_data + n * x_image * size, copies, count, x.shape[1],
                              x.shape[2] * x.shape[3], threads)
                else:
                    job.x.data = <char *>x_data + n * x_image * size
                job.g = Images(g_data + n * grad.shape[1] * pixels * size, grad.shape[1] * pixels,
                               0, 0)
            job.dense = not channels_last
            job.direct = (channels_last and groups == 1 and job.blocks == 1
                          and job.out_channels == job.vectors * lanes
                          and (not job.turned or job.g.column == job.out_channels
                               and job.g.row == job.w.out * job.g.column))
            if not job.direct and not job.turned:
                run(pack_gradient_item, &job, count * groups * job.blocks,
                    2.0 * pixels * min(job.out_channels, widest * lanes), threads, 0)
            flops = 2.0 * count * pixels * taps * job.channels * job.out_channels
            flops /= job.slices * job.ranges
            job.fresh = n == 0
            if job.turned:
                job.pieces = ceil_div(count, job.joined) * job.row_chunks
                run(turned_item, &job, job.slices * groups * job.block_ranges * job.ranges,
                    flops / job.block_ranges, threads,
                    <size_t>(size * (ceil_div(job.channels, job.ranges) * job.channel + (
                        job.joined * ceil_div(job.h.out, job.row_chunks) * job.w.out
                        * ceil_div(job.vectors, job.blocks) * lanes))))
            else:
                run(weight_item, &job,
                    job.slices * groups * job.blocks * job.h.kernel * job.ranges,
                    flops / (job.blocks * job.h.kernel), threads, 0)
            n += count
        run(unpack_item, &job, groups * job.blocks * ceil_div(job.channels, UNPACK_CHANNELS),
            4.0 * widest * lanes * min(job.channels, <Py_ssize_t>UNPACK_CHANNELS) * taps
            * job.slices, threads,
            <size_t>(UNPACK_CHANNELS * taps * widest * lanes * size))
    finally:
        give(sums)
        give(copies)
    return False


cdef Images winograd_images_of(cnp.ndarray x, bint channels_last) noexcept:
    """Describe images for a `WinogradGradient`."""
    if channels_last:
        return images_of(x)
    return Images(<char *>cnp.PyArray_DATA(x), x.shape[1] * x.shape[2] * x.shape[3], x.shape[3], 1)


cdef int winograd_weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight,
                                  cnp.ndarray grad_bias, tuple rows, tuple columns, Py_ssize_t groups,
                                  bint x_last, bint g_last, int threads, int outputs) except -1:
    """Do the same by Winograd's algorithm: stride 1."""
    cdef WinogradGradient gradient = WinogradGradient()
    cdef Images x_images = winograd_images_of(x, x_last), g_images = winograd_images_of(grad, g_last)
    gradient.prepare(kernels_of(x), outputs, x.shape[1] // groups, grad.shape[1] // groups, groups,
                     axis(x.shape[2], grad.shape[2], rows),
                     axis(x.shape[3], grad.shape[3], columns), x.shape[0], grad_bias)
    gradient.add(&x_images, &g_images, x.shape[0], not x_last, not g_last, threads)
    return gradient.store(<char *>cnp.PyArray_DATA(grad_weight), threads)
