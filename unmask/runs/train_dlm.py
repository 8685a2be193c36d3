"""The work of `train-dlm`: pre-train or fine-tune a model, or adapt a causal one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from data.answers import AnswerRows, is_answers
from data.rows import end_of_text, training_data
from data.settings import GridSettings, TextSettings
from dlm.adapt import NO_MASK, AdapterLM, adapter_config, give_mask, mask_of
from dlm.checkpoints.adapter import load_bidirectional
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model, is_causal
from dlm.ends import end_tokens
from dlm.environment import TokenRule
from dlm.masked_lm import LlamaLM, MaskedLM
from dlm.noise import Noise, build_noise
from dlm.options import DecodeOptions
from dlm.pretrain import Pretraining, check_training
from dlm.prompts import Prompts
from evaluation.latex import formula_measures
from load_model import load_model
from rewards.measures import distinct_n, unigram_entropy
from rewards.sudoku import is_solved
from samplers.heuristics import Direct, Leftmost
from samplers.loop import Strategy
from training.hub import shipped
from training.processes import processes
from training.run import Run, resumed_config, write_samples
from training.trainer import Trainer
from unmask.build import read_settings, started, stored_config
from unmask.settings import DLMTrainingSettings


def model_config(config: DLMTrainingSettings, tokenizer) -> dict:
    """Return the content of config.json: the published layout of RADD or SEDD, or that of the causal model."""
    shape, data = asdict(config.model), config.data
    kind = shape.pop("kind")
    if kind == "llada":
        eos = end_of_text(tokenizer)
        if tokenizer.mask_token_id is None:
            named = data.tokenizer if isinstance(data, TextSettings) else None
            raise ValueError(
                f"model=llada masks with a token of the tokenizer, and data.tokenizer={named} has no mask "
                "token; give a tokenizer that has one, or use model=radd"
            )
        return {
            "model_type": "llada",
            "architectures": ["LLaDAModelLM"],
            "d_model": shape["hidden_size"],
            "n_layers": shape["n_blocks"],
            "n_heads": shape["n_heads"],
            "n_kv_heads": shape["n_heads"],
            "mlp_hidden_size": 3 * shape["hidden_size"],
            "vocab_size": len(tokenizer),
            "embedding_size": len(tokenizer),
            "max_sequence_length": shape["length"],
            "rope_theta": shape["rope_theta"],
            "rms_norm_eps": 1e-5,
            "mask_token_id": tokenizer.mask_token_id,
            "eos_token_id": eos,
            "pad_token_id": eos,
        }
    if kind == "causal":
        eos = end_of_text(tokenizer)
        return {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": shape["hidden_size"],
            "intermediate_size": 3 * shape["hidden_size"],
            "num_hidden_layers": shape["n_blocks"],
            "num_attention_heads": shape["n_heads"],
            "max_position_embeddings": shape["length"] + 1,
            "attention_dropout": shape["dropout"],
            "tie_word_embeddings": True,
            "bos_token_id": eos,
            "eos_token_id": eos,
        }
    puzzle = {"puzzle": {"box": data.box}} if isinstance(data, GridSettings) else {}
    vocabulary = tokenizer.vocab_size - 1 if puzzle else len(tokenizer)
    sedd = {"model_type": "sedd", "graph": {"type": "absorb"}} if kind == "sedd" else {}
    return {
        "tokens": vocabulary,
        "model": shape,
        "noise": asdict(config.noise),
        "training": {"ema": config.training.ema, "loss_type": config.loss},
        **sedd,
        **puzzle,
    }


def starting_model(config: DLMTrainingSettings, device: torch.device) -> tuple[MaskedLM, Noise | None] | None:
    """Return the model `init`, or that of `dlm`; None if both are null. A causal model is adapted if the loss is one of masked
    models."""
    if config.init is None:
        return None
    init = shipped(config.init)
    if not is_causal(init):
        return load_model(init, device, config.model.dtype)
    if config.loss == "ar":
        model, noise = load_model(init, device)
    else:
        model, noise = load_bidirectional(init, device, length=config.adapt.length), build_noise({"type": "loglinear"})
    model.dtype = getattr(torch, config.model.dtype)  # of the computation; weights are trained in float32
    return model, noise


def check_tokens(model: MaskedLM, tokenizer, named: str) -> None:
    """Refuse the tokenizer of the data for a model without a tokenizer and with another vocabulary."""
    if not model.causal and not model.mask_id <= len(tokenizer) <= model.vocab_size:
        raise ValueError(
            f"data.tokenizer={named} has {len(tokenizer)} tokens and the model, which came without a tokenizer, writes "
            f"{model.mask_id}; give the model's own"
        )


def with_adapter(model: MaskedLM, config: DLMTrainingSettings, new_mask: bool) -> MaskedLM:
    """Return the model with trainable updates as `lora` describes, and frozen weights. new_mask: also train the embedding of
    the mask token."""
    if not isinstance(model, LlamaLM) or not model.shifted:
        raise ValueError(
            f"lora.rank={config.lora.rank} needs init=MODEL, a causal Llama or Qwen2 or a Dream; {config.init} is none"
        )
    targets = config.lora.modules
    mask_id = model.mask_id if new_mask else None
    lora = config.lora
    assert lora.rank is not None
    return AdapterLM(model, adapter_config(str(config.init), mask_id, lora.rank, lora.alpha, lora.dropout, targets))


def with_scale_of_run(config: DictConfig) -> DictConfig:
    """Return the configuration with the defaults that depend on the number of updates: a warm-up of a twentieth of them, and a
    moving average over about half of them. Both are at most the published values."""
    config, n_iters = config.copy(), config.training.n_iters
    if config.optim.warmup is None:
        config.optim.warmup = min(2500, n_iters // 20)
    if config.training.ema is None:
        config.training.ema = min(0.9999, max(0.0, 1 - 2 / n_iters))
    return config


def with_own_data(config: DictConfig, overrides: list[str]) -> DictConfig:
    """Return the configuration with a matching data.valid, if the command line sets data.train only: the held-out split of
    data.train, or null if it has none, so that a tenth of its documents is held out."""
    given = {word.partition("=")[0].lstrip("+") for word in overrides}
    if "data.train" not in given or "data.valid" in given or config.data.kind != "text":
        return config
    config = config.copy()
    has_splits = is_answers(config.data.train) or not Path(shipped(config.data.train)).exists()
    config.data.valid = config.data.train if has_splits else None
    return config


def run(config: DictConfig, overrides: list[str]) -> Path:
    """Train; return the run directory."""
    config = resumed_config(config, overrides, "train_dlm")
    _, config = started(DLMTrainingSettings, config, overrides)
    if not config.resume:
        config = with_own_data(with_scale_of_run(config), overrides)
    settings = read_settings(DLMTrainingSettings, config)
    data = settings.data
    with processes(settings.device) as group:
        torch.manual_seed(settings.seed)
        start = starting_model(settings, group.device)
        tokenizer = start[0].tokenizer if start else None
        length = start[0].max_length if start else settings.model.length
        rows, valid, tokenizer = training_data(data, length, settings.seed, tokenizer)
        adapted = start is not None and start[0].mask_id == NO_MASK
        if start:
            model, noise = start
            if model.tokenizer is None and isinstance(data, TextSettings):
                check_tokens(model, tokenizer, data.tokenizer)
            if adapted:
                give_mask(model, mask_of(tokenizer))  # pyright: ignore[reportArgumentType]
            model.tokenizer = model.tokenizer or tokenizer
            description = stored_config(model, settings.loss)
        else:
            description = model_config(settings, tokenizer)
            model, noise = build_model(description, settings.model.dtype, tokenizer)
        model.to(group.device).requires_grad_(True)
        if settings.lora.rank is not None:
            model = with_adapter(model, settings, adapted)
        check_training(model, settings, group)
        prompts = None
        if isinstance(rows, AnswerRows):
            given = torch.arange(length) < torch.as_tensor(rows.prompt).unsqueeze(1)
            prompts = valid.masked_fill(~given, model.mask_id)[: settings.eval.samples]

        def save(directory: Path, done: int) -> dict[str, float]:
            save_model(model, description, directory / "model")
            return show_samples(model, settings, directory / "samples" / f"iter_{done}", prompts)

        anneal = settings.adapt.anneal if adapted else 0
        algorithm = Pretraining(model, noise, rows, valid, settings, group, save, anneal)
        run = Run(config, overrides, group)
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        left_out = rows.left_out
        out = f"; {left_out} rows left out, longer than {length} tokens" if left_out else ""
        run.say(f"{size:,} parameters to train, vocabulary {model.vocab_size}, {len(valid)} held-out rows{out}")
        Trainer(algorithm, run).train()
        run.close()
        return run.directory


def show_samples(
    model: MaskedLM, config: DLMTrainingSettings, directory: Path, prompts: Int[Tensor, "row position"] | None = None
) -> dict[str, float]:
    """Draw a few samples of the current model. Return their entropy and distinct bigrams; for boards the share of solved ones;
    for answers to held-out questions the measures of their formulas.

    prompts: canvases to decode; None: empty canvases.
    """
    device, length = next(model.parameters()).device, model.max_length
    canvas = torch.full((config.eval.samples, length), model.mask_id) if prompts is None else prompts
    steps = length if model.causal else min(config.eval.steps, length)
    strategy = Strategy(Leftmost() if model.causal else Direct(), TokenRule())
    ends = end_tokens(model.tokenizer) if prompts is not None else ()  # packed texts continue behind their end tokens
    samples = strategy.decode(model, Prompts(canvas.to(device)), DecodeOptions(steps, ends=ends))
    tokens, counted = samples.tokens.cpu(), samples.counted.cpu()
    decode = (lambda row: " ".join(map(str, row))) if model.tokenizer is None else model.tokenizer.decode
    write_samples(directory, [decode(row[kept].tolist()) for row, kept in zip(tokens, counted, strict=True)])
    entropy = float(unigram_entropy(tokens, counted).mean())
    measures = {"sample_entropy": entropy, "sample_distinct_2": distinct_n(tokens, 2, counted)}
    if isinstance(config.data, GridSettings):
        measures["sample_solved"] = float(is_solved(tokens, (config.data.box[0], config.data.box[1])).float().mean())
    if prompts is not None:
        answers = formula_measures(samples.answers(model.tokenizer))
        measures |= {f"sample_{name}": value for name, value in answers.items()}
    return measures
