"""Graph matching against its formulas by loops and all permutations, and the invariants of the paper."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from objectives.contrast import batch_of, generator
from objectives.small import SIZES, encoder, randomize
from ops.graphs import best_of_all

from medssl.nn.graph import mixing_matrix
from medssl.objectives import graph_match
from medssl.objectives.base import select_rows
from medssl.objectives.graph_match import Fit, GraphMatch, Graphs, Matching
from medssl.ops.affinity import local_affinity, map_cells
from medssl.ops.draws import Draws
from medssl.ops.matching import Affinities, match, score
from medssl.types import Features, Sampling, Step, UserError, ViewSpec

FOUR = Graphs(nodes=4, neighbors=2)
EXACT = Matching(margin=0.0)  # as published


def objective_of(ndim: int = 2, **arguments) -> GraphMatch:
    torch.manual_seed(0)
    arguments = {"graphs": FOUR, "projection": (8,), "matching": EXACT} | arguments
    return GraphMatch(encoder(ndim), view=ViewSpec(SIZES[ndim]), **arguments).double()


def precise(batch):
    return replace(batch, views=tuple(replace(view, image=view.image.double()) for view in batch.views))


def seen(monkeypatch) -> list[Affinities]:
    """Affinities that are given to the matching, with their gradients after a backward pass."""
    kept = []
    inner = graph_match.matching_loss

    def spy(affinities, **options):
        if affinities.vertex.requires_grad:
            affinities.vertex.retain_grad()
            affinities.edge.retain_grad()
        kept.append(affinities)
        return inner(affinities, **options)

    monkeypatch.setattr(graph_match, "matching_loss", spy)
    return kept


def cosine(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def by_loops(objective: GraphMatch, batch) -> tuple[np.ndarray, list, list]:
    """Vertex affinities, and the edges of both views with their affinities, from the features of a batch of graphs."""
    with torch.no_grad():
        features = objective.encoder(torch.cat([view.image for view in batch.views]))
        rows = objective.projection(features.pooled)
    nodes, k = objective.graphs.nodes, objective.graphs.neighbors
    graphs = len(rows) // 2 // nodes
    found = []
    for part in rows.reshape(2 * graphs, nodes, -1):
        z = part.numpy()
        near = [
            sorted((j for j in range(nodes) if j != i), key=lambda j, i=i: -cosine(z[i], z[j]))[:k]
            for i in range(nodes)
        ]
        x = z
        for number, layer in enumerate(objective.messages.layers):
            heard = [(x[i] + sum(x[j] for j in near[i])) / (k + 1) for i in range(nodes)]
            x = np.stack(heard) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            x = np.maximum(x, 0) if number == 0 else x
        found.append((z + x, [(i, j) for i in range(nodes) for j in near[i]]))
    cells = [
        map_cells(part, view, nodes=nodes, max_cells=objective.fit.cells)
        for part, view in zip(features.maps[-1].chunk(2), batch.views, strict=True)
    ]
    alpha, scale = objective.fit.alpha, objective.matching.temperature
    local = local_affinity(*cells, share=objective.fit.share).numpy()  # has an oracle of its own
    vertex, edges, edge = local * (1 - alpha), [], []
    for graph in range(graphs):
        (q, own), (r, others) = found[graph], found[graphs + graph]
        vertex[graph] += [[alpha * cosine(q[i], r[a]) for a in range(nodes)] for i in range(nodes)]
        edges.append((own, others))
        edge.append([[cosine(q[i] - q[j], r[a] - r[b]) / scale for a, b in others] for i, j in own])
    return vertex / scale, edges, edge


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    "arguments", [{}, {"graphs": replace(FOUR, layers=0), "matching": Matching(margin=0.0, temperature=0.3)}]
)
def test_affinities_and_loss_are_the_formulas(ndim, arguments, monkeypatch):
    objective, kept = objective_of(ndim, **arguments), seen(monkeypatch)
    batch, step = batch_of(objective, scans=8)
    batch = precise(batch)
    loss = objective(batch, step)
    (given,) = kept
    vertex, edges, edge = by_loops(objective, batch)
    torch.testing.assert_close(given.vertex.detach(), torch.from_numpy(vertex), rtol=1e-9, atol=1e-9)
    assert [list(map(tuple, graph)) for graph in given.edges.tolist()] == [own for own, _ in edges]
    assert [list(map(tuple, graph)) for graph in given.other_edges.tolist()] == [others for _, others in edges]
    edge = torch.tensor(edge, dtype=torch.float64)
    torch.testing.assert_close(given.edge.detach(), edge, rtol=1e-8, atol=1e-8)
    # noise belongs to the samples: four numbers for the nodes, then eight for each of the two edges
    numbers = -np.log(-np.log(Draws(step.seed, step.samples, "graph_match.noise").uniform(20).double().numpy()))
    numbers = torch.from_numpy(0.1 * numbers).view(2, 4, 20)
    noisy = Affinities(
        torch.from_numpy(vertex) + numbers[..., :4],
        edge + numbers[..., 4:].reshape(2, 8, 8),
        *given[2:],
    )
    expected = match(noisy)
    torch.testing.assert_close(score(expected, noisy), best_of_all(noisy))
    wrong = (expected != torch.arange(4)).sum()
    assert float(loss.total.detach()) == pytest.approx(float(wrong) * 2 / 2)
    assert float(loss.terms["matching_accuracy_noisy"]) == pytest.approx(1 - float(wrong) / 8)
    clean = (match(given) == torch.arange(4)).double().mean()
    assert float(loss.terms["matching_accuracy"]) == pytest.approx(float(clean))
    assert float(loss.terms["chance"]) == 6


@pytest.mark.parametrize("second_order", [True, False])
def test_a_margin_is_what_true_pairs_must_be_better_by(second_order, monkeypatch):
    """The matching of affinities from which the margin was subtracted at true pairs, by loops over nodes and edges."""
    matching = Matching(margin=0.7, noise=0.0, second_order=second_order)
    objective, kept = objective_of(matching=matching), seen(monkeypatch)
    batch, step = batch_of(objective, scans=8, views="same")
    batch = replace(batch, views=(batch.views[0], batch.views[0]))
    loss = objective.eval()(precise(batch), step)
    (given,) = kept
    vertex, edge = given.vertex.detach().clone(), given.edge.detach().clone()
    for graph in range(2):
        for node in range(4):
            vertex[graph, node, node] -= 0.7
        for row, own in enumerate(given.edges[graph].tolist()):
            for column, other in enumerate(given.other_edges[graph].tolist()):
                edge[graph, row, column] -= 0.7 * (own == other)
    strict = Affinities(vertex, edge, given.edges, given.other_edges)
    expected = match(strict)
    wrong = float((expected != torch.arange(4)).sum())
    assert float(loss.total.detach()) == pytest.approx(wrong)
    assert wrong > float((match(given) != torch.arange(4)).sum()) == 0


def test_small_graphs_keep_a_gradient():
    """Graphs of eight nodes whose views differ by a little noise match at once; with a margin they still teach."""
    norms = {margin: gradient_norms(margin) for margin in (0.0, 0.5)}
    print({margin: [round(norm, 3) for norm in values] for margin, values in norms.items()})
    assert max(norms[0.0]) == 0
    assert sum(norm > 0.05 for norm in norms[0.5]) >= 10


def gradient_norms(margin: float, steps: int = 12) -> list[float]:
    """Norm of the gradient at each step of a short training."""
    torch.manual_seed(0)
    objective = GraphMatch(
        encoder(2), view=ViewSpec(SIZES[2]), graphs=Graphs(8, 3), matching=Matching(margin=margin), projection=(16,)
    ).train()
    optimizer, noise, norms = torch.optim.AdamW(objective.parameters(), lr=1e-3), generator(0), []
    batch, step = batch_of(objective, scans=16)
    for number in range(steps):
        coarse = torch.randn(16, 1, 4, 6, generator=noise)
        image = torch.nn.functional.interpolate(coarse, SIZES[2], mode="bilinear")
        views = [replace(v, image=image + 0.1 * torch.randn(image.shape, generator=noise)) for v in batch.views]
        loss = objective(replace(batch, views=tuple(views)), replace(step, index=number))
        optimizer.zero_grad()
        loss.total.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(objective.parameters(), math.inf)))
        optimizer.step()
    return norms


def test_the_clean_matching_is_computed_where_it_is_logged(monkeypatch):
    objective = objective_of()
    batch, step = batch_of(objective, scans=8)
    calls, inner = [], graph_match.match
    monkeypatch.setattr(graph_match, "match", lambda affinities: (calls.append(0), inner(affinities))[1])
    logged, other = (objective(precise(batch), replace(step, logged=value)) for value in (True, False))
    assert len(calls) == 1
    assert logged.terms.keys() - other.terms.keys() == {"matching_accuracy"}
    assert float(logged.total.detach()) == float(other.total.detach())


@pytest.mark.parametrize("target", ["solve", "gold"])
def test_the_gradient_is_the_difference_of_two_matchings(target, monkeypatch):
    """Rows and columns sum to 0; entries are -1, 0 or 1 over the strength and the graphs; a missed match is raised."""
    objective = objective_of(matching=Matching(margin=0.0, target=target, noise=1.0, strength=50.0))
    kept = seen(monkeypatch)
    batch, step = batch_of(objective, scans=16)
    loss = objective(precise(batch), step)
    loss.total.backward()
    gradient = kept[0].vertex.grad * 50.0 * 4
    assert 0 < float(loss.total.detach()) <= 8
    torch.testing.assert_close(gradient.sum(1), torch.zeros(4, 4, dtype=torch.float64))
    torch.testing.assert_close(gradient.sum(2), torch.zeros(4, 4, dtype=torch.float64))
    assert set(gradient.round(decimals=9).unique().tolist()) <= {-1.0, 0.0, 1.0}
    missed = gradient.diagonal(dim1=1, dim2=2)
    assert float(missed.max()) <= 0  # descent raises what should match
    assert -2 * float(missed.sum()) / 4 == pytest.approx(float(loss.total.detach()))


@pytest.mark.parametrize("ndim", [2, 3])
def test_identical_views_have_no_loss_and_no_gradient(ndim):
    """Without noise: the matching is the identity, and its target too."""
    objective = objective_of(ndim, matching=Matching(margin=0.0, noise=0.0)).eval()
    batch, step = batch_of(objective, scans=8, views="same")
    batch = precise(replace(batch, views=(batch.views[0], batch.views[0])))
    loss = objective(batch, step)
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert float(loss.terms["matching_accuracy"]) == float(loss.terms["matching_accuracy_noisy"]) == 1
    assert float(loss.terms["alignment"]) == pytest.approx(0, abs=1e-12)
    assert all(float(p.grad.abs().max()) == 0 for p in objective.parameters())


def test_what_collapsed_matches_nothing():
    objective = objective_of(matching=Matching(margin=0.0, noise=0.0), fit=Fit(alpha=1.0))
    for module in (objective.projection, objective.messages):
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
    batch, step = batch_of(objective, scans=8)
    loss = objective(precise(batch), step)
    assert float(loss.total.detach()) == 8
    assert float(loss.terms["matching_accuracy"]) == 0


def test_gradients_reach_encoder_projection_and_messages():
    objective = objective_of(matching=Matching(margin=0.0, noise=1.0))
    randomize(objective)
    batch, step = batch_of(objective, scans=16)
    objective(precise(batch), step).total.backward()
    for name, parameter in objective.named_parameters():
        if not name.endswith("bias"):  # a bias before a norm, or that of all nodes, may not matter
            assert float(parameter.grad.abs().max()) > 0, name


def test_the_choice_of_neighbors_has_no_gradient(monkeypatch):
    """Slopes through fixed edges are the gradient; the edges themselves are whole numbers without one."""
    objective, kept = objective_of(), seen(monkeypatch)
    batch, step = batch_of(objective, scans=8)
    objective(precise(batch), step)
    assert not kept[0].edges.dtype.is_floating_point
    x = torch.randn(2, 4, 3, generator=generator(0), dtype=torch.float64, requires_grad=True)
    edges = graph_match.neighbor_edges(x, 2)
    assert not edges.requires_grad
    assert not mixing_matrix(edges, 4).requires_grad


def features_of(rows: int, ndim: int = 2) -> Features:
    size = (3, 5) if ndim == 2 else (2, 3, 2)
    maps = torch.randn(2 * rows, 12, *size, generator=generator(3), dtype=torch.float64)
    return Features((maps,), torch.randn(2 * rows, 12, generator=generator(4), dtype=torch.float64))


def test_permuting_the_nodes_of_one_view_permutes_the_matching():
    objective = objective_of(graphs=Graphs(nodes=6, neighbors=3))
    batch, _ = batch_of(objective, scans=6)
    features, order = features_of(6), torch.tensor([3, 0, 5, 1, 4, 2])
    affinities, _ = objective.compare(features, batch.views)
    rows = torch.cat((torch.arange(6), 6 + order))
    moved = Features((features.maps[0][rows],), features.pooled[rows])
    views = (batch.views[0], select_rows(replace(batch, views=batch.views[1:]), step_of(6), order.tolist())[0].views[0])
    permuted, _ = objective.compare(moved, views)
    torch.testing.assert_close(permuted.vertex, affinities.vertex[:, :, order])
    assert torch.equal(match(permuted), order.argsort()[match(affinities)])


def test_renumbering_both_graphs_changes_nothing():
    objective = objective_of(graphs=Graphs(nodes=6, neighbors=3), matching=Matching(margin=0.0, noise=0.0))
    batch, _ = batch_of(objective, scans=6)
    features, order = features_of(6), [3, 0, 5, 1, 4, 2]
    rows = torch.tensor(order + [6 + node for node in order])
    moved = Features((features.maps[0][rows],), features.pooled[rows])
    values = []
    for these, views in ((features, batch.views), (moved, select_rows(batch, step_of(6), order)[0].views)):
        affinities, _ = objective.compare(these, views)
        values.append(int((match(affinities) == torch.arange(6)).sum()))
    assert values[0] == values[1]


def step_of(rows: int) -> Step:
    return Step(0, 1, 0, tuple(range(rows)))


def test_a_permuted_copy_of_the_graph_is_recovered():
    objective = objective_of(graphs=Graphs(nodes=6, neighbors=3), fit=Fit(alpha=1.0))
    batch, _ = batch_of(objective, scans=6, views="same")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    features = features_of(6)
    same = Features(
        (features.maps[0][:6].repeat(2, 1, 1, 1),), torch.cat((features.pooled[:6], features.pooled[:6][order]))
    )
    affinities, _ = objective.compare(same, batch.views)
    assert torch.equal(match(affinities)[0], order.argsort())


def test_affinities_are_bounded_and_lengths_do_not_matter():
    objective = objective_of()
    batch, _ = batch_of(objective, scans=8)
    features = features_of(8)
    affinities, _ = objective.compare(features, batch.views)
    assert float(affinities.vertex.detach().abs().max()) <= 1 + 1e-12
    assert float(affinities.edge.detach().abs().max()) <= 1 + 1e-12
    for module in (objective.projection, objective.messages):
        for name, parameter in module.named_parameters():
            parameter.data.mul_(1.0 if name.endswith("bias") else 3.0)
            if name.endswith("bias"):
                parameter.data.zero_()
    scaled, _ = objective.compare(features, batch.views)
    for parameter in objective.projection.parameters():
        parameter.data.mul_(7.0)
    again, _ = objective.compare(features, batch.views)
    torch.testing.assert_close(again.vertex, scaled.vertex)
    torch.testing.assert_close(again.edge, scaled.edge)


def test_a_strong_target_is_gold(monkeypatch):
    """Without noise and with a strength above 1 + k + the most edges into a node; graphs of 8 with 3 neighbors."""
    gradients = []
    for target in ("solve", "gold"):
        objective = objective_of(
            graphs=Graphs(8, 3), matching=Matching(margin=0.0, target=target, noise=0.0, strength=12.0)
        )
        batch, step = batch_of(objective, scans=16)
        loss = objective(precise(batch), step)
        loss.total.backward()
        gradients.append(objective.projection.layers[0].weight.grad)
    assert float(gradients[0].abs().max()) > 0
    assert torch.equal(*gradients)


def test_the_second_order_can_be_left_out(monkeypatch):
    from scipy.optimize import linear_sum_assignment

    objective, kept = objective_of(matching=Matching(margin=0.0, second_order=False, noise=0.0)), seen(monkeypatch)
    batch, step = batch_of(objective, scans=8)
    loss = objective(precise(batch), step)
    loss.total.backward()
    (given,) = kept
    assert given.edge.shape == (2, 0, 0)
    found = [linear_sum_assignment(graph, maximize=True)[1] for graph in given.vertex.detach().numpy()]
    wrong = sum(int((columns != np.arange(4)).sum()) for columns in found)
    assert float(loss.total.detach()) == pytest.approx(wrong)


def test_temperature_and_noise_say_the_same():
    values = []
    for noise, temperature in ((0.2, 1.0), (2.0, 0.1)):
        objective = objective_of(matching=Matching(margin=0.0, noise=noise, temperature=temperature))
        batch, step = batch_of(objective, scans=16)
        loss = objective(precise(batch), step)
        values.append((float(loss.total.detach()), float(loss.terms["matching_accuracy"])))
    assert values[0] == values[1]
    assert values[0][0] > 0


def test_values_that_are_not_finite_reach_the_loss():
    """The engine names the scan then; the graphs of other scans are matched as ever."""
    objective = objective_of().eval()
    batch, step = batch_of(objective, scans=8)
    batch = precise(batch)
    whole = objective(batch, step)
    batch.views[1].image[5] = torch.nan
    loss = objective(batch, step)
    assert loss.total.isnan()
    accuracy = float(loss.terms["matching_accuracy"])
    assert 0 <= accuracy <= 0.5  # the graph with the NaN has no match
    assert float(whole.terms["matching_accuracy"]) > 0
    few, few_step = select_rows(batch, step, [0, 1, 2, 3])
    assert accuracy == pytest.approx(float(objective(few, few_step).terms["matching_accuracy"]) / 2)


def test_graphs_follow_the_sample_numbers():
    """Loss and affinities are bit for bit the same in any order of the batch; embeddings stay with their scans."""
    objective = objective_of()
    batch, step = batch_of(objective, scans=8)
    batch = precise(batch)
    order = [5, 2, 7, 0, 1, 6, 4, 3]
    found, other = objective(batch, step), objective(*select_rows(batch, step, order))
    assert float(found.total.detach()) == float(other.total.detach())
    assert torch.equal(found.terms["uniformity"], other.terms["uniformity"])
    assert torch.equal(found.embedding[order], other.embedding)


def test_noise_belongs_to_the_samples_and_the_seed():
    objective = objective_of(matching=Matching(margin=0.0, noise=1.0))
    batch, step = batch_of(objective, scans=8)
    noise = objective._noise(step)
    assert noise.shape == (2, 4, 4 + 2 * 8)
    part = objective._noise(replace(step, samples=step.samples[4:], index=9))
    assert torch.equal(noise[1:], part)
    assert not torch.equal(noise, objective._noise(replace(step, seed=1)))
    values = [float(objective(precise(batch), step).total.detach()) for _ in range(2)]
    assert values[0] == values[1]


def test_half_precision_ends_with_the_encoder(monkeypatch):
    """Nodes are alike: differences of embeddings that are rounded to bfloat16 are mostly rounding."""
    objective = objective_of().float()
    batch, step = batch_of(objective, scans=8)
    kept, features = seen(monkeypatch), []
    objective.encoder.register_forward_hook(lambda *call: features.append(call[2]))
    with torch.autocast("cpu", torch.bfloat16):
        objective(batch, step)
    assert features[0].maps[-1].dtype == torch.bfloat16
    whole = Features(tuple(each.float() for each in features[0].maps), features[0].pooled.float())
    expected, _ = objective.compare(whole, batch.views)
    for found, wanted in zip(kept[0], expected, strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted)


def test_what_nodes_heard_is_added_to_what_they_are():
    with_own, heard_alone = (objective_of(graphs=replace(FOUR, residual=residual)) for residual in (True, False))
    heard_alone.load_state_dict(with_own.state_dict())
    batch, step = batch_of(with_own, scans=8)
    features = with_own.eval().encoder(torch.cat([view.image for view in precise(batch).views]))
    _, (both, _) = with_own.compare(features, batch.views)
    _, (heard, _) = heard_alone.eval().compare(features, batch.views)
    own = with_own.projection(features.pooled)[: len(step.samples)]
    torch.testing.assert_close(both - heard, own.detach())


@pytest.mark.parametrize("rows", [2, 6])
def test_an_incomplete_graph_is_refused(rows):
    objective = objective_of()
    batch, step = batch_of(objective, scans=rows)
    message = f"graphs of 4 nodes need a micro-batch of a multiple of 4 samples, got {rows}: change training.batch_size"
    with pytest.raises(UserError, match=message):
        objective(precise(batch), step)


BAD = [
    ({"graphs": Graphs(nodes=1)}, r"graphs.nodes: must be at least 2 \(got 1\)"),
    ({"graphs": Graphs(nodes=4, neighbors=4)}, r"graphs.neighbors: must be from 1 to 3 \(got 4\)"),
    ({"graphs": Graphs(layers=-1)}, r"graphs.layers: must be at least 0 \(got -1\)"),
    ({"fit": Fit(alpha=1.5)}, r"fit.alpha: must be from 0 to 1 \(got 1\.5\)"),
    ({"fit": Fit(cells=0)}, r"fit.cells: must be at least 1 \(got 0\)"),
    ({"fit": Fit(share=0.0)}, r"fit.share: must be above 0, 1 at most \(got 0\.0\)"),
    ({"matching": Matching(margin=0.0, noise=-1.0)}, r"matching.noise: must be at least 0 \(got -1\.0\)"),
    ({"matching": Matching(margin=0.0, temperature=0.0)}, r"matching.temperature: must be above 0 \(got 0\.0\)"),
    ({"matching": Matching(margin=-0.1)}, r"matching.margin: must be at least 0 \(got -0\.1\)"),
    ({"matching": Matching(margin=0.0, strength=0.0)}, r"matching.strength: must be above 0 \(got 0\.0\)"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        objective_of(**arguments)


def test_places_must_stay_true_and_subjects_differ():
    needs = objective_of().needs
    assert needs.true_coordinates
    assert needs.sampling.distinct_subjects
    twins = Sampling(regions_per_scan=2)
    assert objective_of(sampling=twins).needs.sampling is twins
