"""Imitation of a teacher: supervised learning before or instead of reinforcement learning.

A policy with random weights solves nothing, and a reward that is always 0 teaches nothing. There are two kinds of teachers:

* A rule of `samplers/heuristics.py`. The policy learns the rule's selections on the rule's own rollouts, by their
  log-likelihood under the action distribution. With `sampler.budgets` each row has its own budget, and the rule `leftmost`
  spreads the row's open positions evenly over it.
* The answers (`expert: answers`), for data with known answers (puzzles). The policy learns at which masked positions the
  model's best token is right, by a binary cross-entropy in which wrong tokens have weight `setting`. Canvases have a random
  part of the right tokens. A policy that revises also learns which committed tokens are wrong, on canvases with the mistakes
  of its own decisions.

OnTrack ("What Makes a Good Unmasking Policy?") learns from correct trajectories; what differs is that every masked position of
every canvas is labelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.tasks import Prompts
from dlm.draws import Draws
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from policy.base import PolicyNetwork
from policy.rollout import policy_log_probs
from policy.settings import DrawnSettings, PolicyTrainingSettings, TeachingSettings
from policy.unmasker import PolicyUnmasker
from rewards.rules import Reward
from samplers.heuristics import UNMASKING_RULES, at_least_one, best, by_ties, nothing, top_probability
from samplers.loop import Reviser, StepDecoder, Strategy, Unmasker
from samplers.samples import Trajectory
from training.processes import ALONE, Processes

RULES = ("threshold", "factor", "entropy_bound", "confidence_noisy")  # rules with one setting, which can be imitated
CORRECTED_STEPS = 12  # decoding steps of the canvases on which a policy that revises learns
EXPERTS = (*RULES, "leftmost", "answers")


@dataclass
class Answers:
    """Rule that commits a random part, between 0.7 and 1, of the positions whose best token is right, and at least one of them.

    If no best token is right, it commits the most probable token. `row_id` is the number of the answer; `inputs` returns the
    policy's inputs. They are requested first, so that the rule and the policy share one evaluation.
    """

    answers: Int[Tensor, "row position"]
    inputs: Callable[[Observation], dict[str, Tensor]]

    def right(self, observation: Observation) -> Bool[Tensor, "row position"]:
        tokens = observation.read(observation.writable, 1).top_tokens[..., 0]
        text = self.answers[observation.row_id][:, -tokens.shape[1] :]  # where the prompt is left out: what follows it
        return observation.writable & (tokens == text)

    def choose(self, observation, draws):
        self.inputs(observation.response())
        right = self.right(observation)
        length = observation.tokens.shape[1]
        uniforms = draws.uniform("where", observation.row_id, observation.row_step, length)
        share = draws.uniform("noise", observation.row_id, observation.row_step, 1)
        some = right & (uniforms < 0.7 + 0.3 * share)
        one = torch.ones_like(observation.row_step)
        first = best(-uniforms, right, one, uniforms) > 0  # the one likeliest to be in the part, which keeps its share
        likely = best(top_probability(observation), observation.writable, one, by_ties(observation, draws)) > 0
        stuck = ~right.any(1, keepdim=True) & likely
        return (some | first | stuck).long(), nothing(observation)


@dataclass
class Corrected(Reviser):
    """Decode by the policy's own scores, and open a quarter of the wrong tokens again in each step as well.

    The probabilities at which positions are committed and opened again are drawn for each row, so that canvases have few
    mistakes or many. Rows end when all is right and nothing changes. `row_id` is the number of the answer.
    """

    answers: Int[Tensor, "row position"]
    network: PolicyNetwork

    def most_steps(self, options: DecodeOptions, opened: int) -> int:
        return CORRECTED_STEPS

    def right(self, observation: Observation) -> Bool[Tensor, "row position"]:
        """Mark open positions whose best token is right, and committed positions whose token is."""
        best_tokens = observation.read(observation.masked, 1).top_tokens[..., 0]
        tokens = torch.where(observation.masked, best_tokens, observation.tokens)
        return tokens == self.answers[observation.row_id][:, -tokens.shape[1] :]

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        assert observation.revisable is not None
        seen = observation.response()
        scores = self.network.scores(**self.network.inputs(seen))
        scores = F.pad(scores, (observation.tokens.shape[1] - scores.shape[1], 0))
        row, step, length = observation.row_id, observation.row_step, observation.tokens.shape[1]
        level = draws.uniform("noise", row, torch.zeros_like(step), 2)
        trusted = scores.sigmoid() >= 0.3 + 0.7 * level[:, :1]
        order = at_least_one(trusted, scores, observation, draws)
        wrong = ~self.right(observation) & observation.revisable
        doubted = (scores.sigmoid() >= 0.1 + 0.8 * level[:, 1:]) & observation.revisable
        reopened = doubted | (wrong & (draws.uniform("revise", row, step, length) < 0.25))
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        return Decision(
            order,
            tokens,
            nothing(observation),
            log_tokens,
            reopened,
            (order > 0).any(1) | wrong.any(1) | reopened.any(1),
        )


@dataclass
class InBlocks:
    """A rule that selects positions of the first unfinished block of the response only, while the imitating policy sees all
    positions as selectable.

    The policy thereby learns an order as good as that of blocks, and is used without blocks. (Published expert steering instead
    adds rollouts in blocks to the groups of GRPO.)
    """

    rule: Unmasker
    block: int

    def choose(self, observation, draws):
        first = observation.environment.prompt_length
        blocks = observation.writable[:, first:].unflatten(1, (-1, self.block))
        current = blocks.any(2).long().argmax(1)
        here = torch.arange(blocks.shape[1], device=current.device) == current.unsqueeze(1)
        writable = F.pad((blocks & here.unsqueeze(2)).flatten(1), (first, 0))
        return self.rule.choose(replace(observation, writable=writable), draws)


@dataclass
class Expert:
    """A rule that decodes in place of the policy `network`. The policy's inputs are requested first, so that rule and policy
    share one evaluation."""

    network: PolicyNetwork
    rule: Unmasker

    def choose(self, observation, draws):
        self.network.inputs(observation.response())
        return self.rule.choose(observation, draws)


def learn_selected(network: PolicyNetwork, distribution, part: Trajectory, steps: float) -> Float[Tensor, ""]:
    """Return the negative log-likelihood of the rule's selections, a mean over `steps` steps."""
    return -policy_log_probs(network, distribution, part)[0].sum() / steps


def learn_answers(network: PolicyNetwork, part: Trajectory, masks: float, wrong: float) -> Float[Tensor, ""]:
    """Return the weighted binary cross-entropy of `part.inputs["right"]` (which best tokens are right and, for a policy that
    revises, which committed ones are), a mean over `masks` positions.
    """
    inputs = {name: value for name, value in part.inputs.items() if name != "right"}
    scores, right = network.scores(**inputs), part.inputs["right"]
    loss = torch.where(right, -F.logsigmoid(scores), -wrong * F.logsigmoid(-scores))
    if part.opened is not None:  # the score of a committed position is the logit of opening it again
        committed = torch.where(right, -F.logsigmoid(-scores), -F.logsigmoid(scores))
        # Where tokens are wrong, so are most predictions: trust would be learnt for canvases that revision leaves behind.
        mistaken = (~right & part.writable & ~part.opened).any(1, keepdim=True)
        of_open = loss.masked_fill(mistaken & (part.inputs["reopened"] == 0), 0.0)
        loss = torch.where(part.opened, of_open, committed)
    return loss.masked_fill(~part.writable, 0.0).sum() / masks


def teacher_loss(
    model: MaskedLM, network: PolicyNetwork, prompts: Prompts, teaching: TeachingSettings,
    config: PolicyTrainingSettings, seed: int, ends: tuple[int, ...] = (), processes: Processes = ALONE,
    reward: Reward | None = None, budget: Int[Tensor, "row"] | None = None,
) -> float:  # fmt: skip
    """Run one batch of the teacher's rollouts on `prompts`, add the gradients, and return the loss.

    Args:
        ends: the tokens at which rows end.
        processes: the processes that share the batch; the loss is a mean over all of them.
        reward: rollouts without any reward are left out; if none remains, there are no gradients.
        budget: maximal evaluations of each row.
    """
    inputs = network.inputs
    options = DecodeOptions(config.sampler.steps, ends=ends, budget=budget, alpha=prompts.rows.get("alpha"))
    decoder: StepDecoder
    if teaching.expert == "answers":
        assert prompts.text is not None
        rule = TokenRule(0.0)
        teacher = Corrected(rule, prompts.text, network) if network.revises else Answers(prompts.text, inputs)
        record = lambda seen: {"right": teacher.right(seen), **inputs(seen)}  # noqa: E731
        decoder = teacher if isinstance(teacher, Corrected) else Strategy(teacher, rule)
    else:
        settings = [] if teaching.expert == "leftmost" else [teaching.setting]
        teacher, rule = UNMASKING_RULES[teaching.expert](*settings), TokenRule(config.sampler.temperature)
        if teaching.block_length:
            teacher = InBlocks(teacher, teaching.block_length)
        record, decoder = inputs, Strategy(Expert(network, teacher), rule)
    samples = decoder.decode(model, prompts, options, seed, record=record)
    trajectory = samples.trajectory
    assert trajectory is not None
    if reward is not None:
        earns = reward(samples, prompts.rows).total.to(trajectory.row.device) > 0
        trajectory = trajectory.take(earns[trajectory.row].nonzero().squeeze(1))
    counts = {"steps": float(len(trajectory.row)), "masks": float(trajectory.writable.sum())}
    counts = processes.mean(counts)  # gradients are averaged over processes: what they divide by is too
    if len(trajectory.row) == 0:
        return 0.0
    assert isinstance(config.algorithm, DrawnSettings)
    distribution = PolicyUnmasker(network, config.algorithm.action).distribution
    total = 0.0
    for index in torch.arange(len(trajectory.row), device=trajectory.row.device).split(config.training.chunk):
        part = trajectory.take(index)
        if teaching.expert == "answers":
            loss = learn_answers(network, part, counts["masks"], float(teaching.setting))
        else:
            loss = learn_selected(network, distribution, part, counts["steps"])
        loss.backward()
        total += float(loss.detach())
    return total


def check_teacher(teaching: TeachingSettings, prompts: Prompts) -> None:
    """Refuse an unknown teacher, and `answers` for data without answers: ValueError."""
    if teaching.expert not in EXPERTS:
        raise ValueError(f"expert={teaching.expert!r} is unknown; use one of {', '.join(EXPERTS)}")
    if teaching.expert == "answers" and prompts.text is None:
        raise ValueError("expert=answers needs data that knows the right text (data=puzzles); imitate a rule instead")
