# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""The gradient of a convolution's input: a convolution with turned-round weights.

There is one for each phase of the stride, so that nothing multiplies by zeros.
"""

from libc.string cimport memset
from functools import lru_cache
from math import gcd

cimport numpy as cnp
import numpy as np

from convkern._kernels.blocks import place_pixels
from convkern._kernels.conv import Part, convolve
from convkern._kernels.core import empty, lanes, to_channels_last
from convkern._kernels.packing import PackedConv

from convkern._kernels.conv cimport GROUP_BYTES
from convkern._kernels.core cimport ceil_div, kernels_of, run

cnp.import_array()


def axis_phases(Py_ssize_t size, Py_ssize_t out, Py_ssize_t kernel, Py_ssize_t stride,
                Py_ssize_t pad, Py_ssize_t dilation):
    """Yield (first position, taps, axis) for each phase of one axis.

    Output o and tap r of the convolution meet input position h = o*stride - pad + r*dilation.
    The positions with one remainder of h + pad by the stride meet every
    (stride/gcd)-th tap only, and from one to the next o moves on by one: a convolution
    of stride 1 with these taps in reverse.
    """
    common = gcd(stride, dilation)
    tap_step, gap = stride // common, dilation // common
    for first in range(min(stride, size)):
        phase = (first + pad) % stride
        taps = [r for r in range(min(tap_step, kernel)) if r * dilation % stride == phase]
        count, lead = 0, 0
        if taps:
            count = (kernel - 1 - taps[0]) // tap_step + 1
            lead = (count - 1) * gap - (first + pad - taps[0] * dilation) // stride
            taps = (taps[0] + (count - 1) * tap_step, -tap_step, count)
        else:
            taps = (0, 1, 0)
        yield first, taps, (out, (size - 1 - first) // stride + 1, count, 1, lead, gap)


@lru_cache(maxsize=256)
def phases_of(tuple rows, tuple columns):
    """Return the phases of both axes, and whether there are some that no tap meets.

    rows and columns are (size, outputs, kernel, stride, leading padding, dilation).
    """
    phases = [(*row, *column) for row in axis_phases(*rows) for column in axis_phases(*columns)]
    return phases, any(phase[1][2] * phase[4][2] == 0 for phase in phases)


cdef struct ClearJob:
    char *out
    size_t bytes

cdef enum:
    CLEAR_BYTES = 1 << 17


cdef void clear_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const ClearJob *job = <const ClearJob *>job_
    cdef size_t start = <size_t>item * CLEAR_BYTES
    memset(job.out + start, 0, min(<size_t>CLEAR_BYTES, job.bytes - start))


cdef int clear(cnp.ndarray out, int threads) except -1:
    """Fill a dense array with zeros."""
    cdef ClearJob job
    job.out, job.bytes = <char *>cnp.PyArray_DATA(out), <size_t>cnp.PyArray_NBYTES(out)
    return run(clear_item, &job, ceil_div(job.bytes, CLEAR_BYTES), 0.2 * CLEAR_BYTES, threads, 0)


def input_gradient(cnp.ndarray grad, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray out,
                   tuple rows, tuple columns, Py_ssize_t groups, bint channels_last, int threads,
                   int winograd=0):
    """Write the gradient of a convolution's input, plus a bias, into out.

    rows and columns are the convolution's (kernel, stride, leading padding,
    dilation); layouts are as for `convolve`.  `winograd`, as for `PackedConv`, is that of
    the dense convolution which computes it: see `dense_taps`.
    """
    cdef Py_ssize_t steps = block_steps(kernels_of(weight).lanes, weight.shape[1], rows, columns,
                                        groups)
    if steps and (not winograd or rows[1] > 1):
        blockwise_input_gradient(grad, weight, bias, out, rows, columns, steps, channels_last,
                                 threads, winograd)
        return
    phases, empty = phases_of((out.shape[2], grad.shape[2], *rows),
                              (out.shape[3], grad.shape[3], *columns))
    if channels_last and bias is None and empty:
        # Pixels that no window meets.
        clear(out, threads)
        phases = [phase for phase in phases if phase[1][2] * phase[4][2]]
    parts = [
        Part(PackedConv(weight, bias, groups, threads, winograd, True, row_taps, column_taps), h, w,
             (row, column), (rows[1], columns[1]))
        for row, row_taps, h, column, column_taps, w in phases
    ]
    convolve(grad, out, parts, 0, 0.0, channels_last, threads)


def dense_taps(dtype, channels, tuple rows, tuple columns, groups):
    """Return the taps of the dense convolution that computes the gradient of the input.

    (0, 0) where there is none: the phases of a stride are convolutions of their own.
    """
    if rows[1:4:2] == columns[1:4:2] == (1, 1):
        steps = block_steps(lanes(dtype), channels, rows, columns, groups)
        return (0, 0) if steps else (rows[0], columns[0])
    if block_steps(lanes(dtype), channels, rows, columns, groups) != 1:
        return 0, 0
    return tuple((axis[0] - 1) // axis[1] + 1 for axis in (rows, columns))


cdef Py_ssize_t block_steps(Py_ssize_t lanes, Py_ssize_t channels, tuple rows, tuple columns,
                            Py_ssize_t groups) except -1:
    """Choose the pixel blocks of `blockwise_input_gradient`, in strides; 0: not worth while.

    Counted are multiplications of vectors per pixel and input channel.
    """
    cdef Py_ssize_t kernel_h, stride_h, dilation_h, kernel_w, stride_w, dilation_w
    cdef Py_ssize_t best = 0, steps, taps, pixels
    cdef double cost, least
    kernel_h, stride_h, _, dilation_h = rows
    kernel_w, stride_w, _, dilation_w = columns
    if groups > 1 or channels >= lanes or dilation_h * dilation_w > 1:
        return 0
    least = 0.7 * kernel_h * kernel_w / (stride_h * stride_w)
    for steps in (1, 2, 4):
        taps = (steps + (kernel_h - 1) // stride_h) * (steps + (kernel_w - 1) // stride_w)
        pixels = stride_h * stride_w * steps * steps
        cost = <double>(taps * ceil_div(channels * pixels, lanes)) / pixels
        if cost < least:
            best, least = steps, cost
    return best


@lru_cache(maxsize=256)
def block_axis(Py_ssize_t size, Py_ssize_t out, Py_ssize_t kernel, Py_ssize_t stride,
               Py_ssize_t pad, Py_ssize_t steps):
    """Return one axis of `blockwise_input_gradient`: tap table, axis, first pixel's place.

    Position h of block q and place f is h + pad = q*block + f, and tap r meets it
    at output o where o*stride + r = h + pad, that is o = q*steps + (f - r)/stride.  The
    table holds r for each place and each offset o - q*steps; `kernel` stands for none.
    """
    block, reach = steps * stride, (kernel - 1) // stride
    r = np.arange(block)[:, None] - stride * (np.arange(steps + reach) - reach)
    table = np.where((r >= 0) & (r < kernel), r, kernel)
    first = pad // block
    count = (size - 1 + pad) // block - first + 1
    return table, (out, count, steps + reach, steps, reach - first * steps, 1), pad % block


def blockwise_input_gradient(cnp.ndarray grad, cnp.ndarray weight, cnp.ndarray bias,
                             cnp.ndarray out, tuple rows, tuple columns, Py_ssize_t steps,
                             bint channels_last, int threads, int winograd=0):
    """Compute blocks of `steps` x `steps` strides of pixels as channels of one convolution.

    A few input channels alone would leave most lanes of a vector empty.  With a
    stride of 4 and 3 channels, one convolution to 48 channels stands for 16 to 3.
    """
    cdef Py_ssize_t filters = weight.shape[0], channels = weight.shape[1], n, count
    row_taps, h, top = block_axis(out.shape[2], grad.shape[2], rows[0], rows[1], rows[2], steps)
    column_taps, w, left = block_axis(out.shape[3], grad.shape[3], columns[0], columns[1],
                                      columns[2], steps)
    # (filter, channel, place row, tap row, place column, tap column); the last tap is zero.
    padded = np.zeros((filters, channels, rows[0] + 1, columns[0] + 1), weight.dtype)
    padded[:, :, :-1, :-1] = weight
    filled = padded[:, :, row_taps][..., column_taps]
    # The pixels of a block land next to each other: (row, column, channel) for channels-last
    # rows, (channel, row, column) for planes.
    order = (2, 4, 1, 0, 3, 5) if channels_last else (1, 2, 4, 0, 3, 5)
    weights = np.ascontiguousarray(filled.transpose(order)).reshape(-1, filters, h[2], w[2])
    places = len(row_taps) * len(column_taps)
    if bias is not None:
        bias = np.tile(bias, places) if channels_last else np.repeat(bias, places)
    part = Part(PackedConv(weights, bias, 1, threads, winograd), h, w)
    shape = (places * channels, h[1], w[1])
    cdef Py_ssize_t images = grad.shape[0], image = places * channels * h[1] * w[1]
    cdef Py_ssize_t group = max(1, min(images, GROUP_BYTES // (image * weight.itemsize)))
    blocks = empty((group, *shape), weight.dtype, True)
    copy = None
    if not channels_last and not winograd:
        copy = empty((group, *(<object>grad).shape[1:]), weight.dtype, True)
    n = 0
    while n < images:
        count = min(group, images - n)
        g = grad[n : n + count]
        if copy is not None:
            to_channels_last(g, copy[:count], threads)
            g = copy[:count]
        turned = not channels_last and copy is None
        convolve(g, blocks[:count], [part], 0, 0.0, not turned, threads, None, turned)
        place_pixels(blocks[:count], out[n : n + count], (len(row_taps), top),
                     (len(column_taps), left), channels_last, threads)
        n += count
