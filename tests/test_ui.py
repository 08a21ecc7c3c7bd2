"""The MLflow UI on a store that a sweep has filled, clicked through in a real browser.

``make test-browser``.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from conftest import TINY
from tsexp import config as configs
from tsexp import ui

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
    command = [sys.executable, "-m", "tsexp.ui", f"sqlite:///{folder}/mlflow.db", "--port", str(port)]
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
    page.get_by_text("against dense fp32 eager").first.wait_for()
    pictures(page, "confusion.png", "training.png")
    page.go_back()
    page.go_back()
    page.get_by_role("link", name=SWEEP).click()
    page.get_by_text("python -m tsexp -m").first.wait_for()
    pictures(page, "sweep.png")
