from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcomposer.training.timestep_density import TimestepDensity, logit_normal, measured


def test_timesteps_come_as_often_as_the_density_says() -> None:
    density = TimestepDensity(np.array([1.0, 0.0, 3.0]))
    drawn = density.draw(4000, "cpu", torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.0, 0.75]), atol=0.02, rtol=0)
    assert density.weight(drawn) is None


def test_each_sample_draws_from_its_own_generator() -> None:
    density = logit_normal()
    sources = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    together = density.draw(2, "cpu", sources)
    assert together[1] == density.draw(1, "cpu", torch.Generator().manual_seed(4))[0]


def test_reweighted_losses_have_the_uniform_mean() -> None:
    density = measured([(0, 1.0), (9, 4.0)], reweight=True, num_timesteps=10)
    everywhere = torch.arange(10)
    weights = density.weight(everywhere)
    assert weights is not None
    share = torch.from_numpy(np.interp(np.arange(10), [0, 9], [1.0, 4.0]))
    torch.testing.assert_close((share / share.sum() * weights).sum().float(), torch.tensor(1.0))
    assert weights[0] == pytest.approx(4 * weights[9])


def test_logit_normal_has_its_median_where_the_logit_is_the_mean() -> None:
    density = logit_normal(mean=1.0, std=0.5)
    assert int((density.cumulative < 0.5).sum()) == pytest.approx(1000 / (1 + np.exp(-1)), abs=1)
    assert density.cumulative[-1] == pytest.approx(1.0)


def test_the_density_of_another_schedule_is_refused() -> None:
    logit_normal(num_timesteps=1000).check(1000)
    for number in (500, 2000):
        with pytest.raises(ValueError, match=r"timesteps\.density\.num_timesteps"):
            logit_normal(num_timesteps=number).check(1000)


def test_bad_densities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timesteps\.density:"):
        TimestepDensity(np.zeros(4))
    with pytest.raises(ValueError, match=r"density\.reweight"):
        measured([(0, 0.0), (999, 1.0)], reweight=True)
    for curve in ([], [(0, -1.0)], [(0, 0.0), (999, 0.0)]):
        with pytest.raises(ValueError, match=r"density\.curve"):
            measured(curve)
