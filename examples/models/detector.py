"""The parts of Mask R-CNN (He et al. 2017, arXiv 1703.06870) with weights, and one box: the whole image."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from examples.models.resnet_imagenet import ResNetImagenet


class WholeImageDetector(nn.Module):
    """`backbone.body` is a ResNet-50, `backbone.fpn` a feature pyramid; then `rpn.head`, `roi_heads` for box and mask.

    There is nothing to propose and nothing to crop: the region is the image, its class the sum of what the box head
    and the mask head say, and the proposal head's features weigh the pyramid's.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 4) -> None:
        super().__init__()
        wide = 8 * width
        self.backbone = _Backbone(channels, width, wide)
        self.rpn = nn.ModuleDict({"head": nn.Sequential()})
        self.rpn["head"].add_module("conv", nn.Conv2d(wide, wide, 3, padding=1))
        self.roi_heads = _Heads(wide, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] to logits [N, classes]."""
        features = self.backbone(images)
        features = features * torch.sigmoid(self.rpn["head"](features))
        logits: Tensor = self.roi_heads(features)
        return logits


class _Backbone(nn.Module):
    def __init__(self, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        self.body = ResNetImagenet(channels=channels, width=width)
        self.body.fc = nn.Identity()  # type: ignore[assignment]
        self.fpn = _Pyramid([4 * width * 2**stage for stage in range(4)], outputs)

    def forward(self, images: Tensor) -> Tensor:
        features, body = [], self.body
        last = body.relu1(body.bn1(body.conv1(images)))
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            last = stage(last)
            features.append(last)
        pyramid: Tensor = self.fpn(features)
        return pyramid


class _Pyramid(nn.Module):
    """From coarse to fine; all levels at the size of the coarsest, added up: [N, outputs, h, w]."""

    def __init__(self, inputs: list[int], outputs: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in inputs)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(outputs, outputs, 3, padding=1) for _ in inputs)

    def forward(self, features: list[Tensor]) -> Tensor:
        coarsest = features[-1].shape[-2:]
        merged = self.inner_blocks[-1](features[-1])
        total: Tensor = self.layer_blocks[-1](merged)
        for place in range(len(features) - 2, -1, -1):
            inner = self.inner_blocks[place](features[place])
            merged = inner + interpolate(merged, size=inner.shape[-2:])
            total = total + interpolate(self.layer_blocks[place](merged), size=coarsest)
        return total


class _Heads(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.box_head = nn.ModuleDict({"fc6": nn.Linear(inputs, 64), "fc7": nn.Linear(64, 64)})
        self.box_predictor = nn.Linear(64, classes)
        convs = {f"mask_fcn{n}": nn.Conv2d(inputs, inputs, 3, padding=1) for n in range(1, 5)}
        self.mask_head = nn.ModuleDict(convs)
        self.mask_predictor = nn.ModuleDict({"conv5_mask": nn.ConvTranspose2d(inputs, classes, 2, 2)})

    def forward(self, features: Tensor) -> Tensor:
        hidden = relu(self.box_head["fc7"](relu(self.box_head["fc6"](features.mean((2, 3))))))
        masks = features
        for conv in self.mask_head.values():
            masks = relu(conv(masks))
        logits: Tensor = self.box_predictor(hidden) + self.mask_predictor["conv5_mask"](masks).mean((2, 3))
        return logits
