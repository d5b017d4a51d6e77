"""What a run is asked to do: the options given, what a resumed run remembers, and the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli.console import print_error, usage_error

if TYPE_CHECKING:
    from prunekit.schedule.schedule import Schedule

_SAVED = ("schedule", "app", "epochs", "seed", "device", "trace_level", "dense_baseline", "allow_plugins", "locked")
_DEFAULTS = {"seed": 0, "trace_level": "info", "dense_baseline": False}


@dataclass(frozen=True)
class RunOptions:
    """What a run is asked to do."""

    schedule: Schedule | Path
    app: str
    epochs: int
    seed: int
    device: str | None
    trace_level: Any
    dense_baseline: bool
    allow_plugins: str | None
    locked: str | None
    run_dir: Path
    resume: bool
    masks_from: Path | None
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """What the checkpoint keeps of it, so that `--resume` needs nothing else."""
        return {**{key: getattr(self, key) for key in _SAVED}, "schedule": self.name}


def run_options(options: dict[str, Any]) -> RunOptions:
    """The run that the command's options ask for, checked as far as that needs no application.

    Raises:
        SystemExit: something is missing or can't be; that has been said.
    """
    given = {key: value for key, value in options.items() if value is not None}
    folder, saved = given.get("resume"), {}
    if folder is not None and "run_dir" in given:
        raise usage_error("--resume goes on in its own folder: give no --run-dir")
    if folder is not None and "masks_from" in given:
        raise usage_error("--resume goes on with the masks of its checkpoint: give no --masks-from")
    if folder is not None:
        from prunekit.schedule.schedule import Schedule
        from prunekit.training.checkpoint import load_checkpoint

        # `mmap`, because only the settings and the schedule are wanted here: no tensor is read.
        checkpoint = load_checkpoint(folder, mmap=True)
        saved = {key: value for key, value in checkpoint["settings"].items() if value is not None}
        if "schedule" not in given:
            given["schedule"] = Schedule.from_text(checkpoint["scheduler"]["schedule"], str(folder))
    merged = {**dict.fromkeys(_SAVED), **_DEFAULTS, **saved, **given}
    for key, what in (("schedule", "SCHEDULE"), ("app", "--app")):
        if merged[key] is None:
            raise usage_error(f"{what} is missing")
    schedule, factor = merged["schedule"], given.get("scale_epochs")
    name = str(schedule) if isinstance(schedule, Path) else saved.get("schedule", str(folder))
    if factor is not None:
        schedule = _scaled(schedule, factor)
    run_dir = folder or given.get("run_dir") or _new_run_dir(Path(name))
    chosen = {**{key: merged[key] for key in _SAVED}, "schedule": schedule, "name": name}
    chosen["locked"] = chosen["locked"] and str(chosen["locked"])
    chosen["epochs"] = chosen["epochs"] or _default_epochs(schedule, chosen["app"], chosen["seed"])
    _check_device(chosen["device"])
    return RunOptions(**chosen, run_dir=run_dir, resume=folder is not None, masks_from=given.get("masks_from"))


def _scaled(schedule: Schedule | Path, factor: float) -> Schedule:
    """The schedule for a run `factor` times as long; what is wrong with it is told when the run is about to begin."""
    from prunekit.schedule.schedule import parse
    from prunekit.schedule.yaml_source import Source

    if not isinstance(schedule, Path):
        raise usage_error("--resume goes on with the schedule as it was scaled: give no --scale-epochs")
    scaled = parse(Source.from_file(schedule)).scaled(factor)
    timed = sorted({spec.class_name for spec in scaled.components if spec.kind == "lr_scheduler"})
    if timed:
        print_error(f"epochs scaled by {factor:g}; the arguments of {', '.join(timed)} are as written")
    return scaled


def _new_run_dir(schedule: Path) -> Path:
    base = Path("runs") / f"{schedule.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (base.with_name(f"{base.name}-{number}") for number in range(2, 10_000))
    return base if not base.exists() else next(path for path in others if not path.exists())


def _default_epochs(schedule: Schedule | Path, app: str, seed: int) -> int:
    from prunekit.cli.application import load_application
    from prunekit.schedule.schedule import Schedule, parse
    from prunekit.schedule.yaml_source import Source
    from prunekit.training.train import default_epochs

    parsed = schedule if isinstance(schedule, Schedule) else parse(Source.from_file(schedule))
    # How many steps an epoch has only the application can tell; it is made anew for the run.
    in_steps = any(policy.window.in_steps for policy in parsed.policies)
    epochs = default_epochs(parsed, load_application(app, seed).steps_per_epoch if in_steps else 0)
    if epochs is None and not parsed.problems():
        raise usage_error("the schedule has no policy that says how long to train: give --epochs")
    return epochs or 1  # with problems: they are all told when the run is about to begin


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise usage_error(f"--device {device!r} can't be used: {str(error).splitlines()[0]}") from None
