"""Pre-activation ResNets (He et al. 2016, arXiv 1603.05027): what is quantized in published schedules."""

from torch import Tensor, nn

CIFAR20, IMAGENET18 = (3, 3, 3), (2, 2, 2, 2)


class PreactResNet(nn.Module):
    """`conv1`, then `layer1`, `layer2` … with as many `blocks` each, then `final_relu` and `fc`.

    With `stem` there are `bn1` and `relu1` after `conv1`, as for large images. A block holds `pre_bn`, `pre_relu`,
    `conv1`, `bn`, `relu` and `conv2`.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = CIFAR20,
        stem: bool = False,
        channels: int = 1,
        classes: int = 10,
        width: int = 8,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width) if stem else nn.Identity()
        self.relu1 = nn.ReLU() if stem else nn.Identity()
        inputs = width
        for stage, number in enumerate(blocks):
            outputs = width * 2**stage
            self.add_module(f"layer{stage + 1}", _stage(inputs, outputs, number, 2 if stage else 1))
            inputs = outputs
        self.stages = len(blocks)
        self.final_bn = nn.BatchNorm2d(inputs)
        self.final_relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        features = self.relu1(self.bn1(self.conv1(images)))
        for stage in range(1, self.stages + 1):
            features = self.get_submodule(f"layer{stage}")(features)
        features = self.final_relu(self.final_bn(features))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


class Block(nn.Module):
    """Normalize and activate, then convolve, twice; beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pre_bn = nn.BatchNorm2d(inputs)
        self.pre_relu = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.downsample = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        active = self.pre_relu(self.pre_bn(features))
        residual = self.conv2(self.relu(self.bn(self.conv1(active))))
        merged: Tensor = residual + self.downsample(features if isinstance(self.downsample, nn.Identity) else active)
        return merged


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width; the first changes the shape."""
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))
