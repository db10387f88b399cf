"""Chapter 07's networks, taken from its source, against timm's."""

import make_references
import pytest
import timm
import torch
from make_experiments import chapter

from d2lres.records import recorded

NAMES = chapter("07_the_family")
ResNet = NAMES["ResNet"]
MORE = {  # name: block, layers, whether it is a ResNet-D
    "resnet34d": ("BasicBlock", [3, 4, 6, 3], True),
    "resnet101d": ("Bottleneck", [3, 4, 23, 3], True),
    "resnet152d": ("Bottleneck", [3, 8, 36, 3], True),
    "wide_resnet50_2": ("WideBottleneck", [3, 4, 6, 3], False),
    "seresnet18": ("SEBasicBlock", [2, 2, 2, 2], False),
    "seresnet34": ("SEBasicBlock", [3, 4, 6, 3], False),
    "resnetv2_18": ("PreActBlock", [2, 2, 2, 2], False),
    "resnetv2_34": ("PreActBlock", [3, 4, 6, 3], False),
}


@pytest.mark.parametrize("name", NAMES["FAMILY"])
def test_the_chapters_network_answers_as_timms_and_as_recorded(name):
    found, record = make_references.measure(name), recorded("timm")["nets"][name]
    assert all(difference < 1e-9 for difference in found["difference"].values())
    assert found | dict(difference=...) == record | dict(difference=...)


@pytest.mark.parametrize("name", MORE)
def test_other_members_of_the_family_have_timms_parameters(name):
    block, layers, deep_stem = MORE[name]
    with torch.device("meta"):  # no weights are made
        theirs, ours = timm.create_model(name), ResNet(NAMES[block], layers)
        ours = NAMES["with_d"](ours) if deep_stem else ours
    counts = [sum(p.numel() for p in net.parameters()) for net in (theirs, ours)]
    assert counts[0] == counts[1] > 1_000_000


def test_a_fingerprint_sees_one_changed_weight_and_the_mode():
    net = NAMES["fixed_weights"](ResNet(NAMES["BasicBlock"], [1, 1, 1, 1]))
    prints = [NAMES["fingerprint"](NAMES["answer"](net, training)) for training in (False, True)]
    with torch.no_grad():
        net.layer1[0].conv1.weight[0, 0, 0, 0] += 0.1
    prints.append(NAMES["fingerprint"](NAMES["answer"](net, False)))
    assert len(set(prints)) == 3
