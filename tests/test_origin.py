"""Which code a run comes from: the commit, and what was changed since."""

import hashlib
import importlib
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tsexp.sweeps import warm
from tsexp.tracking import origin, run


def git(folder, *arguments):
    who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    return subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout


def forget():
    """As a process that imports the code now."""
    origin.git_sha.cache_clear()
    origin.changes.cache_clear()
    origin._dirty.cache_clear()


@pytest.fixture(autouse=True)
def _asked_anew():
    forget()
    yield
    forget()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A clean checkout, of which this package is said to be."""
    for name in ("src", "conf", "notebooks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.txt").write_text("before\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    return tmp_path


def test_a_clean_checkout_has_no_diff(checkout):
    assert origin.git_sha() == git(checkout, "rev-parse", "HEAD").strip()
    assert origin.changes() == ""


def test_outside_a_checkout_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert origin.changes() == ""
    assert origin.git_sha().startswith("v")


@pytest.mark.parametrize("staged", [False, True])
def test_the_diff_brings_the_code_back(checkout, tmp_path_factory, staged):
    (checkout / "src" / "file.txt").write_text("after\n")
    (checkout / "conf" / "file.txt").unlink()
    (checkout / "notebooks" / "file.txt").write_text("large output\n")
    if staged:
        git(checkout, "add", "--all")
    text = origin.changes()
    assert origin.git_sha().endswith("-dirty")
    other = tmp_path_factory.mktemp("other") / "clone"
    git(checkout, "clone", "--quiet", str(checkout), str(other))
    (other / "dirty.diff").write_text(text)
    git(other, "apply", "dirty.diff")
    assert (other / "src" / "file.txt").read_text() == "after\n"
    assert not (other / "conf" / "file.txt").exists()
    assert "large output" not in text


def test_new_files_are_named(checkout):
    (checkout / "src" / "new.py").write_text("secret = 1\n")
    assert origin.changes() == "# not known to git: src/new.py\n"


def test_it_has_no_passwords_and_an_end(checkout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "ThePassword4711")
    lines = ["uri: postgresql://me:AnotherOne@host/db", "password: ThePassword4711", *["x" * 99] * 20_000]
    (checkout / "conf" / "file.txt").write_text("\n".join(lines))
    text = origin.changes()
    assert "ThePassword4711" not in text
    assert "AnotherOne" not in text
    assert "+uri: postgresql://me:***@host/db" in text
    assert len(text) < origin.MOST + 100
    assert text.endswith("the first 1,000,000 are here\n")


def test_what_is_changed_after_the_server_began_is_not_what_its_jobs_run(checkout):
    importlib.reload(warm)
    sha = git(checkout, "rev-parse", "HEAD").strip()
    (checkout / "src" / "file.txt").write_text("after\n")
    assert (origin.git_sha(), origin.changes()) == (sha, "")


def test_bytes_that_are_no_text_do_no_harm(checkout):
    (checkout / "src" / "file.txt").write_bytes(b"\xff\xfe\xe9\n" * 3)
    assert "file.txt" in origin.changes()


def test_a_run_of_a_dirty_checkout_says_so_and_keeps_the_diff_if_asked(
    checkout, tiny, empty_store, tmp_path_factory
):
    from dataclasses import replace

    from tsexp.tracking.client import store

    folder = tmp_path_factory.mktemp("store")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    cfg = replace(tiny, tracking=replace(tiny.tracking, uri=f"sqlite:///{folder}/mlflow.db"))
    kept = {}
    for name, change, asked in (
        ("clean", "", True),
        ("silent", "after\n", False),
        ("asked", "after\n", True),
    ):
        if change:
            (checkout / "src" / "file.txt").write_text(change)
            forget()
        cfg = replace(cfg, tracking=replace(cfg.tracking, diff=asked))
        with suppress(KeyError), run.tracked(cfg, "a: 1", "a run", "signature", None) as open_run:
            kept[name] = open_run.run_id
            raise KeyError
    client = store(cfg.tracking)
    names = {name: {a.path for a in client.list_artifacts(run_id)} for name, run_id in kept.items()}
    files = {"config.yaml", "traceback.txt"}
    assert names == {"clean": files, "silent": files, "asked": files | {"dirty.diff"}}
    diff = Path(client.download_artifacts(kept["asked"], "dirty.diff")).read_bytes()
    assert b"+after" in diff
    tags = {name: client.get_run(run_id).data.tags for name, run_id in kept.items()}
    assert {name: of["tsexp.dirty"] for name, of in tags.items()} == {
        "clean": "false",
        "silent": "true",
        "asked": "true",
    }
    digest = hashlib.sha256(diff).hexdigest()
    assert tags["silent"]["tsexp.diff_sha256"] == tags["asked"]["tsexp.diff_sha256"] == digest
    assert "tsexp.diff_sha256" not in tags["clean"]


def test_the_stage_of_a_run_only_advances(tiny, empty_store, tmp_path):
    """Its control is trained and deployed after the artifact was."""
    from dataclasses import replace

    from tsexp.tracking.client import store

    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    cfg = replace(tiny, tracking=replace(tiny.tracking, uri=f"sqlite:///{tmp_path}/mlflow.db"))
    seen = []
    with (
        suppress(KeyError),
        run.tracked(cfg, "a: 1", "a run", "signature", None) as open_run,
    ):
        for stage in ("train", "deploy", "train", "compress", "measuring"):
            open_run.enter(stage)
            seen.append(store(cfg.tracking).get_run(open_run.run_id).data.tags["tsexp.stage"])
        raise KeyError
    assert seen == ["train", "deploy", "deploy", "deploy", "measuring"]
