"""What the tables of ``few_labels.py`` say: mean and interval of each arm, verdicts, and two pictures.

    python studies/few_labels_summary.py hippocampus --rows docs/results/few_labels_hippocampus.csv

Prints Markdown (where there is NAME_twice.csv, also whether the twin was at its end), and writes NAME_labels.svg (test
measure over labels) and NAME_curves.svg (validation over steps) beside the rows. Differences are of the same test
subjects, mean over the seeds; their intervals come from drawing runs and subjects again together (AUROC by the
jackknife's pseudo-values), all others from drawing subjects.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from few_labels import ARMS, SEEDS, STUDIES, key, read

from medssl.metrics.bootstrap import Interval, mean_interval, statistic_interval
from medssl.metrics.classification import metrics
from medssl.metrics.comparison import Difference, difference, pseudo_values, verdict
from medssl.reporting.curves import Point, Series, line_chart

NEUTRAL = "no difference seen"


def main() -> None:
    """Prints the table and writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--rows", type=Path, required=True)
    given = parser.parse_args()
    study, rows = STUDIES[given.study], given.rows
    tables = {name: read(rows.with_name(f"{rows.stem}_{name}.csv")) for name in ("cases", "curves")}
    rates = {arm: chosen(rows, arm) for arm in ARMS}
    found: dict[str, list[Point]] = {arm: [] for arm in ARMS}
    curves = []
    print(f"| labeled subjects | pretrained | scratch | difference | verdict |\n|{'---|' * 5}")
    differences = {}
    for count in study.labels:
        runs = {arm: [of_run(tables["cases"], "case", arm, count, seed, rates[arm]) for seed in SEEDS] for arm in ARMS}
        if not all(all(own) for own in runs.values()):
            print(f"| {count or 'all'} | not all runs are done ||||")
            continue
        values, gain = (dice if study.metric == "dice" else auroc)(runs)
        place = count or study.all_labels
        differences[place] = gain
        for arm in ARMS:
            found[arm].append(Point(place, values[arm].value or 0.0, values[arm].low, values[arm].high))
            own = [of_run(tables["curves"], "step", arm, count, seed, rates[arm]) for seed in SEEDS]
            means = tuple(
                Point(step, float(np.mean([float(run[step]["validation"]) for run in own]))) for step in own[0]
            )
            curves.append(Series(f"{arm}, {place}", means, faint=arm == "scratch"))
        cells = [shown(values[arm]) for arm in ARMS] + [shown(gain, "+")]
        print(f"| {place} | {' | '.join(cells)} | {in_words(gain)} |")
    longer = rows.with_name(f"{rows.stem}_twice.csv")
    if longer.exists():
        twice(given.study, rows, longer, rates)
    if len(differences) == len(study.labels):
        print(f"\nVerdict: {verdict(list(differences), list(differences.values()))}.")
    charts = {
        "labels": line_chart(
            [Series(arm, tuple(found[arm]), marked=True) for arm in ARMS], logarithmic=True,
            title=f"{given.study}: test {study.metric} over labels", x_label="labeled subjects", y_label=study.metric,
        ),
        "curves": line_chart(
            curves, title=f"{given.study}: validation, mean of {len(SEEDS)} seeds", x_label="step", y_label=study.metric
        ),
    }  # fmt: skip
    for name, text in charts.items():
        rows.with_name(f"{rows.stem}_{name}.svg").write_text(text)


def twice(name: str, rows: Path, longer: Path, rates: dict[str, float]) -> None:
    """Prints the twin beside itself with twice the steps, and the pretrained network against the latter."""
    study, before = STUDIES[name], read(rows)
    cases = {file: read(file.with_name(f"{file.stem}_cases.csv")) for file in (rows, longer)}
    head = "| labeled subjects | steps of the twin | gain in the last third | test of the seeds | mean |"
    for count in study.labels:
        print(f"\n{head}\n|{'---|' * 5}")
        for table in (before, read(longer)):
            wanted = [("scratch", str(count), str(seed), str(rates["scratch"])) for seed in SEEDS]
            own = sorted((row for row in table if key(row) in wanted), key=lambda row: row["seed"])
            gains, tests = ([float(row[column]) for row in own] for column in ("gain_last_third", "test"))
            cells = (", ".join(f"{value:.3f}" for value in values) for values in (gains, tests))
            print(f"| {count or study.all_labels} | {own[0]['steps']} | {' | '.join(cells)} | {np.mean(tests):.3f} |")
        runs = {
            arm: [of_run(cases[file], "case", arm, count, seed, rates[arm]) for seed in SEEDS]
            for arm, file in zip(ARMS, (rows, longer), strict=True)
        }
        _, gain = (dice if study.metric == "dice" else auroc)(runs)
        print(f"pretrained less the longer twin at {count or study.all_labels}: {shown(gain, '+')}, {in_words(gain)}")


def of_run(
    table: list[dict[str, str]], by: str, arm: str, labels: int | None, seed: int, rate: float
) -> dict[int, dict[str, str]]:
    """The lines of one run, by case or by step."""
    wanted = (arm, str(labels), str(seed), str(rate))
    return {int(row[by]): row for row in table if key(row) == wanted}


def chosen(rows: Path, arm: str) -> float:
    """The learning rate of an arm: the one that most of its runs have."""
    own = [row["learning_rate"] for row in read(rows) if row["arm"] == arm]
    return float(max(sorted(set(own)), key=own.count))


def dice(cases: dict[str, list[dict[int, dict[str, str]]]]) -> tuple[dict[str, Interval], Difference]:
    """Mean Dice of each arm over test subjects, and the difference of the arms over runs and subjects."""
    order = sorted(cases[ARMS[0]][0])
    scores = {arm: np.array([[float(run[case]["scores"]) for case in order] for run in cases[arm]]) for arm in ARMS}
    values = {arm: mean_interval(table.mean(0).tolist(), list(map(str, order))) for arm, table in scores.items()}
    return values, difference(scores[ARMS[0]], scores[ARMS[1]])


def auroc(cases: dict[str, list[dict[int, dict[str, str]]]]) -> tuple[dict[str, Interval], Difference]:
    """Mean AUROC of each arm over its runs, and the difference of the arms over runs and subjects."""
    first = cases[ARMS[0]][0]
    names, order = sorted({row["truth"] for row in first.values()}), list(first)
    truth = np.array([names.index(row["truth"]) for row in first.values()])
    measure, who = metrics(names)["auroc"], [f"{case:06d}" for case in order]

    def answers(run: dict[int, dict[str, str]]) -> np.ndarray:
        return np.array([[float(x) for x in run[case]["scores"].split()] for case in order])

    def added(run: dict[int, dict[str, str]]) -> list[float]:
        scores = answers(run)
        return list(pseudo_values(lambda places: measure(scores[places], truth[places]), who).values())

    def mean(arm: str, places: np.ndarray) -> float | None:
        values = [measure(one[places], truth[places]) for one in map(answers, cases[arm])]
        return None if any(value is None for value in values) else float(np.mean(values))

    values = {arm: statistic_interval(lambda places, arm=arm: mean(arm, places), who) for arm in ARMS}
    tables = [np.array([added(run) for run in cases[arm]]) for arm in ARMS]
    return values, difference(*tables)


def shown(found: Interval | Difference, sign: str = "") -> str:
    """A number with its interval."""
    if found.low is None or found.high is None or found.value is None:
        return getattr(found, "note", "too few runs")
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def in_words(found: Interval | Difference) -> str:
    """What an interval says of its own."""
    if found.low is None or found.high is None:
        return "nothing can be said"
    return "pretraining helps" if found.low > 0 else "pretraining hurts" if found.high < 0 else NEUTRAL


if __name__ == "__main__":
    main()
