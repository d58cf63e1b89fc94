# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Linear layers and their gradients."""

cimport cython
from libc.math cimport ldexp
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_DOT_COLUMNS,
    CK_FIRST,
    CK_LAST,
    CK_SHORT_ROWS,
    Axis,
    ceil_div,
    ck_dot_layout,
    ck_kernels,
    ck_short_layout,
    give,
    kernels_of,
    run,
    take,
    transpose,
)
from convkern._kernels.planes cimport convolve_planes

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
    if 4 * job.batch >= 3 * job.kernels.lanes:
        linear_columns(&job, threads)
        return
    # A weight costs the time of a few operations to fetch, however small the batch.
    cdef double work = LINEAR_ROWS * (2.0 * job.batch + 8) * max(1, job.inputs)
    run(linear_item, &job, ceil_div(job.outputs, LINEAR_ROWS), work, threads,
        <size_t>(LINEAR_BATCH * LINEAR_ROWS * job.kernels.lanes * job.kernels.itemsize))


cdef int linear_columns(const LinearJob *job, int threads) except -1:
    """Do the same with the batch in the lanes: out.T = weight @ x.T, which is faster from about a
    vector of it on."""
    cdef Py_ssize_t size = job.kernels.itemsize
    cdef char *x = take(<size_t>((job.inputs + job.outputs) * job.batch * size) + 1)
    cdef char *out = x + job.inputs * job.batch * size
    try:
        transpose(job.kernels, job.x, x, 1, job.batch, job.inputs, threads)
        product(job.kernels, job.weight, job.bias, x, out, job.outputs, job.inputs, job.batch,
                threads)
        transpose(job.kernels, out, job.out, 1, job.outputs, job.batch, threads)
    finally:
        give(x)
    return 0


cdef int product(const ck_kernels *kernels, const char *a, const char *bias, const char *b,
                 char *out, Py_ssize_t rows, Py_ssize_t length, Py_ssize_t columns,
                 int threads) except -1:
    """Compute out = a @ b for contiguous (rows, length) and (length, columns), plus a bias for each
    row or NULL: a 1x1 convolution of one image of one row."""
    return convolve_planes(kernels, a, bias, b, out, 1, 1, length, rows, Axis(1, 1, 1, 1, 0, 1),
                           Axis(columns, columns, 1, 1, 0, 1), 0, 0.0, threads)


# ---------------------------------------------------------------- weights of three bytes

cdef enum:
    SHORT_CHUNK = 256  # products summed in registers, as in a convolution of one pixel

SHORT_ROWS = CK_SHORT_ROWS


cdef struct ShortJob:
    const ck_kernels *kernels
    const float *weight
    const int32_t *exponents
    uint32_t *packed
    const char *x
    const char *scale
    const char *bias
    char *out
    Py_ssize_t batch, inputs, outputs, width
    int activation
    double slope


cdef inline Py_ssize_t short_words(Py_ssize_t inputs, Py_ssize_t width) noexcept nogil:
    """Return the words of a block of `width` outputs."""
    return ceil_div(inputs, 4) * 3 * width


cdef void short_pack_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Pack a block of outputs."""
    cdef const ShortJob *job = <const ShortJob *>job_
    cdef Py_ssize_t lanes = job.kernels.lanes, i, k, part
    cdef Py_ssize_t first = item * job.width, last = min(first + job.width, job.outputs)
    cdef uint32_t *block = job.packed + item * short_words(job.inputs, job.width)
    cdef uint32_t *words
    cdef const float *row
    cdef double scale
    cdef uint32_t q[4]
    memset(block, 0, <size_t>(short_words(job.inputs, job.width) * sizeof(uint32_t)))
    for i in range(first, last):
        row = job.weight + i * job.inputs
        scale = ldexp(1.0, -job.exponents[i])
        words = block + (i - first) // lanes * 3 * lanes + (i - first) % lanes
        for k in range(0, job.inputs, 4):
            for part in range(4):
                q[part] = 0
                if k + part < job.inputs:
                    q[part] = <uint32_t><int32_t>(row[k + part] * scale) << 8
            words[0] = q[0] | q[3] >> 24
            words[lanes] = q[1] | (q[3] >> 16 & 255)
            words[2 * lanes] = q[2] | (q[3] >> 8 & 255)
            words += 3 * job.width


cdef void short_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of outputs for the whole batch, which is small."""
    cdef const ShortJob *job = <const ShortJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, first = item * job.width, k = 0, stop, piece
    cdef Py_ssize_t pieces = ceil_div(job.inputs, SHORT_CHUNK)
    cdef const uint32_t *words = job.packed + item * short_words(job.inputs, job.width)
    cdef ck_short_layout layout
    layout.x_pixel, layout.out_pixel = job.inputs, job.outputs
    layout.outputs = min(job.width, job.outputs - first)
    layout.activation, layout.slope = job.activation, job.slope
    for piece in range(pieces):
        # The cuts are those of a convolution, so that a row has the same bits in any batch.
        stop = job.inputs
        layout.flags = 0 if piece else CK_FIRST
        if piece == pieces - 1:
            layout.flags |= CK_LAST
        else:
            stop = job.inputs * (piece + 1) // pieces & ~3
        layout.run = stop - k
        job.kernels.short_rows[job.batch](
            &layout, job.x + k * size, words + short_words(k, job.width), job.scale + first * size,
            job.bias + first * size, job.out + first * size)
        k = stop


@cython.final
cdef class ShortWeight:
    """The weight and bias of a linear layer in the order in which few rows read them.

    Weights are whole numbers of 24 bits times a power of two, one for each output.
    """

    cdef char *memory
    cdef ShortJob job

    def __dealloc__(self):
        give(self.memory)

    def __init__(self, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray exponents, int threads):
        """Pack a C-contiguous float32 (O, I) weight: row i holds multiples of 2^exponents[i]."""
        cdef ShortJob *job = &self.job
        cdef Py_ssize_t i
        job.kernels = kernels_of(weight)
        job.outputs, job.inputs = weight.shape[0], weight.shape[1]
        job.width = job.kernels.short_vectors * job.kernels.lanes
        cdef Py_ssize_t blocks = ceil_div(job.outputs, job.width)
        cdef size_t words = <size_t>(blocks * short_words(job.inputs, job.width) * sizeof(uint32_t))
        cdef size_t floats = <size_t>(blocks * job.width) * sizeof(float)
        self.memory = take(words + 2 * floats)
        job.packed = <uint32_t *>self.memory
        job.scale, job.bias = self.memory + words, self.memory + words + floats
        memset(self.memory + words, 0, 2 * floats)
        cdef float *scale = <float *>job.scale
        cdef float *biases = <float *>job.bias
        job.weight = <const float *>cnp.PyArray_DATA(weight)
        job.exponents = <const int32_t *>cnp.PyArray_DATA(exponents)
        for i in range(job.outputs):
            # The words hold 256 times the number.
            scale[i] = <float>ldexp(1.0, job.exponents[i] - 8)
            if bias is not None:
                biases[i] = (<const float *>cnp.PyArray_DATA(bias))[i]
        run(short_pack_item, job, blocks, 4.0 * job.width * job.inputs, threads, 0)


def short_linear(cnp.ndarray x, ShortWeight weight, cnp.ndarray out, int activation, double slope,
                 int threads):
    """Compute linear(x) and its activation for at most SHORT_ROWS contiguous rows of float32."""
    cdef ShortJob job = weight.job
    job.x, job.out = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out)
    job.batch, job.activation, job.slope = x.shape[0], activation, slope
    # A weight costs the time of a few operations to fetch, however small the batch.
    run(short_item, &job, ceil_div(job.outputs, job.width),
        job.width * (2.0 * job.batch + 8) * job.inputs, threads, 0)


# ---------------------------------------------------------------- gradients


def linear_input_gradient(cnp.ndarray grad, cnp.ndarray weight, cnp.ndarray out, int threads):
    """Compute out = grad @ weight for contiguous (batch, O), (O, I), (batch, I)."""
    product(kernels_of(grad), <const char *>cnp.PyArray_DATA(grad), NULL,
            <const char *>cnp.PyArray_DATA(weight), <char *>cnp.PyArray_DATA(out),
            grad.shape[0], grad.shape[1], weight.shape[1], threads)


def linear_weight_gradient(cnp.ndarray grad, cnp.ndarray x, cnp.ndarray out, int threads):
    """Compute out = grad.T @ x for contiguous (batch, O), (batch, I), (O, I)."""
    cdef const ck_kernels *kernels = kernels_of(grad)
    cdef Py_ssize_t batch = grad.shape[0], outputs = grad.shape[1]
    cdef char *turned = take(<size_t>(batch * outputs * kernels.itemsize) + 1)
    try:
        transpose(kernels, <const char *>cnp.PyArray_DATA(grad), turned, 1, batch, outputs, threads)
        product(kernels, turned, NULL, <const char *>cnp.PyArray_DATA(x),
                <char *>cnp.PyArray_DATA(out), outputs, batch, x.shape[1], threads)
    finally:
        give(turned)
