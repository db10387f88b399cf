"""The data: the sample is what it says, batches are exact, and every failure is named.

No test reaches the network: the downloader is replaced everywhere. The tests of the full set use
the system's copy where there is one; the failures are played with a set of ten small pictures."""

import gzip
import hashlib
import os
import pickle
import re
import runpy
import socket
import struct
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.datasets import CIFAR10, ImageFolder

from d2lres import cifar_resnet, data
from d2lres.data import MEAN, STD, DataError, Images, fashion_mnist
from d2lres.records import asset
from d2lres.training import evaluate, fit

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = next((folder for folder in data.SYSTEM_FOLDERS if folder.is_dir()), None)
FETCH = data._fetch
LABELS = "train-labels-idx1-ubyte"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "FashionMNIST" / "raw"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No cache, no system folder and no network, unless a test provides one."""
    monkeypatch.setenv("D2LRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", (tmp_path / "system",))
    monkeypatch.setattr(data, "_fetch", fails(ConnectionError("no network here")))


@pytest.fixture
def full_set(monkeypatch):
    if SYSTEM is None:
        pytest.skip("the full set is not on this machine")
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", (SYSTEM,))


@pytest.fixture
def files(monkeypatch):
    """The four files of a tiny 'full' set, as bytes, with the checksums that data.py expects."""
    random, contents = np.random.RandomState(0), {}
    for name in data.SHA256:
        shape = (6 if name.startswith("train") else 4,) + (28, 28) * ("images" in name)
        header = struct.pack(f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape)
        contents[name] = header + random.randint(0, 10, shape).astype(np.uint8).tobytes()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(data, "SHA256", sums)
    return contents


def fails(error):
    def fetch(*args):
        raise error

    return fetch


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def put(files, folder, gz=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(content, 1) if gz else content)
    return folder


def served(files):
    """A download that succeeds."""
    return lambda folder: put(files, Path(folder, "FashionMNIST", "raw"), gz=False)


def refused(message, root=None):
    with pytest.raises(DataError, match=message):
        fashion_mnist("full", root=root)


def pictures(n=16, c=1, h=28, w=28, size=None):
    random = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n, c, h, w), generator=random, dtype=torch.uint8)
    return Images(x, torch.arange(n) % 10, size=size)


# The sample


def test_sample_is_balanced_small_of_the_size_asked_for_and_has_its_licence():
    for images, count in zip(fashion_mnist(size=32), (600, 200)):
        assert images.images.shape == (10 * count, 1, 28, 28)
        assert images.labels.bincount(minlength=10).tolist() == [count] * 10
        assert len(images.labels[:100].unique()) == 10, "the classes are not mixed"
        assert images.images.min() == 0 and images.images.max() == 255
        assert images[:2].tensors()[0].shape == (2, 1, 32, 32)
    assert asset("fashion_mnist_sample.npz").stat().st_size < 4_000_000
    text = asset("FASHION_MNIST_LICENSE.txt").read_text(encoding="utf-8")
    assert "MIT License" in text and "Zalando" in text and "github.com/zalandoresearch" in text


def test_sample_is_what_its_script_makes_from_the_full_set(full_set):
    made = runpy.run_path(str(ROOT / "assets" / "make_sample.py"))["make"]()
    with np.load(asset("fashion_mnist_sample.npz"), allow_pickle=False) as sample:
        assert set(sample) == set(made)
        for name in sample:
            assert sample[name].dtype == np.uint8
            assert np.array_equal(sample[name], made[name]), name


def test_full_set_has_its_size_and_MEAN_and_STD_are_its_own(full_set):
    train, test = fashion_mnist("full")
    assert train.images.shape == (60_000, 1, 28, 28) and test.images.shape == (10_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [6_000] * 10
    std, mean = torch.std_mean(train.images / 255, correction=0)
    assert (round(mean.item(), 4), round(std.item(), 4)) == (MEAN, STD)


def test_sample_that_is_missing_or_damaged_is_named(tmp_path, monkeypatch):
    good = asset("fashion_mnist_sample.npz").read_bytes()
    path, middle = tmp_path / "fashion_mnist_sample.npz", len(good) // 2
    monkeypatch.setattr(data, "asset", lambda name: path)
    for bad in (good[:middle], b"<html>", good[:middle] + b"?" * 9 + good[middle + 9 :]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="fashion_mnist_sample.npz.*install d2lres again"):
            fashion_mnist()
    np.savez(path, train_images=np.array([{}], dtype=object))  # a pickle is never opened
    with pytest.raises(DataError, match="allow_pickle=False"):
        fashion_mnist()
    monkeypatch.setattr(data, "asset", fails(FileNotFoundError("it is gone")))
    with pytest.raises(DataError, match="install d2lres again: it is gone"):
        fashion_mnist()


# Batches


def run(images, seed=0, **options):
    """One pass in random order, with augmentation, as one batch."""
    options |= dict(shuffle=True, augment=True, generator=torch.Generator().manual_seed(seed))
    return [torch.cat(parts) for parts in zip(*images.batches(16, **options))]


def test_a_pass_shows_every_picture_once():
    images = pictures(23)
    for shuffle in (False, True):
        batches = list(images.batches(np.int64(10), shuffle=shuffle))
        assert [len(x) for x, _ in batches] == [10, 10, 3]
        x, y = (torch.cat(parts) for parts in zip(*batches))
        all_x, all_y = images.tensors()
        match = (x[:, None] == all_x[None]).flatten(2).all(2)
        assert match.sum(0).tolist() == match.sum(1).tolist() == [1] * 23
        found = match.int().argmax(1)
        assert torch.equal(y, all_y[found])
        assert torch.equal(found, torch.arange(23)) != shuffle


@pytest.mark.parametrize("size", [None, 14, 28, 32, np.int64(96)])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 30)])
def test_batches_are_normalised_floats_resized_with_antialiasing(size, shape):
    images = pictures(4, *shape, size=size)
    x, y = next(images.batches(4))
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    side = shape[1:] if size is None else (int(size), int(size))
    expected = F.interpolate(images.images / 255, side, mode="bilinear", antialias=True)
    torch.testing.assert_close(x, (expected - MEAN) / STD)


def test_one_seed_gives_the_same_batches_and_leaves_the_global_one_alone():
    images, before = pictures(50), torch.get_rng_state()
    first, again, other = run(images, 3), run(images, 3), run(images, 4)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 20)])
def test_each_picture_is_flipped_and_shifted_by_two_pixels_at_most_and_keeps_its_label(shape):
    n, (_, h, w) = 400, shape
    one = pictures(1, *shape).images
    images = Images(one.repeat(n, 1, 1, 1), torch.arange(n) % 10)
    variants = []
    for picture in (one[0], one[0].flip(-1)):
        padded = F.pad(picture, (2, 2, 2, 2))
        variants += [padded[:, i : i + h, j : j + w] for i in range(5) for j in range(5)]
    variants = (torch.stack(variants).float() / 255 - MEAN) / STD
    x, y = next(images.batches(n, augment=True, generator=torch.Generator().manual_seed(0)))
    matches = torch.stack([(x == v).flatten(1).all(1) for v in variants])
    assert matches.any(0).all(), "some picture is neither the original nor a small shift of it"
    assert matches.any(1).all(), "some shift or flip never occurs"
    assert torch.equal(y, images.labels)
    assert torch.equal(images.images, one.expand_as(images.images)), "the originals have changed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_batches_are_the_same_on_an_accelerator():
    images = pictures(50)
    x, y = run(images)
    for a, b in (run(images, device="cuda"), run(images.to("cuda"))):
        assert a.device.type == b.device.type == "cuda" and torch.equal(y, b.cpu())
        torch.testing.assert_close(x, a.cpu(), rtol=0, atol=1e-6)


# Own data


def test_a_selection_keeps_pictures_labels_and_settings_together():
    images = replace(pictures(20, size=32), classes=tuple("abcdefghij"))
    mask = images.labels == 3
    for index in (slice(3, 20, 10), torch.tensor([3, 13]), mask, [3, 13], np.array([3, 13])):
        part = images[index]
        assert len(part) == 2 and part.labels.tolist() == [3, 3] and part.size == 32
        assert torch.equal(part.images, images.images[[3, 13]]) and part.classes[9] == "j"
    assert len(images.to("cpu")) == 20
    for odd in (3, "a", None, [[1]], {}, [1, [2]], 1.5, object()):
        with pytest.raises(TypeError, match=r"slice.*train\[3:4\]"):
            images[odd]
    with pytest.raises(TypeError, match="batches"):
        list(images)
    with pytest.raises(ValueError, match="not empty"):
        images[images.labels == 77]


OFF_CPU = SimpleNamespace(device=torch.device("cuda"))  # a generator on an accelerator
U8, I64 = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    "call, arguments, message",
    [
        (
            Images,
            (U8.numpy(), I64),
            "images must be a uint8 tensor .* but these are of type ndarray",
        ),
        (Images, (U8.float(), I64), "images must be a uint8 tensor .* these are torch.float32"),
        (Images, (U8[:, 0], I64), r"\(N, C, H, W\).* but these are .*\(4, 8, 8\)"),
        (Images, (U8[:0], I64[:0]), "not empty"),
        (Images, (U8, I64[:3]), r"labels must be an int64 tensor of shape \(4,\).*\(3,\)"),
        (Images, (U8, I64.float()), "labels must be an int64 tensor .* these are torch.float32"),
        (Images, (U8, [0, 0, 0, 0]), "labels must be an int64 tensor .* these are of type list"),
        (Images, (U8, I64.to("meta")), "labels must be an int64 tensor .* on cpu.* on meta"),
        (Images, (U8, I64 + 10), "labels must be 0 to 9.*from 10 to 10"),
        (Images, (U8, I64 - 1), "labels must be 0 to 9.*from -1 to -1"),
        (Images, (U8, I64 + 2, ("a", "b")), "labels must be 0 to 1"),
        (Images, (U8, I64, data.CLASSES, 0), "size must be a whole number"),
        (
            Images,
            (U8, I64, data.CLASSES, None, (0.1, 0.2)),
            "mean must be one number, or one for each",
        ),
        *(
            (partial(Images, U8, I64, **{name: wrong}), (), f"{name} must be a number from")
            for name, wrong in (
                ("mean", -1),
                ("mean", 110.0),
                ("std", 0),
                ("std", "1"),
                ("std", None),
            )
        ),
        (Images(U8, I64).normalised, ("train",), "like must be the training Images, not 'train'"),
        (partial(Images(U8, I64).batches, generator=OFF_CPU), (2,), "generator must be on the CPU"),
        *(
            (Images(U8, I64).batches, (batch_size,), "batch_size must be a whole number")
            for batch_size in (0, -1, 2.5, None, True)
        ),
        (fashion_mnist, ("all",), "subset must be 'sample' or 'full', not 'all'"),
        (fashion_mnist, ("Full",), "subset must be"),
        (fashion_mnist, ("full", 0), "size must be a whole number from 1 on, not 0"),
        *((fashion_mnist, ("sample", n), "size must be") for n in (0, -3, 28.0, True, (28, 28))),
        (fashion_mnist, ("sample", None, "."), "root= is for the full set: add subset='full'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


# The reader's own images


def test_images_are_normalised_with_the_mean_and_deviation_that_they_are_given():
    images = pictures(9, c=3)
    own = images.normalised()
    x = own.tensors()[0]
    std, mean = torch.std_mean(x.transpose(0, 1).flatten(1), dim=1, correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3))
    test = pictures(4, c=3).normalised(own)
    assert (test.mean, test.std) == (own.mean, own.std) and own[:2].mean == own.mean
    expected = test.images / 255 - torch.tensor(own.mean).view(3, 1, 1)
    torch.testing.assert_close(test.tensors()[0], expected / torch.tensor(own.std).view(3, 1, 1))
    one = replace(images, mean=0.5, std=0.25)
    torch.testing.assert_close(one.tensors()[0], (images.images / 255 - 0.5) / 0.25)
    assert torch.equal(next(own.batches(9))[0], x)


def test_fit_refuses_test_images_on_another_scale():
    train, test = pictures(8).normalised(), pictures(4)
    with pytest.raises(
        ValueError, match=r"normalised by different means.*test.normalised\(train\)"
    ):
        fit(cifar_resnet(8, in_channels=1, width=1), train, test, epochs=1)
    fit(cifar_resnet(8, in_channels=1, width=1), train, test.normalised(train), epochs=2)
    other = replace(test.normalised(train), classes=data.CLASSES[::-1])
    with pytest.raises(ValueError, match="train and test have different classes, or the same in"):
        fit(cifar_resnet(8, in_channels=1, width=1), train, other, epochs=2)


@pytest.fixture
def folder(tmp_path):
    """Two classes of two pictures each, in colour, of different sizes; the second of them is turned
    by its EXIF entry."""
    for name, colour in (("ant", (200, 30, 10)), ("bee", (10, 60, 250))):
        (tmp_path / name).mkdir()
        PIL.Image.new("RGB", (20, 10), colour).save(tmp_path / name / "0.png")
        turned, exif = PIL.Image.new("RGB", (12, 30)), PIL.Image.Exif()
        turned.paste(colour, (0, 0, 12, 15))  # the upper half
        exif[0x0112] = 3  # upside down
        turned.save(tmp_path / name / "1.jpg", exif=exif, quality=95)
    return tmp_path


def test_a_folder_of_pictures_becomes_images_cut_to_their_middle_and_turned_upright(folder):
    images = Images.from_dataset(ImageFolder(folder), size=8)
    assert images.images.shape == (4, 3, 8, 8) and images.labels.tolist() == [0, 0, 1, 1]
    assert images.classes == ("ant", "bee") and len(images.mean) == len(images.std) == 3
    assert images.images[0, :, 4, 4].tolist() == [200, 30, 10]
    dark, light = images.images[1, 0, :3].float().mean(), images.images[1, 0, -3:].float().mean()
    assert light > 150 > 50 > dark  # the coloured half is below now
    test = Images.from_dataset(ImageFolder(folder), 8, like=images[:2])
    assert (test.mean, test.std) == (images.mean, images.std)
    with pytest.raises(ValueError, match=r"item 1 has \(12, 30\) pixels and item 0 \(20, 10\)"):
        Images.from_dataset(ImageFolder(folder))
    fit(cifar_resnet(8, 2, width=1), images, test, epochs=2, batch_size=2)


def test_cifar10_in_its_own_format_is_read_through_torchvision(tmp_path, monkeypatch):
    random, base = np.random.RandomState(0), tmp_path / CIFAR10.base_folder
    base.mkdir()
    lists = {"train_list": [f"data_batch_{i}" for i in range(1, 6)], "test_list": ["test_batch"]}
    for names in lists.values():
        for name in names:
            pixels = random.randint(0, 256, (4, 3072), dtype=np.uint8)
            (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 9]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # the sums of the real one
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    train, test = (CIFAR10(tmp_path, train=part) for part in (True, False))
    images = Images.from_dataset(train)
    assert images.images.shape == (20, 3, 32, 32) and images.classes == tuple("abcdefghij")
    assert torch.equal(images.images[7].permute(1, 2, 0), torch.tensor(train.data[7]))
    assert images.labels.tolist() == train.targets
    assert Images.from_dataset(test, like=images).mean == images.mean
    assert evaluate(cifar_resnet(8), images).loss > 0


class Pictures(list):
    """A data set of these pairs."""

    classes = ("a", "b")


GREY, COLOUR = PIL.Image.new("L", (6, 5), 7), PIL.Image.new("RGB", (6, 5), (1, 2, 3))
SPOT = GREY.copy()
SPOT.putpixel((1, 1), 200)


def test_grey_pictures_have_one_channel_and_mixed_ones_three_unless_like_says_otherwise():
    grey = Images.from_dataset(Pictures([(GREY, 0), (SPOT, 1)]))
    assert grey.images.shape == (2, 1, 5, 6)
    mixed = Pictures([(SPOT, 0), (COLOUR, 1), (SPOT.convert("P"), 1), (COLOUR.convert("RGBA"), 0)])
    assert Images.from_dataset(mixed).images.shape == (4, 3, 5, 6)
    assert Images.from_dataset(mixed, like=grey).images.shape == (4, 1, 5, 6)
    assert Images.from_dataset(Pictures([(SPOT.convert("LA"), 0)])).images.shape[1] == 1


def test_transparent_pixels_are_white_and_a_constant_channel_is_left_undivided():
    logo = PIL.Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    logo.putpixel((1, 2), (0, 250, 0, 255))
    images = Images.from_dataset(Pictures([(logo, torch.tensor(1))]), size=np.int64(4))
    assert images.images[0, :, 0, 0].tolist() == [255] * 3 and images.labels.tolist() == [1]
    assert images.images[0, :, 2, 1].tolist() == [0, 250, 0]
    green = Images.from_dataset(Pictures([(PIL.Image.new("RGB", (2, 2), (0, 7, 0)), 0)]))
    assert green.std == (1, 1, 1) and not green.tensors()[0].any()


def test_a_folder_of_grey_pictures_has_one_channel_and_one_of_16_bits_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    SPOT.save(tmp_path / "a" / "0.png")
    assert Images.from_dataset(ImageFolder(tmp_path)).images.shape == (1, 1, 5, 6)
    PIL.Image.fromarray(np.full((5, 6), 900, np.uint16)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png cannot be used: it has more than 8 bits a pixel"):
        Images.from_dataset(ImageFolder(tmp_path))


def with_classes(names):
    dataset = Pictures([(GREY, 0)])
    dataset.classes = names
    return dataset


@pytest.mark.parametrize(
    "dataset, message",
    [
        (CIFAR10, "dataset must be a torchvision data set"),
        (with_classes(None), "with classes, a list of names; set dataset.classes if it has none"),
        (with_classes("cat"), "with classes, a list of names; set dataset.classes if it has none"),
        ([], "dataset must be a torchvision data set, such as ImageFolder"),
        (Pictures(), "the data set has no images"),
        (
            Pictures([(GREY, 0), (torch.zeros(1, 5, 6), 0)]),
            "item 1 .*, not a PIL image: leave out tr",
        ),
        (Pictures([(GREY, 0.5)]), "item 0 .*its label must be a whole number from 0 on, not 0.5"),
        (Pictures([(GREY, 0), (SPOT, 2)]), "labels must be 0 to 1, one for each name in classes"),
        (Pictures([(SPOT.convert("I"), 0)]), "item 0 .*more than 8 bits a pixel: save it with 8"),
        (Pictures([(SPOT, 0), (GREY.resize((3, 3)), 0)]), "item 1 has .*: choose one size for all"),
        (Pictures([7]), "item 0 of the data set cannot be used"),
    ],
)
def test_what_is_no_data_set_of_pictures_is_refused_with_its_place(dataset, message):
    with pytest.raises(ValueError, match=message):
        Images.from_dataset(dataset)


def test_test_images_must_have_the_training_images_classes(folder):
    images = Images.from_dataset(ImageFolder(folder), size=8)
    (folder / "bee").rename(folder / "aphid")
    with pytest.raises(
        ValueError, match="classes differ from those of the training images: ant, aphid, not"
    ):
        Images.from_dataset(ImageFolder(folder), size=8, like=images)


def test_a_picture_that_cannot_be_opened_is_named(folder):
    (folder / "bee" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0\.png cannot be used: cannot identify image file"):
        Images.from_dataset(ImageFolder(folder), size=8)


# Where the full set comes from


def same(arrays, files):
    train, test = arrays
    tensors = (train.images, train.labels, test.images, test.labels)
    for content, tensor in zip(files.values(), tensors):
        assert content.endswith(tensor.to(torch.uint8).numpy().tobytes())
    assert (len(train), len(test)) == (6, 4) and train.images.shape == (6, 1, 28, 28)
    return True


@pytest.mark.parametrize("gz, kind", [(True, Path), (False, str)])
def test_places_are_searched_in_order_and_nothing_is_written(
    tmp_path, files, cache, monkeypatch, gz, kind
):
    """root may hold the files or torchvision's folders; then come the cache and the system's."""
    mine, read, opened = tmp_path / "mine", data._read, []
    places = [mine, mine / "FashionMNIST" / "raw", cache, tmp_path / "system"]
    for place in places:
        put(files, place, gz)
    monkeypatch.setattr(data, "_read", lambda folder: opened.append(folder) or read(folder))
    for i, place in enumerate(places):
        opened.clear()
        assert same(fashion_mnist("full", root=kind(mine)), files)
        assert opened == places[: i + 1]
        for path in place.glob("*ubyte*"):
            path.unlink()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def whole(content):
    return gzip.compress(content, mtime=0)  # the same archive at any time


def flip_a_bit(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]


DAMAGE = {
    "cut short": (lambda raw: whole(raw)[:-20], "ended before"),
    "archive changed": (lambda raw: flip_a_bit(whole(raw), -6), "CRC"),
    "content changed": (lambda raw: whole(flip_a_bit(raw, -1)), "is not that of Fashion-MNIST"),
    "empty": (lambda raw: b"", "checksum is not"),
    "a web page": (lambda raw: b"<!DOCTYPE html><p>Please log in", "Not a gzipped file"),
}


@pytest.mark.parametrize("change, reason", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_in_root_stops_the_search_and_elsewhere_a_download_replaces_it(
    tmp_path, files, cache, monkeypatch, change, reason
):
    mine, system = tmp_path / "mine", tmp_path / "system"
    damaged = f"cannot be used: {LABELS}.gz is damaged .*{reason}"
    put(files, system)
    for place in (mine, cache, system):
        put(files, place)
        (place / f"{LABELS}.gz").write_bytes(change(files[LABELS]))
        if place == mine:  # the system's copy is whole
            refused(f"mine {damaged}", root=mine)
    with pytest.warns(UserWarning, match="is damaged .*; looking for another copy") as warned:
        refused(f"{cache} {damaged}.*{system} {damaged}.*no network here")
    for place, warning in zip((cache, system), warned, strict=True):
        assert re.search(f"{place} {damaged}", str(warning.message))
    monkeypatch.setattr(data, "_fetch", served(files))
    with pytest.warns(UserWarning, match=f"{LABELS}.gz is damaged"):
        assert same(fashion_mnist("full"), files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(fashion_mnist("full"), files)


def test_what_is_wrong_with_root_is_named(tmp_path, files):
    mine = put(files, tmp_path / "mine", gz=False)
    for root in (tmp_path / "absent", mine / LABELS):
        refused("is not a folder: pass the folder that holds", root=root)
    labels, images = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"
    (mine / LABELS).write_bytes(files[LABELS][:-1])
    (mine / labels).unlink()
    (mine / images).unlink()
    (mine / images).mkdir()
    every = f"{labels} is missing, {LABELS} is damaged .*checksum.*, {images} is damaged"
    refused(every, root=mine)


@pytest.fixture
def mirror(files, monkeypatch):
    """The downloader itself, pointed at a server on this machine that has the tiny set.

    It serves what `mirror.change` makes of each file, under the length that it should have, and
    waits `mirror.pause` seconds after each byte.
    """

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self):
            content = files[Path(self.path).stem]
            body = server.change(content)
            self.send_response(200)
            self.send_header("Content-Length", str(max(len(whole(content)), len(body))))
            self.end_headers()
            with suppress(OSError):
                for i in range(len(body) if server.pause else 0):
                    self.wfile.write(body[i : i + 1])
                    time.sleep(server.pause)
                self.wfile.write(b"" if server.pause else body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.change, server.pause = whole, 0
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(data, "MIRRORS", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(data, "_fetch", FETCH)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("change", [change for change, _ in DAMAGE.values()], ids=DAMAGE)
def test_a_bad_download_is_named_never_used_and_fetched_anew_on_the_next_call(
    files, cache, mirror, change
):
    mirror.change = change
    refused("the download failed .*train-images-idx3-ubyte.gz")
    assert names(cache) == []
    mirror.change = whole
    assert same(fashion_mnist("full"), files)
    assert names(cache) == sorted(files)


def test_the_next_mirror_is_asked_where_the_first_has_damaged_files(files, mirror, monkeypatch):
    server, answers = (
        data.MIRRORS[0],
        iter([b"<html>", *[whole(content) for content in files.values()]]),
    )
    mirror.change = lambda content: next(answers)
    monkeypatch.setattr(data, "MIRRORS", [server, server])
    before = socket.getdefaulttimeout()
    assert same(fashion_mnist("full"), files) and socket.getdefaulttimeout() == before


def test_a_download_ends_in_time_and_takes_no_more_than_it_should(
    files, cache, mirror, monkeypatch
):
    mirror.pause, start = 0.05, time.monotonic()
    monkeypatch.setattr(data, "PATIENCE", 1)
    refused("train-images-idx3-ubyte.gz from .*: the download was not complete after")
    assert time.monotonic() - start < 5 and names(cache) == []
    mirror.pause = 0
    monkeypatch.setattr(data, "PATIENCE", 600)
    monkeypatch.setattr(data, "LARGEST", 9000)
    mirror.change = lambda content: bytes(9001)
    refused("it is larger than any file of Fashion-MNIST")
    reads = []

    class Spy(gzip.GzipFile):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    monkeypatch.setattr(gzip, "GzipFile", Spy)
    mirror.change = lambda content: whole(bytes(10**6))  # a hundred times larger once unpacked
    refused("its checksum is not that of Fashion-MNIST")
    assert set(reads) == {9001}


def test_without_a_home_the_cache_lies_with_the_temporary_files(monkeypatch):
    monkeypatch.delenv("D2LRES_CACHE")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert data._cache().is_relative_to(tempfile.gettempdir())


def test_nothing_anywhere_names_every_place_and_the_way_out(
    tmp_path, files, cache, mirror, monkeypatch
):
    monkeypatch.setattr(data, "_sample", lambda: pytest.fail("the sample was opened"))
    mirror.shutdown()
    mirror.server_close()  # nobody answers on its port any more
    places = [tmp_path / "mine", cache, tmp_path / "system"]
    places[0].mkdir()
    with pytest.raises(DataError, match="cannot be had.*the download failed .*train-im") as error:
        fashion_mnist("full", root=places[0])
    way_out = ["dataset-fashion-mnist", "as root=, or use the sample", *(f"{n}.gz" for n in files)]
    for word in (*places, *way_out):
        assert str(word) in str(error.value)
    assert "\n" not in str(error.value)
    assert names(cache) == [], "the failed download left something behind"


NO_SPACE = OSError(28, "No space left on device")


def test_a_download_that_fails_halfway_is_named_and_leaves_nothing(files, cache, monkeypatch):
    def fill_the_disk(folder):
        Path(folder, "half").write_bytes(b"half a file")
        raise NO_SPACE

    damaged = served({**files, LABELS: files[LABELS][:-1]})
    reasons = {fill_the_disk: r"\(No space left on device\)", damaged: rf"\({LABELS} is damaged"}
    for fetch, reason in reasons.items():
        monkeypatch.setattr(data, "_fetch", fetch)
        refused(f"the download failed {reason}")
        assert names(cache) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("D2LRES_CACHE", str(tmp_path / "file" / "cache"))
    refused("not writable .*D2LRES_CACHE names another folder")


def test_a_download_that_cannot_be_kept_is_used_all_the_same(files, monkeypatch):
    monkeypatch.setattr(data, "_fetch", served(files))
    monkeypatch.setattr(os, "replace", fails(NO_SPACE))
    with pytest.warns(UserWarning, match="could not be kept in .*No space left"):
        assert same(fashion_mnist("full"), files)


def test_two_may_fill_the_cache_at_once_and_later_calls_read_it(files, cache, monkeypatch):
    """Threads, as they can meet at a barrier; like processes they share nothing but the folder."""
    both = threading.Barrier(2, timeout=60)

    def fetch(folder):
        both.wait()
        served(files)(folder)
        both.wait()

    monkeypatch.setattr(data, "_fetch", fetch)
    with ThreadPoolExecutor(2) as pool:
        assert all(same(arrays, files) for arrays in pool.map(fashion_mnist, ["full", "full"]))
    assert names(cache) == sorted(files)
    monkeypatch.setattr(data, "_fetch", None)
    assert same(fashion_mnist("full"), files)
