"""Cross entropy, normalisation and activations against torch and the reference; their errors."""

import numpy as np
import pytest

from convkern import functional, reference


def test_cross_entropy(torch):
    from torch.nn import functional as F  # noqa: N812

    for seed in range(600):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(1, 7))
        shape = [(classes,), (4, classes), (2, classes, 3), (2, classes, 2, 3)][seed % 4]
        x = (5 * rng.standard_normal(shape)).astype([np.float32, np.float64][seed % 2])
        options = {
            "reduction": ["none", "mean", "sum"][seed % 3],
            "label_smoothing": float(rng.choice([0, 0, 0.1, 1])),
        }
        if rng.random() < 0.3:
            target = rng.random(shape).astype(x.dtype)
        else:
            axis = min(1, x.ndim - 1)
            target = rng.integers(0, classes, shape[:axis] + shape[axis + 1 :])
            target = np.asarray(target, np.int64)
            options["ignore_index"] = int(rng.choice([-100, 0, classes + 3]))
            if rng.random() < 0.3:
                target[...] = np.where(
                    rng.random(target.shape) < 0.3, options["ignore_index"], target
                )
        weight = rng.random(classes).astype(x.dtype) if rng.random() < 0.5 else None
        leaf = torch.tensor(x, requires_grad=True)
        theirs = F.cross_entropy(
            leaf,
            torch.tensor(target),
            None if weight is None else torch.tensor(weight),
            **options,
        )
        mine = functional.cross_entropy(x, target, weight, **options)
        assert mine.dtype == x.dtype and mine.shape == tuple(theirs.shape)
        tolerance = 1e-5 if x.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(mine, theirs.detach(), rtol=tolerance, atol=tolerance)
        expected = reference.cross_entropy(x, target, weight, **options)
        np.testing.assert_allclose(mine, expected, rtol=tolerance, atol=tolerance)
        grad = rng.standard_normal(theirs.shape).astype(x.dtype)
        (gradient,) = torch.autograd.grad(theirs, leaf, torch.tensor(grad))
        got = functional.cross_entropy_backward(grad, x, target, weight, **options)
        if np.isfinite(mine).all():
            np.testing.assert_allclose(got, gradient, rtol=tolerance, atol=tolerance)


def test_batch_norm():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        shape = (4, 3, *(int(v) for v in rng.integers(1, 6, seed % 3)))
        dtype = [np.float32, np.float64][seed % 2]
        x = (rng.standard_normal(shape) + 3).astype(dtype)
        stats = [rng.random(3).astype(dtype) + 0.5 for _ in range(4)]
        training = bool(rng.integers(2))
        mine, theirs = ([a.copy() for a in stats[:2]] for _ in range(2))
        got = functional.batch_norm(x, *mine, *stats[2:], training, 0.3, 1e-3)
        expected = reference.batch_norm(x, *theirs, *stats[2:], training, 0.3, 1e-3)
        tolerance = 1e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=10 * tolerance)
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance)
        assert got.dtype == dtype


X = np.ones((2, 3, 4, 4), np.float32)
C = np.ones(3, np.float32)
FROZEN = C.copy()
FROZEN.flags.writeable = False
BAD = [
    ("cross_entropy", (X[:, :, 0, 0], np.array([0, 3])), ValueError, "from 0 to 2, got 3"),
    ("cross_entropy", (X[:, :, 0, 0], np.array([0, -1])), ValueError, "from 0 to 2, got -1"),
    ("cross_entropy", (X[:, :, 0, 0], np.array([0])), ValueError, "target must have shape"),
    ("cross_entropy", (X[:, :, 0, 0], [0, 1]), TypeError, "target must be a NumPy array"),
    ("cross_entropy", (X[:, :, 0, 0], np.array(["a", "b"])), TypeError, "integer classes"),
    ("cross_entropy", (X, X.astype(float)), TypeError, "target must have the input's dtype"),
    ("cross_entropy", (X[:, :, 0, 0], np.array([0, 1]), C[:2]), ValueError, "weight must have"),
    ("batch_norm", (X, None, None), ValueError, "needed outside training"),
    ("batch_norm", (X, C[:2], C), ValueError, r"running_mean must have shape \(3,\)"),
    ("batch_norm", (X, C, C.astype(float)), TypeError, "running_var must have the input's dtype"),
    ("batch_norm", (X, FROZEN, C, None, None, True), ValueError, "running_mean must be writeable"),
    ("batch_norm", (X[:1, :, 0, 0], C, C, None, None, True), ValueError, "more than one value"),
    ("batch_norm", (C, C, C), ValueError, "input must be 2-D"),
    ("relu_backward", (X, X[:1]), ValueError, "grad_output must have shape"),
    ("prelu", (X, C[:2]), ValueError, "one for each channel, 3, got 2"),
    ("softmax_backward", (X, X, 4), ValueError, "axis must be from -4 to 3"),
    ("linear_backward", (C[:2], C, np.ones((3, 3), np.float32)), ValueError, "must have shape"),
    ("im2col", (X, 5), ValueError, "larger than the padded input"),
    ("col2im", (X[0], (4, 4), 2), ValueError, "multiple of 4 rows and 9 columns"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD)
def test_errors(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(functional, name)(*arguments)


def test_nothing_moves_when_batch_norm_is_refused():
    mean, var = C.copy(), C.copy()
    with pytest.raises(ValueError, match="bias must have"):
        functional.batch_norm(X, mean, var, None, C[:2], training=True)
    np.testing.assert_array_equal(mean, C)
    np.testing.assert_array_equal(var, C)
