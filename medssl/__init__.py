"""medssl: pretrain an image encoder on your own unlabeled scans, then train with few labels.

Prepare scans
    phantoms        Write synthetic scans to try everything on.
    index           Find the scans of folders; query an index.
    cache           Preprocess the scans of an index once, into a store.
Train
    pretrain        Pretrain an encoder on the scans of a store, without labels.
    finetune        Train an encoder and a head on labeled scans.
    pseudolabel     Label stored scans with a fine-tuned network, to train on.
Judge
    evaluate        Score a fine-tuned network on labeled scans.
    probe           Measure how well the features of a frozen encoder predict labels.
    compare         Test whether pretraining helps, and with how many labels.
Use
    predict         Segment or classify scans with a fine-tuned network.
    embed           Compute features of the tiles of slides, or of slices of volumes.
    report          Write runs, scores and comparisons on one HTML page.
    load_encoder    Load a pretrained encoder as a torch module with a card.
    load_network    Load a fine-tuned network as a torch module with a card.
Build your own
    Store           Preprocessed scans on disk.
    StoreDataset    The scans of a store as a torch dataset for MONAI transforms.
    make_loader     Batches of crops of a store.
    ViewSpec        What one view of a scan looks like.
    ViewPlan        Which views an objective needs, and how crops are sampled.
    objectives      The self-supervised objectives: objectives.SparK, objectives.SimCLR, ...
    Card            What weights are and where they come from.
    UserError       A mistake that the caller can correct.

The functions take the arguments that the command ``medssl`` takes as options, and give a result with the paths and
numbers that they made. They log through the logger "medssl".

Stability: these names follow semantic versioning. A patch release changes no argument and no field. A minor release may
add arguments with a default and fields of results. A major release may rename or remove; the release before it warns.
Files of a minor version open in all later versions of the same major version. Everything else in the package may change
in any release. Before version 1.0, a minor release may do what a major release may do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medssl.io.safe_path import leave_working_folder

if TYPE_CHECKING:
    from medssl import objectives
    from medssl.api import (
        cache,
        compare,
        embed,
        evaluate,
        finetune,
        index,
        load_encoder,
        load_network,
        phantoms,
        predict,
        pretrain,
        probe,
        pseudolabel,
        report,
    )
    from medssl.data.loading.loader import make_loader
    from medssl.data.loading.monai import StoreDataset
    from medssl.data.store.store import Store
    from medssl.types import Card, UserError, ViewPlan, ViewSpec

__version__ = "0.1.0"

_API = (
    "phantoms", "index", "cache", "pretrain", "finetune", "pseudolabel", "evaluate", "probe", "compare", "predict",
    "embed", "report", "load_encoder", "load_network",
)  # fmt: skip
_PLACES = {  # module of each public name; "" of a module itself
    **dict.fromkeys(_API, "medssl.api"),
    "Store": "medssl.data.store.store",
    "StoreDataset": "medssl.data.loading.monai",
    "make_loader": "medssl.data.loading.loader",
    "ViewSpec": "medssl.types",
    "ViewPlan": "medssl.types",
    "Card": "medssl.types",
    "UserError": "medssl.types",
    "objectives": "",
}

__all__ = [
    "Card",
    "Store",
    "StoreDataset",
    "UserError",
    "ViewPlan",
    "ViewSpec",
    "cache",
    "compare",
    "embed",
    "evaluate",
    "finetune",
    "index",
    "load_encoder",
    "load_network",
    "make_loader",
    "objectives",
    "phantoms",
    "predict",
    "pretrain",
    "probe",
    "pseudolabel",
    "report",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used for the first time: ``import medssl`` loads no torch."""
    import importlib

    if name not in _PLACES:
        message = f"module 'medssl' has no attribute {name!r}"
        raise AttributeError(message)
    module = _PLACES[name]
    value = getattr(importlib.import_module(module), name) if module else importlib.import_module(f"medssl.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


leave_working_folder()  # python -m imports this package first
