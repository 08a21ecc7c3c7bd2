"""How often the intervals over seeds hold the truth, simulated.

They say 95 %, and 93 to 97 % is asked of them.

A series is classified right if a latent score is above 0: the sum of what the model is good for, of the luck
of its training (a draw per seed), of how hard the series is (a draw per series, the same for all trainings)
and of noise. Of a pair of models, the second shares the luck of its seed, the series and most of the noise
with the first (it was made from it), and has some luck of its own.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr, ndtri, stdtrit

from tsexp.report import claims
from tsexp.report import statistics as st

ACCURACY, DIFFICULTY = 0.7, 0.6
"""The dense model's accuracy; the share of the latent variance that is how hard a series is."""


def draw(rng, studies, seeds, series, sd_pt, drop_pt=1.0, same_noise=0.7, own=0.5):
    """Which answers of two models are right, (studies, seeds, series), and how accurate both truly are."""
    better, worse = ndtri(ACCURACY), ndtri(ACCURACY - drop_pt / 100)
    luck = sd_pt / 100 * np.sqrt(2 * np.pi) * np.exp(better**2 / 2)  # on the latent scale
    own_luck = own * luck

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    shared = np.float32(luck) * normal(studies, seeds, 1) + np.float32(DIFFICULTY**0.5) * normal(
        studies, 1, series
    )
    noise = np.float32((1 - DIFFICULTY) ** 0.5) * normal(studies, seeds, series)
    other = np.float32(((1 - DIFFICULTY) * (1 - same_noise**2)) ** 0.5) * normal(studies, seeds, series)
    first = better + shared + noise > 0
    second = (
        worse
        + shared
        + np.float32(own_luck) * normal(studies, seeds, 1)
        + np.float32(same_noise) * noise
        + other
        > 0
    )
    return first, second, ndtr(better / np.hypot(1, luck)), ndtr(worse / np.sqrt(1 + luck**2 + own_luck**2))


def held(intervals, truth):
    return float(np.mean([low <= truth <= high for _, low, high in intervals]))


def coverage(studies, seeds, series, sd_pt, **pair):
    """How often the interval of the accuracy holds the truth, and that of the drop."""
    first, second, better, worse = draw(
        np.random.default_rng([seeds, series, int(10 * sd_pt)]), studies, seeds, series, sd_pt, **pair
    )
    lost = first.astype(np.float32) - second
    return held(map(st._accuracy_pct, first.astype(np.float32)), 100 * better), held(
        map(st.over_seeds_and_series, lost), better - worse
    )


def check(*setting):
    for what, share in zip(("accuracy", "drop"), coverage(*setting), strict=True):
        assert 0.93 <= share <= 0.97, (what, setting)


@pytest.mark.parametrize("sd_pt", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("seeds", [5, 10])
def test_accuracy_and_drop_cover_another_training_on_other_series(seeds, sd_pt):
    check(1500, seeds, 100, sd_pt)
    check(600, seeds, 375, sd_pt)


def test_three_seeds_err_on_the_safe_side():
    """The drop's interval is as good as with more.

    For the accuracy, the weighted quantile is a little too wide: 97.1 % on average.
    """
    of_accuracy, of_drop = zip(
        *(coverage(2000, 3, series, sd_pt) for series in (100, 375) for sd_pt in (0.5, 1.5, 3.0)), strict=True
    )
    assert min(*of_accuracy, *of_drop) >= 0.93
    assert max(of_drop) <= 0.97
    assert np.mean(of_accuracy) <= 0.975


@pytest.mark.parametrize("sd_pt", [0.5, 3.0])
def test_with_thousands_of_series_the_seeds_decide(sd_pt):
    check(400, 3, 7711, sd_pt)


@pytest.mark.slow
@pytest.mark.parametrize("sd_pt", [0.5, 3.0])
@pytest.mark.parametrize("seeds", [5, 10])
def test_with_thousands_of_series_and_more_seeds(seeds, sd_pt):
    check(1000, seeds, 7711, sd_pt)


@pytest.mark.parametrize("series", [100, 375])
def test_two_seeds_are_held_to_the_same(series):
    """Their range, which pictures showed until now, holds the mean half of the time.

    The t interval of the seeds alone misses the test sample.
    """
    assert all(0.93 <= share <= 0.98 for share in coverage(1500, 2, series, 1.5))


@pytest.mark.parametrize("series", [100, 375])
def test_hardly_any_flip_is_no_reason_to_be_sure(series):
    """An int8 artifact answers as its dense model does, but for one series in a hundred.

    Then the interval holds the truth at least as often.
    """
    _, of_drop = coverage(1000, 3, series, 1.5, drop_pt=0.1, same_noise=0.999, own=0.03)
    assert of_drop >= 0.94


@pytest.mark.parametrize("series", [100, 375])
def test_of_one_training_the_series_are_drawn(series):
    rng = np.random.default_rng(series)
    better = 0.7
    right = (rng.random((2000, 1, series)) < better).astype(np.float32)
    assert 0.93 <= held(map(st._accuracy_pct, right), 100 * better) <= 0.97
    lost, gained = 0.08, 0.05
    flips = rng.choice([1.0, -1.0, 0.0], p=[lost, gained, 1 - lost - gained], size=(2000, 1, series))
    assert 0.93 <= held(map(st.over_seeds_and_series, flips), lost - gained) <= 0.97


@pytest.mark.parametrize(("trainings", "most"), [(0.03, 0.97), (0.006, 0.99), (0.0, 0.997)])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_savings_and_speedups_cover_the_mean_over_all_seeds_on_the_scale_of_ratios(seeds, trainings, most):
    """Trainings differ in what they take by 3 or .6 % or not at all, measurements of one by .6 %.

    Where measuring is most of the difference, intervals err on the safe side: each is known by itself.
    """
    rng = np.random.default_rng(seeds)
    noise, processes = 0.006, 8
    logs = (
        np.log(1.63)
        + trainings * rng.standard_normal((3000, seeds))
        + noise * rng.standard_normal((3000, seeds))
    )
    seen = noise * np.sqrt(rng.chisquare(processes - 1, (3000, seeds)) / (processes - 1))
    half = stdtrit(processes - 1, 0.975) * seen
    ratios, ends = np.exp(logs), np.exp(np.stack([logs - half, logs + half], axis=-1))
    speedup = next(m for m in st.METRICS if m.name == "speedup")
    saving = next(m for m in st.METRICS if m.name == "measured_saving_pct")
    shares = (
        held((st.over_seeds(r, speedup, e) for r, e in zip(ratios, ends, strict=True)), 1.63),
        held(
            (
                st.over_seeds(100 * (1 - 1 / r), saving, 100 * (1 - 1 / e))
                for r, e in zip(ratios, ends, strict=True)
            ),
            100 * (1 - 1 / 1.63),
        ),
    )
    assert all(0.93 <= share <= most for share in shares), shares


@pytest.mark.parametrize(("trainings", "most"), [(0.03, 0.97), (0.006, 0.99), (0.0, 0.998)])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_within_a_runtime_hours_cancel_and_intervals_hold(seeds, trainings, most):
    """Both of a seed were measured in its hour, which makes their speedups 15 % more or less."""
    rng = np.random.default_rng(seeds)
    studies, noise, processes, truth = 1500, 0.006, 8, 1.63
    hours = 0.15 * rng.standard_normal((studies, seeds, 1))
    logs = np.log([truth * 3, 3]) + hours + trainings * rng.standard_normal((studies, seeds, 2))
    seen = noise * np.sqrt(rng.chisquare(processes - 1, logs.shape) / (processes - 1))
    logs = logs + noise * rng.standard_normal(logs.shape)
    half = stdtrit(processes - 1, 0.975) * seen
    names = ["speedup", "speedup_lo", "speedup_hi"]
    values = np.exp(np.stack([logs, logs - half, logs + half], axis=-1))
    found = []
    for study in values:
        pruned, dense = ({"each": pd.DataFrame(study[:, i], columns=names)} for i in (0, 1))
        found.append(claims._apart("speed", pruned, dense))
    assert 0.93 <= held(found, -np.log(truth)) <= most


if __name__ == "__main__":  # the table for the docs
    print(
        "| test series | seeds | accuracy, seed sd .5 / 1.5 / 3 | drop | drop, hardly any flip |\n| --- | "
        "--- | --- | --- | --- |"
    )
    for series, studies in ((100, 6000), (375, 4000), (7711, 1000)):
        for seeds in (2, 3, 5, 10):
            of = [coverage(studies, seeds, series, sd) for sd in (0.5, 1.5, 3.0)]
            rare = coverage(studies, seeds, series, 1.5, drop_pt=0.1, same_noise=0.999, own=0.03)[1]
            print(
                f"| {series} | {seeds} |",
                " | ".join(" / ".join(f"{o[k]:.3f}" for o in of) for k in (0, 1)),
                f"| {rare:.3f} |",
                flush=True,
            )
