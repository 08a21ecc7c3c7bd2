"""The interactive page: what is in the file, and what it does in a browser without a network."""

import base64
import gzip
import json
import re
import shutil
from dataclasses import replace

import pytest
from plotly.offline import get_plotlyjs

from report_data import attached, beside, frozen, only
from tsexp.report import page
from tsexp.report.front import front
from tsexp.report.frozen import together
from tsexp.report.schema import FROM_WINDOWS

UI = "http://127.0.0.1:5000"
EVIL = """</script><script>window.stolen = 1</script><img src=x onerror="window.stolen = 1">"'&{{plotly}} †"""


def small(**changes):
    return frozen(**({"datasets": ("ElectricDevices", "PLAID"), "series": 20} | changes))


def with_values(results, rows, **values):
    table = results.results.copy()
    for name, value in values.items():
        table.loc[rows, name] = value
    return replace(results, results=table)


def evil():
    results = small(seeds=(0,))
    return with_values(
        results, results.results.index[0], run_name=EVIL, warnings=EVIL, dataset="<b>PLAID & co</b>"
    )


def library(text):
    """What the page has packed: what draws."""
    return re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', text, re.DOTALL)[1]


def data(file):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1]
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return page.write(small(), tmp_path_factory.mktemp("page") / "deep" / "page.html", f"{UI}/")


def test_the_page_is_one_file_that_asks_nobody_for_anything(written):
    text = written.read_text()
    own = text.replace(library(text), "")
    assert gzip.decompress(base64.b64decode(library(text))).decode() == get_plotlyjs()
    assert own.startswith("<!doctype html>")
    assert re.findall(r"""\b(?:src|href)=["']?[^ >"']+""", own) == ['href="data:,']
    assert "default-src 'none'" in own
    assert "{{" not in own
    assert [f.name for f in written.parent.iterdir()] == ["page.html"]


def test_equal_results_give_equal_bytes(written, tmp_path):
    assert page.write(small(), tmp_path / "page.html", UI).read_bytes() == written.read_bytes()


def test_every_run_is_there_with_its_link_and_invalid_energy_is_left_out_and_counted(written):
    results = small().results
    shown = data(written)
    assert [run["url"] for run in shown["runs"]] == [
        f"{UI}/#/experiments/1/runs/{i}" for i in results["run_id"]
    ]
    for name in ("accuracy", "control_accuracy", "dense_accuracy", "val_accuracy"):
        assert [run[f"{name}_pct"] for run in shown["runs"]] == pytest.approx(list(100 * results[name]))
    assert [run["estimated_j"] is None for run in shown["runs"]] == list(~results["valid"])
    assert [bool(run["invalid_reasons"]) for run in shown["runs"]] == list(~results["valid"])
    assert shown["no_energy"] == (~results["valid"]).sum() == 4
    assert shown["invalid"] == 0


def test_records_without_finite_scores_are_left_out_and_counted(tmp_path):
    results = small()
    results = with_values(results, ~results.results["valid"], scored=False)
    shown = data(page.write(results, tmp_path / "page.html", UI))
    assert len(shown["runs"]) == results.results["valid"].sum()
    assert (shown["no_energy"], shown["invalid"]) == (0, 4)


def test_only_the_kind_of_energy_that_there_is_has_columns_and_estimates_carry_a_dagger(written, tmp_path):
    for file, side, mark in (
        (written, "estimated", "†"),
        (page.write(small(measured=True), tmp_path / "page.html", UI), "measured", ""),
    ):
        shown = data(file)
        assert shown["sides"] == {side: mark}
        labels = [
            axis["label"] for name, axis in shown["axes"].items() if "relative" in name or name.endswith("_j")
        ]
        assert labels == [f"{side} energy per inference{mark} (J)", f"{side} energy{mark} (control = 1)"]
        other = {"estimated": "measured", "measured": "estimated"}[side]
        assert not any(key.startswith(other) for run in shown["runs"] for key in run)


def test_setups_are_told_apart_and_the_commonest_is_first_choice(tmp_path):
    results = small(seeds=(0, 1, 2))
    results = with_values(results, results.results["seed"] == 2, batch_size=32)
    results = with_values(results, results.results["seed"] == 1, machine="bbbbbbbbbbbbbbbb")
    results = only(results, (results.results["seed"] > 0) | (results.results["dataset"] == "PLAID"))
    shown = data(page.write(results, tmp_path / "page.html", UI))
    by = "energy by estimated:cpu_time"
    first = f"A CPU, 1 thread, batch 1, {by}"
    assert set(shown["setups"]) == {
        f"{first} (aaaaaa)",
        f"{first} (bbbbbb)",
        f"A CPU, 1 thread, batch 32, {by}",
    }
    assert shown["commonest"] == f"{first} (bbbbbb)"


def test_two_meters_are_two_setups(tmp_path):
    results = small(measured=True, seeds=(0, 1, 2))
    results = with_values(results, results.results["seed"] == 1, energy_source="mains:plug")
    shown = data(page.write(results, tmp_path / "page.html", UI))
    assert set(shown["setups"]) == {
        f"A CPU, 1 thread, batch 1, energy by {source}" for source in ("zeus:rapl", "mains:plug")
    }
    assert shown["commonest"].endswith("zeus:rapl")


def test_what_a_counter_measured_is_first_choice(tmp_path):
    estimates = small()
    both = together({"1": estimates, "2": attached(estimates)})
    assert data(page.write(both, tmp_path / "page.html", UI))["commonest"].endswith("energy by external:plug")
    bad = attached(estimates)
    emptied = bad.results.assign(valid=False, **dict.fromkeys(FROM_WINDOWS, float("nan")))
    both = together({"1": estimates, "2": replace(bad, results=emptied)})
    assert data(page.write(both, tmp_path / "bad.html", UI))["commonest"].endswith("estimated:cpu_time")
    part = attached(only(estimates, estimates.results["ratio"] == 0))
    few = data(page.write(together({"1": estimates, "2": part}), tmp_path / "few.html", UI))
    assert few["commonest"].endswith("energy by estimated:cpu_time")


def test_a_run_is_looked_for_in_its_own_experiment(tmp_path):
    one, seven = (
        replace(of, about={**of.about, "experiment_id": number})
        for of, number in ((small(), "1"), (beside(small(), machine="b" * 16), "7"))
    )
    shown = data(page.write(together({"1": one, "2": seven}), tmp_path / "page.html", UI))
    experiments = [re.search(r"/experiments/(\d+)/runs/(.*)", run["url"]).groups() for run in shown["runs"]]
    assert {number for number, run_id in experiments if run_id.endswith("-b")} == {"7"}
    assert {number for number, run_id in experiments if not run_id.endswith("-b")} == {"1"}


def test_text_of_the_store_cannot_become_markup_of_the_page(tmp_path):
    file = page.write(evil(), tmp_path / "page.html", UI)
    assert EVIL not in file.read_text()
    assert file.read_text().count("<script") == 3
    assert data(file)["runs"][0]["run_name"] == EVIL


def test_a_store_without_a_valid_run_makes_a_page_that_says_so(tmp_path):
    results = small()
    shown = data(
        page.write(with_values(results, results.results["scored"], scored=False), tmp_path / "page.html", UI)
    )
    assert shown["runs"] == []
    assert shown["invalid"] == len(results.results)


def test_an_address_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="http"):
        page.write(small(), tmp_path / "page.html", "javascript:alert(1)")


def test_a_password_in_the_address_is_left_out(tmp_path):
    shown = data(page.write(small(), tmp_path / "page.html", "https://me:secret@mlflow.example/team"))
    assert shown["runs"][0]["url"].startswith("https://mlflow.example/team/#/experiments/1/runs/")
    assert "secret" not in json.dumps(shown)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine: install it, e.g. apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Open a file without a network: visit(file, width) gives the tab.

    Whatever it complained of or asked for fails the test.
    """
    contexts, troubles = [], []

    def opened(file, width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)

        def no_network(route):
            if route.request.url != file.as_uri():
                if not route.request.url.startswith(UI):  # where clicks lead, in a tab of its own
                    troubles.append(f"asked for {route.request.url}")
                return route.fulfill(body="nobody is here")
            return route.continue_()

        context.route("**/*", no_network)
        tab = context.new_page()
        tab.on(
            "console",
            lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None,
        )
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.goto(file.as_uri())
        tab.wait_for_selector("#plot .main-svg")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def points(tab):
    return tab.locator("#plot .scatterlayer .point").count()


def rows(tab):
    return tab.locator("#runs tr.run").count()


def column(tab, heading):
    """The texts of a column, group by group."""
    place = tab.locator("#runs thead th").all_text_contents().index(heading) + 1
    bodies = tab.locator("#runs tbody").all()
    return [body.locator(f"tr.run td:nth-child({place})").all_text_contents() for body in bodies]


@pytest.mark.browser
def test_filters_choose_the_points_and_the_rows(visit, written):
    every = small().results
    tab = visit(written)
    assert (points(tab), rows(tab)) == (every["valid"].sum(), len(every))
    assert tab.inner_text("#status") == (
        f"{len(every)} of {len(every)} runs are shown; 4 of them have no value on these axes and are in the "
        "table only."
    )
    assert "With invalid energy, which is left out: 4." in tab.inner_text("#about")
    assert tab.locator("#runs td", has_text="invalid").count() == 4
    tab.get_by_label("all columns").check()
    assert tab.locator("#runs td", has_text="energy invalid: outputs on the probe batch differ").count() == 4
    tab.get_by_label("all columns").uncheck()
    tab.get_by_label("PLAID").uncheck()
    left = every[every["dataset"] != "PLAID"]
    assert (points(tab), rows(tab)) == (left["valid"].sum(), len(left))
    tab.get_by_label("t2", exact=True).uncheck()
    tab.locator("input[name=mode][value=static]").uncheck()
    tab.locator("input[name=runtime][value=eager]").uncheck()
    left = left[(left["model"] == "t1") & (left["mode"] != "static") & (left["runtime"] != "eager")]
    assert 0 < len(left) < 20
    assert (points(tab), rows(tab)) == (len(left), len(left))
    assert tab.inner_text("#status") == f"{len(left)} of {len(every)} runs are shown."
    tab.get_by_label("ElectricDevices").uncheck()
    assert (points(tab), rows(tab)) == (0, 0)
    tab.get_by_label("PLAID").check()
    assert points(tab) == len(left)


@pytest.mark.browser
def test_axes_and_intervals_can_be_chosen(visit, written):
    tab = visit(written)
    assert tab.locator("#plot .xtitle").text_content() == "estimated energy per inference† (J)"
    before = tab.locator("#plot .point").first.get_attribute("transform")
    tab.locator("#x").select_option("bytes")
    assert tab.locator("#plot .xtitle").text_content() == "bytes on disk"
    assert tab.locator("#plot .point").first.get_attribute("transform") != before
    assert tab.locator("#plot .errorbar path").count() == 0
    tab.locator("#x").select_option("speedup")
    tab.get_by_label("intervals").check()
    assert tab.locator("#plot .errorbar path").count() == len(small().results.query("valid"))


@pytest.mark.browser
def test_hovering_tells_the_run_and_a_click_opens_it(visit, written):
    results = small()
    tab = visit(written)
    warned = results.results[(results.results["warnings"] != "") & (results.results["model"] == "t1")].iloc[0]
    for name, value in (("dataset", warned["dataset"]), ("model", "t1"), ("runtime", "eager")):
        for box in tab.locator(f"input[name={name}]").all():
            box.set_checked(box.get_attribute("value") == value)
    at = tab.evaluate(
        """url => {
          const plot = document.getElementById("plot"), box = plot.getBoundingClientRect();
          const trace = plot._fullData.find(t => t.customdata && t.customdata.includes(url));
          const i = trace.customdata.indexOf(url), {xaxis, yaxis} = plot._fullLayout;
          return [
            box.left + xaxis._offset + xaxis.d2p(trace.x[i]),
            box.top + yaxis._offset + yaxis.d2p(trace.y[i]),
          ];
        }""",
        f"{UI}/#/experiments/1/runs/{warned['run_id']}",
    )
    tab.mouse.move(*at)
    tab.wait_for_selector("#plot .hoverlayer .hovertext")
    hover = tab.locator("#plot .hoverlayer").text_content()
    assert warned["run_name"] in hover
    saving, low, high = (f"{warned[f'estimated_saving_{end}']:.1f}" for end in ("pct", "lo", "hi"))
    assert f"saving† %: {saving} [{low}, {high}]†" in hover
    assert f"⚠ {warned['warnings']}" in hover
    with tab.context.expect_page() as opened:
        tab.mouse.click(*at)
    assert opened.value.url == f"{UI}/#/experiments/1/runs/{warned['run_id']}"


@pytest.mark.browser
def test_the_table_links_ranks_per_dataset_and_is_reached_by_keyboard(visit, written):
    results = small().results
    tab = visit(written)
    links = {a.get_attribute("href") for a in tab.locator("#runs tbody a").all()}
    assert links == {f"{UI}/#/experiments/1/runs/{i}" for i in results["run_id"]}
    of = results["dataset"].value_counts()
    titles = [f"{dataset}: {of[dataset]} runs" for dataset in ("ElectricDevices", "PLAID")]
    assert tab.locator("#runs .group th").all_text_contents() == titles
    heading = tab.locator("#runs th button", has_text="p50 ms")
    heading.focus()
    tab.keyboard.press("Enter")

    def shown():
        for ranks, values in zip(column(tab, "rank"), column(tab, "p50 ms"), strict=True):
            *known, _, unknown = values  # what has no value comes last, whatever the order
            assert unknown == "–"
            *ranks, _, none = [rank.rstrip(" ◆") for rank in ranks]
            assert none == "–"
            assert ranks == [str(k + 1) for k in range(len(ranks))]
            yield [float(v) for v in known]

    assert all(values == sorted(values) for values in shown())
    tab.keyboard.press("Enter")  # the heading still has the focus
    assert all(values == sorted(values, reverse=True) for values in shown())
    assert tab.locator("#runs th[aria-sort]").get_attribute("aria-sort") == "descending"


@pytest.mark.browser
def test_energy_comes_first_of_the_numbers_and_ranks_to_begin_with(visit, written):
    tab = visit(written)
    headings = tab.locator("#runs thead th").all_text_contents()
    numbers = headings[headings.index("seed") + 1 :]
    assert numbers[:3] == ["energy†", "saving† %", "speedup"]
    assert tab.locator("#runs th[aria-sort=ascending]").text_content() == "energy†"
    assert "control %" not in headings
    tab.get_by_label("all columns").check()
    assert "control %" in tab.locator("#runs thead th").all_text_contents()


@pytest.mark.browser
def test_the_front_is_drawn_per_dataset_and_marked_in_the_table(visit, written):
    tab = visit(written)
    results = small().results
    drawn = tab.evaluate(
        "document.getElementById('plot').data.filter(t => t.name === 'Pareto front').map(t => [t.x, t.y])"
    )
    assert len(drawn) == 2
    for (x, y), dataset, ranks in zip(drawn, ("ElectricDevices", "PLAID"), column(tab, "rank"), strict=True):
        here = results[(results["dataset"] == dataset) & results["valid"]]
        points = list(zip(here["accuracy"] * 100, here["estimated_j"], strict=True))
        best = dict.fromkeys(points[i] for i in front(points))
        assert y == pytest.approx([accuracy for accuracy, _ in best])
        assert x == pytest.approx([joules for _, joules in best])
        assert sum("◆" in rank for rank in ranks) == len(best)
    tab.locator("#x").select_option("ratio")  # no end of it is the better one
    assert not tab.evaluate("document.getElementById('plot').data.some(t => t.name === 'Pareto front')")


@pytest.mark.browser
def test_axes_of_energy_and_speedup_are_logarithmic_and_relative_to_the_control(visit, tmp_path):
    """One that takes 8.5 times the energy does not squeeze the rest."""
    results = small(seeds=(0,))
    worst = results.results.index[0]
    results = with_values(results, worst, estimated_saving_pct=-750.0, estimated_saving_lo=-800.0)
    file = page.write(results, tmp_path / "page.html", UI)
    run = data(file)["runs"][worst]
    assert (run["estimated_relative"], run["estimated_relative_hi"]) == pytest.approx((8.5, 9.0))
    tab = visit(file)
    for axis in ("estimated_relative", "speedup", "cpu_speedup", "estimated_j"):
        tab.locator("#x").select_option(axis)
        assert tab.evaluate("document.getElementById('plot')._fullLayout.xaxis.type") == "log"


@pytest.mark.browser
def test_nothing_scrolls_sideways_on_a_desktop(visit, written):
    tab = visit(written, width=1440)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1440
    wide, there = tab.evaluate("(t => [t.scrollWidth, t.clientWidth])(document.querySelector('.table'))")
    assert wide <= there


@pytest.mark.browser
def test_a_model_without_a_count_has_a_dash(visit, tmp_path):
    results = small(models=("t1", "minirocket"), seeds=(0,))
    tab = visit(page.write(results, tmp_path / "page.html", UI))
    tab.get_by_label("all columns").check()
    counts = {
        pair
        for models, macs in zip(column(tab, "model"), column(tab, "MACs"), strict=True)
        for pair in zip(models, macs, strict=True)
    }
    assert ("minirocket", "–") in counts
    assert not any(model == "t1" and count == "–" for model, count in counts)


@pytest.mark.browser
def test_nothing_is_wider_than_a_phone(visit, written):
    tab = visit(written, width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert points(tab) == len(small().results.query("valid"))
    for box in tab.locator("fieldset, select, #plot, .table").all():
        assert box.bounding_box()["x"] + box.bounding_box()["width"] <= 390


@pytest.mark.browser
def test_text_of_the_store_is_shown_as_text(visit, tmp_path):
    tab = visit(page.write(evil(), tmp_path / "page.html", UI))
    assert EVIL in tab.locator("#runs tbody a").all_text_contents()
    tab.evaluate(
        "document.querySelectorAll('input[name=dataset]').forEach(b => { if (b.value !== '<b>PLAID & "
        "co</b>') b.click(); })"
    )
    assert points(tab) == 1
    box = tab.locator("#plot .point").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_selector("#plot .hoverlayer .hovertext")
    assert "</script><script>window.stolen = 1</script>" in tab.locator("#plot .hoverlayer").text_content()
    assert tab.evaluate("window.stolen") is None
    assert tab.locator("#plot .hoverlayer a, #plot .hoverlayer script, #runs img").count() == 0


@pytest.mark.browser
def test_a_page_without_runs_stands(visit, tmp_path):
    results = small()
    tab = visit(
        page.write(with_values(results, results.results["scored"], scored=False), tmp_path / "page.html", UI)
    )
    assert tab.inner_text("#status") == "0 of 0 runs are shown."
    assert f"Invalid records left out: {len(results.results)}." in tab.inner_text("#about")
