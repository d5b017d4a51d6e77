"""`prunekit quantize`: quantize a trained model without training it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from prunekit.cli.console import errors_shown, new_table, print_error, print_table, usage_error
from prunekit.cli.runs import application_of, settings_of, trust_in
from prunekit.cli.trust import trust_options

if TYPE_CHECKING:
    from prunekit.training.results import TrainingResult


@click.command()
@click.argument(
    "paths", metavar="[RUN] SCHEDULE", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--app", metavar="MODULE:FUNCTION", help="Whose model to quantize. Default: the one that RUN has trained."
)
@click.option("--batches", type=click.IntRange(min=1), default=8, show_default=True, help="How many to look at.")
@click.option("--run-dir", type=click.Path(file_okay=False, path_type=Path), help="Default: RUN-SCHEDULE.")
@trust_options
def quantize(
    paths: tuple[Path, ...],
    app: str | None,
    batches: int,
    run_dir: Path | None,
    allow_plugins: str | None,
    locked: Path | None,
) -> None:
    """Quantize the model of RUN by the quantizers of SCHEDULE, and show how good it is before and after.

    Nothing is trained: some training batches are looked at. The new folder is a run, for `prunekit export`. Without RUN
    the model is taken as the application gives it. Whatever else SCHEDULE says, such as its epochs, does not count.
    """
    run, schedule = _run_and_schedule(paths)
    with errors_shown():
        given = {"app": app, "allow_plugins": allow_plugins, "locked": locked and str(locked)}
        settings = given if run is None else settings_of(run, **given)
        folder = run_dir or _default_folder(run, schedule)
        result = _quantize(run, schedule, folder, batches, settings)
    _report(result, batches)
    click.echo(f"run: {folder}")
    click.echo(f"export it: prunekit export {shlex.quote(str(folder))} --to onnx")


def _run_and_schedule(paths: tuple[Path, ...]) -> tuple[Path | None, Path]:
    *runs, schedule = paths
    if len(runs) > 1 or not schedule.is_file() or any(not run.is_dir() for run in runs):
        raise usage_error("expected the folder of a run, if there is one, and the file of a schedule")
    return (runs[0] if runs else None), schedule


def _default_folder(run: Path | None, schedule: Path) -> Path:
    return Path("runs") / schedule.stem if run is None else run.with_name(f"{run.resolve().name}-{schedule.stem}")


def _quantize(run: Path | None, schedule: Path, folder: Path, batches: int, settings: dict[str, Any]) -> TrainingResult:
    from prunekit.export.runs import restored_run
    from prunekit.training.checkpoint import load_checkpoint
    from prunekit.training.post_training import quantize as quantize_it

    application, trust = application_of(settings), trust_in(settings)
    trained = None if run is None else restored_run(load_checkpoint(run), application, str(run), trust)
    return quantize_it(
        application,
        schedule,
        trained=trained,
        batches=batches,
        run_dir=folder,
        trust=trust,
        settings={**settings, "schedule": str(schedule)},
        on_warning=lambda text: print_error(f"warning: {text}"),
    )


def _report(result: TrainingResult, batches: int) -> None:
    """The bits of each module, and what became of the accuracy, or of the loss."""
    from prunekit.trace import read

    assert result.trace is not None
    assert result.dense is not None
    told = [line for line in read(result.trace) if line["event"] == "modules quantized"]
    table = new_table("module", "weights", "activations", "bias", right=("weights", "activations", "bias"))
    for module, bits in ((module, bits) for line in told for module, bits in line["bits"].items()):
        table.add_row(module, *(str(bits.get(part) or "-") for part in ("weights", "activations", "bias")))
    print_table(table)
    what = "loss" if result.accuracy is None else "accuracy"
    before, after = (r.loss if r.accuracy is None else r.accuracy for r in (result.dense, result))
    style = ".4f" if result.accuracy is None else ".2%"
    click.echo(f"\n{what} of the float model: {before:{style}}")
    click.echo(f"{what} quantized: {after:{style}} (ranges from {batches} training batches)")
