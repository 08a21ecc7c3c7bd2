"""``python -m tsexp.report`` as its users meet it."""

import subprocess
import sys
import types
from dataclasses import replace

import pytest

from report_data import Store
from tsexp import merge, report
from tsexp.report import frozen as freezer
from tsexp.report.__main__ import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(empty_store, folder):
    store = Store(empty_store, folder)
    for seed in (0, 1):
        store.run(f"dense {seed}", seed=seed, prune__ratio=0)
        store.run(f"pruned {seed}", seed=seed)
    return store


def fails(capsys, status, *arguments):
    """Run it; return the one line on stderr that it ends with."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == status
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("tsexp.report: error: ")
    return line


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_from_the_store_to_tables_and_again_the_same_bytes(store, folder, capsys):
    main(["freeze", "tables"])
    out = capsys.readouterr().out
    assert "wrote" in out
    assert "4 records" in out
    assert "no table hybrids" in out
    first = files(folder / "report")
    assert {
        "frozen/results.parquet",
        "frozen/results.csv",
        "tables/claims.tex",
        "tables/pruning.md",
        "tables/dense.csv",
    } <= set(first)
    main(["freeze", "tables"])
    assert files(folder / "report") == first


def test_tables_are_made_of_what_is_frozen_and_freeze_first_where_nothing_is(store, folder):
    main(["tables", f"paths.report={folder}/out"])
    before = files(folder / "out")
    store.run("later", seed=2)
    (folder / "mlflow.db").rename(folder / "gone.db")
    main(["tables", f"paths.report={folder}/out"])
    assert files(folder / "out") == before


def test_parts_that_were_frozen_apart_make_the_tables_of_the_whole(store, folder):
    main(["freeze", "tables"])
    for seed in (0, 1):
        main(["freeze", f"paths.frozen=parts/{seed}", f"where=params.seed = '{seed}'"])
    (folder / "mlflow.db").unlink()
    main(["tables", "paths.frozen=parts", "paths.report=out"])
    a, b = (files(folder / place / "tables") for place in ("report", "out"))
    a.pop("notes.md"), b.pop("notes.md")  # the filters of the parts are told there
    assert a == b


def test_stores_of_two_machines_merged_stand_side_by_side(empty_store, folder):
    for name, cpu, speedup in (("a", "A CPU", 2.0), ("b", "B CPU", 2.5)):
        (folder / name).mkdir()
        store = Store(empty_store, folder / name)
        ends = {f"vs_dense__speedup{end}": speedup for end in ("", "_lo", "_hi")}
        store.run("dense", prune__ratio=0, hardware={"cpu": cpu})
        store.run("pruned", hardware={"cpu": cpu}, **ends)
    store.run("only there", prune__ratio=0.3, hardware={"cpu": "B CPU"})  # it has the most
    assert merge.main(["a/mlflow.db", "b/mlflow.db", "--into", "mlflow.db"]) == 0
    main(["freeze", "tables"])
    text = (folder / "report" / "tables" / "machines.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| ACSF1")]
    assert [cell.strip() for cell in row.split("|")][-8:-5] == [
        "2.50 [2.50, 2.50]",
        "2.00 [2.00, 2.00]",
        "0.80 [0.80, 0.80]",
    ]
    assert "On A CPU, of 1 ways to deploy a model, speedups are 0.80 times in the median" in text


def test_freezing_into_a_folder_of_parts_is_refused(store, folder, capsys):
    main(["freeze", "paths.frozen=parts/a"])
    assert "holds no frozen results" in fails(capsys, 1, "freeze", "paths.frozen=parts")
    assert (folder / "parts" / "a" / "about.json").exists()


def test_naming_other_runs_than_the_frozen_ones_is_an_error(store, capsys):
    main(["freeze", "where=params.seed = '0'"])
    main(["tables", "where=params.seed = '0'", f"tracking.uri={store.uri}"])
    assert "another filter" in fails(capsys, 1, "tables", "where=params.seed = '1'")
    assert "another store" in fails(capsys, 1, "tables", "tracking.uri=sqlite:///other.db")
    assert "another experiment" in fails(capsys, 1, "tables", "tracking.experiment=other")
    main(["freeze", "tables", "where=params.seed = '1'"])


def test_without_a_part_everything_is_made(store, folder, monkeypatch, capsys):
    asked = []

    def draw(frozen, place):
        place.mkdir()
        asked.append((len(frozen.results), place))
        return [place / "a.pdf"]

    def write(frozen, path, ui):
        asked.append((len(frozen.results), path, ui))
        return path

    for name, module in (
        ("figures", types.SimpleNamespace(draw=draw)),
        ("page", types.SimpleNamespace(write=write)),
    ):
        monkeypatch.setitem(sys.modules, f"tsexp.report.{name}", module)
        monkeypatch.setattr(report, name, module, raising=False)
    main([])
    assert asked == [
        (4, folder / "report" / "figures"),
        (4, folder / "report" / "index.html", "http://127.0.0.1:5000"),
    ]
    assert (folder / "report" / "tables" / "claims.md").exists()
    assert "index.html" in capsys.readouterr().out


def test_links_of_the_page_follow_the_address_that_is_given(store, folder, monkeypatch, capsys):
    asked = []
    fake = types.SimpleNamespace(write=lambda frozen, path, ui: asked.append(ui) or path)
    monkeypatch.setitem(sys.modules, "tsexp.report.page", fake)
    monkeypatch.setattr(report, "page", fake, raising=False)
    main(["freeze", "page"])
    main(["page", "ui=https://mlflow.example/team/"])
    assert asked == ["http://127.0.0.1:5000", "https://mlflow.example/team"]
    assert "links to MLflow at https://mlflow.example/team" in capsys.readouterr().out
    for wrong in ("ui=127.0.0.1:5000", "ui=javascript:alert(1)", "ui="):
        assert "is no address of an MLflow UI; it begins with http://" in fails(capsys, 2, "page", wrong)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "ui=http://127.0.0.1:5001" in capsys.readouterr().out


def test_a_missing_store_is_not_made(folder, capsys):
    assert f"there is no store at {folder}/mlflow.db" in fails(capsys, 1)
    assert "there is no store at" in fails(capsys, 1, "tables", "tracking.uri=sqlite:///sub/other.db")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tablse", "did you mean tables?"),
        ("tracing.uri=x", "did you mean tracking.uri?"),
        ("model=t1", "allowed: freeze, tables"),
        ("tracking.ur=x", "allowed in tracking: artifacts, diff, experiment, uri"),
        ("tracking.uri=foo:bar", "is not a store MLflow takes"),
        ("tracking=nope", "nope"),
        ("--wrong", "--help"),
    ],
)
def test_a_wrong_word_is_an_error_of_one_line(folder, capsys, word, said):
    assert said in fails(capsys, 2, word)
    assert list(folder.iterdir()) == []


def test_runs_that_did_not_finish_are_counted(store, folder, capsys):
    store.run("half", "KILLED", seed=2)
    store.run("half", "RUNNING", seed=3)
    main(["freeze", "tables"])
    out = capsys.readouterr().out
    assert "1 run left out, not finished (KILLED): half" in out
    assert "1 run left out, not finished (RUNNING): half" in out


def test_a_missing_library_is_told(store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pandera.pandas", None)
    assert "pip install 'tsexp[report]'" in fails(capsys, 1, "freeze")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom tsexp.report.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "freeze" in out
    assert not {"pandas", "mlflow", "hydra", "torch", "matplotlib", "scipy", "numpy"} & set(out.split())


def test_records_that_no_figure_shows_are_told(store, folder, monkeypatch, capsys):
    """As where data were corrected under the same name: figures show the commonest files."""
    from tsexp.report import figures

    monkeypatch.setattr(figures, "draw", lambda frozen, place: [])
    main(["figures"])
    assert "in figures: " not in capsys.readouterr().out
    where = folder / "report" / "frozen"
    whole = freezer.load(where)
    table = whole.results.copy()
    table.loc[0, "data_checksum"] = "0" * 64
    monkeypatch.setattr(freezer, "load", lambda _: replace(whole, results=table))
    main(["figures"])
    assert "- in figures: Records with less common data files left out: 1." in capsys.readouterr().out
