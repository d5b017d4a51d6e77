"""VGG-16 for small images (Simonyan & Zisserman 2014, arXiv 1409.1556, configuration D), narrow."""

from torch import Tensor, nn

# Channels of the 13 convolutions in units of the width; None halves the image.
_LAYERS = [1, 1, None, 2, 2, None, 4, 4, 4, None, 8, 8, 8, None, 8, 8, 8, None]


class VGG16Cifar(nn.Module):
    """Thirteen convolutions (`features` 0, 2, 5, … 28) and a linear layer (`classifier`), for images of 32 x 32."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.features = _features(channels, width)
        self.classifier = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, 28 to 32, 28 to 32] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _features(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in _LAYERS:
        if wide is None:
            layers.append(nn.MaxPool2d(kernel_size=2, ceil_mode=True))
        else:
            layers += [nn.Conv2d(channels, wide * width, kernel_size=3, padding=1), nn.ReLU()]
            channels = wide * width
    return nn.Sequential(*layers)
