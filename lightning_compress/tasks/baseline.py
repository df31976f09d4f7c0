"""Whether a model has learned anything: the score of one that has not."""

from collections.abc import Mapping

from lightning_compress.types import ProblemType


def chance_of(
    problem_type: ProblemType | None,
    *,
    examples: int,
    label_counts: Mapping[int, int],
    vocabulary: int,
) -> float:
    """The value of the primary metric that a model has to be better than.

    That of the best constant answer, and what more could be luck: two standard errors, or a tenth
    of a perplexity.

    Args:
        problem_type: what kind of labels; None for language models.
        examples: how many it is measured on.
        label_counts: how many of them have each label, in classification.
        vocabulary: tokens a language model chooses from.

    Returns:
        Accuracy of the commonest class; micro F1 of the commonest labels, as many as give the
        highest; no correlation; the perplexity of tokens that are all as likely.
    """
    if problem_type is None:
        return 0.9 * vocabulary
    if problem_type == "regression":
        return float(2 / max(1, examples - 1) ** 0.5)
    if problem_type == "multi_label_classification":
        right, best, given = 0, 0.0, sum(label_counts.values())
        for labels, count in enumerate(sorted(label_counts.values(), reverse=True), start=1):
            right += count
            best = max(best, 2 * right / (examples * labels + given))
        return best
    share = max(label_counts.values()) / examples
    return float(share + 2 * (share * (1 - share) / examples) ** 0.5)
