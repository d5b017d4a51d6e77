"""Test class for ranked pruners that rank by the weights themselves: which groups of which layers go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Module

from prunekit.testing.masks import groups_gone, weights_model
from prunekit.testing.ranked import RankedPrunerTests

LINEAR, CONV = nn.Linear(6, 4), nn.Conv2d(6, 4, 3)
FILTERS = {"group_type": "Filters"}


def graded(values: list[float], *shape: int, dim: int = 0) -> Tensor:
    """A tensor whose index i along `dim` holds nothing but values[i]."""
    view = [-1 if d == dim else 1 for d in range(len(shape))]
    return torch.tensor(values).reshape(view).expand(shape).clone()


def network(**layers: Module) -> nn.Module:
    """A model that computes nothing, with these layers."""
    model = nn.Module()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


class RankedStructureTests(RankedPrunerTests):
    """Larger weights rank higher, and every group type and granularity means what the language says."""

    def masks(self, model: Module, sparsity: float = 0.5, **keys: Any) -> dict[str, Tensor]:
        """The masks of the first epoch."""
        run = self.scheduler(model, **keys, **self.share(sparsity))
        run.on_epoch_begin(0)
        return dict(run.masks)

    def mask(self, model: Module, sparsity: float = 0.5, **keys: Any) -> Tensor:
        """The one mask of the first epoch."""
        (mask,) = self.masks(model, sparsity, **keys).values()
        return mask

    # By name

    @pytest.mark.parametrize(
        ("group_type", "layer", "dim"),
        [
            ("3D", nn.Conv1d(4, 4, 3), 0),
            ("3D", nn.Conv2d(4, 4, 3), 0),
            ("3D", nn.Conv3d(4, 4, 3), 0),
            ("Filters", nn.Conv1d(4, 4, 3), 0),
            ("Filters", nn.Conv2d(4, 4, 3, groups=2), 0),
            ("Filters", nn.Conv3d(4, 4, 3), 0),
            ("Channels", nn.Conv1d(4, 3, 2), 1),
            ("Channels", nn.Conv2d(4, 3, 2), 1),
            ("Channels", nn.Conv3d(4, 3, 2), 1),
            ("Channels", nn.Linear(4, 3), 1),
            ("Rows", nn.Linear(4, 3), 1),
            ("Rows", nn.Conv2d(4, 3, 1), 1),
        ],
    )
    def test_group_type_says_which_dimension_the_groups_are_of(self, group_type: str, layer: Any, dim: int) -> None:
        # Ranked `Rows` are columns: published schedules use the word so on classifiers.
        with torch.no_grad():
            layer.weight.copy_(graded([3, 1, 4, 2], *layer.weight.shape, dim=dim))
        assert groups_gone(self.mask(network(a=layer), group_type=group_type), dim) == [1, 3]

    @pytest.mark.parametrize(
        ("keys", "dim", "expected"),
        [
            ({"group_type": "Filters"}, 0, [0, 1]),
            ({"group_type": "3D"}, 0, [0, 1]),
            ({"group_type": "Channels"}, 1, [0, 2]),
            ({"group_type": "Rows"}, 1, [0, 2]),
            ({"group_type": "Blocks", "kwargs": {"block_shape": [4, 1, 1, 1]}}, 1, [0, 2]),
            ({"group_type": "Blocks", "kwargs": {"block_shape": [2, 4, 1, 1]}}, 0, [0, 1]),
            ({"granularity": {"dim": 0, "size": 2}}, 0, [0, 1]),
            ({"granularity": {"dim": 0, "heads": 2}}, 0, [0, 1]),
            ({"granularity": {"dim": 0, "parts": 2}}, 0, [0, 2]),
            ({"granularity": {"shape": [4]}}, 1, [0, 2]),
        ],
    )
    def test_which_groups_of_a_convolution(self, keys: dict[str, Any], dim: int, expected: list[int]) -> None:
        weight = graded([1, 2, 3, 4], 4, 4, 1, 1) * graded([1, 4, 2, 3], 4, 4, 1, 1, dim=1)
        assert groups_gone(self.mask(weights_model(a=weight), **keys), dim) == expected

    def test_rows_by_name_are_inputs_and_by_granularity_outputs(self) -> None:
        weight = torch.tensor([[1.0, 5.0], [1.0, 6.0]])
        by_name = self.mask(weights_model(a=weight), group_type="Rows")
        by_dimension = self.mask(weights_model(a=weight), granularity={"dim": 0})
        assert by_name.tolist() == [[False, True], [False, True]]
        assert by_dimension.tolist() == [[False, False], [True, True]]

    @pytest.mark.parametrize(
        ("block_shape", "tile"),
        [([2, 4, 1, 1], (2, 4)), ([4, 1, 1, 1], (4, 1)), ([1, 8, 1, 1], (1, 8)), ([4, 8, 1, 1], (4, 8))],
    )
    def test_blocks_are_tiles_of_repetitions_by_depth(self, block_shape: list[int], tile: tuple[int, int]) -> None:
        # Two of [2, 4, 1, 1] are two filters times four channels, as documented.
        weight = torch.ones(8, 8, 1, 1)
        weight[-tile[0] :, : tile[1]] = 0.5
        keys = {"group_type": "Blocks", "kwargs": {"block_shape": block_shape}}
        assert torch.equal(self.mask(weights_model(a=weight), tile[0] * tile[1] / 64, **keys), weight == 1)

    def test_blocks_may_reach_over_the_kernel(self) -> None:
        weight = torch.ones(2, 2, 2, 2)
        weight[1, 1, 0, :] = 0
        keys = {"group_type": "Blocks", "kwargs": {"block_shape": [1, 1, 1, 2]}}
        assert torch.equal(self.mask(weights_model(a=weight), 1 / 8, **keys), weight == 1)

    # By granularity

    @pytest.mark.parametrize(
        ("granularity", "units", "rows"),
        [
            ({"dim": 0}, 8, [1]),
            ({"dim": 0, "size": 2}, 4, [2, 3]),
            ({"dim": 0, "heads": 2}, 2, [0, 1, 2, 3]),
            ({"dim": 0, "parts": 2}, 4, [1, 5]),
            ({"dim": 0, "parts": 2, "heads": 2}, 2, [2, 3, 6, 7]),
            ({"shape": [2, 2]}, 4, [2, 3]),
            ({"shape": [4, 2]}, 2, [0, 1, 2, 3]),
        ],
    )
    def test_granularity_says_what_goes_as_one(self, granularity: dict[str, Any], units: int, rows: list[int]) -> None:
        weight = graded([7, 1, 2, 4, 8, 3, 5, 6], 8, 2)
        assert groups_gone(self.mask(weights_model(a=weight), 1 / units, granularity=granularity)) == rows

    def test_tiles_may_reach_over_fewer_dimensions_than_the_tensor_has(self) -> None:
        mask = self.mask(weights_model(a=[[1.0, 0], [1, 2]]), granularity={"shape": [2]})
        assert groups_gone(mask, 1) == [0], "of columns that tie the first"

    def test_embeddings_lose_whole_words_or_whole_dimensions(self) -> None:
        weight = torch.tensor([[9.0, 1, 2], [1, 1, 1], [9, 1, 9], [2, 0, 1]])
        for dim, expected in ((0, [1, 3]), (1, [1])):
            model = network(a=nn.Embedding(4, 3, _weight=weight.clone()))
            assert groups_gone(self.mask(model, granularity={"dim": dim}), dim) == expected

    def test_an_lstm_loses_hidden_units_in_all_four_gates_at_once(self) -> None:
        lstm: Any = nn.LSTM(2, 3)
        with torch.no_grad():
            lstm.weight_ih_l0.copy_(graded([1, 1, 9, 1, 1, 1, 1, 5, 1, 1, 1, 1], 12, 2))
        mask = self.mask(network(a=lstm), 0.34, weights="a.weight_ih_l0", granularity={"dim": 0, "parts": 4})
        assert groups_gone(mask) == [0, 3, 6, 9], "unit 0 is the smallest over its four gates"
        lstm(torch.ones(1, 1, 2))

    def test_attention_loses_heads_in_queries_keys_and_values_at_once(self) -> None:
        attention = nn.MultiheadAttention(4, 2)
        with torch.no_grad():
            attention.in_proj_weight.copy_(graded([1, 1, 2, 2, 1, 1, 2, 2, 9, 9, 2, 2], 12, 4))
            attention.out_proj.weight.copy_(graded([1, 1, 2, 2], 4, 4, dim=1))
        model, heads = network(a=attention), {"dim": 0, "heads": 2, "parts": 3}
        mask = self.mask(model, weights="a.in_proj_weight", granularity=heads)
        assert groups_gone(mask) == [2, 3, 6, 7, 10, 11], "the second head, for its values are smallest"
        mask = self.mask(model, weights="a.out_proj.weight", granularity={"dim": 1, "heads": 2})
        assert groups_gone(mask, 1) == [0, 1]

    @pytest.mark.parametrize(
        "layer", [nn.ConvTranspose1d(3, 4, 2), nn.ConvTranspose2d(3, 4, 2), nn.ConvTranspose3d(3, 4, 2)]
    )
    def test_a_transposed_convolution_has_its_outputs_in_dimension_1(self, layer: Any) -> None:
        with torch.no_grad():
            layer.weight.copy_(graded([3, 1, 4, 2], *layer.weight.shape, dim=1))
        assert groups_gone(self.mask(network(a=layer), granularity={"dim": 1}), 1) == [1, 3]

    # What is refused

    @pytest.mark.parametrize(
        ("layer", "keys", "place", "message"),
        [
            (
                LINEAR,
                FILTERS,
                "weights",
                "'a.weight' has shape [4, 6] and no groups 'Filters'; granularity: {dim: 0} means",
            ),
            (LINEAR, {**FILTERS, "weights": "a.bias"}, "weights", "'a.bias' has shape [4] and no groups 'Filters'"),
            (LINEAR, {"group_type": "Rows", "weights": "a.bias"}, "weights", "has shape [4] and no groups 'Rows'"),
            (
                nn.ConvTranspose2d(4, 6, 3),
                FILTERS,
                "weights",
                "'a.weight' has shape [4, 6, 3, 3] in a ConvTranspose2d: dimension 0 is inputs and 1 outputs; "
                "say granularity: {dim: 0} or {dim: 1} in place of group_type: Filters",
            ),
            (
                CONV,
                {"group_type": "Blocks", "kwargs": {"block_shape": [3, 4, 1, 1]}},
                "weights",
                "'a.weight' has shape [4, 6, 3, 3], which tiles of shape [3, 4, 1, 1] do not cover",
            ),
            (CONV, {"group_type": "Blocks"}, "kwargs", "block_shape goes with group_type 'Blocks'"),
            (
                CONV,
                {**FILTERS, "kwargs": {"block_shape": [1, 1, 1, 1]}},
                "kwargs",
                "block_shape goes with group_type 'Blocks'",
            ),
            (
                CONV,
                {**FILTERS, "granularity": {"dim": 0}},
                "granularity",
                "leave out one of the two: both name the groups",
            ),
            (
                CONV,
                {"granularity": None},
                "granularity",
                "say either group_type or granularity: both name the groups",
            ),
            (LINEAR, {"granularity": {"dim": 2}}, "weights", "'a.weight' has shape [4, 6] and no dimension 2"),
            (
                LINEAR,
                {"granularity": {"dim": 0, "heads": 3}},
                "weights",
                "'a.weight' has shape [4, 6]: its dimension 0 is not divided into 3 heads",
            ),
            (
                LINEAR,
                {"granularity": {"dim": 0, "parts": 3}},
                "weights",
                "'a.weight' has shape [4, 6]: its dimension 0 is not divided into units of 1 in 3 parts",
            ),
            (
                LINEAR,
                {"granularity": {"shape": [4, 4]}},
                "weights",
                "'a.weight' has shape [4, 6], which tiles of shape [4, 4] do not cover",
            ),
            (
                CONV,
                {"group_type": "Cols"},
                "group_type",
                "must be '3D', 'Filters', 'Channels', 'Rows' or 'Blocks'",
            ),
        ],
    )
    def test_groups_that_a_layer_does_not_have_are_refused(
        self, layer: Module, keys: dict[str, Any], place: str, message: str
    ) -> None:
        ((where, said),) = self.problems(network(a=layer), **keys)
        assert (where, message in said) == (place, True), said
