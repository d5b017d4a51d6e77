"""A run's folder -> its model as the run has left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError, StateError
from prunekit.export.compressed import Compressed, compressed
from prunekit.export.measure import state_bytes
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.trust import Trust
from prunekit.schedule.schedule import Schedule
from prunekit.scheduler import CompressionScheduler
from prunekit.trace import Trace
from prunekit.training.application import Application, device_of, to_device
from prunekit.training.checkpoint import load_checkpoint


@contextmanager
def compressed_run(
    run_dir: str | Path, application: Application | Callable[[], Application], *, trust: Trust | None = None
) -> Iterator[Compressed]:
    """The model of a run, from its last checkpoint.

    Args:
        run_dir: the run's folder.
        application: the one that was trained; its model is changed.
        trust: which plugins may be loaded; all that are installed, by default.

    Raises:
        StateError: there is no run, or it does not fit the application.
    """
    made = application if isinstance(application, Application) else application()
    dense = state_bytes(made.model)
    scheduler = restored_run(load_checkpoint(run_dir), made, str(run_dir), trust)
    with compressed(scheduler, first_inputs(made), dense=dense) as model:
        yield model


def restored_run(
    checkpoint: dict[str, Any], application: Application, place: str, trust: Trust | None = None
) -> CompressionScheduler:
    """A run's scheduler and its application's model as the checkpoint has them."""
    schedule = Schedule.from_text(checkpoint["scheduler"]["schedule"], place)
    scheduler = CompressionScheduler(
        schedule,
        application.model,
        application.optimizer,
        trace=Trace(level="error", logger=None),
        plugins=load_plugins(trust),
    )
    try:
        application.model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise StateError(f"the checkpoint does not fit the application: {error}") from error
    scheduler.load_state_dict(checkpoint["scheduler"])
    return scheduler


def first_inputs(application: Application) -> Any:
    """The first batch to evaluate on, where the model is."""
    for inputs, _ in application.test_loader:
        return to_device(inputs, device_of(application.model))
    raise PrunekitError("the application's test_loader is empty: there is nothing to try the model on")
