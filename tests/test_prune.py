"""Pruning: the smaller model is the dense one with units masked, and the right units go."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_pruning as tp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import TINY, as_tensor, compose, compressed
from tsexp import compress, models, training
from tsexp.cache import Cache
from tsexp.compress import prune as pruning
from tsexp.compress.prune import Scores
from tsexp.config import ConfigError
from tsexp.system.files import sha256

PRUNE = compose(*TINY).prune
PROPERTY = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONFIGS = st.builds(
    lambda **changes: replace(PRUNE, **changes),
    method=st.sampled_from(["l1", "l2", "random", "taylor"]),
    scope=st.sampled_from(["local", "global", "depth"]),
    ratio=st.floats(0, 1, exclude_max=True),
    round_to=st.sampled_from([1, 4, 8]),
    calibration_series=st.integers(1, 40),
)


@pytest.fixture(scope="module", params=["t1", "t3", "t3 masked"])
def problem(request, tiny_model, italy, pickup):
    """A small model, all of whose parameters count, and its dataset."""
    name, *masked = request.param.split()
    dataset = pickup if masked else italy
    model = tiny_model(dataset, f"model={name}")
    torch.manual_seed(1)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.2)
    return model, dataset


def select(model, dataset, config, seed=0):
    found = pruning.score(model, config, dataset, seed)
    return found, pruning.select(found, config, model.arch.head_dim)


def removed(kept, model):
    """Per block: the columns of attention.o, and the units, that went; all of a block that is skipped."""
    for k, block in zip(kept, model.encoder.blocks, strict=True):
        heads, dim = block.attention.heads, block.attention.head_dim
        gone = [h for h in range(heads) if h not in k.heads]
        yield (
            block,
            [h * dim + i for h in gone for i in range(dim)],
            [u for u in range(block.fc1.out_features) if u not in k.ffn],
        )


@torch.no_grad()
def masked(model, kept):
    """The dense model without what these heads and units contribute, and without blocks that have neither."""
    model = copy.deepcopy(model)
    model.encoder.blocks = torch.nn.ModuleList(
        b for b, k in zip(model.encoder.blocks, kept, strict=True) if k.ffn
    )
    kept = [k for k in kept if k.ffn]
    for block, columns, units in removed(kept, model):
        block.attention.o.weight[:, columns] = 0
        block.fc2.weight[:, units] = 0
    return model


@torch.no_grad()
def scores(model, dataset):
    return model(as_tensor(dataset.x_test[:16]))


@PROPERTY
@given(config=CONFIGS, seed=st.integers(0, 3))
def test_shrunk_model_is_the_masked_one(problem, config, seed):
    model, dataset = problem
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, kept = select(model, dataset, config, seed)
    slim = pruning.shrink(model, kept)
    assert (scores(slim, dataset) - scores(masked(model, kept), dataset)).abs().max() < 1e-5
    assert [(b.heads, b.ffn) for b in slim.arch.blocks] == [(len(k.heads), len(k.ffn)) for k in kept if k.ffn]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not {v.data_ptr() for v in slim.parameters()} & {v.data_ptr() for v in model.parameters()}


def test_masking_matters(problem):
    """Else the comparison above would hold for anything."""
    model, dataset = problem
    _, kept = select(model, dataset, replace(PRUNE, ratio=0.5))
    assert (scores(model, dataset) - scores(masked(model, kept), dataset)).abs().max() > 1e-2


@PROPERTY
@given(config=CONFIGS.filter(lambda c: c.scope != "depth"), other=st.floats(0, 1, exclude_max=True))
def test_higher_ratio_keeps_a_subset(problem, config, other):
    model, dataset = problem
    low, high = (select(model, dataset, replace(config, ratio=r))[1] for r in sorted([config.ratio, other]))
    for less, more in zip(high, low, strict=True):
        assert set(less.heads) <= set(more.heads)
        assert set(less.ffn) <= set(more.ffn)
    assert models.count_parameters(pruning.shrink(model, high)) <= models.count_parameters(
        pruning.shrink(model, low)
    )


def values():
    # Few distinct values, so that there are ties.
    return st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 7.0]), min_size=1, max_size=40).map(torch.tensor)


SCORES = st.lists(st.builds(Scores, heads=values(), ffn=values()), min_size=1, max_size=4)


@PROPERTY
@given(scores=SCORES, config=CONFIGS, head_dim=st.sampled_from([1, 2, 4, 8, 16]))
def test_no_block_is_emptied_and_indices_ascend(scores, config, head_dim):
    for s, k in zip(scores, pruning.select(scores, config, head_dim), strict=True):
        if config.scope == "depth" and not k.heads:
            assert not k.ffn
            continue
        for indices, of in [(k.heads, len(s.heads)), (k.ffn, len(s.ffn))]:
            assert len(indices) >= 1
            assert list(indices) == sorted(set(indices))
            assert 0 <= indices[0] <= indices[-1] < of


@PROPERTY
@given(scores=SCORES, ratio=st.floats(0, 1, exclude_max=True))
def test_local_removes_the_same_share_of_every_block(scores, ratio):
    for s, k in zip(
        scores, pruning.select(scores, replace(PRUNE, ratio=ratio, scope="local"), 4), strict=True
    ):
        for value, indices in [(s.heads, k.heads), (s.ffn, k.ffn)]:
            assert len(indices) == 1 or abs(1 - len(indices) / len(value) - ratio) <= 0.5 / len(value) + 1e-9
            gone = [float(v) for i, v in enumerate(value) if i not in indices]
            assert max(gone, default=-math.inf) <= min(float(value[i]) for i in indices)


@PROPERTY
@given(scores=SCORES, ratio=st.floats(0, 1, exclude_max=True))
def test_global_removes_the_lowest_of_all_blocks(scores, ratio):
    kept = pruning.select(scores, replace(PRUNE, ratio=ratio, scope="global"), 4)
    for values, indices in [
        ([s.heads for s in scores], [k.heads for k in kept]),
        ([s.ffn for s in scores], [k.ffn for k in kept]),
    ]:
        total = sum(map(len, values))
        gone = [
            float(v)
            for value, stay in zip(values, indices, strict=True)
            for i, v in enumerate(value)
            if i not in stay
        ]
        # The best of a block may stay although it is low; what else stays is not lower than what went.
        stay = [
            v for value, i in zip(values, indices, strict=True) for v in sorted(value[list(i)].tolist())[:-1]
        ]
        assert max(gone, default=-math.inf) <= min(stay, default=math.inf)
        assert len(gone) == min(round(ratio * total), total - len(values))


@PROPERTY
@given(scores=SCORES, ratio=st.floats(0, 1, exclude_max=True))
def test_depth_removes_whole_blocks_and_the_rest_from_the_others(scores, ratio):
    kept = pruning.select(scores, replace(PRUNE, ratio=ratio, scope="depth"), 4)
    stay = [i for i, k in enumerate(kept) if k.ffn]
    assert len(stay) >= 1
    assert -1e-9 <= ratio * len(scores) - (len(scores) - len(stay)) < 1 + 1e-9
    rest = 1 - (1 - ratio) * len(scores) / len(stay)
    for i in stay:
        for value, indices in [(scores[i].heads, kept[i].heads), (scores[i].ffn, kept[i].ffn)]:
            assert len(indices) == 1 or abs(1 - len(indices) / len(value) - rest) <= 0.5 / len(value) + 1e-9


@pytest.mark.parametrize(("ratio", "blocks"), [(0.05, 10), (0.1, 9), (0.3, 7), (0.7, 3), (0.99, 1)])
def test_depth_removes_as_many_blocks_as_fit(ratio, blocks):
    scores = [Scores(torch.arange(4.0) + i, torch.arange(8.0) + i) for i in range(10)]
    kept = pruning.select(scores, replace(PRUNE, ratio=ratio, scope="depth"), 4)
    assert [bool(k.ffn) for k in kept] == [False] * (10 - blocks) + [True] * blocks


def test_depth_ranks_blocks_by_both_kinds_on_the_same_footing():
    """FFN scores are a thousand times larger here, heads count nevertheless."""
    heads, ffn = ([[1.0], [5.0], [4.0]], [[2000.0], [2100.0], [1000.0]])
    scores = [Scores(torch.tensor(h), torch.tensor(f)) for h, f in zip(heads, ffn, strict=True)]
    for ratio, stay in ((0.34, [1, 2]), (0.67, [1])):
        kept = pruning.select(scores, replace(PRUNE, ratio=ratio, scope="depth"), 4)
        assert [i for i, k in enumerate(kept) if k.ffn] == stay


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_depth_refuses_scores_that_cannot_be_added_up(wrong):
    scores = [
        Scores(torch.tensor([1.0]), torch.tensor([1.0, wrong])),
        Scores(torch.tensor([1.0]), torch.tensor([2.0, 3.0])),
    ]
    with pytest.raises(ConfigError, match=r"depth adds scores up.* use local or global"):
        pruning.select(scores, replace(PRUNE, ratio=0.5, scope="depth"), 4)


def test_global_may_take_more_from_one_block():
    scores = [
        Scores(torch.tensor([1.0, 2.0]), torch.arange(8.0)),
        Scores(torch.tensor([3.0, 4.0]), torch.arange(8.0) + 100),
    ]
    local, everywhere = (
        pruning.select(scores, replace(PRUNE, ratio=0.25, scope=scope), 4) for scope in ("local", "global")
    )
    assert [k.ffn for k in local] == [tuple(range(2, 8))] * 2
    assert [k.ffn for k in everywhere] == [tuple(range(4, 8)), tuple(range(8))]
    assert [k.heads for k in everywhere] == [(1,), (0, 1)]


@PROPERTY
@given(scores=SCORES, config=CONFIGS, head_dim=st.sampled_from([1, 2, 4, 8, 16]))
def test_round_to_keeps_multiples_by_keeping_more(scores, config, head_dim):
    plain = pruning.select(scores, replace(config, round_to=1), head_dim)
    for s, k, p in zip(scores, pruning.select(scores, config, head_dim), plain, strict=True):
        assert bool(k.ffn) == bool(p.ffn)
        assert len(k.ffn) % config.round_to == 0 or len(k.ffn) == len(s.ffn)
        assert len(k.heads) * head_dim % config.round_to == 0 or len(k.heads) == len(s.heads)
        assert set(p.ffn) <= set(k.ffn)
        assert set(p.heads) <= set(k.heads)
        assert len(k.ffn) - len(p.ffn) < config.round_to
        assert (len(k.heads) - len(p.heads)) * head_dim < max(config.round_to, head_dim)


def test_round_to_keeps_multiples_for_a_head_width_that_does_not_divide():
    scores = [Scores(torch.arange(4.0), torch.arange(8.0))]
    heads = pruning.select(scores, replace(PRUNE, ratio=0.75, round_to=8), 12)[0].heads
    assert len(heads) * 12 % 8 == 0


@pytest.mark.parametrize(("method", "power"), [("l1", 1), ("l2", 2)])
def test_magnitude_scores_are_means_over_the_weights_of_a_unit(problem, method, power):
    model, dataset = problem
    for found, block in zip(
        pruning.score(model, replace(PRUNE, method=method), dataset, 0), model.encoder.blocks, strict=True
    ):
        a = block.attention
        for h in range(a.heads):
            rows = slice(h * a.head_dim, (h + 1) * a.head_dim)
            weights = [a.q.weight[rows], a.k.weight[rows], a.v.weight[rows], a.o.weight[:, rows]]
            expected = torch.cat([w.flatten() for w in weights]).abs().pow(power).mean()
            torch.testing.assert_close(found.heads[h], expected.detach())
        for u in range(block.fc1.out_features):
            expected = torch.cat([block.fc1.weight[u], block.fc2.weight[:, u]]).abs().pow(power).mean()
            torch.testing.assert_close(found.ffn[u], expected.detach())


def test_taylor_is_the_slope_of_the_loss_by_a_gate(problem):
    model, dataset = problem
    config = replace(PRUNE, method="taylor", calibration_series=16)
    found = pruning.score(model, config, dataset, 0)
    order = dataset.fit[torch.randperm(len(dataset.fit), generator=torch.Generator().manual_seed(0)).numpy()][
        :16
    ]
    x, y = as_tensor(dataset.x_train[order]).double(), as_tensor(dataset.y_train[order])

    def loss(block, columns, linear, gate):
        gated = copy.deepcopy(model).double()
        with torch.no_grad():
            layers = gated.encoder.blocks[block]
            (layers.fc2 if linear == "fc2" else layers.attention.o).weight[:, columns] *= gate
            return float(torch.nn.functional.cross_entropy(gated(x), y))

    for block in range(2):
        for unit in range(3):
            for linear, columns, value in [
                ("fc2", [unit], found[block].ffn[unit]),
                ("o", list(range(unit * 4, unit * 4 + 4)), found[block].heads[unit]),
            ]:
                slope = (
                    loss(block, columns, linear, 1 + 1e-5) - loss(block, columns, linear, 1 - 1e-5)
                ) / 2e-5
                assert float(value) == pytest.approx(slope**2, rel=1e-3, abs=1e-8)


def test_random_scores_follow_the_seed(problem):
    model, dataset = problem
    a, b, c = (pruning.score(model, replace(PRUNE, method="random"), dataset, seed) for seed in (0, 0, 1))
    assert torch.equal(a[0].ffn, b[0].ffn)
    assert not torch.equal(a[0].ffn, c[0].ffn)
    assert not torch.equal(a[0].ffn, a[1].ffn)


def test_scoring_leaves_model_and_random_state_alone(problem):
    model, dataset = problem
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    for method in pruning.SCORES:
        pruning.score(model, replace(PRUNE, method=method), dataset, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_torch_pruning_makes_the_same_model(problem, ratio):
    model, dataset = problem
    _, kept = select(model, dataset, replace(PRUNE, ratio=ratio, method="random", scope="global"))
    other = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(other, as_tensor(dataset.x_test[:2]))
    for block, columns, units in removed(kept, other):
        if units:
            graph.get_pruning_group(block.fc1, tp.prune_linear_out_channels, idxs=units).prune()
        if columns:
            attention = block.attention
            for linear in (attention.q, attention.k, attention.v):
                tp.prune_linear_out_channels(linear, columns)
            tp.prune_linear_in_channels(attention.o, columns)
            attention.heads -= len(columns) // attention.head_dim
    slim = pruning.shrink(model, kept)
    assert {k: v.shape for k, v in slim.state_dict().items()} == {
        k: v.shape for k, v in other.state_dict().items()
    }
    torch.testing.assert_close(scores(slim, dataset), scores(other, dataset), atol=1e-6, rtol=0)
    assert models.count_parameters(slim) < models.count_parameters(model)


@pytest.fixture(scope="module")
def home(tmp_path_factory, italy):
    """A small trained model: its configuration and cache."""
    cache = Cache(tmp_path_factory.mktemp("cache"))
    config = compose(*TINY, "data=italy_power_demand", "prune.ratio=0.5")
    return config, cache, training.train(config.model, config.train, 0, italy, cache)


def prune(home, italy, seed=0, **changes):
    config, cache, dense = home
    return compressed(dense, replace(config, prune=replace(config.prune, **changes), seed=seed), italy, cache)


def kept_by(home, italy, **changes):
    """What the step wrote down."""
    config, cache, dense = home
    made = compress.compress(dense, replace(config, prune=replace(config.prune, **changes)), italy, cache)
    (note,) = made["prune"].notes()
    return [pruning.Kept(tuple(k["heads"]), tuple(k["ffn"])) for k in json.loads(note.read_text())]


@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
def test_pruned_model_is_smaller_fine_tuned_and_cached(home, italy, distill, monkeypatch):
    dense = home[2]
    before = {p: sha256(p) for p in dense.entry.folder.iterdir()}
    slim = prune(home, italy, distill=distill)
    kept = kept_by(home, italy, distill=distill)
    assert kept == select(dense.load(), italy, home[0].prune)[1]
    assert (
        [(b.heads, b.ffn) for b in slim.load().arch.blocks]
        == [(len(k.heads), len(k.ffn)) for k in kept]
        == [(2, 12)] * 2
    )
    sizes = [(f.entry.folder / "weights.safetensors").stat().st_size for f in (dense, slim)]
    assert sizes[1] < sizes[0]
    assert len(slim.history()) == home[0].prune.finetune_epochs == 1
    untuned = pruning.shrink(dense.load(), kept)
    assert not torch.equal(scores(untuned, italy), scores(slim.load(), italy))
    assert {p: sha256(p) for p in dense.entry.folder.iterdir()} == before
    monkeypatch.setattr(training, "fit", None)
    again = prune(home, italy, distill=distill)
    assert (slim.entry.reused, again.entry.reused) == (False, True)
    assert again.signature == slim.signature


def test_without_fine_tuning_the_model_is_the_shrunk_one(home, italy):
    slim = prune(home, italy, finetune_epochs=0)
    assert slim.history() == []
    assert torch.equal(
        scores(slim.load(), italy),
        scores(pruning.shrink(home[2].load(), kept_by(home, italy, finetune_epochs=0)), italy),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"ratio": 0.25},
        {"scope": "global"},
        {"method": "random"},
        {"finetune_lr": 0.1},
        {"distill": 0.25},
        {"seed": 1},
    ],
)
def test_other_pruning_is_another_entry(home, italy, change):
    base, other = prune(home, italy, ratio=0.75), prune(home, italy, **{"ratio": 0.75} | change)
    assert base.signature != other.signature
    assert base.load().arch != other.load().arch or not torch.equal(
        scores(base.load(), italy), scores(other.load(), italy)
    )


def test_fine_tuning_follows_the_recipe_but_for_epochs_and_rate(home, italy):
    config, cache, dense = home
    recipe = replace(config.train, schedule="none", warmup=0.0, epochs=9)
    changed = replace(config.prune, finetune_epochs=3, finetune_lr=0.007)
    slim = compressed(dense, replace(config, prune=changed, train=recipe), italy, cache)
    assert [line["lr"] for line in slim.history()] == [0.007] * 3


def test_test_split_is_not_touched(home, italy):
    config, cache, dense = home
    blind = replace(italy, x_test=np.full_like(italy.x_test, np.nan))
    slim = prune(home, italy, method="taylor")
    other = Cache(cache.root / "blind")
    taylor = replace(config, prune=replace(config.prune, method="taylor"))
    blinded = compressed(dense, taylor, blind, other)
    assert not blinded.entry.reused
    assert torch.equal(scores(slim.load(), italy), scores(blinded.load(), italy))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda right: None, "NoneType"),
        (
            lambda right: right[:1],
            r"Scores of shapes \(4,\) and \(24,\); it must be a list of Scores, one per",
        ),
        (lambda right: [s.heads for s in right], "list of Tensor"),
        (lambda right: [Scores(s.heads.numpy(), s.ffn) for s in right], "Scores of Tensor, ndarray"),
        (lambda right: [Scores(s.ffn, s.heads) for s in right], r"Scores of shapes \(24,\) and \(4,\)"),
        (lambda right: [Scores(s.heads * math.nan, s.ffn) for s in right], "Scores that are not finite"),
    ],
)
def test_a_method_of_ones_own_that_returns_something_else_is_named(
    tiny_model, italy, monkeypatch, returned, said
):
    model = tiny_model(italy)
    right = pruning.score(model, PRUNE, italy, 0)
    monkeypatch.setitem(pruning.SCORES, "mine:best", lambda *_: returned(right))
    monkeypatch.setattr(pruning, "look_up", lambda name, table: table[name])
    with pytest.raises(ConfigError, match=rf"prune.method=mine:best returned {said}") as error:
        pruning.score(model, replace(PRUNE, method="mine:best"), italy, 0)
    assert "here (4,) and (24,), (4,) and (24,)" in str(error.value)
