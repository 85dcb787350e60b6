"""The trained branches as one function of pixels: what an exported file computes.

It includes pixel normalisation, encoder, purification unit and L2 normalisation, and the second view if requested.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from meta import IMAGE_SIZE, PIXEL_MEAN, PIXEL_SCALE
from models.iefp import IEFP
from models.iresnet import Block, IResNet
from models.purification import PurificationUnit

NORM_EPSILON = 1e-12  # an all-zero feature stays zero


class Embedder(nn.Module):
    """RGB pixels (N, 3, 112, 112) in 0..255, of any dtype -> embeddings, L2-normalised.

    One view: (N, 512). Two views: the image's and its mirror image's embedding joined by concatenation, (N, 1024), as
    test.py compares them. `with_age` returns age group probabilities (N, 8) as well, averaged over the views.
    The encoders are copies in eval mode; only they compute in half precision after `in_half`.
    """

    def __init__(self, model: IEFP, num_views: int = 1, with_age: bool = False):
        super().__init__()
        assert num_views in (1, 2), f"{num_views} views"
        self.num_views = num_views
        self.encoder = copy.deepcopy(model.backbone_id)
        self.age_encoder = copy.deepcopy(model.backbone_ae) if with_age else None
        self.age_estimator = copy.deepcopy(model.age_estimator) if with_age else None
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        num_images, dtype = images.shape[0], self.encoder.fc.weight.dtype
        pixels = (images.to(torch.promote_types(dtype, torch.float32)) - PIXEL_MEAN) / PIXEL_SCALE
        if self.num_views == 2:
            pixels = torch.cat([pixels, pixels.flip(-1)])  # (2 N, 3, 112, 112)
        pixels = pixels.to(dtype)
        embeddings = self._joined(_unit(self.encoder(pixels)), num_images)
        if self.age_encoder is None:
            return embeddings
        probabilities = self.age_estimator(self.age_encoder(pixels)).to(embeddings.dtype).softmax(dim=1)  # (V N, 8)
        if self.num_views == 2:
            probabilities = sum(_views(probabilities, num_images)) / 2
        return embeddings, probabilities

    def _joined(self, embeddings: Tensor, num_images: int) -> Tensor:  # (V N, 512) -> (N, V * 512)
        if self.num_views == 1:
            return embeddings
        return _unit(torch.cat(_views(embeddings, num_images), dim=1))

    @property
    def num_outputs(self) -> int:
        return 1 if self.age_encoder is None else 2

    def folded(self) -> "Embedder":
        """A copy without BatchNorm, the same function but for rounding; see `fold_batchnorm`."""
        other = copy.deepcopy(self)
        fold_batchnorm(other.encoder)
        if other.age_encoder is not None:
            fold_batchnorm(other.age_encoder)
        return other

    def in_half(self) -> "Embedder":
        """A copy whose encoders compute in float16; pixels before them and the L2 norm after them stay float32."""
        return copy.deepcopy(self).half()


def example_images(num_images: int, dtype: torch.dtype) -> Tensor:
    """Pixels in 0..255, the same in every run: half of them noise, half smooth."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_images, 3, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    noise = torch.rand(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    is_noise = torch.arange(num_images).view(-1, 1, 1, 1) % 2 == 1
    return (torch.where(is_noise, noise, smooth) * 255).round().to(dtype)


# ------------------------------------------------------------------------------------------------------- folding


class ScaleAndShift(nn.Module):
    """BatchNorm in eval mode: one scale and one shift per channel, which every exporter supports."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm):
        super().__init__()
        shape = (-1, 1, 1) if isinstance(norm, nn.BatchNorm2d) else (-1,)
        self.scale, self.shift = (nn.Parameter(values.view(shape), False) for values in _scale_and_shift(norm))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) or (N, C)
        return x * self.scale + self.shift


@torch.no_grad()
def fold_batchnorm(encoder: IResNet) -> None:
    """Folds BatchNorm in place; the encoder, in eval mode, stays the same function but for rounding.

    Folded into a neighbour are those after a convolution (stem, second and third of a block, shortcut), the one before
    the linear layer, "features" after it, and those next to a linear layer of the purification unit. Others become a
    scale and a shift: the first of each block, since the convolution after it pads with zeros after BatchNorm, which a
    bias can't reproduce at the border; and those of the purification unit with ReLU between them and the linear layer.
    """
    dtype = encoder.fc.weight.dtype
    encoder.double()  # rounded once, at the end
    encoder.conv1, encoder.bn1 = fuse_conv_bn_eval(encoder.conv1, encoder.bn1), nn.Identity()
    for block in (module for module in encoder.modules() if isinstance(module, Block)):
        block.bn1 = ScaleAndShift(block.bn1)
        block.conv1, block.bn2 = fuse_conv_bn_eval(block.conv1, block.bn2), nn.Identity()
        block.conv2, block.bn3 = fuse_conv_bn_eval(block.conv2, block.bn3), nn.Identity()
        if block.downsample is not None:
            block.downsample = fuse_conv_bn_eval(*block.downsample)
    encoder.fc = fuse_linear_bn_eval(_linear_before(encoder.bn2, encoder.fc), encoder.features)
    encoder.bn2, encoder.features = nn.Identity(), nn.Identity()
    _fold_unit(encoder.spu)
    encoder.to(dtype)


def _fold_unit(unit: PurificationUnit) -> None:
    layers: list[nn.Module] = []
    for layer in unit.seq:
        before = layers[-1] if layers else None
        if isinstance(layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            layers[-1] = fuse_linear_bn_eval(before, layer)
        elif isinstance(layer, nn.Linear) and isinstance(before, nn.BatchNorm1d):
            layers[-1] = _linear_before(before, layer)
        else:
            layers.append(layer)
    unit.seq = nn.Sequential(
        *(ScaleAndShift(layer) if isinstance(layer, nn.BatchNorm1d) else layer for layer in layers)
    )


def _scale_and_shift(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of BatchNorm in eval mode: scale * x + shift."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def _linear_before(norm: nn.modules.batchnorm._BatchNorm, linear: nn.Linear) -> nn.Linear:
    """BatchNorm folded into the linear layer after it, whose inputs may be several per channel in a row (flattened)."""
    inputs_a_channel = linear.in_features // norm.num_features
    scale, shift = (values.repeat_interleave(inputs_a_channel) for values in _scale_and_shift(norm))
    both = copy.deepcopy(linear)
    both.weight.mul_(scale)
    both.bias.add_(linear.weight @ shift)
    return both


def _views(values: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """(2 N, D) -> the two halves; slices would make torch 2.6's export treat a batch of one as another case."""
    return values.split([num_images, num_images])


def _unit(features: Tensor) -> Tensor:
    """Features (N, D) -> length 1, in float32 at least: the sum of 512 squares may overflow half precision."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / features.norm(dim=1, keepdim=True).clamp_min(NORM_EPSILON)
