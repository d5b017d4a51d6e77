"""What happens to a network, in TensorBoard: sparsity, mask changes, loss terms, learning rates, metrics, weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from prunekit import MaskChange, Progress, hookimpl
from prunekit.model import Parameters

FOLDER = "tensorboard"
"""Within the run's folder."""
LARGEST = 1e19
"""TensorBoard's bins end here: a histogram of larger weights alone, or of NaN, would stop the training."""


class TensorBoard:
    """Writes scalars and histograms, one step an epoch, into the run's folder; a run without one leaves nothing."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writer: Any = None
        self._before: dict[str, Tensor] | None = None
        """The masks that the epoch began with; None while they are not known."""
        self._written: dict[str, float] | None = None
        """The sparsities of the epoch that has ended; None while one lasts."""

    @hookimpl
    def on_state_restored(self) -> None:
        self._close()
        self._before = None

    @hookimpl
    def on_train_begin(self, masks: Mapping[str, Tensor], run_dir: Path | None) -> None:
        self._folder = None if run_dir is None else run_dir / FOLDER
        self._remember(masks)

    @hookimpl
    def on_epoch_begin(self, masks: Mapping[str, Tensor], progress: Progress) -> None:
        self._written = None
        self._write({}, progress)  # a folder that can't be written shows before anything is trained
        if self._before is None:
            self._remember(masks)

    @hookimpl
    def on_epoch_end(
        self,
        model: Module,
        masks: Mapping[str, Tensor],
        optimizer: Optimizer | None,
        progress: Progress,
        metrics: Mapping[str, float] | None,
    ) -> None:
        if self._folder is None:
            return
        groups = [] if optimizer is None else optimizer.param_groups
        rates = {f"learning_rate/{index}": group.get("lr") for index, group in enumerate(groups)}
        self._write({name: float(rate) for name, rate in rates.items() if rate is not None}, progress)
        self._write({f"metric/{name}": float(value) for name, value in (metrics or {}).items()}, progress)
        if self._before is not None:
            self._write(dict(mask_changes(self._before, masks)), progress)
        self._remember(masks)
        self._written, total, zeros = {}, 0, 0
        for name, parameter in Parameters.of(model).by_name.items():
            kept = parameter.detach()[masks[name]] if name in masks else parameter.detach()
            size, nonzero = parameter.numel(), int(kept.count_nonzero())
            total, zeros = total + size, zeros + size - nonzero
            if parameter.dim() > 1 or name in masks:
                self._written[name] = (size - nonzero) / max(size, 1)
            shown = kept[kept.abs() < LARGEST] if name in masks else kept[:0]
            if shown.numel():
                self._writer.add_histogram(f"weights/{name}", shown.float(), progress.epoch)
        self._write({f"sparsity/{name}": sparsity for name, sparsity in self._written.items()}, progress)
        self._write({"sparsity/all": zeros / max(total, 1)}, progress)

    @hookimpl
    def on_masks_changed(self, changes: Sequence[MaskChange], progress: Progress) -> None:
        """What is told after the epoch has ended, where that is news."""
        if self._written is None:
            return
        for change in changes:
            name, sparsity = change.parameter, change.sparsity_after
            if self._written.get(name) != sparsity:
                self._written[name] = sparsity
                self._write({f"sparsity/{name}": sparsity}, progress)

    @hookimpl
    def on_loss_terms(self, means: Mapping[str, float], progress: Progress) -> None:
        self._write({f"loss/{name}": mean for name, mean in means.items()}, progress)

    @hookimpl
    def on_train_end(self) -> None:
        self._close()

    def _remember(self, masks: Mapping[str, Tensor]) -> None:
        self._before = None if self._folder is None else {name: mask.clone() for name, mask in masks.items()}

    def _write(self, scalars: Mapping[str, float], progress: Progress) -> None:
        """To the disk at once: a run that is killed loses no epoch that has ended."""
        if self._folder is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a run that was stopped has written for this epoch and later ones is void.
            self._writer = SummaryWriter(str(self._folder), purge_step=progress.epoch)
            self._closing = weakref.finalize(self, self._writer.close)  # a loop may never say that training ends
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, progress.epoch)
        self._writer.flush()

    def _close(self) -> None:
        if self._writer is not None:
            self._closing()
            self._writer = None


def mask_changes(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    """How many weights of each parameter changed sides; without a mask all are kept."""
    for name in {**before, **now}:
        mask = now[name] if name in now else torch.ones_like(before[name])
        former = before[name] if name in before else torch.ones_like(mask)
        yield f"mask_changes/{name}", int((mask != former.to(mask.device)).sum())
