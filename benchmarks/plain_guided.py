"""Reward-guided decoding by the published scripts, statement by statement: what the benchmark compares with, and an oracle.

| here | there | at every token |
|---|---|---|
| `args` | deeplearning-wisc/args, argsearch.py: `ARGS.generate` and `generate_step`, method "greedy" | the language model and the reward keep keys and values; the k candidates are k rows of the reward, whose kept rows are then reordered |
| `pargs_generate` | ahmadrash/PARGS, PARGS_decode/PARGS_generate.py: `PARGS_decoding` and `get_reward` | the language model keeps keys and values; the reward reads the first candidate's whole text, then each other candidate's last token against what it kept |
| `pargs_baselines` | ahmadrash/PARGS, PARGS_decode/PARGS_baselines.py: `PARGS_decoding` and `get_reward`, which the README runs | nothing is kept: the language model reads the whole text, the reward k whole texts, one after the other |

What differs: greedy alone; prints, copies between devices and `empty_cache` are left out; caches are the objects of transformers
5, not tuples; `prepare_inputs_for_generation` is written out, since its arguments changed; the reward does not read the start
token of the language model; no attention mask where it would be all ones. PARGS's published reward is bidirectional (DeBERTa) and
keeps nothing, so that `pargs_generate` runs with a causal one only. PARGS decodes each candidate to text and tokenises it again;
`words` makes tokenizers for random models.
"""  # noqa: E501

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast


def words(vocabulary: int, start: int | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token i is the word "ti", so that decoding and encoding again gives the same ids. start: a
    token that it puts before every text."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"t{start} $A", pair=f"t{start} $A $B", special_tokens=[(f"t{start}", start)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def unseen(input_ids: Int[Tensor, "row position"], past_key_values: Any) -> dict[str, Any]:
    """Return the result of `prepare_inputs_for_generation`: the tokens behind the cached ones."""
    kept = 0 if past_key_values is None else past_key_values.get_seq_length()
    return {"input_ids": input_ids[:, kept:], "past_key_values": past_key_values, "use_cache": True}


@torch.no_grad()
def args(
    llm: Any, rm: Any, tokens: Int[Tensor, "1 position"], weight: float, topk: int, max_new_token: int
) -> Int[Tensor, "1 longer"]:
    """ARGS: decode `tokens`, which begin with the start token, and max_new_token more."""
    rm_cached, cached = None, None
    for _ in range(max_new_token):
        mout = llm(**unseen(tokens, cached))
        cached = mout.past_key_values
        out_logits = mout.logits[:, -1]
        prescreen_logits, prescreen_tokens = torch.topk(out_logits, dim=-1, k=topk)
        expanded_tis = torch.unsqueeze(tokens, 1).repeat(1, topk, 1)
        to_rm_eval = torch.dstack((expanded_tis, prescreen_tokens))
        flat_trme = to_rm_eval.view(out_logits.shape[0] * topk, -1)
        rm_out = rm(**unseen(flat_trme[:, 1:], rm_cached))
        rm_cached = rm_out.past_key_values
        rewards = rm_out.logits.flatten()
        new_scores = rewards * weight + prescreen_logits.flatten()
        _, top_k_ids = torch.topk(new_scores, dim=-1, k=1)
        rm_cached.reorder_cache(top_k_ids.repeat(topk))
        tokens = flat_trme[top_k_ids]
    return tokens


@torch.no_grad()
def pargs_generate(
    llm_model: Any, llm_tokenizer: Any, reward_model: Any, reward_tokenizer: Any, prompt: str, w: float, topk: int,
    max_generation_length: int,
) -> Int[Tensor, "1 generated"]:  # fmt: skip
    """PARGS_generate.py, mode 1 (greedy): return the tokens behind the prompt."""
    input_ids = llm_tokenizer(prompt, return_tensors="pt").input_ids
    sequence = torch.tensor([[]], dtype=torch.int64)
    past_key_values = None
    for _ in range(max_generation_length):
        output = llm_model.generate(
            inputs=torch.cat((input_ids, sequence), dim=-1), max_new_tokens=1, pad_token_id=llm_tokenizer.eos_token_id,
            output_scores=True, return_dict_in_generate=True, renormalize_logits=True, use_cache=True,
            past_key_values=past_key_values,
        )  # fmt: skip
        past_key_values = output.past_key_values
        topk_tokens = torch.topk(output["scores"][0][0], topk)
        RG_score, RM_cache = [], None
        for i in range(topk):
            token_index = topk_tokens.indices[i].reshape(1, 1)
            token_prob = topk_tokens.values[i].item()
            temp_sequence = torch.cat((sequence, token_index), dim=-1)
            text = llm_tokenizer.decode(temp_sequence[0])
            sequence_reward, RM_cache = _cached_reward(prompt, text, reward_tokenizer, reward_model, RM_cache)
            RG_score.append(token_prob + w * sequence_reward)
        sampled_id = torch.topk(torch.tensor(RG_score), 1).indices[0]
        sequence = torch.cat((sequence, topk_tokens.indices[sampled_id].reshape(1, 1)), dim=-1)
    return sequence


def _cached_reward(
    question: str, answer: str, reward_tokenizer: Any, reward_model: Any, RM_cache: Any
) -> tuple[float, DynamicCache]:
    """PARGS_generate.py, `get_reward`: evaluate the last token only if there is a cache; return the unchanged cache."""
    input_ids = reward_tokenizer(question, answer, return_tensors="pt")["input_ids"]
    read = input_ids if RM_cache is None else input_ids[:, -1:]
    rm_out = reward_model(input_ids=read, return_dict=True, use_cache=True, past_key_values=RM_cache)
    external_reward = rm_out.logits[0].cpu().detach().item()
    cache = DynamicCache()
    for layer, kept in enumerate(rm_out.past_key_values.layers):
        cache.update(kept.keys[:, :, :-1, :], kept.values[:, :, :-1, :], layer)
    return external_reward, cache


@torch.no_grad()
def pargs_baselines(
    llm_model: Any, llm_tokenizer: Any, reward_model: Any, reward_tokenizer: Any, prompt: str, w: float, topk: int,
    max_generation_length: int,
) -> Int[Tensor, "1 generated"]:  # fmt: skip
    """PARGS_baselines.py, mode1 1 (greedy); its ARGS_decoding is the same loop with another reward model."""
    input_ids = llm_tokenizer(prompt, return_tensors="pt").input_ids
    sequence = torch.tensor([[]], dtype=torch.int64)
    for _ in range(max_generation_length):
        output = llm_model.generate(
            inputs=torch.cat((input_ids, sequence), dim=-1), max_new_tokens=1, pad_token_id=llm_tokenizer.eos_token_id,
            output_scores=True, return_dict_in_generate=True, renormalize_logits=True,
        )  # fmt: skip
        topk_tokens = torch.topk(output["scores"][0][0], topk)
        RG_score = []
        for i in range(topk):
            token_index = topk_tokens.indices[i].reshape(1, 1)
            token_prob = topk_tokens.values[i].item()
            temp_sequence = torch.cat((sequence, token_index), dim=-1)
            inputs = reward_tokenizer(prompt, llm_tokenizer.decode(temp_sequence[0]), return_tensors="pt")
            sequence_reward = reward_model(input_ids=inputs["input_ids"]).logits[0].cpu().detach().item()
            RG_score.append(token_prob + w * sequence_reward)
        sampled_id = torch.topk(torch.tensor(RG_score), 1).indices[0]
        sequence = torch.cat((sequence, topk_tokens.indices[sampled_id].reshape(1, 1)), dim=-1)
    return sequence
