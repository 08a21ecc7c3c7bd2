"""The command line as its users see it: real processes, a real store, tiny models."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest
from omegaconf import OmegaConf

from commands import environment, tsexp
from conftest import TINY
from tsexp import __version__, tracking
from tsexp.command import SUBCOMMANDS, called, offered
from tsexp.config import Config
from tsexp.runtimes import openvino
from tsexp.sweeps import jobs

ITALY = [*TINY, "data=italy_power_demand"]


METRICS = {
    *(
        "test/control_accuracy",
        "test/dense_accuracy",
        "val/accuracy",
        "val/series",
        "measure/pairs",
        "measure/processes",
    ),
    *(
        "energy/reference_per_inference_j",
        "cost/load_ms",
        "cost/first_call_ms",
        "cost/train_s",
        "cost/compress_s",
    ),
    *(
        "test/accuracy",
        "test/balanced_accuracy",
        "test/macro_f1",
        "test/nll",
        "memory/peak_mb",
        "prune/requested_ratio",
        "prune/achieved_ratio",
    ),
    *(
        "energy/per_inference_j",
        "energy/per_inference_net_j",
        "energy/window_j",
        "power/mean_w",
        "throughput/series_per_s",
    ),
    *("latency/p50_ms", "latency/p90_ms", "latency/p99_ms", "size/parameters", "size/macs", "size/bytes"),
    *(f"vs_dense/{k}" for k in ("speedup", "speedup_lo", "speedup_hi", "cpu_speedup", "size_ratio")),
    *(f"vs_dense/{k}" for k in ("energy_saving_pct", "energy_saving_lo", "energy_saving_hi")),
    *(f"vs_dense/{k}" for k in ("accuracy_drop_pt", "accuracy_drop_lo", "accuracy_drop_hi")),
}


def rows_of(path):
    with Path(path).open(newline="") as f:
        return list(csv.DictReader(f))


def client(folder):
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


def runs(folder, condition=""):
    c = client(folder)
    return c.search_runs([c.get_experiment_by_name("tsexp").experiment_id], condition)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A folder in which a sweep over three ratios has been run."""
    folder = tmp_path_factory.mktemp("sweep")
    done = tsexp(
        folder,
        "-m",
        "prune.ratio=0,0.3,0.5",
        "prune.scope=global",
        f"hydra.sweep.dir={folder}/multirun/one",
        *ITALY,
        env=environment(),
    )
    return folder, done


def test_a_sweep_ends_with_a_table_a_picture_and_the_line_for_the_ui(sweep):
    folder, done = sweep
    assert all(done.stdout.count(f"\n ratio={r} ") == 2 for r in ("0", "0.3", "0.5"))  # two tables
    assert all(f"\nratio {r}: " in done.stdout for r in ("0", "0.3", "0.5"))  # and in words
    assert "estimated from CPU time" in done.stdout or "zeus:" in done.stdout
    assert "mlflow ui --host 127.0.0.1" in done.stdout
    (picture,) = folder.glob("multirun/one/sweep.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in done.stdout


def test_jobs_are_children_of_the_sweep_with_the_metrics_of_the_design(sweep):
    folder, _ = sweep
    (parent,) = runs(folder, "tags.`tsexp.stage` = 'sweep'")
    children = runs(folder, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(c.info.run_name for c in children) == [
        "prune.ratio=0",
        "prune.ratio=0.3",
        "prune.ratio=0.5",
    ]
    assert parent.info.status == "FINISHED"
    assert children
    for child in children:
        assert child.data.metrics.keys() >= METRICS
        assert {
            "tsexp.signature",
            "tsexp.energy_source",
            "tsexp.valid",
            "tsexp.git_sha",
            "tsexp.stage",
        } <= child.data.tags.keys()
        assert child.data.params["prune.scope"] == "global"
    same = {c.info.run_name: c.data.tags["tsexp.is_reference"] for c in children}
    assert same == {"prune.ratio=0": "true", "prune.ratio=0.3": "false", "prune.ratio=0.5": "false"}
    parameters = {
        c.data.metrics["prune/requested_ratio"]: c.data.metrics["size/parameters"] for c in children
    }
    assert parameters[0.0] > parameters[0.3] > parameters[0.5]


def test_every_score_can_be_recomputed_from_the_predictions(sweep):
    folder, _ = sweep
    c = client(folder)
    (run,) = runs(folder, "attributes.run_name = 'prune.ratio=0.5'")
    names = {a.path for a in c.list_artifacts(run.info.run_id)}
    assert {
        "config.yaml",
        "windows.json",
        "predictions.csv",
        "training.png",
        "confusion.png",
        "manifest.json",
        "kept.json",
    } <= names
    rows = rows_of(c.download_artifacts(run.info.run_id, "predictions.csv"))
    assert len(rows) == 1029
    assert np.mean([r["label"] == r["predicted"] for r in rows]) == pytest.approx(
        run.data.metrics["test/accuracy"]
    )
    raw = json.loads(Path(c.download_artifacts(run.info.run_id, "windows.json")).read_text())
    from tsexp.energy.statistics import summarize

    assert summarize(raw)["vs_dense/speedup"] == pytest.approx(run.data.metrics["vs_dense/speedup"])


def test_the_logged_model_runs_from_another_folder_with_its_own_code_and_without_pickles(
    sweep, tmp_path, load_data
):
    folder, _ = sweep
    (run,) = runs(folder, "attributes.run_name = 'prune.ratio=0.3'")
    assert not [
        p
        for p in (folder / "mlartifacts").rglob("*")
        if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".ckpt")
    ]
    code = (
        "import mlflow, numpy as np, sys\n"
        f"mlflow.set_tracking_uri('sqlite:///{folder}/mlflow.db')\n"
        f"model = mlflow.pyfunc.load_model('runs:/{run.info.run_id}/model')\n"
        "answer = model.predict(np.load(sys.argv[1], allow_pickle=False))\n"
        "import tsexp; print(tsexp.__file__)\n"
        "import json; print('CLASSES', json.dumps(answer['class'].tolist()))"
    )
    series = load_data("ItalyPowerDemand").x_test[:20]
    np.save(tmp_path / "x.npy", series)
    done = subprocess.run(
        [sys.executable, "-c", code, "x.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "WARNING" not in done.stderr
    assert "/model/code/tsexp.zip/" in done.stdout
    assert not any("tsexp" in p.read_text() for p in (folder / "mlartifacts").rglob("requirements.txt"))
    rows = rows_of(client(folder).download_artifacts(run.info.run_id, "predictions.csv"))
    assert json.loads(done.stdout.split("CLASSES ")[1]) == [r["predicted"] for r in rows[:20]]


def test_the_same_command_again_measures_nothing_and_shows_the_same(sweep):
    folder, _ = sweep
    before = len(runs(folder))
    again = tsexp(folder, "-m", "prune.ratio=0,0.3,0.5", "prune.scope=global", *ITALY)
    assert "3 of them measured before" in again.stdout
    assert len(runs(folder)) == before


@pytest.mark.slow
def test_parallel_jobs_in_every_runtime_that_needs_no_compiler_are_what_one_after_the_other_makes(
    sweep, tmp_path
):
    folder, _ = sweep
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    names = ("eager", "onnxruntime", "openvino")
    done = tsexp(
        tmp_path,
        "-m",
        *parallel,
        f"runtime={','.join(names)}",
        "prune.ratio=0.3",
        "prune.scope=global",
        *ITALY,
    )
    assert "\n3 jobs" in done.stdout
    accuracy = {
        r.info.run_name: r.data.metrics["test/accuracy"]
        for r in runs(tmp_path)
        if "tsexp.valid" in r.data.tags
    }
    assert accuracy.keys() == {f"runtime={name}" for name in names}
    (alone,) = runs(folder, "attributes.run_name = 'prune.ratio=0.3'")
    assert accuracy["runtime=eager"] == alone.data.metrics["test/accuracy"]
    assert list(accuracy.values()) == pytest.approx([accuracy["runtime=eager"]] * 3, abs=0.005)


@pytest.mark.slow
def test_a_sweep_in_the_folder_of_another_shows_its_own_jobs_only(sweep):
    folder, _ = sweep
    again = tsexp(
        folder,
        "-m",
        "prune.ratio=0.3",
        "prune.scope=global",
        f"hydra.sweep.dir={folder}/multirun/one",
        *ITALY,
    )
    assert "1 jobs, 1 of them measured before" in again.stdout


def test_a_job_that_is_killed_does_not_take_its_sweep_along(tmp_path):
    # The first job kills its own process while it trains; the other must be measured.
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'tsexp.system.processes' in sys.orig_argv:\n"
        "    import tsexp.training.loop as t\n"
        "    real = t.fit\n"
        "    def fit(model, config, *a, **k):\n"
        "        if config.epochs == 1 and config.lr == 0.123: os.kill(os.getpid(), 9)\n"
        "        return real(model, config, *a, **k)\n"
        "    t.fit = fit\n"
    )
    env = environment() | {"PYTHONPATH": str(tmp_path / "evil"), "COLUMNS": "170"}
    command = [sys.executable, "-m", "tsexp", "-m", "train.lr=0.123,0.002", *ITALY, "train.epochs=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "train.lr=0.123" in done.stderr
    assert "SIGKILL" in done.stderr
    assert "1 jobs, 1 failed" in done.stdout
    (dead,) = runs(tmp_path, "attributes.run_name = 'train.lr=0.123'")
    assert dead.info.status == "FAILED"
    assert "SIGKILL" in dead.data.tags["tsexp.error"]
    assert [a.path for a in client(tmp_path).list_artifacts(dead.info.run_id) if "traceback" in a.path]
    (parent,) = runs(tmp_path, "tags.`tsexp.stage` = 'sweep'")
    assert parent.info.status == "FAILED"


def everybody(process):
    """A process and all that it started."""
    return [process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))]


@pytest.mark.parametrize(
    ("sent", "to", "code", "word", "end"),
    [
        (signal.SIGINT, "parent", 130, "interrupted", "FAILED"),
        (signal.SIGTERM, "parent", 143, "terminated (SIGTERM)", "KILLED"),
        pytest.param(
            *(signal.SIGTERM, "everybody", 143, "terminated (SIGTERM)", "KILLED"), marks=pytest.mark.slow
        ),  # as SLURM does
    ],
)
def test_ctrl_c_and_sigterm_end_the_job_and_its_sweep_and_leave_no_process(
    tmp_path, sent, to, code, word, end
):
    command = [
        sys.executable,
        "-m",
        "tsexp",
        "-m",
        "seed=0,1",
        *ITALY,
        "train.epochs=100000",
        "train.max_steps=0",
        "train.patience=0",
    ]
    with (
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        contextlib.ExitStack() as whatever_fails,
    ):
        whatever_fails.callback(process.kill)
        notes = []
        until = time.monotonic() + 120
        while not notes and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.2)
            notes = list(tmp_path.glob("multirun/*/*/0/running.json"))
        (note,) = notes
        time.sleep(2)
        job, all_of_it = int(json.loads(note.read_text())["pid"]), everybody(process)
        assert job in all_of_it
        for pid in all_of_it if to == "everybody" else [process.pid]:
            os.kill(pid, sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{word}; the same command goes on where it stopped" in said
    assert "Traceback" not in said
    assert not any(map(psutil.pid_exists, all_of_it))
    assert {r.info.status for r in runs(tmp_path)} == {end}
    (run,) = runs(tmp_path, "attributes.run_name = 'seed=0'")
    assert run.data.tags["tsexp.error"] == word


def test_a_failed_job_is_a_failed_run_with_its_traceback(tmp_path):
    done = tsexp(tmp_path, *ITALY, "train.lr=1e30", "train.clip=0", check=False)
    assert done.returncode == 1
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.tags["tsexp.stage"] == "train"
    text = Path(client(tmp_path).download_artifacts(run.info.run_id, "traceback.txt")).read_text()
    assert "Traceback" in text
    assert "lower train.lr" in text


@pytest.mark.slow
def test_a_sweep_skips_what_no_runtime_supports_and_succeeds(tmp_path):
    done = tsexp(tmp_path, "-m", "quant.mode=dynamic,bf16", "runtime=onnxruntime", "train.epochs=1", *ITALY)
    assert "1 jobs, 1 skipped" in done.stdout
    said = r"skipped quant.mode=bf16 with runtime=onnxruntime on cpu is not supported.* \(quant.mode=bf16\)"
    assert re.search(said, done.stdout)
    (run,) = (r for r in runs(tmp_path) if "tsexp.valid" in r.data.tags)
    assert run.data.tags["tsexp.runtime"] == "onnxruntime"
    manifest = json.loads(
        Path(client(tmp_path).download_artifacts(run.info.run_id, "manifest.json")).read_text()
    )
    assert manifest["matmuls"]["int8"] > 0


@pytest.mark.slow
def test_automatic_choice_among_all_runtimes_in_a_sweep(tmp_path):
    tsexp(tmp_path, "-m", "quant.mode=dynamic,bf16", "runtime=auto", "train.epochs=1", *ITALY)
    made = {run.info.run_name: run for run in runs(tmp_path) if "tsexp.valid" in run.data.tags}
    assert set(made) == {"quant.mode=dynamic", "quant.mode=bf16"}
    assert made["quant.mode=bf16"].data.tags["tsexp.runtime"] in ("eager", "inductor", "openvino")
    windows = Path(client(tmp_path).download_artifacts(made["quant.mode=bf16"].info.run_id, "windows.json"))
    with_bf16 = {"eager", "inductor", *(["openvino"] if openvino.has_bf16() else [])}
    assert {t["runtime"] for t in json.loads(windows.read_text())["tried"]} == with_bf16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune.ratio=1.5"], "≥ 0 and < 1"),
        (["prune.ration=0.5"], "did you mean ratio"),
        (["-m", "prune.ratio=0.1,1.5"], "nothing was started"),
        (["data.path=/proc/nowhere"], "is not a folder"),
        (["tracking.uri=sqlite:////proc/mlflow.db"], "/proc takes no file"),
        (["quant.mode=static"], "supported"),
        (["epochs=5"], "did you mean train.epochs?"),
        (["experiment=null"], "null is no option of a group"),
        (["data=plad"], "did you mean plaid?"),
        (["-m", "quant.mode=static,qat"], "no job of this sweep can run"),
    ],
)
def test_bad_input_ends_with_one_message_before_any_work(tmp_path, arguments, words):
    done = tsexp(tmp_path, *arguments, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "cache").exists()


STORE_FAILS = "API request to http://me:secret@localhost/api failed"  # as MLflow says it


def test_a_password_is_in_nothing_that_a_failed_job_leaves(tiny, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError(STORE_FAILS)

    monkeypatch.setattr(jobs, "_experiment", fail)
    cfg = OmegaConf.merge(OmegaConf.structured(Config), asdict(tiny))
    outcome = jobs.execute(cfg, None, tmp_path, None)
    assert "me:***@localhost" in outcome.error
    assert "me:***@localhost" in caplog.text
    assert "me:***@localhost" in (tmp_path / "traceback.txt").read_text()
    assert "secret" not in caplog.text + "".join(p.read_text() for p in tmp_path.iterdir())


def test_a_password_is_in_nothing_that_a_failed_run_stores(tiny, tmp_path):
    with pytest.raises(RuntimeError), tracking.tracked(tiny, "", "a job", "signature", None):
        raise RuntimeError(STORE_FAILS)
    (run,) = runs(tmp_path)
    text = Path(client(tmp_path).download_artifacts(run.info.run_id, "traceback.txt")).read_text()
    assert run.data.tags["tsexp.error"] == "RuntimeError: API request to http://me:***@localhost/api failed"
    assert "me:***@localhost" in text
    assert "secret" not in text


def test_a_password_is_not_in_what_is_said_of_a_sweep(tmp_path):
    done = tsexp(tmp_path, "-m", "tracking.uri=bad://me:secret@localhost/db", check=False)
    assert "tracking.uri=bad://me:***@localhost/db is not a store" in done.stderr
    assert "secret" not in done.stdout + done.stderr


COMMAND = Path(sys.executable).with_name("tsexp")


def answers(*command, **environment_):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment() | environment_
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [[str(COMMAND)], [sys.executable, "-m", "tsexp"]])
def test_the_version_is_this_packages(command):
    assert answers(*command, "--version") == f"tsexp {__version__}\n"


@pytest.mark.parametrize("part", SUBCOMMANDS)
def test_each_subcommand_has_a_help_that_names_how_it_was_called(part):
    text = answers(str(COMMAND), part, "--help")
    assert text.startswith(f"usage: tsexp {part} ")
    options = set(re.findall(r"^  (--[\w-]+)", text, flags=re.M))
    assert options == {word for word in SUBCOMMANDS[part][1] if word.startswith("--")}
    assert answers(sys.executable, "-m", f"tsexp.{part}", "--help").startswith(
        f"usage: python -m tsexp.{part} "
    )


def test_how_it_was_called(monkeypatch):
    for first, part, said in (
        ("/usr/bin/tsexp", "", "tsexp"),
        ("/usr/bin/tsexp", "ui", "tsexp ui"),
        ("/x/tsexp/__main__.py", "", "python -m tsexp"),
        ("/x/tsexp/__main__.py", "ui", "python -m tsexp ui"),
        ("/x/tsexp/ui.py", "ui", "python -m tsexp.ui"),
        ("/x/tsexp/report/__main__.py", "report", "python -m tsexp.report"),
    ):
        monkeypatch.setattr(sys, "argv", [first])
        assert called(part) == said


def test_a_subcommand_gets_the_rest_of_the_line_and_its_status_is_the_commands(tmp_path):
    done = subprocess.run([COMMAND, "report", "tablse"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean tables?" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predicts", "RUN", "--output", "X.csv"], "predicts is no subcommand (did you mean predict?)"),
        (["zzz"], "zzz is no subcommand; there are report, doctor,"),
    ],
)
def test_a_first_word_that_is_nothing_is_told(words, said, tmp_path):
    done = tsexp(tmp_path, *words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"tsexp: error: {said}")


@pytest.mark.parametrize("uri", ["postgresql://me:secret@host/db", "https://secret@host/mlflow"])
def test_an_address_in_a_settings_place_shows_no_password(uri, tmp_path):
    done = tsexp(tmp_path, uri, check=False)
    assert done.returncode == 2
    assert "secret" not in done.stdout + done.stderr


def test_a_sweep_may_be_asked_for_behind_settings(tmp_path):
    done = tsexp(tmp_path, "prune.ratio=2", "-m", "seed=0,1", check=False, fresh=True)
    assert done.returncode == 2
    assert "job prune.ratio=2 seed=0: prune.ratio=2" in done.stderr


def test_a_file_of_ones_own_that_nobody_would_read_is_refused(tmp_path):
    """Hydra finds the shipped one of that name first, and says nothing."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "small.yaml").write_text("defaults: [t3]\nd_model: 16\nffn: 24\n")
    shown = tsexp(tmp_path, "model=small", "--cfg=job", "--config-dir", "mine", fresh=True)  # behind settings
    assert "d_model: 16" in shown.stdout
    (tmp_path / "mine" / "model" / "t3.yaml").write_text("d_model: 16\n")
    for words in (["--config-dir", "mine"], ["--config-di=mine"], ["-cd", "mine"], ["-cd=mine"]):
        done = tsexp(tmp_path, *words, "model=t3", "--cfg=job", check=False)
        assert done.returncode == 2
        assert "--config-dir mine has files with the names of shipped ones" in done.stderr
        assert "model/t3.yaml; give yours names of their own" in done.stderr
        assert "Traceback" not in done.stderr
    done = tsexp(tmp_path, "model=t3", "--config-dir", check=False, fresh=True)
    assert done.returncode == 2
    assert "expected one argument" in done.stderr


def test_a_sweep_that_runs_as_one_job_is_told(tmp_path):
    done = tsexp(tmp_path, "experiment=quick", "prune.ratio=2", check=False, fresh=True)
    assert done.returncode == 2
    assert (
        "tsexp: without -m this is one job, not the sweep over seed, data, model, prune.ratio," in done.stderr
    )


COMPLETED = {
    "tsexp re": ["report", "rerun="],
    "tsexp report f": ["freeze", "figures"],
    "tsexp ui --p": ["--port"],
    "tsexp data=pl": ["data=plaid"],
    "tsexp -m prune.ratio=0,0.5 model=t": ["model=t1", "model=t2", "model=t3", "model=t4", "model=t4h"],
    "tsexp data=plaid prune.ra": ["prune.ratio="],
    "tsexp nonsense=1 see": [],  # and no error in the middle of the line
}


def test_the_command_alone_offers_its_subcommands():
    assert offered("tsexp") == offered("tsexp ") == (tuple(SUBCOMMANDS), True)


@pytest.mark.slow
def test_bash_completes_groups_options_keys_and_subcommands(tmp_path):
    script = 'eval "$(tsexp -sc install=bash)"\ncomplete -p tsexp\n'
    for line in COMPLETED:
        script += (
            f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_CWORD={len(line.split()) - 1}; COMPREPLY=()\n"
            'hydra_bash_completion; echo "${COMPREPLY[*]}"\n'
        )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment() | {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}"},
    )
    registered, *words = done.stdout.splitlines()
    assert registered.endswith("-F hydra_bash_completion tsexp")
    assert [line.split() for line in words] == list(COMPLETED.values())
    assert done.stderr == ""


def test_completion_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['tsexp', '-sc', 'query=bash']\n"
        "from tsexp.__main__ import cli\n"
        "cli()\n"
        "print('HEAVY', {'torch', 'lightning', 'mlflow', 'aeon', 'zeus', 'sklearn'} & set(sys.modules))"
    )
    out = answers(sys.executable, "-c", code, COMP_LINE="tsexp data=acs")
    assert "data=acsf1" in out
    assert "HEAVY set()" in out


def test_a_store_that_does_not_answer_is_told_within_15_seconds(tmp_path):
    start = time.monotonic()
    done = tsexp(tmp_path, *ITALY, "tracking.uri=http://me:secret@127.0.0.1:9", check=False, fresh=True)
    assert time.monotonic() - start < 15
    assert done.returncode == 2
    assert "the store http://me:***@127.0.0.1:9 does not answer (Connection refused)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "cache").glob("dense/*"))


def test_windows_is_told_what_it_needs_before_any_work(monkeypatch):
    from tsexp import __main__

    monkeypatch.setattr(__main__, "main", lambda: pytest.fail("it went to work"))
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="needs Linux or macOS"):
        __main__.cli()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "compress", "deploy", "measuring", "track"])
def test_killed_in_any_stage_the_rerun_is_whole(tmp_path, stage):
    command = [sys.executable, "-m", "tsexp", *ITALY, "prune.ratio=0.5", "prune.finetune_epochs=2"]
    env = environment() | {"TSEXP_KILL": stage, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if '-m' in sys.orig_argv and 'tsexp' in sys.orig_argv:\n"
        "    import threading, tsexp.tracking as t\n"
        "    real = t.Tracked.enter\n"
        "    def enter(self, stage):\n"
        "        real(self, stage)\n"
        "        if stage == os.environ['TSEXP_KILL']: threading.Timer(0.15, lambda: os.kill(os.getpid(), "
        "9)).start()\n"
        "    t.Tracked.enter = enter\n"
    )
    killed = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    (run,) = runs(tmp_path)
    assert run.info.status == "RUNNING"
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert sorted(r.info.status for r in runs(tmp_path)) == ["FINISHED", "KILLED"]
    assert not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.slow
def test_two_parallel_sweeps_on_a_fresh_store_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "tsexp", "-m", *ITALY]
    both = [
        subprocess.Popen(
            [*command, f"prune.ratio={r}"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in ("0,0.3", "0.3,0.5")
    ]
    for process in both:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    measured = runs(tmp_path, "attributes.status = 'FINISHED' and tags.`tsexp.stage` = 'done'")
    assert sorted(r.data.metrics["prune/requested_ratio"] for r in measured) == [0.0, 0.3, 0.5]
    assert len(list((tmp_path / "cache" / "dense").glob("*/entry.json"))) == 1


@pytest.mark.slow
def test_the_built_package_runs_elsewhere(tmp_path):
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(root)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    env = environment() | {"PYTHONPATH": str(target)}
    where = "import tsexp, tsexp.config as c; print(tsexp.__file__); print(c.conf_dir())"
    out = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert out.count(str(target)) == 2
    command = [sys.executable, "-m", "tsexp", *ITALY]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
