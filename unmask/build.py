"""Build objects from settings: policies, tasks, rewards, preferences, twists.

Invalid settings are refused here, before any work.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.answers import is_answers
from data.preferences import Preference, split_preferences
from data.settings import ChainSettings, PuzzleSettings, QuestionSettings, TextSettings
from data.tasks import ChainTask, PuzzleTask, QuestionTask, Task, TextTask
from dlm.canvas import canvas_of
from dlm.causal_lm import CausalLM, sequence_log_prob
from dlm.fingerprint import KEY, token_digest
from dlm.masked_lm import LlamaLM, MaskedLM
from load_model import load_model
from model.radd import RADD
from policy.actions import ACTIONS, FOR_SAMPLING
from policy.agreement import Agreement
from policy.base import PolicyNetwork
from policy.checkpoints import POLICIES, check_fits, load_policy
from policy.dit_hidden import block_sizes
from policy.experts import check_experts
from policy.imitation import check_teacher
from policy.networks import HiddenBlocks
from policy.settings import (
    AgreementSettings,
    ClippedSettings,
    DitConfidenceSettings,
    DitHiddenSettings,
    DrawnSettings,
    GRPOSettings,
    HiddenBlocksSettings,
    HiddenMLPSettings,
    ImitationSettings,
    PolicyTrainingSettings,
    PPOSettings,
    TeachingSettings,
    VariationalSettings,
)
from policy.train import LEARNING, PolicyLearning
from policy.unmasker import PolicyUnmasker
from rewards.bound import BoundReward
from rewards.latex import LatexReward
from rewards.learned import LearnedReward
from rewards.likelihood import LikelihoodReward
from rewards.models import TextReward, load_reward, reward_folder
from rewards.rules import PuzzleReward, Reward, VerifiedReward
from rewards.settings import (
    BoundSettings,
    LatexSettings,
    LearnedSettings,
    LikelihoodSettings,
    PuzzleRewardSettings,
    RightSettings,
)
from rl.settings import PreferenceRunSettings, QualityTrainingSettings, RewardRunSettings, RLTrainingSettings
from samplers.loop import Strategy
from samplers.settings import SamplerSettings
from training.fields import Settings
from training.hub import shipped
from training.learner import new_learner
from training.processes import Processes
from training.run import resolved
from training.terminal import print_line, say_if_newline_is_spelled
from twist.bounds import Origin, folder_digest, model_digest
from twist.network import TwistModel
from twist.settings import InfillingTarget, TwistTrainingSettings
from twist.source import Source
from twist.targets import build_target
from unmask.decoders import build_rule_decoder
from unmask.settings import checked

S = TypeVar("S", bound=Settings)
TaskSettings = PolicyTrainingSettings | RLTrainingSettings | QualityTrainingSettings  # of commands that have a task
POSTERIOR = "posterior.safetensors"  # in the run, where it collected its own


def read_settings(cls: type[S], config: DictConfig) -> S:
    """Return the settings of a command. ValueError, before any work, for values that cannot run."""
    return checked(cls, resolved(config))


def started(cls: type[S], config: DictConfig, overrides: list[str]) -> tuple[S, DictConfig]:
    """Return the settings of a training command, and its configuration with a warm-up that is shorter than the run.

    Raises:
        ValueError: for values that no run could have, before any work.
    """
    read_settings(cls, config)
    config = with_fitting_warmup(config, overrides)
    return read_settings(cls, config), config


def check_epochs(config: DictConfig, overrides: list[str]) -> None:
    """Refuse training.epochs on a command line if training.n_iters (of an experiment, for example) sets the length of the run."""
    epochs = [word for word in overrides if word.lstrip("+").startswith("training.epochs=")]
    if epochs and not config.resume and config.training.n_iters is not None:
        raise ValueError(
            f"{epochs[-1]} would do nothing beside training.n_iters={config.training.n_iters}; add training.n_iters=null, or "
            "leave it out"
        )


def updates_of(config: DictConfig) -> int | None:
    """Return the number of updates of a run by its configuration; None if the data decide it."""
    training = config.training
    if "updates_per_epoch" in training:
        return 2**training.epochs if training.schedule == "exp2" else training.epochs * training.updates_per_epoch
    if training.n_iters is None:
        return None
    return training.n_iters * (OmegaConf.select(config, "algorithm.inner_updates") or 1)


def with_fitting_warmup(config: DictConfig, overrides: list[str]) -> DictConfig:
    """Return the configuration with a warm-up that is shorter than the run.

    A warm-up on the command line is kept or refused. A warm-up of an experiment or a default belongs to the length of that
    experiment. If the command line shortens the run to less than five times the warm-up, the warm-up becomes a twentieth of the
    run, and a line on stderr reports it.

    Raises:
        ValueError: a warm-up on the command line is not shorter than the run.
    """
    updates, warmup = updates_of(config), config.optim.warmup
    if config.resume or not updates or not warmup:
        return config
    given = {word.partition("=")[0].lstrip("+") for word in overrides}
    if "optim.warmup" in given:
        if warmup >= max(updates, 2):  # one update begins at the full rate
            length = (
                "this run" if "updates_per_epoch" in config.training else f"training.n_iters={config.training.n_iters}"
            )
            raise ValueError(
                f"optim.warmup={warmup} must be below the {updates} updates of {length}, or the learning rate never arrives; "
                "lower it, or leave it out"
            )
        return config
    if not given & {"training.n_iters", "training.epochs", "training.updates_per_epoch"} or 5 * warmup <= updates:
        return config
    config = config.copy()
    config.optim.warmup = updates // 20
    print_line(
        f"optim.warmup={warmup} is for a longer run; {config.optim.warmup} of {updates} updates here", on_stderr=True
    )
    return config


def build_policy(config: PolicyTrainingSettings, model: MaskedLM) -> PolicyNetwork:
    """Return a policy network that fits the model: a new one, or that of `init` with its architecture."""
    if config.init is not None:
        return continued_policy(config, model)
    if config.init_trust is not None:
        raise ValueError(
            f"init_trust={config.init_trust} shifts the scores of the policy `init`, and there is none; give init"
        )
    kind = config.policy.policy_type
    network = POLICIES[kind](**network_arguments(config, model))
    check_fits(network, model)
    if isinstance(network, HiddenBlocks):
        network.start_from(radd_of(model, config))
    return network


def network_arguments(config: PolicyTrainingSettings, model: MaskedLM) -> dict[str, Any]:
    """Return the arguments of a new policy network: its settings, and the values that depend on the model and the algorithm.
    ValueError for a null that the model does not determine."""
    given = config.policy
    settings = asdict(given)
    kind = settings.pop("policy_type")
    if isinstance(given, AgreementSettings):
        settings["length"] = given.length or model.max_length
    elif not isinstance(given, DitConfidenceSettings) or given.hidden_size is None:
        settings["hidden_size"] = model.hidden_size
    if isinstance(given, DitHiddenSettings):
        settings = block_sizes(model) | {name: value for name, value in settings.items() if value is not None}
        if not {"num_heads", "mlp_size"} <= settings.keys():
            raise ValueError(
                f"policy=dit_hidden takes its sizes from LLaDA and Dream and {config.dlm.path} is neither; give "
                "policy.num_heads=4 and policy.mlp_size=256, for example"
            )
    if null := [name for name, value in settings.items() if value is None]:
        raise ValueError(f"policy.{null[0]}=null is for policy=dit_hidden, which asks the model; give a number")
    if isinstance(given, HiddenBlocksSettings):
        settings["num_heads"] = radd_of(model, config).config["model"]["n_heads"]
    if not isinstance(given, HiddenMLPSettings) and isinstance(config.algorithm, PPOSettings):
        settings["value_head"] = True
    if config.reward.weights_of_speed:
        if "alpha_conditioned" not in inspect.signature(POLICIES[kind].__init__).parameters:
            raise ValueError(given.refusal(["alpha_conditioned"], "policy."))
        settings["alpha_conditioned"] = True
    return settings


def radd_of(model: MaskedLM, config: PolicyTrainingSettings) -> RADD:
    """Return the network whose blocks a policy copies. ValueError for another kind of model."""
    if not isinstance(model.backbone, RADD):
        raise ValueError(
            f"policy=hidden_blocks copies blocks of RADD and {config.dlm.path} is none; use dit_projection"
        )
    return model.backbone


def continued_policy(config: PolicyTrainingSettings, model: MaskedLM) -> PolicyNetwork:
    """Return the policy `init`, with a new value head if PPO needs one, and a new input if alpha is drawn and it has none.

    init_trust: subtracts the log-odds of this value from the scores of a policy that was trained to predict which tokens
    are right.
    """
    start = load_policy(shipped(str(config.init)), model=model, other_model=config.init_other_model)
    if config.init_trust is not None:
        if not start.extensible:
            raise ValueError(f"init_trust={config.init_trust} needs a policy with one score a position; leave it out")
        with torch.no_grad():
            start.output_proj.bias.sub_(math.log(config.init_trust / (1 - config.init_trust)))
    new = extensions(start, config)
    if not new:
        return start.train()
    settings = {name: value for name, value in start.config.items() if name not in ("policy_type", KEY)}
    network = type(start)(**{**settings, **new})
    network.load_state_dict(start.state_dict(), strict=False)  # all but what is new, which starts as it was made
    if isinstance(network, Agreement) and network.reviser is not None and "revises" in new:
        network.reviser.load_state_dict(start.state_dict(), strict=False)
    return network


def extensions(start: PolicyNetwork, config: PolicyTrainingSettings) -> dict[str, bool]:
    """Return the arguments of the parts that training adds to the policy `start`."""
    new = {
        "value_head": isinstance(config.algorithm, PPOSettings) and start.value_proj is None,
        "alpha_conditioned": bool(config.reward.weights_of_speed) and start.alpha_embedding is None,
    }
    new = {name: start.extensible and is_needed for name, is_needed in new.items()}
    if isinstance(start, Agreement) and isinstance(config.policy, AgreementSettings):
        new["revises"] = config.policy.revises and not start.revises
    return {name: True for name, is_needed in new.items() if is_needed}


def build_policy_learning(
    config: PolicyTrainingSettings,
    model: MaskedLM,
    network: PolicyNetwork,
    task: Task,
    reward: Reward,
    group: Processes,
) -> PolicyLearning:
    """Return the algorithm algorithm.name, which trains `network`. ValueError for settings that cannot be combined."""
    check_policy_learning(network, task, reward, config)
    algorithm, training = config.algorithm, config.training
    assert training.n_iters is not None
    updates = training.n_iters
    if isinstance(algorithm, ClippedSettings):
        updates = updates * algorithm.inner_updates + algorithm.warm_start.updates
    learner = new_learner(network, config.optim, updates, training.ema, group)
    return LEARNING[algorithm.name](model, learner, task, reward, config)


def check_policy_learning(network: PolicyNetwork, task: Task, reward: Reward, config: PolicyTrainingSettings) -> None:
    """Refuse settings that cannot be combined: ValueError names them."""
    algorithm = config.algorithm
    if config.sampler.budgets is not None and reward.teacher_forced:
        raise ValueError(
            "sampler.budgets and reward=bound do not go together: that reward does not see the last evaluation"
        )
    check_actions(network, reward, config)
    check_revision(network, config)
    check_alphas(config, network, reward)
    if isinstance(algorithm, GRPOSettings) and algorithm.experts.thresholds:
        check_experts(algorithm.experts, task.valid, reward, config.sampler.block_length)
    if (teaching := teaching_of(config)) is not None:
        check_teacher(teaching, task.valid)
        if teaching.only_correct and reward.teacher_forced:
            raise ValueError(
                "only_correct needs a reward for a whole text, which reward=bound is not; use another reward"
            )


def check_actions(network: PolicyNetwork, reward: Reward, config: PolicyTrainingSettings) -> None:
    """Refuse unknown actions, and actions that do not fit the network or the reward: ValueError."""
    algorithm = config.algorithm
    if config.eval.action not in FOR_SAMPLING:
        raise ValueError(f"eval.action={config.eval.action!r} is unknown; use one of {', '.join(FOR_SAMPLING)}")
    if isinstance(algorithm, DrawnSettings) and algorithm.action not in ACTIONS:
        raise ValueError(
            f"algorithm.action={algorithm.action!r} cannot be learnt with; use one of {', '.join(ACTIONS)}"
        )
    PolicyUnmasker(network, config.eval.action, config.eval.temperature)
    if not isinstance(algorithm, ClippedSettings):
        return
    if reward.teacher_forced and algorithm.action == "bernoulli":
        raise ValueError(
            "reward=bound charges for what is revealed and algorithm.action=bernoulli may reveal nothing; use fixed or "
            "plackett_luce"
        )
    PolicyUnmasker(network, algorithm.action)


def check_revision(network: PolicyNetwork, config: PolicyTrainingSettings) -> None:
    """Refuse settings under which a policy that opens positions again cannot learn or may never end: ValueError."""
    if not network.revises:
        return
    if config.sampler.budgets is None:
        raise ValueError("policy.revises=true: a policy that opens positions again may never end without a budget of "
                         "evaluations; give sampler.budgets=[4,6,8], for example")  # fmt: skip
    if config.sampler.cache is not None:
        raise ValueError(
            f"sampler.cache={config.sampler.cache} is for policies whose committed tokens stay; leave it out with policy.revises"
        )
    if (teaching := teaching_of(config)) is not None and teaching.expert != "answers":
        raise ValueError(
            f"expert={teaching.expert} never opens a position again, which a policy with policy.revises learns; use answers"
        )
    actions = {"eval.action": config.eval.action}
    if isinstance(config.algorithm, DrawnSettings):
        actions["algorithm.action"] = config.algorithm.action
    for name, action in actions.items():
        if action == "fixed":
            raise ValueError(f"{name}=fixed commits equal parts, and policy.revises opens positions again; use bernoulli_argmax, "
                             "bernoulli or plackett_luce")  # fmt: skip


def check_alphas(config: PolicyTrainingSettings, network: PolicyNetwork, reward: Reward) -> None:
    """Refuse weights of speed that are negative, that the policy does not use, or that it needs and does not get:
    ValueError.
    """
    given, reads = config.reward.weights_of_speed, network.alpha_embedding is not None
    if reads and not given:
        raise ValueError(
            "the weight of speed is an input of this policy; give values to draw from: reward.alphas=[0,0.3,1,3]"
        )
    if given and (not reads or isinstance(config.algorithm, VariationalSettings) or reward.teacher_forced):
        raise ValueError(
            "reward.alphas goes with grpo, ppo and imitation, a policy that can read it (not hidden_mlp) and a reward with a "
            "speed factor"
        )


def teaching_of(config: PolicyTrainingSettings) -> TeachingSettings | None:
    """Return the settings of the teacher: those of the algorithm `imitation`, or of a warm start with updates. None
    without a teacher.
    """
    algorithm = config.algorithm
    if isinstance(algorithm, ImitationSettings):
        return algorithm
    return algorithm.warm_start if isinstance(algorithm, ClippedSettings) and algorithm.warm_start.updates else None


def build_reward(
    config: PolicyTrainingSettings | RLTrainingSettings,
    model: MaskedLM,
    task: Task,
    group: Processes,
    given: TextReward | None = None,
) -> Reward:
    """Return the reward of a configuration.

    reward.name: puzzle (Sudoku solved, times a speed factor), right (functions of whether the answer is right), likelihood (under
    a causal judge on the same tokens), learned (rewards/models.py), latex (validity of formulas), bound.

    Args:
        given: of reward=learned, in place of reward.model.
    """
    reward = config.reward
    if isinstance(reward, PuzzleRewardSettings):
        if not isinstance(task, PuzzleTask):
            raise ValueError("reward=puzzle needs puzzles; use data=puzzles and a Sudoku model")
        return PuzzleReward(task.box, reward.alpha, reward.additive)
    if isinstance(reward, BoundSettings):
        if isinstance(task, QuestionTask):
            raise ValueError("reward=bound needs clean texts and questions have none; use reward=right")
        return BoundReward()
    if isinstance(reward, RightSettings):
        if not isinstance(task, ChainTask | QuestionTask):
            raise ValueError("reward=right needs questions with known answers; use data=gsm8k_math, say, or data=chain")
        return VerifiedReward(task, reward.alpha, reward.functions, reward.weights)
    if isinstance(reward, LatexSettings):
        if not isinstance(task, TextTask | QuestionTask):
            raise ValueError(
                "reward=latex reads text and this data has none; use data=latex, say, or reward=puzzle or right"
            )
        return LatexReward(
            task.tokenizer, model.mask_id, reward.bare, reward.terms.as_dict(), (reward.window[0], reward.window[1])
        )
    if isinstance(reward, LearnedSettings):
        if not isinstance(task, TextTask | QuestionTask):
            raise ValueError("reward=learned reads text and this data has none; use reward=puzzle or right")
        return learned_reward(reward, task.tokenizer, model.mask_id, group.device, given)
    assert isinstance(reward, LikelihoodSettings)
    return likelihood_reward(config, reward, model, task, group)


def likelihood_reward(
    config: PolicyTrainingSettings | RLTrainingSettings, reward: LikelihoodSettings, model: MaskedLM, task: Task,
    group: Processes,
) -> LikelihoodReward:  # fmt: skip
    """Return the log-likelihood under reward.judge. ValueError for data that is not text, and for a judge with other tokens."""
    if not isinstance(task, TextTask):
        raise ValueError("reward=likelihood reads text and this data has none; use reward=puzzle or right")
    judge, _ = load_model(shipped(str(reward.judge)), group.device, config.model.dtype)
    if (
        not isinstance(judge, CausalLM)
        or judge.vocab_size < model.vocab_size - 1
        or not same_tokens(judge, task.tokenizer)
    ):
        raise ValueError(
            f"reward.judge={reward.judge} must be a causal model on the same tokens as {config.dlm.path}; give one that was "
            "trained with its tokenizer, or use reward=learned, which reads text"
        )

    def mean_log_prob(
        tokens: Int[Tensor, "row position"], counted: Bool[Tensor, "row position"]
    ) -> Float[Tensor, "row"]:
        """Return the judge's mean log-probability. Masks left by a training rollout are judged as start tokens, which are
        rare inside a text.
        """
        each = sequence_log_prob(judge, tokens.masked_fill(tokens == model.mask_id, judge.start_id))
        return (each * counted).sum(1) / counted.sum(1).clamp(min=1)

    return LikelihoodReward(mean_log_prob, reward.entropy_floor, reward.weight, reward.alpha, task.ends)


def learned_reward(
    reward: LearnedSettings, tokenizer: Any, mask_id: int, device: torch.device, given: TextReward | None = None
) -> LearnedReward:
    """Return reward.model and reward.judge, as rewards of texts. given: replaces reward.model."""
    if reward.model is None:
        raise ValueError(
            "reward=learned needs reward.model: a run of train-reward, vader, or another of rewards/models.py"
        )
    model = given or load_reward(shipped(str(reward.model)), device)
    judge = None if reward.judge is None else load_reward(shipped(str(reward.judge)), device)
    assert isinstance(model, TextReward) and (judge is None or isinstance(judge, TextReward))
    return LearnedReward(model, tokenizer, mask_id, judge, reward.entropy_floor, reward.weight, reward.alpha)


def build_task(config: TaskSettings, model: MaskedLM) -> Task:
    """Return the task that `data` describes, as prompts for this model."""
    data = config.data
    if isinstance(data, PuzzleSettings):
        return PuzzleTask(data)
    if isinstance(data, ChainSettings):
        return ChainTask(data, config.eval.batch_size)
    if isinstance(data, QuestionSettings):
        return QuestionTask(model, data, config.seed)
    if not isinstance(data, TextSettings):
        raise ValueError(
            f"data.kind={data.kind} has no prompts; use data=puzzles, chain, stories, or another with prompts"
        )
    length = config.sampler.length or model.max_length
    own = model.tokenizer if is_answers(data.train) or data.tokenizer == "model" else None
    if own is None and data.tokenizer == "model":
        raise ValueError(f"data.tokenizer=model, and {config.dlm.path} came without one; give a directory or a hub id")
    return TextTask(data, length, model.mask_id, config.eval.batch_size, config.seed, own)


def check_masked(config: TaskSettings, model: MaskedLM) -> None:
    """Refuse, before any work, a causal model, which has no choice of positions: ValueError."""
    if model.causal:
        raise ValueError(
            f"dlm.path={config.dlm.path} is causal: it has one order and nothing to learn; give a masked model"
        )


def check_data(config: TaskSettings, model: MaskedLM, task: Task) -> None:
    """Refuse, before any work, a causal model, and data of another vocabulary: ValueError."""
    check_masked(config, model)
    if isinstance(task, QuestionTask) or task.tokenizer is model.tokenizer:  # reads by the model's own
        return
    tokens = task.tokenizer.size if isinstance(task, PuzzleTask) else len(task.tokenizer)
    if tokens not in (model.mask_id, model.vocab_size):  # RADD's mask is past the tokenizer's, LLaDA's one of them
        raise ValueError(
            f"the data has {tokens} tokens and {config.dlm.path} writes {model.mask_id}; use the data that the model is of "
            "(data=puzzles for a Sudoku; for text data.tokenizer=model, which encodes by the model's own)"
        )
    if not isinstance(task, PuzzleTask) and not same_tokens(model, task.tokenizer):
        named = config.data.tokenizer if isinstance(config.data, TextSettings) else None
        raise ValueError(
            f"data.tokenizer={named} has as many tokens as {config.dlm.path}, and others; use "
            "data.tokenizer=model, which encodes by the model's own"
        )


def same_tokens(model: MaskedLM, tokenizer: Any) -> bool:
    """Return whether ids of `tokenizer` have the same meaning for the model; True for a model without a tokenizer."""
    if model.tokenizer is None or tokenizer is None:
        return True
    return token_digest(tokenizer) == token_digest(model.tokenizer)


def stored_config(model: MaskedLM, loss: str) -> dict:
    """Return config.json of a loaded model that was trained further by `loss`.

    This is the dictionary of a causal model, or that of RADD or SEDD with the name of the loss, which decides whether the
    sums of a SEDD's scores are trained.
    """
    if isinstance(model, LlamaLM):
        return model.config
    config = model.backbone.config
    if not isinstance(config, dict):
        return config.to_dict()
    return config | {"training": config.get("training", {}) | {"loss_type": loss}}


def rollout_settings(config: RLTrainingSettings) -> SamplerSettings:
    """Return the sampler settings of `sampler`, for a run that trains the model by its own samples."""
    return SamplerSettings.of(asdict(config.sampler), strict=False)


def build_rollout_decoder(config: RLTrainingSettings, model: MaskedLM) -> Strategy:
    """Return the decoder of `sampler`: a rule or a policy. ValueError for samples that cannot be learned from."""
    if not config.sampler.temperature > 0:
        raise ValueError(
            f"sampler.temperature={config.sampler.temperature} gives the same text every time, which teaches nothing; "
            "give a number above 0, such as 1"
        )
    return build_rule_decoder(rollout_settings(config), model)


def build_preferences(
    config: RewardRunSettings | PreferenceRunSettings,
) -> tuple[list[Preference], list[Preference], Counter[str]]:
    """Return preferences for training, held-out preferences, and the number of dropped rows by reason."""
    data = config.data
    return split_preferences(
        data.train, data.valid, cache_dir=data.cache_dir, count=data.count, valid_count=data.valid_count,
        held_out=data.held_out, seed=config.seed,
    )  # fmt: skip


def build_source(
    config: TwistTrainingSettings, model: MaskedLM, twist: TwistModel, reward: TextReward | None = None
) -> Source:
    """Return the source of sequences: prompt, length, model, twist and target. reward: of the target, of a Python caller."""
    say_if_newline_is_spelled(str(config.prompt), "prompt")
    row = canvas_of(model, str(config.prompt))
    prompt = row[row != model.mask_id]
    target = build_target(config.target.values(), model, len(prompt), config.length, reward)
    condition = config.target.tokens if isinstance(config.target, InfillingTarget) else 0
    return Source(twist, target, prompt.to(next(model.parameters()).device), config.length, condition)


def origin_of(config: TwistTrainingSettings, source: Source) -> Origin:
    """Return the origin of exact samples of this run's target: its settings, and digests of a classifier's or reward's
    directory.
    """
    target = config.target.values()
    words = json.dumps(target, sort_keys=True)
    for key in ("classifier", "reward"):
        folder = Path(reward_folder(shipped(str(target.get(key)))))
        if folder.is_dir():
            words += f" {key} {folder_digest(folder)}"
    return Origin(tuple(source.prompt.tolist()), source.length, model_digest(source.model), words)
