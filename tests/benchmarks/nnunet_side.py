"""nnU-Net v2's part of ``bench_nnunet.py``: runs in an environment of its own and knows nothing of medssl.

    PYTHON nnunet_side.py plan SETTINGS.json
    PYTHON nnunet_side.py train SETTINGS.json RUN
    PYTHON nnunet_side.py predict SETTINGS.json RUN

SETTINGS.json holds folders, the sizes of the network, patch, batch and steps (axes in nnU-Net's order, slices first).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PLANS, CONFIGURATION, EPOCH = "bench", "3d_fullres", 10  # steps of an "epoch", after which its learning rate falls


def environment(settings: dict[str, Any]) -> None:
    """Folders and processes, before nnU-Net is imported."""
    work = Path(settings["work"])
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    processes = "1" if sys.argv[1] == "plan" else "0"  # of the augmentation; 0: in the process that trains
    os.environ |= {"nnUNet_n_proc_DA": processes, "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}


def plan(settings: dict[str, Any]) -> None:
    """Fingerprint, plans of a residual encoder with the sizes of the settings, and preprocessed scans."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    number, name = settings["dataset"], settings["name"]
    api.extract_fingerprints([number], num_processes=1, show_progress_bar=False)
    api.plan_experiments(
        [number], "nnUNetPlannerResEncM", overwrite_plans_name=PLANS,
        overwrite_target_spacing=None if settings["spacing"] is None else tuple(settings["spacing"]),
    )  # fmt: skip
    file = Path(os.environ["nnUNet_preprocessed"]) / name / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    held = plans["configurations"][CONFIGURATION]
    held |= {"patch_size": settings["patch"], "batch_size": settings["batch"], "batch_dice": False}
    arguments = held["architecture"]["arch_kwargs"]
    stages = len(settings["channels"])
    arguments |= {
        "n_stages": stages, "features_per_stage": settings["channels"], "strides": settings["strides"],
        "kernel_sizes": [[3, 3, 3]] * stages, "n_blocks_per_stage": settings["blocks"],
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }  # fmt: skip
    plans["configurations"] = {CONFIGURATION: held}
    file.write_text(json.dumps(plans))
    api.preprocess([number], PLANS, configurations=[CONFIGURATION], num_processes=[1], show_progress_bar=False)
    splits = [{"train": settings["train"], "val": settings["validation"]}]
    (file.parent / "splits_final.json").write_text(json.dumps(splits))


def train(settings: dict[str, Any], run: Path) -> None:
    """All steps from random weights; writes the last weights, as nnU-Net does, and the seconds."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(settings["threads"])
    trainer = get_trainer_from_args(
        str(settings["dataset"]), CONFIGURATION, 0, plans_identifier=PLANS, device=torch.device("cpu")
    )
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = EPOCH, 1
    trainer.num_epochs = settings["steps"] // EPOCH
    for name in ("output_folder_base", "output_folder"):
        setattr(trainer, name, str(run if name.endswith("base") else run / "fold_0"))
    (run / "fold_0").mkdir(parents=True, exist_ok=True)
    trainer.log_file = str(run / "fold_0/training.txt")
    started = time.monotonic()
    trainer.run_training()
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    facts = {"seconds": time.monotonic() - started, "parameters": parameters}
    (run / "seconds.json").write_text(json.dumps(facts))


def predict(settings: dict[str, Any], run: Path) -> None:
    """Predictions of the test scans with mirrored windows, as nnU-Net makes them."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(settings["threads"])
    predictor = nnUNetPredictor(
        use_mirroring=True, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(run), (0,))
    images = Path(os.environ["nnUNet_raw"]) / settings["name"] / "imagesTs"
    predictor.predict_from_files(
        str(images), str(run / "predicted"), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    environment(given)
    if sys.argv[1] == "plan":
        plan(given)
    else:
        {"train": train, "predict": predict}[sys.argv[1]](given, Path(sys.argv[3]))
