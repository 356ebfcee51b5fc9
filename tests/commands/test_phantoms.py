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


def test_slides_are_written_and_indexed(tmp_path, capsys):
    words = ["phantoms", str(tmp_path / "out"), "--kind", "slides", "--count", "2", "--labeled", "2"]
    words += ["--shape", "[256, 300]", "--slides.stains", "HE,IHC"]
    assert main(words) == 0
    assert "4 synthetic slides, 4 with a label (4 written, 0 already present)" in capsys.readouterr().out
    index = [
        "index",
        str(tmp_path / "out" / "slides"),
        "--index",
        str(tmp_path / "index" / "i.sqlite"),
        "--subject",
        "column:patient",
    ]
    index += [
        "--label.values",
        str(tmp_path / "out" / "slides.csv"),
        "--label.key",
        "slide",
        "--label.columns",
        "tumor",
    ]
    assert main([*index, "--files.key", str(tmp_path / "keys" / "key")]) == 0
    assert "slides: 4 SM slide, 256 x 300, 3 channels, 2 subjects" in capsys.readouterr().out
    assert main(["phantoms", str(tmp_path / "scans"), "--slides.layout", "dicom"]) == 2
    assert "slides: has no effect without kind slides" in capsys.readouterr().err
