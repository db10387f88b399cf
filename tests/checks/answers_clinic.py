"""Answers to the exercises of chapter 10. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "floor": [
        "return F.cross_entropy(torch.eye(classes), torch.arange(classes)).item()",
        "return -math.log(math.e / (math.e + (classes - 1)))",
        "return torch.eye(classes)[0].softmax(0)[0].log().neg()",
    ],
    "depends": [
        """
        import copy

        net, leaf = copy.deepcopy(model).eval(), x.clone().requires_grad_()
        out = net(leaf)
        found = torch.zeros(len(x), len(x), dtype=torch.bool)
        for i in range(len(x)):
            for c in range(out.shape[1]):
                (slope,) = torch.autograd.grad(out[i, c], leaf, retain_graph=True)
                found[i] |= slope.flatten(1).abs().sum(1) > 0
        return found
        """,
        """
        import copy

        net = copy.deepcopy(model).eval()
        whole = torch.autograd.functional.jacobian(lambda z: net(z) @ torch.randn(net(z).shape[1]), x)
        return whole.flatten(2).abs().amax(2) > 0
        """,
        """
        import copy

        net = copy.deepcopy(model).eval()
        whole = torch.func.jacrev(net)(x)  # (N, classes, N, ...)
        return whole.flatten(3).ne(0).any(3).any(1)
        """,
    ],
    "roughness": [
        """
        rows, columns = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
        total = (rows**2).sum() + (columns**2).sum()
        return float(total / (rows.numel() + columns.numel()) / (2 * ((x - x.mean()) ** 2).mean()))
        """,
        """
        import numpy as np

        a = x.numpy().astype(np.float64)
        pairs = np.concatenate([np.diff(a, axis=3).ravel(), np.diff(a, axis=2).ravel()])
        return np.mean(pairs**2) / (2 * a.var())
        """,
        ("x.var(correction=0)", "x.var(unbiased=False)"),
    ],
    "three_bugs": [
        """
        from d2lres.checks.clinic import drawn

        return 123, drawn(123)
        """,
        ("return number, bugs", "return [number, frozenset(bugs)]"),
        ("return number, bugs", "return number, tuple(sorted(bugs))"),
    ],
}

WRONG = {
    "floor": [
        ("", "return math.log(classes)", "equal guess"),
        ("", "return 0.0", "each adds 1"),
        ("classes - 1", "classes", "C - 1"),
        (") - 1", ")", "subtract the logit"),
        ("math.log(math.e + classes - 1) - 1", "1 - math.log(math.e + classes - 1)", "positive"),
        ("", "return math.log2(math.e + classes - 1) - math.log2(math.e)", "natural"),
        ("", "return 1.461", "floor(10) should give"),
        ("", "return round(math.log(math.e + classes - 1) - 1, 3)", "should give"),
    ],
    "depends": [
        ("model.eval()", "model", "yours gives"),
        ("return torch.stack(rows)", "return torch.stack(rows).T", "exchanged"),
        ("module.training = mode", "pass", "mode"),
        ("x.detach().clone().requires_grad_()", "x.requires_grad_()", "changes x"),
        (".ne(0).any(2).any(0)", ".ne(0).float().mean(2).amax(0)", "bool"),
        (".any(2)", ".all(2)", "any number not 0"),
        (".any(0)", ".all(0)", "any number not 0"),
        (".ne(0)", ".gt(0)", "any number not 0"),
        ("for one in each]", "for one in [each.sum()]]", "their sum may cancel"),
        ("for one in each]", "for one in each[:1]]", "their sum may cancel"),
        ("", "return torch.eye(len(x)).bool()", "yours gives"),
        ("", "return torch.ones(len(x), len(x)).bool()", "yours gives"),
    ],
    "roughness": [
        (
            "torch.cat([x.diff(dim=-1).flatten(), x.diff(dim=-2).flatten()])",
            "x.diff(dim=-1).flatten()",
            "columns, too",
        ),
        (
            "torch.cat([x.diff(dim=-1).flatten(), x.diff(dim=-2).flatten()])",
            "x.diff(dim=-2).flatten()",
            "rows, too",
        ),
        ("2 * x", "x", "twice the variance"),
        ("x.var(correction=0)", "x.std(correction=0)", "deviation"),
        ("correction=0", "correction=1", "number of pixels"),
        (".square()", ".abs()", "square the differences"),
        ("dim=-2", "dim=0", "should give"),
        ("x.var(correction=0)", "x.var(0, correction=0).mean()", "should give"),
        ("", "return min(1.0, 0.5 * (x.diff().square().mean() / x.var()).item())", "should give"),
    ],
    "three_bugs": [
        ("", "return 3, set()", "yours are 0"),
        ("", "return 3", "your number and the three names"),
        ("number = 3", "number = 4", "of your three are right"),
        ("number = 3", 'number = "3"', "whole"),
        ("", 'return 3, {"softmax", "a", "b"}', "is not one of BUGS"),
        ("", "return 3, 'labels shuffled'", "set of three texts"),
    ],
}
