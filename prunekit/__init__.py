"""prunekit: compress a PyTorch network while it trains, under a schedule that says what to do and when."""

from prunekit.components import (
    Context,
    DropMasks,
    Effect,
    KeepMasks,
    LossTerm,
    MaskChange,
    ModulesQuantized,
    NonNegative,
    Origin,
    Pruner,
    Regularizer,
    Selectors,
    SetLearningRates,
    SetMasks,
    Sparsity,
    Targets,
    ZeroWeights,
)
from prunekit.errors import ArgumentError, PluginError, Problem, PrunekitError, ScheduleError, StateError
from prunekit.granularity import Granularity, granularities
from prunekit.hookspecs import hookimpl
from prunekit.progress import Progress, Window
from prunekit.schedule import ComponentSpec, PolicySpec, Schedule
from prunekit.scheduler import CompressionScheduler
from prunekit.selection import prune_count, prune_lowest
from prunekit.trace import Trace
from prunekit.training import Application, train

__version__ = "0.1.0"

__all__ = [
    "Application",
    "ArgumentError",
    "ComponentSpec",
    "CompressionScheduler",
    "Context",
    "DropMasks",
    "Effect",
    "Granularity",
    "KeepMasks",
    "LossTerm",
    "MaskChange",
    "ModulesQuantized",
    "NonNegative",
    "Origin",
    "PluginError",
    "PolicySpec",
    "Problem",
    "Progress",
    "PrunekitError",
    "Pruner",
    "Regularizer",
    "Schedule",
    "ScheduleError",
    "Selectors",
    "SetLearningRates",
    "SetMasks",
    "Sparsity",
    "StateError",
    "Targets",
    "Trace",
    "Window",
    "ZeroWeights",
    "granularities",
    "hookimpl",
    "prune_count",
    "prune_lowest",
    "train",
]
