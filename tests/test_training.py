"""Losses, optimisers, schedules, clipping and initial weights, against torch and exactly."""

import copy
import itertools
import json
import math

import numpy as np
import pytest

import convkern
from convkern import nn, num_threads, reference
from convkern.checkpoint import load_weights, save_weights

from .memory import guarded

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
def test_infinity_and_nan_are_as_in_torch(torch, name):
    values = np.array([-math.inf, -1e38, -1, 0, 1e38, math.inf, math.nan], np.float32)
    x, target = (np.array(a) for a in np.meshgrid(values, np.array([0, 0.5, 1], np.float32)))
    mine = getattr(nn, name)(reduction="none")
    theirs = getattr(torch.nn, name)(reduction="none")
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf, torch.tensor(target))
    expected.sum().backward()
    close(mine(x, target), expected, np.float32)
    close(mine.backward(np.ones_like(x)), leaf.grad, np.float32)
    assert not math.isfinite(getattr(nn, name)()(x, target))


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


def test_a_loss_of_one_s_own_is_not_passed_over():
    class Doubled(nn.CrossEntropyLoss):
        def forward(self, input, target):
            return 2 * super().forward(input, target)

        def gradient(self, grad_output, input, target):
            return 2 * super().gradient(grad_output, input, target)

    x, target = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 2, 1, 1])
    plain, doubled = nn.CrossEntropyLoss(), Doubled()
    assert doubled(x, target) == 2 * plain(x, target)
    np.testing.assert_array_equal(doubled.backward(), 2 * plain.backward())


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


def plain_sgd(state, p, g, options):
    """Do a step in NumPy, operation by operation."""
    g = -g if options["maximize"] else g
    if options["weight_decay"]:
        g = g + p * options["weight_decay"]
    if options["momentum"]:
        share = 1 - options["dampening"] if state else 1
        speed = state.get("speed", np.zeros_like(p)) * options["momentum"] + g * share
        state["speed"] = speed
        g = g + speed * options["momentum"] if options["nesterov"] else speed
    p -= g * options["lr"]


def plain_adam(state, p, g, options, decoupled=False):
    """Do a step in NumPy, operation by operation."""
    lr, decay, (beta1, beta2) = options["lr"], options["weight_decay"], options["betas"]
    if not state:
        state.update(step=0, mean=np.zeros_like(p), square=np.zeros_like(p), most=np.zeros_like(p))
    state["step"] += 1
    g = -g if options["maximize"] else g
    if decay and not decoupled:
        g = g + p * decay
    if decoupled:
        p *= 1 - lr * decay
    state["mean"] = state["mean"] * beta1 + g * (1 - beta1)
    state["square"] = state["square"] * beta2 + g * g * (1 - beta2)
    state["most"] = np.maximum(state["most"], state["square"])
    root = np.sqrt(state["most" if options["amsgrad"] else "square"])
    root = root / math.sqrt(1 - beta2 ** state["step"]) + options["eps"]
    p -= state["mean"] / root * (lr / (1 - beta1 ** state["step"]))


PLAIN = {
    "SGD": plain_sgd,
    "Adam": plain_adam,
    "AdamW": lambda *arguments: plain_adam(*arguments, decoupled=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), RULES[::5])
def test_steps_have_the_bits_of_the_formula(kind, options, dtype):
    rng = np.random.default_rng(1)
    shapes = [(), (0,), *((n,) for n in range(1, 40, 3)), (33, 1000)]
    parameters = random_parameters(rng, dtype, shapes)
    expected = [p.data.copy() for p in parameters]
    states = [{} for _ in parameters]
    optimizer = getattr(nn, kind)(parameters, **options)
    for _ in range(3):
        give_gradients(rng, parameters)
        optimizer.step()
        for state, data, parameter in zip(states, expected, parameters, strict=True):
            PLAIN[kind](state, data, parameter.grad, optimizer.param_groups[0])
            np.testing.assert_array_equal(parameter.data, data)


def laid_out(rng, array):
    """Return an equal array in another memory layout."""
    order = rng.permutation(array.ndim)
    array = np.array(array.transpose(order), order="C").transpose(np.argsort(order))
    if rng.random() < 0.5:
        array = np.repeat(array[::-1], 2, axis=0)[::-2]
    return array


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_do_not_matter(kind, dtype):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shape = tuple(int(n) for n in rng.integers(1, 7, rng.integers(1, 5)))
        plain, moved = (nn.Parameter(np.ones(shape, dtype)) for _ in range(2))
        plain.data[...] = rng.standard_normal(shape)
        moved.data = laid_out(rng, plain.data)
        before = moved.data
        optimizers = [getattr(nn, kind)([p], weight_decay=0.1) for p in (plain, moved)]
        for step in range(3):
            give_gradients(rng, [plain])
            moved.grad = laid_out(rng, plain.grad)
            for optimizer in optimizers:
                optimizer.step()
            assert moved.data is before
            np.testing.assert_array_equal(moved.data, plain.data)
            if step == 1:  # as load_state_dict of a net does
                before = moved.data = np.array(moved.data, order="C")


@pytest.mark.parametrize("kind", PLAIN)
def test_every_number_of_threads_gives_the_same_bits(kind):
    first = None
    for threads in (1, 2, 3, 7):
        rng = np.random.default_rng(0)
        shapes = [(5,), (700, 300), (0, 2), (16384,), (16385,), (3, 3), (50_000,)]
        parameters = random_parameters(rng, np.float32, shapes)
        parameters += random_parameters(rng, np.float64, shapes[:2])
        optimizer = getattr(nn, kind)(parameters, lr=0.1)
        with num_threads(threads):
            for _ in range(3):
                give_gradients(rng, parameters)
                norm = nn.clip_grad_norm_(parameters, 100.0)
                optimizer.step()
        found = [norm, *(p.data.tobytes() for p in parameters)]
        first = first or found
        assert found == first, f"{threads} threads"


@pytest.mark.parametrize("kind", PLAIN)
def test_parameters_that_share_memory_make_their_steps_in_turn(kind):
    rng = np.random.default_rng(0)
    start, *grads = rng.standard_normal((4, 600, 100))
    together, alone = start.copy(), start.copy()
    for data, apart in ((together, False), (alone, True)):
        parameters = [nn.Parameter(a) for a in (data, data.T, data[::2, 7:])]
        make = getattr(nn, kind)
        optimizers = [make([p], 0.1) for p in parameters] if apart else [make(parameters, 0.1)]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.reshape(-1)[: parameter.data.size].reshape(parameter.data.shape)
        with num_threads(2):
            for optimizer in optimizers:
                optimizer.step()
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("at_end", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_outside_the_arrays_is_touched(dtype, at_end):
    rng = np.random.default_rng(0)
    for size in (1, 7, 16, 17, 33):
        arrays = [guarded(rng.random(size).astype(dtype), at_end) for _ in range(4)]
        for kind, names in (("SGD", 1), ("Adam", 2)):
            parameter = nn.Parameter(arrays[0])
            parameter.grad = arrays[1]
            optimizer = getattr(nn, kind)([parameter], **({"momentum": 0.9} if names == 1 else {}))
            optimizer.step()
            for name, memory in zip(list(optimizer.state[parameter])[1:], arrays[2:], strict=False):
                optimizer.state[parameter][name] = memory
            optimizer.step()
            nn.clip_grad_norm_(parameter, 0.1)
            assert np.isfinite(parameter.data).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), RULES[::9])
def test_a_saved_state_continues_exactly(kind, options, dtype, tmp_path):
    def start():
        rng = np.random.default_rng(3)
        parameters = random_parameters(rng, dtype)
        groups = [{"params": parameters[:2], "lr": 0.05}, {"params": parameters[2:]}]
        optimizer = getattr(nn, kind)(groups, **options)
        return rng, parameters, optimizer, nn.CosineAnnealingLR(optimizer, 7)

    def go_on(rng, parameters, optimizer, schedule, steps):
        for _ in range(steps):
            give_gradients(rng, parameters)
            parameters[1].zero_grad()
            optimizer.step()
            schedule.step()

    rng, parameters, optimizer, schedule = start()
    go_on(rng, parameters, optimizer, schedule, 3)
    state = optimizer.state_dict()
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    numbers = {name: value for name, value in state.items() if name not in arrays}
    save_weights(tmp_path / "state.safetensors", arrays)
    kept = json.dumps([numbers, schedule.state_dict()]), [p.data.copy() for p in parameters]
    draws = copy.deepcopy(rng)
    go_on(rng, parameters, optimizer, schedule, 5)

    _, resumed, new_optimizer, new_schedule = start()
    numbers, where = json.loads(kept[0])
    new_optimizer.load_state_dict({**load_weights(tmp_path / "state.safetensors"), **numbers})
    new_schedule.load_state_dict(where)
    for parameter, data in zip(resumed, kept[1], strict=True):
        parameter.data = data
    go_on(draws, resumed, new_optimizer, new_schedule, 5)
    for one, other in zip(parameters, resumed, strict=True):
        assert one.data.tobytes() == other.data.tobytes()
    one, other = optimizer.state_dict(), new_optimizer.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def stepped(kind="Adam", **options):
    """Return an optimiser of two parameters after a step, and its state."""
    parameters = random_parameters(np.random.default_rng(0), np.float64, [(3,), (2, 2)])
    give_gradients(np.random.default_rng(1), parameters)
    optimizer = getattr(nn, kind)(parameters, **options)
    optimizer.step()
    return optimizer, optimizer.state_dict()


BAD_STATES = [
    ({"state.0.exp_avg": None}, KeyError, "state lacks state.0.exp_avg"),
    ({"groups.0.lr": None}, KeyError, "state lacks groups.0.lr"),
    ({"state.0.step": None}, KeyError, "unexpected entries: state.0.exp_avg"),
    ({"state.2.step": 1}, KeyError, "unexpected entries: state.2.step"),
    ({"groups.0.params": 3}, ValueError, "group 0 has 2 parameters, in the state 3"),
    ({"groups.0.lr": -1.0}, ValueError, "lr must be"),
    ({"groups.0.betas": [0.9]}, TypeError, "betas must be a pair"),
    ({"state.0.step": 1.5}, TypeError, "state.0.step must be an integer"),
    ({"state.0.step": 0}, ValueError, "state.0.step must be at least 1"),
    (
        {"state.1.exp_avg": np.zeros((2, 3))},
        ValueError,
        r"exp_avg must have shape \(2, 2\)",
    ),
    ({"state.1.exp_avg": np.zeros((2, 2), int)}, TypeError, "state.1.exp_avg must be float32"),
    ({"state.1.exp_avg": 1.0}, TypeError, "state.1.exp_avg must be a NumPy array"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_STATES)
def test_a_state_that_does_not_fit_changes_nothing(change, error, message):
    optimizer, state = stepped()
    changed = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(changed)
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    with pytest.raises(TypeError, match="state must map names"):
        optimizer.load_state_dict([1])


def test_the_state_is_a_copy():
    optimizer, state = stepped("SGD", momentum=0.9)
    before = copy.deepcopy(state)
    give_gradients(np.random.default_rng(2), optimizer.param_groups[0]["params"])
    optimizer.step()
    for name, value in state.items():
        np.testing.assert_array_equal(value, before[name])
    name = "state.0.momentum_buffer"
    assert not np.array_equal(optimizer.state_dict()[name], before[name])


def P():  # noqa: N802
    return nn.Parameter(np.zeros(2))


SAME = P()
BAD_OPTIMIZERS = [
    ("SGD", ([],), {}, ValueError, "at least one parameter"),
    ("SGD", (5,), {}, TypeError, "params must be"),
    ("SGD", ({"params": [P()]},), {}, TypeError, "params must be"),
    ("SGD", ([np.zeros(2)],), {}, TypeError, "got ndarray"),
    ("SGD", ([P(), None],), {}, TypeError, "got NoneType"),
    ("SGD", ([SAME, SAME],), {}, ValueError, "once"),
    ("SGD", ([{"params": [SAME]}, {"params": SAME}],), {}, ValueError, "once"),
    ("SGD", ([{"params": [P()], "rate": 1}],), {}, ValueError, "got 'rate'"),
    ("SGD", ([{"lr": 1}],), {}, TypeError, "a dict with 'params'"),
    ("SGD", ([{"params": [P()], "lr": -1}],), {}, ValueError, "lr must be finite, at least 0"),
    ("SGD", ([P()], -0.1), {}, ValueError, "lr must be finite, at least 0, got -0.1"),
    ("SGD", ([P()], math.nan), {}, ValueError, "lr must be"),
    ("SGD", ([P()], math.inf), {}, ValueError, "lr must be"),
    ("SGD", ([P()], "fast"), {}, TypeError, "lr must be a number, got 'fast'"),
    ("SGD", ([P()], True), {}, TypeError, "lr must be a number"),
    ("SGD", ([P()], 0.1, -0.5), {}, ValueError, "momentum must be"),
    ("SGD", ([P()],), {"weight_decay": -1}, ValueError, "weight_decay must be"),
    ("SGD", ([P()],), {"dampening": None}, TypeError, "dampening must be"),
    ("SGD", ([P()],), {"nesterov": True}, ValueError, "nesterov needs a momentum"),
    ("SGD", ([P()], 0.1, 0.9, 0.1), {"nesterov": True}, ValueError, "no dampening"),
    ("SGD", ([P()],), {"nesterov": 1}, TypeError, "nesterov must be True or False"),
    ("SGD", ([P()],), {"maximize": None}, TypeError, "maximize must be True or False"),
    (
        "Adam",
        ([P()],),
        {"betas": (1.0, 0.9)},
        ValueError,
        "betas must be .* below 1",
    ),
    ("Adam", ([P()],), {"betas": 0.9}, TypeError, "betas must be a pair"),
    ("Adam", ([P()],), {"eps": -1e-8}, ValueError, "eps must be"),
    ("Adam", ([P()],), {"amsgrad": "yes"}, TypeError, "amsgrad must be"),
    ("AdamW", ([P()],), {"weight_decay": -1e-2}, ValueError, "weight_decay must be"),
]


@pytest.mark.parametrize(("kind", "arguments", "options", "error", "message"), BAD_OPTIMIZERS)
def test_bad_arguments_of_optimisers(kind, arguments, options, error, message):
    with pytest.raises(error, match=message):
        getattr(nn, kind)(*arguments, **options)


def read_only(array):
    array.flags.writeable = False
    return array


BAD_DATA = [
    (read_only(np.zeros(3)), ValueError, "data must be writeable"),
    (np.lib.stride_tricks.as_strided(np.zeros(3), (3,), (0,)), ValueError, "overlap itself"),
    (np.zeros(4), ValueError, r"grad must have the data's shape \(4,\)"),
    (np.zeros(3, np.float32), ValueError, "grad must have the data's shape"),
    (np.zeros(3, np.float16), TypeError, "data must be float32 or float64"),
    ([0.0, 0.0, 0.0], TypeError, "data must be a NumPy array"),
]


@pytest.mark.parametrize(("data", "error", "message"), BAD_DATA)
def test_a_step_that_is_refused_changes_nothing(data, error, message):
    optimizer, _ = stepped()
    give_gradients(np.random.default_rng(0), optimizer.param_groups[0]["params"])
    state = optimizer.state_dict()
    first, second = optimizer.param_groups[0]["params"]
    kept = second.data.copy(), first.data
    first.data = data
    with pytest.raises(error, match=message):
        optimizer.step()
    first.data = kept[1]
    optimizer.param_groups[0]["lr"] = -1
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.001
    np.testing.assert_array_equal(second.data, kept[0])
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, state[name])


def test_a_state_of_another_shape_is_refused():
    optimizer, _ = stepped()
    first = optimizer.param_groups[0]["params"][0]
    first.zero_grad()
    first.data = np.zeros(5)
    first.grad = np.ones(5)
    with pytest.raises(ValueError, match=r"exp_avg must have the data's shape \(5,\)"):
        optimizer.step()


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


# ---------------------------------------------------------------- schedules

SCHEDULES = [
    ("StepLR", (3,), {}),
    ("StepLR", (1, 0.9), {}),
    ("MultiStepLR", ([2, 5, 5, 9],), {}),
    ("MultiStepLR", ([7, 0, 3],), {"gamma": 0.5}),
    ("CosineAnnealingLR", (10,), {}),
    ("CosineAnnealingLR", (4, 0.01), {}),
    ("CosineAnnealingLR", (1,), {"eta_min": 0.5}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), SCHEDULES)
def test_schedules_as_in_torch(torch, name, arguments, options):
    rates = (0.4, 1e-3)
    mine = nn.SGD([{"params": [P()], "lr": rate} for rate in rates])
    theirs = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    )
    ours = getattr(nn, name)(mine, *arguments, **options)
    torchs = getattr(torch.optim.lr_scheduler, name)(theirs, *arguments, **options)
    for _ in range(30):
        np.testing.assert_allclose(ours.get_last_lr(), torchs.get_last_lr(), 1e-10, 1e-15)
        assert ours.get_last_lr() == [group["lr"] for group in mine.param_groups]
        theirs.step()
        ours.step()
        torchs.step()


def scheduled():
    return nn.StepLR(nn.SGD([P()], lr=0.1), 2)


BAD_SCHEDULES = [
    (lambda: nn.StepLR(P(), 3), TypeError, "optimizer must be an Optimizer"),
    (lambda: nn.StepLR(nn.SGD([P()]), 0), ValueError, "step_size must be at least 1"),
    (lambda: nn.StepLR(nn.SGD([P()]), 2.0), TypeError, "step_size must be an integer"),
    (lambda: nn.StepLR(nn.SGD([P()]), 2, -1), ValueError, "gamma must be"),
    (lambda: nn.MultiStepLR(nn.SGD([P()]), [1, "2"]), TypeError, "milestones must be"),
    (lambda: nn.CosineAnnealingLR(nn.SGD([P()]), 5, "low"), TypeError, "eta_min must be"),
    (lambda: scheduled().load_state_dict(3), TypeError, "state must map"),
    (lambda: scheduled().load_state_dict({}), KeyError, "state lacks last_epoch"),
    (
        lambda: scheduled().load_state_dict({"last_epoch": 1, "base_lrs": [1, 2]}),
        ValueError,
        "base_lrs must be a list of 1",
    ),
    (
        lambda: scheduled().load_state_dict({"last_epoch": 1, "base_lrs": [1], "gamma": 1}),
        KeyError,
        "unexpected entries: gamma",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_SCHEDULES)
def test_bad_arguments_of_schedules(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------- clipping


def gradients(seed, dtypes=DTYPES):
    rng = np.random.default_rng(seed)
    parameters = [p for dtype in dtypes for p in random_parameters(rng, dtype)]
    give_gradients(rng, parameters)
    parameters[1].zero_grad()
    parameters[2].grad = laid_out(rng, parameters[2].grad)
    return parameters


def tensors(torch, parameters):
    copies = [torch.nn.Parameter(torch.tensor(p.data)) for p in parameters]
    for parameter, tensor in zip(parameters, copies, strict=True):
        if parameter.has_grad:
            tensor.grad = torch.tensor(np.array(parameter.grad, order="C"))
    return copies


@pytest.mark.parametrize("norm_type", [1, 2, 2.5, math.inf])
@pytest.mark.parametrize("max_norm", [0, 0.3, 1e6])
def test_clipping_by_norm(torch, norm_type, max_norm):
    for dtype in DTYPES:
        mine = gradients(0, [dtype])
        if norm_type == math.inf:  # which torch refuses for an empty array
            mine = [parameter for parameter in mine if parameter.data.size]
        theirs = tensors(torch, mine)
        norm = nn.clip_grad_norm_(iter(mine), max_norm, norm_type)
        expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
        assert type(norm) is float
        close(norm, expected, dtype)
        for parameter, tensor in zip(mine, theirs, strict=True):
            assert parameter.has_grad == (tensor.grad is not None)
            if parameter.has_grad:
                close(parameter.grad, tensor.grad, dtype)


def test_clipping_by_value(torch):
    mine = gradients(1)
    theirs = tensors(torch, mine)
    nn.clip_grad_value_(mine, 0.7)
    torch.nn.utils.clip_grad_value_(theirs, 0.7)
    for parameter, tensor in zip(mine, theirs, strict=True):
        if parameter.has_grad:
            np.testing.assert_array_equal(parameter.grad, tensor.grad)


def test_norms_that_are_not_finite():
    parameter = P()
    parameter.grad = np.array([1.0, math.inf])
    with pytest.raises(RuntimeError, match="norm inf"):
        nn.clip_grad_norm_(parameter, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(parameter.grad, [1, math.inf])
    assert nn.clip_grad_norm_(parameter, 1.0) == math.inf
    np.testing.assert_array_equal(parameter.grad, [0, math.nan])
    other = P()
    other.grad = np.ones(2)
    for parameters in ([parameter, other], [other, parameter]):
        assert math.isnan(nn.clip_grad_norm_(parameters, 1.0, math.inf))
        assert math.isnan(nn.clip_grad_norm_(parameters, 1.0))
        other.grad = np.ones(2)
    assert nn.clip_grad_norm_(P(), 1.0) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.clip_grad_norm_(3, 1.0), TypeError, "must be Parameters"),
        (lambda: nn.clip_grad_norm_([P()], -1.0), ValueError, "max_norm must be"),
        (lambda: nn.clip_grad_norm_([P()], 1.0, 0), ValueError, "norm_type must be above 0"),
        (lambda: nn.clip_grad_norm_([P()], 1.0, "inf"), TypeError, "norm_type must be a number"),
        (lambda: nn.clip_grad_value_([P()], None), TypeError, "clip_value must be a number"),
        (lambda: nn.clip_grad_value_([np.zeros(2)], 1), TypeError, "got ndarray"),
    ],
)
def test_bad_arguments_of_clipping(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------- initial weights

INITIALS = [
    ("kaiming_uniform_", {}),
    ("kaiming_uniform_", {"a": math.sqrt(5)}),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}),
    ("kaiming_normal_", {"nonlinearity": "tanh"}),
    ("xavier_uniform_", {"gain": 2.0}),
    ("xavier_normal_", {}),
]


@pytest.mark.parametrize(("name", "options"), INITIALS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_weights_are_distributed_as_in_torch(torch, name, options, dtype):
    for shape in ((300, 200), (60, 40, 5, 5)):
        array = np.full(shape[::-1], np.nan, dtype).T
        parameter = nn.Parameter(np.full(shape, np.nan, dtype))
        draw = getattr(nn.init, name)
        assert draw(array, rng=np.random.default_rng(0), **options) is array
        assert draw(parameter, rng=np.random.default_rng(0), **options) is parameter
        np.testing.assert_array_equal(array, parameter.data)
        theirs = getattr(torch.nn.init, name)(torch.empty(shape), **options).numpy()
        np.testing.assert_allclose(array.std(), theirs.std(), 0.03)
        assert abs(array.mean()) < 0.03 * theirs.std()
        limit = 0.03 if "uniform" in name else 0.3
        np.testing.assert_allclose(abs(array).max(), abs(theirs).max(), limit)


def test_gains_are_those_of_torch(torch):
    for name in ("linear", "conv2d", "conv_transpose2d", "sigmoid", "tanh", "relu", "selu"):
        assert nn.init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    for slope in (None, 0, 0.3):
        mine = nn.init.calculate_gain("leaky_relu", slope)
        assert mine == torch.nn.init.calculate_gain("leaky_relu", slope)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.init.xavier_normal_(np.zeros(3)), ValueError, "at least two axes"),
        (lambda: nn.init.xavier_normal_([[1.0]]), TypeError, "tensor must be a NumPy array"),
        (lambda: nn.init.xavier_normal_(np.zeros((2, 2), int)), TypeError, "tensor must be float"),
        (lambda: nn.init.xavier_normal_(read_only(X.copy())), ValueError, "writeable"),
        (lambda: nn.init.xavier_uniform_(X.copy(), "a"), TypeError, "gain must be a number"),
        (lambda: nn.init.xavier_uniform_(X.copy(), rng=1), TypeError, "rng must be"),
        (lambda: nn.init.kaiming_normal_(X.copy(), mode="both"), ValueError, "mode must be"),
        (lambda: nn.init.kaiming_normal_(X.copy(), nonlinearity="x"), ValueError, "nonlinearity"),
    ],
)
def test_bad_arguments_of_initial_weights(call, error, message):
    with pytest.raises(error, match=message):
        call()
