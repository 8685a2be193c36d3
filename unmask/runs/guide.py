"""The work of `guide`: decode every prompt of a file with every method."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.prompt_file import PromptRow, load_prompt_rows
from data.questions import check_prompt
from dlm.encoding import text_ids
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.prompts import Prompts
from evaluation.generations import begin, check_beside, merge, read_records, shard
from evaluation.report import print_table, write_csv, write_json
from load_model import load_model
from rewards.models import TextReward, load_reward
from samplers.loop import Decoder
from samplers.names import GUIDED, PREDICTORS, STRATEGIES
from samplers.samples import Samples
from samplers.settings import SamplerSettings, check_given, check_strategy, idle
from training.files import append_line, check_place
from training.hub import shipped
from training.processes import Processes, processes
from training.run import resolved
from unmask.decoders import Layout, build_decoder, build_options
from unmask.settings import GuideRunSettings, MethodSettings, checked


def check_guide_run(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Refuse, before any work, settings that cannot run and settings that have no effect. overrides: those of the command
    line."""
    if OmegaConf.missing_keys(config) & {"out", "prompts.file"}:
        raise ValueError("say where answers go and which prompts they are of: out=DIR prompts.file=FILE")
    checked(GuideRunSettings, resolved(config))
    check_place(str(config.out), f"out={config.out}")
    if not isinstance(config.methods, DictConfig) or not config.methods:
        raise ValueError(f"methods={config.methods} names no method, so there is nothing to do; name one at least")
    for name, settings in config.methods.items():
        if not isinstance(settings, DictConfig):
            raise ValueError(f"methods.{name}={settings} sets no strategy; leave a method out by ~methods.{name}")
        check_strategy(settings.get("strategy"), (*STRATEGIES, *PREDICTORS, *GUIDED))
        wrong = unknown({str(key): value for key, value in settings.items() if key != "path"}, config.sampler)
        if wrong:
            raise ValueError(
                f"methods.{name} sets {', '.join(wrong)}, which configs/sampler/default.yaml does not have"
            )
        MethodSettings.of(resolved(config)["methods"][name], f"methods.{name}.")
        own = [key for key in keys_of(settings) if key not in ("path", "strategy")]
        check_given(
            settings_of(method_config(config, str(name))),
            {f"sampler.{key}": f"methods.{name}.{key}" for key in own},
            "strategy ",
        )
    check_overrides_read(config, [override.partition("=")[0].lstrip("+~") for override in overrides])


def check_overrides_read(config: DictConfig, keys: Sequence[str]) -> None:
    """Refuse overrides of the shared settings that no method uses, and rewards that no method names."""
    methods = {str(name): settings_of(method_config(config, str(name))) for name in config.methods}
    named = OmegaConf.to_yaml(config.methods) + str(OmegaConf.to_container(config, resolve=False)["selector"])  # pyright: ignore
    for key in keys:
        set_for_all = key.startswith("sampler.") and OmegaConf.select(config, key) not in (None, False)
        if set_for_all and all(reasons := [idle(method, key, "strategy ") for method in methods.values()]):
            raise ValueError(f"{key}, which is set for all methods, {reasons[0]}")
        if key.startswith("rewards.") and config.rewards[key.removeprefix("rewards.")] and f"${{{key}}}" not in named:
            raise ValueError(
                f"{key} would do nothing, as no method names ${{{key}}}; leave it out, or name it in methods"
            )


def keys_of(settings: DictConfig, before: str = "") -> list[str]:
    """Return the keys that a method sets, as dotted paths."""
    found = []
    for key, value in settings.items():
        found += keys_of(value, f"{before}{key}.") if isinstance(value, DictConfig) else [f"{before}{key}"]
    return found


def unknown(settings: Mapping[str, Any], known: DictConfig, before: str = "") -> list[str]:
    """Return the keys, as dotted paths, that are missing in `known`."""
    wrong = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping)
        if key not in known or nested != isinstance(known[key], DictConfig):
            wrong.append(f"{before}{key}")
        elif nested:
            wrong += unknown({str(k): v for k, v in value.items()}, known[key], f"{before}{key}.")
    return wrong


def method_config(config: DictConfig, name: str) -> DictConfig:
    """Return the configuration of one method: the shared configuration, changed by the method's own settings."""
    settings: Any = OmegaConf.to_container(config.methods[name], resolve=True)
    own = OmegaConf.create({"sampler": {key: value for key, value in settings.items() if key != "path"}})
    merged = OmegaConf.merge(OmegaConf.create({"dlm": config.dlm, "sampler": config.sampler}), own)
    merged.dlm.path = settings.get("path") or config.dlm.path
    assert isinstance(merged, DictConfig)
    return merged


def canvases(model: MaskedLM, prompt_rows: list[PromptRow], length: int) -> Prompts:
    """Return one canvas per prompt: the prompt, padded on the left, and masks behind it. ValueError names a prompt that does
    not fit."""
    rows = [text_ids(model.tokenizer, one.prompt) for one in prompt_rows]
    for number, (row, one) in enumerate(zip(rows, prompt_rows, strict=True)):
        check_prompt(model, row, length, f"prompt {number}", one.prompt, "shorten it, or lower length")
    return Prompts.from_ids(rows, length, model.mask_id)


def settings_of(method: DictConfig) -> SamplerSettings:
    """Return the sampler settings of one method."""
    values = OmegaConf.to_container(method.sampler, resolve=True)
    assert isinstance(values, dict)
    return SamplerSettings.of({str(key): value for key, value in values.items()})


def decode(
    settings: SamplerSettings, model: MaskedLM, decoder: Decoder, prompts: Prompts, seed: int, rows: Int[Tensor, "row"]
) -> Samples:
    """Decode one batch; a row ends at its end of sequence or of turn."""
    options = build_options(settings, model, Layout.of(prompts, model.mask_id), stop=True)
    return decoder.decode(model, prompts, options, seed, rows)


def decode_method(
    name: str, config: DictConfig, method: DictConfig, model: MaskedLM, prompt_rows: list[PromptRow], group: Processes
) -> list[dict[str, Any]]:
    """Return the records of all prompts by one method. Existing records are kept and not decoded again."""
    directory = Path(config.out) / name
    prompts = hashlib.sha256(json.dumps([one.prompt for one in prompt_rows]).encode()).hexdigest()[:16]
    settings = {"sampler": OmegaConf.to_container(method.sampler, resolve=True), "model": str(method.dlm.path),
                "length": config.length, "seed": config.seed, "prompts": prompts, "dtype": config.model.dtype}  # fmt: skip
    check_beside(directory, settings, ("sampler", "model"))
    done = begin(directory, settings, group)
    todo = torch.tensor([row for row in range(len(prompt_rows)) if row not in done], dtype=torch.long)
    todo = todo[group.rank :: group.world]
    decoders: dict[int, Decoder] = {}
    sampler = settings_of(method)
    for rows in todo.split(config.batch_size) if len(todo) else ():
        batch = canvases(model, [prompt_rows[row] for row in rows.tolist()], config.length).to(group.device)
        first = batch.prompt_length
        if first not in decoders:  # the reward is loaded once for each place at which answers begin
            decoders[first] = build_decoder(sampler, model, Layout.of(batch, model.mask_id), config.seed)
        started = time.perf_counter()
        samples = decode(sampler, model, decoders[first], batch, config.seed, rows.to(group.device))
        seconds = time.perf_counter() - started
        texts, finished = samples.answers(model.tokenizer), samples.ended.tolist()
        for place, row in enumerate(rows.tolist()):
            record = {
                "row": row, "prompt": prompt_rows[row].prompt, "result": texts[place], "finished": finished[place],
                "tokens": int(samples.generated[place]), "evaluations": int(samples.evaluations[place]),
                "reward_rows": samples.reward_rows / len(rows), "seconds": seconds / len(rows),
            }  # fmt: skip
            append_line(shard(directory, group), json.dumps(record, ensure_ascii=False))
    group.mean({"done": 1.0})  # waits for all
    return merge(directory) if group.first else []


def earlier(out: Path, names: Container[str], prompts: int) -> dict[str, list[dict[str, Any]]]:
    """Return the records of methods that an earlier command finished in `out`. The tables contain them too."""
    found = {file.parent.name: read_records(file.parent) for file in sorted(out.glob("*/settings.json"))
             if file.parent.name not in names}  # fmt: skip
    return {name: records for name, records in found.items() if len(records) == prompts}


def costs(name: str, records: list[dict[str, Any]]) -> dict[str, float | int | str]:
    """Return the cost of one method per generated token."""
    tokens = sum(record["tokens"] for record in records)
    of = {key: sum(record[key] for record in records) for key in ("evaluations", "reward_rows", "seconds")}
    return {
        "method": name, "prompts": len(records), "tokens": tokens, "evaluations_per_token": of["evaluations"] / tokens,
        "reward_rows_per_token": of["reward_rows"] / tokens, "seconds_per_token": of["seconds"] / tokens,
        "seconds": of["seconds"],
    }  # fmt: skip


def reward_table(
    selector: TextReward, prompt_rows: list[PromptRow], generations: dict[str, list[dict[str, Any]]], batch: int
) -> list[dict[str, float]]:
    """Return one row per prompt: the reward of each method's answer under the selector, and `label` if every prompt has one."""
    columns = {
        name: [(record["result"], record["finished"]) for record in records] for name, records in generations.items()
    }
    if all(one.label is not None for one in prompt_rows):
        columns["label"] = [(str(one.label), True) for one in prompt_rows]
    prompts = [one.prompt for one in prompt_rows]
    found: dict[str, list[float]] = {}
    for name, answers in columns.items():
        texts, finished = ([answer[n] for answer in answers] for n in (0, 1))
        parts = (slice(at, at + batch) for at in range(0, len(texts), batch))
        scored = [selector.score_texts(prompts[part], texts[part], finished[part]) for part in parts]
        found[name] = torch.cat(scored).tolist()
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def run(config: DictConfig, overrides: Sequence[str] = ()) -> Path:
    """Decode every prompt with every method; return the directory. overrides: those of the command line; each must have an
    effect."""
    check_guide_run(config, overrides)
    out = Path(config.out)
    with processes(config.device, saves=False) as group:
        prompt_rows = load_prompt_rows(
            str(config.prompts.file), config.prompts.count, config.prompts.seed, config.prompts.cache_dir
        )
        selector = None if config.selector is None else load_reward(str(config.selector), group.device)
        assert selector is None or isinstance(selector, TextReward)
        models: dict[str, MaskedLM] = {}
        plans = {name: method_config(config, name) for name in config.methods}
        for method in plans.values():  # all errors are reported before any work
            path = str(method.dlm.path)
            if path not in models:
                models[path], _ = load_model(shipped(path), group.device, config.model.dtype)
            model = models[path]
            if model.tokenizer is None:
                raise ValueError(f"the tokenizer of {path} cannot be loaded, and prompts are text; add tokenizer.json")
            sampler, longest = settings_of(method), canvases(model, prompt_rows, config.length)
            layout = Layout.of(longest, model.mask_id)
            build_decoder(sampler, model, layout, config.seed)
            options = build_options(sampler, model, layout, stop=True)
            blank = Prompts(torch.full((1, config.length), model.mask_id))
            UnmaskingEnvironment(model, options).reset(blank)  # refuses blocks that do not fit
        generations = {}
        for name, method in plans.items():
            generations[name] = decode_method(name, config, method, models[str(method.dlm.path)], prompt_rows, group)
            if group.first:
                plain = [{key: record[key] for key in ("prompt", "result", "finished")} for record in generations[name]]
                write_json(plain, out / f"generation_{name}.json")
        if group.first:
            generations = earlier(out, generations, len(prompt_rows)) | generations
            table = [costs(name, records) for name, records in generations.items()]
            write_csv(table, out / "costs.csv")
            print_table(table, title=f"{len(prompt_rows)} prompts of {config.prompts.file}")
            if selector is not None:
                write_csv(reward_table(selector, prompt_rows, generations, config.batch_size), out / "rewards.csv")
    return out
