# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Windows as columns, and columns added back into images."""

from libc.string cimport memset

cimport numpy as cnp

from convkern._kernels.core cimport Axis, axis, ceil_div, ck_kernels, kernels_of, run

cnp.import_array()


cdef struct ColumnsJob:
    const ck_kernels *kernels
    const char *src
    char *dst
    Axis h, w
    Py_ssize_t block, blocks  # image rows of an item of col2im, items of a plane


cdef inline void inside(const Axis *a, Py_ssize_t tap, Py_ssize_t *begin,
                        Py_ssize_t *end) noexcept nogil:
    """Find the output positions begin .. end-1 whose `tap` lies inside the input."""
    cdef Py_ssize_t first = a.pad - tap * a.dilation, past = a.size + first
    begin[0] = min(a.out, 0 if first <= 0 else ceil_div(first, a.stride))
    end[0] = max(begin[0], min(a.out, 0 if past <= 0 else ceil_div(past, a.stride)))


cdef void im2col_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One row of taps of one plane."""
    cdef const ColumnsJob *job = <const ColumnsJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, plane = item // job.h.kernel
    cdef Py_ssize_t i = item % job.h.kernel, j, row, begin, end, top, bottom, row_bytes
    cdef const char *src = job.src + plane * job.h.size * job.w.size * size
    cdef const char *line
    cdef char *dst = job.dst + item * job.w.kernel * job.h.out * job.w.out * size
    row_bytes = job.w.out * size
    inside(&job.h, i, &top, &bottom)
    for j in range(job.w.kernel):
        inside(&job.w, j, &begin, &end)
        memset(dst, 0, <size_t>(top * row_bytes))
        line = src + ((top * job.h.stride - job.h.pad + i * job.h.dilation) * job.w.size
                      - job.w.pad + j * job.w.dilation) * size
        for row in range(top, bottom):
            job.kernels.gather_row(line, job.w.stride, begin, end, dst + row * row_bytes, job.w.out)
            line += job.h.stride * job.w.size * size
        memset(dst + bottom * row_bytes, 0, <size_t>((job.h.out - bottom) * row_bytes))
        dst += job.h.out * row_bytes


def im2col(cnp.ndarray x, cnp.ndarray out, Py_ssize_t oh, Py_ssize_t ow, tuple rows, tuple columns,
           int threads):
    """Copy the windows of a contiguous NCHW array into (N, C*KH*KW, OH*OW).

    rows and columns are (kernel, stride, padding, dilation).
    """
    cdef ColumnsJob job
    job.kernels = kernels_of(x)
    job.src, job.dst = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out)
    job.h, job.w = axis(x.shape[2], oh, rows), axis(x.shape[3], ow, columns)
    run(im2col_item, &job, x.shape[0] * x.shape[1] * job.h.kernel,
        2.0 * job.w.kernel * oh * ow, threads, 0)


cdef void col2im_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some rows of one plane; every element adds up its taps in one order."""
    cdef const ColumnsJob *job = <const ColumnsJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, plane = item // job.blocks
    cdef Py_ssize_t row = item % job.blocks * job.block, i, j, begin, end, top, bottom, oh, at
    cdef Py_ssize_t stop = min(row + job.block, job.h.size), reach = job.h.out * job.w.out
    cdef const char *src = job.src + plane * job.h.kernel * job.w.kernel * reach * size
    cdef char *dst = job.dst + (plane * job.h.size + row) * job.w.size * size
    while row < stop:
        memset(dst, 0, <size_t>(job.w.size * size))
        for i in range(job.h.kernel):
            at = row + job.h.pad - i * job.h.dilation
            if at < 0 or at % job.h.stride or at // job.h.stride >= job.h.out:
                continue
            oh = at // job.h.stride
            for j in range(job.w.kernel):
                inside(&job.w, j, &begin, &end)
                at = begin * job.w.stride - job.w.pad + j * job.w.dilation
                job.kernels.scatter_row(
                    src + ((i * job.w.kernel + j) * reach + oh * job.w.out + begin) * size,
                    dst + at * size, job.w.stride, end - begin)
        row += 1
        dst += job.w.size * size


def col2im(cnp.ndarray columns_, cnp.ndarray out, Py_ssize_t oh, Py_ssize_t ow, tuple rows,
           tuple columns, int threads):
    """Add contiguous columns (N, C*KH*KW, OH*OW) into a contiguous NCHW array."""
    cdef ColumnsJob job
    job.kernels = kernels_of(out)
    job.src, job.dst = <const char *>cnp.PyArray_DATA(columns_), <char *>cnp.PyArray_DATA(out)
    job.h, job.w = axis(out.shape[2], oh, rows), axis(out.shape[3], ow, columns)
    job.block = max(1, 4096 // job.w.size)
    job.blocks = ceil_div(job.h.size, job.block)
    # Each element of the columns is added once.
    run(col2im_item, &job, out.shape[0] * out.shape[1] * job.blocks,
        2.0 * job.h.kernel * job.w.kernel * oh * ow / job.blocks + job.block * job.w.size,
        threads, 0)
