"""One self-contained HTML page of runs and evaluations: no scripts, no external files, all pictures embedded."""

from __future__ import annotations

import base64
import math
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING, Any

from medssl.data.synthetic.phantoms import PHANTOMS
from medssl.metrics.health import FEWEST
from medssl.reporting.calibration import calibration_chart
from medssl.reporting.comparison import Comparison, compare, title
from medssl.reporting.curves import Point, Series, line_chart
from medssl.reporting.parts import Evaluation, Run
from medssl.reporting.studies import Probes, Study, shown_probes, shown_study
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medssl.reporting.parts import Part, Picture
    from medssl.types import Imported

TEMPLATE = "page.html.j2"
MEANINGS = {
    "absent": "absent (in neither)",
    "missed": "missed (in the label, not in the prediction)",
    "invented": "invented (in the prediction, not in the label)",
}
MAX_PICTURES = 3  # largest number of pictures of an evaluation: worst, median, best


def make_page(parts: Sequence[Part], heading: str = "medssl report") -> str:
    """Renders a page.

    Evaluations of the same kind and classes are shown side by side; the first is compared with each of the others.

    Args:
        parts: Runs, evaluations, probes and comparisons, in the order of the page.
        heading: Title of the page.

    Returns:
        The HTML text.

    Raises:
        UserError: There are no parts, or two parts of one kind have the same name.
    """
    names = Counter((type(part), part.name) for part in parts)
    duplicates = sorted({name for (_, name), count in names.items() if count > 1})
    if not parts or duplicates:
        problem = f"two parts of one kind are called {', '.join(duplicates)}: give them names, NAME=PATH"
        problem = problem if duplicates else "no parts given"
        message = f"no page can be made: {problem}"
        raise UserError(message)
    import jinja2

    source = resources.files("medssl.reporting").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "signed": signed,
        "source": source_of,
        "title_of": title,
    }
    evaluations = [part for part in parts if isinstance(part, Evaluation)]
    runs = [part for part in parts if isinstance(part, Run)]
    tunings = [run for run in runs if run.card.tuned]
    return environment.from_string(source).render(
        heading=heading,
        meanings=MEANINGS,
        groups=[_group(group) for group in _comparable_groups(evaluations)],
        tunings=[_run(run) for run in tunings],
        together=_together(tunings),
        pretrainings=[_run(run) for run in runs if not run.card.tuned],
        probes=[shown_probes(part) for part in parts if isinstance(part, Probes)],
        studies=[shown_study(part) for part in parts if isinstance(part, Study)],
        synthetic=_synthetic(parts),
    )


def _synthetic(parts: Sequence[Part]) -> str:
    """Whether the scans are phantoms: "all" or "some" parts are of phantoms, or ""."""
    versions_of_parts = [
        part.summary.get("by", {}).get("versions", {}) for part in parts if isinstance(part, Evaluation | Probes)
    ]
    versions_of_parts += [part.card.versions for part in parts if isinstance(part, Run)]
    is_phantom = [PHANTOMS in versions for versions in versions_of_parts]
    return "all" if is_phantom and all(is_phantom) else "some" if any(is_phantom) else ""


def comparisons(evaluations: Sequence[Evaluation]) -> list[Comparison]:
    """Compares the first evaluation with each other one of the same kind and classes."""
    return [compare(group[0], evaluation) for group in _comparable_groups(evaluations) for evaluation in group[1:]]


def number(value: float | None, measure: str = "") -> str:
    """A score as text: three decimals, two for millimeters; a dash if it is not defined."""
    if value is None:
        return "–"
    return f"{value:.2f}" if measure.startswith("hd95") else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference as text, with its sign; a dash if it is not defined."""
    return "–" if value is None else f"{value:+.3f}"


def interval(low: float | None, high: float | None, measure: str = "") -> str:
    """Both bounds of an interval as text; "" without an interval."""
    return "" if low is None or high is None else f"{number(low, measure)} to {number(high, measure)}"


def source_of(picture: Picture) -> str:
    """A PNG as a data URL, which embeds it in the page."""
    return f"data:image/png;base64,{base64.b64encode(picture.content).decode()}"


# --- evaluations


def _comparable_groups(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    groups: dict[tuple[str, ...], list[Evaluation]] = {}
    for evaluation in evaluations:
        key = (evaluation.summary["kind"], *evaluation.summary["classes"])
        groups.setdefault(key, []).append(evaluation)
    return list(groups.values())


def _group(group: Sequence[Evaluation]) -> dict[str, Any]:
    """Evaluations of the same kind and classes: one table, their comparisons, and the details of each."""
    measures = list(dict.fromkeys(measure for evaluation in group for measure in evaluation.summary["metrics"]))
    rows = [
        {"measure": measure, "title": title(measure), "cells": [e.summary["metrics"].get(measure) for e in group]}
        for measure in measures
    ]
    return {
        "kind": group[0].summary["kind"],
        "classes": group[0].summary["classes"],
        "names": [evaluation.name for evaluation in group],
        "rows": rows,
        "comparisons": comparisons(group),
        "each": [_evaluation(evaluation, group) for evaluation in group],
    }


def _evaluation(evaluation: Evaluation, group: Sequence[Evaluation]) -> dict[str, Any]:
    summary = evaluation.summary
    lacks = evaluation.scoring.lacks
    plain = {key: value for key, value in summary["by"].items() if isinstance(value, str | int | float)}
    return {
        "name": evaluation.name,
        "scans": summary["scans"],
        "subjects": summary["subjects"],
        "counts": summary["counts"],
        "lacks": lacks,
        "whole": lacks and not any(any(counts.values()) for counts in summary["counts"].values()),
        "notes": summary["notes"],
        "skipped": summary["skipped"],
        "facts": list(plain.items()),
        "subgroups": _subgroups(summary),
        "calibration": _calibration(summary),
        "pictures": _pictures(evaluation, group),
    }


def _subgroups(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A table for each column: a row for each value, with the overall measures."""
    measures = [measure for measure in summary["metrics"] if ":" not in measure]
    return [
        {
            "column": column,
            "titles": [(measure, title(measure)) for measure in measures],
            "groups": [
                (
                    value,
                    subgroup["scans"],
                    subgroup["subjects"],
                    [subgroup["metrics"].get(measure) for measure in measures],
                )
                for value, subgroup in groups.items()
            ],
        }
        for column, groups in summary.get("subgroups", {}).items()
    ]


def _calibration(summary: dict[str, Any]) -> str:
    """The calibration curve; "" without one."""
    from markupsafe import Markup

    return Markup(calibration_chart(summary)) if summary.get("calibration") else ""


def _pictures(evaluation: Evaluation, group: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Worst, median and best picture by mean Dice; captions show the Dice of the other evaluations on the same scan."""
    scores = {each.name: each.scoring.picture_scores(each.rows) for each in group}
    dice_of = scores[evaluation.name]
    ranked = sorted(
        (picture for picture in evaluation.pictures if dice_of.get(picture.name) is not None),
        key=lambda picture: dice_of[picture.name] or 0.0,
    )
    positions = range(len(ranked)) if len(ranked) <= MAX_PICTURES else (0, len(ranked) // 2, len(ranked) - 1)
    words = ("worst", "median", "best") if len(positions) == MAX_PICTURES else ("",) * len(positions)
    shown = []
    for position, word in zip(positions, words, strict=True):
        picture = ranked[position]
        others = [
            f"{name} {number(scored[picture.name])}"
            for name, scored in scores.items()
            if name != evaluation.name and picture.name in scored
        ]
        shown.append({"picture": picture, "word": word, "dice": dice_of[picture.name], "others": ", ".join(others)})
    return shown


# --- runs


def _run(run: Run) -> dict[str, Any]:
    loss = _chart(
        [
            Series("loss", tuple(Point(*pair) for pair in run.log.values("loss")), faint=True),
            Series("smoothed", tuple(Point(*pair) for pair in run.log.values("loss_smoothed"))),
        ],
        f"{run.name}: loss",
        "loss",
    )
    validation = _validation([run]) if run.log.validation else ""
    return {
        "name": run.name,
        "facts": _facts(run),
        "charts": [chart for chart in (loss, validation) if chart],
        "rows": len(run.log.rows),
        "broken": run.log.broken,
        "picture": run.picture,
        "shows": "input, label, prediction" if run.card.tuned else "input, what was hidden, reconstruction",
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """Facts about a run, from its card and its configuration."""
    card, training = run.card, run.config.get("training", {})
    facts = [("encoder", _describe(card.encoder))]
    if card.tuned:
        facts.append(("head", _describe(card.tuned.head)))
        facts.append(("classes", ", ".join(name for _, name in card.tuned.schema.classes)))
        facts.append(("labeled subjects, of training and validation", str(len(card.tuned.subjects))))
        start = run.config.get("start", "")
        weights_names = {"random": "random", "pretrained": "pretrained, those that the encoder brings"}
        facts.append(("first weights", weights_names.get(start, f"pretrained (digest {start})")))
    elif card.objective:
        facts.append(("objective", _describe(card.objective)))
        if card.objective.whole_image_batches:
            batches = f"{card.objective.whole_image_batches} micro-batches of whole images"
            facts.append(("batch-norm statistics", batches))
    provenance = card.subjects
    count = str(len(provenance.known)) if provenance.complete or provenance.known else "not told by the card"
    suffix = ", and others that are not known" if provenance.known and not provenance.complete else ""
    facts.append(("subjects seen in pretraining", count + suffix))
    facts.append(("weights of step", f"{card.step} of {training.get('steps', '?')}"))
    settings = [
        f"{name} {training[key]}" for key, name in (("batch_size", "batch"), ("precision", "")) if key in training
    ]
    rate = run.config.get("optimizer", {}).get("learning_rate")
    facts.append(
        ("training", ", ".join([*(text.strip() for text in settings), *([f"learning rate {rate}"] if rate else [])]))
    )
    facts.append(("health", _health(run)))
    return [(term, text) for term, text in facts if text]


def _health(run: Run) -> str:
    """How often health monitoring raised alarms; "" without measurements."""
    alarms = run.log.values("alarms")
    alarm_steps = [step for step, count in alarms if count]
    if not alarm_steps and 0 < len(alarms) < FEWEST:
        return f"not judged: {len(alarms)} of the {FEWEST} measurements that this takes"
    if not alarm_steps:
        return f"well at all {len(alarms)} measurements" if alarms else ""
    first, last = alarm_steps[0], alarm_steps[-1]
    return f"alarms at {len(alarm_steps)} of {len(alarms)} measurements, first at step {first:.0f}, last at {last:.0f}"


def _describe(imported: Imported) -> str:
    """The name of a class and its plain arguments."""
    plain = [
        f"{key} {value}" for key, value in imported.init_args.items() if isinstance(value, str | int | float | list)
    ]
    name = imported.class_path.rpartition(".")[2]
    return f"{name} ({', '.join(plain)})" if plain else name


def _together(tunings: Sequence[Run]) -> list[str]:
    """One chart of all fine-tuning runs for each validation measure that several of them have."""
    measures = dict.fromkeys(run.log.validation for run in tunings if run.log.validation)
    groups = [[run for run in tunings if run.log.validation == measure] for measure in measures]
    return [chart for group in groups if len(group) > 1 and (chart := _validation(group))]


def _validation(runs: Sequence[Run]) -> str:
    """Chart of the validation measure of runs over their steps."""
    measure = runs[0].log.validation
    series = [Series(run.name, tuple(Point(*pair) for pair in run.log.values(measure)), marked=True) for run in runs]
    name = title(measure.removeprefix("validation_"))
    return _chart(
        series, f"{runs[0].name}: validation" if len(runs) == 1 else "Validation of all", f"validation, {name}"
    )


def _chart(series: Sequence[Series], heading: str, y_label: str) -> str:
    """A chart of the lines with finite points; "" if there are none."""
    from markupsafe import Markup

    drawn = [line for line in series if any(math.isfinite(point.y) for point in line.points)]
    if not drawn:
        return ""
    return Markup(line_chart(drawn, title=heading, x_label="optimizer steps", y_label=y_label))
