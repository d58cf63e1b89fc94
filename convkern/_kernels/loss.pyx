# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""What a class costs, and what of that its scores get back: one pass over the samples.

Scores are (outer, classes, inner), targets (outer, inner).  The share of class c in the sum of a
sample that names class t is ``weight[c] * ((1 - smoothing) * (c == t) + smoothing / classes)``.
"""

from libc.math cimport NAN

cimport numpy as cnp

from convkern._kernels.core cimport give, take

cnp.import_array()

ctypedef fused real:
    float
    double

cdef struct Classes:
    # Targets of samples, what stands for none, and how the classes are weighted, by 1 if NULL.
    const Py_ssize_t *target
    const double *weight
    Py_ssize_t outer, count, inner, ignored
    double named, spread  # shares of the class that is named, and of each


cdef Classes classes_of(cnp.ndarray target, cnp.ndarray weight, tuple cut, Py_ssize_t ignored,
                        double smoothing):
    cdef Classes classes
    classes.target = <const Py_ssize_t *>cnp.PyArray_DATA(target)
    classes.weight = <const double *>cnp.PyArray_DATA(weight) if weight is not None else NULL
    classes.outer, classes.count, classes.inner = cut
    classes.ignored = ignored
    classes.named, classes.spread = 1 - smoothing, smoothing / <double>classes.count
    return classes


cdef inline double weight_of(const Classes *classes, Py_ssize_t c) noexcept nogil:
    return classes.weight[c] if classes.weight != NULL else 1.0


def wrong_class(cnp.ndarray target, Py_ssize_t count, Py_ssize_t ignored):
    """Return the first place of a target that names no class and does not say so, or -1."""
    cdef const Py_ssize_t *targets = <const Py_ssize_t *>cnp.PyArray_DATA(target)
    cdef Py_ssize_t i
    for i in range(target.size):
        if targets[i] != ignored and not 0 <= targets[i] < count:
            return i
    return -1


cdef void add_losses(const Classes *classes, const real *logs, double *losses) noexcept nogil:
    cdef Py_ssize_t o, i, c, t, inner = classes.inner
    cdef const real *sample
    cdef double share
    for o in range(classes.outer):
        for i in range(inner):
            t = classes.target[o * inner + i]
            if t == classes.ignored:
                losses[o * inner + i] = 0
                continue
            sample = logs + o * classes.count * inner + i
            losses[o * inner + i] = -sample[t * inner] * (classes.named * weight_of(classes, t))
            if classes.spread == 0:
                continue
            for c in range(classes.count):
                # A class of no share adds nothing, however improbable (0 * inf is NaN).
                share = classes.spread * weight_of(classes, c)
                if share != 0:
                    losses[o * inner + i] -= sample[c * inner] * share


def class_losses(cnp.ndarray logs, cnp.ndarray target, cnp.ndarray weight, tuple cut,
                 Py_ssize_t ignored, double smoothing, cnp.ndarray losses):
    """Write the float64 loss of each sample, from the logarithms of its probabilities."""
    cdef Classes classes = classes_of(target, weight, cut, ignored, smoothing)
    cdef double *to = <double *>cnp.PyArray_DATA(losses)
    if cnp.PyArray_TYPE(logs) == cnp.NPY_DOUBLE:
        add_losses[double](&classes, <const double *>cnp.PyArray_DATA(logs), to)
    else:
        add_losses[float](&classes, <const float *>cnp.PyArray_DATA(logs), to)


def class_loss(cnp.ndarray logs, cnp.ndarray target, cnp.ndarray weight, tuple cut,
               Py_ssize_t ignored, double smoothing, bint mean):
    """Return the sum of the losses of all samples, or their mean, rounded to the dtype."""
    cdef Py_ssize_t count = cnp.PyArray_SIZE(target), i
    cdef double *losses = <double *>take(<size_t>count * sizeof(double) + 1)
    cdef Classes classes = classes_of(target, weight, cut, ignored, smoothing)
    cdef double total = 0, by = total_weight(&classes) if mean else 1
    cdef bint wide = cnp.PyArray_TYPE(logs) == cnp.NPY_DOUBLE
    try:
        if wide:
            add_losses[double](&classes, <const double *>cnp.PyArray_DATA(logs), losses)
        else:
            add_losses[float](&classes, <const float *>cnp.PyArray_DATA(logs), losses)
        for i in range(count):
            total += losses[i]
    finally:
        give(<void *>losses)
    total = total / by if by != 0 else NAN
    return total if wide else <float>total


cdef double total_weight(const Classes *classes) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(classes.outer * classes.inner):
        if classes.target[i] != classes.ignored:
            total += weight_of(classes, classes.target[i])
    return total


def class_weights(cnp.ndarray target, cnp.ndarray weight, tuple cut, Py_ssize_t ignored):
    """Return the sum of the weights of the classes that are named."""
    cdef Classes classes = classes_of(target, weight, cut, ignored, 0)
    return total_weight(&classes)


cdef void subtract(const Classes *classes, const double *factors, real *out) noexcept nogil:
    cdef Py_ssize_t o, i, c, t, inner = classes.inner
    cdef real *sample
    cdef double factor
    for o in range(classes.outer):
        for i in range(inner):
            t = classes.target[o * inner + i]
            if t == classes.ignored:
                continue
            factor = factors[o * inner + i]
            sample = out + o * classes.count * inner + i
            if classes.spread != 0:
                for c in range(classes.count):
                    sample[c * inner] -= <real>(classes.spread * weight_of(classes, c) * factor)
            sample[t * inner] -= <real>(factor * (classes.named * weight_of(classes, t)))


def subtract_shares(cnp.ndarray out, cnp.ndarray target, cnp.ndarray weight, tuple cut,
                    Py_ssize_t ignored, double smoothing, cnp.ndarray factors):
    """Subtract from every score its share, times the float64 factor of its sample."""
    cdef Classes classes = classes_of(target, weight, cut, ignored, smoothing)
    cdef const double *of = <const double *>cnp.PyArray_DATA(factors)
    if cnp.PyArray_TYPE(out) == cnp.NPY_DOUBLE:
        subtract[double](&classes, of, <double *>cnp.PyArray_DATA(out))
    else:
        subtract[float](&classes, of, <float *>cnp.PyArray_DATA(out))


cdef void add_shares(const Classes *classes, double *factors, real *sums) noexcept nogil:
    cdef double spread = 0
    cdef Py_ssize_t c, i, t
    for c in range(classes.count):
        spread += classes.spread * weight_of(classes, c)
    for i in range(classes.outer * classes.inner):
        t = classes.target[i]
        if t == classes.ignored:
            factors[i] = sums[i] = 0
        else:
            sums[i] = <real>(factors[i] * (classes.named * weight_of(classes, t) + spread))


def shares_of_samples(cnp.ndarray target, cnp.ndarray weight, tuple cut, Py_ssize_t ignored,
                      double smoothing, cnp.ndarray factors, cnp.ndarray sums):
    """Write the sum of the shares of each sample, times its factor; none where it has no class.

    `factors`, in float64, become zero there.
    """
    cdef Classes classes = classes_of(target, weight, cut, ignored, smoothing)
    cdef double *of = <double *>cnp.PyArray_DATA(factors)
    if cnp.PyArray_TYPE(sums) == cnp.NPY_DOUBLE:
        add_shares[double](&classes, of, <double *>cnp.PyArray_DATA(sums))
    else:
        add_shares[float](&classes, of, <float *>cnp.PyArray_DATA(sums))
