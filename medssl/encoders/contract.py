"""The clauses that every encoder keeps, as checks that anyone can run on a class of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medssl.encoders.base import ContractError, Encoder
from medssl.nn.sparse import visible_mean
from medssl.ops.masking import at_resolution
from medssl.ops.patches import cells_of
from medssl.types import Features, UserError


def check(encoder: Encoder, size: Sequence[int] | None = None) -> None:
    """See :func:`medssl.encoders.base.check_encoder`."""
    describes_itself(encoder)
    total = encoder.strides[-1]
    multiples = (2, 3) if len(total) == 2 else (2, 2, 1)
    size = tuple(stride * n for stride, n in zip(total, multiples, strict=True)) if size is None else tuple(size)
    cells_of(size, total, what="size of the check: size")
    image = _image(encoder, size)
    for clause in DENSE:
        clause(copy.deepcopy(encoder), image)
    if "sparse" in encoder.mask_modes:
        for sparse_clause in SPARSE:
            sparse_clause(copy.deepcopy(encoder), image, _hidden(encoder, size))


def describes_itself(encoder: Encoder) -> None:
    """The attributes agree: one number of axes, a stride per map and axis, each the next one's divisor."""
    ndim = len(encoder.strides[-1])
    _clause(encoder.ndims == {ndim}, f"ndims {set(encoder.ndims)} but strides have {ndim} axes")
    _clause(len(encoder.channels) == len(encoder.strides), "channels and strides have one entry for each map")
    _clause(len(encoder.mask_cell) == ndim, f"mask_cell {encoder.mask_cell} needs {ndim} entries")
    for fine, coarse in zip(encoder.strides, encoder.strides[1:], strict=False):
        nested = len(fine) == len(coarse) and all(b % a == 0 for a, b in zip(fine, coarse, strict=True))
        _clause(nested, f"strides go from fine to coarse: {fine} does not divide {coarse}")
    for cell, stride in zip(encoder.mask_cell, encoder.strides[-1], strict=True):
        _clause(max(cell, stride) % min(cell, stride) == 0, f"mask_cell {encoder.mask_cell} nests with the strides")


def maps_have_their_shapes(encoder: Encoder, image: Tensor) -> None:
    """Maps come as described, fine to coarse; pooled features are [B, C] of the last map."""
    features = _run(encoder, image)
    _clause(
        len(features.maps) == len(encoder.channels), f"{len(features.maps)} maps, {len(encoder.channels)} described"
    )
    for number, (x, channels, stride) in enumerate(zip(features.maps, encoder.channels, encoder.strides, strict=True)):
        want = (len(image), channels, *cells_of(image.shape[2:], stride))
        _clause(tuple(x.shape) == want, f"map {number} has shape {tuple(x.shape)}, described as {want}")
    want = (len(image), encoder.channels[-1])
    _clause(tuple(features.pooled.shape) == want, f"pooled has shape {tuple(features.pooled.shape)}, expected {want}")


def every_parameter_learns(encoder: Encoder, image: Tensor) -> None:
    """Each trainable parameter gets a finite gradient from the maps: nothing unused, which data parallelism needs."""
    _total(_run(encoder.train(), image)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            _clause(parameter.grad is not None, f"parameter {name} gets no gradient")
            _clause(
                bool(torch.isfinite(_gradient(parameter)).all()), f"parameter {name} gets a gradient that is not finite"
            )


def bfloat16_is_finite(encoder: Encoder, image: Tensor) -> None:
    """Under bfloat16 autocast everything is finite, with gradients in the parameters' own type."""
    with torch.autocast(image.device.type, torch.bfloat16):
        total = _total(_run(encoder.train(), image))
    total.backward()  # type: ignore[no-untyped-call]
    _clause(bool(total.isfinite()), "features are not finite under bfloat16 autocast")
    for name, parameter in encoder.named_parameters():
        fine = parameter.grad is None or bool(parameter.grad.isfinite().all())
        _clause(fine, f"the gradient of {name} is not finite under bfloat16 autocast")


def state_is_complete(encoder: Encoder, image: Tensor) -> None:
    """A changed copy that loads the state dict gives the same features bit for bit."""
    _run(encoder.train(), image)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.25)
    other.load_state_dict(encoder.state_dict(), strict=True)
    _same(_run(encoder.eval(), image), _run(other.eval(), image), "a state-dict round trip changes the features", 0.0)


def rows_are_independent(encoder: Encoder, image: Tensor) -> None:
    """In evaluation mode a sample's features do not depend on the rest of its batch."""
    whole, last = _run(encoder.eval(), image), _run(encoder.eval(), image[-1:])
    rows = Features(maps=tuple(x[-1:] for x in whole.maps), pooled=whole.pooled[-1:])
    _same(rows, last, "in evaluation mode a sample's features depend on its batch")


def refuses_what_it_cannot_take(encoder: Encoder, image: Tensor) -> None:
    """Another number of channels, and a size that the strides do not divide, are refused by a UserError."""
    wrong = {"one channel more": image.repeat_interleave(2, dim=1)[:, : encoder.in_channels + 1]}
    for axis, stride in enumerate(encoder.strides[-1]):
        if stride > 1:
            wrong[f"axis {axis} one voxel short"] = image.narrow(axis + 2, 0, image.shape[axis + 2] - 1)
    for what, bad in wrong.items():
        try:
            encoder(bad)
        except UserError:
            continue
        _clause(False, f"an image with {what} is not refused by a UserError")


def nothing_leaks(encoder: Encoder, image: Tensor, hidden: Tensor) -> None:
    """Values in hidden voxels, also 1e6 and NaN, change no feature by a bit and get a gradient of exactly 0."""
    covered = at_resolution(hidden, image.shape[2:]).unsqueeze(1)
    for training in (True, False):
        encoder.train(training)
        clean = _run(copy.deepcopy(encoder), image.masked_fill(covered, 0), hidden)
        for value in (1e6, torch.nan):
            dirty = _run(copy.deepcopy(encoder), image.masked_fill(covered, value), hidden)
            _same(clean, dirty, f"{value} in hidden voxels changes the features", 0.0)
        leaf = image.masked_fill(covered, 1e6).requires_grad_()
        _total(_run(encoder, leaf, hidden)).backward()  # type: ignore[no-untyped-call]
        gradient = _gradient(leaf)
        _clause(bool((gradient.masked_select(covered) == 0).all()), "the gradient at hidden voxels is not exactly 0")
        seen = bool((gradient.masked_fill(covered, 0) != 0).any()) and bool(gradient.isfinite().all())
        _clause(seen, "the gradient at visible voxels is zero everywhere or not finite")


def hidden_stays_zero(encoder: Encoder, image: Tensor, hidden: Tensor) -> None:
    """Every map is exactly 0 where hidden and finite elsewhere, in both modes, with biases and affine norms at work."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1)
    for training in (True, False):
        features = _run(encoder.train(training), image, hidden)
        for number, x in enumerate(features.maps):
            covered = at_resolution(hidden, x.shape[2:]).unsqueeze(1).expand_as(x)
            where = f"map {number} in {'training' if training else 'evaluation'} mode"
            _clause(bool((x[covered] == 0).all()), f"{where} is not exactly 0 where hidden")
            _clause(bool(x.isfinite().all()), f"{where} is not finite (unequal numbers of visible cells)")
            _clause(bool((x != 0).any()), f"{where} is zero everywhere")


def all_visible_is_dense(encoder: Encoder, image: Tensor, hidden: Tensor) -> None:
    """With nothing hidden, features and running statistics are those of the dense network."""
    for training in (True, False):
        dense, sparse = copy.deepcopy(encoder).train(training), copy.deepcopy(encoder).train(training)
        a, b = _run(dense, image), _run(sparse, image, torch.zeros_like(hidden))
        _same(a, b, "with nothing hidden the features differ from the dense network's")
        for (name, x), y in zip(dense.named_buffers(), sparse.buffers(), strict=True):
            _clause(torch.allclose(x.double(), y.double(), 1e-4, 1e-5), f"with nothing hidden buffer {name} differs")


def pooled_is_the_visible_mean(encoder: Encoder, image: Tensor, hidden: Tensor) -> None:
    """Pooled features are the mean of the last map over visible positions, 0 where a sample is all hidden."""
    features = _run(encoder.eval(), image, hidden)
    want = Features(maps=(), pooled=visible_mean(features.maps[-1], hidden))
    _same(Features(maps=(), pooled=features.pooled), want, "pooled is not the visible mean of the last map")


def the_mask_is_gone_afterwards(encoder: Encoder, image: Tensor, hidden: Tensor) -> None:
    """A dense forward after a masked one is dense, also when the masked one failed."""
    encoder.eval()
    before = _run(encoder, image)
    _run(encoder, image, hidden)
    _same(before, _run(encoder, image), "a mask stays behind after the forward", 0.0)
    last = [module for module in encoder.modules() if not any(True for _ in module.children())][-1]
    handle = last.register_forward_pre_hook(_fail)
    try:
        _run(encoder, image, hidden)
    except _Failed:
        pass
    finally:
        handle.remove()
    _same(before, _run(encoder, image), "a mask stays behind after a forward that failed", 0.0)


class _Failed(Exception):
    """Raised on purpose inside a forward."""


def _fail(*_: object) -> None:
    raise _Failed


def _image(encoder: Encoder, size: tuple[int, ...]) -> Tensor:
    """Three samples of noise, the same each time."""
    parameter = next(encoder.parameters())
    noise = torch.randn(3, encoder.in_channels, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter)


def _hidden(encoder: Encoder, size: tuple[int, ...]) -> Tensor:
    """About half of the first sample's cells, one cell of the second, all of the third."""
    cells = cells_of(size, encoder.mask_cell)
    hidden = torch.zeros(3, *cells, dtype=torch.bool)
    hidden[0].view(-1)[::2] = True
    hidden[1].view(-1)[-1] = True
    hidden[2] = True
    return hidden.to(next(encoder.parameters()).device)


def _run(encoder: nn.Module, image: Tensor, hidden: Tensor | None = None) -> Features:
    """One forward with the same random numbers each time (dropout, drop-path)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features: Features = encoder(image, hidden, "sparse" if hidden is not None else None)
        return features


def _total(features: Features) -> Tensor:
    return torch.stack([x.float().square().mean() + x.float().mean() for x in (*features.maps, features.pooled)]).sum()


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _same(a: Features, b: Features, what: str, tolerance: float = 1e-5) -> None:
    for x, y in zip((*a.maps, a.pooled), (*b.maps, b.pooled), strict=True):
        scale = max(1.0, float(y.detach().abs().max()))
        equal = torch.equal(x, y) if tolerance == 0 else torch.allclose(x, y, 1e-4, tolerance * scale)
        _clause(equal, what)


def _clause(holds: bool, what: str) -> None:
    """Raises unless a clause holds."""
    if not holds:
        raise ContractError(what)


DENSE = (
    maps_have_their_shapes,
    every_parameter_learns,
    bfloat16_is_finite,
    state_is_complete,
    rows_are_independent,
    refuses_what_it_cannot_take,
)
SPARSE = (
    nothing_leaks,
    hidden_stays_zero,
    all_visible_is_dense,
    pooled_is_the_visible_mean,
    the_mask_is_gone_afterwards,
)
