"""MobileNet (Howard et al. 2017, arXiv 1704.04861, table 1), narrow: depth-wise and point-wise convolutions in turn."""

from torch import Tensor, nn

# (inputs, outputs) of the 13 pairs, in units of the width; those marked shrink the image.
_PAIRS = [(1, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), *[(16, 16)] * 5, (16, 32), (32, 32)]
_SHRINK = {1, 3, 5, 11}


class MobileNet(nn.Module):
    """`model.0` is a convolution, `model.1` to `13` hold a depth-wise (`0`) and a point-wise one (`3`); then `fc`."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 4) -> None:
        super().__init__()
        pairs = [_pair(i * width, o * width, 2 if n in _SHRINK else 1) for n, (i, o) in enumerate(_PAIRS)]
        self.model = nn.Sequential(_first(channels, width), *pairs, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(32 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        logits: Tensor = self.fc(self.model(images).flatten(1))
        return logits


def _first(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _pair(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
