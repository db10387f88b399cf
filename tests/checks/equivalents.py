"""Mutants that do what the solution does, and why."""

ORDER = "the order does not matter here"
TENSOR = "a tensor of one element is a number, too"
SAME = "it cancels"
NEW = "a buffer may be a new tensor: no optimizer holds it"
EQUIVALENT = {
    "twins": {"return tuple(pair) -> return pair": "a list is as good as a tuple"},
    "majority_accuracy": {
        "return (torch.bincount(labels).max() / len(labels)).item() -> "
        "return torch.bincount(labels).max() / len(labels)": TENSOR,
    },
    "contains": {
        "[large, small] -> [small, large]": ORDER,
        "bool(torch.linalg.matrix_rank(both) == torch.linalg.matrix_rank(large)) -> "
        "torch.linalg.matrix_rank(both) == torch.linalg.matrix_rank(large)": TENSOR,
    },
    "gaps": {
        "1 -> 2": SAME,
        "1 -> 0": SAME,
        "seeds = sorted({seed for _, seed in errors}) -> seeds = {seed for _, seed in errors}": ORDER,
    },
    "block_arguments": {"1 -> 2": "maps are square", "1 -> 2 #2": "maps are square"},
    "without_biases": {
        "-= -> = block.bn1.running_mean -": NEW,
        "-= -> = block.bn2.running_mean -": NEW,
        "(block.conv1, block.conv2, block.conv3) -> (block.conv2, block.conv1, block.conv3)": ORDER,
        "(block.conv1, block.conv2, block.conv3) -> (block.conv1, block.conv3, block.conv2)": ORDER,
    },
    "resnet34_from_blocks": {
        "nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2, padding=1), -> "
        "nn.MaxPool2d(kernel_size=3, stride=2, padding=1), nn.ReLU(),": ORDER,
    },
    "stack_gradient": {
        "float(prod((1 + j if residual else j for j … -> "
        "prod((1 + j if residual else j for j …": "math.prod gives a number anyway",
    },
    "effective_depth": {
        "1 -> 2": "there are comb(n, n + 1) = 0 paths more",
        "(k, weight) -> (weight, k)": ORDER,
    },
    "first_to_last": {
        "return (first.norm() / last.norm()).item() -> return first.norm() / last.norm()": TENSOR,
    },
    "one_cycle": {
        "min(step / (0.3 * steps), (steps - step) / … -> min((steps - step) / (0.7 * steps), step / …": (
            ORDER
        ),
    },
    "calibration_error": {
        "+= -> = error +": "a number cannot be changed in place",
        "inside.float().mean().item() * gap.abs().item() -> "
        "inside.float().mean() * gap.abs().item()": TENSOR,
        "inside.float().mean().item() * gap.abs().item() -> "
        "inside.float().mean().item() * gap.abs()": TENSOR,
    },
    "accumulate": {
        "+= -> = total +": "a number cannot be changed in place",
        "total += loss.item() -> total += loss": TENSOR,
    },
    "whole_gradient": {
        "(g, n) -> (n, g)": ORDER,
        "zip(gradients, counts) -> zip(counts, gradients)": ORDER,
    },
    "whole_statistics": {
        "(m, n) -> (n, m)": ORDER,
        "zip(means, counts) -> zip(counts, means)": ORDER,
    },
}
