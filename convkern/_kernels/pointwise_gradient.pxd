"""The gradient of the weight of a 1x1 window."""

cimport numpy as cnp

from convkern._kernels.core cimport Axis

cdef int pointwise_weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight,
                                   cnp.ndarray grad_bias, Axis h, Axis w, Py_ssize_t groups,
                                   bint channels_last, int threads) except -1
