"""Short trainings of the tiny network under a schedule with one component, and what they leave behind, to compare."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import Module, Parameter
from torch.optim.lr_scheduler import ExponentialLR

from prunekit.components.context import Context
from prunekit.components.types import Selectors
from prunekit.errors import shortened
from prunekit.plugins.loading import Plugins
from prunekit.plugins.registry import Registry
from prunekit.progress import Progress, Window
from prunekit.pruning.selection import prune_lowest
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.specs import ComponentSpec, PolicySpec
from prunekit.scheduler import CompressionScheduler
from prunekit.testing.laws import EXTENSION, LISTENER, LR_SCHEDULER
from prunekit.testing.subject import Subject
from prunekit.testing.tiny import TinyNet, tiny_data
from prunekit.trace import Trace
from prunekit.training.checkpoint import random_states, seed_everything, set_random_states

EPOCHS = 6
FIRST, LAST = 1, 4
WINDOW = Window(FIRST, LAST + 1)
"""The component acts in epochs 1 to 4: one epoch is before its window, one after it."""
MINIBATCHES = 4


@dataclass
class Magnitude:
    """A pruner for a component to be beside: half of each weight goes, the smallest, rising over the window."""

    weights: Selectors = "fc?.weight"

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> dict[str, Tensor]:
        sparsity = 0.25 * (1 + context.window.fraction(context.progress))
        return {name: prune_lowest(weight.abs(), sparsity) for name, weight in parameters.items()}


@dataclass
class WeightDecay:
    """A regularizer for a component to be beside."""

    weights: Selectors = "conv?.weight"

    def penalty(self, parameters: Mapping[str, Parameter], context: Context) -> Tensor:
        return torch.stack([1e-3 * weight.square().sum() for weight in parameters.values()]).sum()


class Run:
    """A training of the tiny network: model, optimizer and a scheduler with the subject.

    Args:
        subject: what takes part.
        absent: leave it out, and nothing else.
        seed: of the weights and of all random numbers.
        model: another model, with the same parameter names.
        rate: of SGD with momentum; at 0 no weight moves.
        wrap: what the model is trained as (compiled, in parallel).
        pruned: parameters of which half goes over the window, by another pruner.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        absent: bool = False,
        seed: int = 0,
        model: Module | None = None,
        rate: float = 0.05,
        wrap: Callable[[Module], Module] = lambda model: model,
        pruned: Sequence[str] = (),
    ) -> None:
        self.subject, self.asked = subject, 0
        self.model = wrap(model or TinyNet(seed))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        folder = None if subject.folder is None else tempfile.mkdtemp(dir=subject.folder)
        trace = Trace(folder, "error", logger=None)
        seed_everything(seed)
        schedule, listeners = schedule_with(subject, pruned), []
        if absent:
            schedule = _without_subject(schedule)
        elif subject.kind == LISTENER:
            listeners = [subject.listener()]
        plugins = Plugins(Registry([]), tuple(listeners))  # nothing that happens to be installed
        self.scheduler = CompressionScheduler(
            schedule, self.model, self.optimizer, epochs=EPOCHS, plugins=plugins, trace=trace
        )

    @property
    def component(self) -> Any:
        """The instance of the subject."""
        return self.scheduler.components[f"{self.subject.kind}s.subject"]

    @property
    def policy(self) -> Any:
        """The subject's policy, with its parameters and their settings."""
        return self.scheduler.policies[0]

    @property
    def now(self) -> Progress:
        """Where training stands, one mini-batch on for each time that the component was asked outside of it."""
        progress = self.scheduler.progress
        return progress._replace(minibatch=progress.minibatch + self.asked, minibatches_per_epoch=MINIBATCHES)

    def train(self, epochs: Iterable[int], data: Sequence[tuple[Tensor, Tensor]] | None = None) -> Run:
        """Whole epochs; back to itself."""
        for epoch in epochs:
            self.scheduler.on_epoch_begin(epoch)
            for minibatch in range(MINIBATCHES):
                self.minibatch(epoch, minibatch, data)
            self.end(epoch)
        return self

    def minibatch(self, epoch: int, minibatch: int, data: Sequence[tuple[Tensor, Tensor]] | None = None) -> None:
        """One step."""
        images, classes = (data or batches())[minibatch]
        self.scheduler.on_minibatch_begin(epoch, minibatch, MINIBATCHES)
        self.model.train()
        loss = nn.functional.cross_entropy(self.model(images), classes)
        self.optimizer.zero_grad()
        self.scheduler.total_loss(loss).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.on_minibatch_end(epoch, minibatch, MINIBATCHES)

    def end(self, epoch: int) -> None:
        """The epoch has ended, with metrics that depend on nothing but its number."""
        self.scheduler.on_epoch_end(epoch, metrics={"min": 1 / (epoch + 1), "max": epoch / EPOCHS})

    @classmethod
    def continued(cls, subject: Subject, saved: Mapping[str, Any], seed: int = 7) -> Run:
        """A run begun anew from what another one saved."""
        other = cls(subject, seed=seed)
        other.model.load_state_dict(saved["model"])
        other.optimizer.load_state_dict(saved["optimizer"])
        other.scheduler.load_state_dict(saved["scheduler"])
        set_random_states(saved["random"], [], [])
        return other

    def saved(self) -> dict[str, Any]:
        """All that a checkpoint would hold, out of a file."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": random_states(),
        }
        saved: dict[str, Any] = through_a_file(state)
        return saved

    def outcome(self) -> dict[str, Any]:
        """What came of the training, to compare: weights, masks, learning rates, memories and random numbers."""
        saved = self.saved()
        scheduler = saved["scheduler"]
        return {
            "weights": saved["model"],
            "masks": scheduler["masks"],
            "learning_rates": scheduler["learning_rates"],
            "component": scheduler["components"],
            "random": saved["random"],
        }


def straight_outcome(subject: Subject) -> dict[str, Any]:
    """What comes of an undisturbed training from the first epoch to the last; one training serves all laws."""
    if "straight" not in subject.remembered:
        subject.remembered["straight"] = Run(subject).train(range(EPOCHS)).outcome()
    outcome: dict[str, Any] = subject.remembered["straight"]
    return outcome


def schedule_with(subject: Subject, pruned: Sequence[str] = ()) -> Schedule:
    """The subject in its window, maybe beside a pruner; extensions and listeners have something to hear of."""
    components: list[ComponentSpec] = []
    policies: list[PolicySpec] = []

    def add(kind: Any, name: str, cls: type, arguments: Mapping[str, Any], window: Window) -> None:
        components.append(ComponentSpec(kind, name, cls, arguments))
        policies.append(PolicySpec(kind, name, window))

    if subject.kind != LISTENER:
        usual = Window(0, EPOCHS) if subject.kind == LR_SCHEDULER else WINDOW
        add(subject.kind, "subject", subject.cls, subject.own_arguments(), subject.window or usual)
    if subject.kind in (EXTENSION, LISTENER):
        add("pruner", "magnitude", Magnitude, {}, WINDOW)
        add("regularizer", "decay", WeightDecay, {}, WINDOW)
        add("lr_scheduler", "rate", ExponentialLR, {"gamma": 0.9}, WINDOW)
    if pruned:
        add("pruner", "magnitude", Magnitude, {"weights": list(pruned)}, WINDOW)
    return Schedule(components, policies)


def _without_subject(schedule: Schedule) -> Schedule:
    return Schedule(
        [spec for spec in schedule.components if spec.name != "subject"],
        [policy for policy in schedule.policies if policy.instance_name != "subject"],
    )


@cache
def batches() -> Sequence[tuple[Tensor, Tensor]]:
    """Mini-batches of 16 images and classes, the same at every call."""
    images, classes = tiny_data().tensors
    return tuple((images[16 * i : 16 * (i + 1)], classes[16 * i : 16 * (i + 1)]) for i in range(MINIBATCHES))


def through_a_file(state: Any) -> Any:
    """Saved, and loaded as torch does by default: plain data and tensors only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def differences(one: Any, other: Any, path: str = "", *, exact: bool = True) -> Iterator[str]:
    """Where two nested states differ, and how: bit for bit, or (not `exact`) by more than the order of a sum makes."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            yield f"{path} is {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"
        elif not (_same(one, other) if exact else torch.allclose(one, other, equal_nan=True)):
            yield f"{path} differs in {int((one != other).sum())} of {one.numel()} elements"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if key not in one or key not in other:
                yield f"{path}.{key} is in only one of them".removeprefix(".")
            else:
                yield from differences(one[key], other[key], f"{path}.{key}".removeprefix("."), exact=exact)
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}[{index}]", exact=exact)
    # NaN is the same as NaN here.
    elif one != other and not (one != one and other != other):
        yield f"{path} is {shortened(one)} and {shortened(other)}"


def reseed(seed: int = 5) -> None:
    """The same random numbers from here on."""
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(
        torch.equal(one, other)
        or (torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num()))
    )
