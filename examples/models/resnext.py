"""ResNeXt-101 (Xie et al. 2016, arXiv 1611.05431), narrow, with the nested names of its Torch7 original."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

RESNEXT101 = (3, 4, 23, 3)


class ResNeXt(nn.Module):
    """`features` 0 to 3 are the stem, 4 to 7 the stages of as many `blocks` each; then `last_linear`.

    In a block `0.0.0.0` and `0.0.0.3` lead down and across in `groups`, `0.0.1` leads up, and `0.1.0` is the shortcut.
    """

    def __init__(
        self,
        blocks: Sequence[int] = RESNEXT101,
        channels: int = 1,
        classes: int = 10,
        width: int = 4,
        groups: int = 2,
    ) -> None:
        super().__init__()
        stem = [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Identity()]
        stages = []
        inputs = width
        for stage, number in enumerate(blocks):
            inner = width * 2**stage
            first = _block(inputs, inner, 4 * inner, groups, 1 if stage == 0 else 2)
            inputs = 4 * inner
            stages.append(nn.Sequential(first, *(_block(inputs, inner, inputs, groups, 1) for _ in range(number - 1))))
        self.features = nn.Sequential(*stem, *stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.last_linear = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        logits: Tensor = self.last_linear(self.avgpool(self.features(images)).flatten(1))
        return logits


class Branches(nn.Sequential):
    """Applies each branch to the same features; what they give is stacked: [branches, N, C, H, W]."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([branch(features) for branch in self])


class Add(nn.Module):
    """Adds the branches up."""

    def forward(self, stacked: Tensor) -> Tensor:
        return stacked.sum(0)


def _block(inputs: int, inner: int, outputs: int, groups: int, stride: int) -> nn.Sequential:
    """Features [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
    across = nn.Sequential(
        nn.Conv2d(inputs, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
    )
    branch = nn.Sequential(across, nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    shortcut: nn.Module = nn.Identity()
    if inputs != outputs or stride != 1:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(Branches(branch, shortcut), Add(), nn.ReLU())
