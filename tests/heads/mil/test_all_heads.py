"""What holds for every head of bags: padding, order of tiles, attention, one tile, half precision, gradients."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import ddp
import pytest
import torch
from heads.mil.bags import HEADS, bags, head, rows, step

from medssl.heads.base import UNLABELED
from medssl.heads.mil.base import ANSWERS
from medssl.heads.mil.mean import MeanPool
from medssl.types import BagBatch, LabelSchema, UserError

TARGET = torch.tensor([1, 0, 1])


@pytest.fixture(params=HEADS)
def name(request):
    return request.param


def test_what_stands_at_padding_changes_nothing(name):
    network = head(name).eval()
    batch = bags()
    wider = bags(pad=9)
    torch.testing.assert_close(network(wider), network(batch), atol=1e-5, rtol=1e-5)
    for row, size in enumerate((7, 1, 12)):
        alone = rows(batch, [row])
        alone = replace(
            alone, features=alone.features[:, :size], mask=alone.mask[:, :size], coords=alone.coords[:, :size]
        )
        torch.testing.assert_close(network(alone)[0], network(batch)[row], atol=1e-5, rtol=1e-5)


def test_the_order_of_tiles_changes_nothing(name):
    network, batch = head(name).eval(), bags()
    order = torch.randperm(batch.mask.shape[1], generator=torch.Generator().manual_seed(1))
    other = replace(batch, features=batch.features[:, order], mask=batch.mask[:, order], coords=batch.coords[:, order])
    torch.testing.assert_close(network(other), network(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.attention(other), network.attention(batch)[..., order], atol=1e-5, rtol=1e-4)


def test_attention_sums_to_one_and_is_zero_at_padding(name):
    network, batch = head(name).eval(), bags(pad=3)
    attention = network.attention(batch)
    assert attention.shape[::2] == batch.mask.shape
    torch.testing.assert_close(attention.sum(2), torch.ones(attention.shape[:2]), atol=1e-5, rtol=0)
    assert (attention.masked_select(~batch.mask[:, None].expand_as(attention)) == 0).all()
    assert (attention[1, :, 0] == 1).all()  # the bag of one tile


def test_the_loss_reaches_every_parameter_also_with_bags_of_one_tile(name):
    network, batch = head(name), bags((7, 1, 12))
    loss, terms = network.learn(batch, TARGET, step(batch), None)
    loss.backward()
    assert loss.isfinite()
    assert all(not value.requires_grad for value in terms.values())
    wanting = [key for key, p in network.named_parameters() if p.requires_grad and (p.grad is None)]
    assert not wanting
    still = [key for key, p in network.named_parameters() if p.requires_grad and not bool((p.grad != 0).any())]
    assert not still
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    single = bags((1, 1))
    loss, _ = head(name).learn(single, torch.tensor([0, 1]), step(single), None)
    assert loss.isfinite()


def test_bags_without_a_label_teach_nothing(name):
    batch = bags((7, 4, 12))
    losses = []
    for change in (0.0, 3.0):
        network = head(name).eval()
        features = batch.features.clone()
        features[1] += change
        changed = replace(batch, features=features)
        losses.append(network.learn(changed, torch.tensor([1, UNLABELED, 0]), step(batch), None)[0])
    torch.testing.assert_close(losses[0], losses[1])


def test_equal_draws_give_equal_losses_in_any_order_of_bags(name):
    batch, order = bags((7, 4, 12)), [2, 0, 1]
    network = head(name).eval()
    first = network.learn(batch, TARGET, step(batch), None)[0]
    other = rows(batch, order)
    second = network.learn(other, TARGET[order], step(other), None)[0]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mean", "max", "abmil", "clam", "transmil_landmarks", "mhim", "ins"])
def test_half_precision_features_of_fifty_thousand_tiles_are_finite(name):
    count = 50_000
    features = torch.randn(1, count, 8, generator=torch.Generator().manual_seed(0)).half()
    places = torch.arange(count)
    coords = torch.stack((places % 250, places // 250), 1)[None] * 512
    batch = BagBatch(features, torch.ones(1, count, dtype=torch.bool), coords, bags((1,)).origin)
    changes = {"width": 8, "exact": 1000, "landmarks": 16} if name.startswith("transmil") else {}
    network = head(name, features=8, **changes).eval()
    with torch.no_grad():
        pooled = network.pool(batch)
        assert network.logits(pooled).isfinite().all()
    assert pooled.attention.isfinite().all()
    assert float(pooled.attention.sum()) == pytest.approx(pooled.attention.shape[1], abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "schema", "target"),
    [
        ("ordinal", LabelSchema("grade", ((0, "1"), (1, "2"), (2, "3"))), torch.tensor([0, 2, UNLABELED])),
        (
            "findings",
            LabelSchema("a,b", ((0, "a"), (1, "b")), kind="findings"),
            torch.tensor([[0, 1], [-1, 1], [1, 0]]),
        ),
        ("number", LabelSchema("age", ((0, "age"),), kind="number"), torch.tensor([3.0, torch.nan, 5.0])),
        (
            "survival",
            LabelSchema("t,e", ((0, "risk"),), kind="survival"),
            torch.tensor([[3.0, 1.0], [torch.nan, torch.nan], [5.0, 0.0]]),
        ),
    ],
)
@pytest.mark.parametrize("name", ["mean", "abmil", "transmil"])
def test_answers_share_the_losses_of_heads_for_whole_scans(name, answer, schema, target):
    network, batch = head(name, schema=schema, answer=answer), bags()
    assert network.kind == type(network).task_of({"answer": answer}) == ANSWERS[answer].kind
    loss, _ = network.learn(batch, target, step(batch), None)
    network.eval()
    made = ANSWERS[answer](SimpleNamespace(channels=(16,)), schema)
    made.load_state_dict(network.answer.state_dict())
    logits = network(batch)
    torch.testing.assert_close(network.loss(logits, target), made.loss(logits, target))
    assert loss.isfinite()
    assert int(network.counts(target)[-1]) == (3 if answer == "findings" else 2)


def test_counts_of_a_step_weigh_micro_batches_as_one_batch():
    network, batch, target = head("clam").eval(), bags((7, 4, 12, 5)), torch.tensor([1, 0, 1, UNLABELED])
    whole = network.learn(batch, target, step(batch), None)[0]
    parts = [[0, 1, 2], [3]]
    counts = sum(network.counts(target[part]) for part in parts) / len(parts)
    losses = [network.learn(rows(batch, part), target[part], step(rows(batch, part)), counts)[0] for part in parts]
    torch.testing.assert_close(torch.stack(losses).mean(), whole)


def test_answers_that_a_head_does_not_give_are_refused():
    with pytest.raises(UserError, match=r"head.answer: CLAM does not answer that \(got 'number'; expected classes\)"):
        type(head("clam")).task_of({"answer": "number"})
    message = r"head.class_weights: a number has no classes \(got 'balanced'\). Leave it out"
    with pytest.raises(UserError, match=message):
        head("mean", schema=LabelSchema("age", ((0, "age"),)), answer="number", class_weights="balanced")


def test_findings_take_weights_under_their_name():
    schema = LabelSchema("a,b", ((0, "a"), (1, "b")), kind="findings")
    network = MeanPool(SimpleNamespace(channels=(4,)), schema, answer="findings", class_weights=(1.0, 3.0))
    assert network.answer.positive_weights.tolist() == [1.0, 3.0]


def of_process(name):
    """Gradients of a share of a batch, as the mean over processes."""
    from torch import distributed

    rank = distributed.get_rank()
    network, batch, target = head(name).eval(), bags((7, 4, 12, 5)), torch.tensor([1, 0, 1, 0])
    mine = [0, 1] if rank == 0 else [2, 3]
    part = rows(batch, mine)
    network.learn(part, target[mine], step(part), None)[0].backward()
    gradients = {}
    for key, p in network.named_parameters():
        if p.requires_grad:
            distributed.all_reduce(p.grad)
            gradients[key] = (p.grad / 2).numpy()
    return gradients


@pytest.mark.ddp
@pytest.mark.parametrize("name", ["abmil", "clam", "mhim", "ins"])
def test_two_processes_equal_one(name):
    first, second = ddp.run_two(of_process, name)
    network, batch, target = head(name).eval(), bags((7, 4, 12, 5)), torch.tensor([1, 0, 1, 0])
    network.learn(batch, target, step(batch), None)[0].backward()
    for key, p in network.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(torch.from_numpy(first[key]), p.grad, atol=1e-6, rtol=1e-4, msg=key)
            assert (first[key] == second[key]).all()
