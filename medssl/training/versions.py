"""Versions of what weights depend on."""

from __future__ import annotations

from importlib import metadata

from medssl.data.synthetic.phantoms import PHANTOMS, VERSION


def package_versions(*, synthetic: bool = False) -> dict[str, str]:
    """Versions of the packages that weights depend on, and of the phantoms where all scans are synthetic."""
    found = {name: metadata.version(name) for name in ("medssl", "torch", "lightning", "monai", "timm", "numpy")}
    return found | ({PHANTOMS: str(VERSION)} if synthetic else {})
