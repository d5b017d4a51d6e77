"""LR schedulers: what a schedule may say of their policies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LRSchedulerArguments:
    """The `args` of an LR scheduler's policy."""

    relative: bool = False
