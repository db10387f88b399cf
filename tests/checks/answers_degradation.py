"""Answers to the exercises of chapter 01. RIGHT: other bodies. WRONG: (search, replace, advice)."""

RIGHT = {
    "anatomy": [
        """
        for n in range(1, depth):
            if depth == 2 + 6 * n:
                return [n, n + n + n]
        raise ValueError(depth)
        """,
        """
        from d2lres import BasicBlock, cifar_resnet
        net = cifar_resnet(depth, width=1)
        return len(net.layer1), sum(isinstance(module, BasicBlock) for module in net.modules())
        """,
        ("divmod(depth - 2, 6)\n    if rest", "divmod(depth, 6)\n    if rest != 2"),
        ("    n, rest = ", "    import numpy as np\n    n, rest = np."),
    ],
    "contains": [
        """
        gap = large @ torch.linalg.lstsq(large, small).solution - small
        return (gap.norm(dim=0) <= 1e-9 * small.norm(dim=0)).all()
        """,
        """
        u, s, _ = torch.linalg.svd(large, full_matrices=False)
        u = u[:, s > 1e-10 * s[0]]
        return torch.allclose(u @ (u.T @ small), small, rtol=0, atol=1e-10 * small.norm().item())
        """,
        """
        rank = torch.linalg.matrix_rank
        return all(rank(large) == rank(torch.column_stack((large, x))) for x in small.T)
        """,
        ("bool(torch", "(torch"),
    ],
    "silence": [
        """
        if block.downsample is not None:
            raise ValueError("downsample")
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        for parameter in norms[-1].parameters():
            parameter.data = torch.zeros_like(parameter)
        return block
        """,
        ("torch.nn.init.zeros_(last.weight)", "last.weight.data = torch.zeros_like(last.bias)"),
        ("torch.nn.init.zeros_(last.bias)", "last.bias.detach().mul_(0)"),
        ('hasattr(block, "bn3")', "block.expansion == 4"),
    ],
    "gaps": [
        """
        gap = {}
        for run in runs:
            sign = (run["depth"] == shallow) - (run["depth"] == deep)
            if run["kind"] == "plain":
                gap[run["seed"]] = gap.get(run["seed"], 0) + sign * run["train"]["accuracy"]
        return gap
        """,
        """
        a = {(r["depth"], r["seed"]): r["train"]["accuracy"] for r in runs if r["kind"] == "plain"}
        return {s: a[shallow, s] - a[d, s] for d, s in a if d == deep}
        """,
        ("1 - run", "torch.ones((), dtype=torch.float64) - run"),
    ],
}

WRONG = {
    "anatomy": [
        ("rest or n < 1", "False", "ValueError"),
        ("rest or n < 1", "rest", "since 2 layers hold no block"),
        ("n < 1", "n == 0", "since -4 layers hold no block"),
        ("rest or", "depth % 2 or", "6n + 2"),
        ("depth - 2, 6", "depth - 1, 6", "your code raised ValueError"),
        ("3 * n", "6 * n", "a block adds once, after its second"),
        ("return n, 3 * n", "return n, n", "three stages"),
        ("return n, 3 * n", "return 3 * n, n", "order"),
        ("return n, 3 * n", "return f'{n}, {3 * n}'", "return (blocks per stage, additions);"),
        ("raise ValueError(", "assert False, (", "ValueError"),
        ("raise ValueError", "return ValueError", "raise"),
        ("", "return {8: (1, 3), 20: (3, 9), 56: (9, 27), 110: (18, 54)}[depth]", "your code"),
    ],
    "contains": [
        ("matrix_rank(large)", "matrix_rank(small)", "the order is (large, small), yours is"),
        ("torch.linalg.matrix_rank(large)", "large.shape[1]", "repeat"),
        ("", "rank = torch.linalg.matrix_rank\nreturn rank(small) <= rank(large)", "rank"),
        ("", "return small.shape[1] <= large.shape[1]", "more columns are not enough: what do"),
        ("", "return (large[..., None] == small[:, None]).all(0).any(0).all()", "sums of columns"),
        ("", "return torch.equal(large[:, : small.shape[1]], small)", "should give True"),
        ("small], dim=1", "small[:, :1]], dim=1", "should give False"),
        ("small], dim=1", "small.sum(1, keepdim=True)], dim=1", "should give False"),
    ],
    "silence": [
        ("last = block.bn3", "last = block.bn2", "bn3"),
        ("    torch.nn.init.zeros_(last.bias)\n", "", "bias"),
        ("    torch.nn.init.zeros_(last.weight)\n", "", "weight"),
        ("    return block", "", "return"),
        ("    last", "    import copy\n    block = copy.deepcopy(block)\n    last", "change the"),
        ("raise ValueError(", "return block or (", "ValueError"),
        ("block.downsample is not None", "hasattr(block.downsample, '0')", "since it is not None"),
        ("    last", "    block.bn1.weight.data.zero_()\n    last", "bn1.weight changed: leave"),
        ("    return", "    last.reset_running_stats()\n    return", "bn2.running_mean,"),
        ("    return", "    block.requires_grad_(False)\n    return", "changes"),
        ("zeros_(last.weight)", "constant_(last.weight, 1e-6)", "the BasicBlock changes x by"),
        ("    last", "    block.forward = lambda x: x\n    return block\n    last", "changes the"),
    ],
    "gaps": [
        ('run["train"]', 'run["test"]', "these are test errors: take those of `train`."),
        ('1 - run["train"]["accuracy"]', 'run["train"]["loss"]', "should give"),
        ('1 - run["train"]["accuracy"]', '1 - run["history"]["accuracy"][-1]', "take `train`, not"),
        ('        if run["kind"] == "plain"\n', "", "plain"),
        ("deep, seed] - errors[shallow", "shallow, seed] - errors[deep", "sign"),
        ("{seed: ", "{seed: 0 if errors[deep, seed] < errors[shallow, seed] else ", "negative"),
        ("{seed: errors", "{str(seed): errors", "the keys should be 0, 3; yours has '0', '3'."),
        ("sorted({seed for _, seed in errors})", "range(5)", "seeds"),
        ("    return", "    runs.sort(key=str)\n    return", "changes the items of runs"),
        ("    return", "    [run.update(error=0) for run in runs]\n    return", "changes the"),
        ("[deep, seed]", "[[k for k in errors if deep in k][seeds.index(seed)]]", "should give"),
    ],
}
