"""prunekit: compress a PyTorch network while it trains, under a schedule that says what to do and when."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.activations import INPUT as INPUT
    from prunekit.application import Application as Application
    from prunekit.bits import Bits as Bits, BitsQuantizer as BitsQuantizer
    from prunekit.chance import draws as draws, generator_at as generator_at
    from prunekit.components import (
        Context as Context,
        DropMasks as DropMasks,
        Effect as Effect,
        Integers as Integers,
        KeepMasks as KeepMasks,
        Levels as Levels,
        LossTerm as LossTerm,
        MaskChange as MaskChange,
        ModuleBits as ModuleBits,
        ModulesQuantized as ModulesQuantized,
        NonNegative as NonNegative,
        Origin as Origin,
        Pruner as Pruner,
        Quantizable as Quantizable,
        Quantizer as Quantizer,
        Regularizer as Regularizer,
        Selectors as Selectors,
        SetLearningRates as SetLearningRates,
        SetMasks as SetMasks,
        SetWeights as SetWeights,
        Sparsity as Sparsity,
        Targets as Targets,
        ZeroWeights as ZeroWeights,
    )
    from prunekit.curves import (
        CURVES as CURVES,
        Curve as Curve,
        FixedSparsity as FixedSparsity,
        GradualSparsity as GradualSparsity,
    )
    from prunekit.dynamic import (
        Distribution as Distribution,
        budgets as budgets,
        drop_lowest as drop_lowest,
        grow_highest as grow_highest,
        random_mask as random_mask,
    )
    from prunekit.errors import (
        ArgumentError as ArgumentError,
        PluginError as PluginError,
        Problem as Problem,
        PrunekitError as PrunekitError,
        ScheduleError as ScheduleError,
        StateError as StateError,
    )
    from prunekit.granularity import (
        Granularity as Granularity,
        Groups as Groups,
        Tiles as Tiles,
        Units as Units,
        fitting as fitting,
        granularities as granularities,
        granularity_of as granularity_of,
        groups_of as groups_of,
    )
    from prunekit.graph import (
        Activation as Activation,
        following_activations as following_activations,
        following_batchnorms as following_batchnorms,
        unwrapped as unwrapped,
    )
    from prunekit.hookspecs import hookimpl as hookimpl
    from prunekit.lock import Lock as Lock
    from prunekit.parameters import Parameters as Parameters, owners as owners, transposed as transposed
    from prunekit.plugins import Plugins as Plugins, load_plugins as load_plugins
    from prunekit.progress import Progress as Progress, Window as Window
    from prunekit.ranking import RankedPruner as RankedPruner
    from prunekit.ranks import RankSums as RankSums, together as together, wide as wide
    from prunekit.results import TrainingResult as TrainingResult
    from prunekit.schedule import ComponentSpec as ComponentSpec, PolicySpec as PolicySpec, Schedule as Schedule
    from prunekit.scheduler import CompressionScheduler as CompressionScheduler
    from prunekit.selection import (
        keep_n_of_m as keep_n_of_m,
        prune_count as prune_count,
        prune_lowest as prune_lowest,
        prune_smallest as prune_smallest,
        prune_smallest_together as prune_smallest_together,
    )
    from prunekit.trace import Trace as Trace
    from prunekit.training import train as train
    from prunekit.trust import Trust as Trust

__version__ = "0.1.0"

_HOMES = {
    "prunekit.components": (
        "Context DropMasks Effect Integers KeepMasks Levels LossTerm MaskChange ModuleBits ModulesQuantized "
        "NonNegative Origin Pruner Quantizable Quantizer Regularizer Selectors SetLearningRates SetMasks SetWeights "
        "Sparsity Targets ZeroWeights"
    ),
    "prunekit.errors": "ArgumentError PluginError Problem PrunekitError ScheduleError StateError",
    "prunekit.activations": "INPUT",
    "prunekit.chance": "draws generator_at",
    "prunekit.bits": "Bits BitsQuantizer",
    "prunekit.curves": "CURVES Curve FixedSparsity GradualSparsity",
    "prunekit.dynamic": "Distribution budgets drop_lowest grow_highest random_mask",
    "prunekit.graph": "Activation following_activations following_batchnorms unwrapped",
    "prunekit.granularity": "Granularity Groups Tiles Units fitting granularities granularity_of groups_of",
    "prunekit.ranking": "RankedPruner",
    "prunekit.ranks": "RankSums together wide",
    "prunekit.hookspecs": "hookimpl",
    "prunekit.lock": "Lock",
    "prunekit.parameters": "Parameters owners transposed",
    "prunekit.plugins": "Plugins load_plugins",
    "prunekit.progress": "Progress Window",
    "prunekit.schedule": "ComponentSpec PolicySpec Schedule",
    "prunekit.scheduler": "CompressionScheduler",
    "prunekit.selection": "keep_n_of_m prune_count prune_lowest prune_smallest prune_smallest_together",
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
