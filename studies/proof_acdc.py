"""Does pretraining pay on the heart? ACDC in 2D with 1, 2, 4 and 8 labeled patients, 5 runs an arm.

    python studies/proof_acdc.py --data DATA --work WORK --out docs/results/proof_acdc --jobs 2 --measure
    python studies/proof_acdc.py --data DATA --work WORK --out docs/results/proof_acdc --jobs 2
    ... --only vit             one comparison with its pretrainings
    ... --fold 0 1 2 3         other patients for the test, each with its own pretrainings
    ... --gpu --jobs 4         ten times the steps, for a GPU

15 patients are for pretraining without labels (the labeled ones are among them), 4 validate, 6 are tested; four folds
test 24 of the 25 patients. Slices of 2 mm, crops of 96x96. A residual encoder with SparK, SimCLR and masked
self-distillation (the hybrid), and a small vision transformer with a masked autoencoder and the hybrid: each encoder
against its own scratch, with an oracle as the ceiling. "own_rates" adds a learning rate of its own for each arm of
"resenc" with 2 patients, in the same tables.
"""

from __future__ import annotations

from proof import Comparison, Pretraining, Proof, main

STEPS = 3000
VIEW = ("--objective.view.size", "96,96", "--objective.view.area", "null")
PART = ("--objective.view.scale", "0.7,1.0")  # reconstruction: 96 pixels see 134 to 192 mm
WHOLE = ("--objective.view.scale", "0.8,1.3")  # contrast: two views share most of a slice
RESENC, VIT = ("--encoder", "resenc_small_2d"), ("--encoder", "vit_small_2d")
LABELS = (1, 2, 4, 8)
FINETUNE = (
    "--data.view.size", "96,96", "--training.batch_size", "8", "--data.workers", "0",
    "--training.output.picture_every", "100000",
)  # fmt: skip
UNET = ("--config", "segment_2d_small", *FINETUNE, "--optimizer.learning_rate", "2e-3")
UNETR = (*UNET, "--head", "unetr")
ARMS = ("spark", "simclr", "hybrid")
PROOF = Proof(
    "acdc_folds",
    {
        "spark": Pretraining(("--config", "spark_2d_small", *RESENC, *VIEW, *PART), STEPS),
        "simclr": Pretraining(("--config", "simclr_2d_small", *VIEW, *WHOLE), STEPS),
        "hybrid": Pretraining(("--config", "masked_distillation_2d_small", *VIEW, *PART), STEPS),
        "vit_mae": Pretraining(("--config", "mae_2d_small", *VIEW, *PART), STEPS),
        "vit_hybrid": Pretraining(("--config", "masked_distillation_2d_small", *VIT, *VIEW, *PART), STEPS),
    },
    {
        "resenc": Comparison(ARMS, UNET, LABELS, 600, oracle_steps=1200),
        "vit": Comparison(("vit_mae", "vit_hybrid"), UNETR, LABELS, 600, oracle_steps=1200),
        "own_rates": Comparison(
            ARMS, UNET, (2,), 600, oracle_steps=1200, settings=2, into="resenc",
            tune=("--tune.learning_rates", "6e-4,6e-3"),
        ),
    },
)  # fmt: skip

if __name__ == "__main__":
    main(PROOF, __doc__ or "", folds=4)
