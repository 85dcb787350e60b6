"""Errors of memory and devices, which PyTorch raises as RuntimeErrors like those of a wrong file or argument."""

import torch

# torch.AcceleratorError came with PyTorch 2.8.
KINDS = (MemoryError, torch.OutOfMemoryError, *filter(None, [getattr(torch, "AcceleratorError", None)]))
WORDS = ("DefaultCPUAllocator", "out of memory", "CUDA error", "CUDA driver error", "cuDNN error", "NCCL error")


def is_device_error(error: BaseException | None) -> bool:
    """Whether too little memory or a failing device is behind an error, also one that another error wraps."""
    while error is not None:
        if isinstance(error, KINDS) or (isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)):
            return True
        # torch.compile's BackendCompilerFailed names the error that it wraps inner_exception.
        error = getattr(error, "inner_exception", None) or error.__cause__
    return False


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
