"""The public operators against torch on generated calls: values, indices, layouts and errors."""

import numpy as np
import pytest

from convkern import functional

from .calls import arguments, generate, in_float64, reference_call, torch_call

CALLS = {"conv2d": 2000, "max_pool2d": 2000, "linear": 2000}


def tolerance(call):
    """Return how far a result may be from the float64 one: rounding of every product and sum."""
    given = arguments(call)
    if call.name == "max_pool2d":
        return 0.0
    terms = given["weight"].size // max(1, given["weight"].shape[0]) + 2
    return 2 * terms * np.finfo(given["input"].dtype).eps


def magnitude(call):
    """Return the sum of absolute products behind every output, in float64."""
    given = arguments(in_float64(call))
    given = {k: abs(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    given.pop("activation", None)
    if call.name == "max_pool2d":
        return 0.0
    return getattr(functional, call.name)(**given)


@pytest.mark.parametrize("name", CALLS)
def test_generated_calls(torch, name):
    compared = {"values": 0, "errors": 0}
    for call in generate(name, CALLS[name], seed=20):
        if call.error is not None:
            with pytest.raises(call.error):
                getattr(functional, name)(*call.args, **call.kwargs)
                pytest.fail(f"convkern accepts {call.note}")
            with pytest.raises((RuntimeError, TypeError, ValueError, IndexError, AttributeError)):
                torch_call(call)
                pytest.fail(f"torch accepts {call.note}")
            compared["errors"] += 1
            continue
        got = getattr(functional, name)(*call.args, **call.kwargs)
        expected = torch_call(call)
        exact = reference_call(in_float64(call))
        if not isinstance(got, tuple):
            got, expected, exact = (got,), (expected,), (exact,)
        for mine, theirs, true in zip(got, expected, exact, strict=True):
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, call.note
            if call.exact or mine.dtype == np.int64 or name == "max_pool2d":
                np.testing.assert_array_equal(mine, true, call.note)
                np.testing.assert_array_equal(mine, theirs, call.note)
            else:
                bound = tolerance(call) * magnitude(call)
                assert (abs(mine - true) <= bound).all(), call.note
                assert (abs(mine - theirs) <= 2 * bound).all(), call.note
        compared["values"] += 1
    assert sum(compared.values()) == CALLS[name]
    assert compared["errors"] > CALLS[name] // 20
