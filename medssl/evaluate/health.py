"""Whether embeddings use the room that they have, without any label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

EPSILON = 1e-7  # as in RankMe


def effective_rank(embeddings: Float[np.ndarray, "N D"]) -> float:
    """How many directions embeddings use: from about 1 (all alike but for length) to the smaller of N and D.

    With singular values s_k: p_k = s_k / sum_j s_j + 1e-7 and exp(-sum_k p_k log p_k), as Garrido et al. (RankMe, ICML
    2023). Not centred. Compare only embeddings of the same scans: it grows with their number.
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
