"""The calibration curve of a classification as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medssl.reporting.curves import Point, Series, line_chart

if TYPE_CHECKING:
    from collections.abc import Mapping


def calibration_chart(summary: Mapping[str, Any]) -> str:
    """Calibration curve as SVG: accuracy over confidence; a calibrated network lies on the diagonal."""
    curves = {"as it is": summary["calibration"]}
    if "scaling" in summary:
        curves[f"temperature {summary['scaling']['temperature']:.3g}"] = summary["calibration_scaled"]
    lowest = 1 / len(summary["classes"])
    lines = [
        Series(name, tuple(Point(part["confidence"], part["accuracy"]) for part in curve), marked=True)
        for name, curve in curves.items()
    ]
    lines.append(Series("perfectly calibrated", (Point(lowest, lowest), Point(1.0, 1.0)), faint=True))
    return line_chart(
        lines,
        title=f"Calibration on {summary['scans']} scans",
        x_label="mean highest probability of a bin",
        y_label="share of its scans that is right",
    )
