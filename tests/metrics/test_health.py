"""Measures of embeddings whose directions are known, and verdicts on histories that were made up."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medssl.metrics import health
from medssl.metrics.embedding_measures import dead_share, describe, effective_rank, spread, variation
from medssl.metrics.health import alarms, shortened


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_directions_count_as_many_as_they_are(rank):
    embeddings = np.kron(np.ones((5, 1)), np.eye(8)[:rank])
    assert effective_rank(embeddings) == pytest.approx(rank, rel=1e-4)


def test_two_directions_of_unequal_strength_by_hand():
    """Shares 0.9 and 0.1 of the singular values: exp of their entropy."""
    expected = np.exp(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)))
    assert effective_rank(np.diag([9.0, 1.0])) == pytest.approx(expected, rel=1e-5)


def test_rank_ignores_rotation_and_scale():
    rng = np.random.default_rng(0)
    x, turned = rng.normal(size=(40, 6)) * [9, 4, 3, 1, 1, 0.1], np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert effective_rank(7 * x @ turned) == pytest.approx(effective_rank(x))
    assert 1 < effective_rank(x) < 6


def test_spread_is_0_of_equal_embeddings_and_1_of_every_direction():
    assert spread(np.full((20, 4), 3.0)) == pytest.approx(0, abs=1e-12)
    assert spread(np.random.default_rng(0).normal(size=(20_000, 16))) == pytest.approx(1, abs=0.01)
    assert spread(np.zeros((3, 4))) == 0
    assert effective_rank(np.zeros((3, 4))) == pytest.approx(1, abs=1e-4)


def test_variation_does_not_see_a_large_part_that_is_the_same_everywhere():
    """Three of 64 features are a thousand times as large as the others and constant: the spread is next to 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 1, size=(32, 64))
    massive = x.copy()
    massive[:, :3] = 3000
    assert spread(massive) < 0.003 < 0.7 < spread(x)
    by_hand = np.mean([column.std() / np.sqrt((column**2).mean()) for column in massive.T])
    assert variation(massive) == pytest.approx(by_hand)
    assert variation(massive) == pytest.approx(variation(x) * 61 / 64, abs=0.02)
    assert variation(x * np.logspace(-3, 3, 64)) == pytest.approx(variation(x))
    assert variation(np.full((5, 4), 3.0)) == variation(np.zeros((5, 4))) == 0
    collapsed = massive[:1] + 1e-4 * rng.normal(size=massive.shape)
    assert variation(collapsed) < 0.003
    assert describe(massive)["embedding_variation"] == pytest.approx(
        np.mean([variation(massive[:16]), variation(massive[16:])])
    )


def test_dead_features_do_not_vary():
    x = np.random.default_rng(0).normal(3, 1, size=(50, 4))
    x[:, 1] = 3
    assert dead_share(x) == 0.25
    assert dead_share(np.full((5, 4), 3.0)) == dead_share(np.zeros((5, 4))) == 1


def test_nothing_to_tell_apart_is_told_at_once():
    row = {"step": 1.0, "loss": 0.0, "chance": 0.0, "embedding_spread": 0.5, "embedding_rank": 4.0}
    (alarm,) = alarms([row, row], settled=200)
    assert alarm.kind == "nothing"
    assert "there is nothing to tell apart in a batch; take a larger training.batch_size" in alarm.message


def test_one_embedding_for_all_that_wanders_is_collapse():
    """Sixteen samples a step that are alike, and another direction at each step."""
    directions = np.repeat(np.eye(8)[:4], 16, axis=0)
    found = describe(directions)
    assert found["embedding_spread"] == pytest.approx(0, abs=1e-12)
    assert found["embedding_rank"] == pytest.approx(1, rel=1e-4)
    assert found["embedding_dead"] == 1
    mixed = describe(directions[np.random.default_rng(0).permutation(64)])
    assert mixed["embedding_spread"] > 0.5
    assert mixed["embedding_rank"] == pytest.approx(4, rel=0.1)
    assert mixed["embedding_dead"] == 0.5
    assert describe(directions[:3])["embedding_rank"] == pytest.approx(1, rel=1e-4)


def test_rows_that_are_not_finite_are_counted_and_left_out():
    rows = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    broken = rows.copy()
    broken[3, 1], broken[7] = np.nan, np.inf
    found = describe(broken)
    assert found["embedding_not_finite"] == pytest.approx(0.2)
    assert found | {"embedding_not_finite": 0} == describe(np.delete(rows, [3, 7], axis=0))
    broken[1:] = np.nan
    assert describe(broken) == {"embedding_not_finite": 0.9}


def test_embeddings_near_the_largest_number_of_their_type_are_measured():
    rows = np.full((40, 4), 3e38, np.float32) * np.random.default_rng(0).uniform(0.5, 1, (40, 4)).astype(np.float32)
    assert describe(rows)["embedding_rank"] == pytest.approx(describe(rows / 1e38)["embedding_rank"], rel=1e-5)


# --- verdicts

START = {"step": 1, "loss": 4.2, "chance": 3.4, "gradient_norm": 10.0}


def history(*rows: dict, every: int = 20, **constant: float) -> list[dict]:
    """The first step, then measurements every 20 steps that say what is given and are well otherwise."""
    well = {"loss": 2.5, "chance": 3.4, "gradient_norm": 5.0, "learning_rate": 1e-3, "embedding_spread": 0.3}
    well |= {"embedding_rank": 9.0, "embedding_width": 32.0, "input_flat": 0.0, "uniformity": -1.5}
    first = START | {name: constant[name] for name in ("loss", "chance") if name in constant}
    return [first, *(well | constant | row | {"step": every * number} for number, row in enumerate(rows, 1))]


def kinds(rows: list[dict], settled: int = 215) -> list[str]:
    return [alarm.kind for alarm in alarms(rows, settled=settled)]


def told(rows: list[dict], settled: int = 215) -> str:
    (alarm,) = alarms(rows, settled=settled)
    return alarm.message


def test_a_run_that_learns_is_well():
    falling = [{"loss": 4.0 - 0.1 * number} for number in range(20)]
    assert [kinds(history(*falling[:number])) for number in range(1, 21)] == [[]] * 20
    assert kinds([START]) == []


def test_an_objective_that_reports_nothing_but_its_loss_is_judged_by_that():
    rows = [{"step": step, "loss": 1.0, "gradient_norm": 1.0} for step in (1, 20, 400, 800)]
    assert kinds(rows) == []
    assert kinds([*rows, {"step": 820, "loss": 11.0, "gradient_norm": 1.0}]) == ["divergence"]


def test_constant_input_is_told_alone():
    rows = history({}, {"input_flat": 0.5, "embedding_spread": 0.0}, {"input_flat": 0.6, "embedding_spread": 0.0})
    assert told(rows).startswith("the input is constant: 60% of the views hold one value: look at pictures/")
    assert kinds(history({"input_flat": 0.49})) == []


def test_embeddings_that_are_not_finite_are_told():
    assert told(history({"embedding_not_finite": 1 / 8})) == (
        "12.5% of the embeddings are not finite while the loss is, and no measure counts them; lower "
        "optimizer.learning_rate (now 0.001), or take bf16 where training.precision is fp16"
    )
    assert kinds(history({"embedding_not_finite": 0.0})) == []


def test_collapse_takes_two_measurements():
    collapsed = {"embedding_spread": 0.002, "embedding_rank": 1.31}  # which says more than that the rank has fallen
    assert kinds(history({}, collapsed)) == []
    rows = history({}, collapsed, collapsed)
    assert told(rows).startswith(
        "embeddings have collapsed to 1.3 of 32 directions (spread 0.002): all scans look alike"
    )
    assert "lower optimizer.learning_rate (now 0.001)" in told(rows)
    assert kinds(history(collapsed, collapsed, {})) == []


def test_large_features_that_are_the_same_everywhere_are_no_collapse():
    """As large transformers have them; without the measure (checkpoints of before) the spread decides."""
    small = {"embedding_spread": 0.001, "embedding_rank": 9.0}
    assert kinds(history({}, *[small | {"embedding_variation": 0.3}] * 2)) == []
    assert kinds(history({}, *[small | {"embedding_variation": 0.002}] * 2)) == ["collapse"]
    assert kinds(history({}, *[small] * 2)) == ["collapse"]


def test_a_rank_that_falls_by_half_is_a_high_learning_rate():
    narrow = {"embedding_rank": 4.4}
    assert kinds(history({}, {}, narrow, loss=3.1)) == kinds(history({}, narrow, {}, narrow, loss=3.1)) == []
    rows = history({"embedding_rank": 8.0}, {}, narrow, narrow, loss=3.1)
    assert told(rows) == (
        "embeddings use ever fewer directions: 4.4, down from 9.0 at step 40; lower optimizer.learning_rate (now 0.001)"
    )
    silent = [{name: value for name, value in row.items() if name != "chance"} for row in rows]
    assert kinds(silent) == ["narrowing"]  # whether it learns is not known
    assert kinds(history({}, {"embedding_rank": 4.6}, {"embedding_rank": 4.6}, loss=3.1)) == []


def predicting(*rows: dict, loss: float) -> list[dict]:
    """A history of an objective that predicts voxels."""
    return [{name: value for name, value in row.items() if name != "uniformity"} for row in history(*rows, loss=loss)]


def test_where_voxels_are_predicted_a_rank_is_judged_once_the_run_has_settled():
    rows = predicting({"embedding_rank": 32.0}, {}, *[{"embedding_rank": 4.4}] * 2, loss=3.1)
    assert kinds(rows, settled=81) == []
    assert kinds(rows, settled=80) == ["narrowing"]


def test_where_voxels_are_predicted_what_has_learned_nothing_is_stuck():
    """Embeddings that leave the noise of random weights before the loss moves."""
    ranks = [{"embedding_rank": 32.0}, {}, *[{"embedding_rank": 4.4}] * 9]
    assert kinds(predicting(*ranks, loss=3.4 * 0.985)) == ["stuck"]
    assert kinds(predicting(*ranks, loss=3.4 * 0.975)) == ["narrowing"]


def test_a_rank_is_compared_with_those_since_the_loss_came_down():
    """3.0 of 3.4 is 88 %: what came before is the noise of random weights."""
    before, after = {"embedding_rank": 32.0}, {"embedding_rank": 10.0, "loss": 3.0}
    narrow = after | {"embedding_rank": 4.9}
    assert kinds(predicting(before, before, *[after] * 3, loss=3.3), settled=0) == []
    assert kinds(predicting(before, before, *[after] * 2, *[narrow] * 2, loss=3.3), settled=0) == ["narrowing"]
    assert kinds(history(before, before, *[after] * 3, loss=3.1)) == ["narrowing"]  # where views are compared
    unmeasured = [*predicting(before, before, loss=3.3), {"step": 60, "loss": 3.0, "chance": 3.4}]
    assert kinds(unmeasured, settled=0) == []


def test_a_slow_masked_autoencoder_is_compared_with_its_rank_since_it_predicts():
    """At 97 % of chance for good, as noisy scans leave it: random weights had more directions, all of them noise."""
    before = [{"embedding_rank": 53.0, "correlation": 0.05, "loss": 3.4 * 1.01}] * 2
    after, narrow = ({"embedding_rank": rank, "correlation": 0.18} for rank in (24.0, 11.0))
    assert kinds(predicting(*before, *[after] * 10, loss=3.4 * 0.97)) == []
    assert kinds(predicting(*before, *[after] * 10, *[narrow] * 2, loss=3.4 * 0.97)) == ["narrowing"]
    nothing = [row | {"correlation": 0.05} for row in [after] * 10]
    assert kinds(predicting(*before, *nothing, loss=3.4 * 0.97)) == ["narrowing"]


def test_a_first_loss_far_above_chance_is_a_low_temperature():
    rows = history({"loss": 700.0}, loss=829.0)
    assert told(rows).startswith("the first loss was 244 times that of a network that knows nothing (829 against 3.4)")
    assert told(rows).endswith("raise the temperature")
    voxels = [{name: value for name, value in row.items() if name != "uniformity"} for row in rows]
    assert told(voxels).endswith("check the intensity rule and the objective's own settings")
    assert kinds(history({"loss": 6.7}, loss=829.0)) == []
    assert kinds(history({"loss": 7.0}, loss=33.0)) == []


def test_a_loss_that_does_not_feel_embeddings_is_a_high_temperature():
    unfelt = {"loss": 3.4 * 1.002}
    assert kinds(history(unfelt, unfelt)) == []
    assert told(history(unfelt, unfelt, unfelt)) == (
        "embeddings differ, but the loss does not feel it: it stays within 0.3% of 3.4, that of equal embeddings; "
        "lower the temperature"
    )
    assert kinds(history(unfelt, unfelt, {"loss": 3.4 * 0.996})) == []
    assert kinds(history(unfelt, unfelt, unfelt | {"uniformity": -0.4})) == []


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ({"loss": 26.0}, r"the loss went up from 2.5 \(step 20\) to 26"),
        ({"gradient_norm": 510.0}, r"the gradient's norm grew from 5 to 510"),
    ],
)
def test_loss_or_gradient_that_jump_are_a_high_learning_rate(now, what):
    rows = history(*[{}] * 9, now)
    assert re.fullmatch(rf"training diverges: {what}; lower optimizer.learning_rate \(now 0.001\)", told(rows))


def test_leaving_a_plateau_is_no_divergence():
    """A gradient of nothing that grows a thousandfold, up to that of the start; a loss near 0 that rises tenfold."""
    assert kinds(history({"gradient_norm": 0.01}, {"gradient_norm": 0.01}, {"gradient_norm": 12.0})) == []
    assert kinds(history({"loss": 0.01}, {"loss": 0.2})) == []


@pytest.mark.parametrize("lowest", [0.001, -0.0001, -3.0])
def test_where_chance_is_not_known_a_rise_is_one_above_the_first_loss(lowest):
    losses = (1.0, 0.1, lowest)
    rows = [{"step": 20 * n + 1, "loss": loss, "gradient_norm": 1.0} for n, loss in enumerate(losses)]
    assert kinds([*rows, {"step": 80, "loss": 0.9, "gradient_norm": 1.0}]) == []
    assert kinds([*rows, {"step": 80, "loss": 31.0, "gradient_norm": 1.0}]) == ["divergence"]


@pytest.mark.parametrize(
    ("uniformity", "cause"),
    [
        (-0.1, "the two views of a scan may have too little in common"),
        (-1.5, "change optimizer.learning_rate (now 0.001) tenfold"),
    ],
)
def test_a_loss_at_chance_is_told_once_the_run_has_settled(uniformity, cause):
    stuck = [{"loss": 3.4 * 0.99, "uniformity": uniformity}] * 11
    assert kinds(history(*stuck[:10])) == []
    level = "after 220 steps the loss is 3.366, that of a network that knows nothing is 3.4: "
    assert told(history(*stuck)).startswith(level)
    assert cause in told(history(*stuck))
    assert kinds(history(*stuck[:10], {"loss": 3.4 * 0.97})) == []


def test_a_uniform_teacher_is_told_and_explains_the_loss():
    uniform = [{"loss": 8.3, "chance": 8.3, "teacher_entropy": 8.29, "uniformity": -0.1}] * 11
    assert told(history(*uniform, chance=8.3)) == (
        "teacher output is uniform: its entropy is 8.29, at log K = 8.3; lower the teacher temperature"
    )
    sharp = [{"loss": 7.0, "chance": 8.3, "teacher_entropy": 6.0}] * 11
    assert kinds(history(*sharp, chance=8.3)) == []


def test_a_uniform_teacher_beside_other_terms_is_judged_by_its_own_chance():
    terms = {"loss": 1.8, "chance": 2.0, "teacher_chance": 8.3, "teacher_information": 0.5}
    assert kinds(history(*[terms | {"teacher_entropy": 8.29}] * 11, chance=2.0)) == ["teacher"]
    assert kinds(history(*[terms | {"teacher_entropy": 6.0}] * 11, chance=2.0)) == []


@pytest.mark.parametrize(("entropy", "remedy"), [(0.1, "raise"), (6.0, "lower")])
def test_a_teacher_that_gives_every_input_the_same_target_is_reported(entropy, remedy):
    terms = {"loss": 1.8, "chance": 2.0, "teacher_chance": 8.3, "teacher_entropy": entropy}
    same, different = terms | {"teacher_information": 0.04}, terms | {"teacher_information": 0.05}
    assert told(history(*[same] * 11, chance=2.0)) == (
        "the teacher gives every input the same target: targets of different inputs differ by 0.04 of 8.3 nats, their "
        f"entropy is {entropy:.3g}; {remedy} the teacher temperature, or divide the batch equally (sinkhorn)"
    )
    assert kinds(history(*[same] * 10, chance=2.0)) == []  # not settled
    assert kinds(history(*[same] * 10, different, chance=2.0)) == []  # once only


def test_one_prototype_for_everything_is_reported_before_the_run_has_settled():
    """0.2 nats are 1.2 prototypes; two in equal parts have 0.69."""
    one = {"loss": 0.3, "chance": 8.3, "teacher_chance": 8.3, "teacher_entropy": 0.1, "teacher_mean_entropy": 0.2}
    assert kinds(history({}, one, chance=8.3)) == []
    assert told(history({}, one, one, chance=8.3)) == (
        "the teacher gives every input the same target: all inputs together use 1.2 of 4024 prototypes; raise the "
        "teacher temperature, or divide the batch equally (sinkhorn)"
    )
    settled = history(*[one | {"teacher_information": 0.01, "loss": 0.01}] * 11, chance=8.3)
    assert kinds(settled) == ["prototypes"]
    assert kinds(history({}, *[one | {"teacher_mean_entropy": 0.69}] * 2, chance=8.3)) == []


def test_a_loss_near_zero_before_anything_was_learned_is_trivial():
    solved = {"loss": 3.4 * 0.019}
    assert told(history(solved)).startswith(
        "after 20 steps the loss is 1.9% of that of a network that knows nothing, before it can have learned what is "
        "asked for: something else solves the task. Likely causes: padding or the border of a view shows places, "
    )
    assert kinds(history({"loss": 3.4 * 0.021})) == []
    assert kinds(history(*[{}] * 10, solved)) == []  # step 220: it has had its time
    assert kinds(history(*[{}] * 24, solved), settled=10_000) == []  # step 500 of a long warm-up, likewise
    assert kinds(history(*[{}] * 23, solved), settled=10_000) == ["trivial"]
    unknown = [{name: value for name, value in row.items() if name != "chance"} for row in history(solved)]
    assert kinds(unknown) == []


def test_a_loss_that_loses_half_of_what_it_had_gained_rises():
    """From 40 % of chance: above 70 % twice. Slowly, so that no jump of ten times is seen."""
    fallen, risen = {"loss": 3.4 * 0.4}, {"loss": 3.4 * 0.72}
    slow = [{"loss": 3.4 * (0.4 + 0.01 * number)} for number in range(30)]
    assert kinds(history(*[fallen] * 12, *slow)) == []
    assert kinds(history(*[fallen] * 12, *slow, risen)) == []
    assert told(history(*[fallen] * 12, *slow, risen, risen)) == (
        "the loss rises again: 72% of that of a network that knows nothing, 40% at step 20; lower "
        "optimizer.learning_rate (now 0.001), continue from an earlier checkpoint"
    )
    assert kinds(history(fallen, risen, risen)) == []  # not settled
    taught = {"teacher_entropy": 3.0, "teacher_chance": 8.3}  # a teacher that sharpens: its loss may rise
    assert kinds(history(*[fallen | taught] * 12, risen | taught, risen | taught)) == []
    assert kinds(history(*[{"loss": 3.4 * 0.92}] * 12, *[{"loss": 3.4 * 0.97}] * 2)) == []  # little gained


@pytest.mark.parametrize(("correlation", "found"), [(0.2, []), (0.1, []), (0.09, ["stuck"])])
def test_predicted_voxels_of_noisy_scans_are_not_stuck_where_something_is_predicted(correlation, found):
    """Normalized cells plateau at 95 to 97 % of chance, and may be slower."""
    rows = predicting(*[{"embedding_rank": 9.0, "correlation": correlation}] * 11, loss=3.4 * 0.985)
    assert kinds(rows) == found
    above = predicting(*[{"embedding_rank": 9.0, "correlation": correlation}] * 11, loss=3.4 * 1.001)
    assert kinds(above) == ["stuck"]
    compared = history(*[{"correlation": correlation}] * 11, loss=3.4 * 0.985)  # views are compared
    assert kinds(compared) == ["stuck"]
    assert kinds(predicting(*[{"embedding_rank": 9.0}] * 11, loss=3.4 * 0.96)) == []


# --- long runs


def long_run(loss, rank, steps: int) -> list[dict]:
    """Measurements of a long run, each 20 steps, shortened after each as the monitor does."""
    kept: list[dict] = [START]
    for number in range(1, steps + 1):
        row = {"step": 20 * number, "loss": loss(number), "chance": 3.4, "gradient_norm": 5.0, "uniformity": -1.5}
        kept = shortened([*kept, row | {"embedding_rank": rank(number), "embedding_spread": 0.3}])
    return kept


def test_extremes_since_the_start_stay_when_thousands_of_measurements_follow():
    lowest, widest = 37, 41
    kept = long_run(lambda n: 0.5 if n == lowest else 2.0, lambda n: 30.0 if n == widest else 20.0, 5000)
    assert len(kept) <= 1 + health.OLDER + health.NEWEST
    steps = [row["step"] for row in kept]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-health.NEWEST :] == [20 * number for number in range(4901, 5001)]
    assert {20 * lowest, 20 * widest} <= set(steps)
    middle = [step for step in steps if 20_000 < step < 80_000]
    assert len(middle) >= 5  # the time between is not forgotten either


def test_slow_narrowing_and_slow_rising_are_reported_over_thousands_of_measurements():
    """Both change by less than 2 % within the newest hundred measurements."""
    narrow = long_run(lambda n: 1.5, lambda n: max(9.0, 30.0 - 0.006 * n), 3400)
    assert told(narrow).startswith("embeddings use ever fewer directions: 9.6, down from 30.0 at step 20;")
    rising = long_run(lambda n: 1.0 + 0.00045 * n, lambda n: 20.0, 3000)
    assert told(rising).startswith("the loss rises again: 69% of that of a network that knows nothing, 29%")
    assert kinds(long_run(lambda n: 3.0 - 0.0005 * n, lambda n: 20.0 + 0.001 * n, 3000)) == []


def test_a_history_in_two_parts_is_that_of_one_run():
    """A checkpoint holds the shortened rows, and nothing else is needed to go on."""
    rng = np.random.default_rng(0)
    losses, ranks = rng.uniform(1, 2, 700), rng.uniform(10, 20, 700)
    whole = long_run(lambda n: losses[n - 1], lambda n: ranks[n - 1], 700)
    part = long_run(lambda n: losses[n - 1], lambda n: ranks[n - 1], 333)
    for number in range(334, 701):
        row = {"step": 20 * number, "loss": losses[number - 1], "chance": 3.4, "gradient_norm": 5.0, "uniformity": -1.5}
        part = shortened([*part, row | {"embedding_rank": ranks[number - 1], "embedding_spread": 0.3}])
    assert part == whole
