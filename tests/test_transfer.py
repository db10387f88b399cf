"""The trained network that ships, and what chapter 08 says of it, compared with other libraries."""

import hashlib
import re

import numpy as np
import pytest
import torch
import torchvision
from make_experiments import chapter

from d2lres import cifar_resnet
from d2lres.data import SYSTEM_FOLDERS, fashion_mnist
from d2lres.records import asset, recorded
from d2lres.training import evaluate

CARD, FILE = recorded("checkpoint"), "fashion_mnist_resnet20.pt"
NET = cifar_resnet(20, in_channels=1, weights="fashion_mnist").eval()
IMAGES = fashion_mnist()[1][:200].tensors()[0]


def test_the_file_is_that_of_the_card_small_and_of_halves():
    shipped, content = CARD["shipped"], asset(FILE).read_bytes()
    assert hashlib.sha256(content).hexdigest() == shipped["sha256"]
    assert len(content) == shipped["bytes"] <= 600_000
    state = torch.load(asset(FILE), weights_only=True)
    kinds = {tensor.dtype for name, tensor in state.items() if "batches" not in name}
    assert kinds == {torch.float16} and sum(map(torch.numel, NET.parameters())) == 269_434
    assert [run["seed"] for run in CARD["runs"]] == [0, 1, 2, 3, 4] and shipped["seed"] == 0
    assert len(CARD["runs"][0]["loss"]) == CARD["recipe"]["epochs"]
    assert "MIT" in CARD["licence"] and "Zalando" in CARD["data"]


def test_it_has_the_accuracy_of_its_card():
    assert CARD["shipped"]["test"]["accuracy"] >= 0.94
    assert evaluate(NET, fashion_mnist()[1]).accuracy == pytest.approx(0.9395, abs=0.002)
    if any(folder.is_dir() for folder in SYSTEM_FOLDERS):
        accuracy = evaluate(NET, fashion_mnist("full")[1]).accuracy
        assert accuracy == pytest.approx(CARD["shipped"]["test"]["accuracy"], abs=0.001)


@pytest.mark.parametrize("layer", ["layer1", "layer2.0", "layer3"])
def test_our_grad_cam_is_captums(layer):
    from captum.attr import LayerGradCam

    x, layer = IMAGES[:20], NET.get_submodule(layer)
    classes = NET(x).argmax(1)
    theirs = LayerGradCam(NET, layer).attribute(x, target=classes, relu_attributions=True)
    ours = chapter("08_transfer")["grad_cam"](NET, layer, x, classes)
    assert ours.max() > 0
    torch.testing.assert_close(ours, theirs[:, 0].detach())


def test_the_lines_on_onnx_give_the_networks_logits(tmp_path, monkeypatch):
    source = asset("../notebooks/src/08_transfer.py").read_text(encoding="utf-8")
    (fenced,) = re.findall(r"# ```python\n(.*?)# ```", source, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    import onnxruntime

    names = dict(torch=torch, onnxruntime=onnxruntime, net=NET, x=IMAGES)
    exec(re.sub("^# ?", "", fenced, flags=re.MULTILINE), names)
    assert names["logits"].shape == (200, 10)
    with torch.no_grad():
        np.testing.assert_allclose(names["logits"], NET(IMAGES), atol=1e-4)


def test_the_cells_on_imagenet_run_where_the_weights_can_be_had(monkeypatch, capsys):
    """With random weights in their place, as no test reaches the network."""
    source = asset("../notebooks/src/08_transfer.py").read_text(encoding="utf-8")
    begin, end = source.index("import contextlib"), source.index("# ## Out of Python")
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: state
    )
    names = chapter("08_transfer") | dict(torch=torch)
    exec(source[begin:end], names)
    loaded, first, second, picture = capsys.readouterr().out.splitlines()
    assert loaded == "<All keys matched successfully>" and picture.startswith("Grad-CAM")
    assert first.count("%") == second.count("%") == 5
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(state)
    with torch.no_grad():
        chances = theirs.eval()(names["batch"]).softmax(1)
    torch.testing.assert_close(names["chances"], chances)
