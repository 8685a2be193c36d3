"""Load a model, sample from it, measure what was sampled: the functions behind `import unmask`.

Example:
    >>> import unmask
    >>> model = unmask.load("example/stories")
    >>> out = unmask.sample(model, "Once upon a time", strategy="confidence", steps=4, length=24)
    >>> out.texts[0].startswith("Once upon a time"), out.nfe.tolist()
    (True, [4])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn
from typing_extensions import TypeIs

from dlm.board import BoardTokenizer
from dlm.canvas import canvas_of, chat_canvas
from dlm.checked import check_model
from dlm.masked_lm import MaskedLM
from dlm.prompts import Prompts
from evaluation.metrics import cost, quality, solved
from evaluation.replay import replay_html
from evaluation.text import load_judge
from load_model import load_model
from policy.base import PolicyNetwork
from policy.checkpoints import load_policy as load_policy_network
from policy.unmasker import PolicyReviser, PolicyUnmasker, check_alpha
from rewards.functions import decoding_reward, name_of
from rewards.models import RewardModel, TextReward
from rewards.models import load_reward as load_reward_model
from samplers.checked import CheckedDecoder, CheckedRule, CheckedStepDecoder
from samplers.editing import WINO
from samplers.heuristics import UNMASKING_RULES
from samplers.live import batch_progress
from samplers.loop import Decoder, OnStep, StepDecoder, Strategy, Unmasker
from samplers.names import BEHIND_PROMPT, EVERY_STRATEGY
from samplers.samples import Samples, joined
from samplers.settings import SamplerSettings
from training.devices import device_of
from training.fields import Settings
from training.files import make_directory, write_text
from training.hub import shipped
from training.progress import Advance, nothing, progress
from training.ranges import NAME, as_text
from unmask.arguments import Prompt, check_arguments, check_policy, check_used, checked_prompts, is_prompt
from unmask.decoders import (
    Layout,
    build_decoder,
    build_options,
    policy_rule,
    token_sampler,
    twist_description,
    with_revision,
)
from unmask.trained import Trained, result_of

StrategyLike = str | SamplerSettings | nn.Module | Unmasker | Decoder | Trained
SHOWN_CHARACTERS = 60  # of the first sample, in the representation of a generation
RewardLike = str | TextReward | Callable[[list[str]], Sequence[float] | Tensor]


def load(path: str, device: str = "auto", dtype: str = "float32") -> MaskedLM:
    """Load a masked-diffusion (or causal) language model, frozen.

    Args:
        path: a shipped model (`example/stories`), a directory, a training run, or an id of the hub.
        device: auto, cpu or cuda.
        dtype: float32, bfloat16 or float16, in which the network computes.

    Raises:
        ValueError: says what is wrong with the path or the files.
    """
    model = load_model(path, device_of(device), dtype)[0]
    model.source = path
    return model


def load_policy(path: str, model: MaskedLM | None = None) -> nn.Module:
    """Load a trained unmasking policy.

    Args:
        path: a shipped policy (`example/014609`), a directory, a training run, a file, or an id of the hub (`OWNER/NAME`).
        model: the model to use it with. A policy that does not fit it is refused.

    Raises:
        ValueError: there is no policy, or it was trained on another model.
    """
    return load_policy_network(shipped(path), model=result_of(model))


def register(name: str, rule: Callable[[], Unmasker]) -> None:
    """Register an unmasking rule under a name, for `strategy=name` and, in this process, for `--strategy name` of the commands.

    Args:
        name: a new name.
        rule: makes the rule, without arguments: a class with the method `choose`, or a function that returns such an object.

    Raises:
        ValueError: the name is taken, or `rule` makes an object without `choose`.

    Example:
        unmask.register("left_right", LeftRight)
        unmask.sample(model, "Once", strategy="left_right", steps=8)
        unmask.main(["sample", "--strategy", "left_right"])  # the command line, with the new name
    """
    if not NAME.holds(name):
        raise ValueError(f"the name {name!r} of a rule must be {NAME.allowed}; change it")
    if name in UNMASKING_RULES or name in EVERY_STRATEGY:
        raise ValueError(f"the strategy {name!r} exists already; give another name")
    if not callable(rule):
        raise ValueError(
            f"the rule {name!r} is an object of type {type(rule).__name__}, which makes no rule; register its class, or a "
            "function that returns the object"
        )
    if not isinstance(made := rule(), Unmasker) or isinstance(made, type):
        raise ValueError(f"{name!r} makes a {type(made).__name__}, which has no method `choose`; see docs/adding.md")
    UNMASKING_RULES[name] = lambda: CheckedRule(rule())


def load_reward(path: str, device: str = "auto") -> RewardModel | TextReward:
    """Load a reward: a run of train-reward, a sequence classifier, or a name such as `vader`."""
    return load_reward_model(shipped(path), device_of(device))


@dataclass(repr=False)
class Generation:
    """The result of `sample`: samples in the order of the prompts, `num_samples` of each."""

    model: MaskedLM
    samples: Samples

    def __repr__(self) -> str:
        texts = self.texts
        first = texts[0] if len(texts[0]) <= SHOWN_CHARACTERS else f"{texts[0][:SHOWN_CHARACTERS]}..."
        return f"<Generation of {len(texts)} samples, {float(self.nfe.float().mean()):.1f} NFE: {first!r}>"

    @property
    def texts(self) -> list[str]:
        """Each sample as text, the prompt included, up to the end of the answer."""
        return [self._decode(row[kept]) for row, kept in zip(self.samples.tokens, self.samples.counted, strict=True)]

    @property
    def responses(self) -> list[str]:
        """The answer of each sample, without the prompt and the end token."""
        return [self._decode(row[kept]) for row, kept in zip(self.samples.tokens, self.samples.answer, strict=True)]

    @property
    def tokens(self) -> Int[Tensor, "sample position"]:
        """Token ids."""
        return self.samples.tokens

    @property
    def unmasked_at(self) -> Int[Tensor, "sample position"]:
        """The decoding step at which each position was committed; -1 for the prompt and for positions that never were."""
        return self.samples.unmasked_at

    @property
    def nfe(self) -> Int[Tensor, "sample"]:
        """Network evaluations of each sample."""
        return self.samples.evaluations

    @property
    def log_z(self) -> Float64[Tensor, "sample"] | None:
        """Estimate of log Z of each sample, of particle filters; None without particles."""
        return None if self.samples.particles is None else self.samples.particles.log_z

    def metrics(self, judge: str | None = None) -> dict[str, Any]:
        """Return quality and cost of the samples: entropy (nats), distinct-n, NFE, tokens per forward (TPF) with a
        95 % interval, tokens per second, CPU seconds; for boards the share of solved ones.

        Args:
            judge: a causal model for generative perplexity (`smollm2`, a directory, an id of the hub). None: no perplexity.
        """
        loaded = None
        if judge is not None:
            loaded = load_judge(judge, str(self.model.device))
        tokens, counted = self.samples.tokens.cpu(), self.samples.counted.cpu()
        record = quality(tokens, self.texts, loaded, self.model.tokenizer, counted)
        board = isinstance(self.model.tokenizer, BoardTokenizer)
        box = tuple(self.model.backbone.config["puzzle"]["box"]) if board else None
        return record | ({} if box is None else solved(tokens, box)) | cost([self.samples])

    def save_replay(self, path: str | Path, name: str = "samples") -> Path:
        """Write a page that replays the decoding step by step; returns its path."""
        board = self.model.tokenizer.size if isinstance(self.model.tokenizer, BoardTokenizer) else None
        page = replay_html({name: self.samples}, lambda token: self._decode(torch.tensor([token])), grid_columns=board)
        make_directory(Path(path).parent, f"path={path}")
        write_text(Path(path), page)
        return Path(path)

    def _decode(self, ids: Int[Tensor, "token"]) -> str:
        return self.model.tokenizer.decode(ids.tolist()) if self.model.tokenizer else " ".join(map(str, ids.tolist()))


@dataclass(frozen=True)
class Step:
    """One decoding step, as `stream` yields it.

    rows: numbers of the samples that are still being decoded; tokens: their canvases; open: positions that are not committed yet;
    nfe: network evaluations so far.
    """

    rows: Int[Tensor, "active"]
    tokens: Int[Tensor, "active position"]
    open: Bool[Tensor, "active position"]
    nfe: Int[Tensor, "active"]


def sample(
    model: MaskedLM | Trained[MaskedLM],
    prompts: Prompt | Sequence[Prompt] | None = None,
    *,
    strategy: StrategyLike | None = None,
    reward: RewardLike | None = None,
    template: str | None = None,
    suffix: str | None = None,
    length: int | None = None,
    num_samples: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Generation:
    """Decode prompts with a strategy.

    A sample depends on its prompt, its number and the seed, and not on the other prompts: prompts of different lengths are
    decoded in groups of equal length. A terminal shows a progress bar, unless `on_step` is given.

    Args:
        prompts: a text, token ids, chat messages (`[{"role": "user", "content": ...}]`), or a list of such prompts; of a model
            of boards, boards with '.' for a blank. None: blank canvases, with a twist the prompt that it was learnt for.
        strategy: the name of a strategy, settings, a policy (of `train_policy` or `load_policy`), an unmasking rule, or any
            object with the method `decode` of `samplers.loop.Decoder`. None: direct, of a causal model leftmost.
        reward: of strategies that read one: a name, a reward model, or a function of a list of texts.
        template: a text in which [MASK:n] stands for n open positions, in place of prompts.
        suffix: a text that ends every canvas; with the twist of an infilling target the text that follows the canvas.
        length: positions of a canvas, prompt included. None: the model's longest, or the template's own; with a twist the length
            that it was learnt for.
        num_samples: samples of each prompt.
        batch_size: samples that are decoded together; it changes speed and memory, not the samples.
        on_step: is called after each decoding step (`samplers.loop.OnStep`).
        settings: fields of `SamplerSettings`, such as steps=16, temperature=0.9, block_length=32, guide={"beta": 2}.

    Raises:
        ValueError: for settings, prompts or objects that do not fit; one sentence that names them.
    """
    model, reward = result_of(model), result_of(reward)
    strategy = strategy.result if isinstance(strategy, Trained) else strategy
    check_model(model)
    ranged = {"template": template, "suffix": suffix, "length": length, "num_samples": num_samples}
    check_arguments(ranged | {"batch_size": batch_size, "seed": seed}, on_step)
    chosen = sampler_settings(strategy, settings)
    check_used(model, strategy, chosen, settings, reward)
    reward = reward if reward is None or isinstance(reward, str) else decoding_reward(reward)
    prompts = checked_prompts(model, prompts)
    check_policy(strategy, chosen, model)
    starts = [
        start for start in starts_of(model, prompts, chosen, template, suffix, length) for _ in range(num_samples)
    ]
    with progress("sampling", len(starts), quiet=on_step is not None) as advance:
        batches = decode_starts(model, starts, strategy, chosen, reward, batch_size, seed, suffix, on_step, advance)
        decoded = list(batches)
    order = torch.cat([numbers for numbers, _ in decoded]).argsort()
    return Generation(model, joined([batch for _, batch in decoded]).take(order.to(model.device)))


def decode_starts(
    model: MaskedLM,
    starts: Sequence[Prompts],
    strategy: StrategyLike | None,
    settings: SamplerSettings,
    reward: RewardLike | None = None,
    batch_size: int = 32,
    seed: int = 0,
    suffix: str | None = None,
    on_step: OnStep | None = None,
    advance: Advance = nothing,
) -> Iterator[tuple[Int[Tensor, "sample"], Samples]]:
    """Decode canvases in groups of equal layout; yield the numbers of the samples of each batch, and the batch.

    Args:
        suffix: the text that a twist of an infilling target leads to.
        advance: of a progress bar in samples; it takes the place of `on_step`.
    """
    groups: dict[Layout, list[int]] = {}
    for number, start in enumerate(starts):
        groups.setdefault(Layout.of(start, model.mask_id), []).append(number)
    for layout, numbers in groups.items():
        decoder = decoder_of(strategy, settings, model, layout, seed, reward, suffix)
        options = build_options(settings, model, layout)
        board = isinstance(model.tokenizer, BoardTokenizer)
        first = layout.first if behind_prompt(strategy, settings) and not board else 0
        for part in torch.tensor(numbers).split(batch_size):
            batch = stacked([starts[number] for number in part.tolist()], model.mask_id, first).to(model.device)
            with batch_progress(advance, len(part), on_step) as step:
                samples = decoder.decode(model, batch, options, seed, part.to(model.device), on_step=step)
            yield part, samples


def stream(
    model: MaskedLM | Trained[MaskedLM], prompts: Prompt | Sequence[Prompt] | None = None, **arguments: Any
) -> Iterator[Step]:
    """Decode as `sample` does, and yield every decoding step of every batch. Arguments are those of `sample`.

    The decoding waits until the step is taken, and stops where the iterator is closed.
    """
    if "on_step" in arguments:
        raise ValueError("on_step would replace the steps that stream yields; leave it out, or use unmask.sample")
    steps: Queue[Step | BaseException | None] = Queue(maxsize=1)
    closed = False

    def on_step(observation: Any, rows: Int[Tensor, "active"]) -> None:
        state = (rows, observation.tokens, observation.masked, observation.evaluations)
        # Copies: the decoding goes on and changes its tensors while the step is read.
        steps.put(Step(*(values.to("cpu", copy=True) for values in state)))
        if closed:  # also where the iterator was closed while the step waited
            raise StreamClosed

    def work() -> None:
        try:
            sample(model, prompts, on_step=on_step, **arguments)
            steps.put(None)
        except StreamClosed:
            pass
        except BaseException as error:  # raised where the steps are read
            steps.put(error)

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        closed = True
        while worker.is_alive():  # it may wait to hand over a step
            if not steps.empty():
                steps.get()
            worker.join(0.01)


class StreamClosed(Exception):
    """Raised in the decoding if the reader of a stream has left its loop."""


# ------------------------------------------------------------------------------------------------- from arguments to objects


def sampler_settings(strategy: StrategyLike | None, settings: Mapping[str, Any]) -> SamplerSettings:
    """Return the sampler settings that a strategy and keyword arguments describe."""
    if isinstance(strategy, SamplerSettings):
        return SamplerSettings.of(merged(vars_of(strategy), settings))
    named = {"strategy": strategy} if isinstance(strategy, str) else {}
    return SamplerSettings.of(named | dict(settings))


def merged(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the given ones in place of their own; of nested settings only the given fields change."""
    nested = {
        name: {**settings[name], **value}
        for name, value in given.items()
        if isinstance(value, Mapping) and isinstance(settings.get(name), Mapping)
    }
    return {**settings, **given, **nested}


def vars_of(settings: SamplerSettings) -> dict[str, Any]:
    """Return the fields of settings; nested settings become dictionaries."""
    nested = {name: vars(value) for name, value in vars(settings).items() if isinstance(value, Settings)}
    return vars(settings) | nested


def behind_prompt(strategy: StrategyLike | None, settings: SamplerSettings) -> bool:
    """Return whether a strategy distinguishes the positions behind the prompt: blocks, caches, policies, and shadow blocks."""
    in_blocks = settings.block_length is not None or settings.cache is not None
    of_response = isinstance(strategy, PolicyNetwork | PolicyUnmasker | PolicyReviser | WINO)
    return in_blocks or of_response or settings.strategy in BEHIND_PROMPT


def decoder_of(
    strategy: StrategyLike | None,
    settings: SamplerSettings,
    model: MaskedLM,
    layout: Layout,
    seed: int,
    reward: RewardLike | None,
    suffix: str | None = None,
) -> Decoder:
    """Return the decoder that `strategy` describes. ValueError for an object that is none."""
    if isinstance(strategy, PolicyNetwork):
        check_alpha(strategy, settings.alpha)
        return with_revision(Strategy(policy_rule(strategy, settings.policy, model), token_sampler(settings)), settings)
    if isinstance(strategy, type):
        raise ValueError(f"strategy={strategy.__name__} is a class; give an object of it, {strategy.__name__}()")
    if isinstance(strategy, Unmasker):
        return with_revision(Strategy(own_rule(strategy), token_sampler(settings)), settings)
    if type(strategy) is Strategy:
        return replace(strategy, rule=own_rule(strategy.rule))
    if isinstance(strategy, StepDecoder):
        return CheckedStepDecoder(strategy)
    if isinstance(strategy, Decoder):
        return CheckedDecoder(strategy)
    if strategy is not None and not isinstance(strategy, str | SamplerSettings):
        raise ValueError(
            f"strategy={as_text(strategy)} is of type {type(strategy).__name__}, which has neither `decode` (a decoder) nor "
            "`choose` (an unmasking rule); give a name, settings, a policy network, or an object with one of these methods"
        )
    if isinstance(reward, str):
        settings, reward = replace(settings, guide=replace(settings.guide, reward=reward)), None
    if reward is not None:
        reward = decoding_reward(reward)
        settings = replace(settings, guide=replace(settings.guide, reward=name_of(reward)))  # its name, for messages
    return build_decoder(settings, model, layout, seed, suffix, reward)


def own_rule(rule: Unmasker) -> Unmasker:
    """Return a user's rule with checks of its choices. Policies need no check, because they select open positions only."""
    return rule if isinstance(rule, PolicyUnmasker) else CheckedRule(rule)


def starts_of(
    model: MaskedLM,
    prompts: Prompt | Sequence[Prompt] | None,
    settings: SamplerSettings,
    template: str | None = None,
    suffix: str | None = None,
    length: int | None = None,
) -> list[Prompts]:
    """Each prompt on its canvas. Of twisted SMC the prompt and the length that the twist was learnt for are the defaults."""
    if settings.strategy != "twisted_smc":
        return start_prompts(model, prompts, template, suffix, length)
    about = twist_description(settings.smc)
    if about["target"]["kind"] == "infilling":
        suffix = None  # it is the condition of the twist, and not on the canvas
    if prompts is None and template is None:
        prompts = about["prompt"]
    starts = start_prompts(model, prompts, template, suffix, length)
    if length is not None or prompts is None:
        return starts
    each = [prompts] if is_prompt(prompts) else list(prompts)
    given = [start.canvas.shape[1] - int(start.open_positions(model.mask_id).sum()) for start in starts]
    return [
        start_prompt(model, prompt, suffix, known + about["length"]) for prompt, known in zip(each, given, strict=True)
    ]


def start_prompts(
    model: MaskedLM,
    prompts: Prompt | Sequence[Prompt] | None,
    template: str | None,
    suffix: str | None,
    length: int | None,
) -> list[Prompts]:
    """Return each prompt on its canvas."""
    if template is not None:
        if prompts is not None:
            raise ValueError("template stands for the whole canvas; leave prompts out, or write them into it")
        return [Prompts(canvas_of(model, template=template, suffix=suffix, length=length)[None])]
    if prompts is None or is_prompt(prompts):
        return [start_prompt(model, prompts, suffix, length)]
    if not prompts:
        raise ValueError("prompts is empty; give at least one, or leave it out for blank canvases")
    return [start_prompt(model, prompt, suffix, length) for prompt in prompts]


def stacked(starts: Sequence[Prompts], mask_id: int, prompt_length: int) -> Prompts:
    """Return canvases of one length as one batch."""
    is_open = torch.cat([start.open_positions(mask_id) for start in starts])
    return Prompts(torch.cat([start.canvas for start in starts]), prompt_length=prompt_length, open=is_open)


def is_chat(prompt: Sequence[int] | Sequence[Mapping[str, str]]) -> TypeIs[Sequence[Mapping[str, str]]]:
    """Return whether a prompt is a list of chat messages, and not token ids."""
    return isinstance(prompt[0], Mapping)


def start_prompt(model: MaskedLM, prompt: Prompt | None, suffix: str | None, length: int | None) -> Prompts:
    """Return the canvas of one prompt."""
    if prompt is None or isinstance(prompt, str):
        return Prompts(canvas_of(model, prompt, suffix, length=length)[None])
    if suffix is not None:
        raise ValueError("suffix is for prompts that are texts; write it into the token ids, or leave it out")
    if is_chat(prompt):
        return Prompts(chat_canvas(model, prompt, length)[None])
    ids, positions = list(prompt), length or model.max_length
    if len(ids) >= positions:
        raise ValueError(
            f"the prompt has {len(ids)} tokens and the canvas {positions} positions; shorten it or raise length"
        )
    return Prompts.from_ids([ids], positions - len(ids), model.mask_id)
