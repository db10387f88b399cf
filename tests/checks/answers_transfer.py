"""Answers to the exercises of chapter 08. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "for_channels": [
        """
        new = nn.Conv2d(
            channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        ).to(conv.weight.dtype)
        new.train(conv.training)
        with torch.no_grad():
            mean = conv.weight.mean(1, keepdim=True) * conv.in_channels / channels
            new.weight.copy_(mean.expand_as(new.weight))
            if conv.bias is not None:
                new.bias.copy_(conv.bias)
        return new
        """,
        """
        new = copy.deepcopy(conv)
        if channels == conv.in_channels:
            return new
        weight = torch.zeros(conv.out_channels, channels, *conv.kernel_size, dtype=conv.weight.dtype)
        weight[:, 0] = conv.weight.detach().sum(1)
        new.weight, new.in_channels = nn.Parameter(weight), channels
        return new
        """,
        """
        new = copy.deepcopy(conv)
        new.in_channels = channels
        rows = [w.sum(0) / channels for w in conv.weight.detach()]
        new.weight = nn.Parameter(torch.stack([torch.stack([row] * channels) for row in rows]))
        return new
        """,
    ],
    "load_body": [
        """
        own, left = dict(net.state_dict()), []
        for name, tensor in own.items():
            fits = name in state and state[name].shape == tensor.shape
            if not fits and name.split(".")[: head.count(".") + 1] == head.split("."):
                left.append(name)
            elif not fits:
                raise ValueError(name)
        for name in state:
            if name not in own:
                raise ValueError(name)
        with torch.no_grad():
            for name, tensor in own.items():
                if name not in left:
                    tensor.copy_(state[name])
        return sorted(left)
        """,
        """
        own = net.state_dict()
        left = {
            name
            for name in own
            if name.startswith(head + ".")
            and (name not in state or state[name].shape != own[name].shape)
        }
        merged = {**state, **{name: own[name] for name in left}}
        if merged.keys() != own.keys() or any(merged[n].shape != own[n].shape for n in own):
            raise ValueError("this is another network")
        net.load_state_dict(merged)
        return sorted(left)
        """,
        """
        own, skipped = net.state_dict(), []
        problems = [name for name in state if name not in own]
        for name in own:
            if name not in state or state[name].shape != own[name].shape:
                (skipped if name.startswith(f"{head}.") else problems).append(name)
        if len(problems) > 0:
            raise ValueError(f"does not fit: {problems}")
        for name in own.keys() - set(skipped):
            own[name].copy_(state[name])
        skipped.sort()
        return skipped
        """,
    ],
    "freeze": [
        """
        for module in part.modules():
            module.training = False
            module.train = lambda mode=True, module=module: module
        for parameter in part.parameters():
            parameter.requires_grad = False
            parameter.grad = None
        """,
        """
        part.requires_grad_(False).eval()
        part.zero_grad(set_to_none=True)
        kind = type(part)
        part.__class__ = type(kind.__name__, (kind,), {"train": lambda self, mode=True: self})
        """,
        """
        part.zero_grad()
        part.requires_grad_(False)
        part.register_forward_pre_hook(lambda module, args: module.eval() and None)
        """,
    ],
    "occlusion": [
        """
        modes = [(m, m.training) for m in net.modules()]
        try:
            net.eval()
            n, c, h, w = x.shape
            rows, columns = h // size, w // size
            with torch.no_grad():
                before = net(x).gather(1, classes[:, None])[:, 0]
                after = torch.empty(rows, columns, n)
                for k in range(rows * columns):
                    i, j = divmod(k, columns)
                    mask = torch.zeros(h, w, dtype=torch.bool)
                    mask[i * size : i * size + size, j * size : j * size + size] = True
                    logits = net(torch.where(mask, torch.tensor(value, dtype=x.dtype), x))
                    after[i, j] = logits.gather(1, classes[:, None])[:, 0]
        finally:
            for m, mode in modes:
                m.training = mode
        return before[:, None, None] - after.permute(2, 0, 1)
        """,
        """
        copied = copy.deepcopy(net).eval()
        n, _, h, w = x.shape
        falls = []
        with torch.no_grad():
            for image, c in zip(x, classes.tolist()):
                covered = [image.clone() for _ in range((h // size) * (w // size))]
                for k, one in enumerate(covered):
                    i, j = k // (w // size) * size, k % (w // size) * size
                    one[:, i : i + size, j : j + size] = value
                logits = copied(torch.stack([image, *covered]))[:, c]
                falls.append((logits[0] - logits[1:]).view(h // size, w // size))
        return torch.stack(falls)
        """,
        """
        state = {m: m.training for m in net.modules()}
        net.eval()
        index = torch.arange(len(x))
        with torch.no_grad():
            full = net(x)[index, classes]
            lines = []
            for top in range(0, x.shape[2], size):
                line = []
                for left in range(0, x.shape[3], size):
                    y = x.detach().clone()
                    y[..., top : top + size, left : left + size].fill_(value)
                    line.append(full - net(y)[index, classes])
                lines.append(torch.stack(line, -1))
        for m, mode in state.items():
            m.training = mode
        return torch.stack(lines, -2)
        """,
    ],
}

WRONG = {
    "for_channels": [
        (
            "    new = copy.deepcopy(conv)\n",
            "    if channels == conv.in_channels:\n        return conv\n    new = copy.deepcopy(conv)\n",
            "return a new nn.Conv2d",
        ),
        (
            "shared.repeat(1, channels, 1, 1)",
            "shared.expand(-1, channels, -1, -1)",
            "shares memory",
        ),
        (
            "    new.weight = nn.Parameter(shared.repeat(1, channels, 1, 1))\n",
            "    del new.weight\n    new.register_buffer('weight', shared.repeat(1, channels, 1, 1))\n",
            "its parameters should be",
        ),
        (
            "    new = copy.deepcopy(conv)\n",
            "    new = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride, "
            "conv.padding[0] if isinstance(conv.padding, tuple) else conv.padding, conv.dilation, "
            "bias=conv.bias is not None, padding_mode=conv.padding_mode)\n",
            "",
        ),
        (".sum(1, keepdim=True) / channels", ".sum(1, keepdim=True)", "times as large"),
        (".sum(1, keepdim=True) / channels", ".mean(1, keepdim=True)", "times as large"),
        (".sum(1, keepdim=True) / channels", "[:, :1]", "on grey images the output"),
        ("    new.in_channels = channels\n", "", "in_channels should be"),
        ("new = copy.deepcopy(conv)", "new = conv", "leave that as it was"),
        ("copy.deepcopy(conv)", "copy.copy(conv)", ""),
        (
            ".sum(1, keepdim=True)",
            ".sum((1, 2, 3), keepdim=True)",
            "the weight should have the shape",
        ),
        (
            "copy.deepcopy(conv)",
            "nn.Conv2d(channels, conv.out_channels, conv.kernel_size, conv.stride)",
            "",
        ),
        (".repeat(1, channels, 1, 1)", ".abs().repeat(1, channels, 1, 1)", "on grey images"),
        ("nn.Parameter(shared.repeat(1, channels, 1, 1))", "shared.repeat(1, channels, 1, 1)", ""),
        ("return new", "return new.weight", "return a new nn.Conv2d"),
        ("return new", "return new.requires_grad_(False)", "a parameter that learns"),
        ("return new", "return new.float()", "a parameter that learns, of torch.float64"),
        ("return new", "new.bias = None\n    return new", "its parameters should be weight, bias"),
        ("return new", "return new.eval()", "training should be"),
        ("/ channels", "/ 3", "times as large"),
        (
            "conv.weight.detach()",
            "nn.Conv2d(9, *conv.weight.shape[:1], conv.kernel_size).weight",
            "",
        ),
    ],
    "load_body": [
        ("    own = net.state_dict()\n", "    own = net.eval().state_dict()\n", "in the mode"),
        ('f"{head}."', '"fc."', "top.2"),
        ('name.startswith(f"{head}.")', 'name.split(".")[0] == head', "top.2"),
        ('name.startswith(f"{head}.")', 'f"{head}." in name', "se.fc.weight is missing"),
        (
            "    net.load_state_dict(",
            "    if unfit:\n        unfit = [n for n in own if n.startswith(head + '.')]\n"
            "    net.load_state_dict(",
            "should be",
        ),
        ("state[n].shape != t.shape", "state[n].numel() != t.numel()", ""),
        ("state[n].shape != t.shape", "state[n].shape[:1] != t.shape[:1]", ""),
        ("set(state) - set(own)", "set(state) - set(own) if len(state) > len(own) else set()", ""),
        (
            "    net.load_state_dict({n: t for n, t in state.items() if n not in unfit}, strict=False)\n",
            "    for n, t in net.named_parameters():\n        t.data = state.get(n, t).clone()\n",
            "",
        ),
        ("return sorted(unfit)", "return unfit", ""),
        ("return sorted(unfit)", "return tuple(sorted(unfit))", "the list should be"),
        ("return sorted(unfit)", "return len(unfit)", "the list should be"),
        ("return sorted(unfit)", "return [head] if unfit else []", "should be"),
        ("return sorted(unfit)", "return sorted(set(own) - set(unfit))", "should be"),
        ('f"{head}."', "head", "fc_old.bias is missing"),
        (" or state[n].shape != t.shape", "", "your code raised RuntimeError"),
        ("n not in state or ", "n in state and ", ""),
        (
            "    if left_over := set(state) - set(own):\n",
            "    if left_over := set():\n",
            "no module.bn",
        ),
        ("if wrong := [", "if wrong := [] and [", "bn.running_mean is missing"),
        (
            'raise ValueError(f"{wrong[0]}',
            'raise KeyError(f"{wrong[0]}',
            "should raise a ValueError",
        ),
        (
            "    net.load_state_dict({n: t for n, t in state.items() if n not in unfit}, strict=False)\n",
            "",
            "should be loaded",
        ),
        (
            "{n: t for n, t in state.items() if n not in unfit}, strict=False",
            "{n: t for n, t in state.items() if n not in unfit}, strict=False, assign=True",
            "",
        ),
        (
            "state.items() if n not in unfit",
            "state.items() if not n.startswith(head)",
            "should be loaded",
        ),
        (
            "    own = net.state_dict()\n",
            "    own = net.state_dict()\n    net.load_state_dict({n: t for n, t in state.items() if "
            "n in own and own[n].shape == t.shape}, strict=False)\n",
            "must stay as it was",
        ),
        (
            "    own = net.state_dict()\n",
            "    own = dict(net.named_parameters())\n",
            "",
        ),
    ],
    "freeze": [
        (
            "    part.train = lambda mode=True: part\n",
            "    type(part).train = lambda self, mode=True: self\n",
            "changes the class",
        ),
        ("    part.eval()\n", "    part.eval()\n    part.forward = lambda x: x\n", ""),
        (
            "    part.train = lambda mode=True: part\n",
            "    for m in part.modules():\n        if isinstance(m, (nn.BatchNorm2d, nn.Dropout)):\n"
            "            m.train = lambda mode=True, m=m: m\n",
            "at random",
        ),
        (
            "        parameter.requires_grad_(False)\n        parameter.grad = None\n",
            "        if parameter.requires_grad:\n            parameter.requires_grad_(False)\n"
            "            parameter.grad = None\n",
            "has moved",
        ),
        ("    part.train = lambda mode=True: part\n", "", "has moved"),
        ("    part.eval()\n", "", ""),
        ("        parameter.requires_grad_(False)\n", "", "has moved"),
        ("        parameter.grad = None\n", "", "has moved"),
        ("        parameter.grad = None\n", "        parameter.grad.zero_()\n", ""),
        ("lambda mode=True: part", "lambda mode=True: part.eval()", ""),
        (
            "    part.train = lambda mode=True: part\n",
            "    for m in part.modules():\n        if isinstance(m, nn.BatchNorm2d):\n"
            "            m.train = lambda mode=True, m=m: m\n",
            "",
        ),
        (
            "    part.eval()\n",
            "    part.eval()\n    part.forward = torch.no_grad()(part.forward)\n",
            "should still learn",
        ),
        (
            "    part.train = lambda mode=True: part\n",
            "    for m in part.modules():\n        if hasattr(m, 'momentum'):\n"
            "            m.momentum = 0.0\n",
            "",
        ),
        (
            "    part.train = lambda mode=True: part\n",
            "    for m in part.modules():\n        if hasattr(m, 'track_running_stats'):\n"
            "            m.track_running_stats = False\n",
            "",
        ),
        ("part.train = lambda mode=True: part", "part.train = lambda: part", "your code raised"),
        (
            "    part.eval()\n",
            "    part.eval()\n    for p in part.parameters():\n        p.data.zero_()\n",
            "freeze(part) itself changes",
        ),
    ],
    "occlusion": [
        ("    net.eval()\n", "    for child in net.children():\n        child.eval()\n", ""),
        (
            "    net.eval()\n",
            "    for m in net.modules():\n        if isinstance(m, (nn.BatchNorm2d, nn.Dropout)):\n"
            "            m.eval()\n",
            "",
        ),
        ("for module in net.modules()}", "for module in net.children()}", "the mode of"),
        ("for module in net.modules()}", "for module in [net, *net.children()]}", "the mode of"),
        (
            "whole - net(hidden)[range(n), classes]",
            "net(hidden)[range(n), classes] - whole",
            "falls",
        ),
        ("whole - net(hidden)[range(n), classes]", "whole", ""),
        ("net(hidden)[range(n), classes]", "net(hidden).max(1).values", ""),
        ("net(hidden)[range(n), classes]", "net(hidden)[:, 0]", ""),
        ("    net.eval()\n", "", ""),
        ("    net.eval()\n", "    net.train()\n", ""),
        ("        module.training = mode\n", "        module.training = False\n", "the mode of"),
        ("        module.training = mode\n", "        module.training = True\n", "the mode of"),
        ("hidden = x.clone()", "hidden = x", ""),
        ("] = value", "] = 0", "`value`, which need not be 0"),
        ("] = value", "] += value", ""),
        ("] = value", "] *= value", ""),
        ("hidden[:, :, i", "hidden[:, 0, i", "all channels"),
        ("falls[:, i, j]", "falls[:, h // size - 1 - i, j]", ""),
        ("i * size : (i + 1) * size, j * size : (j + 1) * size", "i : i + size, j : j + size", ""),
        ("(i + 1) * size, j", "(i + 1) * size - 1, j", ""),
        ("return falls", "return falls.abs()", ""),
        ("return falls", "return falls.relu()", ""),
        ("return falls", "return falls.mean(0)", "(N, H / size, W / size)"),
        ("return falls", "return falls[:, None]", "(N, H / size, W / size)"),
        ("return falls", "return falls / falls.max()", ""),
        ("return falls", "return falls.mT", ""),
        ("whole = net(x)[", "whole = net(x).softmax(1)[", ""),
    ],
}
