"""A tiny random model of every text family of transformers."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

VOCABULARY, LARGEST = 64, 2_000_000

_KINDS = [
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
]
CLASSES: dict[str, Any] = {}
for kind in _KINDS:
    CLASSES = {**kind, **CLASSES}
"""The class of each family, by ``model_type``: the classifier's if it has one."""

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
# Values of the fields that a configuration has, under the names that families give them.
_SIZES = {
    VOCABULARY: ["vocab_size", "max_position_embeddings", "n_positions", "intermediate_size",
                 "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_inner",
                 "hidden_dim", "ffn_hidden_size", "pronunciation_vocab_size", "shape_vocab_size",
                 "entity_vocab_size", "num_hash_buckets"],
    32: ["hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size",
         "moe_intermediate_size", "shared_expert_intermediate_size", "word_embed_proj_dim",
         "entity_emb_size", "d_latents"],
    8: ["head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "num_latents"],
    16: ["q_lora_rank", "kv_lora_rank"],
    4: ["num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads",
        "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
        "num_experts", "n_routed_experts", "num_local_experts", "rotary_dim"],
    2: ["num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
        "decoder_layers", "num_encoder_layers", "num_decoder_layers", "num_key_value_heads",
        "num_experts_per_tok"],
    1: ["n_group", "topk_group", "first_k_dense_replace"],
}  # fmt: skip
# Fields with values of their own; None leaves the configuration's.
_SPECIAL: dict[str, dict[str, Any]] = {
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                   "norm_rel_ebd": "layer_norm", "position_buckets": 8, "share_att_key": True},
    "esm": {"mask_token_id": 4, "position_embedding_type": "absolute"},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lilt": {"hidden_size": 48},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 5, "shape_size": 6},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "mamba": {"layer_types": None},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip


def tiny_text_model(family: str) -> PreTrainedModel:
    """A tiny random model in eval mode, the same every time.

    Raises:
        Exception: whatever the configuration raises if these fields do not fit together.
    """
    name = CLASSES[family] if isinstance(CLASSES[family], str) else CLASSES[family][0]
    architecture, config = getattr(transformers, name), AutoConfig.for_model(family)
    if config.get_text_config() is not config:
        raise ValueError("a text model inside another")
    fields: dict[str, Any] = dict(_TOKENS)
    for value, names in _SIZES.items():
        fields |= {n: value for n in names if type(getattr(config, n, None)) is int}
    if getattr(config, "layer_types", None):
        fields["layer_types"] = [*dict.fromkeys(config.layer_types), *config.layer_types][:2]
    fields |= _SPECIAL.get(family, {})
    fields = {field: value for field, value in fields.items() if value is not None}
    config = AutoConfig.for_model(family, **fields)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in architecture(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count} parameters are not tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = architecture(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
            for module in model.modules():  # padding has no embedding, as after loading
                padding = getattr(module, "padding_idx", None)
                if isinstance(module, torch.nn.Embedding) and padding is not None:
                    module.weight[padding] = 0
    return model


def text_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two texts of eight tokens; the last one ends them, which classifiers of BART look for."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (2, 8), generator=generator)
    ids[:, -1] = _TOKENS["eos_token_id"]
    accepted = inspect.signature(model.forward).parameters
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder and "SequenceClassification" not in type(model).__name__:
        batch["decoder_input_ids"] = ids.clone()
    return {name: values for name, values in batch.items() if name in accepted}


def text_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's first output, in float32."""
    outputs = model(**batch)
    logits: Tensor = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    return logits.float()
