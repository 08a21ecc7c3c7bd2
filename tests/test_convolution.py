"""Convolutional networks: as published, each member by itself, and smaller by whole channels."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch_pruning as tp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from conftest import as_tensor, compose
from tsexp import compress, models, pipeline, runtimes, training
from tsexp.cache import Cache
from tsexp.compress import channels, qat
from tsexp.config import ConfigError, RuntimeConfig, Unsupported, identity
from tsexp.models.convolution import Convolutional, nets
from tsexp.models.convolution.blocks import Convolution, Norm
from tsexp.models.convolution.inception import largest_of_three
from tsexp.models.convolution.lite import Fixed, fixed_filters
from tsexp.runtimes import artifact as artifact_module
from tsexp.runtimes import onnxruntime

SMALL = {
    "fcn": ("model.filters=[8,16,8]",),
    "resnet": ("model.filters=[6,10,10]", "model.kernels=[8,5,3]"),
    "inceptiontime": (
        "model.filters=[4,5,4,3]",
        "model.kernels=[8,3]",
        "model.bottleneck=4",
        "model.members=2",
    ),
    "litetime": (
        "model.filters=[4,6,5]",
        "model.kernels=[8,3]",
        "model.fixed=[2,4,8]",
        "model.separable=[6,3]",
        "model.members=2",
    ),
}
"""Every kind of layer, and in an Inception network one behind a sum."""
PRUNE = compose("model=fcn").prune
CONFIGS = st.builds(
    lambda **changes: replace(PRUNE, **changes),
    method=st.sampled_from(["l1", "l2", "random", "taylor"]),
    scope=st.sampled_from(["local", "global"]),
    ratio=st.floats(0, 1, exclude_max=True),
    round_to=st.sampled_from([1, 4]),
    calibration_series=st.integers(1, 20),
)
PROPERTY = settings(
    deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def config(name, *overrides):
    tiny = ("debug=smoke", "train=default", "train.progress=false", "quant.calibration_series=16")
    return compose(f"model={name}", *SMALL[name], *tiny, *overrides)


def awake(model):
    """Let every parameter and every statistic count, and hardly any ReLU be off for good."""
    torch.manual_seed(1)
    for name, value in model.state_dict().items():
        if "running_var" in name or name.endswith("norm.weight"):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.normal_(0.4 if name.endswith("norm.bias") else 0.0, 0.3)
    return model.eval()


MASKED = ("resnet masked", "inceptiontime masked", "litetime masked")
RAW = tuple(f"{name} raw" for name in SMALL)


@pytest.fixture(scope="module", params=[*SMALL, *MASKED, *RAW])
def problem(request, italy, pickup, load_data):
    """A small model and its dataset."""
    name, *kind = request.param.split()
    dataset = italy
    if kind == ["masked"]:
        dataset = pickup
    elif kind == ["raw"]:
        dataset = load_data("PickupGestureWiimoteZ", scale="znorm_raw")
    torch.manual_seed(0)
    return awake(models.build(config(name).model, dataset)), dataset


# As published.


def test_sizes_are_the_published_ones(italy):
    """Of one member without its last layer; what is published leaves fixed filters out.

    ResNet as Ismail Fawaz et al. 2019 count it, but for the biases before norms, which do nothing.
    """
    resnet, inception, lite = (
        models.build(compose(f"model={name}").model, italy)
        for name in ("resnet", "inceptiontime", "litetime")
    )
    head = 2 * 128 + 2
    assert models.count_parameters(resnet) == 504_000 - 3 * (64 + 128 + 128) - (64 + 128) + head + 0
    assert len(inception.nets) == len(lite.nets) == 5
    assert models.count_parameters(inception.nets[0]) - head == 420_192
    assert models.count_parameters(lite.nets[0]) - (2 * 32 + 2) == 9_814


def test_fixed_filters_are_those_of_the_paper():
    increase, decrease, peak = fixed_filters((8,))
    assert increase.tolist() == [-1, 1] * 4
    assert decrease.tolist() == [1, -1] * 4
    assert peak.tolist() == [-0.25, -1, -1, -0.25, 0.5, 2, 2, 0.5, -0.25, -1, -1, -0.25]
    assert [len(f) for f in fixed_filters((2, 4, 8))] == [2, 4, 8, 2, 4, 8, 6, 12], "no peak within 2"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("inputs", "kernel", "dilation", "groups", "padding"),
    [
        *[(4, 40, 1, 1, 0), (4, 41, 1, 1, 20), (4, 11, 1, 1, 5), (4, 5, 1, 1, 2), (1, 40, 1, 1, 3)],
        *[(4, 20, 2, 4, 19), (4, 10, 4, 4, 18), (4, 5, 3, 2, 0), (4, 21, 2, 1, 20)],
    ],
)
def test_convolutions_learn_what_they_compute(inputs, kernel, dilation, groups, padding, bias):
    conv = Convolution(
        inputs, 8, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias
    ).double()
    x = torch.randn(3, inputs, 61, dtype=torch.float64, requires_grad=True)
    found = {}
    for learns in (True, False):
        y = conv.train(learns)(x)
        found[learns] = y, *torch.autograd.grad(y.square().sum(), [x, *conv.parameters()])
    torch.testing.assert_close(found[True], found[False])


def test_pooling_learns_what_it_computes():
    x = torch.randn(3, 4, 30, dtype=torch.float64, requires_grad=True)
    both = [pool(x) for pool in (largest_of_three, partial(F.max_pool1d, kernel_size=3, stride=1, padding=1))]
    torch.testing.assert_close(*both)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x) for y in both))


@pytest.mark.parametrize("inputs", [1, 3])
def test_fixed_filters_see_all_channels_and_keep_the_length(inputs):
    lengths = (2, 4, 8)
    x = torch.randn(2, inputs, 30)
    each = [
        F.conv1d(x, values.expand(1, inputs, -1), padding="same").relu() for values in fixed_filters(lengths)
    ]
    torch.testing.assert_close(Fixed(lengths)(x), torch.cat(each, 1))


def test_where_channels_do_not_change_a_resnet_adds_what_a_norm_makes_of_them(italy):
    model = models.build(config("resnet").model, italy)
    around = [r.shortcut for r in model.residuals]
    assert [isinstance(s, nn.BatchNorm1d) for s in around] == [False, False, True]


# Members.


@pytest.fixture(params=["inceptiontime", "litetime"])
def ensemble(request, italy):
    torch.manual_seed(0)  # whatever other tests have drawn
    return awake(models.build(config(request.param, "model.members=3").model, italy))


def test_an_ensemble_averages_class_probabilities(ensemble, italy):
    x = as_tensor(italy.x_test[:20])
    members = ensemble.members(*ensemble.preprocess(x))
    assert len(members) == 3
    expected = torch.stack([m.softmax(-1) for m in members]).mean(0)
    torch.testing.assert_close(ensemble(x).exp(), expected)
    assert (members[0] - members[1]).abs().max() > 0.1


def test_sure_members_do_not_overflow(ensemble, italy):
    for net in ensemble.nets:
        net.head.weight.data.mul_(1e5)
    x, mask = ensemble.preprocess(as_tensor(italy.x_test[:20]))
    members = torch.stack(ensemble.members(x, mask))
    assert members.exp().isinf().any()
    expected = members.double().log_softmax(-1).exp().mean(0).log()
    scores = ensemble.network(x, mask)
    assert scores.isfinite().all()
    clear = expected > -50
    torch.testing.assert_close(scores[clear], expected[clear].float())


def test_members_learn_each_for_itself(ensemble, italy):
    first, *_ = ensemble.train().members(*ensemble.preprocess(as_tensor(italy.x_train[:16])))
    first.square().sum().backward()
    touched = {name.split(".")[1] for name, p in ensemble.named_parameters() if p.grad is not None}
    assert touched == {"0"}


def test_what_is_faked_is_all_but_the_stem(problem):
    model, dataset = problem
    rounded = copy.deepcopy(model)
    qat.fake_quantize(rounded, as_tensor(dataset.x_train[:8]))
    kept = {n for n, m in rounded.named_modules() if isinstance(m, nn.Conv1d | nn.Linear)}
    products = {n for n, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Linear)}
    assert kept == {n for n in products if model.in_stem(n)}
    assert kept
    assert kept != products
    inputs = {n for n in products if getattr(model.get_submodule(n), "in_channels", 0) == dataset.channels}
    one = {n for n in inputs if "separables" not in n}
    assert one <= kept, "all that see raw series"
    assert rounded.state_dict().keys() == model.state_dict().keys()
    assert (rounded.scores(dataset.x_test[:8]) - model.scores(dataset.x_test[:8])).std() > 0


# Descriptions.


def test_what_was_saved_before_there_were_others_is_an_fcn(italy, tmp_path):
    model = awake(models.build(config("fcn").model, italy))
    models.save(model, tmp_path)
    arch = json.loads((tmp_path / "arch.json").read_text())
    assert set(arch) == {"family", "channels", "classes", "preprocessing", "filters", "kernels"}
    assert np.array_equal(models.load(tmp_path).scores(italy.x_test[:8]), model.scores(italy.x_test[:8]))


def test_an_fcn_is_asked_for_as_before_there_were_others():
    assert identity(compose("model=fcn"))["model"] == {
        "name": "fcn",
        "family": "convolution",
        "filters": [128, 256, 128],
        "kernels": [8, 5, 3],
    }
    assert identity(compose("model=litetime"))["model"]["net"] == "lite"


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("resnet", "model.net=resnext", "model.net=resnext is not known.*resnet, inception.*did you mean"),
        ("fcn", "+model.members=3", "model.members is not a key of model.net=fcn; it has filters, kernels$"),
        ("inceptiontime", "model.bottleneck=null", "model.bottleneck has no value; model.net=inception"),
        ("inceptiontime", "model.members=0", "model.members=0 is out of range; allowed: ≥ 1"),
        ("inceptiontime", "model.kernels=[]", r"model.kernels=\[\] is out of range"),
        (
            "litetime",
            "model.dilations=[2]",
            r"model.separable=\[20, 10\] and model.dilations=\[2\] have diff",
        ),
        ("litetime", "model.filters=[32]", r"model.filters=\[32\] must be one number for the first layer"),
        ("litetime", "model.fixed=[0]", r"model.fixed=\[0\] is out of range"),
    ],
)
def test_wrong_keys_are_refused(name, override, message):
    with pytest.raises(ConfigError, match=message):
        compose(f"model={name}", override)


# Channels.


def kept_by(model, dataset, prune, seed=0):
    return channels.select(channels.score(model, prune, dataset, seed), prune)


@torch.no_grad()
def scores(model, dataset):
    return model(as_tensor(dataset.x_test[:16]).to(next(model.parameters()).dtype))


def precise(model):
    return copy.deepcopy(model).double()


@torch.no_grad()
def masked_scores(model, dataset, kept):
    """Of the dense model, all other channels zero where they can be seen."""
    gates = {name: torch.zeros(layer.size, dtype=torch.double) for name, layer in model.layers().items()}
    for gate, stay in zip(gates.values(), kept, strict=True):
        gate[list(stay)] = 1
    with channels.gated(model, gates):
        return scores(model, dataset)


@PROPERTY
@given(prune=CONFIGS, seed=st.integers(0, 3))
def test_shrunk_model_is_the_masked_one(problem, prune, seed):
    model, dataset = problem
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = kept_by(model, dataset, prune, seed)
    slim = channels.shrink(model, kept)
    expected = masked_scores(precise(model), dataset, kept)
    torch.testing.assert_close(scores(precise(slim), dataset), expected, atol=1e-10, rtol=1e-10)
    assert [layer.size for layer in slim.layers().values()] == [len(k) for k in kept]
    assert slim.prunable() == sum(map(len, kept))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not {v.data_ptr() for v in slim.parameters()} & {v.data_ptr() for v in model.parameters()}
    assert nets.rebuild(json.loads(json.dumps(asdict(slim.arch)))).arch == slim.arch


def test_masking_matters(problem):
    """Else the comparison above would hold for anything, layer by layer."""
    model, dataset = problem
    every = [tuple(range(layer.size)) for layer in model.layers().values()]
    for i in range(len(every)):
        without = [*every[:i], (0,), *every[i + 1 :]]
        change = scores(precise(model), dataset) - masked_scores(precise(model), dataset, without)
        assert change.abs().max() > 1e-7


@PROPERTY
@given(prune=CONFIGS, other=st.floats(0, 1, exclude_max=True))
def test_higher_ratio_keeps_a_subset_and_no_layer_is_emptied(problem, prune, other):
    model, dataset = problem
    low, high = (
        kept_by(model, dataset, replace(prune, ratio=ratio)) for ratio in sorted([prune.ratio, other])
    )
    assert all(less and set(less) <= set(more) for less, more in zip(high, low, strict=True))
    assert models.count_parameters(channels.shrink(model, high)) <= models.count_parameters(
        channels.shrink(model, low)
    )


def test_local_removes_the_same_share_of_every_layer_and_global_the_lowest_of_all(problem):
    model, dataset = problem
    sizes = [layer.size for layer in model.layers().values()]
    found = channels.score(model, PRUNE, dataset, 0)
    of_each, of_all = (
        channels.select(found, replace(PRUNE, ratio=0.5, scope=scope)) for scope in ("local", "global")
    )
    assert [len(k) for k in of_each] == [n - round(n / 2) for n in sizes]
    assert sum(map(len, of_all)) == sum(sizes) - round(sum(sizes) / 2)
    gone = max(float(v) for s, k in zip(found, of_all, strict=True) for i, v in enumerate(s) if i not in k)
    # The best of a layer may stay although it is low.
    stay = [v for s, k in zip(found, of_all, strict=True) for v in sorted(s[list(k)].tolist())[:-1]]
    assert gone <= min(stay)


def test_round_to_keeps_multiples_by_keeping_more(problem):
    model, dataset = problem
    plain = kept_by(model, dataset, replace(PRUNE, ratio=0.6))
    rounded = kept_by(model, dataset, replace(PRUNE, ratio=0.6, round_to=4))
    for few, more, layer in zip(plain, rounded, model.layers().values(), strict=True):
        assert set(few) <= set(more)
        assert len(more) == min(layer.size, math.ceil(len(few) / 4) * 4)


@pytest.mark.parametrize(("method", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes_are_of_the_filters_with_their_norm(italy, method, power):
    """In units of the layer's mean; where a sum adds channels up, of all filters that make them."""
    model = awake(models.build(config("resnet").model, italy))
    found = dict(
        zip(model.layers(), channels.score(model, replace(PRUNE, method=method), italy, 0), strict=True)
    )

    def filters(block):
        scale = block.norm.weight / (block.norm.running_var + block.norm.eps).sqrt()
        return (block.conv.weight * scale[:, None, None]).flatten(1).detach().abs() ** power

    one, two, three = model.residuals
    inner = filters(two.blocks[0]).mean(1)
    torch.testing.assert_close(found["residuals.1.blocks.0"], inner / inner.mean())
    total = torch.cat([filters(two.blocks[2]), filters(two.shortcut), filters(three.blocks[2])], 1).mean(1)
    torch.testing.assert_close(found["residuals.1"], total / total.mean())
    assert "residuals.2" not in found
    assert len(found["residuals.0"]) == one.blocks[2].conv.out_channels


def test_taylor_is_the_slope_of_the_loss_by_a_gate(problem):
    model, dataset = problem
    found = channels.score(model, replace(PRUNE, method="taylor", calibration_series=16), dataset, 0)
    order = dataset.fit[torch.randperm(len(dataset.fit), generator=torch.Generator().manual_seed(0)).numpy()]
    x, y = as_tensor(dataset.x_train[order[:16]]).double(), as_tensor(dataset.y_train[order[:16]])
    double = precise(model)

    @torch.no_grad()
    def loss(name, channel, gate):
        gates = {n: torch.ones(layer.size, dtype=torch.double) for n, layer in model.layers().items()}
        gates[name][channel] = gate
        with channels.gated(double, gates):
            return float(F.cross_entropy(double(x), y))

    for name, value in zip(model.layers(), found, strict=True):
        slope = (loss(name, 0, 1 + 1e-5) - loss(name, 0, 1 - 1e-5)) / 2e-5
        assert float(value[0]) == pytest.approx(slope**2, rel=1e-3, abs=1e-9), name


def test_random_scores_follow_the_seed(problem):
    model, dataset = problem
    a, b, c = (channels.score(model, replace(PRUNE, method="random"), dataset, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(a, c, strict=True))


def test_scoring_leaves_model_and_random_state_alone(problem):
    model, dataset = problem
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    expected = scores(model, dataset)
    for method in channels.SCORES:
        channels.score(model, replace(PRUNE, method=method), dataset, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(scores(model, dataset), expected), "nothing is hooked any more"


class AsLayer(nn.Module):
    """Fixed filters as a layer, which is what Torch-Pruning can follow."""

    def __init__(self, fixed):
        super().__init__()
        self.pad = fixed.pad
        self.conv = nn.Conv1d(1, *fixed.weight.shape[::2], bias=False)
        self.conv.weight.data = fixed.weight

    def forward(self, x):
        return self.conv(F.pad(x, self.pad)).relu()


@pytest.mark.parametrize("name", SMALL)
def test_torch_pruning_makes_the_same_model(name, italy):
    """It finds out by itself what goes with what."""
    model = awake(models.build(config(name).model, italy))
    kept = kept_by(model, italy, replace(PRUNE, ratio=0.5, method="random", scope="global"))
    other = copy.deepcopy(model)
    if name == "litetime":
        other.fixed = AsLayer(other.fixed)
    wires = model.wires()
    for (layer, described), stay in zip(model.layers().items(), kept, strict=True):
        gone = [i for i in range(described.size) if i not in stay]
        made_by = next(n for n, w in wires.items() if w.inputs and w.outputs == (layer,))
        graph = tp.DependencyGraph().build_dependency(other, as_tensor(italy.x_test[:2]))
        if gone:
            conv = other.get_submodule(made_by)
            graph.get_pruning_group(conv, tp.prune_conv_out_channels, idxs=gone).prune()
    slim = channels.shrink(model, kept)
    theirs = {k: v.shape for k, v in other.state_dict().items() if k != "fixed.conv.weight"}
    assert {k: v.shape for k, v in slim.state_dict().items()} == theirs
    torch.testing.assert_close(scores(slim, italy), scores(other, italy), atol=1e-6, rtol=1e-6)


def test_a_pruned_network_is_tuned_saved_and_deployed_like_any_other(italy, tmp_path):
    home = Cache(tmp_path)
    cfg = config("litetime", "prune.ratio=0.5", "prune.finetune_epochs=1", "quant.mode=static")
    dense = training.train(cfg.model, cfg.train, 0, italy, home)
    made = compress.compress(dense, cfg, italy, home)
    assert list(made) == ["prune", "finetune"]
    (note,) = made["prune"].notes()
    kept = json.loads(note.read_text())
    was, pruned, tuned = dense.load(), made["prune"].load(), made["finetune"].load()
    assert [(k["layer"], k["of"]) for k in kept] == [(n, layer.size) for n, layer in was.layers().items()]
    expected = channels.shrink(was, [tuple(k["channels"]) for k in kept])
    assert torch.equal(scores(pruned, italy), scores(expected, italy))
    assert tuned.arch == pruned.arch == expected.arch
    assert pruned.prunable() < 0.6 * was.prunable()
    assert not torch.equal(scores(tuned, italy), scores(pruned, italy))
    runtime = RuntimeConfig("onnxruntime", "cpu")
    artifact = runtimes.deploy(made["finetune"], cfg.quant, runtime, italy, home)
    assert artifact.manifest["channels"] == pruned.prunable()
    others = {layer["kind"] for layer in artifact.manifest["layers"] if not layer["matmul"]}
    assert others.isdisjoint(
        {"ReduceMax", "ReduceMean", "ReduceSum", "Unsqueeze", "Split"}
    )  # own numbers of axes
    plain = runtimes.deploy(
        dense, replace(cfg.quant, mode="none"), RuntimeConfig("eager", "cpu"), italy, home
    )
    assert artifact.manifest["macs"] < 0.7 * plain.manifest["macs"]


def test_norms_bear_a_single_value():
    norm = Norm(3).train()
    alone = norm(torch.ones(1, 3, 1))
    assert torch.equal(alone, copy.deepcopy(norm).eval()(torch.ones(1, 3, 1)))
    x, mask = torch.ones(2, 3, 4), torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 0] = True
    assert torch.equal(norm(x, mask)[0, :, 0], alone[0, :, 0])
    assert norm.num_batches_tracked == 0
    norm(torch.rand(2, 3, 4))
    assert norm.num_batches_tracked == 1


def test_images_one_step_high_give_the_same_scores(problem):
    model, dataset = problem
    planar = model.deployable(flat=True)
    assert (planar.planar, model.planar, model.deployable().planar) == (True, False, False)
    seen = []
    for part in planar.modules():
        if isinstance(part, torch.nn.Conv1d):
            part.register_forward_hook(lambda _, given, made: seen.append((given[0].ndim, made.ndim)))
    torch.testing.assert_close(scores(planar, dataset), scores(model, dataset), atol=1e-5, rtol=1e-5)
    assert set(seen) == {(4, 4)}
    assert models.count_parameters(planar) == models.count_parameters(model.deployable())
    assert models.count_macs(planar) == models.count_macs(model.deployable())


@pytest.mark.parametrize(("mode", "images"), [("none", True), ("static", False)])
def test_onnx_runtime_convolves_images_in_blocks_of_channels(italy, tmp_path, mode, images):
    # Inside its graph, of what it makes when a session starts: the fast ones are of another domain.
    import onnx

    cfg = config("fcn", f"quant.mode={mode}", "model.filters=[16,16]", "model.kernels=[8,3]")
    dense = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path))
    artifact = runtimes.deploy(dense, cfg.quant, RuntimeConfig("onnxruntime", "cpu"), italy, Cache(tmp_path))
    predictor = onnxruntime.load(artifact.folder, mode, "cpu", 1)
    predictor._session(tmp_path / "optimized.onnx")
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    blocked = [n for n in nodes if n.op_type == "Conv" and n.domain == "com.microsoft.nchwc"]
    assert len(blocked) == (2 if images else 0)
    assert artifact.manifest["matmuls"].get("float32", 0) >= 1


@pytest.mark.parametrize(
    ("runtime", "mode"),
    [
        ("onnxruntime", "none"),
        ("onnxruntime", "static"),
        ("openvino", "none"),
        ("openvino", "static"),
        pytest.param("inductor", "none", marks=pytest.mark.slow),
    ],
)
def test_raw_values_are_seen_in_every_runtime(load_data, tmp_path, runtime, mode):
    """Of series that are scaled alike, the raw ones tell which is which; `deploy` compares the scores."""
    pickup = load_data("PickupGestureWiimoteZ", scale="znorm_raw")
    cfg = config("fcn", f"quant.mode={mode}", "train.epochs=2")
    dense = training.train(cfg.model, cfg.train, 0, pickup, Cache(tmp_path))
    artifact = runtimes.deploy(dense, cfg.quant, RuntimeConfig(runtime, "cpu"), pickup, Cache(tmp_path))
    predictor = runtimes.load(artifact.folder)
    x = pickup.x_test[:1]
    assert np.abs(predictor(x * 10) - predictor(x)).max() > 1e-3


def test_layers_and_networks_of_somebody_else_see_no_images(italy):
    model = models.build(config("fcn").model, italy)
    assert model.deployable(flat=True).planar
    model.replaced["blocks.0.conv"] = {"kind": "mine:Conv"}
    assert not model.deployable(flat=True).planar

    class Mine(type(model)):
        pass

    assert not Mine(model.arch).deployable(flat=True).planar


@pytest.mark.parametrize("name", SMALL)
def test_several_channels_are_images_too(name, load_data, tmp_path):
    motions = load_data("BasicMotions")
    torch.manual_seed(0)
    model = awake(models.build(config(name).model, motions))
    assert model.arch.channels == 6
    onnxruntime.to_onnx(onnxruntime.rewritten(model, "none"), tmp_path / "model.onnx")
    predictor = onnxruntime.OnnxPredictor(tmp_path / "model.onnx", 1)
    np.testing.assert_allclose(
        predictor(motions.x_test[:5]), model.scores(motions.x_test[:5]), atol=1e-5, rtol=1e-5
    )


def test_only_what_onnx_runtime_exports_anew_counts_as_changed(tiny, italy):
    def keys(name, runtime, mode="none"):
        cfg = replace(compose(f"model={name}", f"quant.mode={mode}"), runtime=RuntimeConfig(runtime, "cpu"))
        return runtimes.rewrites(cfg.quant, cfg.runtime, cfg.model.family)

    for name in ("fcn", "t4", "ridge"):
        assert keys(name, "onnxruntime") == {"rewrites": {"onnxruntime": 1}}
    assert keys("fcn", "auto")["rewrites"] == {"onnxruntime": 1, "openvino": 2}
    assert keys("fcn", "openvino") == keys("t3", "openvino") == {"rewrites": {"openvino": 2}}
    assert keys("fcn", "onnxruntime", "static") == keys("t4", "onnxruntime", "static") == {}
    assert keys("fcn", "eager") == keys("t3", "onnxruntime") == keys("t4", "eager") == {}


def test_records_and_artifacts_from_before_do_not_count(italy, tmp_path, monkeypatch):
    cfg = replace(config("fcn"), runtime=RuntimeConfig("onnxruntime", "cpu"))
    home = Cache(tmp_path)
    dense = training.train(cfg.model, cfg.train, 0, italy, home)
    made = []
    for count in (1, 2):
        monkeypatch.setitem(artifact_module.REWRITES, ("onnxruntime", "convolution", "none"), count)
        deployed = runtimes.deploy(dense, cfg.quant, cfg.runtime, italy, home)
        made.append((deployed.entry.signature, pipeline.signature(cfg, italy)))
    assert made[0][0] != made[1][0]
    assert made[0][1] != made[1][1]


@pytest.mark.parametrize("name", SMALL)
def test_leaving_out_whole_blocks_is_refused_before_any_work(name):
    with pytest.raises(
        Unsupported, match=rf"prune.scope=depth with model={name} is not supported.*local and"
    ):
        pipeline.check(config(name, "prune.ratio=0.5", "prune.scope=depth"))
    pipeline.check(config(name, "prune.ratio=0.0", "prune.scope=depth"))
    pipeline.check(config(name, "prune.ratio=0.5"))


OWN = """
from dataclasses import dataclass
from tsexp.config import ModelConfig
from tsexp.models.convolution import build, rebuild
LIKE = "convolution"
@dataclass
class Config(ModelConfig):
    pass
"""


def test_a_network_of_ones_own_is_not_pruned(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_net.py").write_text(OWN)
    monkeypatch.setenv("TSEXP_OWN_CODE", "my_net")
    ours = compose("model=fcn")
    mine = replace(ours, model=__import__("my_net").Config("mine", "my_net:"))
    compress.check(mine)
    with pytest.raises(Unsupported, match=r"prune with model=mine is not .*come with this package"):
        compress.check(replace(mine, prune=replace(mine.prune, ratio=0.5)))


def test_pruning_comes_before_steps_that_replace_layers(italy):
    model = models.build(config("fcn").model, italy)
    model.replaced["head"] = {}
    with pytest.raises(ValueError, match="replaced before pruning: head"):
        channels.shrink(model, [(0,)] * 3)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda right: None, "NoneType"),
        (lambda right: right[:1], r"tensors of shapes \(8,\)"),
        (lambda right: [s.numpy() for s in right], "list of ndarray"),
        (lambda right: [s * math.nan for s in right], "tensors that are not finite"),
    ],
)
def test_a_method_of_ones_own_that_returns_something_else_is_named(italy, monkeypatch, returned, said):
    model = models.build(config("fcn").model, italy)
    assert isinstance(model, Convolutional)
    right = channels.score(model, PRUNE, italy, 0)
    monkeypatch.setitem(channels.SCORES, "mine:best", lambda *_: returned(right))
    monkeypatch.setattr(channels, "look_up", lambda name, table: table[name])
    with pytest.raises(ConfigError, match=rf"prune.method=mine:best returned {said}") as error:
        channels.score(model, replace(PRUNE, method="mine:best"), italy, 0)
    assert "here (8,), (16,), (8,)" in str(error.value)
