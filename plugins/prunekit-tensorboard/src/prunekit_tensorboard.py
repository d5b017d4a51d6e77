"""What happens to a network, in TensorBoard: sparsity, loss terms, learning rates, mask changes, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from prunekit import MaskChange, Progress, hookimpl

FOLDER = "tensorboard"
"""Within the run's folder."""
LARGEST = 1e19
"""TensorBoard's bins end here: a histogram of larger weights alone, or of NaN, would stop the training."""


class TensorBoard:
    """Writes scalars and histograms, one step an epoch, into the run's folder; a run without one leaves nothing."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writer: Any = None
        self._before: dict[str, Tensor] = {}

    @hookimpl
    def on_train_begin(self, run_dir: Path | None) -> None:
        self._folder = None if run_dir is None else run_dir / FOLDER

    @hookimpl
    def on_masks_changed(self, changes: Sequence[MaskChange], progress: Progress) -> None:
        for change in changes:
            self._scalar(f"sparsity/{change.parameter}", change.sparsity_after, progress)

    @hookimpl
    def on_loss_terms(self, means: Mapping[str, float], progress: Progress) -> None:
        for name, mean in means.items():
            self._scalar(f"loss/{name}", mean, progress)

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
        for name, value in (metrics or {}).items():
            self._scalar(f"metric/{name}", value, progress)
        for group, values in enumerate(optimizer.param_groups if optimizer is not None else ()):
            self._scalar(f"learning_rate/{group}", float(values["lr"]), progress)
        for name, mask in masks.items():
            before = self._before.get(name, torch.ones_like(mask))
            self._scalar(f"mask_changes/{name}", int((mask != before).sum()), progress)
            self._before[name] = mask.clone()
        for name, weight in model.named_parameters():
            kept = weight.detach()[masks[name]] if name in masks else weight.new_empty(0)
            shown = kept[kept.abs() < LARGEST]
            if shown.numel():
                self._open().add_histogram(f"weights/{name}", shown, progress.epoch)
        self._open().flush()

    @hookimpl
    def on_train_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalar(self, name: str, value: float, progress: Progress) -> None:
        if self._folder is not None:
            self._open().add_scalar(name, value, progress.epoch)

    def _open(self) -> Any:
        """The writer, opened when there is something to write."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        return self._writer
