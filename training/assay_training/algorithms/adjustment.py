"""The label of a paraphrase ([CRS] Algorithm 1, with the constants of its author's code)."""


def adjusted_label(label: float, similarity: float) -> float:
    """`clip(label - 0.5 (1 - (similarity + 1) / 2), 0, 1)`: the less a paraphrase resembles the text, the worse it is.

    Args:
        label: quality of the original, 0..1.
        similarity: cosine of the two texts' embeddings, -1..1.

    Returns:
        The quality of the paraphrase, 0..1.
    """
    return min(1.0, max(0.0, label - 0.5 * (1 - (similarity + 1) / 2)))
