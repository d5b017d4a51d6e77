"""The trace: JSON lines in the run's folder, and the application's own structlog as it is."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from helpers import MLP, pruning, train_attached, window, without_listeners
from structlog.testing import capture_logs

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, Schedule, Trace, Window
from prunekit.components import Selectors
from prunekit.trace import read


@pytest.fixture(autouse=True)
def structlog_as_it_was() -> Iterator[None]:
    before, configured = structlog.get_config(), structlog.is_configured()
    yield
    structlog.configure(**before) if configured else structlog.reset_defaults()


def traced(folder: Path, level: Any, schedule: dict[str, Any] | None = None, epochs: int = 2) -> list[dict[str, Any]]:
    """The lines of a short run, without their times."""
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = Trace(folder, level, logger=None)
    schedule = schedule or pruning(when=window(0, 1))
    scheduler = CompressionScheduler.from_dict(schedule, model, optimizer, trace=trace, plugins=without_listeners())
    train_attached(scheduler, optimizer, epochs)
    return [{key: value for key, value in line.items() if key != "timestamp"} for line in read(folder)]


def test_each_line_is_one_json_object_with_a_time(tmp_path: Path) -> None:
    traced(tmp_path, "debug")
    lines = (tmp_path / "trace.jsonl").read_text("utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == list(read(tmp_path))
    assert {type(json.loads(line)["timestamp"]) for line in lines} == {str}
    assert all(json.loads(line)["timestamp"].endswith("Z") for line in lines)


def test_a_hook_that_ran_leaves_one_debug_line(tmp_path: Path) -> None:
    [ran] = [line for line in traced(tmp_path, "debug") if line["level"] == "debug" and "component" in line]
    assert isinstance(ran.pop("ms"), float)
    assert ran.pop("version")
    assert ran == {
        "event": "hook ran",
        "level": "debug",
        "hook": "on_epoch_begin",
        "policy": "policies[0]",
        "component": "SparsityLevelParameterPruner 'p'",
        "plugin": "prunekit-level-pruner",
        "epoch": 0,
    }


def test_within_an_epoch_a_line_names_the_mini_batch(tmp_path: Path) -> None:
    schedule = pruning(when=window(0, 1), args={"mini_batch_pruning_frequency": 2})
    ran = [line for line in traced(tmp_path, "debug", schedule, 1) if line["event"] == "hook ran"]
    assert [(line["hook"], line["epoch"], line.get("minibatch")) for line in ran] == [
        ("on_epoch_begin", 0, None),
        *[("on_minibatch_begin", 0, minibatch) for minibatch in range(4)],
    ]


def test_the_info_level_writes_effects_and_no_debug_lines(tmp_path: Path) -> None:
    debug, info = traced(tmp_path / "debug", "debug"), traced(tmp_path / "info", "info")
    assert info == [line for line in debug if line["level"] != "debug"]
    assert {line["level"] for line in info} == {"info"}
    [changed] = [line for line in info if line["event"] == "masks changed"]
    assert (changed["policy"], changed["epoch"]) == ("policies[0]", 0)
    assert changed["sparsity"] == {"fc1.weight": [0.0, 0.5]}


def test_the_error_level_writes_nothing_of_a_good_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        traced(tmp_path, "error")


def test_an_error_has_the_same_keys_and_the_traceback(tmp_path: Path) -> None:
    class Failing:
        def __init__(self, weights: Selectors = "fc1.weight") -> None: ...

        def compute_masks(self, parameters: Any, context: Any) -> Any:
            raise ZeroDivisionError("no weights")

    schedule = Schedule([ComponentSpec("pruner", "p", Failing)], [PolicySpec("pruner", "p", Window(0, 1))])
    scheduler = CompressionScheduler(schedule, MLP(), trace=Trace(tmp_path, "error", logger=None))
    with pytest.raises(ZeroDivisionError) as caught:
        scheduler.on_epoch_begin(0)
    [line] = map(dict, read(tmp_path))
    assert line.pop("timestamp")
    assert "in compute_masks\n    raise ZeroDivisionError" in line.pop("exception")
    assert line == {
        "event": "hook failed",
        "level": "error",
        "hook": "on_epoch_begin",
        "policy": "policies[0]",
        "component": "Failing 'p'",
        "plugin": Failing.__module__,
        "version": "",
        "epoch": 0,
        "error": "ZeroDivisionError: no weights",
    }
    assert caught.value.__notes__ == [f"raised in on_epoch_begin by Failing 'p', policies[0], {Failing.__module__}"]


# The application's structlog


def test_the_application_s_configuration_is_respected_and_none_is_imposed(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def keep(_: Any, method: str, line: dict[str, Any]) -> dict[str, Any]:
        seen.append({"method": method, **line})
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    before = structlog.get_config()
    Trace(tmp_path, "debug").info("something", key=1)
    assert structlog.get_config() == before
    assert seen == [{"method": "info", "event": "something", "key": 1}]
    assert [(line["event"], line["level"], line["key"]) for line in read(tmp_path)] == [("something", "info", 1)]


def test_structlog_stays_unconfigured(tmp_path: Path) -> None:
    structlog.reset_defaults()
    traced(tmp_path, "debug")
    Trace().info("something")
    assert not structlog.is_configured()


def test_importing_and_running_prunekit_configures_neither_structlog_nor_logging() -> None:
    code = (
        "import logging, structlog, torch, prunekit\n"
        "scheduler = prunekit.CompressionScheduler.from_dict({'version': 1, 'policies': []}, torch.nn.Linear(1, 1))\n"
        "list(scheduler.epochs(1))\n"
        "mine = logging.getLogger('prunekit')\n"
        "print(structlog.is_configured(), logging.root.handlers, logging.root.level, mine.handlers)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "False [] 30 []"


def test_captured_logs_see_the_lines() -> None:
    trace = Trace(level="info")
    with capture_logs() as lines:
        trace.debug("below the level")
        trace.info("something", epoch=3)
        trace.warning("careful")
    assert lines == [
        {"event": "something", "log_level": "info", "epoch": 3},
        {"event": "careful", "log_level": "warning"},
    ]


def test_a_trace_made_before_the_application_configures_structlog_follows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = Trace()
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    trace.info("something", epoch=3)
    assert capsys.readouterr().out == "epoch=3 event='something'\n"


def test_a_structlog_on_top_of_logging_works(caplog: pytest.LogCaptureFixture) -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["logger", "level", "event"]),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.INFO, "prunekit"):
        scheduler = CompressionScheduler.from_dict(pruning(), model, optimizer, trace=Trace(level="debug"))
        scheduler.on_epoch_begin(0)
        scheduler.trace.error("hook failed", exc_info=ValueError("why"), hook="on_epoch_begin")
    mine = [(record.name, record.levelname) for record in caplog.records if record.name.startswith("prunekit")]
    assert set(mine) == {("prunekit", "INFO"), ("prunekit", "ERROR")}
    assert "logger='prunekit' level='info'" in caplog.text
    assert "sparsity={'fc1.weight': [0.0, 0.5]}" in caplog.text
    assert "ValueError: why" in caplog.text


def test_a_logger_may_be_given_or_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = structlog.testing.CapturingLogger()
    Trace(logger=structlog.wrap_logger(kept, processors=[])).info("something", epoch=1)
    assert [(call.method_name, call.kwargs) for call in kept.calls] == [("info", {"event": "something", "epoch": 1})]
    Trace(logger=None).error("unheard")
    Trace(tmp_path / "run", logger=None).info("to the file alone")
    assert capsys.readouterr() == ("", "")
    assert [line["event"] for line in read(tmp_path / "run")] == ["to the file alone"]


# The file


def test_a_second_run_appends(tmp_path: Path) -> None:
    Trace(tmp_path, logger=None).info("one")
    Trace(tmp_path, logger=None).info("two")
    assert [line["event"] for line in read(tmp_path)] == ["one", "two"]
    assert list(read(tmp_path)) == list(read(tmp_path / "trace.jsonl"))


@pytest.mark.parametrize("cut", ['{"event": "thr', '{"event": "thr\udce9', '{"event": "\x00\x00', "{", '{"event": "é'])
def test_a_line_cut_by_a_crash_is_left_out_and_the_next_run_starts_a_line_of_its_own(cut: str, tmp_path: Path) -> None:
    Trace(tmp_path, logger=None).info("one")
    file = tmp_path / "trace.jsonl"
    file.write_bytes(file.read_bytes() + cut.encode("utf-8", "surrogateescape"))
    assert [line["event"] for line in read(tmp_path)] == ["one"]
    Trace(tmp_path, logger=None).info("two")
    assert [line["event"] for line in read(tmp_path)] == ["one", "two"]
    assert len(file.read_bytes().split(b"\n")) == 4


def test_a_run_that_is_killed_keeps_every_line_that_it_wrote(tmp_path: Path) -> None:
    code = (
        "import os, sys, prunekit\n"
        "trace = prunekit.Trace(sys.argv[1], logger=None)\n"
        "for epoch in range(100): trace.info('something', epoch=epoch)\n"
        "os._exit(1)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=environment)
    assert [line["epoch"] for line in read(tmp_path)] == list(range(100))


def test_reading_leaves_nothing_out(tmp_path: Path) -> None:
    trace = Trace(tmp_path, "debug", logger=None)
    trace.debug("a", number=1.5)
    trace.info("a", number=math.inf)
    trace.warning("é 😀\n", nested={"b": [None, True]})
    trace.error("a", tensor=torch.zeros(1), path=tmp_path)
    trace.error("a")
    lines = [{key: value for key, value in line.items() if key != "timestamp"} for line in read(tmp_path)]
    assert lines == [
        {"event": "a", "level": "debug", "number": 1.5},
        {"event": "a", "level": "info", "number": "inf"},
        {"event": "é 😀\n", "level": "warning", "nested": {"b": [None, True]}},
        {"event": "a", "level": "error", "tensor": "tensor([0.])", "path": str(tmp_path)},
        {"event": "a", "level": "error"},
    ]


def test_nothing_is_made_that_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CompressionScheduler.from_dict(pruning(), MLP(), trace=Trace(level="error"))
    assert list(tmp_path.iterdir()) == []
    trace = Trace(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    trace.info("something")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["trace.jsonl"]


def test_a_warning_of_the_schedule_is_a_line_with_its_place() -> None:
    schedule = pruning()
    del schedule["version"]
    with capture_logs() as lines:
        CompressionScheduler.from_dict(schedule, MLP(), trace=Trace())
    assert lines == [
        {"event": "schedule", "log_level": "warning", "problem": "<dict>: no version is given; 1 is assumed"}
    ]


def test_numbers_that_json_has_no_word_for_are_words(tmp_path: Path) -> None:
    trace = Trace(tmp_path, logger=None)
    trace.info("a line", epoch=0, means={"l1": float("nan")}, after=[float("inf"), 0.5], what=Path("x"))
    (line,) = (tmp_path / "trace.jsonl").read_text().splitlines()
    strict = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (strict["means"], strict["after"], strict["what"]) == ({"l1": "nan"}, ["inf", 0.5], "x")
