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
        rows = []
        for i in range(len(x)):
            (slope,) = torch.autograd.grad(out[i].sum(), leaf, retain_graph=True)
            rows.append(slope.flatten(1).abs().sum(1) > 0)
        return torch.stack(rows)
        """,
        """
        import copy

        net = copy.deepcopy(model).eval()
        whole = torch.autograd.functional.jacobian(lambda z: net(z).sum(1), x)
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
        ("", "return 1.461", "floor(2) should give"),
        ("", "return round(math.log(math.e + classes - 1) - 1, 3)", "should give"),
    ],
    "depends": [
        ("model.eval()", "model", "eval mode"),
        ("for row in rows]", "for row in rows], 1", "exchanged"),
        ("module.training = mode", "pass", "mode"),
        ("x.detach().clone().requires_grad_()", "x.requires_grad_()", "changes x"),
        (".ne(0).any(1)", ".ne(0).float().mean(1)", "bool"),
        (".any(1)", ".all(1)", "eval mode, row by row"),
        (".ne(0).any(1)", ".gt(0).any(1)", "yours gives"),
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
        (".square()", ".abs()", "should give"),
        ("dim=-2", "dim=0", "should give"),
        ("x.var(correction=0)", "x.var(0, correction=0).mean()", "should give"),
        ("", "return min(1.0, 0.5 * (x.diff().square().mean() / x.var()).item())", "should give"),
    ],
    "three_bugs": [
        ("", "return 7, set()", "yours are 0"),
        ("", "return 7", "your number and the three names"),
        ("number = 7", "number = 8", "of your three are right"),
        ("number = 7", 'number = "7"', "whole"),
        ("", 'return 7, {"softmax", "a", "b"}', "is not one of BUGS"),
        ("", "return 7, 'labels shuffled'", "set of three texts"),
    ],
}
