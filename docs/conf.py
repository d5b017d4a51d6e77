"""How Sphinx builds these pages: MyST Markdown, furo's theme, and the plugins' READMEs as one page of method cards."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path

project = "prunekit"
author = "The prunekit developers"
release = version = installed_version("prunekit")

extensions = ["myst_parser"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"prunekit {release}"
html_copy_source = False
html_show_sphinx = False


def add_method_cards(app, docname, source):
    """Put every plugin's README below the page `methods`, its headings one deeper."""
    if docname == "methods":
        cards = sorted(Path(app.srcdir).parent.glob("plugins/*/README.md"))
        texts = [re.sub(r"^#", "##", card.read_text(encoding="utf-8"), flags=re.MULTILINE) for card in cards]
        source[0] = "\n".join([source[0], *texts])


def setup(app):
    """What Sphinx calls."""
    app.connect("source-read", add_method_cards)
