"""What docs/models.md says, done as written: a run is served, asked, exported, run bare, and given a file."""

import csv
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import made_runs
from conftest import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text()
TAKES = "this model takes numbers of shape (batch, 1, 24)"
GOOD = [[list(range(24))]]
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def commands(beginning):
    """The commands of the page that begin so."""
    return [c for c in re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.M | re.S) if beginning in c]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of somebody who ran the example, with a tiny model."""
    import mlflow

    folder = tmp_path_factory.mktemp("models")
    (example,) = re.findall(r"^    python (-m tsexp data=.*)$", PAGE, re.M)
    overrides = [*shlex.split(example), *TINY]
    subprocess.run([sys.executable, *overrides], cwd=folder, check=True, timeout=300)
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    stored = Path(client.download_artifacts(run.info.run_id, "predictions.csv"))
    with stored.open(newline="") as f:
        rows = list(csv.DictReader(f))
    return SimpleNamespace(folder=folder, run_id=run.info.run_id, stored=rows)


def start(folder, command):
    """Start MLflow's server and return its process and address; it answers when this returns."""
    port = free_port()
    (variable, *words) = shlex.split(command.replace("--port 5001", f"--port {port}"))
    assert words[words.index("--host") + 1] == "127.0.0.1"
    name, _, value = variable.partition("=")
    server = subprocess.Popen(
        words,
        cwd=folder,
        env=ENVIRONMENT | {name: value},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "server.log").open("w"),
        start_new_session=True,
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.2)
    return server, f"http://127.0.0.1:{port}/invocations"


def stop(server):
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)


@pytest.fixture(scope="module")
def address(place):
    (command,) = commands("models serve")
    server, found = start(place.folder, command.replace("RUN", place.run_id))
    yield found
    stop(server)


def ask(address, content, kind="application/json"):
    """Status and text of an answer."""
    body = content if isinstance(content, str) else json.dumps(content)
    request = urllib.request.Request(address, body.encode(), {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_whole_test_split_is_answered_as_in_the_run(place, address, italy):
    status, text = ask(address, {"inputs": italy.x_test.astype(np.float64).tolist()})
    assert status == 200
    found = json.loads(text)["predictions"]
    assert [f["class"] for f in found] == [r["predicted"] for r in place.stored]
    for name in ("p_1", "p_2"):
        expected = [float(r[name]) for r in place.stored]
        assert [f[name] for f in found] == pytest.approx(expected, abs=1e-6)
    assert len(found) == len(italy.y_test) == 1029


def test_the_request_of_the_page_is_answered_as_it_says(place, address):
    (command,) = commands("curl")
    words = shlex.split(command.replace("http://127.0.0.1:5001/invocations", address))
    said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    (shown, refused) = (json.loads(text) for text in re.findall(r"^```json\n(.*?)\n```$", PAGE, re.M | re.S))
    (answer,) = json.loads(said)["predictions"]
    assert answer.keys() == shown["predictions"][0].keys()
    assert answer["p_1"] + answer["p_2"] == pytest.approx(1)
    assert json.loads(ask(address, {"inputs": [[[1, 2, 3]]]})[1]) == refused


@pytest.mark.parametrize("form", ["inputs", "instances"])
def test_numbers_of_any_kind_and_raw_scores(address, form):
    whole, floats = (ask(address, {form: series}) for series in (GOOD, np.array(GOOD, float).tolist()))
    assert whole == floats
    assert whole[0] == 200
    status, text = ask(address, {form: GOOD, "params": {"scores": True}})
    assert status == 200
    assert np.shape(json.loads(text)["predictions"]) == (1, 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"inputs": [[[1, 2, 3]]]}, f"shape (1, 1, 3) does not fit; {TAKES}"),
        ({"inputs": [list(range(24))]}, "shape (1, 24) has 2 axes instead of 3"),
        ({"inputs": []}, f"an empty batch, of shape (0,); {TAKES}"),
        ({"instances": []}, f"an empty batch, of shape (0,); {TAKES}"),
        ({"inputs": [[[float("nan")] * 24]]}, f"series 0 has NaN where a value is needed; {TAKES}"),
        ({"inputs": [[[None] * 24]]}, f"series 0 has NaN where a value is needed; {TAKES}"),
        ({"inputs": [[[1e300] * 24]]}, "series 0 has infinite values, or some that float32 cannot hold"),
        ({"inputs": [[[1e16] * 24]]}, "series 0 has values beyond ±1e+15"),
        ({"inputs": [[["a"] * 24]]}, "values of type <U1"),
        ({"inputs": [[["1.5"] * 23 + [None]]]}, "values that are no numbers"),
        ({"inputs": {"series": GOOD}}, "not an array"),
        ({"dataframe_split": {"data": GOOD[0]}}, "a table, which has no axis of channels"),
        ({"inputs": [[[1, 2], [3]]]}, "Invalid input."),
        ({}, "exactly one of the input fields"),
        ("nonsense", "valid JSON"),
    ],
)
def test_what_does_not_fit_is_refused_with_status_400(address, content, said):
    status, text = ask(address, content)
    assert status == 400
    message = json.loads(text)["message"]
    assert said in message
    if TAKES in message:  # ours, not MLflow's
        assert len(message.splitlines()) == 1
        assert len(message) < 200


def test_csv_and_other_types_of_content_are_refused(address):
    status, text = ask(address, "1,2\n3,4", "text/csv")
    assert (status, json.loads(text)["message"].split(",")[0]) == (400, "a table")
    assert ask(address, {"inputs": GOOD}, "text/plain")[0] == 415


@pytest.mark.parametrize("runtime", ["openvino", "eager"])
def test_many_at_once_are_answered_alike(tmp_path, italy, runtime):
    run = made_runs.make(tmp_path, italy, "data=italy_power_demand", f"runtime={runtime}")
    (command,) = commands("models serve")
    server, address = start(tmp_path, command.replace("RUN", run.run_id))
    try:
        parts = [{"inputs": part.tolist()} for part in np.array_split(italy.x_test, 64)]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda part: ask(address, part), parts))
    finally:
        stop(server)
    assert {status for status, _ in answers} == {200}
    found = [f["class"] for _, text in answers for f in json.loads(text)["predictions"]]
    assert found == [italy.classes[i] for i in run.scores.argmax(1)]


def test_the_other_commands_of_the_page_run_as_written(place, italy):
    import shutil

    shutil.copyfile(italy.files[1], place.folder / "new.ts")
    for beginning in ("tsexp.export", "python shared/run.py", "tsexp.predict"):
        (command,) = commands(beginning)
        words = shlex.split(command.replace("RUN", place.run_id))
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=place.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    with (place.folder / "answers.csv").open(newline="") as f:
        found = list(csv.DictReader(f))
    same = ("label", "predicted", "p_1", "p_2")
    assert [[r[k] for k in same] for r in found] == [[r[k] for k in same] for r in place.stored]
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    code = f"{example}\nassert classes == ['1', '2']\nprint(*told)"
    keys = subprocess.run(
        [sys.executable, "-c", code], cwd=place.folder, capture_output=True, text=True, check=True
    ).stdout.split()
    table = PAGE.split("| key | |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table.replace("`…_lo_j`, `…_hi_j`", ""))) - {"true"}
    named |= {f"energy_per_inference_{end}_j" for end in ("lo", "hi")}
    assert named == set(keys)
