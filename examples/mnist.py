"""Applications on handwritten digits: a model with its optimizer, data and loss, all determined by a seed."""

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from examples.digits import test_loader, train_loader
from examples.models.alexnet import AlexNet
from examples.models.lenet import LeNet5
from examples.models.resnet_bottleneck import BottleneckResNet
from examples.models.resnet_cifar import ResNet20
from examples.models.wrapped import Wrapped
from prunekit import Application


def lenet5(seed: int = 0) -> Application:
    """LeNet-5: 431,080 parameters, 2 seconds an epoch."""
    torch.manual_seed(seed)
    model = LeNet5()
    return Application(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4),
        train_loader=train_loader(seed),
        test_loader=test_loader(),
        loss=cross_entropy,
    )
