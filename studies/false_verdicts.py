"""How often the verdict of a comparison is wrong where nothing differs, and how often it finds what is there.

Simulated tables of scores: 5 runs an arm, 40 test subjects, three numbers of labeled subjects (2, 4, 8). Differences
of paired runs vary by run (the luck of the labeled subjects and of the seed), by subject, and by the rest: give other
deviations with --run, --subject and --rest, or take those of a real comparison with --from. --looks counts what is
found by whoever adds runs until there is a verdict. --pretrainings spreads the runs over several pretrainings, whose
own deviation is --between; --as_one takes their runs as independent, as if there were one.

    python studies/false_verdicts.py [--tables 1000] [--effects 0 0.01 0.02 0.03 0.05]
    python studies/false_verdicts.py --from docs/results/compare_sawtooth/cases.csv
    python studies/false_verdicts.py --looks 5 10 15 20 --effects 0
    python studies/false_verdicts.py --runs 6 --pretrainings 3 --between 0.03 [--as_one]
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtr
from tqdm import tqdm

from medssl.metrics.comparison import (
    FEWEST_RUNS,
    FEWEST_SUBJECTS,
    LEVEL,
    corrected,
    difference,
    estimated_effects,
    standard_error,
)


@dataclass(frozen=True)
class Parts:
    """Deviations of differences between paired runs with some labeled subjects: of runs, of subjects, of the rest."""

    labels: int
    run: float
    subject: float
    rest: float

    def draw(self, generator: np.random.Generator, effect: float, runs: int, subjects: int) -> np.ndarray:
        """Differences of paired runs (rows) on the test subjects (columns)."""
        of_run = self.run * generator.standard_normal((runs, 1))
        of_subject = self.subject * generator.standard_normal((1, subjects))
        return effect + of_run + of_subject + self.rest * generator.standard_normal((runs, subjects))


def main(words: list[str] | None = None) -> None:
    """Prints false verdicts, coverage of the intervals, and power for several effects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 4, 8], help="numbers of labeled subjects")
    parser.add_argument("--run", type=float, nargs="+", default=[0.03, 0.02, 0.01], help="deviation of runs at each")
    parser.add_argument("--subject", type=float, nargs="+", default=[0.02], help="deviation of subjects")
    parser.add_argument("--rest", type=float, nargs="+", default=[0.03], help="deviation of the rest")
    parser.add_argument("--from", dest="cases", type=Path, help="cases.csv of a comparison: its numbers and deviations")
    parser.add_argument("--arms", nargs=2, default=["spark", "scratch"], help="the arm and its baseline in that table")
    parser.add_argument("--pretrainings", type=int, default=1, help="pretrainings that the runs take in turn")
    parser.add_argument("--between", type=float, default=0.0, help="deviation of pretrainings")
    parser.add_argument("--as_one", action="store_true", help="take runs of one pretraining as independent")
    parser.add_argument("--looks", type=int, nargs="+", help="numbers of runs after which someone looks")
    parser.add_argument("--effects", type=float, nargs="+", default=[0.0, 0.01, 0.02, 0.03, 0.05])
    given = parser.parse_args(words)
    if given.cases:
        tables = read_differences(given.cases, *given.arms)
        parts = [components(labels, table) for labels, table in tables.items()]
        given.runs, given.subjects = next(iter(tables.values())).shape
    else:
        shape = len(given.labels)
        wide = [np.broadcast_to(own, shape).tolist() for own in (given.run, given.subject, given.rest)]
        parts = [Parts(*own) for own in zip(given.labels, *wide, strict=True)]
    looks = sorted(given.looks or [given.runs])
    if looks[0] < FEWEST_RUNS or given.subjects < FEWEST_SUBJECTS:
        needed = f"it takes {FEWEST_RUNS} and {FEWEST_SUBJECTS}"
        parser.error(f"{looks[0]} runs and {given.subjects} subjects give no verdict: {needed}")
    print(f"{given.tables} tables, {' '.join(map(str, looks))} runs, {given.subjects} subjects; deviations")
    for own in parts:
        deviations = f"runs {own.run:.4f}, subjects {own.subject:.4f}, rest {own.rest:.4f}"
        print(f"  with {own.labels} labeled subjects: {deviations}")
    (tell_looks if given.looks else tell)(parts, given, looks)


def tell(parts: list[Parts], given: argparse.Namespace, looks: list[int]) -> None:
    """Prints how often there is a verdict, and how often the interval holds the truth."""
    places = " | ".join(f"at {own.labels}" for own in parts)
    print(f"| true difference | any verdict at all | verdict {places} | interval holds the truth |")
    zeros = np.zeros((looks[0], given.subjects))
    for effect in given.effects:
        any_found, each, held = 0, np.zeros(len(parts)), []
        for table in tqdm(range(given.tables), desc=f"{effect:.2f}", leave=False):
            generator = np.random.default_rng((table, round(1000 * effect)))
            drawn = [own.draw(generator, effect, *zeros.shape) for own in parts]
            seeds = np.arange(looks[0]) % given.pretrainings
            if given.pretrainings > 1:  # each has its deviation in all its runs, at all numbers of labels
                shift = given.between * generator.standard_normal(given.pretrainings)[seeds]
                drawn = [one + shift[:, None] for one in drawn]
            known = None if given.as_one else seeds.tolist()
            found = [difference(one, zeros, pretrainings=known, seed=table) for one in drawn]
            significant = np.array(corrected([one.p or 0.0 for one in found])) <= LEVEL
            any_found += bool(significant.any())
            each += significant
            held += [one.low <= effect <= one.high for one in found if one.low is not None and one.high is not None]
        shares = " | ".join(f"{100 * share:.1f} %" for share in (any_found / given.tables, *(each / given.tables)))
        print(f"| {effect:.2f} | {shares} | {100 * np.mean(held):.1f} % |", flush=True)


def tell_looks(parts: list[Parts], given: argparse.Namespace, looks: list[int]) -> None:
    """Prints how often there has been any verdict, after each look."""
    print(f"| true difference | any verdict after {' | by '.join(map(str, looks))} runs |")
    for effect in given.effects:
        count = np.zeros(len(looks))
        for table in tqdm(range(given.tables), desc=f"{effect:.2f}", leave=False):
            generator = np.random.default_rng((table, round(1000 * effect)))
            drawn = [own.draw(generator, effect, looks[-1], given.subjects) for own in parts]
            first = next((n for n, look in enumerate(looks) if sure([one[:look] for one in drawn], table)), len(looks))
            count[first:] += 1
        print(f"| {effect:.2f} | {' | '.join(f'{100 * share:.1f} %' for share in count / given.tables)} |", flush=True)


def sure(tables: list[np.ndarray], seed: int) -> bool:
    """Whether any of some comparisons gives a verdict; signs are turned only where Student's t, the floor, is small."""
    for table in tables:
        mean, error, freedom = standard_error(table)
        floor = 2 * stdtr(float(freedom), -abs(float(mean)) / float(error))
        if floor * len(tables) > LEVEL:
            continue
        p = difference(table, np.zeros_like(table), seed=seed).p
        if p is not None and p * len(tables) <= LEVEL:
            return True
    return False


def read_differences(cases: Path, arm: str, baseline: str) -> dict[int, np.ndarray]:
    """Arm less baseline by number of labeled subjects: runs that both have, subjects with a score in all of them."""
    scores: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    with cases.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("setting"):  # an arm with its own rate
                continue
            own = scores.setdefault((row["arm"], int(row["labels"])), {}).setdefault(int(row["run"]), {})
            own |= {row["subject_id"]: float(row["score"])} if row["score"] else {}
    found = {}
    for labels in sorted({n for name, n in scores if name == arm}):
        first, second = scores[arm, labels], scores[baseline, labels]
        runs = sorted(first.keys() & second.keys())
        subjects = sorted(set.intersection(*({*own[run]} for own in (first, second) for run in runs)))
        found[labels] = np.array([[first[run][name] - second[run][name] for name in subjects] for run in runs])
    return found


def components(labels: int, table: np.ndarray) -> Parts:
    """Deviations behind a table of differences, by mean squares (Searle et al. 1992); 0 where one comes out below."""
    runs, subjects = table.shape
    _, of_run, of_subject, rest = (np.square(part).sum() for part in estimated_effects(table))
    rest /= (runs - 1) * (subjects - 1)
    run = max(0.0, of_run * subjects / (runs - 1) - rest) / subjects
    subject = max(0.0, of_subject * runs / (subjects - 1) - rest) / runs
    return Parts(labels, *(float(np.sqrt(variance)) for variance in (run, subject, rest)))


if __name__ == "__main__":
    main()
