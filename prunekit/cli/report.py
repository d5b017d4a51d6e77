"""What is shown when a run has ended: what became of each parameter, by whose hand, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from prunekit.cli.console import fits_terminal, new_table, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from prunekit.training.results import Baseline, Best, Change, ParameterResult, TrainingResult

_COLUMNS = ("parameter", "shape", "dense", "non-zero", "sparsity", "by", "epochs")


def report(result: TrainingResult) -> None:
    """Print it all."""
    click.echo()
    hands = list(dict.fromkeys(_by(change) for parameter in result.parameters for change in parameter.changes))
    table = parameters(result, {hand: hand for hand in hands})
    short = {hand: f"[{number}]" for number, hand in enumerate(hands, 1)}
    print_table(table if fits_terminal(table) else parameters(result, short))
    click.echo()
    for line in [] if fits_terminal(table) else [f"{number} {hand}" for hand, number in short.items()]:
        click.echo(line)
    for line in summary(result):
        click.echo(line)


def parameters(result: TrainingResult, hands: Mapping[str, str]) -> Table:
    """Weights and whatever was pruned, one a row; the other parameters in one; totals.

    `hands` says how to write by whose hand something was pruned.
    """
    table = new_table(*_COLUMNS, right=("dense", "non-zero", "sparsity"))
    shown = [parameter for parameter in result.parameters if _is_shown(parameter)]
    others = [parameter for parameter in result.parameters if not _is_shown(parameter)]
    for parameter in shown:
        shape = "x".join(map(str, parameter.shape)) or "scalar"
        by, epochs = [hands[_by(c)] for c in parameter.changes], [_epochs(change) for change in parameter.changes]
        table.add_row(parameter.name, shape, *_counts([parameter]), "\n".join(by) or "-", "\n".join(epochs))
    if others:
        table.add_row(f"{len(others)} others", "", *_counts(others), "-", "")
    table.add_section()
    table.add_row(f"pruned ({len(result.pruned)})", "", *_counts(result.pruned), "", "")
    table.add_row(f"all ({len(result.parameters)})", "", *_counts(result.parameters), "", "")
    return table


def summary(result: TrainingResult) -> list[str]:
    """Accuracy (or loss), dense and pruned, time, and where the trace lies."""
    what = "loss" if result.accuracy is None else "accuracy"
    lines = [f"dense {what}: {_dense(result.dense)}", f"pruned {what}: {_value(result.loss, result.accuracy)}"]
    if result.stage == "partial":
        lines[-1] += " (partial: training has ended before a window has)"
    if result.best is not None:
        lines.append(f"best {what}: {_best(result.best)}")
    lines += [f"warning: {ending}" for ending in result.endings]
    lines.append(f"wall time: {result.seconds:.1f} s")
    if result.trace is not None:
        lines.append(f"trace: {result.trace}")
    return lines


def _is_shown(parameter: ParameterResult) -> bool:
    return bool(parameter.changes) or len(parameter.shape) > 1


def _dense(dense: Baseline | None) -> str:
    if dense is None:
        return "n/a, pruning began at epoch 0; use --dense-baseline"
    how = "a twin trained without pruning" if dense.epoch is None else f"epoch {dense.epoch}, the last before pruning"
    return f"{_value(dense.loss, dense.accuracy)} ({how})"


def _best(best: Best) -> str:
    where = "" if best.path is None else f": {best.path}"
    return f"{_value(best.loss, best.accuracy)} (epoch {best.epoch}, {best.stage}{where})"


def _value(loss: float, accuracy: float | None) -> str:
    return f"{loss:.4f}" if accuracy is None else f"{accuracy:.2%}"


def _counts(chosen: Sequence[ParameterResult]) -> tuple[str, str, str]:
    from prunekit.training.results import sparsity_of

    dense, nonzero = sum(p.dense for p in chosen), sum(p.nonzero for p in chosen)
    return f"{dense:,}", f"{nonzero:,}", f"{sparsity_of(chosen):.4f}"


def _by(change: Change) -> str:
    return f"{change.component} ({change.plugin} {change.version}".rstrip() + ")"


def _epochs(change: Change) -> str:
    if change.first_epoch == change.last_epoch:
        return str(change.first_epoch)
    return f"{change.first_epoch}-{change.last_epoch}"
