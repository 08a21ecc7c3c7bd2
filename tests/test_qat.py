"""Quantization-aware training rounds as the artifact does, and trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import TINY, compose, compressed
from tsexp import compress, runtimes, training
from tsexp.cache import Cache
from tsexp.compress import qat
from tsexp.config import RuntimeConfig, Unsupported, identity
from tsexp.system import cpu

RECIPE = "train=default"  # T1's own does not average


@pytest.fixture(scope="module", params=["t1", "t3"])
def home(tmp_path_factory, italy, request):
    """A trained model: post-norm with a class token, or pre-norm with the mean of all tokens."""
    cfg = compose(
        *TINY,
        f"model={request.param}",
        RECIPE,
        "train.epochs=10",
        "train.max_steps=0",
        "quant.calibration_series=16",
        "quant.mode=qat",
    )
    cache = Cache(tmp_path_factory.mktemp("cache"))
    return cfg, cache, training.train(cfg.model, cfg.train, 0, italy, cache), italy


def tune(home, **changes):
    cfg, cache, fitted, italy = home
    fake = changes.pop("fake", True)
    cfg = replace(cfg, quant=replace(cfg.quant, **changes))
    return (compressed if fake else compress.control)(fitted, cfg, italy, cache)


def faked(home, fitted):
    """A model that rounds, with ranges from the calibration series."""
    cfg, _, _, italy = home
    model = fitted.load()
    qat.fake_quantize(model, torch.from_numpy(italy.x_train[qat.calibration(cfg.quant, italy)]))
    return model


def noise_db(exact, other):
    return 10 * np.log10((exact**2).sum() / ((exact - other) ** 2).sum())


@torch.no_grad()
def test_what_is_faked_is_what_is_deployed(home):
    cfg, cache, fitted, italy = home
    x = italy.x_test[:200]
    artifact = runtimes.deploy(
        fitted, replace(cfg.quant, mode="static"), RuntimeConfig("onnxruntime", "cpu"), italy, cache
    )
    deployed = runtimes.load(artifact.folder)(x)
    plain, rounded = (m(torch.from_numpy(x)).numpy() for m in (fitted.load(), faked(home, fitted)))
    assert artifact.manifest["calibration"] == qat.calibration(cfg.quant, italy).tolist()
    assert noise_db(deployed, rounded) > noise_db(deployed, plain) + 12, "a quarter of the error at most"


def test_all_linear_layers_but_the_tokenizers_round(home, tiny_model, italy):
    model = faked(home, home[2])
    rounding = {n for n, m in model.named_modules() if isinstance(m, qat.Rounded)}
    assert rounding == {n for n, m in home[2].load().named_modules() if isinstance(m, nn.Linear)}
    assert len(rounding) == 2 * 6 + len(model.head)
    assert model.state_dict().keys() == home[2].load().state_dict().keys()


def distance(a, b):
    a, b = a.load().state_dict(), b.load().state_dict()
    return float(
        sum((a[k] - b[k]).square().sum() for k in a).sqrt() / sum(a[k].square().sum() for k in a).sqrt()
    )


def test_weights_move_as_far_as_in_the_same_tuning_without_rounding(home):
    before, rounded, plain = home[2], tune(home), tune(home, fake=False)
    assert distance(before, plain) > 1e-4
    assert 0.5 < distance(before, rounded) / distance(before, plain) < 2
    assert distance(rounded, plain) > 0
    assert rounded.load().arch == before.load().arch
    assert all(type(m) is not qat.Rounded for m in rounded.load().modules())


def test_tuning_with_and_without_rounding_are_kept_apart(home):
    first, plain = tune(home), tune(home, fake=False)
    assert tune(home).signature == first.signature != plain.signature == tune(home, fake=False).signature
    # Ranges matter where there is rounding.
    assert tune(home, calibration_series=3).signature != first.signature
    assert tune(home, calibration_series=3, fake=False).signature == plain.signature


def test_results_of_the_curve_of_before_are_not_taken_for_those_of_today():
    """Of what is tuned so, and of nothing else: the rest is not measured again."""
    tuned, static = (identity(compose(*TINY, f"quant.mode={mode}")) for mode in ("qat", "static"))
    assert "curve" in tuned["quant"]
    assert "curve" not in static["quant"] | static["train"] | tuned["train"]
    late = identity(compose(*TINY, "train.schedule=cosine", "train.warmup=0"))
    assert "curve" in late["train"]


@pytest.mark.parametrize("largest", [64, 127])
def test_tuning_for_a_cpu_on_which_int8_overflows_is_another(home, largest, monkeypatch):
    cfg = home[0]
    monkeypatch.setattr(cpu, "int8_largest", lambda: largest)
    fake, control = (qat.asked(cfg, True, is_control) for is_control in (False, True))
    assert fake.get("largest") == (64 if largest == 64 else None)
    assert "largest" not in control
    weight = torch.linspace(-1, 1, 1001)[None]
    layer = nn.Linear(1001, 1, bias=False)
    layer.weight.data = weight
    rounded = qat.Rounded(layer, 0, 255)(torch.eye(1001))  # its weights
    assert len(rounded.unique()) == 2 * largest + 1


def test_in_other_modes_nothing_is_tuned(home):
    assert tune(home, mode="static") is home[2]


def test_the_rounded_model_learns(home):
    """On what it is tuned on; whether more than without rounding is not said, for 8 bits cost too little."""
    _, _, fitted, italy = home
    x, y = torch.from_numpy(italy.x_train[italy.fit]), torch.from_numpy(italy.y_train[italy.fit])
    tuned = tune(home, qat_epochs=10, qat_lr=3e-3)
    with torch.no_grad():
        before, after = (float(nn.functional.cross_entropy(faked(home, f)(x), y)) for f in (fitted, tuned))
    assert after < before


def test_a_layer_with_two_places_rounds_in_both(tiny_model, italy):
    model = tiny_model(italy, "model=t3", "model.layers=2")
    first, second = model.encoder.blocks
    second.fc1 = first.fc1
    qat.fake_quantize(model, torch.from_numpy(italy.x_train[:4]))
    assert isinstance(first.fc1, qat.Rounded)
    assert second.fc1 is first.fc1


def test_what_no_module_computes_is_told(tiny_model, italy):
    model = tiny_model(italy, "model=t3")
    model.encoder.blocks[0].unused = nn.Linear(2, 2)
    with pytest.raises(Unsupported, match=r"nothing calls encoder.blocks.0.unused .*quant.mode=static"):
        qat.fake_quantize(model, torch.from_numpy(italy.x_train[:4]))
