"""Texts as they are, for causal and masked language modelling."""

from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import Sequences, Targets
from lightning_compress.data.masking import MaskedTokens, NextTokens
from lightning_compress.data.options import TextDataOptions
from lightning_compress.data.sequences import PackedBlocks, StoredTexts
from lightning_compress.data.splits import SplitName, first_id
from lightning_compress.data.token_cache import Encoding
from lightning_compress.data.tokenizer import special_tokens_around, vocabulary_size
from lightning_compress.errors import InputError, require_choice
from lightning_compress.types import KeywordsOf

Objective = Literal["causal", "masked"]


class LanguageModelingDataModule(TextDataModule):
    """Batches for language models.

    ``labels`` [B, S] stand at the places of the tokens they ask for, -100 where nothing is asked
    for; nothing is shifted here, the loss of a causal model does that.

    Packed, the texts are joined by the tokenizer's end-of-text (or separator) token and cut into
    blocks of ``max_length``, across the texts' borders; ``example_id`` then counts blocks, and
    validation blocks split off the training rows like those of a validation file. Else
    each text is one sequence, cut at ``max_length``.

    Args:
        objective: predict the next token, or masked ones.
        packing: join the texts.
        mask_probability: share of the tokens that the masked objective asks for.
        options: those of every data module, see ``TextDataModule``.
    """

    tasks: tuple[str, ...] = ("causal-lm", "masked-lm")

    def __init__(
        self,
        *,
        objective: Objective = "causal",
        packing: bool = True,
        mask_probability: float = 0.15,
        **options: KeywordsOf[TextDataOptions],
    ) -> None:
        super().__init__(**options)
        require_choice("data.objective", objective, get_args(Objective))
        self.objective = objective
        self.tasks = ("causal-lm",) if objective == "causal" else ("masked-lm",)
        self.packing = packing
        self.mask_probability = mask_probability
        if not 0 < mask_probability < 1:
            raise InputError(
                f"data.mask_probability is {mask_probability}: it must lie between 0 and 1"
            )
        if len(self.columns) != 1:
            raise InputError(f"data.text is {self.columns}: a language model reads one column")
        if self.max_length < 2:
            raise InputError(f"data.max_length is {self.max_length}: it must be at least 2")
        if "unlabelled" in (self.splits or {}):
            raise InputError(
                "data.splits.unlabelled: a language model needs no labels, name the files in "
                "data.splits.train"
            )

    def retokenized(self, tokenizer: str) -> Self:
        """The same texts under the same ids in other tokens.

        Raises:
            InputError: the texts are packed.
        """
        if self.packing:
            raise InputError(
                "data.packing: blocks of another tokenizer's tokens hold other texts, set it to "
                "false"
            )
        return super().retokenized(tokenizer)

    def _learn(self, stage: str) -> None:
        assert self.tokenizer is not None
        if self.objective == "masked" and self.tokenizer.mask_token_id is None:
            raise InputError(
                "data.objective is masked, and the tokenizer has no mask token: use the causal "
                "objective, or the tokenizer of a masked language model in data.tokenizer"
            )

    def _encoding(self) -> Encoding:
        # Whole texts: cutting to blocks or to max_length is done on the ids.
        if self.objective == "causal":
            return Encoding(end=self._separator())
        return Encoding(special_tokens=False, end=self._separator() if self.packing else None)

    def _separator(self) -> int:
        assert self.tokenizer is not None
        for token in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            if token is not None:
                return int(token)
        raise InputError(
            "data.tokenizer has neither an end-of-text nor a separator token to put between texts: "
            "add eos_token to its tokenizer_config.json"
        )

    def _sequences(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Sequences:
        assert self.tokenizer is not None
        store = self._tokens(origin)
        causal = self.objective == "causal"
        prefix, suffix = ((), ()) if causal else special_tokens_around(self.tokenizer)
        least = 2 if causal else 1  # a single token has no next one
        sequences: Sequences
        if self.packing:
            sequences = PackedBlocks(
                store,
                rows,
                first_id=first_id(split),  # blocks are not rows: each split counts its own
                block=self.max_length,
                prefix=prefix,
                suffix=suffix,
                shortest=least,
            )
        else:
            rows = rows[store.lengths[rows] >= least]
            sequences = StoredTexts(
                store,
                rows,
                first_id(origin) + rows,
                max_length=self.max_length,
                prefix=prefix,
                suffix=suffix,
            )
        if not len(sequences.ids):
            raise InputError(f"{self.sources[origin].name} is too short for a single prediction")
        return sequences

    def _targets(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Targets:
        assert self.tokenizer is not None
        if self.objective == "causal":
            return NextTokens()
        mask_token_id = self.tokenizer.mask_token_id
        assert mask_token_id is not None
        return MaskedTokens(
            probability=self.mask_probability,
            mask_token_id=mask_token_id,
            special_token_ids=self.tokenizer.all_special_ids,
            vocabulary=vocabulary_size(self.tokenizer),
            seed=self.seed,
        )
