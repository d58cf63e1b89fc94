"""The networks: sizes, names, and the same logits as torch gives."""

from __future__ import annotations

import numpy as np
import pytest

from convkern import nn
from convkern.models import INPUT_SIZE, alexnet

PARAMETERS = {"article": 62_378_344, "torchvision": 61_100_840, "2012": 60_965_224}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_alexnet_gives_torch_s_logits(torch, variant):
    import torch_models

    theirs = torch_models.alexnet(variant).eval()
    ours = alexnet(variant=variant, rng=np.random.default_rng(0)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    side = INPUT_SIZE[variant]
    x = np.random.default_rng(1).standard_normal((2, 3, side, side), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    logits = ours(x)
    assert logits.shape == (2, 1000)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("variant", PARAMETERS)
def test_alexnet_sizes_and_names(variant):
    net = alexnet(variant=variant)
    assert net.num_parameters() == PARAMETERS[variant]
    names = [name for name, _ in net.named_parameters()]
    assert names[0] == "features.0.weight"
    assert names[-6:] == [
        f"classifier.{i}.{kind}" for i in (1, 4, 6) for kind in ("weight", "bias")
    ]
    side = INPUT_SIZE[variant]
    assert net.output_shape((8, 3, side, side)) == (8, 1000)
    assert all(parameter.data.dtype == np.float32 for parameter in net.parameters())


def test_table_of_the_article():
    summary = alexnet().summary((3, 227, 227))
    maps = [row.output_shape for row in summary.rows if not row.layer.startswith("ReLU")][:8]
    assert maps == [
        (96, 55, 55),
        (96, 27, 27),
        (256, 27, 27),
        (256, 13, 13),
        (384, 13, 13),
        (384, 13, 13),
        (256, 13, 13),
        (256, 6, 6),
    ]
    learned = [(row.parameters, row.multiply_adds) for row in summary.rows if row.parameters]
    assert learned == [
        (34_944, 105_415_200),
        (614_656, 447_897_600),
        (885_120, 149_520_384),
        (1_327_488, 224_280_576),
        (884_992, 149_520_384),
        (37_752_832, 37_748_736),
        (16_781_312, 16_777_216),
        (4_097_000, 4_096_000),
    ]
    assert summary.parameters == 62_378_344
    assert summary.multiply_adds == 1_135_256_096
    fields = [row.receptive_field for row in summary.rows if "MaxPool2d" in row.layer]
    assert fields == [(19, 19), (67, 67), (195, 195)]
    assert not any(any(row.unused) for row in summary.rows)
    assert "62,378,344 parameters" in str(summary)


def test_dropout_and_relu_follow_both_big_linear_layers():
    kinds = [type(layer) for layer in alexnet()["classifier"]]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("output", ["sigmoid", "softmax"])
def test_outputs_and_number_of_classes(output):
    logits_net, net = (
        alexnet(10, output=kind, rng=np.random.default_rng(0)).eval() for kind in ("logits", output)
    )
    x = np.random.default_rng(1).random((2, 3, 227, 227), np.float32)
    logits = logits_net(x).astype(np.float64)
    e = np.exp(logits)
    expected = {"sigmoid": e / (1 + e), "softmax": e / e.sum(axis=1, keepdims=True)}[output]
    assert list(net.state_dict()) == list(logits_net.state_dict())
    np.testing.assert_allclose(net(x), expected, rtol=1e-5)


def test_a_seed_fixes_the_weights():
    first, second, other = (
        alexnet(2, rng=np.random.default_rng(seed)).parameters() for seed in (5, 5, 6)
    )
    for a, b, c in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert not np.array_equal(a.data, c.data)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"variant": "alexnet"}, "variant must be one of article, torchvision, 2012"),
        ({"output": "probabilities"}, "output must be one of logits, sigmoid, softmax"),
        ({"num_classes": 0}, "out_features must be at least 1"),
    ],
)
def test_refused_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        alexnet(**options)
