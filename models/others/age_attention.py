"""What MTLFace takes out of an IResNet's last features before its output: an attention to the age in them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class AgeAttention(nn.Module):
    """MTLFace's attention: features x (N, C, H, W) -> what of them is of the identity, (N, C, H, W).

    A scale s in 0..1, the mean of one for each channel and one for each place, parts x in two; of the two published
    versions the first (`is_joined` False) has the identity in x - s x, the other in s x, and they differ in how pooled
    averages and maxima come together. Its names are those of the published files.
    Source: Huang, Zhang, Shan, "When Age-Invariant Face Recognition Meets Face Age Synthesis", CVPR 2021.
    """

    POOLED_SIDES = (1, 2, 3)

    def __init__(self, channels: int, hidden: int, is_joined: bool):
        super().__init__()
        self.is_joined = is_joined
        pooled = channels * sum(side**2 for side in self.POOLED_SIDES) * (1 + is_joined)
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())
        self.channel = nn.Sequential(
            nn.Conv2d(pooled, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels), nn.Sigmoid(),
        )  # fmt: skip

    @classmethod
    def of_shapes(cls, first: torch.Size, second: torch.Size) -> "AgeAttention":
        """That whose channel.0.weight and channel.2.weight have these shapes."""
        channels, hidden, pooled = second[0], first[0], first[1]
        return cls(channels, hidden, pooled > channels * sum(side**2 for side in cls.POOLED_SIDES))

    def forward(self, x: Tensor) -> Tensor:
        average, largest = (self._pooled(x, pool) for pool in (torch.mean, torch.amax))
        pooled = torch.cat([average, largest], dim=1) if self.is_joined else average + largest
        places = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        scale = (self.channel(pooled[:, :, None, None]) + self.spatial(places)) / 2
        return x * scale if self.is_joined else x - x * scale

    def _pooled(self, x: Tensor, pool: Callable[..., Tensor]) -> Tensor:
        """(N, C * 14): over 1, 2 x 2 and 3 x 3 parts, which overlap where the sides don't divide."""
        parts = []
        for side in self.POOLED_SIDES:
            rows, columns = ([slice(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
                             for size in x.shape[2:])  # fmt: skip
            cells = [pool(x[:, :, row, column], dim=(2, 3)) for row in rows for column in columns]
            parts.append(torch.stack(cells, dim=2).flatten(1))
        return torch.cat(parts, dim=1)
