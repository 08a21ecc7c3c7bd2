"""One contract for every family of models, and what is special to each."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from commands import tsexp
from conftest import compose, skip_without_bf16
from tsexp import compress, energy, models, pipeline, runtimes, training
from tsexp.cache import Cache
from tsexp.compress import qat
from tsexp.config import ConfigError, RuntimeConfig, Unsupported, identity, like
from tsexp.models.convolution.lite import LiteTime
from tsexp.models.estimators import MiniRocket
from tsexp.runtimes.artifact import _supported as supported
from tsexp.system import cpu
from tsexp.training import loop

MODELS = {
    "t3": ("model.d_model=16", "model.layers=2", "model.heads=4", "model.ffn=24", "model.patch=8"),
    "t4": ("model.d_model=16", "model.heads=4", "model.ffn=24"),
    "ridge": ("model.levels=2",),
    "fcn": ("model.filters=[8,16,8]",),
    "resnet": ("model.filters=[8,12,12]", "model.kernels=[7,3]"),
    "inceptiontime": (
        "model.filters=[4,4,4]",
        "model.kernels=[8,3]",
        "model.bottleneck=3",
        "model.members=2",
    ),
    "litetime": (
        "model.filters=[4,6,5]",
        "model.kernels=[8,3]",
        "model.fixed=[2,4,8]",
        "model.separable=[6,3]",
        "model.members=2",
    ),
    "minirocket": ("model.n_kernels=336",),
    "quant_forest": ("model.n_trees=20",),
    "multirocket_hydra": ("model.n_groups=4",),
    "dtw_1nn": (),
}
"""One of each family, made small."""
DATASETS = ("ItalyPowerDemand", "PickupGestureWiimoteZ", "BasicMotions")
"""Two classes; unequal lengths; six channels."""


def config(name, *overrides):
    tiny = ("debug=smoke", "train.progress=false", "quant.calibration_series=16", "quant.qat_epochs=1")
    return compose(f"model={name}", *MODELS[name], *tiny, "train=default", *overrides)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


def train(name, dataset, cache, *overrides, seed=0):
    cfg = config(name, *overrides)
    return training.train(cfg.model, cfg.train, seed, dataset, cache)


def noise_db(exact, other):
    return 10 * np.log10((exact**2).sum() / ((exact - other) ** 2).sum().clip(1e-30))


def counts(model):
    """Parameters and MACs by hand."""
    arch, length = model.arch, model.arch.preprocessing.length
    classes = len(arch.classes)
    if model.family == "convolution":
        weights, norms, head = CONVOLUTIONS[getattr(arch, "net", "fcn")](arch, classes)
        learned = weights - (96 if type(model) is LiteTime else 0)  # of fixed filters
        biases = len(model.nets) * classes if hasattr(model, "nets") else classes
        return learned + 2 * norms + head + biases, length * weights + head
    return ESTIMATORS[model.family](arch, length, classes, model.state()), None


def fcn(arch, classes):
    """Weights of the convolutions, channels of norms, weights of the head."""
    widths = list(pairwise((arch.channels, *arch.filters)))
    weights = sum(i * o * k for (i, o), k in zip(widths, arch.kernels, strict=True))
    return weights, sum(arch.filters), arch.filters[-1] * classes


def resnet(arch, classes):
    """Blocks of 8, 12 and 12; around the last one there is no convolution, but a norm."""
    one = arch.channels * 8 * 7 + 8 * 8 * 3 + arch.channels * 8
    two = 8 * 12 * 7 + 12 * 12 * 3 + 8 * 12
    three = 12 * 12 * 7 + 12 * 12 * 3
    return one + two + three, 3 * (8 + 12 + 12), 12 * classes


def inception(arch, classes):
    """Two members of three modules; a bottleneck of 3 where there is more than one channel."""
    c = arch.channels
    first = (0 if c == 1 else c * 3) + (1 if c == 1 else 3) * 4 * (8 + 3) + c * 4
    other = 12 * 3 + 3 * 4 * (8 + 3) + 12 * 4
    return 2 * (first + 2 * other + c * 12), 2 * (3 * 12 + 12), 2 * 12 * classes


def lite(arch, classes):
    """Two members, and 3 + 3 + 2 fixed filters within 12 steps, which see the sum of all channels."""
    first = arch.channels * 4 * (8 + 3)
    separable = 16 * 6 + 16 * 6 + 6 * 3 + 6 * 5
    return 8 * 12 + 2 * (first + separable), 2 * (16 + 6 + 5), 2 * 5 * classes


CONVOLUTIONS = {"fcn": fcn, "resnet": resnet, "inception": inception, "lite": lite}


def rocket(length, each, most, drawn, channels):
    """Dilations, combinations of channels, and 84 kernels with so many biases each."""
    scales = np.logspace(0, np.log2((length - 1) / 8), min(each, most), base=2)
    dilations = len(set(scales.astype(int)))
    assert drawn == 84 * dilations if channels == 1 else drawn > 84 * dilations
    return 84 * dilations + drawn + 2 * dilations + 84 * each


def minirocket(arch, length, classes, state):
    features = arch.n_kernels // 84 * 84
    drawn = state["transform.channels"].numel()
    parts = rocket(length, arch.n_kernels // 84, arch.max_dilations, drawn, arch.channels)
    return parts + features + (1 if classes == 2 else classes) * (features + 1)


def quant_forest(arch, length, classes, state):
    """A node has two children, a feature and a threshold."""
    leaves = int((state["left_child"] < 0).sum())
    return arch.n_trees + (2 * leaves - arch.n_trees) * (4 + classes)


def multirocket_hydra(arch, length, classes, state):
    each, kernels = 6250 // 84, arch.n_groups * arch.n_kernels
    dilations, features = int(np.log2((length - 1) / 8)) + 1, 2 * 4 * 84 * each
    hydra = dilations * (9 * kernels + arch.n_groups * min(max(arch.channels // 2, 2), 8))
    parts = 0
    for part, steps in (("series", length), ("differences", length - 1)):
        if arch.channels == 1:
            scales = 84 * len(state[f"{part}.dilations"])
            parts += rocket(steps, each, 32, scales, 1) - 2 * scales
        else:
            parts += rocket(steps, each, 32, state[f"{part}.channels"].numel(), arch.channels)
    features += dilations * 2 * kernels
    return hydra + parts + 2 * features + (1 if classes == 2 else classes) * (features + 1)


def dtw_1nn(arch, length, classes, state):
    return classes + len(state["series"]) * arch.channels * length


ESTIMATORS = {
    "estimator": minirocket,
    "quant_forest": quant_forest,
    "multirocket_hydra": multirocket_hydra,
    "dtw_1nn": dtw_1nn,
}
"""Family → all that it learned, by hand."""


@pytest.mark.parametrize(
    ("name", "source"),
    [
        # Numba compiles MultiROCKET-Hydra anew in every process: a minute
        pytest.param(
            *pair,
            marks=pytest.mark.slow if pair[0] == "multirocket_hydra" and pair[1] != DATASETS[0] else (),
        )
        for pair in itertools.product(MODELS, DATASETS)
    ],
)
def test_every_family_keeps_the_contract(name, source, cache, load_data, tmp_path):
    dataset = load_data(source)
    fitted = train(name, dataset, cache)
    model, x = fitted.load(), dataset.x_test[:40]
    scores = model.scores(x)
    assert scores.dtype == np.float32
    assert scores.shape == (40, len(dataset.classes))
    assert len({tuple(row) for row in scores}) > 1
    alone = np.concatenate([model.scores(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(alone, scores, atol=1e-4)

    assert {p.suffix for p in fitted.entry.folder.iterdir()} == {".json", ".safetensors"}, "no pickle"
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.arch == model.arch
    assert np.array_equal(again.scores(x), scores)
    assert fitted.family == like(config(name).model.family) == like(again.family)

    artifact = runtimes.deploy(fitted, config(name).quant, RuntimeConfig("eager", "cpu"), dataset, cache)
    assert {p.suffix for p in artifact.folder.iterdir()} == {".json", ".safetensors"}, "no pickle"
    assert np.array_equal(runtimes.load(artifact.folder)(x), scores)
    if name not in ("t3", "t4", "ridge"):  # whose formulas are in test_runtimes, test_views and test_ridge
        assert (artifact.manifest["parameters"], artifact.manifest["macs"]) == counts(model)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_makes_the_same_model(name, italy, tmp_path):
    first, same, other = (
        train(name, italy, Cache(tmp_path / folder), seed=seed).load().state()
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(first[k], same[k]) for k in first)
    drawn = any(not torch.equal(first[k], other[k]) for k in first)
    assert drawn == (name not in ("dtw_1nn", "ridge")), "which draw nothing"


def pairs():
    nets = dict.fromkeys(("resnet", "inceptiontime", "litetime"), "convolution")
    others = {"t4": "views", "ridge": "ridge", **nets}
    for name, family in {"fcn": "convolution", "minirocket": "estimator", **others}.items():
        for runtime in runtimes.RUNTIMES:
            for mode in supported(runtime, family):
                if (name, mode) == ("ridge", "qat"):  # which is refused: it trains
                    continue
                for source in ("ItalyPowerDemand", "PickupGestureWiimoteZ"):
                    seldom = name in others and (source, runtime, mode) not in OFTEN
                    slow = pytest.mark.slow if runtime == "inductor" or seldom else ()
                    yield pytest.param(name, runtime, mode, source, marks=slow)


OFTEN = {
    ("PickupGestureWiimoteZ", "eager", "bf16"),
    ("PickupGestureWiimoteZ", "onnxruntime", "none"),
    ("ItalyPowerDemand", "onnxruntime", "static"),
}
"""Of the larger networks, what is tried every time."""
FORMAT = {"none": "float32", "bf16": "bfloat16", "static": "int8", "qat": "int8"}
PRODUCTS = {"fcn": (1, 4), "resnet": (2, 9), "inceptiontime": (2 * 4, 2 * 13), "litetime": (5, 15)}
"""That see raw series and stay as they are, and all."""
LEAST_DB = {"none": 100, "static": 15, "qat": 15}
VIEWS = 2 * 2 * 4 + 6 + 2 + 2
"""Of T4, without its features: views × blocks × (in, out, up, down), projections, heads, a head per token."""


@pytest.mark.parametrize(("name", "runtime", "mode", "source"), pairs())
def test_artifacts_answer_as_the_model_does(name, runtime, mode, source, load_data, cache):
    skip_without_bf16(runtime, mode)
    dataset = load_data(source)
    cfg = config(name, f"quant.mode={mode}")
    dense = train(name, dataset, cache)
    tuned = [dense, *compress.compress(dense, cfg, dataset, cache).values()][-1]
    artifact = runtimes.deploy(tuned, cfg.quant, RuntimeConfig(runtime, "cpu"), dataset, cache)
    exact, x = tuned.load().scores(dataset.x_test[:40]), dataset.x_test[:40]
    predictor = runtimes.load(artifact.folder)
    assert noise_db(exact, predictor(x)) > LEAST_DB.get(mode, 20)
    assert np.array_equal(predictor(x), predictor(x))
    kinds = artifact.manifest["matmuls"]
    products = VIEWS + (source == "PickupGestureWiimoteZ")  # whose levels are described, too
    if name == "t4" and mode in ("static", "qat"):
        assert kinds["int8"] == products, "the features stay as they are, and nothing else"
    if name == "t4" and mode == "weight_only":
        # ONNX Runtime's tool takes no Gemm, which heads are; neither tool what a head per token is.
        expected = {"onnxruntime": products - 4, "openvino": products - 2}.get(runtime)
        assert expected is None or kinds["int8 weights"] == expected
    if name in PRODUCTS:
        stem, every = PRODUCTS[name]
        every -= (name, runtime) == ("litetime", "eager")  # to which fixed filters are no weights
        rounded = mode in ("static", "qat")
        if (name, runtime, mode) == ("resnet", "onnxruntime", "none"):
            # The norm beside a block that keeps its channels is a convolution to it, if no mask follows.
            every += not dataset.preprocessing.ragged
        if (name, runtime, mode) == ("litetime", "onnxruntime", "none"):
            # Of images it computes what a member's norm does to the fixed filters as a product, where it can.
            every += max(0, min(2, kinds["float32"] - every))
        assert kinds == ({"float32": stem, "int8": every - stem} if rounded else {FORMAT[mode]: every})


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "litetime",
            ["prune.ratio=0.5", "prune.scope=depth"],
            "prune.scope=depth with model=litetime is not .*it has local and global",
        ),
        (
            "fcn",
            ["quant.mode=dynamic", "runtime=onnxruntime"],
            "for the convolution family.*none, static, qat",
        ),
        ("fcn", ["quant.mode=weight_only"], "for the convolution family"),
        ("minirocket", ["prune.ratio=0.5"], "prune with model=minirocket is not supported"),
        ("minirocket", ["quant.mode=qat"], "qat with model=minirocket is not supported"),
        ("minirocket", ["quant.mode=bf16"], "for the estimator family"),
        ("minirocket", ["runtime=onnxruntime"], "eager +cpu +none"),
        ("quant_forest", ["prune.ratio=0.5"], "prune with model=quant_forest .* this one is: estimator"),
        ("multirocket_hydra", ["quant.mode=bf16"], "for the estimator family"),
        ("dtw_1nn", ["runtime=openvino"], "eager +cpu +none"),
        (
            "ridge",
            ["quant.mode=qat", "runtime=onnxruntime"],
            "qat with model=ridge is .*this one is: ridge",
        ),
        ("ridge", ["prune.ratio=0.5"], "prune.scope=local with model=ridge .*allowed: features, all"),
        ("ridge", ["train.devices=2"], "train.devices=2: model=ridge is not trained by gradient descent"),
        ("ridge", ["data.scale=znorm_raw"], "znorm_raw is not for model=ridge"),
    ],
)
def test_what_is_not_supported_is_refused_before_any_work(name, overrides, message):
    with pytest.raises(Unsupported, match=r"(?s)" + message):
        pipeline.check(config(name, *overrides))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("fcn", "model.kernels=[8,5]", "different lengths"),
        ("fcn", "model.filters=[8,0,8]", "model.filters=.*numbers ≥ 1"),
        ("fcn", "+model.d_model=8", "d_model is not a key of the convolution family; allowed: .*filters"),
        ("minirocket", "model.n_kernels=10", "model.n_kernels=10 is out of range; allowed: ≥ 84"),
        ("minirocket", "model.estimator=minirokcet", "did you mean minirocket"),
        ("quant_forest", "+model.n_kernels=84", "n_kernels is not a key of the quant_forest family"),
        ("quant_forest", "model.max_features=0", "model.max_features=0.0 is out of range; allowed: > 0 and"),
        ("multirocket_hydra", "model.n_groups=0", "model.n_groups=0 is out of range; allowed: ≥ 1"),
        ("ridge", "model.features=[kernel.values]", "model.features names kernel.values, which is not known"),
        ("ridge", "model.features=[scale,scale]", "model.features names scale twice"),
        ("ridge", "model.features=[intervals.raw]", "model.features must name one that is not raw"),
        ("dtw_1nn", "model.window=1.5", "model.window=1.5 is out of range; allowed: ≥ 0 and ≤ 1"),
    ],
)
def test_wrong_keys_are_refused(name, override, message):
    with pytest.raises(ConfigError, match=message):
        compose(f"model={name}", override)


def test_with_a_family_s_version_nothing_fitted_or_measured_before_counts(italy, cache, monkeypatch):
    from tsexp.models.estimators import minirocket

    asked, fitted = identity(config("minirocket")), train("minirocket", italy, cache).signature
    monkeypatch.setattr(minirocket, "VERSION", minirocket.VERSION + 1)
    assert identity(config("minirocket")) != asked
    assert train("minirocket", italy, cache).signature != fitted


def test_training_keys_do_not_matter_to_an_estimator(italy, cache):
    shorter = train("minirocket", italy, cache, "train.epochs=7")
    assert train("minirocket", italy, cache).signature == shorter.signature


def test_minirocket_is_aeons(italy):
    from aeon.classification.convolution_based import MiniRocketClassifier

    model = models.build(config("minirocket").model, italy)
    assert isinstance(model, MiniRocket)
    state = np.random.get_state()[1].copy()
    assert model.fit(italy, 3) == []
    assert np.array_equal(np.random.get_state()[1], state), "the global generator is left alone"
    z = [(s - s.mean(-1, keepdims=True)) / s.std(-1, keepdims=True) for s in (italy.x_train, italy.x_test)]
    theirs = MiniRocketClassifier(336, random_state=3).fit(z[0][italy.fit], italy.y_train[italy.fit])
    same = theirs.predict(z[1]) == model.scores(italy.x_test).argmax(1)
    assert same.mean() > 0.99  # znorm is PyTorch's: series that lie on a bias may fall on the other side
    assert (model.scores(italy.x_test).argmax(1) == italy.y_test).mean() > 0.9


@pytest.mark.parametrize("name", ["minirocket", "quant_forest", "multirocket_hydra", "dtw_1nn"])
def test_estimators_work_in_a_fork_after_they_have_worked_here(name, italy, cache):
    """Threads of numba and OpenMP do not survive a fork; measuring processes come from one that has none."""
    cfg = config(name, "measure.batch_size=4")
    fitted = train(name, italy, cache)
    here = fitted.load().scores(italy.x_test)
    artifact = runtimes.deploy(fitted, cfg.quant, RuntimeConfig("eager", "cpu"), italy, cache)
    apart = energy.score(artifact, italy, cfg.measure, cache, progress=False)
    np.testing.assert_allclose(apart.test, here, atol=1e-5)


NETS = ("fcn", "resnet", "inceptiontime", "litetime")


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("source", DATASETS)
def test_folding_the_norms_changes_nothing_but_the_work(name, source, load_data, cache):
    dataset = load_data(source)
    model = awake(train(name, dataset, cache).load())
    before = {k: v.clone() for k, v in model.state().items()}
    lean = model.deployable()
    assert noise_db(model.scores(dataset.x_test), lean.scores(dataset.x_test)) > 100
    assert not any(isinstance(m, nn.BatchNorm1d) for m in lean.modules())
    norms = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    alone = {"resnet": 12, "litetime": 2 * 8}.get(name, 0)  # with no convolution right before them
    assert models.count_parameters(lean) == models.count_parameters(model) - norms + alone
    assert models.count_macs(lean) == models.count_macs(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state().items())


@pytest.mark.parametrize("kernel", [1, 2, 3, 8])
def test_convolutions_keep_the_length(italy, kernel):
    model = models.build(config("fcn", f"model.kernels=[{kernel},3,3]").model, italy).eval()
    x = torch.randn(2, 1, 24)
    expected = nn.functional.conv1d(x, model.blocks[0].conv.weight, padding="same")
    assert torch.allclose(model.blocks[0].conv(nn.functional.pad(x, model.blocks[0].pad)), expected)


def awake(model):
    """Let everything count: norms begin as nothing."""
    torch.manual_seed(0)
    for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if "running_mean" in n)]:
        tensor.data.normal_(std=0.5)
    return model


@pytest.mark.parametrize("name", NETS)
def test_padding_does_not_change_scores(name, pickup):
    model = awake(models.build(config(name).model, pickup)).eval()
    x = pickup.x_test[:12]
    together = model.scores(x)
    assert np.ptp(together, axis=0).max() > 1e-2
    longer = type(model)(
        replace(model.arch, preprocessing=replace(model.arch.preprocessing, length=x.shape[-1] + 99))
    ).eval()
    longer.load_state_dict(model.state_dict())
    np.testing.assert_allclose(longer.scores(x), together, rtol=1e-4, atol=1e-4)
    for series, expected in zip(x, together, strict=True):
        alone = np.ascontiguousarray(series[None, :, ~np.isnan(series[0])])
        np.testing.assert_allclose(model.scores(alone)[0], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(model.scores(np.nan_to_num(x)) - together).max() > 1e-3, "zeros at the end are data"


@pytest.mark.parametrize("name", NETS)
def test_padding_does_not_change_what_is_learned(name, pickup):
    """Statistics of a batch are those of its data."""
    model = models.build(config(name).model, pickup).train()
    longer = type(model)(
        replace(model.arch, preprocessing=replace(model.arch.preprocessing, length=500))
    ).train()
    longer.load_state_dict(model.state_dict())
    x = torch.from_numpy(pickup.x_train)
    assert torch.allclose(model(x), longer(x), atol=1e-4)
    for (name, a), b in zip(model.named_buffers(), longer.buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-4), name


@pytest.mark.parametrize("select", ["last", "best"])
def test_averaged_weights_come_with_statistics_of_their_own(italy, cache, select):
    """Of few and large steps: what norms saw on the way belongs to other weights.

    Of series that are sorted by class, as files are, and whose classes differ in their level.
    """
    order = np.argsort(italy.y_train, kind="stable")
    at = {old: new for new, old in enumerate(order)}
    italy = replace(
        italy,
        x_train=(italy.x_train + 2 * italy.y_train[:, None, None].astype(np.float32))[order],
        y_train=italy.y_train[order],
        fit=np.sort([at[i] for i in italy.fit]),
        val=np.sort([at[i] for i in italy.val]),
        preprocessing=replace(italy.preprocessing, scale="none"),
        checksum="sorted",
    )
    steep = ("train.epochs=4", "train.max_steps=0", "train.lr=0.02", "train.schedule=none", "train.ema=0.95")
    fitted = train("fcn", italy, cache, *steep, f"train.select={select}")
    model, exact = fitted.load(), fitted.load()
    norms = [m for m in exact.modules() if isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    with torch.no_grad():
        exact.train()(torch.from_numpy(italy.x_train[italy.fit]))
    kept = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    for ours, theirs in zip(kept, norms, strict=True):
        for statistic in ("running_mean", "running_var"):
            a, b = getattr(ours, statistic), getattr(theirs, statistic)
            assert float((a - b).norm() / b.norm()) < 0.1, statistic
    x, y = italy.x_train[italy.val], italy.y_train[italy.val]
    validated = [line["val_accuracy"] for line in fitted.history() if "val_accuracy" in line]
    expected = max(validated) if select == "best" else validated[-1]
    assert (model.scores(x).argmax(1) == y).mean() == pytest.approx(expected), "validated as it is kept"


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_glance_before_validations_changes_nothing_that_is_kept(italy, tmp_path, monkeypatch, select):
    kept, curves = [], []
    for glance in (8, 10**6):
        monkeypatch.setattr(loop, "GLANCE", glance)
        steps = ("train.epochs=3", "train.max_steps=0", f"train.select={select}")
        fitted = train("fcn", italy, Cache(tmp_path / str(glance)), *steps)
        kept.append(fitted.load().state_dict())
        curves.append([line["val_loss"] for line in fitted.history() if "val_loss" in line])
    assert all(torch.equal(a, b) for a, b in zip(*(k.values() for k in kept), strict=True))
    assert (curves[0] == curves[1]) == (select == "best")


@torch.no_grad()
@pytest.mark.parametrize("largest", [64, 127])
def test_what_is_faked_is_what_is_deployed(italy, cache, largest, monkeypatch):
    if largest > cpu.int8_largest():
        pytest.skip("products overflow on this CPU")
    monkeypatch.setattr(cpu, "int8_largest", lambda: largest)
    cfg = config("fcn", "quant.mode=static")
    fitted = train("fcn", italy, cache, "train.epochs=20", "train.max_steps=0")
    artifact = runtimes.deploy(fitted, cfg.quant, RuntimeConfig("onnxruntime", "cpu"), italy, cache)
    x = italy.x_test[:200]
    deployed = runtimes.load(artifact.folder)(x)
    plain, rounded = fitted.load(), fitted.load()
    qat.fake_quantize(rounded, torch.from_numpy(italy.x_train[qat.calibration(cfg.quant, italy)]))
    assert {n for n, m in rounded.named_modules() if isinstance(m, qat.Rounded)} == {
        "blocks.1.conv",
        "blocks.2.conv",
        "head",
    }
    assert rounded.state_dict().keys() == plain.state_dict().keys()
    gain = noise_db(deployed, rounded.scores(x)) - noise_db(deployed, plain.scores(x))
    assert gain > 10, "a third of the error at most"
    # Rounding a weight before its norm is rounding it folded.
    conv, folded = rounded.blocks[1].conv, plain.deployable().blocks[1].conv
    norm = plain.blocks[1].norm
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]

    def int8(weight):
        scale = weight.abs().flatten(1).amax(1)[:, None, None] / largest
        return (weight / scale).round() * scale

    assert torch.allclose(int8(conv.weight) * factor, int8(folded.weight), atol=1e-6)


@pytest.mark.parametrize("name", ["fcn", "minirocket"])
def test_end_to_end(name, tmp_path):
    places = [f"paths.cache={tmp_path}/cache", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    places += [f"hydra.run.dir={tmp_path}/run"]
    done = tsexp(
        tmp_path,
        f"model={name}",
        "debug=smoke",
        "data=italy_power_demand",
        *MODELS[name],
        *places,
        fresh=True,
    )
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["status"] == "finished"
    assert name in done.stdout


OWN = """
from tsexp.models.convolution import *
from tsexp.models import convolution
{like}
class Mine(Convolutions):
    {family}
def build(config, dataset):
    made = convolution.build(config, dataset)
    made.__class__ = Mine
    return made
"""


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nowhere:", None, "model.family=nowhere: cannot be imported"),
        ("json:", None, "model.family=json: lacks Config, build, rebuild, LIKE"),
        ("unlike:", OWN.format(like="", family="pass"), "model.family=unlike: lacks LIKE"),
        (
            "stranger:",
            OWN.format(like="LIKE = 'convolution'", family="pass"),
            "model.family=stranger: builds a model whose `family` is convolution",
        ),
    ],
)
def test_a_family_of_ones_own_that_is_none_is_refused_in_a_line(
    monkeypatch, tmp_path, italy, name, text, said
):
    monkeypatch.syspath_prepend(tmp_path)
    if text:
        (tmp_path / f"{name[:-1]}.py").write_text(text)
    with pytest.raises(ConfigError, match="^" + re.escape(said)):
        models.build(compose("model=fcn", f"model.family='{name}'").model, italy)


def test_dilated_and_grouped_convolutions_round_as_they_are():
    layer = torch.nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2)
    x = torch.rand(2, 4, 20)
    assert (qat.Rounded(layer, 0.0, 1.0)(x) - layer(x)).abs().max() < 0.02


SHRUNK = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from tsexp.config import ModelConfig, number
from tsexp.models.arch import BaseArch
from tsexp.models.preprocess import Preprocess
LIKE = "estimator"
@dataclass
class Config(ModelConfig):
    gradient: ClassVar[bool] = False
    shrink: float = number(ge=0)
    start: str = "12:30"
class Means:
    family = "shrunk:"
    def __init__(self, arch, shrink=0.0):
        self.arch, self.preprocess, self.shrink = arch, Preprocess(arch.preprocessing), shrink
    def fit(self, dataset, seed):
        x = self.preprocess(torch.from_numpy(dataset.x_train[dataset.fit]))[0].flatten(1)
        y = dataset.y_train[dataset.fit]
        means = [x[y == c].mean(0) for c in range(len(self.arch.classes))]
        self.means = (1 - self.shrink) * torch.stack(means)
        return []
    def scores(self, x):
        return -torch.cdist(self.preprocess(torch.from_numpy(x))[0].flatten(1), self.means).numpy()
    def state(self): return {"means": self.means}
    def set_state(self, state): self.means = state["means"]
    def use_threads(self, count): pass
def build(config, dataset): return Means(BaseArch.of(dataset), config.shrink)
def rebuild(arch): return Means(BaseArch.from_dict(arch))
"""


BODY = "def body(arch): return nn.Flatten(), arch.channels * arch.preprocessing.length"
RECURRENT = """class Last(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.wide, self.read = nn.ConvTranspose1d(channels, 4, 2, 2), nn.GRU(4, 3, batch_first=True)
    def forward(self, x): return self.read(self.wide(x).transpose(1, 2))[0][:, -1]
def body(arch): return Last(arch.channels), 3"""
NET = f"""
from dataclasses import dataclass
from torch import nn
from tsexp.config import ModelConfig
from tsexp.models.arch import BaseArch
from tsexp.models.network import Network
from tsexp.models.preprocess import Preprocess
LIKE = "convolution"
{BODY}
@dataclass
class Config(ModelConfig): pass
class Net(Network):
    family = "answers:"
    def __init__(self, arch):
        super().__init__()
        self.arch, self.preprocess = arch, Preprocess(arch.preprocessing)
        self.body, width = body(arch)
        self.head = nn.Linear(width, len(arch.classes))
    def network(self, x, mask):
        scores = self.head(self.body(x))
        return scores
def build(config, dataset): return Net(BaseArch.of(dataset))
def rebuild(arch): return Net(BaseArch.from_dict(arch))
"""


def test_what_only_the_fit_of_a_family_of_ones_own_reads_makes_another_model(monkeypatch, tmp_path, italy):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TSEXP_OWN_CODE", "shrunk")
    (tmp_path / "shrunk.py").write_text(SHRUNK)
    cfg, cache = compose("model=t3"), Cache(tmp_path / "cache")
    made = []
    for shrink in (0.0, 0.9, 0.9):
        config = __import__("shrunk").Config("mine", "shrunk:", shrink)
        made.append(training.train(config, cfg.train, 0, italy, cache))
    assert [fitted.entry.reused for fitted in made] == [False, False, True]
    assert torch.allclose(made[1].load().means, made[0].load().means / 10)


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [(".repeat(1, 2).numpy()", "(2, 4)"), ("[:, :1].numpy()", "(2, 1)"), ("[:, 0].numpy()", "(2,)")],
)
def test_a_family_of_ones_own_without_a_score_for_each_class_is_refused(
    monkeypatch, tmp_path, italy, wrong, shape
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TSEXP_OWN_CODE", "shrunk")
    monkeypatch.delitem(sys.modules, "shrunk", raising=False)
    (tmp_path / "shrunk.py").write_text(SHRUNK.replace("self.means).numpy()", f"self.means){wrong}"))
    cfg, cache = compose("model=t3"), Cache(tmp_path / "cache")
    fitted = training.train(__import__("shrunk").Config("mine", "shrunk:", 0.0), cfg.train, 0, italy, cache)
    with pytest.raises(ConfigError, match=re.escape(f"scores of shape {shape}, where (2, 2) is needed")):
        runtimes.deploy(fitted, cfg.quant, RuntimeConfig("eager", "cpu"), italy, cache)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("scores, scores", "a tuple"),
        ("scores.repeat(1, 2)", "scores of shape (2, 4)"),
        ("[scores]", "a list"),
    ],
)
def test_a_network_of_ones_own_without_a_score_for_each_class_is_not_trained(
    monkeypatch, tmp_path, italy, wrong, said
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TSEXP_OWN_CODE", "answers")
    monkeypatch.delitem(sys.modules, "answers", raising=False)
    (tmp_path / "answers.py").write_text(NET.replace("return scores", f"return {wrong}"))
    monkeypatch.setattr(training.fitted, "fit", None)
    cfg, cache = compose("model=t3"), Cache(tmp_path / "cache")
    with pytest.raises(ConfigError, match=re.escape(f"2 series with {said}, where (2, 2) is needed")):
        training.train(__import__("answers").Config("mine", "answers:"), cfg.train, 0, italy, cache)
    assert not list((tmp_path / "cache").glob("dense/*/entry.json"))


@pytest.mark.parametrize(
    ("runtime", "recurrent", "widening"),
    [("eager", "GRU", "ConvTranspose1d"), ("onnxruntime", "GRU", "ConvTranspose"),
     ("openvino", "FullyConnected", "Deconvolution")],
)  # fmt: skip
def test_products_of_layers_that_no_model_here_has_are_told(
    monkeypatch, tmp_path, italy, runtime, recurrent, widening
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TSEXP_OWN_CODE", "answers")
    monkeypatch.delitem(sys.modules, "answers", raising=False)
    (tmp_path / "answers.py").write_text(NET.replace(BODY, RECURRENT))
    cfg, cache = compose("model=t3", "debug=smoke"), Cache(tmp_path / "cache")
    fitted = training.train(__import__("answers").Config("mine", "answers:"), cfg.train, 0, italy, cache)
    artifact = runtimes.deploy(fitted, cfg.quant, RuntimeConfig(runtime, "cpu"), italy, cache)
    products = [layer["kind"] for layer in artifact.manifest["layers"] if layer["matmul"]]
    assert {recurrent, widening} <= set(products)
    assert artifact.manifest["matmuls"] == {"float32": len(products)}


def test_the_manual_s_table_of_runtimes_is_right():
    kinds = {"T": "transformer", "V": "views", "R": "ridge", "C": "convolution", "E": "estimator"}
    manual = (Path(__file__).parents[1] / "docs" / "usage.md").read_text()
    table = re.findall(r"^\| `runtime=(\w+)`[^|]*\|(.*)\|$", manual, re.M)
    assert [name for name, _ in table] == list(runtimes.RUNTIMES)
    (head,) = re.findall(r"^\| \| (none \|.*) \|$", manual, re.M)
    for runtime, cells in table:
        for modes, cell in zip(head.split(" | "), cells.split("|"), strict=True):
            for letter, kind in kinds.items():
                for mode in modes.split(", "):
                    expected = letter in cell.split() and (letter, mode) != ("R", "qat")
                    assert (mode in supported(runtime, kind)) == expected, (runtime, mode, kind)
