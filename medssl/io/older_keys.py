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
PRESENT_OPTIONS = {"init": "pretrained", "init_minimum": "pretrained_minimum"}  # keys at the top of a configuration


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


def with_present_options(configuration: Any) -> Any:
    """A configuration of a verb with the options of today in place of older ones.

    >>> with_present_options({"init": None, "training": {"init": 1}})
    {'pretrained': None, 'training': {'init': 1}}
    >>> with_present_options({"optimizer": {"average": 0.0, "lora": {"rank": 0}}})["optimizer"]["keep"]
    'best'
    """
    if not isinstance(configuration, dict):
        return configuration
    renamed = {key: now for key, now in PRESENT_OPTIONS.items() if now not in configuration}
    present = {renamed.get(key, key): value for key, value in configuration.items()}
    optimizer = present.get("optimizer")
    if isinstance(optimizer, dict) and "average" in optimizer and "lora" in optimizer and "keep" not in optimizer:
        present["optimizer"] = {**optimizer, "keep": "best"}  # config.yaml of a run: what was written before keep
    return present
