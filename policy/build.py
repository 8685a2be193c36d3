"""From a configuration to a strategy and a canvas: what every command that samples shares.

Settings are those of configs/sampler/default.yaml; everything wrong with them is refused here, before any work.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import torch
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from dlm.board import BoardTokenizer
from dlm.encoding import check_ids, message_ids, model_ids, unwritable
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM, SeddLM
from policy.checkpoints import load_policy
from policy.networks import HiddenMLP
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker
from samplers.scores import PREDICTORS
from samplers.where import WHERE, AsSampled, Window, check_confidence

ROOT = Path(__file__).parents[1]
STRATEGIES = (*WHERE, "policy")  # and, for SEDD, PREDICTORS
ACTIONS = (
    "fixed",
    "bernoulli_argmax",
    "plackett_luce",
    "threshold",
)  # those that leave no mask; `bernoulli` is for training
RULE_SETTINGS = {
    "threshold": "threshold",
    "window": "threshold",
    "factor": "factor",
    "entropy_bound": "entropy_bound",
    "confidence_noisy": "noise",
}
# In a template. The space before a mask belongs to the word that will stand there; `\[MASK]` is text.
MASKS = re.compile(r" ?(?<!\\)\[MASK(?::(\d+))?\]")
ESCAPED_MASK = re.compile(r"\\(\[MASK(?::\d+)?\])")


def shipped(path: str) -> str:
    """`example/...` of this repository, whatever directory the command runs in; any other path as it is."""
    return str(ROOT / path) if path.startswith("example/") else path


def check_known(name: str | None, more: tuple[str, ...] = ()) -> None:
    """Refuse an unknown strategy, with the nearest name. more: known besides."""
    known = (*STRATEGIES, *PREDICTORS, *more)
    if name is not None and name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? Expected" if near else "expected"
        raise ValueError(f"strategy {name!r} is unknown; {hint} one of {', '.join(known)}")


def check_policy_keys(settings: object) -> None:
    """Refuse a path in the place of the keys of `sampler.policy`."""
    if not isinstance(settings, DictConfig):
        raise ValueError(
            f"sampler.policy={settings} takes the place of several keys; say sampler.policy.path={settings}"
        )


def strategy_name(name: str | None, model: MaskedLM) -> str:
    """The strategy to use: the default is direct, for a causal model leftmost, its only legal order."""
    check_known(name)
    if name in PREDICTORS and not isinstance(model, SeddLM):
        raise ValueError(f"strategy {name!r} steps on the scores of a SEDD, and this model is none; use direct")
    if model.causal and name not in (None, "leftmost"):
        raise ValueError(f"strategy {name!r} needs a masked model and this one is causal; use leftmost")
    return name or ("leftmost" if model.causal else "direct")


def build_strategy(config: DictConfig, model: MaskedLM) -> Strategy:
    """Where and what, as `config.sampler` says. Raises ValueError for anything that it or this model does not allow."""
    sampler = config.sampler
    name = strategy_name(sampler.strategy, model)
    if name in PREDICTORS:
        raise ValueError(
            f"strategy {name!r} decides where and what at once, on the whole canvas; run_sample.py runs it"
        )
    what = TokenRule(float(sampler.temperature), float(sampler.top_p), sampler.top_k)
    if name == "policy":
        policy = _policy(sampler.policy, model)
        check_alpha(policy.network, sampler.alpha)
        check_confidence(sampler.get("confidence", "model"), name, "sampler.confidence")
        return Strategy(policy, what)
    check_alpha(None, sampler.alpha)
    confidence = sampler.get("confidence", "model")
    check_confidence(confidence, name, "sampler.confidence")
    rule = _rule(sampler, name)
    return Strategy(AsSampled(rule, what) if confidence == "sampling" else rule, what)


def _rule(sampler: DictConfig, name: str) -> Unmasker:
    """A rule of WHERE with its settings."""
    if name not in RULE_SETTINGS:
        return WHERE[name]()
    key = RULE_SETTINGS[name]
    highest = highest_setting(name)
    if not isinstance(sampler[key], int | float) or not 0 <= sampler[key] <= highest:
        raise ValueError(f"sampler.{key}={sampler[key]} must be a number from 0 to {highest}; change it")
    if name == "window":
        check_window(sampler.window, "sampler.window")
        return Window(float(sampler.threshold), sampler.window)
    return WHERE[name](float(sampler[key]))


def highest_setting(name: str) -> float:
    """The largest value of the setting of a rule of RULE_SETTINGS: 1 of a probability."""
    return 1.0 if RULE_SETTINGS[name] == "threshold" else float("inf")


def check_window(window: object, setting: str) -> None:
    """Refuse a width of the rule `window` that is no positive whole number. setting: its name, for the message."""
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"{setting}={window} must be a whole number of at least 1; change it")


def score_predictor(config: DictConfig, model: MaskedLM) -> str | None:
    """The predictor where the strategy is one of SEDD's own samplers; None otherwise. Raises ValueError for settings that it has
    not: it samples the scores' own law."""
    sampler = config.sampler
    name = strategy_name(sampler.strategy, model)
    if name not in PREDICTORS:
        return None
    neutral = {"temperature": 1, "top_p": 1, "top_k": 0, "guidance": 0, "budget": None, "block_length": None, "cache": None,
               "refresh": None, "alpha": None, "stop": False, "logits_eos_inf": False,
               "confidence_eos_eot_inf": False, "confidence": "model"}  # fmt: skip
    if wrong := [f"sampler.{key}={sampler[key]}" for key, value in neutral.items() if sampler.get(key, value) != value]:
        raise ValueError(
            f"strategy {name!r} samples the model's own scores on the whole canvas; leave {', '.join(wrong)} out, or use "
            "another strategy"
        )
    return name


def check_alpha(network: object, alpha: object) -> None:
    """Refuse a weight of speed that nobody reads, and a policy that waits for one. network: None for a rule."""
    if getattr(network, "alpha_embedding", None) is None:
        if alpha is not None:
            raise ValueError(
                f"alpha={alpha} is read by policies that were trained with reward.alphas only; leave it out"
            )
    elif isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha >= 0:
        raise ValueError(
            f"this policy is told the weight of speed and alpha is {alpha}; give a number of at least 0: sampler.alpha=1, "
            "or --alpha 1"
        )


def _policy(settings: DictConfig, model: MaskedLM) -> PolicyUnmasker:
    check_policy_keys(settings)
    action = settings.action or "fixed"
    if action not in ACTIONS:
        raise ValueError(f"sampler.policy.action={action!r} cannot be sampled from; use one of {', '.join(ACTIONS)}")
    network = load_policy(shipped(str(settings.path)), model=model, other_model=bool(settings.get("other_model")))
    if isinstance(network, HiddenMLP) and action != "fixed":
        raise ValueError(
            f"the policy {settings.path} scores positions against each other (hidden_mlp), so sampler.policy.action "
            f"must be fixed, not {action}; leave it out"
        )
    network.to(next(model.parameters()).device)
    return PolicyUnmasker(network, action, float(settings.temperature), float(settings.beta), float(settings.threshold))


def canvas_of(
    model: MaskedLM,
    prefix: str | None = None,
    suffix: str | None = None,
    template: str | None = None,
    length: int | None = None,
    chat: bool = False,
) -> Int[Tensor, "position"]:
    """One row to fill in: masks between `prefix` and `suffix`, or where `template` has [MASK:n].

    Text is text: names of special tokens in it, the mask among them, stand for their letters; a template writes [MASK] as
    \\[MASK]. chat: the prefix is a user's message, in the model's chat template.
    length: positions; by default the model's longest, or the template's own; a template is continued by masks up to it.
    A Sudoku model's canvas is its board and `prefix` the puzzle. Raises ValueError for what does not fit.
    """
    if isinstance(model.tokenizer, BoardTokenizer):
        if suffix is not None or template is not None or chat:
            raise ValueError("a Sudoku model takes the puzzle as its prompt; leave suffix, template and chat out")
        cells = model.tokenizer.size**2
        if length not in (None, cells):
            raise ValueError(f"length={length} is not that of a board of {cells} cells; leave it out")
        row = [model.mask_id] * cells if prefix is None else model.tokenizer.encode(prefix)
        return _with_something_to_write(row, model)
    if template is not None and (prefix is not None or suffix is not None):
        raise ValueError("template stands for the whole canvas; leave prefix and suffix out, or write them into it")
    if model.causal and (suffix is not None or template is not None):
        raise ValueError("a causal model cannot see what stands to the right of a mask; give it a prefix only")
    if length is not None and not 1 <= length <= model.max_length:
        raise ValueError(f"length={length} must be from 1 to the model's {model.max_length}; change it")
    if template is None:
        length = length or model.max_length
        start, end = _message(model, prefix) if chat else _encode(model, prefix), _encode(model, suffix)
    else:
        start, end = _fill_in(model, template), []
        length = length or len(start)
    given = len(start) + len(end)
    if given > length or length > model.max_length:
        raise ValueError(
            f"the prompt has {given} positions and the canvas {min(length, model.max_length)}; shorten it or raise length "
            f"(at most {model.max_length})"
        )
    return _with_something_to_write([*start, *[model.mask_id] * (length - given), *end], model)


def _with_something_to_write(row: list[int], model: MaskedLM) -> Int[Tensor, "position"]:
    if model.mask_id not in row:
        raise ValueError(f"the prompt fills all {len(row)} positions; leave some to write")
    return torch.tensor(row)


def _encode(model: MaskedLM, text: str | None) -> list[int]:
    if not text:
        return []
    if model.tokenizer is None:
        raise ValueError(
            f"the tokenizer of {model.model_id} cannot be loaded, so it takes no prompt; add tokenizer.json"
        )
    if lost := unwritable(model.tokenizer, text):
        raise ValueError(
            f"the prompt {text[-60:]!r} holds {lost!r}, for which the tokenizer of {model.model_id} has no token; leave it out, "
            "and write [MASK:n] in a template (--template) for positions to fill"
        )
    return model_ids(model, text, "the prompt")


def _message(model: MaskedLM, message: str | None) -> list[int]:
    """A user's message in the model's chat template, up to where the answer begins. ValueError without one."""
    if message is None or getattr(model.tokenizer, "chat_template", None) is None:
        what = "there is no prompt" if message is None else f"{model.model_id} has no chat template"
        raise ValueError(f"--chat makes a message of the prompt, and {what}; leave --chat out")
    tokens = message_ids(model.tokenizer, message)
    check_ids(model, tokens, f"the prompt {message[-60:]!r}")
    return tokens


def _fill_in(model: MaskedLM, template: str) -> list[int]:
    if not MASKS.search(template):
        raise ValueError(f"the template {template!r} has nothing to fill; write [MASK:n] where n tokens are to stand")
    counts = [int(match[1] or 1) for match in MASKS.finditer(template)]
    if min(counts) < 1:
        raise ValueError(f"the template {template!r} has [MASK:0]; write [MASK:n] with n of at least 1")
    if sum(counts) > model.max_length:
        raise ValueError(
            f"the template {template!r} asks for too many positions; shorten it (at most {model.max_length})"
        )
    row: list[int] = []
    at = 0
    for match in [*MASKS.finditer(template), None]:
        text = template[at : match.start() if match else len(template)]
        row += _encode(model, ESCAPED_MASK.sub(r"\1", text))
        if match:
            row += [model.mask_id] * int(match[1] or 1)
            at = match.end()
    return row
