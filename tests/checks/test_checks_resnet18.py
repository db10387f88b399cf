import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from d2lres import BasicBlock, Bottleneck, resnet18, resnet_block
from d2lres.blocks import conv1x1
from d2lres.checks import resnet18 as checks

SOURCE = Path(__file__).parents[2] / "notebooks" / "src" / "03_resnet18.py"
ANSWER = re.compile(r"^(?:def|class) (?:(?!^# %%).)*?### END SOLUTION", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def course():
    """The solutions and the stubs of the chapter, by name, run as the notebooks run them."""
    spec = importlib.util.spec_from_file_location("notebooks_build", SOURCE.parents[1] / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    found = {}
    for keep in (True, False):
        names = {"nn": nn, "resnet_block": resnet_block}
        for answer in ANSWER.findall(SOURCE.read_text(encoding="utf-8")):
            exec(build.solve(answer, keep=keep), names)
        found["solution" if keep else "stub"] = names
    return found


def verdict(capsys, checked, *answers) -> str:
    assert checked(*answers) is None
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count("\n") == 1
    return printed.out.strip()


EXERCISES = ["output_size", "stage_parameters", "resnet34_from_blocks", "make_layer"]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_of_the_chapter_is_correct(capsys, course, name):
    answer = course["solution"][name]
    assert verdict(capsys, getattr(checks, name), answer).startswith("Correct: ")


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_of_the_chapter_is_not_attempted(capsys, course, name):
    expected = f"Not attempted yet: {name.replace('_', ' ')}"
    assert verdict(capsys, getattr(checks, name), course["stub"][name]) == expected


# Exercise 1


def test_output_size_accepts_an_answer_that_asks_pytorch(capsys):
    def asks(size, kernel, stride=1, padding=0):
        conv = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding)
        return conv(torch.zeros(1, 1, size, size)).shape[-1]

    assert verdict(capsys, checks.output_size, asks).startswith("Correct: ")


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda n, k, s=1, p=0: (n + 2 * p - k) // s, "add 1"),
        (lambda n, k, s=1, p=0: (n + 2 * p - k) / s + 1, "round down with //"),
        (lambda n, k, s=1, p=0: -((k - n - 2 * p) // s) + 1, "round down, not up"),
        (lambda n, k, s=1, p=0: (n + p - k) // s + 1, "on both sides"),
        (lambda n, k, s=1, p=0: n + 2 * p - k + 1, "divide by it"),
        (lambda n, k, s=1, p=0: (n + 2 * p - k + 1) // s, "add the 1 after dividing"),
        (lambda n, k, s=1, p=0: (n - k) // s + 1, "the padding is missing"),
        (lambda n, k, s=1, p=0: (n - k) // s + 1 + p, "the padding belongs inside"),
        (lambda n, k, s=1, p=0: n // s, "where the kernel can stand"),
        (lambda n, k, s=2, p=1: (n + 2 * p - k) // s + 1, "stride must be 1 and padding 0"),
    ],
)
def test_output_size_names_the_mistake(capsys, answer, said):
    found = verdict(capsys, checks.output_size, answer)
    assert found.startswith("Not yet: ") and said in found


# Exercise 2


def test_stage_parameters_accepts_an_answer_that_builds_the_stage(capsys):
    def builds(a, c, n):
        return sum(p.numel() for p in nn.Sequential(*resnet_block(a, c, n)).parameters())

    assert verdict(capsys, checks.stage_parameters, builds).startswith("Correct: ")


def formula(a, c, n):
    return 9 * a * c + 9 * c * c + 2 * c + 4 * c + a * c + c + (n - 1) * (18 * c * c + 6 * c)


@pytest.mark.parametrize(
    "answer, said",
    [
        (
            lambda a, c, n: formula(a, c, n) - a * c - c,
            "1x1 convolution on the shortcut is missing",
        ),
        (lambda a, c, n: formula(a, c, n) - (2 * n + 1) * c, "convolutions have biases"),
        (lambda a, c, n: formula(a, c, n) - 2 * n * c, "each BN a scale and a shift"),
        (lambda a, c, n: formula(a, c, n) - 2 * n * c, "have the 3x3 convolutions a bias"),
        (lambda a, c, n: formula(a, c, n) - c, "if only the 1x1 convolution's"),
        (lambda a, c, n: formula(a, c, n) - (2 * n + 1) * c + 2 * c, "torchvision's stage"),
        (lambda a, c, n: formula(a, c, n) - 4 * n * c, "two BN"),
        (lambda a, c, n: formula(a, c, n) + 2 * c, "no BN"),
        (lambda a, c, n: formula(a, c, n + 1), "count the first block"),
        (lambda a, c, n: n * formula(a, c, 1), "only the first block"),
        (lambda a, c, n: n * (18 * c * c + 6 * c), "not num_channels"),
        (lambda a, c, n: 1, "layer by layer"),
    ],
)
def test_stage_parameters_names_the_mistake(capsys, answer, said):
    found = verdict(capsys, checks.stage_parameters, answer)
    assert found.startswith("Not yet: ") and said in found


# Exercise 3


def parts(counts=(3, 4, 6, 3), classes=10, padding=3, first=True, pool=True):
    """ResNet from resnet_block, in the variants that learners write."""
    layers = [nn.Conv2d(1, 64, 7, 2, padding), nn.BatchNorm2d(64), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2, 1)] if pool else []
    a = 64
    for i, (c, n) in enumerate(zip((64, 128, 256, 512), counts)):
        layers.append(nn.Sequential(*resnet_block(a, c, n, first_block=first and i == 0)))
        a = c
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def own_residual(num_classes=10):
    """With a block class of the learner's own instead of the course's."""

    class Mine(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x)

    net = parts(classes=num_classes)
    for i in range(4, 8):
        net[i] = nn.Sequential(*map(Mine, net[i]))
    return net


@pytest.mark.parametrize(
    "answer", [lambda num_classes=10: parts(classes=num_classes), own_residual]
)
def test_resnet34_accepts_nested_stages_and_own_blocks(capsys, answer):
    assert verdict(capsys, checks.resnet34_from_blocks, answer).startswith("Correct: ")


def replaced(place, layer):
    """A builder with another layer in one place, which changes no shape."""

    def build(num_classes=10):
        net = parts(classes=num_classes)
        net[place] = layer
        return net

    return build


def relu_after_the_pool(num_classes=10):
    net = parts(classes=num_classes)
    return nn.Sequential(*net[:2], net[3], net[2], *net[4:])


def test_resnet34_accepts_a_relu_after_the_max_pool(capsys):  # the same function
    found = verdict(capsys, checks.resnet34_from_blocks, relu_after_the_pool)
    assert found.startswith("Correct: ")


def without_flatten(num_classes=10):
    net = parts(classes=num_classes)
    return nn.Sequential(*net[:9], net[10])


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda num_classes=10: parts((2, 2, 2, 2)), "stage 1, with 64 channels, needs 3 blocks"),
        (lambda num_classes=10: parts((3, 4, 5, 3)), "stage 3, with 256 channels, needs 6 blocks"),
        (lambda num_classes=10: parts(first=False), "first_block=True"),
        (lambda num_classes=10: parts(padding=0), "padding 3"),
        (lambda num_classes=10: parts(pool=False), "max-pool"),
        (lambda num_classes=10: list(parts()), "return an nn.Sequential"),
        (lambda num_classes=10: parts(), "num_classes=7"),
        (lambda num_classes=10: nn.Sequential(parts(), nn.Softmax(1)), "without a softmax"),
        (lambda num_classes=10: parts()[:-2], "logits (2, 10)"),
        (replaced(2, nn.Identity()), "ReLU is missing in the stem"),
        (replaced(3, nn.MaxPool2d(2)), "3x3 max-pool"),
        (replaced(3, nn.AvgPool2d(3, 2, 1)), "3x3 max-pool"),
        (replaced(8, nn.AdaptiveMaxPool2d(1)), "the average of each map"),
        (replaced(2, nn.Sigmoid()), "compare your stem and head"),
        (without_flatten, "print the shape after each layer"),
        (lambda num_classes=10: nn.Sequential(resnet_block(64, 64, 3, True)), "raised TypeError"),
        (lambda num_classes=10: resnet18(num_classes, 1), "stage 1"),
    ],
)
def test_resnet34_names_the_mistake(capsys, answer, said):
    found = verdict(capsys, checks.resnet34_from_blocks, answer)
    assert found.startswith("Not yet: ") and said in found


# Exercise 4


def layers(
    block,
    inplanes,
    planes,
    blocks,
    stride=1,
    *,
    twice=1,
    turns=None,
    shortcut="needed",
    bias=False,
    strides=False,
):
    """A stage builder with the mistakes that learners make."""
    out = planes * block.expansion
    change = inplanes != out
    needed = {
        "needed": stride != 1 or change,
        "stride": stride != 1,
        "channels": change,
        "always": True,
    }[shortcut]
    made = []
    for i in range(blocks if turns is None else turns):
        a, s = (inplanes, stride) if i == 0 else (out, stride if strides else 1)
        conv = nn.Conv2d(a, out, 1, s, bias=bias) if bias else conv1x1(a, out, s)
        way = nn.Sequential(conv, nn.BatchNorm2d(out)) if (needed if i == 0 else s != 1) else None
        made.append(block(a, planes * (block.expansion if twice == 2 else 1), s, way))
    return nn.Sequential(*made)


def test_make_layer_accepts_another_way_to_write_it(capsys):
    assert verdict(capsys, checks.make_layer, layers).startswith("Correct: ")


def shared(block, inplanes, planes, blocks, stride=1):
    """All blocks after the first are one and the same."""
    made = list(layers(block, inplanes, planes, blocks, stride))
    return nn.Sequential(*made[:1], *made[1:2] * (blocks - 1))


def mistaken(**mistake):
    def build(block, inplanes, planes, blocks, stride=1):
        return layers(block, inplanes, planes, blocks, stride, **mistake)

    return build


@pytest.mark.parametrize(
    "answer, said",
    [
        (mistaken(turns=3), "how often does your loop run"),
        (mistaken(twice=2), "multiplies by its expansion itself"),
        (shared, "your blocks share their weights: call block(...) anew each time"),
        (mistaken(shortcut="stride"), "make_layer(Bottleneck, 16, 16, 3, stride=1): an image"),
        (mistaken(shortcut="stride"), "channels; make a shortcut whenever"),
        (mistaken(shortcut="channels"), "make_layer(BasicBlock, 32, 32, 2, stride=2): an image"),
        (mistaken(shortcut="always"), "needs no convolution on the shortcut"),
        (mistaken(bias=True), "without bias and a BN"),
        (mistaken(strides=True), "must become"),
        (lambda *given: list(layers(*given)), "must return an nn.Sequential"),
    ],
)
def test_make_layer_names_the_mistake(capsys, answer, said):
    found = verdict(capsys, checks.make_layer, answer)
    assert found.startswith("Not yet: ") and said in found


def test_the_broken_builder_of_the_chapter_is_wrong_for_either_block(capsys):
    cell = re.search(r"^def broken_layer.*?\n\n", SOURCE.read_text("utf-8"), re.DOTALL | re.M)
    names = {"nn": nn}
    exec(cell[0], names)
    assert len(names["broken_layer"](BasicBlock, 64, 64, 6)) == 3
    assert names["broken_layer"](Bottleneck, 8, 8, 3)[0].conv3.out_channels == 8 * 16
    assert verdict(capsys, checks.make_layer, names["broken_layer"]).startswith("Not yet: ")
