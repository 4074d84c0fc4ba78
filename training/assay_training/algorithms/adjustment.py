"""Adjust the quality label of a paraphrase by its similarity to the original ([CRS] algorithm 1)."""


def adjust_label(label: float, similarity: float) -> float:
    """Return the label of a paraphrase: the less it resembles the original, the lower its quality.

    `label' = clip(label − 0.5 · (1 − (similarity + 1) / 2), 0, 1)`, with the constants of the authors' code.

    Args:
        label: quality of the original text, in 0..1.
        similarity: cosine of the two texts' embeddings, in −1..1.

    Returns:
        The quality of the paraphrase, in 0..1.
    """
    return min(1.0, max(0.0, label - 0.5 * (1 - (similarity + 1) / 2)))
