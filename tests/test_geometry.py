"""Window arithmetic against counting by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convkern import conv_output_size
from convkern.geometry import output_size, padding_pairs

pytestmark = pytest.mark.once

sizes = st.integers(1, 40)


@given(
    sizes, st.integers(1, 7), st.integers(1, 5), st.integers(0, 4), st.integers(1, 4), st.booleans()
)
def test_output_size_counts_windows(size, kernel, stride, pad, dilation, ceil_mode):
    extent = dilation * (kernel - 1) + 1
    expected = 0
    while expected * stride + extent <= size + 2 * pad:
        expected += 1
    overhang = expected * stride + extent - (size + 2 * pad)
    if ceil_mode and overhang < stride and expected * stride < size + pad:
        expected += 1
    if expected == 0:
        with pytest.raises(ValueError, match="larger than the padded input"):
            output_size(size, kernel, stride, (pad, pad), dilation, ceil_mode)
        return
    assert output_size(size, kernel, stride, (pad, pad), dilation, ceil_mode) == expected


@given(sizes, sizes, st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
def test_same_padding_keeps_the_size(height, width, kh, kw, dilation):
    pairs = padding_pairs("same", (kh, kw), (1, 1), (dilation, dilation))
    for before, after in pairs:
        assert after - before in (0, 1)
    got = conv_output_size((height, width), (kh, kw), 1, "same", dilation)
    assert got == (height, width)


def test_forms():
    assert conv_output_size(227, 11, 4) == 55
    assert conv_output_size((227, 13), (11, 3), (4, 1), (0, 1)) == (55, 13)
    assert conv_output_size(7, (3, 1)) == (5, 7)
    assert conv_output_size([7, 7], 3, padding=((0, 1), (2, 3))) == (6, 10)
    assert conv_output_size(6, 3, 2, ceil_mode=True) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, 7), ValueError, "window .* larger than the padded input"),
        ((224.0, 11), TypeError, "input_size must be an integer"),
        ((5, 3, 0), ValueError, "stride must be at least 1"),
        ((5, 3, 1, -1), ValueError, "padding must be at least 0"),
        ((5, 3, 1, 0, 0), ValueError, "dilation must be at least 1"),
        ((-1, 3), ValueError, "input_size must be at least 0"),
        ((5, 0), ValueError, "kernel_size must be at least 1"),
        ((5, "3"), TypeError, "kernel_size must be an integer"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        conv_output_size(*arguments)
