r"""Whether one way of training is better than another: differences over runs and subjects, and their verdict.

Scores are tables [runs, subjects]: the same test subjects for both ways, and pairs of runs (same labeled subjects,
same seed). With difference :math:`d_{rs}` of run r and subject s::

    d_rs = m + a_r + b_s + e_rs              effect of the run, effect of the subject, the rest
    se^2 = (MS_a + MS_b - MS_e) / (R S)      mean squares of a two-way table without replication (Searle et al. 1992)

Both the choice of labeled subjects and the choice of test subjects are random: an interval of one of them alone is too
narrow. The interval comes from drawing runs and subjects again together (Owen 2007). Its percentiles are moved so that
it is as wide as the standard error and its degrees of freedom (Satterthwaite 1946) require; if almost no draw lies so
far out, it is the mean and as many standard errors to either side. The p-value comes from flipping the signs of the
estimated effects a, b and e, each by itself, and counting how often the studentized mean becomes as large (a sign-flip,
or wild, permutation test: Winkler et al. 2014). Five runs have few signs to flip, so that it is never below that of
Student's t. p-values of several comparisons are corrected together (Holm 1979).

Runs of an arm may start from several pretrainings (seeds). Runs of one pretraining have its random variation in common,
so that they are no independent runs. Then the runs of each pretraining are averaged first, and the table is
[pretrainings, subjects]: pretrainings and subjects are drawn again together (a cluster bootstrap: Davison and Hinkley
1997, 3.8).

Not scipy: it resamples one factor, not runs and subjects together, and has no correction by Holm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int

FEWEST_RUNS = 5  # with fewer, variation between runs hides the gain
FEWEST_SUBJECTS = 3
FEWEST_PRETRAININGS = 3  # of an arm that has several
RESAMPLES, FLIPS = 2000, 4999
FEWEST_IN_TAIL = 5  # resamples beyond a bound
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """First less second, over pairs of runs and over subjects.

    Attributes:
        value: Mean difference.
        low: Lower bound of the 95 % interval; None where there are too few runs or subjects.
        high: Upper bound.
        p: Two-sided p-value, not corrected; None where there is no interval.
        runs: Pairs of runs.
        subjects: Test subjects with a score in every run.
        left_out: Test subjects without a score in some run.
        pretrainings: Pretrainings that the runs of the first start from.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    runs: int
    subjects: int
    left_out: int = 0
    pretrainings: int = 1

    @property
    def conclusive(self) -> bool:
        """Whether there are runs, pretrainings and subjects enough for a verdict."""
        few = 1 < self.pretrainings < FEWEST_PRETRAININGS
        return self.runs >= FEWEST_RUNS and self.p is not None and not few


def difference(
    first: Float[np.ndarray, "R S"],
    second: Float[np.ndarray, "R S"],
    *,
    pretrainings: Sequence[int] | None = None,
    seed: int = 0,
) -> Difference:
    """Compares two ways of training.

    Args:
        first: Scores of each run (rows) on each test subject (columns); NaN where a score is not defined.
        second: Scores of the paired runs on the same subjects.
        pretrainings: Number of the pretraining that each run of the first starts from; None of a single one.
        seed: Of the draws.

    Raises:
        UserError: The tables differ in shape, or no subject has a score in every run.
    """
    if first.shape != second.shape or first.ndim != 2:
        message = (
            f"scores of {' x '.join(map(str, first.shape))} and of {' x '.join(map(str, second.shape))} (runs x "
            "subjects) cannot be compared"
        )
        raise UserError(message, expected="pairs of runs on the same test subjects")
    table = first - second
    whole = np.isfinite(table).all(axis=0)
    table, left_out = table[:, whole], int((~whole).sum())
    runs, subjects = table.shape
    if not table.size:
        message = f"none of the {len(whole)} test subjects has a score in every run: nothing can be compared"
        raise UserError(message)
    table, count = averaged_runs(table, pretrainings), len({*(pretrainings or (0,))})
    value = float(table.mean())
    if len(table) < 2 or subjects < FEWEST_SUBJECTS:
        return Difference(value, None, None, None, runs, subjects, left_out, count)
    generator = np.random.default_rng(seed)
    low, high = _interval(table, generator)
    return Difference(value, low, high, _p_value(table, generator), runs, subjects, left_out, count)


def averaged_runs(table: Float[np.ndarray, "R S"], pretrainings: Sequence[int] | None) -> Float[np.ndarray, "K S"]:
    """Mean over the runs of each pretraining; the table as it is where there is one pretraining."""
    if len({*(pretrainings or ())}) < 2:
        return table
    numbers = np.asarray(pretrainings)
    return np.stack([table[numbers == number].mean(0) for number in np.unique(numbers)])


def pretraining_deviations(table: Float[np.ndarray, "R S"], pretrainings: Sequence[int]) -> tuple[float, float] | None:
    """Standard deviation between pretrainings, and between runs of one pretraining, of the mean over subjects.

    By the mean squares of a nested table (Searle et al. 1992, 3.6); an estimated variance below 0 counts as 0.

    Args:
        table: Differences of each run (rows) on each test subject (columns); subjects with a NaN are left out.
        pretrainings: Number of the pretraining of each run.

    Returns:
        Both deviations; None where no pretraining has two runs, or there is one alone.
    """
    means = table[:, np.isfinite(table).all(0)].mean(1)
    numbers = np.asarray(pretrainings)
    groups = [means[numbers == number] for number in np.unique(numbers)]
    count, runs = len(groups), len(means)
    if count < 2 or runs == count or not np.isfinite(means).all():
        return None
    within = sum(float(np.square(group - group.mean()).sum()) for group in groups) / (runs - count)
    between = sum(len(group) * float(np.square(group.mean() - means.mean())) for group in groups) / (count - 1)
    size = (runs - sum(len(group) ** 2 for group in groups) / runs) / (count - 1)
    return float(np.sqrt(max(0.0, (between - within) / size))), float(np.sqrt(within))


def corrected(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, so that any false verdict among them stays below the level (Holm 1979).

    >>> corrected([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    count, highest = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = round(highest, 12)
    return adjusted


def verdict(
    labels: Sequence[int],
    differences: Sequence[Difference],
    *,
    what: str = "Dice",
    p_values: Sequence[float | None] | None = None,
) -> str:
    """Verdict on differences at several numbers of labeled subjects, in one sentence.

    Args:
        labels: Labeled subjects of each difference, rising.
        differences: Pretrained less scratch.
        what: The measure; more is better.
        p_values: p-values that were corrected together with those of other arms; None corrects these here.

    Returns:
        For example "helps with up to 4 labeled subjects, +0.031 Dice [0.012, 0.049]; no difference seen at 16; too few
        runs at 32: 4 of each arm, it takes 5".
    """
    if p_values is None:
        adjusted = iter(corrected([one.p for one in differences if one.conclusive and one.p is not None]))
        p_values = [next(adjusted) if one.conclusive else None for one in differences]
    signs = [
        None if p is None or not one.conclusive else 0 if p > LEVEL else 1 if one.value > 0 else -1
        for one, p in zip(differences, p_values, strict=True)
    ]
    parts = []
    for sign, words in ((1, "helps"), (-1, "hurts"), (0, "no difference seen")):
        places = [place for place, value in enumerate(signs) if value == sign]
        if not places:
            continue
        if sign == 0:
            parts.append(f"{words} {_where(labels, places, up_to=False)}")
            continue
        numbers = [f"{_numbers(differences[place], what)} at {labels[place]}" for place in places]
        alone = _numbers(differences[places[0]], what)
        parts.append(f"{words} {_where(labels, places)}, {alone if len(places) == 1 else '; '.join(numbers)}")
    return "; ".join([*parts, *_too_few(labels, differences)])


def labels_needed(labels: Sequence[int], scores: Sequence[float], score: float) -> float | None:
    """How many labeled subjects a curve of scores needs to reach a score.

    Between the measured numbers the score is taken to rise with the logarithm of the number; a curve that falls is
    first made to rise (its running maximum).

    Args:
        labels: Numbers of labeled subjects, rising.
        scores: Mean score at each.
        score: The score to reach.

    Returns:
        The number; None where even the most labels do not reach the score. The fewest stand for "these or fewer".
    """
    rising = np.maximum.accumulate(np.asarray(scores, float))
    if score > rising[-1]:
        return None
    if score <= rising[0]:
        return float(labels[0])
    place = int(np.searchsorted(rising, score))  # the first that reaches it
    share = (score - rising[place - 1]) / (rising[place] - rising[place - 1])
    low, high = np.log(labels[place - 1]), np.log(labels[place])
    return float(np.exp(low + share * (high - low)))


def pseudo_values(
    statistic: Callable[[Int[np.ndarray, "M"]], float | None], subjects: Sequence[str]
) -> dict[str, float]:
    """Contribution of each subject to a number that is no mean over subjects, such as an AUROC.

    With S subjects, the number T of all and T(-s) of all but one: S T - (S - 1) T(-s), whose mean is T but for the
    number's bias (the jackknife's pseudo-values: Tukey 1958; of AUROC: Hanley and Hajian-Tilaki 1997). NaN where the
    number is not defined without the subject.

    Args:
        statistic: The number from the places of some scans; None where it is not defined.
        subjects: Subject of each scan.

    Returns:
        By subject, sorted.
    """
    names = np.array(subjects)
    order = sorted(set(subjects))
    whole = statistic(np.arange(len(names)))
    without = {name: statistic(np.flatnonzero(names != name)) for name in order}
    count = len(order)
    return {
        name: float("nan") if whole is None or value is None else count * whole - (count - 1) * value
        for name, value in without.items()
    }


def estimated_effects(
    table: Float[np.ndarray, "*B R S"],
) -> tuple[Float[np.ndarray, "*B 1 1"], Float[np.ndarray, "*B R 1"], Float[np.ndarray, "*B 1 S"], np.ndarray]:
    """Mean, effects of runs, effects of subjects, and the rest."""
    mean = table.mean((-1, -2), keepdims=True)
    runs = table.mean(-1, keepdims=True) - mean
    subjects = table.mean(-2, keepdims=True) - mean
    return mean, runs, subjects, table - mean - runs - subjects


def standard_error(table: Float[np.ndarray, "*B R S"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its standard error over runs and subjects, and the degrees of freedom of that.

    Satterthwaite's degrees of freedom are estimated too, and are highest by chance just where the error is too small;
    half way between them and those of the runs alone, false verdicts stay rare (``studies/false_verdicts.py``).
    """
    runs, subjects = table.shape[-2:]
    mean, of_run, of_subject, rest = estimated_effects(table)
    first = subjects * np.square(of_run).sum((-1, -2)) / (runs - 1)
    second = runs * np.square(of_subject).sum((-1, -2)) / (subjects - 1)
    third = np.square(rest).sum((-1, -2)) / ((runs - 1) * (subjects - 1))
    # never less than what runs alone or subjects alone give: the estimated variance of the other may be below 0
    total = np.maximum(first + second - third, np.maximum(first, second))
    spread = first**2 / (runs - 1) + second**2 / (subjects - 1) + third**2 / ((runs - 1) * (subjects - 1))
    with np.errstate(invalid="ignore"):
        freedom = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1.0), np.inf)
    freedom = (runs - 1 + freedom) / 2
    return mean[..., 0, 0], np.sqrt(total / (runs * subjects)), freedom


def _interval(table: Float[np.ndarray, "R S"], generator: np.random.Generator) -> tuple[float, float]:
    """95 % interval of the mean from drawing runs and subjects again together."""
    from scipy.special import ndtr, stdtrit

    runs, subjects = table.shape
    of_runs, of_subjects = (  # how often each is drawn
        generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) for count in (runs, subjects)
    )
    means = np.einsum("br,rs,bs->b", of_runs, table, of_subjects, optimize=True) / (runs * subjects)
    mean, error, freedom = standard_error(table)
    spread = float(means.std())
    if spread == 0 or error == 0:
        return float(mean), float(mean)
    reach = -float(stdtrit(float(freedom), LEVEL / 2)) * float(error)
    tail = float(ndtr(-reach / spread))
    if tail < FEWEST_IN_TAIL / RESAMPLES:  # with two or three runs no draw lies as far out as the interval must reach
        return float(mean) - reach, float(mean) + reach
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def _p_value(table: Float[np.ndarray, "R S"], generator: np.random.Generator) -> float:
    """Share of sign flips whose studentized mean is as far from 0, or the p of Student's t if that is larger."""
    runs, subjects = table.shape
    from scipy.special import stdtr

    mean, error, freedom = standard_error(table)
    if error == 0:
        return 1.0 if mean == 0 else 1 / (FLIPS + 1)
    _, of_run, of_subject, rest = estimated_effects(table)
    # the mean takes a degree of freedom: estimated effects are smaller than true ones
    of_run, of_subject = of_run * np.sqrt(runs / (runs - 1)), of_subject * np.sqrt(subjects / (subjects - 1))
    rest = rest * np.sqrt(runs * subjects / ((runs - 1) * (subjects - 1)))
    observed, as_far = abs(float(mean)) / float(error), 0
    for first in range(0, FLIPS, 500):
        count = min(500, FLIPS - first)
        flipped = (
            _signs(generator, count, runs, 1) * of_run
            + _signs(generator, count, 1, subjects) * of_subject
            + _signs(generator, count, runs, subjects) * rest
        )
        means, errors, _ = standard_error(flipped)
        as_far += int((np.abs(means) >= (observed - 1e-12) * errors).sum())
    return max((1 + as_far) / (FLIPS + 1), 2 * float(stdtr(float(freedom), -observed)))


def _signs(generator: np.random.Generator, *shape: int) -> Float[np.ndarray, "*shape"]:
    return generator.integers(2, size=shape).astype(float) * 2 - 1


def _too_few(labels: Sequence[int], differences: Sequence[Difference]) -> list[str]:
    """Where there is no verdict, and the reason: "too few runs at 16: 4 of each arm, it takes 5"."""
    if not any(one.conclusive for one in differences):
        return [_reason(min(differences, key=lambda one: (one.pretrainings, one.runs)), "for a verdict")]
    return [_reason(one, f"at {number}") for number, one in zip(labels, differences, strict=True) if not one.conclusive]


def _reason(one: Difference, where: str) -> str:
    """The reason why a difference has no verdict."""
    if one.runs < FEWEST_RUNS:
        return f"too few runs {where}: {one.runs} of each arm, it takes {FEWEST_RUNS}"
    if 1 < one.pretrainings < FEWEST_PRETRAININGS:
        return f"too few pretrainings {where}: {one.pretrainings}, it takes {FEWEST_PRETRAININGS} or a single one"
    return f"too few test subjects {where}: it takes {FEWEST_SUBJECTS}"


def _numbers(one: Difference, what: str) -> str:
    return f"{one.value:+.3f} {what} [{one.low:.3f}, {one.high:.3f}]"


def _where(labels: Sequence[int], places: Sequence[int], *, up_to: bool = True) -> str:
    """Which numbers of labels: "with up to 4 labeled subjects" where all fewer ones are meant, else "at 4 and 16"."""
    numbers, everywhere = [str(labels[place]) for place in places], len(places) == len(labels)
    if up_to and not everywhere and list(places) == list(range(len(places))):
        return f"with up to {numbers[-1]} labeled subjects"
    listed = " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))
    return f"at {listed} labeled subjects" if everywhere else f"at {listed}"
