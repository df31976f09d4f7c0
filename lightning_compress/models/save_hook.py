"""``save_pretrained`` of compressed models writes what ``save_compressed`` writes.

transformers' own would write weights and a configuration that do not belong together, and load
them later with random numbers in between. So the method is replaced at the first edit; what it does
to models without edits stays the same.
"""

import functools
from typing import Any


@functools.cache
def follow_save_pretrained() -> None:
    """Replace the method; the first call counts."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.save_pretrained

    @functools.wraps(original)
    def save_pretrained(self: PreTrainedModel, *args: Any, **options: Any) -> None:
        from lightning_compress.saving import save_edited

        if not save_edited(self, *args, **options):
            original(self, *args, **options)

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
