"""ResNet-18 and ResNet-50 (He et al. 2015, arXiv 1512.03385, table 1), narrow: the same blocks, fewer channels."""

from torch import Tensor, nn

RESNET18, RESNET50 = (2, 2, 2, 2), (3, 4, 6, 3)


class ResNetImagenet(nn.Module):
    """`conv1`, then `layer1` to `layer4` with as many `blocks` each, then `fc`.

    Blocks are bottlenecks of three convolutions (ResNet-50), or `basic` ones of two (ResNet-18).
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int] = RESNET50,
        basic: bool = False,
        channels: int = 1,
        classes: int = 10,
        width: int = 8,
    ) -> None:
        super().__init__()
        block = BasicBlock if basic else Bottleneck
        wide = width * block.expansion
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(block, width, width, blocks[0], stride=1)
        self.layer2 = _stage(block, wide, width * 2, blocks[1], stride=2)
        self.layer3 = _stage(block, wide * 2, width * 4, blocks[2], stride=2)
        self.layer4 = _stage(block, wide * 4, width * 8, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(wide * 8, classes)

    def features(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to features [N, C, H/16, W/16]."""
        features = self.relu1(self.bn1(self.conv1(images)))
        features = self.layer2(self.layer1(features))
        last: Tensor = self.layer4(self.layer3(features))
        return last

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        logits: Tensor = self.fc(self.avgpool(self.features(images)).flatten(1))
        return logits


class Bottleneck(nn.Module):
    """Down to `width` channels, across, and up to 4 times `width`, beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, 4 * width, H/stride, W/stride]."""
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        merged: Tensor = self.relu3(residual + self.downsample(features))
        return merged


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, width, H/stride, W/stride]."""
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        merged: Tensor = self.relu2(residual + self.downsample(features))
        return merged


def _stage(
    block: type[Bottleneck] | type[BasicBlock], inputs: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    """Blocks of one width; the first changes the shape."""
    wide = width * block.expansion
    return nn.Sequential(block(inputs, width, stride), *(block(wide, width) for _ in range(blocks - 1)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Beside a block: the features as they are, or projected to the block's shape."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )
