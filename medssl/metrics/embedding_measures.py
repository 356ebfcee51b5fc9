"""Measures of embeddings without any label: how many directions they use, and how much they differ between scans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

EPSILON = 1e-7  # as in RankMe
GROUP = 16  # rows whose spread is taken together
DEAD = 1e-3  # deviation of a feature, as a share of the embeddings' root mean square


def effective_rank(embeddings: Float[np.ndarray, "N D"]) -> float:
    """How many directions embeddings use: from about 1 (all alike but for length) to the smaller of N and D.

    With singular values s_k: p_k = s_k / sum_j s_j + 1e-7 and exp(-sum_k p_k log p_k), as Garrido et al. (RankMe, ICML
    2023). Not centered. Compare only embeddings of the same scans: it grows with their number.
    """
    values = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    shares = values / max(float(values.sum()), EPSILON) + EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Mean deviation of the features of embeddings of length 1, times sqrt(D): 0 is collapse, 1 every direction alike.

    As Chen & He watch it (SimSiam, CVPR 2021, section 4.1).
    """
    x = embeddings.astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return float(x.std(0).mean() * np.sqrt(x.shape[1]))


def variation(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Mean deviation of the features, each as a share of its own root mean square: 0 is collapse, 1 a mean of 0.

    Unlike the spread, it does not see how large a constant part is that all embeddings share in a few features. Large
    transformers have such features (Sun et al., Massive Activations in Large Language Models, COLM 2024), beside which
    the spread of healthy embeddings is next to 0. Features that are 0 everywhere count as 0.
    """
    x = embeddings.astype(np.float64)
    scale = np.sqrt((x**2).mean(0))
    return float((x.std(0) / np.where(scale > 0, scale, 1)).mean())


def dead_share(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Share of features that hardly differ between rows: deviation up to 0.001 of the root mean square of them all."""
    x = embeddings.astype(np.float64)
    return float((x.std(0) <= DEAD * np.sqrt((x**2).mean())).mean())


def describe(embeddings: Float[np.ndarray, "N D"]) -> dict[str, float]:
    """Measures of the embeddings of consecutive steps, the oldest first.

    A network in training moves its embeddings from step to step, which is no difference between scans: spread and
    variation are means over groups of 16 rows or more, and for the other two each group is moved to the mean of all.

    Returns:
        "embedding_not_finite", the share of rows that hold NaN or infinity; of the others, where they are two or more,
        "embedding_rank", "embedding_spread", "embedding_variation" and "embedding_dead".
    """
    finite = np.isfinite(embeddings).all(1)
    rows, lost = embeddings[finite].astype(np.float64), {"embedding_not_finite": float((~finite).mean())}
    if len(rows) < 2:
        return lost
    groups = np.array_split(rows, max(1, len(rows) // GROUP))
    still = np.concatenate([group - group.mean(0) for group in groups]) + rows.mean(0)
    return lost | {
        "embedding_rank": effective_rank(still),
        "embedding_spread": float(np.mean([spread(group) for group in groups])),
        "embedding_variation": float(np.mean([variation(group) for group in groups])),
        "embedding_dead": dead_share(still),
    }
