from convkern._kernels.core cimport Axis

cimport numpy as cnp

cdef int depthwise_weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight,
                                   cnp.ndarray grad_bias, Axis h, Axis w, bint channels_last,
                                   int threads) except -1
