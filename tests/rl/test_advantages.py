"""Advantages of PPO on the diffusion model: against a running mean, in units of the batch's own distances to it."""

import pytest
import torch

from rl.settings import RLTrainingSettings
from rl.train import Rollouts
from training.processes import ALONE


@pytest.fixture
def learner():
    made = Rollouts.__new__(Rollouts)  # its advantages read these alone
    made.processes, made.baseline = ALONE, None
    made.config = RLTrainingSettings.of({"rl": {"algorithm": "ppo", "baseline_decay": 0.9}})
    return made


def advantages(learner, rewards, valid=None):
    reward = torch.tensor(rewards)
    valid = torch.ones(len(rewards), dtype=torch.bool) if valid is None else torch.tensor(valid)
    return learner.advantages(reward, valid, float(reward[valid].mean()))


def test_advantages_stay_small_where_all_rewards_of_a_batch_agree(learner):
    first = advantages(learner, [0.0, 1.0, 0.0, 1.0])
    assert first.tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-3)
    assert advantages(learner, [1.0] * 4).tolist() == pytest.approx(
        [1] * 4, abs=1e-3
    )  # all above the running mean, 0.5
    assert advantages(learner, [1.0, 1.0, 1.0, 0.999]).abs().max() < 1.1
    assert advantages(learner, [0.0] * 4).max() < 0


def test_the_running_mean_keeps_nine_tenths_of_what_it_was(learner):
    learner.baseline = 0.5
    advantages(learner, [1.0, 1.0])
    assert learner.baseline == pytest.approx(0.55)
    advantages(learner, [0.0, 0.1, 9.0], [True, True, False])
    assert learner.baseline == pytest.approx(0.9 * 0.55 + 0.1 * 0.05)


def test_rewards_that_are_the_running_mean_teach_nothing_and_failed_rows_nothing(learner):
    learner.baseline = 0.5
    assert advantages(learner, [0.5, 0.5]).tolist() == [0, 0]
    found = advantages(learner, [0.0, 1.0, 99.0], [True, True, False])
    assert found.tolist() == pytest.approx([-1, 1, 0], abs=1e-3)
