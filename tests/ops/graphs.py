"""Pairs of graphs to match, and their optimum by two other roads: all permutations, and HiGHS."""

from itertools import permutations

import numpy as np
import torch

from medssl.ops.matching import Affinities, edge_affinity, gumbel, neighbor_edges
from medssl.ops.similarity import cosine


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gumbels(*shape, seed):
    return gumbel(torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def affinities_of(x, y, k):
    edges, others = neighbor_edges(x, k), neighbor_edges(y, k)
    return Affinities(cosine(x, y), edge_affinity(x, y, edges, others), edges, others)


def instances(graphs, nodes, k=3, *, apart=1.4, vertex=0.0, edge=0.0, seed=0):
    """Pairs of noisy views; Gumbel noise of two scales on the affinities."""
    x = rows(graphs, nodes, 32, seed=seed)
    given = affinities_of(x, x + apart * rows(graphs, nodes, 32, seed=seed + 1), k)
    return given._replace(
        vertex=given.vertex + vertex * gumbels(*given.vertex.shape, seed=seed + 2),
        edge=given.edge + edge * gumbels(*given.edge.shape, seed=seed + 3),
    )


def one(given, graph):
    return Affinities(*(each[graph : graph + 1] for each in given))


def best_of_all(given):
    """Highest score over all permutations, graph by graph: a table of edge affinities over pairs of nodes."""
    graphs, nodes, _ = given.vertex.shape
    every = np.array(list(permutations(range(nodes))))
    best = []
    for graph in range(graphs):
        vertex, edge, edges, others = (each[graph].numpy() for each in given)
        total = vertex[np.arange(nodes), every].sum(1)
        for e, (i, j) in enumerate(edges):
            table = np.zeros((nodes, nodes))
            table[others[:, 0], others[:, 1]] = edge[e]
            total += table[every[:, i], every[:, j]]
        best.append(total.max())
    return torch.tensor(np.array(best))


def highs(given):
    """The optimum of one graph, proved: the local polytope in whole numbers.

    One variable for each pair of nodes, one for each pair of edges. An edge's partners that leave (arrive at) node a
    need source (target) at a; where a partner would cost, having both ends in place forces it.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    vertex, edge, edges, others = (each[0].numpy() for each in given)
    nodes, pairs = len(vertex), vertex.size
    both = pairs + np.arange(edge.size).reshape(edge.shape)
    entries, low, high = [], [], []

    def constrain(terms, least, most):
        entries.extend((len(low), column, weight) for column, weight in terms)
        low.append(least)
        high.append(most)

    for i in range(nodes):
        constrain([(i * nodes + a, 1) for a in range(nodes)], 1, 1)
        constrain([(a * nodes + i, 1) for a in range(nodes)], 1, 1)
    for e, (i, j) in enumerate(edges):
        for a in range(nodes):
            leaving, arriving = (np.flatnonzero(others[:, end] == a) for end in (0, 1))
            constrain([(both[e, f], 1) for f in leaving] + [(i * nodes + a, -1)], -np.inf, 0)
            constrain([(both[e, f], 1) for f in arriving] + [(j * nodes + a, -1)], -np.inf, 0)
            if len(costly := [f for f in leaving if edge[e, f] < 0]):
                ends = [(i * nodes + a, 1), *((j * nodes + others[f, 1], 1) for f in costly)]
                constrain(ends + [(both[e, f], -1) for f in costly], -np.inf, 1)
    row, column, weight = zip(*entries, strict=True)
    gain = np.concatenate((vertex.ravel(), edge.ravel()))
    rules = LinearConstraint(coo_array((weight, (row, column)), (len(low), len(gain))).tocsr(), low, high)
    whole = np.arange(len(gain)) < pairs
    done = milp(
        -gain,
        integrality=whole,
        bounds=Bounds(0, 1),
        constraints=rules,
        options={"time_limit": 60, "mip_rel_gap": 1e-7},
    )
    assert done.status == 0, done.message
    return -done.fun
