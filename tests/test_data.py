"""The data: the sample is what it says, batches are exact, and every failure is named.

No test reaches the network: the downloader is replaced everywhere. The tests of the full set use
the system's copy where there is one; the failures are played with a set of ten small pictures."""

import gzip
import hashlib
import os
import runpy
import shutil
import struct
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.datasets import FashionMNIST

from d2lres import data
from d2lres.data import MEAN, STD, DataError, Images, fashion_mnist
from d2lres.records import asset

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


def test_sample_is_balanced_and_of_the_size_asked_for():
    for images, count in zip(fashion_mnist(size=32), (600, 200)):
        assert images.images.shape == (10 * count, 1, 28, 28)
        assert images.labels.bincount(minlength=10).tolist() == [count] * 10
        assert len(images.labels[:100].unique()) == 10, "the classes are not mixed"
        assert images.images.min() == 0 and images.images.max() == 255
        assert images[:2].tensors()[0].shape == (2, 1, 32, 32)


def test_sample_stays_small_and_has_its_licence_beside_it():
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
    counts = train.images.flatten().bincount(minlength=256).double()
    values = torch.arange(256).double() / 255
    mean = (counts * values).sum() / counts.sum()
    std = ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()
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
    monkeypatch.setattr("d2lres.records.__file__", str(tmp_path / "d2lres" / "records.py"))
    monkeypatch.setattr(data, "asset", asset)
    with pytest.raises(DataError, match="without its file.*install it again"):
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
def test_batches_are_normalised_floats_resized_with_antialiasing(size):
    images = pictures(4, size=size)
    x, y = next(images.batches(4))
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    side = (28, 28) if size is None else (int(size), int(size))
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


def test_own_colour_pictures_work():
    x, y = torch.zeros(5, 3, 20, 30, dtype=torch.uint8), torch.tensor([0, 1, 1, 0, 1])
    x, _ = run(Images(x, y, classes=("cat", "dog"), size=16))
    assert x.shape == (5, 3, 16, 16)


def test_a_selection_keeps_pictures_labels_and_settings_together():
    images = pictures(20, size=32)
    mask = images.labels == 3
    for index in (slice(3, 20, 10), torch.tensor([3, 13]), mask, [3, 13], np.array([3, 13])):
        part = images[index]
        assert len(part) == 2 and part.labels.tolist() == [3, 3] and part.size == 32
        assert torch.equal(part.images, images.images[[3, 13]])
    assert len(images.to("cpu")) == 20
    with pytest.raises(TypeError, match=r"slice.*train\[3:4\]"):
        images[3]
    with pytest.raises(TypeError, match="batches"):
        list(images)
    with pytest.raises(ValueError, match="not empty"):
        images[images.labels == 77]


U8, I64 = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((U8.numpy(), I64), "images must be a uint8 tensor .* but these are ndarray"),
        ((U8.float(), I64), "images must be a uint8 tensor .* but these are torch.float32"),
        ((U8[:, 0], I64), r"\(N, C, H, W\).* but these are .*\(4, 8, 8\)"),
        ((U8[:0], I64[:0]), "not empty"),
        ((U8, I64[:3]), r"labels must be an int64 tensor of shape \(4,\).*\(3,\)"),
        ((U8, I64.float()), "labels must be an int64 tensor .* these are torch.float32"),
        ((U8, [0, 0, 0, 0]), "labels must be an int64 tensor .* these are list"),
        ((U8, I64.to("meta")), "labels must be an int64 tensor .* on cpu.* on meta"),
        ((U8, I64 + 10), "labels must be 0 to 9.*from 10 to 10"),
        ((U8, I64 - 1), "labels must be 0 to 9.*from -1 to -1"),
        ((U8, I64 + 2, ("a", "b")), "labels must be 0 to 1"),
        ((U8, I64, data.CLASSES, 0), "size must be a whole number"),
    ],
)
def test_images_that_do_not_fit_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Images(*arguments)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, None, True])
def test_an_impossible_batch_size_is_refused_at_once(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        pictures().batches(batch_size)


def test_a_generator_off_the_cpu_is_refused():
    with pytest.raises(ValueError, match="generator must be on the CPU"):
        pictures().batches(2, generator=SimpleNamespace(device=torch.device("cuda")))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(subset="all"), "subset must be 'sample' or 'full', not 'all'"),
        (dict(subset="Full"), "subset must be"),
        (dict(subset="full", size=0), "size must be a whole number of pixels or None, not 0"),
        *((dict(size=size), "size must be") for size in (0, -3, 28.0, True, (28, 28))),
        (dict(root="."), "root= is for the full set: add subset='full'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fashion_mnist(**arguments)


# Where the full set comes from


def same(arrays, files):
    train, test = arrays
    tensors = (train.images, train.labels, test.images, test.labels)
    for content, tensor in zip(files.values(), tensors):
        assert content.endswith(tensor.to(torch.uint8).numpy().tobytes())
    assert (len(train), len(test)) == (6, 4) and train.images.shape == (6, 1, 28, 28)
    return True


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_root_may_hold_the_files_or_torchvisions_folders(tmp_path, files, place, gz):
    put(files, tmp_path / "mine" / place, gz)
    for root in (tmp_path / "mine", str(tmp_path / "mine")):
        assert same(fashion_mnist("full", root=root), files)
    assert not (tmp_path / "cache").exists()


def test_places_are_searched_in_order(tmp_path, files, cache, monkeypatch):
    mine, read, opened = tmp_path / "mine", data._read, []
    places = [mine, mine / "FashionMNIST" / "raw", cache, tmp_path / "system"]
    for place in places:
        put(files, place)
    monkeypatch.setattr(data, "_read", lambda folder: opened.append(folder) or read(folder))
    for i, place in enumerate(places):
        opened.clear()
        assert same(fashion_mnist("full", root=mine), files)
        assert opened == places[: i + 1]
        for name in files:
            (place / f"{name}.gz").unlink()


def test_a_download_is_kept_in_the_cache_and_used_from_there(files, cache, monkeypatch):
    monkeypatch.setattr(data, "_fetch", served(files))
    assert same(fashion_mnist("full"), files)
    assert names(cache) == sorted(files)
    monkeypatch.setattr(data, "_fetch", None)
    assert same(fashion_mnist("full"), files)


def test_nothing_anywhere_names_every_place_and_the_way_out(tmp_path, files, cache):
    places = [tmp_path / "mine", cache, tmp_path / "system"]
    places[0].mkdir()
    with pytest.raises(DataError) as error:
        fashion_mnist("full", root=places[0])
    way_out = ["no network here", "dataset-fashion-mnist", "root=", *(f"{n}.gz" for n in files)]
    for word in (*places, *way_out):
        assert str(word) in str(error.value)
    assert "\n" not in str(error.value)
    assert names(cache) == [], "the failed download left something behind"


def test_the_sample_never_stands_in_for_the_full_set(monkeypatch):
    monkeypatch.setattr(data, "_sample", lambda: pytest.fail("the sample was opened"))
    refused("cannot be had")


def test_root_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "absent", tmp_path / "file"):
        refused("is not a folder: pass the folder that holds", root=root)


def flip_a_bit(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]


DAMAGE = {
    "cut short": (lambda content: gzip.compress(content)[:-20], "ended before"),
    "archive changed": (lambda content: flip_a_bit(gzip.compress(content), -6), "CRC"),
    "content changed": (
        lambda content: gzip.compress(flip_a_bit(content, -1)),
        "checksum is not that of Fashion-MNIST",
    ),
    "empty": (lambda content: b"", "checksum"),
    "a web page": (lambda content: b"<!DOCTYPE html><p>Please log in", "Not a gzipped file"),
}


@pytest.mark.parametrize("change, reason", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_in_root_is_named_and_stops_the_search(tmp_path, files, change, reason):
    put(files, tmp_path / "system")
    mine = put(files, tmp_path / "mine")
    (mine / f"{LABELS}.gz").write_bytes(change(files[LABELS]))
    refused(f"mine cannot be used: {LABELS}.gz is damaged .*{reason}", root=mine)


def test_every_missing_and_damaged_file_in_root_is_named(tmp_path, files):
    mine = put(files, tmp_path / "mine", gz=False)
    labels, images = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"
    (mine / LABELS).write_bytes(files[LABELS][:-1])
    (mine / labels).unlink()
    (mine / images).unlink()
    (mine / images).mkdir()
    every = f"{labels} is missing, {LABELS} is damaged .*checksum.*, {images} is damaged"
    refused(every, root=mine)


@pytest.mark.parametrize("change, reason", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_copy_is_named_and_replaced_by_a_download(
    tmp_path, files, cache, monkeypatch, change, reason
):
    for place in (cache, tmp_path / "system"):
        put(files, place)
        (place / f"{LABELS}.gz").write_bytes(change(files[LABELS]))
    named = [f"{p} cannot be used: {LABELS}.gz is damaged" for p in (cache, tmp_path / "system")]
    with pytest.warns(UserWarning, match="is damaged .*; looking for another copy") as warned:
        refused(".*".join([*named, "no network here"]))
    for text, warning in zip(named, warned, strict=True):
        assert text in str(warning.message)
    monkeypatch.setattr(data, "_fetch", served(files))
    with pytest.warns(UserWarning, match=f"{LABELS}.gz is damaged"):
        assert same(fashion_mnist("full"), files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(fashion_mnist("full"), files)


def test_a_damaged_download_is_named_and_not_kept(files, cache, monkeypatch):
    monkeypatch.setattr(data, "_fetch", served({**files, LABELS: files[LABELS][:-1]}))
    refused(f"the download failed .*{LABELS} is damaged")
    assert names(cache) == []


@pytest.fixture
def mirror(files, monkeypatch):
    """torchvision's own downloader, pointed at a server on this machine that has the tiny set.

    It serves what `mirror.change` makes of each archive, under the length that it should have.
    """

    class Mirror(BaseHTTPRequestHandler):
        def do_HEAD(self):
            whole = gzip.compress(files[Path(self.path).stem], mtime=0)
            self.body = server.change(whole)
            self.send_response(200)
            self.send_header("Content-Length", str(max(len(whole), len(self.body))))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(self.body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.change = bytes
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    sums = [hashlib.md5(gzip.compress(c, mtime=0)).hexdigest() for c in files.values()]
    archives = [f"{name}.gz" for name in files]
    monkeypatch.setattr(FashionMNIST, "resources", list(zip(archives, sums)))
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(data, "_fetch", FETCH)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


BAD_DOWNLOADS = {
    "a proxy's login page": lambda whole: b"<!DOCTYPE html><p>Please log in</p>" * 9,
    "cut short": lambda whole: whole[: len(whole) // 2],
    "one bit flipped": lambda whole: flip_a_bit(whole, 40),
    "empty": lambda whole: b"",
}


@pytest.mark.parametrize("change", BAD_DOWNLOADS.values(), ids=BAD_DOWNLOADS)
def test_a_bad_download_is_named_never_used_and_fetched_anew_on_the_next_call(
    files, cache, mirror, change
):
    mirror.change = change
    refused("the download failed .*train-images-idx3-ubyte.gz")
    assert names(cache) == []
    mirror.change = bytes
    assert same(fashion_mnist("full"), files)
    assert names(cache) == sorted(files)


def test_without_a_network_the_way_out_is_named(cache, mirror):
    mirror.shutdown()
    mirror.server_close()  # nobody answers on its port any more
    way_out = "or put .* as root=, or use the sample"
    refused(f"the download failed .*train-images.*{way_out}")
    assert names(cache) == []


NO_SPACE = OSError(28, "No space left on device")


def test_a_disk_that_fills_during_the_download_is_named_and_left_clean(cache, monkeypatch):
    def fetch(folder):
        Path(folder, "half").write_bytes(b"half a file")
        raise NO_SPACE

    monkeypatch.setattr(data, "_fetch", fetch)
    refused(r"the download failed \(No space left on device\)")
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


def fetch_beside_another(server):
    """A download that ends at the same moment as the one of another process."""

    def together(folder, pattern):
        deadline = time.monotonic() + 60
        while len(list(folder.parent.glob(pattern))) < 2:
            assert time.monotonic() < deadline, "the other process never came"
            time.sleep(0.001)

    def fetch(folder):
        folder = Path(folder)
        together(folder, "download-*")
        shutil.copytree(server, folder / "FashionMNIST" / "raw")
        folder.with_name(f"ready-{folder.name}").touch()
        together(folder, "ready-*")

    return fetch


def test_two_processes_may_fill_the_cache_at_once(tmp_path, files, cache, monkeypatch):
    server = str(put(files, tmp_path / "server", gz=False))
    code = (
        f"import test_data; from test_data import data; data.SHA256 = {data.SHA256!r}; "
        f"data.SYSTEM_FOLDERS = (); data._fetch = test_data.fetch_beside_another({server!r}); "
        "print(*map(len, data.fashion_mnist('full')))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    options = dict(env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", code], **options)
    monkeypatch.setattr(data, "_fetch", fetch_beside_another(server))
    assert same(fashion_mnist("full"), files)
    out, err = other.communicate(timeout=60)
    assert (out, other.returncode) == ("6 4\n", 0), err
    assert [name for name in names(cache) if "ready" not in name] == sorted(files)
    monkeypatch.setattr(data, "_fetch", None)
    assert same(fashion_mnist("full"), files)
