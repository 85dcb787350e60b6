"""models/layers.py: its kernels give what torch's layers give, and where they can't be had torch's own are taken."""

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

from models import layers
from models.iresnet import IResNet

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels themselves are tested")
def test_the_kernels_by_triton_s_interpreter_are_torch_s_layers():
    """Largest error over the largest value: fp32's rounding, or that of the shorter results."""
    pytest.importorskip("triton")
    command = [sys.executable, str(ROOT / "tests" / "kernels_by_interpreter.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    errors = json.loads(ended.stdout.splitlines()[-1])
    most = {"float32": 5e-6, "float16": 1e-3, "bfloat16": 8e-3}
    assert len(errors) == 9 and all(value < most[name.split()[-1]] for name, value in errors.items()), errors


class Broken:
    def prelu(self, x, slope):
        raise RuntimeError("no compiler\nmore of it")


class Wrong:
    def prelu(self, x, slope):
        return F.prelu(x, slope) * 1.01

    def prelu_backward(self, x, slope, gradient):
        return gradient, slope

    def statistics(self, x, running, momentum, eps):
        return torch.ones(2, x.shape[1])

    def normalise(self, x, *given):
        return x

    def normalise_backward(self, x, *given):
        return x, given[0], given[1], given[2]


@pytest.mark.parametrize(("module", "said"), [(Broken(), "RuntimeError: no compiler$"), (Wrong(), "AssertionError")])
def test_kernels_that_fail_or_give_other_figures_are_not_taken(monkeypatch, module, said):
    monkeypatch.setattr("models.layer_kernels", module, raising=False)
    monkeypatch.setitem(sys.modules, "models.layer_kernels", module)
    layers.kernels.cache_clear()
    with pytest.warns(UserWarning, match=f"^BatchNorm and PReLU by torch's own kernels: {said}"):
        assert layers.kernels(CPU) is None
    assert layers.kernels(CPU) is None  # without saying it again
    layers.kernels.cache_clear()


class Right:
    """Torch's own as the kernels are called."""

    def prelu(self, x, slope):
        return F.prelu(x, slope)

    def prelu_backward(self, x, slope, gradient):
        values = x.requires_grad_(), slope.requires_grad_()
        return torch.autograd.grad(F.prelu(*values), values, gradient)

    def statistics(self, x, running, momentum, eps):
        F.batch_norm(x, *running, training=True, momentum=momentum, eps=eps)
        return torch.stack([x.mean((0, 2, 3)), (x.var((0, 2, 3), unbiased=False) + eps).rsqrt()])

    def normalise(self, x, weight, bias, slope, of_batch):
        y = F.batch_norm(x, None, None, weight, bias, training=True)
        return y if slope is None else F.prelu(y, slope)

    def normalise_backward(self, x, weight, bias, slope, of_batch, gradient):
        values = [value.requires_grad_() for value in (x, weight, bias, slope) if value is not None]
        gradients = torch.autograd.grad(self.normalise(x, weight, bias, slope, of_batch), values, gradient)
        return gradients if slope is not None else (*gradients, None)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_kernels_that_give_the_same_figures_are_taken_whatever_asks_first(monkeypatch, mode):
    module = Right()
    monkeypatch.setattr("models.layer_kernels", module, raising=False)
    monkeypatch.setitem(sys.modules, "models.layer_kernels", module)
    layers.kernels.cache_clear()
    with mode():
        assert layers.kernels(CPU) is module
    layers.kernels.cache_clear()


def test_on_a_cpu_they_are_torch_s():
    norm, prelu = layers.BatchNorm2d(6), layers.PReLU(6)
    theirs = nn.BatchNorm2d(6)
    assert list(norm.state_dict()) == list(theirs.state_dict()) and list(prelu.state_dict()) == ["weight"]
    x = torch.randn(2, 6, 4, 4).contiguous(memory_format=torch.channels_last)
    assert layers.norm_prelu(norm, prelu, x).equal(F.prelu(theirs(x), prelu.weight))
    assert all(a.equal(b) for a, b in zip(norm.state_dict().values(), theirs.state_dict().values(), strict=True))


# ---------------------------------------------------------------------------------------------------------- on a GPU

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SHAPES = [(3, 64, 56, 56), (2, 512, 7, 7), (5, 24, 13, 3), (300, 64, 112, 112)]  # the last: many tiles a program


def make_images(shape, dtype):
    draw = torch.Generator("cuda").manual_seed(0)
    values = [torch.randn(shape, generator=draw, device="cuda", dtype=dtype) for _ in range(2)]
    x, gradient = (value.contiguous(memory_format=torch.channels_last) for value in values)
    return x.requires_grad_(), gradient


def is_close(found, wanted, dtype) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert float((a.double() - b).detach().abs().max()) <= TOLERANCES[dtype] * float(b.detach().abs().max())


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_prelu_s_kernels_are_prelu(dtype, shape):
    x, gradient = make_images(shape, dtype)
    layer = layers.PReLU(shape[1]).cuda()
    nn.init.uniform_(layer.weight)
    y = layer(x)
    assert type(y.grad_fn).__name__ == "_KernelPReLUBackward" and y.dtype == dtype and y.stride() == x.stride()
    y.backward(gradient)
    exact = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    expected = F.prelu(*exact)
    expected.backward(gradient.double())
    is_close((y, x.grad, layer.weight.grad), (expected, *(value.grad for value in exact)), dtype)


@needs_gpu
@pytest.mark.parametrize("has_prelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_batchnorm_s_kernels_are_batchnorm(dtype, shape, has_prelu):
    x, gradient = make_images(shape, dtype)
    norm, prelu = layers.BatchNorm2d(shape[1], momentum=0.19).cuda(), layers.PReLU(shape[1]).cuda()
    for values in (norm.weight, norm.bias, prelu.weight):
        nn.init.uniform_(values)
    exact_norm, exact_prelu = copy.deepcopy(norm).double(), copy.deepcopy(prelu).double()
    y = layers.norm_prelu(norm, prelu, x) if has_prelu else norm.with_slope(x, None)
    assert type(y.grad_fn).__name__ == "_KernelBatchNormBackward" and y.dtype == dtype and y.stride() == x.stride()
    y.backward(gradient)
    exact = x.detach().double().requires_grad_()
    expected = nn.BatchNorm2d.forward(exact_norm, exact)
    expected = F.prelu(expected, exact_prelu.weight) if has_prelu else expected
    expected.backward(gradient.double())
    found = [y, x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()]
    wanted = [expected, exact.grad, exact_norm.weight.grad, exact_norm.bias.grad, *exact_norm.buffers()]
    if has_prelu:
        found, wanted = [*found, prelu.weight.grad], [*wanted, exact_prelu.weight.grad]
    is_close(found, wanted, dtype)
    assert layers.norm_prelu(norm.eval(), prelu, x).grad_fn.name() != "_KernelBatchNormBackward"


@needs_gpu
@pytest.mark.parametrize("precision", [None, torch.float16, torch.bfloat16])
def test_an_encoder_learns_with_the_kernels_as_without(precision, monkeypatch):
    """The gradients of an iresnet18_quarter: to 1e-3 in fp32 without TF32, else to what 16 bits lose."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(layers, "FEWEST_VALUES", 0)
    torch.manual_seed(1)
    ours = IResNet("iresnet18_quarter", 1).cuda().to(memory_format=torch.channels_last).train()
    theirs = copy.deepcopy(ours)
    images = torch.randn(32, 3, 112, 112, device="cuda").contiguous(memory_format=torch.channels_last)
    target = torch.randn(32, 512, device="cuda")
    for encoder, has_kernels in ((ours, True), (theirs, False)):
        with monkeypatch.context() as patched:
            if not has_kernels:
                patched.setattr(layers, "kernels", lambda device: None)
            with torch.autocast("cuda", dtype=precision or torch.float16, enabled=precision is not None):
                features = encoder(images)
            F.cosine_similarity(features, target).sum().backward()
    tolerance = {None: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}[precision]
    # Biases that the next BatchNorm takes out again have no gradient but for rounding.
    whole = float(torch.stack([value.grad.norm() for value in theirs.parameters()]).norm())
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= tolerance * (float(b.grad.norm()) + 0.01 * whole), name
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01, msg=name)
