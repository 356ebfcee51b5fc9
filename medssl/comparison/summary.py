"""Results of a comparison: verdicts, curves and notes, all computed from the runs that are done.

``summary.json`` and ``summary.md`` hold the curve of each arm and its difference from its from-scratch baseline,
``efficiency.svg`` shows the curves.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medssl.comparison.arms import OWN_RATE, training_minutes
from medssl.comparison.record import record_looks
from medssl.comparison.report import CURVE, REPORT, drawn, markdown
from medssl.comparison.tables import RUNS, SCORES, write_tables
from medssl.metrics import label_efficiency as efficiency
from medssl.metrics.cases import write_text
from medssl.metrics.label_efficiency import NAMES, Trained
from medssl.metrics.tables import SUMMARY
from medssl.types import Note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medssl.comparison.arms import Study
    from medssl.comparison.jobs import Failure
    from medssl.metrics.label_efficiency import Compared

log = logging.getLogger(__name__)

SHOWN = 5  # runs that a note names


def summarize(study: Study, failed: Mapping[str, Failure]) -> dict[str, Any]:
    """Writes all results and logs them; returns the content of ``summary.json``."""
    trained, out = write_tables(study), study.out
    every = (*study.requested, *study.earlier)
    done, planned = len({*study.done, *study.tuned}), len({*every, *study.at_own_rate(every)})
    for name, why in failed.items():
        log.info(f"failed: {name}: {why.reason}")
    if failed:
        log.info(f"{len(failed)} of {len(study.requested)} runs failed; the same command tries them again")
    names = [f"{arm.name}{rate}" for rate in ("", OWN_RATE) for arm in study.arms]
    curves = {name: levels for name in names if (levels := efficiency.levels(trained, name))}
    differences = differences_of(study, trained)
    minutes = {name: minutes_of(study, name) for name in curves}
    notes = [*notes_of(study, trained, differences)]
    notes += [Note("missing", f"Failed: {name}: {why.written}") for name, why in failed.items()]
    measure = NAMES[trained[0].measure] if trained else ""
    settings = {name: dict(chosen) for name, chosen in study.rates.items()}
    text = (
        markdown(curves, differences, minutes, measure, notes, settings)
        if trained
        else "\n".join([*map(str, notes), ""])
    )
    write_text(out / REPORT, text)
    summary: dict[str, Any] = {
        **({"measure": measure} if trained else {}),
        "curves": {name: [asdict(level) for level in levels] for name, levels in curves.items()},
        "compared": [asdict(one) for one in differences],
        "minutes": minutes,
        "settings": settings,
        "oracles": sorted(arm.name for arm in study.arms if arm.kind == "oracle"),
        "notes": [asdict(note) for note in notes],
        "failed": {name: why.written for name, why in failed.items()},
    }
    summary = finite(summary)
    write_text(out / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    drawable = any(math.isfinite(level.value) for levels in curves.values() for level in levels)
    if drawable:
        write_text(out / CURVE, drawn(curves, measure, oracles_of(study)))
    else:
        (out / CURVE).unlink(missing_ok=True)
    log.info(text if trained else "\n".join(["no run is done", *map(str, notes)]))
    if not differences:
        why_not = "no encoder has a run in common with its from-scratch baseline"
        if trained and not drawable:
            why_not = f"{measure} is not defined on these test subjects"
        log.info(f"error: nothing can be compared: {why_not}")
        return summary
    log.info(f"{out}: {done} of {planned} runs; {RUNS}, {SCORES}, {REPORT}, {SUMMARY}, {CURVE}")
    return summary


def differences_of(study: Study, trained: Sequence[Trained]) -> list[Compared]:
    """Each arm against its from-scratch baseline, at the shared rate and at own rates, at every number of labels."""
    every = (*study.requested, *study.earlier)
    baselines, oracles, labels = {}, {}, {}
    oracle_of = {arm.baseline: arm.name for arm in study.arms if arm.kind == "oracle"}
    for arm in study.arms:
        if not arm.baseline or arm.kind == "oracle":
            continue
        baselines[arm.name] = arm.baseline
        labels[arm.name] = sorted({run.labels for run in every if run.arm.name == arm.name})
        if arm.baseline in oracle_of:
            oracles[arm.name] = oracle_of[arm.baseline]
    for name, baseline in list(baselines.items()):
        own, base = (study.rates.get(arm, {}) for arm in (name, baseline))
        differ = sorted(n for n in own.keys() & base.keys() if own[n] or base[n])  # else it is the shared rate again
        if not differ:
            continue
        tuned = f"{name}{OWN_RATE}"
        baselines[tuned], labels[tuned] = f"{baseline}{OWN_RATE}", differ
        if name in oracles and oracles[name] in study.rates:
            oracles[tuned] = f"{oracles[name]}{OWN_RATE}"
    tested = [one for one in trained if one.labels in labels.get(one.arm, [one.labels])]
    return efficiency.compared(tested, baselines, labels, oracles) if tested else []


def oracles_of(study: Study) -> set[str]:
    """Names of the curves of oracles, which are drawn dashed."""
    return {f"{arm.name}{rate}" for arm in study.arms if arm.kind == "oracle" for rate in ("", OWN_RATE)}


def notes_of(study: Study, trained: Sequence[Trained], differences: Sequence[Compared]) -> list[Note]:
    """What a reader of the results must know, beside failures."""
    notes = [*study.notes, *notes_of_runs(trained), *notes_of_looks(study, differences)]
    notes += efficiency.pretraining_notes(trained, {one.arm: one.baseline for one in differences})
    compared_arms = {arm.name for arm in study.arms if arm.baseline and arm.kind != "oracle"}
    without = compared_arms - {one.arm for one in differences}
    if differences:
        texts = [f"{name} has no run in common with its from-scratch baseline." for name in sorted(without)]
        notes += [Note("missing", text) for text in texts]
    if missing := [str(run) for run in study.earlier if not run.done(study.out)]:
        more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        text = f"Left out: {len(missing)} unfinished runs of earlier commands ({'; '.join(missing[:SHOWN])}{more})."
        notes.append(Note("missing", text))
    return notes


def notes_of_runs(trained: Sequence[Trained]) -> list[Note]:
    """Notes of the evaluations, each once; with the names of its arms where it is not true of all."""
    arms: dict[Note, set[str]] = {}
    for one in trained:
        for note in one.notes:
            arms.setdefault(note, set()).add(one.arm)
    every = {one.arm for one in trained}
    return [
        note if names == every else Note(note.kind, f"{', '.join(sorted(names))}: {note}")
        for note, names in sorted(arms.items(), key=lambda pair: pair[0].text)
    ]


def notes_of_looks(study: Study, differences: Sequence[Compared]) -> list[Note]:
    """Records after how many runs p-values are shown now, and notes after how many they were shown earlier."""
    conclusive = {
        one.arm: {n: gain.runs for n, gain in zip(one.labels, one.differences, strict=True) if gain.conclusive}
        for one in differences
    }
    if not (earlier := record_looks(study.out, conclusive)):
        return []
    runs = " and ".join(map(str, earlier))
    return [Note("other", f"Looked at after {runs} runs: p-values are not corrected for earlier looks.")]


def finite(value: Any) -> Any:
    """The same with null in the place of every number that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def minutes_of(study: Study, name: str) -> dict[str, float | None]:
    """Minutes of pretraining (0 from scratch, None if unknown) and of all fine-tunings behind a curve."""
    arm = next(arm for arm in study.arms if arm.name == name.removesuffix(OWN_RATE))
    runs = study.tuned if name.endswith(OWN_RATE) else study.done
    finetuning = [training_minutes(run.folder(study.out)) for run in runs if run.arm.name == arm.name]
    return {"pretraining": arm.minutes, "finetuning": sum(one for one in finetuning if one is not None)}
