"""The commands train, evaluate and predict; what several processes do over MPI."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import cifar10, cifar100, idx, tar, write_mnist
from test_data import rewrite, special
from test_networks import SMALL, large_once

from convkern import data, models
from convkern.checkpoint import load_training, load_weights, save_training, save_weights
from convkern.cli import main
from convkern.data import Dataset
from convkern.training import recipe
from convkern.training.workers import Alone

pytestmark = pytest.mark.once

CHECKPOINT = "checkpoint.safetensors"


def run(capsys, *arguments):
    """Return what a successful command printed."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return printed.out


def error(capsys, *arguments):
    """Return the one line that a failing command printed on stderr."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("convkern: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def same_weights(one, other):
    first, second = load_weights(one / CHECKPOINT), load_weights(other / CHECKPOINT)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], strict=True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return the folder of a run as it is by default, and what it printed."""
    folder = tmp_path_factory.mktemp("digits")
    command = [sys.executable, "-m", "convkern", "train", "digits", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return folder, done.stdout


# --- train


def test_digits(digits):
    folder, out = digits
    lines = out.splitlines()
    assert lines[0].startswith("digits_cnn, 30,890 parameters, on digits: 1,437 images")
    assert lines[2].startswith("epoch  1/20  loss ")
    right = float(lines[-2].partition("%")[0])
    assert right >= 98
    assert lines[-2].endswith("of 360 held-out images are right")
    assert set(os.listdir(folder)) == {
        *(CHECKPOINT, "log.csv", "curves.png", "confusion.png", "filters.png")
    }
    for name in ("curves", "confusion", "filters"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("L").getcolors()) > 50
    log = (folder / "log.csv").read_text().splitlines()
    assert len(log) == 21
    assert log[0].endswith("accuracy of 8,accuracy of 9")


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_stopped_and_resumed(capsys, tmp_path, no_pictures):
    options = ["train", "digits", "--epochs", "5"]
    command = [sys.executable, "-m", "convkern", *options, "--output", str(tmp_path / "b")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/5"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    folder = tmp_path / "b"
    assert out.endswith(f"stopped, saved in {folder}; go on with the same command and --resume\n")
    message = error(capsys, *options, "--output", tmp_path / "b")
    assert "is there already" in message
    out = run(capsys, *options, "--output", tmp_path / "b", "--resume")
    assert "epoch 5/5" in out
    assert "epoch 2/5" not in out
    run(capsys, *options, "--output", tmp_path / "a")
    same_weights(tmp_path / "a", tmp_path / "b")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Write small data sets in their published forms, each into a folder."""
    root = tmp_path_factory.mktemp("archives")
    for name, (_, members) in (("cifar10", cifar10(2)), ("cifar100", cifar100())):
        for folder, content in members.items():
            form = "python" if "py" in folder else "binary"
            (root / f"{name}-{form}").mkdir()
            archive = f"{name.replace('r', 'r-')}-{form}.tar.gz"
            (root / f"{name}-{form}" / archive).write_bytes(tar({folder: content}))
    write_mnist(root / "mnist", images=12)
    write_mnist(root / "fashion_mnist", images=12)
    rng = np.random.default_rng(0)
    for name, color in (("red", 0), ("green", 1)):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 90, (40, 50, 3), np.uint8)
            pixels[..., color] += 150
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    return root


@pytest.fixture
def small(monkeypatch):
    """Make the networks for ImageNet fast: small images, small linear layers."""
    monkeypatch.setattr(models, "_HIDDEN", 64)
    for name, side in SMALL.items():
        monkeypatch.setitem(models.INPUT_SHAPE, name, (3, side, side))
        monkeypatch.setitem(models.INPUT_SIZE, name, side)


def named(archives, folder):
    """Return the arguments that name a data set in `archives`."""
    if folder == "photos":
        return (archives / folder,)
    return folder.partition("-")[0], "--data", archives / folder


@pytest.mark.parametrize(
    ("model", "folder", "says"),
    [
        large_once(*values)
        for values in [
            ("cifar_basic", "cifar10-python", "images of 32x32, windows of 28x28, with 3 channels"),
            ("cifar_advanced", "cifar10-python", "images of 32x32, with 3 channels"),
            ("resnet56", "cifar10-python", ""),
            ("vgg11", "cifar10-python", ""),
            ("digits_cnn", "cifar10-binary", "images of 32x32, windows of 8x8, in grey"),
            ("resnet20", "cifar10-binary", ""),
            ("alexnet", "cifar10-binary", "images of 32x32, enlarged to 227x227, with 3 channels"),
            ("cs231n_convnet", "cifar100-python", ""),
            ("resnet18", "cifar100-python", ""),
            ("cifar_advanced", "cifar100-binary", ""),
            ("googlenet", "cifar100-binary", "images of 32x32, enlarged to 64x64, with 3 channels"),
            ("mnist_cnn", "mnist", "images of 28x28, in grey"),
            ("resnet32", "mnist", "images of 28x28, enlarged to 32x32, with 3 channels"),
            ("vgg16", "mnist", ""),
            ("mnist_cnn", "fashion_mnist", "images of 28x28, in grey"),
            ("cifar_advanced", "photos", "images of 32x32, with 3 channels"),
            ("resnet50", "photos", "images of 64x64, with 3 channels"),
            ("vgg19", "photos", ""),
        ]
    ],
)
def test_every_data_set_and_model(
    capsys, tmp_path, archives, small, no_pictures, model, folder, says
):
    dataset = named(archives, folder)
    command = ("train", *dataset, "--model", model, "--output", tmp_path / "run", "--lr", 1e-3)
    out = run(capsys, *command, "--epochs", 1)
    assert says in out
    assert "epoch 1/1" in out
    assert "epoch 2/2" in run(capsys, *command, "--epochs", 2, "--resume")
    report = json.loads(run(capsys, "evaluate", tmp_path / "run", *dataset, "--json"))
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()[-1].split(",")
    assert (report["loss"], report["accuracy"]) == (float(log[5]), float(log[6]))
    photo = archives / "photos" / "red" / "0.png"
    (answer,) = json.loads(run(capsys, "predict", tmp_path / "run", photo, "--json"))
    assert {entry["label"] for entry in answer["top"]} <= set(report["classes"])


def write_cifar10(folder, name, content):
    """Write CIFAR-10 with another content of one file."""
    (folder / "cifar-10-python.tar.gz").write_bytes(tar(rewrite(cifar10()[1], name, content)))


def cut_cifar100(folder):
    """Write a half of the archive."""
    whole = gzip.compress(tar(cifar100()[1]))
    (folder / "cifar-100-python.tar.gz").write_bytes(whole[: len(whole) // 2])


def link_out(folder):
    """Write an archive with a link out of it."""
    members = {"cifar-10-batches-bin": cifar10()[1]["cifar-10-batches-bin"]}
    link = special("cifar-10-batches-bin/x", tarfile.SYMTYPE, link="/etc/passwd")
    (folder / "cifar-10-binary.tar.gz").write_bytes(tar(members, [link]))


def write_photo(folder, content):
    """Write a folder of photos with a bad one."""
    for name, wrong in (("cat", content), ("dog", None)):
        (folder / name).mkdir()
        for number in range(5):
            Image.new("RGB", (9, 9)).save(folder / name / f"{number}.png")
        if wrong:
            (folder / name / "2.png").write_bytes(wrong)


@pytest.mark.parametrize(
    ("dataset", "write", "match"),
    [
        ("cifar10", partial(write_cifar10, name="test_batch", content=b"cos\nsystem\n."), "system"),
        ("cifar10", partial(write_cifar10, name="test_batch.bin", content=b"\x0a"), "records"),
        ("cifar10", link_out, "no regular file"),
        ("cifar100", cut_cifar100, "damaged"),
        ("mnist", partial(write_mnist, train_images=b"\0\0\x08\x03" + b"\xff" * 12), "train"),
        ("mnist", partial(write_mnist, t10k_labels=idx(np.full(3, 10, np.uint8))), "label 10"),
        ("photos", partial(write_photo, content=b"<html>"), "2.png is not an image"),
        ("photos", partial(write_photo, content=b"\x89PNG\r\n\x1a\n"), "2.png"),
    ],
)
def test_bad_data_is_refused(capsys, tmp_path, dataset, write, match):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    source = (tmp_path / "data",) if dataset == "photos" else (dataset, "--data", tmp_path / "data")
    model = ("--model", "cifar_basic", "--output", tmp_path / "run")
    message = error(capsys, "train", *source, *model)
    assert match in message
    assert str(tmp_path / "data") in message
    assert not (tmp_path / "run").exists()


def test_folders(capsys, tmp_path, archives, no_pictures):
    photos = tmp_path / "photos"
    shutil.copytree(archives / "photos", photos / "train")
    shutil.copytree(archives / "photos", photos / "test")
    out = run(
        *(capsys, "train", photos, "--model", "cifar_advanced", "--output", tmp_path / "run"),
        *("--epochs", 6, "--lr", 0.02, "--batch-size", 4),
    )
    assert "12 images of 2 classes, 12 held out" in out
    found = json.loads(run(capsys, "evaluate", tmp_path / "run", photos, "--json"))
    assert found["classes"] == ["green", "red"]
    assert found["accuracy"] == 1
    paths = sorted((photos / "test").glob("*/*.png"))
    answers = json.loads(run(capsys, "predict", tmp_path / "run", *paths, "--json"))
    for answer, path in zip(answers, paths, strict=True):
        assert answer["path"] == str(path)
        assert answer["top"][0]["label"] == path.parent.name
    shutil.rmtree(photos / "test" / "red")
    assert "red" in error(capsys, "train", photos, "--model", "cifar_basic")
    for number in range(1, 6):
        for name in ("red", "green"):
            (photos / "train" / name / f"{number}.png").unlink()
    message = error(capsys, "train", photos / "train", "--model", "cifar_basic")
    assert "at least 5 images" in message


def test_options_of_a_resumed_run(capsys, tmp_path, archives, no_pictures):
    where = ("--data", archives / "mnist", "--output", tmp_path)
    options = ("--model", "mnist_cnn", "--batch-size", 4, "--seed", 3, "--schedule", "constant")
    command = ("train", "mnist", *where)
    run(capsys, *command, *options, "--epochs", 1, "--lr", 0.01)
    message = error(capsys, *command, "--resume", "--lr", 0.1)
    assert "of a run with lr 0.01, got 0.1; only --epochs can be changed" in message
    message = error(capsys, "train", "fashion_mnist", *where, "--resume")
    assert "dataset mnist, got fashion_mnist" in message
    assert "epoch 2/2" in run(capsys, *command, "--resume", "--epochs", 2)
    assert "seed 3" in run(capsys, *command, "--resume")
    whole = ("train", "mnist", *where[:2], "--output", tmp_path / "b")
    run(capsys, *whole, *options, "--epochs", 2, "--lr", 0.01)
    same_weights(tmp_path, tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["train"], "DATASET"),
        (["train", "imagenet"], "digits, mnist, fashion_mnist, cifar10, cifar100 or a folder"),
        (["train", "cifar10", "--data", "nowhere"], "no CIFAR-10 in nowhere"),
        (["train", "digits", "--model", "resnet"], "resnet18"),
        (["train", "digits", "--epochs", "0"], "--epochs"),
        (["train", "digits", "--batch-size", "x"], "--batch-size"),
        (["train", "digits", "--lr", "nan"], "--lr"),
        (["train", "digits", "--momentum", "2"], "momentum"),
        (["train", "digits", "--seed", "-1"], "--seed"),
        (["train", "digits", "--schedule", "up"], "cosine"),
        (["train", "digits", "--resume", "--output", "nowhere"], "nowhere"),
        (["evaluate", "nowhere", "digits"], "nowhere"),
        (["predict", "nowhere"], "IMAGE"),
        (["predict", "nowhere", "a.png"], "nowhere"),
    ],
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    assert match in error(capsys, *arguments)
    assert os.listdir(tmp_path) == []


def test_a_loss_that_is_not_finite(capsys, tmp_path, archives):
    with np.errstate(all="ignore"):
        message = error(
            *(capsys, "train", "mnist", "--data", archives / "mnist", "--lr", 1e30),
            *("--batch-size", 3, "--output", tmp_path / "run"),
        )
    assert "a smaller learning rate may help" in message


# --- evaluate and predict


def test_evaluate(capsys, digits, tmp_path, archives):
    folder, _ = digits
    out = run(capsys, "evaluate", folder, "digits", "--figure", tmp_path / "f.png")
    lines = out.splitlines()
    assert lines[0] == "digits_cnn on digits, 360 held-out images"
    assert float(lines[1].split()[1].rstrip("%,")) >= 98
    assert len(lines) == 12
    assert (tmp_path / "f.png").stat().st_size > 5000
    report = json.loads(run(capsys, "evaluate", folder / CHECKPOINT, "digits", "--json"))
    confusion = np.array(report["confusion"])
    assert confusion.trace() / confusion.sum() == report["accuracy"]
    message = error(capsys, "evaluate", folder, "mnist", "--data", archives / "mnist")
    assert "is for images of 8x8, mnist has 28x28" in message
    message = error(capsys, "evaluate", folder, archives / "photos")
    assert "the net knows 10 classes (0, 1, 2, 3, ...), the data set has 2 (green, red)" in message


def test_predict(capsys, digits, tmp_path):
    folder, _ = digits
    _, held_out = data.load_digits()
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(held_out.images[number, 0]).save(paths[-1])
    report = json.loads(run(capsys, "predict", folder, *paths, "--json", "--top", 10))
    right = [
        entry["top"][0]["label"] == str(label)
        for entry, label in zip(report, held_out.labels[:20], strict=True)
    ]
    assert sum(right) >= 19
    for entry in report:
        shares = [top["probability"] for top in entry["top"]]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares == sorted(shares, reverse=True)
    lines = run(capsys, "predict", folder, paths[0]).splitlines()
    assert lines[0] == str(paths[0])
    assert len(lines) == 4
    (tmp_path / "text").write_text("hello")
    assert "is not an image" in error(capsys, "predict", folder, tmp_path / "text")


def test_damaged_checkpoints(capsys, digits, tmp_path):
    folder, _ = digits
    content = (folder / CHECKPOINT).read_bytes()
    arrays, values = load_training(folder / CHECKPOINT)
    path = tmp_path / CHECKPOINT
    for part in (b"", b"x" * 100, content[:9], content[:-1], content[:200]):
        path.write_bytes(part)
        for command in (("evaluate", path, "digits"), ("predict", tmp_path, "a.png")):
            assert str(path) in error(capsys, *command)
        assert str(path) in error(capsys, "train", "digits", "--output", tmp_path, "--resume")
    save_weights(path, load_weights(folder / CHECKPOINT))
    assert "only weights" in error(capsys, "evaluate", path, "digits")
    packed = values["recipe"]
    for kind, changes in (
        ("recipe", [{"model": "alexandra"}, {"model": []}, {"seed": -1}, {"new": 1}, {"lr": "x"}]),
        (
            "preparation",
            [
                {"classes": ["a"]},
                {"classes": 10},
                {"classes": [1] * 10},
                {"size": [8]},
                {"size": [8, 0]},
                {"size": [8, 10**5]},
                {"size": [8, 4]},
                {"resize": 7},
                {"resize": None},
                {"channels": True},
                {"classes": ["a"] * 10**5},
                {"target": [9, 9]},
                {"channels": 3},
                {"mean": []},
                {"std": [0.0]},
                {"std": None},
            ],
        ),
    ):
        for change in changes:
            wrong = {**packed, kind: {**packed[kind], **change}}
            save_training(path, arrays, {**values, "recipe": wrong})
            message = error(capsys, "evaluate", path, "digits")
            assert "damaged or no checkpoint of convkern train" in message
    save_training(path, arrays, {**values, "recipe": {}})
    assert "no checkpoint of convkern train" in error(capsys, "evaluate", path, "digits")


# --- how images meet nets


def test_grey_and_colour():
    rng = np.random.default_rng(0)
    colours = Dataset(rng.integers(0, 256, (5, 3, 6, 7), np.uint8), np.zeros(5, int), ["a"])
    grey = recipe.with_channels(colours, 1).images[:, 0]
    for image, expected in zip(grey, colours.images, strict=True):
        theirs = np.asarray(Image.fromarray(expected.transpose(1, 2, 0)).convert("L"))
        assert np.abs(image.astype(int) - theirs).max() <= 1
    again = recipe.with_channels(Dataset(grey[:, None], np.zeros(5, int), ["a"]), 3)
    for channel in range(3):
        np.testing.assert_array_equal(again.images[:, channel], grey)
    assert recipe.with_channels(colours, 3) is colours


@pytest.mark.parametrize("model", ["digits_cnn", "cifar_basic", "resnet20", "resnet18"])
def test_images_get_the_size_of_the_net(model):
    rng = np.random.default_rng(0)
    images = Dataset(rng.integers(0, 256, (5, 3, 32, 32), np.uint8), np.zeros(5, int), ["a"])
    prepared = recipe.Preparation.fit(model, images, 32)
    shape = models.INPUT_SHAPE[model]
    for seed in (None, 0):
        [(batch, _)] = prepared.loader(images, 5, Alone(), seed=seed, mirror=True)
        assert batch.shape == (5, *shape)
    [(first, _)] = prepared.loader(images, 5, Alone())
    [(again, _)] = prepared.loader(images, 5, Alone())
    np.testing.assert_array_equal(first, again)


def test_resize():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 6, 9), np.uint8)
    larger = data.Resize((12, 20))(images, np.empty((2, 0)))
    assert larger.shape == (2, 3, 12, 20)
    for image, expected in zip(larger, images, strict=True):
        picture = Image.fromarray(expected.transpose(1, 2, 0))
        theirs = np.asarray(picture.resize((20, 12), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image.transpose(1, 2, 0), theirs)


# --- MPI

needs_mpi = pytest.mark.skipif(shutil.which("mpiexec") is None, reason="MPI is not installed")

STEPS = """
import sys
from test_fit import Run, plain_net
from convkern.checkpoint import save_weights
from convkern.interop.mpi import MPIWorkers
with MPIWorkers() as workers:
    run = Run(plain_net, workers=workers)
    run.fit(5)
    if workers.rank == 0:
        assert workers.size == 2
        save_weights(sys.argv[1], run.net.state_dict())
"""

FAILURE = """
from test_fit import Run, plain_net
from convkern.interop.mpi import MPIWorkers
with MPIWorkers() as workers:
    run = Run(plain_net, workers=workers)
    if workers.rank == 1:
        run.loader.dataset.labels[:] = 99
    run.fit(5)
"""

STOP = """
import sys
from test_fit import Interrupted, Run, StopsAt, plain_net
from convkern.interop.mpi import MPIWorkers
try:
    with MPIWorkers() as workers:
        loss = StopsAt(6 if workers.rank == 1 else 99)
        Run(plain_net, workers=workers).fit(folder=sys.argv[1], loss=loss)
except Interrupted as interrupted:
    print(f"process {workers.rank} {interrupted}", flush=True)
"""


def mpiexec(*arguments):
    """Run Python in two processes."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    command = ["mpiexec", "-n", "2", sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)


@needs_mpi
def test_two_processes_make_the_steps_of_one(tmp_path):
    from test_fit import Run, plain_net

    done = mpiexec("-c", STEPS, tmp_path / "w")
    assert done.returncode == 0, done.stderr
    whole = Run(plain_net)
    whole.fit(5)  # 20 steps, of 16, 16, 16 and 2 images
    weights = load_weights(tmp_path / "w")
    for name, value in whole.net.state_dict().items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-6)


@needs_mpi
def test_ctrl_c_in_one_process_stops_all_after_a_save(tmp_path):
    done = mpiexec("-c", STOP, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = sorted(line.partition(";")[0] for line in done.stdout.splitlines())
    assert lines == [f"process {n} stopped in epoch 2, saved in {tmp_path}" for n in (0, 1)]
    assert load_training(tmp_path / CHECKPOINT)[1]["loader"]["position"] == 2


@needs_mpi
def test_an_error_in_one_process_ends_all():
    done = mpiexec("-c", FAILURE)
    assert done.returncode != 0
    assert "convkern: error in process 1: " in done.stderr


@needs_mpi
def test_train_over_mpi(tmp_path):
    folder = tmp_path / "run"
    arguments = ("-m", "convkern", "train", "digits", "--mpi", "--output", folder)
    done = mpiexec(*arguments, "--epochs", 2, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/2") == 1
    assert "2 processes" in done.stdout
    assert (folder / "confusion.png").exists()
    done = mpiexec(*arguments, "--resume", "--epochs", 3)
    assert done.stdout.count("epoch 3/3") == 1


def test_without_mpi4py(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    assert 'pip install "convkern[mpi]"' in error(capsys, "train", "digits", "--mpi")
