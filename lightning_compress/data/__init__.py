"""Text in, batches out; knows nothing of models."""

from lightning_compress.data.language_modeling import LanguageModelingDataModule
from lightning_compress.data.question_answering import QuestionAnsweringDataModule
from lightning_compress.data.reranking import RerankingDataModule
from lightning_compress.data.sentence_pairs import SentencePairDataModule
from lightning_compress.data.text_classification import TextClassificationDataModule
from lightning_compress.data.token_classification import TokenClassificationDataModule

__all__ = [
    "LanguageModelingDataModule",
    "QuestionAnsweringDataModule",
    "RerankingDataModule",
    "SentencePairDataModule",
    "TextClassificationDataModule",
    "TokenClassificationDataModule",
]
