"""The verb: what it prints and returns, also through the command line."""

from __future__ import annotations

from medssl.cli import main


def test_the_verb_writes_and_counts(tmp_path, capsys):
    words = ["phantoms", str(tmp_path / "scans"), "--count", "3", "--labeled", "1", "--shape", "[16, 16, 12]"]
    assert main(words) == 0
    assert "3 synthetic scans, 1 with labels (3 written, 0 already present)" in capsys.readouterr().out
    assert main(words) == 0
    assert "(0 written, 3 already present)" in capsys.readouterr().out


def test_shuffled_labels_are_said(tmp_path, capsys):
    words = ["--count", "2", "--labeled", "2", "--shape", "[16, 16, 12]", "--shuffle_labels", "true"]
    assert main(["phantoms", str(tmp_path / "scans"), *words]) == 0
    assert "2 with labels of another patient" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["phantoms", str(tmp_path / "scans"), "--shape", "[4, 4, 4]"]) == 2
    assert "error: a phantom's shape is [4, 4, 4]" in capsys.readouterr().err
    assert main(["phantoms", str(tmp_path / "scans"), "--labeld", "1"]) == 2
    assert "did you mean 'labeled'" in capsys.readouterr().err
