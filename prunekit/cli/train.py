"""`prunekit train`: train an application's model under a schedule."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from prunekit.cli.application import complaint_about, load_application
from prunekit.cli.console import FAILED, INTERRUPTED, TRACEBACK, errors_shown, print_error, print_traceback
from prunekit.cli.run_options import RunOptions, run_options
from prunekit.cli.trust import trust_of, trust_options, warn_of_unknown_disabled_names

if TYPE_CHECKING:
    from prunekit.schedule.schedule import Schedule
    from prunekit.training.results import Baseline, TrainingResult


@click.command()
@click.argument("schedule", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--app", metavar="MODULE:FUNCTION", help="What gives the prunekit.Application to train.")
@click.option("--epochs", type=click.IntRange(min=1), help="Default: the end of the last policy that compresses.")
@click.option(
    "--scale-epochs",
    type=click.FloatRange(min=0, min_open=True),
    metavar="FACTOR",
    help="Scale every policy's window, 0.1: a tenth as long. What components say in epochs stays. Default: 1.",
)
@click.option("--run-dir", type=click.Path(file_okay=False, path_type=Path), help="Default: runs/SCHEDULE-TIME.")
@click.option("--seed", type=int, help="Of all random numbers, and given to the application. Default: 0.")
@click.option("--device", help="cpu, cuda, … Default: where the application puts its model.")
@click.option("--trace-level", type=click.Choice(["info", "debug"]), help="debug: a line for each hook. Default: info.")
@click.option(
    "--dense-baseline/--no-dense-baseline",
    default=None,
    help="Also train a twin with the schedule's learning rates alone, to compare with. Default: no.",
)
@click.option(
    "--masks-from",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN_DIR",
    help="Enforce another run's masks until the schedule sets others. Weights come from the application.",
)
@trust_options
@click.option(
    "--resume",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN_DIR",
    help="Continue a run from its checkpoint; what is not given anew is as it was.",
)
def train(**options: Any) -> None:
    """Train a model under SCHEDULE, and show what became of its parameters.

    Ctrl-C stops the run; --resume continues it as if it had never stopped.
    """
    try:
        with _terminated_like_interrupted(), errors_shown():
            _run(run_options(options))
    except KeyboardInterrupt:
        print_error("interrupted")
        raise SystemExit(INTERRUPTED) from None


def _run(options: RunOptions) -> None:
    from prunekit.cli.report import report

    warn_of_unknown_disabled_names()
    result = _train(options, options.schedule, options.run_dir, resume=options.resume, masks_from=options.masks_from)
    if options.dense_baseline:
        result = replace(result, dense=_dense_twin(options))
        result.write()
    report(result)


def _train(
    options: RunOptions,
    schedule: Schedule | Path,
    run_dir: Path,
    *,
    resume: bool,
    masks_from: Path | None = None,
    label: str = "",
) -> TrainingResult:
    from prunekit.cli.display import Display
    from prunekit.errors import PrunekitError
    from prunekit.training.complaints import complaint
    from prunekit.training.loop import TrainingInterrupted
    from prunekit.training.train import train as run

    application, epochs = load_application(options.app, options.seed), options.epochs
    with Display(epochs, label) as display:
        try:
            return run(
                application,
                schedule,
                epochs,
                run_dir=run_dir,
                seed=options.seed,
                device=options.device,
                trace_level=options.trace_level,
                resume=resume,
                masks_from=masks_from,
                trust=trust_of(options.allow_plugins, options.locked),
                settings=options.settings,
                on_epoch=display.on_epoch,
                on_minibatch=display.on_minibatch if display.live else None,
                on_warning=display.on_warning if not label else lambda text: None,
            )
        except TrainingInterrupted as interrupt:
            display.stop()
            where = f"epoch {interrupt.epoch}" + (f", mini-batch {interrupt.minibatch}" * (interrupt.minibatch >= 0))
            print_error(f"{label}interrupted in {where}: {interrupt.epochs_done} of {epochs} epochs are complete")
            _print_how_to_resume(options.run_dir)
            raise SystemExit(INTERRUPTED) from None
        except Exception as error:
            display.stop()
            if wrong := complaint(error):
                print_traceback()
                said = complaint_about(options.app, wrong)
                print_error(f"{label}{said}", *([] if wrong is error else _where_is_all(run_dir)))
            elif isinstance(error, PrunekitError):
                raise
            else:
                print_error(traceback.format_exc(), f"{label}failed: {type(error).__name__}: {error}")
                _print_how_to_resume(options.run_dir)
            raise SystemExit(FAILED) from None


def _where_is_all(run_dir: Path) -> list[str]:
    """Where the traceback of an application is; a run that came to nothing has left no trace."""
    from prunekit.trace import FILE_NAME

    if (run_dir / FILE_NAME).exists():
        return [f"its traceback: prunekit trace {shlex.quote(str(run_dir))} --level error"]
    return [] if os.environ.get(TRACEBACK) else [f"its traceback: {TRACEBACK}=1 shows it"]


def _dense_twin(options: RunOptions) -> Baseline:
    """The dense model: the same application, seed and epochs, under the schedule's learning rates alone."""
    from prunekit.schedule.schedule import Schedule
    from prunekit.training.checkpoint import CHECKPOINT
    from prunekit.training.results import Baseline
    from prunekit.training.train import dense_schedule

    schedule = options.schedule if isinstance(options.schedule, Schedule) else Schedule.from_yaml(options.schedule)
    folder = options.run_dir / "dense"
    resume = (folder / CHECKPOINT).exists()
    result = _train(options, dense_schedule(schedule), folder, resume=resume, label="dense twin, ")
    return Baseline(result.loss, result.accuracy, None)


def _print_how_to_resume(run_dir: Path) -> None:
    from prunekit.training.checkpoint import CHECKPOINT

    if (run_dir / CHECKPOINT).exists():
        folder = shlex.quote(str(run_dir))
        print_error(f"read its trace: prunekit trace {folder}", f"continue it: prunekit train --resume {folder}")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    # Python lets no other thread say what a signal does.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
