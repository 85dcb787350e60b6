"""training/optim.py: the optimiser is torch's SGD, and a loss scale that overflows leaves nothing behind."""

import pytest
import torch
from scripts import load_script

from training.optim import RowwiseSGD, choose_precision, make_optimiser, update

train = load_script("train")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_parameters(device: str) -> list[torch.Tensor]:
    """With a 1x1 convolution's weight in channels-last, whose strides can be read in two ways."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (7,), (16, 8, 1, 1), (16, 8, 3, 3)]
    values = [torch.randn(shape, generator=draw) for shape in shapes]
    values = [value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value for value in values]
    return [value.to(device).requires_grad_() for value in values]


def set_gradients(parameters: list[torch.Tensor], seed: int, factor: float = 1.0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        # In the parameter's layout, as autograd makes it: the fused kernels go by it.
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=draw) * factor)


def everything(optimiser: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    momenta = [optimiser.state[parameter]["momentum_buffer"] for parameter in parameters]
    return [value.detach().clone() for value in (*parameters, *momenta)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_it_steps_as_sgd_does(device, momentum):
    config = train.TrainConfig(learning_rate=0.1, momentum=momentum)
    ours, theirs = make_parameters(device), make_parameters(device)
    of_ours = make_optimiser(config, ours)
    of_theirs = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=config.weight_decay, foreach=False)
    for step in range(3):
        for parameters, optimiser in ((ours, of_ours), (theirs, of_theirs)):
            set_gradients(parameters, step)
            optimiser.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, RowwiseSGD])
@pytest.mark.parametrize("overflows", [[0], [2], [0, 1, 3]])
def test_steps_that_overflow_leave_weights_and_momentum_as_they_were(device, kind, overflows):
    """The end is, to the bit, that of the other steps alone; also where memory is not clean."""
    config, ends = train.TrainConfig(learning_rate=0.1), []
    for left_out in ([], overflows):
        parameters = make_parameters(device)
        filth = [torch.full_like(parameter, torch.nan) for parameter in parameters * 8]
        del filth
        optimiser = make_optimiser(config, parameters, kind=kind)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
        scaler.scale(torch.ones((), device=device))  # makes the scale
        for step in range(5):
            if step in overflows and not left_out:
                continue
            set_gradients(parameters, step, torch.inf if step in left_out else float(scaler.get_scale()))
            before = everything(optimiser, parameters)
            update(optimiser, parameters, scaler, 5.0)
            if step in left_out:
                torch.testing.assert_close(everything(optimiser, parameters), before, rtol=0, atol=0)
        assert scaler.get_scale() == 2.0 ** (10 - len(left_out))
        ends.append(everything(optimiser, parameters))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert all(value.isfinite().all() for value in ends[0])


# ------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize(("in_hardware", "precision"), [(True, "bf16"), (False, "fp16")])
def test_auto_takes_bf16_only_where_the_gpu_computes_in_it(monkeypatch, in_hardware, precision):
    """7c: V100, T4 and RTX 20 emulate bf16, and torch counts that as support unless it is asked not to."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or in_hardware
    )
    config = train.TrainConfig()
    assert choose_precision(config, torch.device("cuda")) == precision
    assert choose_precision(config, torch.device("cpu")) == "fp32"
