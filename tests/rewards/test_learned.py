"""Learned rewards of finished samples: what is scored, the floor on entropy, the judge; and a model that learns by one."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rewards.learned import LearnedReward
from rewards.measures import unigram_entropy
from rewards.models import BrevityReward
from tests.policy_runs import record
from tests.test_run_train_rl import QUICK, run

ROOT = Path(__file__).resolve().parents[2]
MASK = 2048


@dataclass
class Done:
    tokens: torch.Tensor
    prompt: torch.Tensor
    evaluations: torch.Tensor


class Echo:
    """Notes what it is asked."""

    def score_texts(self, prompts, texts, finished=None):
        self.asked, self.finished = list(zip(prompts, texts, strict=True)), finished
        return torch.tensor([float(len(text)) for text in texts])


@pytest.fixture(scope="module")
def stories():
    return AutoTokenizer.from_pretrained(ROOT / "example/stories")


def samples(stories, texts: list[tuple[str, str]], length: int = 12) -> Done:
    tokens = torch.zeros(len(texts), length, dtype=torch.long)  # 0 is the end of sequence
    prompt = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (given, text) in enumerate(texts):
        first, rest = stories.encode(given) if given else [], stories.encode(text)
        tokens[row, : len(first) + len(rest)] = torch.tensor(first + rest)
        prompt[row, : len(first)] = True
    return Done(tokens, prompt, torch.full((len(texts),), 3))


def test_what_was_written_is_scored_up_to_its_end_with_its_prompt(stories):
    done = samples(stories, [("One day", " a cat ran"), ("", "The end")])
    done.tokens[1, 0] = MASK  # a training rollout may leave one
    done.tokens[1, 8:] = 700  # behind the end
    echo = Echo()
    output = LearnedReward(echo, stories, MASK, judge=BrevityReward())(done)
    assert echo.asked[0] == ("One day", " a cat ran") and echo.asked[1][0] == "" and "end" in echo.asked[1][1]
    assert output.total[0] == len(" a cat ran") == output.terms["score"][0] and echo.finished == [True, True]
    done.tokens[0][done.tokens[0] == 0] = 700
    LearnedReward(echo, stories, MASK)(done)
    assert echo.finished == [False, True]
    assert output.terms["judge"][0] == -3 and output.terms["words"][0] == 3


def test_the_floor_and_the_speed_are_taken_off(stories):
    done = samples(stories, [("", "a a a a a a"), ("", "One day a cat ran home.")])
    floor = 2.0
    output = LearnedReward(Echo(), stories, MASK, None, floor, 5.0, 0.5)(done)
    entropy = unigram_entropy(done.tokens, done.tokens != 0).float()  # of the answers, not of what fills the row
    expected = output.terms["score"] - 5 * (floor - entropy).clamp(min=0) + 0.5 * torch.tensor((12 - 3 + 1) / 12).log()
    torch.testing.assert_close(output.total, expected)
    assert output.terms["penalty"][0] > output.terms["penalty"][1] and "judge" not in output.terms


def test_a_model_learns_by_a_packaged_reward(tmp_path):
    lines = tmp_path / "stories.jsonl"
    lines.write_text("".join(json.dumps({"text": f"A cat saw {n} happy dogs and ran home."}) + "\n" for n in range(80)))
    few = [o for o in QUICK if not o.startswith("data.")]
    text = ["dlm=stories", "data=stories", "reward=vader", "reward.judge=brevity", "sampler.length=12", f"data.train={lines}",
            f"data.valid={lines}"]  # fmt: skip
    measured = record(run(tmp_path / "run", *few, *text))
    assert {"eval_reward", "eval_judge", "eval_entropy", "eval_words"} <= measured[2].keys()
    assert measured[1]["judge"] < 0 and -1 <= measured[1]["score"] <= 1
    with pytest.raises(ValueError, match="reward=learned reads text and this data has none"):
        run(tmp_path / "chain", *QUICK, "reward=vader")
    with pytest.raises(ValueError, match="reward=learned needs reward.model: a run"):
        run(tmp_path / "none", *few, *text, "reward.model=null")
    with pytest.raises(ValueError, match=r"the reward .vaader. is no directory and no hub id; did you mean vader"):
        run(tmp_path / "other", *few, *text, "reward.model=vaader")
