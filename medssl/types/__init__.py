"""The types that the rooms of medssl hand to each other.

Axis letters: B batch, C channels, N tokens, ``*s`` the spatial axes (H W or D H W, in the order of the stored array's
axes), n their number. Affines map voxel indices (the center of a voxel is an integer) to what their name says.
``hidden=True`` always means: the network must not see it. Sizes are in voxels; distances end in ``_mm``.
"""

from medssl.types.bags import BagBatch, CoordinateUnit
from medssl.types.batches import (
    Batch,
    Crops,
    Geometry,
    Intensity,
    Origin,
    Placement,
    Sampling,
    View,
    ViewPlan,
    ViewSpec,
)
from medssl.types.cards import Card, TrainedOn, Tuned
from medssl.types.errors import UserError
from medssl.types.labeled import LabeledScans
from medssl.types.notes import Note, NoteKind
from medssl.types.preprocess import Imported, IntensityRule, IntensityRules, Preprocess, StainRule
from medssl.types.scans import (
    Digests,
    Grid,
    Kind,
    Labels,
    LabelSchema,
    Part,
    Scan,
    Source,
    Status,
    StatusCode,
    Subject,
    ValueDomain,
)
from medssl.types.slides import TileRule, TissueRule
from medssl.types.training import Features, Loss, MaskMode, Step

__all__ = [
    "BagBatch",
    "Batch",
    "Card",
    "CoordinateUnit",
    "Crops",
    "Digests",
    "Features",
    "Geometry",
    "Grid",
    "Imported",
    "Intensity",
    "IntensityRule",
    "IntensityRules",
    "Kind",
    "LabelSchema",
    "LabeledScans",
    "Labels",
    "Loss",
    "MaskMode",
    "Note",
    "NoteKind",
    "Origin",
    "Part",
    "Placement",
    "Preprocess",
    "Sampling",
    "Scan",
    "Source",
    "StainRule",
    "Status",
    "StatusCode",
    "Step",
    "Subject",
    "TileRule",
    "TissueRule",
    "TrainedOn",
    "Tuned",
    "UserError",
    "ValueDomain",
    "View",
    "ViewPlan",
    "ViewSpec",
]
