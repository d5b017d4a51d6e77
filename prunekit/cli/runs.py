"""What a finished run's folder says about itself: the application that it trained, and the plugins that it may load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli.application import load_application
from prunekit.cli.console import usage_error
from prunekit.cli.trust import trust_of

if TYPE_CHECKING:
    from prunekit.plugins.trust import Trust
    from prunekit.training.application import Application


def settings_of(run: Path, **given: Any) -> dict[str, Any]:
    """What a run was started with; what is given anew and is not None counts instead.

    Raises:
        StateError: there is no run in the folder.
    """
    from prunekit.training.checkpoint import load_checkpoint

    # `mmap`, because only the settings are wanted: no tensor is read.
    saved = load_checkpoint(run, mmap=True)["settings"]
    return {**saved, **{key: value for key, value in given.items() if value is not None}}


def application_of(settings: dict[str, Any]) -> Application:
    """The application that the settings name, made with their seed.

    Raises:
        SystemExit: they name none, or it can't be made; that has been said.
    """
    if not settings.get("app"):
        raise usage_error("--app is missing: the run does not say what it trained")
    return load_application(settings["app"], settings.get("seed") or 0)


def trust_in(settings: dict[str, Any]) -> Trust:
    """Which plugins the settings allow."""
    return trust_of(settings.get("allow_plugins"), settings.get("locked"))
