"""Answers to the exercises of chapter 05. RIGHT: other bodies. WRONG: (search, replace, words)."""

RIGHT = {
    "recall_precision": [
        ("right / counts.sum(0).clamp(min=1)", "(right / counts.sum(0)).nan_to_num(0)"),
        ("counts.diagonal()", "torch.from_numpy(counts.numpy().diagonal().copy())"),
        "c = counts.double()\nreturn [F.normalize(c, 1, d).diagonal() for d in (1, 0)]",
        """
        recall, precision = torch.zeros(2, len(counts))
        for c in range(len(counts)):
            recall[c] = counts[c, c] / counts[c].sum()
            precision[c] = counts[c, c] / max(1, sum(counts[:, c].tolist()))
        return recall, precision
        """,
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
        loss = F.cross_entropy(torch.cat([model(part) for part in x.split(size)]), y)
        loss.backward()
        return loss.item()
        """,
        """
        model.zero_grad()
        cuts = [slice(i, i + size) for i in range(0, len(y), size)]
        parts = [F.cross_entropy(model(x[i]), y[i], reduction="sum") / len(x) for i in cuts]
        return sum([(part.backward(), part.item())[1] for part in parts])
        """,
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
        ("right / counts.sum(1)", "right / counts.sum()", "should give"),
        ("right = ", "right = 100 * ", "should give"),
        ("counts.diagonal()", "counts.max(1).values", "diagonal"),
        ("counts.sum(0)", "counts.fill_diagonal_(0).sum(0)", "should give"),
        ("right / counts.sum(1), ", "(right / counts.sum(1)).mean(), ", "should give"),
        ("right = ", "counts = counts[:10, :10]\n    right = ", "should give"),
        ("return ", "return 1 - ", "should give"),
    ],
    "one_cycle": [
        ("(0.3 * steps)", "max(1, int(0.3 * steps))", "should give 0.005876"),
        ("(0.7 * steps)", "steps", "should give 0.32"),
        ("min(", "max(", "should give 0"),
        ("(steps - step) / (0.7 * steps)", "1.0", "down"),
        ("peak * ", "", "peak"),
        ("min(step", "min(step + 1", "should give 0"),
        ("step / (0.3", "step // (0.3", "should give 0.01333"),
        ("return ", "return peak / 25 + ", "0"),
        ("(steps - step)", "(steps - 1 - step)", "should give 0.4"),
        ("steps), (steps - step) / (0.7 * steps)", "100), (100 - step) / 70", "should give 0.2057"),
        ("min(step / (0.3 * steps), (", "min(step / (0.3 * steps), 1) ** 2 * min(1, (", "straight"),
        ("return peak * min(", "return round(peak, 2) * min(", "should give 0.2057"),
    ],
    "calibration_error": [
        ("inside.float().mean().item()", "1 / len(place.unique())", "weight each bin by its"),
        ("inside.float().mean().item()", "1 / bins", "should give 0.26"),
        (".abs()", "", "gaps must not cancel: take each without its"),
        (".clamp(max=bins - 1)", "", "should give 0.26"),
        ("* bins)", "* 10)", "bins"),
        ("(confidence * bins).long()", "(confidence * bins).round().long()", "bin"),
        ("(confidence * bins)", "(confidence.clamp_(max=0.999999) * bins)", "changes"),
        ("confidence[inside].mean()", "(b + 0.5) / bins", "mean confidence"),
        ("place.unique()", "range(bins)", "should give 0.26"),
        ("place.unique()", "place[place > 0].unique()", "should give 0.1783"),
        ("(confidence * bins)", "(confidence.argsort().argsort() * bins / len(right))", "width"),
        ("+= inside", "+= (gap > 0) * inside", "should give 0.26"),
    ],
    "accumulate": [
        ("* len(part_y) / len(y)", "/ len(y.split(size))", "should give"),
        ("* len(part_y) / len(y)", "* size / len(y)", "should give"),
        ("    model.zero_grad()\n", "", "clear"),
        ("        loss = ", "        model.zero_grad()\n        loss = ", "only the last part is"),
        ("x.split(size), y.split(size)", "[x], [y]", "at once"),
        ("(x.split(size), y.split(size))", "(x.chunk(size), y.chunk(size))", "at most"),
        ("total += loss.item()", "total = loss.item()", "should give"),
        ("model.zero_grad()", "model.eval().zero_grad()", "mode"),
        ("model.zero_grad()", "model = copy.deepcopy(model)\n    model.zero_grad()", ".grad"),
        ("y.split(size))", "y.split(size)[: len(y) // size or 1])", "should give"),
        ("model(part_x)", "model(part_x.flatten(1))", "your code raised RuntimeError"),
        ("return ", "torch.optim.SGD(model.parameters(), 0.1).step()\n    return ", "changes"),
    ],
}
