"""The probes: they find the patients of chapter 10, let healthy networks pass, and leave no trace."""

import copy
import inspect
import sys
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from make_experiments import chapter
from torch import nn

from d2lres import cifar_resnet, clinic, resnet18
from d2lres.checks.clinic import BUGS, admit, drawn
from d2lres.cli import main
from d2lres.clinic import examine, plain_step
from d2lres.data import fashion_mnist
from d2lres.records import recorded

NAMES = chapter("10_the_clinic")
TRAIN = NAMES["TRAIN"]
SEES = {  # what a patient must be found by, among others
    "misspelt": "runs: layer2.0 (Misspelt)",
    "listed": "parameters: blocks[0]",
    "ignored": "parameters: layer1.0.block.conv1.weight",
    "in_place": "shortcuts: layer1.0 passes on its input overwritten",
    "twice": "shortcuts: layer1.0 passes on 2 times its input",
    "stride": "twin: layer2.0.conv1",
    "sequence": "alone: an output depends on the other inputs",
    "scaled": "images: normalise the inputs",
    "shuffled": "neighbours: labels and inputs do not belong together",
    "softmax_twice": "logits: leave out the softmax",
    "no_zero_grad": "gradient: the gradient of conv1.weight",
    "scheduled": "rate: the rate falls",
    "thawing": "frozen: bn1.running_mean",
}


def alarms(report):
    return [f"{f.probe}: {f.advice}" for f in report.findings if f.ok is False]


def small(**options):
    torch.manual_seed(0)
    return cifar_resnet(8, in_channels=1, width=8, **options)


def sgd(model, lr=0.05, **options):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, **options)


@pytest.mark.parametrize("seed", range(5))
def test_each_patient_is_found_and_named_and_no_healthy_network_raises_an_alarm(seed):
    assert set(SEES) == {case.__name__ for case in NAMES["PATIENTS"]}
    for case in NAMES["PATIENTS"]:
        found = alarms(examine(**case(seed)))
        assert any(line.startswith(SEES[case.__name__]) for line in found), (case.__name__, found)
    for case in NAMES["WELL"]:
        report = examine(**case(seed))
        assert report.ok and alarms(report) == [], (case.__name__, str(report))


def test_the_record_of_the_map_is_what_the_probes_say():
    for run in recorded("clinic")["runs"]:
        if run["seed"] == 3 and run["kind"] in ("in_place", "shuffled", "plain"):
            assert NAMES["row"](NAMES[run["kind"]](3)) == run["alarms"]


@pytest.mark.parametrize("number", range(12))
def test_the_three_bugs_of_a_patient_can_be_told_apart_and_are_found(number):
    words = ["gets no gradient: does", "times its input", "negative numbers reach", "leave out the"]
    words += ["is not in the optimizer", "call zero_grad", "times the gradient of the mean"]
    words += ["do not belong together", "normalise the inputs", "unusual eps or momentum"]
    said = " ".join(alarms(examine(**admit(number))))
    found = {bug for bug, word in zip(BUGS, words, strict=True) if word in said}
    assert found == set(drawn(number)) and len(found) == 3


# --- other bugs, and what is no bug ----------------------------------------------------------


def after(change):
    """A case whose model's output is changed."""
    model = small()
    model.register_forward_hook(lambda net, args, out: change(out))
    return dict(model=model)


def changed(change):
    model = small()
    change(model)
    return dict(model=model)


def stepping(step, **options):
    model = small()
    return dict(model=model, optimizer=sgd(model, **options), step=step)


def loss_step(loss):
    def step(model, optimizer, x, y):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()

    return step


def reading(change):
    x, y = TRAIN.tensors()
    x, y = change(x, y)
    return dict(model=small(), data=[(a, b) for a, b in zip(x.split(64), y.split(64))])


def batch_stats(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None


def zero(model):
    for parameter in model.parameters():
        nn.init.zeros_(parameter)


def late_head():
    model = small()
    optimizer = sgd(model)
    model.fc = nn.Linear(32, 10)
    return dict(model=model, optimizer=optimizer)


def eval_step(model, optimizer, x, y):
    model.eval()
    plain_step(model, optimizer, x, y)


def step_first(model, optimizer, x, y):
    F.cross_entropy(model(x), y).backward()
    optimizer.zero_grad()
    optimizer.step()


def shuffling(model, optimizer, x, y):
    plain_step(model, optimizer, x, y[torch.randperm(len(y))])


OTHERS = {
    "softmax over the batch": ("logits", lambda: after(lambda out: out.softmax(0))),
    "a ReLU at the end": ("logits", lambda: after(torch.relu)),
    "a tanh at the end": ("by_heart", lambda: after(torch.tanh)),
    "dropout that is always on": ("alone", lambda: after(lambda out: F.dropout(out, 0.5))),
    "no output": ("runs", lambda: after(lambda out: (out,))),
    "one row less": ("runs", lambda: after(lambda out: out[1:])),
    "nan": ("runs", lambda: after(lambda out: out / 0)),
    "detached": ("runs", lambda: after(torch.Tensor.detach)),
    "BN without statistics": ("alone", lambda: changed(batch_stats)),
    "all weights 0": ("by_heart", lambda: changed(zero)),
    "nothing learns": ("parameters", lambda: changed(lambda net: net.requires_grad_(False))),
    "no ReLU in the stem": ("twin", lambda: changed(lambda n: setattr(n, "relu", nn.Identity()))),
    "a BN is missing": ("twin", lambda: changed(lambda n: setattr(n, "bn1", nn.Identity()))),
    "unused layer": ("parameters", lambda: changed(lambda n: setattr(n, "more", nn.Linear(2, 2)))),
    "a tensor": (
        "parameters",
        lambda: changed(lambda n: setattr(n, "a", torch.ones(1).requires_grad_())),
    ),
    "dropout of 1": (
        "modes",
        lambda: changed(lambda n: setattr(n, "avgpool", nn.Sequential(n.avgpool, nn.Dropout(1.0)))),
    ),
    "an optimizer too early": ("parameters", late_head),
    "labels from 1": ("labels", lambda: reading(lambda x, y: (x, y + 1))),
    "float labels": ("labels", lambda: reading(lambda x, y: (x, y.float()))),
    "labels in order": ("labels", lambda: reading(lambda x, y: (x[y.argsort()], y.sort().values))),
    "bytes": ("images", lambda: reading(lambda x, y: (x * 90 + 73, y))),
    "inf": ("images", lambda: reading(lambda x, y: (x.log(), y))),
    "labels rolled": ("neighbours", lambda: reading(lambda x, y: (x, y.roll(1)))),
    "too few outputs": ("labels", lambda: dict(model=small(num_classes=7))),
    "1,000 outputs": ("labels", lambda: dict(model=small(num_classes=1000))),
    "no optimizer.step": (
        "gradient",
        lambda: stepping(lambda m, o, x, y: F.cross_entropy(m(x), y).backward()),
    ),
    "a step that raises": ("gradient", lambda: stepping(lambda m, o, x, y: 1 / 0)),
    "a sum": (
        "gradient",
        lambda: stepping(
            loss_step(lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum")), lr=0.001
        ),
    ),
    "minus": ("gradient", lambda: stepping(loss_step(lambda m, x, y: -F.cross_entropy(m(x), y)))),
    "nll of logits": ("gradient", lambda: stepping(loss_step(lambda m, x, y: F.nll_loss(m(x), y)))),
    "softmax in the step": (
        "gradient",
        lambda: stepping(loss_step(lambda m, x, y: F.cross_entropy(m(x).softmax(1), y))),
    ),
    "eval in the step": ("gradient", lambda: stepping(eval_step)),
    "zero_grad too late": ("gradient", lambda: stepping(step_first)),
    "labels shuffled in the step": ("gradient", lambda: stepping(shuffling)),
    "a rate of 0": ("rate", lambda: stepping(None, lr=0.0)),
    "a rate of 30": ("rate", lambda: stepping(None, lr=30.0)),
    "maximize": ("rate", lambda: stepping(None, maximize=True)),
    "a weight decay of 5": ("rate", lambda: stepping(None, weight_decay=5.0)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_bugs_are_found_by_the_probe_for_them(name):
    probe, case = OTHERS[name]
    torch.manual_seed(0)
    report = examine(**dict(data=TRAIN) | case())
    found = {finding.probe for finding in report.findings if finding.ok is False}
    assert probe in found and not report.ok, str(report)
    assert all(finding.advice for finding in report.findings if not finding.ok)


def clipping(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y, label_smoothing=0.1).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


def cycling():
    case = stepping(None)
    schedule = torch.optim.lr_scheduler.OneCycleLR(case["optimizer"], 0.1, total_steps=500)

    def step(model, optimizer, x, y):
        plain_step(model, optimizer, x, y)
        schedule.step()

    return case | dict(step=step)


def halves():
    calls = []

    def step(model, optimizer, x, y):  # of every second gradient the mean
        calls.append((F.cross_entropy(model(x), y) / 2).backward())
        if len(calls) % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return stepping(step)


HEALTHY = {
    "clipping": lambda: stepping(clipping),
    "one cycle": cycling,
    "two halves": halves,
    "mixed": lambda: stepping(
        loss_step(lambda m, x, y: F.cross_entropy(m(x * 0.7 + x.flip(0) * 0.3), y))
    ),
    "zero init": lambda: dict(model=small(zero_init_residual=True)),
    "without a shortcut": lambda: dict(model=small(residual=False)),
    "trained": lambda: dict(
        model=cifar_resnet(20, in_channels=1, weights="fashion_mnist"), data=fashion_mnist()[1]
    ),
    "a ResNet of torchvision's": lambda: dict(
        model=torchvision.models.resnet18(num_classes=10),
        data=[(torch.randn(16, 3, 32, 32), torch.arange(16) % 10)],
    ),
    "logistic regression": lambda: dict(model=nn.Sequential(nn.Flatten(), nn.Linear(196, 10))),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_no_bug_raises_no_alarm(name):
    torch.manual_seed(0)
    report = examine(**dict(data=TRAIN) | HEALTHY[name]())
    assert report.ok, str(report)


# --- what examine leaves behind, and what it refuses -----------------------------------------


def test_model_optimizer_schedulers_and_random_numbers_are_what_they_were():
    model = small()
    model.layer1[0].eval()
    optimizer = torch.optim.AdamW(model.parameters(), torch.tensor(0.01))
    first = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3)
    second = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], [3])

    class Trainer:
        def step(self, model, optimizer, x, y):
            plain_step(model, optimizer, x, y)
            schedule.step()
            if not model.training:
                raise RuntimeError

    trainer, (x, y) = Trainer(), TRAIN[:64].tensors()
    trainer.step(model, optimizer, x, y)

    def state():
        entries = [vars(it) for it in (first, second, schedule)]
        moments = [optimizer.state[p] for p in model.parameters()]
        grads = [p.grad for p in model.parameters()]
        modes = [module.training for module in model.modules()]
        hooks = [len(module._forward_hooks) for module in model.modules()]
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        own = [{k: v for k, v in it.items() if type(v) in (int, float, list)} for it in entries]
        own[2].pop("_schedulers")
        return copy.deepcopy([model.state_dict(), moments, grads, modes, hooks, groups, own])

    before, numbers = state(), torch.get_rng_state()
    examine(model, TRAIN, optimizer=optimizer, step=trainer.step)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(model="net"), "model must be a model"),
        (dict(data=None), "data must be Images, or batches"),
        (dict(data=[]), "two inputs or more"),
        (dict(data=[dict(x=1)]), "of type dict"),
        (dict(data=[(1, 2)]), "x is 1 and y is 2"),
        (dict(data=[(torch.ones(3, 1), torch.ones(2))]), "3 inputs and 2 labels"),
        (dict(data=[(torch.ones(4), torch.ones(4))]), r"x is torch.float32 of shape \(4,\)"),
        (dict(optimizer=1), "optimizer must be an optimizer"),
        (dict(step="step"), "step must be a function, not 'step'"),
        (dict(model=nn.Sequential(nn.LazyLinear(3))), "one that has run once"),
    ],
)
def test_other_arguments_are_refused_in_a_sentence(given, words):
    with pytest.raises(ValueError, match=words):
        examine(**dict(model=small(), data=TRAIN) | given)


def test_odd_data_is_a_finding_and_no_error():
    x, y = torch.randn(40, 12), torch.randint(3, (40,))
    net = nn.Sequential(OrderedDict(fc=nn.Linear(12, 8), act=nn.ReLU(), out=nn.Linear(8, 3)))
    for data in ([(x, y[:, None])], iter([(x, y)]), [(x[:1], y[:1])] * 2, [(x.half(), y)]):
        report = examine(net, data)
        assert len(report.findings) == len(clinic.PROBES) == 16
        assert str(report).count("\n") >= 16


def test_each_probe_can_be_called_alone_and_says_where_it_looks():
    x, y = TRAIN[:32].tensors()
    model = small()
    given = dict(
        model=model, x=x, y=y, optimizer=sgd(model), step=plain_step, outputs=10, classes=10
    )
    for probe in clinic.PROBES:
        finding = probe(**{name: given[name] for name in inspect.signature(probe).parameters})
        assert finding.ok is not False and finding.probe == probe.__name__ and probe.__doc__
    big = resnet18(num_classes=10, in_channels=1)
    big.layer4[1].conv2 = nn.Conv2d(512, 512, 3)
    finding = clinic.runs(big, torch.zeros(2, 1, 64, 64))
    assert not finding.ok and "layer4.1.conv2 (Conv2d), which gets (2, 512, 2, 2)" in finding.advice


def test_the_command_examines_what_a_function_makes(tmp_path, monkeypatch, capsys):
    lines = "from d2lres import cifar_resnet\nfrom torch import nn\n"
    lines += "def good():\n    return cifar_resnet(8, in_channels=1, width=4)\n"
    lines += "def bad():\n    return nn.Sequential(good(), nn.Softmax(1)), None\n"
    (tmp_path / "mine_to_examine.py").write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["examine", "mine_to_examine:good"]) == 0
    assert "ok    by_heart" in capsys.readouterr().out
    assert main(["examine", "mine_to_examine:bad"]) == 1
    assert "ALARM logits" in capsys.readouterr().out
    for name in ("mine_to_examine:none", "nothing_there:good", "mine_to_examine"):
        assert main(["examine", name]) == 1
        assert "should be module:function" in capsys.readouterr().err
