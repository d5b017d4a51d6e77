"""prunekit: compress a PyTorch network while it trains, under a schedule that says what to do and when."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.application import Application as Application
    from prunekit.components import (
        Context as Context,
        DropMasks as DropMasks,
        Effect as Effect,
        KeepMasks as KeepMasks,
        LossTerm as LossTerm,
        MaskChange as MaskChange,
        ModulesQuantized as ModulesQuantized,
        NonNegative as NonNegative,
        Origin as Origin,
        Pruner as Pruner,
        Quantizer as Quantizer,
        Regularizer as Regularizer,
        Selectors as Selectors,
        SetLearningRates as SetLearningRates,
        SetMasks as SetMasks,
        Sparsity as Sparsity,
        Targets as Targets,
        ZeroWeights as ZeroWeights,
    )
    from prunekit.errors import (
        ArgumentError as ArgumentError,
        PluginError as PluginError,
        Problem as Problem,
        PrunekitError as PrunekitError,
        ScheduleError as ScheduleError,
        StateError as StateError,
    )
    from prunekit.granularity import Granularity as Granularity, granularities as granularities
    from prunekit.hookspecs import hookimpl as hookimpl
    from prunekit.lock import Lock as Lock
    from prunekit.plugins import Plugins as Plugins, load_plugins as load_plugins
    from prunekit.progress import Progress as Progress, Window as Window
    from prunekit.results import TrainingResult as TrainingResult
    from prunekit.schedule import ComponentSpec as ComponentSpec, PolicySpec as PolicySpec, Schedule as Schedule
    from prunekit.scheduler import CompressionScheduler as CompressionScheduler
    from prunekit.selection import (
        prune_count as prune_count,
        prune_lowest as prune_lowest,
        prune_smallest as prune_smallest,
    )
    from prunekit.trace import Trace as Trace
    from prunekit.training import train as train
    from prunekit.trust import Trust as Trust

__version__ = "0.1.0"

_HOMES = {
    "prunekit.components": (
        "Context DropMasks Effect KeepMasks LossTerm MaskChange ModulesQuantized NonNegative Origin "
        "Pruner Quantizer Regularizer Selectors SetLearningRates SetMasks Sparsity Targets ZeroWeights"
    ),
    "prunekit.errors": "ArgumentError PluginError Problem PrunekitError ScheduleError StateError",
    "prunekit.granularity": "Granularity granularities",
    "prunekit.hookspecs": "hookimpl",
    "prunekit.lock": "Lock",
    "prunekit.plugins": "Plugins load_plugins",
    "prunekit.progress": "Progress Window",
    "prunekit.schedule": "ComponentSpec PolicySpec Schedule",
    "prunekit.scheduler": "CompressionScheduler",
    "prunekit.selection": "prune_count prune_lowest prune_smallest",
    "prunekit.trace": "Trace",
    "prunekit.application": "Application",
    "prunekit.training": "train",
    "prunekit.trust": "Trust",
    "prunekit.results": "TrainingResult",
}
"""Where each public name lives. A name is imported when it is first asked for: `prunekit --help` needs no torch."""

__all__ = sorted(name for names in _HOMES.values() for name in names.split())


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names.split():
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module 'prunekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
