"""The names that `prunekit` offers, each from the room where it lives."""

# `X as X` is how type checkers and linters are told that a name is offered, not merely used here.
from prunekit.components.loss_term import LossComponent as LossComponent, PolicyLoss as PolicyLoss
from prunekit.components.origin import MaskChange as MaskChange, Origin as Origin
from prunekit.errors import (
    ApplicationError as ApplicationError,
    ArgumentError as ArgumentError,
    PluginError as PluginError,
    Problem as Problem,
    PrunekitError as PrunekitError,
    ScheduleError as ScheduleError,
    StateError as StateError,
)
from prunekit.hookspecs import hookimpl as hookimpl
from prunekit.plugins.loading import Plugins as Plugins, load_plugins as load_plugins
from prunekit.plugins.lock import Lock as Lock
from prunekit.plugins.trust import Trust as Trust
from prunekit.progress import Progress as Progress, Window as Window
from prunekit.schedule.schedule import Schedule as Schedule
from prunekit.schedule.specs import ComponentSpec as ComponentSpec, PolicySpec as PolicySpec
from prunekit.scheduler import CompressionScheduler as CompressionScheduler
from prunekit.trace import Trace as Trace
from prunekit.training.application import Application as Application
from prunekit.training.loop import TrainingInterrupted as TrainingInterrupted
from prunekit.training.results import TrainingResult as TrainingResult
from prunekit.training.train import train as train
