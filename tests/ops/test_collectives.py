"""Collectives: two processes give the value and, averaged as DistributedDataParallel does, the gradient of one."""

import ddp
import pytest
import torch

from medssl.ops.collectives import broadcast, gather, mean_over, rank, reduce_sum, world_size

ROWS = torch.arange(15, dtype=torch.float64).reshape(5, 3).sin()
SPLIT = {0: slice(0, 3), 1: slice(3, 5)}  # unequal on purpose


def loss_of(weight, rows, size):
    """A loss in which every collective has its part, computed from one process's rows."""
    hidden = torch.tanh(rows * weight)
    everything = gather(hidden)
    similarity = (everything @ everything.T).exp().sum().log()
    mean = mean_over(hidden.square().sum(), torch.tensor(float(hidden.numel())))
    moment = reduce_sum(hidden.sum(0)).square().sum()
    return similarity + mean + moment / size


def two_losses():
    weight = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64, requires_grad=True)
    loss = loss_of(weight, ROWS[SPLIT[rank()]], 5)
    loss.backward()
    return world_size(), rank(), loss.detach(), weight.grad


@pytest.mark.ddp
def test_two_processes_equal_one():
    results = ddp.run_two(two_losses)
    weight = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64, requires_grad=True)
    loss = loss_of(weight, ROWS, 5)
    loss.backward()
    assert [(size, number) for size, number, _, _ in results] == [(2, 0), (2, 1)]
    for _, _, value, _ in results:
        torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    averaged = torch.stack([gradient for *_, gradient in results]).mean(0)
    torch.testing.assert_close(averaged, weight.grad, rtol=1e-12, atol=1e-14)


def two_values():
    own = rank()
    integers = reduce_sum(torch.tensor([1, 2]) + own)
    empty = mean_over(torch.tensor(0.0), 0)
    onesided = mean_over(torch.tensor(6.0 * own), 3 * own)
    rows = gather(torch.full((own * 2, 2), own, dtype=torch.int32))
    same = broadcast(torch.tensor([5.0 + own]), source=1)
    twice = torch.tensor([1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(reduce_sum(twice.square()).sum(), twice, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), twice)
    return integers, empty, onesided, rows, same, second


@pytest.mark.ddp
def test_values_on_two_processes():
    for integers, empty, onesided, rows, same, second in ddp.run_two(two_values):
        assert integers.tolist() == [3, 5]
        assert empty.item() == 0.0
        assert onesided.item() == 2.0
        assert rows.tolist() == [[1, 1], [1, 1]]
        assert same.tolist() == [6.0]
        assert second.tolist() == [4.0]


def one_fails():
    if rank() == 1:
        raise ValueError("as expected")


@pytest.mark.ddp
def test_a_failure_names_its_process_and_the_next_call_works():
    with pytest.raises(RuntimeError, match=r"(?s)process 1: .*ValueError: as expected"):
        ddp.run_two(one_fails)
    assert len(ddp.run_two(two_values)) == 2


def test_identity_on_one_process():
    x = torch.randn(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert reduce_sum(x) is x
    assert gather(x) is x
    copied = broadcast(x)
    assert torch.equal(copied, x)
    assert copied.data_ptr() != x.data_ptr()


def test_mean_over_on_one_process():
    total = torch.tensor(6.0, requires_grad=True)
    mean_over(total, 4).backward()
    assert total.grad == 0.25
    total.grad = None
    nothing = mean_over(total, 0)
    nothing.backward()
    assert nothing == 0
    assert total.grad == 0
    assert mean_over(torch.tensor(1.0), 0.5) == 2.0
    assert mean_over(torch.tensor(1.0, dtype=torch.float16), 100000).item() == pytest.approx(1e-5)
