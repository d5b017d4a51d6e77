"""A network and a task that train in a blink, made by code: something to run a schedule on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunekit.training.application import Application

IMAGES, SIDE, CLASSES = 128, 8, 4


class TinyNet(nn.Module):
    """conv1 1 → 4, norm, conv2 4 → 8, fc1 32 → 16, fc2 16 → 4, times `width`; the weights depend on the seed alone.

    Its parameters: `conv1.weight`, `norm.weight`, `norm.bias`, `conv2.weight`, `fc1.weight`, `fc1.bias`, `fc2.weight`,
    `fc2.bias`.
    """

    def __init__(self, seed: int = 0, width: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4 * width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4 * width)
        self.conv2 = nn.Conv2d(4 * width, 8 * width, 3, stride=2, padding=1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc1, self.fc2 = nn.Linear(32 * width, 16 * width), nn.Linear(16 * width, CLASSES)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    spread = (2 / parameter[0].numel()) ** 0.5
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            for layer in (self.fc1, self.fc2):
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 8, 8] → scores [n, 4]."""
        features = torch.relu(self.norm(self.conv1(images)))
        features = self.pool(torch.relu(self.conv2(features)))
        scores: Tensor = self.fc2(torch.relu(self.fc1(features.flatten(1))))
        return scores


class ConvNet(nn.Module):
    """conv1 3 → 8, conv2 8 → 8, conv3 8 → 16 of 1 × 1, fc 16 → 4: the layers that cards of filter pruners name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 3, 6, 6] → scores [n, 4]."""
        features = torch.relu(self.conv2(torch.relu(self.conv1(images))))
        scores: Tensor = self.fc(torch.relu(self.conv3(features)).mean((2, 3)))
        return scores


def tiny_data(seed: int = 0) -> TensorDataset:
    """128 noisy images [1, 8, 8]; the class is the quadrant that is bright."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, 1, SIDE, SIDE, generator=generator)
    classes = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    half = SIDE // 2
    for image, quadrant in zip(images, classes.tolist(), strict=True):
        top, left = quadrant // 2 * half, quadrant % 2 * half
        image[:, top : top + half, left : left + half] += 1
    return TensorDataset(images, classes)


def application(seed: int = 0) -> Application:
    """`prunekit train SCHEDULE --app prunekit.testing:application`: a whole run takes a second."""
    model = TinyNet(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train = DataLoader(tiny_data(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(seed))
    test = DataLoader(tiny_data(seed=1), batch_size=64)
    return Application(model, optimizer, train, test, nn.functional.cross_entropy)
