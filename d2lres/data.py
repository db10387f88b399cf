"""Fashion-MNIST in memory: the bundled sample, or the full set from a local copy or a download.

28x28 grey images of ten kinds of clothing: Xiao, Rasul and Vollgraf, arXiv 1708.07747, 2017. A
whole set is one tensor, so a batch is a few tensor operations: no workers, no loop over images."""

import gzip
import hashlib
import io
import os
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from d2lres.arguments import instance, number, shown, whole
from d2lres.records import asset

NAMES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
CLASSES = tuple(NAMES.split(", "))
MEAN, STD = 0.2860, 0.3530  # of all pixels of the 60,000 training images, on the scale 0..1
SHIFT = 2  # augmentation moves an image by at most this many pixels

# Checksums of the files after decompression: two gzip files with equal content can differ.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
LARGEST = 47_040_016  # bytes of the first of them
MIRRORS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # torchvision's, has no https
)
PATIENCE = 600  # seconds for all four
SYSTEM_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"),)  # Debian: dataset-fashion-mnist
ABSENT = "none of the four files"


class DataError(RuntimeError):
    """A data set is missing or damaged; the message names what, where, and what to do."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images in memory: Fashion-MNIST, or your own, from tensors or by `from_dataset`.

    images: uint8 (N, C, H, W), 0 to 255.  labels: int64 (N,), each below `len(classes)`.
    size: side of the square images that `batches` and `tensors` return; None keeps H and W.
    mean, std: what these normalise with, on the scale 0 to 1: a number for all channels or one for
        each. The default is Fashion-MNIST's; `normalised` takes that of other images.
    Raises ValueError when these do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = CLASSES
    size: int | None = None
    mean: float | tuple[float, ...] = MEAN
    std: float | tuple[float, ...] = STD

    def __post_init__(self) -> None:
        x, y = self.images, self.labels
        if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 4 or not x.numel():
            wanted = "images must be a uint8 tensor of shape (N, C, H, W), not empty"
            raise ValueError(f"{wanted}, but these are {shown(x)}.")
        expected = torch.int64, x.shape[:1], x.device
        if not isinstance(y, Tensor) or (y.dtype, y.shape, y.device) != expected:
            wanted = f"labels must be an int64 tensor of shape ({len(x)},) on {x.device}"
            raise ValueError(f"{wanted}, one for each image, but these are {shown(y)}.")
        if not isinstance(self.classes, (tuple, list)):
            raise ValueError(f"classes must be a tuple of names, not {shown(self.classes)}.")
        if y.min() < 0 or y.max() >= len(self.classes):
            wanted = f"labels must be 0 to {len(self.classes) - 1}, one for each name in classes"
            raise ValueError(f"{wanted}, but they run from {y.min()} to {y.max()}.")
        if self.size is not None:
            whole("size", self.size)
        for name in ("mean", "std"):
            value = getattr(self, name)
            values = value if isinstance(value, (tuple, list)) else [value]
            if len(values) not in (1, x.shape[1]):
                what = f"{name} must be one number, or one for each of {x.shape[1]} channels"
                raise ValueError(f"{what}, not {len(values)} numbers.")
            least = 1e-6 if name == "std" else 0
            object.__setattr__(self, name, tuple(number(name, v, least, 1) for v in values))

    @classmethod
    def from_dataset(cls, dataset: Any, size: int | None = None, *, like: Any = None) -> "Images":
        """All images of a torchvision data set, such as ImageFolder(folder) or CIFAR10(root).

        dataset: pairs of a PIL image and a label, with `classes`; so it has no `transform`. What is
            transparent becomes white, and what a telephone has turned is turned back.
        size: each image's shorter side gets this length and its middle is cut out; None: all images
            have one size already.
        like: the training images, if these are for testing: the same channels, classes and
            normalisation. The default is one channel if all images are grey, else three, and these
            images' own mean and deviation.
        Raises ValueError for what is no image, and for what does not fit together.
        """
        from torchvision.transforms.functional import pil_to_tensor

        instance("like", like, (Images, type(None)), "the training Images")
        size = None if size is None else whole("size", size)
        classes = getattr(dataset, "classes", None)
        if not isinstance(classes, (list, tuple)) or not hasattr(dataset, "__getitem__"):
            wanted = (
                "a torchvision data set, such as ImageFolder(folder), with classes, a list of names"
            )
            raise ValueError(f"dataset must be {wanted}; set dataset.classes if it has none.")
        if like and list(like.classes) != list(classes):
            theirs = f"{', '.join(map(str, classes))}, not {', '.join(map(str, like.classes))}"
            raise ValueError(f"the classes differ from those of the training images: {theirs}.")
        pictures, labels = [], []
        for i in range(len(dataset)):
            picture, label = _item(dataset, i, size)
            pictures.append(picture)
            labels.append(label)
            if picture.size != pictures[0].size:
                what = f"item {i} has {picture.size} pixels and item 0 {pictures[0].size}"
                raise ValueError(f"{what}: choose one size for all by size=.")
        if not pictures:
            raise ValueError("the data set has no images.")
        grey = len(like.images[0]) == 1 if like else all(p.mode == "L" for p in pictures)
        x = [pil_to_tensor(picture.convert("L" if grey else "RGB")) for picture in pictures]
        return cls(torch.stack(x), torch.tensor(labels), tuple(classes)).normalised(like)

    def normalised(self, like: Any = None) -> "Images":
        """The same images, with their own mean and deviation of each channel, or those of `like`.

        Test images belong on the scale of the training images: `test.normalised(train)`. A channel
        of one value is not divided.
        """
        if instance("like", like, (Images, type(None)), "the training Images"):
            return replace(self, mean=like.mean, std=like.std)
        counts = [channel.flatten().bincount(minlength=256) for channel in self.images.unbind(1)]
        shares = torch.stack(counts).cpu().double() / (self.images.numel() / len(counts))
        levels = torch.arange(256).double() / 255
        mean = shares @ levels
        std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
        return replace(self, mean=tuple(mean.tolist()), std=tuple(std.where(std > 0, 1).tolist()))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> "Images":
        """The images of a slice, of an index tensor or of a boolean mask, as Images."""
        if not isinstance(index, slice):
            with suppress(TypeError, ValueError, RuntimeError):  # a text, None, lists of lists
                index = torch.as_tensor(index, device=self.images.device)
            if not isinstance(index, Tensor) or index.ndim != 1:
                how = "train[3:4]; train.batches(128) iterates over them"
                raise TypeError(f"Select images with a slice or a 1-D tensor, as in {how}.")
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> "Images":
        """The same images on `device`; from there on, batches are made there."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The whole set as one batch, in order: x float32 (N, C, H, W) and y int64 (N,)."""
        return self._normalise(self.images), self.labels

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        augment: bool = False,
        device: torch.device | str | None = None,
        part: slice = slice(None),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the set, each image once: x float32 (B, C, H, W), y int64 (B,).

        x is `(pixel / 255 - mean) / std`, resized to `size`. The last batch may be smaller.
        augment: flip each image left to right with probability 1/2 and move it by up to 2 pixels.
        generator: decides order and augmentation, the same on every `device` (None: PyTorch's).
        device: where x and y go; None leaves them where the images are.
        part: a process's share of each batch, with the same random numbers as for all of it.
        Raises ValueError for a batch size below 1 and for a generator that is not on the CPU.
        """
        batch_size = whole("batch_size", batch_size)
        if generator is not None and generator.device.type != "cpu":
            raise ValueError("generator must be on the CPU: torch.Generator().manual_seed(0).")
        home, n = self.images.device, len(self)
        order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)

        def batch(index):
            x, y = self.images[index], self.labels[index]
            x, y = (_augment(x, generator) if augment else x)[part], y[part]
            return self._normalise(x.to(device or home)), y.to(device or home)

        return (batch(index) for index in order.to(home).split(batch_size))

    def _normalise(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            shrinks = self.size < max(x.shape[-2:])  # else antialiasing would change nothing
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=shrinks)
        mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


def _item(dataset: Any, i: int, size: int | None) -> tuple[Image.Image, int]:
    """Picture i, in grey or in colour, upright and opaque, and its label."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms.functional import center_crop, resize

    where = f"item {i} of the data set"
    try:
        if getattr(dataset, "loader", None) is default_loader:  # which makes all of them RGB
            where, label = dataset.samples[i]
            picture: Any = Image.open(where)
        else:
            picture, label = dataset[i]
        if not isinstance(picture, Image.Image):
            raise ValueError(f"it is {shown(picture)}, not a PIL image: leave out transform=")
        if picture.mode[0] in "IF":
            raise ValueError("it has more than 8 bits a pixel: save it with 8")
        kind = "L" if picture.mode in ("1", "L", "LA") else "RGB"
        picture = ImageOps.exif_transpose(picture)
        if "A" in picture.getbands() or "transparency" in picture.info:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        picture = picture.convert(kind)
        label = whole("its label", label.item() if hasattr(label, "item") else label, 0)
        return (center_crop(resize(picture, size), size) if size else picture), label
    except Exception as error:  # PIL and data sets raise whatever the file leads them to
        raise ValueError(f"{where} cannot be used: {_reason(error)}") from error


def fashion_mnist(
    subset: str = "sample", size: int | None = None, root: str | Path | None = None
) -> tuple[Images, Images]:
    """Training and test set of Fashion-MNIST (Xiao et al. 2017), in memory.

    subset: "sample", 6,000 and 2,000 images that come with the course, each class as often; or
    "full", all 60,000 and 10,000. The sample never stands in for the full set.
    size: side in pixels of the batches; None keeps 28.
    root: searched first for the full set: the four files, gzipped or not, or torchvision's folders.
    Then come the cache (`D2LRES_CACHE`, else ~/.cache/d2lres), the system's folder and a download.
    Checksums are verified, and damaged files are never used.
    Raises ValueError for arguments that make no sense and DataError if the data cannot be had.
    """
    if size is not None:
        whole("size", size)
    if not isinstance(subset, str) or subset not in ("sample", "full"):
        raise ValueError(f"subset must be 'sample' or 'full', not {shown(subset)}.")
    instance("root", root, (str, os.PathLike, type(None)), "the path of a folder")
    if subset == "sample" and root is not None:
        raise ValueError("root= is for the full set: add subset='full', or leave root out.")
    x, y, test_x, test_y = map(torch.tensor, _sample() if subset == "sample" else _full(root))
    train = Images(x[:, None], y.long(), size=size)
    return train, Images(test_x[:, None], test_y.long(), size=size)


def _augment(images: Tensor, generator: torch.Generator | None) -> Tensor:
    n, c, h, w = images.shape
    flip = torch.rand(n, 1, generator=generator) < 0.5
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, n, 1), generator=generator)
    # A window of h x w pixels is cut out of each padded image: one gather for the whole batch.
    rows, columns = down + torch.arange(h), right + torch.arange(w)
    columns = torch.where(flip, columns.flip(1), columns)
    picture, channel = torch.arange(n).view(n, 1, 1, 1), torch.arange(c).view(1, c, 1, 1)
    window = (picture, channel, rows.view(n, 1, h, 1), columns.view(n, 1, 1, w))
    return F.pad(images, (SHIFT,) * 4)[tuple(i.to(images.device) for i in window)]


def _sample() -> list[np.ndarray]:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with np.load(asset("fashion_mnist_sample.npz"), allow_pickle=False) as file:
            return [file[name] for name in names]
    except Exception as error:  # zipfile and numpy raise half a dozen kinds for a damaged file
        what = "The bundled sample fashion_mnist_sample.npz cannot be read"
        raise DataError(f"{what}, install d2lres again: {_reason(error)}") from error


def _raw(root: str | Path) -> Path:
    return Path(os.path.expanduser(root), "FashionMNIST", "raw")


def _cache() -> Path:
    home = os.path.expanduser("~")
    without = tempfile.gettempdir() if home == "~" else home  # a user without a home or a name
    return _raw(os.environ.get("D2LRES_CACHE") or Path(without, ".cache", "d2lres"))


def _full(root: str | Path | None) -> list[np.ndarray]:
    given = [] if root is None else [Path(os.path.expanduser(root)), _raw(root)]
    if given and not given[0].is_dir():
        what = "pass the folder that holds the four Fashion-MNIST files"
        raise DataError(f"root={str(root)!r} is not a folder: {what}.")
    tried = []
    for folder in (*given, _cache(), *SYSTEM_FOLDERS):
        arrays, problem = _read(folder)
        if not problem:
            return arrays
        tried.append(f"{folder} cannot be used: {problem}")
        if problem != ABSENT and folder in given:
            raise DataError(f"{tried[-1]}; put whole files there, or leave root= out.")
        if problem != ABSENT:
            warnings.warn(f"{tried[-1]}; looking for another copy.", stacklevel=3)
    try:
        return _download()
    except Exception as error:  # no network, a proxy's page, a read-only or full disk
        tried.append(f"the download failed ({_reason(error)})")
        remedy = "Install the Debian or Ubuntu package dataset-fashion-mnist, or put "
        remedy += ", ".join(f"{name}.gz" for name in SHA256) + " into a folder and pass it as root="
        what = f"The full Fashion-MNIST cannot be had: {'; '.join(tried)}. {remedy}"
        sample = "or use the sample that comes with the course, fashion_mnist()"
        raise DataError(f"{what}, {sample}.") from error


def _read(folder: Path) -> tuple[list[np.ndarray], str]:
    """The four arrays in `folder`, verified, and what is wrong with it: "" if nothing is."""
    arrays, missing, damaged = [], [], []
    for name in SHA256:
        path = next((p for p in (folder / name, folder / f"{name}.gz") if os.path.exists(p)), None)
        if path is None:
            missing.append(f"{name} is missing")
            continue
        try:
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
                data = _verified(name, file)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            damaged.append(f"{path.name} is damaged ({_reason(error)})")
        else:  # idx: two zero bytes, 8 = uint8, number of dimensions, their big-endian int32 sizes
            start = 4 + 4 * data[3]
            shape = np.frombuffer(data[4:start], ">i4")
            arrays.append(np.frombuffer(data[start:], np.uint8).reshape(shape))
    return arrays, ABSENT if len(missing) == len(SHA256) else ", ".join(missing + damaged)


def _download() -> list[np.ndarray]:
    cache = _cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory("", "download-", cache, ignore_cleanup_errors=True)
    except OSError as error:
        why = f"{_reason(error)}; D2LRES_CACHE names another folder"
        raise DataError(f"the cache {cache} is not writable ({why})") from error
    with scratch:
        _fetch(scratch.name)
        raw = _raw(scratch.name)
        arrays, problem = _read(raw)
        if problem:
            raise DataError(problem)
        try:
            for name in SHA256:  # each file appears whole or not at all, whoever else is writing
                os.replace(raw / name, cache / name)
        except OSError as error:
            problem = f"The download could not be kept in {cache} ({_reason(error)})."
            warnings.warn(problem, stacklevel=4)
    return arrays


def _fetch(folder: str) -> None:
    """The four files, unpacked, where torchvision would put them; DataError if they cannot be had."""
    raw, end = _raw(folder), time.monotonic() + PATIENCE
    raw.mkdir(parents=True)
    for name in SHA256:
        problems = []
        for mirror in MIRRORS:
            try:
                with gzip.open(io.BytesIO(_get(f"{mirror}{name}.gz", end))) as file:
                    (raw / name).write_bytes(_verified(name, file))
                break
            except (OSError, EOFError, zlib.error, ValueError, HTTPException) as error:
                problems.append(f"{name}.gz from {mirror}: {_reason(error)}")
        else:
            raise DataError("; ".join(problems))


def _get(address: str, end: float) -> bytes:
    """What lies there, if it is no larger than a file of the set and comes before the time `end`."""
    content = bytearray()
    with urlopen(address, timeout=30) as answer:  # for any silence, not for all of it
        while part := answer.read1(2**16):
            content += part
            if len(content) > LARGEST:
                raise OSError("it is larger than any file of Fashion-MNIST")
            if time.monotonic() > end:
                raise OSError(f"the download was not complete after {PATIENCE // 60} minutes")
    return bytes(content)


def _verified(name: str, file: Any) -> bytes:
    """The content of the file `name`; ValueError unless it is that of Fashion-MNIST."""
    data = file.read(LARGEST + 1)  # not all of it, which may be a bomb
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise ValueError("its checksum is not that of Fashion-MNIST")
    return data


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
