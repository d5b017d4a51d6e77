"""ResNet-20 for small images (He et al. 2015, arXiv 1512.03385, section 4.2): three stages of three blocks."""

from torch import Tensor, nn


class ResNet20(nn.Module):
    """`conv1`, then `layer1` to `layer3` with 16, 32 and 64 channels, then `fc`."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        features = self.relu1(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


class Block(nn.Module):
    """Two convolutions beside a shortcut; `stride` shrinks the image."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity() if stride == 1 else _projection(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        merged: Tensor = self.relu2(residual + self.downsample(features))
        return merged


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Three blocks; the first changes the shape."""
    return nn.Sequential(
        Block(inputs, outputs, stride),
        Block(outputs, outputs, stride=1),
        Block(outputs, outputs, stride=1),
    )


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A shortcut between features of different shapes."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
