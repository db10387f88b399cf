"""Make fashion_mnist_sample.npz from the full Fashion-MNIST: `python assets/make_sample.py [ROOT]`.

Of each class 600 training and 200 test images are drawn without replacement and then mixed. The
same full set gives the same arrays everywhere."""

import sys
from pathlib import Path

import numpy as np

from d2lres.data import fashion_mnist

PER_CLASS = {"train": 600, "test": 200}


def make(root: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of the sample: uint8 images (N, 28, 28) and labels (N,), for train and test."""
    # RandomState, not default_rng: NumPy promises that only its stream never changes.
    random = np.random.RandomState(2017)
    arrays = {}
    for (name, count), data in zip(PER_CLASS.items(), fashion_mnist("full", root=root)):
        labels = data.labels.numpy()
        chosen = np.concatenate(
            [
                random.permutation(np.flatnonzero(labels == k))[:count]
                for k in range(len(data.classes))
            ]
        )
        chosen = random.permutation(chosen)
        arrays[f"{name}_images"] = data.images[:, 0].numpy()[chosen]
        arrays[f"{name}_labels"] = labels[chosen].astype(np.uint8)
    return arrays


if __name__ == "__main__":
    path = Path(__file__).with_name("fashion_mnist_sample.npz")
    np.savez_compressed(path, **make(*sys.argv[1:2]))
    print(f"{path.name}: {path.stat().st_size:,} bytes")
