"""lm-evaluation-harness with the models of Unmask: the command line of the harness, with the additional model `unmask`.

    python -m unmask.lm_eval --model unmask --model_args path=example/stories,strategy=confidence,steps=16 --tasks TASK

--model_args: path (all that load_model takes) and dtype; every key of configs/sampler/default.yaml (strategy, steps, threshold,
block_length, cache, policy.path, policy.action, ...); samples and seed of the likelihood bound; record=FILE, which gets a line of
JSON for each log-likelihood with its standard error.

* generate_until decodes by the strategy, one position per step unless steps= is given. The text ends before the first stop string
  and before the first end of sequence or of turn. The temperature is that of --model_args, otherwise that of the task.
* loglikelihood and loglikelihood_rolling are exact for causal models, otherwise a Monte Carlo lower bound
  (evaluation/likelihood.py). guidance=W is classifier-free guidance by the context, as LLaDA scores multiple choice (cfg=0.5).
  The result is then a score and not a bound. The slack of the bound differs between texts, so bounds rank choices only up to this
  slack and the standard error.
* is_greedy states whether decoding by the strategy at temperature 0, without blocks, generates exactly this text (for a causal
  model: whether its tokens are the most probable ones). `acc` of LAMBADA and exact match of multiple choice use it;
  greedy=false skips it.

What differs from the harness's own `hf`: a causal model always has its start token in front (`add_bos_token=True` there).
"""

from __future__ import annotations

if __name__ == "__main__":
    from training.interrupt import end_in_one_line

    end_in_one_line()  # before the imports below, which take seconds

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from data.tasks import Prompts
from dlm.encoding import check_ids, hidden_names, rendered_ids, text_ids
from dlm.masked_lm import MaskedLM
from evaluation.decoding import AnswerSettings, generations
from evaluation.likelihood import Likelihood, log_likelihoods, windows
from load_model import load_model
from rewards.code import before_end
from samplers.samples import Samples
from samplers.settings import SamplerSettings, check_given
from training.devices import device_of
from training.files import append_line, make_directory
from training.hub import shipped
from training.usage import composed, exit_on_bad_input, override
from unmask.decoders import build_step_decoder, with_tokens

try:
    from lm_eval._cli import HarnessCLI
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import setup_logging
except ImportError as error:
    raise SystemExit(f"error: lm-evaluation-harness is needed ({error}): pip install -e '.[lm-eval]'") from error

RENDERED = "\U0010efff"  # in front of a text that the chat template made; private use


def rows_of(batch_size: int | str) -> int:
    """Return the number of rows of a batch. `auto` requests as many as fit into memory; it gives 32, because memory is bounded
    in any case."""
    return int(batch_size) if isinstance(batch_size, int) or batch_size.isdigit() else 32


@register_model("unmask")
class UnmaskLM(TemplateLM):
    """The model class of the harness (see the module). `likelihoods` keeps the likelihood of every request with its standard
    error."""

    def __init__(
        self, path: str = "example/stories", dtype: str = "float32", device: str | None = None, batch_size: int | str = 32,
        max_batch_size: int | None = None, samples: int = 128, seed: int = 0, greedy: bool = True,
        record: str | None = None, **sampler: Any,
    ):  # fmt: skip
        super().__init__()
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "auto"  # the harness requests cuda:0 by default
        self._device = device_of(device)
        self.model: MaskedLM = load_model(shipped(str(path)), self._device, dtype)[0]
        self.tokenizer = self.model.tokenizer
        if self.tokenizer is None:
            raise ValueError(f"the tokenizer of {path} cannot be loaded, and tasks are text; add tokenizer.json")
        if "stop" in sampler:
            raise ValueError("stop has no effect here: a row always ends at its end of sequence; leave it out")
        self.config = composed("sample", [sampler_override(key, value) for key, value in sampler.items()])
        self.has_temperature, self.has_steps = "temperature" in sampler, "steps" in sampler
        settings = SamplerSettings.of(OmegaConf.to_container(self.config.sampler, resolve=True))  # pyright: ignore[reportArgumentType]
        check_given(settings, {f"sampler.{key}": key for key in sampler})
        self.strategy = build_step_decoder(settings, self.model)
        options = self._decoding(settings.block_length or 1).options(self.model)
        options.check_model(self.model)
        if (self.config.sampler.block_length or 1) > self.max_length:
            raise ValueError(f"block_length is more than the model's {self.max_length} positions; change it")
        self.batch_size = rows_of(batch_size)
        if self.batch_size < 1 or samples < 1:
            raise ValueError(f"batch_size={batch_size} and samples={samples} must be at least 1; change them")
        self.samples, self.seed, self.check_greedy = samples, seed, greedy
        self.record = None if record is None else Path(record)
        self.likelihoods: list[Likelihood] = []

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def max_length(self) -> int:
        return self.model.max_length

    @property
    def tokenizer_name(self) -> str:
        return self.model.model_id.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the messages in the tokenizer's chat template, behind the marker `RENDERED`. Names of special tokens in a
        message are escaped (dlm/encoding.py), so that they stay text."""
        messages = [{**turn, "content": hidden_names(self.tokenizer, turn["content"])} for turn in chat_history]
        return RENDERED + self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text, or of a result of `apply_chat_template`, in which only the template yields special tokens. No
        start token is added: the model adds its own.

        Raises:
            ValueError: the text holds the mask as a word of the vocabulary, or a token past the vocabulary.
        """
        if string.startswith(RENDERED):
            tokens = rendered_ids(self.tokenizer, string.removeprefix(RENDERED))
        else:
            tokens = text_ids(self.tokenizer, string)
        check_ids(self.model, tokens, f"the text {string[-60:]!r}")
        return tokens

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode context and continuation as the harness does. A continuation behind a chat template stays plain text."""
        is_rendered = context.startswith(RENDERED)
        return super()._encode_pair(
            context, hidden_names(self.tokenizer, continuation) if is_rendered else continuation
        )

    # ---------------------------------------------------------------------------------------------- likelihood

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = []
        for context, continuation in arguments_of(requests):
            encoded = self._encode_pair(context, continuation) if context else ([], self.tok_encode(continuation))
            pairs.append(((context, continuation), *encoded))
        return self._loglikelihood_tokens(pairs)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        texts = []
        for (_, text), context, continuation in requests:
            room = self.max_length - len(continuation)
            if room < 0:
                raise ValueError(
                    f"{text[:80]!r} has {len(continuation)} tokens, more than the model's {self.max_length}"
                )
            texts.append((context[max(0, len(context) - room) :], continuation))
        found = self._score(texts)
        greedy = [bool(one.greedy) for one in found]
        if self.check_greedy and not self.model.causal:
            greedy = self.writes(texts)
        self._keep([words for words, _, _ in requests], found, greedy)
        return [(one.log_prob, own) for one, own in zip(found, greedy, strict=True)]

    def _score(self, texts: list[tuple[list[int], list[int]]]) -> list[Likelihood]:
        guidance, batch = float(self.config.sampler.guidance), max(self.batch_size, self.samples)
        return log_likelihoods(self.model, texts, self.samples, self.seed, batch, guidance)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text. A long text is split into windows of the model's length with one token of
        context each; the last window has as much context as there is room for."""
        texts, owner = [], []
        for number, (text,) in enumerate(arguments_of(requests)):
            tokens = self.tok_encode(text)
            for first, scored, end in windows(len(tokens), self.max_length):
                texts.append((tokens[first:scored], tokens[scored:end]))
                owner.append(number)
        found = self._score(texts)
        sums, squares = [0.0] * len(requests), [0.0] * len(requests)
        for number, one in zip(owner, found, strict=True):
            sums[number] += one.log_prob
            squares[number] += one.standard_error**2
        whole = [Likelihood(total, square**0.5, None) for total, square in zip(sums, squares, strict=True)]
        self._keep([("", text) for (text,) in arguments_of(requests)], whole, [None] * len(requests))
        return sums

    def writes(self, texts: list[tuple[list[int], list[int]]]) -> list[bool]:
        """Return whether the strategy at temperature 0 generates each continuation behind its context."""
        out = [True] * len(texts)
        by_length: dict[int, list[int]] = {}
        for number, (_, continuation) in enumerate(texts):
            by_length.setdefault(len(continuation), []).append(number)
        by_length.pop(0, None)
        for length, numbers in by_length.items():
            for part in (numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size)):
                prompts = Prompts.from_ids([texts[number][0] for number in part], length, self.model.mask_id)
                samples = self._decode(prompts, length, 0.0, part, blocks=False)
                written = samples.tokens[:, prompts.prompt_length :].tolist()
                for number, tokens in zip(part, written, strict=True):
                    out[number] = tokens == texts[number][1]
        return out

    def _keep(self, words: list[tuple[str, str]], found: list[Likelihood], greedy: list[Any]) -> None:
        self.likelihoods += found
        if self.record is None:
            return
        make_directory(self.record.parent, f"record={self.record}: its directory")
        for (context, text), one, own in zip(words, found, greedy, strict=True):
            line = {"context": context, "text": text, "log_prob": one.log_prob, "standard_error": one.standard_error,
                    "is_greedy": own}  # fmt: skip
            append_line(self.record, json.dumps(line, ensure_ascii=False))

    def get_model_info(self) -> dict[str, Any]:
        """Return the fields that the harness writes beside its results."""
        errors = [one.standard_error for one in self.likelihoods]
        info = {"model_id": self.model.model_id, "sampler": OmegaConf.to_container(self.config.sampler)}
        if not errors:
            return info
        return info | {
            "likelihood": "exact"
            if self.model.causal
            else "guided score by Monte Carlo"
            if self.config.sampler.guidance
            else "lower bound by Monte Carlo",
            "likelihood_samples": 1 if self.model.causal else self.samples,
            "likelihood_standard_error_mean": sum(errors) / len(errors),
            "likelihood_standard_error_max": max(errors),
        }

    # ---------------------------------------------------------------------------------------------- generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        out = [""] * len(requests)
        arguments = arguments_of(requests)
        contexts = [self.tok_encode(context) for context, _ in arguments]
        groups: dict[tuple[str, int], list[int]] = {}
        for number, (_, wished) in enumerate(arguments):
            settings: Any = normalize_gen_kwargs(wished)
            length = self._length(settings["max_gen_toks"], len(contexts[number]))
            groups.setdefault((json.dumps(wished, sort_keys=True), length), []).append(number)
        for (_, length), numbers in groups.items():
            generation: Any = normalize_gen_kwargs(arguments[numbers[0]][1])
            temperature = (
                self.config.sampler.temperature if self.has_temperature else generation.get("temperature", 0.0)
            )
            room = self.max_length - length
            for part in (numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size)):
                contexts_kept = [contexts[number][max(0, len(contexts[number]) - room) :] for number in part]
                prompts = Prompts.from_ids(contexts_kept, length, self.model.mask_id)
                samples = self._decode(prompts, length, float(temperature), part)
                answers = generations(self.model, samples.tokens[:, prompts.prompt_length :])
                for number, answer in zip(part, answers, strict=True):
                    text = before_end(answer)
                    out[number] = postprocess_generated_text(text, generation["until"], None)
                    self.cache_hook.add_partial("generate_until", arguments[number], out[number])
        return out

    def _length(self, requested: int, context: int) -> int:
        """Return the number of positions to generate, in whole blocks: the number that the task requests if it fits behind the
        context. A long context loses its beginning, so that half of the model's length remains."""
        block = self.config.sampler.block_length or 1
        most = max(self.max_length - context, self.max_length // 2, block) // block * block
        return min(-(-requested // block) * block, most)

    def _decoding(self, length: int, blocks: bool = True) -> AnswerSettings:
        sampler = self.config.sampler
        steps = length if self.model.causal or not self.has_steps else int(sampler.steps)
        return AnswerSettings(
            length, steps, sampler.block_length if blocks else None, sampler.cache, sampler.refresh, sampler.budget,
            sampler.logits_eos_inf, sampler.confidence_eos_eot_inf, float(sampler.guidance),
            sampler.alpha,
        )  # fmt: skip

    def _decode(
        self, prompts: Prompts, length: int, temperature: float, rows: list[int], blocks: bool = True
    ) -> Samples:
        """Decode canvases by the strategy. rows: numbers of the requests, which make the random draws independent of the
        batch."""
        prompts, row_id = prompts.to(self._device), torch.tensor(rows, device=self._device)
        options = self._decoding(length, blocks).options(self.model)
        strategy = with_tokens(self.strategy, replace(self.strategy.token_sampler, temperature=temperature))
        return strategy.decode(self.model, prompts, options, self.seed, row_id)


def sampler_override(key: str, value: Any) -> str:
    """Return one of --model_args as an override of configs/sampler/default.yaml. Text is taken literally."""
    if value is None or value == "null":
        return f"sampler.{key}=null"
    return override(f"sampler.{key}", value) if isinstance(value, str) else f"sampler.{key}={value}"


def arguments_of(requests: list[Instance]) -> list[tuple[Any, ...]]:
    """Return the arguments of each request: (context, continuation), (text,), or (context, settings of generation)."""
    return [tuple(request.args) for request in requests]


if __name__ == "__main__":
    setup_logging()
    harness = HarnessCLI()
    with exit_on_bad_input():
        harness.execute(harness.parse_args())
