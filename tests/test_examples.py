"""The example whose batches are dicts: trained by the command line, and as good as its page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from prunekit.cli.group import prunekit
from prunekit.training.checkpoint import BEST, load_checkpoint
from prunekit.training.results import RESULT

ROOT = Path(__file__).parents[1]


def test_dict_batches_two_losses_and_an_average_train_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = str(tmp_path / "run")
    arguments = ["train", "examples/schedules/reader_agp.yaml", "--app", "examples.two_losses:reader", "--epochs", "6"]
    result = CliRunner().invoke(prunekit, [*arguments, "--run-dir", run])
    assert (result.exit_code, result.stderr) == (0, "")
    data = json.loads((tmp_path / "run" / RESULT).read_text())
    assert [entry["stage"] for entry in data["epochs"]] == ["dense", *["partial"] * 3, "final", "final"]
    assert list(data["epochs"][0]["parts"]) == ["drawing", "reading"]
    assert (data["best"]["stage"], data["totals"]["pruned"]["sparsity"]) == ("final", pytest.approx(0.8, abs=1e-4))
    assert data["accuracy"] > 0.9
    best = load_checkpoint(tmp_path / "run" / BEST)
    assert set(best["average"]) == {f"{part}.{name}" for part in ("encoder", "decoder", "classifier")
                                    for name in ("weight", "bias")}  # fmt: skip
    exported = CliRunner().invoke(prunekit, ["export", f"{run}/{BEST}", "--to", "safetensors"])
    assert exported.exit_code == 0, exported.output
    encoder = load_file(tmp_path / "run" / "model.safetensors")["encoder.weight"]
    average = best["average"]["encoder.weight"]
    assert torch.equal(encoder, average * best["scheduler"]["masks"]["encoder.weight"]["pruned"])
