"""Probabilities made honest by one number: temperature scaling (Guo et al. 2017).

Scores of a network are sharpened or softened all alike, softmax(log p / T), until they fit scans on which it was not
trained; T above 1 softens. Ranks within a class change little, the predicted class never.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.metrics.classification import LOWEST, refuse_unfit

if TYPE_CHECKING:
    from jaxtyping import Float, Int

COLDEST, WARMEST = 0.05, 20.0  # where every scan is right, the colder the better without end


@dataclass(frozen=True)
class Scaling:
    """A temperature and what it was fitted on."""

    temperature: float
    split: str
    scans: int
    subjects: int

    @property
    def note(self) -> str:
        """What a reader must know; "" where the fit is an ordinary one."""
        at_end = min(self.temperature / COLDEST, WARMEST / self.temperature) < 1.001
        what = f"temperature {self.temperature:.4g} is the end of the range {COLDEST:g} to {WARMEST:g}"
        return f"{what}: {self.scans} scans of split {self.split!r} do not determine it" if at_end else ""


def temperature(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> float:
    """The temperature from 0.05 to 20 at which the true classes are likeliest.

    Args:
        probabilities: [N, K], one row a scan, adding up to 1; below 1e-7 (float32) counts as 1e-7.
        truth: [N], class numbers 0 to K - 1.

    Raises:
        UserError: No scans, shapes that do not fit, scores that are no probabilities, a truth that is no class.
    """
    from scipy.optimize import minimize_scalar

    refuse_unfit(probabilities, truth, [str(number) for number in range(probabilities.shape[-1])])
    logits = _logits(probabilities)

    def loss(logarithm: float) -> float:  # convex in 1 / T, so it has one valley in log T, too
        log_probabilities = log_softmax(logits / math.exp(logarithm))
        return float(-np.take_along_axis(log_probabilities, truth[:, None], 1).mean())

    bounds = (math.log(COLDEST), math.log(WARMEST))
    minimum = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(min((*bounds, float(minimum.x)), key=loss))


def scaled(probabilities: Float[np.ndarray, "N K"], temperature: float) -> Float[np.ndarray, "N K"]:
    """Probabilities [N, K] at a temperature, above 0; 1 leaves them as they are."""
    result: Float[np.ndarray, "N K"] = np.exp(log_softmax(_logits(probabilities) / temperature))
    return result


def _logits(probabilities: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    result: Float[np.ndarray, "N K"] = np.log(np.maximum(probabilities.astype(np.float64), LOWEST))
    return result


def log_softmax(logits: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """Logarithms of probabilities, row by row, without overflow."""
    shifted = logits - logits.max(1, keepdims=True)
    result: Float[np.ndarray, "N K"] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
