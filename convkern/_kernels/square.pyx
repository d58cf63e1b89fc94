# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Depthwise convolution by windows of 3x3, and its gradients, of contiguous NCHW images.

The kernels read and write the planes where they lie.  The gradient of the input of stride 1 is the
convolution of the gradients by the windows turned round.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_SUM,
    Axis,
    axis,
    ceil_div,
    ck_kernels,
    ck_square,
    data_of,
    give,
    kernels_of,
    run,
    take,
)

cnp.import_array()

cdef enum:
    TAPS = 9
    PIXELS = 4096      # of an item, at least as far as there are so many
    FEWEST_ITEMS = 32  # where there are images enough
    SLICE = 1024       # images of a slice at most, so that an item is never long

cdef struct SquareJob:
    const ck_kernels *kernels
    ck_square square[2]  # for one plane and for two
    const char *x
    const char *weight
    const char *bias
    char *out
    Py_ssize_t planes, per_input, channels, per_item
    bint pairs


cdef inline double element(const char *data, Py_ssize_t index, Py_ssize_t size) noexcept nogil:
    """Return an element of a float array, 0 without one."""
    if data == NULL:
        return 0.0
    return (<const float *>data)[index] if size == 4 else (<const double *>data)[index]


cdef ck_square square_of(const Axis *h, const Axis *w, int planes) noexcept:
    """Describe windows of planes, which those of the next ones follow, without activation."""
    return ck_square(h.size, w.size, h.out, w.out, h.stride, h.pad, w.pad, planes * h.size * w.size,
                     planes * h.out * w.out, planes, 0, 0.0)


cdef bint fits_pairs(const ck_square *square, Py_ssize_t lanes) noexcept:
    """Tell whether two planes fit a vector."""
    if 2 * square.columns > lanes:
        return False
    if square.stride == 1:
        return square.left == 1 and square.columns == square.width
    return 0 <= square.left <= 1 and square.left + square.width <= lanes


cdef void square_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some planes of the output."""
    cdef const SquareJob *job = <const SquareJob *>job_
    cdef const ck_square *square = &job.square[0]
    cdef Py_ssize_t size = job.kernels.itemsize, plane = item * job.per_item, channel
    cdef Py_ssize_t pixels = square.height * square.width, outputs = square.rows * square.columns
    cdef Py_ssize_t stop = min(plane + job.per_item, job.planes)
    cdef Py_ssize_t input = plane // job.per_input, rest = plane % job.per_input
    cdef double bias[2]
    cdef int two
    channel = plane % job.channels
    while plane < stop:
        two = job.pairs and channel + 1 < job.channels and plane + 1 < stop
        bias[0] = element(job.bias, channel, size)
        bias[1] = element(job.bias, channel + 1, size) if two else 0
        job.kernels.square(&square[two], job.x + input * pixels * size,
                           job.weight + channel * TAPS * size, bias,
                           job.out + plane * outputs * size)
        # Divisions would take as long as a small plane.
        plane, channel, rest = plane + 1 + two, channel + 1 + two, rest + 1
        if channel == job.channels:
            channel = 0
        if rest == job.per_input:
            input, rest = input + 1 + two, 0


def square_planes(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray out, tuple rows,
                  tuple columns, int activation, double slope, int threads):
    """Convolve contiguous NCHW images, each channel by filters of its own; weight (OC, 1, 3, 3).

    rows and columns are (3, stride, leading padding, 1), with one stride, 1 or 2.
    """
    cdef SquareJob job
    cdef Axis h = axis(x.shape[2], out.shape[2], rows), w = axis(x.shape[3], out.shape[3], columns)
    cdef int i
    job.kernels = kernels_of(x)
    for i in range(2):
        job.square[i] = square_of(&h, &w, i + 1)
        job.square[i].activation, job.square[i].slope = activation, slope
    job.x, job.weight, job.bias = data_of(x), data_of(weight), data_of(bias)
    job.out, job.channels = <char *>cnp.PyArray_DATA(out), out.shape[1]
    job.planes, job.per_input = out.shape[0] * out.shape[1], out.shape[1] // x.shape[1]
    job.pairs = job.per_input == 1 and fits_pairs(job.square, job.kernels.lanes)
    job.per_item = max(1, PIXELS // (h.out * w.out))
    if job.pairs:
        job.per_item += job.per_item % 2
    cdef double work = 2.0 * job.per_item * (h.size * w.size + TAPS * h.out * w.out)
    run(square_item, &job, ceil_div(job.planes, job.per_item), work, threads, 0)


cdef struct GradientJob:
    const ck_kernels *kernels
    ck_square square[2]       # for one plane and for two
    ck_square turned[2]       # those of the gradients, stride 1
    const char *x             # NULL: no gradient of the weight is wanted
    const char *g
    const char *weight
    char *dx                  # NULL: not wanted
    char *dw                  # (slice, channel, tap)
    double *db                # (slice, channel), NULL: not wanted
    Py_ssize_t images, channels, slices, per_item, blocks
    Py_ssize_t sums, vectors  # elements of the sums of a channel, vectors of those of an item
    bint pairs


cdef void turn_windows(const char *weight, Py_ssize_t count, Py_ssize_t size,
                       char *turned) noexcept nogil:
    """Copy windows, each with its taps in reverse."""
    cdef Py_ssize_t i, tap
    for i in range(count):
        for tap in range(TAPS):
            if size == 4:
                (<float *>turned)[i * TAPS + tap] = (<const float *>weight)[i * TAPS + TAPS - 1 - tap]
            else:
                (<double *>turned)[i * TAPS + tap] = (<const double *>weight)[i * TAPS + TAPS - 1 - tap]


cdef void part_pairs(const char *sums, Py_ssize_t channels, Py_ssize_t step, Py_ssize_t size,
                     char *totals) noexcept nogil:
    """Copy the sums of channels, two of which take turns, to (channel, tap)."""
    cdef Py_ssize_t c, tap, from_
    for c in range(channels):
        for tap in range(TAPS):
            from_ = (c - c % 2) * step + 2 * tap + c % 2
            if size == 4:
                (<float *>totals)[c * TAPS + tap] = (<const float *>sums)[from_]
            else:
                (<double *>totals)[c * TAPS + tap] = (<const double *>sums)[from_]


cdef void gradient_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some channels of a slice of the images, plane by plane: each of the gradients' is read once."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef const ck_square *square
    cdef const ck_square *turned
    cdef ck_square last[2]
    cdef int two
    cdef Py_ssize_t size = kernels.itemsize, part = item // job.blocks, image, channel, plane, step, i
    cdef Py_ssize_t first = item % job.blocks * job.per_item
    cdef Py_ssize_t count = min(job.per_item, job.channels - first)
    cdef Py_ssize_t pixels = job.square.height * job.square.width
    cdef Py_ssize_t outputs = job.square.rows * job.square.columns
    cdef Py_ssize_t paired = count - count % 2 if job.pairs else 0
    cdef char *totals = scratch + job.vectors * kernels.lanes * size
    cdef char *windows = totals + job.vectors * size
    cdef const char *weight = job.weight + first * TAPS * size
    cdef const char *g
    cdef double none[2]
    none[0] = none[1] = 0
    memset(scratch, 0, <size_t>((paired * job.sums + (count - paired) * TAPS * kernels.lanes) * size))
    if job.dx != NULL:
        turn_windows(weight, count, size, windows)
    for image in range(job.images * part // job.slices, job.images * (part + 1) // job.slices):
        channel = 0
        while channel < count:
            plane = image * job.channels + first + channel
            g = job.g + plane * outputs * size
            two = channel < paired
            square = &job.square[two]
            turned = &job.turned[two]
            if channel + 1 + two == count:
                # The planes of this item that are next in turn.
                step = 1 + two + job.channels - count
                last[0], last[1] = square[0], turned[0]
                last[0].x_later = last[1].out_later = step * pixels
                last[0].out_later = last[1].x_later = step * outputs
                square = &last[0]
                turned = &last[1]
            if job.dx != NULL and square.stride == 1:
                kernels.square(turned, g, windows + channel * TAPS * size, none,
                               job.dx + plane * pixels * size)
            elif job.dx != NULL:
                kernels.square_input(square, g, weight + channel * TAPS * size,
                                     job.dx + plane * pixels * size)
            if job.x != NULL:
                kernels.square_weight(square, job.x + plane * pixels * size, g,
                                      scratch + channel * job.sums * size)
            for i in range(1 + two if job.db != NULL else 0):
                job.db[part * job.channels + first + channel + i] += kernels.plane_sum(
                    CK_SUM, g + i * outputs * size, g, outputs)
            channel += 1 + two
    if job.x != NULL:
        part_pairs(scratch, paired, job.sums, size, totals)
        kernels.sum_lanes(scratch + paired * job.sums * size, (count - paired) * TAPS,
                          totals + paired * TAPS * size)
        memcpy(job.dw + (part * job.channels + first) * TAPS * size, totals,
               <size_t>(count * TAPS * size))


def square_gradients(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray weight, cnp.ndarray grad_input,
                     cnp.ndarray grad_weight, cnp.ndarray grad_bias, tuple rows, tuple columns,
                     int threads):
    """Write those gradients of the convolution by windows of 3x3 that are not None.

    All arrays are contiguous; x and grad have as many channels, rows and columns are as for
    `square_planes`.
    """
    cdef GradientJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize, channels = x.shape[1], sums, k, c
    cdef Axis h = axis(x.shape[2], grad.shape[2], rows)
    cdef Axis w = axis(x.shape[3], grad.shape[3], columns)
    cdef Axis turned_h = axis(h.out, h.size, (3, 1, 2 - h.pad, 1))
    cdef Axis turned_w = axis(w.out, w.size, (3, 1, 2 - w.pad, 1))
    cdef double *totals
    job.kernels, job.images, job.channels = kernels, x.shape[0], channels
    for k in range(2):
        job.square[k], job.turned[k] = square_of(&h, &w, k + 1), square_of(&turned_h, &turned_w, k + 1)
    job.pairs = fits_pairs(job.square, kernels.lanes)
    job.x, job.dx = data_of(x) if grad_weight is not None else NULL, <char *>data_of(grad_input)
    job.g, job.weight = data_of(grad), data_of(weight)
    # All of it follows from the shape, as sums of slices are added up in order.
    job.per_item = max(1, PIXELS // (h.out * w.out))
    if job.pairs:
        job.per_item += job.per_item % 2
    job.per_item = min(channels, job.per_item)
    job.blocks = ceil_div(channels, job.per_item)
    job.slices = min(job.images, max(ceil_div(FEWEST_ITEMS, job.blocks),
                                     ceil_div(job.images, SLICE)))
    sums = job.slices * channels
    cdef char *memory = take(<size_t>(sums * (TAPS * size + sizeof(double))))
    totals = <double *>memory
    job.db, job.dw = totals if grad_bias is not None else NULL, memory + sums * sizeof(double)
    memset(totals, 0, <size_t>sums * sizeof(double))
    cdef double work = 2.0 * job.per_item * job.images / job.slices * (
        3 * h.size * w.size + 2 * TAPS * h.out * w.out)
    # Sums of lanes are made of as many vectors at a time.
    job.vectors = ceil_div(job.per_item * TAPS, kernels.lanes) * kernels.lanes + kernels.lanes
    job.sums = TAPS * kernels.lanes
    if job.pairs:
        job.sums = ceil_div(2 * TAPS, kernels.lanes) * kernels.lanes // 2
    try:
        run(gradient_item, &job, job.blocks * job.slices, work, threads,
            <size_t>(job.vectors * (kernels.lanes + 2) * size))
        for k in range(1, job.slices):
            if job.x != NULL:
                kernels.add(job.dw + k * channels * TAPS * size, job.dw, channels * TAPS)
            for c in range(channels):
                totals[c] += totals[k * channels + c]
        if job.x != NULL:
            memcpy(cnp.PyArray_DATA(grad_weight), job.dw, <size_t>(channels * TAPS * size))
        if grad_bias is not None:
            for c in range(channels):
                if size == 4:
                    (<float *>cnp.PyArray_DATA(grad_bias))[c] = <float>totals[c]
                else:
                    (<double *>cnp.PyArray_DATA(grad_bias))[c] = totals[c]
    finally:
        give(memory)
