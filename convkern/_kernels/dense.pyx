# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Linear layers and what works on rows of elements."""

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_DOT_COLUMNS,
    CK_FIRST,
    CK_LAST,
    ceil_div,
    ck_dot_layout,
    ck_kernels,
    kernels_of,
    run,
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
