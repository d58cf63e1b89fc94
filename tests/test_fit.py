"""Training as a whole: what a run leaves behind, bit-exact resumption, several processes."""

import csv
import dataclasses
import json
import os
import signal
import threading
from functools import partial

import numpy as np
import pytest

from convkern.checkpoint import load_training, load_weights, save_training, save_weights
from convkern.data import DataLoader, Dataset, RandomCrop, Transform
from convkern.errors import FormatError
from convkern.nn import (
    SGD,
    Adam,
    BatchNorm2d,
    Conv2d,
    CosineAnnealingLR,
    CrossEntropyLoss,
    Dropout,
    Dropout2d,
    Flatten,
    Linear,
    MaxPool2d,
    MSELoss,
    Parameter,
    ReLU,
    Sequential,
)
from convkern.training import Epoch, Interrupted, evaluate, fit
from convkern.training.stopping import Stop
from convkern.training.workers import Alone

pytestmark = pytest.mark.once

CHECKPOINT = "checkpoint.safetensors"
CLASSES = ["cat", "dog", "owl"]


def blobs(images=50, seed=0, side=6):
    """Return images whose class says in which channel it is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    pixels = rng.integers(0, 100, (images, 3, side, side), np.uint8)
    pixels[np.arange(images), labels] += 60
    return Dataset(pixels, labels, CLASSES)


def plain_net(dtype=np.float32, seed=0):
    """Return a net without anything that looks at the whole batch or is random."""
    rng = np.random.default_rng(seed)
    return Sequential(
        Conv2d(3, 8, 3, rng=rng, dtype=dtype),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(32, 3, rng=rng, dtype=dtype),
    )


def full_net(seed=0):
    """Return a net with everything that has a state."""
    rng, other = np.random.default_rng(seed), np.random.Generator(np.random.Philox(seed))
    return Sequential(
        Conv2d(3, 8, 3, rng=rng),
        BatchNorm2d(8),
        ReLU(),
        Dropout2d(0.2, rng=other),
        Flatten(),
        Dropout(0.3, rng=rng),
        Linear(128, 3, rng=rng),
    )


class Run:
    """The arguments of one `fit`."""

    def __init__(self, net=full_net, optimizer=SGD, seed=0, batch_size=16, workers=None):
        self.net = net()
        shard = (workers.rank, workers.size) if workers else (0, 1)
        self.workers = workers
        self.loader = DataLoader(
            blobs(), batch_size, True, rng=seed, transforms=[RandomCrop(6, 1)], shard=shard
        )
        self.validation = DataLoader(blobs(21, seed=1), 8, rng=0, shard=shard)
        options = {"momentum": 0.9} if optimizer is SGD else {}
        self.optimizer = optimizer(self.net.parameters(), lr=0.05, **options)
        self.schedule = CosineAnnealingLR(self.optimizer, 4)

    def fit(self, epochs=4, **options):
        return fit(
            *(self.net, self.loader, self.optimizer, epochs),
            validation=self.validation,
            schedule=self.schedule,
            workers=self.workers,
            **options,
        )


def same_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], strict=True)


def without_speed(history):
    return [dataclasses.replace(epoch, images_per_s=0.0) for epoch in history]


# --- what a run leaves behind


def test_a_run(tmp_path):
    run, reports = Run(), []
    folder = tmp_path / "new" / "folder"
    history = run.fit(folder=folder, report=reports.append, recipe={"name": "blobs"})
    assert history == reports
    assert [epoch.number for epoch in history] == [1, 2, 3, 4]
    np.testing.assert_allclose([epoch.lr for epoch in history][::2], [0.05, 0.025])
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy > 0.6
    found = evaluate(run.net, run.validation)
    last = history[-1]
    assert (last.validation_loss, last.validation_accuracy) == (found.loss, found.accuracy)
    assert last.per_class == found.per_class.tolist()
    assert run.net.training

    files = {CHECKPOINT, "log.csv", "curves.png", "filters.png", "confusion.png"}
    assert set(os.listdir(folder)) == files
    for name in files:
        assert (folder / name).read_bytes()[:4] == b"\x89PNG" or not name.endswith("png")
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [epoch.loss for epoch in history]
    assert float(rows[-1]["accuracy of owl"]) == found.per_class[2]
    same_states(load_weights(folder / CHECKPOINT), run.net.state_dict())
    assert load_training(folder / CHECKPOINT)[1]["recipe"] == {"name": "blobs"}
    with pytest.raises(FileExistsError, match="there already"):
        Run().fit(folder=folder)


def test_without_a_folder_or_a_validation_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run()
    history = fit(run.net, run.loader, run.optimizer, 1)
    assert history[0].validation_loss is None
    assert history[0].per_class == []
    assert os.listdir(tmp_path) == []
    fit(run.net, run.loader, run.optimizer, 1, folder=tmp_path)
    assert not (tmp_path / "confusion.png").exists()
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert header.endswith("validation_accuracy")


def test_a_bar(capsys, monkeypatch, no_pictures):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm, "tqdm", partial(tqdm.tqdm, mininterval=0))
    Run().fit(1, progress=True)
    printed = capsys.readouterr().err
    assert "epoch 1" in printed
    assert "images/s" in printed
    assert "accuracy=" in printed


def test_evaluate():
    data = blobs()
    net = plain_net()
    found = evaluate(net, data)
    scores = net.eval()(data.images.astype(np.float32) * np.float32(1 / 255))
    assert found.confusion.sum() == len(data)
    np.testing.assert_array_equal(found.confusion.sum(1), np.bincount(data.labels))
    np.testing.assert_array_equal(found.confusion.sum(0), np.bincount(scores.argmax(1)))
    assert found.accuracy == np.mean(scores.argmax(1) == data.labels)
    assert found.loss == pytest.approx(CrossEntropyLoss()(scores, data.labels), rel=1e-6)
    assert not net.training
    only_cats = data.take(np.flatnonzero(data.labels == 0))
    assert np.isnan(evaluate(net.train(), only_cats).per_class).tolist() == [False, True, True]
    assert net.training
    assert np.isnan(evaluate(net, data.take([])).accuracy)
    with pytest.raises(TypeError, match="data must be"):
        evaluate(net, data.images)
    with pytest.raises(ValueError, match=r"scores of shape \(50, 3\)"):
        evaluate(Sequential(Flatten()), data)


# --- stopped and resumed


class StopsAt(CrossEntropyLoss):
    """A loss that sends Ctrl-C in its n-th call."""

    def __init__(self, call):
        super().__init__()
        self.left = call

    def forward(self, input, target):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().forward(input, target)


@pytest.mark.parametrize("optimizer", [SGD, Adam])
@pytest.mark.parametrize("step", [1, 4, 7])  # an epoch has 4 steps
def test_a_resumed_run_has_the_same_bits(tmp_path, no_pictures, optimizer, step):
    whole = Run(optimizer=optimizer)
    history = whole.fit()
    first = Run(optimizer=optimizer)
    with pytest.raises(Interrupted, match=f"epoch {(step - 1) // 4 + 1}.*resume=True"):
        first.fit(folder=tmp_path, loss=StopsAt(step))
    # The batch has ended, and no other began.
    assert load_training(tmp_path / CHECKPOINT)[1]["loader"]["position"] == (step - 1) % 4 + 1
    second = Run(lambda: full_net(seed=9), optimizer, seed=9)
    resumed = second.fit(folder=tmp_path, resume=True)
    same_states(whole.net.state_dict(), second.net.state_dict())
    for ours, theirs in zip(second.net.generators(), whole.net.generators(), strict=True):
        assert ours.random() == theirs.random()
    assert without_speed(resumed) == without_speed(history)
    # A finished run has nothing left to do.
    again = Run()
    if optimizer is SGD:
        assert again.fit(folder=tmp_path, resume=True) == resumed
        same_states(whole.net.state_dict(), again.net.state_dict())


class StopsInBatch(Transform):
    """What sends Ctrl-C as it makes the n-th batch."""

    def __init__(self, batch):
        self.left = batch

    def __call__(self, images, drawn):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return images


def test_stopped_while_validating(tmp_path, no_pictures):
    whole = Run()
    history = whole.fit()
    first = Run()
    first.validation.transforms = (StopsInBatch(5),)  # there are 3 in an epoch
    with pytest.raises(Interrupted, match="epoch 2"):
        first.fit(folder=tmp_path)
    assert load_training(tmp_path / CHECKPOINT)[1]["trained"] is True
    second = Run()
    assert without_speed(second.fit(folder=tmp_path, resume=True)) == without_speed(history)
    same_states(whole.net.state_dict(), second.net.state_dict())


def test_signals():
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.wanted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.wanted
    assert signal.getsignal(signal.SIGINT) is before
    seen = []
    thread = threading.Thread(target=lambda: seen.append(Stop().__enter__().wanted))
    thread.start()
    thread.join()
    assert seen == [False]


def test_interrupted_without_a_folder():
    with pytest.raises(Interrupted, match="nothing is saved"):
        Run().fit(loss=StopsAt(2))


@pytest.fixture
def saved(tmp_path, no_pictures):
    Run().fit(1, folder=tmp_path)
    return tmp_path


def test_damaged_checkpoints_are_refused(saved):
    path = saved / CHECKPOINT
    content = path.read_bytes()
    arrays, values = load_training(path)

    def refused(match):
        with pytest.raises(FormatError, match=match) as caught:
            Run().fit(folder=saved, resume=True)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 500 + len(str(path))

    for part in (b"", b"PK\x03\x04", content[:8], content[:-1], content[: len(content) // 2]):
        path.write_bytes(part)
        refused(str(path))
    save_weights(path, Run().net.state_dict())
    refused("only weights")
    changes = [
        {"version": 2},
        {"version": None},
        {"generators": []},
        {"generators": [[{}]]},
        {"generators": None},
        {"optimizer": {}},
        {"optimizer": []},
        {"schedule": None},
        {"schedule": {"last_epoch": -1}},
        {"loader": {**values["loader"], "batch_size": 5}},
        {"loader": 7},
        {"totals": [1, 2]},
        {"totals": ["a", "b", "c"]},
        {"seconds": "now"},
        {"trained": 1},
        {"history": [{}]},
        {"history": 3},
        {"history": [{**values["history"][0], "lr": "x"}]},
        {"history": [{**values["history"][0], "validation_loss": "x"}]},
    ]
    for change in changes:
        save_training(path, arrays, {**values, **change})
        refused("damaged or of another run")
    for name in values:
        if name not in ("recipe",):
            save_training(path, arrays, {n: v for n, v in values.items() if n != name})
            refused("damaged or of another run")
    for name in arrays:
        save_training(path, {n: a for n, a in arrays.items() if n != name}, values)
        if "num_batches" not in name:
            refused("damaged or of another run")
    save_training(path, {**arrays, "net.0.bias": np.zeros(3, np.float32)}, values)
    refused("shape")
    path.write_bytes(content.replace(b'{"version', b'["version'))
    refused("damaged checkpoint")


def test_what_cannot_be_trained(saved, monkeypatch):
    run = Run()
    with pytest.raises(TypeError, match="loader must be a DataLoader"):
        fit(run.net, [], run.optimizer, 1)
    with pytest.raises(TypeError, match="validation must be a DataLoader"):
        fit(run.net, run.loader, run.optimizer, 1, validation=blobs())
    with pytest.raises(TypeError, match="epochs"):
        fit(run.net, run.loader, run.optimizer, 1.5)
    with pytest.raises(ValueError, match="at least one batch"):
        fit(run.net, DataLoader(blobs(0), 4), run.optimizer, 1)
    with pytest.raises(ValueError, match="shard"):
        fit(run.net, DataLoader(blobs(), 4, rng=0, shard=(0, 2)), run.optimizer, 1)
    with pytest.raises(ValueError, match="loss must have the reduction"):
        fit(run.net, run.loader, run.optimizer, 1, loss=MSELoss("sum"))
    with pytest.raises(ValueError, match="folder must be given"):
        run.fit(resume=True)
    with pytest.raises(FileNotFoundError):
        run.fit(folder=saved / "missing", resume=True)
    with pytest.raises(ValueError, match=r"scores of shape \(16, 3\)"):
        fit(Sequential(Conv2d(3, 2, 3), Flatten()), run.loader, run.optimizer, 1)
    run.optimizer.param_groups[0]["lr"] = 1e30
    with (
        pytest.raises(FloatingPointError, match=r"batch \d of epoch 1; a smaller learning rate"),
        np.errstate(all="ignore"),
    ):
        fit(run.net, run.loader, run.optimizer, 9)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"convkern\[app\]"):
        Run().fit(folder=saved / "other")
    assert not (saved / "other").exists()


# --- several processes, here as threads


class Team:
    """Workers that are threads of this process."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=30)
        self.slots = [None] * size
        self.calls = []

    def exchange(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait()
        values = list(self.slots)
        self.barrier.wait()
        return values

    def run(self, task):
        """Call ``task(worker)`` in every thread and return the results by rank."""
        results = [None] * self.size

        def work(rank):
            try:
                results[rank] = task(Member(self, rank))
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class Member:
    def __init__(self, team, rank):
        self.team, self.rank, self.size = team, rank, team.size

    def add(self, values):
        assert values.flags.c_contiguous
        if self.rank == 0:
            self.team.calls.append(values.size)
        parts = self.team.exchange(self.rank, values.copy())
        values[...] = sum(parts[1:], parts[0])

    def gather(self, text):
        return (
            self.team.exchange(self.rank, text)
            if self.rank == 0
            else (self.team.exchange(self.rank, text) and [])
        )


@pytest.mark.parametrize("size", [2, 3])
def test_shards_make_the_steps_of_the_whole(size):
    # Batches of 16, 16, 16 and 2: uneven shards, and for three an empty one.
    whole = Run(plain_net)
    history = whole.fit(5)

    def task(worker):
        run = Run(lambda: plain_net(seed=worker.rank), workers=worker)
        return run.fit(5), run

    results = Team(size).run(task)
    for found, run in results:
        assert run.net.state_dict().keys() == whole.net.state_dict().keys()
        for name, value in whole.net.state_dict().items():
            np.testing.assert_allclose(run.net.state_dict()[name], value, rtol=0, atol=1e-6)
        same_states(run.net.state_dict(), results[0][1].net.state_dict())
        for ours, theirs in zip(found, history, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
            assert ours.accuracy == theirs.accuracy
            assert ours.per_class == theirs.per_class


def test_one_message_a_step():
    team = Team(2)
    run = team.run(lambda worker: fit(*arguments(worker), 1, workers=worker))
    assert len(run[0]) == 1
    net = full_net()
    numbers = net.num_parameters() + 8 + 8 + 1  # and the buffers
    # The number of images, which parameters have gradients, three totals, and whether to stop.
    assert team.calls[-4:] == [numbers + 1 + len(net.parameters()) + 4] * 4


def arguments(worker):
    run = Run(workers=worker)
    return run.net, run.loader, run.optimizer


def test_unused_parameters_stay_as_they_are():
    class Unused(Flatten):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(np.ones(3, np.float32))

    def train(worker):
        net = Sequential(*plain_net(), Unused())
        loader = DataLoader(blobs(), 16, rng=0, shard=(worker.rank, worker.size))
        fit(net, loader, SGD(net.parameters(), 0.1, weight_decay=0.5), 1, workers=worker)
        return net[-1].weight.data

    for weight in [train(Alone()), *Team(2).run(train)]:
        np.testing.assert_array_equal(weight, np.ones(3, np.float32), strict=True)


def test_running_statistics_are_those_of_all():
    def task(worker):
        run = Run(workers=worker)
        run.fit(1)
        return run.net.state_dict(), run.net.generators()[0].random()

    (one, drawn), (other, also_drawn) = Team(2).run(task)
    same_states(one, other)
    assert one["1.num_batches_tracked"] == 4
    assert drawn != also_drawn  # each drops out other activations


def test_several_processes_resume(tmp_path, no_pictures):
    def whole(worker):
        run = Run(workers=worker)
        return run.fit(3), run.net.state_dict()

    def part(worker):
        run = Run(workers=worker)
        run.fit(1, folder=tmp_path)
        return None

    def rest(worker):
        run = Run(workers=worker)
        return run.fit(3, folder=tmp_path, resume=True), run.net.state_dict()

    expected = Team(2).run(whole)
    assert Team(2).run(part) == [None, None]
    saved = load_training(tmp_path / CHECKPOINT)[1]
    assert len(saved["generators"]) == 2
    resumed = Team(2).run(rest)
    for (history, state), (found, same) in zip(expected, resumed, strict=True):
        same_states(state, same)
        assert without_speed(history) == without_speed(found)
    with pytest.raises(FormatError, match="saved by 2 processes"):
        Run().fit(3, folder=tmp_path, resume=True)


def test_all_processes_stop_together(tmp_path, no_pictures):
    stops = {}

    class Stopping(CrossEntropyLoss):
        """A loss whose sixth call asks its own process, a thread here, to stop."""

        calls = 0

        def forward(self, input, target):
            self.calls += 1
            if self.calls == 6:
                stops[threading.get_ident()].wanted = True
            return super().forward(input, target)

    def task(worker):
        loss = Stopping() if worker.rank == 1 else CrossEntropyLoss()
        Run(workers=worker).fit(folder=tmp_path, loss=loss)

    class NotedStop(Stop):
        def __enter__(self):
            stops[threading.get_ident()] = self
            return super().__enter__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convkern.training.loop.Stop", NotedStop)
        results = Team(2).run(task)
    assert [type(result) for result in results] == [Interrupted, Interrupted]
    assert load_training(tmp_path / CHECKPOINT)[1]["loader"]["position"] == 2


def test_alone():
    values = np.arange(3.0)
    Alone().add(values)
    assert values.tolist() == [0, 1, 2]
    assert json.dumps(dataclasses.asdict(Epoch(1, 0.1, 0.5, 0.9, 9.0)))
