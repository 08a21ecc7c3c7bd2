"""The transformer on features: each feature by hand, what is taken from which series, and rewrites."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import compose
from tsexp import compress, data, models, training
from tsexp.cache import Cache
from tsexp.compress import features as prune_features
from tsexp.config import ConfigError, Unsupported, identity
from tsexp.data import Preprocessing
from tsexp.models.transformer import Block
from tsexp.models.views import Arch, Source, ViewClassifier, features, linear, rebuild, rewrite, seen
from tsexp.models.views import classifier as views_classifier
from tsexp.models.views.arch import fourier_points, levels_of, scales_of, signal_length
from tsexp.models.views.ridge import RidgeClassifier

TINY = ("model.d_model=16", "model.ffn=24", "model.heads=4")


def dataset_of(name, **changes):
    config = replace(compose("data=ucr", f"data.name={name}").data, **changes)
    return data.load(config, "nowhere", 0)


@pytest.fixture(scope="module")
def italy():
    return dataset_of("ItalyPowerDemand")


def model_of(dataset, *overrides, adapted=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build(compose("model=t4", *TINY, *overrides).model, dataset)
        for view in model.views:
            view.each.data.normal_(std=0.1)
    if adapted:
        model = model.adapt(dataset)
    return model.eval()


def test_features_of_many_channels_are_taken_a_few_series_and_numbers_at_a_time(monkeypatch):
    dataset = dataset_of("BasicMotions")
    whole = model_of(dataset)
    assert whole.at_once == features.LOOKED_AT
    monkeypatch.setattr(features, "NUMBERS", 3 * 6 * 100 * 32)
    parts = model_of(dataset)
    assert parts.at_once == 3
    for name, expected in whole.preprocess.state_dict().items():
        torch.testing.assert_close(parts.preprocess.state_dict()[name], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["views.0.project.0", "views.1.head", "encoder.blocks.0.fc1"])
def test_rewrites_leave_alone_what_they_do_not_know(italy, layer):
    class Other(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = model_of(italy)
    replaced = model.get_submodule(layer)
    other = Other(replaced.in_features, replaced.out_features).requires_grad_(False)
    model.replace(layer, other)
    x = torch.from_numpy(italy.x_test[:9])
    for flat in (False, True):
        assert (model.deployable(flat=flat)(x) - model(x)).abs().max() < 1e-5


def test_taylor_takes_a_few_series_at_a_time_where_channels_are_many(monkeypatch):
    dataset = dataset_of("BasicMotions")
    model = model_of(dataset)
    config = compose("model=t4", "prune.method=taylor", "prune.scope=all").prune
    whole = prune_features.SCORES["taylor"](model, config, dataset, 0)
    monkeypatch.setattr(features, "NUMBERS", 3 * 6 * 100 * 32)
    described, most = model.preprocess._described, []
    monkeypatch.setattr(model.preprocess, "_described", lambda x: most.append(len(x)) or described(x))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = prune_features.SCORES["taylor"](model, config, dataset, 0)
    assert max(most) == 3
    assert sum(most) == len(dataset.fit)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.tokens, other.tokens, atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(one.kernels, other.kernels, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("model", ["t4", "t4h", "ridge"])
def test_features_that_find_no_room_are_refused_before_any_work(monkeypatch, model):
    dataset = dataset_of("BasicMotions")
    config = compose(f"model={model}").model
    arch = models.build(config, dataset).arch
    assert arch.width == sum(len(s.tokens) * arch.numbers(s) for s in arch.sources) > 10_000
    needed = 8 * arch.width * len(dataset.fit)

    def memory(size):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=size))

    memory(needed)
    models.build(config, dataset)
    memory(needed - 1)
    with pytest.raises(ConfigError, match=f"6 channels have {arch.width:,} features each.*model.value_bins"):
        models.build(config, dataset)


@pytest.mark.parametrize("length", [8, 24, 96, 97, 150])
def test_fourier_is_that_of_the_padded_series_under_a_hann_window(length):
    x = torch.randn(3, 2, length, generator=torch.Generator().manual_seed(0))
    points = fourier_points(length) ** 2
    windowed = x.double() * torch.hann_window(length, periodic=False, dtype=torch.float64)
    expected = torch.fft.rfft(windowed, n=points).abs() / length**0.5
    found = features.Fourier(length)(x)
    assert found.shape[-1] == signal_length("spectrum", length) == points // 2 + 1
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


def test_shares_are_those_of_each_bin_below_a_value():
    shares = features.Shares(1, 2)
    shares.low.copy_(torch.tensor([[0.0, 1.0]]))
    shares.inverse.copy_(torch.tensor([[1.0, 0.5]]))  # bins [0, 1] and [1, 3]
    found = shares(torch.tensor([[[-1.0, 0.25, 2.0, 9.0]]]))
    assert found[0, 0].tolist() == [[0, 0.25, 1, 1], [0, 0, 0.5, 1]]


def test_thresholds_are_quantiles_of_what_is_there():
    shares = features.Shares(1, 4)
    x = torch.arange(101.0).repeat(2, 1)[:, None]
    mask = torch.ones(2, 101, dtype=torch.bool)
    mask[1, 1:] = False  # of the second series only the first value
    shares.adapt(x, mask, torch.Generator().manual_seed(0))
    there = np.concatenate([np.arange(101.0), [0.0]])
    expected = np.quantile(there, np.linspace(0.002, 0.998, 5))
    np.testing.assert_allclose(shares.low[0], expected[:-1], rtol=1e-5)
    np.testing.assert_allclose(1 / shares.inverse[0], np.diff(expected), rtol=1e-5)


def test_a_change_is_a_difference_over_some_steps(italy):
    model = model_of(dataset_of("ItalyPowerDemand", scale="none"))
    ramp = 3.0 * torch.arange(24.0)[None, None]
    signals = model.preprocess._signals(ramp)
    torch.testing.assert_close(signals["changes"][0], torch.full((1, 1, 24 - 5), 15.0))
    assert signals["changes"][0].shape[-1] == signal_length("changes", 24)
    assert signal_length("changes", 3) == 1, "a series too short for that: over as many as there are"


def test_a_series_shorter_than_a_change_has_none():
    pickup = dataset_of("PickupGestureWiimoteZ")
    model = model_of(pickup)
    short = np.full_like(pickup.x_test[:2], np.nan)
    short[0, :, :4], short[1] = [1.0, 3.0, 2.0, 5.0], pickup.x_test[0]
    x, _ = model.preprocess(torch.from_numpy(short))
    assert x.isfinite().all()
    torch.testing.assert_close(x[1:], model.preprocess(torch.from_numpy(short[1:]))[0])


def test_intervals_are_dyadic(italy):
    model = model_of(italy, "model.views=[[intervals.values]]")
    part = model.preprocess.sources[0]
    x = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0))
    shares = part.shares(x)[:, 0]  # (batch, bins, values)
    cuts = [(0, 24), (0, 12), (12, 24), (0, 6), (6, 12), (12, 18), (18, 24)]
    expected = torch.stack([shares[..., a:b].mean(-1) for a, b in cuts], 1)
    torch.testing.assert_close(part(x, None), expected)


def test_responses_to_kernels_are_minirockets_scale_by_scale(italy):
    model = model_of(italy, "model.views=[[kernels.values]]", "model.kernel_bins=3")
    part = model.preprocess.sources[0]
    x = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0))
    triples = list(itertools.combinations(range(9), 3))
    found = part(x, None).unflatten(-1, (84, 3))
    for scale, signal in enumerate((x[:, 0], x[:, 0].unflatten(-1, (12, 2)).mean(-1))):
        padded = np.pad(signal.numpy(), ((0, 0), (4, 4)))
        for kernel in (0, 17, 83):
            weights = np.where(np.isin(np.arange(9), triples[kernel]), 2.0, -1.0)
            response = np.stack([np.correlate(row, weights, "valid") for row in padded])
            low, inverse = (getattr(part.shares[scale], n)[kernel].numpy() for n in ("low", "inverse"))
            share = np.clip((response[:, None] - low[:, None]) * inverse[:, None], 0, 1).mean(-1)
            np.testing.assert_allclose(found[:, scale, kernel], share, atol=1e-5)


def test_of_a_long_signal_a_kernel_looks_at_some_places(italy):
    long = replace(italy, preprocessing=replace(italy.preprocessing, length=1030, scale="none"))
    part = model_of(long, "model.views=[[kernels.values]]", adapted=False).preprocess.sources[0]
    x = torch.randn(2, 1, 1030, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(1030)[None] < torch.tensor([1030, 9])[:, None]
    responses, seen = part._responses(x, mask)[0]
    every = torch.nn.functional.conv1d(x, part.weight, padding=4)
    torch.testing.assert_close(responses, every[..., ::4])
    assert seen.sum(1).tolist() == [258, 3], "of nine steps, the first, fifth and ninth"


@pytest.mark.parametrize("name", ["JapaneseVowels", "PickupGestureWiimoteZ"])  # 12 channels; one
def test_levels_are_raw_values_large_ones_by_their_logarithm(name):
    dataset = dataset_of(name, scale="znorm")
    seen = model_of(dataset).preprocess
    x = torch.from_numpy(dataset.x_test[:7])
    levels, mask = seen._signals(x)["raw"]
    raw = torch.zeros_like(levels)
    steps = min(x.shape[-1], raw.shape[-1])  # longer series are cropped, shorter ones end in zeros
    raw[..., :steps] = x[..., :steps].nan_to_num()
    assert torch.equal(mask.sum(1), (~x[:, 0, :steps].isnan()).sum(1))
    torch.testing.assert_close(torch.sinh(levels) * seen.unit, raw, rtol=1e-4, atol=1e-5)
    fit = np.abs(dataset.x_train[dataset.fit])
    for unit, values in zip(seen.unit, fit.swapaxes(0, 1), strict=True):
        values = values[values > 0]
        assert 0.08 < (values < unit.item()).mean() < 0.12, "a tenth of them is small"


def test_levels_of_any_size_are_numbers(italy):
    x = (italy.x_train * np.where(np.arange(67) < 20, 1e-40, 1e3)[:, None, None]).astype(np.float32)
    model = model_of(replace(italy, x_train=x, x_test=x))
    assert model.preprocess._signals(torch.from_numpy(x))["raw"][0].isfinite().all()
    assert np.isfinite(model.scores(x)).all()


def test_a_channel_of_zeros_has_levels(italy):
    x = np.concatenate([italy.x_train * 10 ** np.linspace(0, 6, 67)[:, None, None], italy.x_train * 0], 1)
    dataset = replace(italy, x_train=x.astype(np.float32), x_test=x.astype(np.float32))
    assert "intervals.raw" in [s.name for s in model_of(dataset).arch.sources]
    assert np.isfinite(model_of(dataset).scores(dataset.x_test)).all()


@pytest.mark.parametrize(
    ("name", "scale", "known"),
    [
        ("JapaneseVowels", "znorm", True),
        ("JapaneseVowels", "minmax", True),
        ("JapaneseVowels", "none", False),
        ("JapaneseVowels", "standard", False),
        ("ItalyPowerDemand", "znorm", False),
        ("ACSF1", "znorm", False),
    ],
)
def test_levels_are_described_where_scaling_takes_them_away(name, scale, known):
    sources = [s.name for s in model_of(dataset_of(name, scale=scale), adapted=False).arch.sources]
    assert ("intervals.raw" in sources) == known


def test_levels_that_are_another_may_be_told_apart(italy):
    """Of series alike but for their level, scaled one by one."""
    y = np.arange(len(italy.x_train)) % 2
    x = (italy.x_train[:1] + 3 * y[:, None, None]).astype(np.float32)
    model = model_of(replace(italy, x_train=x, y_train=y))
    first, other = model.preprocess(torch.from_numpy(x[:2]))[0]
    differ = (first - other).abs() > 1
    names = [s.name for s in model.arch.sources for _ in range(len(s.tokens) * model.arch.numbers(s))]
    assert "intervals.raw" in {n for n, d in zip(names, differ, strict=True) if d}
    assert not differ[[n not in ("intervals.raw", "scale") for n in names]].any()


def test_features_are_standardised_on_the_fit_series_alone(italy):
    model = model_of(italy)
    x, _ = model.preprocess(torch.from_numpy(italy.x_train[italy.fit]))
    varies = x.std(0) > 0
    assert varies.float().mean() > 0.8
    unclipped = (x.abs() < features.LARGEST).all(0) & varies
    torch.testing.assert_close(x[:, unclipped].mean(0), torch.zeros(int(unclipped.sum())), atol=1e-3, rtol=0)
    others = italy.x_train.copy()
    others[italy.val] = 1e6
    again = model_of(replace(italy, x_train=others, x_test=italy.x_test * 7))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_flat_series_hides_no_differences_of_the_others(italy):
    """Of the series as they come, of other levels and spreads; the first is then flat."""
    levels = np.random.default_rng(0).normal(size=(2, len(italy.x_train), 1, 1))
    x = (italy.x_train * np.exp(levels[0]) + levels[1]).astype(np.float32)
    flat = x.copy()
    flat[italy.fit[0]] = 5.3
    spreads = []
    for train in (x, flat):
        model = model_of(replace(italy, x_train=train))
        described, _ = model.preprocess(torch.from_numpy(x[italy.fit[1:]]))
        names = [s.name for s in model.arch.sources for _ in range(len(s.tokens) * model.arch.numbers(s))]
        spreads.append(described[:, [n == "scale" for n in names]].std(0))
    assert (spreads[0] > 0.5).sum() == 3  # all are of one length
    assert (spreads[1] >= 0.5 * spreads[0]).all()


def test_what_is_constant_says_nothing(italy):
    flat = replace(italy, x_train=italy.x_train * 0 + 3.0)
    x, _ = model_of(flat).preprocess(torch.from_numpy(italy.x_test[:4]))
    assert torch.equal(x, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["PickupGestureWiimoteZ", "BasicMotions", "JapaneseVowels"])
def test_a_series_is_described_alone_whatever_its_padding(name):
    dataset = dataset_of(name)
    model = model_of(dataset)
    together = model.scores(dataset.x_test[:6])
    for i in range(6):
        one = dataset.x_test[i : i + 1]
        one = one[..., : int((~np.isnan(one[0, 0])).sum())]
        np.testing.assert_allclose(model.scores(np.ascontiguousarray(one))[0], together[i], atol=2e-3)


def test_answers_are_the_mean_of_the_views(italy):
    model = model_of(italy)
    x, _ = model.preprocess(torch.from_numpy(italy.x_test[:5]))
    with torch.no_grad():
        members, answer = model.members(x), model.network(x)
    assert len(members) == 2
    mean = torch.stack([m.softmax(-1) for m in members]).mean(0)
    torch.testing.assert_close(answer.exp(), mean)


@pytest.mark.parametrize("flat", [False, True])
def test_rewritten_it_answers_the_same(italy, flat):
    model = model_of(italy)
    lean = model.deployable(flat=flat)
    with torch.no_grad():
        torch.testing.assert_close(
            lean(torch.from_numpy(italy.x_test[:9])), model(torch.from_numpy(italy.x_test[:9]))
        )
    # The hidden unit that holds a bias, in each block, once for all views. A projection's bias is part of the
    # positions, what a view says of the mean of its tokens part of what it says of each.
    more = 2 * (2 * 16 + 1) - 2 * 16 - len(model.arch.sources) * 16 - 2 * 2 * 16 if flat else 0
    assert models.count_parameters(lean) == models.count_parameters(model) + more


@pytest.mark.parametrize("name", ["JapaneseVowels", "PickupGestureWiimoteZ", "BasicMotions"])
@pytest.mark.parametrize("gone", [False, True])
def test_rewritten_it_describes_the_same_whatever_the_series(name, gone):
    """Several channels, and series of several lengths: alone and padded with others.

    The same numbers in double precision; in single, rounding moves those of values that repeat, on each CPU
    otherwise, by as much as is let pass (`features.ROUNDED`).
    """
    dataset = dataset_of(name)
    model = model_of(dataset)
    if gone:  # scales between others, too
        cfg = compose("model=t4", "prune.ratio=0.7", "prune.method=random", "prune.scope=features").prune
        model, _ = prune_features.prune(model, cfg, dataset, seed=0)
    lean, exact = model.deployable(flat=True), copy.deepcopy(model).double()
    x = torch.from_numpy(dataset.x_test[:7])
    with torch.no_grad():
        there = exact.preprocess(x.double())[0]
        found = exact.deployable(flat=True).preprocess(x.double())[0]
        torch.testing.assert_close(found, there, atol=1e-11, rtol=1e-11)
        for m in (lean, model):
            assert (m.preprocess(x)[0] - there).abs().max() < features.ROUNDED
        torch.testing.assert_close(lean(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [5, 24, 720, 1030])
def test_the_lean_spectrum_has_each_amplitude_once(length):
    """In another order, and with some beyond; of a sine, the largest is at its frequency."""
    source = features.Fourier(length)
    lean = rewrite.LeanFourier(source)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, length)).astype(np.float32))
    ours, theirs = lean(x), source(x)
    within = lean.frequencies < source.amplitudes
    assert sorted(lean.frequencies[within].tolist()) == list(range(source.amplitudes))
    torch.testing.assert_close(ours[..., within], theirs[..., lean.frequencies[within]])


@pytest.mark.parametrize(("most", "together"), [(18, True), (17, False)])
def test_views_attend_apart_whether_in_one_product_or_two(monkeypatch, italy, most, together):
    monkeypatch.setattr("tsexp.models.transformer.rewrite.TOGETHER", most)
    model = model_of(italy)
    counts = [view.tokens for view in model.views]
    lean = model.deployable(flat=True)
    assert counts == [14, 4]
    assert all((block.apart is not None) == together for block in lean.encoder.blocks)
    x, _ = lean.preprocess(torch.from_numpy(italy.x_test[:3]))
    other = lean.tokens(x).clone()
    other[:, counts[0] :] += 1.0  # the second view alone sees something else
    before, after = lean.encoder(lean.tokens(x), None), lean.encoder(other, None)
    assert torch.equal(before[:, : counts[0]], after[:, : counts[0]])
    assert (before[:, counts[0] :] != after[:, counts[0] :]).any(-1).all()


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_of_a_few_steps_no_kernel_sees_its_own_rounding(italy, length):
    """Of three, of mean 0, four kernels see the sum alone."""
    drawn = np.random.default_rng(0).normal(size=(80, 1, length)).astype(np.float32)
    dataset = replace(
        italy,
        x_train=drawn[: len(italy.x_train)],
        x_test=drawn[-13:],
        preprocessing=replace(italy.preprocessing, length=length),
    )
    model = model_of(dataset)
    lean = model.deployable(flat=True)
    x = torch.from_numpy(dataset.x_test)
    torch.testing.assert_close(lean.preprocess(x)[0], model.preprocess(x)[0], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(lean(x), model(x), atol=1e-4, rtol=1e-4)


def waves(rng, k):
    return np.sin((k + 1) * np.linspace(0, 6, 96) + rng.uniform(0, 6)) + rng.normal(size=96) / 2


ROUNDED = {
    "ramps": lambda rng, k: 3 + (k + 1) * 0.01 * np.arange(96) + rng.normal() / 10,
    "flat but for spikes": lambda rng, k: 230.4 + (k + 1) * 5 * (np.arange(1500) == rng.integers(100, 1400)),
    "a large level": lambda rng, k: np.round(1e6 + waves(rng, k), 2),
}


@pytest.mark.parametrize("kind", ROUNDED)
def test_what_rounding_makes_of_series_is_no_feature(kind, monkeypatch, tmp_path):
    onnxruntime = pytest.importorskip("tsexp.runtimes.onnxruntime")
    rng = np.random.default_rng(0)
    x = np.stack([ROUNDED[kind](rng, i % 3) for i in range(90)])[:, None].astype(np.float32)
    dataset = dataset_of("ItalyPowerDemand")
    dataset = replace(
        dataset,
        x_train=x[:60],
        y_train=np.arange(60) % 3,
        fit=np.arange(60),
        classes=("0", "1", "2"),
        preprocessing=replace(dataset.preprocessing, length=x.shape[2], scale="znorm"),
    )

    def apart(model):
        """Largest difference between features here and deployed, of other series."""
        onnxruntime.to_onnx(onnxruntime.rewritten(model, "none"), tmp_path / "model.onnx")
        found = onnxruntime.OnnxFile(tmp_path / "model.onnx", 1)(x[60:])
        expected = model.scores(x[60:])
        return np.abs(found - expected).max() / np.abs(expected).max()

    assert apart(model_of(dataset)) < 2e-3
    assert not model_of(dataset).preprocess.scale.all()
    monkeypatch.setattr(features, "ROUNDED", np.inf)
    assert apart(model_of(dataset)) > 4e-3


def test_no_feature_of_usual_series_is_left_out_for_rounding(italy, monkeypatch):
    for dataset in (italy, dataset_of("BasicMotions"), dataset_of("PickupGestureWiimoteZ")):
        kept = model_of(dataset).preprocess.scale
        with monkeypatch.context() as patched:
            patched.setattr(features, "ROUNDED", np.inf)
            assert torch.equal(kept, model_of(dataset).preprocess.scale)


def test_two_channels_that_mirror_each_other_leave_kernels_nothing_but_rounding(italy):
    rng = np.random.default_rng(0)
    one = 1 / (1 + np.exp(-np.stack([waves(rng, i % 3) for i in range(90)])))
    x = np.stack([one, 1 - one], 1).astype(np.float32)
    dataset = replace(
        italy,
        x_train=x[:60],
        y_train=np.arange(60) % 2,
        fit=np.arange(60),
        preprocessing=replace(italy.preprocessing, length=96),
    )
    model = model_of(dataset)
    lean = model.deployable(flat=True)
    torch.testing.assert_close(
        lean(torch.from_numpy(x[60:])), model(torch.from_numpy(x[60:])), atol=1e-4, rtol=1e-4
    )


def levelled(x):
    """Every second series flat, each at a level of its own."""
    odd = x + 10.0
    odd[::2] = np.random.default_rng(0).uniform(20, 80, (len(odd[::2]), 1, 1))
    return odd


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(np.zeros_like, id="all zero"),
        pytest.param(lambda x: x * (np.arange(len(x)) % 2)[:, None, None], id="some zero"),
        pytest.param(levelled, id="some flat"),
        pytest.param(lambda x: x * 0 + np.linspace(20, 80, len(x))[:, None, None], id="all flat"),
        pytest.param(lambda x: x * 1e-12, id="tiny"),
        pytest.param(lambda x: x + 1e4, id="on a high level"),
    ],
)
def test_of_odd_series_no_runtime_sees_its_own_rounding(italy, odd, tmp_path):
    """Flat ones were rounding noise around 0, magnified; zeros were 0 / 0 in ONNX Runtime."""
    onnxruntime = pytest.importorskip("tsexp.runtimes.onnxruntime")
    dataset = replace(italy, x_train=odd(italy.x_train).astype(np.float32))
    model = model_of(dataset)
    onnxruntime.to_onnx(onnxruntime.rewritten(model, "none"), tmp_path / "model.onnx")
    found = onnxruntime.OnnxFile(tmp_path / "model.onnx", 1)(dataset.x_train[:32])
    expected = model.scores(dataset.x_train[:32])
    assert np.isfinite(expected).all()
    noise = np.square(found - expected).mean() / np.square(expected).mean()
    assert noise < 1e-8  # 80 dB


def test_training_sees_some_tokens_and_never_the_same(italy):
    model = model_of(italy, "model.seen_tokens=5")
    x, _ = model.preprocess(torch.from_numpy(italy.x_test[:2]))
    assert [view.seen for view in model.views] == [5, 4]
    model.train()
    a, b = (model.network(x) for _ in range(2))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("length", "places"), [(96, (96, 48, 24, 12)), (1030, (258, 258, 257, 128))]
)  # every fourth of 1030, every second of 515, all of 257 and 128
def test_parameters_and_macs_by_hand(length, places):
    classes, bins, kernel_bins, d, ffn = 7, 13, 8, 64, 128
    arch = Arch(
        channels=1,
        classes=tuple(map(str, range(classes))),
        preprocessing=Preprocessing("znorm", length, False, False),
        views=(
            (Source("intervals.values", tuple(range(31))), Source("scale", (0,))),
            (Source("kernels.values", (0, 1, 2, 3), tuple(range(84))),),
        ),
        value_bins=bins,
        kernel_bins=kernel_bins,
        d_model=d,
        head_dim=16,
        blocks=(Block(4, ffn),) * 2,
        dropout=0.0,
        seen_tokens=40,
    )
    model = ViewClassifier(arch).eval()
    block = 4 * (d * d + d) + 2 * d * ffn + ffn + d + 4 * d
    views = (bins * d + d + 4 * d + d, 84 * kernel_bins * d + d)
    tokens = (32, 4)
    heads = [d * classes + classes + t * classes * d + t * d for t in tokens]
    assert models.count_parameters(model) == 2 * block + 2 * d + sum(views) + sum(heads)
    described = bins * length * 31 + 84 * 9 * sum(places)
    projected = (31 * bins + 4 + 4 * 84 * kernel_bins) * d
    attended = sum(2 * 2 * t * t * d for t in tokens)
    encoded = sum(2 * t * (4 * d * d + 2 * d * ffn) for t in tokens)
    answered = sum(d * classes + t * classes * d for t in tokens)
    assert models.count_macs(model) == described + projected + encoded + attended + answered
    lean = model.deployable(flat=True)
    # Every bin is a filter; what is said of the mean is part of what is said of each token.
    described += bins * length + (kernel_bins - 1) * 84 * 9 * sum(places)
    bias_unit = 2 * sum(tokens) * 2 * d  # into and out of it, in both blocks
    answered = sum(t * classes * d for t in tokens)
    encoded += 2 * 2 * sum(tokens) ** 2 * d  # of both views at once: what is between them is computed, too
    assert models.count_macs(lean) == described + projected + encoded + bias_unit + answered
    joined = 3 * d + 2 * classes * d  # biases of three projections, weights of two heads
    units = 2 * (2 * d + 1) - 2 * d
    assert models.count_parameters(lean) == models.count_parameters(model) - joined + units


@pytest.mark.parametrize(("length", "most", "levels"), [(24, 6, 3), (96, 6, 5), (720, 6, 6), (5, 6, 1)])
def test_finest_intervals_hold_a_handful_of_values(length, most, levels):
    assert levels_of(length, most) == levels


@pytest.mark.parametrize(("length", "scales"), [(8, 1), (18, 2), (96, 4), (720, 7)])
def test_coarsest_scale_is_as_long_as_a_kernel(length, scales):
    assert scales_of(length) == scales


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.views=[[intervals.value]]", "intervals.value, which is not known"),
        ("model.views=[[kernels.values],[kernels.values]]", "twice"),
        ("model.views=[[scale]]", "one list per view"),
        ("model.views=[[intervals.values],[intervals.raw,scale]]", "another signal than raw"),
        ("model.views=[]", "one list per view"),
        ("model.heads=5", "does not divide"),
    ],
)
def test_bad_settings_are_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        compose("model=t4", override)


@pytest.mark.parametrize("name", ["ItalyPowerDemand", "PickupGestureWiimoteZ", "BasicMotions"])
def test_what_is_left_answers_as_if_the_rest_were_average(name):
    dataset = dataset_of(name)
    model = model_of(dataset)
    scores = prune_features.SCORES["l1"](model)
    views = seen.select(scores, model.arch.views, 0.5)
    slim = seen.shrink(model, views)
    assert slim.arch.views == views
    # Zero what goes in the projections, leave the tokens that go out of everything, and answer.
    x, _ = model.preprocess(torch.from_numpy(dataset.x_test[:5]))
    again = rebuild(json.loads(json.dumps(asdict(slim.arch)))).eval()
    again.load_state_dict(slim.state_dict())
    expected = []
    parts = x.split(model.sizes, 1)
    for view, old, module, part in zip(views, model.arch.views, model.views, parts, strict=True):
        tokens, rows, count, start = [], [], 0, 0
        for s, source in enumerate(old):
            width = model.arch.numbers(source)
            described = part[:, start : start + len(source.tokens) * width].unflatten(1, (-1, width))
            start += len(source.tokens) * width
            for of in (of for of in view if of.name == source.name):
                if source.kernels:
                    stays = torch.tensor([k in of.kernels for k in source.kernels])
                    described = described * stays.repeat_interleave(model.arch.kernel_bins)
                stay = [source.tokens.index(t) for t in of.tokens]
                tokens.append(module.project[s](described[:, stay]))
                rows += [count + i for i in stay]
            count += len(source.tokens)
        with torch.no_grad():
            encoded = model.encoder(torch.cat(tokens, 1) + module.positions[rows], None)
            alone = torch.einsum("btd,tcd->bc", encoded, module.each[rows])
            expected.append(module.head(encoded.mean(1)) + 6 / len(rows) * alone)
    with torch.no_grad():
        found = again.members(again.preprocess(torch.from_numpy(dataset.x_test[:5]))[0])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["l1", "l2", "random", "taylor"])
def test_half_of_the_kernels_and_of_the_tokens_go(italy, method):
    model = model_of(italy)
    cfg = compose("model=t4", "prune.ratio=0.5", f"prune.method={method}", "prune.scope=features").prune
    slim, _ = prune_features.prune(model, cfg, italy, seed=0)
    tokens, kernels = (
        [sum(len(getattr(s, kind)) for s in m.arch.sources) for m in (model, slim)]
        for kind in ("tokens", "kernels")
    )
    assert tokens[1] == tokens[0] - round(0.5 * tokens[0])
    assert kernels[1] == 42 * sum(bool(s.kernels) for s in slim.arch.sources)
    assert slim.prunable() < model.prunable()
    assert models.count_macs(slim) < 0.7 * models.count_macs(model)


def shortened(dataset, length):
    x_train, x_test = (x[..., :length].copy() for x in (dataset.x_train, dataset.x_test))
    preprocessing = replace(dataset.preprocessing, length=length)
    return replace(dataset, x_train=x_train, x_test=x_test, preprocessing=preprocessing)


@pytest.mark.parametrize("length", [2, 3, 8, 9])
def test_series_as_short_as_there_are(italy, length):
    dataset = shortened(italy, length)
    assert np.isfinite(model_of(dataset).scores(dataset.x_test[:4])).all()


def test_a_single_step_is_refused(italy):
    with pytest.raises(ConfigError, match="at least 2 steps, those of ItalyPowerDemand have 1"):
        model_of(shortened(italy, 1))


def test_the_least_important_go_of_all_views_together(italy):
    first, second = (Source(f"kernels.{s}", (0, 1, 2), (3, 5, 7, 9)) for s in ("values", "differences"))
    scores = [
        seen.Importance(torch.tensor([3.0, 0.1, 2.0]), torch.tensor([1.0, 4.0, 2.0, 3.0])),
        seen.Importance(torch.tensor([0.2, 5.0, 0.3]), torch.tensor([9.0, 8.0, 1.0, 2.0])),
    ]
    kept = seen.select(scores, ((first,), (second,)), 0.5)
    assert kept == (
        (replace(first, tokens=(0, 2), kernels=(5, 9)),),
        (replace(second, tokens=(1,), kernels=(3, 5)),),
    )


@pytest.mark.parametrize("method", ["l1", "l2"])
def test_what_is_not_read_is_what_goes(italy, method):
    """Of made weights: half of the tokens and of the kernels are read by zeros."""
    model = model_of(italy)
    draw = torch.Generator().manual_seed(0)
    expected, counts, gone = [], 0, 0
    with torch.no_grad():
        for view, module in zip(model.arch.views, model.views, strict=True):
            count, start = sum(len(s.tokens) for s in view), 0
            read = torch.randperm(count, generator=draw) >= count // 2
            counts, gone = counts + count, gone + count // 2
            module.each.normal_(generator=draw)
            module.each[~read] = 0
            for source, layer in zip(view, module.project, strict=True):
                stays = tuple(t for t, r in zip(source.tokens, read[start:], strict=False) if r)
                start += len(source.tokens)
                kernels = source.kernels
                if kernels:
                    used = torch.randperm(len(kernels), generator=draw) >= len(kernels) // 2
                    layer.weight *= used.repeat_interleave(model.arch.kernel_bins)
                    kernels = tuple(k for k, u in zip(kernels, used.tolist(), strict=True) if u)
                expected.append((source.name, stays, kernels))
    scores = prune_features.SCORES[method](model)
    kept = seen.select(scores, model.arch.views, gone / counts)
    found = {s.name: (s.name, s.tokens, s.kernels) for view in kept for s in view}
    assert list(found.values()) == [e for e in expected if e[1]]


@pytest.mark.parametrize("method", ["l1", "l2"])
def test_of_tokens_with_the_same_weights_those_of_the_largest_view_go(italy, method):
    """A view's answer is the mean of what its tokens say: one of 14 counts for less than one of 4."""
    model = model_of(italy)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for view in model.views:
            view.each.normal_(generator=draw)
    assert [view.tokens for view in model.views] == [14, 4]
    kept = seen.select(prune_features.SCORES[method](model), model.arch.views, 0.5)
    assert [sum(len(s.tokens) for s in view) for view in kept] == [5, 4]


def test_taylor_is_the_slope_of_the_loss(italy):
    """Of one series, by central differences, as its features are scaled around what they are on average."""
    model = model_of(italy)
    one = replace(italy, fit=italy.fit[:1])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for view in model.views:
            view.each.normal_(generator=draw)
    cfg = compose("model=t4", "prune.method=taylor").prune
    found = prune_features.SCORES["taylor"](model, cfg, one, 0)
    x, _ = model.preprocess(torch.from_numpy(italy.x_train[one.fit]))
    x, y = x.double(), torch.from_numpy(italy.y_train[one.fit])
    exact = copy.deepcopy(model).double()

    @torch.no_grad()
    def loss(scale):
        return sum(float(torch.nn.functional.cross_entropy(s, y)) for s in exact.members(x * scale))

    start, step = 0, 1e-4
    for source, importance in zip(model.arch.sources, found, strict=True):
        count, width = len(source.tokens), model.arch.numbers(source)
        for token in (0, count - 1):
            block = torch.zeros_like(x)
            block[:, start + token * width : start + (token + 1) * width] = step
            slope = (loss(1 + block) - loss(1 - block)) / (2 * step)
            assert float(importance.tokens[token]) == pytest.approx(abs(slope), rel=1e-3, abs=1e-6)
        if source.kernels:
            block = torch.zeros(count, len(source.kernels), model.arch.kernel_bins)
            block[:, 3] = step
            whole = torch.zeros_like(x)
            whole[:, start : start + count * width] = block.flatten()
            slope = (loss(1 + whole) - loss(1 - whole)) / (2 * step)
            assert float(importance.kernels[3]) == pytest.approx(abs(slope), rel=1e-3, abs=1e-6)
        start += count * width


def test_a_view_keeps_a_token(italy):
    model = model_of(italy)
    views = seen.select(prune_features.SCORES["l1"](model), model.arch.views, 0.999)
    assert [sum(len(s.tokens) for s in view) for view in views] == [1, 1]
    assert np.isfinite(seen.shrink(model, views).scores(italy.x_test[:3])).all()


def test_features_are_those_of_a_transformer_on_features():
    with pytest.raises(Unsupported, match="features with model=t3"):
        compress.check(compose("model=t3", "prune.ratio=0.5", "prune.scope=features"))


@pytest.mark.parametrize("scope", ["features", "all"])
def test_a_method_that_does_not_know_features_is_refused_before_any_work(scope):
    over = ("model=t4", "prune.ratio=0.5", "prune.method=builtins:print", f"prune.scope={scope}")
    with pytest.raises(
        Unsupported, match=r"builtins:print .* not supported; allowed: l1, l2, random, taylor"
    ):
        compress.check(compose(*over))


def test_pruned_features_are_tuned_with_the_dense_model_as_teacher(italy, tmp_path):
    over = ("prune.ratio=0.5", "prune.scope=all", "debug=smoke", "train.progress=false")
    cfg = compose("model=t4", *TINY, *over)
    assert cfg.prune.distill > 0
    cache = Cache(tmp_path)
    dense = training.train(cfg.model, cfg.train, 0, italy, cache)
    made = compress.compress(dense, cfg, italy, cache)
    assert list(made) == ["prune", "finetune"]
    before, after = (step.load() for step in made.values())
    assert after.arch == before.arch
    assert after.arch.views != dense.load().arch.views
    assert [b.ffn for b in after.arch.blocks] == [12, 12]
    for name, value in before.preprocess.state_dict().items():
        assert torch.equal(after.preprocess.state_dict()[name], value), name
    kept = json.loads((made["prune"].entry.folder / "kept.json").read_text())
    assert {"view", "heads"} <= set().union(*kept)


def test_ridge_of_a_class_without_series_says_wrong():
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2 * 2
    x = torch.randn(60, 9, generator=draw) + y[:, None]
    weight, bias = linear.ridge(x, y, 4)
    scores = x @ weight.T + bias
    assert torch.equal(scores[:, 1::2], torch.full((60, 2), -1.0))
    assert torch.equal(scores.argmax(1), y)


def test_ridge_of_one_class_tells_nothing_apart(italy):
    weight, bias = linear.ridge(torch.randn(5, 3), torch.full((5,), 2), 4)
    assert torch.equal(weight, torch.zeros(4, 3))
    assert bias.tolist() == [-1, -1, 1, -1]
    alike = replace(italy, y_train=italy.y_train * 0)
    assert model_of(alike, "model.kept=0.5").arch.views != model_of(alike).arch.views


def test_a_key_that_was_not_there_goes_unsaid():
    said = [identity(compose("model=t4", f"model.kept={kept}")) for kept in (1.0, 0.5)]
    assert "kept" not in said[0]["model"]
    assert said[1]["model"]["kept"] == 0.5
    assert compose("model=t4").model.packages() == ()
    assert compose("model=t4h").model.packages() == ("scikit-learn",)


def test_what_ridge_says_of_features_is_the_slope_of_its_loss(italy):
    model = model_of(italy)
    alone = RidgeClassifier(model.arch)
    alone.preprocess = model.preprocess
    draw = torch.Generator().manual_seed(0)
    alone.head.weight.data.normal_(std=0.05, generator=draw)
    cfg = compose("model=t4", "prune.method=taylor", "prune.calibration_series=1000").prune
    by_gradient = prune_features.SCORES["taylor"](alone, cfg, italy, 0)
    x, y = (torch.from_numpy(of[italy.fit]) for of in (italy.x_train, italy.y_train))
    with torch.no_grad():
        x, _ = model.preprocess(x)
        found = seen.by_ridge(model.arch, alone.head.weight, x, alone.head(x), y)
    for a, b in zip(found, by_gradient, strict=True):
        torch.testing.assert_close(a.tokens, b.tokens)
        torch.testing.assert_close(a.kernels, b.kernels)


def test_ridge_leaves_half_before_training(italy):
    whole, half = model_of(italy), model_of(italy, "model.kept=0.5")
    x = whole.preprocess.of(italy.x_train[italy.fit])
    y = torch.from_numpy(italy.y_train[italy.fit])
    weight, bias = linear.ridge(x, y, 2)
    scores = seen.by_ridge(whole.arch, weight, x, x @ weight.T + bias, y)
    assert half.arch.views == seen.select(scores, whole.arch.views, 0.5) != whole.arch.views
    tokens, kernels = (
        [sum(len(getattr(s, kind)) for s in m.arch.sources) for m in (whole, half)]
        for kind in ("tokens", "kernels")
    )
    assert tokens == [18, 9]
    assert kernels == [168, 84]
    # What is left is described as it was, by all series that are fitted.
    some = half.preprocess.of(italy.x_test[:5])
    assert some.shape[1] == half.preprocess.mean.numel() < x.shape[1]
    names, left = (
        [
            (s.name, t, k, b)
            for s in m.arch.sources
            for t in s.tokens
            for k in s.kernels or (0,)
            for b in range(m.arch.numbers(s) // max(1, len(s.kernels)))
        ]
        for m in (whole, half)
    )
    both = whole.preprocess.of(italy.x_test[:5])[:, [names.index(name) for name in left]]
    torch.testing.assert_close(some, both, atol=1e-5, rtol=1e-4)


def test_ridge_chooses_by_some_of_many_series(italy, monkeypatch):
    """The others could be anything."""
    monkeypatch.setattr(views_classifier, "SERIES", 20)
    draw = torch.Generator().manual_seed(0)
    asked = italy.fit[torch.randperm(len(italy.fit), generator=draw)[:20].numpy()]
    y = italy.y_train.copy()
    others = np.setdiff1d(np.arange(len(y)), asked)
    y[others] = 1 - y[others]
    assert (
        model_of(italy, "model.kept=0.5").arch == model_of(replace(italy, y_train=y), "model.kept=0.5").arch
    )
    monkeypatch.setattr(views_classifier, "SERIES", 60)
    found = model_of(replace(italy, y_train=y), "model.kept=0.5").arch
    assert found != model_of(italy, "model.kept=0.5").arch, "else this tells nothing"


def test_what_is_kept_is_trained_kept_in_the_cache_and_pruned_further(tmp_path):
    training_of = ("train.epochs=2", "train.min_steps=0", "train.progress=false")
    pruning = ("prune.ratio=0.5", "prune.scope=all", "prune.method=taylor", "prune.finetune_epochs=2")
    cfg = compose("data=italy_power_demand", "model=t4h", *TINY, *training_of, *pruning)
    dataset, cache = data.load(cfg.data, "nowhere", 0), Cache(tmp_path)
    dense = training.train(cfg.model, cfg.train, 0, dataset, cache)
    slim = list(compress.compress(dense, cfg, dataset, cache).values())[-1]
    kernels = [max(len(s.kernels) for s in f.load().arch.sources) for f in (dense, slim)]
    assert kernels == [42, 21]
    assert all(v.each.abs().sum() > 0 for v in dense.load().views), "it has learned"
    whole = training.train(replace(cfg.model, kept=1.0), cfg.train, 0, dataset, cache)
    assert whole.signature != dense.signature
