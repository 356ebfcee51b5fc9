"""Findings and numbers of whole scans: losses by hand, what is not known, units, two processes."""

from __future__ import annotations

import re

import ddp
import numpy as np
import pytest
import torch
from heads.made import image, network
from torch.nn import functional as F

from medssl.encoders.weights import load_card, make_encoder
from medssl.heads.base import Network
from medssl.heads.classification import Linear
from medssl.heads.multi_label import MultiLabel
from medssl.heads.regression import Regression
from medssl.heads.weights import load_network, save_network
from medssl.ops.collectives import world_size
from medssl.types import Card, Features, Imported, LabelSchema, Preprocess, Tuned, UserError
from medssl.types.provenance import Provenance

TARGET = torch.tensor([[1, 0, -1], [-1, -1, 0], [1, 1, -1], [-1, -1, -1]])
NUMBERS = torch.tensor([3.0, torch.nan, -1.0, torch.nan])


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 4.0)])
def test_findings_cost_their_cross_entropy_over_what_is_known(weights):
    """Reference: logarithms of sigmoids, entry by entry in float64; torch over the known entries."""
    head = network(MultiLabel, 2, positive_weights=weights).head
    logits = torch.randn(4, 3, dtype=torch.float64)
    entries = []
    for row, wanted in zip(logits.tolist(), TARGET.tolist(), strict=True):
        for number, (z, y) in enumerate(zip(row, wanted, strict=True)):
            if y >= 0:
                chance, weight = 1 / (1 + np.exp(-z)), weights[number] if weights and y else 1.0
                entries.append(-weight * np.log(chance if y else 1 - chance))
    found = head.loss(logits, TARGET)
    assert found.item() == pytest.approx(np.mean(entries), rel=1e-12)
    known = TARGET >= 0
    scale = torch.tensor(weights or (1.0,) * 3, dtype=torch.float64).expand(4, 3)[known]
    expected = F.binary_cross_entropy_with_logits(logits[known], TARGET[known].double(), pos_weight=scale)
    torch.testing.assert_close(found, expected)


def test_what_is_not_known_gives_exactly_no_gradient():
    head = network(MultiLabel, 2).head
    known = TARGET >= 0
    logits = torch.randn(4, 3).masked_fill(~known, torch.nan).requires_grad_()
    head.loss(logits, TARGET).backward()
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()
    head = network(Regression, 2, classes=1).head
    known = ~NUMBERS.isnan()
    found = torch.randn(4, 1).masked_fill(~known[:, None], torch.nan).requires_grad_()
    head.loss(found, NUMBERS).backward()
    assert (found.grad[~known] == 0).all()
    assert (found.grad[known] != 0).all()


@pytest.mark.parametrize(("head", "classes"), [(MultiLabel, 3), (Regression, 1)])
def test_a_batch_of_which_nothing_is_known_has_no_loss(head, classes):
    whole = network(head, 2, classes=classes, dropout=0.5)
    target = torch.full((2, 3), -1) if classes == 3 else torch.full((2,), torch.nan)
    loss = whole.head.loss(whole(image(2)), target)
    loss.backward()
    assert loss.detach() == 0
    assert all((p.grad == 0).all() for p in whole.parameters())


@pytest.mark.parametrize("error", ["huber", "squared"])
def test_a_number_costs_its_standardized_error(error):
    """By hand: mean 2, deviation 4; errors of 0.5 and -3 deviations."""
    head = network(Regression, 2, classes=1, error=error).head
    head.prepare(torch.tensor([-2.0, 6.0, torch.nan]))
    assert (float(head.mean), float(head.deviation)) == (2.0, 4.0)
    target = torch.tensor([2.0, torch.nan, 10.0])
    loss = head.loss(torch.tensor([[0.5], [7.0], [-1.0]]), target)
    expected = {"huber": (0.125 + 2.5) / 2, "squared": (0.125 + 4.5) / 2}[error]
    assert float(loss) == pytest.approx(expected)
    assert head.predictions(torch.tensor([[0.5], [-1.0]])).flatten().tolist() == [4.0, -2.0]


def test_answers_are_chances_and_numbers():
    logits = torch.tensor([[0.0, np.log(3), -np.log(3)]], dtype=torch.float32)
    torch.testing.assert_close(network(MultiLabel, 2).head.predictions(logits), torch.tensor([[0.5, 0.75, 0.25]]))
    torch.testing.assert_close(network(Linear, 2).head.predictions(logits), logits.softmax(1))


def test_half_precision_is_summed_in_float32():
    for head, classes, target in ((MultiLabel, 3, TARGET[:2]), (Regression, 1, NUMBERS[:2])):
        whole = network(head, 2, classes=classes)
        with torch.autocast("cpu", torch.bfloat16):
            logits = whole(image(2))
            loss = whole.head.loss(logits, target)
        assert logits.dtype == torch.bfloat16
        assert torch.equal(loss, whole.head.loss(logits.float(), target))


# --- what the training labels set


def test_balanced_weights_come_from_the_training_labels():
    """By hand: classes of 6, 3 and 1 scans of ten; findings of 1 in 4, 2 in 2, and always."""
    head = network(Linear, 2, class_weights="balanced").head
    assert head.class_weights.tolist() == [1, 1, 1]
    head.prepare(torch.tensor([0] * 6 + [1] * 3 + [2] + [-1] * 5))
    assert head.class_weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    head.prepare(torch.tensor([0, 0, 1, 1]))
    assert head.class_weights.tolist() == pytest.approx([4 / 6, 4 / 6, 1])  # a class that no scan has
    fixed = network(Linear, 2, class_weights=(1.0, 2.0, 3.0)).head
    fixed.prepare(torch.tensor([0, 0, 1, 1]))
    assert fixed.class_weights.tolist() == [1, 2, 3]
    several = network(MultiLabel, 2, positive_weights="balanced").head
    several.prepare(torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, -1], [-1, -1, 1]]))
    assert several.positive_weights.tolist() == [3, 1, 1]
    assert not any("weights" in key for key in several.state_dict())


def test_every_class_weighs_alike_in_a_balanced_loss():
    """Equal logits: the mean over classes of the mean over their scans."""
    head = network(Linear, 2, class_weights="balanced").head
    target = torch.tensor([0] * 6 + [1] * 3 + [2])
    head.prepare(target)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(logits, target, reduction="none")
    expected = torch.stack([each[target == k].mean() for k in range(3)]).mean()
    torch.testing.assert_close(head.loss(logits, target), expected)


def test_a_regression_finds_a_line_in_the_unit_of_the_label():
    """Ages around 60 of features that are a line of them; the unit is never seen by the optimizer."""
    head = network(Regression, 2, classes=1, error="squared").head
    generator = torch.Generator().manual_seed(0)
    width = head.linear.in_features
    pooled = torch.randn(200, width, generator=generator)
    age = 61.5 + 12 * pooled[:, 0] - 5 * pooled[:, 1]
    head.prepare(age)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = head.loss(head(Features(maps=(), pooled=pooled), ()), age)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        line = torch.eye(width)[:2]
        new = torch.cat([torch.zeros(1, width), line])
        found = head.predictions(head(Features(maps=(), pooled=new), ())).flatten()
    assert found.tolist() == pytest.approx([61.5, 73.5, 56.5], abs=1e-2)


def test_mean_and_deviation_come_back_from_the_files(tmp_path):
    schema = LabelSchema("age", ((0, "age"),), kind="number")
    described = Imported("medssl.encoders.resenc.ResEnc", {
        "in_channels": 1, "ndim": 2, "channels": (4, 8), "strides": ((1, 1), (2, 2)), "blocks": (1, 1),
    })  # fmt: skip
    made = make_encoder(described, "here")
    own = Regression(made, schema, error="squared")
    own.prepare(torch.tensor([40.0, 50.0, 90.0]))
    tuned = Tuned(Imported("medssl.heads.regression.Regression", {"error": "squared"}), schema, (32, 32), 2, ())
    network_ = Network(made, own).eval()
    save_network(tmp_path, network_, Card(described, Preprocess(), None, "d", Provenance(), 3, {}, tuned))
    back, card = load_network(tmp_path)
    assert card.tuned.schema == schema
    text = (tmp_path / "card.json").read_text()
    assert text.count('"kind": "number"') == 1
    (tmp_path / "card.json").write_text(re.sub(r',\s*"kind": "number"', "", text))  # a card of a former version
    assert load_card(tmp_path).tuned.schema == LabelSchema("age", ((0, "age"),), kind="classes")
    assert float(back.head.mean) == 60
    assert float(back.head.deviation) == pytest.approx(np.std([40, 50, 90]))
    x = image(2)
    torch.testing.assert_close(back.head.predictions(back(x)), network_.head.predictions(network_(x)))


@pytest.mark.parametrize(
    ("head", "arguments", "match"),
    [
        (MultiLabel, {"classes": 0}, r'"mask" has no findings: name some with data\.target'),
        (MultiLabel, {"dropout": 1.0}, r"dropout 1\.0: expected a number from 0 to below 1"),
        (MultiLabel, {"positive_weights": (1.0,)}, r"expected 3 numbers above 0, one for each finding, or balanced"),
        (MultiLabel, {"positive_weights": (1.0, 0.0, 1.0)}, r"positive_weights \(1\.0, 0\.0, 1\.0\): expected 3"),
        (MultiLabel, {"positive_weights": "even"}, r"positive_weights even: expected 3 numbers above 0"),
        (Linear, {"class_weights": "even"}, r"class_weights even: expected 3 numbers above 0, one for each class, or"),
        (Regression, {"classes": 2}, r'"mask" has 2 classes: a regression takes one number of a scan'),
        (Regression, {"classes": 1, "dropout": -1.0}, r"dropout -1\.0: expected a number"),
        (Regression, {"classes": 1, "error": "cubed"}, r"error 'cubed': expected huber or squared"),
    ],
)
def test_what_does_not_fit_is_refused(head, arguments, match):
    with pytest.raises(UserError, match=match):
        network(head, 2, **arguments)


def test_a_constant_cannot_be_learned():
    with pytest.raises(UserError, match="mask is the same in all 2 scans to learn from: take scans that differ"):
        network(Regression, 2, classes=1).head.prepare(torch.tensor([4.0, 4.0, torch.nan]))


# --- two processes

CASES = (
    (MultiLabel, 3, {"positive_weights": (0.5, 1.0, 4.0)}),
    (Regression, 1, {}),
    (Regression, 1, {"error": "squared"}),
)


def loss_and_gradients(number, rows):
    """Rows 0 and 1 hold three known entries and one number, rows 2 and 3 two and one; unequal on each process."""
    head, classes, arguments = CASES[number]
    whole = network(head, 2, classes=classes, **arguments).double()
    target = TARGET if classes == 3 else torch.tensor([3.0, 2.0, torch.nan, -1.0])
    if classes == 1:
        whole.head.prepare(torch.tensor([3.0, 2.0, -1.0]))
    loss = whole.head.loss(whole(image(2, rows=4)[list(rows)].double()), target[list(rows)])
    loss.backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    if world_size() > 1:
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
            gradient /= world_size()
    return loss.item(), gradients


def on_each_process():
    rows = ((0,), (1, 2, 3))[torch.distributed.get_rank()]
    return [loss_and_gradients(number, rows) for number in range(len(CASES))]


@pytest.mark.ddp
def test_two_processes_equal_one():
    """Value and gradient, with unequal numbers of known entries."""
    shared = ddp.run_two(on_each_process)
    for number in range(len(CASES)):
        loss, gradients = loss_and_gradients(number, (0, 1, 2, 3))
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for results in shared:
            assert results[number][0] == pytest.approx(loss, rel=1e-10)
            for name, gradient in gradients.items():
                torch.testing.assert_close(results[number][1][name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=name)
