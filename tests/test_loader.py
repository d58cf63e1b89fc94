"""Batches: what is in them, in which order, and that a run can be resumed or shared."""

import gc
import itertools
import json
import os
import threading
import time

import numpy as np
import pytest

from convkern import conv2d
from convkern.arrays import is_channels_last
from convkern.data import (
    CenterCrop,
    DataLoader,
    Dataset,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    Transform,
)

pytestmark = pytest.mark.once

AUGMENT = [RandomCrop(8, padding=2), RandomHorizontalFlip()]


def make_dataset(images=23, shape=(3, 8, 8)):
    rng = np.random.default_rng(0)
    labels = np.arange(images)
    return Dataset(
        rng.integers(0, 256, (images, *shape), np.uint8), labels, [str(n) for n in labels]
    )


def make_loader(rng=0, batch_size=5, shuffle=True, dataset=None, **options):
    options = {"transforms": AUGMENT} | options
    return DataLoader(
        make_dataset() if dataset is None else dataset, batch_size, shuffle, rng=rng, **options
    )


def equal(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(images, other_images, strict=True)
        np.testing.assert_array_equal(labels, other_labels, strict=True)


def order(batches):
    return np.concatenate([labels for _, labels in batches]).tolist()


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("convkern-data")]


# --- what is in a batch


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 5), (1, 1, 1)])
@pytest.mark.parametrize("layout", ["channels-last", "contiguous", "reversed"])
def test_a_batch_is_float_and_channels_last(shape, layout):
    dataset = make_dataset(shape=shape)
    if layout == "channels-last":
        dataset = dataset.take(slice(None))
    elif layout == "reversed":
        dataset = Dataset(dataset.images[::-1, :, ::-1], dataset.labels, dataset.classes)
    found = list(DataLoader(dataset, 5))
    assert [len(labels) for _, labels in found] == [5, 5, 5, 5, 3]
    for images, labels in found:
        assert images.dtype == np.float32 and labels.dtype == np.int64
        assert images.transpose(0, 2, 3, 1).flags.c_contiguous
        assert images.transpose(0, 2, 3, 1).flags.writeable
        np.testing.assert_allclose(images, dataset.images[labels] / 255, rtol=3e-7)
    assert order(found) == list(range(23))


def test_a_batch_goes_into_a_convolution_as_it_is():
    images, _ = next(iter(make_loader()))
    assert is_channels_last(images)
    assert is_channels_last(conv2d(images, np.ones((4, 3, 3, 3), np.float32)))


def test_the_last_batch():
    assert len(make_loader()) == 5 == len(list(make_loader()))
    loader = make_loader(drop_last=True)
    assert len(loader) == 4
    assert [len(labels) for _, labels in loader] == [5] * 4
    assert len(list(make_loader(dataset=make_dataset(20)))) == 4
    assert list(make_loader(dataset=make_dataset(0))) == []
    assert len(list(make_loader(dataset=make_dataset(3), drop_last=True))) == 0


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7)])
def test_normalize(shape):
    dataset = make_dataset(1100, shape)  # more than are counted at a time
    fitted = Normalize.fit(dataset)
    values = dataset.images / 255
    np.testing.assert_allclose(fitted.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(fitted.std, values.std((0, 2, 3)), rtol=1e-12)
    found = fitted(dataset.images[:7])
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (fitted.mean, fitted.std))
    np.testing.assert_allclose(found, (values[:7] - mean) / std, atol=1e-6)
    assert fitted(dataset.images[:0]).shape == (0, *shape)
    again = Normalize(**json.loads(json.dumps({"mean": fitted.mean, "std": fitted.std})))
    np.testing.assert_array_equal(again(dataset.images[:7]), found)
    other = make_dataset(9, shape)  # another set is normalised with the same numbers
    ((images, labels),) = DataLoader(other, 9, normalize=fitted)
    np.testing.assert_array_equal(images, fitted(other.images[labels]))


def test_normalize_of_one_value():
    constant = Dataset(np.full((4, 2, 3, 3), 51, np.uint8), [0] * 4, ["a"])
    fitted = Normalize.fit(constant)
    assert fitted.std == (1.0, 1.0)
    np.testing.assert_allclose(fitted(constant.images), 0, atol=1e-7)


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0], [0]), ([0], [-1]), ([0, 0], [1]), ([np.nan], [1]), ([0], [np.inf]), ([], [])],
)
def test_normalize_refuses(mean, std):
    with pytest.raises(ValueError, match=r"std must|finite"):
        Normalize(mean, std)


def test_normalize_refuses_images():
    normalize = Normalize([0.5] * 3, [1] * 3)
    for images, error in (
        (np.zeros((2, 3, 4, 4)), TypeError),
        (None, TypeError),
        (np.zeros((3, 4, 4), np.uint8), ValueError),
        (np.zeros((2, 1, 4, 4), np.uint8), ValueError),
    ):
        with pytest.raises(error):
            normalize(images)
    with pytest.raises(ValueError, match="dataset"):
        Normalize.fit(make_dataset(0))


# --- augmentation


@pytest.mark.parametrize(("size", "padding"), [(8, 2), ((5, 8), (0, 3)), (8, 0), (12, 2), (1, 0)])
def test_random_crop(size, padding):
    images = make_dataset(200).images
    crop, rng = RandomCrop(size, padding), np.random.default_rng(0)
    drawn = crop.draw(rng, images.shape)
    found = crop(images, drawn)
    (height, width), (rows, columns) = crop.size, crop.padding
    padded = np.pad(images, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
    for image, whole, (top, left) in zip(found, padded, drawn, strict=True):
        np.testing.assert_array_equal(image, whole[:, top : top + height, left : left + width])
    # Every place there is, and no other.
    places = {(top, left) for top, left in drawn.tolist()}
    tops, lefts = 8 + 2 * rows - height + 1, 8 + 2 * columns - width + 1
    assert places <= set(itertools.product(range(tops), range(lefts)))
    assert {top for top, _ in places} == set(range(tops))
    assert {left for _, left in places} == set(range(lefts))


def test_random_flip():
    images = make_dataset(400).images
    flip = RandomHorizontalFlip(0.25)
    drawn = flip.draw(np.random.default_rng(0), images.shape)
    found = flip(images, drawn)
    for image, whole, mirrored in zip(found, images, drawn[:, 0], strict=True):
        np.testing.assert_array_equal(image, whole[:, :, ::-1] if mirrored else whole)
    assert 70 < drawn.sum() < 130
    for p in (0, 1):
        assert (RandomHorizontalFlip(p).draw(np.random.default_rng(0), images.shape) == p).all()


def test_center_crop():
    images = make_dataset().images
    drawn = np.empty((23, 0))
    np.testing.assert_array_equal(CenterCrop(4)(images, drawn), images[:, :, 2:6, 2:6])
    np.testing.assert_array_equal(CenterCrop((8, 5))(images, drawn), images[:, :, :, 1:6])
    found, _ = next(iter(make_loader(transforms=[CenterCrop(6), RandomHorizontalFlip()])))
    assert found.shape == (5, 3, 6, 6) and is_channels_last(found)


def test_augmentation_differs_between_images_batches_and_epochs():
    dataset = Dataset(np.tile(make_dataset(1).images, (40, 1, 1, 1)), [0] * 40, ["a"])
    loader = make_loader(dataset=dataset, batch_size=20)
    found = [image.tobytes() for _ in range(2) for images, _ in loader for image in images]
    assert len(set(found)) > 30  # of 50 that are possible
    assert found[:20] != found[20:40] != found[40:60]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: RandomCrop(0), ValueError),
        (lambda: RandomCrop(2.5), TypeError),
        (lambda: RandomCrop(2, -1), ValueError),
        (lambda: CenterCrop("2"), TypeError),
        (lambda: RandomHorizontalFlip(1.5), ValueError),
        (lambda: RandomHorizontalFlip(float("nan")), ValueError),
        (lambda: next(iter(make_loader(transforms=[RandomCrop(9)]))), ValueError),
        (lambda: next(iter(make_loader(transforms=[CenterCrop((8, 9))]))), ValueError),
        (lambda: Transform(), TypeError),
    ],
)
def test_transforms_refuse(make, error):
    with pytest.raises(error):
        make()


# --- order, seeds, epochs


def test_an_epoch_has_every_image_once():
    loader = make_loader()
    epochs = [order(loader) for _ in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_the_seed_decides():
    equal(make_loader(3), make_loader(3))
    equal(make_loader(np.random.default_rng(3)), make_loader(np.random.default_rng(3)))
    assert order(make_loader(3)) != order(make_loader(4))
    assert order(make_loader(None)) != order(make_loader(None))
    # Not the state of anything global, and not what else is done meanwhile.
    loader = make_loader(3)
    found = []
    for batch in loader:
        np.random.random(7)
        order(make_loader(5))
        found.append(batch)
    equal(found, make_loader(3))


def test_the_numbers_stay_as_they_are():
    """A saved run must get the same batches from the next version."""
    assert order(make_loader(0))[:8] == [5, 9, 13, 17, 21, 14, 0, 2]
    images, _ = next(iter(make_loader(0)))
    assert images.sum(dtype=np.float64) == pytest.approx(378.255, rel=1e-6)


def test_leaving_early_begins_the_next_epoch():
    loader, other = make_loader(), make_loader()
    first, second = list(other), list(other)
    assert order([next(iter(loader))]) == order(first[:1])
    assert loader.epoch == 0
    equal(loader, second)
    assert loader.epoch == 2
    iter(loader)  # nothing was taken
    assert loader.epoch == 2
    assert order([next(iter(loader))]) == order([next(iter(other))])


def test_two_iterators_at_once():
    loader, reference = make_loader(), make_loader()
    first, second = list(reference), list(reference)
    outer = iter(loader)
    found = [next(outer)]
    equal(loader, second)
    state = loader.state_dict()
    found += outer
    equal(found, first)
    assert loader.state_dict() == state  # the state is that of the later iterator


# --- resuming


@pytest.mark.parametrize("done", range(11))
def test_a_resumed_run_is_the_same(done):
    straight = make_loader(7)
    expected = [batch for _ in range(3) for batch in straight]
    loader = make_loader(7)
    found = []

    def run(loader, steps):
        while loader.epoch < 3:
            for batch in loader:
                found.append(batch)
                if len(found) == steps:
                    return json.loads(json.dumps(loader.state_dict()))
        return None

    state = run(loader, done) if done else loader.state_dict()
    again = make_loader(None)  # its own seed does not matter
    again.load_state_dict(state)
    assert run(again, None) is None
    equal(found, expected)


def test_a_state_in_and_after_the_last_batch():
    loader = make_loader()
    for _ in loader:
        state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (0, 5)
    after = loader.state_dict()
    assert (after["epoch"], after["position"]) == (1, 0)
    again = make_loader()
    again.load_state_dict(state)
    assert list(again) == [] and again.epoch == 1
    equal(again, loader)


def test_going_back_in_the_middle_of_a_loop():
    loader = make_loader()
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = list(batches)
    running = iter(loader)
    next(running)
    loader.load_state_dict(state)
    next(running)  # belongs to an iterator that is given up
    assert loader.state_dict() == state
    equal(loader, rest)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"batch_size": 4}, ValueError),
        ({"images": 24}, ValueError),
        ({"shuffle": False}, ValueError),
        ({"drop_last": True}, ValueError),
        ({"position": 6}, ValueError),
        ({"position": -1}, ValueError),
        ({"position": 1.0}, TypeError),
        ({"epoch": "1"}, TypeError),
        ({"epoch": -1}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 0.5}, ValueError),
        ({"seed": 2**63}, ValueError),
    ],
)
def test_states_that_do_not_fit(change, error):
    loader = make_loader()
    before = loader.state_dict()
    with pytest.raises(error, match=next(iter(change))):
        loader.load_state_dict(before | change)
    with pytest.raises(KeyError):
        loader.load_state_dict({})
    assert loader.state_dict() == before
    equal(loader, make_loader())


# --- shards


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("drop_last", [True, False])
def test_shards_together_are_the_batches(world, drop_last):
    whole = make_loader(drop_last=drop_last)
    shards = [make_loader(drop_last=drop_last, shard=(rank, world)) for rank in range(world)]
    for _ in range(2):
        batches, parts = list(whole), list(zip(*shards, strict=True))
        equal(
            ([np.concatenate(arrays) for arrays in zip(*part, strict=True)] for part in parts),
            batches,
        )
        for part in parts:
            sizes = [len(labels) for _, labels in part]
            assert max(sizes) - min(sizes) <= 1
            assert all(
                images.shape == (n, 3, 8, 8) for n, (images, _) in zip(sizes, part, strict=True)
            )


def test_resuming_with_other_shards():
    loader = make_loader(shard=(1, 2))
    batches = iter(loader)
    next(batches)
    parts = []
    for rank in range(3):
        part = make_loader(5, shard=(rank, 3))
        part.load_state_dict(loader.state_dict())
        parts.append(list(part))
    together = [np.concatenate([labels for _, labels in part]) for part in zip(*parts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(together), order(make_loader())[5:])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 2.0}, TypeError),
        ({"dataset": [1, 2]}, TypeError),
        ({"rng": "0"}, TypeError),
        ({"rng": np.random}, TypeError),
        ({"rng": -1}, ValueError),
        ({"shard": (2, 2)}, ValueError),
        ({"shard": (-1, 2)}, ValueError),
        ({"shard": (0, 0)}, ValueError),
        ({"shard": 2}, TypeError),
        ({"shard": (0, 2), "rng": None}, ValueError),
        ({"normalize": Normalize([0], [1])}, ValueError),
        ({"normalize": 3}, TypeError),
    ],
)
def test_loaders_that_are_refused(options, error):
    with pytest.raises(error):
        make_loader(**options)


# --- the thread


class Probe(Transform):
    """Note which batches have been made, and fail on one."""

    def __init__(self, fail_at=None):
        self.made = 0
        self.fail_at = fail_at
        self.threads = set()
        self.event = threading.Event()

    def __call__(self, images, drawn):
        self.threads.add(threading.current_thread())
        self.made += 1
        self.event.set()
        if self.made == self.fail_at:
            raise ZeroDivisionError("in the third batch")
        return images


def test_the_next_batch_is_made_ahead_and_only_that():
    probe = Probe()
    batches = iter(make_loader(transforms=[probe]))
    assert probe.made == 0
    for taken in range(1, 6):
        probe.event.clear()
        next(batches)
        deadline = time.monotonic() + 10
        while probe.made < min(taken + 1, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)
        assert probe.made == min(taken + 1, 5)
    assert threading.main_thread() not in probe.threads and len(probe.threads) == 1


def test_an_error_in_the_thread_arrives():
    loader = make_loader(transforms=[Probe(fail_at=3)])
    found = []
    with pytest.raises(ZeroDivisionError, match="third batch"):
        for batch in loader:
            found.append(batch)
    assert len(found) == 2 and loader.state_dict()["position"] == 2
    assert not threads()


def test_no_thread_is_left():
    gc.collect()
    assert not threads()
    for _ in make_loader():
        assert len(threads()) == 1
        break
    assert not threads()
    batches = iter(make_loader())
    next(batches)
    batches.close()
    assert not threads()
    with pytest.raises(KeyError):
        for _ in make_loader():
            raise KeyError
    assert not threads()
    list(make_loader())
    assert not threads()


def test_without_threads_it_is_the_same(monkeypatch):
    expected = list(make_loader())

    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    equal(make_loader(), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_in_a_forked_child():
    """A child can loop; an iterator of its parent, whose thread it lacks, is an error."""
    loader = make_loader()
    batches = iter(loader)
    next(batches)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            next(batches)
        except RuntimeError:
            code = 0 if len(list(make_loader())) == 5 else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done == (child, 0)
    assert len(list(batches)) == 4
