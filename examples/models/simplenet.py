"""Two convolutions and two linear layers: the smallest network that published schedules name."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d


class SimpleNet(nn.Module):
    """`conv1`, `conv2`, `fc1` and `fc2`."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.relu2 = nn.ReLU()
        self.fc1 = nn.Linear(50 * 4 * 4, 100)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(100, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, 28, 28] to logits [N, classes]."""
        features = max_pool2d(self.relu1(self.conv1(images)), 2)
        features = max_pool2d(self.relu2(self.conv2(features)), 2)
        logits: Tensor = self.fc2(self.relu3(self.fc1(features.flatten(1))))
        return logits
