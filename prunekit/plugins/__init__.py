"""Installed plugins: what distributions offer, which of it may be used, and how to begin one."""
