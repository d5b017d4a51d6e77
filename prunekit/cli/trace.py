"""`prunekit trace`: a run's trace, readably."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich_click as click

from prunekit.cli.console import print_error, usage_error

_TOLD = {"event", "level", "timestamp", "hook", "policy", "component", "plugin", "version", "epoch", "minibatch"}
_MESSAGES = ("hook ran", "hook failed")


@dataclass(frozen=True)
class Filter:
    """Which lines are wanted; None wants all."""

    level: str
    hook: str | None
    policy: str | None
    epochs: tuple[int, int] | None

    def accepts(self, line: Mapping[str, Any]) -> bool:
        """Whether a line is wanted."""
        from prunekit.trace import LEVELS

        return (
            LEVELS.get(line.get("level", "info"), 0) >= LEVELS[self.level]
            and self.hook in (None, line.get("hook"), line.get("event"))
            and (self.policy is None or self.policy in _names_of_policy(line))
            and (self.epochs is None or self.epochs[0] <= line.get("epoch", -1) <= self.epochs[1])
        )


class _Epochs(click.ParamType[tuple[int, int]]):
    name = "N or A-B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        first, dash, last = str(value).partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            self.fail(f"expected an epoch or a range such as 3-7, got {value!r}", param, ctx)
        return int(first), int(last or first)


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="debug",
    help="The least level shown. Default: all.",
)
@click.option("--hook", help="A hook (on_epoch_begin) or an event (masks changed).")
@click.option("--policy", help="A policy by its place (0 or policies[0]) or by its component's instance name.")
@click.option("--epoch", "epochs", type=_Epochs(), help="One epoch, or the first and the last of a range.")
@click.option("--json", "as_json", is_flag=True, help="The lines as they are in the file.")
def trace(
    run: Path, level: str, hook: str | None, policy: str | None, epochs: tuple[int, int] | None, as_json: bool
) -> None:
    """Print the trace of RUN, a run's folder or a trace file."""
    from prunekit.trace import FILE_NAME, read

    if run.is_dir() and not (run / FILE_NAME).exists():
        raise usage_error(f"{str(run)!r} holds no {FILE_NAME}")
    chosen, shown = Filter(level, hook, policy, epochs), 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in read(run):
        if isinstance(line, Mapping) and chosen.accepts(line):
            click.echo(json.dumps(line) if as_json else "\n".join(readable(line, width)))
            shown += 1
    if not shown:
        print_error(_available([line for line in read(run) if isinstance(line, Mapping)]))


def readable(line: Mapping[str, Any], width: int | None = None) -> list[str]:
    """A line of the trace as text: one line, or, where that is wider than the terminal, several."""
    when = str(line.get("timestamp", ""))[11:23]
    head = f"{when:12} {line.get('level', ''):7} {_moment(line):>7} {_what(line)}"
    by = _by(line)
    details = list(_details(line))
    whole = "  ".join([head, *([by] if by else []), *details])
    if width is None or len(whole) <= width:
        return [whole]
    parts = [(head, ""), *((part, "    ") for part in [by, *details] if part)]
    return [text for part, indent in parts for text in _wrapped(part, max(width, 24), indent)]


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def _moment(line: Mapping[str, Any]) -> str:
    epoch, minibatch = line.get("epoch"), line.get("minibatch", -1)
    if epoch is None:
        return "-"
    return f"{epoch}" if minibatch < 0 else f"{epoch}/{minibatch}"


def _what(line: Mapping[str, Any]) -> str:
    event, hook = str(line.get("event", "")), str(line.get("hook", ""))
    if event in _MESSAGES:
        return hook if event == "hook ran" else f"{hook} failed"
    return event


def _by(line: Mapping[str, Any]) -> str:
    plugin = f"{line.get('plugin', '')} {line.get('version', '')}".strip()
    return " ".join(part for part in (line.get("policy"), line.get("component"), plugin and f"({plugin})") if part)


def _details(line: Mapping[str, Any]) -> Iterator[str]:
    """What changed: sparsities, learning rates, milliseconds, and whatever else the line says."""
    for key, value in line.items():
        if key == "sparsity" and isinstance(value, Mapping):
            yield from (_sparsity(name, change) for name, change in value.items())
        elif key == "before" and "after" in line:
            yield f"lr {_rates(value)} -> {_rates(line['after'])}"
        elif key == "bits" and isinstance(value, Mapping):
            yield from (_bits(name, bits) for name, bits in value.items())
        elif key == "ms":
            yield f"{value} ms"
        elif key == "exception":
            yield from str(value).splitlines()
        elif key in ("error", "problem"):
            yield str(value)
        elif key not in _TOLD and not (key == "after" and "before" in line):
            yield f"{key} {_plain(value)}"


def _sparsity(name: str, change: Any) -> str:
    if isinstance(change, list) and len(change) == 2:
        return f"{name} {change[0]:.3f} -> {change[1]:.3f}"
    return f"{name} {change:.3f}" if isinstance(change, float) else f"{name} {change}"


def _bits(name: str, bits: Any) -> str:
    """A module's bits and who gave them: `conv1 weights 4 (schedule.yaml:5:5)`."""
    if not isinstance(bits, Mapping):
        return f"{name} {bits}"
    parts = [f"{part} {number}" for part, number in bits.items() if part != "by" and number is not None]
    return f"{name} {', '.join(parts)}" + (f" ({bits['by']})" if bits.get("by") else "")


def _rates(rates: Any) -> str:
    return ", ".join(map(_plain, rates)) if isinstance(rates, list) else str(rates)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _names_of_policy(line: Mapping[str, Any]) -> set[str]:
    """All that a policy may be called: 'policies[0]', '0', and the words of its component: class and instance name."""
    policy = str(line.get("policy", ""))
    words = str(line.get("component", "")).split(maxsplit=1)
    names = {policy, policy.removeprefix("policies[").removesuffix("]"), *(word.strip("'\"") for word in words)}
    return names - {""}


def _available(lines: list[Mapping[str, Any]]) -> str:
    """What one could have asked for."""
    policies = sorted({" ".join((line["policy"], line.get("component", ""))) for line in lines if line.get("policy")})
    hooks = sorted({_what(line) for line in lines})
    known = f"; there are {', '.join(hooks)}" if hooks else ""
    return f"none of {len(lines)} lines is like that{known}" + (f"; of {', '.join(policies)}" if policies else "")
