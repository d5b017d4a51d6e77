"""`prunekit validate`: everything that is wrong with a schedule, at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from prunekit.cli.application import load_application
from prunekit.cli.console import FAILED, errors_shown, print_error
from prunekit.cli.trust import trust_of, trust_options, warn_of_unknown_disabled_names

if TYPE_CHECKING:
    from prunekit.errors import Problem
    from prunekit.plugins.loading import Plugins
    from prunekit.schedule.schedule import Schedule
    from prunekit.training.application import Application

Finding = tuple[str, "Problem"]
"""A problem and how severe it is: 'error' or 'warning'."""


@click.command()
@click.argument(
    "schedules",
    metavar="SCHEDULE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--app", metavar="MODULE:FUNCTION", help="Whose model and optimizer the schedule must fit.")
@click.option("--epochs", type=click.IntRange(min=1), help="The length of the run: every policy must act within it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Given to the application.")
@trust_options
@click.option("--json", "as_json", is_flag=True, help="A list of file, line, column, path, message, severity.")
def validate(
    schedules: tuple[Path, ...],
    app: str | None,
    epochs: int | None,
    seed: int,
    allow_plugins: str | None,
    locked: Path | None,
    as_json: bool,
) -> None:
    """Show all that is wrong with each SCHEDULE, and train nothing.

    The exit code is 0 if there is no error (warnings are no errors), else 1.
    """
    from prunekit.plugins.loading import load_plugins

    with errors_shown():
        plugins = load_plugins(trust_of(allow_plugins, locked))
    warn_of_unknown_disabled_names()
    print_error(*(f"warning: {listener.reason}" for listener in plugins.broken))
    application = None if app is None else load_application(app, seed)
    checked = [check(schedule, plugins, application, epochs) for schedule in schedules]
    findings = [finding for _, found in checked for finding in found]
    if as_json:
        click.echo(json.dumps([_plain(severity, problem) for severity, problem in findings], indent=2))
    else:
        for path, (parsed, found) in zip(schedules, checked, strict=True):
            for severity, problem in found:
                click.echo(_line(severity, problem))
            click.echo(f"{path}: " * (len(schedules) > 1) + _verdict(parsed, found))
    if application is None:
        click.echo("without --app nothing that depends on the model was checked", err=as_json)
    if any(severity == "error" for severity, _ in findings):
        raise SystemExit(FAILED)


def check(
    path: Path, plugins: Plugins, application: Application | None, epochs: int | None
) -> tuple[Schedule, list[Finding]]:
    """A schedule as far as it can be read, and what is wrong with it, in the order of the file."""
    from prunekit.engine.building.build import build
    from prunekit.schedule.schedule import parse
    from prunekit.schedule.yaml_source import Source

    schedule = parse(Source.from_file(path))
    model, optimizers = (None, []) if application is None else (application.model, [*application.optimizers.values()])
    steps_per_epoch = 0 if application is None else application.steps_per_epoch
    built = build(schedule, plugins.registry, model, optimizers, epochs, steps_per_epoch)
    errors = dict.fromkeys([*schedule.problems(), *built.problems, *plugins.problems])
    readable = schedule.components or schedule.policies or not errors
    findings = [("error", problem) for problem in errors]
    findings += [("warning", problem) for problem in (*schedule.warnings(), *built.warnings)] if readable else []
    return schedule, sorted(findings, key=lambda finding: _position(finding[1]))


def _position(problem: Problem) -> tuple[int, int]:
    return problem.position.line or 0, problem.position.column or 0


def _plain(severity: str, problem: Problem) -> dict[str, Any]:
    return {**asdict(problem.position), "path": problem.path, "message": problem.message, "severity": severity}


def _line(severity: str, problem: Problem) -> str:
    return str(problem) if severity == "error" else f"{problem} (warning)"


def _verdict(schedule: Schedule, findings: list[Finding]) -> str:
    severities = [severity for severity, _ in findings]
    said = [_count(severities.count(severity), severity) for severity in ("error", "warning") if severity in severities]
    parts = [_count(len(schedule.components), "component"), _count(len(schedule.policies), "policy", "policies")]
    return " and ".join(said) or f"no problems in {' and '.join(parts)}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
