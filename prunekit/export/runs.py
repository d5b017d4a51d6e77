"""A run's folder -> its model as the run has left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import ApplicationError, PrunekitError, StateError
from prunekit.export.compressed import Compressed, compressed
from prunekit.export.measure import state_bytes
from prunekit.plugins.loading import load_plugins
from prunekit.plugins.trust import Trust
from prunekit.schedule.schedule import Schedule
from prunekit.scheduler import CompressionScheduler
from prunekit.trace import Trace
from prunekit.training.application import Application, device_of, scheduler_of, to_device
from prunekit.training.average import put_into
from prunekit.training.checkpoint import load_checkpoint
from prunekit.training.complaints import must_be_pair, place_of
from prunekit.training.losses import go_forward


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
    trace, plugins = Trace(level="error", logger=None), load_plugins(trust)
    scheduler = scheduler_of(schedule, application, trace=trace, plugins=plugins)
    try:
        application.model.load_state_dict(checkpoint["model"])
        put_into(application.model, checkpoint["average"] or {})
    except RuntimeError as error:
        raise StateError(f"the checkpoint does not fit the application: {error}") from error
    scheduler.load_state_dict(checkpoint["scheduler"])
    return scheduler


def first_inputs(application: Application) -> Any:
    """The first batch to evaluate on, where the model is."""
    device = device_of(application.model)
    for batch in application.test_loader:
        if application.step is None:
            return to_device(must_be_pair(batch, "test_loader")[0], device)
        return _seen(application, batch, device)
    raise PrunekitError("the application's test_loader is empty: there is nothing to try the model on")


@torch.no_grad()
def _seen(application: Application, batch: Any, device: torch.device) -> Any:
    """What `step` gives to the model."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = application.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        go_forward(application, batch, device, "test_loader")
    finally:
        hook.remove()
    if not calls or len(calls[0][0]) != 1 or calls[0][1]:
        what = "must call the model with one positional argument for it to be exported"
        raise ApplicationError("step", what, place_of(application.step))
    return calls[0][0][0]
