"""For plugin authors: the laws that every component keeps, and a task that trains in a blink."""

from prunekit.testing.tiny import TinyNet, application

__all__ = ["TinyNet", "application"]
