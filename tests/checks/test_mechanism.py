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

from d2lres.checks import _calls, behaves, call, check, compare, in_place, refuses, scramble

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


def written(body: str, head: str = "def answer(x):"):
    """What a cell with this definition defines."""
    cells = "import itertools, random, time\nimport numpy\nimport torch\nfrom torch import nn\n"
    names = namespace.__wrapped__((cells, f"{head}\n    {body}\n"))
    return next(reversed(names.values()))


VERDICTS = {
    "return sum(x) * 2": "Correct: your function doubles sums.",
    "return torch.tensor(2.0 * sum(x))": "Correct: ",
    "return numpy.float32(2 * sum(x))": "Correct: ",
    "return numpy.array(2 * sum(x))": "Correct: ",
    "...\n    return 2 * sum(x)": "Correct: ",
    "class F(float): __eq__ = lambda *_: 1 / 0\n    return F(2 * sum(x))": "Correct: ",
    "return sum(x)": "Not yet: that is the sum: double it.",  # explains all cases
    "return sum(x) if len(x) == 2 else 0.0": "([1, 2]) should give 6, yours gives 3. Wanted: 2 (a + b).",
    "return 2 * sum(x) + len(x) // 3": "([0.5, -3, 4]) should give 3, yours gives 4. Wanted: 2 (a + b).",
    "return 2 * sum(x) * 1.0001": "should give 6, yours gives 6.001",
    "return 2 * sum(x) * 1.00004": "should give 6, yours gives 6.00024",
    "return float('nan')": "should give 6, yours gives nan",
    "return str(2 * sum(x))": "return one number; yours is of type str.",
    "return torch.ones(2)": "return one number; yours is of type Tensor of shape (2,).",
    "return (i for i in iter(int, 1))": "return one number; yours is of type generator.",
    "return ...": "return one number; yours is of type ellipsis.",
    "return 2 * (x.pop() + sum(x))": "for answer([]) your code raised IndexError (in the line `",
    "return 2 * sum(x) + 0 * len(x.append(1) or x)": "changes the items of x:",
    "answer.n = getattr(answer, 'n', 0) + 1\n    return 2 * sum(x) + answer.n // 4": "the second",
    "y = 2 * sum(x)": "your code gives nothing back: is a `return` missing?",
    "return None": "is a `return` missing?",
    "False and print(2 * sum(x))": "`print` only shows a value, `return` hands it over.",
    "y = 2 * sum(x)\n    ...": "the line `...` still stands where an answer belongs.",
    "raise NotImplementedError": "your code raised NotImplementedError (in the line `raise NotI",
    "raise ValueError('two\\n  lines')": "`): two lines",
    "raise SystemExit": "your code raised SystemExit",
    "return answer(x)": "your code raised RecursionError",
    "class F(float): __float__ = lambda self: 1 / 0\n    return F()": "raised ZeroDivisionError",
    "...  # your code here": "Not attempted yet: twice the sum",
    '"""Doc."""\n    ...': "Not attempted yet: twice the sum",
    "pass": "Not attempted yet: twice the sum",
}


@pytest.mark.parametrize("body", VERDICTS)
def test_an_answer_gets_its_verdict(said, body):
    expected, message = VERDICTS[body], said(twice_the_sum, written(body))
    assert expected in message
    assert message.startswith((expected.partition(":")[0], "Not yet: "))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x, y: 2 * sum(x), "missing 1 required positional argument: 'y'"),
        (lambda: 6.0, "takes 0 positional arguments but 1 was given"),
        (6.0, "hand over the function itself; yours is a float."),
        (None, "hand over your function itself, without calling it."),
        (..., "Not attempted yet: twice the sum"),
        (written("...", "class A(nn.Module):"), "Not attempted yet: twice the sum"),
        (
            written(
                "def __init__(self):\n        super().__init__()\n        ...",
                "class A(nn.Module):",
            ),
            "Not attempted yet: twice the sum",
        ),
    ],
)
def test_what_is_no_function_of_x_is_told_so(said, answer, told):
    assert told in said(twice_the_sum, answer)


def test_an_error_of_the_check_is_not_the_learners(said):
    message = said(check(lambda answer: answer(1) / 0), lambda x: x)
    assert message.startswith("No verdict: the check failed, not your code (ZeroDivisionError")


@check
def watched(answer):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].weight.grad = torch.ones(2, 2)
    call(answer, net, torch.ones(4, 2), {"rows": [torch.ones(2), 3], "array": numpy.ones(2)})
    return "nothing has changed."


CHANGES = {
    "net[0].weight.data.zero_()": "net.0.weight",
    "net[0].weight.grad = None": "net.0.weight.grad",
    "net[0].bias.requires_grad_(False)": "net.0.bias.requires_grad",
    "net[1](x)": "net.1.running_mean",
    "net[1].eval()": "the mode of net.1, train or eval",
    "net[0].register_forward_hook(print)": "the hooks of net.0",
    "net.forward = lambda x: x": "the attributes of net",
    "net.append(nn.ReLU())": "the attributes of net",
    "net[1].momentum = 0.5": "the attributes of net.1",
    "x += 1": "x",
    "table['rows'].append(1)": "the items of table['rows']",
    "table['rows'][0] *= 2": "table['rows'][0]",
    "table['rows'][1] = 3.0": "table['rows'][1]",
    "table['array'][0] = 5": "table['array']",
    "del table['rows']": "the items of table",
    "torch.manual_seed(7)": "PyTorch's random numbers for all that runs after it",
    "random.random()": "Python's random numbers for all that runs after it",
    "numpy.random.seed(3)": "NumPy's random numbers for all that runs after it",
    "torch.set_default_dtype(torch.float64)": "the default dtype for all that runs after it",
    "torch.set_default_device('meta')": "the default device for all that runs after it",
    "torch.set_grad_enabled(False)": "gradient mode for all that runs after it",
    "torch.set_num_threads(7)": "the number of threads for all that runs after it",
    "numpy.seterr(all='ignore')": "NumPy's error handling for all that runs after it",
}


@pytest.mark.parametrize("code", [*CHANGES, "torch.set_default_dtype(torch.float64); 1 / 0"])
def test_what_an_answer_changes_is_named_and_put_back(said, code):
    before = [get() for get, _ in _calls._DEFAULTS.values()]
    message = said(watched, written(code, "def answer(net, x, table):"))
    name = CHANGES.get(code)
    told = f"changes {name}: leave that as it was" if name else "raised ZeroDivisionError"
    assert message.startswith(f"Not yet: your code {told}")
    assert all(map(_calls._equal, before, [get() for get, _ in _calls._DEFAULTS.values()]))


def test_what_may_change_may_change():
    call(lambda net: net.eval() and None, nn.ReLU(), changes=("the mode of net*",))
    call(lambda *many: many[1].add_(torch.rand(1)), 3, torch.ones(1), changes=("*2",), draws=True)


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


ENDLESS = [
    "while True: pass",
    "while True:\n        try: sum(range(9))\n        except: pass",
    "time.sleep(99)",
    "return sum(1 for _ in itertools.count())",
]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
@pytest.mark.parametrize("body", ENDLESS)
def test_an_endless_answer_is_stopped(said, body, monkeypatch):
    monkeypatch.setattr(_calls, "SECONDS", 0.3)
    start = time.monotonic()
    message = said(twice_the_sum, written(body))
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
        twice_the_sum(written("raise KeyboardInterrupt"))


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
    "return self.norm(x) * self.scale": "Correct: your block scales.",
    "return self.norm(x)": "the scale is missing.",
    "return self.norm(x) * 2": "for maps of shape (5, 3, 2) the output, of shape (5, 3, 2), is not sca",
    "return self.norm(x).mean(2) * self.scale": "the output, of shape (5, 3), is not scale * norm(x).",
    "return self.norm.eval()(x) * self.scale": "in train mode for maps of shape (5, 3, 2) the output",
    "return self.norm(x) * self.scale.detach()": "the gradient of scale is missing",
    "return self.norm(x).detach() * self.scale": "the gradient of norm.weight is missing",
    "return (self.norm(x), self.norm(x))[0] * self.scale": "norm.running_mean after a pass is wrong",
    "return self.norm(x.mul_(1.0001)) * self.scale": "your code changes x",
    "return nn.BatchNorm1d(3)(x) * self.scale": "make layers in __init__: forward uses its own.",
    "self.norm(x) * self.scale": "your code gives nothing back: is a `return` missing?",
    "return [x]": "forward must return a tensor, not a list.",
    "return y": "for maps of shape (5, 3, 2), which it should take, your code raised NameError",
}


@pytest.mark.parametrize("body", FORWARDS)
def test_a_module_is_judged_by_all_it_does(said, body):
    forward = written(body, "def forward(self, x):")
    assert FORWARDS[body] in said(scales, type("Block", (Scale,), {"forward": forward}))


def test_in_place_means_in_place():
    assert in_place(written("nn.init.zeros_(x.bias)"), nn.Linear(2, 2)) == ["bias"]
    wrong = {
        "yours returns another module": "return nn.Linear(2, 2)",
        "return the block itself": "return None",
        "weight is a new tensor": "x.weight = nn.Parameter(1 - x.weight)\n    return x",
        "changes the mode of block": "return x.eval()",
    }
    for told, body in wrong.items():
        with pytest.raises(_calls.Wrong, match=told):
            in_place(written(body), nn.Linear(2, 2), returns=True)


def test_a_missing_refusal_is_named():
    refuses(written("raise ValueError"), 3, "f", "x is odd")
    wrong = {
        "return x": "f should raise a ValueError, since x is odd; yours gives 3.",
        "raise RuntimeError": "f should raise a ValueError, since x is odd; yours raises Runtime",
        "assert False": "f: `python -O` skips an assert; raise a ValueError instead.",
        "torch.ones(2) + torch.ones(x)": "f: PyTorch's own error came first",
    }
    for body, told in wrong.items():
        with pytest.raises(_calls.Wrong) as raised:
            refuses(written(body), 3, "f", "x is odd")
        assert told in str(raised.value)
