"""Packed weights."""

from convkern._kernels.core cimport ck_kernels, ck_winograd, thread_number

cdef struct Weights:
    # Packed weights: a copy for each thread, or one for all of them.
    char *data
    Py_ssize_t copies, bytes

cdef class PackedConv:
    cdef Weights weights
    cdef char *bias
    cdef const ck_kernels *kernels
    cdef const ck_winograd *winograd  # NULL: as they are, for the direct algorithm
    cdef Py_ssize_t out_channels, channels, groups, kh, kw, vectors, blocks
    cdef bint depthwise

cdef const ck_winograd *winograd_tile(const ck_kernels *kernels, int outputs, Py_ssize_t taps,
                                      int stride=*) except NULL


cdef inline Py_ssize_t element_rows(Py_ssize_t channels) noexcept nogil:
    """Return the channels from one element of a packed Winograd weight to the next.

    An odd number, as elements would all fall into the same cache sets otherwise.
    """
    return channels | 1


cdef inline const char *own_copy(const Weights *weights) noexcept nogil:
    """Return the copy of packed weights that a thread reads."""
    return weights.data + thread_number() % weights.copies * weights.bytes
