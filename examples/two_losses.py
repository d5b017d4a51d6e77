"""An application with a step of its own: batches that are dicts, two losses, an average of the weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import Adam

from examples.digits import loaders
from examples.models.reader import Reader
from prunekit import Application


def reader(seed: int = 0) -> Application:
    """A network that reads a noisy digit and draws it without the noise: `encoder`, `decoder`, `classifier`."""
    torch.manual_seed(seed)
    model = Reader()
    return Application(
        model,
        Adam(model.parameters(), lr=0.002),
        *loaders(seed, collate=by_name),
        step=step,
        metrics=metrics,
        accumulate=2,
        clip_norm=5.0,
        ema_decay=0.95,
    )


def by_name(samples: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The images and labels of a batch by their names, as data sets of today give them."""
    images, labels = zip(*samples, strict=True)
    return {"image": torch.stack(images), "label": torch.stack(labels)}


def step(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is trained on is the sum of these."""
    images = batch["image"]
    noisy = images + 0.5 * torch.randn_like(images) if model.training else images
    drawing, scores = model(noisy)
    return {"drawing": mse_loss(drawing, images), "reading": cross_entropy(scores, batch["label"])}


def metrics(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the epoch's line shows besides the losses."""
    _, scores = model(batch["image"])
    return {"accuracy": (scores.argmax(1) == batch["label"]).float().mean()}
