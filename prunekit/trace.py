"""The trace: one structured line per hook implementation that runs (debug), one per effect (info)."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Literal

import structlog

Level = Literal["debug", "info", "warning", "error"]
LEVELS: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FILE_NAME = "trace.jsonl"


class Trace:
    """Sends every line to the application's structlog and, if given a folder, as JSON to `trace.jsonl` there.

    Args:
        run_dir: the run's folder, made when the first line comes; lines are appended.
        level: the least level written. At `debug` each hook implementation leaves a line.
        logger: where lines go besides the file; the application's structlog as it is configured, by default.
            None writes to the file alone.
    """

    def __init__(self, run_dir: str | Path | None = None, level: Level = "info", logger: Any = "application") -> None:
        self.level = LEVELS[level]
        self.debug_on = self.level <= LEVELS["debug"]
        self.path: Path | None = None
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._loggers: list[Any] = []
        self._file: Any = None
        if logger is not None:
            self._loggers.append(structlog.get_logger("prunekit") if logger == "application" else logger)
        if self.run_dir is not None:
            self.path = self.run_dir / FILE_NAME

    def __deepcopy__(self, memo: dict[int, Any]) -> Trace:
        """The same lines for the same loggers, and no folder: two runs in one file would be one tale."""
        twin = copy(self)
        twin.run_dir = twin.path = twin._file = None
        return twin

    def debug(self, event: str, **values: Any) -> None:
        """A hook implementation has run."""
        self._log("debug", event, values)

    def info(self, event: str, **values: Any) -> None:
        """An effect."""
        self._log("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        """Something that is allowed and probably not meant."""
        self._log("warning", event, values)

    def error(self, event: str, **values: Any) -> None:
        """A failure, with its origin."""
        self._log("error", event, values)

    def _log(self, level: Level, event: str, values: dict[str, Any]) -> None:
        if LEVELS[level] < self.level:
            return
        for logger in self._loggers:
            getattr(logger, level)(event, **_for_application(values))
        if self.path is not None:
            self._file = self._file or _json_lines(self.path)
            getattr(self._file, level)(event, **values)


def _for_application(values: dict[str, Any]) -> dict[str, Any]:
    # Unconfigured, structlog prints an exception with all its locals: the application meets it anyway.
    hidden = () if structlog.is_configured() else ("exc_info",)
    return {key: value for key, value in values.items() if key not in hidden}


def _json_lines(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    _end_last_line(path)
    return structlog.wrap_logger(
        # Line by line: a run that is killed leaves all lines but perhaps the last. And all settings are given here,
        # because what the application has configured for its own lines must not reach this file.
        structlog.WriteLogger(path.open("a", encoding="utf-8", buffering=1)),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=True,
    )


def _json(line: Any, **_: Any) -> str:
    try:
        return json.dumps(line, default=str, allow_nan=False)
    except ValueError:  # JSON has no word for NaN and infinity
        return json.dumps(_in_words(line), default=str)


def _in_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _in_words(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_words(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _end_last_line(path: Path) -> None:
    """A run that was killed may have left half a line: the next line must not grow out of it."""
    with path.open("a+b") as file:
        # A file opened to append stands at its end: at 0 there is nothing in it.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


def read(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a run's trace (its folder or its file), in order; a line cut short by a crash is left out."""
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
