"""`prunekit trace`: one line a line, and only those that are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prunekit.cli.group import prunekit
from prunekit.cli.trace import readable

AGP = {
    "policy": "policies[0]",
    "component": "AutomatedGradualPruner 'agp'",
    "plugin": "prunekit-agp-pruner",
    "version": "0.1.0",
}
LR = {"policy": "policies[1]", "component": "StepLR 'decay'", "plugin": "prunekit-torch-lr", "version": "0.1.0"}
LINES: list[dict[str, Any]] = [
    {"event": "training begins", "plugins": {"prunekit-agp-pruner": "0.1.0"}, "policies": 2, "level": "info"},
    {"event": "schedule", "problem": "a.yaml:1:1: no version is given; 1 is assumed", "level": "warning"},
    {"event": "hook ran", "hook": "on_epoch_begin", **AGP, "epoch": 0, "ms": 0.547, "level": "debug"},
    {"event": "masks changed", **AGP, "epoch": 0, "sparsity": {"fc1.weight": [0.0, 0.8]}, "level": "info"},
    {"event": "hook ran", "hook": "on_minibatch_begin", **AGP, "epoch": 1, "minibatch": 7, "ms": 0.1, "level": "debug"},
    {"event": "learning rate changed", **LR, "epoch": 1, "before": [0.1], "after": [0.01], "level": "info"},
    {"event": "hook failed", "hook": "on_epoch_end", **LR, "epoch": 2, "error": "ValueError: oh", "level": "error"},
    {"event": "training interrupted", "epoch": 3, "minibatch": 12, "level": "info"},
]
BY_AGP = "policies[0] AutomatedGradualPruner 'agp' (prunekit-agp-pruner 0.1.0)"
BY_LR = "policies[1] StepLR 'decay' (prunekit-torch-lr 0.1.0)"
TEXT = [
    "03:04:05.678 info          - training begins  plugins prunekit-agp-pruner 0.1.0  policies 2",
    "03:04:05.678 warning       - schedule  a.yaml:1:1: no version is given; 1 is assumed",
    f"03:04:05.678 debug         0 on_epoch_begin  {BY_AGP}  0.547 ms",
    f"03:04:05.678 info          0 masks changed  {BY_AGP}  fc1.weight 0.000 -> 0.800",
    f"03:04:05.678 debug       1/7 on_minibatch_begin  {BY_AGP}  0.1 ms",
    f"03:04:05.678 info          1 learning rate changed  {BY_LR}  lr 0.1 -> 0.01",
    f"03:04:05.678 error         2 on_epoch_end failed  {BY_LR}  ValueError: oh",
    "03:04:05.678 info       3/12 training interrupted",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder whose last line was cut short."""
    lines = [json.dumps({**line, "timestamp": "2026-11-23T03:04:05.678901Z"}) for line in LINES]
    (tmp_path / "trace.jsonl").write_text("\n".join([*lines, '{"event": "cut sh']))
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(prunekit, ["trace", *map(str, arguments)])


def test_bits_are_told_module_by_module() -> None:
    bits = {
        "conv1": {"weights": 4, "activations": None, "bias": None, "by": "a.yaml:5:5"},
        "relu": {"weights": None, "activations": 8, "bias": None, "by": "a.yaml:8:7, relu"},
    }
    (text,) = readable({"event": "modules quantized", "epoch": 2, "level": "info", "bits": bits})
    assert text.endswith("modules quantized  conv1 weights 4 (a.yaml:5:5)  relu activations 8 (a.yaml:8:7, relu)")


def test_each_line_of_the_trace_is_one_line_of_text(folder: Path) -> None:
    result = run(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == TEXT
    assert run(folder / "trace.jsonl").stdout == result.stdout


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        (["--level", "info"], [0, 1, 3, 5, 6, 7]),
        (["--level", "error"], [6]),
        (["--hook", "on_epoch_begin"], [2]),
        (["--hook", "masks changed"], [3]),
        (["--policy", "policies[1]"], [5, 6]),
        (["--policy", "1"], [5, 6]),
        (["--policy", "agp"], [2, 3, 4]),
        (["--policy", "StepLR"], [5, 6]),
        (["--epoch", "1"], [4, 5]),
        (["--epoch", "1-2"], [4, 5, 6]),
        (["--epoch", "0-1", "--policy", "agp", "--level", "info"], [3]),
    ],
)
def test_filters_choose_lines(folder: Path, filters: list[str], chosen: list[int]) -> None:
    assert run(folder, *filters).stdout.splitlines() == [TEXT[index] for index in chosen]


def test_json_gives_the_lines_as_they_are(folder: Path) -> None:
    lines = [json.loads(line) for line in run(folder, "--json", "--epoch", "3").stdout.splitlines()]
    assert lines == [{**LINES[7], "timestamp": "2026-11-23T03:04:05.678901Z"}]


def test_a_filter_that_leaves_nothing_says_what_there_is(folder: Path) -> None:
    result = run(folder, "--policy", "apg")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("none of 8 lines is like that; there are ")
    assert "policies[0] AutomatedGradualPruner 'agp', policies[1] StepLR 'decay'" in result.stderr


def test_a_narrow_terminal_gets_several_lines_none_too_wide() -> None:
    line = {**LINES[3], "timestamp": "2026-11-23T03:04:05.678901Z"}
    assert readable(line, 60) == [
        "03:04:05.678 info          0 masks changed",
        "    policies[0] AutomatedGradualPruner 'agp'",
        "      (prunekit-agp-pruner 0.1.0)",
        "    fc1.weight 0.000 -> 0.800",
    ]
    assert readable(line, 200) == [TEXT[3]]


@pytest.mark.parametrize(("wrong", "message"), [("x", "got 'x'"), ("3-", "got '3-'"), ("-1", "got '-1'")])
def test_a_wrong_range_of_epochs_is_refused(folder: Path, wrong: str, message: str) -> None:
    result = run(folder, f"--epoch={wrong}")
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())  # out of its frame
    assert f"expected an epoch or a range such as 3-7, {message}" in said


def test_a_folder_without_a_trace_is_a_wrong_command(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.exit_code, result.stderr) == (2, f"error: {str(tmp_path)!r} holds no trace.jsonl\n")
    assert run(tmp_path / "nowhere").exit_code == 2
