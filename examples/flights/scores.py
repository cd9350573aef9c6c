"""Accuracy and AUC of probabilities, without a library."""

from collections.abc import Sequence


def accuracy(truth: Sequence[int], probability: Sequence[float]) -> float:
    """Return the share of right guesses at a threshold of one half."""
    return sum((p >= 0.5) == bool(t) for t, p in zip(truth, probability, strict=True)) / len(probability)


def roc_auc(truth: Sequence[int], probability: Sequence[float]) -> float:
    """
    Return the probability that a random 1 has a larger value than a random 0, ties counting one half.

    Source: Mann-Whitney U. NaN when only one class is there.
    """
    pairs = sorted(zip(probability, truth, strict=True))
    ones = sum(t for _, t in pairs)
    zeros = len(pairs) - ones
    if not ones or not zeros:
        return float("nan")
    rank_sum, first = 0.0, 0
    while first < len(pairs):
        end = first
        while end < len(pairs) and pairs[end][0] == pairs[first][0]:
            end += 1
        # Equal values share the mean of their ranks, which count from 1.
        rank_sum += (first + 1 + end) / 2 * sum(t for _, t in pairs[first:end])
        first = end
    return (rank_sum - ones * (ones + 1) / 2) / (ones * zeros)
