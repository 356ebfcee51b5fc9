"""The shipped encoders keep the contract; their keys are those of their makers; the suite finds broken ones."""

import copy

import pytest
import torch
from torch import nn

from medssl.encoders.base import ContractError, Encoder, check_encoder
from medssl.encoders.resenc import ResEnc
from medssl.encoders.timm2d import Timm2d
from medssl.nn.visibility import Masked
from medssl.types import Features, UserError

SMALL = {"channels": (4, 8, 12), "blocks": (1, 1, 2)}
ANISOTROPIC = {
    "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
    "kernels": [[3, 3, 1], [3, 3, 1], [3, 3, 3]],
}
RESENCS = {
    "2d batch": {"ndim": 2, "norm": "batch"},
    "2d instance": {"ndim": 2, "norm": "instance", "in_channels": 3},
    "3d instance": {"ndim": 3},
    "3d batch anisotropic": {"ndim": 3, "norm": "batch", **ANISOTROPIC},
    "3d instance dropout": {"ndim": 3, "dropout": 0.2, "in_channels": 2},
    "strided from the start": {"ndim": 3, "strides": [[2, 2, 1], [2, 2, 2], [1, 2, 2]]},
}


def resenc(name):
    torch.manual_seed(0)
    return ResEnc(**SMALL, **RESENCS[name])


@pytest.mark.parametrize("name", RESENCS)
def test_resenc_keeps_the_contract(name):
    check_encoder(resenc(name))


def test_resenc_keeps_the_contract_when_it_recomputes():
    encoder = resenc("3d batch anisotropic")
    encoder.recompute = True
    check_encoder(encoder, (16, 8, 6))


TIMM = {
    "resnet18": {"in_channels": 1},
    "convnext_atto": {"in_channels": 1, "drop_path": 0.1},
    "convnextv2_atto": {"in_channels": 3},
}
MORE = ("resnet50", "resnet26d", "seresnet18", "regnety_002", "resnext50_32x4d", "resnet18d", "convnext_tiny_hnf")


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_keep_the_contract(name):
    torch.manual_seed(0)
    check_encoder(Timm2d(name, **TIMM[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_timm_models_keep_the_contract(name):
    torch.manual_seed(0)
    encoder = Timm2d(name, in_channels=1)
    assert encoder.mask_modes == {"sparse"}
    check_encoder(encoder)


@pytest.mark.parametrize("name", ["2d batch", "3d instance", "3d batch anisotropic"])
def test_resenc_is_nnunets_encoder(name):
    """Key by key, shape by shape, and in what it computes."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    ours = resenc(name).eval()
    ndim = next(iter(ours.ndims))
    volume = ndim == 3
    options = RESENCS[name]
    norm = {
        ("batch", True): nn.BatchNorm3d,
        ("batch", False): nn.BatchNorm2d,
        ("instance", True): nn.InstanceNorm3d,
    }[options.get("norm", "instance"), volume]
    theirs = ResidualEncoderUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 8, 12],
        conv_op=nn.Conv3d if volume else nn.Conv2d,
        kernel_sizes=options.get("kernels", [[3] * ndim] * 3),
        strides=options.get("strides", [[1] * ndim, [2] * ndim, [2] * ndim]),
        n_blocks_per_stage=[1, 1, 2],
        num_classes=2,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()
    keys = {key: value.shape for key, value in theirs.state_dict().items() if key.startswith("encoder.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == keys
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05)
    assert not theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys
    x = torch.randn(2, 1, *(16, 8, 8)[:ndim])
    for a, b in zip(ours(x).maps, theirs.encoder(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_timm2d_is_timms_model(name):
    import timm

    ours = Timm2d(name, in_channels=3).eval()
    theirs = timm.create_model(name, num_classes=0).eval()
    own = {key.removeprefix("model."): value for key, value in ours.state_dict().items()}
    missing = theirs.load_state_dict(own, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("head.norm") for key in missing.missing_keys)
    x = torch.randn(2, 3, 64, 32)
    for a, b in zip(ours(x).maps, theirs.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(a, b)


def test_what_an_encoder_says_of_itself():
    encoder = ResEnc(channels=(4, 8, 8), blocks=(1, 1, 1), strides=[[1, 1, 1], [4, 4, 2], [8, 8, 2]])
    assert encoder.strides == ((1, 1, 1), (4, 4, 2), (32, 32, 4))
    assert encoder.mask_cell == (16, 16, 4)
    assert ResEnc(**SMALL, ndim=2).mask_cell == (4, 4)
    timm_encoder = Timm2d("resnet18", in_channels=1)
    assert timm_encoder.channels == (64, 64, 128, 256, 512)
    assert timm_encoder.strides[-1] == timm_encoder.mask_cell == (32, 32)
    assert timm_encoder.ndims == {2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ndim": 4}, r"ndim: must be 2 or 3 \(got 4\)"),
        ({"norm": "layer"}, 'norm: must be "instance" or "batch"'),
        ({"blocks": (1, 1)}, "blocks has 2 entries, channels has 3"),
        ({"strides": [[1, 1], [2, 2], [2, 2]]}, r"strides holds \[1, 1\]: expected 3 numbers"),
        ({"kernels": [[3, 3, 3], [2, 3, 3], [3, 3, 3]]}, r"kernels holds \[2, 3, 3\]: expected odd"),
    ],
)
def test_resenc_refuses_misfits(arguments, words):
    with pytest.raises(UserError, match=words):
        ResEnc(**{**SMALL, **arguments})


def test_images_that_do_not_fit_are_refused():
    encoder = ResEnc(**SMALL, **{"ndim": 3, **ANISOTROPIC})
    for shape, words in (
        ((1, 1, 30, 32, 8), r"size \(30, 32, 8\) is not a multiple of \(4, 4, 2\).* \(28, 32, 8\) or \(32, 32, 8\)"),
        ((1, 2, 32, 32, 8), r"ResEnc takes 3D images with 1 channel\(s\), got shape \(1, 2, 32, 32, 8\)"),
        ((1, 1, 32, 32), r"takes 3D images .* got shape \(1, 1, 32, 32\)"),
    ):
        with pytest.raises(UserError, match=words):
            encoder(torch.zeros(shape))
    x, hidden = torch.zeros(2, 1, 16, 16, 8), torch.zeros(2, 4, 4, 2, dtype=torch.bool)
    with pytest.raises(UserError, match='ResEnc cannot hide cells in mode "drop"; its modes are: sparse'):
        encoder(x, hidden, "drop")
    with pytest.raises(UserError, match="mask for 1 samples, image of 2"):
        encoder(x, hidden[:1])
    with pytest.raises(UserError, match="does not nest"):
        encoder(x, torch.zeros(2, 3, 4, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("mobilevit_xxs", "Attention"), ("efficientnet_b0", "SqueezeExcite"), ("ecaresnet26t", "EcaModule")],
)
def test_timm_models_without_twins_are_dense(name, layer):
    """Also where only what lies between the layers is unknown: a mean over positions, attention."""
    encoder = Timm2d(name, in_channels=1).eval()
    assert encoder.mask_modes == frozenset()
    assert layer in encoder.unmasked_because or "more" in encoder.unmasked_because
    assert not any(isinstance(module, Masked) for module in encoder.modules())
    assert encoder(torch.randn(1, 1, 64, 64)).maps[-1].shape[2:] == (2, 2)
    with pytest.raises(UserError, match=r'in mode "sparse"; its modes are: none \(no masked twin for'):
        encoder(torch.zeros(1, 1, 64, 64), torch.zeros(1, 2, 2, dtype=torch.bool))


def test_timm2d_refuses_what_timm_does_not_have():
    with pytest.raises(UserError, match='timm has no model "resnet19": similar names are resnet1'):
        Timm2d("resnet19")
    with pytest.raises(UserError, match=r"does not take the arguments .*drop_path=0\.1"):
        Timm2d("vgg11", drop_path=0.1)
    with pytest.raises(UserError, match="gives no feature maps"):
        Timm2d("densenet121")


def test_copies_of_a_masked_encoder():
    """A copy taken inside a forward (a teacher, an averaged model) is not masked by it."""
    encoder = resenc("2d batch").eval()
    other = copy.deepcopy(encoder)
    x, hidden = torch.randn(2, 1, 8, 8), torch.ones(2, 2, 2, dtype=torch.bool)
    assert (encoder(x, hidden).maps[-1] == 0).all()
    assert torch.equal(encoder(x).maps[-1], other(x).maps[-1])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "make", [lambda: resenc("3d instance"), lambda: resenc("2d batch"), lambda: Timm2d("resnet18")]
)
def test_encoders_keep_the_contract_on_a_gpu(make):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    check_encoder(make().cuda())


# --- the suite finds what is broken


class Broken(ResEnc):
    """Breaks one clause, by name."""

    def __init__(self, clause):
        super().__init__(**SMALL, ndim=2, norm="batch")
        self.clause = clause
        if clause == "unused":
            self.extra = nn.Parameter(torch.zeros(1))
        if clause == "strides":
            self.strides = ((1, 1), (3, 3), (4, 4))
        if clause == "ndims":
            self.ndims = frozenset({3})
        if clause == "channels":
            self.channels = (4, 8, 16)

    def forward(self, image, hidden=None, mode=None):
        if self.clause == "accepts" and hidden is None:
            image = image[:, :1, : image.shape[2] // 4 * 4, : image.shape[3] // 4 * 4]
        if self.clause == "leaks" and hidden is not None:
            return super().forward(image + image.mean().nan_to_num(), hidden, mode)
        if self.clause == "ignores" and hidden is not None:
            return super().forward(self.checked(image, hidden))
        features = super().forward(image, hidden, mode)
        maps, pooled = list(features.maps), features.pooled
        if self.clause == "state":
            maps[-1] = maps[-1] * (id(self) % 99991)
        if self.clause == "batch":
            pooled = pooled + pooled.mean(0)
        if self.clause == "bfloat16" and torch.is_autocast_enabled("cpu"):
            maps[0] = maps[0] / 0
        if self.clause == "pooled" and hidden is not None:
            pooled = maps[-1].mean((2, 3))
        if self.clause == "leaks on" and hidden is None:
            maps[0] = torch.zeros_like(maps[0])
        if self.clause == "mask stays" and hidden is not None:
            self.clause = "leaks on"
        return Features(maps=tuple(maps), pooled=pooled)


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        ("unused", "parameter extra gets no gradient"),
        ("strides", r"\(3, 3\) does not divide \(4, 4\)"),
        ("ndims", r"ndims \{3\} but strides have 2 axes"),
        ("channels", r"map 2 has shape .*, described as \(3, 16,"),
        ("accepts", "is not refused by a UserError"),
        ("leaks", "in hidden voxels changes the features"),
        ("ignores", "is not exactly 0 where hidden"),
        ("state", "a state-dict round trip changes the features"),
        ("batch", "depend on its batch"),
        ("bfloat16", "not finite under bfloat16"),
        ("pooled", "pooled is not the visible mean"),
        ("mask stays", "a mask stays behind"),
    ],
)
def test_the_suite_finds_what_is_broken(clause, words):
    with pytest.raises(ContractError, match=words):
        check_encoder(Broken(clause))


def test_the_check_leaves_an_encoder_as_it_was():
    encoder: Encoder = resenc("2d batch")
    before = copy.deepcopy(encoder.state_dict())
    check_encoder(encoder)
    assert encoder.training
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    with pytest.raises(UserError, match="size of the check"):
        check_encoder(encoder, (9, 8))
