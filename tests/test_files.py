"""Files are written as a whole or not at all."""

import pytest

from tsexp.system.files import whole


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


def test_what_could_not_be_written_leaves_nothing_behind(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole(file) as partial:
        partial.write_text("ha\ud800", encoding="utf-8")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
