"""Models: published sizes, files, and scores that depend on the series alone."""

import copy
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import TINY, as_tensor, compose
from tsexp import models
from tsexp.config import OWN_CODE, ConfigError
from tsexp.data import Preprocessing
from tsexp.models import transformer
from tsexp.models.counting import macs_of
from tsexp.models.preprocess import Preprocess
from tsexp.models.transformer import Arch, Block, Classifier, narrow
from tsexp.models.transformer.encoder import Attention

MODELS = ["t1", "t2", "t3"]


def published(italy, name):
    """The model of full size for 4 channels, 160 steps and 9 classes."""
    problem = replace(
        italy,
        x_train=np.zeros((1, 4, 160), np.float32),
        classes=tuple("abcdefghi"),
        preprocessing=replace(italy.preprocessing, length=160),
    )
    return Classifier(transformer.architecture(compose(f"model={name}").model, problem)).eval()


def ragged(lengths, channels=2, total=None, seed=0):
    """Series of these lengths, NaN after the end."""
    rng = np.random.default_rng(seed)
    x = np.full((len(lengths), channels, total or max(lengths)), np.nan, np.float32)
    for row, n in zip(x, lengths, strict=True):
        row[:, :n] = rng.normal(3, 2, (channels, n))
    return x


@torch.no_grad()
def scores(model, x):
    return model(as_tensor(np.ascontiguousarray(x))).numpy()


@pytest.mark.parametrize(("name", "parameters"), [("t1", 180041), ("t2", 263625)])
def test_published_models_have_the_published_size(italy, name, parameters):
    assert models.count_parameters(published(italy, name)) == parameters


@pytest.mark.parametrize(("name", "macs"), [("t1", 19_181_312), ("t2", 69_675_008), ("t3", 8_697_792)])
def test_macs_on_720_steps(italy, name, macs):
    """Counted by hand; `test_runtimes` spells the formula out."""
    long = replace(
        italy,
        x_train=np.zeros((1, 1, 720), np.float32),
        classes=("a", "b", "c"),
        preprocessing=replace(italy.preprocessing, length=720),
    )
    assert (
        models.count_macs(Classifier(transformer.architecture(compose(f"model={name}").model, long))) == macs
    )


@pytest.mark.parametrize("training", [False, True])
def test_counting_leaves_the_mode_alone(tiny_model, italy, training):
    model = tiny_model(italy).train(training)
    models.count_macs(model)
    assert model.training is training


def uneven(model):
    return Classifier(replace(model.arch, blocks=(Block(1, 5), Block(3, 24))))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("change", [lambda m: m, uneven], ids=["even", "uneven"])
def test_saved_model_comes_back_bit_equal(tiny_model, load_data, tmp_path, name, change):
    dataset = load_data("BasicMotions", scale="standard")
    model = change(tiny_model(dataset, f"model={name}")).eval()
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.arch == model.arch
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    np.testing.assert_array_equal(scores(again, dataset.x_test[:8]), scores(model, dataset.x_test[:8]))


@pytest.mark.parametrize("scale", ["none", "znorm", "minmax", "standard", "znorm_raw"])
def test_arch_survives_json(load_data, scale):
    dataset = load_data("BasicMotions", scale=scale)
    arch = replace(
        transformer.architecture(compose("model=t3").model, dataset), blocks=(Block(1, 7), Block(4, 128))
    )
    again = Arch.from_dict(json.loads(json.dumps(asdict(arch))))
    assert again == arch
    assert hash(again) == hash(arch)


def test_a_description_by_another_version_is_refused(load_data):
    arch = transformer.architecture(compose("model=t3").model, load_data("BasicMotions"))
    raw = json.loads(json.dumps(asdict(arch)))
    with pytest.raises(ConfigError, match="another version of tsexp, with noise: train the model again"):
        Arch.from_dict(raw | {"noise": 0.1})
    with pytest.raises(ConfigError, match="another version of tsexp, with later: train the model again"):
        Arch.from_dict(raw | {"preprocessing": raw["preprocessing"] | {"later": 1}})


def test_loading_draws_nothing(tiny_model, italy, tmp_path):
    models.save(tiny_model(italy), tmp_path)
    before = torch.get_rng_state()
    models.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_products_that_cannot_be_seen_are_not_counted_as_few(tiny_model, italy):
    model = tiny_model(italy)
    assert models.count_macs(model) > 0
    model.add_module("memory", torch.nn.LSTM(4, 4))
    assert models.count_macs(model) is None


@pytest.mark.parametrize("tokenizer", ["patch", "conv_stem"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("scale", ["znorm", "standard", "znorm_raw"])
def test_padding_does_not_change_scores(tiny_model, load_data, tokenizer, pooling, scale):
    dataset = load_data("PickupGestureWiimoteZ", scale=scale)
    model = tiny_model(dataset, f"model.tokenizer={tokenizer}", f"model.pooling={pooling}")
    # Positions and biases are small or zero before training; make everything count.
    torch.manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.3)
    x = dataset.x_test[:12]
    together = scores(model, x)
    assert np.ptp(together, axis=0).max() > 1e-2
    extended = np.concatenate([x, np.full((*x.shape[:2], 100), np.nan, np.float32)], -1)
    np.testing.assert_allclose(scores(model, extended), together, atol=1e-5)
    for series, expected in zip(x, together, strict=True):
        alone = series[None, :, ~np.isnan(series[0])]
        np.testing.assert_allclose(scores(model, alone)[0], expected, atol=1e-5)


@pytest.mark.parametrize("tokenizer", ["patch", "conv_stem"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_inside_the_model_does_not_change_scores(tiny_model, pickup, tokenizer, pooling):
    """A model of the same weights that takes longer series, so pads more, gives the same scores."""
    model = tiny_model(
        pickup, f"model.tokenizer={tokenizer}", f"model.pooling={pooling}", "model.position=sinusoidal"
    )
    torch.manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.3)
    length = model.arch.preprocessing.length
    longer = Classifier(
        replace(model.arch, preprocessing=replace(model.arch.preprocessing, length=length + 200))
    ).eval()
    longer.load_state_dict(model.state_dict())
    # The stem sees two patches past the end of a series.
    x = pickup.x_test[(~np.isnan(pickup.x_test[:, 0])).sum(1) < length - 16]
    assert len(x) > 40
    np.testing.assert_allclose(scores(longer, x), scores(model, x), atol=1e-5)


def test_padding_is_not_data(tiny_model, pickup):
    """Zeros at the end are data, NaN is not: the mask does something."""
    model = tiny_model(pickup)
    x = pickup.x_test[:4]
    assert np.abs(scores(model, np.nan_to_num(x)) - scores(model, x)).max() > 1e-3


@pytest.mark.parametrize("dataset", ["italy", "pickup"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_score_does_not_depend_on_the_rest_of_the_batch(tiny_model, request, dataset, name, batch):
    dataset = request.getfixturevalue(dataset)
    model = tiny_model(dataset, f"model={name}")
    x = np.resize(dataset.x_test, (64, *dataset.x_test.shape[1:]))
    every = scores(model, x)
    parts = np.concatenate([scores(model, x[i : i + batch]) for i in range(0, len(x), batch)])
    assert every.shape == (64, len(dataset.classes))
    np.testing.assert_allclose(parts, every, atol=1e-5)
    np.testing.assert_allclose(scores(model, x[::-1])[::-1], every, atol=1e-5)


def scaled(series, scale, mean=None, std=None, unit=None):
    """One (channels, time) series in float64."""
    s = series.astype(np.float64)
    if scale == "znorm":
        return (s - s.mean(1, keepdims=True)) / s.std(1, keepdims=True)
    if scale == "znorm_raw":
        raw = (np.arcsinh(s / np.array(unit)[:, None]) - np.array(mean)[:, None]) / np.array(std)[:, None]
        return np.concatenate([scaled(s, "znorm"), raw])
    if scale == "minmax":
        return (s - s.min(1, keepdims=True)) / np.ptp(s, axis=1, keepdims=True)
    if scale == "standard":
        return (s - np.array(mean)[:, None]) / np.array(std)[:, None]
    return s


@pytest.mark.parametrize("scale", ["none", "znorm", "minmax", "standard", "znorm_raw"])
@pytest.mark.parametrize("lengths", [(20, 20, 20), (20, 7, 13)], ids=["equal", "unequal"])
def test_scaling_is_numpys(scale, lengths):
    statistics = {"mean": (1.0, 2.0), "std": (0.5, 3.0)} if scale in ("standard", "znorm_raw") else {}
    if scale == "znorm_raw":
        statistics["unit"] = (0.1, 10.0)
    unequal = len(set(lengths)) > 1
    preprocess = Preprocess(Preprocessing(scale, 20, resample=False, masked=unequal, **statistics))
    x = ragged(lengths)
    out, mask = preprocess(as_tensor(x))
    if unequal:
        np.testing.assert_array_equal(mask.numpy(), np.arange(20) < np.array(lengths)[:, None])
    else:
        assert mask is None
    for row, series, n in zip(out.numpy(), x, lengths, strict=True):
        np.testing.assert_allclose(row[:, :n], scaled(series[:, :n], scale, **statistics), atol=1e-5)
        assert not row[:, n:].any()


@pytest.mark.parametrize("scale", ["znorm", "minmax"])
@pytest.mark.parametrize("masked", [False, True])
def test_constant_series_stay_finite(scale, masked):
    out, _ = Preprocess(Preprocessing(scale, 20, resample=False, masked=masked))(torch.full((2, 1, 20), 4.0))
    assert torch.equal(out, torch.zeros(2, 1, 20))


@pytest.mark.parametrize("length", [8, 20, 33])
@pytest.mark.parametrize("scale", ["none", "znorm"])
def test_resampling_is_numpys(length, scale):
    lengths = (20, 7, 13, 2)
    x = ragged(lengths, total=25)
    out, mask = Preprocess(Preprocessing(scale, length, resample=True, masked=False))(as_tensor(x))
    assert mask is None
    for row, series, n in zip(out.numpy(), x, lengths, strict=True):
        expected = [
            np.interp(np.linspace(0, n - 1, length), np.arange(n), c) for c in scaled(series[:, :n], scale)
        ]
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_resampled_model_takes_any_length(tiny_model, load_data):
    dataset = load_data("ItalyPowerDemand", length=48, scale="none")
    model = tiny_model(dataset)
    doubled = np.stack(
        [np.interp(np.linspace(0, 23, 47), np.arange(24), s) for s in dataset.x_test[:5, 0]]
    ).astype(np.float32)[:, None]
    assert scores(model, doubled).shape == (5, 2)
    same = np.concatenate([dataset.x_test[:5], np.full((5, 1, 9), np.nan, np.float32)], -1)
    np.testing.assert_allclose(scores(model, same), scores(model, dataset.x_test[:5]), atol=1e-5)


@pytest.mark.parametrize("length", [23, 25])
def test_wrong_length_is_refused(tiny_model, italy, length):
    with pytest.raises(ValueError, match=f"length {length}.*exactly 24"):
        tiny_model(italy)(torch.zeros(1, 1, length))


def test_longer_series_are_cropped():
    preprocess = Preprocess(Preprocessing("none", 10, resample=False, masked=True))
    x = ragged((25, 6))
    out, mask = preprocess(as_tensor(x))
    np.testing.assert_array_equal(out[0].numpy(), x[0, :, :10])
    np.testing.assert_array_equal(mask.sum(1).numpy(), [10, 6])


def test_model_sees_nothing_after_the_crop(tiny_model, load_data):
    dataset = load_data("PickupGestureWiimoteZ", scale="standard")
    model = tiny_model(dataset)
    x = np.random.default_rng(0).normal(size=(2, 1, dataset.preprocessing.length + 50)).astype(np.float32)
    np.testing.assert_allclose(scores(model, x), scores(model, x[..., :-50]), atol=1e-6)


@pytest.mark.parametrize("position", ["sinusoidal", "learned"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_position_table_has_two_dimensions(tiny_model, italy, position, pooling):
    table = tiny_model(italy, f"model.position={position}", f"model.pooling={pooling}").positions.table
    assert table.shape == (3 + (pooling == "cls"), 16)


@pytest.mark.parametrize("tokenizer", ["patch", "conv_stem"])
@pytest.mark.parametrize("patch", [1, 5, 7, 16, 24, 100])
def test_every_patch_size_makes_the_promised_tokens(tiny_model, italy, tokenizer, patch):
    model = tiny_model(italy, f"model.tokenizer={tokenizer}", f"model.patch={patch}")
    tokens, mask = model.tokenizer(torch.randn(2, 1, 24), torch.arange(24)[None] < torch.tensor([[24], [8]]))
    assert tokens.shape == (2, model.tokenizer.tokens, 16)
    # The last token that counts is the one in which the series ends.
    assert mask.sum(1).tolist() == [-(-24 // min(patch, 24)), -(-8 // min(patch, 24))]


@pytest.mark.parametrize(("pooling", "left"), [("mean", 12), ("cls", 12)])
def test_token_dropout_only_in_training(tiny_model, italy, pooling, left):
    model = tiny_model(italy, "model.token_dropout=0.5", "model.patch=1", f"model.pooling={pooling}")
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    x = as_tensor(italy.x_test[:4])
    model.train()(x)
    model.eval()(x)
    assert seen == [left, 24 + (pooling == "cls")]


def test_token_dropout_keeps_the_class_token_and_drops_padding_first(tiny_model, pickup):
    model = tiny_model(pickup, "model.token_dropout=0.5", "model.pooling=cls")
    tokens = torch.arange(40.0).expand(3, 40)[..., None]
    mask = torch.arange(40)[None] < torch.tensor([[40], [20], [5]])
    kept, kept_mask = model._drop_tokens(tokens, mask)
    assert kept.shape == (3, 20, 1)
    assert (kept[:, :, 0] == 0).sum(1).tolist() == [1, 1, 1]
    assert kept_mask.sum(1).tolist() == [20, 20, 5]
    assert all(len(set(row.flatten().tolist())) == 20 for row in kept)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_only_in_training(tiny_model, italy, dropout):
    model = tiny_model(italy, f"model.dropout={dropout}", "model.token_dropout=0")
    x = as_tensor(italy.x_test[:4])
    assert torch.equal(model(x), model(x))
    model.train()
    assert torch.equal(model(x), model(x)) == (dropout == 0)


@pytest.mark.parametrize("head_dim", [1, 2, narrow.WIDEST])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 1000, narrow.AT_ONCE])
def test_attention_of_narrow_heads_learns_the_same(monkeypatch, head_dim, masked, at_once):
    monkeypatch.setattr(narrow, "AT_ONCE", at_once)
    q, k, v, gradient = torch.randn(4, 3, 2, 17, head_dim, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(17) < torch.tensor([17, 5, 1])[:, None] if masked else None

    def learned(how):
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        mixed = how(*given)
        mixed.backward(gradient)
        return mixed, *(x.grad for x in given)

    ours = learned(lambda *given: narrow.attention(*given, mask))
    theirs = learned(
        lambda *given: F.scaled_dot_product_attention(
            *given, attn_mask=None if mask is None else mask[:, None, None]
        )
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "head_dim", "training", "used"),
    [(32, 8, True, 1), (32, 8, False, 0), (32, 16, True, 0), (31, 8, True, 0)],
)
def test_narrow_heads_are_another_way_only_in_training(monkeypatch, tokens, head_dim, training, used):
    calls = []
    monkeypatch.setattr(narrow, "attention", lambda q, k, v, mask: calls.append(q.shape) or v)
    Attention(16, 2, head_dim).train(training)(torch.zeros(1, tokens, 16), None)
    assert calls == [(1, 2, tokens, head_dim)] * used


def test_attention_of_narrow_heads_bears_rounded_steps():
    layer, x = Attention(16, 4, 4), torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    exact = torch.autograd.grad(layer(x, None).square().mean(), layer.q.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x, None).square().mean()
    rounded = torch.autograd.grad(loss, layer.q.weight)[0]
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(italy, name):
    torch.manual_seed(0)
    model = Classifier(
        transformer.architecture(compose(*TINY, f"model={name}", "model.dropout=0").model, italy)
    ).train()
    torch.nn.functional.cross_entropy(model(as_tensor(italy.x_train)), as_tensor(italy.y_train)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_description_calls_nothing_but_a_module_class(italy, tiny_model, monkeypatch):
    monkeypatch.setenv(OWN_CODE, "os")
    arch = replace(tiny_model(italy).arch, tokenizer="os:getcwd")
    with pytest.raises(ValueError, match=r"os:getcwd is not a class of torch\.nn\.Module"):
        Classifier(arch)


class Twice(nn.Module):
    """A layer whose output is doubled: of another class than PyTorch's."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = copy.deepcopy(source)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.source(x)


class Halves(nn.Module):
    """A linear layer whose inputs come in two halves: something that a step might put in its place."""

    def __init__(self, source: nn.Linear, scale: int) -> None:
        super().__init__()
        half = source.in_features // 2
        self.a, self.b = (
            nn.Linear(half, source.out_features),
            nn.Linear(half, source.out_features, bias=False),
        )
        self.scale = scale

    @classmethod
    def like(cls, source: nn.Linear, scale: int) -> "Halves":
        return cls(source, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return self.scale * (self.a(left) + self.b(right))


@pytest.mark.parametrize("name", ["t1", "t3"])
@pytest.mark.parametrize("layer", ["encoder.blocks.1.attention.k", "encoder.blocks.1.fc2", "head.0"])
def test_what_replaces_a_layer_is_saved_loaded_and_deployed_with_the_model(
    tiny_model, italy, tmp_path, monkeypatch, name, layer
):
    monkeypatch.setenv(OWN_CODE, __name__)  # a step's own classes lie in the package, which is trusted
    model = tiny_model(italy, f"model={name}")
    model.replace(layer, Halves.like(model.get_submodule(layer), 3), scale=3)
    x = as_tensor(italy.x_test[:9])
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert isinstance(again.get_submodule(layer), Halves)
    assert torch.equal(again(x), model(x))
    for how in ({}, {"flat": True}, {"fused": False, "products": False}):
        assert (again.deployable(**how)(x) - model(x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "layer"),
    [("t1", "tokenizer.embed"), ("t3", "tokenizer.conv1"), ("t3", "tokenizer.conv2"), ("t3", "head.0")],
)
def test_rewrites_leave_alone_what_they_do_not_know(tiny_model, italy, name, layer):
    model = tiny_model(italy, f"model={name}")
    model.replace(layer, Twice(model.get_submodule(layer)))
    x = as_tensor(italy.x_test[:9])
    for how in ({}, {"flat": True}, {"products": False}):
        assert (model.deployable(**how)(x) - model(x)).abs().max() < 1e-5


@pytest.mark.parametrize("own", ["", "os"])
def test_a_saved_model_can_name_modules_only(tiny_model, italy, tmp_path, monkeypatch, own):
    monkeypatch.setenv(OWN_CODE, own)
    model = tiny_model(italy)
    models.save(model, tmp_path)
    arch = json.loads((tmp_path / "arch.json").read_text())
    arch["replaced"] = {"head.0": {"kind": "os:system", "command": "true"}}
    (tmp_path / "arch.json").write_text(json.dumps(arch))
    with pytest.raises(ValueError, match="os:system is not a class of" if own else "somebody's own code"):
        models.load(tmp_path)


def test_layers_that_share_their_weights_are_saved_and_share_them_again(italy, tiny_model, tmp_path):
    model = tiny_model(italy, "model=t3")
    model.encoder.blocks[1].norm1 = model.encoder.blocks[0].norm1
    with torch.no_grad():
        model.encoder.blocks[0].norm1.weight.mul_(3)
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert torch.equal(again.encoder.blocks[1].norm1.weight, model.encoder.blocks[0].norm1.weight)
    np.testing.assert_array_equal(again.scores(italy.x_test[:4]), model.scores(italy.x_test[:4]))


SQUARE, SPARSE = torch.eye(4), torch.eye(5).to_sparse()
WEIGHTS, STATE = dict(nn.LSTM(4, 2).named_parameters()), torch.zeros(1, 5, 2)


@pytest.mark.parametrize(
    ("product", "macs"),
    [
        (lambda s: s[0] @ s[0, 0], 5 * 4),
        (lambda s: s @ s[0, 0], 3 * 5 * 4),
        (lambda s: torch.addmv(s[0, :, 0], s[0], s[0, 0]), 5 * 4),
        (lambda s: s[0, 0] @ s[0, 1], 4),
        (lambda s: torch.addbmm(s[0, :, :1] + s[0, :, 0], s, s.mT), 3 * 5 * 4 * 5),
        (lambda s: F.bilinear(s[0], s[1], s[:, :4]), None),
        (lambda s: torch.vdot(s[0, 0], s[0, 1]), 4),
        (lambda s: torch._addmm_activation(s[0, 0], s[0], s[0, :4]), 5 * 4 * 4),
        (lambda s: torch.cdist(s, s), None),
        (lambda s: torch.cdist(s, s, p=1), None),
        (
            lambda s: torch.lstm(s, (STATE, STATE), [*WEIGHTS.values()], True, 1, 0.0, False, False, False),
            None,
        ),
        (lambda s: F.embedding_bag(s[0, :2].long(), s[0], per_sample_weights=s[0, :2], mode="sum"), None),
        (lambda s: torch.sparse.mm(SPARSE, s[0]), None),
        (lambda s: torch.linalg.solve(SQUARE, s[0, :4]), None),
        (lambda s: s @ torch.linalg.inv(SQUARE), None),
        (lambda s: torch.linalg.pinv(s), None),
        (lambda s: torch.linalg.qr(s)[1], None),
        (lambda s: torch.linalg.det(SQUARE), None),
        (lambda s: s * 2, 0),
    ],
)
def test_products_with_vectors_count_and_what_is_not_known_is_not_left_out_in_silence(product, macs):
    class Asked(nn.Module):
        def forward(self, s):
            return product(s)

    assert macs_of(Asked(), torch.zeros(3, 5, 4)) == (macs or None)
    both = nn.Sequential(nn.Linear(4, 4), Asked())
    expected = None if macs is None else macs + 3 * 5 * 4 * 4
    assert macs_of(both, torch.zeros(3, 5, 4)) == expected


def test_products_with_a_sparse_matrix_are_not_counted_as_if_it_were_full():
    class Asked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mix", torch.eye(5).to_sparse_csr())

        def forward(self, s):
            return self.mix @ s[0]

    assert macs_of(Asked(), torch.zeros(3, 5, 4)) is None
