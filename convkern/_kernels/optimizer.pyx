# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Steps of optimisers, and the norm of gradients, over many tensors in one parallel region."""

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_SQUARES,
    ceil_div,
    ck_adam,
    ck_kernels,
    ck_sgd,
    give,
    item_fn,
    kernels_of,
    moved,
    run,
    take,
)

cnp.import_array()

cdef enum:
    BLOCK = 16384  # elements of an item

# ---------------------------------------------------------------- tensors, cut into items

cdef struct Tensor:
    const ck_kernels *kernels
    const char *grad
    char *arrays[4]       # the data and the state, NULL where there is less
    Py_ssize_t length
    Py_ssize_t first      # its first item; the items of a list are numbered through
    ck_sgd sgd
    ck_adam adam

cdef struct Job:
    Tensor *tensors
    Py_ssize_t count
    double *sums          # one for each item


cdef Py_ssize_t place(Tensor *tensor, cnp.ndarray grad, list arrays, Py_ssize_t first):
    """Take down where a tensor lies; return the first item of the next one."""
    cdef Py_ssize_t i, count = len(arrays)
    tensor.kernels = kernels_of(grad)
    tensor.grad = <const char *>cnp.PyArray_DATA(grad)
    for i in range(4):
        tensor.arrays[i] = <char *>cnp.PyArray_DATA(arrays[i]) if i < count else NULL
    tensor.length, tensor.first = grad.size, first
    return first + ceil_div(tensor.length, BLOCK)


cdef struct Piece:
    # What an item is: so many elements of a tensor, so many bytes from its beginning.
    const Tensor *tensor
    Py_ssize_t length, start


cdef Piece piece_of(const Job *job, Py_ssize_t item) noexcept nogil:
    """Find the last tensor that begins at or before an item; empty ones begin with their next."""
    cdef Py_ssize_t low = 0, high = job.count, middle
    cdef Piece piece
    while high - low > 1:
        middle = (low + high) // 2
        if job.tensors[middle].first <= item:
            low = middle
        else:
            high = middle
    piece.tensor = &job.tensors[low]
    piece.start = (item - piece.tensor.first) * BLOCK
    piece.length = min(<Py_ssize_t>BLOCK, piece.tensor.length - piece.start)
    piece.start *= piece.tensor.kernels.itemsize
    return piece


# ---------------------------------------------------------------- arrays

def are_alike(list changed, cnp.ndarray grad):
    """Tell whether arrays to change and a gradient are as the steps take them.

    These are plain, of one shape and native dtype, contiguous, aligned and, but for the gradient,
    writeable.
    """
    cdef int kind = cnp.PyArray_TYPE(grad), dims = cnp.PyArray_NDIM(grad), i
    cdef cnp.ndarray array
    if type(grad) is not cnp.ndarray or (kind != cnp.NPY_FLOAT and kind != cnp.NPY_DOUBLE):
        return False
    if not cnp.PyArray_CHKFLAGS(grad, cnp.NPY_ARRAY_CARRAY_RO) or cnp.PyArray_ISBYTESWAPPED(grad):
        return False
    for value in changed:
        if type(value) is not cnp.ndarray:
            return False
        array = value
        if (cnp.PyArray_TYPE(array) != kind or cnp.PyArray_NDIM(array) != dims
                or not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_CARRAY)
                or cnp.PyArray_ISBYTESWAPPED(array)):
            return False
        for i in range(dims):
            if cnp.PyArray_DIM(array, i) != cnp.PyArray_DIM(grad, i):
                return False
    return True


def share_extents(list arrays):
    """Tell whether the extents in memory of some arrays overlap, or what has none is among them."""
    cdef cnp.ndarray array
    cdef Py_ssize_t first, last, reach
    cdef int i
    extents = []
    for value in arrays:
        if not isinstance(value, cnp.ndarray):
            return True
        array = value
        if array.size:
            first = <Py_ssize_t>cnp.PyArray_DATA(array)
            last = first + cnp.PyArray_ITEMSIZE(array)
            for i in range(cnp.PyArray_NDIM(array)):
                reach = (cnp.PyArray_DIM(array, i) - 1) * cnp.PyArray_STRIDE(array, i)
                if reach < 0:
                    first += reach
                else:
                    last += reach
            extents.append((first, last))
    extents.sort()
    reach = 0
    for first, last in extents:
        if first < reach:
            return True
        reach = max(reach, last)
    return False


# ---------------------------------------------------------------- steps

cdef void sgd_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef Piece piece = piece_of(<const Job *>job_, item)
    cdef const Tensor *tensor = piece.tensor
    tensor.kernels.sgd(&tensor.sgd, tensor.grad + piece.start, tensor.arrays[0] + piece.start,
                       <char *>moved(tensor.arrays[1], piece.start), piece.length)


cdef void adam_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef Piece piece = piece_of(<const Job *>job_, item)
    cdef const Tensor *tensor = piece.tensor
    tensor.kernels.adam(&tensor.adam, tensor.grad + piece.start, tensor.arrays[0] + piece.start,
                        tensor.arrays[1] + piece.start, tensor.arrays[2] + piece.start,
                        <char *>moved(tensor.arrays[3], piece.start), piece.length)


cdef int sgd_rule(Tensor *tensor, tuple rule) except -1:
    cdef ck_sgd *r = &tensor.sgd
    r.rate, r.weight_decay, r.momentum, r.share, r.nesterov, r.maximize = rule
    return 0


cdef int adam_rule(Tensor *tensor, tuple rule) except -1:
    cdef ck_adam *r = &tensor.adam
    r.rate, r.weight_decay, r.shrink, r.beta1, r.beta2, r.root, r.eps, r.maximize = rule
    return 0


cdef int steps(list updates, int (*rule_of)(Tensor *, tuple) except -1, item_fn function,
               double work, int threads) except -1:
    """Do a step of every update: its gradient, the arrays that it changes, its rule."""
    cdef Job job
    cdef Py_ssize_t items = 0
    job.count = 0
    job.tensors = <Tensor *>take(len(updates) * sizeof(Tensor) + 1)
    try:
        for grad, arrays, rule in updates:
            items = place(&job.tensors[job.count], grad, arrays, items)
            rule_of(&job.tensors[job.count], rule)
            job.count += 1
        run(function, &job, items, work, threads, 0)
    finally:
        give(job.tensors)
    return 0


def sgd(list updates, int threads):
    """Do steps of gradient descent.

    An update is (gradient, [data] or [data, momentum], rule) of contiguous arrays; a rule
    the numbers of `ck_sgd` in their order.
    """
    steps(updates, sgd_rule, sgd_item, 10.0 * BLOCK, threads)


def adam(list updates, int threads):
    """Do steps of Adam.

    An update is (gradient, [data, mean, square] or these and the largest square, rule) of
    contiguous arrays; a rule the numbers of `ck_adam` in their order.
    """
    steps(updates, adam_rule, adam_item, 20.0 * BLOCK, threads)


# ---------------------------------------------------------------- norm

cdef void squares_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const Job *job = <const Job *>job_
    cdef Piece piece = piece_of(job, item)
    cdef const char *x = piece.tensor.grad + piece.start
    job.sums[item] = piece.tensor.kernels.plane_sum(CK_SQUARES, x, x, piece.length)


def squares(list arrays, int threads):
    """Return the sum of the squares of all elements of contiguous arrays, made in float64."""
    cdef Job job
    cdef Py_ssize_t i, items = 0
    cdef double total = 0
    job.count, job.sums = 0, NULL
    job.tensors = <Tensor *>take(len(arrays) * sizeof(Tensor) + 1)
    try:
        for array in arrays:
            items = place(&job.tensors[job.count], array, [], items)
            job.count += 1
        job.sums = <double *>take(items * sizeof(double) + 1)
        run(squares_item, &job, items, 4.0 * BLOCK, threads, 0)
        for i in range(items):
            total += job.sums[i]
    finally:
        give(job.tensors)
        give(job.sums)
    return total
