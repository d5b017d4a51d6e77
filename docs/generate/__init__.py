"""Writes what is made from the plugins: their cards' tables, those of docs/choose-a-pruner.md, the schema for
editors, and the contracts of imports.

    python -m docs.generate            writes what is not up to date
    python -m docs.generate --check    writes nothing, and ends with 1 if there is something to write

Between two comments the text is made, everything else is its author's:

    <!-- parameters: MyPruner -->      a card: the arguments of one class or of several, of their types and docstrings
    <!-- end -->
    <!-- cards: pruner -->             docs/choose-a-pruner.md: a row for each card with a class of that kind
    <!-- end -->
    <!-- list: components -->          docs/plugins.md: a row for each class
    <!-- end -->

A plugin is a folder of plugins/ with a pyproject.toml. It need not be installed.
"""
