"""LeNet-5 (LeCun et al. 1998) as wide as Caffe has it: 431,080 parameters, the classic subject of pruning papers."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class LeNet5(nn.Module):
    """Two convolutions and two linear layers: 20, 50, 500 and `classes` units."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, 28, 28] to logits [N, classes]."""
        features = max_pool2d(self.conv1(images), 2)
        features = max_pool2d(self.conv2(features), 2)
        hidden = relu(self.fc1(features.flatten(1)))
        logits: Tensor = self.fc2(hidden)
        return logits
