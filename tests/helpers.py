"""What several tests need: small models and schedules, a silent trace, a state sent through a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit import CompressionScheduler, Plugins, Progress, ScheduleError, Trace, Window, load_plugins
from prunekit.components import Context
from prunekit.testing import epochs_under_card
from prunekit.testing.runs import through_a_file as through_a_file

SILENT = Trace(level="error")


class MLP(nn.Module):
    """fc1 12 -> 8, fc2 8 -> 4; the weights depend on the seed only."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def batches(number: int = 4, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Random inputs [size, 12] and classes [size], the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 12, generator=generator), torch.randint(0, 4, (size,), generator=generator))
        for _ in range(number)
    ]


def without_listeners() -> Plugins:
    """All components that are installed, and nobody who listens, whoever else may be installed."""
    return replace(load_plugins(), listeners=(), broken=(), switched_off=())


def window(start: int, end: int, frequency: int = 1) -> dict[str, int]:
    return {"starting_epoch": start, "ending_epoch": end, "frequency": frequency}


def pruning(
    class_: str = "SparsityLevelParameterPruner", when: dict[str, Any] | None = None, args: Any = None, **keys: Any
) -> dict[str, Any]:
    """A schedule with one pruner called p."""
    keys = keys or {"levels": {"fc1.weight": 0.5}}
    policy = {"pruner": {"instance_name": "p", **({"args": args} if args else {})}, **(when or window(0, 3))}
    return {"version": 1, "pruners": {"p": {"class": class_, **keys}}, "policies": [policy]}


def train_attached(
    scheduler: CompressionScheduler,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    data: Any = None,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """The attached loop."""
    for _ in scheduler.epochs(epochs, after_epoch):
        for x, y in scheduler.minibatches(data or batches()):
            optimizer.zero_grad()
            loss = scheduler.total_loss(nn.functional.cross_entropy(scheduler.model(x), y))
            loss.backward()
            optimizer.step()
        scheduler.report(min=1.0, max=0.5)


def train_explicit(
    scheduler: CompressionScheduler, optimizer: torch.optim.Optimizer, epochs: range, data: Any = None
) -> None:
    """The loop of a Distiller application."""
    data = data or batches()
    total = len(data)
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch)
        for minibatch, (x, y) in enumerate(data):
            scheduler.on_minibatch_begin(epoch, minibatch, total)
            loss = nn.functional.cross_entropy(scheduler.model(x), y)
            loss = scheduler.before_backward_pass(epoch, minibatch, total, loss)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, minibatch, total)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, minibatch, total)
        scheduler.on_epoch_end(epoch, metrics={"min": 1.0, "max": 0.5})


class Recorder:
    """A structlog logger that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **values: self.lines.append({"level": level, "event": event, **values})

    def hooks(self) -> list[str]:
        return [
            f"{line['epoch']}{'.' + str(line['minibatch']) if 'minibatch' in line else ''} {line['hook']} "
            f"{line['policy'] or line['component']}"
            for line in self.lines
            if line["event"] == "hook ran"
        ]

    def events(self, *events: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] in events]

    def values(self, event: str, *keys: str) -> list[list[Any]]:
        """What each line of this event says under these keys."""
        return [[line.get(key) for key in keys] for line in self.events(event)]

    @property
    def warnings(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["level"] == "warning"]


class Network(nn.Module):
    """The layers that schedules in the documentation name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 4)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.conv3, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(images)))))
        return self.fc(features.mean((2, 3))) + self.fc2(torch.relu(self.fc1(images.flatten(1)[:, :12])))


class Waits(TorchDispatchMode):
    """How often values of a device are asked for while it is on."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of a mini-batch, whose gradients are in the model."""
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss.detach()


def zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


def equal(one: Any, other: Any) -> bool:
    """Whether states are the same to the last bit: tensors, in mappings and sequences of any depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


# Quantizers


def quantizer_context(bits: int, model: nn.Module | None = None) -> Context:
    """What a quantizer may know of a weight and an activation that are both called a."""
    model = model or nn.Module()
    return Context(model, {}, Progress(0), Window(0, 1), {"a": bits}, {}, activations={"a": bits})


def quantizer_problem(class_: str, **keys: Any) -> str:
    """Why a quantizer of these keys is refused for a linear layer with an activation: place and message."""
    policy = {"quantizer": {"instance_name": "q"}, "epochs": [0]}
    schedule = {"version": 1, "quantizers": {"q": {"class": class_, **keys}}, "policies": [policy]}
    with pytest.raises(ScheduleError) as error:
        CompressionScheduler.from_dict(schedule, nn.Sequential(nn.Linear(2, 2), nn.ReLU()), trace=SILENT)
    (problem,) = error.value.problems
    return f"{problem.path}: {problem.message}"


def quantized_epochs(card: Path, after: Callable[[int, nn.Module, CompressionScheduler], Any]) -> None:
    """The first schedule of a quantizer's card, to its end; `after` is called with each epoch."""
    torch.manual_seed(0)
    net = Network()
    for epoch, run in enumerate(epochs_under_card(card, net, None, 201)):
        after(epoch, net, run)


def different_values(weight: Tensor) -> int:
    """How many different ones there are."""
    return len(weight.detach().unique())


# Gradients


class GivenGradients(nn.Module):
    """Vectors whose gradients are what is given for them."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        for name, value in values.items():
            setattr(self, name, nn.Parameter(torch.as_tensor(value)))

    def forward(self, gradients: dict[str, list[float]]) -> Tensor:
        products = [(getattr(self, name) * torch.tensor(g)).sum() for name, g in gradients.items()]
        return torch.stack(products).sum()


# Texts that YAML might take for something else

TRICKY = [
    *[
        "",
        " ",
        " a",
        "a ",
        "~",
        "null",
        "on",
        "true",
        "1e5",
        "1e-4",
        "0o7",
        "0x1F",
        "0777",
        ".inf",
        ".nan",
        "1:30",
        "<<",
    ],
    *[
        "=",
        "-",
        "- a",
        "a: b",
        "a #b",
        "#",
        "*",
        "&a",
        "!a",
        "%a",
        "@",
        "`",
        "[",
        "]",
        "{}",
        "'",
        '"',
        "\\",
        "a\nb",
        "\n",
    ],
    *[
        "a\n\n b\n",
        "\t",
        "a\tb",
        "\x00",
        "\x07",
        "\x1b",
        "\x7f",
        "\x85",
        "\xa0",
        "é",
        "Ж",
        "\u2028",
        "\ufeff",
        "😀",
        "---",
    ],
    *[
        "...",
        "?",
        "? a",
        ":",
        "|",
        ">",
        "2020-01-01",
        "a" * 300,
        "word " * 60,
        " x" * 99,
        "\r",
        "a\r\nb",
        "YES",
        "_",
        ".",
    ],
]
