"""ResNet-50 (He et al. 2015, arXiv 1512.03385, table 1) made small: the same bottleneck blocks, fewer and narrower."""

from torch import Tensor, nn


class BottleneckResNet(nn.Module):
    """`conv1`, then `layer1` to `layer4` with 1, 1, 3 and 1 blocks, then `fc`."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(width, width, blocks=1, stride=1)
        self.layer2 = _stage(width * 4, width * 2, blocks=1, stride=2)
        self.layer3 = _stage(width * 8, width * 4, blocks=3, stride=2)
        self.layer4 = _stage(width * 16, width * 8, blocks=1, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        features = self.relu1(self.bn1(self.conv1(images)))
        features = self.layer2(self.layer1(features))
        features = self.layer4(self.layer3(features))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


class Bottleneck(nn.Module):
    """Down to `width` channels, across, and up to 4 times `width`, beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity() if inputs == outputs else _projection(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, 4 * width, H/stride, W/stride]."""
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        merged: Tensor = self.relu3(residual + self.downsample(features))
        return merged


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width; the first changes the shape."""
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A shortcut between features of different shapes."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )
