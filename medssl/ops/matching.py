r"""Matching the nodes of two graphs: linear and second-order assignment, and a gradient through it.

With vertex affinities :math:`c_{ia}` of node i of the first graph and a of the second, edge affinities
:math:`c_{ef}` of edge e = (i, j) and f = (a, b), and permutations v::

    score(v) = sum_{ia} c_ia v_ia  +  sum_{ef} c_ef v_ia v_jb

``assignment[g, i]`` is the node of the second graph that is assigned to node i. Edge affinities are a table of edges by
edges; the matrix of N^2 by N^2 is never built. The score is maximized by the method of Frank and Wolfe with exact
linear assignments and exact line search (Vogelstein et al., Fast Approximate Quadratic Programming for Graph Matching,
PLOS ONE 2015), and refined by exchanges of pairs. The gradient is that of Niepert et al., Implicit MLE, NeurIPS 2021,
as in Nguyen et al., LVM-Med, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch.nn.functional import one_hot

from medssl.ops.similarity import cosine

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

_TOLERANCE = 1e-9  # relative to a score: smaller gains are rounding errors
_ENOUGH = 1e-3  # relative to a score: the line search stops at smaller gains
_TABLE = 2**17  # number of edge affinities that are solved at once: more do not fit the processor's cache


class Affinities(NamedTuple):
    """Affinities of nodes and edges, for G pairs of graphs of N nodes each.

    Attributes:
        vertex: Row: node of the first graph; column: node of the second graph.
        edge: Row: edge of the first graph; column: edge of the second graph.
        edges: Source and target of every edge of the first graph; no duplicates, no self-loops.
        other_edges: The same for the second graph.
    """

    vertex: Float[Tensor, "G N N"]
    edge: Float[Tensor, "G E F"]
    edges: Int[Tensor, "G E 2"]
    other_edges: Int[Tensor, "G F 2"]


# --- graphs and affinities


def neighbor_edges(embedding: Float[Tensor, "G N D"], neighbors: int) -> Int[Tensor, "G N*k 2"]:
    """Edges from each node to the ``neighbors`` nodes with the most similar embeddings (cosine).

    The choice has no gradient. Edges are ordered by source: edge e starts at node e // k.

    Raises:
        ValueError: ``neighbors`` is not between 1 and N - 1.
    """
    graphs, nodes, _ = embedding.shape
    if not 0 < neighbors < nodes:
        message = f"{nodes} nodes can have 1 to {nodes - 1} neighbors each, got {neighbors}"
        raise ValueError(message)
    itself = torch.eye(nodes, dtype=torch.bool, device=embedding.device)
    similarity = cosine(embedding.detach(), embedding.detach()).masked_fill(itself, -torch.inf)
    target = similarity.topk(neighbors, dim=2).indices
    source = torch.arange(nodes, device=embedding.device)[None, :, None].expand_as(target)
    return torch.stack((source, target), dim=-1).reshape(graphs, nodes * neighbors, 2)


def edge_affinity(
    embedding: Float[Tensor, "G N D"],
    other_embedding: Float[Tensor, "G N D"],
    edges: Int[Tensor, "G E 2"],
    other_edges: Int[Tensor, "G F 2"],
) -> Float[Tensor, "G E F"]:
    """Cosine between the differences of embeddings along the edges of both graphs, -1 to 1; at least float32.

    Affinities of an edge between equal embeddings are 0, and so are their gradients.
    """
    return cosine(_edge_differences(embedding, edges), _edge_differences(other_embedding, other_edges))


def finite_graphs(affinities: Affinities) -> tuple[Affinities, Bool[Tensor, " G"]]:
    """Sets all affinities of graphs with a NaN or infinity to 0; also returns which graphs are finite."""
    vertex, edge, *edge_pairs = affinities
    finite = vertex.isfinite().flatten(1).all(1) & edge.isfinite().flatten(1).all(1)
    tables = (torch.where(finite[:, None, None], table, 0.0) for table in (vertex, edge))
    return Affinities(*tables, *edge_pairs), finite


def gumbel(uniform: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise from uniform numbers in [0, 1]; both ends are allowed."""
    limits = torch.finfo(uniform.dtype)
    return -(-uniform.clamp(limits.tiny, 1 - limits.eps).log()).log()


# --- scores and solvers


def score(assignment: Int[Tensor, "G N"], affinities: Affinities) -> Float[Tensor, " G"]:
    """Score of each assignment, differentiable with respect to the affinities."""
    vertex, edge, edges, _ = affinities
    total = vertex.gather(2, assignment[:, :, None])[:, :, 0].sum(1)
    if edge.numel() == 0:
        return total
    start, end = (assignment.gather(1, end_nodes) for end_nodes in edges.unbind(2))
    column = _edge_numbers(affinities).flatten(1).gather(1, start * vertex.shape[1] + end)
    has_edge = column < edge.shape[2]
    edge_scores = edge.gather(2, torch.where(has_edge, column, 0)[:, :, None])[:, :, 0]
    return total + torch.where(has_edge, edge_scores, 0.0).sum(1)


def linear_assignment(gain: Float[Tensor, "G N N"]) -> Int[Tensor, "G N"]:
    """Permutation with the largest total gain for every graph (exact); on the CPU, graph by graph.

    Ties are broken against equal numbers: if all gains are equal, no node is assigned the node of its own number. A
    collapsed network therefore has no matches by chance.

    Raises:
        ValueError: A gain is NaN, or infinities allow no permutation.
    """
    from scipy.optimize import linear_sum_assignment

    nodes = gain.shape[2]
    shifted = gain.detach().roll(-1, dims=2).to("cpu", torch.float64).contiguous().numpy()
    assignment = torch.empty(gain.shape[:2], dtype=torch.int64)
    rows = assignment.numpy()
    for graph, gains in enumerate(shifted):
        rows[graph] = linear_sum_assignment(gains, maximize=True)[1]
    return ((assignment + 1) % nodes).to(gain.device)


def match(affinities: Affinities, *, starts: int = 3, iterations: int = 20) -> Int[Tensor, "G N"]:
    """A permutation of high score for every graph, at least that of the linear assignment of the vertices.

    Runs in float64 on the CPU, on many graphs at once. Time grows with about N^3, memory with the table of edges.
    ``docs/benchmarks.md`` shows how often it finds the optimum.

    Args:
        affinities: Finite affinities. There is no gradient; :func:`matching_loss` has one.
        starts: Number of starting points; the best result counts. In this order: the linear assignment, the center of
            all permutations, the best assignment of edges there, points between the center and rotated assignments.
        iterations: Largest number of linear assignments from each starting point.

    Raises:
        ValueError: An affinity is NaN.
    """
    graphs = max(1, _TABLE // max(1, prod(affinities.edge.shape[1:])))
    assignment = torch.empty(affinities.vertex.shape[:2], dtype=torch.int64)
    for first in range(0, len(assignment), graphs):
        chunk = Affinities(*(table.detach()[first : first + graphs].cpu() for table in affinities))
        assignment[first : first + graphs] = _match(_problem(chunk), starts, iterations)
    return assignment.to(affinities.vertex.device)


def matching_loss(
    affinities: Affinities,
    *,
    vertex_noise: Float[Tensor, "G N N"] | None = None,
    edge_noise: Float[Tensor, "G E F"] | None = None,
    target: Literal["solve", "gold"] = "solve",
    strength: float = 80.0,
) -> tuple[Float[Tensor, " G"], Int[Tensor, "G N"]]:
    """Hamming loss of the matching of the affinities; each node should be assigned the node of its own number.

    The loss is twice the number of mismatched nodes, 0 to 2 N; it is piecewise constant. Its gradient is implicit
    maximum likelihood (Niepert et al. 2021). With v the matching of the noisy affinities c, g the gradient of the
    Hamming loss, and w the matching of c - strength * g, the gradient with respect to c is (v - w) / strength, for
    vertices and edges. It is multiplied by the incoming gradient, so that ``strength`` means the same for a mean over
    graphs, a scaled loss or accumulated steps. A graph with an affinity that is not finite has the loss NaN.

    Without noise, "gold" equals "solve" at half the cost once ``strength`` exceeds 1 + k + the largest number of edges
    into one node, for k edges out of each node and affinities of at most 1.

    Example for G graphs of N scans with 5 neighbors, ``x`` and ``y`` [G, N, D] the embeddings of two views; each row of
    noise belongs to one scan: its vertex affinities, then those of its 5 edges::

        edges, others = neighbor_edges(x, 5), neighbor_edges(y, 5)
        affinities = Affinities(cosine(x, y), edge_affinity(x, y, edges, others), edges, others)
        noise = 0.1 * gumbel(draws(step, "matching").uniform(N + 5 * 5 * N)).to(x)
        of_vertices, of_edges = noise[:, :N].reshape(G, N, N), noise[:, N:].reshape(G, 5 * N, 5 * N)
        loss, assignment = matching_loss(affinities, vertex_noise=of_vertices, edge_noise=of_edges)

    Args:
        affinities: Affinities of the two graphs.
        vertex_noise: Added to the vertex affinities: :func:`gumbel` noise, at scale 1 in the paper and 0.1 for cosines.
        edge_noise: Added to the edge affinities.
        target: "solve": w is computed, as in the paper. "gold": w is the true matching.
        strength: Lambda of the paper, above 0.

    Returns:
        The loss of each graph, and the matching of the noisy affinities.
    """
    vertex = affinities.vertex
    gold = torch.arange(vertex.shape[1], device=vertex.device).expand(vertex.shape[:2])
    with torch.no_grad():
        (noisy_vertex, noisy_edge, *edge_pairs), finite = finite_graphs(affinities)
        noisy_vertex = noisy_vertex if vertex_noise is None else noisy_vertex + vertex_noise
        noisy_edge = noisy_edge if edge_noise is None else noisy_edge + edge_noise
        assignment = match(Affinities(noisy_vertex, noisy_edge, *edge_pairs))
        target_assignment = gold
        if target == "solve":
            # minus the slope is 2 on the diagonal and -1 everywhere; what is everywhere decides nothing
            bonus = 2 * strength * torch.eye(vertex.shape[1], dtype=noisy_vertex.dtype, device=noisy_vertex.device)
            target_assignment = match(Affinities(noisy_vertex + bonus, noisy_edge, *edge_pairs))
    slope = (score(assignment, affinities) - score(target_assignment, affinities)) / strength
    loss = 2.0 * (assignment != gold).sum(1) + (slope - slope.detach())
    return torch.where(finite, loss, torch.nan), assignment


# --- inside


def _edge_differences(embedding: Float[Tensor, "G N D"], edges: Int[Tensor, "G E 2"]) -> Float[Tensor, "G E D"]:
    """Difference of the embeddings at the two ends of every edge, in at least float32."""
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    graph = torch.arange(len(embedding), device=embedding.device)[:, None]
    return embedding[graph, edges[..., 0]] - embedding[graph, edges[..., 1]]


class _Problem(NamedTuple):
    """Affinities of graphs of N nodes in float64, as the solver reads them: row g N + i is node i of graph g.

    Attributes:
        vertex: Vertex affinities.
        edge: Rows: edges of all first graphs, one graph after the other; columns: edges of the graph's partner, and
            one more of zeros for "no such edge".
        source: Row of the node where each edge starts.
        target: Row of the node where it ends.
        leaving: Row of a node of the second graph, column another: number of the edge between them.
        arriving: The same for the edge from the other to the row's.
        others: Rows where the edges of the second graphs start and end.
    """

    vertex: Float[Tensor, "G N N"]
    edge: Float[Tensor, "G*E F+1"]
    source: Int[Tensor, "G*E"]
    target: Int[Tensor, "G*E"]
    leaving: Int[Tensor, "G*N N"]
    arriving: Int[Tensor, "G*N N"]
    others: Int[Tensor, "G*F 2"]


def _edge_numbers(affinities: Affinities) -> Int[Tensor, "G N N"]:
    """Number of the second graph's edge from node a to node b; the number of edges where there is none."""
    vertex, edge, _, others = affinities
    graphs, nodes, _ = vertex.shape
    count = edge.shape[2]
    numbers = torch.full((graphs, nodes * nodes), count, device=vertex.device)
    ordered = torch.arange(count, device=vertex.device).expand(graphs, count)
    return numbers.scatter_(1, others[..., 0] * nodes + others[..., 1], ordered).view(graphs, nodes, nodes)


def _problem(affinities: Affinities) -> _Problem:
    vertex, edge, edges, others = affinities
    graphs, nodes, _ = vertex.shape
    padded = edge.new_zeros(graphs, edge.shape[1], edge.shape[2] + 1, dtype=torch.float64)
    padded[..., :-1] = edge
    numbers = _edge_numbers(affinities)
    first = nodes * torch.arange(graphs)[:, None]
    return _Problem(
        vertex.double(),
        padded.flatten(0, 1),
        (edges[..., 0] + first).flatten(),
        (edges[..., 1] + first).flatten(),
        numbers.flatten(0, 1),
        numbers.transpose(1, 2).flatten(0, 1),
        (others + first[..., None]).flatten(0, 1),
    )


def _match(problem: _Problem, starts: int, iterations: int) -> Int[Tensor, "G N"]:
    """Best of the linear assignment and of what the starts lead to."""
    best = linear_assignment(problem.vertex)
    value = _value(problem, best)
    for point, slope in islice(_starts(problem, best), starts):
        candidate = _exchange(problem, _frank_wolfe(problem, point, slope, iterations))
        candidate_value = _value(problem, candidate)
        better = candidate_value > value
        best, value = torch.where(better[:, None], candidate, best), torch.where(better, candidate_value, value)
    return best


def _starts(problem: _Problem, linear: Int[Tensor, "G N"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Starting points in the convex hull of permutations, with the gradient of the edge score."""
    yield _permutations(linear), _slope(problem, linear)
    center, slope = _center(problem)
    yield center, slope
    by_edges = linear_assignment(slope)
    yield _permutations(by_edges), _slope(problem, by_edges)
    for offset in range(1, linear.shape[1]):
        rotated = (linear + offset) % linear.shape[1]
        yield (center + _permutations(rotated)) / 2, (slope + _slope(problem, rotated)) / 2


def _permutations(assignment: Int[Tensor, "G N"]) -> Float[Tensor, "G N N"]:
    """Assignments as matrices of 0 and 1."""
    return one_hot(assignment, assignment.shape[1]).double()


def _slope(problem: _Problem, assignment: Int[Tensor, "G N"]) -> Float[Tensor, "G N N"]:
    """Gradient of the edge score at a permutation: the gain of i -> a through the edges of i."""
    graphs, nodes = assignment.shape
    partner = (assignment + nodes * torch.arange(graphs)[:, None]).flatten()
    slope = torch.zeros(graphs * nodes, nodes, dtype=torch.float64)
    arriving_edges = problem.arriving[partner[problem.target]]  # the edges a -> partner of the target, for all a
    slope.index_add_(0, problem.source, problem.edge.gather(1, arriving_edges))
    leaving_edges = problem.leaving[partner[problem.source]]
    slope.index_add_(0, problem.target, problem.edge.gather(1, leaving_edges))
    return slope.view(graphs, nodes, nodes)


def _center(problem: _Problem) -> tuple[Float[Tensor, "G N N"], Float[Tensor, "G N N"]]:
    """The mean of all permutations, with the gradient of the edge score."""
    graphs, nodes, _ = problem.vertex.shape
    slope = torch.zeros(graphs, nodes, nodes, dtype=torch.float64)
    for end, other_end in zip((problem.source, problem.target), problem.others.unbind(1), strict=True):
        rows = torch.zeros(graphs * nodes, problem.edge.shape[1], dtype=torch.float64).index_add_(0, end, problem.edge)
        columns = rows.view(graphs, nodes, problem.edge.shape[1])[..., :-1].transpose(1, 2).flatten(0, 1)
        edge_sums = torch.zeros(graphs * nodes, nodes, dtype=torch.float64).index_add_(0, other_end, columns)
        slope += edge_sums.view(graphs, nodes, nodes).transpose(1, 2)
    return torch.full_like(slope, 1 / nodes), slope / nodes


def _value(problem: _Problem, assignment: Int[Tensor, "G N"]) -> Float[Tensor, " G"]:
    """The score."""
    vertex = problem.vertex.gather(2, assignment[..., None]).sum((1, 2))
    return vertex + _along_edges(problem, assignment, problem.source, problem.target).view(len(vertex), -1).sum(1)


def _along_edges(problem: _Problem, assignment: Tensor, start: Tensor, end: Tensor) -> Float[Tensor, "G*E"]:
    """Affinity of every first edge with the edge between the partners of the nodes in rows ``start`` and ``end``."""
    graphs, nodes = assignment.shape
    row = (assignment + nodes * torch.arange(graphs)[:, None]).flatten()
    number = problem.leaving[row[start], assignment.flatten()[end]]
    return problem.edge.gather(1, number[:, None])[:, 0]


def _frank_wolfe(
    problem: _Problem, point: Float[Tensor, "G N N"], slope: Float[Tensor, "G N N"], iterations: int
) -> Int[Tensor, "G N"]:
    """The best permutation of a Frank-Wolfe ascent from a point of the convex hull of permutations.

    The gradient is linear in the point: it is computed at permutations only, and interpolated like the points.
    """
    graphs, nodes, _ = point.shape
    value = torch.full((graphs,), -torch.inf, dtype=torch.float64)
    best = torch.zeros(graphs, nodes, dtype=torch.int64)
    for _ in range(iterations):
        gain = problem.vertex + slope
        corner = linear_assignment(gain)
        corner_slope = _slope(problem, corner)
        corner_value = (problem.vertex + corner_slope / 2).gather(2, corner[..., None]).sum((1, 2))
        better = corner_value > value
        best, value = torch.where(better[:, None], corner, best), torch.where(better, corner_value, value)
        direction, slope_change = _permutations(corner) - point, corner_slope - slope
        rise = (gain * direction).sum((1, 2))
        curve = (slope_change * direction).sum((1, 2)) / 2
        moving = rise > _ENOUGH * (1 + corner_value.abs())
        if not bool(moving.any()):
            break
        length = torch.where(curve < 0, (rise / (-2 * curve.clamp(max=-1e-300))).clamp(max=1), 1.0) * moving
        point = point + length[:, None, None] * direction
        slope = slope + length[:, None, None] * slope_change
    rounded = linear_assignment(point)
    return torch.where((_value(problem, rounded) > value)[:, None], rounded, best)


def _exchange(problem: _Problem, assignment: Int[Tensor, "G N"]) -> Int[Tensor, "G N"]:
    """Exchanges the partners of the pair of nodes with the largest gain, until no exchange raises the score."""
    graphs, nodes = assignment.shape
    rows = torch.arange(graphs)
    for _ in range(nodes * nodes):
        gain, pair = _exchange_gains(problem, assignment).flatten(1).max(1)
        moving = gain > _TOLERANCE * (1 + gain.abs())
        if not bool(moving.any()):
            break
        x, y = pair // nodes, pair % nodes
        exchanged = assignment.clone()
        exchanged[rows, x], exchanged[rows, y] = assignment[rows, y], assignment[rows, x]
        assignment = torch.where(moving[:, None], exchanged, assignment)
    return assignment


def _exchange_gains(problem: _Problem, assignment: Int[Tensor, "G N"]) -> Float[Tensor, "G N N"]:
    """Gain of the score if nodes x and y exchange partners: first order, and the edges between the two."""
    graphs, nodes = assignment.shape
    gain = problem.vertex + _slope(problem, assignment)
    gain = gain.gather(2, assignment[:, None].expand(-1, nodes, -1))  # column y: the partner of y
    current = gain.diagonal(dim1=1, dim2=2)
    start, end = problem.source, problem.target
    edge_values = _along_edges(problem, assignment, start, end) + _along_edges(problem, assignment, end, start)
    pair_values = torch.zeros(graphs * nodes, nodes, dtype=torch.float64)
    pair_values.view(-1).index_add_(0, start * nodes + end % nodes, edge_values)
    total = gain + pair_values.view(graphs, nodes, nodes)
    return total + total.transpose(1, 2) - current[:, :, None] - current[:, None]
