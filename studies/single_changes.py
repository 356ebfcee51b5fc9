"""Which change moved the result? Each alone and all together, on ACDC in 2D: voxel probe and Dice with 2 patients.

    python studies/single_changes.py --data DATA --work WORK --out docs/results/single_changes --jobs 2 --measure
    python studies/single_changes.py --data DATA --work WORK --out docs/results/single_changes --jobs 2
    ... --only rates all       some of the rows

The row "former" has the settings before the changes, as far as options reach them: a published rate that is not scaled,
geometry in every crop, SparK with a light decoder and instance norm, scans as stored in plane, a third of the crops
around a label, Dice of each sample, weights of the best validation. Each other row changes one group: "rates" (a rate
that fits the batch), "views" (geometry in one crop of five), "objective" (SparK with a U-Net decoder that is carried
over), "finetuning" (half of the crops around a label, Dice of the batch, averaged weights), "mirrored" (predictions
over mirrored windows), "hybrid" (masked self-distillation in the place of SparK), "own_rate" (a rate for each arm by
validation), "all" (everything but the objective that "hybrid" replaces). Own rates and the ceiling are those of
``medssl compare``; health for long runs changes no result and has no row.
"""

from __future__ import annotations

from proof import Comparison, Pretraining, Probing, Proof, main

STEPS = 1000
VIEW = ("--objective.view.size", "96,96", "--objective.view.area", "null", "--objective.view.scale", "0.7,1.0")
RESENC = ("--encoder", "resenc_small_2d")
SPARK = ("--config", "spark_2d_small", *RESENC, *VIEW)
HYBRID = ("--config", "masked_distillation_2d_small", *VIEW)
FORMER_RATE = ("--optimizer.learning_rate", "2e-4")
FORMER_VIEW = ("--objective.view.geometry.probability", "1.0")
UNET_DECODER = ("--objective.decoder", "unet", "--objective.decoder_width", "null", "--objective.norm", "instance")
UNET = (
    "--config", "segment_2d_small", "--data.view.size", "96,96", "--training.batch_size", "8", "--data.workers", "0",
    "--optimizer.learning_rate", "2e-3", "--training.output.picture_every", "100000",
)  # fmt: skip
FORMER_TUNING = (
    "--data.view.geometry.probability", "1.0", "--data.sampling.labeled", "0.33", "--head.batch_dice", "false",
    "--optimizer.keep", "best", "--optimizer.average", "0",
)  # fmt: skip
PLAIN, MIRRORED = ("--windows.mirror", "none"), ("--windows.mirror", "trained")
GRID = ("--tune.learning_rates", "6e-4,6e-3")
FORMER_PRE, FORMER = (*SPARK, *FORMER_RATE, *FORMER_VIEW), (*UNET, *FORMER_TUNING, *PLAIN)
ROWS = {  # pretraining, fine-tuning, grid
    "former": (FORMER_PRE, FORMER, ()),
    "rates": ((*SPARK, *FORMER_VIEW), FORMER, ()),
    "views": ((*SPARK, *FORMER_RATE), (*FORMER, "--data.view.geometry.probability", "0.2"), ()),
    "objective": ((*FORMER_PRE, *UNET_DECODER), FORMER, ()),
    "finetuning": (FORMER_PRE, (*UNET, *PLAIN, "--data.view.geometry.probability", "1.0"), ()),
    "mirrored": (FORMER_PRE, (*FORMER, *MIRRORED), ()),
    "hybrid": ((*HYBRID, *FORMER_RATE, *FORMER_VIEW), FORMER, ()),
    "own_rate": (FORMER_PRE, FORMER, GRID),
    "all": (HYBRID, (*UNET, *MIRRORED), GRID),
}
SHARED = {name for name, (words, _, _) in ROWS.items() if name != "former" and words == FORMER_PRE}  # one pretraining
PROOF = Proof(
    "acdc_folds",
    {f"pre_{name}": Pretraining(words, STEPS) for name, (words, _, _) in ROWS.items() if name not in SHARED},
    {
        name: Comparison(
            (f"pre_{name if name not in SHARED else 'former'}",), words, (2,), 400, tune=tune, settings=2 * bool(tune)
        )
        for name, (_, words, tune) in ROWS.items()
    },
    {"probes": Probing(tuple(f"pre_{name}" for name in ROWS if name not in SHARED), ("--window", "96,96"), (8,))},
)

if __name__ == "__main__":
    main(PROOF, __doc__ or "", folds=4)
