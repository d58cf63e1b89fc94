# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""The ground under the drivers: instruction set, memory, threads, windows and layout.

The callers in `functional` have checked every argument; nothing here chooses a
dtype or judges a shape.  An operator is a *job* (a C struct) that is cut into
*items*, and `run` gives the items to the threads.  Each output element belongs
to one item and its sum has one order, so results do not depend on the number
of threads.
"""

import os
from time import perf_counter

from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport parallel, threadid

cimport numpy as cnp
import numpy as np

cnp.import_array()

cdef extern from "csrc/memory.h":
    ctypedef struct ck_scratch:
        char *memory
        size_t shared, stride
    void *ck_take(size_t) nogil
    int ck_take_scratch(ck_scratch *, size_t, size_t, int)
    void ck_give_scratch(const ck_scratch *)
    void ck_give(void *) nogil
    void *ck_resize(void *, size_t) nogil
    void ck_release_idle()
    size_t ck_idle_bytes()
    long ck_fail(long)


# ---------------------------------------------------------------- instruction set

cdef const ck_kernels *active[2]
isa = ""


def isa_names(supported_only=True):
    """Names of the instruction sets in this build, best last."""
    cdef const char *const *names = ck_isa_names()
    found = []
    while names[len(found)] != NULL:
        found.append(names[len(found)].decode())
    return [name for name in found if not supported_only or ck_isa_supported(name.encode())]


cdef select_isa(name):
    """Make one instruction set's tables the active ones."""
    global isa
    supported = isa_names()
    if name not in supported:
        known = isa_names(supported_only=False)
        reason = "not supported by this CPU" if name in known else "not in this build"
        raise ImportError(
            f"CONVKERN_ISA={name!r} is {reason}; accepted here: {', '.join(supported)}"
        )
    active[CK_F32] = ck_table(name.encode(), CK_F32)
    active[CK_F64] = ck_table(name.encode(), CK_F64)
    isa = name


select_isa(os.environ.get("CONVKERN_ISA") or isa_names().pop())
openmp = CK_OPENMP


cdef const ck_kernels *kernels_of(cnp.ndarray array) noexcept:
    """The active kernels of an array's dtype."""
    return active[CK_F64 if cnp.PyArray_TYPE(array) == cnp.NPY_DOUBLE else CK_F32]


def lanes(dtype):
    """Return the elements of a dtype in one vector."""
    return active[CK_F64 if np.dtype(dtype) == np.float64 else CK_F32].lanes


# ---------------------------------------------------------------- memory

cdef extern from *:
    """
    #include "csrc/memory.h"
    static void *kept_malloc(void *ctx, size_t size) { (void)ctx; return ck_take(size); }
    static void *kept_calloc(void *ctx, size_t count, size_t size)
    {
        (void)ctx;
        void *block = size && count > (size_t)-1 / size ? NULL : ck_take(count * size);
        return block ? memset(block, 0, count * size) : NULL;
    }
    static void *kept_realloc(void *ctx, void *block, size_t size)
    {
        (void)ctx;
        return ck_resize(block, size);
    }
    static void kept_free(void *ctx, void *block, size_t size)
    {
        (void)ctx, (void)size;
        ck_give(block);
    }
    /* How NumPy gets the memory of our larger results (NEP 49): they own it like any array. */
    static PyDataMem_Handler kept_handler = {
        "convkern", 1, {NULL, kept_malloc, kept_calloc, kept_realloc, kept_free}};
    """
    void *kept_handler_address "(&kept_handler)"
    object PyDataMem_SetHandler(object)

cdef object kept_capsule = PyCapsule_New(kept_handler_address, "mem_handler", NULL)

cdef enum:
    KEEP_BYTES = 1 << 14  # smaller arrays gain nothing from pages that are kept, or from whole lines


cdef enum:
    MOST_AXES = 64

# Axes of images from the slowest to the fastest in memory.
cdef int[4] CHANNELS_LAST = [0, 2, 3, 1]
cdef int[4] IMAGES_LAST = [1, 2, 3, 0]


cdef object new_array(tuple shape, dtype, const int *order):
    """Return a new array whose memory has the axes in an order; NULL: as they are."""
    cdef cnp.npy_intp extents[MOST_AXES]
    cdef cnp.npy_intp strides[MOST_AXES]
    cdef int kind = (<cnp.dtype>dtype).type_num, ndim = <int>len(shape), i, axis
    cdef size_t step = (<cnp.dtype>dtype).itemsize
    cdef double size = step
    cdef object previous
    for i in range(ndim):
        extents[i] = shape[i]
        size *= extents[i]
    for i in range(ndim - 1, -1, -1):
        axis = i if order == NULL else order[i]
        strides[axis] = <cnp.npy_intp>step
        step *= <size_t>max(extents[axis], <cnp.npy_intp>1)
    if size < KEEP_BYTES:
        return cnp.PyArray_New(cnp.ndarray, ndim, extents, kind, strides, NULL, 0, 0, None)
    previous = PyDataMem_SetHandler(kept_capsule)
    try:
        return cnp.PyArray_New(cnp.ndarray, ndim, extents, kind, strides, NULL, 0, 0, None)
    finally:
        PyDataMem_SetHandler(previous)


def empty(tuple shape, dtype, bint channels_last=False):
    """Return a new array, its pages kept from earlier ones if large; 4-D may be channels-last."""
    return new_array(shape, dtype, CHANNELS_LAST if channels_last else NULL)


def empty_images_last(tuple shape, dtype):
    """Return a new array, (N, C, H, W) in name and (C, H, W, N) in memory."""
    return new_array(shape, dtype, IMAGES_LAST)


def empty_cache():
    """Return all idle kept memory to the system."""
    ck_release_idle()


def idle_bytes():
    """Return how much memory is kept but not in use."""
    return ck_idle_bytes()


cdef object usual_handler = None  # what `fail_allocation` has replaced


def fail_allocation(long n):
    """For tests: refuse the n-th block of memory from now on, be it scratch or a NumPy array's.

    With 0 nothing is refused any more.  Return how many blocks were left until the refusal
    that was asked for before; 0: it has come.
    """
    global usual_handler
    if n > 0 and usual_handler is None:
        usual_handler = PyDataMem_SetHandler(kept_capsule)
    elif n <= 0 and usual_handler is not None:
        PyDataMem_SetHandler(usual_handler)
        usual_handler = None
    return ck_fail(n)


cdef char *take(size_t size) except NULL:
    cdef void *block = ck_take(size)
    if block == NULL:
        raise MemoryError(f"cannot allocate {size} bytes of working memory")
    return <char *>block


cdef void give(void *block) noexcept:
    """Give back what `take` returned, or NULL."""
    ck_give(block)


# ---------------------------------------------------------------- threads

# Work is counted in floating-point operations or what takes as long.
cdef double WORK_PER_REGION = 1e9   # per thread, between two looks at pending signals: < 100 ms
cdef double WORK_OF_LITTLE = 6e7    # the same of little items: they mostly move memory
cdef double WORK_FOR_OTHERS = 5e7   # per thread: with less, memory that another has written costs
                                    # more than waiting until it has done its items


cdef void work_off(item_fn function, const void *job, ck_share *shares, int threads, int thread,
                   char *scratch) noexcept nogil:
    """Do what is a thread's own, and then what others lend."""
    cdef int i
    cdef Py_ssize_t item
    ck_begin_share(&shares[thread])
    item = ck_take_item(&shares[thread])
    while item >= 0:
        function(job, item, scratch)
        item = ck_take_item(&shares[thread])
    for i in range(1, threads):
        item = ck_borrow_item(&shares[(thread + i) % threads])
        while item >= 0:
            function(job, item, scratch)
            item = ck_borrow_item(&shares[(thread + i) % threads])


cdef int thread_number() noexcept nogil:
    """Return the number of the thread that an item runs on."""
    return threadid()


cdef int run(item_fn function, const void *job, Py_ssize_t items, double work, int threads,
             size_t scratch_bytes) except -1:
    """Call ``function(job, item, scratch)`` for every item; the only place that starts threads.

    `work` is that of one item, `scratch_bytes` what one thread needs.  A thread's own items lie
    next to each other, and are the same in one call as in the next, so that it finds in its cache
    what it has written there.
    """
    cdef double total = work * items, region
    cdef Py_ssize_t i, start = 0, stop, step
    cdef uint64_t saved = 0
    cdef ck_scratch memory
    cdef char *scratch
    cdef ck_share *shares
    if items <= 0:
        return 0
    if threads > items:
        threads = <int>items
    if threads > 1 and total < threads * CK_WORK_PER_THREAD:
        threads = max(1, <int>(total / CK_WORK_PER_THREAD))
    if threads > 1:
        threads = 1 if ck_in_parallel() else ck_grow_team(threads, ck_start_team)
    if not ck_take_scratch(&memory, threads * sizeof(ck_share), scratch_bytes, threads):
        raise MemoryError(f"cannot allocate {scratch_bytes} bytes of working memory a thread")
    shares, scratch = <ck_share *>memory.memory, memory.memory + memory.shared
    work = max(work, 1.0)
    region = threads * min(WORK_PER_REGION, max(WORK_OF_LITTLE, 100 * work))
    step = max(threads, <Py_ssize_t>min(<double>items, region / work))
    # No thread waits for the others at the end of a region: it has as many items for each.
    step = ceil_div(ceil_div(items, ceil_div(items, step)), threads) * threads
    try:
        while start < items:
            # Before each region, the first too: a long call may be many short runs.
            PyErr_CheckSignals()
            stop = min(items, start + step)
            if threads == 1:
                with nogil:
                    saved = ck_fp_default()
                    for i in range(start, stop):
                        function(job, i, scratch)
                    ck_fp_restore(saved)
            else:
                for i in range(threads):
                    shares[i].next = start + (stop - start) * i // threads
                    shares[i].end = start + (stop - start) * (i + 1) // threads
                    shares[i].lent = shares[i].kept = shares[i].end
                    if work * (stop - start) < threads * WORK_FOR_OTHERS:
                        shares[i].kept = (shares[i].next + shares[i].end) // 2
                with nogil, parallel(num_threads=threads):
                    saved = ck_fp_default()
                    work_off(function, job, shares, threads, threadid(),
                             scratch + memory.stride * <size_t>threadid())
                    ck_fp_restore(saved)
            start = stop
    finally:
        ck_give_scratch(&memory)
    return 0


# ---------------------------------------------------------------- windows

cdef Axis axis(Py_ssize_t size, Py_ssize_t out, tuple window) noexcept:
    """One axis from its (kernel, stride, leading padding, dilation)."""
    cdef Axis a
    a.size, a.out = size, out
    a.kernel, a.stride, a.pad, a.dilation = window
    return a


cdef Py_ssize_t cut_spans(const Axis *a, Span *spans) noexcept nogil:
    """Cut an axis where windows begin or cease to hang over an edge; at most 2*kernel + 1 spans.

    Taps in the padding are thereby never visited and no padded copy is needed.
    """
    cdef Py_ssize_t o, origin, first, last, count = 0
    for o in range(a.out):
        origin = o * a.stride - a.pad
        first = 0 if origin >= 0 else min(a.kernel, ceil_div(-origin, a.dilation))
        last = a.size - origin
        last = 0 if last <= 0 else min(a.kernel, ceil_div(last, a.dilation))
        last = max(first, last)
        if count and spans[count - 1].first == first and spans[count - 1].last == last:
            spans[count - 1].stop = o + 1
        else:
            spans[count] = Span(o, o + 1, first, last)
            count += 1
    return count


cdef Span *new_spans(const Axis *a, Py_ssize_t *count) except NULL:
    cdef Span *spans = <Span *>take(<size_t>min(2 * a.kernel + 1, a.out) * sizeof(Span) + 1)
    count[0] = cut_spans(a, spans)
    return spans


def is_operand(value, like=None):
    """Tell whether a value is a plain array of a dtype that the kernels compute in, `like`'s."""
    cdef int kind
    if type(value) is not cnp.ndarray:
        return False
    kind = cnp.PyArray_TYPE(<cnp.ndarray>value)
    if kind != cnp.NPY_FLOAT and kind != cnp.NPY_DOUBLE:
        return False
    if cnp.PyArray_ISBYTESWAPPED(<cnp.ndarray>value):
        return False
    return like is None or cnp.PyArray_TYPE(<cnp.ndarray>like) == kind


def are_plain(values):
    """Tell whether a tuple, and those inside it, hold nothing but exact ints and strings."""
    if type(values) is tuple:
        for value in <tuple>values:
            if type(value) is not int and type(value) is not str and not are_plain(value):
                return False
        return True
    return False


# ---------------------------------------------------------------- layout

def layout_of(cnp.ndarray x):
    """Tell how a 4-D array of images lies in memory: (channels-last, as the kernels read it).

    A channels-last array may have gaps.  Where a shape leaves it open (one channel, or one
    pixel), the strides themselves decide, as in torch.
    """
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(x)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(x)
    cdef bint aligned = cnp.PyArray_CHKFLAGS(x, cnp.NPY_ARRAY_ALIGNED)
    if (strides[1] == size and strides[3] >= shape[1] * size
            and (shape[2] == 1 or strides[2] >= shape[3] * strides[3])
            and not (shape[1] == shape[2] == shape[3] == 1)):
        return True, aligned and not (strides[0] % size or strides[2] % size or strides[3] % size)
    return False, aligned and cnp.PyArray_CHKFLAGS(x, cnp.NPY_ARRAY_C_CONTIGUOUS)


cdef list orders = [tuple(range(ndim)) for ndim in range(65)]


def memory_order(cnp.ndarray x):
    """Return the axes from the slowest to the fastest in memory; C order where that is unclear."""
    cdef int ndim = cnp.PyArray_NDIM(x), i, j
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(x)
    cdef list order
    if cnp.PyArray_CHKFLAGS(x, cnp.NPY_ARRAY_C_CONTIGUOUS):
        return orders[ndim]
    order = []
    for i in range(ndim):
        if strides[i] <= 0:
            return orders[ndim]
        j = i
        while j and strides[<int>order[j - 1]] < strides[i]:
            j -= 1
        order.insert(j, i)
    return tuple(order)


cdef bint is_dense(cnp.ndarray x) noexcept:
    return cnp.PyArray_CHKFLAGS(x, cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED)


def is_contiguous(cnp.ndarray x):
    """Tell whether an array is C-contiguous and aligned."""
    return is_dense(x)


cdef object with_axes(cnp.ndarray x, cnp.npy_intp *axes):
    cdef cnp.PyArray_Dims order
    order.ptr, order.len = axes, cnp.PyArray_NDIM(x)
    return cnp.PyArray_Transpose(x, &order)


def memory_view(cnp.ndarray x, tuple order):
    """Return a view with the axes in an order, if that is C-contiguous and aligned, or None."""
    cdef cnp.npy_intp axes[MOST_AXES]
    cdef int i
    for i in range(cnp.PyArray_NDIM(x)):
        axes[i] = order[i]
    view = with_axes(x, axes)
    return view if is_dense(view) else None


def from_memory(cnp.ndarray memory, tuple order):
    """Return a view that undoes the permutation of `memory_view`."""
    cdef cnp.npy_intp axes[MOST_AXES]
    cdef int i
    cdef bint moved = False
    for i in range(cnp.PyArray_NDIM(memory)):
        moved |= <int>order[i] != i
        axes[<int>order[i]] = i
    return with_axes(memory, axes) if moved else memory


cdef Images images_of(cnp.ndarray a) noexcept:
    """Where the pixels of a channels-last array lie."""
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(a)
    return Images(<char *>cnp.PyArray_DATA(a), a.strides[0] // size, a.strides[2] // size,
                  a.strides[3] // size)


cdef Images packed_images(char *data, cnp.ndarray a) noexcept:
    """Where the pixels of a dense channels-last copy of an array lie."""
    cdef Py_ssize_t channels = a.shape[1], width = a.shape[3]
    return Images(data, a.shape[2] * width * channels, width * channels, channels)


cdef struct TransposeJob:
    const ck_kernels *kernels
    const char *src
    char *dst
    # One image: `rows` x `columns` elements, rows `src_row` apart, become columns.
    Py_ssize_t rows, columns, src_image, dst_image, src_row, dst_row, blocks, block, bands

cdef enum:
    BAND = 1024  # rows of an item


cdef void transpose_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const TransposeJob *job = <const TransposeJob *>job_
    cdef Py_ssize_t start = item % job.blocks * job.block, band = item // job.blocks % job.bands
    cdef Py_ssize_t image = item // job.blocks // job.bands, row = band * BAND
    cdef Py_ssize_t stop = min(start + job.block, job.columns), size = job.kernels.itemsize
    job.kernels.transpose(
        job.src + (image * job.src_image + row * job.src_row + start) * size, job.src_row,
        job.dst + (image * job.dst_image + start * job.dst_row + row) * size, job.dst_row,
        min(<Py_ssize_t>BAND, job.rows - row), stop - start)


cdef int transpose(const ck_kernels *kernels, const char *src, char *dst, Py_ssize_t images,
                   Py_ssize_t rows, Py_ssize_t columns, int threads) except -1:
    """Transpose each of `images` contiguous matrices; NCHW to channels-last is C x (H*W)."""
    cdef TransposeJob job
    job.kernels, job.src, job.dst = kernels, src, dst
    job.rows, job.columns = rows, columns
    job.src_image = job.dst_image = rows * columns
    job.src_row, job.dst_row = columns, rows
    job.block = max(64, 16384 // max(rows, 1) // 64 * 64)
    job.blocks, job.bands = ceil_div(columns, job.block), ceil_div(rows, BAND)
    return run(transpose_item, &job, images * job.blocks * job.bands,
               CK_WORK_OF_ELEMENT * min(rows, <Py_ssize_t>BAND) * min(job.block, columns),
               threads, 0)


def to_channels_last(cnp.ndarray x, cnp.ndarray out, int threads):
    """Copy a contiguous NCHW array into a channels-last one."""
    cdef Py_ssize_t plane = x.shape[2] * x.shape[3]
    transpose(kernels_of(x), <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out),
              x.shape[0], x.shape[1], plane, threads)


def to_contiguous(cnp.ndarray x, cnp.ndarray out, int threads):
    """Copy a channels-last array into a contiguous NCHW one."""
    cdef Py_ssize_t plane = x.shape[2] * x.shape[3]
    transpose(kernels_of(x), <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out),
              x.shape[0], plane, x.shape[1], threads)


# ---------------------------------------------------------------- peak

cdef struct SpinJob:
    const ck_kernels *kernels
    Py_ssize_t iterations
    double operations


cdef void spin_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef SpinJob *job = <SpinJob *>job_
    cdef double operations = job.kernels.spin_fma(job.iterations, scratch)
    if item == 0:
        job.operations = operations


def spin_fma(dtype, Py_ssize_t iterations, int threads):
    """Keep `threads` threads busy with independent FMAs; return the operations of one of them."""
    cdef SpinJob job
    job.kernels = active[CK_F64 if np.dtype(dtype) == np.float64 else CK_F32]
    job.iterations, job.operations = iterations, 0.0
    run(spin_item, &job, threads, 1e9, threads, 64)
    return job.operations


def fma_peak(int threads, dtype=np.float32):
    """Measure how many GFLOP/s `threads` threads reach with FMAs alone; the best of some trials."""
    best, iterations = 0.0, 200_000
    for _ in range(12):
        start = perf_counter()
        operations = spin_fma(dtype, iterations, threads) * threads
        elapsed = perf_counter() - start
        if elapsed < 5e-3:
            iterations *= 2
        best = max(best, operations / elapsed / 1e9)
    return best
