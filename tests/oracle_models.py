# ruff: noqa: E501
"""Plain-torch model definitions used by the oracle cases (no Distiller needed).

The cases store every initial parameter, so only names and shapes matter here."""

import torch
import torch.nn as nn


class MLP(nn.Module):
    """fc1 12->8, relu1, fc2 8->4"""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 8)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.relu1(self.fc1(x)))


class CNN(nn.Module):
    """input (N,3,8,8): conv1 3->8 k3 p1, bn1, relu1, conv2 8->8 k3 p1, relu2, conv3 8->16 k1, relu3, global avg, fc 16->4"""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(8, 16, 1)
        self.relu3 = nn.ReLU()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.conv2(x))
        x = self.relu3(self.conv3(x))
        return self.fc(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.relu2 = nn.ReLU()

    def forward(self, x):
        return self.relu2(self.conv2(self.relu1(self.conv1(x))))


class NestedCNN(nn.Module):
    """layer.conv1/relu1/conv2/relu2 + fc; needed by the activation-ranked pruners, which turn
    '<x>.conv<y>.weight' into '<x>.relu<y>' to find the module that holds the statistics"""

    def __init__(self):
        super().__init__()
        self.layer = _Block()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.layer(x).mean(dim=(2, 3)))


class QNet(nn.Module):
    """input (N,2,6,6): conv1 2->4 k3, relu1, block1.conv1 4->4 k3, block1.relu, fc 4*2*2->3, final_relu"""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.relu1 = nn.ReLU()
        self.block1 = nn.Sequential()
        self.block1.add_module("conv1", nn.Conv2d(4, 4, 3))
        self.block1.add_module("relu", nn.ReLU())
        self.fc = nn.Linear(16, 3)
        self.final_relu = nn.ReLU()

    def forward(self, x):
        x = self.block1(self.relu1(self.conv1(x)))
        return self.final_relu(self.fc(x.flatten(1)))


class _Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.module = inner

    def forward(self, x):
        return self.module(x)


class AlexNetNames(nn.Module):
    """Tiny network with exactly the parameter names of the seed's AlexNet schedule
    (features.module.{0,3,6,8,10}, classifier.{1,4,6})"""

    def __init__(self):
        super().__init__()
        f = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3, padding=1),
            nn.ReLU(),
        )
        self.features = _Wrapped(f)
        self.classifier = nn.Sequential(
            nn.Dropout(0.0),
            nn.Linear(16, 10),
            nn.ReLU(),
            nn.Dropout(0.0),
            nn.Linear(10, 10),
            nn.ReLU(),
            nn.Linear(10, 4),
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class _Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(6, 3, 1, bias=False)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(3, 6, 1, bias=False)

    def forward(self, x):
        return torch.relu(x + self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x))))))


class ResNetNames(nn.Module):
    """Tiny network with the names of the seed's regularizer examples (module.layer3.{0,1,2}.conv{1,2,3})"""

    def __init__(self):
        super().__init__()
        inner = nn.Module()
        inner.layer3 = nn.Sequential(_Bottleneck(), _Bottleneck(), _Bottleneck())
        self.module = inner

    def forward(self, x):
        return self.module.layer3(x).mean(dim=(2, 3))


class DorefaNames(nn.Module):
    """conv1, relu1, conv2, relu2, fc, final_relu: the module names of the seed's DoReFa example"""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.relu2 = nn.ReLU()
        self.final_relu = nn.ReLU()
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(self.final_relu(x).flatten(1))


MODELS = {
    "AlexNetNames": AlexNetNames,
    "ResNetNames": ResNetNames,
    "DorefaNames": DorefaNames,
    "MLP": MLP,
    "CNN": CNN,
    "NestedCNN": NestedCNN,
    "QNet": QNet,
}


def init_model(name, seed, scale=None):
    """Fixed pseudo-random parameters (numpy PCG64, independent of torch's generator)."""
    import numpy as np

    m = MODELS[name]()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for n, p in m.named_parameters():
            v = rng.standard_normal(tuple(p.shape)).astype("float32")
            if n.endswith("bias"):
                v *= 0.1
            elif p.dim() == 1:
                v = np.abs(1 + 0.3 * v)  # batch-norm weights
            else:
                v *= 0.5 if scale is None else scale
            p.copy_(torch.from_numpy(v))
    return m
