"""Applications on handwritten digits: a model with its optimizer, data and loss, all determined by one seed."""

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from examples.digits import loaders
from examples.models.alexnet import AlexNet
from examples.models.lenet import LeNet5
from examples.models.resnet_cifar import ResNetCifar
from examples.models.resnet_imagenet import ResNetImagenet
from examples.models.wrapped import Wrapped
from prunekit import Application

FEW_BLOCKS = (1, 1, 3, 1)


def lenet5(seed: int = 0) -> Application:
    """LeNet-5, 431,080 parameters: `conv1`, `conv2`, `fc1`, `fc2`."""
    torch.manual_seed(seed)
    model = LeNet5()
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Application(model, optimizer, *loaders(seed), loss=cross_entropy)


def resnet20(seed: int = 0) -> Application:
    """ResNet-20, 272,186 parameters: `conv1`, `layer1.0.conv1` to `layer3.2.conv2`, `fc`."""
    torch.manual_seed(seed)
    model = ResNetCifar()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Application(model, optimizer, *loaders(seed), loss=cross_entropy)


def alexnet(seed: int = 0) -> Application:
    """A narrow AlexNet: `features.0` to `features.10`, `classifier.1` to `classifier.6`."""
    torch.manual_seed(seed)
    model = AlexNet()
    optimizer = Adam(model.parameters(), lr=0.001)
    return Application(model, optimizer, *loaders(seed), loss=cross_entropy)


def alexnet_wrapped(seed: int = 0) -> Application:
    """The same network, named as DataParallel named it: `features.module.0` and so on."""
    torch.manual_seed(seed)
    model = AlexNet(wrapped=True)
    optimizer = Adam(model.parameters(), lr=0.001)
    return Application(model, optimizer, *loaders(seed), loss=cross_entropy)


def bottleneck_resnet(seed: int = 0) -> Application:
    """A small ResNet of bottleneck blocks: `conv1`, `layer1.0.conv1` to `layer4.0.conv3`, `fc`."""
    torch.manual_seed(seed)
    model = ResNetImagenet(FEW_BLOCKS)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Application(model, optimizer, *loaders(seed), loss=cross_entropy)


def bottleneck_resnet_wrapped(seed: int = 0) -> Application:
    """The same network, named as DataParallel named it: `module.layer3.1.conv1` and so on."""
    torch.manual_seed(seed)
    model = Wrapped(ResNetImagenet(FEW_BLOCKS))
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Application(model, optimizer, *loaders(seed), loss=cross_entropy)
