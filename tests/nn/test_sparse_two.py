"""Batch norm over two processes equals one: value, gradient and running statistics, unequal visible counts."""

import ddp
import pytest
import torch
from torch import nn

from medssl.nn.sparse import sparsify, visible
from medssl.ops.collectives import rank, reduce_sum

MASKS = ("unequal", "nothing on one process", "dense")


def data(masks):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64) * 5 + 100
    hidden = torch.rand(4, 4, 4, generator=generator) < torch.tensor([0.2, 0.9, 0.5, 0.7])[:, None, None]
    if masks == "nothing on one process":
        hidden[2:] = True
    return x, None if masks == "dense" else hidden


def outcome(masks, rows):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.BatchNorm2d(4)
    net = sparsify(nn.Sequential(*layers).double())
    x, hidden = data(masks)
    x = x[rows].requires_grad_()
    with visible(net, None if hidden is None else hidden[rows]):
        y = net(x)
    target = torch.sin(torch.arange(4 * 4 * 64, dtype=torch.float64)).reshape(4, 4, 8, 8)[rows]
    loss = reduce_sum((y - target).pow(3).sum())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return loss.detach(), y.detach(), x.grad, gradients, net.state_dict()


def on_both():
    own = slice(0, 2) if rank() == 0 else slice(2, 4)
    return {masks: outcome(masks, own) for masks in MASKS}


@pytest.mark.ddp
def test_two_processes_equal_one():
    """In float64 to 1e-10 of the largest value."""
    both = ddp.run_two(on_both)
    for masks in MASKS:
        loss, y, slope, gradients, state = outcome(masks, slice(0, 4))
        (loss0, y0, slope0, gradients0, state0), (loss1, y1, slope1, gradients1, state1) = (r[masks] for r in both)
        close(torch.stack([loss0, loss1]), torch.stack([loss, loss]), masks)
        close(torch.cat([y0, y1]), y, masks)
        close(torch.cat([slope0, slope1]) / 2, slope, masks)  # each process seeds the backward pass once
        for name in gradients:
            close((gradients0[name] + gradients1[name]) / 2, gradients[name], f"{masks}: {name}")
        for name in state:
            close(state0[name], state[name], f"{masks}: {name}")
            close(state1[name], state[name], f"{masks}: {name}")


def close(a, b, what):
    scale = max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * scale, msg=lambda text: f"{what}: {text}")
