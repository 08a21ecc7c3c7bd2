"""Datasets: where they are found, how they are split, what is refused."""

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import aeon.datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conftest import TINY, compose
from tsexp import data, training
from tsexp.config import ConfigError, DataConfig

TRAIN = [["1,2,3,4", "a"], ["2,3,4,5", "b"], ["1,2,3,4", "a"], ["2,3,4,5", "b"]]
TEST = [["0,2,3,4", "b"], ["2,3,4,5", "a"]]


def write_ts(folder, name, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    classes = " ".join(sorted({label for _, label in rows}))
    lengths = {len(channel.split(",")) for text, _ in rows for channel in text.split(":")}
    channels = len(rows[0][0].split(":"))
    header = [
        f"@problemName {name}",
        "@timeStamps false",
        f"@missing {'true' if any('?' in text for text, _ in rows) else 'false'}",
        "@univariate true" if channels == 1 else f"@univariate false\n@dimensions {channels}",
        f"@equalLength true\n@seriesLength {lengths.pop()}" if len(lengths) == 1 else "@equalLength false",
        f"@classLabel true {classes}",
        "@data",
    ]
    (folder / f"{name}_{split}.ts").write_text(
        "\n".join(header + [f"{text}:{label}" for text, label in rows]) + "\n"
    )


def own(folder, train=TRAIN, test=TEST, seed=0, data_dir="nowhere", **changes):
    """Write both files into a folder and load it by data.path."""
    write_ts(folder, "Mine", "TRAIN", train)
    write_ts(folder, "Mine", "TEST", test)
    config = replace(
        compose("data=acsf1").data, name="Mine", path=str(folder), val_fraction=0.0, scale="none"
    )
    return data.load(replace(config, **changes), data_dir, seed)


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("ACSF1", (100, 1, 1460), (100, 1, 1460), 10),
        ("ItalyPowerDemand", (67, 1, 24), (1029, 1, 24), 2),
        ("BasicMotions", (40, 6, 100), (40, 6, 100), 4),
    ],
)
def test_default_split_is_the_archives(load_data, name, train, test, classes):
    dataset = load_data(name)
    assert (dataset.x_train.shape, dataset.x_test.shape, len(dataset.classes)) == (train, test, classes)
    assert dataset.y_train.shape == train[:1]
    assert dataset.y_test.shape == test[:1]
    assert dataset.channels == train[1]
    assert not dataset.preprocessing.masked
    assert dataset.preprocessing.length == train[2]
    for x, y, split in [
        (dataset.x_train, dataset.y_train, "train"),
        (dataset.x_test, dataset.y_test, "test"),
    ]:
        raw, labels = aeon.datasets.load_classification(name, split=split)
        np.testing.assert_array_equal(x, raw.astype(np.float32))
        assert [dataset.classes[i] for i in y] == labels.tolist()


def test_unequal_series_end_in_nan_and_are_masked(pickup):
    assert (len(pickup.x_train), len(pickup.x_test), len(pickup.classes)) == (50, 50, 10)
    present = [~np.isnan(x[:, 0]) for x in (pickup.x_train, pickup.x_test)]
    lengths = np.concatenate([p.sum(1) for p in present])
    assert (lengths.min(), lengths.max()) == (29, 361)
    for p in present:
        np.testing.assert_array_equal(p, np.arange(p.shape[1]) < p.sum(1)[:, None])
    assert pickup.preprocessing.masked
    assert pickup.preprocessing.length == present[0].sum(1).max()
    assert not pickup.preprocessing.resample


def test_unequal_series_are_resampled_to_the_longest_of_train_instead_if_asked(load_data, pickup):
    spec = load_data("PickupGestureWiimoteZ", unequal="resample").preprocessing
    assert (spec.resample, spec.masked, spec.length) == (True, False, pickup.preprocessing.length)
    assert not load_data("ItalyPowerDemand", unequal="resample").preprocessing.resample


def test_length_resamples_equal_series_too(load_data):
    spec = load_data("ItalyPowerDemand", length=48).preprocessing
    assert (spec.resample, spec.masked, spec.length) == (True, False, 48)


def test_numeric_labels_sort_by_number(tmp_path):
    rows = [["1,2,3", label] for label in ("10", "9", "2", "-1")]
    assert own(tmp_path, rows, rows).classes == ("-1", "2", "9", "10")


@pytest.mark.parametrize("name", ["ACSF1", "ItalyPowerDemand", "PickupGestureWiimoteZ"])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_validation_split_is_disjoint_covering_and_stratified(load_data, name, fraction):
    dataset = load_data(name, val_fraction=fraction)
    assert sorted([*dataset.fit, *dataset.val]) == list(range(len(dataset.y_train)))
    counts = [
        np.bincount(dataset.y_train[i], minlength=len(dataset.classes)) for i in (dataset.fit, dataset.val)
    ]
    assert min(map(min, counts)) >= 1
    assert np.abs(counts[1] - fraction * (counts[0] + counts[1])).max() <= 1


def test_validation_split_depends_on_the_seed_alone(load_data):
    a, b, c = (load_data("ItalyPowerDemand", seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.val, b.val)
    assert set(a.val) != set(c.val)
    np.testing.assert_array_equal(a.x_train, c.x_train)


def test_no_validation_split_if_fraction_is_zero(load_data):
    dataset = load_data("ItalyPowerDemand", val_fraction=0.0)
    assert len(dataset.val) == 0
    np.testing.assert_array_equal(dataset.fit, np.arange(67))


def test_class_with_one_series_is_fitted_on(tmp_path):
    dataset = own(tmp_path, [*TRAIN, ["5,5,5,5", "c"]], val_fraction=0.4)
    assert 4 in dataset.fit
    assert set(dataset.y_train[dataset.val]) == {0, 1}


def test_a_small_class_is_fitted_on_whole(tmp_path):
    """One of its series would be more than twice the share; of others, a share is withheld."""
    rows = [
        [f"{i},2,3,4", label] for label, n in (("a", 20), ("b", 20), ("c", 4), ("d", 5)) for i in range(n)
    ]
    dataset = own(tmp_path, rows, [["1,2,3,4", "a"]], val_fraction=0.1)
    withheld = np.bincount(dataset.y_train[dataset.val], minlength=4)
    assert (withheld[2], withheld.sum()) == (0, 4)
    assert sorted([*dataset.fit, *dataset.val]) == list(range(49))


def test_where_every_class_is_small_nothing_is_withheld_and_it_is_told(tmp_path, caplog):
    rows = [[f"{i},{c},3,4", str(c)] for c in range(30) for i in range(2)]
    dataset = own(tmp_path, rows, rows, val_fraction=0.1)
    assert (len(dataset.fit), len(dataset.val)) == (60, 0)
    assert "Mine: no class has enough train series to withhold one" in caplog.text
    caplog.clear()
    assert len(own(tmp_path, rows, rows, val_fraction=0.0).val) == 0
    assert not caplog.text


def test_a_folder_that_was_not_there_is_not_made_for_a_name_that_is_nowhere(tmp_path):
    with pytest.raises(ConfigError, match=r"Looked in: .* TSEXP_DATA, not there\)"):
        data.load(replace(compose().data, name="NoSuchSet"), tmp_path / "nowhere", 0)
    assert not (tmp_path / "nowhere").exists()


def test_fraction_that_empties_a_class_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="val_fraction"):
        own(tmp_path, val_fraction=0.8)


def test_fraction_that_empties_the_smallest_class_is_refused(tmp_path):
    rows = [["1,2,3,4", "a"]] * 50 + [["5,5,5,5", "b"]] * 2
    with pytest.raises(ConfigError, match="smallest class no series"):
        own(tmp_path, rows, val_fraction=0.85)


def test_own_folder(tmp_path):
    dataset = own(tmp_path)
    assert dataset.classes == ("a", "b")
    assert dataset.files == (str(tmp_path / "Mine_TRAIN.ts"), str(tmp_path / "Mine_TEST.ts"))
    np.testing.assert_array_equal(dataset.y_train, [0, 1, 0, 1])
    np.testing.assert_array_equal(dataset.y_test, [1, 0])
    np.testing.assert_array_equal(dataset.x_test, np.float32([[[0, 2, 3, 4]], [[2, 3, 4, 5]]]))


def test_own_folder_is_not_taken_for_a_dataset_of_another_name(tmp_path):
    with pytest.raises(ConfigError, match=r"must hold Other_TRAIN.ts.*found: Mine_TRAIN.ts"):
        own(tmp_path, name="Other")


def test_own_folder_with_unequal_lengths_and_two_channels(tmp_path):
    dataset = own(tmp_path, [["1,2,3:4,5,6", "a"], ["1,2:3,4", "b"]], [["1,2,3,4:5,6,7,8", "a"]])
    assert dataset.channels == 2
    np.testing.assert_array_equal(dataset.x_train[1], np.float32([[1, 2, np.nan], [3, 4, np.nan]]))
    assert (dataset.preprocessing.length, dataset.preprocessing.masked) == (3, True)


@pytest.mark.parametrize("unequal", ["pad", "resample"])
def test_the_length_of_test_series_decides_nothing_that_is_trained(tmp_path, tiny_model, unequal):
    train = [["1,2,3,4", "a"], ["4,3,2", "b"]] * 5
    short, long = (own(tmp_path, train, [[text, "a"]], unequal=unequal) for text in ("1,2", "1,2,3,4,5,6"))
    assert short.preprocessing == long.preprocessing
    assert long.preprocessing.length == 4
    weights = []
    for dataset in (short, long):
        model = tiny_model(dataset)
        training.fit(model, compose(*TINY).train, dataset, 0, "test", None)
        weights.append(model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_test_series_that_no_train_series_is_like_is_refused(tmp_path):
    """All train series are of one length, so a model of it takes no other: a stranger's is refused, too."""
    for text in ("1,2,3", "1,2,3,4,5"):
        with pytest.raises(ConfigError, match=r"Mine_TEST.ts.*all train series have 4.*data.length=4"):
            own(tmp_path, test=[*TEST, [text, "a"]])
    assert own(tmp_path, test=[*TEST, ["1,2,3,4,5", "a"]], length=4).preprocessing.resample


def test_missing_values_are_interpolated(tmp_path):
    dataset = own(tmp_path, [["1,?,3,4,?", "a"], ["?,?,3,?,9", "b"]], [["0,?,?,?,4", "a"]])
    np.testing.assert_allclose(dataset.x_train[:, 0], [[1, 2, 3, 4, 4], [3, 3, 3, 6, 9]])
    np.testing.assert_allclose(dataset.x_test[:, 0], [[0, 1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("train", "test", "which"),
    [(["1,?,3,4", "a"], ["1,2,3,4", "a"], "TRAIN"), (["1,2,3,4", "a"], ["1,?,3,4", "a"], "TEST")],
)
def test_missing_values_are_refused_if_asked(tmp_path, train, test, which):
    with pytest.raises(ConfigError, match=f"Mine_{which}.ts, series 4: 1 missing.*data.missing"):
        own(tmp_path, [*TRAIN, train], [*TRAIN, test], missing="error")


def test_channel_without_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="without a single value"):
        own(tmp_path, [*TRAIN, ["?,?,?,?", "a"]])


def test_of_many_unseen_labels_some_are_told(tmp_path):
    strange = [["1,2,3,4", f"strange{i:02}"] for i in range(30)]
    with pytest.raises(ConfigError, match=r"does not have: strange00, .*strange04, …$"):
        own(tmp_path, test=[*TEST, *strange])


def test_labels_unseen_in_train_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Mine_TEST.ts.*train split does not have: strange"):
        own(tmp_path, test=[*TEST, ["1,2,3,4", "strange"]])


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: text.index("@data")] + "@data\n", "line 8: it holds no series after @data"),
        (lambda text: text[: text.index("@class")], "line 6: it ends before @data; is it cut off?"),
        (lambda text: "", "is empty"),
        (lambda text: "\n\n", "is empty"),
        (lambda text: "\x00\x01garbage", "line 1: this is no text"),
        (lambda text: "any,thing\nelse\n", "line 1: a header line begins with @.*any,thing"),
        (lambda text: text.replace("@missing false", "@missing"), "line 3: @missing is true or false"),
        (lambda text: text.replace(" true a b", " true"), "line 7: @classLabel is true and the labels"),
        (lambda text: text.replace("2,3,4,5:", "2,3:"), r"line 10: 2 values, the first series has 4"),
        (lambda text: text[:-5], r"line \d+: channels and a label.* in the first series 1.*is it cut off\?"),
        (lambda text: text[:-2], r"line \d+: no label.*is it cut off\?"),
        (lambda text: text + "\n", r"line \d+: an empty line; remove it"),
        (lambda text: text.replace("2,3,4,5:", "2,3,4,5:1,2,3,4:"), r"line 10: .*: here are 2, in the first"),
        (
            lambda text: (
                text.replace("@classLabel true a b", "@classLabel false").replace(":a", "").replace(":b", "")
            ),
            "no class labels",
        ),
        (lambda text: text.replace(":a", "").replace(":b", ""), r"line 9: no label behind a colon; add it"),
        (lambda text: text.replace(":b", ":?"), r"line \d+: no label; add it"),
        (lambda text: text.replace(":b", ":"), r"line \d+: no label; add it"),
        (lambda text: text.replace("2,3,4,5", "2,3,4,five"), r"line 10: 'five' is no number: 2,3,4,five:"),
        (lambda text: text.replace("2,3,4,5", "2,3,4,1e39"), "infinite values"),
        (lambda text: text.replace("2,3,4,5", "2,3,4,-2e15"), "values beyond ±1e\\+15"),
    ],
)
def test_a_file_without_what_it_should_hold_is_refused_by_name(tmp_path, split, change, words):
    own(tmp_path)
    file = tmp_path / f"Mine_{split}.ts"
    file.write_text(change(file.read_text()))
    config = replace(compose("data=acsf1").data, name="Mine", path=str(tmp_path), val_fraction=0.0)
    with pytest.raises(ConfigError, match=f"Mine_{split}.ts.*{words}") as error:
        data.load(config, "nowhere", 0)
    assert len(str(error.value).splitlines()) == 1


def test_a_label_that_lost_its_end_is_not_taken_for_another_class(tmp_path):
    rows = [["1,2,3,4", "walking"], ["2,3,4,5", "running"], ["1,2,3,4", "walking"]]
    own(tmp_path, rows, rows)
    file = tmp_path / "Mine_TRAIN.ts"
    file.write_text(file.read_text().rstrip("\n"))
    config = replace(compose("data=acsf1").data, name="Mine", path=str(tmp_path), val_fraction=0.0)
    assert data.load(config, "nowhere", 0).classes == ("running", "walking")
    file.write_text(file.read_text()[:-3])
    with pytest.raises(ConfigError, match=r"Mine_TRAIN.ts, line 11: label 'walk' is none of @classLabel"):
        data.load(config, "nowhere", 0)


WHOLE = (
    b"@missing false\n@univariate true\n@equalLength true\n@classLabel true a b\n@data\n"
    b"1,2,3,4:a\n2,3,4,5:b\n1,2,3,5:a\n2,4,4,5:b\n"
)
PARTS = [
    b"",
    b",",
    b":",
    b"?",
    b"nan",
    b"inf",
    b"\n",
    b"@data\n",
    b"#",
    b"1e39",
    b"\x00",
    b"\xff",
    b"(1,2)",
    b"-",
    b"false",
    b"1,2,3:a\n",
]


@st.composite
def damaged(draw):
    """A .ts file of which up to three parts were cut out and replaced."""
    text = WHOLE
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.one_of(st.integers(start, min(start + 6, len(text))), st.just(len(text))))
        text = text[:start] + draw(st.one_of(st.sampled_from(PARTS), st.binary(max_size=4))) + text[end:]
    return text


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damaged(), damaged(), st.sampled_from(["none", "standard"]), st.sampled_from([0.0, 0.5]))
@example(WHOLE, WHOLE[: WHOLE.index(b"1,2")], "none", 0.0)
def test_any_bytes_make_a_dataset_or_one_clear_error(tmp_path, train, test, scale, fraction):
    for split, content in (("TRAIN", train), ("TEST", test)):
        (tmp_path / f"Mine_{split}.ts").write_bytes(content)
    config = DataConfig(
        "Mine", str(tmp_path), scale, unequal="pad", length=None, missing="interpolate", val_fraction=fraction
    )
    try:
        dataset = data.load(config, "nowhere", 0)
    except ConfigError as error:
        told = str(error)
        assert "\n" not in told
        return
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert len(x) == len(y) > 0
        assert not np.isinf(x).any()
    assert np.isfinite([*dataset.preprocessing.mean, *dataset.preprocessing.std]).all()


@pytest.mark.parametrize("equal", ["true", "false"])
def test_time_stamps_are_refused_for_they_would_be_misread(tmp_path, equal):
    own(tmp_path)
    head = f"@problemName Mine\n@timeStamps true\n@missing false\n@univariate true\n@equalLength {equal}\n"
    series = "(0,1.5),(1,-2.5),(2,3.25):a\n(0,1.5),(1,2.5),(2,3.25):b\n"
    (tmp_path / "Mine_TRAIN.ts").write_text(f"{head}@classLabel true a b\n@data\n{series}")
    with pytest.raises(ConfigError, match=r"Mine_TRAIN.ts, line 2: time stamps are not read"):
        own_again(tmp_path)


def test_labels_are_those_of_the_file(tmp_path):
    rows = [("1,2,3", "banana"), ("2,3,4", " finance"), ("3,4,5", "banana "), ("5,4,3", "finance")]
    write_ts(tmp_path, "Mine", "TRAIN", rows)
    write_ts(tmp_path, "Mine", "TEST", rows)
    assert own_again(tmp_path).classes == ("banana", "finance")
    capital = [(values, label.strip().title()) for values, label in rows]
    write_ts(tmp_path, "Mine", "TRAIN", capital)
    assert own_again(tmp_path).classes == ("banana", "finance"), "in small letters, as docs/extending.md says"
    write_ts(tmp_path, "Mine", "TRAIN", [*rows, ("5,4,3", "Finance")])
    with pytest.raises(ConfigError, match=r"line 13: labels finance and Finance differ by case alone"):
        own_again(tmp_path)
    write_ts(tmp_path, "Mine", "TRAIN", [*rows, ("5,4,3", "what?")])
    with pytest.raises(ConfigError, match=r"line 13: label what\?: a question mark"):
        own_again(tmp_path)
    write_ts(tmp_path, "Mine", "TRAIN", [*rows, ("5,4,3", "a:b")])
    with pytest.raises(ConfigError, match=r"label a:b: a colon stands between channels; call it something"):
        own_again(tmp_path)
    write_ts(tmp_path, "Mine", "TEST", [*rows, ("5,4,3", "NaN"), ("5,4,3", "nan"), ("5,4,3", "?")])
    assert data.tsfile.read(tmp_path / "Mine_TEST.ts", labelled=False)[1][-3:] == [""] * 3


def test_the_last_of_several_series_may_lack_a_label_where_none_is_needed(tmp_path):
    write_ts(tmp_path, "Mine", "TEST", [("1,2,3", "a"), ("2,3,4", "")])
    file = tmp_path / "Mine_TEST.ts"
    file.write_text(file.read_text().rstrip("\n"))
    assert data.tsfile.read(file, labelled=False)[1] == ["a", ""]
    with pytest.raises(ConfigError, match="no label"):
        data.tsfile.read(file)


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_a_split_without_series_is_refused_by_name(tmp_path, split):
    for name in ("TRAIN", "TEST"):
        content = WHOLE[: WHOLE.index(b"1,2")] if name == split else WHOLE
        (tmp_path / f"Mine_{name}.ts").write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"Mine_{split}.ts, line 5: it holds no series after @data"
    ) as error:
        data.load(replace(compose().data, name="Mine", path=str(tmp_path)), "nowhere", 0)
    assert "\n" not in str(error.value)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=400).filter(lambda name: name not in ("Mine",)), st.booleans())
@example("x" * 300, False)
@example("x" * 300, True)
@example("ä" * 128, False)
@example("..", False)
@example("", True)
@example("a\0b", False)
def test_any_name_is_found_or_refused_in_a_line(tmp_path, monkeypatch, name, at_path):
    def unreachable(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr("aeon.datasets.load_classification", unreachable)
    try:
        name.encode()
    except UnicodeEncodeError:  # Hydra takes none such
        return
    config = replace(compose_once(), name=name, path=str(tmp_path) if at_path else None)
    with pytest.raises(ConfigError) as error:
        data.load(config, tmp_path / "data", 0)
    assert len(str(error.value).split("\n")) == 1 or "\n" in name


@cache
def compose_once():
    return compose().data


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        data.find(replace(compose().data, path="/x" * 3000, name="Mine"), tmp_path)


def test_files_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    """Else the checksum would be of others than the series."""
    own(tmp_path)
    read = data.tsfile.read

    def slow(file, *how):
        found = read(file, *how)
        file.write_text(file.read_text() + "# more\n")
        return found

    monkeypatch.setattr("tsexp.data.tsfile.read", slow)
    with pytest.raises(ConfigError, match="changed while it was read; run it again"):
        own_again(tmp_path)


def own_again(folder):
    config = replace(compose_once(), name="Mine", path=str(folder), val_fraction=0.0)
    return data.load(config, "nowhere", 0)


def test_a_file_that_cannot_be_read_is_told_in_a_line(tmp_path, monkeypatch):
    own(tmp_path)

    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    with pytest.raises(ConfigError, match=r"Mine_TRAIN.ts cannot be read \(Permission denied\)$"):
        own_again(tmp_path)


def test_a_dataset_that_was_cut_between_jobs_is_another_one_or_refused(tmp_path):
    own(tmp_path)
    file = tmp_path / "Mine_TRAIN.ts"
    whole, known = file.read_bytes(), own_again(tmp_path).checksum
    refused = []
    for length in range(len(whole) - 1, len(whole) // 2, -2):
        file.write_bytes(whole[:length])
        try:
            assert own_again(tmp_path).checksum != known
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) >= 20
    assert not [told for told in refused if "\n" in told]


def test_one_class_is_refused(tmp_path):
    rows = [["1,2,3", "a"], ["2,3,4", "a"]]
    with pytest.raises(ConfigError, match="one class"):
        own(tmp_path, rows, rows)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["Mine_TEST.ts"], "holds Mine_TRAIN.ts but not Mine_TEST.ts"),
        (["Mine_TRAIN.ts", "Mine_TEST.ts"], "found: none"),
    ],
)
def test_own_folder_without_a_file_is_refused(tmp_path, remove, message):
    own(tmp_path)
    for name in remove:
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=message):
        data.find(replace(compose().data, path=str(tmp_path), name="Mine"), tmp_path)


def test_own_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a folder"):
        data.find(replace(compose().data, path=str(tmp_path / "none")), tmp_path)


def test_own_folder_with_two_datasets_needs_the_name(tmp_path):
    for name in ("Mine", "Yours"):
        write_ts(tmp_path, name, "TRAIN", TRAIN)
        write_ts(tmp_path, name, "TEST", TEST)
    config = replace(compose().data, path=str(tmp_path), name="Yours")
    found = data.find(config, "nowhere")
    assert found is not None
    assert found[0].name == "Yours_TRAIN.ts"
    with pytest.raises(ConfigError, match=r"Mine_TRAIN.ts, Yours_TRAIN.ts"):
        data.find(replace(config, name="Theirs"), "nowhere")


def test_paths_data_comes_before_the_wheel(tmp_path):
    config = compose("data=italy_power_demand").data
    assert "aeon" in data.load(config, tmp_path, 0).files[0]
    for split, rows in (("TRAIN", TRAIN), ("TEST", TEST)):
        write_ts(tmp_path / "ItalyPowerDemand", "ItalyPowerDemand", split, rows)
    dataset = data.load(config, tmp_path, 0)
    assert Path(dataset.files[0]).parent == tmp_path / "ItalyPowerDemand"
    assert len(dataset.x_train) == 4


def test_data_path_comes_before_paths_data(tmp_path):
    write_ts(tmp_path / "data" / "Mine", "Mine", "TRAIN", TRAIN[:2])
    write_ts(tmp_path / "data" / "Mine", "Mine", "TEST", TEST)
    assert len(own(tmp_path / "own", data_dir=tmp_path / "data").x_train) == 4


@pytest.mark.parametrize("existed", [False, True])
def test_dataset_nowhere_names_the_places_and_leaves_nothing(tmp_path, monkeypatch, existed):
    def download(name, extract_path):
        (Path(extract_path) / name).mkdir(parents=True, exist_ok=True)
        raise ValueError("no network")

    monkeypatch.setattr(aeon.datasets, "load_classification", download)
    target = tmp_path / "data" / "NoSuchSet"
    if existed:
        target.mkdir(parents=True)
        (target / "mine.txt").touch()
    with pytest.raises(ConfigError) as error:
        data.load(replace(compose().data, name="NoSuchSet"), tmp_path / "data", 0)
    assert "did you mean" not in str(error.value)
    for part in (str(target), "aeon's wheel", "no network", "TSEXP_DATA", "data.path"):
        assert part in str(error.value)
    assert (target / "mine.txt").exists() == existed
    assert target.exists() == existed


@pytest.mark.parametrize(
    ("name", "meant"), [("ACSFI", "ACSF1"), ("Screentype", "ScreenType"), ("MyOwnn", "MyOwn")]
)
def test_a_misspelt_dataset_is_told_which_was_meant(tmp_path, monkeypatch, name, meant):
    def download(name, extract_path):
        raise ValueError("no such file")

    monkeypatch.setattr(aeon.datasets, "load_classification", download)
    write_ts(tmp_path / "MyOwn", "MyOwn", "TRAIN", TRAIN)
    with pytest.raises(ConfigError, match=rf"dataset {name} is nowhere \(did you mean {meant}\?\)"):
        data.load(replace(compose().data, name=name), tmp_path, 0)


def test_a_dataset_that_is_spelt_right_is_no_suggestion(tmp_path, monkeypatch):
    def download(name, extract_path):
        raise ValueError("no network")

    monkeypatch.setattr(aeon.datasets, "load_classification", download)
    with pytest.raises(ConfigError, match=r"dataset ScreenType is nowhere\. Looked in"):
        data.load(replace(compose().data, name="ScreenType"), tmp_path, 0)


def test_download_is_used_when_nothing_else_has_it(tmp_path, monkeypatch):
    def download(name, extract_path):
        for split, rows in (("TRAIN", TRAIN), ("TEST", TEST)):
            write_ts(Path(extract_path) / name, name, split, rows)

    monkeypatch.setattr(aeon.datasets, "load_classification", download)
    dataset = data.load(replace(compose().data, name="NoSuchSet", val_fraction=0.0), tmp_path, 0)
    assert Path(dataset.files[0]).parent == tmp_path / "NoSuchSet"


def test_a_download_that_breaks_off_leaves_nothing_that_is_taken_for_the_dataset(tmp_path, monkeypatch):
    def download(name, extract_path):
        for split, rows in (("TRAIN", TRAIN), ("TEST", TEST[:1])):
            write_ts(Path(extract_path) / name, name, split, rows)
        assert data.find(config, tmp_path) is None  # while it goes on
        raise KeyboardInterrupt

    monkeypatch.setattr(aeon.datasets, "load_classification", download)
    config = replace(compose().data, name="NoSuchSet")
    with pytest.raises(KeyboardInterrupt):
        data.load(config, tmp_path, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_checksum_changes_with_either_file(tmp_path, split):
    before = own(tmp_path)
    assert own(tmp_path).checksum == before.checksum
    file = tmp_path / f"Mine_{split}.ts"
    file.write_text(file.read_text().replace("2,3,4,5", "2,3,4,6", 1))
    config = replace(compose("data=acsf1").data, name="Mine", path=str(tmp_path), val_fraction=0.0)
    assert data.load(config, "nowhere", 0).checksum != before.checksum


def test_standard_scaling_takes_its_statistics_from_the_fit_part_alone(load_data):
    dataset = load_data("BasicMotions", scale="standard", val_fraction=0.5)
    part = dataset.x_train[dataset.fit].astype(np.float64)
    np.testing.assert_allclose(dataset.preprocessing.mean, part.mean((0, 2)))
    np.testing.assert_allclose(dataset.preprocessing.std, part.std((0, 2)))
    assert np.abs(dataset.preprocessing.mean - dataset.x_train.mean((0, 2))).max() > 1e-3


def test_standard_scaling_of_unequal_lengths_leaves_padding_out(load_data):
    dataset = load_data("PickupGestureWiimoteZ", scale="standard")
    values = dataset.x_train[dataset.fit].astype(np.float64)
    np.testing.assert_allclose(dataset.preprocessing.mean, [np.nanmean(values)])
    np.testing.assert_allclose(dataset.preprocessing.std, [np.nanstd(values)])


def test_raw_values_are_scaled_by_what_is_small_among_those_that_are_fitted(load_data):
    """A tenth of the values, without their signs and without zeros, is smaller than the unit."""
    dataset = load_data("PickupGestureWiimoteZ", scale="znorm_raw", val_fraction=0.5)
    values = dataset.x_train[dataset.fit].astype(np.float64)
    values = values[~np.isnan(values)]
    (unit,), found = dataset.preprocessing.unit, dataset.preprocessing
    sizes = np.abs(values[values != 0])
    assert np.mean(sizes < unit) <= 0.1 <= np.mean(sizes <= unit)  # many are equal
    raw = np.arcsinh(values / unit)
    np.testing.assert_allclose((found.mean[0], found.std[0]), (raw.mean(), raw.std()))
    whole = load_data("PickupGestureWiimoteZ", scale="znorm_raw").preprocessing
    assert (whole.unit, whole.mean) != (found.unit, found.mean)


@pytest.mark.parametrize("scale", ["standard", "znorm_raw"])
def test_constant_channel_is_not_divided_by_zero(tmp_path, scale):
    rows = [["1,2:7,7", "a"], ["3,4:7,7", "b"]]
    assert own(tmp_path, rows, rows, scale=scale).preprocessing.std[1] == 1.0


def test_a_channel_of_zeros_and_one_of_huge_range_have_a_unit(tmp_path):
    rows = [["0,0:1e-30,1e14", "a"], ["0,0:1e-30,2e14", "b"]]
    found = own(tmp_path, rows, rows, scale="znorm_raw").preprocessing
    assert found.unit[0] == 1.0
    assert np.isfinite(np.float32(2e14) / np.float32(found.unit[1]))


def test_a_small_unit_is_no_constant(tmp_path):
    rows = [["1e-9,2e-9", "a"], ["3e-9,4e-9", "b"]]
    (std,) = own(tmp_path, rows, rows, scale="standard").preprocessing.std
    assert std == pytest.approx(np.std([1e-9, 2e-9, 3e-9, 4e-9]), rel=1e-5)


def test_another_test_split_goes_with_the_train_split_or_is_refused(load_data):
    dataset, config = load_data("ItalyPowerDemand"), compose("data=italy_power_demand").data
    good = data.with_test(dataset, config, list(dataset.x_test[:2]), ["1", "2"])
    assert good.x_test.shape == (2, 1, 24)
    for series, said in (([], "there are none"), ([np.zeros((2, 24), np.float32)], "2 channels; .* have 1")):
        with pytest.raises(ConfigError, match=said):
            data.with_test(dataset, config, series, ["1"] * len(series))


def test_series_of_which_float32_keeps_hardly_anything_are_told():
    config = compose().data
    waves = np.sin(np.linspace(0, 20, 64))[None] * 10
    with pytest.warns(UserWarning, match=r"^here, series 1: channel 0 varies by 20 around 99999999\d\d"):
        data.filled([waves, waves + 1e10], config, "here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.filled([waves + 1e5, waves * 0 + 1e10, waves * 1e-10, np.float32(waves)], config, "here")
        gap = np.where(np.arange(64) == 3, np.nan, waves + 1e5)
        data.filled([gap], config, "here")
        data.filled([np.arange(64)[None], np.int8(waves)], config, "here")
    with pytest.warns(UserWarning, match=r"^here, series 0: channel 0 varies by 6 around 1000000000"):
        data.filled([10**9 + np.arange(7)[None]], config, "here")


def test_series_in_memory_end_where_all_channels_are_nan():
    nan = np.nan
    held = [[[1, 2, nan, 4, nan, nan]], [[1, nan, nan], [3, nan, 5]], [[7, nan, nan]], [[nan, nan]]]
    found = [one.tolist() for one in data.ended(held)]
    assert [np.array(one).shape for one in found] == [(1, 4), (2, 3), (1, 2), (1, 2)]
    assert str(found[0]) == "[[1.0, 2.0, nan, 4.0]]"
    assert [one.tolist() for one in data.ended(np.arange(6).reshape(2, 1, 3))] == [[[0, 1, 2]], [[3, 4, 5]]]
