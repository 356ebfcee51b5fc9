"""Does pretraining pay on histology tiles? Linear probe, nearest neighbors and fine-tuning with 16, 64 and 256 labels.

    python studies/proof_tiles.py --data DATA --work WORK --out docs/results/proof_tiles --jobs 2 --measure
    python studies/proof_tiles.py --data DATA --work WORK --out docs/results/proof_tiles --jobs 2
    ... --only probes          the frozen encoders alone
    ... --gpu --jobs 4         ten times the steps, for a GPU

4,000 tiles of 96x96 for pretraining without labels, 600 to validate, 1,000 for the test; 5 runs an arm. SimCLR, masked
self-distillation (the hybrid), a masked autoencoder and SparK on one residual encoder, against scratch and an oracle.
No tile names its slide: tiles of one slide may lie in several splits.
"""

from __future__ import annotations

from proof import Comparison, Pretraining, Probing, Proof, main

STEPS = 3000
VIEW = ("--encoder.in_channels", "3", "--objective.view.size", "64,64", "--objective.view.area", "null")
PART = ("--objective.view.scale", "0.75,1.0")
WHOLE = ("--objective.view.scale", "0.9,1.4")
RESENC = ("--encoder", "resenc_small_2d")
ARMS = ("simclr", "hybrid", "mae", "spark")
MAE = ("--config", "mae_resenc_3d_small", *RESENC, "--objective", "mae_resenc_2d", *VIEW, *PART)
PROOF = Proof(
    "tiles",
    {
        "simclr": Pretraining(
            ("--config", "simclr_2d_small", *VIEW, *WHOLE, "--training.batch_size", "48"), STEPS,
        ),
        "hybrid": Pretraining(
            ("--config", "masked_distillation_2d_small", *VIEW, *PART, "--training.batch_size", "32"), STEPS,
        ),
        "mae": Pretraining((*MAE, "--objective.cell", "8,8", "--training.batch_size", "32"), STEPS),
        "spark": Pretraining(
            ("--config", "spark_2d_small", *RESENC, *VIEW, *PART, "--training.batch_size", "32"), STEPS,
        ),
    },
    {
        "finetune": Comparison(
            ARMS,
            (
                "--config", "classify_2d_small", "--data.target", "class", "--data.view.size", "64,64",
                "--data.view.scale", "1.0,1.5", "--data.workers", "0", "--optimizer.learning_rate", "1e-3",
                "--training.output.picture_every", "100000",
            ),
            (16, 64, 256), 400, oracle_steps=1500,
        ),
    },
    {"probes": Probing(ARMS, ("--target", "class", "--window", "96,96"), (16, 64, 256), seeds=5)},
)  # fmt: skip

if __name__ == "__main__":
    main(PROOF, __doc__ or "")
