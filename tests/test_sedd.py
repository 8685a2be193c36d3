"""SEDD through the commands: pre-training with score entropy, fine-tuning, sampling around prompts; and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dlm.checkpoints.saving import save_model
from dlm.masked_lm import SeddLM
from load_model import load_model
from tests.training.test_run import record, train
from unmask.build import stored_config
from unmask.commands import sample as sample_command

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "tests" / "vectors" / "sedd-tiny"
SMALL = ["model=sedd", "loss=DSE", "model.hidden_size=16", "model.cond_dim=8", "model.n_blocks=1", "model.n_heads=2",
         "model.length=32"]  # fmt: skip
FEW = ["device=cpu", "wandb.mode=disabled", "training.batch_size=4", "training.n_iters=4", "training.log_freq=1",
       "training.eval_freq=4", "training.snapshot_freq=4", "eval.samples=2", "eval.steps=4", "optim.warmup=1"]  # fmt: skip


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    path.write_text('{"text": "One day a fox met a hen. They ate a pie and were glad."}\n' * 8)
    return [f"data.{split}={path}" for split in ("train", "valid")]


@pytest.fixture(scope="module")
def trained(stories, tmp_path_factory):
    return train(*SMALL, *FEW, *stories, "noise.type=geometric", f"run_dir={tmp_path_factory.mktemp('run')}")


def sampled(capsys, *words):
    sample_command.main([*words, "--json", "-", "--no-eval"])
    return json.loads(capsys.readouterr().out)


def test_a_new_sedd_learns_by_score_entropy_and_is_read_back(trained):
    model, noise = load_model(trained)
    assert isinstance(model, SeddLM) and noise.sigma_max == 20 and model.tokenizer is not None
    saved = torch.load(trained / "checkpoints" / "checkpoint_4.pth", weights_only=True)["ema"]["shadow_params"]
    assert all(torch.equal(p, s) for p, s in zip(model.backbone.parameters(), saved, strict=True))
    assert len({record(trained)[step, "loss"] for step in range(1, 5)}) == 4
    shared, _ = load_model(trained / "model")
    assert isinstance(shared, SeddLM) and shared.backbone.config["graph"] == {"type": "absorb"}


def test_it_is_trained_further_by_any_loss(trained, stories, tmp_path):
    for loss in ("DSE", "t_DCE", "lambda_DCE"):
        run = train(f"init={trained}", f"loss={loss}", *FEW, *stories, f"run_dir={tmp_path / loss}")
        model, noise = load_model(run)
        assert isinstance(model, SeddLM) and noise.sigma_max == 20
        assert model.has_sums == (loss == "DSE")  # config.json says it, whatever the loss before


@pytest.mark.parametrize("strategy", ["euler", "analytic", "confidence"])
def test_it_writes_around_prompts(strategy, trained, capsys, tmp_path):
    base = ["--model", str(trained), "--strategy", strategy, "--steps", "4", "--num_samples", "2"]
    record = sampled(capsys, *base, "--prefix", "One day", "--suffix", "glad.", "--out", str(tmp_path))
    assert record["strategy"] == strategy and record["exact"] and record["nfe"] <= 5
    for file in tmp_path.glob("sample_*.txt"):
        text = file.read_text()
        assert text.startswith("One day") and text.rstrip().endswith("glad.")
    sampled(capsys, *base, "--template", "One day a [MASK:3] met a hen.", "--out", str(tmp_path / "filled"))
    text = (tmp_path / "filled" / "sample_0.txt").read_text()
    assert text.startswith("One day a") and text.rstrip().endswith("met a hen.")


def test_what_is_refused(trained, capsys):
    base = ["--model", str(trained), "--no-eval", "--steps", "2"]
    with pytest.raises(ValueError, match="the prompt has .* positions and the canvas 32; shorten it"):
        sample_command.main([*base, "--strategy", "euler", "--prefix", "One day a fox met a hen. " * 20])
    with pytest.raises(ValueError, match=r"leave sampler.temperature=0.5, sampler.block_length=8 out"):
        sample_command.main([*base, "--strategy", "euler", "sampler.temperature=0.5", "sampler.block_length=8"])
    with pytest.raises(ValueError, match="steps on the scores of a SEDD, and this model is none"):
        sample_command.main(["--strategy", "euler", "--steps", "2", "--no-eval"])


def test_score_entropy_of_a_model_without_scores_is_refused(stories, tmp_path):
    other = [word for word in SMALL if "cond_dim" not in word and word != "model=sedd"]
    with pytest.raises(ValueError, match="loss=DSE is for SEDD.*t_DCE"):
        train(*other, *FEW, *stories, f"run_dir={tmp_path / 'run'}")


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path):
    """By its weights, and by its tokenizer."""
    shutil.copytree(VECTORS, tmp_path / "m", copy_function=shutil.copyfile)
    config = json.loads((VECTORS / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"tokens": 120}))
    with pytest.raises(ValueError, match=r"does not fit its config.*expected \(121"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(ROOT / "data" / "stories" / "tokenizer").save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="the tokenizer has 2048 tokens and the model .* 97; they do not belong"):
        load_model(tmp_path / "m")


def test_another_family_and_an_unknown_graph_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a sedd checkpoint by its config.json, and the configuration is for llada"):
        load_model(VECTORS, model_type="llada")
    config = json.loads((VECTORS / "config.json").read_text())
    shutil.copytree(VECTORS, tmp_path / "m", copy_function=shutil.copyfile)
    for graph, message in (("roulette", "use one of absorb, uniform"), ("uniform", "scale_by_sigma=true is for")):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"graph": {"type": graph}}))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "m")


def test_the_weights_tell_a_sedd_from_a_radd_whose_config_is_the_same(tmp_path):
    shutil.copytree(VECTORS, tmp_path / "m", copy_function=shutil.copyfile)
    config = json.loads((VECTORS / "config.json").read_text())
    for scaled in (True, False):
        config["model"]["scale_by_sigma"] = scaled
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        assert isinstance(load_model(tmp_path / "m", model_type="sedd")[0], SeddLM)
    assert not isinstance(load_model(VECTORS.parent / "radd-tiny")[0], SeddLM)
    with pytest.raises(ValueError, match="is a radd checkpoint by its config.json"):
        load_model(VECTORS.parent / "radd-tiny", model_type="sedd")


def test_a_run_of_the_published_training_is_read(tmp_path):
    """.hydra/config.yaml, the raw weights under their names, the averaged ones in a list."""
    state = torch.load(VECTORS / "pytorch_model.bin", weights_only=True)
    model = load_model(VECTORS)[0]
    names = [name for name, _ in model.backbone.named_parameters()]
    averaged = [state[name] * 2 for name in names]
    saved = {"model": state, "ema": {"shadow_params": averaged, "decay": 0.9, "num_updates": 1}, "step": 1}
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "checkpoints-meta").mkdir()
    shutil.copyfile(VECTORS / "config.json", tmp_path / ".hydra" / "config.yaml")  # JSON is YAML
    torch.save(saved, tmp_path / "checkpoints-meta" / "checkpoint.pth")
    read, _ = load_model(tmp_path)
    assert isinstance(read, SeddLM)
    assert all(torch.equal(p, a) for p, a in zip(read.backbone.parameters(), averaged, strict=True))


def test_saving_keeps_the_published_names(tmp_path):
    model, _ = load_model(VECTORS)
    save_model(model, stored_config(model, "DSE"), tmp_path, torch.float32)
    again, _ = load_model(tmp_path)
    tokens = torch.full((1, 8), model.mask_id)
    assert torch.equal(again.log_probs(tokens), model.log_probs(tokens))


def test_the_published_fine_tuning_line_runs_from_a_directory(tmp_path):
    rows = [{"question": f"What is {n}+{n}?", "solution": f"It is \\({2 * n}\\)."} for n in range(20)]
    (tmp_path / "s1K-1.1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["dlm=sedd_small", "data.train=s1K-1.1", "data.valid=s1K-1.1", f"data.cache_dir={tmp_path}"]
    run = train(*line, "dlm.path=example/latex_sft", *FEW, f"run_dir={tmp_path / 'run'}")
    assert record(run)[4, "loss"] > 0 and isinstance(load_model(run)[0], SeddLM)
