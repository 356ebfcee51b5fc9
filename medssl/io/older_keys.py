"""Keys that earlier versions wrote into configurations, cards and stores, and the keys of today."""

from __future__ import annotations

from typing import Any

PRESENT_KEYS = {
    "labelled": "labeled",
    "centred": "centered",
    "neighbours": "neighbors",
    "normalise": "normalize",
    "normalise_target": "normalize_target",
}


def with_present_keys(data: Any) -> Any:
    """Plain data of a file with the keys of today in place of older ones, at every depth.

    A key of today that stands beside its older form is left as it is, so that a reader refuses the older one.

    >>> with_present_keys({"sampling": {"labelled": 0.5}})
    {'sampling': {'labeled': 0.5}}
    """
    if isinstance(data, list):
        return [with_present_keys(item) for item in data]
    if not isinstance(data, dict):
        return data
    renamed = {key: present for key, present in PRESENT_KEYS.items() if key in data and present not in data}
    return {renamed.get(key, key): with_present_keys(value) for key, value in data.items()}
