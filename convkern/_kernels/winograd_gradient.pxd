"""Winograd's gradient of a weight."""

cimport numpy as cnp

from convkern._kernels.core cimport Axis, Images, ck_kernels, ck_winograd

cdef struct GradientJob:
    const ck_kernels *kernels
    const ck_winograd *tile
    Images x, g
    bint x_planes, g_planes # whether they are contiguous NCHW, not channels-last
    bint x_dense, g_dense # whether one group has all their channels, and there are no gaps
    Axis h, w
    Py_ssize_t channels, out_channels, groups, vectors, blocks
    const char *zeros
    char *v
    char *y
    char *sums            # M of each slice and group
    char *grad_weight
    char *bias_sums       # of each slice and group, or NULL
    const char *ones      # as many as a run has tiles
    Py_ssize_t slices
    int threads
    bint fresh            # sums has none yet
    # Tiles across and in an image; of this pass the first, and how many.
    Py_ssize_t across, per_image, first, tiles
    # Tiles next to each other, and the most such runs that V and Y hold at a time.
    Py_ssize_t run, runs
    bint turned           # whether V has the tiles of each channel next to each other
    # From one run, and from one element, to the next.
    Py_ssize_t v_run, y_run, v_element, y_element, m_element

cdef class WinogradGradient:
    cdef GradientJob job
    cdef cnp.ndarray grad_bias, ones

    cdef int prepare(self, const ck_kernels *kernels, int outputs, Py_ssize_t channels,
                     Py_ssize_t out_channels, Py_ssize_t groups, Axis h, Axis w,
                     Py_ssize_t images, cnp.ndarray grad_bias) except -1
    cdef int add(self, const Images *x, const Images *g, Py_ssize_t images, bint x_planes,
                 bint g_planes, int threads) except -1
    cdef int store(self, char *grad_weight, int threads) except -1
