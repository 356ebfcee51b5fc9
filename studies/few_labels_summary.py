"""What the rows and the test scores of ``few_labels.py`` say: a table with verdicts, and two pictures.

    python studies/few_labels_summary.py hippocampus --work WORK --rows docs/results/few_labels_hippocampus.csv

Prints Markdown, and writes NAME_labels.svg (test measure over labels) and NAME_curves.svg (validation over steps)
beside the rows. Differences are of the same test subjects, mean over the seeds; intervals are of subjects drawn again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from few_labels import ARMS, SEEDS, STUDIES, read

from medssl.evaluate.bootstrap import Interval, mean_interval, paired_difference, statistic_interval
from medssl.evaluate.cases import read_classification, read_segmentation, scan_scores
from medssl.evaluate.classification import metrics
from medssl.report.curves import Point, Series, line_chart

NEUTRAL = "no difference seen"


def main() -> None:
    """Prints the table and writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    given = parser.parse_args()
    study, runs = STUDIES[given.study], given.work / given.study / "runs"
    rates = {arm: chosen(given.rows, arm) for arm in ARMS}
    found: dict[str, list[Point]] = {arm: [] for arm in ARMS}
    curves = []
    print(f"| labelled subjects | pretrained | scratch | difference | verdict |\n|{'---|' * 5}")
    for count in study.labels:
        folders = {arm: [runs / f"{arm}-{count}-{seed}-{rates[arm]:g}" for seed in SEEDS] for arm in ARMS}
        if not all((folder / "test/summary.json").exists() for arm in ARMS for folder in folders[arm]):
            continue
        values, difference = (dice if study.metric == "dice" else auroc)(folders)
        place = count or training_subjects(folders["scratch"][0])
        for arm in ARMS:
            found[arm].append(Point(place, values[arm].value or 0.0, values[arm].low, values[arm].high))
            curves.append(Series(f"{arm}, {place}", validation(folders[arm], study.metric), faint=arm == "scratch"))
        cells = [shown(values[arm]) for arm in ARMS] + [shown(difference, "+")]
        print(f"| {place} | {' | '.join(cells)} | {verdict(difference)} |")
    charts = {
        "labels": line_chart(
            [Series(arm, tuple(found[arm]), marked=True) for arm in ARMS], logarithmic=True,
            title=f"{given.study}: test {study.metric} over labels", x_label="labelled subjects", y_label=study.metric,
        ),
        "curves": line_chart(
            curves, title=f"{given.study}: validation, mean of {len(SEEDS)} seeds", x_label="step", y_label=study.metric
        ),
    }  # fmt: skip
    for name, text in charts.items():
        given.rows.with_name(f"{given.rows.stem}_{name}.svg").write_text(text)


def chosen(rows: Path, arm: str) -> float:
    """The learning rate of an arm: the one that all its seeds have."""
    own = [row for row in read(rows) if row["arm"] == arm]
    rates = {row["learning_rate"] for row in own}
    return float(max(rates, key=lambda rate: len({row["seed"] for row in own if row["learning_rate"] == rate})))


def dice(folders: dict[str, list[Path]]) -> tuple[dict[str, Interval], Interval]:
    """Mean Dice of each arm, and the difference of the arms, over test subjects."""
    means: dict[str, dict[str, float]] = {}
    for arm, runs in folders.items():
        of_run = []
        for run in runs:
            rows = read_segmentation(run / "test/cases.csv")
            subject = {row.scan_id: row.subject_id for row in rows}
            of_run.append({subject[scan]: value for scan, value in scan_scores(rows).items()})
        means[arm] = {name: float(np.mean([one[name] for one in of_run])) for name in of_run[0]}
    values = {arm: mean_interval(list(own.values()), list(own)) for arm, own in means.items()}
    return values, paired_difference(means[ARMS[0]], means[ARMS[1]])


def auroc(folders: dict[str, list[Path]]) -> tuple[dict[str, Interval], Interval]:
    """Mean AUROC of each arm over its runs, and the difference of the arms; the same test scans are drawn for both."""
    held = {arm: [read_classification(run / "test/cases.csv") for run in runs] for arm, runs in folders.items()}
    rows, names = held[ARMS[0]][0]
    order, subjects = [row.scan_id for row in rows], [row.subject_id for row in rows]
    truth = np.array([names.index(row.truth) for row in rows])
    measure = metrics(names)["auroc"]
    scores = {
        arm: [np.array([{row.scan_id: row for row in one}[scan].probabilities for scan in order]) for one, _ in runs]
        for arm, runs in held.items()
    }

    def mean(arm: str, places: np.ndarray) -> float | None:
        values = [measure(one[places], truth[places]) for one in scores[arm]]
        return None if any(value is None for value in values) else float(np.mean(values))

    def difference(places: np.ndarray) -> float | None:
        first, second = (mean(arm, places) for arm in ARMS)
        return None if first is None or second is None else first - second

    values = {arm: statistic_interval(lambda places, arm=arm: mean(arm, places), subjects) for arm in ARMS}
    return values, statistic_interval(difference, subjects)


def validation(folders: list[Path], metric: str) -> tuple[Point, ...]:
    """Validation measure over steps, mean of the seeds."""
    name = f"validation_{metric}"
    tables = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in folders]
    curves = [{row["step"]: row[name] for row in table if name in row} for table in tables]
    return tuple(Point(step, float(np.mean([curve[step] for curve in curves]))) for step in curves[0])


def training_subjects(run: Path) -> int:
    """How many labelled subjects a run with all labels had, as its log says."""
    text = (run.parent / f"{run.name}.log").read_text().partition(" labelled subjects")[0]
    return int(text.rpartition(" ")[2])


def shown(interval: Interval, sign: str = "") -> str:
    """A number with its interval."""
    if interval.low is None or interval.high is None or interval.value is None:
        return interval.note
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def verdict(difference: Interval) -> str:
    """In words."""
    if difference.low is None or difference.high is None:
        return "nothing can be said"
    return "pretraining helps" if difference.low > 0 else "pretraining hurts" if difference.high < 0 else NEUTRAL


if __name__ == "__main__":
    main()
