"""Losses, optimisers, schedules, clipping and initial weights, against torch and exactly."""

import copy
import itertools
import json
import math

import numpy as np
import pytest

import convkern
from convkern import nn, reference
from convkern.checkpoint import load_weights, save_weights

DTYPES = (np.float32, np.float64)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


def close(mine, theirs, dtype, note=""):
    theirs = np.asarray(theirs.detach() if hasattr(theirs, "detach") else theirs)
    scale = abs(theirs).max(initial=1e-3, where=np.isfinite(theirs))
    np.testing.assert_allclose(
        mine, theirs, TOLERANCE[dtype], TOLERANCE[dtype] * scale, err_msg=note
    )


# ---------------------------------------------------------------- losses


def cross_entropy_case(rng, dtype):
    classes = int(rng.integers(1, 7))
    shape = (
        int(rng.integers(1, 6)),
        classes,
        *(int(n) for n in rng.integers(1, 4, rng.integers(3))),
    )
    x = (4 * rng.standard_normal(shape)).astype(dtype)
    options = {"reduction": str(rng.choice(["mean", "sum", "none"]))}
    options["label_smoothing"] = float(rng.choice([0, 0.1, 1]))
    if rng.random() < 0.3:
        target = rng.random(shape).astype(dtype)
    else:
        target = rng.integers(0, classes, shape[:1] + shape[2:])
        options["ignore_index"] = int(rng.choice([-100, 0]))
    arrays = {"weight": rng.random(classes).astype(dtype)} if rng.random() < 0.5 else {}
    return x, target, options, arrays


def elementwise_case(rng, dtype):
    shape = tuple(int(n) for n in rng.integers(1, 6, rng.integers(0, 4)))
    x = np.array(5 * rng.standard_normal(shape), dtype)
    target = np.array(rng.random(shape), dtype)
    return x, target, {"reduction": str(rng.choice(["mean", "sum", "none"]))}, {}


def binary_case(rng, dtype):
    x, target, options, _ = elementwise_case(rng, dtype)
    if rng.random() < 0.5:
        target = target.round()
    arrays = {}
    for name in ("weight", "pos_weight"):
        if rng.random() < 0.5:
            shape = [n if rng.random() < 0.7 else 1 for n in x.shape[rng.integers(x.ndim + 1) :]]
            arrays[name] = np.array(2 * rng.random(shape), dtype)
    return x, target, options, arrays


CASES = {
    "CrossEntropyLoss": cross_entropy_case,
    "MSELoss": elementwise_case,
    "BCEWithLogitsLoss": binary_case,
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_their_gradients(torch, name):
    for seed in range(200):
        rng = np.random.default_rng(seed)
        dtype = DTYPES[seed % 2]
        x, target, options, arrays = CASES[name](rng, dtype)
        mine = getattr(nn, name)(**arrays, **options)
        tensors = {key: torch.tensor(value) for key, value in arrays.items()}
        theirs = getattr(torch.nn, name)(**tensors, **options)
        leaf = torch.tensor(x, requires_grad=True)
        value, expected = mine(x, target), theirs(leaf, torch.tensor(target))
        note = f"seed {seed}: {x.shape}, {options}"
        if options["reduction"] == "none":
            grad = rng.standard_normal(value.shape).astype(dtype)
            assert value.dtype == dtype
        else:
            grad = float(rng.standard_normal())
            assert type(value) is float
        close(value, expected, dtype, note)
        (wanted,) = torch.autograd.grad(
            expected, leaf, torch.tensor(grad, dtype=expected.dtype).reshape(expected.shape)
        )
        got = mine.backward(grad)
        assert got.dtype == dtype and got.shape == x.shape, note
        if math.isfinite(np.sum(value)):  # the mean over no target at all is NaN
            close(got, wanted, dtype, note)


@pytest.mark.parametrize("name", ["mse_loss", "binary_cross_entropy_with_logits"])
def test_the_reference_agrees(name):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, target, options, arrays = binary_case(rng, DTYPES[seed % 2])
        arrays = arrays if name != "mse_loss" else {}
        got = getattr(convkern.functional, name)(x, target, **arrays, **options)
        close(got, getattr(reference, name)(x, target, **arrays, **options), x.dtype.type)


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_of_extreme_scores(dtype):
    x, loss = np.array([-1e4, 1e4, -1e4, 1e4], dtype), nn.BCEWithLogitsLoss(reduction="none")
    np.testing.assert_array_equal(loss(x, np.array([0, 1, 1, 0], dtype)), [0, 0, 1e4, 1e4])
    np.testing.assert_array_equal(loss.backward(np.ones(4, dtype)), [0, 0, -1, 1])


@pytest.mark.parametrize("name", ["MSELoss", "BCEWithLogitsLoss"])
def test_the_mean_of_nothing_is_nan(name):
    loss, empty = getattr(nn, name)(), np.zeros((0, 3))
    assert math.isnan(loss(empty, empty))
    assert loss.backward().shape == (0, 3)


def test_a_loss_is_gone_back_through_once():
    loss = nn.MSELoss()
    with pytest.raises(RuntimeError, match="MSELoss must follow a call"):
        loss.backward()
    loss(np.ones(3), np.zeros(3))
    assert copy.deepcopy(loss)._last is None
    with pytest.raises(ValueError, match="grad_output must have"):
        loss.backward(np.ones(2))
    loss.backward()
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


X = np.ones((2, 3))
BAD_LOSSES = [
    (nn.MSELoss, {"reduction": "max"}, None, None, ValueError, "reduction must be"),
    (nn.MSELoss, {}, X, X[:1], ValueError, r"target must have shape \(2, 3\)"),
    (nn.MSELoss, {}, X, X.astype(np.float32), TypeError, "target must have the input's dtype"),
    (nn.MSELoss, {}, X.astype(int), X, TypeError, "input must be float32 or float64"),
    (nn.BCEWithLogitsLoss, {"weight": np.ones(2)}, X, X, ValueError, "weight must be broadcast"),
    (nn.BCEWithLogitsLoss, {"pos_weight": 2.0}, X, X, TypeError, "pos_weight must be a NumPy"),
    (nn.BCEWithLogitsLoss, {"weight": np.ones((1, 2, 3))}, X, X, ValueError, "weight must be"),
    (nn.CrossEntropyLoss, {"label_smoothing": "a"}, None, None, TypeError, "label_smoothing must"),
    (nn.CrossEntropyLoss, {"label_smoothing": 2}, X, X, ValueError, "label_smoothing must be"),
    (nn.CrossEntropyLoss, {"weight": np.ones(2)}, X, X, ValueError, "weight must have shape"),
]


@pytest.mark.parametrize(("kind", "options", "x", "target", "error", "message"), BAD_LOSSES)
def test_bad_arguments_of_losses(kind, options, x, target, error, message):
    with pytest.raises(error, match=message):
        kind(**options)(x, target)


# ---------------------------------------------------------------- optimisers


def product(**choices):
    """Return every combination of some options."""
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


SGD_OPTIONS = [
    options
    for options in product(
        momentum=[0, 0.9],
        dampening=[0, 0.3],
        weight_decay=[0, 0.1],
        nesterov=[False, True],
        maximize=[False, True],
    )
    if not options["nesterov"] or (options["momentum"] and not options["dampening"])
]
ADAM_OPTIONS = product(
    lr=[0.01, 0.3],
    betas=[(0.9, 0.999), (0.3, 0.0)],
    eps=[1e-8, 0.1],
    weight_decay=[0, 0.1],
    amsgrad=[False, True],
    maximize=[False, True],
)
RULES = [
    *(("SGD", {"lr": 0.1, **options}) for options in SGD_OPTIONS),
    *((name, options) for name in ("Adam", "AdamW") for options in ADAM_OPTIONS),
]
SHAPES = [(), (1,), (5, 7), (3, 2, 3, 3), (0, 4), (33,)]


def random_parameters(rng, dtype, shapes=SHAPES):
    return [nn.Parameter(np.array(rng.standard_normal(shape), dtype)) for shape in shapes]


def give_gradients(rng, parameters):
    for parameter in parameters:
        shape = parameter.data.shape
        parameter.grad = np.array(rng.standard_normal(shape), parameter.data.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_twenty_steps_as_in_torch(torch, kind, dtype):
    for name, options in RULES:
        if name != kind:
            continue
        rng = np.random.default_rng(0)
        mine = random_parameters(rng, dtype)
        theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in mine]
        ours = getattr(nn, kind)(mine, **options)
        torchs = getattr(torch.optim, kind)(theirs, **options)
        for step in range(20):
            give_gradients(rng, mine)
            for k, (parameter, tensor) in enumerate(zip(mine, theirs, strict=True)):
                tensor.grad = torch.tensor(parameter.grad)
                if (step + k) % 5 == 0:  # nothing happens without a gradient
                    tensor.grad = None
                    parameter.zero_grad()
            ours.step()
            torchs.step()
        for parameter, tensor in zip(mine, theirs, strict=True):
            close(parameter.data, tensor, dtype, f"{options}")


def test_defaults_are_those_of_torch(torch):
    for kind in ("SGD", "Adam", "AdamW"):
        mine = getattr(nn, kind)([nn.Parameter(np.zeros(1))]).param_groups[0]
        theirs = getattr(torch.optim, kind)([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
        assert {name: theirs[name] for name in mine if name != "params"} == {
            name: value for name, value in mine.items() if name != "params"
        }


def test_a_net_learns():
    rng = np.random.default_rng(0)
    net = nn.Sequential(nn.Linear(5, 8, rng=rng), nn.ReLU(), nn.Linear(8, 3, rng=rng))
    x = rng.standard_normal((64, 5)).astype(np.float32)
    target = x[:, :3].argmax(axis=1)
    loss = nn.CrossEntropyLoss()
    optimizer = nn.SGD(net.parameters(), lr=0.3, momentum=0.9)
    values = []
    for _ in range(60):
        values.append(loss(net(x), target))
        net.backward(loss.backward())
        optimizer.step()
        optimizer.zero_grad()
    assert values[0] > 1 and values[-1] < 0.15
