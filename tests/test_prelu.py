"""models/prelu.py: its kernels give what torch's PReLU gives, and where they can't be had torch's own is taken."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from scripts import ROOT
from torch import nn
from torch.nn import functional as F

from models import prelu
from models.iresnet import IResNet

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_the_kernels_by_triton_s_interpreter_are_prelu():
    """Largest error over the largest value: fp32's rounding, or that of the shorter results."""
    pytest.importorskip("triton")
    command = [sys.executable, str(ROOT / "tests" / "prelu_by_interpreter.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    errors = json.loads(ended.stdout.splitlines()[-1])
    assert errors["float32"] < 1e-6 and errors["float16"] < 1e-3 and errors["bfloat16"] < 8e-3


def test_where_the_kernels_fail_a_warning_says_so_and_torch_goes_on(monkeypatch):
    class Broken:
        def prelu(self, x, slope):
            raise RuntimeError("no compiler\nmore of it")

    monkeypatch.setitem(sys.modules, "models.prelu_kernels", Broken())
    monkeypatch.setattr("models.prelu_kernels", Broken(), raising=False)
    prelu.kernels.cache_clear()
    with pytest.warns(UserWarning, match="^PReLU by torch's own kernels: RuntimeError: no compiler$"):
        assert prelu.kernels(torch.device("cpu")) is None
    assert prelu.kernels(torch.device("cpu")) is None  # without saying it again
    prelu.kernels.cache_clear()


def test_kernels_that_give_other_figures_are_not_taken(monkeypatch):
    class Wrong:
        def prelu(self, x, slope):
            return F.prelu(x, slope) * 1.01

        def prelu_backward(self, x, slope, gradient):
            return gradient, slope

    monkeypatch.setattr("models.prelu_kernels", Wrong(), raising=False)
    monkeypatch.setitem(sys.modules, "models.prelu_kernels", Wrong())
    prelu.kernels.cache_clear()
    with pytest.warns(UserWarning, match="AssertionError"):
        assert prelu.kernels(torch.device("cpu")) is None
    prelu.kernels.cache_clear()


def test_on_a_cpu_it_is_torch_s():
    layer, x = prelu.PReLU(6), torch.randn(2, 6, 4, 4).contiguous(memory_format=torch.channels_last)
    assert isinstance(layer, nn.PReLU) and list(layer.state_dict()) == ["weight"]
    assert layer(x).equal(F.prelu(x, layer.weight))


# ---------------------------------------------------------------------------------------------------------- on a GPU

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(3, 64, 56, 56), (2, 512, 7, 7), (5, 24, 13, 3), (1, 16, 1, 1), (300, 64, 112, 112)])
def test_the_kernels_on_a_gpu_are_prelu(dtype, shape):
    """The largest shape has more pixels than one round of programs takes."""
    draw = torch.Generator("cuda").manual_seed(0)
    x, gradient = (torch.randn(shape, generator=draw, device="cuda", dtype=dtype) for _ in range(2))
    x, gradient = (value.contiguous(memory_format=torch.channels_last) for value in (x, gradient))
    slope = torch.rand(shape[1], generator=draw, device="cuda")
    layer = prelu.PReLU(shape[1]).cuda()
    layer.weight.data.copy_(slope)
    x.requires_grad_()
    y = layer(x)
    assert type(y.grad_fn).__name__ == "_KernelPReLUBackward" and y.dtype == dtype and y.stride() == x.stride()
    y.backward(gradient)
    exact, exact_slope = x.detach().double().requires_grad_(), slope.double().requires_grad_()
    F.prelu(exact, exact_slope).backward(gradient.double())
    expected = F.prelu(exact, exact_slope)
    for told, wanted in ((y, expected), (x.grad, exact.grad), (layer.weight.grad, exact_slope.grad)):
        scale = float(wanted.detach().abs().max())
        assert float((told.double() - wanted).detach().abs().max()) <= TOLERANCES[dtype] * scale


@needs_gpu
@pytest.mark.parametrize("precision", [None, torch.float16, torch.bfloat16])
def test_an_encoder_learns_with_the_kernels_as_without(precision, monkeypatch):
    """The gradients of an iresnet18_quarter: to 1e-3 in fp32 without TF32, else to what 16 bits lose."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(1)
    ours = IResNet("iresnet18_quarter", 1).cuda().to(memory_format=torch.channels_last).train()
    theirs = copy.deepcopy(ours)
    images = torch.randn(8, 3, 112, 112, device="cuda").contiguous(memory_format=torch.channels_last)
    for encoder, has_kernels in ((ours, True), (theirs, False)):
        with monkeypatch.context() as patched:
            if not has_kernels:
                patched.setattr(prelu, "kernels", lambda device: None)
            with torch.autocast("cuda", dtype=precision or torch.float16, enabled=precision is not None):
                encoder(images).square().mean().backward()
    tolerance = 1e-3 if precision is None else 0.1
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= tolerance * float(b.grad.norm()) + 1e-6, name
