"""Masked language modelling: masked tokens are predicted where they were."""

from lightning_compress.tasks.language_modeling import LanguageModeling


class MaskedLM(LanguageModeling):
    """Predict masked tokens. Labels are -100 at every position that is not masked."""

    name = "masked-lm"
    auto_class = "AutoModelForMaskedLM"
