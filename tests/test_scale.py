"""What a sweep of 1,000 jobs costs, in counts that depend on no machine; docs/cluster.md has the times."""

import sys
from collections import Counter

import pytest

from report_data import Store, frozen
from test_report import row
from tsexp.report import energy_front, freezing, page, read, schema, sweep_table
from tsexp.report.statistics import aggregate
from tsexp.report.summary import sweep_metrics
from tsexp.report.sweep_picture import _lines

RUNS = 1000
PAGE_BYTES = 5_000_000


class Counting:
    """A client of a store that counts what it is asked."""

    def __init__(self, client):
        self.client, self.asked = client, Counter()

    def __getattr__(self, name):
        found = getattr(self.client, name)
        if not callable(found):
            return found
        self.asked[name] += 1
        return found


@pytest.fixture
def store(empty_store, tmp_path):
    return Store(empty_store, tmp_path)


def test_a_report_asks_the_store_once_however_many_runs_it_has(store, tmp_path):
    for seed in range(6):
        store.run(f"seed={seed}", seed=seed)
    client = Counting(store.client)
    whole = freezing.freeze(client, "tsexp", tmp_path / "frozen")
    assert len(whole.results) == 6
    assert client.asked == {"get_experiment_by_name": 1, "search_runs": 1}


def test_files_that_lie_elsewhere_are_fetched_and_are_the_same(store, tmp_path, monkeypatch):
    store.run()
    here = freezing.freeze(store.client, "tsexp", tmp_path / "here")
    monkeypatch.setattr("mlflow.utils.uri.is_local_uri", lambda uri: False)
    fetched = freezing.freeze(client := Counting(store.client), "tsexp", tmp_path / "fetched")
    for name in schema.PARQUETS:
        assert getattr(fetched, name).equals(getattr(here, name))
    assert client.asked == {"get_experiment_by_name": 1, "search_runs": 1}


def test_the_end_of_a_sweep_reads_its_runs_together_and_in_its_order(store, monkeypatch):
    monkeypatch.setattr("tsexp.report.store.AT_ONCE", 3)
    made = [store.run(f"seed={seed}", seed=seed) for seed in range(5)]
    asked = [made[3], made[0], made[4], made[1], made[2], made[0]]  # a job may be found twice
    client = Counting(store.client)
    assert [r.run_id for r in read(client, asked)] == asked
    assert client.asked == {"get_run": 1, "search_runs": 2}
    assert read(store.client, asked)[1] == read(store.client, [made[0]])[0]
    with pytest.raises(Exception, match="not found"):
        read(store.client, [made[0], "0" * 32])


def calls(work, *arguments):
    """How many functions are entered, those of Python and those in C."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work(*arguments)
    finally:
        sys.setprofile(before)
    return count


def jobs(count):
    ratios = (0.0, 0.3, 0.5, 0.7, 0.9)
    return [row(f"seed={i} ratio={ratios[i % 5]}", ratio=ratios[i % 5], seed=str(i)) for i in range(count)]


@pytest.mark.parametrize(
    "work",
    [
        _lines,
        energy_front,
        lambda rows: sweep_table(rows, {}, "sweep"),
        lambda rows: sweep_metrics(rows, 0, 0),
    ],
    ids=["picture", "front", "table", "metrics"],
)
def test_twice_the_jobs_are_twice_the_work_at_the_end_of_a_sweep(work):
    work(jobs(5))  # imports
    assert calls(work, jobs(200)) < 2.5 * calls(work, jobs(100))


def test_twice_the_records_are_twice_the_work_of_the_statistics():
    small, large = (frozen(datasets=d, models=("t1",), series=20) for d in (("PLAID",), ("PLAID", "ACSF1")))
    aggregate(small)  # imports
    assert calls(aggregate, large) < 2.5 * calls(aggregate, small)


def test_the_page_of_many_runs_is_small(tmp_path):
    small, large = frozen(datasets=("PLAID",), seeds=(0,)), frozen(datasets=("PLAID",), seeds=(0, 1, 2))
    few, many = (page.write(of, tmp_path / "page.html", "http://mlflow.example:5000").stat().st_size
                 for of in (small, large))  # fmt: skip
    per_run = (many - few) / (len(large.results) - len(small.results))
    assert many + (RUNS - len(large.results)) * per_run < PAGE_BYTES
