"""Answers to the exercises of chapter 06. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "recall_precision": [
        ("right / counts.sum(0).clamp(min=1)", "(right / counts.sum(0)).nan_to_num(0)"),
        ("counts.diagonal()", "torch.from_numpy(counts.numpy().diagonal().copy())"),
        "c = counts.double()\nreturn [F.normalize(c, 1, d).diagonal() for d in (1, 0)]",
    ],
    "one_cycle": [
        "import numpy as np\n\nreturn np.interp(step, [0, 0.3 * steps, steps], [0, peak, 0])",
        "a = 0.3 * steps\nreturn peak - peak * max((a - step) / a, (step - a) / (steps - a))",
        """
        t = torch.tensor(step / steps, dtype=torch.float64)
        return torch.where(t <= 0.3, t / 0.3, (1 - t) / 0.7) * peak
        """,
        """
        if step <= 0.3 * steps:
            return step * peak / (0.3 * steps)
        return (steps - step) * peak / (0.7 * steps)
        """,
    ],
    "calibration_error": [
        ("place.unique()", "set(place.tolist())"),
        """
        place = (confidence * bins).long().clamp(max=bins - 1)
        gaps = confidence.new_zeros(bins).index_add_(0, place, confidence - right.to(confidence))
        return gaps.abs().sum() / len(right)
        """,
        """
        import numpy as np

        c, r = confidence.double().numpy(), right.numpy()
        return np.abs(np.histogram(c, bins, (0, 1), weights=c - r)[0]).sum() / len(c)
        """,
    ],
    "accumulate": [
        ("total += loss.item()", "total = total + loss.detach()"),
        ("model.zero_grad()", "model.zero_grad(set_to_none=False)"),
        """
        model.zero_grad()
        cuts = [slice(i, i + size) for i in range(0, len(y), size)]
        parts = [F.cross_entropy(model(x[i]), y[i], reduction="sum") / len(x) for i in cuts]
        return sum([(part.backward(), part.item())[1] for part in parts])
        """,
    ],
    "own_rung": [
        'return replace(recipe, optimizer="SGD", lr=0.1, cycle=True, whiten=True)',
        "return Recipe(width=8, epochs=recipe.epochs, lr=0.02, cycle=True)",
        ("cycle=True, lr=0.01", "lr=0.01"),
    ],
}

WRONG = {
    "recall_precision": [
        ("counts.sum(0)", "counts.sum(1)", "both are recall: precision divides by the"),
        ("counts.diagonal()", "counts.diagonal()\n    counts = counts.T", "should give"),
        (".clamp(min=1)", "", "never predicted"),
        (".clamp(min=1)", ".add(1)", "should give"),
        (".clamp(min=1)", ".clamp(min=2)", "should give"),
        ("right / counts.sum(0).clamp(min=1)", "(right / counts.sum(0)).nan_to_num(1)", "never"),
        ("right / counts", "right // counts", "should give"),
        ("counts.diagonal()", "counts.max(1).values", "diagonal"),
    ],
    "one_cycle": [
        ("(0.3 * steps)", "max(1, int(0.3 * steps))", "should give 0.005876"),
        ("(0.7 * steps)", "steps", "should give 0.32"),
        ("min(", "max(", "should give 0"),
        ("(steps - step) / (0.7 * steps)", "1.0", "down"),
        ("peak * ", "", "peak"),
        ("return ", "return peak / 25 + ", "0"),
        ("steps), (steps - step) / (0.7 * steps)", "100), (100 - step) / 70", "should give 0.2057"),
        ("min(step / (0.3 * steps), (", "min(step / (0.3 * steps), 1) ** 2 * min(1, (", "straight"),
    ],
    "calibration_error": [
        ("inside.float().mean().item()", "1 / len(place.unique())", "weight each bin by its"),
        ("inside.float().mean().item()", "1 / bins", "should give 0.26"),
        (".abs()", "", "should give 0.26"),
        ("* bins)", "* 10)", "bins"),
        ("(confidence * bins).long()", "(confidence * bins).round().long()", "bin"),
        ("(confidence * bins)", "(confidence.clamp_(max=0.999999) * bins)", "changes"),
        ("confidence[inside].mean()", "(b + 0.5) / bins", "mean confidence"),
        ("(confidence * bins)", "(confidence.argsort().argsort() * bins / len(right))", "width"),
    ],
    "accumulate": [
        ("    model.zero_grad()\n", "", "clear"),
        ("        loss = ", "        model.zero_grad()\n        loss = ", "only the last part is"),
        ("x.split(size), y.split(size)", "[x], [y]", "at once"),
        ("(x.split(size), y.split(size))", "(x.chunk(size), y.chunk(size))", "at most"),
        ("model.zero_grad()", "model.eval().zero_grad()", "should give"),
        ("model.zero_grad()", "model = copy.deepcopy(model)\n    model.zero_grad()", ".grad"),
        ("model(part_x)", "model(part_x.flatten(1))", "your code raised RuntimeError"),
        ("return ", "torch.optim.SGD(model.parameters(), 0.1).step()\n    return ", "changes"),
    ],
    "own_rung": [
        ("replace(recipe, cycle=True, lr=0.01)", "recipe", "as it was"),
        ("cycle=True, lr=0.01", "epochs=8", "epochs stay"),
        ("replace(recipe, cycle=True, lr=0.01)", "dict(lr=0.01)", "return a Recipe"),
        ("cycle=True, lr=0.01", "lr=0.00001", "points, where 5"),
        ("cycle=True, lr=0.01", "label_smoothing=0.1", "points, where 5"),
        ("cycle=True, lr=0.01", "width=32", "times as long"),
        ("cycle=True, lr=0.01", 'optimizer="Sgd"', "cannot be trained: ValueError"),
        ("cycle=True, lr=0.01", "learning_rate=0.01", "your code raised TypeError"),
    ],
}
