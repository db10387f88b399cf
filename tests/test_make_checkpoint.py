"""The script of the trained network: seeds in turns, weights as halves, a card that fits them."""

import json

import make_checkpoint
import pytest
import torch

from d2lres import cifar_resnet
from d2lres.data import fashion_mnist

TRAIN, TEST = fashion_mnist(size=8)
RECIPE = make_checkpoint.RECIPE | dict(epochs=2, batch_size=64)


@pytest.fixture
def here(monkeypatch, tmp_path):
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_checkpoint, "ASSETS", tmp_path)
    monkeypatch.setattr(make_checkpoint, "WEIGHTS", tmp_path / "net.pt")
    monkeypatch.setattr(make_checkpoint, "RECIPE", RECIPE)
    monkeypatch.setattr(make_checkpoint, "fashion_mnist", lambda subset: (TRAIN[:128], TEST[:50]))
    return tmp_path


def test_seeds_are_trained_in_turns_and_the_last_call_writes_weights_and_card(here):
    make_checkpoint.main([1, 3])
    assert not (here / "net.pt").exists()
    make_checkpoint.main([0, 1, 2, 3, 4])
    card = json.loads((here / "results" / "checkpoint.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in card["runs"]] == [0, 1, 2, 3, 4]
    assert len({tuple(run["loss"]) for run in card["runs"]}) == 5
    assert card["shipped"]["seed"] == 0 and card["recipe"]["epochs"] == 2
    state = torch.load(here / "net.pt", weights_only=True)
    first = torch.load(here / "results" / "checkpoint-0.pt", weights_only=True)["model"]
    for name, tensor in first.items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(state[name], half) and state[name].dtype == half.dtype
    cifar_resnet(20, in_channels=1).load_state_dict(state)
