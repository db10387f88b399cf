"""Answers to the exercises of chapter 00. RIGHT: other bodies. WRONG: (search, replace, advice)."""

RIGHT = {
    "error_rate": [
        """
        from copy import deepcopy
        net, wrong = deepcopy(model).eval(), 0
        for x, y in data.batches(1):
            wrong += net(x).argmax() != y.item()
        return 100 * wrong / len(data)
        """,
        ("100 * (1 - evaluate(model, data).accuracy)", "100 - 100 * evaluate(model, data, 7)[1]"),
        ("    return 100", "    import numpy as np\n    return np.float64(100)"),
    ],
    "twins": [
        """
        torch.manual_seed(seed)
        nets = [cifar_resnet(depth, in_channels=1, residual=skip) for skip in (False, True)]
        nets[1].load_state_dict(nets[0].state_dict())
        return nets
        """,
        """
        import copy
        torch.manual_seed(seed)
        plain = copy.deepcopy(residual := cifar_resnet(depth, 10, 1))
        plain.apply(lambda module: setattr(module, "residual", False))
        return plain, residual
        """,
        ("torch.manual_seed(", "torch.default_generator.manual_seed("),
    ],
    "majority_accuracy": [
        "import numpy as np\nreturn np.bincount(labels.numpy()).max() / labels.numel()",
        "return (labels == labels.mode().values).double().mean()",
        ("torch.bincount(labels).max()", "labels.unique(return_counts=True)[1].sort().values[-1]"),
    ],
}

WRONG = {
    "error_rate": [
        ("100 * (1 - ", "(1 - ", "that is a fraction: multiply by 100 to get"),
        ("(1 - evaluate(model, data).accuracy)", "evaluate(model, data).accuracy", "the accuracy"),
        ("(1 - evaluate(model, data).accuracy)", "evaluate(model, data).loss", "should give 80"),
        ("", "return f'{100 - 100 * evaluate(model, data).accuracy} %'", "return one number;"),
        ("return 100", "print(100); 100", "return"),
        ("", "x, y = data.tensors()\nreturn 100 * sum(model(x).argmax(1) != y) / len(y)", "eval"),
        ("data).acc", "data[:64]).acc", "all images"),
        ("", "return 50 * sum(1 - evaluate(model, data[i::2])[1] for i in (0, 1))", "should give"),
        ("data).acc", "type(data)(data.images, data.labels, data.classes)).acc", "your code"),
    ],
    "twins": [
        ("manual_seed(seed)", "manual_seed(seed) if not pair else None", "the weights differ:"),
        ("manual_seed(seed)", "manual_seed(seed) if pair else None", "the weights differ: build"),
        ("manual_seed(seed)", "manual_seed(torch.initial_seed())", "another seed gives the same"),
        ("seed(seed)", "seed(0)", "another seed gives the same weights: use the"),
        ("(False, True)", "(True, False)", "the order is (plain, residual), not the other"),
        (", residual=residual", "", "build two cifar_resnet(8, in_channels=1,"),
        ("depth, in_channels=1, residual", "depth, 1, residual", "in_channels=1"),
        ("=residual)", "=residual, shortcut='B')", "build two cifar_resnet(8, in_channels=1,"),
        ("=residual)", "=residual, zero_init_residual=residual)", "the weights differ: build both"),
        ("return tuple", "pair[1].fc.bias.data = pair[0].fc.bias.data\n    return tuple", "share"),
        ("return tuple", "pair[1].bn1._buffers = pair[0].bn1._buffers\n    return tuple", "share"),
        ("return tuple", "pair[1].layer3[-1].residual = False\n    return tuple", "build two"),
    ],
    "majority_accuracy": [
        ("", "return 1 / len(labels.unique())", "1 / classes is right only for balanced"),
        ("(torch", "(100 * torch", "0 to 1"),
        (".max()", ".min()", "count the largest class, not the rarest."),
        (" / len(labels)", "", "divide by"),
        ("", "return (labels == labels.median()).double().mean().item()", "should give 0.2871"),
        ("    return", "    labels[:] = labels.sort().values\n    return", "changes labels"),
        ("", "return round(labels.bincount().max().item() / len(labels), 2)", "should give 0.6667"),
        ("", "return f'{labels.bincount().max() / len(labels):.2%}'", "return one number; yours"),
    ],
}
