"""`fit` in bfloat16, and with channels last."""

import pytest
import torch

from d2lres import cifar_resnet
from d2lres.data import Images
from d2lres.training import CheckpointError, fit

TRAIN = Images(
    torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8), torch.arange(40).remainder(10)
)


def run(**options):
    torch.manual_seed(0)
    model = cifar_resnet(8, in_channels=1, width=4)
    seen = set()

    def note(module, args, out):
        seen.add((module.training, out.dtype))

    model.layer1[0].conv1.register_forward_hook(note)
    history = fit(model, TRAIN, TRAIN, epochs=2, batch_size=20, **options)
    assert all(value.dtype == torch.float32 for value in model.parameters())
    return history.loss, seen


def test_bfloat16_is_used_when_asked_for_and_not_in_tests():
    loss, seen = run(mixed_precision=True, device="cpu")
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    exact, seen = run(mixed_precision=False, device="cpu")
    assert seen == {(True, torch.float32), (False, torch.float32)}
    assert loss != exact and loss == pytest.approx(exact, rel=0.05)


def test_on_a_cpu_the_default_is_float32():
    assert run(device="cpu")[0] == run(mixed_precision=False, device="cpu")[0]


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("supported", [True, False])
def test_on_a_gpu_the_default_is_what_it_supports(monkeypatch, supported):
    from d2lres.training import _precision

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    cuda = torch.device("cuda")
    assert isinstance(_precision(None, cuda), torch.autocast) == supported
    assert not isinstance(_precision(False, cuda), torch.autocast)
    if not supported:
        with pytest.raises(ValueError, match="bfloat16 cannot be had on cuda here"):
            _precision(True, cuda)


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    run(checkpoint=tmp_path / "run.pt", device="cpu")
    with pytest.raises(CheckpointError, match="mixed_precision=None, not True"):
        run(checkpoint=tmp_path / "run.pt", device="cpu", mixed_precision=True)


def test_channels_last_weights_stay_so():
    torch.manual_seed(0)
    model = cifar_resnet(8, in_channels=1, width=4).to(memory_format=torch.channels_last)
    fit(model, TRAIN, epochs=1, batch_size=20)
    weight = model.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
