"""The stage cache: whole entries or none, whichever process dies when."""

import dataclasses
import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from tsexp.cache import Cache, CacheError
from tsexp.config import ConfigError
from tsexp.system import cpu
from tsexp.system.files import digests

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


@pytest.mark.parametrize(
    ("joules", "most_w", "kept"),
    [
        *((0.0, 2e3, True), (1.0, 2e3, True), (-1.0, 2e3, False), (1e9, 2e3, False), (1e9, 2e12, True)),
        *((1e9, None, True), (-1.0, None, False)),  # it does not tell
        *((float(text), most_w, False) for text in ("nan", "inf") for most_w in (2e3, None)),
    ],
)
def test_joules_of_a_counter_that_wrapped_are_not_kept(tmp_path, joules, most_w, kept):
    counter = SimpleNamespace(source="zeus:rapl", begin=lambda: None, end=lambda: joules)
    if most_w is not None:
        counter.most_w = most_w

    def build(folder):
        time.sleep(0.01)
        write(folder)

    cost = Cache(tmp_path, lambda: counter).stage("a", 1, {}, build).cost
    assert cost["energy_j"] == ({"zeus:rapl": joules} if kept else {})


@pytest.mark.parametrize(
    ("source", "shared", "foreign_s", "kept"),
    [
        ("zeus:rapl", None, 0.9, True),
        ("zeus:rapl", None, 2.0, False),
        ("external:plug", None, 2.0, False),
        ("zeus:nvml", False, 2.0, True),  # a GPU's counter sees who else is on the board
        ("zeus:nvml", True, 0.0, False),
        ("zeus:nvml", None, 2.0, False),
    ],
)
def test_joules_of_the_whole_machine_are_not_kept_where_others_worked_too(
    tmp_path, monkeypatch, source, shared, foreign_s, kept
):
    counter = SimpleNamespace(source=source, shared=shared, begin=lambda: None, end=lambda: 50.0)
    busy_s = iter((100.0, 100.0 + foreign_s))
    monkeypatch.setattr(cpu, "busy_s", lambda: next(busy_s))
    cost = Cache(tmp_path, lambda: counter).stage("a", 1, {}, write).cost
    assert cost["energy_j"] == ({source: 50.0} if kept else {})


def test_what_a_counter_fails_to_say_costs_nothing_that_was_made(tmp_path, caplog):
    def end():
        raise OSError("the log is gone")

    counter = SimpleNamespace(source="external:plug", begin=lambda: None, end=end)
    entry = Cache(tmp_path, lambda: counter).stage("a", 1, {}, write)
    assert entry.cost["energy_j"] == {}
    assert "joules of what was just made are not known: OSError: the log is gone" in caplog.text
    assert Cache(tmp_path).stage("a", 1, {}, refuse).cost == entry.cost


STAGES = ("dense", "prune", "finetune", "qat", "artifact", "scores", "peaks")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache with an entry of every kind of stage, as an experiment makes it, and how each is asked for."""
    from conftest import TINY, compose
    from tsexp import compress, data, energy, runtimes, training
    from tsexp.system import processes

    root = tmp_path_factory.mktemp("kept")
    asked = {}

    class Watched(Cache):
        def stage(self, name, version, key, build, unfinished=None):
            asked[name] = name, version, key
            return super().stage(name, version, key, build, unfinished)

    more = ["data=italy_power_demand", "prune.ratio=0.5", "prune.finetune_epochs=1", "quant.mode=qat"]
    cfg = compose(*TINY, *more, "quant.qat_epochs=1")
    dataset, cache = data.load(cfg.data, cfg.paths.data, 0), Watched(root)
    dense = training.train(cfg.model, cfg.train, 0, dataset, cache)
    fitted = [dense, *compress.compress(dense, cfg, dataset, cache).values()][-1]
    artifact = runtimes.deploy(
        fitted, dataclasses.replace(cfg.quant, mode="none"), cfg.runtime, dataset, cache
    )
    with pytest.MonkeyPatch.context() as patched:  # to start processes takes longer than what they do
        patched.setattr(processes, "run", lambda target, *words, **_: processes.call(target, words))
        energy.score(artifact, dataset, cfg.measure, cache, progress=False)
        energy.peaks(cfg.measure, cache)
    assert set(asked) == set(STAGES)
    return root, asked


def payload(folder):
    """The largest file that a stage made."""
    return max((p for p in folder.iterdir() if p.name != "entry.json"), key=lambda p: p.stat().st_size)


def cut(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def flip(file, share):
    content = bytearray(file.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1 << int(8 * share) % 8
    file.write_bytes(content)


def replace(path, make):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def sealed(folder, **changes):
    about = json.loads((folder / "entry.json").read_text())
    (folder / "entry.json").write_text(json.dumps(about | changes))


DAMAGES = {
    **{
        f"cut to {share}": lambda f, share=share: cut(payload(f), share)
        for share in (0, 0.1, 0.5, 0.9, 0.999)
    },
    **{f"flipped at {share}": lambda f, share=share: flip(payload(f), share) for share in (0, 0.3, 0.7, 1)},
    "deleted": lambda f: payload(f).unlink(),
    "a folder in place of a file": lambda f: replace(payload(f), Path.mkdir),
    "a link in place of a file": lambda f: replace(payload(f), lambda p: p.symlink_to("/etc/hostname")),
    "a pipe in place of a file": lambda f: replace(payload(f), os.mkfifo),
    "a stranger": lambda f: (f / "stranger").touch(),
    "a link more": lambda f: (f / "stranger").symlink_to("/etc"),
    **{
        f"entry.json is {text[:20]}": lambda f, text=text: (f / "entry.json").write_text(text)
        for text in (
            "",
            "[]",
            "1",
            "null",
            '"a"',
            "{}",
            '{"files": null}',
            '{"files": []}',
            '{"files": {',
            20_000 * "[",
        )
    },
    "entry.json is no text": lambda f: (f / "entry.json").write_bytes(b"\xff\x00"),
    "entry.json is not there": lambda f: (f / "entry.json").unlink(),
    "entry.json is a folder": lambda f: replace(f / "entry.json", Path.mkdir),
    "entry.json is a pipe": lambda f: replace(f / "entry.json", os.mkfifo),
    "it lists no files": lambda f: sealed(f, files={}),
    "it lists a file elsewhere": lambda f: sealed(f, files={"../../../etc/hostname": "00"}),
    "it has no cost": lambda f: sealed(f, cost=None),
    "its cost is no number": lambda f: sealed(f, cost={"wall_s": "much", "cpu_s": 1, "energy_j": {}}),
    "empty": lambda f: [shutil.rmtree(f), f.mkdir()],
    "a file in place of the entry": lambda f: replace(f, Path.touch),
    "a link in place of the entry": lambda f: replace(f, lambda p: p.symlink_to("/etc")),
    "a dangling link in place of the entry": lambda f: replace(f, lambda p: p.symlink_to("/proc/nowhere")),
    "a pipe in place of the entry": lambda f: replace(f, os.mkfifo),
    "a file in place of the stage": lambda f: replace(f.parent, Path.touch),
    "a dangling link in place of the stage": lambda f: replace(
        f.parent, lambda p: p.symlink_to("/proc/nowhere")
    ),
    "a folder in place of the lock": lambda f: replace(f.with_name(f"{f.name}.lock"), Path.mkdir),
    "a file in place of the half-made entry": lambda f: [
        shutil.rmtree(f),
        f.with_name(f"{f.name}.partial").touch(),
    ],
}
WHOLE = ("a folder in place of the lock",)
"""What leaves the entry as it was."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_happens_to_an_entry_of_whatever_stage_it_is_rebuilt(kept, tmp_path, damage):
    whole, asked = kept
    root = tmp_path / "cache"
    shutil.copytree(whole, root)
    for name, version, key in asked.values():
        entry = Cache(root).stage(name, version, key, refuse).folder
        original = whole / name / entry.name
        DAMAGES[damage](entry)

        def build(folder, original=original):
            for file in original.iterdir():
                if file.name != "entry.json":
                    shutil.copyfile(file, folder / file.name)

        again = Cache(root).stage(name, version, key, refuse if damage in WHOLE else build)
        assert again.reused == (damage in WHOLE)
        assert again.folder == entry
        assert again.cost["wall_s"] >= 0
        assert digests(again.folder, "entry.json") == digests(original, "entry.json")
        assert Cache(root).stage(name, version, key, refuse).reused


@pytest.mark.parametrize("what", ["file", "link", "read-only"])
def test_a_cache_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, what):
    from conftest import compose
    from tsexp import pipeline

    root = tmp_path / "cache"
    if what == "file":
        root.write_text("mine")
    elif what == "link":
        root.symlink_to(tmp_path / "nowhere")
    else:  # for root, too, to whom permissions are nothing

        def refused(dir):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

        monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(
        ConfigError, match=r"^paths.cache=.*/cache cannot be written into \(.*\); .*$"
    ) as error:
        pipeline.check(compose("data=italy_power_demand", f"paths.cache={root}"))
    assert len(str(error.value).splitlines()) == 1
    assert what != "file" or root.read_text() == "mine"


def test_what_a_killed_process_left_half_made_is_swept_up(tmp_path):
    for name in ("left", "busy"):
        (tmp_path / "dense" / f"{name}.partial").mkdir(parents=True)
    with FileLock(tmp_path / "dense" / "busy.lock"):
        Cache(tmp_path).check()
        assert entries(tmp_path) == ["busy.partial"]
    Cache(tmp_path).check()
    assert entries(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_cache_of_somebody_else_is_refused_before_any_work(tmp_path):
    """With real permissions."""
    root = tmp_path / "cache"
    root.mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = "import os; from pathlib import Path; from tsexp.cache import Cache; os.setuid(65534)\n"
    code += f"Cache(Path({str(root)!r})).check()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith(
        f"tsexp.config.errors.ConfigError: paths.cache={root} cannot be written into (Permission denied); "
    )


def python_full(folder):
    (folder / "half.bin").write_bytes(bytes(3 << 20))


def safetensors_full(folder):
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3 << 18)}, folder / "half.safetensors")


def says_so(folder):
    """What a library in C++ or Rust makes of it."""
    (folder / "half.txt").write_text("half")
    raise RuntimeError("I/O error: No space left on device (os error 28)")


def raises(folder):
    (folder / "half.txt").write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refused_full(root, build):
    with pytest.raises(
        CacheError, match=r"^no space left on the disk of .*paths.cache=…; .* where it stopped$"
    ):
        Cache(root).stage("dense", 1, KEY, build)
    assert entries(root) == []
    assert not Cache(root).stage("dense", 1, KEY, write).reused


@pytest.mark.parametrize("build", [says_so, raises])
def test_a_disk_that_becomes_full_leaves_nothing_half_written(tmp_path, build):
    refused_full(tmp_path, build)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root can mount")
@pytest.mark.parametrize("build", [python_full, safetensors_full])
def test_a_disk_that_is_really_full_leaves_nothing_half_written(tmp_path, build):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("no mounting here")
    try:
        for _ in range(10):
            refused_full(tmp_path, build)
            shutil.rmtree(tmp_path / "dense")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_told_of_whatever_has_no_room(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("mkdir", "rename", "write_text"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, full)
            with pytest.raises(CacheError, match="no space left"):
                Cache(tmp_path / name).stage("dense", 1, KEY, write)
        assert entries(tmp_path / name) == [] if (tmp_path / name).exists() else True


def test_another_pytorch_is_another_entry(tmp_path, monkeypatch):
    Cache(tmp_path).stage("a", 1, {}, write)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert not Cache(tmp_path).stage("a", 1, {}, write).reused
