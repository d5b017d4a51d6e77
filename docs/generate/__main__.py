"""`python -m docs.generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from docs.generate.files import generated, stale
from docs.generate.plugins import plugins_of
from docs.generate.text import relative_path


def main(arguments: Sequence[str]) -> int:
    """What the command does, and its exit code."""
    files, problems = generated(plugins_of())
    changed, check = stale(files), "--check" in arguments
    for path in changed:
        print(f"{relative_path(path)}: {'not up to date: run python -m docs.generate' if check else 'written'}")
        if not check:
            path.write_text(files[path], encoding="utf-8", newline="\n")
    for problem in problems:
        print(problem)
    return 1 if problems or (check and changed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
