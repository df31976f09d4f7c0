"""The supported families and a tiny model of each, derived from the product's table.

A family that is added to ``lightning_compress.models.families.FAMILIES`` is tested by all tests
that are parametrised over these lists.
"""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from lightning_compress.models.families import FAMILIES

# Families that read texts, and those that read images.
ALL = [family for family in FAMILIES if FAMILIES[family].image_positions is None]
IMAGES = [family for family in FAMILIES if family not in ALL]
# Families whose layers are modules of their own; ALBERT's share one block.
STACKED = [family for family in ALL if not FAMILIES[family].shared]
# Most tests of these run in the whole suite only; tests/models/test_families.py tests them all.
SLOW = [
    "xlm-roberta", "camembert", "mpnet", "deberta-v2", "modernbert",
    "mistral", "qwen2", "qwen3", "gemma",
]  # fmt: skip
SUBSTITUTABLE = [family for family in ALL if FAMILIES[family].substitutable]

LIKE_ROBERTA = ["roberta", "xlm-roberta", "camembert", "mpnet"]
OPTIONS: dict[str, dict[str, Any]] = {
    "modernbert": {"local_attention": 6},  # some layers see 3 tokens to each side
    "deberta-v2": {  # as DeBERTa-v3, but with projections of positions
        "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
        "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
    },
}  # fmt: skip

VOCABULARY, HIDDEN, HEADS, NEURONS, POSITIONS = 100, 32, 4, 64, 64


def tiny_options(family: str, **changes: object) -> dict[str, Any]:
    """Options of a configuration: 2 layers, 32 hidden units, 4 heads, 64 neurons, 100 tokens.

    Args:
        family: key of ``FAMILIES``.
        changes: other values, by the common names (``hidden_size``, ``num_hidden_layers``,
            ``num_attention_heads``, ``max_position_embeddings``), which each configuration class
            maps to its own.
    """
    entry, default = FAMILIES[family], AutoConfig.for_model(family)
    if family in IMAGES:
        return {**_image_options(family), **changes}
    sizes: dict[str, Any] = {
        "model_type": family,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        entry.inner: NEURONS,
        # Two more where positions are counted from behind the padding index.
        "max_position_embeddings": POSITIONS + 2 * (family in LIKE_ROBERTA),
    }
    if hasattr(default, "embedding_size"):
        sizes["embedding_size"] = 16
    if hasattr(default, "num_key_value_heads"):  # pairs of query heads share a key-value head
        sizes |= {"num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS}
        if hasattr(default, "head_dim"):
            sizes["head_dim"] = HIDDEN // (2 * HEADS)
    for token in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if (getattr(default, token, None) or 0) >= VOCABULARY:
            sizes[token] = 1
    return {**sizes, **OPTIONS.get(family, {}), **changes}


def _image_options(family: str) -> dict[str, Any]:
    """Of a model of images of 8 times 8 pixels, in four patches."""
    return {
        "model_type": family, "architectures": [], "image_size": 8, "patch_size": 4,
        "hidden_size": HIDDEN, "intermediate_size": NEURONS,
        "num_hidden_layers": 2, "num_attention_heads": HEADS,
    }  # fmt: skip


def tiny_config(family: str, **changes: object) -> PreTrainedConfig:
    """The configuration of :func:`tiny_options`."""
    config: PreTrainedConfig = AutoConfig.for_model(**tiny_options(family, **changes))
    return config


def tiny_model(family: str, **changes: object) -> PreTrainedModel:
    """A random classifier of :func:`tiny_config`, in eval mode, the same every time."""
    config = tiny_config(family, **changes)
    if family in IMAGES:
        return _seeded(AutoModelForImageClassification, config)
    return _seeded(AutoModelForSequenceClassification, config)


def tiny_language_model(family: str, **changes: object) -> PreTrainedModel:
    """A random causal language model of :func:`tiny_config`, in eval mode, the same every time."""
    return _seeded(AutoModelForCausalLM, tiny_config(family, **changes))


def randomize_(
    model: PreTrainedModel, *, seed: int = 2, low: float = 0.2, high: float = 0.2
) -> PreTrainedModel:
    """Add noise to all weights, as large as training leaves them, so that no bias is zero.

    Args:
        model: changed in place and put in eval mode.
        seed: of the noise.
        low: smallest standard deviation of the noise of one weight tensor.
        high: largest; where it is greater than ``low``, each tensor draws its own, so that no two
            layers are alike.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            spread = low
            if high > low:
                spread += (high - low) * float(torch.rand((), generator=generator))
            weight.add_(spread * torch.randn(weight.shape, generator=generator))
    model.eval()
    return model


def _seeded(auto_class: type, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
    model.eval()
    return model
