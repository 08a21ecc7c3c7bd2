"""How often the intervals over seeds hold the truth, simulated: they say 95 %, and 93 to 97 % is asked of them.

A series is classified right if a latent score is above 0: the sum of what the model is good for, of the luck of its training (a draw per seed), of how
hard the series is (a draw per series, the same for all trainings) and of noise. Of a pair of models, the second shares the luck of its seed, the
series and most of the noise with the first (it was made from it), and has some luck of its own.
"""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from tsexp.report import statistics as st

SERIES = {100: 3000, 375: 1000, 7711: 120}
"""Test series (ACSF1, RefrigerationDevices, ElectricDevices) → studies that are simulated."""
ACCURACY, DIFFICULTY = 0.7, 0.6


def draw(rng, studies, seeds, series, sd_pt, drop_pt, same_noise):
    """Simulate `studies`: which answers of two models are right, (studies, seeds, series), and how accurate both are in truth."""
    better, worse = ndtri(ACCURACY), ndtri(ACCURACY - drop_pt / 100)
    luck = sd_pt / 100 * np.sqrt(2 * np.pi) * np.exp(better**2 / 2)  # on the latent scale
    own = luck / 2

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    shared = np.float32(luck) * normal(studies, seeds, 1) + np.float32(DIFFICULTY**0.5) * normal(studies, 1, series)
    noise, other = (np.float32((1 - DIFFICULTY) ** 0.5) * normal(studies, seeds, series) for _ in range(2))
    first = better + shared + noise > 0
    second = worse + shared + np.float32(own) * normal(studies, seeds, 1) + same_noise * noise + np.float32((1 - same_noise**2) ** 0.5) * other > 0
    return first, second, ndtr(better / np.hypot(1, luck)), ndtr(worse / np.sqrt(1 + luck**2 + own**2))


def coverage(outcomes, truth, interval):
    held = [low <= truth <= high for _, low, high in map(interval, outcomes)]
    return float(np.mean(held))


def simulated(seeds, series, sd_pt, drop_pt=1.0, same_noise=0.7):
    """Coverage of the interval of the accuracy, and of the drop's."""
    first, second, better, worse = draw(np.random.default_rng([seeds, series, int(10 * sd_pt)]), SERIES[series], seeds, series, sd_pt, drop_pt, same_noise)
    of_accuracy = coverage(first.astype(np.float32), 100 * better, st._accuracy_pct)
    return of_accuracy, coverage(first.astype(np.float32) - second, better - worse, st.over_seeds_and_series)


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("sd_pt", [0.5, 3.0])
def test_of_another_training_on_other_series(seeds, series, sd_pt):
    of_accuracy, of_drop = simulated(seeds, series, sd_pt)
    print(of_accuracy, of_drop)


if __name__ == "__main__":  # the table of the docs
    import time
    t0=time.time()
    for series in SERIES:
        for seeds in (2,3,5,10):
            print(series, seeds, [simulated(seeds, series, sd) for sd in (.5,1.5,3.0)], time.time()-t0, flush=True)
