"""ResNets for small images (He et al. 2015, arXiv 1512.03385, section 4.2): three stages of n blocks, 6n + 2 layers."""

from torch import Tensor, nn

WIDTH = 16


class ResNetCifar(nn.Module):
    """`conv1`, then `layer1` to `layer3` with 1, 2 and 4 times `width` channels, then `fc`.

    `depth` is 20, 32, 44, 56 and so on. Without `shortcuts` it is the plain network of the same layers.
    """

    def __init__(
        self, depth: int = 20, channels: int = 1, classes: int = 10, width: int = WIDTH, shortcuts: bool = True
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or not blocks:
            raise ValueError(f"depth must be 6n + 2, got {depth}")
        self.conv1 = _conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(width, width, blocks, 1, shortcuts)
        self.layer2 = _stage(width, 2 * width, blocks, 2, shortcuts)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, shortcuts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        features = self.relu1(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


class Block(nn.Module):
    """Two convolutions, beside a shortcut or not; `stride` shrinks the image."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut
        if shortcut:
            self.downsample = nn.Identity() if stride == 1 else _projection(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        merged: Tensor = self.relu2(residual + self.downsample(features) if self.shortcut else residual)
        return merged


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcuts: bool) -> nn.Sequential:
    """Blocks of one width; the first changes the shape."""
    first = Block(inputs, outputs, stride, shortcuts)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, shortcuts) for _ in range(blocks - 1)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A shortcut between features of different shapes."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
