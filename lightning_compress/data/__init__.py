"""Text in, batches out; knows nothing of models."""

from lightning_compress.data.language_modeling import LanguageModelingDataModule
from lightning_compress.data.text_classification import TextClassificationDataModule

__all__ = ["LanguageModelingDataModule", "TextClassificationDataModule"]
