# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Winograd's gradient of a weight: the gradients of the output are the filters.

A tile of m x m output gradients and the (m + r - 1)^2 pixels that it meets give r x r
sums.  All tiles of all images are added up before the transform back, so that it is
done once:

    x --input--> V[run][element][channel][tile]
    g --gradient--> Y[run][element][block of filters][tile][filter]
    M[element][block][channel][filter] += V x Y over the tiles  --register tile-->
    M --weight_gradient--> dw

The register tile is that of the convolution: channels take the place of pixels, and the tiles
of a few runs that of the channels which are summed over.  The values of a tile's gradients at the
point (1, 1) are their sum: for one more channel, of ones, they give the gradient of the bias.
"""

cimport cython
from libc.string cimport memcpy, memset

cimport numpy as cnp

import numpy as np

from convkern._kernels.core cimport (
    CK_AHEAD,
    CK_FIRST,
    CK_MAX_PIXELS,
    CK_MAX_VECTORS,
    CK_WORK_OF_ELEMENT,
    Axis,
    Block,
    Images,
    block_of,
    ceil_div,
    ck_chunk,
    ck_kernels,
    ck_outer_layout,
    ck_patch,
    ck_prefetch,
    ck_prefetch_next,
    ck_target,
    ck_tile_layout,
    ck_winograd,
    give,
    opens_share,
    run,
    take,
)
from convkern._kernels.packing cimport winograd_tile
from convkern._kernels.strips cimport Planes, Region, gather_strip, strip_of
from convkern._kernels.winograd cimport is_dense, patch_of, region_of, rows_coming, share_out

cnp.import_array()

cdef enum:
    LINE = 64                 # bytes of a cache line
    CHUNK = 128               # tiles summed in registers
    RUN = 32                  # tiles next to each other
    TURNED = 16               # tiles turned round at a time
    WIDEST = 3                # vectors of filters: with more, too few channels would fit a tile
    PART = 64                 # channels, or filters, transformed by one item
    FETCHED = 4               # turns that are taken at once
    UNPACK_CHANNELS = 16      # transposed at a time
    PAIRS = 512               # of a channel and a filter, transformed by one item
    # The threads share V and Y, in passes:
    PASS_BYTES = 12 << 20     # of V and Y at a time, but
    FEWEST = 128              # so many tiles share what is read and written of M
    # or slices of the tiles have an M of their own, and V and Y stay in a thread's cache:
    SLICES = 8
    FEWEST_SLICES = 4
    LITTLE = 50000000         # products
    SLICE_TILES = 32          # of a slice, at least
    SLICES_BYTES = 40 << 20   # of all M together, at most
    SLICE_BYTES = 1 << 20     # of V and Y at a time, but
    SLICE_FEWEST = 32         # so many tiles


cdef void tile_patch(const GradientJob *job, const Images *images, const Axis *h, const Axis *w,
                     Py_ssize_t tile, Py_ssize_t channel, bint gradient,
                     ck_patch *patch) noexcept nogil:
    """Describe the pixels of a tile from some channel on, or its gradients."""
    cdef Py_ssize_t size = job.kernels.itemsize
    cdef Py_ssize_t top = tile % job.per_image // job.across * job.tile.outputs
    cdef Py_ssize_t left = tile % job.per_image % job.across * job.tile.outputs
    cdef const char *origin = images.data + (tile // job.per_image * images.image + channel) * size
    if gradient:
        patch_of(images, origin, size, h.out, w.out, top, left, job.tile.outputs, job.zeros, patch)
    else:
        patch_of(images, origin, size, h.size, w.size, top - h.pad, left - w.pad, job.tile.size,
                 job.zeros, patch)


cdef Images strip_for(const GradientJob *job, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t channel,
                      Py_ssize_t channels, bint gradient, char *strip) noexcept nogil:
    """Bring pixels of planes, or gradients, of tiles from `begin` on into a strip.

    They are those before `end` that belong to the same image.
    """
    cdef Py_ssize_t size = job.kernels.itemsize, image = begin // job.per_image
    cdef Py_ssize_t last = min(end, (image + 1) * job.per_image), step = job.tile.outputs
    cdef Region region
    cdef Planes planes
    if gradient:
        region = region_of(job.across, job.per_image, begin, last, step, step, 0, 0, job.h.out,
                           job.w.out)
        planes = Planes(job.g.data + image * job.g.image * size, job.h.out * job.w.out, job.w.out)
    else:
        region = region_of(job.across, job.per_image, begin, last, step, job.tile.size, job.h.pad,
                           job.w.pad, job.h.size, job.w.size)
        planes = Planes(job.x.data + image * job.x.image * size, job.h.size * job.w.size,
                        job.w.size)
    gather_strip(job.kernels, &planes, &region, channel, channels, strip)
    return strip_of(strip, &region, channels, size)


cdef size_t strip_bytes(const GradientJob *job) noexcept nogil:
    """Return what a thread needs for strips."""
    cdef Py_ssize_t rows = (ceil_div(job.run - 1, job.across) + 1) * job.tile.outputs
    cdef Py_ssize_t lanes = job.kernels.lanes, pixels = 0
    if job.x_planes:
        pixels = min(job.h.size, rows + job.tile.size - job.tile.outputs) * job.w.size * lanes
    if job.g_planes:
        pixels = max(pixels, min(job.h.out, rows) * job.w.out * lanes
                     * ceil_div(job.vectors, job.blocks))
    return <size_t>(pixels * job.kernels.itemsize)


cdef ck_prefetch pixels_coming(const GradientJob *job, Py_ssize_t begin,
                               Py_ssize_t end) noexcept nogil:
    """Return the pixels that tiles begin .. end-1 meet and those before do not."""
    return rows_coming(&job.x, job.x_dense, job.kernels.itemsize, job.across, job.per_image,
                       job.h.size, job.tile.size - job.h.pad, job.tile.outputs, begin, end)


cdef ck_prefetch gradients_coming(const GradientJob *job, Py_ssize_t begin,
                                  Py_ssize_t end) noexcept nogil:
    """Return the gradients of tiles begin .. end-1."""
    return rows_coming(&job.g, job.g_dense, job.kernels.itemsize, job.across, job.per_image,
                       job.h.out, job.tile.outputs, job.tile.outputs, begin, end)


cdef void lead(ck_prefetch *coming, Py_ssize_t turns) noexcept nogil:
    """Let so many turns fetch what is coming, and take some of them at once."""
    cdef Py_ssize_t i
    share_out(coming, turns)
    for i in range(FETCHED):
        ck_prefetch_next(coming)


# What is fetched while other tiles are multiplied.
cdef struct Coming:
    ck_prefetch x, g


cdef inline void fetch(Coming *coming) noexcept nogil:
    """Take a turn."""
    ck_prefetch_next(&coming.x)
    ck_prefetch_next(&coming.g)


cdef inline size_t turned_bytes(const GradientJob *job) noexcept nogil:
    """Return what a thread needs to turn V round."""
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    return <size_t>(elements * TURNED * job.kernels.lanes * job.kernels.itemsize)


cdef void transform_pixels(const GradientJob *job, Py_ssize_t begin, Py_ssize_t end,
                           Py_ssize_t group, Py_ssize_t first, Py_ssize_t stop, bint fetched,
                           char *v, char *scratch) noexcept nogil:
    """Transform some channels of tiles begin .. end-1 into V, with zeros up to a whole run.

    Pixels of which nobody has fetched any are fetched a few tiles ahead.
    """
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, index, c, channels, i, element
    cdef Py_ssize_t turned = 0  # tiles in scratch
    cdef Py_ssize_t channel, tile
    cdef char *strip = scratch + turned_bytes(job)
    cdef Images x = job.x
    cdef ck_prefetch pixels
    cdef ck_patch patch
    for index in range(ceil_div(stop - first, lanes)):
        c = first + index * lanes
        channels = min(lanes, stop - c)
        channel = group * job.channels + c
        pixels = pixels_coming(job, begin, begin if fetched else end)
        pixels.at += channel * size
        pixels.step, pixels.bytes = job.x.column * size, channels * size
        lead(&pixels, job.run)
        for i in range(job.run):
            ck_prefetch_next(&pixels)
            tile = min(begin + i, end - 1)
            if job.x_planes and (i == 0 or (begin + i < end and tile % job.per_image == 0)):
                x = strip_for(job, tile, end, channel, channels, False, strip)
            tile_patch(job, &x, &job.h, &job.w, tile, 0 if job.x_planes else channel, False, &patch)
            if begin + i >= end:
                patch.last = 0
            if not job.turned:
                job.tile.input(&patch, channels, v + (c * job.run + i * lanes) * size,
                               job.v_element, lanes)
                continue
            job.tile.input(&patch, channels, scratch + turned * lanes * size, TURNED * lanes, lanes)
            turned += 1
            if turned < TURNED and i < job.run - 1:
                continue
            for element in range(job.tile.size * job.tile.size):
                kernels.transpose(
                    scratch + element * TURNED * lanes * size, lanes,
                    v + (element * job.v_element + c * job.run + i + 1 - turned) * size, job.run,
                    turned, channels)
            turned = 0


cdef void transform_gradients(const GradientJob *job, Py_ssize_t begin, Py_ssize_t end,
                              Py_ssize_t group, Block block, bint fetched, char *y,
                              char *scratch) noexcept nogil:
    """Transform a block of filters of tiles begin .. end-1 into Y, with zeros up to a whole run."""
    cdef Py_ssize_t size = job.kernels.itemsize, i, tile
    cdef Py_ssize_t filters = min(block.width, job.out_channels - block.first)
    cdef Py_ssize_t channel = group * job.out_channels + block.first
    cdef char *strip = scratch + turned_bytes(job)
    cdef Images g = job.g
    cdef ck_prefetch gradients = gradients_coming(job, begin, begin if fetched else end)
    cdef ck_patch patch
    gradients.at += channel * size
    gradients.step, gradients.bytes = job.g.column * size, filters * size
    lead(&gradients, job.run)
    for i in range(job.run):
        ck_prefetch_next(&gradients)
        tile = min(begin + i, end - 1)
        if job.g_planes and (i == 0 or (begin + i < end and tile % job.per_image == 0)):
            g = strip_for(job, tile, end, channel, filters, True, strip)
        tile_patch(job, &g, &job.h, &job.w, tile, 0 if job.g_planes else channel, True, &patch)
        if begin + i >= end:
            patch.last = 0
        job.tile.gradient(&patch, filters,
                          y + (block.first * job.run + i * block.width) * size, job.y_element,
                          job.kernels.lanes)


cdef void add_tiles(const GradientJob *job, const char *v, const char *y, Py_ssize_t runs,
                    Block block, bint fresh, Coming *coming, char *m) noexcept nogil:
    """Add the products of one element and block of filters, for some turned runs, to M.

    A fresh M has no sums yet.
    """
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, tiles, i, c = 0, c_stop
    cdef ck_tile_layout layout
    cdef ck_chunk sums
    memset(&layout, 0, sizeof(layout))
    layout.tail, layout.x_pixel, layout.out_pixel = kernels.lanes, job.run, block.width
    layout.x_row, layout.w_row = job.v_run, job.y_run
    sums.rows, sums.columns, sums.run, sums.ahead_step = runs, 1, job.run, CK_AHEAD
    sums.flags = CK_FIRST if fresh else 0
    tiles = ceil_div(job.channels, kernels.max_pixels[block.vectors])
    for i in range(tiles):
        c_stop = job.channels * (i + 1) // tiles
        fetch(coming)
        # What the sum is added to arrives while it is formed.
        sums.ahead = m + c * block.width * size
        kernels.tile[block.vectors][c_stop - c](
            &layout, &sums, v + c * job.run * size, y, job.zeros, m + c * block.width * size)
        c = c_stop


cdef void add_outer(const GradientJob *job, const char *v, const char *y, Py_ssize_t runs,
                    Block block, Coming *coming, char *m) noexcept nogil:
    """Do the same for runs that are not turned round."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, c = 0, count, tiles, i, begin, end
    cdef ck_outer_layout layout
    layout.rows, layout.x_row, layout.g_row = runs, job.v_run, job.y_run
    layout.pixels, layout.x_pixel, layout.g_pixel = job.run, lanes, block.width
    layout.dw_row = block.width
    while c < job.channels:
        count = min(lanes, job.channels - c)
        tiles = ceil_div(count, kernels.max_pixels[block.vectors])
        begin = 0
        for i in range(tiles):
            end = count * (i + 1) // tiles
            fetch(coming)
            kernels.outer[block.vectors][end - begin](
                &layout, v + (c * job.run + begin) * size, y, m + (c + begin) * block.width * size)
            begin = end
        c += lanes


cdef void add_sums(const GradientJob *job, const char *y, Py_ssize_t runs, Block block, bint fresh,
                   char *sums) noexcept nogil:
    """Add the values of some runs to their sums."""
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    memset(&layout, 0, sizeof(layout))
    layout.tail, layout.w_row = job.kernels.lanes, job.y_run
    chunk.rows, chunk.columns, chunk.run, chunk.ahead_step = runs, 1, job.run, 0
    chunk.flags, chunk.ahead = CK_FIRST if fresh else 0, sums
    job.kernels.tile[block.vectors][1](&layout, &chunk, job.ones, y, job.zeros, sums)


cdef void add_products(const GradientJob *job, const char *v, const char *y, Py_ssize_t runs,
                       Block block, bint fresh, Coming *coming, char *m,
                       char *sums) noexcept nogil:
    """Add the products of one element and block of filters to M, a few runs at a time.

    They are added up for the bias as well, if there are `sums`.
    """
    cdef Py_ssize_t size = job.kernels.itemsize, pieces = ceil_div(runs * job.run, CHUNK), piece
    cdef Py_ssize_t first, count
    if fresh and not job.turned:
        memset(m, 0, <size_t>(job.channels * block.width * size))
    for piece in range(pieces):
        first = runs * piece // pieces
        count = runs * (piece + 1) // pieces - first
        if job.turned:
            add_tiles(job, v + first * job.v_run * size, y + first * job.y_run * size, count, block,
                      fresh and piece == 0, coming, m)
        else:
            add_outer(job, v + first * job.v_run * size, y + first * job.y_run * size, count, block,
                      coming, m)
        if sums != NULL:
            add_sums(job, y + first * job.y_run * size, count, block, fresh and piece == 0, sums)


cdef void transform_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some channels or a block of filters of a run of tiles, into the shared V and Y."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, elements = job.tile.size * job.tile.size
    cdef Py_ssize_t parts = ceil_div(job.channels, PART), part = item % (parts + job.blocks)
    item //= parts + job.blocks
    cdef Py_ssize_t group = item % job.groups, run = item // job.groups
    cdef Py_ssize_t begin = job.first + run * job.run, at = group * job.runs + run
    cdef Py_ssize_t end = min(begin + job.run, job.first + job.tiles)
    if part < parts:
        transform_pixels(job, begin, end, group, part * PART,
                         min(job.channels, (part + 1) * PART), False,
                         job.v + at * job.v_run * size, scratch)
    else:
        transform_gradients(job, begin, end, group,
                            block_of(job.kernels, job.vectors, job.blocks, part - parts),
                            False, job.y + at * job.y_run * size, scratch)


cdef inline char *sums_of(const GradientJob *job, Py_ssize_t part, Py_ssize_t element,
                          Block block) noexcept nogil:
    """Return where an element's values are added up, of a slice and group; NULL: they are not."""
    if job.bias_sums == NULL or element != job.tile.size + 1:
        return NULL
    return job.bias_sums + (part * job.vectors * job.kernels.lanes + block.first) * (
        job.kernels.itemsize)


cdef void product_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One element and block of filters: the products of all tiles of the pass."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, elements = job.tile.size * job.tile.size
    cdef Block block = block_of(job.kernels, job.vectors, job.blocks, item % job.blocks)
    cdef Py_ssize_t part = item // job.blocks, element = part % elements
    cdef Py_ssize_t at = part // elements * job.runs * elements + element
    cdef Coming nothing
    nothing.x, nothing.g = pixels_coming(job, 0, 0), gradients_coming(job, 0, 0)
    add_products(job, job.v + at * job.v_element * size,
                 job.y + (at * job.y_element + block.first * job.run) * size,
                 ceil_div(job.tiles, job.run), block, job.fresh, &nothing,
                 job.sums + (part * job.m_element + block.first * job.channels) * size,
                 sums_of(job, part // elements, element, block))


cdef void slice_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One slice of the tiles and a group of channels, with sums of its own."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, elements = job.tile.size * job.tile.size
    cdef Py_ssize_t group = item % job.groups, slice_ = item // job.groups, element, i, run, runs
    cdef Py_ssize_t begin = job.tiles * slice_ // job.slices, end
    cdef Py_ssize_t stop = job.tiles * (slice_ + 1) // job.slices
    cdef char *y = scratch + job.runs * job.v_run * size
    cdef char *turned = y + job.runs * job.y_run * size
    cdef char *m = job.sums + (slice_ * job.groups + group) * elements * job.m_element * size
    cdef bint fresh = job.fresh, fetched = not opens_share(slice_, job.slices, job.threads)
    cdef Py_ssize_t turns
    cdef Block block
    cdef Coming coming
    if fresh and begin == stop:
        memset(m, 0, <size_t>(elements * job.m_element * size))
        if job.bias_sums != NULL:
            memset(job.bias_sums + item * job.vectors * job.kernels.lanes * size, 0,
                   <size_t>(job.vectors * job.kernels.lanes * size))
    while begin < stop:
        runs = 0
        while runs < job.runs and begin < stop:
            end = min(begin + job.run, stop)
            transform_pixels(job, begin, end, group, 0, job.channels, fetched,
                             scratch + runs * job.v_run * size, turned)
            for i in range(job.blocks):
                transform_gradients(job, begin, end, group,
                                    block_of(job.kernels, job.vectors, job.blocks, i),
                                    fetched, y + runs * job.y_run * size, turned)
            begin = end
            runs += 1
        # The next tiles may be those of the next slice.
        end = min(job.tiles, begin + job.runs * job.run)
        coming.x = pixels_coming(job, begin, end)
        coming.g = gradients_coming(job, begin, end)
        turns = (elements * job.blocks * ceil_div(runs * job.run, CHUNK)
                 * ceil_div(job.channels, CK_MAX_PIXELS))
        share_out(&coming.x, turns)
        share_out(&coming.g, turns)
        fetched = True
        for element in range(elements):
            for i in range(job.blocks):
                block = block_of(job.kernels, job.vectors, job.blocks, i)
                add_products(job, scratch + element * job.v_element * size,
                             y + (element * job.y_element + block.first * job.run) * size,
                             runs, block, fresh, &coming,
                             m + (element * job.m_element + block.first * job.channels) * size,
                             sums_of(job, item, element, block))
        fresh = False


cdef void taps_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Transform a part of a slice's sums into taps, which take the places of elements."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, elements = job.tile.size * job.tile.size
    cdef Py_ssize_t pairs = job.channels * job.vectors * job.kernels.lanes
    cdef Py_ssize_t parts = ceil_div(pairs, PAIRS), first = item % parts * PAIRS
    cdef char *m = job.sums + (item // parts * elements * job.m_element + first) * size
    cdef ck_target target
    memset(&target, 0, sizeof(target))
    target.out = m
    target.rows = target.columns = job.tile.taps
    target.row, target.column = job.tile.taps * job.m_element, job.m_element
    # All elements of a vector are read before the first of its taps is written.
    job.tile.weight_gradient(m, job.m_element, min(<Py_ssize_t>PAIRS, pairs - first), &target)


cdef void add_slices(const GradientJob *job, const char *taps, Py_ssize_t channels,
                     Py_ssize_t width, char *sums, char *out) noexcept nogil:
    """Add up the taps of all slices for some channels, and put those of a channel together."""
    cdef Py_ssize_t size = job.kernels.itemsize, window = job.tile.taps * job.tile.taps, tap, i
    cdef Py_ssize_t apart = job.groups * job.tile.size * job.tile.size * job.m_element * size
    for tap in range(window):
        memcpy(sums, taps + tap * job.m_element * size, <size_t>(channels * width * size))
        for i in range(1, job.slices):
            job.kernels.add(taps + i * apart + tap * job.m_element * size, sums, channels * width)
        for i in range(channels):
            memcpy(out + (i * window + tap) * width * size, sums + i * width * size,
                   <size_t>(width * size))


cdef void store_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Write the taps of one block and some channels, in the order (k, c, tap)."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, parts = ceil_div(job.channels, UNPACK_CHANNELS)
    cdef Py_ssize_t first = item % parts * UNPACK_CHANNELS, c
    cdef Py_ssize_t count = min(<Py_ssize_t>UNPACK_CHANNELS, job.channels - first)
    cdef Block block = block_of(kernels, job.vectors, job.blocks, item // parts % job.blocks)
    cdef Py_ssize_t group = item // parts // job.blocks, taps = job.tile.taps * job.tile.taps
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    cdef char *m = job.sums + (group * elements * job.m_element
                               + block.first * job.channels + first * block.width) * size
    cdef ck_target target
    if job.slices > 1:
        add_slices(job, m, count, block.width, scratch + count * taps * block.width * size, scratch)
    else:
        memset(&target, 0, sizeof(target))
        target.rows = target.columns = job.tile.taps
        target.row, target.column = job.tile.taps * block.width, block.width
        for c in range(count):
            target.out = scratch + c * taps * block.width * size
            job.tile.weight_gradient(m + c * block.width * size, job.m_element, block.width,
                                     &target)
    kernels.transpose(
        scratch, block.width, job.grad_weight + (
            (group * job.out_channels + block.first) * job.channels + first) * taps * size,
        job.channels * taps, count * taps, min(block.width, job.out_channels - block.first))


cdef Py_ssize_t slices_of(const GradientJob *job, Py_ssize_t tiles, size_t bytes) noexcept:
    """Choose how many slices of tiles have an M of so many bytes; 1: the threads share V and Y.

    The shape alone decides, as sums depend on it.
    """
    cdef Py_ssize_t lanes = job.kernels.lanes, filters = job.vectors * lanes, slices
    # Slices write and read M so many times, the threads together V and Y.
    cdef double m = <double>job.channels * filters
    cdef double v_and_y = <double>tiles * (ceil_div(job.channels, lanes) * lanes + filters)
    slices = min(<Py_ssize_t>SLICES, tiles // SLICE_TILES, <Py_ssize_t>(SLICES_BYTES // bytes))
    while slices >= FEWEST_SLICES and 3 * slices * m > 2 * v_and_y:
        slices //= 2
    if slices >= FEWEST_SLICES:
        return slices
    # Two are for two threads only: where there is little to do for more.
    return 2 if (slices > 1 and 2 * m <= v_and_y
                 and job.tile.size * job.tile.size * m * tiles <= LITTLE) else 1


@cython.final
cdef class WinogradGradient:
    """The gradient of a weight, summed up over images and stored at the end."""

    def __cinit__(self):
        self.job.sums = self.job.bias_sums = NULL

    def __dealloc__(self):
        give(self.job.sums)
        give(self.job.bias_sums)

    cdef int prepare(self, const ck_kernels *kernels, int outputs, Py_ssize_t channels,
                     Py_ssize_t out_channels, Py_ssize_t groups, Axis h, Axis w,
                     Py_ssize_t images, cnp.ndarray grad_bias) except -1:
        """Set the geometry of one convolution; channels are those of a group.

        The gradient of the bias is made, too, unless it is None.
        """
        cdef GradientJob *job = &self.job
        cdef Py_ssize_t widest, lanes = kernels.lanes, elements
        memset(job, 0, sizeof(job[0]))
        job.kernels, job.tile = kernels, winograd_tile(kernels, outputs, h.kernel)
        job.h, job.w, job.groups = h, w, groups
        job.channels, job.out_channels = channels, out_channels
        job.across = ceil_div(w.out, outputs)
        job.per_image = job.across * ceil_div(h.out, outputs)
        job.vectors = ceil_div(out_channels, lanes)
        job.m_element = channels * job.vectors * lanes + LINE // kernels.itemsize
        job.fresh = True
        elements = job.tile.size * job.tile.size
        cdef size_t bytes = <size_t>(groups * elements * job.m_element * kernels.itemsize)
        job.slices = slices_of(job, images * job.per_image, bytes)
        bytes *= <size_t>job.slices
        # What passes through memory is worth turning round, what stays in the cache is not.
        job.turned = job.slices == 1
        widest = CK_MAX_VECTORS if job.turned else WIDEST
        while kernels.max_pixels[widest] == 0:
            widest -= 1
        job.blocks = ceil_div(job.vectors, widest)
        job.sums = take(bytes)
        self.grad_bias = grad_bias
        if grad_bias is not None:
            self.ones = np.ones(RUN, grad_bias.dtype)
            job.ones = <const char *>cnp.PyArray_DATA(self.ones)
            job.bias_sums = take(<size_t>(
                job.slices * groups * job.vectors * lanes * kernels.itemsize))
        return 0

    cdef int add(self, const Images *x, const Images *g, Py_ssize_t images, bint x_planes,
                 bint g_planes, int threads) except -1:
        """Add what images contribute, channels-last or contiguous NCHW."""
        cdef GradientJob *job = &self.job
        cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes
        cdef Py_ssize_t elements = job.tile.size * job.tile.size
        cdef Py_ssize_t padded = ceil_div(job.channels, lanes) * lanes
        cdef Py_ssize_t filters = job.vectors * lanes, total = images * job.per_image, passes = 1
        cdef Py_ssize_t tile_bytes = elements * (padded + filters) * size
        cdef Py_ssize_t most = total, parts = ceil_div(job.channels, PART) + job.blocks
        job.x, job.g, job.threads = x[0], g[0], threads
        job.x_planes, job.g_planes = x_planes, g_planes
        job.x_dense = not x_planes and is_dense(x, job.h.size, job.w.size, job.channels)
        job.g_dense = not g_planes and is_dense(g, job.h.out, job.w.out, job.out_channels)
        if job.slices > 1:
            most = ceil_div(total, job.slices)
            most = ceil_div(most, ceil_div(
                most, max(<Py_ssize_t>SLICE_FEWEST, SLICE_BYTES // tile_bytes)))
        else:
            passes = ceil_div(total, max(<Py_ssize_t>FEWEST, PASS_BYTES // tile_bytes // job.groups))
            most = ceil_div(total, passes)
        job.runs = ceil_div(most, RUN)
        job.run = ceil_div(most, job.runs)
        # A line more between elements, so that they do not all fall into the same cache sets.
        job.v_element = job.run * padded + LINE // size
        job.y_element = job.run * filters + LINE // size
        job.v_run, job.y_run = elements * job.v_element, elements * job.y_element
        cdef size_t v_bytes = <size_t>(job.runs * job.v_run * size)
        cdef size_t y_bytes = <size_t>(job.runs * job.y_run * size)
        cdef size_t turned = turned_bytes(job) + strip_bytes(job)
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
                    (transform + product) * total / job.slices, threads,
                    v_bytes + y_bytes + turned)
                job.fresh = False
            else:
                for index in range(passes):
                    job.first = total * index // passes
                    job.tiles = total * (index + 1) // passes - job.first
                    run(transform_item, job, ceil_div(job.tiles, job.run) * job.groups * parts,
                        transform * job.run / parts, threads, turned)
                    run(product_item, job, job.groups * elements * job.blocks,
                        product * job.tiles / elements / job.blocks, threads, 0)
                    job.fresh = False
        finally:
            give(memory)
        return 0

    cdef int store(self, char *grad_weight, int threads) except -1:
        """Write the gradients, that of the weight (OC, C/groups, KH, KW)."""
        cdef GradientJob *job = &self.job
        cdef Py_ssize_t width = ceil_div(job.vectors, job.blocks) * job.kernels.lanes
        cdef Py_ssize_t taps = job.tile.taps * job.tile.taps
        cdef Py_ssize_t pairs = job.channels * job.vectors * job.kernels.lanes
        cdef Py_ssize_t elements = job.tile.size * job.tile.size
        cdef Py_ssize_t size = job.kernels.itemsize, group, part
        cdef Py_ssize_t filters = job.groups * job.vectors * job.kernels.lanes
        job.grad_weight = grad_weight
        if self.grad_bias is not None:
            for part in range(1, job.slices):
                job.kernels.add(job.bias_sums + part * filters * size, job.bias_sums, filters)
            for group in range(job.groups):
                memcpy(<char *>cnp.PyArray_DATA(self.grad_bias) + group * job.out_channels * size,
                       job.bias_sums + group * job.vectors * job.kernels.lanes * size,
                       <size_t>(job.out_channels * size))
        # Taps are fewer than elements: less to add up, most of it in another thread's cache.
        if job.slices > 1:
            run(taps_item, job, job.slices * job.groups * ceil_div(pairs, PAIRS),
                CK_WORK_OF_ELEMENT * elements * min(pairs, <Py_ssize_t>PAIRS), threads, 0)
        return run(store_item, job,
                   job.groups * job.blocks * ceil_div(job.channels, UNPACK_CHANNELS),
                   CK_WORK_OF_ELEMENT * UNPACK_CHANNELS * width * taps * job.slices,
                   threads, <size_t>(UNPACK_CHANNELS * (taps + 1) * width * size))
