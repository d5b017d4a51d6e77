"""The files of a new distribution: made from templates, then written all or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path
from string import Template
from uuid import uuid4

import yaml
from packaging.version import Version

from prunekit.components.kinds import KINDS, LR_SCHEDULER
from prunekit.errors import PluginError
from prunekit.plugins.entry_points import LISTENERS, this_version
from prunekit.plugins.scaffold.names import Names

LISTENER = "listener"
_GROUPS = {LISTENER: LISTENERS, **{name: kind.group for name, kind in KINDS.items()}}


def files_of(names: Names, kind: str) -> dict[str, str]:
    """Path within the distribution -> text."""
    values = _values(names, kind)
    schedule = _filled(f"{kind}/schedule.yaml", values)
    return {
        "pyproject.toml": _filled("common/pyproject.toml", values),
        f"src/{names.module}.py": _filled(f"{kind}/component.py", values),
        f"tests/test_{names.module.removeprefix('prunekit_')}.py": _filled(f"{kind}/test.py", values),
        "README.md": _filled(f"{kind}/README.md", {**values, "schedule": schedule}),
        "schedule.yaml": schedule,
        ".github/workflows/test.yml": _filled("common/test.yml", values),
        ".gitignore": _filled("common/gitignore", values),
    }


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Make a folder with these files. They are written beside it first, so that it appears with all of them.

    Raises:
        PluginError: it is there already, with something in it, or it can't be written; nothing has been.
    """
    unfinished = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        _check_folder(folder)
        for path, text in files.items():
            (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / path).write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():
            # It is empty, as was checked; not every system renames onto a folder that is there.
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        raise PluginError(f"{str(folder)!r} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_folder(folder: Path) -> None:
    if not folder.parent.is_dir():
        raise PluginError(f"{str(folder.parent)!r} is no directory to write into")
    if folder.exists() and not folder.is_dir():
        raise PluginError(f"{str(folder)!r} exists and is no directory")
    if folder.exists() and any(folder.iterdir()):
        raise PluginError(f"{str(folder)!r} exists and is not empty")


def requirement() -> str:
    """What a plugin that is made for this prunekit asks for: up to the next major version."""
    version = Version(this_version())
    # 0.2rc1 comes before 0.2, and would not satisfy `>=0.2`.
    least = version.public if version.is_prerelease else f"{version.major}.{version.minor}"
    return f"prunekit>={least},<{version.major + 1}"


def _values(names: Names, kind: str) -> dict[str, str]:
    return {
        "distribution": names.distribution,
        "module": names.module,
        "class_name": names.class_name,
        "class_in_yaml": _yaml(names.class_name),
        "description": f"{_title(kind)} for prunekit.",
        "requirement": requirement(),
        "group": json.dumps(_GROUPS[kind]),
        "entry": names.listener if kind == LISTENER else names.class_name,
    }


def _yaml(word: str) -> str:
    """A word that YAML reads as that text: `On` alone would be true."""
    return word if yaml.safe_load(word) == word else json.dumps(word)


def _filled(template: str, values: Mapping[str, str]) -> str:
    file = resources("prunekit.plugins.scaffold").joinpath("templates", f"{template}.txt")
    return Template(file.read_text(encoding="utf-8")).substitute(values)


def _title(kind: str) -> str:
    """What the description of a distribution begins with."""
    described = KINDS[kind].described if kind in KINDS else f"a {kind}"
    return f"A{described[1:]}".replace(LR_SCHEDULER.name, "LR scheduler")
