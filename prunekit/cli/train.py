"""`prunekit train`: train an application's model under a schedule."""

from __future__ import annotations

import shlex
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from prunekit.cli.application import load_application
from prunekit.cli.console import FAILED, INTERRUPTED, complain, errors_shown, misuse

if TYPE_CHECKING:
    from prunekit.schedule import Schedule
    from prunekit.training import Baseline, TrainingResult

_SAVED = ("schedule", "app", "epochs", "seed", "device", "trace_level", "dense_baseline")
_DEFAULTS = {"seed": 0, "trace_level": "info", "dense_baseline": False}


@dataclass(frozen=True)
class Wanted:
    """What a run is asked to do."""

    schedule: Schedule | Path
    app: str
    epochs: int | None
    seed: int
    device: str | None
    trace_level: Any
    dense_baseline: bool
    run_dir: Path
    resume: bool
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """What the checkpoint keeps of it, so that `--resume` needs nothing else."""
        return {**{key: getattr(self, key) for key in _SAVED}, "schedule": self.name}


@click.command()
@click.argument("schedule", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--app", metavar="MODULE:FUNCTION", help="What gives the prunekit.Application to train.")
@click.option("--epochs", type=click.IntRange(min=1), help="Default: the end of the last policy that compresses.")
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
            _run(_wanted(options))
    except KeyboardInterrupt:
        complain("interrupted")
        raise SystemExit(INTERRUPTED) from None


def _wanted(options: dict[str, Any]) -> Wanted:
    given = {key: value for key, value in options.items() if value is not None}
    folder, saved = given.get("resume"), {}
    if folder is not None and "run_dir" in given:
        raise misuse("--resume goes on in its own folder: give no --run-dir")
    if folder is not None:
        from prunekit.schedule import Schedule
        from prunekit.training import load_checkpoint

        checkpoint = load_checkpoint(folder, mmap=True)
        saved = {key: value for key, value in checkpoint["settings"].items() if value is not None}
        if "schedule" not in given:
            given["schedule"] = Schedule.from_text(checkpoint["scheduler"]["schedule"], str(folder))
    merged = {**dict.fromkeys(_SAVED), **_DEFAULTS, **saved, **given}
    for key, what in (("schedule", "SCHEDULE"), ("app", "--app")):
        if merged[key] is None:
            raise misuse(f"{what} is missing")
    schedule = merged["schedule"]
    name = str(schedule) if isinstance(schedule, Path) else saved.get("schedule", str(folder))
    run_dir = folder or given.get("run_dir") or _new_run_dir(Path(name))
    wanted = {**{key: merged[key] for key in _SAVED}, "name": name}
    return Wanted(**wanted, run_dir=run_dir, resume=folder is not None)


def _new_run_dir(schedule: Path) -> Path:
    base = Path("runs") / f"{schedule.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (base.with_name(f"{base.name}-{number}") for number in range(2, 10_000))
    return base if not base.exists() else next(path for path in others if not path.exists())


def _run(wanted: Wanted) -> None:
    from prunekit.cli.report import report

    wanted = replace(wanted, epochs=wanted.epochs or _default_epochs(wanted.schedule))
    _check_device(wanted.device)
    result = _train(wanted, wanted.schedule, wanted.run_dir, resume=wanted.resume)
    if wanted.dense_baseline:
        result = replace(result, dense=_twin(wanted))
        result.write()
    report(result)


def _default_epochs(schedule: Schedule | Path) -> int:
    from prunekit.errors import ScheduleError
    from prunekit.schedule import Schedule, parse
    from prunekit.source import Source
    from prunekit.training import default_epochs

    parsed, problems = (schedule, []) if isinstance(schedule, Schedule) else parse(Source.from_file(schedule))
    epochs = default_epochs(parsed)
    if epochs is None and problems:
        raise ScheduleError(problems)
    if epochs is None:
        raise misuse("the schedule has no policy that says how long to train: give --epochs")
    return epochs


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise misuse(f"--device {device!r} can't be used: {str(error).splitlines()[0]}") from None


def _train(
    wanted: Wanted, schedule: Schedule | Path, run_dir: Path, *, resume: bool, label: str = ""
) -> TrainingResult:
    from prunekit.cli.progress import Display
    from prunekit.errors import PrunekitError
    from prunekit.training import TrainingInterrupted
    from prunekit.training import train as run

    application, epochs = load_application(wanted.app, wanted.seed), wanted.epochs or 1
    with Display(epochs, label) as display:
        try:
            return run(
                application,
                schedule,
                epochs,
                run_dir=run_dir,
                seed=wanted.seed,
                device=wanted.device,
                trace_level=wanted.trace_level,
                resume=resume,
                settings=wanted.settings,
                on_epoch=display.on_epoch,
                on_minibatch=display.on_minibatch if display.live else None,
                on_warning=display.on_warning if not label else lambda text: None,
            )
        except TrainingInterrupted as interrupt:
            display.stop()
            where = f"epoch {interrupt.epoch}" + (f", mini-batch {interrupt.minibatch}" * (interrupt.minibatch >= 0))
            complain(f"{label}interrupted in {where}: {interrupt.epochs_done} of {epochs} epochs are complete")
            _say_how_to_resume(wanted.run_dir)
            raise SystemExit(INTERRUPTED) from None
        except PrunekitError:
            raise
        except Exception as error:
            display.stop()
            complain(traceback.format_exc(), f"{label}failed: {type(error).__name__}: {error}")
            _say_how_to_resume(wanted.run_dir)
            raise SystemExit(FAILED) from None


def _twin(wanted: Wanted) -> Baseline:
    """The dense model: the same application, seed and epochs, under the schedule's learning rates alone."""
    from prunekit.schedule import Schedule
    from prunekit.training import CHECKPOINT, Baseline, dense_schedule

    schedule = wanted.schedule if isinstance(wanted.schedule, Schedule) else Schedule.from_yaml(wanted.schedule)
    folder = wanted.run_dir / "dense"
    resume = (folder / CHECKPOINT).exists()
    result = _train(wanted, dense_schedule(schedule), folder, resume=resume, label="dense twin, ")
    return Baseline(result.loss, result.accuracy, None)


def _say_how_to_resume(run_dir: Path) -> None:
    from prunekit.training import CHECKPOINT

    if (run_dir / CHECKPOINT).exists():
        folder = shlex.quote(str(run_dir))
        complain(f"read its trace: prunekit trace {folder}", f"continue it: prunekit train --resume {folder}")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
