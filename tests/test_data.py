"""The data: the sample is what it says, batches are exact, and every failure is named.

No test reaches the network: the downloader is replaced everywhere. The tests of the full set use
the system's copy where there is one; the failures are played with a set of ten small pictures."""

import gzip
import hashlib
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from d2lres import data
from d2lres._assets import asset
from d2lres.data import MEAN, STD, DataError, Images, fashion_mnist

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = next((folder for folder in data.SYSTEM_FOLDERS if folder.is_dir()), None)
FETCH = data._fetch
needs_full_set = pytest.mark.skipif(SYSTEM is None, reason="the full set is not on this machine")
LABELS = "train-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No cache, no system folder and no network, unless a test provides one."""

    def no_network(folder):
        raise ConnectionError("no network here")

    monkeypatch.setenv("D2LRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", (tmp_path / "system",))
    monkeypatch.setattr(data, "_fetch", no_network)


@pytest.fixture
def full_set(monkeypatch):
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", (SYSTEM,))


@pytest.fixture
def files(monkeypatch):
    """The four files of a tiny 'full' set, as bytes, with the checksums that data.py expects."""
    random = np.random.RandomState(0)
    contents = {}
    for name in data.SHA256:
        shape = (6 if name.startswith("train") else 4,) + (28, 28) * ("images" in name)
        header = struct.pack(f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape)
        contents[name] = header + random.randint(0, 10, shape).astype(np.uint8).tobytes()
    monkeypatch.setattr(
        data, "SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()}
    )
    return contents


def put(files, folder, gz=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(content, 1) if gz else content)
    return folder


def cached(tmp_path):
    return tmp_path / "cache" / "FashionMNIST" / "raw"


def pictures(n=16, c=1, h=28, w=28):
    random = torch.Generator().manual_seed(1)
    return Images(
        torch.randint(0, 256, (n, c, h, w), generator=random, dtype=torch.uint8),
        torch.arange(n) % 10,
    )


# The sample


def test_sample_is_balanced():
    for images, count in zip(fashion_mnist(), (600, 200)):
        assert images.images.shape == (10 * count, 1, 28, 28)
        assert images.labels.bincount(minlength=10).tolist() == [count] * 10
        assert len(images.labels[:100].unique()) == 10, "the classes are not mixed"
        assert images.images.min() == 0 and images.images.max() == 255


def test_sample_stays_small_and_has_its_licence_beside_it():
    assert asset("fashion_mnist_sample.npz").stat().st_size < 4_000_000
    text = asset("FASHION_MNIST_LICENSE.txt").read_text(encoding="utf-8")
    assert "MIT License" in text and "Zalando" in text and "github.com/zalandoresearch" in text


@needs_full_set
def test_sample_is_what_its_script_makes_from_the_full_set(full_set):
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "assets" / "make_sample.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.make()
    with np.load(asset("fashion_mnist_sample.npz"), allow_pickle=False) as sample:
        assert set(sample) == set(made)
        for name in sample:
            assert sample[name].dtype == np.uint8
            assert np.array_equal(sample[name], made[name]), name


@needs_full_set
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
    path = tmp_path / "fashion_mnist_sample.npz"
    monkeypatch.setattr(data, "asset", lambda name: path)
    middle = len(good) // 2
    for bad in (good[:middle], b"<html>", good[:middle] + b"?" * 9 + good[middle + 9 :]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="fashion_mnist_sample.npz.*install d2lres again"):
            fashion_mnist()
    np.savez(path, train_images=np.array([{}], dtype=object))  # a pickle is never opened
    with pytest.raises(DataError, match="allow_pickle=False"):
        fashion_mnist()
    monkeypatch.setattr("d2lres._assets.__file__", str(tmp_path / "d2lres" / "_assets.py"))
    monkeypatch.setattr(data, "asset", asset)
    path.unlink()
    with pytest.raises(DataError, match="install it again"):
        fashion_mnist()


# Batches


def test_a_pass_shows_every_picture_once():
    images = pictures(23)
    for shuffle in (False, True):
        batches = list(images.batches(10, shuffle=shuffle))
        assert [len(x) for x, _ in batches] == [10, 10, 3]
        x, y = (torch.cat(parts) for parts in zip(*batches))
        all_x, all_y = images.tensors()
        match = (x[:, None] == all_x[None]).flatten(2).all(2)
        assert match.sum(0).tolist() == match.sum(1).tolist() == [1] * 23
        found = match.int().argmax(1)
        assert torch.equal(y, all_y[found])
        assert torch.equal(found, torch.arange(23)) != shuffle


def test_batches_are_normalised_floats():
    images = pictures(4)
    x, y = next(images.batches(4))
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    torch.testing.assert_close(x, (images.images.float() / 255 - MEAN) / STD)


@pytest.mark.parametrize("size", [14, 28, 32, 96])
def test_size_resizes_each_batch_with_antialiasing(size):
    images = pictures(4)
    x, _ = next(Images(images.images, images.labels, size=size).batches(4))
    expected = F.interpolate(images.images / 255, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(x, (expected - MEAN) / STD)


def test_size_reaches_both_sets():
    for images in fashion_mnist(size=32):
        assert images[:2].tensors()[0].shape == (2, 1, 32, 32)


def test_one_seed_gives_the_same_batches_and_leaves_the_global_one_alone():
    images = pictures(50)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.cat(parts)
            for parts in zip(*images.batches(8, shuffle=True, augment=True, generator=generator))
        ]

    before = torch.get_rng_state()
    first, again, other = run(3), run(3), run(4)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 20)])
def test_augmentation_flips_and_shifts_by_two_pixels_at_most_and_keeps_labels(shape):
    n = 400
    one = pictures(1, *shape).images
    images = Images(one.repeat(n, 1, 1, 1), torch.arange(n) % 10)
    c, h, w = shape
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


def test_augmentation_draws_for_each_picture_and_does_not_touch_the_originals():
    images = pictures(1)
    copies = Images(images.images.repeat(64, 1, 1, 1), torch.zeros(64, dtype=torch.int64))
    original = copies.images.clone()
    x, _ = next(copies.batches(64, augment=True, generator=torch.Generator().manual_seed(0)))
    assert len(x.unique(dim=0)) > 10
    assert torch.equal(copies.images, original)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_batches_are_the_same_on_an_accelerator():
    images = pictures(50)

    def run(images, **options):
        return list(
            images.batches(
                16,
                shuffle=True,
                augment=True,
                generator=torch.Generator().manual_seed(0),
                **options,
            )
        )

    for there in (run(images, device="cuda"), run(images.to("cuda"))):
        for (x, y), (a, b) in zip(run(images), there):
            assert a.device.type == b.device.type == "cuda"
            assert torch.equal(y, b.cpu())
            torch.testing.assert_close(x, a.cpu(), rtol=0, atol=1e-6)


# Own data


def test_own_colour_pictures_work():
    images = Images(
        torch.zeros(5, 3, 20, 30, dtype=torch.uint8),
        torch.tensor([0, 1, 1, 0, 1]),
        classes=("cat", "dog"),
        size=16,
    )
    x, y = next(images.batches(5, shuffle=True, augment=True))
    assert x.shape == (5, 3, 16, 16)


def test_a_selection_keeps_pictures_labels_and_settings_together():
    images = Images(pictures(20).images, torch.arange(20) % 10, size=32)
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


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, None])
def test_an_impossible_batch_size_is_refused_at_once(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        pictures().batches(batch_size)


def test_a_generator_off_the_cpu_is_refused():
    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(ValueError, match="generator must be on the CPU"):
        pictures().batches(2, generator=Elsewhere())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(subset="all"), "subset must be 'sample' or 'full', not 'all'"),
        (dict(subset="Full"), "subset must be"),
        (dict(size=0), "size must be a whole number of pixels or None, not 0"),
        (dict(size=-3), "size must be"),
        (dict(size=28.0), "size must be"),
        (dict(size=True), "size must be"),
        (dict(size=(28, 28)), "size must be"),
        (dict(subset="full", size=0), "size must be"),
        (dict(root="."), "root= is for the full set: add subset='full'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fashion_mnist(**arguments)


# Where the full set comes from


def same(arrays, files):
    train, test = arrays
    for content, tensor in zip(
        files.values(), (train.images, train.labels, test.images, test.labels)
    ):
        assert content.endswith(tensor.to(torch.uint8).numpy().tobytes())
    assert (len(train), len(test)) == (6, 4) and train.images.shape == (6, 1, 28, 28)
    return True


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_root_may_hold_the_files_or_torchvisions_folders(tmp_path, files, place, gz):
    put(files, tmp_path / "mine" / place, gz)
    assert same(fashion_mnist("full", root=tmp_path / "mine"), files)
    assert same(fashion_mnist("full", root=str(tmp_path / "mine")), files)
    assert not (tmp_path / "cache").exists()


def test_places_are_searched_in_order(tmp_path, files, monkeypatch):
    places = [tmp_path / "mine", cached(tmp_path), tmp_path / "system"]
    for place in places:
        put(files, place)
    opened = []
    read = data._read_idx
    monkeypatch.setattr(
        data, "_read_idx", lambda path, sha: opened.append(path.parent) or read(path, sha)
    )
    for place in places:
        opened.clear()
        assert same(fashion_mnist("full", root=tmp_path / "mine"), files)
        assert set(opened) == {place}
        for file in place.iterdir():
            file.unlink()


def test_a_download_is_kept_in_the_cache_and_used_from_there(tmp_path, files, monkeypatch):
    monkeypatch.setattr(
        data, "_fetch", lambda folder: put(files, Path(folder, "FashionMNIST", "raw"), gz=False)
    )
    assert same(fashion_mnist("full"), files)
    assert sorted(p.name for p in cached(tmp_path).iterdir()) == sorted(files)
    monkeypatch.setattr(data, "_fetch", None)
    assert same(fashion_mnist("full"), files)


def test_nothing_anywhere_names_every_place_and_the_way_out(tmp_path, files):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError) as error:
        fashion_mnist("full", root=tmp_path / "mine")
    text = str(error.value)
    for word in (
        tmp_path / "mine",
        cached(tmp_path),
        tmp_path / "system",
        "no network here",
        "dataset-fashion-mnist",
        "root=",
        *(f"{name}.gz" for name in files),
    ):
        assert str(word) in text
    assert "\n" not in text
    assert list(cached(tmp_path).iterdir()) == [], "the failed download left something behind"


def test_the_sample_never_stands_in_for_the_full_set(monkeypatch):
    monkeypatch.setattr(data, "_sample", lambda: pytest.fail("the sample was opened"))
    with pytest.raises(DataError):
        fashion_mnist("full")


def test_root_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(DataError, match="is not a folder: pass the folder that holds"):
            fashion_mnist("full", root=root)


def truncate(content):
    return gzip.compress(content)[:-20]


def flip_a_bit_of_the_archive(content):
    packed = bytearray(gzip.compress(content))
    packed[-6] ^= 1
    return bytes(packed)


def flip_a_bit_of_the_content(content):
    return gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))


DAMAGE = {
    "cut short": (truncate, "ended before"),
    "archive changed": (flip_a_bit_of_the_archive, "CRC"),
    "content changed": (flip_a_bit_of_the_content, "checksum is not that of Fashion-MNIST"),
    "empty": (lambda content: b"", "checksum"),
    "a web page": (lambda content: b"<!DOCTYPE html><p>Please log in", "Not a gzipped file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_in_root_is_named_and_stops_the_search(tmp_path, files, damage):
    change, reason = DAMAGE[damage]
    put(files, tmp_path / "system")
    mine = put(files, tmp_path / "mine")
    (mine / f"{LABELS}.gz").write_bytes(change(files[LABELS]))
    with pytest.raises(DataError, match=f"mine cannot be used: {LABELS}.gz is damaged .*{reason}"):
        fashion_mnist("full", root=mine)


def test_every_missing_and_damaged_file_in_root_is_named(tmp_path, files):
    mine = put(files, tmp_path / "mine", gz=False)
    (mine / LABELS).write_bytes(files[LABELS][:-1])
    (mine / "t10k-labels-idx1-ubyte").unlink()
    (mine / "t10k-images-idx3-ubyte").unlink()
    (mine / "t10k-images-idx3-ubyte").mkdir()
    with pytest.raises(
        DataError,
        match="t10k-labels-idx1-ubyte is missing, "
        f"{LABELS} is damaged .*checksum.*, "
        "t10k-images-idx3-ubyte is damaged",
    ):
        fashion_mnist("full", root=mine)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_named_and_replaced_by_a_download(tmp_path, files, monkeypatch, damage):
    put(files, cached(tmp_path))
    bad = cached(tmp_path) / f"{LABELS}.gz"
    bad.write_bytes(DAMAGE[damage][0](files[LABELS]))
    with pytest.warns(UserWarning, match=f"{LABELS}.gz is damaged .*looking for another copy"):
        with pytest.raises(DataError, match=f"{LABELS}.gz is damaged .*no network here"):
            fashion_mnist("full")
    monkeypatch.setattr(
        data, "_fetch", lambda folder: put(files, Path(folder, "FashionMNIST", "raw"), gz=False)
    )
    with pytest.warns(UserWarning, match=f"{LABELS}.gz is damaged"):
        assert same(fashion_mnist("full"), files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(fashion_mnist("full"), files)


def test_a_damaged_system_copy_is_named_and_passed_over(tmp_path, files):
    put(files, tmp_path / "system")
    (tmp_path / "system" / f"{LABELS}.gz").write_bytes(truncate(files[LABELS]))
    with pytest.warns(UserWarning, match=f"system cannot be used: {LABELS}.gz is damaged"):
        with pytest.raises(DataError, match=f"system cannot be used: {LABELS}.gz is damaged"):
            fashion_mnist("full")


def test_a_damaged_download_is_named_and_not_kept(tmp_path, files, monkeypatch):
    damaged = {**files, LABELS: files[LABELS][:-1]}
    monkeypatch.setattr(
        data, "_fetch", lambda folder: put(damaged, Path(folder, "FashionMNIST", "raw"), gz=False)
    )
    with pytest.raises(DataError, match=f"the download failed .*{LABELS} is damaged"):
        fashion_mnist("full")
    assert list(cached(tmp_path).iterdir()) == []


class Mirror(BaseHTTPRequestHandler):
    """Serves `files`, gzipped, each changed by `change`, under the length that it should have."""

    def do_HEAD(self):
        name = self.path.strip("/").removesuffix(".gz")
        whole = gzip.compress(self.files[name], mtime=0)
        self.body = type(self).change(whole)
        self.send_response(200)
        self.send_header("Content-Length", str(max(len(whole), len(self.body))))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.body)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(files, monkeypatch):
    """torchvision's own downloader, pointed at a server on this machine that has the tiny set."""
    datasets = pytest.importorskip("torchvision.datasets")
    handler = type("Handler", (Mirror,), {"files": files, "change": staticmethod(bytes)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    sums = [
        (f"{name}.gz", hashlib.md5(gzip.compress(content, mtime=0)).hexdigest())
        for name, content in files.items()
    ]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    monkeypatch.setattr(
        datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
    )
    monkeypatch.setattr(data, "_fetch", FETCH)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield handler, server
    server.shutdown()
    server.server_close()


BAD_DOWNLOADS = {
    "a proxy's login page": lambda whole: b"<!DOCTYPE html><p>Please log in</p>" * 9,
    "cut short": lambda whole: whole[: len(whole) // 2],
    "one bit flipped": lambda whole: whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
    "empty": lambda whole: b"",
}


@pytest.mark.parametrize("what", BAD_DOWNLOADS)
def test_a_bad_download_is_named_never_used_and_fetched_anew_on_the_next_call(
    tmp_path, files, mirror, what
):
    handler, _ = mirror
    handler.change = staticmethod(BAD_DOWNLOADS[what])
    with pytest.raises(DataError, match="the download failed .*train-images-idx3-ubyte.gz"):
        fashion_mnist("full")
    assert list(cached(tmp_path).iterdir()) == []
    handler.change = staticmethod(bytes)
    assert same(fashion_mnist("full"), files)
    assert sorted(path.name for path in cached(tmp_path).iterdir()) == sorted(files)


def test_without_a_network_the_way_out_is_named(tmp_path, mirror):
    _, server = mirror
    server.shutdown()
    server.server_close()  # nobody answers on its port any more
    way_out = "or put .* as root=, or use the sample"
    with pytest.raises(DataError, match=f"the download failed .*train-images.*{way_out}"):
        fashion_mnist("full")
    assert list(cached(tmp_path).iterdir()) == []


def test_a_disk_that_fills_during_the_download_is_named_and_left_clean(tmp_path, monkeypatch):
    def fetch(folder):
        Path(folder, "half").write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "_fetch", fetch)
    with pytest.raises(DataError, match=r"the download failed \(No space left on device\)"):
        fashion_mnist("full")
    assert list(cached(tmp_path).iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("D2LRES_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="not writable .*D2LRES_CACHE names another folder"):
        fashion_mnist("full")


def test_a_download_that_cannot_be_kept_is_used_all_the_same(files, monkeypatch):
    monkeypatch.setattr(
        data, "_fetch", lambda folder: put(files, Path(folder, "FashionMNIST", "raw"), gz=False)
    )

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.warns(UserWarning, match="could not be kept in .*No space left"):
        assert same(fashion_mnist("full"), files)


def fetch_beside_another(server):
    """A download that ends at the same moment as the one of another process."""

    def together(folder, pattern):
        for _ in range(60_000):
            if len(list(folder.parent.glob(pattern))) == 2:
                return
            time.sleep(0.001)
        raise TimeoutError("the other process never came")

    def fetch(folder):
        folder = Path(folder)
        together(folder, "download-*")
        shutil.copytree(server, folder / "FashionMNIST" / "raw")
        folder.with_name(f"ready-{folder.name}").touch()
        together(folder, "ready-*")

    return fetch


def test_two_processes_may_fill_the_cache_at_once(tmp_path, files, monkeypatch):
    server = str(put(files, tmp_path / "server", gz=False))
    code = (
        f"import test_data; from test_data import data; data.SHA256 = {data.SHA256!r}; "
        f"data.SYSTEM_FOLDERS = (); data._fetch = test_data.fetch_beside_another({server!r}); "
        "print(*map(len, data.fashion_mnist('full')))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    monkeypatch.setattr(data, "_fetch", fetch_beside_another(server))
    assert same(fashion_mnist("full"), files)
    out, err = other.communicate(timeout=60)
    assert (out, other.returncode) == ("6 4\n", 0), err
    assert {p.name for p in cached(tmp_path).iterdir() if "ready" not in p.name} == set(files)
    monkeypatch.setattr(data, "_fetch", None)
    assert same(fashion_mnist("full"), files)


def test_local_copies_tells_what_is_where(tmp_path, files):
    put(files, tmp_path / "system")
    (tmp_path / "system" / f"{LABELS}.gz").unlink()
    assert data.local_copies() == {
        cached(tmp_path): "none of the four files",
        tmp_path / "system": f"{tmp_path / 'system'} cannot be used: {LABELS} is missing",
    }
    put(files, tmp_path / "system")
    assert data.local_copies()[tmp_path / "system"] == "complete"
