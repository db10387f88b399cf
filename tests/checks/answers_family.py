"""Answers to the exercises of chapter 07. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "multiplications": [
        """
        import math

        small = math.ceil(side / stride)
        per_pixel = width // groups * width * 9 + outplanes * width
        return side * side * inplanes * width + small * small * per_pixel
        """,
        """
        total, n = 0, side
        for a, b, k, g, s in (
            (inplanes, width, 1, 1, 1), (width, width, 3, groups, stride), (width, outplanes, 1, 1, 1)
        ):
            n = (n - 1) // s + 1
            total += n * n * k * k * (a // g) * b
        return total
        """,
        """
        from torch.utils.flop_counter import FlopCounterMode

        convs = nn.Sequential(
            nn.Conv2d(inplanes, width, 1),
            nn.Conv2d(width, width, 3, stride, 1, groups=groups),
            nn.Conv2d(width, outplanes, 1),
        )
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            convs(torch.zeros(1, inplanes, side, side))
        return counter.get_total_flops() // 2
        """,
    ],
    "drop_path": [
        """
        if not training or rate == 0:
            return branch
        kept = torch.bernoulli(torch.full((branch.shape[0], 1, 1, 1), 1 - rate))
        return branch * kept / (1 - rate)
        """,
        """
        from torchvision.ops import stochastic_depth

        return stochastic_depth(branch, rate, "row", training)
        """,
        """
        out = branch.clone()
        if training:
            out = out / (1 - rate)
            out[torch.rand(len(out)) < rate] = 0
        return out
        """,
    ],
    "filter_normalised": [
        """
        if weight.ndim < 2:
            return 0 * step
        s, w = step.movedim(dim, 0), weight.movedim(dim, 0)
        out = torch.zeros_like(s)
        for i in range(len(s)):
            if s[i].norm() > 0:
                out[i] = s[i] * (w[i].norm() / s[i].norm())
        return out.movedim(0, dim)
        """,
        """
        if weight.dim() <= 1:
            return torch.zeros(step.shape)
        s, w = (t.transpose(dim, 0) for t in (step, weight))
        lengths = w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1))
        unit = F.normalize(s.flatten(1), dim=1, eps=1e-30).view_as(s)
        return (unit * lengths).transpose(dim, 0)
        """,
        """
        if weight.ndim < 2:
            return step - step
        axes = tuple(set(range(step.ndim)) - {dim % step.ndim})
        a = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
        b = torch.linalg.vector_norm(step, dim=axes, keepdim=True)
        return torch.nan_to_num(step * (a / b))
        """,
    ],
    "inverted_residual": [
        """
        def __init__(self, inplanes, planes, stride, factor):
            super().__init__()
            wide = inplanes * factor
            self.conv1 = nn.Conv2d(inplanes, wide, kernel_size=1, bias=False)
            self.conv2 = nn.Conv2d(
                wide, wide, kernel_size=3, stride=stride, padding=1, groups=wide, bias=False
            )
            self.conv3 = nn.Conv2d(wide, planes, kernel_size=1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(wide), nn.BatchNorm2d(wide)
            self.bn3 = nn.BatchNorm2d(planes)
            self.act = nn.ReLU6(inplace=True)

        def forward(self, x):
            out = self.act(self.bn1(self.conv1(x)))
            out = self.bn3(self.conv3(self.act(self.bn2(self.conv2(out)))))
            if out.shape == x.shape and self.conv2.stride == (1, 1):
                out = out + x
            return out
        """,
        """
        def __init__(self, inplanes, planes, stride, factor):
            super().__init__()
            sizes = [inplanes, factor * inplanes, factor * inplanes, planes]
            for i in (1, 2, 3):
                a, b = sizes[i - 1 : i + 1]
                how = dict(stride=stride, padding=1, groups=a) if i == 2 else {}
                setattr(self, f"conv{i}", nn.Conv2d(a, b, 3 if i == 2 else 1, bias=False, **how))
                setattr(self, f"bn{i}", nn.BatchNorm2d(b))
            self.adds = stride == 1 and inplanes == planes

        def forward(self, x):
            out = x
            for i in (1, 2, 3):
                out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
                out = out.clamp(0, 6) if i < 3 else out
            return out + x * self.adds if self.adds else out
        """,
        """
        def __init__(self, inplanes, planes, stride, factor):
            super().__init__()
            wide = factor * inplanes
            self.conv1, self.bn1 = nn.LazyConv2d(wide, 1, bias=False), nn.LazyBatchNorm2d()
            self.conv2 = nn.LazyConv2d(wide, 3, stride, 1, groups=wide, bias=False)
            self.conv3, self.bn2 = nn.LazyConv2d(planes, 1, bias=False), nn.LazyBatchNorm2d()
            self.bn3, self.adds = nn.LazyBatchNorm2d(), stride == 1 and inplanes == planes

        def forward(self, x):
            out = F.relu6(self.bn2(self.conv2(F.relu6(self.bn1(self.conv1(x))))))
            return self.bn3(self.conv3(out)) + (x if self.adds else 0)
        """,
        (
            "return x + out if self.shortcut else out",
            "if not self.shortcut:\n            return out\n        return torch.add(out, x)",
        ),
    ],
}

WRONG = {
    "multiplications": [
        ("// groups", "", "the groups of the 3x3 convolution are missing"),
        ("9 * width**2 // groups", "9 * (width // groups) ** 2", "one division by groups"),
        ("first = side**2", "first = out**2", "the stride sits in the 3x3"),
        ("-(-side // stride)", "side // stride", "rounded up"),
        ("-(-side // stride)", "side", "has the stride, so its maps"),
        ("return first", "return 2 * first", "should give"),
        ("return first + out**2 *", "return 2 * first + 2 * out**2 *", "as many again"),
        (
            "width * outplanes)",
            "width * outplanes + inplanes * outplanes)",
            "the shortcut does not",
        ),
        ("width * outplanes)", "width * outplanes // groups)", "should give"),
        ("side**2 * inplanes * width", "side**2 * inplanes * width // groups", "should give"),
        ("", "return inplanes * width + 9 * width**2 // groups + width * outplanes", "of weights"),
        ("9 * width**2", "3 * width**2", "should give"),
        ("side**2", "side", "should give"),
    ],
    "drop_path": [
        (">= rate", "< rate", "the share of images"),
        (" / (1 - rate)", "", "divide what stays"),
        ("/ (1 - rate)", "/ rate", "divide what stays"),
        (
            "torch.rand(len(branch), 1, 1, 1)",
            "torch.rand_like(branch)",
            "one number for each image",
        ),
        ("len(branch), 1, 1, 1", "*branch.shape[:2], 1, 1", "one number for each image"),
        ("len(branch), 1, 1, 1", "1", "one number for each image"),
        ("return branch\n", "return branch * (1 - rate)\n", "outside training"),
        ("not training", "training", "stay as it is"),
        ("", "return F.dropout(branch, rate, training)", "one number for each image"),
        ("", "return F.dropout2d(branch, rate, training)", "one number for each image"),
        ("return branch * stays", "return branch.detach() * stays", "detach nothing"),
        ("return branch * stays", "return branch.mul_(stays)", "changes branch"),
        ("stays = ", "torch.manual_seed(0)\n    stays = ", "draw anew"),
        (
            "",
            "out = branch.clone()\nif training:\n"
            "    out[: round(rate * len(out))] = 0\n    out /= 1 - rate\nreturn out",
            "must not depend on another",
        ),
        ("return branch * stays", "return branch[stays.flatten()]", "of shape"),
        ("len(branch), 1, 1, 1", "len(branch), 1, branch.shape[2], 1", "one number for each image"),
        ("return branch * stays", "return F.relu(branch) * stays", "one number for each image"),
        ("return branch * stays", "return branch.double() * stays", "torch.float32"),
        ("    return branch\n    stays", "    return branch.detach()\n    stays", "detach nothing"),
        ("stays = ", "stays = len(branch) < 10 or ", "drawn by itself"),
        (
            "stays = torch.rand(len(branch), 1, 1, 1) >= rate",
            "half = torch.rand(len(branch) // 2 + 1).repeat(2)[: len(branch)]\n"
            "    stays = half.view(-1, 1, 1, 1) >= rate",
            "must not depend on another",
        ),
    ],
    "filter_normalised": [
        ("if i != dim % weight.ndim", "", "not the whole tensor"),
        ("dim % weight.ndim", "0", "need not be 0"),
        ("!= dim %", "== dim %", "the norm is taken over all others"),
        ("return torch.zeros_like(step)", "return step", "not its own"),
        ("torch.where(given == 0, 1, given)", "given", "should give"),
        ("step * wanted / torch", "step * wanted * torch", "should give"),
        ("dim % weight.ndim", "dim", "dim may be negative"),
        ("return step * wanted", "return weight * wanted", "should give"),
        ("t.square()", "t.abs()", "should give"),
        ("return step * wanted", "return step.mul_(wanted)", "changes step"),
        (".square().sum(others, keepdim=True).sqrt()", ".abs().sum(others, keepdim=True)", "root"),
        ("torch.where(given == 0, 1, given)", "(given + 1e-2)", "should give"),
        ("torch.where(given == 0, 1, given)", "given.clamp(min=1e-4)", "should give"),
        ("return step * wanted", "return step.abs() * wanted", "the sign of the step"),
        ("dim % weight.ndim", "dim % 4", "should give"),
        ("weight.ndim < 2", "not 2 <= weight.ndim <= 4", "should give"),
    ],
    "inverted_residual": [
        ("return x + out if self.shortcut else out", "return out", "the input is not added"),
        ("groups=wide, ", "", "the weight of conv2"),
        ("nn.Conv2d(wide, planes, 1, bias=False)", "nn.Conv2d(wide, planes, 1)", "needs no bias"),
        ("F.relu6(self.bn1", "F.relu(self.bn1", "ends at 6"),
        ("return x + out if", "return F.relu6(x + out) if", "no ReLU6 follows the addition"),
        ("out = self.bn3(self.conv3(out))", "out = F.relu6(self.bn3(self.conv3(out)))", "last BN:"),
        ("out = self.bn3(self.conv3(out))", "out = F.relu(self.bn3(self.conv3(out)))", "last BN:"),
        ("F.relu6(self.bn1(self.conv1(x)))", "self.bn1(self.conv1(x))", "first BN, too"),
        ("F.relu6(self.bn2(self.conv2(out)))", "self.bn2(self.conv2(out))", "depthwise"),
        ("stride == 1 and inplanes == planes", "inplanes == planes", "your code raised"),
        ("stride == 1 and inplanes == planes", "stride == 1", "your code raised"),
        ("wide, wide, 3, stride, 1,", "wide, wide, 3, 1, 1,", "conv2 has the stride"),
        ("wide = factor * inplanes", "wide = factor * planes", "the weight of conv1"),
        ("self.bn1(self.conv1(x))", "self.conv1(x)", "is not that of"),
        ("return x + out if", "return x.detach() + out if", "the gradient of x"),
        ("wide, wide, 3, stride, 1,", "wide, wide, 3, min(stride, 2), 1,", "conv2 has the stride"),
        ("if self.shortcut else", "if x.shape == out.shape else", "is not that of"),
        ("stride == 1 and inplanes == planes", "stride != 2 and inplanes == planes", "raised"),
        ("self.bn2 = nn.BatchNorm2d(wide)", "self.bn2 = self.bn1", "each another"),
        ("nn.BatchNorm2d(planes)", "nn.BatchNorm2d(planes, affine=False)", "plain nn.BatchNorm2d"),
    ],
}
