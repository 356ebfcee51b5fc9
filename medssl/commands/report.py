"""The verb ``report``: runs, evaluations, probes and comparisons become one page that opens in any browser."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from medssl.io.permissions import owner_only
from medssl.reporting.parts import named_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportResult:
    """A page of runs and results.

    Attributes:
        page: The HTML file.
        parts: Runs and results on it.
        verdicts: What comparisons on it say.
        exit_code: 0.
    """

    page: Path
    parts: int
    verdicts: tuple[str, ...]
    exit_code: int = 0


@owner_only()
def report(out: Path, parts: list[str], *, heading: str = "medssl report") -> ReportResult:
    """Write runs, scores, probes and comparisons on one self-contained HTML page.

    Args:
        out: HTML file to write, such as report.html; an existing one is replaced.
        parts: Folders of runs, evaluations, probes and comparisons, in the order in which they are shown; NAME=FOLDER
            sets the name, else that of the folder is taken. The first evaluation is compared with each of the others.
        heading: Title of the page.

    Returns:
        The page, and what comparisons of its parts say.

    Raises:
        UserError: A folder that is missing or none of these, two parts of one kind and name, or a page that
            cannot be written.
    """
    from medssl.metrics.cases import write_text
    from medssl.reporting.page import comparisons, make_page
    from medssl.reporting.parts import Evaluation, read_part
    from medssl.reporting.studies import Study
    from medssl.types import UserError

    if out.is_dir():
        message = f"{out} is a folder: name the page to write first, such as {out / 'report.html'}"
        raise UserError(message)
    found = [read_part(*named_folder(part)) for part in parts]
    text = make_page(found, heading)
    write_text(out, text)
    verdicts = [comparison.verdict for comparison in comparisons([x for x in found if isinstance(x, Evaluation)])]
    verdicts += [verdict for study in found if isinstance(study, Study) for verdict in study.verdicts]
    for verdict in verdicts:
        log.info(verdict)
    log.info(f"{out}: {len(found)} parts, {len(text) / 2**20:.1f} MiB; pictures in it are patient data")
    return ReportResult(out, len(found), tuple(verdicts))
