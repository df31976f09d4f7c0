"""Every recipe goes through the real parser."""

import sys
from pathlib import Path

import pytest

from lightning_compress.cli.trainer import CompressCLI, command_line

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))
LOCAL = sorted((ROOT / "benchmarks" / "local").glob("*.yaml"))


def parse(monkeypatch, *files):
    parsed = []

    def stop(cli):
        parsed.append(cli.config.fit)
        raise SystemExit(0)

    monkeypatch.setattr(CompressCLI, "before_instantiate_classes", stop)
    options = [part for file in files for part in ("--config", str(file))]
    monkeypatch.setattr(sys, "argv", ["lightning-compress", "fit", *options])
    with pytest.raises(SystemExit, match="0"):
        command_line()
    return parsed[0]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_parse(recipe, monkeypatch):
    parsed = parse(monkeypatch, recipe)
    assert parsed.model.class_path.startswith("lightning_compress.modules.")
    assert parsed.data.class_path.startswith("lightning_compress.data.")
    assert recipe.read_text().startswith("# ")


@pytest.mark.parametrize("overlay", LOCAL, ids=lambda path: path.name)
def test_local_overlays_parse_with_each_recipe_they_are_for(overlay, monkeypatch):
    words = overlay.stem.split("_")
    recipes = [recipe for recipe in RECIPES if all(word in recipe.stem for word in words)]
    assert recipes
    for recipe in recipes:
        data = parse(monkeypatch, recipe, overlay).data.init_args
        assert data.path.startswith("../shared")
        assert data.config is None, "only a dataset on the Hub has one"


def test_the_recipes_of_the_first_release_are_there():
    assert {path.stem for path in RECIPES} >= {
        "quickstart", "finetune_sst2", "magnitude_sst2", "magnitude_imdb", "magnitude_mrpc",
        "pretrain_imdb_mlm", "gpt2_imdb_lm", "heads_sst2", "structured_sst2", "layers_imdb",
        "post_training_sst2", "post_training_mrpc", "heads_gpt2_lm",
    }  # fmt: skip
