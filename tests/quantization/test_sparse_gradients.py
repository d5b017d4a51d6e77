"""Quantized embeddings with `sparse=True` train as dense ones do, and their optimizers get sparse gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import SILENT, window
from torch import Tensor, nn
from torch.optim import SGD, Optimizer, SparseAdam

from prunekit import CompressionScheduler

QUANTIZERS = ("DorefaQuantizer", "PACTQuantizer", "WRPNQuantizer", "QuantAwareTrainRangeLinearQuantizer")
LAYERS: dict[str, Callable[[bool], nn.Module]] = {
    "Embedding": lambda sparse: nn.Embedding(9, 6, sparse=sparse),
    "EmbeddingBag": lambda sparse: nn.EmbeddingBag(9, 6, mode="sum", sparse=sparse),
}


def run(quantizer: str, layer: str, sparse: bool, made: Callable[[list[Tensor]], Optimizer]) -> tuple[Tensor, Tensor]:
    """The last gradient, and the weights after four steps."""
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[layer](sparse), nn.Linear(6, 4))
    optimizers = [made([model[0].weight]), SGD(model[1].parameters(), lr=0.1)]
    data = {
        "version": 1,
        "quantizers": {"q": {"class": quantizer, "bits_weights": 4, "bits_activations": None}},
        "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}}},
        "policies": [
            {"pruner": {"instance_name": "p"}, **window(0, 2)},
            {"quantizer": {"instance_name": "q"}, **window(0, 2)},
        ],
    }
    scheduler = CompressionScheduler.from_dict(data, model, optimizers, trace=SILENT)
    weight = model[0]._parameters["weight"]
    for _ in scheduler.epochs(2):
        for words in scheduler.minibatches([torch.tensor([[1, 2], [2, 5]]), torch.tensor([[1, 8], [3, 1]])]):
            model.zero_grad()
            scheduler.total_loss(model(words).pow(2).mean()).backward()
            for optimizer in optimizers:
                optimizer.step()
    return weight.grad, weight.detach()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_sparse_embedding_trains_as_a_dense_one(quantizer: str, layer: str) -> None:
    gradient, weights = run(quantizer, layer, True, lambda p: SGD(p, lr=0.5))
    dense_gradient, dense_weights = run(quantizer, layer, False, lambda p: SGD(p, lr=0.5))
    assert gradient.layout == torch.sparse_coo
    assert torch.allclose(gradient.to_dense(), dense_gradient) and torch.allclose(weights, dense_weights)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_an_optimizer_that_takes_sparse_gradients_only_gets_them(quantizer: str) -> None:
    gradient, weights = run(quantizer, "Embedding", True, lambda p: SparseAdam(p, lr=0.01))
    assert gradient.layout == torch.sparse_coo and int((weights == 0).sum()) == 27
