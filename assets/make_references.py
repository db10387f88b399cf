"""Record what timm's networks answer to the fixed weights and images of chapter 07.

python assets/make_references.py    # writes assets/results/timm.json
"""

import re
from pathlib import Path

import timm
import torch
from make_experiments import chapter, write_json
from torch import Tensor, nn

RESULTS = Path(__file__).resolve().parent / "results"
MARGIN = 1e-6  # of a thousandth: a logit so close to a rounding edge would differ between machines


def theirs(name: str, state: dict[str, Tensor]) -> nn.Module:
    """timm's network with our weights. Only resnetv2_50 has other names, and a convolution as head."""
    net = timm.create_model(name).double()
    if name == "resnetv2_50":
        names = [
            (r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.blocks."),
            (r"\.bn(\d)\.", r".norm\1."),
            (r"\.downsample\.", ".downsample.conv."),
            (r"^last\.0\.", "norm."),
            (r"^conv1\.", "stem.conv."),
            (r"^fc\.", "head.fc."),
        ]
        for search, replace in names:
            state = {re.sub(search, replace, key): value for key, value in state.items()}
        state["head.fc.weight"] = state["head.fc.weight"][:, :, None, None]
    net.load_state_dict(state)
    return net


def measure(name: str) -> dict:
    """Parameters of timm's network, fingerprints of its logits, and how far ours are from them."""
    names = chapter("07_the_family")
    net = names["fixed_weights"](names["FAMILY"][name]())
    other = theirs(name, net.state_dict())
    found: dict = dict(parameters=sum(p.numel() for p in other.parameters()), difference={})
    for mode in ("eval", "train"):
        ours, logits = (names["answer"](it, mode == "train") for it in (net, other))
        edge = ((1000 * logits) % 1 - 0.5).abs().min().item()
        assert edge > MARGIN, f"{name}: a logit lies {edge:.0e} from where rounding turns"
        found[mode] = names["fingerprint"](logits)
        found["difference"][mode] = (ours - logits).abs().max().item()
    return found


def main() -> None:
    nets = {name: measure(name) for name in chapter("07_the_family")["FAMILY"]}
    record = dict(timm=timm.__version__, torch=torch.__version__.split("+")[0], nets=nets)
    write_json(RESULTS / "timm.json", record)
    for name, found in nets.items():
        print(f"{name:16} {found['parameters']:11,} parameters, differences {found['difference']}")


if __name__ == "__main__":
    main()
