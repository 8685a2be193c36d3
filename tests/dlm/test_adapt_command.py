"""train-dlm on a causal model, all weights or an adapter: it runs, resumes bit for bit, its loss falls; refusals."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dlm.encoding import text_ids
from dlm.masked_lm import LlamaLM
from load_model import load_model
from tests.dlm.test_adapt import SHAPE, TOKENIZER
from training.usage import CONFIGS
from unmask.commands import sample as sample_command
from unmask.runs import sample as sample_run
from unmask.runs import train_dlm

FEW = [
    "device=cpu", "wandb.mode=disabled", "adapt.length=16", "adapt.anneal=3", "loss=masked_CE", "training.batch_size=4",
    "training.accum=2", "training.n_iters=6", "training.log_freq=1", "training.eval_freq=3", "training.snapshot_freq=3",
    "training.snapshot_freq_for_preemption=2", "training.ema=0.5", "eval.samples=2", "eval.steps=4", "eval.batch_size=4",
    "data.valid_rows=4", "optim.warmup=1", "optim.lr=0.01",
]  # fmt: skip
LORA = ["lora.rank=2", "lora.dropout=0.1", "lora.target_modules=[q_proj,v_proj,down_proj]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A causal model on the shipped tokens."""
    directory = tmp_path_factory.mktemp("causal") / "base"
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": len(tokenizer), "tie_word_embeddings": True}))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(5.0)  # so that a frozen head can tell tokens apart
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Few and simple sentences, so that a loss can fall."""
    file = tmp_path_factory.mktemp("texts") / "few.jsonl"
    file.write_text(
        "".join(
            json.dumps({"text": f"The {a} saw the {b}. " * 4}) + "\n"
            for a in ("cat", "dog", "girl")
            for b in ("boy", "sun")
        )
    )
    return file


def train(base, texts, *overrides):
    overrides = [f"init={base}", f"data.train={texts}", f"data.valid={texts}", *FEW, *overrides]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train_dlm", overrides=overrides)
    return train_dlm.run(config, overrides)


def losses(run, name="loss"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_the_experiment_runs_on_a_small_causal_model(base, texts, tmp_path):
    directory = train(
        base,
        texts,
        "experiment=adapt_smollm2",
        "training.n_iters=2",
        "training.batch_size=8",
        f"run_dir={tmp_path / 'run'}",
    )
    assert (directory / "model" / "adapter_model.safetensors").is_file() and losses(directory).keys() == {1, 2}


@pytest.mark.parametrize("lora", [[], LORA], ids=["full", "lora"])
def test_a_run_is_loaded_sampled_from_and_goes_on_bit_for_bit(base, texts, tmp_path, lora):
    before = load_file(base / "model.safetensors")
    whole = train(base, texts, *lora, f"run_dir={tmp_path / 'whole'}")
    assert losses(whole, "ahead") == {1: 0.0, 2: pytest.approx(1 / 3), 3: pytest.approx(2 / 3), 4: 1.0, 5: 1.0, 6: 1.0}
    assert all(torch.equal(before[name], value) for name, value in load_file(base / "model.safetensors").items())

    half = train(base, texts, *lora, f"run_dir={tmp_path / 'half'}", "training.n_iters=4")
    train(base, texts, *lora, f"resume={half}", "training.n_iters=6")
    assert losses(half) == losses(whole) and losses(half, "valid_loss")[6] == losses(whole, "valid_loss")[6]
    ours, theirs = (torch.load(run / "checkpoints" / "checkpoint_6.pth", weights_only=True) for run in (half, whole))
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())
    trained = {"embed.token_adapter.trainable_tokens_delta"} | {
        f"blocks.{n}.{part}.lora_{side}.weight"
        for n in range(3)
        for part in ("query", "value", "down")
        for side in "AB"
    }
    assert not lora or set(ours["model"]) == trained  # the base is frozen, and not saved again
    assert (whole / "model" / "adapter_model.safetensors").is_file() == bool(lora)

    size = len(AutoTokenizer.from_pretrained(base))
    shared = load_model(whole / "model")[0]
    tokens = torch.randint(size + 1, (2, 16))
    for path in (whole, whole / "checkpoints" / "checkpoint_6.pth"):
        model, noise = load_model(path)
        assert type(model) is LlamaLM and noise is not None and model.shifted
        assert (model.mask_id, model.vocab_size, model.max_length) == (size, size + 1, 16)
        assert model.tokenizer.mask_token_id == size
        torch.testing.assert_close(model.log_probs(tokens), shared.log_probs(tokens), atol=0.05, rtol=0.02)  # bfloat16

    command = ["--model", str(whole), "--strategy", "confidence", "--steps", "4", "--no-eval", "--prompt", "The cat"]
    samples, _, record = sample_run.draw_samples(sample_command.build_config(command))
    assert record and samples[0].tokens.shape == (1, 16)
    assert size not in text_ids(model.tokenizer, "The <|mask|>")  # a prompt that names the mask is text


@pytest.mark.parametrize("lora, share", [([], 0.8), (LORA, 0.9)], ids=["full", "lora"])
def test_the_loss_falls(base, texts, tmp_path, lora, share):
    """Rank 2 on a random frozen head does not get as far."""
    run = train(base, texts, *lora, f"run_dir={tmp_path / 'run'}", "training.n_iters=60", "adapt.anneal=20", "training.eval_freq=60",
                "training.snapshot_freq=60", "training.batch_size=8", "optim.lr=0.02", "training.log_freq=1")  # fmt: skip
    fell = list(losses(run).values())
    assert sum(fell[-10:]) < share * sum(fell[:10])


def test_a_causal_run_of_ours_is_adapted_and_one_adapter_starts_the_next(base, texts, tmp_path):
    """From scratch and causal; then masked, by an adapter on it; then another adapter on what that is."""
    small = [
        "model=causal",
        "model.hidden_size=16",
        "model.n_blocks=1",
        "model.n_heads=2",
        "model.length=24",
        "data.tokenizer=" + str(base),
    ]
    causal = train("null", texts, *small, "loss=ar", f"run_dir={tmp_path / 'causal'}")
    first = train(causal, texts, *LORA, f"run_dir={tmp_path / 'first'}")
    second = train(first, texts, *LORA, f"run_dir={tmp_path / 'second'}")
    assert json.loads((second / "model" / "adapter_config.json").read_text())["trainable_token_indices"] is None
    assert not losses(second, "ahead")  # attention is open already
    tokens = torch.randint(100, (2, 16))
    one, two = (load_model(run / "model")[0].log_probs(tokens) for run in (first, second))
    assert (one - two).nan_to_num().abs().max() > 1e-4


def test_what_cannot_be_adapted_is_refused(base, texts, tmp_path):
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    (gpt2 / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="type gpt2 cannot be made a masked one"):
        train(gpt2, texts, f"run_dir={tmp_path / 'a'}")
    with pytest.raises(ValueError, match="lora.rank=2 needs init=MODEL"):
        train("null", texts, *LORA, f"run_dir={tmp_path / 'b'}")
    with pytest.raises(ValueError, match="lora.rank=2 needs init=MODEL"):
        train(base, texts, *LORA, "loss=ar", f"run_dir={tmp_path / 'c'}")
