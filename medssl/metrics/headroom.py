r"""Share of the headroom that pretraining takes, with its interval.

The headroom is the difference between an encoder that was trained with all labels (the oracle) and one without
pretraining (scratch). With tables [runs, subjects] of an arm, of scratch and of the oracle::

    share = mean(arm - scratch) / mean(oracle - scratch)

The interval draws runs and subjects again together (Owen 2007), for numerator and denominator alike. Its percentiles
are moved so that it is as wide as the standard error of ``(arm - scratch) - share (oracle - scratch)`` requires (the
linear approximation of a ratio). Without a headroom that is surely above 0 there is no share: a ratio with a
denominator near 0 is not defined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.metrics.comparison import (
    FEWEST_IN_TAIL,
    FEWEST_SUBJECTS,
    LEVEL,
    RESAMPLES,
    Difference,
    averaged_runs,
    difference,
    standard_error,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float


@dataclass(frozen=True)
class Headroom:
    """The headroom at one number of labeled subjects, and the share of it that an arm takes.

    Attributes:
        labels: Number of labeled subjects.
        oracle: Oracle less scratch.
        share: Share of it that the arm gains; None where the headroom may be 0. Below 0 where the arm is worse than
            scratch, above 1 where it is better than the oracle.
        low: Lower bound of the 95 % interval of the share.
        high: Upper bound.
    """

    labels: int
    oracle: Difference
    share: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def exists(self) -> bool:
        """Whether the headroom is surely above 0: its whole interval is."""
        return self.oracle.low is not None and self.oracle.low > 0

    def sentence(self, measure: str) -> str:
        """For example "takes 40 % [12 %, 71 %] of the headroom at 2 labeled subjects (+0.080 Dice)"."""
        size = f"{self.oracle.value:+.3f} {measure}"
        if self.oracle.low is not None and self.oracle.high is not None:
            size += f" [{self.oracle.low:+.3f}, {self.oracle.high:+.3f}]"
        if self.share is None or self.low is None or self.high is None:
            return f"no headroom at {self.labels} labeled subjects ({size}): nothing can be shown here"
        share = f"{self.share:.0%} [{self.low:.0%}, {self.high:.0%}]"
        return f"takes {share} of the headroom at {self.labels} labeled subjects ({size})"


def headroom(
    labels: int,
    arm: Float[np.ndarray, "R S"],
    scratch: Float[np.ndarray, "R S"],
    oracle: Float[np.ndarray, "R S"],
    *,
    pretrainings: Sequence[int] | None = None,
    seed: int = 0,
) -> Headroom:
    """Share of the headroom that an arm takes.

    Args:
        labels: Number of labeled subjects.
        arm: Scores of each run (rows) on each test subject (columns); NaN where a score is not defined.
        scratch: Scores of the paired runs without pretraining.
        oracle: Scores of the paired runs of the oracle.
        pretrainings: Number of the pretraining of each run of the arm, if there are several.
        seed: Of the draws.

    Raises:
        UserError: The tables differ in shape, or no subject has a score in every run.
    """
    size = difference(oracle, scratch, seed=seed)
    result = Headroom(labels, size)
    whole = np.isfinite(arm).all(0) & np.isfinite(scratch).all(0) & np.isfinite(oracle).all(0)
    gain, room = (averaged_runs((one - scratch)[:, whole], pretrainings) for one in (arm, oracle))
    runs, subjects = gain.shape
    if not result.exists or runs < 2 or subjects < FEWEST_SUBJECTS or room.mean() <= 0:
        return result
    share = float(gain.mean() / room.mean())
    low, high = _interval(gain, room, share, np.random.default_rng(seed))
    return Headroom(labels, size, share, low, high)


def _interval(
    gain: Float[np.ndarray, "R S"], room: Float[np.ndarray, "R S"], share: float, generator: np.random.Generator
) -> tuple[float, float]:
    """95 % interval of a ratio of means from drawing runs and subjects again together."""
    from scipy.special import ndtr, stdtrit

    of_runs, of_subjects = (
        generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count for count in gain.shape
    )
    gains, rooms = (np.einsum("br,rs,bs->b", of_runs, one, of_subjects, optimize=True) for one in (gain, room))
    _, error, freedom = standard_error(gain - share * room)
    reach = -float(stdtrit(float(freedom), LEVEL / 2)) * float(error)
    spread = float((gains - share * rooms).std())
    if spread == 0 or error == 0:
        return share, share
    tail = float(ndtr(-reach / spread))
    if tail < FEWEST_IN_TAIL / RESAMPLES:
        return share - reach / float(room.mean()), share + reach / float(room.mean())
    drawn = gains[rooms > 0] / rooms[rooms > 0]  # a draw without headroom defines no share
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return float(low), float(high)
