"""What several tests put on a bus: a listener that notes what it hears, an extension that returns what it is given."""

from __future__ import annotations

from typing import Any

import torch

from prunekit import Origin, Progress, hookimpl


class Dashboard:
    def __init__(self, fail: bool = False) -> None:
        self.fail, self.seen = fail, []

    @hookimpl
    def on_window_open(self, policy: Origin) -> None:
        self.seen.append(("open", policy.policy))

    @hookimpl
    def on_window_close(self, policy: Origin) -> None:
        self.seen.append(("close", policy.policy))

    @hookimpl
    def on_masks_changed(self, changes: Any, progress: Progress) -> None:
        if self.fail:
            raise RuntimeError("disk full")
        self.seen.append((progress.epoch, [(c.parameter, c.sparsity_after, c.origin.plugin) for c in changes]))

    @hookimpl
    def on_learning_rate_changed(self, before: Any, after: Any) -> None:
        self.seen.append(("lr", before, after))

    @hookimpl
    def on_state_saved(self, state: Any) -> None:
        self.seen.append(("saved", state["next_epoch"]))

    @hookimpl
    def on_state_restored(self, progress: Progress) -> None:
        self.seen.append(("restored", progress.epoch))


def rows(*gone: int) -> torch.Tensor:
    """A mask of fc1 that drops some of its rows."""
    mask = torch.ones(8, 12, dtype=torch.bool)
    mask[list(gone)] = False
    return mask


class Returns:
    """An extension that returns what it is given when epoch 0 begins."""

    def __init__(self, what: Any) -> None:
        self.what = what

    @hookimpl
    def on_epoch_begin(self, progress: Any) -> Any:
        return self.what if progress.epoch == 0 else None

    @hookimpl
    def before_backward_pass(self) -> Any:
        return self.what
