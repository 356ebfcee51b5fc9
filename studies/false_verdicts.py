"""How often the verdict of a comparison is wrong where nothing differs, and how often it finds what is there.

Simulated tables of scores: 5 runs an arm, 40 test subjects, three numbers of labelled subjects (2, 4, 8). Differences
of paired runs vary by run (the luck of the labelled subjects and of the seed), by subject, and by the rest (give other
deviations with --run, --subject, --rest).

    python studies/false_verdicts.py [--tables 1000] [--effects 0 0.01 0.02 0.03 0.05]
"""

from __future__ import annotations

import argparse

import numpy as np
from tqdm import tqdm

from medssl.evaluate.compare import LEVEL, corrected, difference

LABELS = 3


def main() -> None:
    """Prints false verdicts, coverage of the intervals, and power for several effects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--run", type=float, nargs=LABELS, default=(0.03, 0.02, 0.01), help="deviation of runs")
    parser.add_argument("--subject", type=float, default=0.02, help="deviation of subjects")
    parser.add_argument("--rest", type=float, default=0.03, help="deviation of the rest")
    parser.add_argument("--effects", type=float, nargs="+", default=(0.0, 0.01, 0.02, 0.03, 0.05))
    given = parser.parse_args()
    print(f"{given.tables} tables, {given.runs} runs, {given.subjects} subjects, deviations {given.run} of runs")
    print("| true difference | any verdict at all | verdict at 2 | at 4 | at 8 | interval holds the truth |")
    for effect in given.effects:
        any_found, each, held = 0, np.zeros(LABELS), []
        for table in tqdm(range(given.tables), desc=f"{effect:.2f}", leave=False):
            generator = np.random.default_rng((table, round(1000 * effect)))
            found = [difference(scores(generator, effect, run, given), zeros(given), seed=table) for run in given.run]
            significant = np.array(corrected([one.p for one in found])) <= LEVEL
            any_found += bool(significant.any())
            each += significant
            held += [one.low <= effect <= one.high for one in found]
        shares = " | ".join(f"{100 * share:.1f} %" for share in (any_found / given.tables, *(each / given.tables)))
        print(f"| {effect:.2f} | {shares} | {100 * np.mean(held):.1f} % |", flush=True)


def scores(generator: np.random.Generator, effect: float, run: float, given: argparse.Namespace) -> np.ndarray:
    """Differences of paired runs on the test subjects."""
    of_run = run * generator.standard_normal((given.runs, 1))
    of_subject = given.subject * generator.standard_normal((1, given.subjects))
    return effect + of_run + of_subject + given.rest * generator.standard_normal((given.runs, given.subjects))


def zeros(given: argparse.Namespace) -> np.ndarray:
    """The other arm."""
    return np.zeros((given.runs, given.subjects))


if __name__ == "__main__":
    main()
