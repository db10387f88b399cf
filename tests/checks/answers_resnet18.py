"""Answers to the exercises of chapter 03. RIGHT: other bodies. WRONG: (search, replace, advice)."""

RIGHT = {
    "output_size": [
        "return len(range(-padding, size + padding - kernel + 1, stride))",
        """
        maps, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
        return torch.conv1d(maps, weight, stride=stride, padding=padding).shape[2]
        """,
        ("return (size", "return __import__('numpy').int64(size"),
    ],
    "stage_parameters": [
        """
        c, total = num_channels, 0
        for a in [input_channels] + [num_channels] * (num_residuals - 1):
            total += 9 * c * (a + c) + 6 * c
        return total + c * (input_channels + 1)
        """,
        ("a * b * k * k + b", "(a * k**2 + 1) * b"),
        ("2 * conv(c, c, 3) + 2 * bn", "6 * c * (3 * c + 1)"),
        """
        with torch.device("meta"):
            stage = d2lres.resnet_block(input_channels, num_channels, num_residuals)
        return sum(p.numel() for block in stage for p in block.parameters())
        """,
    ],
    "resnet34_from_blocks": [
        ("*resnet_block(64, 128, 4),", "nn.Sequential(*resnet_block(64, 128, 4)),"),
        ("256, 6)", "256, 1), *resnet_block(256, 256, 5, True)"),
        ("nn.Flatten(),", "nn.Flatten(2), nn.Flatten(start_dim=1, end_dim=-1),"),
    ],
    "make_layer": [
        """
        stage, out = nn.Sequential(), planes * block.expansion
        while len(stage) < blocks:
            conv = nn.Conv2d(inplanes, out, (1, 1), (stride, stride), bias=False)
            m = nn.Sequential(conv, nn.BatchNorm2d(out)) if stride > 1 or inplanes != out else None
            stage.append(block(inplanes, planes, stride=stride, downsample=m))
            inplanes, stride = out, 1
        return stage
        """,
        ("stride != 1 or inplanes != outplanes", "not stride == 1 or inplanes - outplanes"),
        ("for _ in range(1, blocks):", "while len(layers) < blocks:"),
        ("layers.append(block(outplanes, planes))", "layers = [*layers, block(outplanes, planes)]"),
    ],
}

WRONG = {
    "output_size": [
        ("//", "/", "half a step is no step: round down with //."),
        ("", "return round((size + 2 * padding - kernel) / stride) + 1", "should give 4"),
        ("", "return -(-(size + 2 * padding - kernel) // stride) + 1", "round down"),
        ("", "print((size + 2 * padding - kernel) // stride + 1)", "return"),
        ("2 * padding", "padding", "both sides"),
        (" - kernel", "", "kernel"),
        (" // stride + 1", " // stride", "first position"),
        (" - kernel) // stride + 1", " - kernel + 1) // stride", "add the 1 after dividing."),
        ("(size + 2 * padding - kernel)", "size + 2 * padding - kernel", "should give 4"),
        ("", "return -(-size // stride)", "kernel"),
        ("", "return {224: 112, 112: 56, 56: 28, 28: 14, 14: 7, 7: 4}[size]", "should give 24"),
        ("", "return len(nn.MaxPool1d(kernel, stride, padding)(torch.rand(1, size))[0])", "pool"),
    ],
    "stage_parameters": [
        ("k * k + b", "k * k", "biases"),
        ("b * k * k", "b * 2 * k", "should give 230272"),
        ("2 * num_channels", "4 * num_channels", "should give 230272"),
        (" + conv(input_channels, c, 1)", "", "shortcut"),
        ("conv(input_channels, c, 1)", "conv(input_channels, c, 1) + bn", "no BN"),
        ("+ conv(i", "+ (input_channels != c) * conv(i", "should give 152384"),
        ("other = 2", "other = conv(c, c, 1) + 2", "should give 525952"),
        ("num_residuals - 1", "num_residuals", "num_residuals"),
    ],
    "resnet34_from_blocks": [
        ("64, 3, first_block=True", "64, 3", "yours has 4.conv3.weight (64, 64, 1, 1) where"),
        ("256, 6)", "256, 2), *resnet_block(256, 256, 1, True) * 4", "share"),
        ("def resnet34", "import functools\n\n\n@functools.cache\ndef resnet34", "anew"),
        ("Linear(512, num_classes)", "Linear(512, 10)", "yours has 22.weight (10, 512) where"),
        ("Linear(512, num_classes)", "Linear(512, num_classes), nn.Softmax(1)", "logits"),
        ("padding=3", "padding=2", "in train mode for maps of shape (2, 1, 40,"),
        ("kernel_size=3, stride=2, padding=1", "kernel_size=2", "max-pool"),
        ("        nn.ReLU(),\n", "", "ReLU"),
        ("nn.AdaptiveAvgPool2d", "nn.AvgPool2d", "your code raised RuntimeError"),
        ("nn.AdaptiveAvgPool2d", "nn.AdaptiveMaxPool2d", "average"),
        ("", "return d2lres.resnet34(num_classes, in_channels=1)", "nn.Sequential"),
    ],
    "make_layer": [
        ("stride != 1 or inplanes != outplanes", "stride != 1", "make_layer(BasicBlock, 8, 12,"),
        ("stride != 1 or inplanes != outplanes", "inplanes != outplanes", "make_layer(BasicBlock,"),
        ("inplanes != outplanes", "inplanes != planes", "make_layer(Bottleneck, 16, 4, 2, 1):"),
        ("stride != 1 or inplanes != outplanes", "blocks", "make_layer(BasicBlock, 16, 16, 2):"),
        ("block(inplanes, planes, s", "block(inplanes, outplanes, s", "make_layer(Bottleneck, 16,"),
        ("range(1, blocks)", "(1, blocks)", "make_layer(BasicBlock, 16, 16, 2): your"),
        ("range(1, blocks)", "range(blocks)", "make_layer(BasicBlock, 16, 16, 2): your"),
        ("block(outplanes, planes)", "block(planes, planes)", "make_layer(Bottleneck, 16, 4, 2,"),
        ("block(outplanes, planes)", "block(outplanes, planes, stride)", "your code raised"),
        (", bias=False", "", "make_layer(BasicBlock, 16, 24, 3, 2): your"),
        (", nn.BatchNorm2d(outplanes)", "", "make_layer(BasicBlock, 16, 24, 3, 2): your"),
        ("append(block(o", "append(layers[1] if layers[1:] else block(o", "anew"),
        ("nn.Sequential(*layers)", "nn.ModuleList(layers)", "nn.Sequential"),
    ],
}
