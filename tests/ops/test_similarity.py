"""InfoNCE and measures of spread against plain loops, closed forms and torch's own losses."""

import math

import ddp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss

from medssl.ops.collectives import gather, rank
from medssl.ops.similarity import (
    alignment,
    contrast,
    cosine,
    covariance_term,
    info_nce,
    info_nce_chance,
    uniformity,
    unit,
    variance_term,
)


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def masks(*shape, seed=0, share=0.4):
    draws = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed + 1000))
    return draws[0] < share, draws[1] < share


def by_loops(anchors, candidates, positives, negatives, temperature, mean):
    """The definition, one exponential at a time."""
    pairs, per_anchor, inside = [], [], []
    for a, anchor in enumerate(anchors):
        similar = [math.exp(float(cosine_similarity(anchor, c, dim=0)) / temperature) for c in candidates]
        own = [p for p in range(len(candidates)) if positives[a, p]]
        others = {n for n in range(len(candidates)) if negatives[a, n]}
        if not own or not others:
            continue
        terms = [-math.log(similar[p] / sum(similar[k] for k in others | {p})) for p in own]
        pairs += terms
        per_anchor.append(sum(terms) / len(terms))
        near = sum(similar[p] for p in own) / len(own)
        inside.append(-math.log(near / sum(similar[k] for k in others | set(own))))
    found = {"pairs": pairs, "anchors": per_anchor, "inside": inside}[mean]
    return sum(found) / len(found) if found else 0.0


@given(
    st.integers(0, 10**6),
    st.sampled_from(["pairs", "anchors", "inside"]),
    st.sampled_from([0.05, 0.3, 0.8]),
    st.sampled_from([0.07, 0.1, 1.0]),
)
def test_any_masks_equal_plain_loops(seed, mean, share, temperature):
    anchors, candidates = rows(4, 3, seed=seed), rows(6, 3, seed=seed + 1)
    positives, negatives = masks(4, 6, seed=seed, share=share)
    found = info_nce(anchors, candidates, positives, negatives, temperature=temperature, mean=mean)
    assert found.item() == pytest.approx(
        by_loops(anchors, candidates, positives, negatives, temperature, mean), rel=1e-9, abs=1e-12
    )


# --- the losses of papers, by masks


def test_simclr_is_cross_entropy_without_the_diagonal():
    z, scan = rows(10, 4), torch.arange(5).repeat(2)
    itself = torch.eye(10, dtype=torch.bool)
    same = scan[:, None] == scan
    logits = (cosine(z, z) / 0.1).masked_fill(itself, -torch.inf)
    expected = cross_entropy(logits, torch.arange(10).roll(5))
    for mean in ("pairs", "anchors", "inside"):  # one positive each: all the same
        found = info_nce(z, z, same & ~itself, ~itself, temperature=0.1, mean=mean)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mean", ["anchors", "inside"])
def test_supervised_contrast(mean):
    z, label = rows(7, 4), torch.tensor([0, 0, 0, 1, 1, 2, 0])
    itself = torch.eye(7, dtype=torch.bool)
    same = (label[:, None] == label) & ~itself
    shares = (cosine(z, z) / 0.1).masked_fill(itself, -torch.inf).softmax(1)
    terms = []
    for own, row in zip(same, shares, strict=True):
        if own.any():  # label 2 stands alone
            terms.append(-row[own].log().mean() if mean == "anchors" else -row[own].mean().log())
    found = info_nce(z, z, same, ~itself, temperature=0.1, mean=mean)
    torch.testing.assert_close(found, torch.stack(terms).mean())


def tagged(volumes, parts, views):
    tags = torch.cartesian_prod(torch.arange(volumes), torch.arange(parts), torch.arange(views))
    same = [tag[:, None] == tag for tag in tags.unbind(1)]
    return same, torch.eye(len(tags), dtype=torch.bool)


def test_domain_cues_leave_other_positives_out_of_the_denominator():
    (_, part, _), itself = tagged(2, 3, 2)
    z = rows(12, 5)
    positives, negatives = part & ~itself, ~part
    logits = cosine(z, z) / 0.1
    terms = [
        torch.stack((logits[a, p], logits[a, negatives[a]].logsumexp(0))).logsumexp(0) - logits[a, p]
        for a, p in positives.nonzero().tolist()
    ]
    assert len(terms) == 12 * 3
    torch.testing.assert_close(info_nce(z, z, positives, negatives), torch.stack(terms).mean())


def test_domain_cues_do_not_see_the_same_part_of_another_volume():
    """G^D-: a view of the same slice is the positive, other parts are negatives."""
    (volume, part, _), itself = tagged(2, 3, 2)
    z = rows(12, 5).requires_grad_()
    first = torch.zeros(12, dtype=torch.bool)
    first[0] = True  # only the anchor of volume 0, part 0, view 0
    loss = info_nce(z, z, volume & part & ~itself & first[:, None], ~part & first[:, None])
    loss.backward()
    unseen = part[0] & ~volume[0]
    assert unseen.sum() == 2
    assert (z.grad[unseen] == 0).all()
    assert (z.grad[~unseen].abs().sum(1) > 0).all()
    changed = torch.where(unseen[:, None], rows(12, 5, seed=9), z.detach())
    assert info_nce(changed, changed, volume & part & ~itself & first[:, None], ~part & first[:, None]) == loss


def test_one_volume_makes_both_strategies_one():
    (volume, part, _), itself = tagged(1, 4, 3)
    z = rows(12, 5)
    assert info_nce(z, z, part & ~itself, ~part) == info_nce(z, z, volume & part & ~itself, ~part)


@pytest.mark.parametrize("mean", ["pairs", "anchors", "inside"])
def test_without_negatives_the_loss_is_zero_and_so_is_the_gradient(mean):
    (_, part, _), itself = tagged(3, 1, 2)
    z = rows(6, 4).requires_grad_()
    loss = info_nce(z, z, part & ~itself, ~part, mean=mean)
    loss.backward()
    assert loss == 0
    assert (z.grad == 0).all()
    empty = info_nce(z[:0], z, torch.zeros(0, 6, dtype=torch.bool), torch.zeros(0, 6, dtype=torch.bool), mean=mean)
    assert empty == 0


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_the_loss_of_equal_embeddings(seed):
    """Among the masks are positives that are negatives too, and anchors that lack either."""
    positives, negatives = masks(6, 9, seed=seed)
    positives[0], negatives[1] = False, False
    same = torch.ones(9, 4, dtype=torch.float64)
    expected = float(info_nce(same[:6], same, positives, negatives, temperature=0.05))
    assert float(info_nce_chance(positives, negatives)) == pytest.approx(expected, rel=1e-6)


def test_chance_of_nothing_to_compare_is_zero():
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    assert float(info_nce_chance(~nothing, nothing)) == float(info_nce_chance(nothing, ~nothing)) == 0


def test_local_regions_scan_by_scan_equal_one_large_mask():
    x, y = rows(3, 5, 4), rows(3, 5, 4, seed=1)
    near = (torch.arange(5)[:, None] - torch.arange(5)).abs() == 1
    same, none = torch.eye(5, dtype=torch.bool).expand(3, 5, 5), torch.zeros(3, 5, 5, dtype=torch.bool)
    both, apart = torch.cat((y, x), 1), torch.cat((near, near), 1).expand(3, 5, 10)
    found = info_nce(x, both, torch.cat((same, none), 2), apart)
    positives, negatives = torch.block_diag(*torch.cat((same, none), 2).int()), torch.block_diag(*apart.int())
    torch.testing.assert_close(found, info_nce(x.flatten(0, 1), both.flatten(0, 1), positives.bool(), negatives.bool()))
    near[[0, 4], [2, 2]] = True  # now two neighbors each
    constant, apart = torch.ones(3, 10, 4), torch.cat((near, near), 1).expand(3, 5, 10)
    flat = info_nce(constant[:, :5], constant, torch.cat((same, none), 2), apart)
    assert flat.item() == pytest.approx(math.log(1 + 2 * 2), rel=1e-6)


# --- closed forms and invariants


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_closed_forms(temperature, dtype):
    itself = torch.eye(8, dtype=torch.bool)
    partner = itself.roll(4, 0)
    equal = torch.ones(8, 3, dtype=dtype).requires_grad_()
    loss = info_nce(equal, equal, partner, ~itself, temperature=temperature)
    loss.backward()
    rounding = (1e-15 if dtype == torch.float64 else 1e-7) / temperature  # of a cosine, magnified
    assert loss.item() == pytest.approx(math.log(7), abs=rounding * 2)
    assert equal.grad.isfinite().all()
    across = torch.eye(4, 8, dtype=dtype).repeat(2, 1)
    found = info_nce(across, across, partner, ~itself, temperature=temperature)
    assert found.item() == pytest.approx(math.log1p(6 * math.exp(-1 / temperature)), abs=rounding * 2)
    against = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=dtype)
    positives = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()
    found = info_nce(against, against, positives & ~itself[:4, :4], ~positives, temperature=temperature)
    assert found.item() == pytest.approx(math.log1p(2 * math.exp(-2 / temperature)), abs=rounding * 2)


def test_wrong_way_round_at_low_temperature():
    """Positive opposite, negative alike: 2 / 0.01, and a gradient that is finite in float32."""
    z = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[-1.0, 1e-4], [1.0, 0.0]], requires_grad=True)
    loss = info_nce(z, candidates, torch.tensor([[True, False]]), torch.tensor([[False, True]]), temperature=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(200, rel=1e-5)
    assert candidates.grad.isfinite().all()


@pytest.mark.parametrize("mean", ["pairs", "anchors", "inside"])
def test_length_and_order_of_rows_do_not_matter(mean):
    z = rows(9, 4)
    positives, negatives = masks(9, 9)
    loss = info_nce(z, z, positives, negatives, mean=mean)
    longer = z * torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(info_nce(longer, longer, positives, negatives, mean=mean), loss)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    mixed = info_nce(z[order], z[order], positives[order][:, order], negatives[order][:, order], mean=mean)
    torch.testing.assert_close(mixed, loss)


@pytest.mark.parametrize("mean", ["pairs", "anchors", "inside"])
def test_gradient_is_that_of_finite_differences(mean):
    positives, negatives = masks(2, 4, 5)
    positives[0, 0], negatives[0, 1] = False, False  # one anchor without each
    x, y = rows(2, 4, 3).requires_grad_(), rows(2, 5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: info_nce(x, y, positives, negatives, mean=mean), (x, y))


@pytest.mark.parametrize("mean", ["pairs", "anchors", "inside"])
def test_rows_outside_the_masks_get_exactly_no_gradient(mean):
    positives, negatives = masks(5, 8)
    positives[:, 6] = negatives[:, 6] = False
    negatives[2] = False  # an anchor that does not count
    positives[2, 7], positives[[0, 1, 3, 4], 7] = True, False  # a candidate of that anchor alone
    negatives[:, 7] = False
    x, y = rows(5, 3).requires_grad_(), rows(8, 3, seed=1).requires_grad_()
    info_nce(x, y, positives, negatives, mean=mean).backward()
    assert (y.grad[[6, 7]] == 0).all()
    assert (x.grad[2] == 0).all()
    assert (x.grad[[0, 1]].abs().sum(1) > 0).all()


def test_autocast_changes_nothing():
    z = rows(12, 16, dtype=torch.float32)
    positives, negatives = masks(12, 12)
    functions = (
        lambda: info_nce(z, z, positives, negatives, temperature=0.01),
        lambda: covariance_term(z),
        lambda: variance_term(z),
        lambda: alignment(z, z, positives),
        lambda: uniformity(z, z, positives),
        lambda: cosine(z, z),
    )
    for function in functions:
        expected = function()
        with torch.autocast("cpu", torch.bfloat16):
            found = function()
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_cosine_and_zero_vectors():
    x, y = rows(3, 4), rows(2, 4, seed=1)
    torch.testing.assert_close(cosine(x, y), cosine_similarity(x[:, None], y[None], dim=2))
    still = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    unit(still).sum().backward()
    assert unit(still).tolist() == [[0, 0], pytest.approx([0.6, 0.8])]
    assert still.grad[0].tolist() == [0, 0]
    assert still.grad[1].abs().sum() > 0
    assert unit(still.detach().bfloat16()).dtype == torch.float32


# --- two processes

SPLIT = {0: slice(0, 5), 1: slice(5, 8)}  # unequal on purpose
SCAN = torch.tensor([0, 0, 1, 2, 3, 1, 2, 3])


def compared(weight, own, mean):
    z = torch.tanh(rows(8, 3, seed=5)[own] @ weight)
    scan = SCAN[own]
    every, scans = gather(z), gather(scan)
    itself = torch.eye(8, dtype=torch.bool)[own]
    return info_nce(z, every, (scan[:, None] == scans) & ~itself, (scan[:, None] != scans), mean=mean)


def two_contrasts():
    results = {}
    for mean in ("pairs", "anchors", "inside"):
        weight = rows(3, 4, seed=6).requires_grad_()
        loss = compared(weight, SPLIT[rank()], mean)
        loss.backward()
        results[mean] = loss.detach(), weight.grad
    return results


def terms_of(own):
    z, scan, itself = rows(8, 3, seed=5)[own], SCAN[own], torch.eye(8, dtype=torch.bool)[own]
    same = scan[:, None] == gather(scan)
    return contrast(z, same & ~itself, ~same, distinct=~itself, temperature=0.1)


def two_terms():
    return terms_of(SPLIT[rank()])


@pytest.mark.ddp
def test_the_terms_of_two_processes_are_those_of_one():
    loss, terms = terms_of(slice(0, 8))
    assert terms.keys() == {"loss", "chance", "alignment", "uniformity"}
    for other_loss, other_terms in ddp.run_two(two_terms):
        torch.testing.assert_close(other_loss, loss)
        assert {name: float(value) for name, value in other_terms.items()} == pytest.approx(
            {name: float(value) for name, value in terms.items()}, rel=1e-6
        )


@pytest.mark.ddp
def test_two_processes_equal_one():
    both = ddp.run_two(two_contrasts)
    for mean in ("pairs", "anchors", "inside"):
        weight = rows(3, 4, seed=6).requires_grad_()
        loss = compared(weight, slice(0, 8), mean)
        loss.backward()
        for result in both:
            torch.testing.assert_close(result[mean][0], loss.detach(), rtol=1e-12, atol=0)
        averaged = (both[0][mean][1] + both[1][mean][1]) / 2
        torch.testing.assert_close(averaged, weight.grad, rtol=1e-12, atol=1e-14)


# --- spread


def test_variance_and_covariance_terms():
    x = rows(20, 4)
    covariance = torch.cov(x.T)
    shortfall = (1 - (covariance.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
    torch.testing.assert_close(variance_term(x), shortfall)
    off = covariance - torch.diag(covariance.diagonal())
    torch.testing.assert_close(covariance_term(x), off.square().sum() / 4)
    assert variance_term(x * 100) == 0
    assert variance_term(torch.ones(5, 3)).item() == pytest.approx(1 - 0.01, rel=1e-6)
    assert variance_term(torch.ones(5, 3), target=2.0).item() == pytest.approx(2 - 0.01, rel=1e-6)
    assert covariance_term(torch.ones(5, 3)) == 0
    torch.testing.assert_close(covariance_term(x + 5), covariance_term(x))
    constant = torch.ones(5, 3, requires_grad=True)
    (variance_term(constant) + covariance_term(constant)).backward()
    assert constant.grad.isfinite().all()


def test_alignment_and_uniformity():
    x, y = rows(7, 3), rows(7, 3, seed=1)
    same = torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(alignment(x, y, same), 3 * mse_loss(unit(x), unit(y)))
    assert alignment(x, 2 * x, same).item() == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x, same).item() == pytest.approx(4)
    expected = torch.pdist(unit(x)).square().mul(-2).exp().mean().log()
    torch.testing.assert_close(uniformity(x, x, ~same), expected)
    assert uniformity(torch.ones(7, 3), torch.ones(7, 3), ~same).item() == pytest.approx(0, abs=1e-6)
    five, apart = torch.eye(5), ~same[:5, :5]
    assert uniformity(five, five, apart).item() == pytest.approx(-4, rel=1e-6)  # all at distance sqrt 2
    assert uniformity(five, five, apart, t=1.0).item() == pytest.approx(-2, rel=1e-6)


def test_pairs_outside_the_masks_say_nothing_of_the_spread():
    x, y = rows(7, 3), rows(7, 3, seed=1)
    some = torch.zeros(7, 7, dtype=torch.bool)
    assert alignment(x, y, some) == uniformity(x, y, some) == 0
    some[:4, :4] = ~torch.eye(4, dtype=torch.bool)
    few = torch.ones(4, 4, dtype=torch.bool).fill_diagonal_(False)
    torch.testing.assert_close(alignment(x, y, some), alignment(x[:4], y[:4], few))
    torch.testing.assert_close(uniformity(x, x, some), uniformity(x[:4], x[:4], few))
    assert uniformity(x * torch.nan, x, some).isnan()


@pytest.mark.parametrize("measure", [variance_term, covariance_term])
def test_one_row_has_no_spread(measure):
    with pytest.raises(ValueError, match="a spread takes at least 2 rows, got 1"):
        measure(torch.ones(1, 3))
