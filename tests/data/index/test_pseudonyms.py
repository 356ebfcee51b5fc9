"""Keys and keyed identifiers."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.data.index.pseudonyms import SubjectRule, keyed_digest, load_key, named_digest, patient_digest
from medssl.types import UserError


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    file = tmp_path / "config" / "medssl" / "key"
    key = load_key(file)
    assert len(key) == 32
    assert load_key(file) == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_key(tmp_path / "other") != key
    assert [entry.name for entry in file.parent.iterdir()] == ["key"]


def test_the_key_of_a_folder_that_travels_is_refused(tmp_path):
    (tmp_path / "run" / "deep").mkdir(parents=True)
    for file in (tmp_path / "run" / "key", tmp_path / "run" / "deep" / "key"):
        with pytest.raises(UserError, match=r"lies inside .*run, which may be passed on"):
            load_key(file, away_from=[tmp_path / "run"])
        assert not file.exists()


def test_a_key_that_others_can_read_is_refused(tmp_path):
    load_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(UserError, match=r"others can read the key .*chmod 600"):
        load_key(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "hello", "ab" * 31])
def test_what_is_no_key_is_refused(tmp_path, text):
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(UserError, match="is no key \\(expected 64 hexadecimal digits\\)"):
        load_key(tmp_path / "key")


def test_a_key_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be opened"):
        load_key(tmp_path / "file" / "key")


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_equal_digests_mean_equal_words(one, other):
    assert (keyed_digest(b"k", *one) == keyed_digest(b"k", *other)) == (one == other)


def test_digests_depend_on_key_and_data_set():
    assert patient_digest(b"a", "4711") != patient_digest(b"b", "4711")
    assert patient_digest(b"a", " 4711 ") == patient_digest(b"a", "4711")
    assert named_digest(b"a", "one", "p1") != named_digest(b"a", "two", "p1")
    assert len(patient_digest(b"a", "4711")) == 16


def test_rules_find_the_subject_in_a_path():
    assert SubjectRule(r"sub-(\w+?)_").name_in("site/sub-07_T1.nii.gz") == "07"
    assert SubjectRule(r"sub-(\w+?)_").name_in("site/x.nii") == ""
    assert SubjectRule("dicom").name_in("dicom") == ""
    assert SubjectRule("column:patient").column == "patient"


@pytest.mark.parametrize(
    ("rule", "message"), [("(", "no regular expression"), ("a", "0 groups"), ("(a)(b)", "2 groups")]
)
def test_rules_that_name_nobody_are_refused(rule, message):
    with pytest.raises(UserError, match=message):
        SubjectRule(rule)
