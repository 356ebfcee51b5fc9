"""Tables that leave the institution: no formula, no name of a file; an index and a store of others lead nowhere."""

from __future__ import annotations

import csv
import io
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from commands import fitted
from data.make_scans import Series, noise, truncate, write_nifti, write_series
from data.stores import fill_store, volume

from medssl.commands.predict import predict
from medssl.data.index.reasons import kind_of_reason
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.data.store.store import Store
from medssl.inference.requested_scans import private_index
from medssl.inference.writers import write_answers
from medssl.io.csv_text import as_csv, escape_formula
from medssl.metrics.probe_tables import write_table
from medssl.types import LabelSchema, UserError

FORMULAS = (
    "=cmd|' /C calc'!A0", "@SUM(1+1)*cmd|' /C calc'!A0", "+cmd|x", "-cmd|x", "\t=1+1", "=HYPERLINK(\"x\")",
    "\uff1d1+1", "a\r\n=1+1", "CT;=1+1", "a\n=1+1", "a\t@SUM(A1)",
)  # fmt: skip

HEADERS = {"Manufacturer": FORMULAS[0], "ManufacturerModelName": "=1+1", "SeriesDescription": "@SUM(A1)"}


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_a_formula_in_any_country(text):
    written = as_csv([["name", "value"], [text, -1.5]])
    assert list(csv.reader(io.StringIO(written, newline="")))[1][1] == "-1.5"
    for separator in ",;\t":
        for line in written.splitlines():
            for cell in line.split(separator):
                start = cell.strip('"').translate(str.maketrans("\uff1d", "="))[:1]
                assert start not in {"=", "@"}
                assert not (start in {"+", "-"} and "|" in cell)


@pytest.mark.parametrize("value", ["-1", "-1.5e-05", "++", "- none", "CT", "a;b", "", None, -3, 2.5, "Toshiba=old"])
def test_everything_else_stays_as_it_is(value):
    assert escape_formula(value) == value


@pytest.fixture
def index(tmp_path):
    """An index of scans whose files and headers were named by an attacker, and whose reasons name files."""
    scans = tmp_path / "scans"
    write_series(scans / "good-miller-4711", Series(extra=HEADERS))
    write_nifti(scans / "jones_19470403.nii.gz", noise((8, 8, 4)))
    truncate(scans / "jones_19470403.nii.gz")
    with Index.open(tmp_path / "place" / "index.sqlite", create=True, root=tmp_path) as opened:
        update(opened, [scans], IndexOptions(files=FileOptions(workers=0)), key=b"k" * 32)
    with Index.open(tmp_path / "place" / "index.sqlite") as opened:
        yield opened


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_export_has_no_formula_and_no_name_of_a_file(index, tmp_path, ending):
    file = tmp_path / f"x.{ending}"
    index.export(file)
    data = file.read_bytes()
    for word in ("miller", "4711", "jones", "19470403", ".nii", str(tmp_path)):
        assert word.encode() not in data
    if ending == "csv":
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        assert {"'=1+1"} <= {row["model"] for row in rows}
        assert not [cell for row in rows for cell in row.values() if cell[:1] in {"=", "@"}]
        assert [row["reason"] for row in rows if row["status"] == "failed"]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("damaged slice: IM0017 truncated (1 of 5 files)", "damaged slice"),
        ("1 copy dropped (IM017)", "1 copy dropped"),
        ("label unusable: miller.nii.gz is no image", "label unusable"),
        ("miller.nii.gz cannot be opened", "a file cannot be opened"),
        ("the folder miller holds two series", "the folder a file holds two series"),
        ("C:\\scans\\miller has no header", "a file has no header"),
        ("localizer", "localizer"),
    ],
)
def test_of_a_reason_the_kind_is_left(reason, kind):
    assert kind_of_reason(reason, ["miller/IM017"]) == kind


def test_every_table_is_written_by_one_function():
    package = Path(as_csv.__code__.co_filename).parent
    found = [
        file.name
        for file in package.rglob("*.py")
        if "csv.writer(" in file.read_text() or "csv.DictWriter" in file.read_text()
    ]
    assert found == ["csv_text.py"]


def test_tables_of_predictions_and_probes(tmp_path):
    schema = LabelSchema("kind", ((0, "=1+1"), (1, "b")))
    write_answers(tmp_path / "predictions.csv", [("=cmd|x", (0.9, 0.1))], schema, first="name")
    assert "\n'=cmd|x,'=1+1,0.9,0.1\n" in (tmp_path / "predictions.csv").read_text()
    probe = {"probe": "=1", "chosen": "@x", "validation": -0.5, "metrics": {}, "note": ""}
    value = {key: None for key in ("value", "low", "high", "subjects", "deviation_over_draws")} | {"note": "=2"}
    write_table(tmp_path / "probe.csv", [probe | {"metrics": {"=m": value}}])
    assert "\n'=1,'@x,-0.5,'=m,,,,,,'=2\n" in (tmp_path / "probe.csv").read_text()


def test_predictions_hold_no_path_and_no_name(tmp_path, capsys):
    write_nifti(tmp_path / "miller-4711" / "jones_1947.nii.gz", noise((8, 8, 4)))
    run, out = fitted.save(tmp_path / "run"), tmp_path / "out"
    files = FileOptions(workers=0, key=tmp_path / "key" / "key")
    for _ in range(2):  # the second goes on from the first
        assert predict(run, (tmp_path / "miller-4711",), out=out, files=files).exit_code == 0
    assert "1 scans predicted (0 new, 1 already present)" in capsys.readouterr().out
    for path in out.rglob("*"):
        for word in ("miller", "4711", "jones", "1947", "sqlite"):
            assert word not in path.name
            assert word.encode() not in path.read_bytes()
    place = private_index(out)
    assert place.exists()
    assert place.parent.stat().st_mode & 0o077 == 0


# --- an index and a store of others


def changed(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement, values)


def reopened(index: Index) -> Index:
    return Index.open(index.file)


def test_identifiers_that_lead_elsewhere_are_refused(index):
    changed(index.file, "UPDATE scans SET scan_id = '../../elsewhere' WHERE status = 'ok'")
    with (
        reopened(index) as opened,
        pytest.raises(UserError, match=r"holds a scan called '\.\./\.\./elsewhere': expected 16"),
    ):
        list(opened.scans())


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../../../etc/passwd", "scans/../../x/../../secret"])
def test_files_outside_the_indexed_folders_are_refused(index, path):
    changed(index.file, "UPDATE files SET path = ? WHERE id = (SELECT min(file) FROM parts)", path)
    changed(index.file, "DELETE FROM parts WHERE file <> (SELECT min(file) FROM parts)")
    with (
        reopened(index) as opened,
        pytest.raises(UserError, match=r"its file lies outside the folders of index\.sqlite"),
    ):
        [scan for status in ("ok", "failed", "rejected") for scan in opened.scans(status=status)]


PROGRAMS = {
    "a trigger": "CREATE TRIGGER evil AFTER INSERT ON meta BEGIN DELETE FROM scans; END",
    "a view": "CREATE VIEW evil AS SELECT * FROM files",
    "a virtual table": "CREATE VIRTUAL TABLE evil USING fts5(text)",
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_programs_in_an_index_or_a_store_are_refused(what, index, tmp_path, monkeypatch):
    kind = {"a trigger": "trigger", "a view": "view", "a virtual table": "table"}[what]
    fill_store(tmp_path / "store", {"a": volume(np.ones((1, 8, 8, 8), np.int16))}, monkeypatch)
    for file, opening in (
        (index.file, lambda: Index.open(index.file)),
        (tmp_path / "store" / "records.sqlite", lambda: Store.open(tmp_path / "store")),
    ):
        changed(file, PROGRAMS[what].replace("meta", "scans"))
        with pytest.raises(UserError, match=f"^{file.name} holds a {kind} called 'evil'"):
            opening()


@pytest.mark.parametrize(
    ("column", "value"), [("scan_id", "../x"), ("key", "/x/y"), ("pack", "../../x"), ("scan_id", ".x")]
)
def test_names_of_files_in_a_store_are_checked(column, value, tmp_path, monkeypatch):
    fill_store(tmp_path / "store", {"a": volume(np.ones((1, 8, 8, 8), np.int16))}, monkeypatch)
    changed(tmp_path / "store" / "records.sqlite", f"UPDATE scans SET {column} = ?", value)
    with pytest.raises(UserError, match=rf"records\.sqlite holds a {column} that medssl does not write"):
        Store.open(tmp_path / "store")


def test_a_condition_changes_nothing_and_reads_no_file(index, tmp_path):
    before = index.file.read_bytes()
    for where in ("1; DELETE FROM scans", "load_extension('x')", "readfile('x') = 1", "1) ; ATTACH 'y' AS z --"):
        with pytest.raises(UserError, match=r"^where: "):
            list(index.rows(where))
    assert index.file.read_bytes() == before
