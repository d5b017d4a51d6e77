"""Sums over ranks: what one rank has added, what all agree on, and what a rank that has added nothing does."""

from __future__ import annotations

import torch
from torch import distributed, multiprocessing

from prunekit.pruning import RankSums, is_distributed


def test_without_other_ranks_what_was_added_is_what_is_agreed_on():
    sums = RankSums()
    sums.add("a", torch.tensor([1.0, 2.0]))
    sums.add("a", torch.tensor([3.0, 4.0]))
    assert sums.agreed == {}
    sums.agree("a", [2], torch.device("cpu"))
    sums.agree("b", [3], torch.device("cpu"))
    assert (sums.own, list(sums.agreed)) == ({}, ["a"])
    assert sums.take()["a"].tolist() == [4, 6]
    assert sums.agreed == {}
    assert not is_distributed()


def test_sums_go_through_a_state():
    sums, other = RankSums(), RankSums()
    sums.add("a", torch.tensor([1.0]))
    sums.agree("a", [1], torch.device("cpu"))
    sums.add("a", torch.tensor([2.0]))
    other.load_state_dict(sums.state_dict())
    sums.add("a", torch.tensor([100.0]))
    other.agree("a", [1], torch.device("cpu"))
    assert other.agreed["a"].tolist() == [3]


def agree(rank: int, file: str, queue) -> None:
    distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    sums = RankSums()
    if rank == 0:
        sums.add("a", torch.tensor([1.0, 2.0]))
    sums.agree("a", [2], torch.device("cpu"))
    queue.put((rank, is_distributed(), sums.agreed["a"].tolist()))
    distributed.destroy_process_group()


def test_a_rank_that_has_added_nothing_agrees_with_the_others(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=agree, args=(rank, str(tmp_path / "meet"), queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    seen = sorted(queue.get() for _ in processes)
    for process in processes:
        process.join()
    assert seen == [(0, True, [1.0, 2.0]), (1, True, [1.0, 2.0])]
