"""What the drivers share: the kernel table, memory, threads, windows and layout."""

from libc.stdint cimport int32_t, int64_t, uint64_t

cimport numpy as cnp

cdef extern from "csrc/ck.h" nogil:
    enum: CK_F32, CK_F64, CK_OPENMP
    const double CK_WORK_PER_THREAD, CK_WORK_OF_ELEMENT
    enum: CK_FIRST, CK_LAST, CK_STREAM, CK_ONCE, CK_ALSO, CK_CLAIM
    enum: CK_DOT_COLUMNS, CK_MAX_VECTORS, CK_MAX_PIXELS, CK_SOFTMAX_COLUMNS
    enum: CK_AHEAD, CK_SHORT_ROWS, CK_WINOGRAD_TILES_COUNT
    enum: CK_RELU, CK_LEAKY_RELU
    enum: CK_SUM, CK_SQUARES, CK_NEGATIVE_PRODUCTS
    ctypedef struct ck_tile_layout:
        ptrdiff_t x_pixel, x_row, x_column, w_row, w_step, out_pixel
        int tail, bias_by_pixel, activation
        double slope
    ctypedef struct ck_chunk:
        ptrdiff_t x, w, rows, columns, run
        int flags
        const char *ahead
        const char *also
        ptrdiff_t ahead_step
    ctypedef void (*ck_tile_fn)(const ck_tile_layout *, const ck_chunk *, const void *,
                                const void *, const void *, void *) noexcept nogil
    ctypedef struct ck_dot_layout:
        ptrdiff_t length, x_row, w_row, out_row
        int flags
    ctypedef void (*ck_dot_fn)(const ck_dot_layout *, const void *, const void *, const void *,
                               void *, void *) noexcept nogil
    ctypedef struct ck_short_layout:
        ptrdiff_t x_pixel, out_pixel, run, outputs
        int flags, activation
        double slope
    ctypedef void (*ck_short_fn)(const ck_short_layout *, const void *, const void *, const void *,
                                 const void *, void *) noexcept nogil
    ctypedef struct ck_outer_layout:
        ptrdiff_t rows, pixels, x_row, x_pixel, g_row, g_pixel, dw_row
    ctypedef void (*ck_outer_fn)(const ck_outer_layout *, const void *, const void *,
                                 void *) noexcept nogil
    ctypedef struct ck_window:
        ptrdiff_t pixels, channels, rows, columns, x_pixel, x_row, x_column, out_pixel
        ptrdiff_t w_row, w_column, left, right
        int activation
        double slope
    bint CK_DEPTHWISE_EDGES(Py_ssize_t columns, Py_ssize_t stride)
    ctypedef struct ck_lines:
        ptrdiff_t lines, x_line, g_line
    ctypedef struct ck_affine:
        const void *coefficients
        const void *rectified
        ptrdiff_t channels
        int activation, after_relu
    ctypedef struct ck_pool:
        ptrdiff_t steps, width, rows, columns, x_step, tap_row, out_step
        const ptrdiff_t *taps
        const int32_t *first
        int64_t index, index_step
        int32_t index_lane, index_row, index_column
        int ordered
        const ck_affine *map
    ctypedef struct ck_boxes:
        ptrdiff_t count, width, rows, x_row, x_pixel, run_begin, run_end, least, most
        const ptrdiff_t *begin
        const ptrdiff_t *end
        const void *divisors
    ctypedef struct ck_patch:
        const void *row[8]
        ptrdiff_t step[8]
        int first, last
    ctypedef struct ck_target:
        void *out
        ptrdiff_t row, column
        int rows, columns, activation
        double slope
        const void *bias
    ctypedef void (*ck_patch_fn)(const ck_patch *, ptrdiff_t, void *, ptrdiff_t,
                                 ptrdiff_t) noexcept nogil
    ctypedef void (*ck_output_fn)(const void *, ptrdiff_t, ptrdiff_t,
                                  const ck_target *) noexcept nogil
    ctypedef struct ck_winograd:
        int outputs, taps, size, stride
        ck_patch_fn input, weight, gradient
        ck_output_fn output, weight_gradient
    ctypedef struct ck_sgd:
        double rate, weight_decay, momentum, share
        int nesterov, maximize
    ctypedef struct ck_adam:
        double rate, weight_decay, shrink, beta1, beta2, root, eps
        int maximize
    ctypedef struct ck_plane:
        ptrdiff_t rows, columns, tap_rows, taps, x_step, x_tap
        const ptrdiff_t *offsets
        int activation
        double slope
    ctypedef struct ck_square:
        ptrdiff_t height, width, rows, columns, stride, top, left, x_later, out_later
        int planes, activation
        double slope
    ctypedef struct ck_lanes:
        ptrdiff_t channels, rows, columns, chunk, x_channel, x_row, x_column, x_pixel
        ptrdiff_t w_filter, w_channel, w_row, w_column, out_filter, out_pixel
        int activation
        double slope
    ctypedef void (*ck_lanes_fn)(const ck_lanes *, const void *, const void *, const void *,
                                 void *) noexcept nogil
    ctypedef struct ck_lanes_outer:
        ptrdiff_t rows, pixels, x_column, x_row, x_pixel, g_filter, g_row, g_pixel, sums_filter
    ctypedef void (*ck_lanes_outer_fn)(const ck_lanes_outer *, const void *, const void *,
                                       void *) noexcept nogil
    ctypedef struct ck_kernels:
        int itemsize, lanes, max_dot_rows
        int max_pixels[5]
        ck_tile_fn tile[5][15]
        ck_outer_fn outer[5][15]
        ck_dot_fn dot[7][5]
        int short_vectors
        ck_short_fn short_rows[5]
        ck_winograd winograd[7]
        void (*transpose)(const void *, ptrdiff_t, void *, ptrdiff_t, ptrdiff_t,
                          ptrdiff_t) noexcept nogil
        void (*scatter_transposed)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *,
                                   const ptrdiff_t *) noexcept nogil
        void (*max_pool)(const ck_pool *, const void *, void *, int64_t *) noexcept nogil
        void (*max_pool_backward)(const ck_pool *, const void *, const int64_t *, const void *,
                                  const void *, void *) noexcept nogil
        void (*max_pool_pairs)(const ck_pool *, const void *, const int64_t *, const void *,
                               const void *, const double *, double *, double *) noexcept nogil
        int (*scatter)(const void *, const int64_t *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                       int, void *) noexcept nogil
        int (*gather)(const void *, const int64_t *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                      void *) noexcept nogil
        void (*box_pixels)(const ck_boxes *, const void *, const void *, void *) noexcept nogil
        void (*box_rows)(const ck_boxes *, ptrdiff_t, const ptrdiff_t *, const ptrdiff_t *,
                         const void *, const void *, void *, void *) noexcept nogil
        int (*split_rows)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *,
                          ptrdiff_t, ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*depthwise)(const ck_window *, const void *, const void *, const void *,
                          void *) noexcept nogil
        void (*depthwise_plane)(const ck_plane *, const void *, const void *, double,
                                void *) noexcept nogil
        void (*square)(const ck_square *, const void *, const void *, const double *,
                       void *) noexcept nogil
        void (*square_input)(const ck_square *, const void *, const void *, void *) noexcept nogil
        void (*square_weight)(const ck_square *, const void *, const void *, void *) noexcept nogil
        void (*depthwise_outer)(const ck_window *, const ck_lines *, const void *, const void *,
                                void *, void *) noexcept nogil
        void (*add)(const void *, void *, ptrdiff_t) noexcept nogil
        void (*gather_row)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *,
                           ptrdiff_t) noexcept nogil
        void (*split_plane)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                            void *, ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*spread_plane)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *,
                             ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*copy_rows)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *,
                          ptrdiff_t) noexcept nogil
        void (*copy_units)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *,
                           ptrdiff_t) noexcept nogil
        void (*gather_taps)(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *, ptrdiff_t,
                            ptrdiff_t) noexcept nogil
        void (*scatter_row)(const void *, void *, ptrdiff_t, ptrdiff_t) noexcept nogil
        void (*activate)(const void *, void *, ptrdiff_t, int, double) noexcept nogil
        void (*activate_backward)(const void *, const void *, void *, ptrdiff_t, int,
                                  double) noexcept nogil
        void (*prelu_pixels)(const void *, const void *, const void *, void *, ptrdiff_t,
                             ptrdiff_t) noexcept nogil
        void (*softmax)(const void *, void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, const void *,
                        int) noexcept nogil
        void (*softmax_backward)(const void *, const void *, void *, ptrdiff_t, ptrdiff_t,
                                 ptrdiff_t) noexcept nogil
        double (*plane_sum)(int, const void *, const void *, ptrdiff_t) noexcept nogil
        void (*plane_pairs)(const void *, const void *, double, const void *, ptrdiff_t,
                            ptrdiff_t, double *, double *) noexcept nogil
        void (*pixel_sums)(int, const void *, const void *, ptrdiff_t, ptrdiff_t,
                           ptrdiff_t, double *) noexcept nogil
        void (*pixel_pairs)(const void *, const void *, const double *, const void *, ptrdiff_t,
                            ptrdiff_t, ptrdiff_t, ptrdiff_t, double *, double *) noexcept nogil
        void (*affine_plane)(const ck_affine *, ptrdiff_t, const void *, const void *, void *,
                             ptrdiff_t) noexcept nogil
        void (*affine_pixels)(const ck_affine *, const void *, const void *, void *,
                              ptrdiff_t) noexcept nogil
        void (*local_response_norm)(const void *, void *, ptrdiff_t, ptrdiff_t, double, double,
                                    double, void *) noexcept nogil
        void (*local_response_norm_backward)(const void *, const void *, void *, ptrdiff_t,
                                             ptrdiff_t, double, double, double,
                                             void *) noexcept nogil
        void (*sgd)(const ck_sgd *, const void *, void *, void *, ptrdiff_t) noexcept nogil
        void (*adam)(const ck_adam *, const void *, void *, void *, void *, void *,
                     ptrdiff_t) noexcept nogil
        double (*spin_fma)(ptrdiff_t, void *) noexcept nogil
        int max_lanes_filters
        int max_lanes_pixels[6]
        ck_lanes_fn lanes_tile[6][7]
        ck_lanes_outer_fn lanes_outer[6][7]
        void (*sum_lanes)(const void *, ptrdiff_t, void *) noexcept nogil
    const char *const *ck_isa_names()
    int ck_isa_supported(const char *)
    const ck_kernels *ck_table(const char *, int)
    uint64_t ck_fp_default()
    void ck_fp_restore(uint64_t)
    int ck_grow_team(int, void (*)(int))
    void ck_start_team(int)
    int ck_in_parallel()
    ctypedef struct ck_share:
        ptrdiff_t next, end, lent, kept
    void ck_begin_share(ck_share *) nogil
    ptrdiff_t ck_take_item(ck_share *) nogil
    ptrdiff_t ck_borrow_item(ck_share *) nogil
    void ck_note(int *) nogil
    ctypedef struct ck_prefetch:
        const char *at
        const char *end
        ptrdiff_t step, bytes, count
        int write
    void ck_prefetch_next(ck_prefetch *) nogil


cdef const ck_kernels *kernels_of(cnp.ndarray array) noexcept

cdef char *take(size_t size) except NULL
cdef void give(void *block) noexcept

# What is done for one item of a job, with memory of the thread's own.
ctypedef void (*item_fn)(const void *job, Py_ssize_t item, char *scratch) noexcept nogil

cdef int thread_number() noexcept nogil
cdef int run(item_fn function, const void *job, Py_ssize_t items, double work, int threads,
             size_t scratch_bytes) except -1

cdef inline bint opens_share(Py_ssize_t item, Py_ssize_t items, int threads) noexcept nogil:
    """Tell whether a thread begins with an item, which none before has fetched anything for."""
    return items * ceil_div(item * threads, items) // threads == item


cdef struct Axis:
    # One spatial axis of a window operator.
    Py_ssize_t size, out, kernel, stride, pad, dilation

cdef struct Span:
    # Output positions start .. stop-1, whose windows hold exactly the taps first .. last-1.
    Py_ssize_t start, stop, first, last

cdef Axis axis(Py_ssize_t size, Py_ssize_t out, tuple window) noexcept
cdef Span *new_spans(const Axis *a, Py_ssize_t *count) except NULL

cdef struct Images:
    # Channels-last pixels; strides in elements, channels are contiguous.
    char *data
    Py_ssize_t image, row, column

cdef Images images_of(cnp.ndarray a) noexcept
cdef Images packed_images(char *data, cnp.ndarray a) noexcept

cdef int transpose(const ck_kernels *kernels, const char *src, char *dst, Py_ssize_t images,
                   Py_ssize_t rows, Py_ssize_t columns, int threads) except -1


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef struct Block:
    # A block of output channels: its first channel, width with padding, and number of vectors.
    Py_ssize_t first, width, vectors


cdef inline Block block_of(const ck_kernels *kernels, Py_ssize_t vectors, Py_ssize_t blocks,
                           Py_ssize_t index) noexcept nogil:
    """Share out the vectors of a group's output channels among blocks."""
    cdef Py_ssize_t lanes = kernels.lanes, first = vectors * index // blocks
    cdef Py_ssize_t count = vectors * (index + 1) // blocks - first
    return Block(first * lanes, count * lanes, count)


cdef inline const char *data_of(cnp.ndarray array) noexcept:
    """Return where an array's elements begin, NULL for None."""
    if array is None:
        return NULL
    return <const char *>cnp.PyArray_DATA(array)


cdef inline const char *moved(const char *data, Py_ssize_t bytes) noexcept nogil:
    """Return a pointer further on; NULL stays NULL."""
    if data == NULL:
        return NULL
    return data + bytes
