"""run_sample.py with particles: twisted_smc and fk end to end on tiny untrained models, their figures, and what is refused."""

import json

import pytest
import torch

import twist.targets
import unmask.decoders
from data.text import train_bpe
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from load_model import load_model
from tests.test_run_sample import LLAMA, NOISE, SENTENCES, SHAPE, draw
from twist.network import TwistModel, save_twist
from unmask.commands import sample as sample_command
from unmask.runs import sample as sample_run

CONTINUES = {"kind": "continuation", "text": " cat"}
INFILLS = {"kind": "infilling", "tokens": 2}
TWISTS = {  # name: (model, settings, method, target)
    "causal": ("causal", {"trunk": "separate"}, "ctl", CONTINUES),
    "infill": ("causal", {"condition": "tokens", "layers": 2}, "sixo", INFILLS),
    "dpg": ("causal", {}, "dpg", CONTINUES),
    "class": ("causal", {"condition": "class", "classes": 3}, "rl", CONTINUES),
    "vocabulary": ("masked", {}, "ctl", {"kind": "latex"}),
    "reward": ("masked", {}, "ctl", {"kind": "reward", "reward": "any"}),
    "state": ("masked", {"state": True, "trunk": "separate"}, "ctl", {"kind": "latex"}),
}


@pytest.fixture(scope="module")
def twists(tmp_path_factory) -> dict[str, str]:
    """Runs with a twist each, and the two models."""
    root, tokenizer = tmp_path_factory.mktemp("twists"), train_bpe(SENTENCES, 280)
    configs = {"masked": {"tokens": 280, "model": SHAPE | {"length": 12}, "noise": NOISE}, "causal": LLAMA}
    for name, config in configs.items():
        torch.manual_seed(0)
        save_model(build_model(config, "float32", tokenizer)[0], config, root / name, torch.float32)
    for name, (model, settings, method, target) in TWISTS.items():
        about = {"model": str(root / model), "method": method, "target": target, "prompt": "The cat", "length": 4}
        twist = TwistModel(load_model(root / model)[0], **settings)
        for head in (twist.head, twist.state_head):
            if head is not None:
                torch.nn.init.xavier_normal_(head.last.weight)
        save_twist(twist, root / "runs" / name / "twist", about)
    return {"": str(root)} | {name: str(root / "runs" / name) for name in TWISTS} | {name: str(root / name) for name in configs} \
        | {"causal twist": str(root / "runs" / "causal")}  # fmt: skip


@pytest.fixture
def happy(monkeypatch):
    """A reward: how often an answer says "a"."""

    def text_reward(name, model, prompt):
        decode = lambda tokens: model.tokenizer.batch_decode(tokens[:, prompt:], skip_special_tokens=True)
        return lambda tokens: torch.tensor([float(text.count("a")) for text in decode(tokens)])

    monkeypatch.setattr(unmask.decoders, "text_reward", text_reward)


def test_a_sample_without_a_particle_is_named_and_left_out_of_the_means(twists, monkeypatch):
    honest, asked = unmask.decoders.build_target, []

    def build_target(*arguments):
        made = honest(*arguments)

        def log_phi(tokens, given=None):  # the second sample's four particles
            asked.append(len(tokens))
            return torch.where(torch.arange(len(tokens)) // 4 == 1, -torch.inf, -1.0)

        made.log_phi = log_phi
        return made

    monkeypatch.setattr(unmask.decoders, "build_target", build_target)
    words = ["--strategy", "twisted_smc", "--twist", twists["causal twist"], "--num_samples", "3", "--batch_size", "3"]
    _, texts, record = draw(*words, "--particles", "4", "--resample", "never", "sampler.smc.proposal=base")
    assert asked == [12] and record["dead"] == [1] and len(texts) == 3
    assert record["log_z"] == [pytest.approx(-1), None, pytest.approx(-1)] and record["log_phi"][1] is None
    json.dumps(record, allow_nan=False)
    shown = sample_run.summary(record)
    assert "log Z                  -1.000" in shown and "1 of 3 samples (1): all particles have potential 0" in shown


@pytest.mark.parametrize(("name", "argv"), [
    ("causal twist", ["--particles", "6", "--resample", "every"]),
    ("causal twist", ["--particles", "6", "--resample", "never", "sampler.smc.proposal=base"]),
    ("infill", ["--suffix", " ball"]),
    ("dpg", ["--resample", "never"]),
    ("class", ["sampler.smc.label=2", "sampler.smc.scheme=residual"]),
    ("vocabulary", ["--particles", "3"]),
    ("vocabulary", ["--particles", "3", "sampler.smc.proposal=tokens", "sampler.smc.unmask=random", "--steps", "12"]),
    ("state", ["--steps", "2", "sampler.smc.unmask=confidence"]),
    ("state", ["--steps", "2", "--resample", "every", "sampler.smc.proposal=base"]),
])  # fmt: skip
def test_twists_are_sampled_from(twists, name, argv):
    words = ["--strategy", "twisted_smc", "--twist", twists[name], "--num_samples", "3", *argv]
    tokens, texts, record = draw(*words, "--batch_size", "3")
    assert all(text.startswith("The cat") for text in texts)
    assert record["generated"] == 3 * 4
    assert len(record["log_z"]) == 3 and len(set(record["log_z"])) > 1
    assert 1 <= record["effective"] <= record["particles"]
    assert record["resamplings"] == 0 or "never" not in argv
    assert torch.equal(draw(*words, "--batch_size", "2")[0], tokens)  # samples do not depend on the batch
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("words", [["--suffix", " a ball"], ["--template", "The cat[MASK:2] saw[MASK:2]"]], ids=str)
def test_what_stands_behind_the_first_mask_is_text_and_no_prompt(twists, words, monkeypatch):
    read = []

    def text_reward(name, model, prompt):
        def score(tokens):
            read.extend(model.tokenizer.batch_decode(tokens[:, :prompt]))
            return -tokens[:, prompt:].float().mean(1)

        return score

    monkeypatch.setattr(twist.targets, "text_reward", text_reward)
    _, texts, _ = draw("--strategy", "twisted_smc", "--twist", twists["reward"], "--num_samples", "2", *words)
    assert set(read) == {"The cat"} and all(text.startswith("The cat") for text in texts)


def test_a_tempered_proposal_keeps_to_the_same_target(twists):
    words = ["--strategy", "twisted_smc", "--twist", twists["vocabulary"], "--num_samples", "2"]
    whole, half, none = (draw(*words, f"sampler.smc.exponent={exponent}")[2]["log_z"] for exponent in (1, 0.5, 0))
    assert whole != half != none and all(len(values) == 2 for values in (whole, half, none))


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
@pytest.mark.parametrize("model", ["masked", "causal"])
def test_strategies_are_steered(twists, happy, model, potential):
    words = ["--strategy", "fk", "--model", twists[model], "--reward", "any/reward", "--length", "10", "--num_samples", "8",
             f"sampler.smc.potential={potential}"]  # fmt: skip
    _, texts, record = draw(*words, "sampler.smc.scale=4")
    base = draw(*words, "--particles", "1")[1]
    assert len(record["log_z"]) == 8 and record["particles"] == 8
    assert sum(text.count("a") for text in texts) > sum(text.count("a") for text in base)


def test_best_of_n_is_a_setting(twists, happy):
    words = [
        "--strategy",
        "fk",
        "--model",
        twists["masked"],
        "--reward",
        "any/reward",
        "--num_samples",
        "3",
        "--resample",
        "never",
    ]
    best, _, record = draw(*words, "sampler.smc.pick=best", "--particles", "16")
    assert record["log_phi"] == [
        float(text.count("a")) for text in draw(*words, "sampler.smc.pick=best", "--particles", "16")[1]
    ]
    assert record["nfe"] >= 16 * 3 and len(best) == 3
    assert sum(record["log_phi"]) > sum(draw(*words, "--particles", "1")[2]["log_phi"])


def test_the_command_says_what_the_particles_did(twists, capsys):
    sample_command.main(["--strategy", "twisted_smc", "--twist", twists["causal twist"], "--no-eval"])
    out = capsys.readouterr().out
    assert "log Z" in out and "of 8 particles a sample" in out and "effective particles" in out


@pytest.mark.parametrize(("argv", "message"), [
    ([], "needs a twist; give a run of train-twist"),
    (["--twist", "causal"], "has no 'twist'; give a run of train-twist, not a model"),
    (["--twist", ""], "is no twist: .*config.json does not exist"),
    (["--twist", "dpg"], "learnt by dpg, which identifies the proposal only.*--resample never"),
    (["--twist", "infill"], "conditioned on the text that follows; give this text"),
    (["--twist", "infill", "--suffix", " The cat saw a red ball"], r"the suffix ' The cat saw a red ball' is \d+ tokens and this twist was learnt for 2 that follow"),
    (["--twist", "infill", "--suffix", "T"], "the suffix 'T' is 1 tokens and this twist was learnt for 2"),
    (["--twist", "infill", "--suffix", " ball", "--length", "3"], "conditioned on 2 tokens and 1 are written"),
    (["--twist", "causal twist", "--length", "40"], "length=40 must be from 1 to the model's 12"),
    (["--twist", "class"], "conditioned on one of 3 classes and sampler.smc.label=None; give a number from 0 to 2"),
    (["--twist", "causal twist", "--particles", "0"], "sampler.smc.particles=0 must be a whole number of at least 1"),
    (["--twist", "causal twist", "--resample", "often"], "sampler.smc.resample='often' is unknown; use one of ess, every, never"),
    (["--twist", "causal twist", "sampler.smc.proposal=joint"], "the model is causal; use sampler.smc.proposal=tokens"),
    (["--twist", "causal twist", "sampler.smc.unmask=random"], "strategy 'random' needs a masked model"),
    (["--twist", "causal twist", "sampler.temperature=0"], "temperature 0 has none"),
    (["--twist", "causal twist", "sampler.stop=true"], "compared at one length"),
    (["--twist", "vocabulary", "sampler.guidance=1"], "the twist reads one; leave sampler.guidance out"),
    (["--twist", "vocabulary", "sampler.budget=2"], "commits one position per step, so sampler.budget=2 has no effect"),
    (["--twist", "vocabulary", "sampler.smc.exponent=-1"], "exponent=-1 must be a finite number of at least 0"),
    (["--twist", "vocabulary", "sampler.smc.exponent=0.5", "sampler.smc.proposal=base"], "needs a twisted proposal, and the proposal is base"),
    (["--twist", "vocabulary", "sampler.smc.proposal=tokens", "sampler.smc.unmask=random", "--steps", "2"], "commits 2 at once"),
], ids=str)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(twists, argv, message):
    argv = [
        twists.get(word, word) if before == "--twist" else word for before, word in zip(["", *argv], argv, strict=False)
    ]
    with pytest.raises(ValueError, match=message):
        draw("--strategy", "twisted_smc", *argv)


def test_steering_refuses_what_it_cannot_do(twists, happy):
    with pytest.raises(ValueError, match="strategy fk needs a reward"):
        draw("--strategy", "fk", "--model", twists["masked"])
    for setting, message in (("potential=mean", "potential='mean' is unknown"), ("scale=much", "scale=much must be a finite number"),
                             ("pick=worst", "pick='worst' is unknown"), ("interval=0", "interval=0 must be a whole number"),
                             ("unmask=leftwards", "did you mean 'leftmost'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            draw("--strategy", "fk", "--model", twists["masked"], "--reward", "any/reward", f"sampler.smc.{setting}")
