"""The shape list, and the command that times the kernels."""

import importlib.util
import itertools
import json
import sys

import numpy as np
import pytest

from convkern import bench, functional, reference
from convkern.bench import cases, checking, timing
from convkern.bench import report as reporting
from convkern.nn import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from convkern.shapes import CONV_SHAPES, LINEAR_SHAPES, POOL_SHAPES, LayerShape, select

# Shapes


def test_alexnet_multiply_adds():
    found = {shape.name: shape.multiply_adds for shape in select("alexnet")}
    assert found == {
        "conv1": 105_415_200,
        "conv2": 447_897_600,
        "conv3": 149_520_384,
        "conv4": 224_280_576,
        "conv5": 149_520_384,
    }
    linear = select("alexnet", LINEAR_SHAPES)
    assert [shape.multiply_adds for shape in linear] == [37_748_736, 16_777_216, 4_096_000]


@pytest.mark.parametrize(
    ("label", "output_size"),
    [
        ("alexnet/conv1", (55, 55)),
        ("vgg19/conv5_1", (14, 14)),
        ("resnet50/conv1", (112, 112)),
        ("resnet50/layer4.0.conv2", (7, 7)),
        ("googlenet/3a.5x5", (28, 28)),
        ("mobilenet/depthwise2", (56, 56)),
        ("resnet20/layer3", (8, 8)),
        ("cifar_basic/conv1", (12, 12)),
        ("cifar_basic/conv2", (4, 4)),
        ("cifar_basic/conv3", (1, 1)),
        ("mnist_cnn/conv2", (24, 24)),
    ],
)
def test_conv_output_sizes(label, output_size):
    [shape] = select(label)
    assert shape.output_size == output_size


@pytest.mark.parametrize(
    ("label", "output_size"),
    [
        ("alexnet/pool1", (27, 27)),
        ("alexnet/pool5", (6, 6)),
        ("vgg19/pool5", (7, 7)),
        ("resnet50/maxpool", (56, 56)),
        ("googlenet/5a.pool", (7, 7)),
    ],
)
def test_pool_output_sizes(label, output_size):
    [shape] = select(label, POOL_SHAPES)
    assert shape.output_size == output_size


def test_each_layer_of_a_chain_fits_the_next():
    for network in ("cifar_basic", "mnist_cnn/conv[12]"):
        chain = select(network)
        for before, after in itertools.pairwise(chain):
            assert (before.OC, *before.output_size) == after.input_shape


def test_depthwise_flops_count_one_channel_per_filter():
    [shape] = select("mobilenet/depthwise1")
    assert shape.weight_shape == (32, 1, 3, 3)
    assert shape.flops == 2 * 112 * 112 * 32 * 9


@pytest.mark.parametrize("shapes", [CONV_SHAPES, POOL_SHAPES, LINEAR_SHAPES])
def test_labels_and_geometries_are_unique(shapes):
    assert len({shape.label for shape in shapes}) == len(shapes)
    fields = [tuple(vars(shape).items()) for shape in shapes]
    assert len({(f[0], *f[2:]) for f in fields}) == len(shapes)


def test_shapes_are_what_conv2d_takes():
    for shape in select("mnist_cnn") + select("cifar_basic"):
        image = np.zeros((2, *shape.input_shape), np.float32)
        weight = np.zeros(shape.weight_shape, np.float32)
        output = functional.conv2d(image, weight, **shape.arguments)
        assert output.shape == (2, shape.OC, *shape.output_size)


def test_select():
    assert select("ALEXNET/Conv2") == [CONV_SHAPES[1]]
    assert select("*") == list(CONV_SHAPES)
    assert len(select("resnet50")) == 23
    with pytest.raises(ValueError, match=r"'lenet'; known are alexnet, vgg19, resnet50"):
        select("lenet")
    with pytest.raises(ValueError, match=r"'alexnet/conv6'; known are alexnet/conv1, .*conv5$"):
        select("alexnet/conv6")
    with pytest.raises(ValueError, match=r"known are alexnet$"):
        select("vgg19", LINEAR_SHAPES)


# Timing


class Clock:
    """Time that passes only while a call runs; what happens is logged."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, *costs):
        costs = list(costs)

        def run():
            self.log.append(name)
            self.now += costs.pop(0) if len(costs) > 1 else costs[0]

        return run


def test_interleave_takes_turns():
    clock = Clock()
    calls = {"a": clock.call("a", 2.0), "b": clock.call("b", 4.0)}
    seconds = timing.interleave(
        calls, 2, minimum=1.0, clock=clock, settle=lambda: clock.log.append("-")
    )
    assert seconds == {"a": [2.0, 2.0], "b": [4.0, 4.0]}
    # Two calls each to find the repeats; then in every turn one that is not timed.
    assert clock.log == [*"aabb", *"-aa-bb" * 2]


def test_interleave_repeats_short_calls():
    clock = Clock()
    seconds = timing.interleave(
        {"a": clock.call("a", 0.25), "b": clock.call("b", 8.0)},
        3,
        minimum=1.5,
        clock=clock,
        settle=lambda: None,
    )
    assert seconds == {"a": [0.25] * 3, "b": [8.0] * 3}
    warm, searched, timed = 1, 1 + 2 + 4 + 8, 3 * (1 + 8)
    assert clock.log.count("a") == warm + searched + timed


def test_interleave_does_not_time_the_first_call():
    clock = Clock()
    first_is_slow = clock.call("a", 100.0, 1.0)
    assert timing.interleave(
        {"a": first_is_slow}, 1, minimum=1.0, clock=clock, settle=lambda: None
    ) == {"a": [1.0]}


def test_summarise():
    seconds = {"convkern": [1.0, 4.0, 2.0], "x": [3.0, 4.0, 4.0], "y": [0.5, 2.0, 4.0]}
    row = timing.summarise(seconds, 6 * 10**9, 12.0)
    assert row["ratios"] == {"x": 2.0, "y": 0.5, "best peer": 0.5}
    assert row["ratios_of_minima"] == {"x": 3.0, "y": 0.5, "best peer": 0.5}
    assert row["median_ms"] == {"convkern": 2000.0, "x": 4000.0, "y": 2000.0}
    assert row["minimum_ms"]["convkern"] == 1000.0
    assert (row["gflops"], row["share_of_peak"]) == (3.0, 0.25)
    assert row["seconds"] == seconds


def test_summarise_without_peers_and_flops():
    row = timing.summarise({"convkern": [1.0]}, 0, 12.0)
    assert row["ratios"] == {}
    assert row["gflops"] is row["share_of_peak"] is None


# The command


@pytest.fixture
def quiet(monkeypatch):
    """Make the machine look idle, whatever else runs on it."""
    monkeypatch.setattr(timing, "processor_seconds_of_others", lambda: 0.0)
    monkeypatch.setattr(timing, "fma_peak", lambda threads: 100.0 * threads)
    monkeypatch.setattr(checking, "_SCATTER", np.inf)
    monkeypatch.setattr(timing, "bandwidth", lambda threads: 10.0)
    monkeypatch.setattr(timing, "interleave", quick_interleave)


def quick_interleave(calls, rounds, interleave=timing.interleave):
    return interleave(calls, rounds, minimum=1e-4, settle=lambda: None)


def report(tmp_path, *arguments):
    """Run the command; return its exit code and what it wrote as JSON."""
    path = tmp_path / "report.json"
    code = bench.main([*arguments, "--rounds", "2", "--json", str(path)])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return code, json.loads(path.read_text(), parse_constant=refuse)


def test_main_for_real(torch, tmp_path, capsys):
    threads = torch.get_num_threads()
    plot = tmp_path / "ratios.png"
    arguments = ["--shapes", "mnist_cnn/conv1", "--threads", "1", "--layout", "both"]
    code, found = report(tmp_path, *arguments, "--plot", str(plot))
    assert code == 0
    assert torch.get_num_threads() == threads

    environment = found["environment"]
    assert environment["threads"] == 1
    assert environment["fma_peak_gflops"] > 0
    assert environment["command"].startswith("convkern bench --shapes mnist_cnn/conv1 ")
    assert {"python", "numpy", "convkern", "torch"} <= set(environment["versions"])
    assert [row["layout"] for row in found["rows"]] == ["nchw", "channels_last"]
    for row in found["rows"]:
        assert set(row["seconds"]) == {"convkern", "torch nchw", "torch channels_last"}
        assert row["ratios"]["same layout"] == row["ratios"][f"torch {row['layout']}"]
        assert all(len(times) == 2 and min(times) > 0 for times in row["seconds"].values())
        assert row["ratios"]["best peer"] == min(row["ratios"].values()) > 0
        assert row["flops"] == select("mnist_cnn/conv1")[0].flops
        assert max(row["errors"].values()) < 1e-5
    assert plot.read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert "channels_last" in printed
    assert "WRONG" not in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shapes", "cifar_basic", "--batch", "1", "3"],
        ["--shapes", "mnist_cnn/conv1", "--prepacked"],
        ["--shapes", "mobilenet/depthwise9"],
        ["--what", "backward", "--shapes", "cifar_basic", "--layout", "channels_last"],
        ["--what", "backward", "--shapes", "mobilenet/depthwise9", "--gradient", "weight"],
        ["--what", "backward", "--shapes", "resnet20/layer3.first", "--gradient", "input"],
        ["--what", "pool", "--shapes", "googlenet/5a.pool"],
        ["--what", "linear", "--shapes", "alexnet/fc8", "--batch", "2"],
    ],
    ids=" ".join,
)
def test_every_kind_of_work(torch, quiet, tmp_path, arguments):
    code, found = report(tmp_path, *arguments)
    assert code == 0
    assert all(row["ratios"] and not row["busy"] for row in found["rows"])
    [means] = found["geometric_means"].values()
    assert set(means) == set(found["rows"][0]["ratios"])


def test_gradients_count_their_work(torch, quiet, tmp_path):
    [shape] = select("cifar_basic/conv2")
    found = {}
    for gradient in ("all", "input", "weight"):
        arguments = ["--what", "backward", "--shapes", shape.label, "--gradient", gradient]
        _, result = report(tmp_path, *arguments)
        [row] = result["rows"]
        found[gradient] = row["flops"] / shape.flops
        assert {"reference", "torch nchw", "torch channels_last"} == set(row["errors"])
    assert found == {"all": 2, "input": 1, "weight": 1}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_wrong_gradient_is_found(torch, quiet, tmp_path, monkeypatch, index):
    def wrong(*arguments, right=functional.conv2d_backward, **keywords):
        gradients = right(*arguments, **keywords)
        gradients[index].flat[-1] += np.abs(gradients[index]).max() / 100
        return gradients

    monkeypatch.setattr(functional, "conv2d_backward", wrong)
    code, found = report(tmp_path, "--what", "backward", "--shapes", "cifar_basic/conv3")
    assert code == 1
    assert found["rows"][0]["wrong"] == ["reference", "torch nchw", "torch channels_last"]


def test_gradients_without_peers_are_compared_with_the_reference(quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_REFERENCE_FLOPS", 1.0)
    arguments = ["--what", "backward", "--shapes", "cifar_basic/conv3", "--batch", "3"]
    code, found = report(tmp_path, *arguments, "--against", "none")
    assert code == 0
    assert set(found["rows"][0]["errors"]) == {"reference"}


def test_training(torch, quiet, tmp_path):
    plot = tmp_path / "training.png"
    arguments = ["--what", "train", "--shapes", "cifar_basic", "--batch", "2", "--threads", "1"]
    code, found = report(tmp_path, *arguments, "--plot", str(plot))
    assert code == 0
    [row] = found["rows"]
    assert set(row["ratios"]) == {"torch nchw", "torch channels_last", "same layout", "best peer"}
    assert 0 < max(row["errors"].values()) < cases.TRAINING_TOLERANCE
    assert plot.exists()


def test_a_wrong_training_step_is_not_timed(torch, quiet, tmp_path, monkeypatch):
    right = functional.conv2d_backward

    def one_gradient_too_small(*arguments, **keywords):
        grad_input, grad_weight, grad_bias = right(*arguments, **keywords)
        return grad_input, 0.9 * grad_weight, grad_bias

    monkeypatch.setattr(functional, "conv2d_backward", one_gradient_too_small)
    arguments = ["--what", "train", "--shapes", "cifar_basic", "--batch", "2"]
    code, found = report(tmp_path, *arguments)
    assert code == 1
    assert found["rows"][0]["wrong"] == ["torch nchw", "torch channels_last"]


def test_what_is_random_is_compared_without_dropout(monkeypatch):
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    case = cases.training_case("alexnet", 2, "nchw")
    first, second = (case.call()[0] for _ in range(2))
    assert first != second
    one, other = case.twin(), case.twin()
    assert one.call()[0] == other.call()[0]
    assert one.twin is None


def test_the_twin_in_torch_computes_the_same(torch):
    from convkern import models
    from convkern.bench.torch_peers import as_module

    for name in ("resnet20", "cs231n_convnet", "cifar_advanced"):
        net = getattr(models, name)(rng=np.random.default_rng(0)).eval()
        images = np.random.default_rng(1).standard_normal((2, *models.INPUT_SHAPE[name]))
        images = images.astype(np.float32)
        module = as_module(net).eval()
        with torch.no_grad():
            expected = module(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(net(images), expected, rtol=1e-4, atol=1e-5)
        shapes = [parameter.data.shape for parameter in net.parameters()]
        assert [tuple(parameter.shape) for parameter in module.parameters()] == shapes


@pytest.mark.parametrize(
    ("peer", "columns"),
    [("torch-jit", {"torch jit", "torch jit-opt", "best peer"}), ("torch-compile", None)],
)
def test_compilers_of_torch(torch, quiet, tmp_path, monkeypatch, peer, columns):
    if columns is None:  # the compiler takes a minute: only its place is taken here
        columns = {"torch compile"}
        monkeypatch.setattr(torch, "compile", lambda module, options: module)
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    arguments = ["--what", "alexnet", "--batch", "1", "--prepacked", "--against", peer]
    code, found = report(tmp_path, *arguments)
    assert code == 0
    [row] = found["rows"]
    assert set(row["ratios"]) == columns
    assert (row["label"], row["layout"]) == ("alexnet, frozen", "channels_last")


def small_net(rng):
    return Sequential(
        ("features", Sequential(Conv2d(3, 4, 11, stride=4, rng=rng), ReLU(), MaxPool2d(3, 2))),
        ("flatten", Flatten()),
        ("classifier", Sequential(Dropout(), Linear(4 * 27 * 27, 10, rng=rng), ReLU())),
    )


def test_network(torch, quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    code, found = report(tmp_path, "--what", "alexnet", "--layout", "both", "--against", "torch")
    assert code == 0
    assert [(row["batch"], row["layout"]) for row in found["rows"]] == [
        (1, "nchw"),
        (1, "channels_last"),
        (16, "nchw"),
        (16, "channels_last"),
    ]
    multiply_adds = 55 * 55 * 4 * 363 + 4 * 27 * 27 * 10
    assert [row["flops"] for row in found["rows"][::2]] == [2 * multiply_adds, 32 * multiply_adds]


@pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
def test_peers_that_read_onnx(peer, quiet, tmp_path, monkeypatch):
    for package in ("onnx", peer):
        pytest.importorskip(package)
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    for arguments in (
        ["--shapes", "mnist_cnn/conv2", "mobilenet/depthwise8"],
        ["--what", "pool", "--shapes", "resnet50/maxpool"],
        ["--what", "alexnet", "--batch", "2"],
    ):
        code, found = report(tmp_path, "--against", peer, *arguments)
        assert code == 0
        assert all(set(row["ratios"]) == {peer} for row in found["rows"])


def one_element_off(result):
    result[-1, -1, -1, -1] += np.abs(result).max() / 100
    return result


def one_element_nan(result):
    result[-1, 0, 0, 0] = np.nan
    return result


def one_row_less(result):
    return result[:, :, 1:]


@pytest.mark.parametrize("spoil", [one_element_off, one_element_nan, one_row_less])
def test_a_wrong_kernel_is_not_timed(quiet, tmp_path, monkeypatch, capsys, spoil):
    right = functional.conv2d
    monkeypatch.setattr(functional, "conv2d", lambda *a, **k: spoil(right(*a, **k)))
    code, found = report(tmp_path, "--shapes", "mnist_cnn/conv1", "--against", "none")
    assert code == 1
    [row] = found["rows"]
    assert row["wrong"] == ["reference"]
    assert "seconds" not in row
    assert found["geometric_means"] == {}
    printed = capsys.readouterr().out
    assert "WRONG, not timed: error against reference" in printed
    assert "WRONG: 1 of 1 rows" in printed


def test_a_wrong_image_beyond_the_reference_is_found_by_a_peer(torch, quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_REFERENCE_FLOPS", 1.0)  # one image only, the last

    def first_image_wrong(*arguments, right=functional.conv2d, **keywords):
        result = right(*arguments, **keywords)
        result[0] = 0.0
        return result

    monkeypatch.setattr(functional, "conv2d", first_image_wrong)
    plot = tmp_path / "wrong.png"
    arguments = ["--shapes", "mnist_cnn/conv1", "--batch", "2", "--plot", str(plot)]
    code, found = report(tmp_path, *arguments)
    assert code == 1
    assert found["rows"][0]["wrong"] == ["torch nchw", "torch channels_last"]
    assert plot.exists()


def test_the_reference_computes_the_last_images(monkeypatch):
    batches = []

    def counted(image, *arguments, right=reference.conv2d, **keywords):
        batches.append(len(image))
        return right(image, *arguments, **keywords)

    monkeypatch.setattr(reference, "conv2d", counted)
    [shape] = select("mnist_cnn/conv1")
    case = cases.layer_case("conv2d", shape, 4, "nchw", prepacked=False)
    for budget in (0.5, 2.5, 100.0):
        monkeypatch.setattr(checking, "_REFERENCE_FLOPS", budget * shape.flops)
        assert checking.errors(case, {})["reference"] < 1e-5
    assert batches == [1, 2, 4]


def test_a_busy_machine_is_told_and_left_out(torch, quiet, tmp_path, monkeypatch, capsys):
    # Before and after each of the two rows, which take much less than 1000 s.
    used = iter([5.0, 5.0, 5.0, 1005.0])
    monkeypatch.setattr(timing, "processor_seconds_of_others", lambda: next(used))
    _, found = report(tmp_path, "--shapes", "cifar_basic/conv[23]", "--threads", "1")
    assert [row["busy"] for row in found["rows"]] == [False, True]
    assert found["geometric_means"] == {"nchw": pytest.approx(found["rows"][0]["ratios"])}
    assert "busy machine, not in the means: 1 of 2 rows" in capsys.readouterr().out


def test_times_that_scatter_tell_of_a_busy_machine(torch, quiet, tmp_path, monkeypatch):
    times = {"convkern": [1.0, 1.1, 1.2], "torch nchw": [1.0, 1.6, 1.6]}
    monkeypatch.setattr(timing, "interleave", lambda calls, rounds: times)
    for limit, busy in ((1.7, False), (1.5, True)):
        monkeypatch.setattr(checking, "_SCATTER", limit)
        _, found = report(tmp_path, "--shapes", "cifar_basic/conv3", "--threads", "1")
        assert found["rows"][0]["busy"] is busy


def test_processor_seconds_of_others(monkeypatch):
    stat = "cpu  100 10 20 9999 50 3 4 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    monkeypatch.setattr(timing.time, "process_time", lambda: 0.5)
    monkeypatch.setattr(timing.os, "sysconf", lambda name: 100)
    with monkeypatch.context() as patch:
        patch.setattr(timing.Path, "read_text", lambda path, encoding: stat)
        assert timing.processor_seconds_of_others() == pytest.approx(1.42 - 0.5)

    def refuse(path, encoding):
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(timing.Path, "read_text", refuse)
        assert timing.processor_seconds_of_others() == 0.0


def test_a_losing_row_is_shown_as_losing(capsys):
    row = {
        "label": "net/layer",
        "batch": 1,
        "layout": "nchw",
        "wrong": [],
        "busy": False,
        **timing.summarise({"convkern": [0.002], "peer": [0.001]}, 10**6, 10.0),
    }
    assert reporting.line(row).split() == [
        "net/layer",
        "1",
        "nchw",
        "2.000",
        "0.5",
        "5",
        "0.50",
        "(0.50)",
    ]
    assert "slower than a peer: 1 of 1 rows" in reporting.conclusion([row])
    assert "same layout" not in reporting.conclusion([row])
    assert "slower" not in reporting.conclusion([row | {"busy": True}])


def test_like_for_like_is_torch_in_the_same_layout(capsys):
    seconds = {"convkern": [2.0], "torch nchw": [1.0], "torch channels_last": [4.0]}
    for layout, ratio in (("nchw", 0.5), ("channels_last", 2.0)):
        row = timing.summarise(seconds, 0, 1.0, layout) | {"layout": layout}
        assert row["ratios"]["same layout"] == ratio
        assert row["ratios"]["best peer"] == 0.5
        text = reporting.conclusion([row | {"wrong": [], "busy": False}])
        assert ("slower than torch in the same layout" in text) == (ratio < 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--against", "numpy"],
            "known peers are torch, torch-jit, torch-compile, onnxruntime, openvino; got",
        ),
        (["--shapes", "lenet"], "argument --shapes: no shape is named 'lenet'"),
        (["--what", "pool", "--shapes", "mnist_cnn"], "no shape is named 'mnist_cnn'"),
        (["--what", "alexnet", "--shapes", "vgg19"], "--shapes does not go with --what alexnet"),
        (["--what", "pool", "--prepacked"], "--prepacked goes with --what forward or alexnet only"),
        (["--gradient", "input"], "--gradient goes with --what backward only"),
        (
            ["--what", "train", "--shapes", "lenet"],
            "no network is named 'lenet'; known are alexnet",
        ),
        (["--what", "train", "--against", "none"], "--what train needs torch"),
        (
            ["--what", "backward", "--against", "openvino"],
            "--against openvino does not go with --what backward",
        ),
        (["--batch", "0"], "must be at least 1, got 0"),
        (["--threads", "0"], "number of threads must be at least 1, got 0"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
        (["--plot", "x.png", "--against", "none"], "--plot draws ratios to peers"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("peer", "package"), [("torch", "torch"), ("openvino", "onnx")])
def test_a_missing_peer_is_an_error_only_if_named(
    quiet, tmp_path, monkeypatch, capsys, peer, package
):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["--shapes", "cifar_basic/conv3"]
    with pytest.raises(SystemExit) as stop:
        bench.main([*arguments, "--against", peer])
    assert stop.value.code == 2
    expected = f"--against {peer}: the package {package!r} is not installed"
    assert expected in capsys.readouterr().err

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    code, found = report(tmp_path, *arguments)
    assert code == 0
    assert found["rows"][0]["ratios"] == {}


def test_labels_are_made_of_network_and_name():
    assert LayerShape("net", "layer").label == "net/layer"
