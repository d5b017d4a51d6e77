"""AlexNet for small images (Krizhevsky 2014, arXiv 1404.5997), narrow enough to train on one processor core."""

from torch import Tensor, nn

from examples.models.wrapped import Wrapped


class AlexNet(nn.Module):
    """Five convolutions (`features` 0, 3, 6, 8, 10) and three linear layers (`classifier` 1, 4, 6).

    With `wrapped`, the features are named `features.module.0.weight` and so on, as DataParallel left them.
    """

    def __init__(self, channels: int = 1, classes: int = 10, wrapped: bool = False) -> None:
        super().__init__()
        features = _features(channels)
        self.features = Wrapped(features) if wrapped else features
        self.classifier = _classifier(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, 28, 28] to logits [N, classes]."""
        features = self.features(images)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def _features(channels: int) -> nn.Sequential:
    """Images [N, channels, 28, 28] to features [N, 32, 2, 2]."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(8, 24, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(24, 48, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


def _classifier(classes: int) -> nn.Sequential:
    """Features [N, 128] to logits [N, classes]."""
    return nn.Sequential(
        nn.Dropout(),
        nn.Linear(32 * 2 * 2, 256),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )
