"""Histograms on a box: likelihoods and divergences against torch's, candidates, acting, and a whole agent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from megopt.errors import ConfigError
from megopt.rl.action_head import Candidates
from megopt.rl.action_heads import head_of
from megopt.rl.cvpo import CVPO
from megopt.rl.histogram_head import NUM_POINTS, HistogramHead
from megopt.rl.policies import CVPOPolicy
from megopt.rl.tasks import TaskVecEnv, bandit


def outputs(num_states: int, seed: int = 0) -> th.Tensor:
    """Return outputs of an actor for a head of two dimensions and three intervals."""
    return th.randn(num_states, 6, generator=th.Generator().manual_seed(seed))


def test_likelihood_and_divergence_are_those_of_torch() -> None:
    head, new, old = HistogramHead(2, 3), outputs(5), outputs(5, seed=1)
    new_shares, old_shares = (th.distributions.Categorical(logits=part.reshape(5, 2, 3)) for part in (new, old))
    wanted = th.distributions.kl_divergence(old_shares, new_shares).sum(1).mean()
    assert float(head.divergences(new, old, None)) == pytest.approx(float(wanted), abs=1e-6)
    bins = th.tensor([[0, 2], [1, 1]]).expand(5, 2, 2)
    weights = th.tensor([0.25, 0.75]).expand(5, 2)
    likelihood = new_shares.log_prob(bins.transpose(0, 1)).sum(2).T  # (states, candidates)
    loss = head.fit_loss(new, old, Candidates(actions=bins, encoding=None, prior=None), weights, None)
    assert float(loss) == pytest.approx(-float((weights * likelihood).sum(1).mean()), abs=1e-6)


def test_few_cells_each_give_a_candidate_with_their_probability() -> None:
    head, logits = HistogramHead(2, 3), outputs(4)
    found = head.candidates(logits, None, 1)
    assert found.actions is not None
    assert found.encoding is not None
    assert found.prior is not None
    cells = th.floor((found.encoding + 1.0) * 1.5).long().clamp(0, 2)
    assert th.equal(cells, found.actions.repeat_interleave(NUM_POINTS, dim=1))
    assert len({tuple(cell) for cell in found.actions[0].tolist()}) == found.prior.shape[1] == 9
    shares = th.softmax(logits.reshape(4, 2, 3), dim=2)
    wanted = shares[:, 0, found.actions[0, :, 0]] * shares[:, 1, found.actions[0, :, 1]]
    assert found.prior.numpy() == pytest.approx(wanted.numpy(), abs=1e-6)


def test_of_many_cells_candidates_are_drawn_with_the_shares_of_the_policy() -> None:
    th.manual_seed(3)
    head, logits = HistogramHead(2, 9), th.randn(1, 18, generator=th.Generator().manual_seed(0))
    drawn = head.candidates(logits, None, 60_000)
    assert drawn.actions is not None
    assert drawn.encoding is not None
    assert drawn.prior is None
    cells = th.floor((drawn.encoding + 1.0) * 4.5).long().clamp(0, 8)
    assert th.equal(cells, drawn.actions.repeat_interleave(NUM_POINTS, dim=1))
    shares = np.stack([np.bincount(column, minlength=9) for column in drawn.actions[0].T.numpy()]) / 60_000
    assert shares == pytest.approx(th.softmax(logits.reshape(2, 9), dim=1).numpy(), abs=0.01)


def test_a_cell_is_worth_the_mean_over_points_spread_in_it() -> None:
    policy = CVPOPolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, [8], num_limits=1, num_bins=3)
    states = th.randn(5, 2, generator=th.Generator().manual_seed(0))
    found = policy.head.candidates(policy.actor(states), None, 1)
    assert found.encoding is not None
    within = ((found.encoding + 1.0) * 1.5 % 1.0).reshape(5, 9, NUM_POINTS, 2)
    quarters = th.sort(th.floor(within * NUM_POINTS), dim=2).values
    assert th.equal(quarters, th.arange(4.0)[:, None].expand(5, 9, 4, 2))  # each dimension has a point in each quarter
    single = replace(found, num_points=1)
    each = policy.critic.joined(states, single).reshape(2, 5, 9, NUM_POINTS)
    assert th.allclose(policy.critic.joined(states, found), each.mean(dim=3), atol=1e-6)
    assert float(each.detach().std(dim=3).max()) > 0.0


def test_it_acts_within_the_box_and_by_the_likeliest_interval() -> None:
    head, logits = HistogramHead(1, 4), th.tensor([[0.0, 0.0, 9.0, 0.0]]).expand(500, 4)
    assert th.all(head.act(logits, None, True) == 0.25)
    assert float(head.act(th.zeros(500, 4), None, False).abs().max()) <= 1.0


def test_a_box_has_a_histogram_only_where_it_is_asked_for() -> None:
    box = spaces.Box(0.0, 1.0, (2, 3))
    assert head_of(box, num_bins=5).num_outputs == 30
    assert head_of(box).names == ("mean", "spread")
    with pytest.raises(ConfigError, match="num_bins"):
        CVPO("MlpPolicy", None, num_bins=1, _init_setup_model=False)
    for kind, space in (("discrete", r"Discrete\(4\)"), ("multi", r"MultiDiscrete\(\[2 2\]\)")):
        with pytest.raises(ConfigError, match=f"num_bins=15 with {space}; expected a bounded Box; leave it out"):
            CVPO("MlpPolicy", TaskVecEnv(bandit(), kind, 4), num_bins=15, device="cpu")  # type: ignore[arg-type]


def test_an_agent_with_histograms_is_fitted_and_comes_back(tmp_path: object) -> None:
    env = TaskVecEnv(bandit(), "steps", 4)
    settings = {"gamma": 0.0, "learning_starts": 40, "batch_size": 16, "measure_window": 50, "device": "cpu"}
    agent = CVPO("MlpPolicy", env, limits=[0.4], num_bins=7, seed=0, policy_kwargs={"net_arch": [16]}, **settings)
    before = [tensor.clone() for tensor in agent.policy.actor.parameters()]
    agent.learn(400)
    assert not any(th.equal(one, other) for one, other in zip(before, agent.policy.actor.parameters(), strict=True))
    agent.save(f"{tmp_path}/agent.zip")
    seen, kept = env.reset(), CVPO.load(f"{tmp_path}/agent.zip")
    drawn = []
    for one in (agent, kept):
        th.manual_seed(0)
        drawn.append(one.predict(seen)[0])
    assert np.array_equal(*drawn)
