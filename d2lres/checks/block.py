"""Self-checks of chapter 02."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2lres.blocks import Residual
from d2lres.checks import Wrong, check


@check
def careful_block(kind: type[nn.Module]) -> str:
    """Exercise 1: `kind` takes the arguments of Residual and has conv1, bn1, conv2, bn2, conv3."""
    for arguments, shape in [((3, 3), (4, 3, 6, 6)), ((3, 6, True, 2), (4, 3, 7, 7))]:
        block, x = kind(*arguments), torch.randn(shape)
        before = x.clone()
        try:
            y = block(x)
        except (ValueError, AssertionError) as error:
            where = " after conv3" if block.conv3 is not None else ""
            advice = "compare after conv3." if where else error
            raise Wrong(
                f"{kind.__name__}{arguments} has equal shapes{where}, yet yours raised "
                f"{type(error).__name__}: {advice}"
            ) from None
        if not torch.equal(x, before):
            raise Wrong("your forward changes the caller's x; write a new tensor, as in a + b.")
        _compare(block, y, *_terms(block, x))
        try:
            y.sum().backward()
        except RuntimeError:
            raise Wrong(
                "the output is right but backward fails: something is changed in place that "
                "autograd had saved; write a + b."
            ) from None
    misfits = [((3, 6), (4, 3, 6, 6)), ((1, 6), (4, 1, 6, 6)), ((3, 3, False, 2), (4, 3, 2, 2))]
    for arguments, shape in misfits:
        try:
            kind(*arguments)(torch.rand(shape))
        except ValueError:
            continue
        except AssertionError:
            raise Wrong(
                "an assert raises AssertionError, and Python skips it with -O: raise ValueError "
                "instead."
            ) from None
        except RuntimeError:
            raise Wrong(
                f"on maps {shape} PyTorch's own error came first: compare the shapes before "
                "adding, and raise ValueError."
            ) from None
        raise Wrong(
            f"{kind.__name__}{arguments} took maps {shape} without an error: one term was "
            "broadcast. Compare all dimensions of the two shapes."
        )
    return "your block adds equal shapes only: no forgotten 1x1 convolution passes unnoticed."


def _terms(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Branch and shortcut of a block with the notes' names, in the block's own mode."""
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return branch, x if block.conv3 is None else block.conv3(x)


def _compare(block: nn.Module, y: Tensor, branch: Tensor, shortcut: Tensor) -> None:
    if not isinstance(y, Tensor):
        raise Wrong(f"forward must return a tensor, not {type(y).__name__}.")
    if y.shape != branch.shape:
        raise Wrong(f"the output should be {tuple(branch.shape)}, yours is {tuple(y.shape)}.")
    mistakes = {
        "the ReLU after the addition is missing.": branch + shortcut,
        "the shortcut is not added.": F.relu(branch),
        "the branch is not added.": F.relu(shortcut),
        "the ReLU comes before the addition; it belongs after it.": F.relu(branch) + shortcut,
        "the branch is subtracted: add it.": F.relu(shortcut - branch),
        "the shortcut is subtracted: add it.": F.relu(branch - shortcut),
    }
    if torch.allclose(y, F.relu(branch + shortcut), atol=1e-5):
        return
    for advice, value in mistakes.items():
        if torch.allclose(y, value, atol=1e-5):
            raise Wrong(advice)
    raise Wrong("the output is not ReLU(g(x) + shortcut(x)).")


@check
def block_arguments(choose: Callable[[tuple, tuple], dict]) -> str:
    """Exercise 2: `choose(before, after)` gives Residual's arguments, as a dict or in order."""
    names = ["input_channels", "num_channels", "use_1x1conv", "strides"]
    for before, after in [
        ((3, 6, 6), (3, 6, 6)),
        ((64, 56, 56), (128, 28, 28)),
        ((16, 9, 9), (32, 9, 9)),
        ((16, 8, 8), (16, 4, 4)),
        ((8, 7, 7), (16, 4, 4)),
        ((8, 30, 30), (8, 10, 10)),
        ((8, 5, 5), (16, 3, 3)),
        ((8, 7, 7), (8, 3, 3)),  # here and below round(H / H') is too small
        ((8, 10, 10), (16, 4, 4)),
    ]:
        given = choose(before, after)
        if isinstance(given, (tuple, list)):
            given = dict(zip(names, given))
        if not isinstance(given, dict) or not {"input_channels", "num_channels"} <= set(given):
            raise Wrong(f"return a dict with the keys {', '.join(names)}.")
        case = f"{before} -> {after}"
        if (given["input_channels"], given["num_channels"]) != (before[0], after[0]):
            raise Wrong(
                f"{case}: the channels are the first of the three numbers, {before[0]} "
                f"and {after[0]}."
            )
        strides, used = given.get("strides", 1), bool(given.get("use_1x1conv", False))
        if not isinstance(strides, int) or strides < 1:
            raise Wrong(f"{case}: strides must be a whole number from 1 up, not {strides}.")
        side = -(-before[1] // strides)
        if side != after[1]:
            raise Wrong(
                f"{case}: strides={strides} gives a side of {side}, since sides are rounded up."
            )
        if used and before == after:
            raise Wrong(f"{case}: the shape stays, so the identity will do: use_1x1conv=False.")
        if not used and before != after:
            what = "channels change" if before[1] == after[1] else "side changes"
            raise Wrong(f"{case}: the {what}, so x does not fit: use_1x1conv=True.")
        Residual(**given)(torch.rand(2, *before))  # complains about keys it does not know
    return "channels and side decide, and the 1x1 convolution is there only when x does not fit."


@check
def repaired(kind: type[nn.Module]) -> str:
    """Exercise 3: `kind(channels)`, three convolutions with BN, keeps the shape of its input."""
    block, x = kind(8), torch.randn(4, 8, 6, 6)
    names = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]
    if missing := [name for name in names if not hasattr(block, name)]:
        raise Wrong(f"keep the names of the layers; {', '.join(missing)} is missing.")
    for name, size in (("conv1", 1), ("conv2", 3), ("conv3", 1)):
        conv = getattr(block, name)
        if conv.kernel_size != (size, size):
            found = "x".join(map(str, conv.kernel_size))
            raise Wrong(f"{name} should be {size}x{size}, yours is {found}.")
    if block.conv2.padding not in ((1, 1), "same"):
        raise Wrong("conv2's output does not fit x: a 3x3 window needs padding=1.")
    for name in ("conv1", "conv3"):
        if getattr(block, name).padding not in ((0, 0), "same", "valid"):
            raise Wrong(f"a 1x1 window needs no padding; {name} has some.")
    y = block(x.clone())
    y.square().sum().backward()
    idle = [n for n in names if getattr(block, n).weight.grad is None]
    if idle:
        raise Wrong(
            f"{', '.join(idle)} took no part in the output: each layer must get the result "
            "of the one before."
        )
    out = F.relu(block.bn1(block.conv1(x)))
    out = F.relu(block.bn2(block.conv2(out)))
    out = block.bn3(block.conv3(out))
    if torch.allclose(y, F.relu(out), atol=1e-5):
        raise Wrong("x is not added.")
    if torch.allclose(y, x + out, atol=1e-5):
        raise Wrong("the ReLU after the addition is missing.")
    if torch.allclose(y, x + F.relu(out), atol=1e-5):
        raise Wrong("the last ReLU comes before the addition; it belongs after it.")
    if not torch.allclose(y, F.relu(x + out), atol=1e-5):
        raise Wrong(
            "the layers run in another order than conv1, bn1, ReLU, conv2, bn2, ReLU, "
            "conv3, bn3, + x, ReLU."
        )
    return "all three convolutions take part. The right shape alone had proved nothing."


def _trained(*arguments) -> Residual:
    """A block as after training: no BN weight is 1, no bias and no running mean 0."""
    block = Residual(*arguments)
    for bn in (block.bn1, block.bn2):
        for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return block


def _modes(block: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in block.named_modules()}


def _check_modes(block: nn.Module, before: dict[str, bool]) -> None:
    for name, training in _modes(block).items():
        if training != before.get(name, training):
            mode = "training" if training else "evaluation"
            raise Wrong(
                f"your function leaves {name or 'the block'} in {mode} mode: change tensors only."
            )


@check
def make_identity(change: Callable[[Residual], Any]) -> str:
    """Exercise 4: `change(block)` makes a trained Residual(8, 8) the identity for x >= 0."""
    block, x = _trained(8, 8), torch.rand(4, 8, 6, 6)
    before = {name: p.detach().clone() for name, p in block.state_dict().items()}
    modes = _modes(block)
    returned = change(block)
    block = returned if isinstance(returned, nn.Module) else block
    after = block.state_dict()
    if set(after) != set(before):
        raise Wrong("keep the layers of the block and change their parameters only.")
    _check_modes(block, modes)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    for mode in (True, False):
        block.train(mode)
        y = block(x)
        if torch.allclose(y, x, atol=1e-6):
            continue
        if not changed:
            raise Wrong("no parameter has changed; assign inside torch.no_grad(), in place.")
        if block.bn2.weight.any():
            raise Wrong(
                "g(x) is not 0 yet: bn2 has the last word in the branch, and its weight is not 0: "
                "even behind a zeroed conv2, in evaluation it still scales (bias − running mean)."
            )
        if block.bn2.bias.any():
            raise Wrong("bn2 still adds its bias to every pixel.")
        raise Wrong(f"not the identity in {'training' if mode else 'evaluation'} mode.")
    if len(changed) > 2:
        raise Wrong(
            f"it is the identity, but you changed {len(changed)} tensors, {', '.join(changed)}: "
            "two are enough, and the others keep what they have learned."
        )
    block.train()(x).square().sum().backward()
    alive = bool(block.bn2.weight.grad.any())
    return "x >= 0 passes in both modes, " + (
        "and bn2's weight still gets a gradient, so training can wake the branch up."
        if alive
        else "whatever the convolutions hold."
    )


@check
def without_biases(change: Callable[[Residual], Any]) -> str:
    """Exercise 5: `change(block)` zeroes the biases of a Residual with 1x1 convolution."""
    block, x = _trained(4, 8, True, 2), torch.randn(4, 4, 6, 6)
    expected = {}
    for conv in filter(None, (block.conv1, block.conv2, block.conv3)):
        nn.init.uniform_(conv.bias, 0.5, 1.5)
    for mode in (True, False):
        # Training mode moves the running statistics, so each mode is tried on a state of its own.
        state = {name: t.clone() for name, t in block.state_dict().items()}
        expected[mode] = block.train(mode)(x)
        block.load_state_dict(state)
    weights = {n: p.detach().clone() for n, p in block.named_parameters() if "conv" in n}
    modes = _modes(block)
    returned = change(block)
    block = returned if isinstance(returned, nn.Module) else block
    for name in ("conv1", "conv2", "conv3"):
        conv = getattr(block, name)
        if conv.bias is None:
            raise Wrong(f"{name}.bias is gone: set it to zero in place, so that it stays a tensor.")
        if conv.bias.any():
            raise Wrong(f"{name}.bias is not 0 yet.")
        if not torch.equal(conv.weight, weights[f"{name}.weight"]):
            raise Wrong(f"{name}.weight has changed; the biases can go without that.")
    _check_modes(block, modes)
    same = {
        mode: torch.allclose(block.train(mode)(x), expected[mode], atol=1e-4)
        for mode in (False, True)
    }
    if not same[True] and not same[False]:
        raise Wrong(
            "the output changes in both modes: conv3's bias has no BN behind it; which other bias "
            "is added to the same sum?"
        )
    if not same[False]:
        raise Wrong(
            "training mode agrees, evaluation does not: a running mean was collected with the bias "
            "in it, so it is too large by that bias (or was moved the wrong way)."
        )
    if not same[True]:
        raise Wrong(
            "evaluation agrees, training mode does not: there the BN removes its input's mean "
            "itself, so its own weight and bias must not make up for a bias in front of it."
        )
    return "three biases gone, output unchanged in both modes: they held nothing that BN did not."
