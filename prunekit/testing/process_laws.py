"""The law of several processes that train one model together."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from prunekit.testing.laws import ACTING, Broken, NotApplicable, law, listed, must, traceback_of
from prunekit.testing.runs import LAST, MINIBATCHES, Run, batches, differences
from prunekit.testing.subject import Subject

PROCESSES = 2
PRELOADED = ["prunekit.testing.process_laws", "torch.nn.parallel", "torch._dynamo"]
"""What new processes are forked with. torch's optimizers import `torch._dynamo` at their first step, for a second."""
TIMEOUT = 120
"""Seconds after which processes that wait for each other are given up."""


@law(*ACTING)
def two_processes(subject: Subject) -> None:
    """Two gloo processes that see different data and average their gradients decide the same."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        raise NotApplicable("this torch has no gloo")
    _must_be_importable(subject)
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
        one, other = outcomes = _in_processes(subject, Path(folder))
    for rank, outcome in enumerate(outcomes):
        if "error" in outcome:
            told = f"process {rank}: {outcome['error']}"
            raise Broken("two processes that come to an end", told, outcome.get("traceback", ""))
    found = list(differences(one, other))
    must(not found, "the same weights, masks and memories in both", listed(found))


def _must_be_importable(subject: Subject) -> None:
    """Whether another process can find the class by its name."""
    try:
        found = pickle.loads(pickle.dumps(subject.cls))
        reachable = found is subject.cls and subject.cls.__module__ != "__main__"
        import_module(subject.cls.__module__)
    except Exception:
        reachable = False
    if not reachable:
        raise NotApplicable("another process can't import a class of a function, a notebook or a script")


def _in_processes(subject: Subject, folder: Path) -> list[dict[str, Any]]:
    methods = multiprocessing.get_all_start_methods()
    # The fork server imports torch once; spawned processes import it each for itself.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(PRELOADED)
    ranks = range(PROCESSES)
    # It travels by pickle: what laws remember would only be carried along.
    bare = replace(subject, remembered={})
    processes = [context.Process(target=_train, args=(bare, rank, str(folder)), daemon=True) for rank in ranks]
    with _without_main():
        for process in processes:
            process.start()
    for process in processes:
        process.join(TIMEOUT)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    if hanging:
        raise Broken("two processes that come to an end", f"process {hanging[0]} still waits after {TIMEOUT} s")
    return [_read(folder / f"{rank}.pt", processes[rank].exitcode) for rank in range(PROCESSES)]


def _read(file: Path, exitcode: int | None) -> dict[str, Any]:
    if not file.exists():
        return {"error": f"it ended with exit code {exitcode}"}
    outcome: dict[str, Any] = torch.load(file, weights_only=True)
    return outcome


@contextmanager
def _without_main() -> Iterator[None]:
    """New processes need not run the script again that the check was called from."""
    main = sys.modules["__main__"]
    hidden = {key: vars(main)[key] for key in ("__file__", "__spec__") if key in vars(main)}
    for key in hidden:
        # multiprocessing reads `__spec__` without asking whether it is there, but not `__file__`.
        setattr(main, key, None) if key == "__spec__" else delattr(main, key)
    try:
        yield
    finally:
        for key, value in hidden.items():
            setattr(main, key, value)


def _train(subject: Subject, rank: int, folder: str) -> None:
    """What each process does: train on its own half of each mini-batch."""
    torch.set_num_threads(1)
    try:
        outcome = _outcome(subject, rank, folder)
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}", "traceback": traceback_of(error)}
    torch.save(outcome, Path(folder) / f"{rank}.pt")


def _outcome(subject: Subject, rank: int, folder: str) -> dict[str, Any]:
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    try:
        own = [(images[rank::PROCESSES], classes[rank::PROCESSES]) for images, classes in batches()[:MINIBATCHES]]
        run = Run(subject, wrap=_parallel).train(range(LAST + 1), own)
        outcome = run.outcome()
        decided = {key: outcome[key] for key in ("masks", "learning_rates", "component")}
        # Buffers are not averaged: each process has the batch statistics of its own data.
        return {**decided, "weights": {name: p.detach() for name, p in run.model.named_parameters()}}
    finally:
        distributed.destroy_process_group()


def _parallel(model: Module) -> Module:
    return DistributedDataParallel(model)
