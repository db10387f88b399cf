"""Answers to the exercises of chapter 02. RIGHT: other bodies. WRONG: (search, replace, advice)."""

RIGHT = {
    "careful_block": [
        """
        def forward(self, x):
            from d2lres.blocks import add
            return nn.ReLU()(add(self.g(x), self.conv3(x) if self.conv3 else x, "differ"))
        """,
        ("branch.shape != shortcut.shape", "[*branch.shape] != [*shortcut.size()]"),
        ("F.relu(branch + shortcut)", "torch.stack([shortcut, branch]).sum(0).relu()"),
        ("return F.relu(branch + shortcut)", "branch += shortcut\n        return branch.relu_()"),
    ],
    "block_arguments": [
        """
        keys = ("strides", "use_1x1conv", "num_channels", "input_channels")
        fits = [s for s in range(1, before[2] + 1) if (before[2] - 1) // s == after[2] - 1]
        return dict(zip(keys, (max(fits), before != after, after[0], before[0])))
        """,
        ("-(-before[1] // after[1])", "__import__('math').ceil(before[1] / after[1])"),
        ("-(-before[1] // after[1])", "__import__('numpy').int64(-(-before[1] // after[1]))"),
        ("before != after", "any(a != b for a, b in zip(before, after))"),
    ],
    "repaired": [
        """
        def __init__(self, channels):
            super().__init__()
            for i, k in (2, 3), (1, 1), (3, 1):
                self.add_module(f"conv{i}", nn.Conv2d(channels, channels, k, padding=k // 2))
                self.add_module(f"bn{i}", nn.BatchNorm2d(channels))

        def forward(self, x):
            first = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.conv2, self.bn2)
            return self.bn3(self.conv3(first(x).relu_())).add_(x).relu()
        """,
        ("padding=1", 'padding="same"'),
        ("F.relu(", "torch.relu("),
        ("channels, channels, 1)", "channels, out_channels=channels, kernel_size=(1, 1))"),
    ],
    "make_identity": [
        """
        with torch.no_grad():
            block.bn2.weight *= 0
            block.bn2.bias.copy_(-block.conv3.bias)
            block.conv3.weight.copy_(torch.eye(len(block.conv3.bias))[:, :, None, None])
        """,
        """
        state = block.state_dict()  # shares the memory
        state["bn2.weight"].zero_(), state["conv3.bias"].copy_(-state["bn2.bias"])
        state["conv3.weight"][:, :, 0, 0] = torch.diag(torch.ones_like(state["bn2.bias"]))
        """,
        ("nn.init.zeros_(block.bn2.bias)", "block.bn2.bias.data = block.bn2.bias.data * 0"),
    ],
    "without_biases": [
        ("bn1.running_mean -=", "bn1.running_mean = block.bn1.running_mean -"),
        ("block.bn2.bias += block.conv3.bias", "block.bn2.bias.sub_(block.conv3.bias, alpha=-1)"),
        ("conv.bias.zero_()", "conv.bias -= conv.bias"),
    ],
}

WRONG = {
    "careful_block": [
        ("branch.shape != shortcut.shape", "branch.shape[1] != shortcut.shape[1]", "since the"),
        ("branch.shape != shortcut.shape", "branch.shape[:3] != shortcut.shape[:3]", "since the"),
        ("branch.shape != shortcut.shape", "branch.numel() != shortcut.numel()", "CarefulBlock(1,"),
        ("if branch", "if shortcut is x and self.conv1.stride[0] > 1 or branch", "your code"),
        ("raise ValueError", "raise RuntimeError", "ValueError"),
        ("raise ValueError", "return ValueError", "raise"),
        ("F.relu(branch + shortcut)", "super().forward(x)", "once"),
        ("F.relu(branch + shortcut)", "F.relu(shortcut.add_(branch))", "changes x"),
        ("F.relu(branch + shortcut)", "branch + shortcut", "ReLU"),
        ("F.relu(branch + shortcut)", "F.relu(branch) + shortcut", "after the addition"),
        ("branch + shortcut)", "branch + shortcut.detach())", "gradient"),
    ],
    "block_arguments": [
        ("-(-before[1] // after[1])", "before[1] // after[1]", "(8, 7, 7) -> (16, 4, 4):"),
        ("-(-before[1] // after[1])", "round(before[1] / after[1])", "(8, 7, 7) -> (8, 3, 3):"),
        ("-(-before[1] // after[1])", "(before[1] + 1) // after[1]", "stride"),
        ("-(-before[1] // after[1])", "before[1] // after[1] + (before[1] > after[1])", "stride"),
        ("-(-before[1] // after[1])", "2 if before[1] > after[1] else 1", "stride"),
        ("-(-before[1] // after[1])", "max(1, after[0] // before[0])", "(16, 9, 9) -> (32, 9, 9):"),
        ("-(-before[1] // after[1])", "before[1] / after[1]", "whole number"),
        ("before != after", "True", "(3, 6, 6) -> (3, 6, 6): the shape stays, so"),
        ("before != after", "before is not after", "(3, 6, 6) -> (3, 6, 6): the shape stays, so"),
        ("before != after", "before[0] != after[0]", "(16, 8, 8) -> (16, 4, 4): x does not fit:"),
        ("before != after", "before[1] != after[1]", "(16, 9, 9) -> (32, 9, 9): x does not fit:"),
        ("return dict(", "before, after = after, before\n    return dict(", "(64, 56, 56) ->"),
        ("use_1x1conv=", "use_1x1_conv=", "keys"),
        ("return dict(", "return Residual(", "dict"),
    ],
    "repaired": [
        ("self.conv3(out)", "self.conv3(x)", "conv3 still gets x: hand it the result of"),
        ("padding=1", "padding=0", "your code raised RuntimeError"),
        ("3, padding=1)", "3)\n        self.conv1.padding = (1, 1)", "conv2"),
        ("padding=1", "padding=1, groups=channels", "conv2"),
        ("self.bn2 = nn.BatchNorm2d(channels)", "self.bn2 = self.bn1", "two layers are the same"),
        ("self.bn3(", "nn.BatchNorm2d(len(x[0]))(", "make layers in __init__: forward uses its"),
        ("F.relu(self.bn2(self.conv2(out)))", "self.bn2(self.conv2(out))", "ReLU"),
        ("self.bn3(self.conv3(out))", "F.relu(self.bn3(self.conv3(out)))", "in train mode for"),
        ("F.relu(self.bn1(self.conv1(x)))", "self.bn1(F.relu(self.conv1(x)))", "in train mode for"),
        ("F.relu(x + out)", "F.relu(x) + out", "in train mode for maps of shape (4, 8, 6, 5)"),
        ("F.relu(x + out)", "F.relu(out)", "x is not added."),
        ("F.relu(x + out)", "F.relu(x.add_(out))", "changes x"),
    ],
    "make_identity": [
        ("nn.init.zeros_(block.bn2.bias)", "", "in train mode the output is off by up to 1.3:"),
        ("nn.init.zeros_(block.conv3.bias)", "", "in train mode the output is off by up to 1.4:"),
        ("bn2", "bn1", "in train mode the output is off by up to 1.3:"),
        ("zeros_(block.bn2.weight)", "zeros_(block.conv2.weight)", "in train mode the output is"),
        ("nn.init.zeros_(block.bn2.weight)", "block.bn2.running_var.fill_(1e38)", "in train mode"),
        ("zeros_(block.bn2.weight)", "constant_(block.bn2.weight, 1e-3)", "in train mode the"),
        ("dirac_", "ones_", "in train mode the output is off by up to 5.5:"),
        ("dirac_(block.conv3.weight", "dirac_(block.conv3.weight, len(block.bn2.bias)", "in train"),
        ("dirac_(block.conv3.weight", "dirac_(block.conv3.weight.clone()", "in train mode the"),
        ("nn.init.zeros_(block.c", "block.conv3.bias = nn.Parameter(0 * block.c", "conv3.bias is"),
        ("conv3.bias)", "conv3.bias)\n    block.conv3 = None", "changes the attributes of block"),
        ("bn2.bias)", "bn2.bias)\n    nn.init.zeros_(block.conv2.weight)", "at most four"),
        ("nn.init.zeros_(block.bn2.weight)", "block.bn2.weight.zero_()", "your code raised"),
        ("bn2.bias)", "bn2.bias)\n    block.requires_grad_(False)", "requires_grad"),
    ],
    "without_biases": [
        ("running_mean -=", "running_mean +=", "only eval mode changes: there BN subtracts"),
        ("block.bn2.running_mean -= block.conv2.bias", "", "only eval mode changes: there BN"),
        ("running_mean -= block.conv1.bias", "running_mean.zero_()", "running mean"),
        ("block.bn2.bias += block.conv3", "block.bn2.running_mean -= block.conv3", "both modes"),
        ("block.bn2.bias += ", "block.bn1.bias += ", "both modes change: no BN follows conv3;"),
        ("block.conv3.bias\n", "block.conv3.bias + block.conv2.bias\n", "both modes change: no BN"),
        ("block.conv3.bias\n", "block.conv3.bias.mean()\n", "both modes change: no BN follows"),
        ("block.bn1.running", "block.conv1.bias.zero_()\n        block.bn1.running", "only eval"),
        ("(block.conv1, block.conv2, block.conv3)", "(block.conv1, block.conv2)", "conv3.bias"),
        ("conv.bias.zero_()", "conv.bias = None", "changes block.conv1.bias"),
        (
            "conv.bias.zero_()",
            "conv.bias = nn.Parameter(torch.zeros_like(conv.bias))",
            "conv1.bias",
        ),
        ("with torch.no_grad():", "if block:", "your code raised RuntimeError"),
    ],
}
