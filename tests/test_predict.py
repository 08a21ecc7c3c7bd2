"""What the model of a run answers to a file: as it did in its run, or a line that says why not."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import made_runs
from tsexp import finished, predict, runtimes
from tsexp.system import locking

HEADER = "@problemName new\n@timeStamps false\n@univariate {}\n@equalLength {}\n@classLabel {}\n@data\n"
SERIES = ",".join(map(str, np.sin(np.arange(24.0))))


@pytest.fixture(scope="module")
def place(tmp_path_factory, italy, pickup, empty_store):
    """A store with a run on series of one length and one on others."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    return SimpleNamespace(
        italy=made_runs.make(folder, italy, "data=italy_power_demand", "runtime=onnxruntime"),
        pickup=made_runs.make(folder, pickup, "data=pickup_gesture", "measure.batch_size=7"),
    )


def ts(file, *lines, univariate="true", equal="true", labels="true 1 2"):
    """Write a ``.ts`` file."""
    file.write_text(HEADER.format(univariate, equal, labels) + "".join(f"{line}\n" for line in lines))
    return file


def rows(text):
    return list(csv.DictReader(text.splitlines()))


def answer(run, file, output):
    assert predict.main([run.run_id[:8], str(file), "--output", str(output), *run.settings]) == 0
    return rows(output.read_text())


@pytest.mark.parametrize("name", ["italy", "pickup"])
def test_the_answers_to_its_own_test_split_are_those_of_the_run(place, tmp_path, capsys, name):
    run = getattr(place, name)
    found = answer(run, run.dataset.files[1], tmp_path / "out.csv")
    stored = rows(Path(run.client.download_artifacts(run.run_id, "predictions.csv")).read_text())
    assert len(found) == len(run.dataset.y_test) == len(stored)
    same = ["label", "predicted", *(f"p_{c}" for c in run.dataset.classes)]
    assert [[r[k] for k in same] for r in found] == [[r[k] for k in same] for r in stored]
    assert [r["series"] for r in found] == [str(i) for i in range(len(found))]
    right = int((run.scores.argmax(1) == run.dataset.y_test).sum())
    assert f"accuracy {100 * run.accuracy:.1f} % ({right} of {len(found)})" in capsys.readouterr().out


def test_it_answers_while_nobody_measures_and_leaves_threads_as_they_were(place, tmp_path, monkeypatch):
    held, load = [], runtimes.load

    def loaded(*of, **how):
        held.append((locking._held.how, torch.get_num_threads()))
        return load(*of, **how)

    monkeypatch.setattr(runtimes, "load", loaded)
    torch.set_num_threads(2)
    try:
        answer(place.italy, ts(tmp_path / "new.ts", f"{SERIES}:1"), tmp_path / "out.csv")
        assert (held, torch.get_num_threads()) == ([(locking.SHARED, 1)], 2)
    finally:
        torch.set_num_threads(1)


def test_without_labels_there_is_no_accuracy(place, tmp_path, capsys):
    file = ts(tmp_path / "new.ts", SERIES, SERIES, labels="false")
    assert predict.main([place.italy.run_id, str(file), *place.italy.settings]) == 0
    said = capsys.readouterr()
    found = rows(said.out)
    assert list(found[0]) == ["series", "predicted", "p_1", "p_2"]
    assert found[0]["p_1"] == found[1]["p_1"]
    assert float(found[0]["p_1"]) + float(found[0]["p_2"]) == pytest.approx(1)
    assert said.err.startswith(f"2 series, run {place.italy.run_id[:8]}")
    assert "accuracy" not in said.err


def test_a_question_mark_is_no_label_and_the_others_are_judged(place, tmp_path, capsys):
    file = ts(tmp_path / "new.ts", f"{SERIES}:?", f"{SERIES}:1", f"{SERIES}:2")
    found = answer(place.italy, file, tmp_path / "out.csv")
    assert [r["label"] for r in found] == ["", "1", "2"]
    assert "accuracy 50.0 % (1 of 2)" in capsys.readouterr().out


def test_labels_that_the_model_does_not_know_are_told(place, tmp_path, capsys):
    file = ts(tmp_path / "new.ts", f"{SERIES}:on", f"{SERIES}:1", labels="true 1 on")
    found = answer(place.italy, file, tmp_path / "out.csv")
    assert found[0]["label"] == "on"
    assert "no accuracy: the file has labels that this model does not know (on)" in capsys.readouterr().out


def test_missing_values_are_filled_as_in_the_run(place, tmp_path):
    values = SERIES.split(",")
    middle = str((float(values[4]) + float(values[6])) / 2)
    gap, filled = (",".join([*values[:5], v, *values[6:]]) for v in ("?", middle))
    found = answer(place.italy, ts(tmp_path / "new.ts", f"{gap}:1", f"{filled}:1"), tmp_path / "out.csv")
    assert float(found[0]["p_1"]) == pytest.approx(float(found[1]["p_1"]), abs=1e-6)


def test_longer_series_than_the_model_sees_are_told(place, tmp_path, capsys):
    length = place.pickup.artifact.manifest["shape"][1]
    lines = [",".join(map(str, np.cos(np.arange(n)))) for n in (50, length + 1)]
    file = ts(tmp_path / "new.ts", *lines, equal="false", labels="false")
    assert len(answer(place.pickup, file, tmp_path / "out.csv")) == 2
    assert f"1 of them are longer than the {length} steps" in capsys.readouterr().out


def test_a_file_that_does_not_fit_is_told_in_a_line(place, tmp_path, capsys):
    takes = "this model takes numbers of shape (batch, 1, 24)"
    for lines, header, said in (
        ([SERIES, f"{SERIES},1"], {"labels": "false", "equal": "false"}, f"series 1: 25 values; {takes}"),
        ([f"{SERIES},1:1"], {}, f"series 0: 25 values; {takes}"),
        ([f"{SERIES}:{SERIES}:1"], {"univariate": "false"}, f"series 0: 2 channels; {takes}"),
        ([SERIES], {}, "series 0: 0 channels (a file without labels says @classLabel false)"),
        ([f"{SERIES}:1", "1,2,x:1"], {}, "line 8: 3 values, the first series has 24"),
        ([f"{SERIES.replace('0.0', 'inf', 1)}:1"], {}, "series 0: infinite values"),
        ([], {}, "holds no series after @data"),
    ):
        file = ts(tmp_path / "new.ts", *lines, **header)
        words = [place.italy.run_id, file, "--output", tmp_path / "out.csv", *place.italy.settings]
        assert said in made_runs.refused(capsys, predict, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["new.ts"]


def test_scores_that_are_not_finite_are_told_and_not_written(place, tmp_path, capsys, monkeypatch):
    scores = np.array([[0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]], np.float32)
    monkeypatch.setattr(finished, "answers", lambda *_: scores)
    file = ts(tmp_path / "new.ts", *[f"{SERIES}:1"] * 3)
    words = [place.italy.run_id, file, "--output", tmp_path / "out.csv", *place.italy.settings]
    assert "series 1: scores that are not finite" in made_runs.refused(capsys, predict, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["new.ts"]


def test_wrong_words_are_told_in_a_line(place, tmp_path, capsys):
    run, file = place.italy.run_id, ts(tmp_path / "new.ts", f"{SERIES}:1")
    os.mkfifo(tmp_path / "pipe")
    for words, said in (
        ([run], "give a run and a file, RUN FILE.ts, not 1 words"),
        ([run, tmp_path / "none.ts"], "none.ts is not there"),
        ([run, tmp_path], "is not there, or no file"),
        ([run, file, "--output", file], "is the file with the series; give another"),
        ([run, file, "--output", tmp_path / "no" / "x.csv"], "cannot be written"),
        ([run, file, "--output", tmp_path / "pipe"], "cannot be written"),
        ([run, file, "model=t1"], "model=t1 is not known here"),
        (["123", file], "123 is not a run id"),
    ):
        assert said in made_runs.refused(capsys, predict, *words, *place.italy.settings)
    assert file.read_text().endswith(":1\n")


def test_what_a_link_leads_to_is_written(place, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "there" / "out.csv")
    assert len(answer(place.italy, ts(tmp_path / "new.ts", f"{SERIES}:1"), tmp_path / "link.csv")) == 1
    assert (tmp_path / "link.csv").is_symlink()
    assert len(rows((tmp_path / "there" / "out.csv").read_text())) == 1


def test_interrupted_leaves_nothing(place, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "judged", interrupt)
    monkeypatch.setattr(predict, "write", interrupt)
    file = ts(tmp_path / "new.ts", f"{SERIES}:1")
    words = [place.italy.run_id, str(file), "--output", f"{tmp_path}/out.csv", *place.italy.settings]
    assert predict.main(words) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["new.ts"]
