"""What every check shares: verdicts, watched arguments, limits, and the naming of mistakes."""

import random
import subprocess
import sys
import threading
import time

import numpy
import pytest
import torch
from exercises import namespace
from torch import nn

from d2lres.checks import (
    _calls,
    behaves,
    call,
    check,
    compare,
    in_place,
    refuses,
    require,
    scramble,
)

CASES = [([1.0, 2.0],), ([0.5, -3.0, 4.0],), ([],)]
MISTAKES = {"that is the sum: double it.": sum, "keep the sign.": lambda x: 2 * abs(sum(x))}


@check
def twice_the_sum(answer):
    compare(answer, lambda x: 2 * sum(x), CASES, MISTAKES, form="one number", hint="2 (a + b)")
    return "your function doubles sums."


@pytest.fixture
def said(capsys):
    def run(checked, *answers) -> str:
        assert checked(*answers) is None
        printed = capsys.readouterr()
        assert printed.err == "" and printed.out.count("\n") == 1
        return printed.out.strip()

    return run


def written(code: str, name: str = "answer"):
    """What a cell with this code defines."""
    return namespace.__wrapped__(("import torch\nfrom torch import nn\n", code))[name]


def test_a_right_answer_is_told_what_it_proves(said):
    assert said(twice_the_sum, lambda x: sum(x) * 2) == "Correct: your function doubles sums."


@pytest.mark.parametrize("kind", [torch.tensor, numpy.float32, numpy.float64, float, numpy.array])
def test_numbers_of_other_kinds_are_accepted(said, kind):
    assert said(twice_the_sum, lambda x: kind(2.0 * sum(x))).startswith("Correct: ")


remembered = []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (sum, "that is the sum: double it."),  # explains all cases
        (lambda x: sum(x) if len(x) == 2 else 0.0, "([1, 2]) should give 6, yours gives 3: 2 (a"),
        (
            lambda x: 2 * sum(x) + len(x) // 3,
            "([0.5, -3, 4]) should give 3, yours gives 4: 2 (a + b)",
        ),
        (lambda x: 2 * sum(x) * 1.0001, "should give 6, yours gives 6.001"),
        (lambda x: 2 * sum(x) * 1.00004, "should give 6, yours gives 6.00024"),
        (lambda x: str(2 * sum(x)), "return one number; yours is a str."),
        (lambda x: torch.ones(2), "return one number; yours is a Tensor of shape (2,)."),
        (lambda x: (i for i in iter(int, 1)), "return one number; yours is a generator."),
        (lambda x: float("nan"), "should give 6, yours gives nan"),
        (lambda x: 2 * (x.pop() + sum(x)), "for <lambda>([]) your code raised IndexError"),
        (
            lambda x: 2 * sum(x) + 0 * len(x.append(1) or x),
            "should give" * 0 + "changes the order or",
        ),
        (lambda x, y: 2 * sum(x), "your code raised TypeError"),
        (lambda: 6.0, "takes 0 positional arguments but 1 was given"),
        (6.0, "hand over the function itself; yours is a float."),
        (None, "hand over your function itself, without calling it."),
        (lambda x: 2 * sum(x) + (remembered.append(x) or len(remembered) > 3), "wrong the second"),
    ],
)
def test_a_wrong_answer_is_told_what_to_fix(said, answer, told):
    message = said(twice_the_sum, answer)
    assert message.startswith("Not yet: ") and told in message


CLASS = (
    "class answer(nn.Module):\n    def __init__(self):\n        super().__init__()\n        ...\n"
)


@pytest.mark.parametrize(
    "code",
    [
        'def answer(x):\n    """Doc."""\n    ...  # your code here\n',
        "def answer(x):\n    pass",
        "answer = ...",
        CLASS + "    def forward(self, x):\n        ...",
        'class answer(nn.Module):\n    """Doc."""\n    ...',
    ],
)
def test_a_stub_is_not_attempted_yet(said, code):
    assert said(twice_the_sum, written(code)) == "Not attempted yet: twice the sum"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("y = 2 * sum(x)", "is a `return` missing?"),
        ("return None", "is a `return` missing?"),
        ("if x:\n        print(x[9])", "your code raised IndexError"),
        ("False and print(2 * sum(x))", "`print` only shows a value, `return` hands it over."),
        ("y = 2 * sum(x)\n    ...", "the line `...` still stands"),
        ("return ...", "return one number; yours is a ellipsis."),
        ("...\n    return sum(x)", "that is the sum"),
        ("raise NotImplementedError", "(in the line `raise NotImplementedError`)"),
        ("return x[9]", "(in the line `return x[9]`): list index out of range"),
        ("raise SystemExit", "your code raised SystemExit"),
        ("return answer(x)", "your code raised RecursionError"),
        ("raise ValueError('two\\n  lines')", "`): two lines"),
    ],
)
def test_what_is_missing_or_raised_is_named(said, body, told):
    message = said(twice_the_sum, written(f"def answer(x):\n    {body}"))
    assert message.startswith("Not yet: ") and told in message


def test_a_forgotten_stub_line_does_not_spoil_a_right_answer(said):
    answer = written("def answer(x):\n    ...\n    return 2 * sum(x)")
    assert said(twice_the_sum, answer).startswith("Correct: ")


def test_an_error_of_the_check_is_not_the_learners(said):
    message = said(check(lambda answer: answer(1) / 0), lambda x: x)
    assert message.startswith("No verdict: the check failed, not your code (ZeroDivisionError")


@check
def watched(answer):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].weight.grad = torch.ones(2, 2)
    table = {"rows": [torch.ones(2), 3], "array": numpy.ones(2)}
    call(answer, net, torch.ones(4, 2), table)
    return "nothing has changed."


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("net[0].weight.data.zero_()", "net.0.weight"),
        ("net[0].weight.grad = None", "net.0.weight.grad"),
        ("net[0].bias.requires_grad_(False)", "net.0.bias.requires_grad"),
        ("net[1](x)", "net.1.running_mean"),
        ("net[1].eval()", "the mode of net.1, train or eval"),
        ("net[0].register_forward_hook(print)", "the hooks of net.0"),
        ("net.forward = lambda x: x", "the attributes of net"),
        ("net.append(nn.ReLU())", "the attributes of net"),
        ("net[1].momentum = 0.5", "the attributes of net.1"),
        ("x += 1", "x"),
        ("table['rows'].append(1)", "the order or the length of table['rows']"),
        ("table['rows'][0] *= 2", "table['rows'][0]"),
        ("table['rows'][1] = 3.0", "table['rows'][1]"),
        ("table['array'][0] = 5", "table['array']"),
        ("del table['rows']", "the order or the length of table"),
        ("torch.manual_seed(7)", "PyTorch's random numbers for all that runs after it"),
        ("import random; random.random()", "Python's random numbers for all that runs after it"),
        ("import numpy; numpy.random.seed(3)", "NumPy's random numbers for all that runs after it"),
        ("torch.set_default_dtype(torch.float64)", "the default dtype for all that runs after it"),
        ("torch.set_default_device('meta')", "the default device for all that runs after it"),
        ("torch.set_grad_enabled(False)", "gradient mode for all that runs after it"),
        (
            "torch.set_num_threads(torch.get_num_threads() + 1)",
            "the number of threads for all that runs after it",
        ),
        (
            "import numpy; numpy.seterr(all='ignore')",
            "NumPy's error handling for all that runs after it",
        ),
        ("torch.set_default_dtype(torch.float64); 1 / 0", ""),
    ],
)
def test_what_an_answer_changes_is_named_and_put_back(said, code, name):
    before = [get() for get, _ in _calls._DEFAULTS.values()]
    message = said(watched, written(f"def answer(net, x, table):\n    {code}"))
    assert message.startswith(f"Not yet: your code changes {name}:" if name else "Not yet: ")
    assert all(map(_calls._equal, before, [get() for get, _ in _calls._DEFAULTS.values()]))


def test_what_may_change_may_change():
    call(lambda net: net.eval() and None, nn.ReLU(), changes=("the mode of net*",))
    call(lambda: torch.rand(1), draws=True)


def test_the_learners_random_numbers_and_modules_are_as_before(said):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    state = [t.clone() for t in net.state_dict().values()]

    @check
    def trains(module):
        module.train()(torch.rand(4, 2)).sum().backward()
        nn.init.zeros_(module[0].weight)
        return f"{torch.rand(1).item()} {random.random()}"

    torch.manual_seed(1)
    first, drawn = said(trains, net), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert first.split()[1] == said(trains, net).split()[1]
    assert not net.training and all(map(torch.equal, state, net.state_dict().values()))


ENDLESS = {
    "a loop": "while True: pass",
    "a bare except": "while True:\n        try: sum(range(9))\n        except: pass",
    "sleep": "import time; time.sleep(99)",
    "a generator": "import itertools; return sum(1 for _ in itertools.count())",
}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_answer_is_stopped(said, code, monkeypatch):
    monkeypatch.setattr(_calls, "SECONDS", 0.3)
    start = time.monotonic()
    message = said(twice_the_sum, written(f"def answer(x):\n    {code}"))
    assert "was stopped" in message and time.monotonic() - start < 9
    assert said(twice_the_sum, lambda x: 2 * sum(x)).startswith("Correct: ")


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="no limit there")
def test_an_answer_that_eats_the_memory_is_stopped():
    code = "from d2lres.checks import start; start.majority_accuracy(lambda labels: [0] * 10**10)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Not yet: your code needs more memory")


def test_in_another_thread_a_check_runs_without_a_limit(capsys):
    thread = threading.Thread(target=twice_the_sum, args=(lambda x: 2 * sum(x),))
    thread.start()
    thread.join()
    assert capsys.readouterr().out.startswith("Correct: ")


def test_the_stop_button_stops_a_check():
    with pytest.raises(KeyboardInterrupt):
        twice_the_sum(written("def answer(x):\n    raise KeyboardInterrupt"))


def test_objects_with_strange_operators_end_in_one_line(said):
    kind = written("class kind(float):\n    def __eq__(self, other): raise RuntimeError", "kind")
    assert said(twice_the_sum, lambda x: kind(2 * sum(x))).startswith("Correct: ")
    kind = written("class kind(float):\n    def __float__(self): raise OSError('no')", "kind")
    assert "your code raised OSError" in said(twice_the_sum, lambda x: kind(2 * sum(x)))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.scale = nn.BatchNorm1d(3), nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return self.norm(x) * self.scale


@check
def scales(kind):
    pairs = [(scramble(kind()), torch.randn(5, 3, 2)), (kind(), torch.randn(2, 3, 4))]
    mistakes = {"the scale is missing.": lambda block, x: block.norm(x)}
    behaves(pairs, lambda block, x: block.norm(x) * block.scale, mistakes, what="scale * norm(x)")
    return "your block scales."


FORWARDS = {
    "self.norm(x)": "the scale is missing.",
    "self.norm(x) * self.scale + 1": "for maps of shape (5, 3, 2) the output, of shape (5, 3, 2), is not scale * norm(x).",
    "self.norm(x).mean(2) * self.scale": "the output, of shape (5, 3), is not scale",
    "self.norm.eval()(x) * self.scale": "in train mode for maps of shape (5, 3, 2) the output",
    "self.norm(x) * self.scale.detach()": "the gradient of scale is missing",
    "self.norm(x).detach() * self.scale": "the gradient of norm.weight is missing",
    "(self.norm(x), self.norm(x))[0] * self.scale": "norm.running_mean after a pass is wrong",
    "self.norm(x.mul_(1.0001)) * self.scale": "your code changes x",
    "None": "your code gives nothing back: is a `return` missing?",
    "[x]": "forward must return a tensor, not a list.",
    "self.norm(y)": "for maps of shape (5, 3, 2), which it should take, your code raised NameError",
}


@pytest.mark.parametrize("value", FORWARDS)
def test_a_module_is_judged_by_all_it_does(said, value):
    forward = written(f"def forward(self, x):\n    return {value}", "forward")
    assert FORWARDS[value] in said(scales, type("Block", (Scale,), {"forward": forward}))
    assert said(scales, Scale) == "Correct: your block scales."


def test_in_place_means_in_place():
    zeros = written("def answer(block):\n    nn.init.zeros_(block.bias)")
    assert in_place(zeros, nn.Linear(2, 2)) == ["bias"]
    wrong = {
        "works on a copy": lambda block: nn.Linear(2, 2),
        "return the block itself": lambda block: None,
        "weight is a new tensor": lambda b: setattr(b, "weight", nn.Parameter(1 - b.weight)) or b,
        "changes the mode of block": lambda block: block.eval(),
    }
    for told, change in wrong.items():
        with pytest.raises(_calls.Wrong, match=told):
            in_place(change, nn.Linear(2, 2), returns=True)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("return x", "f should raise a ValueError, since x is odd; yours gives 3."),
        ("raise RuntimeError", "f should raise a ValueError, since x is odd; yours raises Runtime"),
        ("assert False", "f: `python -O` skips an assert; raise a ValueError instead."),
        ("torch.ones(2) + torch.ones(x)", "f: PyTorch's own error came first"),
    ],
)
def test_a_missing_refusal_is_named(code, told):
    with pytest.raises(_calls.Wrong) as wrong:
        refuses(written(f"def answer(x):\n    {code}"), 3, "f", "x is odd")
    assert told in str(wrong.value)
    refuses(written("def answer(x):\n    raise ValueError"), 3, "f", "x is odd")


def test_require_raises_only_if_it_does_not_hold():
    require([1], "not raised")
    with pytest.raises(_calls.Wrong, match="told"):
        require([], "told")
