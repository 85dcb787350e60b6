"""Seeds, optimisers, precision, compilation and gradient accumulation, as the stages of train.py use them."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from meta import UserError
from utils.device_errors import is_device_error
from utils.distributed import DistInfo


class Settings(Protocol):
    """The settings that are used here."""

    learning_rate: float
    backbone_learning_rate_factor: float
    momentum: float
    weight_decay: float
    precision: str
    compile: bool
    seed: int
    deterministic: bool


def make_repeatable(config: Settings) -> None:
    """Seeds what draws initial weights; the loop's own draws depend on seed and step alone, see train.prepare."""
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch requires it for repeatable products
        torch.use_deterministic_algorithms(True)


def make_optimiser(
    config: Settings,
    parameters: list[Tensor],
    backbone: nn.Module | None = None,
    kind: type[torch.optim.SGD] = torch.optim.SGD,
) -> torch.optim.Optimizer:
    """SGD as published. With --backbone-learning-rate-factor the encoder `backbone`, whose parameters come first, is a
    group with a rate of its own; its purification unit stays with what is new (see training.schedules).
    """
    groups: list[Any] = parameters
    if backbone is not None and config.backbone_learning_rate_factor != 1:
        pretrained = sum(not name.startswith("spu.") for name, _ in backbone.named_parameters())
        groups = [
            {"params": parameters[:pretrained], "rate_factor": config.backbone_learning_rate_factor},
            {"params": parameters[pretrained:], "rate_factor": 1.0},
        ]
    optimiser = kind(
        groups, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    _start_momentum(optimiser)
    return optimiser


def _start_momentum(optimiser: torch.optim.SGD) -> None:
    """Momentum starts at 0, from which the first step makes what SGD's first step does: the gradient.

    Torch's fused SGD takes memory as it is for a momentum, for its first step to fill in. When a loss scale overflows
    in that step, and in fp16 it mostly does, nothing is filled in, and the next step goes on from what was there.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"] if group["momentum"] else []:
            if optimiser.state[parameter].get("momentum_buffer") is None:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Loads a checkpoint's momentum of each parameter into the optimiser; its settings stay those given now."""
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": saved["state"], "param_groups": groups})
    _start_momentum(optimiser)  # of parameters trained without


class RowwiseSGD(torch.optim.SGD):
    """SGD that where a gradient is sparse moves only the rows that are in it, weight and momentum: others stand still.

    Weight decay too is for those rows alone. Torch's own SGD refuses momentum with sparse gradients.
    """

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        # A loss scaler then leaves the whole step out itself, where else it leaves that to the fused kernels.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._move_rows(parameter, group)
                    parameter.grad = None  # done: for SGD it has none
        super().step()

    def _move_rows(self, parameter: Tensor, group: dict) -> None:
        gradient, state = parameter.grad.coalesce(), self.state[parameter]
        rows = gradient.indices()[0]
        move = gradient.values().add(parameter[rows], alpha=group["weight_decay"])
        if group["momentum"]:
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            move.add_(state["momentum_buffer"][rows], alpha=group["momentum"])
            state["momentum_buffer"].index_copy_(0, rows, move)
        parameter.index_add_(0, rows, move, alpha=-group["lr"])


def update(
    optimiser: torch.optim.Optimizer,
    parameters: list[Tensor],
    scaler: torch.amp.GradScaler,
    clip_norm: float,
    clip: Callable[[list[Tensor], float], Tensor] = clip_grad_norm_,
) -> Tensor:
    """Clips the gradients, makes one step of the optimiser and returns their norm before clipping.

    With a loss scale the norm is 0 where it was not finite: then the scaler leaves the step out and lowers the scale,
    which is its normal work.
    """
    scaler.unscale_(optimiser)
    gradient_norm = clip(parameters, clip_norm)
    scaler.step(optimiser)
    scaler.update()
    return gradient_norm.nan_to_num(0, 0, 0) if scaler.is_enabled() else gradient_norm


def choose_precision(config: Settings, device: torch.device) -> str:
    """fp32, bf16 or fp16: what --precision says, or what suits the device."""
    if config.precision != "auto":
        return config.precision
    if device.type != "cuda":
        return "fp32"
    # Older GPUs (V100, T4, RTX 20) compute bf16 by way of fp32, slower than fp16.
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def make_precision(
    config: Settings, device: torch.device, scaler: Callable[..., torch.amp.GradScaler] = torch.amp.GradScaler
) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """Autocast for the encoders, and the scaler that fp16 needs; both do nothing in fp32."""
    precision = choose_precision(config, device)
    dtype = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    autocast = torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
    return autocast, scaler(device.type, enabled=precision == "fp16")


def maybe_compile(config: Settings, encoders: Sequence[nn.Module]) -> None:
    """With --compile: torch.compile for these encoders, in place; one for which it fails stays as it is."""
    if not config.compile:
        return
    for encoder in encoders:
        encoder.compile()
        compiled = encoder._compiled_call_impl

        def call(*inputs: Tensor, encoder=encoder, compiled=compiled) -> Tensor:
            try:
                output = compiled(*inputs)
            except RuntimeError as error:  # what all of torch.compile's errors are
                if is_device_error(error):
                    raise  # without compilation it would come again
                print(f"--compile: {type(error).__name__}, training goes on without", file=sys.stderr)
                encoder._compiled_call_impl = None
                return encoder(*inputs)
            encoder._compiled_call_impl = compiled  # it works: no detour from now on
            return output

        encoder._compiled_call_impl = call


# -------------------------------------------------------------------------------------------- gradient accumulation


def check_accumulation(batch_size: int, num_micro_batches: int, process: DistInfo) -> None:
    """Raises UserError where processes and micro-batches can't share the batch equally, or would get less than 2."""
    if batch_size % process.world_size:
        raise UserError(f"--batch-size {batch_size} can't be shared equally by {process.world_size} processes: "
                        f"give a multiple.")  # fmt: skip
    share = batch_size // process.world_size
    if num_micro_batches > 1 and (share % num_micro_batches or share // num_micro_batches < 2):
        raise UserError(f"--accumulation {num_micro_batches} can't cut the {share} images of --batch-size {batch_size} "
                        f"that a process has a step into equal parts of 2 or more: give a divisor.")  # fmt: skip


@contextmanager
def maybe_no_sync(enabled: bool, *modules: nn.Module) -> Iterator[None]:
    """Inside the block gradients are only added up, not averaged over the processes."""
    with ExitStack() as stack:
        for module in modules:
            if enabled and isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def mean_metrics(of_micro_batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each value (scalars) over equal micro-batches."""
    if len(of_micro_batches) == 1:
        return of_micro_batches[0]
    return {name: torch.stack([each[name] for each in of_micro_batches]).mean(dim=0) for name in of_micro_batches[0]}


def momentum_of_passes(momentum: float, passes: int, actual_passes: int) -> float:
    """BatchNorm's momentum with which `actual_passes` a step move the running statistics as far as `passes` did."""
    if actual_passes == passes:
        return momentum
    return 1 - (1 - momentum) ** (passes / actual_passes)
