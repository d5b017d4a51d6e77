"""The command line: `prunekit train`, `validate`, `quantize`, `export`, `plugins`, `new-plugin`, `trace`, `schema`."""

from __future__ import annotations

from importlib.util import find_spec

EXTRA = ("click", "rich", "rich_click")


def main() -> None:
    """What the `prunekit` script runs."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        what = f"prunekit's command line needs {' and '.join(missing)}"
        raise SystemExit(f"{what}; install it with: pip install 'prunekit[cli]'")
    from prunekit.cli.group import prunekit

    prunekit(prog_name="prunekit")
