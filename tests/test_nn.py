"""The layers and containers, against torch.nn and by themselves."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from layers import LAYERS, is_channels_last, layer_pair

from convkern import nn
from convkern.functional import to_channels_last


def small_net(rng=None):
    """A net with every kind of nesting."""
    rng = rng or np.random.default_rng(0)
    return nn.Sequential(
        (
            "features",
            nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1, rng=rng),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 4, 3, rng=rng),
            ),
        ),
        ("act", nn.ReLU()),
        ("flatten", nn.Flatten()),
        (
            "classifier",
            nn.Sequential(nn.Dropout(rng=rng), nn.Linear(16, 10, rng=rng), nn.ReLU()),
        ),
    )


def images(count=2, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8), np.float32)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "args", "options", "shape"), LAYERS)
def test_layer_equals_torch(torch, name, args, options, shape, dtype):
    theirs, ours = (layer.eval() for layer in layer_pair(torch, name, args, options, dtype))
    x = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    y = ours(x)
    assert y.dtype == dtype
    assert ours.output_shape(shape) == y.shape
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    if len(shape) == 4:
        y = ours(to_channels_last(x))
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
        assert y.ndim < 4 or name == "Flatten" or is_channels_last(y)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_single_image_equals_its_batch(mode):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, padding_mode=mode), nn.ReLU(), nn.MaxPool2d(2)
    )
    x = images()
    y = net(x)
    assert net.output_shape((3, 8, 8)) == (4, 5, 5)
    for image, output in zip(x, y, strict=True):
        np.testing.assert_array_equal(net(image), output)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_empty_batch(mode):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.Dropout(), nn.Flatten()
    )
    assert net(np.zeros((0, 3, 8, 8), np.float32)).shape == (0, 256)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Linear(3, 4),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.LocalResponseNorm(2),
        nn.ReLU(),
        nn.Sigmoid(),
        nn.Softmax(),
        nn.Dropout(),
        nn.Flatten(),
        small_net(),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("value", [None, "x", [[1.0]], 1.0])
def test_not_an_array(layer, value):
    with pytest.raises(TypeError, match="input"):
        layer(value)


def test_padding_modes_by_hand():
    row = np.array([[[1.0, 2.0, 3.0]]])

    def padded(mode, padding):
        layer = nn.Conv2d(1, 1, 1, padding=padding, padding_mode=mode, bias=False, dtype=float)
        layer.weight.data[...] = 1
        return layer(row)[0, 0].tolist()

    sides = ((0, 0), (1, 2))
    assert padded("zeros", sides) == [0, 1, 2, 3, 0, 0]
    assert padded("reflect", sides) == [2, 1, 2, 3, 2, 1]
    assert padded("replicate", sides) == [1, 1, 2, 3, 3, 3]
    assert padded("circular", sides) == [3, 1, 2, 3, 1, 2]
    assert padded("circular", (0, 3)) == [1, 2, 3] * 3
    with pytest.raises(ValueError, match="at most 2 for a width of 3"):
        padded("reflect", (0, 3))
    with pytest.raises(ValueError, match="at most 3 for a width of 3"):
        padded("circular", (0, 4))


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (ValueError, "groups must divide", lambda: nn.Conv2d(3, 4, 3, groups=2)),
        (ValueError, "in_channels", lambda: nn.Conv2d(0, 4, 3)),
        (TypeError, "out_channels", lambda: nn.Conv2d(3, 4.0, 3)),
        (
            ValueError,
            "padding_mode must be one of zeros",
            lambda: nn.Conv2d(3, 4, 3, padding_mode="x"),
        ),
        (ValueError, "stride 1", lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same")),
        (
            TypeError,
            "dtype must be float32 or float64",
            lambda: nn.Conv2d(3, 4, 3, dtype=np.float16),
        ),
        (TypeError, "rng must be", lambda: nn.Conv2d(3, 4, 3, rng=7)),
        (ValueError, "out_features", lambda: nn.Linear(3, -1)),
        (ValueError, "kernel_size", lambda: nn.MaxPool2d(0)),
        (ValueError, "output_size", lambda: nn.AdaptiveAvgPool2d((1, 2, 3))),
        (ValueError, "size", lambda: nn.LocalResponseNorm(0)),
        (ValueError, "p must be between 0 and 1", lambda: nn.Dropout(1.5)),
        (ValueError, "p must be between 0 and 1", lambda: nn.Dropout(math.nan)),
        (TypeError, "layers must be", lambda: nn.Sequential(nn.ReLU)),
        (TypeError, "layers must be", lambda: nn.Sequential((1, nn.ReLU()))),
        (ValueError, "names", lambda: nn.Sequential(("a", nn.ReLU()), ("a", nn.ReLU()))),
        (ValueError, "names", lambda: nn.Sequential(("1", nn.ReLU()), nn.ReLU())),
        (ValueError, "names", lambda: nn.Sequential(("a.b", nn.ReLU()))),
        (ValueError, "names", lambda: nn.Sequential(("", nn.ReLU()), ("", nn.ReLU()))),
    ],
)
def test_refused_arguments(error, match, make):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (1, 2, 8, 8)),
        (nn.Conv2d(3, 4, 9), (1, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3), (8, 8)),
        (nn.Linear(3, 4), (2, 5)),
        (nn.MaxPool2d(9), (1, 2, 8, 8)),
        (nn.AdaptiveAvgPool2d(1), (8, 8)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (8, 8)),
        (nn.Flatten(2), (4, 5)),
        (nn.Flatten(-3), (4, 5)),
    ],
)
def test_call_and_output_shape_refuse_alike(layer, shape):
    with pytest.raises(ValueError):
        layer.output_shape(shape)
    with pytest.raises(ValueError):
        layer(np.zeros(shape, np.float32))


@pytest.mark.parametrize("layer", [nn.Conv2d(50, 8, 3, groups=2), nn.Linear(225, 40)])
def test_initial_weights_are_uniform_in_torch_s_bounds(layer):
    bound = 1 / 15
    weight, bias = layer.weight.data, layer.bias.data
    for values in (weight, bias):
        assert values.dtype == np.float32
        assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert weight.max() > 0.9 * bound > -0.9 * bound > weight.min()
    deviation = bound / math.sqrt(3)
    assert abs(weight.mean()) < 5 * deviation / math.sqrt(weight.size)
    assert weight.std() == pytest.approx(deviation, rel=0.05)


def test_same_seed_gives_the_same_net():
    first, second = (small_net(np.random.default_rng(7)).state_dict() for _ in range(2))
    other = small_net(np.random.default_rng(8)).state_dict()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert not np.array_equal(array, other[name])


def test_dropout_statistics():
    dropout = nn.Dropout(0.2, rng=np.random.default_rng(3))
    x = np.random.default_rng(4).uniform(1, 2, 100_000).astype(np.float32)
    y = dropout(x)
    kept = y != 0
    assert y.dtype == x.dtype
    assert abs(kept.mean() - 0.8) < 5 * math.sqrt(0.2 * 0.8 / x.size)
    np.testing.assert_allclose(y[kept], x[kept] / 0.8, rtol=1e-6)
    assert not np.array_equal(dropout(x) != 0, kept)
    assert y.mean() == pytest.approx(x.mean(), rel=0.01)


def test_dropout_extremes_layout_and_evaluation():
    x = to_channels_last(images())
    assert is_channels_last(nn.Dropout(0.5)(x))
    np.testing.assert_array_equal(nn.Dropout(0)(x), x)
    np.testing.assert_array_equal(nn.Dropout(1)(x), np.zeros_like(x))
    assert nn.Dropout(0.5).eval()(x) is x
    assert nn.Dropout(0.5)(np.ones(3)).dtype == np.float64


def test_train_and_eval_reach_every_layer():
    net = small_net()
    inner = net["features"]
    assert net.training and inner.training and inner[0].training
    assert net.eval() is net
    assert not (net.training or inner.training or inner[0].training)
    assert net.train()["classifier"][0].training
    assert not net.eval()[:2].training


def test_state_dict_names_and_copies():
    net = small_net()
    state = net.state_dict()
    assert list(state) == [
        f"{layer}.{kind}"
        for layer in ("features.0", "features.3", "classifier.1")
        for kind in ("weight", "bias")
    ]
    assert list(state) == [name for name, _ in net.named_parameters()]
    assert net.num_parameters() == sum(array.size for array in state.values()) == 686
    before = state["features.0.weight"].copy()
    net.parameters()[0].data += 1
    np.testing.assert_array_equal(state["features.0.weight"], before)


def test_load_state_dict_copies_and_casts():
    net, other = small_net(), small_net(np.random.default_rng(9))
    state = {name: array.astype(np.float64) for name, array in other.state_dict().items()}
    assert net.load_state_dict(state) == ([], [])
    expected = net.eval()(images())
    np.testing.assert_array_equal(expected, other.eval()(images()))
    for array in state.values():
        array[...] = np.nan
    np.testing.assert_array_equal(net(images()), expected)
    assert {parameter.data.dtype for parameter in net.parameters()} == {np.dtype(np.float32)}


def without(state, name):
    return {key: array for key, array in state.items() if key != name}


@pytest.mark.parametrize(
    ("error", "match", "spoil"),
    [
        (KeyError, "missing features.0.weight", lambda s: without(s, "features.0.weight")),
        (KeyError, "unexpected x, y", lambda s: {**s, "x": np.zeros(1), "y": np.zeros(1)}),
        (
            KeyError,
            "missing classifier.1.bias; unexpected z",
            lambda s: {**without(s, "classifier.1.bias"), "z": np.zeros(1)},
        ),
        (
            ValueError,
            r"classifier.1.bias is \(9,\), not \(10,\)",
            lambda s: {**s, "classifier.1.bias": np.zeros(9, np.float32)},
        ),
        (
            TypeError,
            "classifier.1.bias.* must be float32 or float64, got int64",
            lambda s: {**s, "classifier.1.bias": np.zeros(10, np.int64)},
        ),
        (
            TypeError,
            "got object",
            lambda s: {**s, "classifier.1.bias": None},
        ),
        (TypeError, "state must map names to arrays, got list", lambda s: list(s.items())),
    ],
)
def test_nothing_is_half_loaded(error, match, spoil):
    net = small_net()
    before = net.state_dict()
    state = spoil({name: array + 1 for name, array in before.items()})
    with pytest.raises(error, match=match):
        net.load_state_dict(state)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_loading_what_matches():
    net = small_net()
    bias = np.arange(10.0, dtype=np.float32)
    missing, unexpected = net.load_state_dict({"classifier.1.bias": bias, "x": bias}, strict=False)
    assert unexpected == ["x"]
    assert set(missing) == set(net.state_dict()) - {"classifier.1.bias"}
    np.testing.assert_array_equal(net["classifier"][1].bias.data, bias)
    with pytest.raises(ValueError, match="wrong shape"):
        net.load_state_dict({"classifier.1.bias": bias[:3]}, strict=False)


def test_shared_layers_count_once():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    assert net.num_parameters() == 12
    assert len(net.parameters()) == 2
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert net.summary((3,)).parameters == 12


def test_layers_are_a_list_to_edit():
    net = small_net()
    layers = net["classifier"].layers
    layers[1] = nn.Linear(16, 2)
    layers.append(nn.Softmax())
    layers.insert(0, nn.ReLU())
    assert list(net["classifier"].state_dict()) == ["2.weight", "2.bias"]
    assert net(images()).shape == (2, 2)
    net.layers.insert(0, nn.ReLU())
    assert next(iter(net.state_dict())) == "features.0.weight"


def test_sequence_protocol():
    net = small_net()
    assert len(net) == 4
    assert list(net) == net.layers
    assert net["act"] is net[1] is net.layers[1]
    assert net[-1] is net["classifier"]
    part = net[:2]
    assert isinstance(part, nn.Sequential)
    assert list(part.state_dict()) == list(net.state_dict())[:4]
    assert list(net["features"][3:].state_dict()) == ["3.weight", "3.bias"]
    with pytest.raises(KeyError, match="nothing"):
        net["nothing"]
    with pytest.raises(IndexError):
        net[4]


def test_repr():
    assert repr(nn.Sequential()) == "Sequential()"
    net = nn.Sequential(("a", nn.Sequential(nn.Conv2d(1, 2, (3, 1), padding="same"))), nn.Flatten())
    assert repr(net) == (
        "Sequential(\n"
        "  (a): Sequential(\n"
        "    (0): Conv2d(1, 2, kernel_size=(3, 1), padding='same')\n"
        "  )\n"
        "  (1): Flatten()\n"
        ")"
    )
    assert [
        repr(layer)
        for layer in (
            nn.Conv2d(4, 4, 3, (2, 2), (1, 1), 2, 2, False, "circular"),
            nn.Conv2d(4, 4, 3, padding=((0, 1), (0, 1))),
            nn.Linear(2, 3, bias=False),
            nn.MaxPool2d(2),
            nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
            nn.AdaptiveAvgPool2d((6, 5)),
            nn.LocalResponseNorm(5, k=2),
            nn.Softmax(),
            nn.Softmax(dim=-1),
            nn.Dropout(0.1),
        )
    ] == [
        "Conv2d(4, 4, kernel_size=3, stride=2, padding=1, dilation=2, groups=2, bias=False, "
        "padding_mode='circular')",
        "Conv2d(4, 4, kernel_size=3, padding=((0, 1), (0, 1)))",
        "Linear(2, 3, bias=False)",
        "MaxPool2d(kernel_size=2)",
        "MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True)",
        "AdaptiveAvgPool2d((6, 5))",
        "LocalResponseNorm(5, k=2.0)",
        "Softmax()",
        "Softmax(dim=-1)",
        "Dropout(p=0.1)",
    ]


def test_walk_is_the_forward_pass():
    net = small_net().eval()
    x = images()
    steps = list(net.walk(x))
    assert [step.name for step in steps] == [
        "features.0",
        "features.2",
        "features.3",
        "flatten",
        "classifier.0",
        "classifier.1",
        "classifier.2",
    ]
    assert repr(steps[0].layer) == "Conv2d(3, 8, kernel_size=3, padding=1) + ReLU()"
    assert sum(step.layer.num_parameters() for step in steps) == net.num_parameters()
    np.testing.assert_array_equal(steps[-1].output, net(x))
    shape = x.shape
    for step in steps:
        shape = step.layer.output_shape(shape)
        assert step.output.shape == shape
        if len(shape) == 4:
            assert is_channels_last(step.output)
    # Layer by layer, nothing fused and everything NCHW.
    y = x
    for part in (*net["features"], net["act"], net["flatten"], *net["classifier"]):
        y = np.ascontiguousarray(part(y))
    np.testing.assert_allclose(steps[-1].output, y, rtol=1e-5, atol=1e-6)


def test_empty_net_returns_its_input():
    x = images()
    assert nn.Sequential()(x) is x
    assert nn.Sequential(nn.Sequential(), nn.Dropout()).eval()(x) is x


def test_subclasses_keep_their_own_forward():
    class Twice(nn.Sequential):
        def forward(self, input):
            return 2 * super().forward(input)

    class Shifted(nn.ReLU):
        def forward(self, input):
            return super().forward(input) + 1

    conv = nn.Conv2d(3, 4, 3)
    x = images()
    plain = nn.Sequential(conv, nn.ReLU())(x)
    np.testing.assert_array_equal(nn.Sequential(Twice(conv, nn.ReLU()))(x), 2 * plain)
    np.testing.assert_array_equal(nn.Sequential(conv, Shifted())(x), plain + 1)


def test_a_net_may_begin_with_vectors():
    class Image(nn.Layer):
        def forward(self, input):
            return input.reshape(-1, 1, 4, 4)

    linear, conv = nn.Linear(3, 16), nn.Conv2d(1, 2, 3)
    x = np.ones((5, 3), np.float32)
    y = nn.Sequential(linear, Image(), conv)(x)
    np.testing.assert_array_equal(y, conv(linear(x).reshape(5, 1, 4, 4)))


def test_own_layers_hold_parameters_and_layers():
    class Head(nn.Layer):
        def __init__(self):
            self.scale = nn.Parameter(np.ones(1, np.float32))
            self.linear = nn.Linear(3, 2)

        def forward(self, input):
            return self.linear(input) * self.scale.data

        def output_shape(self, input_shape):
            return self.linear.output_shape(input_shape)

    net = nn.Sequential(("head", Head()))
    assert list(net.state_dict()) == ["head.scale", "head.linear.weight", "head.linear.bias"]
    assert not net.eval()["head"].linear.training
    assert net.summary((3,)).rows[0].parameters == 9


def test_errors_name_the_layer():
    net = small_net()
    with pytest.raises(ValueError) as caught:
        net(np.zeros((1, 3, 9, 12), np.float32))
    assert caught.value.__notes__ == ["in layer classifier.1, Linear(16, 10)"]
    with pytest.raises(ValueError, match=r"in layer classifier.1, Linear\(16, 10\)"):
        net.summary((3, 9, 12))
    with pytest.raises(TypeError):
        net(images().astype(np.float64))
    with pytest.raises(TypeError):
        net(None)


def test_evaluation_keeps_no_state_and_serves_many_threads():
    rng = np.random.default_rng(0)
    net = small_net(rng).eval()
    layers = [net, *net, *net["features"], *net["classifier"]]
    before = [dict(vars(layer)) for layer in layers], rng.bit_generator.state
    batches = [images(count, seed) for seed in range(8) for count in (1, 3)] * 4
    expected = [net(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for output, y in zip(pool.map(net, batches), expected, strict=True):
            np.testing.assert_array_equal(output, y)
    assert before == ([vars(layer) for layer in layers], rng.bit_generator.state)


def test_copies_are_independent():
    net = small_net().eval()
    twin = copy.deepcopy(net)
    x = images()
    before = net(x)
    for parameter in twin.parameters():
        parameter.data += 1
    np.testing.assert_array_equal(net(x), before)
    assert list(twin.state_dict()) == list(net.state_dict())


def test_summary_rows():
    summary = small_net().summary((3, 8, 8))
    rows = {row.name: row for row in summary.rows}
    assert list(rows)[:5] == ["features.0", "features.1", "features.2", "features.3", "act"]
    assert rows["features.0"] == nn.Row(
        name="features.0",
        layer="Conv2d(3, 8, kernel_size=3, padding=1)",
        output_shape=(8, 8, 8),
        parameters=224,
        multiply_adds=8 * 8 * 8 * 27,
        receptive_field=(3, 3),
        unused=(0, 0),
    )
    assert rows["features.3"].receptive_field == (8, 8)
    assert rows["flatten"].receptive_field is None
    assert rows["classifier.1"].multiply_adds == 160
    assert summary.parameters == 686
    assert summary.multiply_adds == 8 * 8 * 8 * 27 + 4 * 2 * 2 * 72 + 160
    batch = small_net().summary((5, 3, 8, 8))
    assert batch.rows[0].output_shape == (5, 8, 8, 8)
    assert batch.rows[-1].output_shape == (5, 10)
    assert batch.multiply_adds == summary.multiply_adds
    assert nn.Linear(3, 2).summary((4, 3)).rows[0].output_shape == (4, 2)
    assert nn.Linear(3, 2).summary((3,)).rows[0].output_shape == (2,)


@pytest.mark.parametrize(
    ("layer", "shape", "unused", "text"),
    [
        (nn.Conv2d(1, 1, 11, 4), (1, 224, 224), (1, 1), "1 row, 1 column unused"),
        (nn.Conv2d(1, 1, 11, 4), (1, 227, 227), (0, 0), ""),
        (nn.Conv2d(1, 1, (2, 3), (3, 4), dilation=(2, 1)), (1, 8, 10), (2, 3), "2 rows, 3 columns"),
        (nn.Conv2d(1, 1, 3, 2, padding=((0, 1), (0, 0))), (1, 8, 9), (0, 0), ""),
        (nn.MaxPool2d(2), (1, 5, 4), (1, 0), " 1 row unused"),
        (nn.MaxPool2d(2, ceil_mode=True), (1, 5, 4), (0, 0), ""),
        (nn.AdaptiveAvgPool2d(3), (1, 7, 8), (0, 0), ""),
    ],
)
def test_summary_marks_windows_that_do_not_fit(layer, shape, unused, text):
    summary = layer.summary(shape)
    assert summary.rows[0].unused == unused
    assert text in str(summary)
    assert ("unused" in str(summary)) == bool(text)


def test_receptive_fields():
    net = nn.Sequential(
        nn.Conv2d(1, 1, (3, 1), stride=(2, 1), dilation=(2, 1)),
        nn.MaxPool2d(2),
        nn.Conv2d(1, 1, 3),
        nn.AdaptiveAvgPool2d(1),
    )
    fields = [row.receptive_field for row in net.summary((1, 45, 24)).rows]
    assert fields == [(5, 1), (7, 2), (15, 6), (15 + 7 * 4, 6 + 9 * 2)]
    assert "43x24" in str(net.summary((1, 45, 24)))


@pytest.mark.parametrize(
    ("error", "shape"),
    [
        (ValueError, ()),
        (ValueError, (1, 1, 3, 8, 8)),
        (ValueError, (3, 0, 8)),
        (TypeError, (3, 8.0, 8)),
        (TypeError, ("3", 8, 8)),
    ],
)
def test_summary_refuses_shapes(error, shape):
    with pytest.raises(error, match="input_shape"):
        small_net().summary(shape)
