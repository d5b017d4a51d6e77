"""Reference numbers of ranked pruners, where draws or decisions make prunekit's masks others than the reference's."""

from __future__ import annotations

import pytest
import torch
from oracle_replay import CASES, Replay, arrays, assert_as_recorded, assert_same, named, parts
from torch import Tensor

from prunekit.pruning.ranked_pruner import number_to_prune

DRAWN = [name for name in CASES if CASES[name]["cls"].startswith(("Random", "Bernoulli"))]


def whole_filters(mask: Tensor) -> Tensor:
    """Which filters are kept [n]; a filter is kept or dropped whole."""
    flat = mask.flatten(1)
    assert torch.equal(flat.all(1), flat.any(1))
    return flat[:, 0]


# Blocks: two filters by four channels


@pytest.mark.parametrize("name", [n for n in named("pruner", expect="differs") if "blocks" in n])
def test_blocks_of_two_repetitions_are_two_filters_and_not_twice_as_many_channels_of_one(name: str) -> None:
    replay, data = Replay(name), arrays(name)
    keys = sorted(parts(name, "init/"))
    for moment, e, _ in replay.run():
        if moment != "begin":
            continue
        for key in keys:
            weight, mask = replay.weight(key), replay.mask(key)
            tiles = weight.reshape(
                weight.shape[0] // 2, 2, weight.shape[1] // 4, 4, -1
            )  # kernel elements by themselves
            order = 1 if name.startswith("l1") else 2
            scores = torch.linalg.vector_norm(tiles, order, (1, 3)).reshape(-1) / 8
            lowest = scores.sort(stable=True).indices[: scores.numel() // 2]
            expected = torch.ones(scores.numel(), dtype=torch.bool)
            expected[lowest] = False
            kept = mask.reshape(tiles.shape)
            assert torch.equal(kept.amax((1, 3)), kept.amin((1, 3))), "tiles are kept or dropped whole"
            assert torch.equal(kept.amax((1, 3)).reshape(-1), expected), f"{key} in epoch {e}"
            assert (~mask).sum() == (data[f"mask_begin/{key}"][e] == 0).sum(), "as many weights as in the reference"


# Leader


def test_a_leader_with_a_constant_target_leads_as_in_the_reference_while_what_is_pruned_stays_zero() -> None:
    assert_as_recorded(Replay("leader_channels_fixed"))


def test_the_leaders_map_is_computed_at_every_pruning() -> None:
    """The reference keeps the map of the first pruning, however the leader's weights may have changed since."""
    replay, maps = Replay("leader_channels_fixed"), []
    for moment, e, _ in replay.run():
        if moment == "begin":
            kept = replay.mask("conv2.weight")[0, :, 0, 0]
            assert torch.equal(replay.mask("conv3.weight"), kept.reshape(1, 8, 1, 1).expand(16, 8, 1, 1))
            maps.append(kept.tolist())
        if (moment, e) == ("end", 1):  # the application loads other weights
            with torch.no_grad():
                for channel in range(8):
                    replay.model.conv2.weight[:, channel] = 8.0 - channel
    assert [kept.count(False) for kept in maps] == [3] * 5
    assert maps[0] == maps[1]
    assert maps[2:] == [[True] * 5 + [False] * 3] * 3


# Draws


@pytest.mark.parametrize("name", ["random_ranked", "random_ranked_agp"])
def test_as_many_random_filters_go_as_in_the_reference(name: str) -> None:
    replay, data = Replay(name), arrays(name)
    for moment, e, _ in replay.run():
        for key in parts(name, "init/"):
            kept = whole_filters(replay.mask(key))
            if moment == "begin":
                assert (~kept).sum() == (~whole_filters(data[f"mask_begin/{key}"][e] != 0)).sum()
            if moment == "fwd":
                assert torch.equal(replay.weight(key).flatten(1).any(1), kept), "no other filter is zero"


def test_the_sparsity_of_a_random_level_is_drawn_for_each_parameter_at_each_pruning() -> None:
    """After a lower draw the reference still prunes all filters that are zero, for they tie at its threshold."""
    replay, data = Replay("random_level"), arrays("random_level")
    counts, before = [], {"conv2.weight": 0, "conv3.weight": 0}
    for moment, e, _ in replay.run():
        if moment != "begin":
            continue
        for index, key in enumerate(before):
            kept = whole_filters(replay.mask(key))
            counts.append((len(kept), int((~kept).sum())))
            drawn = number_to_prune(len(kept), data["uniform_draws"][2 * e + index].item())
            before[key] = max(drawn, before[key])
            assert (~whole_filters(data[f"mask_begin/{key}"][e] != 0)).sum() == before[key]
    assert all(0.1 * n - 1 < count <= 0.9 * n for n, count in counts)
    assert len({count / n for n, count in counts}) > 4


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli_agp"])
def test_what_bernoulli_keeps_is_scaled_by_n_over_kept_as_in_the_reference(name: str) -> None:
    """The reference multiplies the weights for good, and again after each step; here the forward pass alone sees it."""
    replay, data = Replay(name), arrays(name)
    for key in parts(name, "init/"):
        theirs = data[f"mask_begin/{key}"].flatten(2)[:, :, 0]
        for mask in theirs:
            kept = mask != 0
            assert torch.allclose(mask[kept], torch.tensor(len(mask) / kept.sum().item()))
    before = {key: value.clone() for key, value in parts(name, "init/").items()}
    for moment, e, m in replay.run():
        for key in parts(name, "init/"):
            kept = whole_filters(replay.mask(key))
            scale = len(kept) / kept.sum().item()
            if moment == "fwd":
                assert_same(replay.weight(key), before[key] * replay.mask(key) * scale, f"{key} at {e}, {m}")
            if moment == "mbend":
                before[key] = before[key] * replay.mask(key) + data[f"delta/{key}"][e, m] * replay.mask(key)
                assert_same(replay.weight(key), before[key], f"{key} at {e}, {m}")


def test_drop_filter_loses_no_weight_and_masks_the_mini_batches_that_the_reference_does() -> None:
    name = "bernoulli_dropfilter"
    replay, data = Replay(name), arrays(name)
    own = {key: value.clone() for key, value in parts(name, "init/").items()}
    for moment, e, m in replay.run():
        for key in own:
            if moment == "fwd":
                theirs, seen = data[f"fwd/{key}"][e, m].flatten(1), replay.weight(key).flatten(1)
                masked = not theirs.any(1).all()
                assert (not seen.any(1).all()) == masked, f"{key} at {e}, {m}"
                kept = seen.any(1)
                scale = len(kept) / kept.sum().item() if masked else 1
                assert_same(seen, own[key].flatten(1) * kept[:, None] * scale, f"{key} at {e}, {m}")
            if moment == "mbend":
                own[key] += data[f"delta/{key}"][e, m]
            if moment == "end":
                assert_same(replay.weight(key), data[f"end/{key}"][e], f"end/{key} in epoch {e}")
                assert key not in replay.scheduler.masks
                assert data[f"none_end/{key}"][e]


def test_every_case_with_draws_is_tested_here() -> None:
    assert sorted(DRAWN) == sorted(
        ["random_ranked", "random_ranked_agp", "random_level", "bernoulli", "bernoulli_agp", "bernoulli_dropfilter"]
    )
