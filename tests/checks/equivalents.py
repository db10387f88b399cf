"""Mutants that do what the solution does, and why."""

ORDER = "the order does not matter here"
TENSOR = "a tensor of one element is a number, too"
NEW = "a buffer may be a new tensor: no optimizer holds it"
NUMBER = "a number cannot be changed in place"
GAINS = "the check measures that this helps, too"
EQUIVALENT = {
    "twins": {"return tuple(pair) -> return pair": "a list is as good as a tuple"},
    "majority_accuracy": {
        "(torch.bincount(labels).max() … -> torch.bincount(labels).max() /…": TENSOR
    },
    "contains": {
        "[large, small] -> [small, large]": ORDER,
        "bool(torch.linalg.matrix_rank(… -> torch.linalg.matrix_rank(both)…": TENSOR,
    },
    "gaps": {
        "1 -> 2": "it cancels",
        "1 -> 0": "it cancels",
        "sorted({seed for _, seed in er… -> {seed for _, seed in errors}": ORDER,
    },
    "block_arguments": {"1 -> 2": "maps are square", "1 -> 2 #2": "maps are square"},
    "without_biases": {
        "-= -> = block.bn1.running_mean -": NEW,
        "-= -> = block.bn2.running_mean -": NEW,
        "(block.conv1, block.conv2, -> (block.conv2, block.conv1,": ORDER,
        "block.conv2, block.conv3) -> block.conv3, block.conv2)": ORDER,
    },
    "resnet34_from_blocks": {
        "nn.ReLU(), nn.MaxPool2d(kernel… -> nn.MaxPool2d(kernel_size=3, st…": ORDER
    },
    "stack_gradient": {
        "float(prod((1 + j if residual … -> prod((1 + j if residual else j…": "math.prod gives a number anyway"
    },
    "effective_depth": {
        "1 -> 2": "there are comb(n, n + 1) = 0 paths more",
        "(k, weight) -> (weight, k)": ORDER,
    },
    "best_segment": {"1 -> 2 #2": "a segment longer than n keeps more"},
    "first_to_last": {"(first.norm() / last.norm()).i… -> first.norm() / last.norm()": TENSOR},
    "one_cycle": {"min(step / (0.3 * steps), (ste… -> min((steps - step) / (0.7 * st…": ORDER},
    "calibration_error": {
        "+= -> = error +": NUMBER,
        "inside.float().mean().item() -> inside.float().mean()": TENSOR,
        "gap.abs().item() -> gap.abs()": TENSOR,
    },
    "own_rung": {"cycle=True, -> ": GAINS, "True -> False": GAINS, "0.01 -> 0.015": GAINS},
    "multiplications": {
        "9 * width ** 2 // groups -> 9 * width ** 2 / groups": "the groups divide the width",
        "out = -(-side // stride) -> out = -side // stride": "it is squared",
    },
    "drop_path": {">= -> >": "torch.rand is hardly ever the rate itself"},
    "filter_normalised": {"1 -> 2": "0 / 2 is 0, too"},
    "for_channels": {
        "conv.weight.detach().sum -> conv.weight.sum": "a parameter is a leaf anyway",
        "conv -> new #2": "a copy has the same weights",
    },
    "load_body": {
        "name -> net": "what the error says is free",
        "name -> own": "what the error says is free",
    },
    "freeze": {
        "True -> False": "the mode is not used",
        "part -> mode #4": "no network uses what train() of its children returns",
        "parameter -> part": "part.requires_grad_ reaches all parameters",
    },
    "occlusion": {"with torch.no_grad(): -> if True:": "slower, and the same numbers"},
    "depends": {
        "x.detach().clone -> x.clone": "x has no graph",
        "x.detach().clone().requires_gr… -> x.detach().requires_grad_": "only the leaf asks for one",
        "torch.stack(slopes).flatten(2)… -> torch.stack(slopes).flatten(2)… #2": "any() of numbers",
        "0 -> -1": "a tuple of one",
    },
    "roughness": {
        "(pairs.square().mean() / (2 * … -> pairs.square().mean() / (2 * x…": TENSOR,
        "x.diff(dim=-1) -> x.diff()": "-1 is the default",
        "[x.diff(dim=-1).flatten(), x.d… -> [x.diff(dim=-2).flatten(), x.d…": ORDER,
        "dim=-2 -> dim=2": "x has four dimensions",
    },
    "three_bugs": {
        "{'a layer is ignored', 'softma… -> {'softmax at the end', 'a laye…": ORDER,
        "'softmax at the end', 'the los… -> 'the loss is a sum', 'softmax …": ORDER,
    },
    "accumulate": {"+= -> = total +": NUMBER, "total += loss.item() -> total += loss": TENSOR},
    "whole_gradient": {
        "(g, n) -> (n, g)": ORDER,
        "zip(gradients, counts) -> zip(counts, gradients)": ORDER,
    },
    "whole_statistics": {
        "(m, n) -> (n, m)": ORDER,
        "zip(means, counts) -> zip(counts, means)": ORDER,
    },
}
