"""Folders of weights and card, and files of others."""

import contextlib
import io
import json
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_safetensors
from torch import nn

from medssl.encoders.adapt import resize_positions
from medssl.encoders.resenc import ResEnc
from medssl.encoders.tensors import read_tensors
from medssl.encoders.timm2d import Timm2d
from medssl.encoders.vit import ViT
from medssl.encoders.weights import Report, load, load_card, load_encoder, save_encoder
from medssl.types import Card, Imported, IntensityRule, IntensityRules, Preprocess, UserError
from medssl.types.cards import Pretraining
from medssl.types.provenance import Provenance

ARGUMENTS = {"channels": [4, 8], "blocks": [1, 1], "ndim": 2, "norm": "batch", "in_channels": 1}
CARD = Card(
    encoder=Imported("medssl.encoders.resenc.ResEnc", ARGUMENTS),
    preprocess=Preprocess(
        spacing_mm=(1.0, 1.0, 0.0),
        intensity=IntensityRules(hu=IntensityRule("range", -200.0, 300.0, "unit")),
        transforms=(Imported("monai.transforms.Flipd", {"keys": ["image"], "spatial_axis": 0}),),
    ),
    objective=Pretraining("medssl.objectives.spark.SparK", {"mask_ratio": 0.6}),
    index_digest="0123456789abcdef",
    subjects=Provenance(("aa", "bb")),
    step=500,
    versions={"torch": "2.8"},
)


def encoder_of(seed=0, **changes):
    torch.manual_seed(seed)
    encoder = ResEnc(**{**ARGUMENTS, **changes})
    with torch.no_grad():
        for tensor in (*encoder.parameters(), *encoder.buffers()):
            tensor.copy_(torch.rand(tensor.shape) * 10)
    return encoder


def same_state(a, b):
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- our own folders


def test_an_encoder_comes_back_from_its_folder(tmp_path):
    encoder = encoder_of()
    save_encoder(tmp_path / "run", encoder, CARD)
    other, card = load_encoder(tmp_path / "run")
    same_state(encoder, other)
    assert card == CARD
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["card.json", "encoder.safetensors"]


def test_any_program_can_load_the_file_strictly(tmp_path):
    save_encoder(tmp_path, encoder_of(), CARD)
    other = encoder_of(seed=1)
    other.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    same_state(other, encoder_of())


@pytest.mark.parametrize(
    "change", [{"subjects": Provenance(("aa",), complete=False), "objective": None}, {"preprocess": Preprocess()}]
)
def test_cards_with_nothing_in_places(tmp_path, change):
    card = replace(CARD, **change)
    save_encoder(tmp_path, encoder_of(), card)
    assert load_card(tmp_path) == card
    assert load_card(tmp_path).preprocess.digest() == card.preprocess.digest()


@pytest.mark.parametrize("told", [["aa", "bb"], None, {"known": ["aa"], "complete": False}])
def test_cards_of_earlier_versions_tell_whom_weights_have_seen(tmp_path, told):
    save_encoder(tmp_path, encoder_of(), CARD)
    change_card(tmp_path, lambda data: data.update(subjects=told))
    expected = {0: Provenance(complete=False), 1: Provenance(("aa",), complete=False), 2: Provenance(("aa", "bb"))}
    count = 0 if told is None else 2 if isinstance(told, list) else 1
    assert load_card(tmp_path).subjects == expected[count]


def test_where_pretrained_weights_came_from_is_left_out(tmp_path):
    arguments = {**ARGUMENTS, "pretrained": True}
    save_encoder(tmp_path, encoder_of(), replace(CARD, encoder=Imported(CARD.encoder.class_path, arguments)))
    assert load_encoder(tmp_path)[1].encoder.init_args == ARGUMENTS


def test_a_failing_disk_leaves_the_files_that_were_there(tmp_path, monkeypatch):
    save_encoder(tmp_path, encoder_of(), CARD)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:  # the weights are written, the card is not
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        UserError, match=r"encoder\.safetensors could not be written \(No space left on device; \d+ MiB free\)"
    ):
        save_encoder(tmp_path, encoder_of(seed=1), replace(CARD, step=501))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def change_card(folder, change):
    file = folder / "card.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("step"), r"card\.json: without step this is no Card: expected what medssl wrote there$"),
        (
            lambda d: d.clear(),
            r"card\.json: without encoder, preprocess, objective, index_digest, subjects, step, versions this is no",
        ),
        (lambda d: d.update(step="many"), r"card\.json: step holds 'many': expected int"),
        (lambda d: d.update(step=True), "step holds True: expected int"),
        (lambda d: d.update(color="blue"), "unknown key color; a Card has encoder, preprocess,"),
        (lambda d: d["preprocess"].update(spacing_mm=["thin"]), r"spacing_mm\[0\] holds 'thin': expected float"),
        (lambda d: d["preprocess"]["intensity"]["hu"].update(low=[]), r"low holds \[\]"),
        (lambda d: d.update(encoder=3), r"encoder: 3; a Imported has class_path, init_args"),
        (lambda d: d["encoder"].update(class_path="medssl.encoders.none.None_"), "cannot be imported"),
        (lambda d: d["encoder"].update(class_path="None_"), "names 'None_', which is not on the list of classes"),
        (
            lambda d: d["encoder"].update(class_path="pathlib.Path"),
            r"names 'pathlib\.Path', which is not on the list of classes .*; if you know it, add to trust: ",
        ),
        (lambda d: d["encoder"]["init_args"].update(depth=3), "does not take its init_args .*depth"),
        (lambda d: d["encoder"]["init_args"].update(channels=[4, 16]), "too few weights fit ResEnc"),
        (lambda d: d["encoder"]["init_args"].update(norm="instance"), "the weights are those of another network"),
    ],
)
def test_cards_that_are_wrong(tmp_path, change, words):
    save_encoder(tmp_path, encoder_of(), CARD)
    change_card(tmp_path, change)
    with pytest.raises(UserError, match=words):
        load_encoder(tmp_path)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(UserError, match=r"card\.json: no card could be read \(No such file"):
        load_encoder(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(UserError, match=r"card\.json: not JSON"):
        load_encoder(tmp_path)
    save_encoder(tmp_path, encoder_of(), CARD)
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"encoder\.safetensors: is cut off or damaged: copy or download it again$"):
        load_encoder(tmp_path)


# --- files of others


PREFIXES = {
    "as they are": lambda key: key,
    "data parallel": lambda key: f"module.{key}",
    "deeper": lambda key: f"student.backbone.{key}",
    "without ours": lambda key: key.removeprefix("encoder."),
    "another name": lambda key: key.replace("encoder.", "module.net.", 1),
}


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "network_weights": state}])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_and_wrappings(tmp_path, prefix, wrap):
    state = {PREFIXES[prefix](key): value for key, value in encoder_of().state_dict().items()}
    state["decoder.extra.weight"] = torch.zeros(3)
    torch.save(wrap(state), tmp_path / "weights.pth")
    other = encoder_of(seed=1)
    report = load(other, tmp_path / "weights.pth")
    same_state(other, encoder_of())
    assert report.matched == 1.0
    assert report.unexpected == ("decoder.extra.weight",)
    assert str(report).startswith("100% of the keys filled")
    assert "1 unexpected (decoder.extra.weight)" in str(report)


@pytest.mark.parametrize(("source", "target"), [(3, 1), (1, 3), (2, 4)])
def test_other_input_channels_are_adapted(tmp_path, source, target):
    """Equal channels get the response that equal channels got."""
    theirs, ours = encoder_of(in_channels=source).eval(), encoder_of(1, in_channels=target).eval()
    save_file({key: value.clone() for key, value in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    report = load(ours, tmp_path / "w.safetensors")
    assert report.adapted == ("encoder.stem.convs.0.conv.weight", "encoder.stem.convs.0.all_modules.0.weight")
    assert report.missing == ()
    x = torch.rand(1, 1, 8, 8)
    a, b = theirs(x.repeat(1, source, 1, 1)).pooled, ours(x.repeat(1, target, 1, 1)).pooled
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_timm_weights_from_a_file(tmp_path):
    import timm

    theirs = timm.create_model("resnet18", num_classes=10)
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    ours = Timm2d("resnet18", in_channels=1)
    assert load(ours, tmp_path / "resnet18.safetensors").matched == 1
    assert torch.equal(ours.model.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    torch.testing.assert_close(ours.model.conv1.weight, theirs.conv1.weight.sum(1, keepdim=True))
    with pytest.raises(UserError, match=r"too few weights fit Timm2d: .*expected at least 90%"):
        load(Timm2d("convnext_atto"), tmp_path / "resnet18.safetensors")


def test_too_few_weights_leave_a_module_as_it_was(tmp_path):
    state = encoder_of().state_dict()
    half = {key: value.clone() for key, value in list(state.items())[: len(state) // 2]}
    save_file(half, tmp_path / "half.safetensors")
    other = encoder_of(seed=1)
    with pytest.raises(UserError, match=r"half\.safetensors: too few weights fit ResEnc: .* missing \(encoder\.stages"):
        load(other, tmp_path / "half.safetensors")
    same_state(other, encoder_of(seed=1))
    report = load(other, tmp_path / "half.safetensors", minimum=0.2)
    assert 0.4 < report.matched < 0.6
    assert set(report.loaded) == set(half)


def test_an_encoder_that_would_see_through_random_weights_is_refused(tmp_path):
    """All but one key fit, and that one reads the image."""
    save_file(ViT(patch=(16, 16), width=32, depth=12).state_dict(), tmp_path / "vit.safetensors")
    ours = ViT(patch=(8, 8), width=32, depth=12)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    words = (
        r"vit\.safetensors: ViT would look at images through random weights: 99% of the keys filled: .*; the layer "
        r"that reads the image is not filled: patch_embed\.proj\.weight "
        r"\(\[32, 1, 16, 16\] in the file, \[32, 1, 8, 8\] here\)"
    )
    with pytest.raises(UserError, match=words):
        load(ours, tmp_path / "vit.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    report = load(ours, tmp_path / "vit.safetensors", minimum=0.8)
    assert report.missing == ("patch_embed.proj.weight",)
    assert report.unexpected == ()
    assert "the layer that reads the image is not filled: patch_embed.proj.weight" in str(report)
    assert torch.equal(ours.patch_embed.proj.weight, before["patch_embed.proj.weight"])


def test_a_first_layer_of_two_names_may_come_by_either(tmp_path):
    state = encoder_of().state_dict()
    one, other = "encoder.stem.convs.0.conv.weight", "encoder.stem.convs.0.all_modules.0.weight"
    kept = {key: value.clone() for key, value in state.items() if key != one}
    save_file(kept, tmp_path / "w.safetensors")
    report = load(encoder_of(seed=1), tmp_path / "w.safetensors")
    assert (report.missing, report.unfilled_input) == ((one,), "")
    kept.pop(other)
    save_file(kept, tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match=rf"not filled: {one} \(the file has no such key\); make the encoder as that of"
    ):
        load(encoder_of(seed=1), tmp_path / "w.safetensors")


# --- tables of positions


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize(("axes", "old", "new"), [(2, 4, 7), (2, 6, 3), (3, 2, 4), (3, 4, 2)])
def test_a_table_that_rises_along_each_axis_still_does(axes, old, new, before):
    """Channel a holds the place along axis a, from 0 to 1: so does the new table, but for the borders."""
    places = [torch.stack(torch.meshgrid(*[(torch.arange(n) + 0.5) / n] * axes, indexing="ij"), -1) for n in (old, new)]
    tokens = torch.randn(1, before, axes)
    found = resize_positions(torch.cat((tokens, places[0].reshape(1, -1, axes)), 1), before + new**axes, (axes, axes))
    assert torch.equal(found[:, :before], tokens)
    grid = found[:, before:].reshape(places[1].shape)
    torch.testing.assert_close(grid, places[1], atol=0.04 if axes == 2 else 0.13, rtol=0)
    assert all((grid.diff(dim=axis)[..., axis] > 0).all() for axis in range(axes))


def test_a_grid_that_is_guessed_is_said(tmp_path):
    """16 rows may be 4 x 4, and 2 x 8 as well."""
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(32, 128))
    save_file(theirs.state_dict(), tmp_path / "wide.safetensors")
    report = load(Timm2d("vit_tiny_patch16_224", in_channels=3), tmp_path / "wide.safetensors")
    assert report.assumed == {"model.pos_embed": "positions: assuming a square grid of patches"}
    assert re.fullmatch(
        r"100% of the keys filled: \d+ loaded, 1 adapted \(positions: assuming a square grid of patches\), 0 missing, "
        r"\d+ unexpected.*",
        str(report),
    )


@pytest.mark.parametrize(("rows", "count", "axes"), [(4 * 6, 8 * 12, 2), (16, 24, 2), (4 * 4 * 2, 8, 3), (64, 16, 3)])
def test_tables_of_grids_that_are_not_known_are_not_guessed(rows, count, axes):
    assert resize_positions(torch.zeros(1, rows, 8), count, (axes, axes)) is None


def test_why_a_table_of_positions_is_missing_is_said(tmp_path):
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(96, 160))
    save_file(theirs.state_dict(), tmp_path / "wide.safetensors")
    ours = Timm2d("vit_tiny_patch16_224", in_channels=1)
    words = (
        r"Timm2d has a learned table of positions, the weights have not, so that 1 tensors would stay as they were "
        r"initialized \(model\.pos_embed: \[1, 61, 192\] in the file, \[1, 197, 192\] here"
    )
    with pytest.raises(UserError, match=words):
        load(ours, tmp_path / "wide.safetensors")
    report = load(ours, tmp_path / "wide.safetensors", minimum=0.8)
    assert report.missing == ("model.pos_embed",)
    assert report.unfit["model.pos_embed"] == (
        "[1, 61, 192] in the file, [1, 197, 192] here; only square or cubic grids of patches are made to fit"
    )


class Surprise:
    """Something that unpickling would run."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_files_that_hold_more_than_tensors_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Surprise()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: holds more than tensors and is not opened"):
        read_tensors(tmp_path / "bad.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Surprise()))
    with pytest.raises(UserError, match=r"old\.pth"):
        read_tensors(tmp_path / "old.pth")
    assert not (tmp_path / "ran").exists()


EXPECTED = "expected tensors by name, as safetensors or as a state dict that torch saved"
CUT = "is cut off or damaged: copy or download it again"


def archive(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr(name, b"x")
    return stream.getvalue()


def torch_file(*, old: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.arange(900.0)}, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


STRANGE = {
    "not there": (None, f"weights could not be read (No such file or directory): {EXPECTED}"),
    "empty": (b"", f"is empty, no file of weights: {EXPECTED}"),
    "text": (b"This is a readme.\n" * 20, f"is text, no file of weights: {EXPECTED}"),
    "a table": (b"name;age\nA;3\n", f"is text, no file of weights: {EXPECTED}"),
    "json": (b'{"a": [1, 2, 3], "b": 4}', f"is text, no file of weights: {EXPECTED}"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(90), f"is a PNG picture, no file of weights: {EXPECTED}"),
    "bytes": (b"\x00\x01\x02\xfe" * 9, f"is nothing known, no file of weights: {EXPECTED}"),
    "another archive": (archive("a.npy"), f"is an archive that torch did not save, no file of weights: {EXPECTED}"),
    "a program": (
        archive("net/constants.pkl"),
        "is a TorchScript archive, a program that is not run: save the state dict of its module alone, best as "
        "safetensors",
    ),
    "half of a torch file": (torch_file()[:900], CUT),
    "half of an old torch file": (torch_file(old=True)[:900], CUT),
    "less of an old torch file": (torch_file(old=True)[:60], CUT),
    "half of safetensors": (to_safetensors({"a": torch.arange(900.0)})[:40], CUT),
    "most of safetensors": (to_safetensors({"a": torch.arange(900.0)})[:900], CUT),
    "a pickle": (pickle.dumps([1.0]), f"is a pickle that torch did not save, no file of weights: {EXPECTED}"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("content", "message"), STRANGE.values(), ids=STRANGE)
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path, content, message, suffix):
    file = tmp_path / f"x{suffix}"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(f'{file}: {message}')}$"):
        read_tensors(file)


def test_what_a_file_is_does_not_hang_on_its_name(tmp_path):
    (tmp_path / "a.bin").write_bytes(to_safetensors({"a": torch.ones(3)}))
    (tmp_path / "b.safetensors").write_bytes(torch_file())
    assert [list(read_tensors(tmp_path / name)) for name in ("a.bin", "b.safetensors")] == [["a"], ["a"]]


def test_a_checkpoint_that_holds_itself_is_read(tmp_path):
    state: dict = {"state_dict": {"a": torch.ones(1), "b": torch.ones(1)}}
    state["self"] = state
    torch.save(state, tmp_path / "x.pth")
    assert sorted(read_tensors(tmp_path / "x.pth")) == ["a", "b"]


def with_nan(value: torch.Tensor) -> torch.Tensor:
    value = value.clone()
    value.view(-1)[0] = torch.nan
    return value


NO_WEIGHTS = {
    "NaN": (with_nan, r"1 of \d+ numbers are NaN or infinite"),
    "beyond float32": (lambda value: value.double() * 1e300, r"\d+ of \d+ numbers are NaN or infinite"),
    "sparse": (torch.Tensor.to_sparse, "sparse"),
    "meta": (lambda value: value.to("meta"), "without numbers"),
    "complex": (lambda value: value.to(torch.complex64), "complex64"),
    "int8": (lambda value: value.to(torch.int8), "int8"),
    "quantized": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantized"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(("change", "what"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_tensors_that_are_no_weights_are_refused(tmp_path, change, what):
    state, other = encoder_of().state_dict(), encoder_of(seed=1)
    changed = {key: change(value) if value.ndim == 4 else value for key, value in state.items()}
    torch.save(changed, tmp_path / "x.pth")
    count, first = sum(value.ndim == 4 for value in state.values()), "encoder.stem.convs.0.conv.weight"
    begin = re.escape(f"{tmp_path / 'x.pth'}: {count} of {len(state)} tensors are no weights, the first is {first} (")
    end = re.escape("): expected dense, finite floating-point numbers; save them so, or choose another file")
    with pytest.raises(UserError, match=f"^{begin}{what}{end}$"):
        load(other, tmp_path / "x.pth")
    same_state(other, encoder_of(seed=1))


def test_statistics_that_are_not_finite_are_refused_too(tmp_path):
    state = encoder_of().state_dict()
    broken = {key: value * torch.nan if "running_" in key else value.clone() for key, value in state.items()}
    save_file(broken, tmp_path / "x.safetensors")
    with pytest.raises(
        UserError, match=r"tensors are no weights, the first is .*running_mean \(4 of 4 numbers are NaN"
    ):
        load(encoder_of(seed=1), tmp_path / "x.safetensors")


def test_half_precision_is_loaded_with_its_counters(tmp_path):
    save_file({key: value.half() for key, value in encoder_of().state_dict().items()}, tmp_path / "x.safetensors")
    assert load(encoder_of(seed=1), tmp_path / "x.safetensors").matched == 1


@pytest.mark.parametrize(
    ("blocks", "first"), [([1, 3], "encoder.stages.1.blocks.1."), ([1, 1, 1], "encoder.stages.2.")]
)
def test_weights_of_a_deeper_network_are_refused(tmp_path, blocks, first):
    channels = [4, 8, 16][: len(blocks)]
    strides = [[1, 1], [2, 2], [2, 2]][: len(blocks)]
    deeper = encoder_of(blocks=blocks, channels=channels, strides=strides)
    torch.save(deeper.state_dict(), tmp_path / "deep.pth")
    own = encoder_of(seed=1, strides=[[1, 1], [2, 2]])
    count = len(deeper.state_dict()) - len(own.state_dict())
    key = re.escape(first) + "[^ ]+"
    words = (
        rf"deep\.pth: the weights are those of a deeper network: {count} of their keys go on where ResEnc ends "
        rf"\({key}, {key}, {key}, \.\.\.\); make the encoder as deep as that of the file was, or choose another file$"
    )
    with pytest.raises(UserError, match=words):
        load(own, tmp_path / "deep.pth")
    assert len(load(own, tmp_path / "deep.pth", minimum=0.8).unexpected) == count


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.booleans(), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), st.floats(0.5, 1))
def test_damaged_torch_files_are_read_or_refused(old_form, changes, kept):
    with TemporaryDirectory() as folder:
        file = Path(folder) / "x.pth"
        torch.save({"a": torch.arange(9.0)}, file, _use_new_zipfile_serialization=not old_form)
        content = bytearray(file.read_bytes())
        for place, value in changes:
            content[int(place * (len(content) - 1))] = value
        file.write_bytes(content[: int(kept * len(content))])
        tensors = {}
        with contextlib.suppress(UserError):  # any other error fails the test
            tensors = read_tensors(file)
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())


def test_files_without_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match=r"empty\.pth: holds no state dict"):
        load(nn.Linear(1, 1), tmp_path / "empty.pth")


def test_a_report_of_nothing():
    assert Report((), (), (), ()).matched == 0.0
