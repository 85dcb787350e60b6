"""Purification units: what a branch subtracts from its features before they are compared.

Source: Xie et al., TIFS 2022, section III-B and the ablation of unit variants.
"""

from torch import Tensor, nn

from meta import EMBEDDING_SIZE, UserError

# name -> (sign of x in y, order of the layers): a name reads as the formula of y.
PURIFICATION_VARIANTS = {
    "x_minus_linear_relu_bn": ("minus", ("bn", "relu", "linear")),  # the published unit, the same as scale 1
    "x_minus_relu_linear_bn": ("minus", ("bn", "linear", "relu")),
    "x_plus_relu_linear_bn": ("plus", ("bn", "linear", "relu")),
    "x_plus_linear_relu_bn": ("plus", ("bn", "relu", "linear")),
    "relu_linear_bn": ("none", ("bn", "linear", "relu")),
    "linear_relu_bn": ("none", ("bn", "relu", "linear")),
}
MAX_PURIFICATION_SCALE = 8  # beyond this a number is a slip, not an experiment


class PurificationUnit(nn.Module):
    """y = x - f(x) on features (N, 512); the parameters live under `seq.N` as in the published files.

    `purification` is a scale k >= 0 (f is k groups [BN - ReLU - Linear] in a row, scale 0 is y = x)
    or a name of `PURIFICATION_VARIANTS`.

    Raises:
        UserError: for a scale out of range or an unknown name.
    """

    def __init__(self, purification: int | str = 1, size: int = EMBEDDING_SIZE):
        super().__init__()
        self.sign, layers = formula(purification)
        self.seq = nn.Sequential(*(_layer(name, size) for name in layers))

    def forward(self, x: Tensor) -> Tensor:  # (N, 512) -> (N, 512)
        if len(self.seq) == 0:
            return x
        change = self.seq(x)
        if self.sign == "minus":
            return x - change
        return x + change if self.sign == "plus" else change


def parse_purification(text: int | str) -> int | str:
    """The scale as int or the variant's name, from what a flag or a config file holds."""
    if isinstance(text, str) and text.removeprefix("-").isdecimal():
        text = int(text)
    formula(text)
    return text


def formula(purification: int | str) -> tuple[str, tuple[str, ...]]:
    """Sign of x in y, and the layers of `seq` in order.

    Raises:
        UserError: for a scale out of range or an unknown name.
    """
    is_number = isinstance(purification, int) and not isinstance(purification, bool)
    if is_number and 0 <= purification <= MAX_PURIFICATION_SCALE:
        return "minus", ("bn", "relu", "linear") * purification
    if isinstance(purification, str) and purification in PURIFICATION_VARIANTS:
        return PURIFICATION_VARIANTS[purification]
    raise UserError(
        f"purification {purification!r} is unknown: give a scale 0..{MAX_PURIFICATION_SCALE} "
        f"or one of {', '.join(PURIFICATION_VARIANTS)}."
    )


def _layer(name: str, size: int) -> nn.Module:
    return {"bn": nn.BatchNorm1d, "linear": lambda n: nn.Linear(n, n), "relu": lambda n: nn.ReLU()}[name](size)
