"""Configurations and recipes of the transformers' training script."""

import json

import pytest
import torch
import train_transformer as script
from small_transformers import parameters
from transformer_recipe import ProgramRecipe

PUBLISHED = sorted((script.CONFIGS / "published").glob("*.json"))
#: parameters of the programs, without those that they never use
COUNTS = {
    "spikformer_4_384_cifar": 9_324_730,
    "spikingformer_4_384_cifar": 9_320_122,
    "sglformer_384_cifar": 8_852_874,
    "swformer_4_384_cifar": 7_479_226,
    "spiking_resformer_cifar": 10_793_152,
}


def test_small_configurations_have_about_300_thousand_parameters():
    found = sorted(script.CONFIGS.glob("*.json"))
    assert len(found) == 14
    for path in found:
        count = parameters(script.build, config=script.read(path))
        assert 240_000 < count < 340_000, path.stem


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_configurations_are_those_of_the_programs(path):
    config = script.read(path)
    assert parameters(script.build, config=config) == COUNTS[path.stem]
    weight = torch.nn.Parameter(torch.zeros(1))
    recipe = config["recipe"]
    optimizer = torch.optim.AdamW([weight], recipe["lr"])
    way = ProgramRecipe(recipe, optimizer, script.MEAN)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for epoch in (0, way.epochs - 1):
        way.begin(epoch)
        mixed = False
        for _ in range(20):  # a share of nearly 0 or 1 mixes nothing that is seen
            x, target = way.batch(pixels, torch.arange(8))
            assert x.shape == pixels.shape and target.shape == (8, 10)
            torch.testing.assert_close(target.sum(1), torch.ones(8))
            mixed |= bool(((target > 0.02).sum(1) > 1).any())
        assert mixed == (epoch == 0 or way.mixup_off is None)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5, rel=0.1)


def test_rates_are_those_of_a_program_s_log():
    """Spikingformer-CML's log for CIFAR-10 shows 1.000e-05, 3.450e-05, 5.900e-05, ..."""
    recipe = script.read(script.CONFIGS / "published" / "spikingformer_4_384_cifar.json")["recipe"]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], recipe["lr"])
    way = ProgramRecipe(recipe, optimizer, script.MEAN)
    rates = []
    for epoch in (0, 1, 2, 8, 400, 409):
        way.begin(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-5, 3.45e-5, 5.9e-5, 2.06e-4, 1e-5, 1e-5])
    assert way.epochs == 410


def test_a_program_s_recipe_trains(tmp_path):
    config = {
        "model": "sts.sts_transformer",
        "arguments": {
            "num_classes": 10,
            "T": 2,
            "dim": 16,
            "depth": 1,
            "in_channels": 3,
            "image_size": 32,
        },
        "recipe": {"epochs": 1, "batch_size": 8, "clip": None, "program": {"cooldown_epochs": 1}},
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config))
    (record,) = script.main(
        [str(path), "--short", "--limit", "16", "--test-limit", "8", "--output", str(tmp_path)]
    )
    assert 0 <= record["accuracy"] <= 1 and record["images"] == 16


def test_what_a_recipe_does_not_know_is_refused(tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text('{"model": "sts.sts_transformer", "recipe": {"drop_path": 0.1}}')
    with pytest.raises(ValueError, match="recipe has 'drop_path'"):
        script.read(path)
    recipe = script.RECIPE | {"program": {"drop_path": 0.1}}
    with pytest.raises(ValueError, match="program has 'drop_path'"):
        ProgramRecipe(recipe, torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]), script.MEAN)
