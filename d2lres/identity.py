"""What makes a run of `fit` this one and no other, and what changes its last digits alone."""

import hashlib
import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

# The arguments of `fit` that decide the weights, with its optimizer, scheduler and images.
SETTINGS: tuple[str, ...] = ("epochs", "lr", "batch_size", "seed", "augment", "label_smoothing")
SETTINGS += ("mixed_precision", "channels_last")
# Known by their fingerprints, so that a message can only say that they are others.
PRINTS = {"training images", "test images", "initial weights", "trained parameters"}
PRINTS |= {"parameters in the optimizer's groups", "rates of the scheduler"}


def finite(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers that hold neither inf nor nan."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name for name, tensor in tensors.items() if tensor.isfinite().all()}


def fingerprint(state: dict[str, Any]) -> str:
    """Sixteen hex digits that change with any name, type, shape or bit of the tensors in `state`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if torch.is_tensor(tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def identity(run: SimpleNamespace) -> dict[str, Any]:
    """What makes a run of `fit` this one and no other, in words by name."""

    def words(value: Any) -> str:  # no addresses, which differ from process to process
        def plain(entry: Any) -> Any:
            return entry.tolist() if hasattr(entry, "tolist") else type(entry).__name__

        return json.dumps(value, default=plain, skipkeys=True)

    def rates(function: Any) -> list[float] | None:  # of a LambdaLR, whose state has no function
        with suppress(Exception):
            return [float(function(step)) for step in (1, run.steps // 2, run.steps)]
        return None

    drivers = dict(optimizer=run.optimizer, scheduler=run.scheduler)
    told: dict[str, Any] = {name: d and type(d).__name__ for name, d in drivers.items()}
    told |= {name: getattr(run, name) for name in SETTINGS}
    told |= {"images": len(run.train), "size": run.train.size}
    for name, data in (("training images", run.train), ("test images", run.test)):
        if name not in run.images:  # they stay what they are, and are hashed once a run
            x_and_y = data and fingerprint(dict(x=data.images, y=data.labels))
            run.images[name] = data and f"{x_and_y} {data.size} {data.mean} {data.std}"
    told |= run.images
    groups = [group | {"params": len(group["params"])} for group in run.optimizer.param_groups]
    told |= {f"optimizer's {name}": words([g.get(name) for g in groups]) for name in groups[0]}
    state = run.scheduler.state_dict() if run.scheduler is not None else {}
    told |= {f"scheduler's {name}": words(value) for name, value in state.items()}
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    order = [[names[id(p)] for p in group["params"]] for group in run.optimizer.param_groups]
    told["parameters in the optimizer's groups"] = words(order)
    told["trained parameters"] = words(trained(run.model))
    told["rates of the scheduler"] = words(
        [rates(f) for f in getattr(run.scheduler, "lr_lambdas", [])]
    )
    weights = run.model.state_dict() | dict(run.model.named_buffers())
    return told | {"initial weights": fingerprint(weights)}


def trained(model: nn.Module) -> list[str]:
    """Names of the parameters that require a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def machine(run: SimpleNamespace) -> dict[str, Any]:
    """What changes the last digits of the weights, and is nothing of the run's own."""
    threads, processes = torch.get_num_threads(), run.group.count
    return dict(device=run.device.type, threads=threads, processes=processes)
