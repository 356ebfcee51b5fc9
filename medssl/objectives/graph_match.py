r"""LVM-Med: the scans of a batch form one graph for each view, and the two graphs are matched node by node.

Predicts: matching nodes of two graphs of scans (LVM-Med, Nguyen et al. 2023).
Encoders: any.

With encoder :math:`f`, projection h, message passing g on the graph of nearest neighbors of z, views s and t of N
scans, c_lo the affinity of the cells of two maps (``ops/affinity.py``) and permutations v::

    z    = h(f(x)),   q = z + g(z, neighbors of z)                                         for each view
    c_ia = alpha cos(q_i^s, q_a^t) + (1 - alpha) c_lo(f(x_i^s), f(x_a^t))                   nodes i and a
    c_ef = cos(q_i^s - q_j^s, q_a^t - q_b^t)                                                edges e = (i, j), f = (a, b)
    v    = argmax sum_ia (c_ia + noise) v_ia + sum_ef (c_ef + noise) v_ia v_jb
    loss = mean over graphs of 2 (number of i with v_ii = 0)

A margin is subtracted from c of true pairs, so that a matching has to be right by that much. The loss is piecewise
constant; its gradient is implicit maximum likelihood (``ops/matching.py``).

Reference: Nguyen et al., LVM-Med: Learning large-scale self-supervised vision models for medical imaging via
second-order graph matching, NeurIPS 2023, arXiv 2306.11925. ``docs/objectives/graph_match.md`` lists differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from medssl.nn.graph import MessagePassing
from medssl.nn.heads import Projection
from medssl.objectives.base import Objective, select_rows
from medssl.ops.affinity import local_affinity, map_cells
from medssl.ops.collectives import gather, mean_over
from medssl.ops.draws import draws
from medssl.ops.limits import expect
from medssl.ops.matching import (
    Affinities,
    edge_affinity,
    finite_graphs,
    gumbel,
    match,
    matching_loss,
    neighbor_edges,
)  # fmt: skip
from medssl.ops.similarity import alignment, cosine, uniformity
from medssl.ops.tags import tags
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Features, Step, View, ViewSpec


@dataclass(frozen=True)
class Graphs:
    """Construction of graphs from scans.

    Attributes:
        nodes: Number of scans in a graph, at least 2: consecutive global sample numbers on one process.
        neighbors: Number of edges from each node to the nearest other nodes, by the cosine of z.
        layers: Number of graph convolutions; 0 disables message passing.
        residual: True: message passing is added to the embedding of a node. False: it replaces it, as in the paper.
    """

    nodes: int = 16
    neighbors: int = 5
    layers: int = 2
    residual: bool = True


@dataclass(frozen=True)
class Fit:
    """Affinity of nodes.

    Attributes:
        alpha: Weight of the cosine of embeddings, 0 to 1; the affinity of cells has the weight 1 - alpha.
        cells: Largest number of cells of a map along an axis; finer maps are averaged.
        share: Share of a map's cells that are compared, above 0 and at most 1: those with the nearest partners.
    """

    alpha: float = 0.8
    cells: int = 7
    share: float = 0.4


@dataclass(frozen=True)
class Matching:
    """Matching of graphs, and its gradient.

    Attributes:
        second_order: True: match nodes and edges. False: match nodes only.
        target: Target matching of the gradient. "solve": the solution of the perturbed problem. "gold": the true one.
        noise: Scale of the Gumbel noise on the affinities (after division by ``temperature``), 0 or more.
        temperature: Divisor of all affinities, above 0.
        strength: Lambda of the paper, above 0: how strongly the target is pulled to the true matching. It divides the
            gradient.
        margin: Is subtracted from the affinities of true pairs of nodes and edges, 0 or more: a graph whose true
            matching is best by less has a loss and a gradient. Without it small graphs soon match, and learning ends. 0
            is the paper.
    """

    second_order: bool = True
    target: Literal["solve", "gold"] = "solve"
    noise: float = 0.1
    temperature: float = 1.0
    strength: float = 80.0
    margin: float = 0.5


class GraphMatch(Objective):
    """LVM-Med: matches the scans of two views as graphs, by nodes and edges.

    Args:
        encoder: Any encoder; its pooled features and its coarsest map are compared.
        view: Cropping and augmentation of both views.
        graphs: Construction of graphs from scans.
        fit: Affinity of nodes.
        matching: Matching of graphs.
        projection: Channels of the hidden layers, if any, and of the output.
        sampling: How scans fill a batch. None takes one crop of each subject, since crops of one subject are similar.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        graphs: Graphs = Graphs(),
        fit: Fit = Fit(),
        matching: Matching = Matching(),
        projection: Sequence[int] = (128,),
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        _check(graphs, fit, matching)
        self.encoder = encoder
        self.needs = ViewPlan((view, view), sampling or Sampling(distinct_subjects=True), true_coordinates=True)
        self.graphs, self.fit, self.matching = graphs, fit, matching
        self.projection = Projection((encoder.channels[-1], *projection))
        self.messages = MessagePassing([projection[-1]] * (graphs.layers + 1))

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Orders scans by sample number, encodes both views in one batch, and matches graph by graph."""
        self.require(batch, step)
        nodes, rows = self.graphs.nodes, len(step.samples)
        if rows % nodes:
            message = (
                f"graphs of {nodes} nodes need a micro-batch of a multiple of {nodes} samples, got {rows}: "
                "change training.batch_size, or the objective's graphs.nodes"
            )
            raise UserError(message)
        order = sorted(range(rows), key=step.samples.__getitem__)
        batch, step = select_rows(batch, step, order)
        features = self.encoder(torch.cat([view.image for view in batch.views]))
        with torch.autocast(
            features.pooled.device.type, enabled=False
        ):  # differences between similar nodes need precision
            affinities, embeddings = self.compare(features, batch.views)
        noise = self._noise(step).to(affinities.vertex)
        edge_noise = noise[..., nodes:].reshape(len(noise), nodes * self.graphs.neighbors, -1)
        true_edges = (affinities.edges[:, :, None] == affinities.other_edges[:, None]).all(-1)
        losses, assignment = matching_loss(
            affinities,
            vertex_noise=noise[..., :nodes] - self.matching.margin * torch.eye(nodes).to(noise),
            edge_noise=edge_noise - self.matching.margin * true_edges if self.matching.second_order else None,
            target=self.matching.target,
            strength=self.matching.strength,
        )
        loss = mean_over(losses.sum(), len(losses))
        gold = torch.arange(nodes, device=assignment.device)
        z, row_tags = torch.cat(embeddings), tags(batch, step, parts=1)
        all_tags, all_rows = row_tags.gathered(), gather(z)
        distinct = ~row_tags.same_view(all_tags)
        terms = {
            "loss": loss.detach(),
            "chance": loss.new_tensor(2.0 * (nodes - 1)).detach(),
            "matching_accuracy_noisy": mean_over((assignment == gold).sum(), assignment.numel()),
            "alignment": alignment(z, all_rows, row_tags.same_crop(all_tags) & distinct),
            "uniformity": uniformity(z, all_rows, distinct),
        }
        if step.logged:  # a third of the time of the solver
            clean_assignment = match(finite_graphs(affinities)[0])
            terms["matching_accuracy"] = mean_over((clean_assignment == gold).sum(), clean_assignment.numel())
        original_order = torch.tensor(order).argsort().to(features.pooled.device)
        return Loss(loss, terms, embedding=features.pooled[:rows].detach()[original_order])

    def compare(self, features: Features, views: Sequence[View]) -> tuple[Affinities, tuple[Tensor, Tensor]]:
        """Affinities of the graphs of two views, and the detached embeddings; rows are ordered by sample number.

        Args:
            features: Features of both views, concatenated along the batch.
            views: Both views.
        """
        nodes = self.graphs.nodes
        pooled = features.pooled
        z = self.projection(pooled.to(torch.promote_types(pooled.dtype, torch.float32)))
        z = z.view(-1, nodes, z.shape[1])
        edges = neighbor_edges(z, self.graphs.neighbors)
        messages = self.messages(z, edges)
        (q, q_other), edge_pairs = (z + messages if self.graphs.residual else messages).chunk(2), edges.chunk(2)
        cells = [
            map_cells(part, view, nodes=nodes, max_cells=self.fit.cells)
            for part, view in zip(features.maps[-1].chunk(2), views, strict=True)
        ]
        local = local_affinity(*cells, share=self.fit.share)
        vertex = self.fit.alpha * cosine(q, q_other) + (1 - self.fit.alpha) * local
        if not self.matching.second_order:
            edge_pairs = edge_pairs[0][:, :0], edge_pairs[1][:, :0]
        edge = edge_affinity(q, q_other, *edge_pairs)
        scale = self.matching.temperature
        rows = q.detach().flatten(0, 1), q_other.detach().flatten(0, 1)
        return Affinities(vertex / scale, edge / scale, *edge_pairs), rows

    def _noise(self, step: Step) -> Float[Tensor, "G N numbers"]:
        """Gumbel noise keyed by sample: first for a node's vertex affinities, then for those of its edges."""
        nodes, neighbors = self.graphs.nodes, self.graphs.neighbors
        uniform = draws(step, "graph_match.noise").uniform(nodes + neighbors * neighbors * nodes)
        return self.matching.noise * gumbel(uniform).view(-1, nodes, uniform.shape[1])


def _check(graphs: Graphs, fit: Fit, matching: Matching) -> None:
    """Refuses settings that are out of range."""
    nodes, neighbors = graphs.nodes, graphs.neighbors
    expect(nodes >= 2, "graphs.nodes", nodes, "at least 2")
    expect(0 < neighbors < nodes, "graphs.neighbors", neighbors, f"from 1 to {nodes - 1}")
    expect(graphs.layers >= 0, "graphs.layers", graphs.layers, "at least 0")
    expect(0 <= fit.alpha <= 1, "fit.alpha", fit.alpha, "from 0 to 1")
    expect(fit.cells >= 1, "fit.cells", fit.cells, "at least 1")
    expect(0 < fit.share <= 1, "fit.share", fit.share, "above 0, 1 at most")
    expect(matching.noise >= 0, "matching.noise", matching.noise, "at least 0")
    expect(matching.temperature > 0, "matching.temperature", matching.temperature, "above 0")
    expect(matching.strength > 0, "matching.strength", matching.strength, "above 0")
    expect(matching.margin >= 0, "matching.margin", matching.margin, "at least 0")
