"""A run as curves in TensorBoard: sparsities, mask changes, weights, losses, metrics and learning rates by epoch."""

from __future__ import annotations

import os
import re
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import MaskChange, Origin, Progress, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer
    from torch.utils.tensorboard import SummaryWriter

VARIABLE = "PRUNEKIT_TENSORBOARD"
"""The environment variable that names the folder of a run that has none of its own."""


class TensorBoard:
    """Writes what becomes of a network, one point an epoch, to the folder `tensorboard` in the run's own."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writer: SummaryWriter | None = None
        self._book = _Book()
        self._written: dict[str, float] | None = None
        """The sparsities of the epoch that has ended; None while one lasts."""

    @hookimpl
    def on_state_restored(self, state: Mapping[str, Any]) -> None:
        self._close()
        self._written = None
        self._book.changed |= set(state["ledger"])

    @hookimpl
    def on_train_begin(self, masks: Mapping[str, Tensor], run_dir: Path | None) -> None:
        self._folder = folder_of(run_dir)
        if self._folder is not None:
            self._book.open(masks)

    @hookimpl
    def on_epoch_begin(self, progress: Progress) -> None:
        self._written = None
        self._open(progress.epoch)  # what stands in the way of writing shows before anything is trained

    @hookimpl
    def on_masks_changed(self, changes: Sequence[MaskChange], progress: Progress) -> None:
        if self._folder is None:
            return
        for change in changes:
            self._book.enter(change)
        if self._written is not None:  # the epoch's points are there already
            self._add_late(changes, progress.epoch, self._written)

    @hookimpl
    def on_epoch_end(
        self,
        model: Module,
        masks: Mapping[str, Tensor],
        optimizer: Optimizer | None,
        progress: Progress,
        metrics: Mapping[str, float] | None,
    ) -> None:
        writer = self._open(progress.epoch)
        if writer is None:
            return
        parameters = parameters_of(model)
        self._written = dict(self._book.sparsities(parameters, masks))
        for tag, value in self._scalars(parameters, masks, optimizer, metrics):
            writer.add_scalar(tag, value, progress.epoch)  # type: ignore[no-untyped-call]
        for name, mask in masks.items():
            _add_histogram(writer, f"weights/{name}", nonzero(parameters[name], mask), progress.epoch)
        self._tell(writer, progress.epoch)
        writer.flush()

    @hookimpl
    def on_loss_terms(self, means: Mapping[str, float], progress: Progress) -> None:
        writer = self._open(progress.epoch)
        if writer is not None:
            for name, mean in means.items():
                writer.add_scalar(f"loss/{name}", mean, progress.epoch)  # type: ignore[no-untyped-call]
            writer.flush()

    @hookimpl
    def on_train_end(self) -> None:
        self._close()

    def _scalars(
        self,
        parameters: Mapping[str, Parameter],
        masks: Mapping[str, Tensor],
        optimizer: Optimizer | None,
        metrics: Mapping[str, float] | None,
    ) -> Iterator[tuple[str, float]]:
        """The points of an epoch that has ended, before the learning rate of the next is set."""
        yield "sparsity/all", sparsity_of_all(parameters, masks)
        for name, sparsity in (self._written or {}).items():
            yield f"sparsity/{name}", sparsity
        for name, count in self._book.count(masks).items():
            yield f"mask_changes/{name}", count
        for index, group in enumerate([] if optimizer is None else optimizer.param_groups):
            yield f"learning_rate/{index}", float(group["lr"])
        for name, value in (metrics or {}).items():
            yield f"metric/{name}", float(value)

    def _add_late(self, changes: Sequence[MaskChange], epoch: int, written: dict[str, float]) -> None:
        """What is told after the epoch has ended: weights that a regularizer zeroed in it, masks that were kept."""
        writer = self._open(epoch)
        assert writer is not None
        for change in changes:
            if written.get(change.parameter) != change.sparsity_after:
                written[change.parameter] = change.sparsity_after
                writer.add_scalar(f"sparsity/{change.parameter}", change.sparsity_after, epoch)  # type: ignore[no-untyped-call]
        self._tell(writer, epoch)
        writer.flush()

    def _tell(self, writer: SummaryWriter, epoch: int) -> None:
        """Who changed what, as text."""
        for origin, text in self._book.texts():
            writer.add_text(f"changes/{origin.policy or origin.component}", text, epoch)  # type: ignore[no-untyped-call]

    def _open(self, epoch: int) -> SummaryWriter | None:
        """Where points go, if anywhere; what stands there for this epoch and later ones is void."""
        if self._writer is None and self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)  # type: ignore[no-untyped-call]
            # A loop that never says that training ends leaves a thread behind otherwise.
            self._closing = weakref.finalize(self, self._writer.close)
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._closing()
            self._writer = None


class _Book:
    """What has been changed, how many weights changed sides, and by whose hand, since it was last asked."""

    def __init__(self) -> None:
        self.changed: set[str] = set()
        self._masks: Mapping[str, Tensor] = {}
        self._former: dict[str, Tensor] = {}
        self._turned: Counter[str] = Counter()
        self._by: dict[Origin, dict[str, tuple[float, float]]] = {}

    def open(self, masks: Mapping[str, Tensor]) -> None:
        """The masks in force, now and whenever a change is entered: they are a view."""
        self._masks, self._former = masks, {name: mask.clone() for name, mask in masks.items()}

    def enter(self, change: MaskChange) -> None:
        """A parameter has changed."""
        name, by = change.parameter, self._by.setdefault(change.origin, {})
        self.changed.add(name)
        self._compare(name, self._masks.get(name))
        first, _ = by.get(name, (change.sparsity_before, None))
        by[name] = first, change.sparsity_after

    def sparsities(
        self, parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, float]]:
        """The sparsity of each parameter that anybody has changed."""
        self.changed |= masks.keys()
        for name, parameter in parameters.items():
            if name in self.changed:
                yield name, zeros(parameter, masks.get(name)) / max(parameter.numel(), 1)

    def count(self, masks: Mapping[str, Tensor]) -> Mapping[str, int]:
        """How many weights of each parameter that has or had a mask changed sides, in all changes together."""
        names = [*masks, *(name for name in self._former if name not in masks)]
        for name in names:
            self._compare(name, masks.get(name))  # nobody tells of masks that are dropped
        turned, self._turned = self._turned, Counter()
        return {name: turned[name] for name in names}

    def texts(self) -> Iterator[tuple[Origin, str]]:
        """By whose hand, and what: Markdown."""
        changes, self._by = self._by, {}
        for origin, by in changes.items():
            lines = [f"- `{name}` {before:.3f} → {after:.3f}" for name, (before, after) in by.items()]
            yield origin, "\n".join([f"{origin}\n", *lines])

    def _compare(self, name: str, now: Tensor | None) -> None:
        before = self._former.pop(name, None)
        if now is not None:
            self._former[name] = now.clone()
        self._turned[name] += differences(before, now)


def folder_of(run_dir: Path | None) -> Path | None:
    """Where a run's curves go: into its own folder, else where the environment says, else nowhere."""
    if run_dir is not None:
        return run_dir / "tensorboard"
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def parameters_of(model: Module) -> dict[str, Parameter]:
    """A model's parameters by the names that schedules know: without what wrappers add to them."""
    return {_PARAMETRIZED.sub(r"\1", _COMPILED.sub("", name)): p for name, p in model.named_parameters()}


_COMPILED = re.compile(r"\b_orig_mod\.")
_PARAMETRIZED = re.compile(r"\bparametrizations\.([^.]+)\.original$")


def nonzero(parameter: Parameter, mask: Tensor | None) -> Tensor:
    """The weights that are not zero as the forward pass sees them, in one dimension."""
    weights = parameter.detach()
    kept = weights if mask is None else weights[mask.to(weights.device)]
    return kept[kept != 0]


def zeros(parameter: Parameter, mask: Tensor | None) -> int:
    """How many weights are zero as the forward pass sees them."""
    weights = parameter.detach()
    kept = weights if mask is None else weights[mask.to(weights.device)]
    return parameter.numel() - int(kept.count_nonzero())


def sparsity_of_all(parameters: Mapping[str, Parameter], masks: Mapping[str, Tensor]) -> float:
    """The fraction of zeros in all parameters together."""
    total = sum(parameter.numel() for parameter in parameters.values())
    return sum(zeros(parameter, masks.get(name)) for name, parameter in parameters.items()) / max(total, 1)


def differences(before: Tensor | None, now: Tensor | None) -> int:
    """How many weights are on another side; without a mask all are kept."""
    if before is None or now is None:
        mask = now if before is None else before
        return 0 if mask is None else int((~mask).sum())
    return int((before.to(now.device) != now).sum())


def _add_histogram(writer: SummaryWriter, tag: str, values: Tensor, epoch: int) -> None:
    """A histogram of the values that TensorBoard's bins reach; those of a network that diverged are left out."""
    values = values.float()
    values = values[values.abs() < 1e20]
    if values.numel():
        writer.add_histogram(tag, values, epoch)  # type: ignore[no-untyped-call]
