"""Files that grow when they are read, or whose words are markup: refused in one line, or shown as they are."""

from __future__ import annotations

import json
import struct
import zipfile

import pytest
import yaml
from commands import fitted
from security.planted import change_card

from medssl.encoders.tensors import read_tensors
from medssl.encoders.weights import load_card
from medssl.io import configurations, documents
from medssl.types import UserError


def test_a_card_of_many_megabytes_or_levels(tmp_path, monkeypatch):
    run = fitted.save(tmp_path / "run")
    (run / "card.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"card\.json: not JSON \(nested too deeply\)"):
        load_card(run)
    monkeypatch.setattr(documents, "JSON_BYTES", 1 << 20)
    (run / "card.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(UserError, match=r"card\.json: not JSON \(larger than 1 MiB\)"):
        load_card(run)


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(12), "more than 100,000 values, counting those that its aliases repeat"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("[" * 20_000, "nested too deeply"),
        ("a: !!python/object/apply:os.system ['touch mark']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_configurations_that_grow_or_make_objects(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"^mine\.yaml is no valid YAML: .*{words}"):
        configurations.load_recipe(str(tmp_path / "mine.yaml"))
    assert not (tmp_path / "mark").exists()


def test_honest_aliases_are_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert documents.read_yaml(tmp_path / "mine.yaml") == {"a": [1, 2], "b": [1, 2]}
    (tmp_path / "mine.yaml").write_bytes(b"#" * (documents.YAML_BYTES + 1))
    with pytest.raises(yaml.YAMLError, match="larger than 4 MiB"):
        documents.read_yaml(tmp_path / "mine.yaml")


def test_a_safetensors_header_longer_than_the_file(tmp_path):
    for length in (1 << 62, 99_000_000):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":1}')
        with pytest.raises(UserError, match=r"x\.safetensors: is"):
            read_tensors(tmp_path / "x.safetensors")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="is cut off or damaged"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_torch_archive_that_is_compressed(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(UserError, match="would be unpacked to 50 MB, torch does not compress"):
        read_tensors(tmp_path / "x.pt")


def test_markup_in_names_is_text_in_a_report(tmp_path):
    from medssl.commands.report import report

    run = fitted.save(tmp_path / "run")
    script = "<script>alert(1)</script>"

    def change(card):
        card["tuned"]["schema"]["classes"][1][1] = script
        card["versions"][script] = script
        card["encoder"]["class_path"] = f"a.{script}"

    change_card(run, change)
    (run / "config.yaml").write_text(yaml.safe_dump({script: {script: script}}))
    report(tmp_path / "page.html", [f"{script}={run}"])
    page = (tmp_path / "page.html").read_text()
    assert script not in page
    assert "&lt;script&gt;alert(1)" in page
