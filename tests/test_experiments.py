"""Every file of configs/experiment runs, in this process, with tiny numbers, tiny models and tiny data in place of its own."""

import json
from pathlib import Path

import pytest

from load_model import load_model
from policy.checkpoints import load_policy
from rewards.models import load_reward
from tests.data.test_questions import usable
from tests.policy_runs import DIT, EXPERIMENTS, QUICK, ROOT, record, run
from tests.preference_pairs import tiny as tiny_model
from tests.preference_pairs import write_pairs
from tests.test_run_guide import EXPERIMENTS as GUIDES
from tests.test_run_train_preference import run as run_preference
from tests.test_run_train_quality import EXPERIMENTS as QUALITY
from tests.test_run_train_reward import run as run_reward
from tests.test_run_train_rl import run as run_rl
from tests.tiny_text import backbone, questions
from tests.training.test_run import train
from tests.twist.tiny import QUICK as QUICK_TWIST
from tests.twist.tiny import causal, classifier
from tests.twist.tiny import run as run_twist
from training.usage import composed
from twist.settings import TwistTrainingSettings
from twist.train import epochs
from unmask.build import read_settings

FILES = {path.stem: path.read_text() for path in sorted((ROOT / "configs" / "experiment").glob("*.yaml"))}
QUESTIONS = [name for name in FILES if name.startswith(("llada_", "dream_"))]  # on a model of 7 or 8 billion parameters
TINY = ["model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "training.batch_size=4", "training.accum=1"]
FEW = ["training.n_iters=2", "training.eval_freq=2", "training.snapshot_freq=2", "eval.batch_size=2", "eval.samples=2",
       "eval.steps=4", "device=cpu", "wandb.mode=disabled"]  # fmt: skip
TEXT = ["data=stories", "model.length=32", "data.train=STORIES", "data.valid=STORIES"]
OWN_SIZES = {  # in place of DIT
    "llada_dit_hidden": ["policy.time_embed_dim=8"],
    "llada_expert_steering": [*DIT, "algorithm.experts.block_length=2"],
}
FORMULAS = ["data.train=FORMULAS", "data.valid=FORMULAS", "data.tokenizer=bpe:260"]
SUDOKU = ["data.base_grids=4", "data.valid_grids=2"]
BACKBONES = {  # experiments of train-dlm, and what is put in the place of their model and data
    "chain": ["data.valid_rows=4"], "latex": FORMULAS, "latex_sft": FORMULAS, "radd_owt": TEXT, "stories": TEXT,
    "stories_causal": TEXT, "sudoku6": SUDOKU, "sudoku6_finetune": SUDOKU, "sudoku9": SUDOKU,
}  # fmt: skip
RL = {  # experiments of train-rl
    "chain_rl": ["data.steps=2", "data.answer_length=4", "sampler.steps=4"],
    "latex_rl": ["data.train=FORMULAS", "data.valid=FORMULAS", "sampler.steps=4"],
}
METHODS = ("ctl", "rl", "sixo", "fudge", "dpg", "ppo")
TWISTS = [  # the 29 published command lines
    *(f"tox_{name}" for name in ("collect", *METHODS, "story")), *(f"sent_{name}" for name in ("collect", *METHODS)),
    *(f"infill15_{name}" for name in (*METHODS, "logz", "samples")), *(f"infill2_{name}" for name in METHODS),
]  # fmt: skip
REWARDS = {  # experiments of train-reward, and what takes the place of the model
    "pargs_tldr": "deberta", "pargs_hh": "deberta", "pargs_smollm2": "llama", "pargs_stories": "llama",
    "pargs_masked": None,
}  # fmt: skip


def test_every_experiment_is_run_by_a_test():
    of_backbones = {name for name, text in FILES.items() if "train-dlm" in text}
    of_policies = {name for name, text in FILES.items() if "train-policy" in text}
    of_rl = {name for name, text in FILES.items() if "train-rl" in text}
    of_guides = {name for name, text in FILES.items() if "unmask guide" in text}  # in tests/test_run_guide.py
    of_backbones, of_policies, of_rl = (names - of_guides for names in (of_backbones, of_policies, of_rl))
    of_twists = {name for name, text in FILES.items() if "train-twist" in text}
    of_rewards = {name for name, text in FILES.items() if "train-reward" in text} - of_guides - of_policies
    of_preferences = {name for name, text in FILES.items() if "train-preference" in text} - of_guides
    of_quality = {name for name, text in FILES.items() if "train-quality" in text}
    every = [of_backbones, of_policies, of_rl, of_twists, of_rewards, of_guides, of_quality]
    assert set().union(*every) == FILES.keys() and sum(map(len, every)) == len(FILES)
    assert of_twists == set(TWISTS) and len(TWISTS) == 29 and of_guides == GUIDES.keys()
    assert of_rewards == REWARDS.keys() and of_preferences == REWARDS.keys() - {"pargs_masked"}
    assert of_rl == RL.keys() and of_quality == QUALITY.keys()
    assert of_backbones - {"adapt_smollm2"} == BACKBONES.keys()  # that one in tests/dlm/test_adapt.py
    assert of_policies == EXPERIMENTS.keys() | set(QUESTIONS)


def some_formulas(directory: Path) -> Path:
    """A corpus of one formula."""
    formulas = directory / "formulas.jsonl"
    formulas.write_text('{"question": "x over y", "answer": "$\\\\frac{x}{y}$"}\n' * 8)
    return formulas


@pytest.mark.parametrize("experiment", BACKBONES)
def test_backbones(experiment, tmp_path):
    stories = tmp_path / "stories.jsonl"
    stories.write_text('{"text": "One day a fox met a hen. They ate a pie and were glad."}\n' * 8)
    words = [*TINY, *FEW, *BACKBONES[experiment]]
    words = [word.replace("STORIES", str(stories)).replace("FORMULAS", str(some_formulas(tmp_path))) for word in words]
    directory = train(f"experiment={experiment}", f"run_dir={tmp_path / 'run'}", *words)
    assert load_model(directory)[0].hidden_size == 16


@pytest.mark.parametrize("experiment", RL)
def test_rl(experiment, tmp_path):
    few = [word for word in FEW if not word.startswith("eval.steps")]
    words = [word.replace("FORMULAS", str(some_formulas(tmp_path))) for word in RL[experiment]]
    directory = run_rl(tmp_path / "run", f"experiment={experiment}", "run_dir=RUN", *few, "rl.batch_size=4", "rl.group_size=2",
                       *words)  # fmt: skip
    assert {"eval_reward", "kl"} <= record(directory)[2].keys() and load_model(directory)[0].hidden_size
    assert len(list((directory / "samples" / "iter_2").glob("sample_*.txt"))) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # TRL's own
@pytest.mark.parametrize("experiment", REWARDS)
def test_rewards_and_preferences(experiment, tmp_path):
    """On tiny random models; the published settings are those of composed()."""
    pairs, model = write_pairs(tmp_path / "pairs.jsonl"), REWARDS[experiment]
    few = ["run_dir=RUN", "device=cpu", "wandb.mode=disabled", "model.dtype=float32", "training.n_iters=1", "training.batch_size=2",
           "training.accum=2", f"data.train={pairs}", "data.valid=null", "data.valid_count=4", "data.count=null"]  # fmt: skip
    init = [] if model is None else [f"init={tiny_model(model, tmp_path / model)}"]
    small = ["encoder.hidden_size=16", "encoder.num_layers=1", "encoder.num_heads=2", "data.rows=2"]
    directory = run_reward(tmp_path / "run", pairs, f"experiment={experiment}", *few, *init, *small)
    assert load_reward(str(directory)).kind == ("mask" if model is None else "prefix")
    if experiment != "pargs_masked":
        causal = tiny_model("gpt2", tmp_path / "gpt2")
        tuned = run_preference(
            tmp_path / "tuned", {}, f"experiment={experiment}", *few, f"init={causal}", "data.max_length=32"
        )
        assert (tuned / "model" / "model.safetensors").is_file()


def test_the_published_settings():
    reward, preference = (composed(f"train_{name}", ["experiment=pargs_tldr"]) for name in ("reward", "preference"))
    assert (
        reward.init == "OpenAssistant/reward-model-deberta-v3-large"
        and preference.init == "vistagi/gpt2-large-tldr-sum"
    )
    assert (reward.training.batch_size, reward.training.accum, reward.optim.lr) == (256, 16, 5e-6)
    assert (preference.training.batch_size, preference.training.accum, preference.optim.lr) == (32, 16, 5e-5)
    assert (preference.optim.optimiser, preference.lora.rank, preference.lora.alpha) == ("rmsprop", 16, 16)
    assert reward.training.gradient_checkpointing and reward.data.max_length == preference.data.max_length == 512
    assert preference.model.dtype == "float16" and reward.training.epochs == preference.training.epochs == 1


@pytest.fixture(scope="module")
def causals(tmp_path_factory) -> dict[str, Path]:
    """Tiny models of the published shapes, classifiers of as many classes, and a twist for infilling."""
    root = tmp_path_factory.mktemp("causals")
    found: dict[str, Path] = {kind: causal(root / kind, kind) for kind in ("gpt_neo", "gpt2")}
    found |= {"tox": classifier(root / "tox", 1), "sent": classifier(root / "sent", 5)}
    found["dpg"] = run_twist(root / "dpg", "experiment=infill15_dpg", *small_twist("infill15_dpg", found))
    return found


def small_twist(experiment: str, causals: dict[str, Path]) -> list[str]:
    """The experiment on a tiny model of its shape, with few of everything."""
    task = experiment.split("_")[0]
    words = [*QUICK_TWIST, f"dlm.path={causals['gpt2' if task == 'sent' else 'gpt_neo']}", "training.updates_per_epoch=1",
             "training.epochs=1", "eval.particles=[2]", "eval.sweeps=1", "eval.texts=1"]  # fmt: skip
    if task == "infill15":
        words.append("length=10")
    if task in ("tox", "sent"):
        words.append(f"target.classifier={causals[task]}")
    if experiment in ("infill2_ctl", "infill15_ctl"):
        words.append("training.particles=4")
    if experiment == "tox_story":
        words.append("posterior.count=0")
    if experiment == "infill15_logz":
        words += ["training.epochs=0", f"init={causals['dpg']}"]
    if experiment == "infill15_samples":
        words += [f"compare=[{causals['dpg']},{causals['dpg']}]", "samples=3"]
    return words


@pytest.mark.parametrize("experiment", TWISTS)
def test_twists(experiment, causals, tmp_path, capsys):
    directory = run_twist(tmp_path / "run", f"experiment={experiment}", *small_twist(experiment, causals))
    if experiment.endswith("collect"):
        assert (directory / "posterior.safetensors").is_file() and not (directory / "twist").exists()
    elif experiment.endswith("samples"):
        told = capsys.readouterr().out
        assert told.count(" the model | ") == 3 and told.count(" dpg | ") == 6
    else:
        records = json.loads((directory / "evaluations.json").read_text())
        assert [entry["updates"] for entry in records] == {"infill15_logz": [0], "tox_story": [0, 1]}.get(
            experiment, [0, 1] if experiment.startswith("infill15") else [0, 2]
        )
        assert ("kl_q_sigma" in records[-1]) == (experiment != "tox_story")
        assert (directory / "twist" / "model.safetensors").is_file()


PUBLISHED_TWISTS = {  # rates, in the order of METHODS; epochs, updates, prompt's model and length
    "tox": ([1e-4, 3e-5, 3e-5, 1e-4, 3e-5, 1e-6], 4096, "roneneldan/TinyStories-33M", 20, "separate", 1),
    "sent": ([1e-4, 1e-4, 1e-4, 1e-3, 1e-4, 1e-5], 4096, "gpt2-medium", 10, "own", 3),
    "infill15": ([3e-6, 3e-5, 1e-4, 1e-6, 1e-4, 3e-5], 6000, "roneneldan/TinyStories-33M", 15, "separate", 3),
    "infill2": ([1e-4] * 5 + [3e-5], 16384, "roneneldan/TinyStories-33M", 2, "separate", 3),
}


@pytest.mark.parametrize("task", PUBLISHED_TWISTS)
def test_the_twists_are_learnt_with_the_published_settings(task):
    rates, updates, model, length, trunk, layers = PUBLISHED_TWISTS[task]
    configs = [composed("train_twist", [f"experiment={task}_{method}"]) for method in METHODS]
    assert [config.optim.lr for config in configs] == rates and [config.method for config in configs] == list(METHODS)
    for config in configs:
        assert (
            epochs(read_settings(TwistTrainingSettings, config))[-1] == updates
            and config.training.batch_size == 100
            and config.optim.weight_decay == 0
        )
        assert (config.dlm.path, config.length, config.twist.trunk, config.twist.layers) == (
            model,
            length,
            trunk,
            layers,
        )
        assert config.target.beta == 1 and config.posterior.count == 2000 and config.seed == 1
        assert config.eval.samples == (30 if task.startswith("infill") else 4) * max(config.eval.particles)
    story = composed("train_twist", ["experiment=tox_story"]).eval
    assert list(story.particles) == [8, 32] and story.samples == 4 * 32
    conditions = {"infill15": (10, 4), "infill2": (1, 10)}
    if task in conditions:
        assert (configs[0].target.tokens, configs[0].training.particles) == conditions[task]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Two tiny backbones that read text, and tiny data sets."""
    root = tmp_path_factory.mktemp("tiny")
    return {name: backbone(name, root / name) for name in ("llada", "dream")} | {"data": questions(root / "data")}


def small(experiment: str, tiny: dict[str, Path], *more: str) -> list[str]:
    """The experiment on the tiny model of its family, with as many blocks as it has."""
    config = composed("train_policy", [f"experiment={experiment}"])
    block = 8 * config.sampler.block_length // config.data.answer_length
    family = config.dlm.model_type.lower()
    return [f"experiment={experiment}", f"dlm.path={tiny[family]}", f"data.data_dir={tiny['data']}", "data.answer_length=8",
            f"sampler.block_length={block}", "sampler.steps=8", "data.valid_rows=3", "model.dtype=float32",
            "training.batch_size=16", *QUICK, *OWN_SIZES.get(experiment, DIT), *more]  # fmt: skip


def check(directory: Path, experiment: str) -> None:
    metrics = record(directory)
    config = composed("train_policy", [f"experiment={experiment}"])
    (function,) = config.reward.functions
    assert {"reward", "nfe", "right", "speed", function} <= metrics[1].keys()
    assert metrics[1]["reward"] == pytest.approx(metrics[1][function])
    assert metrics[2]["eval_still_masked"] == 0 and 1 <= metrics[2]["eval_nfe"] <= 8
    assert load_policy(directory) is not None
    shown = (directory / "samples" / "iter_2" / "sample_0.txt").read_text()
    assert "Respond in the following format" in shown or "Python" in shown


def skip_without_sandbox(*words: str) -> None:
    """Programs of kodcode run in bubblewrap, or not at all."""
    if any("kodcode" in word for word in words) and not usable():
        pytest.skip("bubblewrap is not here, or makes no sandbox")


@pytest.mark.parametrize("experiment", QUESTIONS)
def test_questions(experiment, tiny, tmp_path):
    skip_without_sandbox(experiment)
    check(run(tmp_path / "run", *small(experiment, tiny)), experiment)


@pytest.mark.parametrize("more", [["algorithm=ppo"], ["data=gsm8k_math_kodcode"]])
@pytest.mark.parametrize("experiment", ["llada_bl32", "llada_bl256", "dream_bl32", "dream_bl256"])
def test_the_four_settings_by_ppo_and_on_the_union_with_code(experiment, more, tiny, tmp_path):
    skip_without_sandbox(*more)
    words = small(experiment, tiny, *more)
    check(run(tmp_path / "run", *words), experiment)


@pytest.mark.parametrize("experiment", ["llada_bl32", "llada_bl256", "dream_bl32", "dream_bl256"])
def test_the_four_settings_are_the_published_ones_with_alpha_set(experiment):
    config = composed("train_policy", [f"experiment={experiment}"])
    assert (config.optim.lr, list(config.optim.betas), config.optim.weight_decay) == (3e-5, [0.9, 0.99], 0.1)
    assert (config.optim.grad_clip, config.optim.warmup, config.optim.schedule) == (0.2, 100, "cosine")
    assert (config.algorithm.group_size, config.algorithm.inner_updates, config.algorithm.clip) == (8, 2, 0.5)
    assert config.algorithm.kl == 0 and not config.algorithm.advantage_std
    block = int(experiment.split("bl")[1])
    assert (config.data.answer_length, config.sampler.block_length) == (256, block)
    assert config.eval.temperature == {32: 0.5, 256: 1.0}[block] and config.sampler.temperature == 0
    assert config.reward.alpha > 0 and config.reward.functions == ["correct_times_speed"]
    assert list(config.data.datasets) == ["gsm8k", "math"] and config.policy.smart_init == -2.0


@pytest.mark.parametrize(("experiment", "given"), [("llada_bl32", "dream"), ("dream_bl256", "llada")])
def test_a_checkpoint_of_the_other_family_is_refused_by_its_own_config(experiment, given, tiny, tmp_path):
    kinds = {"llada": "llada", "dream": "Dream"}
    wanted = kinds[experiment.split("_")[0]]
    message = f"is a {kinds[given]} checkpoint by its config.json, and the configuration is for {wanted}"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *small(experiment, tiny), f"dlm.path={tiny[given]}")
    assert not (tmp_path / "run").exists()
