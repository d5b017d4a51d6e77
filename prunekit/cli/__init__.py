"""The command line: `prunekit train`, `validate`, `plugins`, `trace`, `schema`."""

from __future__ import annotations

EXTRA = ("click", "rich", "rich_click")


def main() -> None:
    """What the `prunekit` script runs."""
    try:
        from prunekit.cli.group import prunekit
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        text = f"prunekit's command line needs {error.name!r}; install it with: pip install 'prunekit[cli]'"
        raise SystemExit(text) from None
    prunekit(prog_name="prunekit")
