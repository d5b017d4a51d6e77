"""What `import prunekit` offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import prunekit


def test_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse(Path(prunekit.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        f"{imported.module}.{alias.asname}"
        for imported in block.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    homes = {f"{home}.{name}" for home, names in prunekit._HOMES.items() for name in names.split()}
    assert typed == homes
    assert all(hasattr(prunekit, name) for name in prunekit.__all__)


def test_importing_prunekit_does_not_import_torch() -> None:
    code = "import sys, prunekit; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
