"""IResNet: the residual network of face recognition, for faces of 112x112 pixels.

Block: BN - conv3x3 - BN - PReLU - conv3x3/stride - BN, plus shortcut. Names of layers are the published file format.
Source: Duta et al., "Improved Residual Networks", ICPR 2020; Xie et al., TIFS 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meta import EMBEDDING_SIZE, UserError
from models.layers import BatchNorm2d, PReLU, norm_prelu
from models.others.age_attention import AgeAttention
from models.purification import PurificationUnit


@dataclass(frozen=True)
class Architecture:
    """Blocks in each of the four layers, and planes of the stem (layers have 1, 2, 4, 8 times as many)."""

    blocks: tuple[int, int, int, int]
    width: int = 64
    note: str = ""  # for the help of --backbone, without a full stop


BACKBONES = {
    "iresnet18": Architecture((2, 2, 2, 2)),
    "iresnet34": Architecture((3, 4, 6, 3)),
    "iresnet50": Architecture((3, 4, 14, 3)),
    "iresnet100": Architecture((3, 13, 30, 3)),
    "iresnet200": Architecture((6, 26, 60, 6)),
    # Not published: the demo and the tests train it on two CPU cores in minutes.
    "iresnet18_quarter": Architecture((2, 2, 2, 2), width=16, note="a quarter of the width, for demos on a CPU"),
}
FINAL_SIDE = 7  # 112 pixels halved four times


def architecture_of(backbone: str) -> Architecture:
    """The architecture of this name. Raises: UserError for an unknown one."""
    if backbone not in BACKBONES:
        raise UserError(f"backbone {backbone!r} is unknown: give one of {', '.join(BACKBONES)}.")
    return BACKBONES[backbone]


class Block(nn.Module):
    """One residual block; the shortcut is conv1x1 - BN where stride or width changes, else the input itself."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.prelu = PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn3 = BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:  # (N, in_planes, H, W) -> (N, planes, H/stride, W/stride)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = norm_prelu(self.bn2, self.prelu, self.conv1(self.bn1(x)))
        return self.bn3(self.conv2(x)) + shortcut


class IResNet(nn.Module):
    """Images (N, 3, 112, 112) in [-1, 1] -> features (N, 512) after the purification unit, before L2 normalisation.

    An erasure of age (models/erasure.py), which purify.py gives to trained weights, is applied last. Features have the
    parameters' dtype, also where autocast computed them in a shorter one.

    Raises:
        UserError: for an unknown backbone or purification.
    """

    def __init__(self, backbone: str = "iresnet50", purification: int | str = 1, dropout: float = 0.0):
        super().__init__()
        architecture = architecture_of(backbone)
        self.backbone, self.purification = backbone, purification
        blocks, width = architecture.blocks, architecture.width
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.prelu = PReLU(width)
        self.layer1 = _layer(width, width, blocks[0])
        self.layer2 = _layer(width, 2 * width, blocks[1])
        self.layer3 = _layer(2 * width, 4 * width, blocks[2])
        self.layer4 = _layer(4 * width, 8 * width, blocks[3])
        self.bn2 = BatchNorm2d(8 * width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * width * FINAL_SIDE**2, EMBEDDING_SIZE)
        self.features = nn.BatchNorm1d(EMBEDDING_SIZE)
        self.spu = PurificationUnit(purification)
        self.erasure: nn.Linear | None = None
        self.attention: AgeAttention | None = None  # of MTLFace's weights alone
        self.layout = ""  # whose weights were loaded, in words; empty for this project's and InsightFace's

    def set_erasure(self, has_one: bool) -> None:
        """Adds the layer of an erasure, whose weights are to be loaded, or removes it."""
        like = {"device": self.fc.weight.device, "dtype": self.fc.weight.dtype}
        self.erasure = nn.Linear(EMBEDDING_SIZE, EMBEDDING_SIZE, **like) if has_one else None

    def forward(self, images: Tensor) -> Tensor:
        x = norm_prelu(self.bn1, self.prelu, self.conv1(images))  # (N, 64, 112, 112)
        x = self.layer1(x)  # (N, 64, 56, 56)
        x = self.layer2(x)  # (N, 128, 28, 28)
        x = self.layer3(x)  # (N, 256, 14, 14)
        x = self.layer4(x)  # (N, 512, 7, 7)
        if self.attention is not None:
            x = self.attention(x)
        x = self.dropout(torch.flatten(self.bn2(x), 1))  # (N, 512 * 7 * 7)
        x = self.features(self.fc(x))  # (N, 512)
        x = self.spu(x)
        x = x if self.erasure is None else self.erasure(x)
        return x.to(self.fc.weight.dtype)


def _layer(in_planes: int, planes: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(
        Block(in_planes, planes, stride=2), *(Block(planes, planes, stride=1) for _ in range(num_blocks - 1))
    )


def set_batchnorm_momentum(module: nn.Module, momentum: float) -> None:
    """Sets the momentum of the running statistics of every BatchNorm in `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = momentum
