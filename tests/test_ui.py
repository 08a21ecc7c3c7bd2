"""The MLflow UI on a store that a sweep has filled, clicked through in a real browser.

``make test-browser``.
"""

import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import pytest

from conftest import TINY
from tsexp import config as configs
from tsexp import stores, ui

RATIOS = ("0", "0.3", "0.5")
SAVING = "vs_dense/energy_saving_pct"
SWEEP = re.compile(r"prune\.ratio=0,0\.3,0\.5")


def test_a_store_that_is_not_there_or_has_nothing_of_ours_is_told(tmp_path):
    import mlflow

    with pytest.raises(configs.ConfigError, match="is not there; run something first"):
        ui.addresses(f"sqlite:///{tmp_path}/none.db", 5000)
    assert not (tmp_path / "none.db").exists()
    mlflow.MlflowClient(f"sqlite:///{tmp_path}/other.db").create_experiment("theirs")
    with pytest.raises(configs.ConfigError, match="has no experiment of tsexp"):
        ui.addresses(f"sqlite:///{tmp_path}/other.db", 5000)


def tsexp_ui(folder, *arguments):
    command = [sys.executable, "-m", "tsexp", "ui", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done


def test_a_port_that_is_taken_is_an_error_and_no_address_is_printed(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = tsexp_ui(tmp_path, "--port", other.getsockname()[1])
    assert done.returncode == 2
    assert "cannot be had (Address already in use)" in done.stderr
    assert done.stdout == ""
    assert "--port=99999 is no port; allowed: 1 to 65535" in tsexp_ui(tmp_path, "--port", 99999).stderr


def test_a_store_is_a_path_a_folder_or_a_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stores.uri_of("a/mlflow.db") == f"sqlite:///{tmp_path}/a/mlflow.db"
    assert stores.uri_of("new/") == f"sqlite:///{tmp_path}/new/mlflow.db"
    for path in ("c%41d/mlflow.db", "what?.db"):  # which SQLAlchemy would read as another file's address
        with pytest.raises(configs.ConfigError, match="would be read as something else"):
            stores.uri_of(path)
    assert stores.uri_of(".") == f"sqlite:///{tmp_path}/mlflow.db"
    assert stores.uri_of("http://localhost:5000") == "http://localhost:5000"
    with pytest.raises(
        configs.ConfigError, match=r"ftp://x is not a store MLflow takes; allowed: the path of"
    ):
        stores.uri_of("ftp://x")
    assert f"{tmp_path}/nowhere.db is not there" in tsexp_ui(tmp_path, "nowhere.db").stderr


def test_a_server_that_does_not_answer_is_an_error_within_15_seconds(tmp_path):
    settings = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_HTTP_REQUEST")}
    with socket.socket() as silent:  # takes connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(
            configs.ConfigError, match=rf"http://127.0.0.1:{port} does not answer \(Read timed out"
        ):
            stores.client(f"http://127.0.0.1:{port}")
        assert time.monotonic() - start < 15
    assert settings == {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_HTTP_REQUEST")}
    with pytest.raises(configs.ConfigError, match=r"does not answer \(Connection refused\); is it running"):
        stores.client(f"http://127.0.0.1:{port}")


def test_a_server_of_something_else_is_an_error(tmp_path):
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        [*command[:1], "-u", *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        text=True,
    ) as server:
        try:
            port = server.stdout.readline().split("port ")[1].split()[0]
            with pytest.raises(configs.ConfigError, match="is no server of MLflow"):
                stores.client(f"http://127.0.0.1:{port}")
        finally:
            server.kill()


class Page(http.server.BaseHTTPRequestHandler):
    """Answers whatever it is asked with a page, as the sign-in of a proxy does."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>sign in</html>")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


def test_a_page_instead_of_an_answer_is_an_error():
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(configs.ConfigError, match="is no server of MLflow, or a proxy answers"):
            stores.client(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_database_without_its_driver_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(
        configs.ConfigError, match=r"me:\*\*\*@host/db needs the driver .* 'tsexp\[postgres\]'"
    ):
        stores.client("postgresql://me:secret@host/db")
    with pytest.raises(configs.ConfigError, match=r"is no address of a database"):
        stores.client("postgresql://host:port/db")


def test_a_database_that_does_not_answer_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymysql", SimpleNamespace(paramstyle="format", version_info=(1, 4, 6)))
    start = time.monotonic()
    with pytest.raises(configs.ConfigError, match=r"mysql\+pymysql://u:\*\*\*@127.0.0.1:9/d does not answer"):
        stores.client("mysql+pymysql://u:p@127.0.0.1:9/d")
    assert time.monotonic() - start < 15


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the UI shows the runs of a sweep over three ratios, as it says itself."""
    folder = tmp_path_factory.mktemp("ui")
    command = [sys.executable, "-m", "tsexp", "-m", "prune.ratio=0,0.3,0.5", *TINY, "data=italy_power_demand"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "tsexp.ui", "mlflow.db", "--port", str(port)]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            name, _, url = server.stdout.readline().strip().partition(": ")
            assert name == "tsexp"
            wait_for(f"http://127.0.0.1:{port}/health")
            yield url
        finally:
            os.killpg(server.pid, 15)


def wait_for(url, seconds=90):
    end = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser, address):
    """The runs, in the view that the address names."""
    one = browser.new_page(viewport={"width": 2000, "height": 1000})
    one.set_default_timeout(60_000)
    one.goto(address)
    row(one, SWEEP).wait_for()
    one.get_by_test_id(f"sort-header-{SAVING}").wait_for()
    yield one
    one.close()


def row(page, name):
    return page.locator(".ag-row").filter(has=page.get_by_role("link", name=name, exact=True)).first


def names(page):
    """Of the runs, from the top to the bottom."""
    rows = page.locator(".ag-row").filter(has=page.get_by_role("link", name="prune.ratio")).all()
    return [r.get_by_role("link", name="prune.ratio").first.inner_text() for r in sorted(rows, key=row_index)]


def row_index(locator):
    return int(locator.get_attribute("row-index"))


def pictures(page, *files):
    """Open each picture of the run that is shown, and wait until the browser has drawn it."""
    page.get_by_role("tab", name="Artifacts").click()
    for file in files:
        page.get_by_text(file, exact=True).first.click()
        page.wait_for_function(
            "() => [...document.images].some(i => i.src.startsWith('blob:') && i.complete && i.naturalWidth "
            "> 300)"
        )


# The three savings fall from the top to the bottom, and the sweep, which has none, is last; before the click
# it is first.
SORTED = """key => {
    const cells = [...document.querySelectorAll(`.ag-cell[col-id*='${key}']`)]
    const index = cell => Number(cell.parentElement.getAttribute('row-index'))
    const values = cells.sort((a, b) => index(a) - index(b)).map(cell => parseFloat(cell.innerText))
    return values.length === 4 && values[0] >= values[1] && values[1] >= values[2] && isNaN(values[3])
}"""


@pytest.mark.browser
def test_jobs_are_found_under_their_sweep_sorted_and_compared(page):
    assert [bool(SWEEP.search(n)) for n in names(page)] == [True]
    row(page, SWEEP).get_by_role("button").first.click()
    row(page, "prune.ratio=0.3").wait_for()
    assert set(names(page)[1:]) == {f"prune.ratio={r}" for r in RATIOS}
    page.get_by_test_id(f"sort-header-{SAVING}").click()
    page.wait_for_url(re.compile("orderByKey=metrics.*energy_saving_pct"))
    page.wait_for_function(SORTED, arg=SAVING)
    for ratio in RATIOS:
        row(page, f"prune.ratio={ratio}").get_by_role("checkbox").first.click()
    page.get_by_test_id("runs-compare-button").click()
    page.get_by_text("Comparing 3 Runs").first.wait_for()
    for ratio in RATIOS:
        page.get_by_text(f"prune.ratio={ratio}", exact=True).first.wait_for()


@pytest.mark.browser
def test_a_job_and_its_sweep_show_their_pictures_and_say_what_they_are(page):
    row(page, SWEEP).get_by_role("button").first.click()
    page.get_by_role("link", name="prune.ratio=0.5", exact=True).click()
    page.get_by_text("against the dense model").first.wait_for()
    pictures(page, "confusion.png", "training.png")
    page.go_back()
    page.go_back()
    page.get_by_role("link", name=SWEEP).click()
    page.get_by_text("python -m tsexp -m").first.wait_for()
    pictures(page, "sweep.png")
