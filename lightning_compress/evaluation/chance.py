"""Whether a model has learned anything: the score of one that has not."""

from collections.abc import Mapping

from lightning_compress.conventions import ProblemType


def chance_of(
    problem_type: ProblemType | None,
    *,
    examples: int,
    label_counts: Mapping[int, int],
    vocabulary: int,
) -> float:
    """The value of the primary metric that a model has to be better than.

    That of a constant answer, and two standard errors more, which it could reach by luck.

    Args:
        problem_type: what kind of labels; None for language models.
        examples: how many it is measured on.
        label_counts: how many of them have each label, in classification.
        vocabulary: tokens a language model chooses from.

    Returns:
        Accuracy of the commonest class; F1 of saying every label; no correlation; the perplexity
        of tokens that are all as likely.
    """
    if problem_type is None:
        return float(vocabulary)
    if problem_type == "regression":
        return 2 / max(1, examples - 1) ** 0.5
    if problem_type == "multi_label_classification":
        share = sum(label_counts.values()) / (examples * max(1, len(label_counts)))
        return 2 * share / (1 + share)
    share = max(label_counts.values()) / examples
    return float(share + 2 * (share * (1 - share) / examples) ** 0.5)
