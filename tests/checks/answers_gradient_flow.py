"""Answers to the exercises of chapter 04. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "stack_gradient": [
        "x = 1.0\nfor j in slopes:\n    x = residual * x + j * x\nreturn x",
        "import numpy as np\n\nreturn np.prod(np.array(slopes, dtype=float) + residual)",
        "return (torch.tensor(slopes, dtype=torch.float64) + int(residual)).prod()",
        """
        if not slopes:
            return 1.0
        return stack_gradient(slopes[:-1], residual) * (slopes[-1] + bool(residual))
        """,
    ],
    "first_to_last": [
        ("(first.norm() / last.norm()).item()", "first.norm() / last.norm()"),
        """
        net = copy.deepcopy(model).train()
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        norms = [m.weight.grad.norm().item() for m in net.modules() if isinstance(m, nn.Conv2d)]
        return norms[0] / norms[-1]
        """,
        """
        kept, modes = copy.deepcopy(model.state_dict()), [(m, m.training) for m in model.modules()]
        w = [p for p in model.parameters() if p.ndim == 4]
        a, b = torch.autograd.grad(F.cross_entropy(model.train()(x), y), [w[0], w[-1]])
        model.load_state_dict(kept)
        all(m.train(mode) for m, mode in modes)
        return (a.square().sum() / b.square().sum()).sqrt().numpy().item()
        """,
    ],
    "skipinit": [
        ("torch.zeros(())", "torch.zeros(1, 1, 1)"),
        ("padding=1)", 'padding="same", bias=False)'),
        ("F.relu(", "nn.ReLU()("),
        """
        def __init__(self, channels):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))
            self.register_parameter("alpha", nn.Parameter(torch.tensor([0.0])))

        def forward(self, x):
            return x.addcmul(self.alpha, self.conv2(self.conv1(x).relu_())).relu_()
        """,
    ],
}

WRONG = {
    "stack_gradient": [
        ("prod(", "sum(", "should give -0.0625"),
        ("", "return float(prod(slopes) + residual)", "there is a shortcut around each block, not"),
        ("", "return float(1 + sum(slopes)) if residual else float(prod(slopes))", "should give"),
        ("1 + j if residual else j", "1 + j", "should give 0.5"),
        ("1 + j if residual else j", "j if residual else 1 + j", "residual"),
        ("1 + j if residual else j", "abs(j + residual)", "should give -0.0625"),
        ("", "x = 1.0\nwhile slopes:\n    x *= slopes.pop() + residual\nreturn x", "changes"),
        ("return float(", "return str(", "number"),
    ],
    "first_to_last": [
        ("copy.deepcopy(model).train()", "model.train()", "changes the mode of model, train or"),
        ("deepcopy(model).train()", "deepcopy(model)", "the model may come in eval mode: call"),
        ("(first.norm() / last.norm())", "(last.norm() / first.norm())", "first"),
        ("p.dim() == 4", "p.dim() > 1", "should give 0.5383"),
        ("torch.autograd.grad(F.cross_entropy(model(x), y), kernels)", "kernels", "gradient"),
        (".norm()", ".square().sum()", "these are squared norms."),
        ("model = copy", "model.zero_grad()\n    model = copy", ".grad"),
        ("copy.deepcopy(model).train()", "copy.deepcopy(model.train())", "mode"),
    ],
    "skipinit": [
        ("torch.zeros(())", "torch.ones(())", "start"),
        ("nn.Parameter(torch.zeros(()))", "torch.zeros((), requires_grad=True)", "self.alpha must"),
        ("torch.zeros(())", "torch.zeros(channels, 1, 1)", "one element"),
        ("F.relu(x + ", "F.relu(", "x is not added."),
        ("F.relu(x + ", "(x + ", "last ReLU"),
        ("F.relu(self.conv1(x))", "self.conv1(x)", "between"),
        ("x + self.alpha * ", "self.alpha * x + ", "branch"),
        ("self.alpha = ", "nn.init.zeros_(self.conv2.weight)\n        self.alpha = ", "gradient"),
        ("self.conv2(F", "self.conv1(F", "conv2"),
        ("F.relu(x + ", "(lambda b: x.add_(b).relu_())(", "changes x"),
        ("self.conv1(x)", "F.batch_norm(self.conv1(x), None, None, training=True)", "in train"),
        ("padding=1", "padding=1, groups=channels", "self.conv1 must be an nn.Conv2d of its own,"),
        ("return F", "if not self.alpha: return x.relu()\n        return F", "gradient"),
    ],
}
