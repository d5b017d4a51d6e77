"""Applications, models and schedules that run in seconds, to try prunekit on and to copy from."""
