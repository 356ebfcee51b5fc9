"""Drop-path draws by sample: by hand from its stream, in any order, in two parts, for several views, and recomputed."""

from __future__ import annotations

import ddp
import pytest
import torch
from objectives.small import SIZES, encoder, vit
from torch import nn

from medssl.encoders.base import ContractError, check_encoder
from medssl.encoders.timm2d import Timm2d
from medssl.encoders.vit import ViT
from medssl.nn.drop_path import DropPath, SampleNumbers, drop_paths, keyed_by_sample
from medssl.nn.sparse import checkpoint
from medssl.objectives.base import check_objective
from medssl.objectives.contract import loss_and_gradients
from medssl.objectives.mae import MAE
from medssl.objectives.simclr import SimCLR
from medssl.ops.draws import keyed_generator
from medssl.types import ViewSpec


def dropped(layer: DropPath, rows: int) -> list[bool]:
    return (layer(torch.ones(rows, 2, 3)) == 0).all((1, 2)).tolist()


def test_draws_are_those_of_the_stream_of_the_sample():
    """Two layers and two views: numbers 1 and 2 of a stream for the first layer, 3 and 4 for the second."""
    network = nn.Sequential(DropPath(0.5), DropPath(0.5))
    with keyed_by_sample(network, 7, (3, 12)):
        found = [dropped(layer, 4) for layer in network]
    numbers = {sample: keyed_generator(7, sample, "drop_path").uniform(size=4).tolist() for sample in (3, 12)}
    for number, rows in enumerate(found):
        expected = [numbers[sample][2 * number + view] < 0.5 for view in (0, 1) for sample in (3, 12)]
        assert rows == expected


def test_more_numbers_than_are_drawn_at_once():
    numbers, rows = SampleNumbers(0, (5,)), []
    for _ in range(200):
        rows.append(float(numbers.take(1, torch.device("cpu"))))
    stream = keyed_generator(0, 5, "drop_path").uniform(size=200)
    assert rows == pytest.approx(stream.tolist(), abs=1e-6)


def test_other_seeds_and_samples_draw_otherwise():
    layer, rows = DropPath(0.5), {}
    for key in ((0, tuple(range(64))), (1, tuple(range(64))), (0, tuple(range(64, 128)))):
        with keyed_by_sample(layer, *key):
            rows[key] = tuple(dropped(layer, 64))
    assert len(set(rows.values())) == 3
    assert sum(sum(found) for found in rows.values()) == pytest.approx(96, abs=30)


def test_outside_and_for_other_rows_the_global_generator_draws():
    layer = DropPath(0.5)
    found = []
    for samples in ((0, 1), (2, 3)):
        torch.manual_seed(0)
        with keyed_by_sample(layer, 0, samples):
            found.append(dropped(layer, 33))
    torch.manual_seed(0)
    assert found[0] == found[1] == dropped(layer, 33)
    assert layer.numbers is None


def test_the_source_is_taken_away_after_an_error():
    layer = DropPath(0.5)
    with pytest.raises(KeyError, match="stop"), keyed_by_sample(layer, 0, (0,)):
        raise KeyError("stop")
    assert layer.numbers is None


def test_recomputation_drops_the_same_branches():
    """Layers are recorded in the forward pass and where they are recomputed, after the block has ended."""
    torch.manual_seed(0)
    blocks = ViT(patch=(4, 4), width=16, depth=4, drop_path=0.8).train().blocks
    seen: list[tuple[int, list[bool]]] = []
    for number, block in enumerate(blocks):
        block.drop_path.register_forward_hook(
            lambda layer, _, out, number=number: seen.append((number, (out == 0).flatten(1).all(1).tolist()))
        )
    x = torch.randn(8, 5, 16, requires_grad=True)
    with keyed_by_sample(blocks, 0, range(8)):
        y = x
        for block in blocks:
            y = checkpoint(block, y)
    first, seen[:] = seen[:], []
    y.square().sum().backward()
    assert {number for number, _ in seen} == {0, 1, 2, 3}  # torch leaves a block as soon as it has what it needs
    for number in range(4):
        again = [rows for block, rows in seen if block == number]
        assert again == [rows for block, rows in first if block == number][: len(again)]
    assert any(any(rows) for number, rows in seen if number == 3)


@pytest.mark.parametrize("kind", ["simclr", "mae"])
def test_an_objective_on_an_encoder_that_drops_branches_keeps_the_contract(kind):
    """With the order of samples, and of views, among its clauses."""
    check_objective(lambda: objective(kind))


def test_the_suite_finds_a_layer_that_draws_by_row(monkeypatch):
    monkeypatch.setattr(SampleNumbers, "take", lambda *_: None)
    with pytest.raises(ContractError, match="the order of scans is irrelevant"):
        check_objective(lambda: objective("mae"))
    with pytest.raises(ContractError, match="a sample's features depend on the order of the batch"):
        check_encoder(vit(2, drop_path=0.5, depth=4))


def objective(kind: str):
    view = ViewSpec(size=SIZES[2])
    stochastic = vit(2, drop_path=0.5, depth=4)
    return SimCLR(stochastic, view=view) if kind == "simclr" else MAE(stochastic, view=view, decoder_depth=1)


def two(kind: str):
    return loss_and_gradients(lambda: objective(kind))


@pytest.mark.ddp
@pytest.mark.parametrize("kind", ["simclr", "mae"])
def test_two_processes_drop_what_one_drops(kind):
    value, gradients = two(kind)
    for found, shares in ddp.run_two(two, kind):
        assert found == pytest.approx(value, rel=1e-9)
        for name, expected in gradients.items():
            torch.testing.assert_close(shares[name], expected, rtol=1e-7, atol=1e-10)


def test_models_of_timm_draw_by_sample_too():
    """In a sparse network as well: the layer keeps zeros."""
    network = Timm2d("convnext_atto", in_channels=1, drop_path=0.5).train()
    assert len(drop_paths(network)) == 11  # of 12 blocks, the first has probability 0
    assert network.mask_modes == {"sparse"}
    x = torch.randn(3, 1, 32, 32)
    with keyed_by_sample(network, 0, (4, 8, 15)):
        whole = network(x).pooled
    with keyed_by_sample(network, 0, (15, 4)):
        part = network(x[[2, 0]]).pooled
    torch.testing.assert_close(part, whole[[2, 0]])
    assert encoder(2).mask_modes == {"sparse"}
