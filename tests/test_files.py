"""Files are written as a whole or not at all."""

import os
from pathlib import Path

import pytest

from tsexp.sweeps import jobs
from tsexp.system.files import whole, write_json


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("old")
    with whole(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_of_two_who_write_at_once_none_sees_half_of_the_other(tmp_path):
    """Threads, or processes of the same number on two hosts."""
    file = tmp_path / "page.html"
    with whole(file) as mine:
        mine.write_text("mine")
        with whole(file) as theirs:
            theirs.write_text("theirs, which takes longer")
        assert file.read_text() == "theirs, which takes longer"
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["", '{"name": "seed=0", "sta', "[]", '{"name": "a", "status": "b", "new": 1}']
)
def test_an_outcome_that_tells_nothing_is_none(tmp_path, text):
    """Empty after a loss of power, cut off, of a newer version: the job has not ended."""
    (tmp_path / jobs.OUTCOME).write_text(text)
    assert jobs.read_outcome(tmp_path) is None


def test_what_must_outlive_a_loss_of_power_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    did = []
    monkeypatch.setattr(os, "fsync", lambda at: did.append(Path(f"/proc/self/fd/{at}").resolve().name))
    rename = Path.replace

    def renamed(self, target):
        did.append("rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", renamed)
    write_json(tmp_path / "a.json", {"a": 1}, lasting=True)
    partial, *rest = did
    assert partial.startswith(".a.json.")
    assert rest == ["rename", tmp_path.name]


def test_what_could_not_be_written_leaves_nothing_behind(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole(file) as partial:
        partial.write_text("ha\ud800", encoding="utf-8")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
