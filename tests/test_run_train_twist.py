"""train-twist end to end on tiny models: every method and what may stand for the target, resuming, reuse, refusals."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm.masked_lm import MaskedLM
from evaluation.kl_report import report
from load_model import load_model
from tests.policy_runs import assert_equal, record, saved
from tests.twist.tiny import QUICK, causal, classifier, masked, run
from twist.algorithms import POSITIVES, TwistLearning
from twist.network import load_twist
from twist.targets import ClassTarget
from unmask.commands import sample as sample_command

MLP = ["twist.layers=2", "optim.lr=1e-2"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, list[str]]:
    """Overrides that put tiny models in the place of others: of infilling, of a class."""
    root = tmp_path_factory.mktemp("tiny")
    model = f"dlm.path={causal(root / 'llama')}"
    two = classifier(root / "classifier", 2)
    return {
        "masked": [f"dlm.path={masked(root / 'masked')}", *MLP, "target=sentiment", "target.classes=2",
                   f"target.classifier={two}", "prompt=I b"],
        "infilling": [model, "training.updates_per_epoch=2", *MLP],
        "class": [model, "training.updates_per_epoch=2", *MLP, "target=sentiment", "target.classes=2",
                  f"target.classifier={two}", "prompt=I bought"],
    }  # fmt: skip


def evaluations(directory):
    return json.loads((directory / "evaluations.json").read_text())


MASKED = [(method, allowed[0], "masked") for method, allowed in POSITIVES.items()]
PUBLISHED = [
    (method, allowed[kind == "infilling"], kind)
    for method, allowed in POSITIVES.items()
    for kind in ("class", "infilling")
]
OTHERS = sorted({(method, positives, kind) for method, allowed in POSITIVES.items() for positives in allowed
                 for kind in ("infilling", "class")} - set(PUBLISHED))  # fmt: skip
FEW = ["training.updates_per_epoch=1", "training.epochs=1", "eval.particles=[2]"]


@pytest.mark.parametrize(
    ("method", "positives", "kind"),
    [*PUBLISHED, *MASKED, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_every_method_with_all_that_may_stand_for_the_target(method, positives, kind, tiny, tmp_path):
    several = (
        ["training.particles=4"]
        if kind == "infilling" and (method == "ctl" or positives in ("sis", "smc", "csmc"))
        else []
    )
    directory = run(tmp_path / "run", *QUICK, *tiny[kind], *FEW, f"method={method}", f"positives={positives}", *several)
    metrics = record(directory)
    assert {"loss", "grad_norm", "lr"} <= metrics[1].keys() and metrics[1]["grad_norm"] > 0
    assert [entry["updates"] for entry in evaluations(directory)] == [0, 1]
    last = evaluations(directory)[-1]
    assert {"f", "g", "log_z", "kl_q_sigma", "kl_sigma_q", "score", "kl_q_p", "bounds"} <= last.keys()
    kinds = {(bound["proposal"], bound["kind"]) for bound in last["bounds"]}
    of_smc = {bound for bound in kinds if bound[1] == "smc"}
    assert len(kinds - of_smc) == 2 and len(of_smc) == (0 if method in ("dpg", "ppo") else 2)
    assert all(bound["upper"] is not None for bound in last["bounds"])
    assert (last["log_z_by"] == "pairs") == (kind == "infilling")
    assert saved(directory)["updates"] == (4 if method == "ppo" else 1)
    twist, about = load_twist(directory / "twist", model_of(tiny[kind]))
    assert about["method"] == method and twist.settings["bounded"] == (method == "fudge")
    assert twist.settings["level"] == (method in ("rl", "fudge"))
    assert len(list((directory / "samples" / "iter_1").glob("sample_*.txt"))) == 2


@pytest.mark.parametrize("kind", ["class", "masked"])
@pytest.mark.parametrize("method", ["ctl", "rl", "fudge", "dpg", "ppo"])
def test_a_class_that_is_told_with_each_text(method, kind, tiny, tmp_path):
    words = [*QUICK, *tiny[kind], *FEW, "target.label=null", "training.particles=4"]
    directory = run(tmp_path / "run", *words, f"method={method}")
    last = evaluations(directory)[-1]
    assert {"kl_q_sigma", "kl_sigma_q"} <= last.keys() and record(directory)[1]["grad_norm"] > 0
    twist, _ = load_twist(directory / "twist", model_of(tiny[kind]))
    assert (twist.settings["condition"], twist.settings["classes"]) == ("class", 2)
    given = load_file(directory / "posterior.safetensors")["given"]
    assert given.shape == (6,) and set(given.tolist()) <= {0, 1}
    texts = [file.read_text() for file in (directory / "samples" / "iter_1").glob("sample_*.txt")]
    assert len(texts) == 2
    if method != "ppo":  # which learns from its own samples
        with pytest.raises(ValueError, match="target.beta=2.0: text and what it is conditioned on are exact samples"):
            run(tmp_path / "other", *words, f"method={method}", "target.beta=2.0", "posterior.count=0")


@pytest.mark.parametrize("method", ["ctl", "rl", "sixo", "fudge"])
def test_a_state_head_learns_besides_and_steps_of_many_positions_sample_by_it(method, tiny, tmp_path):
    directory = run(tmp_path / "run", *QUICK, *tiny["masked"], *FEW, f"method={method}", "twist.state=true")
    assert math.isfinite(record(directory)[1]["state_loss"])
    twist, _ = load_twist(directory / "twist", model_of(tiny["masked"]))
    assert twist.state_head is not None and any(parameter.any() for parameter in twist.state_head.last.parameters())
    file = directory / "samples.json"
    sample_command.main(["--strategy", "twisted_smc", "--twist", str(directory), "--steps", "2", "--particles", "3",
                     "--num_samples", "2", "--no-eval", "--json", str(file)])  # fmt: skip
    written = json.loads(file.read_text())
    assert len(written["log_z"]) == 2 and all(math.isfinite(value) for value in written["log_z"])


def model_of(words: list[str]) -> MaskedLM:
    return load_model(words[0].removeprefix("dlm.path="))[0]


@pytest.mark.parametrize("trunk", ["separate", "lora"])
def test_a_trunk_of_its_own_learns(trunk, tiny, tmp_path):
    before = {name: value.clone() for name, value in model_of(tiny["infilling"]).state_dict().items()}
    directory = run(
        tmp_path / "run",
        *QUICK,
        *tiny["infilling"],
        *FEW,
        "training.updates_per_epoch=2",
        "method=dpg",
        f"twist.trunk={trunk}",
        "twist.rank=2",
    )
    model = model_of(tiny["infilling"])
    assert_equal(dict(model.state_dict()), before)
    twist, _ = load_twist(directory / "twist", model)
    names = twist_names(directory)
    assert any("trunk" in name for name in names) and (trunk == "lora") == any("lora_" in name for name in names)
    assert twist.trunk is not None
    if trunk == "separate":
        own, copied = (m.backbone.state_dict()["model.layers.0.mlp.up_proj.weight"] for m in (model, twist.trunk))
        assert not torch.equal(own, copied)


def twist_names(directory) -> list[str]:
    return list(load_file(directory / "twist" / "model.safetensors"))


# ------------------------------------------------------------------------------------------ schedules, resuming, going on


@pytest.mark.parametrize("every, updates, epochs", [("2", [0, 4, 8], [0, 2, 3]), ("null", [8], [3])])
def test_updates_double_from_epoch_to_epoch(every, updates, epochs, tiny, tmp_path):
    directory = run(tmp_path / "run", *QUICK, *tiny["infilling"], "method=dpg", "training.schedule=exp2", "training.epochs=3",
                    "eval.particles=[2]", f"eval.every={every}")  # fmt: skip
    assert [entry["updates"] for entry in evaluations(directory)] == updates and saved(directory)["step"] == 8
    assert [entry["epoch"] for entry in evaluations(directory)] == epochs


@pytest.mark.parametrize("method", ["ctl", "ppo"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(method, tiny, tmp_path, monkeypatch):
    words = [*QUICK, *tiny["class"], f"method={method}", "eval.particles=[2]"]
    whole = run(tmp_path / "whole", *words)
    iteration = TwistLearning.iteration

    def dies(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return iteration(self, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TwistLearning, "iteration", dies)
        run(tmp_path / "half", *words)
    assert saved(tmp_path / "half")["step"] == 3
    again = run(tmp_path / "half", "resume=RUN")
    assert record(again) == record(whole)
    assert evaluations(again) == evaluations(whole)
    one, other = saved(again), saved(whole)
    assert_equal({k: v for k, v in one.items() if k != "run"}, {k: v for k, v in other.items() if k != "run"})


def test_a_run_that_has_ended_goes_on_by_epochs(tiny, tmp_path, capsys):
    words = [*QUICK, *tiny["class"], "method=dpg", "eval.particles=[2]"]
    whole = run(tmp_path / "whole", *words, "training.epochs=3")
    ended = run(tmp_path / "ended", *words)
    capsys.readouterr()
    run(ended, "resume=RUN")
    assert "already at step 4 of 4; training.epochs=N goes further" in capsys.readouterr().out
    again = run(ended, "resume=RUN", "training.epochs=3")
    assert saved(again)["step"] == 6 and evaluations(again) == evaluations(whole)
    assert_equal(*(load_file(directory / "twist" / "model.safetensors") for directory in (again, whole)))
    with pytest.raises(ValueError, match="training.n_iters=9 follows from training.epochs .* give training.epochs=N"):
        run(ended, "resume=RUN", "training.n_iters=9")


def test_a_twist_is_gone_on_with(tiny, tmp_path):
    first = run(tmp_path / "first", *QUICK, *tiny["infilling"], *FEW, "method=dpg")
    more = [*QUICK, *tiny["infilling"], *FEW, f"init={first}"]
    second = run(tmp_path / "second", *more, "method=dpg", "training.epochs=0")
    assert [entry["updates"] for entry in evaluations(second)] == [0]
    one, other = (load_file(directory / "twist" / "model.safetensors") for directory in (first, second))
    assert_equal(one, other)
    with pytest.raises(ValueError, match="learnt by dpg, whose twist is a proposal and no weight.* or give method=dpg"):
        run(tmp_path / "renamed", *more, "method=sixo")  # its particles would be resampled at the first evaluation
    third = run(tmp_path / "ppo", *more, "method=ppo")
    assert load_twist(third / "twist", model_of(tiny["infilling"]))[1]["method"] == "ppo"
    with pytest.raises(ValueError, match="learnt by dpg, and training.epochs=0 trains it no further; give method=dpg"):
        run(tmp_path / "untrained", *more, "method=ppo", "training.epochs=0")
    with pytest.raises(
        ValueError, match="of another shape than this run requests; give twist.trunk=own twist.layers=2$"
    ):
        run(tmp_path / "shape", *more, "method=dpg", "twist.trunk=separate", "twist.layers=3")
    with pytest.raises(
        ValueError, match="was learnt by dpg for infilling with condition tokens: not the head of method=fudge"
    ):
        run(tmp_path / "third", *QUICK, *tiny["infilling"], *FEW, "method=fudge", f"init={first}")


# ------------------------------------------------------------------------------------------ exact samples


def test_exact_samples_are_collected_once_and_used_again(tiny, tmp_path, capsys):
    collected = run(tmp_path / "collected", *QUICK, *tiny["class"], "mode=collect")
    file = collected / "posterior.safetensors"
    told = capsys.readouterr().out
    assert "6 exact samples of the target out of" in told and not (collected / "twist").exists()
    again = run(tmp_path / "again", *QUICK, *tiny["class"], *FEW, f"posterior.path={file}")
    assert not (again / "posterior.safetensors").exists() and "exact samples" not in capsys.readouterr().out
    for change, named in ([["prompt=Once"], "prompt"], [["length=4"], "length"], [["target.label=1"], "target"]):
        with pytest.raises(ValueError, match=f"holds exact samples of another {named} than this run's"):
            run(tmp_path / named, *QUICK, *tiny["class"], *FEW, *change, f"posterior.path={file}")
    other = causal(tmp_path / "other", spread=1.0)
    with pytest.raises(ValueError, match="holds exact samples of another model than this run's"):
        run(tmp_path / "model", *QUICK, *tiny["class"], *FEW, f"dlm.path={other}", f"posterior.path={file}")
    with pytest.raises(ValueError, match="holds 6 exact samples and posterior.count=7; lower it, or collect more"):
        run(tmp_path / "more", *QUICK, *tiny["class"], *FEW, f"posterior.path={file}", "posterior.count=7")


def test_what_is_learnt_from_is_not_what_it_is_measured_on(tiny, tmp_path):
    """Else a head that knows its samples by heart looks nearer to the target than any can be. Another seed, whatever the file's."""
    words = [*QUICK, *tiny["class"], *FEW, "method=dpg", "positives=exact", "posterior.count=30"]
    directory = run(tmp_path / "run", *words)
    measured, learnt = (load_file(directory / f"{name}.safetensors")["tokens"] for name in ("posterior", "positives"))
    assert len(measured) == len(learnt) == 30 and not torch.equal(measured, learnt)
    again = run(tmp_path / "again", *words, f"posterior.path={directory / 'posterior.safetensors'}")
    assert torch.equal(load_file(again / "positives.safetensors")["tokens"], learnt)


def test_no_seed_collects_the_samples_that_a_run_learns_from(tiny, tmp_path):
    """Those of a run of seed 0 were once what seed 4 collects; a file of that time is refused."""
    words = [*QUICK, *tiny["class"], "posterior.count=30"]
    measured = run(tmp_path / "measured", *words, "mode=collect", "seed=4") / "posterior.safetensors"
    words += [*FEW, "method=dpg", "positives=exact", f"posterior.path={measured}"]
    learnt = run(tmp_path / "run", *words, "seed=0") / "positives.safetensors"
    assert not torch.equal(*(load_file(file)["tokens"] for file in (measured, learnt)))
    for name, count in (("older", 30), ("fewer", 20)):  # those that are used are compared, whatever else the files hold
        (tmp_path / name).mkdir()
        (tmp_path / name / "positives.safetensors").write_bytes(measured.read_bytes())
        with pytest.raises(
            ValueError, match="positives.safetensors holds the very samples that this run is measured on"
        ):
            run(tmp_path / name, *words, "seed=0", f"posterior.count={count}")


def test_samples_of_a_classifier_that_was_trained_since_are_refused(tiny, tmp_path):
    words = [word for word in tiny["class"] if not word.startswith("target.classifier=")]
    words.append(f"target.classifier={classifier(tmp_path / 'classifier', 2)}")
    collected = run(tmp_path / "collected", *QUICK, *words, "mode=collect")
    file = tmp_path / "classifier" / "model.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="holds exact samples of another target than this run's"):
        run(tmp_path / "run", *QUICK, *words, *FEW, f"posterior.path={collected / 'posterior.safetensors'}")


def test_a_target_that_is_too_rare_is_given_up(tiny, tmp_path):
    with pytest.raises(
        ValueError, match=r"rejection kept \d+ of 32 samples of the model, 600 were requested; the target is too rare"
    ):
        run(tmp_path / "run", *QUICK, *tiny["class"], "mode=collect", "posterior.count=600", "posterior.most=20")


def test_infilling_at_another_beta_has_lower_bounds_alone(tiny, tmp_path):
    words = [*QUICK, *tiny["infilling"], *FEW, "target.beta=2", "method=ctl", "training.particles=4"]
    with pytest.raises(
        ValueError, match="exact samples of the target at beta=1 only, and positives=csmc .* positives=sis, smc"
    ):
        run(tmp_path / "refused", *words, "posterior.count=0")
    with pytest.raises(ValueError, match="exact samples of the target exist at beta=1 only, .* posterior.count=0"):
        run(tmp_path / "exact", *words, "positives=sis")
    last = evaluations(run(tmp_path / "run", *words, "positives=sis", "posterior.count=0"))[-1]
    assert all(bound["upper"] is None for bound in last["bounds"]) and last["log_z"] is None and "f" in last


def test_another_beta_has_lower_bounds_alone(tiny, tmp_path):
    words = [*QUICK, *tiny["class"], *FEW, "target.beta=3.0"]
    with pytest.raises(
        ValueError, match="target.beta=3.0: exact samples of the target exist at beta=1 only, .* lower bounds alone"
    ):
        run(tmp_path / "refused", *words)
    last = evaluations(run(tmp_path / "run", *words, "posterior.count=0"))[-1]
    assert all(bound["upper"] is None for bound in last["bounds"]) and last["log_z"] is None
    assert "f" in last and not {"g", "kl_q_sigma", "kl_sigma_q"} & last.keys()
    assert last["score"]["value"] == pytest.approx(last["log_phi"]["value"] / 3)  # log p(class) alone


# ------------------------------------------------------------------------------------------ side by side, and the report


def test_infills_side_by_side_and_their_report(tiny, tmp_path, capsys):
    words = [*QUICK, *tiny["infilling"], *FEW]
    runs = [
        run(tmp_path / method, *words, f"method={method}", f"training.particles={k}")
        for method, k in (("dpg", 1), ("ctl", 2))
    ]
    capsys.readouterr()
    shown = run(tmp_path / "shown", *words, "mode=samples", "samples=3", f"compare=[{runs[0]},{runs[1]}]")
    told = capsys.readouterr().out
    assert told.count("the model | ") == told.count(" dpg | ") == told.count(" ctl | ") == 3
    lines = [json.loads(line) for line in (shown / "samples" / "iter_0" / "samples.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["dpg"] * 3 + ["ctl"] * 3 and len(lines[0]["text"]) >= 3
    other = causal(tmp_path / "other", spread=1.0)
    with pytest.raises(ValueError, match="has other weights; give the model that it was trained on"):
        run(tmp_path / "of another", *words, f"dlm.path={other}", "mode=samples", f"compare=[{runs[0]}]")
    rows = report(runs, tmp_path / "report")
    assert [row["method"] for row in rows] == ["CTL", "DPG"]


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(("kind", "words", "message"), [
    ("infilling", ["method=ctrl"], "method='ctrl' is unknown; use one of ctl, rl, sixo, fudge, dpg, ppo"),
    ("infilling", ["mode=show"], "mode='show' is unknown; use one of train, collect, samples"),
    ("infilling", ["method=ctl"], "method=ctl with positives=csmc compares the sequences of a condition, and training.particles=1"),
    ("class", ["method=fudge", "positives=sis"], "positives='sis' is not for method=fudge; use one of exact, none"),
    ("class", ["training.particles=2"], "training.particles=2 is how many sequences share a condition, and this target has none"),
    ("infilling", ["training.particles=3"], "training.batch_size=8 is not divisible by training.particles=3"),
    ("infilling", ["target.tokens=4", "method=dpg"], "conditioned on 4 tokens and 3 are written"),
    ("infilling", ["length=70", "method=dpg"], "a prompt of 16 and an output of 70 positions are 86, and the model reads 64"),
    ("class", ["target.classes=3"], "has 2 classes and target.classes=3; give one of 3 classes, or set target.classes=2"),
    ("class", ["posterior.count=0", "positives=exact"], "posterior.count=0, and exact samples of the target are requested"),
    ("infilling", ["length=0"], "length=0 must be a whole number of at least 1"),
    ("infilling", ["training.schedule=exp"], "training.schedule='exp' is unknown; use constant or exp2"),
    ("infilling", ["mode=samples", "method=dpg"], r"give compare=\[RUN,RUN\]"),
    ("infilling", ["mode=samples", "compare=[nowhere]"], "nowhere is no twist"),
    ("infilling", ["eval.particles=[0]", "method=dpg"], "eval.particles=.* must be a list of at least 1 in brackets, such as"),
    ("infilling", ["eval.particles=2", "method=dpg"], "eval.particles=2 must be a list of at least 1 in brackets"),
    ("class", ["ppo.epochs=0", "method=ppo"], "ppo.epochs=0 must be a whole number of at least 1"),
    ("infilling", ["target.tokens=two", "method=dpg"], "target.tokens=two must be a whole number of at least 1"),
    ("masked", ["twist.state=true", "method=dpg"], "method=dpg says nothing of states"),
    ("infilling", ["twist.state=true", "method=rl"], "a causal model writes one token a step"),
    ("masked", ["twist.state=true", "method=rl", "length=1"], "length=1 has none; raise length"),
    ("infilling", ["twist.state=1", "method=rl"], "twist.state=1 must be true or false"),
    ("class", ["target.label=-1"], "target.label=-1 must be a whole number of at least 0"),
    ("class", ["eval.log_z=x"], "eval.log_z=x must be a finite number"),
    ("class", ["target.beta=x"], "target.beta=x must be a finite number"),
    ("class", ["twist.layers=2", "twist.multiplier=0"], "twist.multiplier=0 must be a finite number above 0"),
    ("infilling", ["target.beta=2", "posterior.count=0", "method=dpg"], "at beta=1 only, and positives=exact learns from them; give posterior.count=0 and positives=sis"),
    ("masked", ["posterior.order=any"], "posterior.order=any must be one of written, uniform"),
    ("infilling", ["posterior.order=uniform", "training.particles=2"], "is for masked models, and a causal one writes from the left"),
    ("masked", ["posterior.order=uniform", "positives=sis"], "and positives=sis learns from none; leave it out"),
    ("class", ["posterior.count=0", "posterior.path=file"], "posterior.path=file and posterior.count=0: give a number of them"),
    ("class", ["training.epochs=0"], "training.epochs=0 measures a twist without learning it; give init=RUN"),
    ("infilling", ["target=continuation", "method=rl", "target.text=''"], "target.text is empty"),
    ("infilling", ["mode=samples", "compare=RUN"], "in brackets, such as .RUN,RUN."),
    ("infilling", ["dlm=stories", "method=dpg", "+target.form=prob"], "target.form=prob needs a causal model, and this one is masked"),
])  # fmt: skip
def test_bad_input_is_refused(kind, words, message, tiny, tmp_path):
    model = [] if "dlm=stories" in words else tiny[kind]
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *QUICK, *model, *FEW, *words)
    assert not (tmp_path / "run").exists()


def test_a_potential_that_is_nowhere_or_no_number_stops_the_run(tiny, tmp_path, monkeypatch):
    for value, message in ((-math.inf, "have potential 0"), (math.nan, "is NaN or")):
        monkeypatch.setattr(
            ClassTarget, "log_phi", lambda self, tokens, given=None, v=value: torch.full((len(tokens),), v)
        )
        with pytest.raises(FloatingPointError, match=message):
            run(tmp_path / str(value), *QUICK, *tiny["class"], *FEW, "posterior.count=0")


def test_a_potential_of_0_on_some_texts_is_learnt_by_ctl_and_refused_where_its_logarithm_is(
    tiny, tmp_path, monkeypatch
):
    honest = ClassTarget.log_phi

    def some(self, tokens, given=None):
        found = honest(self, tokens, given)
        return found.masked_fill(tokens[:, -1] % 3 == 0, -math.inf)

    monkeypatch.setattr(ClassTarget, "log_phi", some)
    for method in ("ctl", "dpg", "sixo"):
        metrics = record(
            run(tmp_path / method, *QUICK, *tiny["class"], *FEW, "eval.particles=[32]", f"method={method}")
        )
        assert math.isfinite(metrics[1]["loss"]) and metrics[1]["grad_norm"] > 0
        last = evaluations(tmp_path / method)[-1]
        assert last["f"]["value"] is None and last["kl_q_sigma"]["value"] is None  # infinite: JSON has none
        assert last["kl_q_p"]["value"] is not None and last["g"]["value"] is not None
    for method in ("rl", "ppo"):
        with pytest.raises(ValueError, match=f"and method={method} learns from its logarithm; give it a floor"):
            run(tmp_path / method, *QUICK, *tiny["class"], *FEW, "eval.particles=[32]", f"method={method}")


def test_texts_of_potential_0_do_not_end_an_evaluation_with_conditions(tiny, tmp_path, monkeypatch, capsys):
    """Each text there is the one particle of its condition."""
    honest = ClassTarget.log_probs

    def some(self, tokens):
        """As likely as class 1, and nowhere where the last letter is one of some."""
        found, never = honest(self, tokens).fill_(-math.log(2)), (tokens[:, -1] % 3 == 0).unsqueeze(1)
        return found.where(~never, torch.tensor([-math.inf, 0.0]).expand_as(found))

    monkeypatch.setattr(ClassTarget, "log_probs", some)
    words = [*QUICK, *tiny["class"], *FEW, "target.label=null", "training.particles=4", "method=dpg", "eval.samples=64"]
    directory = run(tmp_path / "run", *words, "eval.particles=[1,2]", "posterior.count=40")
    last = evaluations(directory)[-1]
    assert last["f"]["value"] is None and last["g"]["value"] is not None and last["kl_q_p"]["value"] is not None
    assert "log_z_pairs" in last
    capsys.readouterr()
    (row,) = report([directory], tmp_path / "report", log_z=-1.0)
    assert row["kl_q_sigma"] == math.inf and math.isfinite(row["kl_sigma_q"]) and row["log_phi"] == -math.inf
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["kl_q_sigma"] is None


def test_a_threshold_on_the_difference_of_two_logits(tiny, tmp_path):
    """As docs/coming_from.md says it of sentiment_threshold."""
    two = [word for word in tiny["class"] if not word.startswith("target=")]
    words = ["target=toxicity_threshold", *two, "+target.label=1", "+target.against=0", "target.threshold=0.1"]
    assert (run(tmp_path / "run", *QUICK, *words, "mode=collect") / "posterior.safetensors").is_file()
