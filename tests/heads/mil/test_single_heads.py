"""What is particular to each head of bags, against other ways of computing it; and what each learns on planted bags."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from heads.mil.bags import area, bags, head, origin, planted, step, trained
from torch.nn import functional as F

from medssl.heads.mil.grid import GridPositions, grid_places
from medssl.heads.mil.ins import candidates_of, mixed_labels, supervised_contrast
from medssl.heads.mil.mhim import soft_cross_entropy
from medssl.nn.nystrom import NystromAttention, nystrom
from medssl.types import BagBatch, LabelSchema, UserError

TARGET = torch.tensor([1, 0, 1])


# --- ABMIL


def test_abmil_is_the_formula_of_the_paper():
    network, batch = head("abmil").eval(), bags((6,))
    tiles = network.project(batch.features[0])
    attend = network.attend
    scores = [attend.score(torch.tanh(attend.content(h)) * torch.sigmoid(attend.gate(h))) for h in tiles]
    weights = torch.exp(torch.cat(scores))
    expected = sum(w / weights.sum() * h for w, h in zip(weights, tiles, strict=True))
    pooled = network.pool(batch)
    torch.testing.assert_close(pooled.embedding[0], expected)
    assert (pooled.embedding[0] >= tiles.amin(0) - 1e-6).all()
    assert (pooled.embedding[0] <= tiles.amax(0) + 1e-6).all()


def test_abmil_does_not_change_where_every_tile_comes_twice_and_is_a_mean_without_scores():
    network, batch = head("abmil").eval(), bags((6,))
    twice = BagBatch(*(torch.cat((part, part), 1) for part in (batch.features, batch.mask, batch.coords)), origin(1))
    torch.testing.assert_close(network.pool(twice).embedding, network.pool(batch).embedding)
    torch.nn.init.zeros_(network.attend.score.weight)
    torch.testing.assert_close(network.pool(batch).embedding[0], network.project(batch.features[0]).mean(0))


# --- CLAM


def test_clam_has_the_logits_of_abmil_and_its_loss_without_instances():
    network, batch = head("clam", instance_weight=0.0).eval(), bags()
    plain = head("abmil", width=512, hidden=256).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("of_instances")})
    torch.testing.assert_close(network(batch), plain(batch))
    loss = network.learn(batch, TARGET, step(batch), None)[0]
    torch.testing.assert_close(loss, plain.learn(batch, TARGET, step(batch), None)[0])


@pytest.mark.parametrize(("name", "subtyping"), [("clam", False), ("clam", True), ("clam_classes", True)])
def test_the_instance_loss_of_clam_is_that_of_single_bags(name, subtyping):
    network, batch = head(name, subtyping=subtyping).eval(), bags((40, 1, 9))
    tiles = network.project(batch.features.nan_to_num())
    scores = network.attend(tiles)
    sums, _ = network.instance_loss(tiles, scores, batch.mask, TARGET)
    for row, size in enumerate((40, 1, 9)):
        total, each = 0.0, min(8, size // 2)
        for number in range(2):
            branch = scores[row, number if len(scores[row]) > 1 else 0, :size]
            logits = network.of_instances(tiles[row, :size])[:, 2 * number : 2 * number + 2]
            order = branch.argsort(descending=True)
            if number == int(TARGET[row]) and each:
                chosen = torch.cat((order[:each], order[-each:]))
                truth = torch.tensor([1] * each + [0] * each)
                assert int(truth.sum()) * 2 == len(truth)
                total += F.cross_entropy(logits[chosen], truth)
            elif subtyping and each:
                total += F.cross_entropy(logits[order[:each]], torch.zeros(each, dtype=torch.long))
        torch.testing.assert_close(sums[row], torch.as_tensor(total / (2 if subtyping else 1)))


def test_instances_of_clam_teach_features_and_not_attention():
    network, batch = head("clam", instance_weight=1.0).eval(), bags((20, 12))
    loss, _ = network.learn(batch, torch.tensor([0, 1]), step(batch), None)
    loss.backward()
    assert all((p.grad == 0).all() for p in network.attend.parameters())
    assert (network.project[0].weight.grad != 0).any()


# --- TransMIL


def test_landmarks_for_every_token_give_the_exact_attention():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 20, 4, generator=generator, dtype=torch.float64)
    exact = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    torch.testing.assert_close(nystrom(query, key, value, 20, iterations=12), exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(nystrom(query, key, value, 50, iterations=12), exact, atol=1e-3, rtol=0)


def test_attention_by_landmarks_is_near_the_exact_one_on_smooth_sequences():
    torch.manual_seed(0)
    layer = NystromAttention(16, heads=2, landmarks=32, exact=1000).double().eval()
    tokens = torch.randn(8, 16, dtype=torch.float64).repeat_interleave(16, 0) + 0.05 * torch.randn(128, 16).double()
    exact = layer(tokens)
    layer.exact = 4
    assert float(((layer(tokens) - exact).norm() / exact.norm()).detach()) < 0.05


def test_positions_come_from_the_grid_of_the_coordinates():
    coords = torch.tensor([[1000, 500], [1512, 500], [1000, 1524], [2024, 500]])
    assert grid_places(coords).tolist() == [[0, 0], [1, 0], [0, 1], [2, 0]]
    assert grid_places(torch.tensor([[7, 9]])).tolist() == [[0, 0]]
    assert grid_places(torch.tensor([[0, 0], [1, 1], [10**7, 10**7]])).tolist() == [[0, 0], [1, 1], [2, 2]]
    layer, tiles = GridPositions(3), torch.randn(4, 3)
    image = torch.zeros(3, 2, 3)
    for tile, (column, row) in zip(tiles, grid_places(coords).tolist(), strict=True):
        image[:, row, column] = tile
    around = image + sum(conv(image[None])[0] for conv in layer.convolutions)
    for tile, (column, row) in zip(layer(tiles, coords), grid_places(coords).tolist(), strict=True):
        torch.testing.assert_close(tile, around[:, row, column], atol=1e-5, rtol=1e-5)
    for conv in layer.convolutions:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    torch.testing.assert_close(layer(tiles, coords), tiles)


def test_transmil_looks_at_where_tiles_lie():
    network, batch = head("transmil").eval(), bags((12,))
    moved = BagBatch(batch.features, batch.mask, batch.coords.flip(2), batch.origin)
    assert float((network(moved) - network(batch)).detach().abs().max()) > 1e-5
    shifted = BagBatch(batch.features, batch.mask, batch.coords * 2 + 77, batch.origin)
    torch.testing.assert_close(network(shifted), network(batch))


# --- MHIM


def test_mhim_hides_exactly_the_hardest_tiles_and_keeps_one():
    network = head("mhim", hard=0.3)
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 9.0], [5.0, 9.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 4 + [False], [True] + [False] * 4])
    assert network.hardest(scores, mask).tolist() == [[False, True, False, True, False], [False] * 5]  # ceil(1.2)
    assert not network.hardest(scores, mask)[1].any()


def test_mhim_without_masks_and_teacher_is_abmil_bit_by_bit():
    network, batch = head("mhim", hard=0.0).eval(), bags()
    network.alpha = 0.0
    plain = head("abmil", width=512, hidden=256).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
    assert torch.equal(network(batch), plain(batch))
    loss = network.learn(batch, TARGET, step(batch), None)[0]
    assert torch.equal(loss, plain.learn(batch, TARGET, step(batch), None)[0])


def test_the_student_of_mhim_sees_a_share_of_the_rest_and_merged_tokens():
    network, batch = head("mhim_merged", hard=0.1, kept=0.6, merged=3), bags((40, 21), features=12)
    tiles = network.project(batch.features.nan_to_num())
    hidden = network.hardest(torch.rand(2, 40), batch.mask)
    assert hidden.sum(1).tolist() == [4, 3]
    seen, mask = network.remaining(tiles, batch.mask, hidden, step(batch))
    assert mask.sum(1).tolist() == [math.floor(0.6 * 36) + 3, math.floor(0.6 * 18) + 3]
    assert not (mask[:, :40] & hidden).any()
    left = batch.mask & ~hidden & ~mask[:, :40]
    weights = (network.queries @ tiles[0, left[0]].T / math.sqrt(512)).softmax(1)
    torch.testing.assert_close(seen[0, 40:], weights @ tiles[0, left[0]])
    again = network.remaining(tiles, batch.mask, hidden, step(batch))[1]
    assert torch.equal(mask, again)
    before = network.queries.clone()
    network.after_step(step(batch))
    assert 0 < float((network.queries - before).abs().max()) < 1e-3


def test_the_teacher_of_mhim_follows_by_its_momentum_alone():
    network, batch = head("mhim"), bags()
    network.learn(batch, TARGET, step(batch), None)[0].backward()
    with torch.no_grad():
        for p in network.project.parameters():
            p.add_(1.0)
    former = [p.clone() for p in network.teacher["project"].parameters()]
    network.after_step(step(batch, index=100_000, total=200_000))
    for now, then in zip(network.teacher["project"].parameters(), former, strict=True):
        torch.testing.assert_close(now, then + (1 - 0.9997), atol=1e-6, rtol=0)
        assert now.grad is None


def test_soft_cross_entropy_is_at_least_the_entropy_of_the_target():
    target, scores = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
    entropy = torch.distributions.Categorical(logits=target).entropy()
    assert (soft_cross_entropy(target, scores) > entropy).all()
    torch.testing.assert_close(soft_cross_entropy(target, target + 3), entropy)


def test_mhim_warns_once_where_it_removes_as_many_tiles_as_show_the_label(caplog):
    network, batch = head("mhim", hard=0.1, witnesses=4), bags((40, 21))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            network.learn(batch, torch.tensor([1, 0]), step(batch), None)
    expected = "head.hard 0.1 removes 4 tiles of a bag, and 4 are expected to show its label"
    assert [expected in message for message in caplog.messages] == [True]
    caplog.clear()
    calm = head("mhim", hard=0.1, witnesses=5)
    calm.learn(batch, torch.tensor([1, 0]), step(batch), None)
    assert not caplog.messages
    waiting = head("mhim", hard=0.1, witnesses=1, warmup=0.9)
    waiting.learn(batch, torch.tensor([1, 0]), step(batch), None)
    assert not caplog.messages


# --- INS


def test_pseudo_labels_are_shares_and_those_of_negative_bags_never_change():
    candidates = candidates_of(torch.tensor([0, 1]), 3)
    former = torch.tensor([0.3, 0.7]) * candidates
    former = former / former.sum(2, keepdim=True)
    nearest = (torch.tensor([0.1, 0.9]) * candidates).argmax(2)
    labels = mixed_labels(former, nearest, 0.8)
    torch.testing.assert_close(labels.sum(2), torch.ones(2, 3))
    assert (labels[0] == torch.tensor([1.0, 0.0])).all()
    torch.testing.assert_close(labels[1], torch.tensor([[0.24, 0.76]] * 3))
    assert torch.equal(mixed_labels(former, nearest, 1.0), former)


def test_contrast_with_single_keys_is_the_usual_one():
    generator = torch.Generator().manual_seed(0)
    queries, keys = F.normalize(torch.randn(2, 9, 5, generator=generator), dim=2)
    losses = supervised_contrast(queries, keys, torch.eye(9, dtype=torch.bool), 0.07)
    torch.testing.assert_close(losses.mean(), F.cross_entropy(queries @ keys.T / 0.07, torch.arange(9)))


def test_prototypes_move_to_their_class_and_stay_of_unit_length():
    network, batch = head("ins"), bags((20, 12))
    former = network.prototypes.clone()
    network.learn(batch, torch.tensor([0, 1]), step(batch), None)
    sums = network.sums.clone()
    assert int(sums[:, -1].sum()) == 32
    network.after_step(step(batch))
    torch.testing.assert_close(network.prototypes.norm(dim=1), torch.ones(2))
    expected = F.normalize(0.9 * former[0] + 0.1 * sums[0, :-1] / sums[0, -1], dim=0)
    torch.testing.assert_close(network.prototypes[0], expected)
    assert not network.sums.any()


def test_the_score_of_a_bag_is_the_mean_of_its_highest_tiles():
    network, batch = head("ins").eval(), bags((50, 3))
    positive = network.classify(network.project(batch.features.nan_to_num())).softmax(2)[..., 1].detach()
    expected = [float(positive[0, :50].topk(3).values.mean()), float(positive[1, :3].max())]
    probabilities = network.predictions(network(batch))
    torch.testing.assert_close(probabilities[:, 1], torch.tensor(expected))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_ins_takes_two_classes():
    schema = LabelSchema("grade", ((0, "1"), (1, "2"), (2, "3")))
    with pytest.raises(UserError, match=r"'grade' has 3 classes: tiles are positive or negative"):
        head("ins", schema=schema)


# --- what they learn


def fitted(name, *, epochs=12, toy=None, **changes):
    """Area of bags and of tiles (by attention) on new bags."""
    train, target, _ = planted(120, 0, **toy or {})
    test, truth, witnesses = planted(80, 100, **toy or {})
    network = trained(head(name, features=32, **changes), train, target, epochs=epochs, rate=1e-3)
    with torch.no_grad():
        scores = network.predictions(network(test))[:, 1]
        attention = network.attention(test)[truth == 1, -1]
    inside = test.mask[truth == 1]
    return area(scores, truth == 1), area(attention[inside], witnesses[truth == 1][inside])


def test_attention_beats_the_mean_where_few_tiles_decide():
    mean, _ = fitted("mean", width=64)
    bag, tile = fitted("abmil", width=64, hidden=32)
    assert bag >= max(0.9, mean + 0.08)
    assert tile >= 0.9


@pytest.mark.slow
def test_clam_and_ins_learn_planted_witnesses():
    assert fitted("clam")[0] >= 0.75
    bag, tile = fitted("ins", epochs=10, tiles=32, toy={"tiles": (60, 61), "witnesses": (12, 30), "shift": 1.2})
    assert bag >= 0.95
    assert tile >= 0.88


@pytest.mark.slow
def test_the_tiles_that_mhim_removes_hold_the_witnesses():
    train, target, _ = planted(120, 0)
    network = trained(head("mhim", features=32, hard=0.0), train, target, epochs=8, rate=1e-3)
    network.teacher.copy_from(network.students())
    test, truth, witnesses = planted(60, 100)
    network.masking = type(network.masking)(hard=0.02)
    with torch.no_grad():
        hidden = network.hardest(network.taught(test)[1], test.mask)
    recalled = (hidden & witnesses)[truth == 1].sum() / witnesses.sum()
    assert float(recalled) >= 0.6
