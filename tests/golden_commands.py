"""The commands whose outputs ``golden_outputs.py`` compares between two checkouts, as data.

Words are spelled as medssl 0.1.0 spells them. A checkout that spells them otherwise says so in the mappings below of
its own copy of this file; a checkout without this file is of 0.1.0.
"""

from __future__ import annotations

# What is written otherwise in this checkout than in 0.1.0; all are literals, since other checkouts read them.
# A whole word ("--allow_seen=true": "--allow=seen", "pseudolabel": "pseudo-label"), or the name of an option without
# its value ("--pseudo.labels": "--pseudo.folder") or, with a point at its end, a group of options ("--labels.":
# "--label."). An empty text leaves the word out.
RENAMED_WORDS: dict[str, str] = {
    "--allow_seen=true": "--allow=seen",
    "--init": "--pretrained",
    "--labelled": "--labeled",
    "--labels.": "--label.",
    "--objective.graphs.neighbours": "--objective.graphs.neighbors",
}
# Whole commands by their names below, where words alone are not enough: {"probe voxels": "probe runs/... --..."}.
RENAMED_COMMANDS: dict[str, str] = {}
# Names of files and folders that commands write: {"finished.jsonl": "results.jsonl"}.
RENAMED_FILES: dict[str, str] = {}
# Columns of tables and keys of JSON files: {"samples_per_second": "throughput"}.
RENAMED_FIELDS: dict[str, str] = {
    "labelled": "labeled",
    "twin": "baseline",
    "neighbours": "neighbors",
    "normalise": "normalize",
    "normalise_target": "normalize_target",
}
# Values that differ on purpose, by how the table names them, with the reason: {"ARTEFACT: VALUE": "why"}; all values
# whose names begin so are left out.
MEANT: dict[str, str] = {
    "probes/voxels/network/card.json: tuned trained_on": "the network of a probe says what it was trained on",
    "probes/voxels_2d/network/card.json: tuned trained_on": "the network of a probe says what it was trained on",
    "probes/voxels/probe": "a probe draws voxels by the content of scans",
    "probes/voxels/voxels_": "a probe draws voxels by the content of scans",
    "probes/voxels/network/head": "a probe draws voxels by the content of scans",
    "probes/voxels_2d/probe": "a probe draws voxels by the content of scans",
    "probes/voxels_2d/voxels_": "a probe draws voxels by the content of scans",
    "probes/voxels_2d/network/head": "a probe draws voxels by the content of scans",
}

TABLES = {
    "volumes.csv": """name,split,kind,nodule,effusion,age
PHANTOM-0000,train,small,1,0,31.5
PHANTOM-0001,train,large,0,1,47
PHANTOM-0002,train,small,1,,52
PHANTOM-0003,train,large,0,0,60.5
PHANTOM-0004,val,small,1,0,44
PHANTOM-0005,val,large,0,1,39
PHANTOM-0006,test,small,1,0,58
PHANTOM-0007,test,large,0,1,71
PHANTOM-0008,train,small,0,1,63
PHANTOM-0009,train,large,1,0,28
PHANTOM-0010,test,small,0,1,35
PHANTOM-0011,test,large,1,0,80
""",
    "pictures.csv": """name,split,grade,findings,age
PHANTOM-0000,train,low,mass|fluid,31.5
PHANTOM-0001,train,middle,fluid,47
PHANTOM-0002,train,high,none,52
PHANTOM-0003,train,low,mass,60.5
PHANTOM-0004,train,middle,,44
PHANTOM-0005,train,high,fluid,39
PHANTOM-0006,val,low,mass,58
PHANTOM-0007,val,middle,fluid,71
PHANTOM-0008,val,high,none,63
PHANTOM-0009,test,low,mass,28
PHANTOM-0010,test,middle,fluid,35
PHANTOM-0011,test,high,mass|fluid,80
PHANTOM-0012,test,low,none,54
PHANTOM-0013,test,middle,mass,49
""",
}

# --- words that commands share

KEY = "--files.key=../key/key --files.workers=0"
ORGANS = "--labels.masks=images=labels --labels.class_names=0=background,1=liver,2=spleen,3=kidneys"
MR, US = "--files.modality=MR", "--files.modality=US"
NAMED = f"{KEY} --subject=(PHANTOM-[0-9]+)"
TABLE = "--labels.key=name --labels.split=column:split"
INDEX_3D = f"{NAMED} {MR} {ORGANS} {TABLE} --labels.values=volumes.csv --labels.columns=kind,nodule,effusion,age"
INDEX_2D = f"{NAMED} {US} {ORGANS} {TABLE} --labels.values=pictures.csv --labels.columns=grade,findings,age"
RESENC = "--encoder=medssl.encoders.resenc.ResEnc --encoder.in_channels=1 --encoder.channels=[4,8,8]"
RESENC_3D = f"{RESENC} --encoder.ndim=3 --encoder.strides=[[1,1,1],[2,2,2],[2,2,2]] --encoder.blocks=[1,1,1]"
RESENC_2D = f"{RESENC} --encoder.ndim=2 --encoder.strides=[[1,1],[2,2],[2,2]] --encoder.blocks=[1,1,1]"
BATCH_3D, BATCH_2D = f"{RESENC_3D} --encoder.norm=batch", f"{RESENC_2D} --encoder.norm=batch"
VIT = "--encoder=medssl.encoders.vit.ViT --encoder.in_channels=1 --encoder.width=24 --encoder.depth=2"
VIT_3D, VIT_2D = f"{VIT} --encoder.patch=[4,4,4]", f"{VIT} --encoder.patch=[4,4]"
TIMM = "--encoder=medssl.encoders.timm2d.Timm2d --encoder.in_channels=1"
RUN = (
    "--training.steps=6 --training.batch_size=4 --training.output.log_every=1 --training.output.checkpoint_every=3 "
    "--training.output.picture_every=100 --data.workers=0"
)
PRETRAIN = f"{RUN} --training.output.health_every=2 --data.split=train"
FINETUNE = f"{RUN} --training.output.validate_every=3 --optimizer.learning_rate=0.01"
VIEW = "--objective.view.size"
DECODER = "--objective.decoder_width=16 --objective.decoder_depth=1"
GRAPHS = "--objective.graphs.nodes=4 --objective.graphs.neighbours=2 --objective.fit.cells=2 --objective.projection=[8]"
DISTILLED = (
    "--objective.prototypes.count=16 --objective.prototypes.width=8 --objective.prototypes.hidden=16 "
    "--objective.masks.cell="
)
GLOBAL, LOCAL = "--objective.projection=[16,8] --training.batch_size=8", "--objective.steps=1 --training.batch_size=8"

HEADS = "--objective.projection=[16,16,8]"
PAIRS = {  # objectives on two views of a crop
    "byol": "--objective.projection=[16,8] --objective.prediction=16",
    "simsiam": f"{HEADS} --objective.prediction=4",
    "moco_v2": "--objective.projection=[16,8] --objective.queue=16",
    "moco_v3": f"{HEADS} --objective.prediction=16",
    "vicreg": HEADS,
    "barlow_twins": HEADS,
    "swav": "--objective.clusters.count=8 --objective.clusters.queue=8 --objective.projection=[16,8] "
    "--objective.local_views=0 --objective.local_view=null",
    "pixpro": "--objective.projection=[16,8]",
    "densecl": "--objective.projection=[16,8] --objective.queue=16",
    "nnclr": f"{HEADS} --objective.prediction=16 --objective.queue=16",
}

# --- pretraining: every preset of configs/objectives, on which store, with which words

OBJECTIVES = {
    "spark_3d": ("store_3d", f"{RESENC_3D} {VIEW}=[16,16,16] --objective.decoder_width=8"),
    "spark_2d": ("store_2d", f"{BATCH_2D} {VIEW}=[16,16] --objective.decoder_width=8"),
    "mae_3d": ("store_3d", f"{VIT_3D} {VIEW}=[16,16,16] {DECODER}"),
    "mae_2d": ("store_2d", f"{VIT_2D} {VIEW}=[16,16] {DECODER}"),
    "mae_cxr": ("store_2d", f"{VIT_2D} {VIEW}=[16,16] {DECODER}"),
    "mae_resenc_3d": ("store_3d", f"{RESENC_3D} {VIEW}=[16,16,16] --objective.cell=[4,4,4]"),
    "mae_resenc_2d": ("store_2d", f"{RESENC_2D} {VIEW}=[16,16] --objective.cell=[4,4]"),
    "simmim_3d": ("store_3d", f"{VIT_3D} {VIEW}=[16,16,16] --objective.cell=[8,8,8]"),
    "simmim_2d": ("store_2d", f"{VIT_2D} {VIEW}=[16,16] --objective.cell=[8,8]"),
    "simclr_3d": ("store_3d", f"{RESENC_3D} {VIEW}=[16,16,16] --objective.projection=[16,8]"),
    "simclr_2d": ("store_2d", f"{BATCH_2D} {VIEW}=[16,16] --objective.projection=[16,8]"),
    **{
        f"{name}_{store[-2:]}": (store, f"{network} {words}")
        for name, words in PAIRS.items()
        for store, network in (
            ("store_2d", f"{BATCH_2D} {VIEW}=[16,16]"),
            ("store_3d", f"{BATCH_3D} {VIEW}=[16,16,16]"),
        )
    },
    "masked_distillation_3d": (
        "store_3d",
        f"{RESENC_3D} {VIEW}=[16,16,16] {DISTILLED}[4,4,4] --objective.decoder_width=8",
    ),
    "masked_distillation_2d": ("store_2d", f"{VIT_2D} {VIEW}=[16,16] {DISTILLED}[4,4]"),
    "graph_match_3d": ("store_3d", f"{BATCH_3D} {VIEW}=[8,8,8] {GRAPHS}"),
    "graph_match_2d": ("store_2d", f"{BATCH_2D} {VIEW}=[16,16] {GRAPHS}"),
    "global_contrast_3d": ("store_3d", f"{RESENC_3D} {VIEW}=[16,16,4] {GLOBAL}"),
    "global_contrast_2d": ("store_3d", f"{RESENC_2D} {VIEW}=[16,16] {GLOBAL}"),
    "local_contrast_3d": ("store_3d", f"{RESENC_3D} {VIEW}=[16,16,8] {LOCAL} --init=runs/global_contrast_3d"),
    "local_contrast_2d": ("store_3d", f"{RESENC_2D} {VIEW}=[16,16] {LOCAL} --init=runs/global_contrast_2d"),
}
LONGER = "--training.steps=40 --training.output.checkpoint_every=4"
SPARK = f"pretrain --objective=spark_3d --store=store_3d {OBJECTIVES['spark_3d'][1]} {PRETRAIN}"
SIMCLR = f"pretrain --objective=simclr_2d --store=store_2d {OBJECTIVES['simclr_2d'][1]} {PRETRAIN}"

# --- fine-tuning

SEGMENT_3D = f"finetune --config=segment_3d_small --store=store_3d --data.view.size=[16,16,16] {FINETUNE}"
SEGMENT_2D = f"finetune --config=segment_2d_small --store=store_2d --data.view.size=[16,16] {FINETUNE}"
CLASSIFY_2D = f"finetune --config=classify_2d_small --store=store_2d --data.view.size=[32,32] {FINETUNE}"
WHOLE_3D = f"finetune --store=store_3d --data.view.size=[16,16,16] {FINETUNE}"
FROM_3D, FROM_2D = "--pretrained=runs/spark_3d", "--pretrained=runs/spark_2d"
COMPARE = f"compare --runs=2 --jobs=1 {FINETUNE.replace('--training.steps=6', '--training.steps=4')}"
STAGES = (
    "stages --config=global_local_3d_small --store=store_3d --out=staged --settings='"
    '{"*.training.steps": 4, "*.training.batch_size": 4, "*.data.workers": 0, "*.training.output.picture_every": 100, '
    '"global.encoder.channels": [4, 8, 8, 8], "local.encoder.channels": [4, 8, 8, 8], '
    '"global.encoder.blocks": [1, 1, 1, 1], "local.encoder.blocks": [1, 1, 1, 1], '
    '"global.objective.view.size": [16, 16, 8], "local.objective.view.size": [16, 16, 8], '
    '"tuned.data.view.size": [16, 16, 8]}\''
)

# Name, command. A name that ends in "(killed)" is killed once its log has a few rows; one that ends in "(2 processes)"
# is started as torchrun starts it.
COMMANDS: tuple[tuple[str, str], ...] = (
    ("phantoms 3D", "phantoms scans_3d --count=12 --labelled=8 --shape=[24,20,20]"),
    ("phantoms 2D", "phantoms scans_2d --count=14 --labelled=12 --shape=[40,36]"),
    ("phantoms MR and CT", "phantoms both --count=4 --labelled=3 --modality=both --shape=[12,12,12]"),
    ("phantoms large", "phantoms large --count=1 --labelled=1 --shape=[76,60,60]"),
    ("phantoms shuffled", "phantoms shuffled --count=2 --labelled=2 --shape=[12,12,12] --shuffle_labels=true"),
    ("phantoms new 3D", "phantoms new_3d --count=4 --labelled=0 --shape=[24,20,20] --seed=7"),
    ("phantoms new 2D", "phantoms new_2d --count=3 --labelled=0 --shape=[40,36] --seed=7"),
    ("index 3D", f"index scans_3d --index=index_3d.sqlite {INDEX_3D}"),
    ("index 2D", f"index scans_2d --index=index_2d.sqlite {INDEX_2D}"),
    ("index MR and CT", f"index both large --index=index_both.sqlite {KEY} --files.modality=CT {ORGANS}"),
    ("index folders", f"index scans_2d --index=index_folders.sqlite {NAMED} {US} --labels.classes=folder"),
    ("list 3D", "index --index=index_3d.sqlite --export=listing_3d.csv"),
    ("list 2D", "index --index=index_2d.sqlite --export=listing_2d.csv"),
    ("list MR and CT", "index --index=index_both.sqlite --export=listing_both.csv"),
    ("list folders", "index --index=index_folders.sqlite --export=listing_folders.csv --where='size_i > 8'"),
    ("cache 3D", "cache index_3d.sqlite store_3d --preprocess=mr --preprocess.spacing_mm=[14,14,14] --workers=0"),
    ("cache 3D raw", "cache index_3d.sqlite raw_3d --preprocess=mr --tier=raw --workers=2"),
    ("cache 2D", "cache index_2d.sqlite store_2d --preprocess=image --preprocess.image_size=[32,32] --workers=0"),
    ("cache CT", "cache index_both.sqlite store_ct --preprocess=ct --workers=0"),
    ("cache CT raw", "cache index_both.sqlite raw_ct --preprocess=ct --workers=0 --tier=raw"),
    *(
        (f"pretrain {name}", f"pretrain --objective={name} --store={store} --run=runs/{name} {PRETRAIN} {words}")
        for name, (store, words) in OBJECTIVES.items()
    ),
    ("pretrain timm", f"pretrain --objective=spark_2d --store=store_2d --run=runs/timm {TIMM} "
     f"--encoder.model=test_resnet {VIEW}=[64,64] --objective.decoder_width=32 {PRETRAIN}"),
    ("pretrain accumulated", f"{SPARK} --run=runs/accumulated --training.batch_size=2 --training.accumulate=2"),
    ("pretrain (killed)", f"{SPARK} --run=runs/killed {LONGER}"),
    ("pretrain resumed", f"{SPARK} --run=runs/killed {LONGER}"),
    ("pretrain extended", f"{SPARK} --run=runs/killed {LONGER} --training.steps=44 --training.extend=true"),
    ("pretrain spark (2 processes)", f"{SPARK} --run=runs/two_spark --training.batch_size=2"),
    ("pretrain simclr (2 processes)", f"{SIMCLR} --run=runs/two_simclr --training.batch_size=2"),
    ("pretrain from a run", f"{SPARK} --run=runs/again --init=runs/spark_3d --training.seed=3 --data.workers=1"),
    ("pretrain probed", f"{SPARK} --run=runs/probed --probe.target=kind --probe.every=3"),
    ("finetune 3D", f"{SEGMENT_3D} --run=tuned/segment_3d {FROM_3D} --labels=3"),
    ("finetune 3D scratch", f"{SEGMENT_3D} --run=tuned/scratch_3d {FROM_3D} --labels=3 --from-scratch"),
    ("finetune 3D encoder", f"{SEGMENT_3D} --run=tuned/random_3d {RESENC_3D} --labels=0.5 --training.accumulate=2"),
    ("finetune 3D decoder", f"{SEGMENT_3D} --run=tuned/decoder_3d --pretrained=runs/mae_resenc_3d "
     "--head.deep_supervision=true --optimizer.average=0.9 --mixing.mixup=0.4 --mixing.cutmix=1.0"),
    ("finetune 3D transformer", f"{SEGMENT_3D} --run=tuned/lora --pretrained=runs/mae_3d --head=feature_pyramid "
     "--head.channels=8 --optimizer=lora --optimizer.lora.rank=2"),
    ("finetune 3D unetr", f"{SEGMENT_3D} --run=tuned/unetr --pretrained=runs/simmim_3d --head=unetr "
     "--head.channels=4 --optimizer=layer_decay"),
    ("finetune 3D frozen", f"{SEGMENT_3D} --run=tuned/frozen {FROM_3D} --head=voxel_linear --optimizer=frozen"),
    ("finetune 2D", f"{SEGMENT_2D} --run=tuned/segment_2d {FROM_2D} --optimizer=sawtooth"),
    ("finetune slices", f"{SEGMENT_3D} --run=tuned/slices --data.view.size=[16,16] "
     "--pretrained=runs/global_contrast_2d"),
    ("finetune classes", f"{CLASSIFY_2D} --run=tuned/classes {FROM_2D} --data.target=grade"),
    ("finetune classes scratch", f"{CLASSIFY_2D} --run=tuned/classes_scratch {FROM_2D} --data.target=grade "
     "--from-scratch --head.class_weights=balanced --data.sampling.balance=equal"),
    ("finetune ordinal", f"{CLASSIFY_2D} --run=tuned/ordinal {FROM_2D} --data.target=grade --head=ordinal"),
    ("finetune attentive", f"{CLASSIFY_2D} --run=tuned/attentive --pretrained=runs/mae_2d --data.target=grade "
     "--head=attentive --head.attention_heads=2"),
    ("finetune findings", f"{WHOLE_3D} --run=tuned/findings {FROM_3D} --data.target=nodule,effusion "
     "--head=multi_label"),
    ("finetune list", f"{CLASSIFY_2D} --run=tuned/list {FROM_2D} --data.target=findings --head=multi_label"),
    ("finetune number", f"{WHOLE_3D} --run=tuned/number {FROM_3D} --data.target=age --head=regression"),
    ("pseudolabel", "pseudolabel tuned/segment_3d --store=store_3d --out=pseudo --confidence=0.3"),
    ("finetune pseudo", f"{SEGMENT_3D} --run=tuned/pseudo {FROM_3D} --labels=3 --pseudo.labels=pseudo"),
    ("evaluate 3D", "evaluate tuned/segment_3d --index=index_3d.sqlite --out=scores/segment_3d --by=kind"),
    ("evaluate 2D", "evaluate tuned/segment_2d --index=index_2d.sqlite --out=scores/segment_2d --nsd_tolerance_mm=4"),
    ("evaluate slices", "evaluate tuned/slices --index=index_3d.sqlite --out=scores/slices"),
    ("evaluate seen", "evaluate tuned/segment_3d --index=index_3d.sqlite --out=scores/seen --split=train "
     "--allow_seen=true"),
    ("evaluate classes", "evaluate tuned/classes --index=index_2d.sqlite --out=scores/classes --calibrate=val"),
    ("evaluate ordinal", "evaluate tuned/ordinal --index=index_2d.sqlite --out=scores/ordinal"),
    ("evaluate findings", "evaluate tuned/findings --index=index_3d.sqlite --out=scores/findings --specificity=0.5"),
    ("evaluate list", "evaluate tuned/list --index=index_2d.sqlite --out=scores/list"),
    ("evaluate number", "evaluate tuned/number --index=index_3d.sqlite --out=scores/number"),
    ("predict 3D", f"predict tuned/segment_3d new_3d --out=predicted/segment_3d {KEY} {MR} "
     "--allow=spacing"),
    ("predict 2D", f"predict tuned/segment_2d new_2d --out=predicted/segment_2d {KEY} {US} "
     "--allow=spacing --names=file"),
    ("predict index", "predict tuned/pseudo --index=index_3d.sqlite --out=predicted/pseudo --where=\"split = 'test'\""),
    ("predict classes", f"predict tuned/classes new_2d --out=predicted/classes {KEY} {US} "
     "--allow=spacing --scaling=scores/classes"),
    ("predict findings", "predict tuned/findings --index=index_3d.sqlite --out=predicted/findings --allow=spacing"),
    ("predict number", "predict tuned/number --index=index_3d.sqlite --out=predicted/number --allow=spacing"),
    ("probe voxels", "probe runs/spark_3d --store=store_3d --out=probes/voxels --voxels=300"),
    ("probe voxels 2D", "probe runs/spark_2d --store=store_2d --out=probes/voxels_2d --voxels=300"),
    ("probe classes", "probe runs/spark_3d --store=store_3d --out=probes/classes --target=kind "
     "--shots=[1,2] --draws=3"),
    ("probe scratch", "probe runs/spark_3d --store=store_3d --out=probes/scratch --target=kind --shots=[1] --draws=3 "
     "--from-scratch --seed=2"),
    ("probe grades", "probe tuned/classes --store=store_2d --out=probes/grades --target=grade --shots=[1] --draws=3"),
    ("compare 3D", f"{COMPARE} runs/spark_3d --config=segment_3d_small --data.view.size=[16,16,16] --store=store_3d "
     "--index=index_3d.sqlite --out=studies/segment --labels=[2]"),
    ("compare classes", f"{COMPARE} first=runs/spark_2d --config=classify_2d_small --data.view.size=[32,32] "
     "--data.target=grade --store=store_2d --index=index_2d.sqlite --out=studies/classes --labels=[null]"),
    ("stages", STAGES),
)  # fmt: skip
