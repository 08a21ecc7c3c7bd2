"""The stage cache: whole entries or none, whichever process dies when."""

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tsexp.cache import Cache

KEY = {"ratio": 0.5}


def write(folder, text="made"):
    (folder / "part").mkdir()
    (folder / "part" / "made.txt").write_text(text)


def refuse(folder):
    raise AssertionError("built again")


def entries(root):
    return sorted(p.name for p in root.rglob("*") if not p.name.endswith(".lock") and p.parent != root)


def test_stage_is_built_once(tmp_path):
    first = Cache(tmp_path).stage("dense", 1, KEY, write)
    second = Cache(tmp_path).stage("dense", 1, dict(KEY), refuse)
    assert (first.reused, second.reused) == (False, True)
    assert (first.folder, first.signature) == (second.folder, second.signature)
    assert (second.folder / "part" / "made.txt").read_text() == "made"
    assert first.folder == tmp_path / "dense" / first.signature


def test_failing_build_leaves_nothing(tmp_path):
    def fail(folder):
        write(folder)
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        Cache(tmp_path).stage("dense", 1, KEY, fail)
    assert entries(tmp_path) == []
    assert not Cache(tmp_path).stage("dense", 1, KEY, write).reused


def change(folder):
    (folder / "part" / "made.txt").write_text("maDe")


def remove(folder):
    (folder / "part" / "made.txt").unlink()


def add(folder):
    (folder / "stranger.txt").touch()


def unseal(folder):
    (folder / "entry.json").unlink()


def truncate(folder):
    (folder / "entry.json").write_text('{"files": {')


@pytest.mark.parametrize("damage", [change, remove, add, unseal, truncate])
def test_damaged_entry_is_rebuilt_with_a_warning(tmp_path, caplog, damage):
    entry = Cache(tmp_path).stage("dense", 1, KEY, write)
    damage(entry.folder)
    with caplog.at_level(logging.WARNING, "tsexp"):
        again = Cache(tmp_path).stage("dense", 1, KEY, write)
    assert not again.reused
    assert again.folder == entry.folder
    assert (again.folder / "part" / "made.txt").read_text() == "made"
    assert not (again.folder / "stranger.txt").exists()
    assert [str(entry.folder) in r.getMessage() and "damaged" in r.getMessage() for r in caplog.records] == [
        True
    ]
    assert Cache(tmp_path).stage("dense", 1, KEY, refuse).reused


def test_whole_entry_gives_no_warning(tmp_path, caplog):
    for _ in range(2):
        Cache(tmp_path).stage("dense", 1, KEY, write)
    assert caplog.records == []


def test_leftover_of_a_killed_process_is_discarded(tmp_path):
    signature = Cache(tmp_path / "other").stage("dense", 1, KEY, write).signature
    partial = tmp_path / "dense" / f"{signature}.partial"
    partial.mkdir(parents=True)
    (partial / "half.txt").touch()
    entry = Cache(tmp_path).stage("dense", 1, KEY, write)
    assert not entry.reused
    assert entries(tmp_path / "dense") == ["entry.json", "made.txt", "part"]
    assert not partial.exists()


@pytest.mark.parametrize(
    ("name", "version", "key"),
    [("slim", 1, KEY), ("dense", 2, KEY), ("dense", 1, {"ratio": 0.25}), ("dense", 1, KEY | {"more": None})],
)
def test_other_stage_version_or_key_is_another_entry(tmp_path, name, version, key):
    first = Cache(tmp_path).stage("dense", 1, KEY, write)
    other = Cache(tmp_path).stage(name, version, key, lambda folder: write(folder, "other"))
    assert not other.reused
    assert other.signature != first.signature
    assert (first.folder / "part" / "made.txt").read_text() == "made"
    assert Cache(tmp_path).stage("dense", 1, KEY, refuse).reused


def test_order_of_keys_does_not_matter(tmp_path):
    Cache(tmp_path).stage("dense", 1, {"a": 1, "b": {"c": 2, "d": 3}}, write)
    assert Cache(tmp_path).stage("dense", 1, {"b": {"d": 3, "c": 2}, "a": 1}, refuse).reused


def build_counted(root, barrier, answers):
    def build(folder):
        with (root / "builds").open("a") as counter:
            counter.write("x")
        time.sleep(0.5)
        write(folder)

    barrier.wait(60)
    entry = Cache(root).stage("dense", 1, KEY, build)
    answers.put((entry.reused, (entry.folder / "part" / "made.txt").read_text()))


def test_two_processes_build_an_entry_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=build_counted, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for p in processes:
        p.start()
    found = [answers.get(timeout=60) for _ in processes]
    for p in processes:
        p.join(60)
    assert (tmp_path / "builds").read_text() == "x"
    assert sorted(found) == [(False, "made"), (True, "made")]


SLOW = """
import sys, time
from pathlib import Path
from tsexp.cache import Cache

def build(folder):
    (folder / "half.txt").write_text("half")
    print("building", flush=True)
    time.sleep(600)

Cache(Path(sys.argv[1])).stage("dense", 1, {"ratio": 0.5}, build)
"""


def test_kill_in_the_middle_of_a_build(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "building\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert "half.txt" in entries(tmp_path)
    assert not [p for p in Path(tmp_path, "dense").iterdir() if p.suffix not in (".partial", ".lock")]
    entry = Cache(tmp_path).stage("dense", 1, KEY, write)
    assert not entry.reused
    assert entries(tmp_path) == sorted([entry.signature, "part", "made.txt", "entry.json"])
    assert Cache(tmp_path).stage("dense", 1, KEY, refuse).reused


def test_what_an_entry_cost_is_kept_with_it(tmp_path):
    class Counter:
        source = "mains:plug"

        def begin(self):
            self.calls = ["begin"]

        def end(self):
            return 42.0

    def build(folder):
        deadline = time.process_time() + 0.05
        while time.process_time() < deadline:
            pass
        write(folder)

    cost = Cache(tmp_path, Counter).stage("a", 1, {}, build).cost
    assert cost["energy_j"] == {"mains:plug": 42.0}
    assert cost["cpu_s"] >= 0.05
    assert cost["wall_s"] >= cost["cpu_s"] - 0.03
    assert Cache(tmp_path).stage("a", 1, {}, refuse).cost == cost
    assert Cache(tmp_path).stage("b", 1, {}, build).cost["energy_j"] == {}


@pytest.mark.parametrize("content", ["[]", "1", '{"files": null}', "{}", ""])
def test_whatever_stands_in_entry_json_it_is_rebuilt(tmp_path, content):
    folder = Cache(tmp_path).stage("a", 1, {}, write).folder
    (folder / "entry.json").write_text(content)
    assert not Cache(tmp_path).stage("a", 1, {}, write).reused


def test_a_file_in_place_of_an_entry_is_replaced(tmp_path):
    folder = Cache(tmp_path).stage("a", 1, {}, write).folder
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    assert not Cache(tmp_path).stage("a", 1, {}, write).reused
    assert folder.is_dir()


def test_another_pytorch_is_another_entry(tmp_path, monkeypatch):
    Cache(tmp_path).stage("a", 1, {}, write)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert not Cache(tmp_path).stage("a", 1, {}, write).reused
