"""Message passing against the sum over neighbors by loops."""

from __future__ import annotations

import math

import torch

from medssl.nn.graph import MessagePassing, mixing_matrix

EDGES = torch.tensor([[[0, 1], [0, 2], [1, 2], [3, 0]], [[0, 3], [1, 0], [2, 1], [2, 3]]])


def test_the_mixing_is_the_formula():
    found = mixing_matrix(EDGES, 4)
    for graph, edges in enumerate(EDGES.tolist()):
        degree = [1 + sum(source == node for source, _ in edges) for node in range(4)]
        for i in range(4):
            for j in range(4):
                joined = float(i == j or [i, j] in edges)
                assert abs(float(found[graph, i, j]) - joined / math.sqrt(degree[i] * degree[j])) < 1e-6


def test_messages_are_sums_over_neighbors():
    torch.manual_seed(0)
    messages, x = MessagePassing((3, 5, 2)), torch.randn(2, 4, 3)
    mixing = mixing_matrix(EDGES, 4)
    for layer, last in zip(messages.layers, (False, True), strict=True):
        rows = [
            [sum(mixing[g, i, j] * x[g, j] for j in range(4)) @ layer.weight.T + layer.bias for i in range(4)]
            for g in range(2)
        ]
        x = torch.stack([torch.stack(row) for row in rows])
        x = x if last else x.relu()
    torch.manual_seed(0)
    torch.testing.assert_close(MessagePassing((3, 5, 2))(torch.randn(2, 4, 3), EDGES), x)


def test_without_layers_nothing_is_heard():
    x = torch.randn(2, 4, 3)
    assert MessagePassing((3,))(x, EDGES) is x
