"""The verb: parts by name or folder, one page, the verdict on the console."""

from __future__ import annotations

import os

import pytest
from reporting import made

from medssl.commands.report import report
from medssl.reporting.parts import named_folder
from medssl.types import UserError


@pytest.fixture(autouse=True)
def _umask():
    mask = os.umask(0o022)
    yield
    os.umask(mask)


def test_a_page_of_everything(tmp_path, capsys):
    made.run(tmp_path / "pretrained")
    made.segmentation(tmp_path / "scored", [0.8, 0.7, 0.75, 0.9])
    made.segmentation(tmp_path / "twin", [0.6, 0.5, 0.57, 0.61])
    page = tmp_path / "out" / "report.html"
    words = [str(tmp_path / "pretrained"), f"SparK={tmp_path / 'scored'}", f"from scratch={tmp_path / 'twin'}"]
    assert report(page, words, heading="Mine").exit_code == 0
    text = page.read_text()
    for said in ("<title>Mine</title>", "<h3>pretrained</h3>", "<h3>SparK</h3>", "<h3>from scratch</h3>"):
        assert said in text
    assert str(tmp_path) not in text
    assert page.stat().st_mode & 0o077 == 0
    printed = capsys.readouterr().out
    assert "SparK and from scratch: too few runs for a verdict, 1 of each, it takes 5. Mean Dice" in printed
    assert "3 parts" in printed
    assert "patient data" in printed


def test_a_former_page_is_replaced_and_stays_where_the_new_one_fails(tmp_path):
    made.run(tmp_path / "run")
    page = tmp_path / "report.html"
    page.write_text("old")
    with pytest.raises(UserError, match="no such folder"):
        report(page, [str(tmp_path / "run"), str(tmp_path / "nowhere")])
    assert page.read_text() == "old"
    assert report(page, [str(tmp_path / "run")]).exit_code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def test_a_folder_is_no_page(tmp_path):
    with pytest.raises(UserError, match=r"is a folder: name the page to write first, such as .*report\.html"):
        report(tmp_path, [str(tmp_path)])


def test_names_of_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert named_folder("twin=runs/x") == ("twin", tmp_path.__class__("runs/x"))
    assert named_folder(str(odd)) == ("a=b", odd)
    assert named_folder("a=b")[0] == "a=b"
    assert named_folder(".")[0] == tmp_path.name
