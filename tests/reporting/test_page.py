"""The page: all of its parts, nothing from elsewhere, and words for whatever a comparison says."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from reporting import made

from medssl.metrics.bootstrap import Interval
from medssl.reporting.comparison import Difference, compare, verdict
from medssl.reporting.page import make_page
from medssl.reporting.parts import read_log, read_part
from medssl.types import UserError

DICE = [0.3, 0.5, 0.55, 0.6, 0.62, 0.7, 0.75, 0.8]


class Reader(HTMLParser):
    """Collects every attribute that could load something, and checks that tags close."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.sources, self.tags, self.open, self.text = [], set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    reader.text = re.sub(r" ([,:;.])", r"\1", " ".join(reader.text.split()))
    return reader


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospital-of-somewhere")
    better = [min(1.0, value + 0.1) for value in DICE]
    return [
        read_part("pretraining", made.run(folder / "a")),
        read_part("tuned", made.run(folder / "b", tuned=True, start="0123456789abcdef")),
        read_part("scratch", made.run(folder / "c", tuned=True, scale=0.7)),
        read_part("with", made.segmentation(folder / "d", better, notes=("a note <b> of mine",))),
        read_part("without", made.segmentation(folder / "e", DICE)),
    ]


@pytest.fixture(scope="module")
def page(parts):
    return make_page(parts, "Title & more")


def test_the_page_holds_everything_it_shows(page):
    reader = read(page)
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert reader.sources
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_names_no_place(page):
    assert "hospital-of-somewhere" not in page


def test_pictures_of_patients_are_called_that(page):
    assert "Pictures of patients are patient data, those of heads above all" in read(page).text


def test_runs_have_curves_facts_and_the_newest_picture(page):
    text = read(page).text
    for said in (
        "ResEnc (channels [4, 8])", "SparK (share 0.6)", "subjects seen in pretraining 5", "weights of step 20 of 20",
        "batch 2, bf16, learning rate 0.001", "classes background, liver, spleen", "first weights random",
        "first weights pretrained (digest 0123456789abcdef)", "input, what was hidden, reconstruction at step 200",
        "input, label, prediction at step 200", "pretraining: loss", "tuned: loss", "scratch: validation",
        "Validation of all",
    ):  # fmt: skip
        assert said in text, said
    assert f"base64,{base64.b64encode(made.png(200)).decode()}" in page
    assert f"base64,{base64.b64encode(made.png(10)).decode()}" not in page


def test_evaluations_stand_side_by_side_with_counts_and_notes(page, parts):
    text = read(page).text
    value = parts[3].summary["metrics"]["dice"]
    assert f"{value['value']:.3f}" in text
    assert f"{value['low']:.3f} to {value['high']:.3f}" in text
    assert "Dice of spleen" in text
    assert text.count("Every class is in every label and in every prediction.") == 2
    assert "a note <b> of mine" in text
    assert "scan99: unreadable: truncated" in text
    assert "8 scans of 8 subjects; split test; step 20" in text
    assert "versions" not in text


def test_subgroups_have_a_table_and_classifications_a_calibration_curve(tmp_path):
    right = np.random.default_rng(0).uniform(0.3, 1.0, 40).tolist()
    part = read_part("A", made.classification(tmp_path / "a", right, sites=("north", "<south>")))
    page = make_page([part])
    text = read(page).text
    whole = part.summary["subgroups"]["site"]["<south>"]
    first = whole["metrics"]["accuracy"]
    assert "By site site scans subjects accuracy balanced accuracy AUROC" in text
    row = f"<south> {whole['scans']} {whole['subjects']} {first['value']:.3f} {first['low']:.3f} to {first['high']:.3f}"
    assert row in text
    assert "Calibration on 40 scans" in text
    assert "By " not in read(make_page([read_part("B", made.classification(tmp_path / "b", right))])).text


def test_the_health_of_a_pretraining_is_told(tmp_path):
    def told(name, alarms):
        return read(make_page([read_part("run", made.run(tmp_path / name, alarms=alarms))])).text

    assert "health well at all 3 measurements" in told("well", {5: 0, 10: 0, 20: 0})
    assert "health not judged: 2 of the 3 measurements that this takes" in told("short", {10: 0, 20: 0})
    assert "health alarms at 2 of 4 measurements, first at step 5, last at 15" in told(
        "ill", {5: 1, 10: 0, 15: 2, 20: 0}
    )
    assert "health" not in told("not measured", {})


def test_lacking_classes_are_counted(tmp_path):
    text = read(make_page([read_part("x", made.segmentation(tmp_path / "x", [0.5, 0.0, 0.6, 0.0]))])).text
    assert "absent (in neither) 0 0" in text
    assert "missed (in the label, not in the prediction) 2 2" in text
    assert "Every class is in" not in text


def test_pictures_are_the_worst_the_median_and_the_best_with_both_dice(page):
    text = read(page).text
    assert "worst: scan scan0, mean Dice 0.360 (without 0.270)" in text
    assert "median: scan scan2, mean Dice 0.585 (without 0.495)" in text
    assert "best: scan scan4, mean Dice 0.648 (without 0.558)" in text
    assert "worst: scan scan0, mean Dice 0.270 (with 0.360)" in text


def test_the_comparison_is_told_in_words_and_numbers(page):
    text = read(page).text
    assert "with and without: too few runs for a verdict, 1 of each, it takes 5." in text
    assert "Mean Dice 0.632 against 0.542 (difference +0.090, 95 % interval over 8 test subjects" in text
    assert "with less without, on the same subjects" in text


# --- what a comparison says


def said(first, second, difference):
    return verdict("A", "B", Difference("dice", first, second, difference))


def test_every_outcome_has_its_words():
    assert said(0.7, 0.6, Interval(0.1, 0.02, 0.2, 9)) == (
        "A and B: too few runs for a verdict, 1 of each, it takes 5. Mean Dice 0.700 against 0.600 "
        "(difference +0.100, 95 % interval over 9 test subjects +0.020 to +0.200)."
    )
    worse = said(0.5, 0.6, Interval(-0.1, -0.2, -0.02, 9))
    assert "too few runs for a verdict" in worse
    assert "better" not in worse + said(0.7, 0.6, Interval(0.1, 0.02, 0.2, 9))
    none = said(0.61, 0.6, Interval(0.01, -0.02, 0.04, 9))
    assert none.endswith("-0.020 to +0.040, which includes 0: no difference seen).")
    assert said(0.6, 0.6, Interval(0.0, 0.0, 0.0, 9)).endswith("no difference seen).")
    few = said(0.7, 0.6, Interval(0.1, None, None, 2, note="no interval: it needs at least 3 subjects, there are 2"))
    assert few.endswith(
        "Mean Dice 0.700 against 0.600 (difference +0.100, no interval: it needs at least 3 subjects, there are 2)."
    )
    assert "cannot be compared by mean Dice: not defined" in said(
        None, None, Interval(None, None, None, 0, note="not defined")
    )


def test_the_difference_is_that_of_the_same_subjects(tmp_path):
    generator = np.random.default_rng(0)
    first, second = (generator.uniform(0.3, 0.9, 12).tolist() for _ in range(2))
    found = compare(
        read_part("A", made.segmentation(tmp_path / "a", first)),
        read_part("B", made.segmentation(tmp_path / "b", second)),
    )
    assert [one.measure for one in found.differences] == ["dice", "dice:liver", "dice:spleen"]
    liver = found.differences[1]
    assert liver.difference.value == pytest.approx(np.mean(np.subtract(first, second)))
    assert liver.difference.value == pytest.approx(liver.first - liver.second)
    assert liver.difference.low < liver.difference.value < liver.difference.high


def test_classifications_are_compared_by_auroc_and_balanced_accuracy(tmp_path):
    generator = np.random.default_rng(0)
    sure, unsure = generator.uniform(0.45, 1.0, 40).tolist(), generator.uniform(0.2, 0.8, 40).tolist()
    a = read_part("A", made.classification(tmp_path / "a", sure))
    b = read_part("B", made.classification(tmp_path / "b", unsure))
    found = compare(a, b)
    assert [one.measure for one in found.differences] == ["auroc", "balanced_accuracy"]
    assert found.verdict.startswith("A and B: too few runs for a verdict, 1 of each, it takes 5. AUROC ")
    for one in found.differences:
        assert one.difference.value == pytest.approx(one.first - one.second)
    text = read(make_page([a, b])).text
    assert "Classification of benign, malignant" in text
    assert "Scans of each class" in text


def test_evaluations_of_other_scans_are_no_comparison(tmp_path):
    a = read_part("A", made.segmentation(tmp_path / "a", DICE))
    b = read_part("B", made.segmentation(tmp_path / "b", DICE, first=2))
    c = read_part("C", made.classification(tmp_path / "c", [0.6] * 8))
    assert compare(a, b).verdict == (
        "A and B cannot be compared: 8 scans in one, 8 in the other, 6 in both. Evaluate both on the same split."
    )
    assert "one is a segmentation of liver, spleen, the other a classification" in compare(a, c).verdict
    text = read(make_page([a, b, c])).text
    assert "A and B cannot be compared" in text
    assert "Classification of benign, malignant" in text


# --- parts


def test_a_page_of_one_part_of_each_kind(tmp_path):
    for number, part in enumerate(
        (made.run(tmp_path / "a"), made.run(tmp_path / "b", tuned=True), made.segmentation(tmp_path / "c", DICE))
    ):
        assert f"part {number}" in read(make_page([read_part(f"part {number}", part)])).text


def test_a_run_that_logged_nothing_says_so(tmp_path):
    folder = made.run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    assert "Nothing was logged." in make_page([read_part("run", folder)])
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    assert "No finite loss was logged." in make_page([read_part("run", folder)])


def test_lines_that_a_kill_cut_are_counted(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 2, "loss": 0.5}\n{"step": 1, "loss": NaN, "word": "x"}\n{"loss": 1}\n[1]\n{"step": 3, "lo'
    )
    log = read_log(file)
    assert [row["step"] for row in log.rows] == [1, 2]
    assert math.isnan(log.rows[0]["loss"])
    assert log.broken == 3
    run = made.run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert "could not be read and were left out: 1." in make_page([read_part("run", run)])


def test_a_card_without_subjects_says_so(tmp_path):
    folder = made.run(tmp_path / "run")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"subjects": None}))
    assert "not told by the card" in make_page([read_part("run", folder)])


def test_folders_that_are_none_of_these_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such folder: expected a folder of a run"):
        read_part("x", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds neither card\.json nor summary\.json: expected a run folder"):
        read_part("x", tmp_path)
    folder = made.run(tmp_path / "run")
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml cannot be read .* beside card\.json"):
        read_part("x", folder)
    scored = made.segmentation(tmp_path / "scored", DICE)
    (scored / "cases.csv").write_text("scan_id,subject_id\n1,2\n")
    with pytest.raises(UserError, match="has no column 'class'"):
        read_part("x", scored)


def test_names_tell_parts_apart(parts):
    with pytest.raises(UserError, match=r"two parts of one kind are called tuned: give them names, NAME=PATH"):
        make_page([parts[1], parts[1]])
    with pytest.raises(UserError, match="no parts given"):
        make_page([])


def test_a_run_and_its_scores_may_have_one_name(tmp_path):
    tuned = read_part("few", made.run(tmp_path / "runs" / "few", tuned=True))
    scored = read_part("few", made.segmentation(tmp_path / "scores" / "few", DICE))
    text = read(make_page([tuned, scored])).text
    assert text.count("few") >= 2
    with pytest.raises(UserError, match="two parts of one kind are called few"):
        make_page([tuned, scored, scored])


def test_synthetic_scans_are_called_that(tmp_path):
    folder = made.run(tmp_path / "run")
    assert "come from scans of people" in read(make_page([read_part("a", folder)])).text
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"versions": {"phantoms": "2"}}))
    drawn = read_part("a", folder)
    text = read(make_page([drawn])).text
    assert "Synthetic data: every scan here was drawn by medssl phantoms" in text
    assert "people" not in text
    mixed = read(make_page([drawn, read_part("b", made.segmentation(tmp_path / "scores", DICE))])).text
    assert "Some of the scans are synthetic" in mixed
    assert "come from scans of people" in mixed


def test_probes_are_a_part(tmp_path):
    folder = made.probes(tmp_path / "probes")
    text = read(make_page([read_part("frozen", folder)])).text
    for said in ("Probes frozen", "target grade (low, high)", "scans: 4 train, 3 val, 5 test", "linear", "C 0.1",
                 "0.812 0.700 to 0.900", "skipped: prototypes, 20 shots: the rarest class has 2 training scans",
                 "effective rank 3.0 of at most 8", "a note"):  # fmt: skip
        assert said in text, said


def test_comparisons_are_a_part_with_the_verdict_of_compare(tmp_path, capsys):
    from medssl.commands.report import report

    folder = made.study(tmp_path / "study")
    text = read(make_page([read_part("study", folder)])).text
    for said in ("Comparison study", "spark: too few runs at 4: 1 of each arm, it takes 5.", "labeled subjects 4",
                 "scratch 0.500 0.400 to 0.600", "Dice over labeled subjects", "Failed: scratch 4"):  # fmt: skip
        assert said in text, said
    assert report(tmp_path / "page.html", [str(folder)]).exit_code == 0
    assert "spark: too few runs at 4: 1 of each arm, it takes 5." in capsys.readouterr().out
    (folder / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary\.json lacks curves, compared, notes: expected the file of a"):
        read_part("study", folder)


def test_a_narrow_window_has_no_wide_tables_and_captions(page):
    assert "@media (max-width: 700px)" in page
    assert page.count("<table>") == page.count('<div class="wide"><table>')
    assert "caption { text-align: left; font-weight: bold" in page
