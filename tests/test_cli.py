"""The command line: what it prints, what it refuses, and its exit codes."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import convkern
from convkern import bench, models
from convkern.checkpoint import save_weights
from convkern.cli import main
from convkern.functional import softmax
from convkern.images import load_image, sample_photo
from convkern.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("safetensors")

pytestmark = pytest.mark.once


@pytest.fixture
def small(monkeypatch):
    """Stand in for AlexNet: the same names, images and variants, a thousandth of the work."""

    def alexnet(num_classes=1000, variant="article", output="logits", *, rng=None):
        rng = rng or np.random.default_rng()
        channels = {"article": 4, "torchvision": 4, "2012": 5}[variant]
        features = Sequential(Conv2d(3, channels, 32, stride=32, rng=rng), ReLU(), MaxPool2d(3, 2))
        return Sequential(
            ("features", features),
            ("flatten", Flatten()),
            ("classifier", Sequential(Linear(9 * channels, num_classes, rng=rng))),
        )

    monkeypatch.setattr(models, "alexnet", alexnet)
    return alexnet


@pytest.fixture
def photos(tmp_path):
    """Write three small photos of one colour each."""
    paths = []
    for color in ("red", "green", "blue"):
        paths.append(str(tmp_path / f"{color}.png"))
        Image.new("RGB", (30, 20), color).save(paths[-1])
    return paths


def run(capsys, *arguments):
    """Return what a successful command printed."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return printed.out


def error(capsys, *arguments):
    """Return the one line that a failing command printed."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("convkern: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


# --- alexnet


def test_alexnet_on_the_sample_photo(capsys):
    out = run(capsys, "alexnet", "--threads", 1)
    lines = out.splitlines()
    assert "62,378,344 parameters, random weights (seed 0)" in lines[0]
    assert "1x3x227x227" in lines[1]
    assert "1 thread," in lines[1]
    assert "sample photo" in out
    assert "untrained" in out
    assert sample_photo() in lines
    assert max(len(line) for line in lines if line != sample_photo()) <= 100
    header = next(line for line in lines if line.startswith("name"))
    first = next(line for line in lines if line.startswith("features.0"))
    assert header.split() == ["name", "layer", "output", "parameters", "ms", "GFLOP/s"]
    assert "Conv2d(3, 96, 11, stride=4)+ReLU" in first
    assert "96x55x55" in first
    assert "34,944" in first
    assert sum(line.startswith("total: ") for line in lines) == 1
    assert sum(line.startswith("frozen: ") for line in lines) == 1
    assert sum("%  class " in line for line in lines) == 5


@pytest.mark.parametrize("variant", models.ALEXNET_VARIANTS)
def test_alexnet_lines_fit(capsys, photos, variant):
    lines = run(capsys, "alexnet", photos[0], "--variant", variant, "--top", 1).splitlines()
    assert max(len(line) for line in lines if line != photos[0]) <= 100
    assert not any("sample photo" in line for line in lines)


def test_alexnet_figure(capsys, small, photos, tmp_path):
    names = ["cost: $5 and $6", "\u732b", "x" * 99, "d", "e", "f", "g", "h", "i", "j"]
    state = small(10).state_dict()
    state["features.0.weight"][1] = 0
    save_weights(tmp_path / "w", state)
    (tmp_path / "labels").write_text("\n".join(names), encoding="utf-8")
    files = ("--weights", tmp_path / "w", "--labels", tmp_path / "labels", "--top", 10)
    for variant, extension in zip(models.ALEXNET_VARIANTS, ("png", "svg", "pdf"), strict=True):
        if variant == "2012":
            files = ()  # has other channels: random weights
        path = tmp_path / f"figure.{extension}"
        out = run(capsys, "alexnet", photos[0], "--figure", path, "--variant", variant, *files)
        assert out.endswith(f"\nfigure: {path}\n")
        assert path.stat().st_size > 5000
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size[0] == 1920
    text = (tmp_path / "figure.svg").read_text()
    assert "features.0  Conv2d + ReLU" in text
    report = json.loads(run(capsys, "alexnet", photos[0], "--figure", path, "--json"))
    assert report["figure"] == str(path)


def test_figures_that_cannot_be(capsys, small, photos, tmp_path, monkeypatch):
    message = error(capsys, "alexnet", *photos, "--figure", tmp_path / "f.png")
    assert "--figure draws one image, got 3" in message
    message = error(capsys, "alexnet", photos[0], "--figure", tmp_path / "f.xyz")
    assert "xyz" in message and "png" in message
    message = error(capsys, "alexnet", photos[0], "--figure", tmp_path / "none" / "f.png")
    assert "No such file" in message
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = error(capsys, "alexnet", photos[0], "--figure", tmp_path / "f.png")
    assert 'pip install "convkern[app]"' in message


def test_alexnet_json(capsys, small, photos):
    out = run(capsys, "alexnet", *photos, "--json", "--seed", 3, "--top", 4, "--threads", 2)
    report = json.loads(out)
    assert report["input_shape"] == [3, 3, 227, 227]
    assert (report["weights"], report["seed"], report["threads"]) == (None, 3, 2)
    assert report["parameters"] == small().num_parameters()
    assert [step["name"] for step in report["steps"]] == [
        "features.0",
        "features.2",
        "flatten",
        "classifier.0",
    ]
    conv = report["steps"][0]
    assert conv["output_shape"] == [3, 4, 7, 7]
    assert conv["flops"] == 2 * 3 * (4 * 7 * 7 * 3 * 32 * 32)
    assert conv["gflops_per_s"] == pytest.approx(conv["flops"] / conv["ms"] / 1e6)
    assert report["total"]["ms"] == pytest.approx(sum(step["ms"] for step in report["steps"]))
    assert report["total"]["images_per_s"] == pytest.approx(3e3 / report["total"]["ms"])
    assert report["frozen"]["images_per_s"] == pytest.approx(3e3 / report["frozen"]["ms"])

    net = small(rng=np.random.default_rng(3)).eval()
    batch = np.stack([load_image(path, 227) for path in photos])
    expected = softmax(net(batch))
    for image, path, row in zip(report["images"], photos, expected, strict=True):
        assert image["path"] == path
        assert [entry["class"] for entry in image["top"]] == list(np.argsort(-row)[:4])
        for entry in image["top"]:
            assert entry["probability"] == pytest.approx(float(row[entry["class"]]))
            assert entry["label"] is None


def test_alexnet_with_weights_and_labels(capsys, small, photos, tmp_path):
    net = small(7, rng=np.random.default_rng(1)).eval()
    save_weights(tmp_path / "w", net.state_dict())
    names = [f"name {index}" for index in range(7)]
    (tmp_path / "text").write_text("\n".join(names) + "\n")
    (tmp_path / "list").write_text(json.dumps(names))
    (tmp_path / "map").write_text(
        json.dumps({str(i): [f"n{i}", name] for i, name in enumerate(names)})
    )
    (tmp_path / "plain").write_text(json.dumps(dict(enumerate(names))))
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode())
    expected = np.argsort(-net(load_image(photos[0], 227)[None])[0])[:5]
    for labels in ("text", "list", "map", "plain", "bom"):
        files = ("--weights", tmp_path / "w", "--labels", tmp_path / labels)
        report = json.loads(run(capsys, "alexnet", photos[0], *files, "--json"))
        assert (report["classes"], report["seed"]) == (7, None)
        assert [e["class"] for e in report["images"][0]["top"]] == list(expected)
        assert [e["label"] for e in report["images"][0]["top"]] == [names[i] for i in expected]
    out = run(capsys, "alexnet", photos[0], *files, "--top", 99)
    assert f"weights from {tmp_path / 'w'}" in out
    assert "untrained" not in out
    assert out.count("class ") == 7
    assert "name 6" in out


def test_alexnet_with_torch_weights(capsys, small, photos, tmp_path, torch):
    state = small(7, rng=np.random.default_rng(1)).state_dict()
    torch.save({n: torch.from_numpy(a) for n, a in state.items()}, tmp_path / "w.pth")
    save_weights(tmp_path / "w", state)
    reports = [
        json.loads(run(capsys, "alexnet", photos[0], "--json", "--weights", tmp_path / name))
        for name in ("w.pth", "w")
    ]
    assert reports[0]["images"] == reports[1]["images"]


def test_weights_that_do_not_fit(capsys, small, photos, tmp_path):
    state = small().state_dict()
    file = tmp_path / "w"
    save_weights(file, {f"module.{name}": array for name, array in state.items()})
    message = error(capsys, "alexnet", photos[0], "--weights", file)
    assert f"{file} does not fit --variant article" in message
    assert "missing features.0.weight" in message
    save_weights(file, state)
    message = error(capsys, "alexnet", photos[0], "--weights", file, "--variant", "2012")
    assert "--variant 2012" in message
    assert "shape" in message
    state["features.0.bias"][0] = np.nan
    save_weights(file, state)
    assert "not finite" in error(capsys, "alexnet", photos[0], "--weights", file)
    file.write_bytes(b"PK\x03\x04")
    assert "damaged" in error(capsys, "alexnet", photos[0], "--weights", file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"one\ntwo\n",
        b"[1, 2, 3]",
        b'["a", "b"',
        b"[" * 100_000,
        b'["a", "b", "c", "d"]',
        b'{"0": "a", "1": "b", "3": "c"}',
        b'{"0": "a", "1": [], "2": "c"}',
        b"\xff\xfe\x00",
    ],
)
def test_labels_that_do_not_fit(capsys, small, photos, tmp_path, content):
    save_weights(tmp_path / "w", small(3).state_dict())
    (tmp_path / "labels").write_bytes(content)
    files = ("--weights", tmp_path / "w", "--labels", tmp_path / "labels")
    assert "label" in error(capsys, "alexnet", photos[0], *files)


def test_alexnet_on_files_that_are_no_photos(capsys, small, photos, tmp_path):
    missing = tmp_path / "missing.jpg"
    message = error(capsys, "alexnet", photos[0], missing)
    assert message == f"convkern: error: {missing}: No such file or directory\n"
    (tmp_path / "text").write_text("hello")
    assert "is not an image" in error(capsys, "alexnet", tmp_path / "text")
    assert "not a regular file" in error(capsys, "alexnet", tmp_path)


def test_alexnet_without_the_extra(capsys, small, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert 'pip install "convkern[app]"' in error(capsys, "alexnet", photos[0])
    monkeypatch.setitem(sys.modules, "matplotlib.cbook", None)
    assert 'pip install "convkern[app]"' in error(capsys, "alexnet")


# --- the other commands


def test_summary(capsys):
    out = run(capsys, "summary", "alexnet")
    assert out == str(models.alexnet().summary((3, 227, 227))) + "\n"
    out = run(
        capsys, "summary", "alexnet", "--variant", "torchvision", "--input-shape", "3,260,250"
    )
    assert out == str(models.alexnet(variant="torchvision").summary((3, 260, 250))) + "\n"
    assert "features.0" in error(capsys, "summary", "alexnet", "--input-shape", "3,9,9")


@pytest.mark.parametrize("name", ["mnist_cnn", "resnet20", "googlenet", "cifar_basic"])
def test_summary_of_every_network(capsys, name):
    net = getattr(models, name)()
    assert run(capsys, "summary", name) == f"{net.summary(models.INPUT_SHAPE[name])}\n"
    assert f"--variant is for alexnet, {name} has none" in error(
        capsys, "summary", name, "--variant", "2012"
    )


def test_info(capsys):
    report = json.loads(run(capsys, "info", "--json"))
    assert report == convkern.show_config("dicts")
    assert report["instruction_set"] in run(capsys, "info")


def test_bench_gets_its_arguments(monkeypatch):
    calls = []
    monkeypatch.setattr(bench, "main", lambda argv: calls.append(argv) or 1)
    assert main(["bench", "--json", "x", "--rounds", "2"]) == 1
    assert calls == [["--json", "x", "--rounds", "2"]]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["alexnet", "--top", "0"], "--top"),
        (["alexnet", "--top", "many"], "--top"),
        (["alexnet", "--threads", "-1"], "--threads"),
        (["alexnet", "--threads", "100000"], "1024"),
        (["alexnet", "--variant", "2013"], "torchvision"),
        (["alexnet", "--seed", "-1"], "non-negative"),
        (["alexnet", "--what"], "--what"),
        (["summary", "resnet"], "resnet18"),
        (["summary", "alexnet", "--input-shape", "3,227"], "C,H,W"),
        (["summary", "alexnet", "--input-shape", "3,227,x"], "--input-shape"),
        (["summary", "alexnet", "--input-shape", "3,0,227"], "at least 1"),
    ],
)
def test_bad_arguments(capsys, arguments, match):
    assert match in error(capsys, *arguments)


@pytest.mark.parametrize("command", [[], ["alexnet"], ["summary"], ["info"], ["bench"]])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: convkern" in capsys.readouterr().out


# --- the process


def test_interrupt(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convkern, "show_config", interrupted)
    assert main(["info"]) == 130


def test_the_program():
    command = [sys.executable, "-m", "convkern"]
    done = subprocess.run([*command, "summary", "alexnet"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "62,378,344 parameters" in done.stdout
    done = subprocess.run([*command, "alexnet", "a\nb"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convkern: error: a b: No such file or directory\n"


@pytest.mark.skipif(os.name != "posix", reason="needs signals and pipes")
def test_the_program_is_stopped():
    command = [sys.executable, "-m", "convkern", "info"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")

    code = "import os, signal, sys, convkern.cli as cli\n"
    code += "cli.convkern.show_config = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
    code += "sys.exit(cli.main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_a_terminal_that_cannot_show_a_name(tmp_path):
    code = "import sys, convkern.cli as cli; sys.exit(cli.main(['alexnet', sys.argv[1]]))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    photo = tmp_path / "grün.png"
    Image.new("RGB", (30, 20), "green").save(photo)
    done = subprocess.run(
        [sys.executable, "-c", code, str(photo)], capture_output=True, env=environment
    )
    assert done.returncode == 0
    assert rb"gr\xfcn.png" in done.stdout


def test_help_imports_no_extra():
    code = "import sys, convkern.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert not modules & {"PIL", "matplotlib", "safetensors", "torch", "zipfile", "convkern.bench"}
