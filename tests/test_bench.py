"""The shape list, and the command that times the kernels."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from convkern import _kernels, bench, functional, reference
from convkern.bench import cases, checking, timing, torch_peers
from convkern.bench import report as reporting
from convkern.bench.peers import HELD
from convkern.nn import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from convkern.shapes import CONV_SHAPES, LINEAR_SHAPES, POOL_SHAPES, LayerShape, select

pytestmark = pytest.mark.once

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
    # What ran before settles; two calls each find the repeats; in every turn one is not timed.
    assert clock.log == [*"-" * 10, *"aabb", *"-aa-bb" * 2]


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
    if sys.platform == "linux":
        assert set(row["memory_mb"]) == {"convkern", "torch nchw", "torch channels_last"}
    assert plot.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
def test_memory_of_an_operator(quiet, tmp_path, capsys):
    """A pooling takes its maxima and their indices, of 4 and 8 bytes each."""
    pool = ["--what", "pool", "--shapes", "vgg19/pool1", "--batch", "4", "--against", "none"]
    code, found = report(tmp_path, *pool, "--memory")
    [row] = found["rows"]
    results = 4 * 64 * 112 * 112 * (4 + 8)
    assert code == 0 and row["memory_mb"]["convkern"] == pytest.approx(results / 1e6, rel=0.2)
    assert "vgg19/pool1, N = 4: MB at most: convkern" in capsys.readouterr().out
    assert report(tmp_path, *pool)[1]["rows"][0]["memory_mb"] == {}


def test_batches_of_training():
    assert {name: n for name, n in cases.TRAINING_BATCH.items() if n != 16} == {
        "alexnet": 32,
        "resnet18": 8,
        "resnet20": 64,
        "mnist_cnn": 64,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
def test_peak_memory():
    assert timing.peak_memory(lambda: np.ones(2**22).sum()) == pytest.approx(2**25 / 1e6, rel=0.1)
    assert timing.peak_memory(lambda: None) < 5


def test_isa_starts_again_in_the_right_surroundings(quiet, tmp_path, monkeypatch, capsys):
    started = []

    def run(command, env, check):
        started.append((command, env))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(bench.subprocess, "run", run)
    arguments = ["--isa", "avx2", "--shapes", "mnist_cnn/conv1", "--against", "none"]
    for name in HELD["avx2"]:
        monkeypatch.delenv(name, raising=False)
    assert bench.main(arguments) == 1
    [(command, environment)] = started
    assert command[1:] == ["-m", "convkern", "bench", *arguments]
    assert environment["CONVKERN_ISA"] == environment["ATEN_CPU_CAPABILITY"] == "avx2"
    assert environment.items() >= os.environ.items()

    for name, value in HELD["avx2"].items():
        monkeypatch.setenv(name, value)
    assert bench.main([*arguments, "--rounds", "1"]) == 0
    assert len(started) == 1
    assert f"Instruction sets: convkern {_kernels.isa}" in capsys.readouterr().out


def test_the_header_tells_to_what_torch_is_held(torch, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    name = torch_peers.instruction_set()
    assert name == torch.backends.cpu.get_cpu_capability().lower()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert torch_peers.instruction_set() == f"{name} (oneDNN at most AVX2)"


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


@pytest.mark.parametrize(
    ("peer", "columns"),
    [("torch-jit", {"torch jit", "torch jit-opt", "best peer"}), ("torch-compile", None)],
)
def test_compilers_of_torch(torch, quiet, tmp_path, monkeypatch, peer, columns):
    if columns is None:  # the compiler takes a minute: only its place is taken here
        columns = {"torch compile"}
        monkeypatch.setattr(torch, "compile", lambda module, options: module)
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    arguments = ["--what", "alexnet", "--batch", "1", "--against", peer]
    code, found = report(tmp_path, *arguments)
    assert code == 0
    assert [row["label"] for row in found["rows"]] == ["alexnet", "alexnet, frozen"]
    for row in found["rows"]:
        assert set(row["ratios"]) == columns
        assert row["layout"] == "channels_last"


def small_net(rng):
    return Sequential(
        ("features", Sequential(Conv2d(3, 4, 11, stride=4, rng=rng), ReLU(), MaxPool2d(3, 2))),
        ("flatten", Flatten()),
        ("classifier", Sequential(Dropout(), Linear(4 * 27 * 27, 10, rng=rng), ReLU())),
    )


def test_network(torch, quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    plot = tmp_path / "network.png"
    arguments = ["--what", "alexnet", "--layout", "both", "--batch", "1", "3"]
    code, found = report(tmp_path, *arguments, "--against", "torch", "--plot", str(plot))
    assert code == 0
    assert [(row["batch"], row["layout"], row["frozen"]) for row in found["rows"]] == [
        *itertools.product((1, 3), ("nchw", "channels_last"), (False, True))
    ]
    multiply_adds = 55 * 55 * 4 * 363 + 4 * 27 * 27 * 10
    assert [row["flops"] for row in found["rows"][::4]] == [2 * multiply_adds, 6 * multiply_adds]
    assert set(found["geometric_means"]) == {
        *("nchw", "channels_last", "nchw, frozen", "channels_last, frozen")
    }
    # The two forms took turns with the same calls of the peers.
    plain, frozen = (row["seconds"] for row in found["rows"][:2])
    assert plain["torch nchw"] == frozen["torch nchw"]
    assert plain["convkern"] != frozen["convkern"]
    assert plot.exists()


def test_a_wrong_frozen_net_is_not_timed_but_the_plain_one_is(
    torch, quiet, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    freeze = cases.freeze
    monkeypatch.setattr(cases, "freeze", lambda net: lambda x: 1.01 * freeze(net)(x))
    code, found = report(tmp_path, "--what", "alexnet", "--batch", "2", "--against", "torch")
    assert code == 1
    plain, frozen = found["rows"]
    assert plain["wrong"] == [] and plain["ratios"]
    assert frozen["wrong"] == ["reference", "torch nchw", "torch channels_last"]
    assert "seconds" not in frozen
    printed = capsys.readouterr().out
    assert "alexnet, N = 2: " in printed
    assert "alexnet, frozen, N = 2: " not in printed


def test_remarks_name_the_best_peer():
    seconds = {"convkern": [2.0], "torch nchw": [8.0], "torch channels_last": [6.0], "x": [5.0]}
    row = {
        "label": "net",
        "batch": 4,
        "wrong": [],
        "network": True,
        "memory_mb": {"convkern": 7.4, "x": 9.0},
        **timing.summarise(seconds, 0, 1.0, "nchw"),
    }
    memory = "MB at most: convkern 7.4, x 9.0"
    assert reporting.remarks(row) == (
        f"  net, N = 4: 2.50 to the best peer, x; 4.00 to torch eager; {memory}"
    )
    assert reporting.remarks(row | {"network": False}) == f"  net, N = 4: {memory}"
    assert reporting.remarks(row | {"network": False, "memory_mb": {}}) == ""
    assert reporting.remarks(row | {"wrong": ["x"]}) == ""


@pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
def test_peers_that_read_onnx(peer, quiet, tmp_path, monkeypatch):
    for package in ("onnx", peer):
        pytest.importorskip(package)
    monkeypatch.setattr(cases.models, "alexnet", small_net)
    for arguments in (
        ["--shapes", "mnist_cnn/conv2", "mobilenet/depthwise8"],
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
        assert checking.errors(case, case.call, {})["reference"] < 1e-5
    assert batches == [1, 2, 4]


def test_gradients_of_large_batches_are_compared_on_small_ones(torch, monkeypatch):
    batches = []

    def counted(grad_output, *arguments, right=reference.conv2d_backward, **keywords):
        batches.append(len(grad_output))
        return right(grad_output, *arguments, **keywords)

    monkeypatch.setattr(reference, "conv2d_backward", counted)
    [shape] = select("cifar_basic/conv3")
    case = cases.backward_case(shape, 4, "channels_last", "weight")
    peers = {"peer": case.call}
    for budget in (0.5, 2.5, 100.0):
        monkeypatch.setattr(checking, "_REFERENCE_FLOPS", budget * shape.flops)
        found = checking.errors(case, case.call, peers)
        assert 0 < found["reference"] < 1e-5
        assert found["peer"] == 0
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
    times = {
        "convkern": [1.0, 1.1, 1.2],
        "torch nchw": [1.0, 1.6, 1.6],
        "torch channels_last": [1.0, 1.0, 1.0],
    }
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
        "frozen": False,
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
        text = reporting.conclusion([row | {"wrong": [], "busy": False, "frozen": False}])
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
        (["--what", "alexnet", "--prepacked"], "--prepacked goes with --what forward only"),
        (["--isa", "avx2", "--against", "openvino"], "openvino cannot be held to --isa avx2"),
        (["--isa", "sse"], "invalid choice: 'sse'"),
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
