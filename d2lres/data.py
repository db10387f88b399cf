"""Fashion-MNIST in memory: the bundled sample, or the full set from a local copy or a download.

The images are those of Xiao, Rasul and Vollgraf, "Fashion-MNIST" (arXiv 1708.07747, 2017): 28x28
grey images of ten kinds of clothing, 60,000 to train on and 10,000 to test with. A whole set is
one tensor, so a batch is a few tensor operations: no workers, no files, no loop over images."""

import gzip
import hashlib
import os
import socket
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2lres._assets import asset

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MEAN, STD = 0.2860, 0.3530  # of all pixels of the 60,000 training images, on the scale 0..1
SHIFT = 2  # augmentation moves an image by at most this many pixels

# Checksums of the files after decompression: two gzip files with equal content can differ.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SYSTEM_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"),)  # Debian: dataset-fashion-mnist


class DataError(RuntimeError):
    """A data set is missing or damaged; the message names what, where, and what to do."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images in memory; your own work too: `Images(images, labels, classes=("a", "b"))`.

    images: uint8 (N, C, H, W), 0 to 255.  labels: int64 (N,), each below `len(classes)`.
    size: side of the square images that `batches` and `tensors` return; None keeps H and W.
    Raises ValueError when these do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = CLASSES
    size: int | None = None

    def __post_init__(self):
        x, y = self.images, self.labels
        if not (isinstance(x, Tensor) and x.dtype == torch.uint8 and x.ndim == 4 and x.numel()):
            raise ValueError(
                "images must be a uint8 tensor of shape (N, C, H, W), not empty, "
                f"but these are {_describe(x)}."
            )
        if not (
            isinstance(y, Tensor)
            and y.dtype == torch.int64
            and y.shape == x.shape[:1]
            and y.device == x.device
        ):
            raise ValueError(
                f"labels must be an int64 tensor of shape ({len(x)},) on {x.device}, "
                f"one for each image, but these are {_describe(y)}."
            )
        if y.min() < 0 or y.max() >= len(self.classes):
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1}, one for each name in "
                f"classes, but they run from {y.min()} to {y.max()}."
            )
        _check_size(self.size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> "Images":
        """The images of a slice, of an index tensor or of a boolean mask, as Images."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.images.device)
            if index.ndim != 1:
                raise TypeError(
                    "Select images with a slice or a 1-D tensor, as in train[3:4]; "
                    "train.batches(128) iterates over them."
                )
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

        x is `(pixel / 255 - MEAN) / STD`, resized to `size`. The last batch may be smaller.
        augment: flip each image left to right with probability 1/2 and move it by up to 2 pixels.
        generator: decides order and augmentation (None: PyTorch's global one). It is a CPU one, so
        that a seed gives the same batches whatever `device` is.
        device: where x and y go; None leaves them where the images are.
        part: what to give of each batch, with the same random numbers as for all of it; slice(0,
        None, 2) and slice(1, None, 2) are the shares of two processes.
        Raises ValueError for a batch size below 1 and for a generator that is not on the CPU.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number from 1 on, not {batch_size!r}.")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError("generator must be on the CPU: torch.Generator().manual_seed(0).")
        home = self.images.device
        device = home if device is None else device
        n = len(self)
        order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)

        def batch(index):
            x, y = self.images[index], self.labels[index]
            x, y = (_augment(x, generator) if augment else x)[part], y[part]
            return self._normalise(x.to(device)), y.to(device)

        return (batch(index) for index in order.to(home).split(batch_size))

    def _normalise(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            # Antialiasing changes nothing in images that grow, and not every device has it.
            shrinks = self.size < max(x.shape[-2:])
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=shrinks)
        return (x - MEAN) / STD


def fashion_mnist(
    subset: str = "sample", size: int | None = None, root: str | Path | None = None
) -> tuple[Images, Images]:
    """Training and test set of Fashion-MNIST (Xiao et al. 2017), in memory.

    subset: "sample" comes with the course (6,000 and 2,000 images, the same number of each
    class); "full" is all 60,000 and 10,000.
    size: side in pixels of the batches; None keeps 28.
    root: folder that is searched first for the full set: the four files, gzipped or not, or the
    folders that torchvision makes. Then come the cache (`D2LRES_CACHE`, else ~/.cache/d2lres), the
    system's folder and a download. Checksums are verified, and damaged files are never used.

    Raises ValueError for arguments that make no sense and DataError if the data cannot be had;
    the sample never stands in for the full set.
    """
    _check_size(size)
    if subset not in ("sample", "full"):
        raise ValueError(f"subset must be 'sample' or 'full', not {subset!r}.")
    if subset == "sample" and root is not None:
        raise ValueError("root= is for the full set: add subset='full', or leave root out.")
    arrays = _sample() if subset == "sample" else _full(root)
    images, labels, test_images, test_labels = (torch.tensor(a) for a in arrays)
    return (
        Images(images[:, None], labels.long(), size=size),
        Images(test_images[:, None], test_labels.long(), size=size),
    )


def local_copies() -> dict[Path, str]:
    """For the cache and the system's folders: "complete", or why the full set is not there."""
    copies = {}
    for folder in (_cache(), *SYSTEM_FOLDERS):
        try:
            copies[folder] = "complete" if _read(folder) else "none of the four files"
        except DataError as error:
            copies[folder] = str(error)
    return copies


def _check_size(size):
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ValueError(f"size must be a whole number of pixels or None, not {size!r}.")


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
    try:
        with np.load(asset("fashion_mnist_sample.npz"), allow_pickle=False) as file:
            return [
                file[name]
                for name in ("train_images", "train_labels", "test_images", "test_labels")
            ]
    except FileNotFoundError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # zipfile and numpy raise half a dozen kinds for a damaged file
        raise DataError(
            "The bundled sample fashion_mnist_sample.npz cannot be read "
            f"({_reason(error)}): install d2lres again."
        ) from error


def _cache() -> Path:
    """Where a download is kept, arranged as torchvision does it, so that both can use it."""
    folder = os.environ.get("D2LRES_CACHE") or "~/.cache/d2lres"
    return Path(os.path.expanduser(folder), "FashionMNIST", "raw")


def _full(root) -> list[np.ndarray]:
    given = []
    if root is not None:
        folder = Path(os.path.expanduser(root))
        given = [folder, folder / "FashionMNIST" / "raw"]
        if not os.path.isdir(folder):
            raise DataError(
                f"root={str(root)!r} is not a folder: pass the folder that holds "
                "the four Fashion-MNIST files."
            )
    tried = []
    for folder in (*given, _cache(), *SYSTEM_FOLDERS):
        try:
            if arrays := _read(folder):
                return arrays
            tried.append(f"{folder} holds none of its files")
        except DataError as error:
            if folder in given:
                raise DataError(f"{error}; put whole files there, or leave root= out.") from None
            warnings.warn(f"{error}; looking for another copy.", stacklevel=3)
            tried.append(str(error))
    try:
        return _download()
    except DataError as error:
        names = ", ".join(f"{name}.gz" for name in SHA256)
        raise DataError(
            f"The full Fashion-MNIST cannot be had: {'; '.join(tried)}; {error}. "
            "Install the Debian or Ubuntu package dataset-fashion-mnist, or put "
            f"{names} into a folder and pass it as root=, or use the sample that comes "
            "with the course, fashion_mnist()."
        ) from error


def _read(folder: Path) -> list[np.ndarray] | None:
    """The four arrays in `folder`, verified; None if it has none of the files."""
    paths = {
        name: next((p for p in (folder / name, folder / f"{name}.gz") if os.path.exists(p)), None)
        for name in SHA256
    }
    if not any(paths.values()):
        return None
    arrays, problems = [], [f"{name} is missing" for name, path in paths.items() if not path]
    for name, path in paths.items():
        try:
            if path:
                arrays.append(_read_idx(path, SHA256[name]))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            problems.append(f"{path.name} is damaged ({_reason(error)})")
    if problems:
        raise DataError(f"{folder} cannot be used: {', '.join(problems)}")
    return arrays


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    # idx: two zero bytes, type (8 = uint8), number of dimensions, their sizes as big-endian int32.
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("its checksum is not that of Fashion-MNIST")
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _download() -> list[np.ndarray]:
    cache = _cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(
            prefix="download-", dir=cache, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise DataError(
            f"a download has nowhere to go, as the cache {cache} is not writable "
            f"({_reason(error)}; D2LRES_CACHE names another folder)"
        ) from error
    with scratch:
        raw = Path(scratch.name, "FashionMNIST", "raw")
        try:
            _fetch(scratch.name)
            arrays = _read(raw)
        except Exception as error:  # no network, a proxy's page, a full disk, no torchvision
            raise DataError(f"the download failed ({_reason(error)})") from error
        try:
            for name in SHA256:  # each file appears whole or not at all, whoever else is writing
                os.replace(raw / name, cache / name)
        except OSError as error:
            warnings.warn(
                f"The download could not be kept in {cache} ({_reason(error)}).", stacklevel=4
            )
    return arrays


def _fetch(folder: str):
    from torchvision.datasets import FashionMNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision sets none, and a dead network would hang for ever
    try:
        FashionMNIST(folder, download=True)
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _describe(value) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
    return type(value).__name__
