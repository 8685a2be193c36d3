"""Every key of every configuration has a range, every shipped value is in it, and what is outside is refused by name."""

import math
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from training.ranges import Flag, ListOf, Maybe, Number, Text, Whole
from training.usage import CONFIGS, commands_of, composed
from unmask.build import check_epochs, read_settings, with_fitting_warmup
from unmask.runs import train_reward
from unmask.settings import COMMANDS, ranges_of

GIVEN = {  # what the command line has to give
    "train_reward": ["data.train=x"],
    "train_preference": ["data.train=x", "init=x"],
    "guide": ["out=x", "prompts.file=x"],
}
EVERY = {name: ranges_of(name) for name in COMMANDS}  # an experiment that several commands share has keys of each
FREE = ("methods", "published", "rewards")  # keys that an experiment names itself


def values(name: str):
    """(key, value) of everything that configs/`name`.yaml, the files of its groups and its experiments set; read as files, since
    composing them all costs half a minute."""
    base = OmegaConf.load(CONFIGS / f"{name}.yaml")
    groups = [
        group
        for entry in base.defaults
        if isinstance(entry, DictConfig)
        for group in entry
        if (CONFIGS / group).is_dir()
    ]
    own = {key: value for key, value in plain(CONFIGS / f"{name}.yaml").items() if key != "hydra"}
    yield from leaves(own)
    for group in groups:
        for file in sorted((CONFIGS / group).glob("*.yaml")):
            if group != "experiment":
                yield from leaves({group: plain(file)})
            elif name.replace("_", "-") in commands_of(file.stem):
                yield from leaves(plain(file))


@cache
def plain(file: Path) -> dict:
    found = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(found, dict)
    return {key: value for key, value in found.items() if key != "defaults"}


def leaves(settings: dict, before: str = ""):
    for key, value in settings.items():
        yield from leaves(value, f"{before}{key}.") if isinstance(value, dict) else [(f"{before}{key}", value)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_has_a_range_and_every_shipped_value_is_in_it(name):
    seen = 0
    for key, value in values(name):
        if key.split(".")[0] not in FREE:
            known = ranges_of(name).get(key) or next((other[key] for other in EVERY.values() if key in other), [])
            assert known, f"{key} of {name} is no field of its settings"
            seen += 1
            reference = isinstance(value, str) and ("${" in value or value == "???")
            assert reference or any(allowed.holds(value) for allowed in known), f"{key}={value}"
    assert seen > 20


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("train_dlm", "optim.lr", math.inf),
        ("train_dlm", "optim.lr", 1e30),
        ("train_policy", "optim.weight_decay", math.inf),
        ("train_rl", "optim.warmup", -1),
        ("train_twist", "optim.warmup", 2.5),
        ("train_twist", "optim.eps", "abc"),
        ("train_policy", "optim.eps", math.inf),
        ("train_policy", "optim.betas", 0),
        ("train_policy", "optim.betas", [0.9]),
        ("train_policy", "optim.betas", [0.9, 1.0]),
        ("train_policy", "training.chunk", None),
        ("train_rl", "rl.batch_size", None),
        ("train_rl", "sampler.threshold", math.nan),
        ("train_dlm", "training.ema", True),
        ("train_reward", "data.held_out", 1),
        ("train_preference", "lora.alpha", math.nan),
        ("sample", "sampler.smc.scale", math.inf),
        ("sample", "sampler.top_p", "high"),
        ("guide", "length", 0),
    ],
)  # fmt: skip
def test_a_value_outside_its_range_is_named_with_it(name, key, value):
    config = composed(name, GIVEN.get(name, []))
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(ValueError) as refused:
        read_settings(COMMANDS[name], config)
    message = str(refused.value)
    assert (
        message.startswith(f"{key}=")
        and any(allowed.allowed in message for allowed in ranges_of(name)[key])
        and "\n" not in message
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.smart_init=nan"], "policy.smart_init=nan must be a finite number"),
        (["reward.alpha=inf"], "reward.alpha=inf must be"),
        (["algorithm=grpo", "algorithm.warm_start.setting=nan"], "algorithm.warm_start.setting=nan"),
        (["data=puzzles", "data.box=2"], "data.box=2 must be a list of 2 in brackets, such as [2,3]"),
        (["optim=5"], "optim=5 takes the place of several keys"),
        (["~optim.lr"], "optim.lr was deleted"),
        (["~wandb"], "wandb was deleted"),
        (["optim.lr=${nothing}"], "Interpolation key 'nothing' not found"),
        (["training.ema=[0.9]"], "training.ema=[0.9] must be"),
    ],
)
def test_sections_deleted_keys_and_interpolations(overrides, message):
    policy = ["policy=dit_confidence"] if "policy" in overrides[0] else []
    with pytest.raises(ValueError) as refused:
        read_settings(COMMANDS["train_policy"], composed("train_policy", [*policy, *overrides]))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_what_has_to_be_given_is_said_to_be_missing():
    with pytest.raises(ValueError, match="data.train has to be given"):
        read_settings(COMMANDS["train_reward"], composed("train_reward", []))


def test_ranges_by_their_ends():
    assert all(map(Whole(1, 3).holds, (1, 3))) and not any(
        map(Whole(1, 3).holds, (0, 4, True, 1.0, "1", None, 10**400))
    )
    assert all(map(Number(0, 1).holds, (0, 1, 0.5))) and not any(
        map(Number(0, 1).holds, (math.nan, math.inf, -1e-9, False, "0.5", [0.5], 10**400))
    )
    assert not Number(0, 1, open_low=True).holds(0) and not Number(0, 1, open_high=True).holds(1)
    assert Flag().holds(False) and not Flag().holds(0)
    assert not Text().holds(" ") and not Text().holds(5) and Text(empty=True, number=True).holds(5)
    assert (
        Maybe(Whole()).holds(None)
        and not ListOf(Whole(), "[1]").holds([])
        and not ListOf(Whole(), "[1]").holds([1, "a"])
    )


def test_epochs_are_refused_where_iterations_decide():
    words = ["experiment=pargs_smollm2", "training.epochs=3"]
    with pytest.raises(
        ValueError, match="training.epochs=3 would do nothing beside training.n_iters=150; add training.n_iters=null"
    ):
        train_reward.run(composed("train_reward", words), words)
    check_epochs(composed("train_reward", [*words, "training.n_iters=null"]), words)
    check_epochs(composed("train_reward", words[:1]), words[:1])


SHORT = [("dlm", "stories", 40, 2), ("policy", "sudoku6_budget", 4, 0), ("policy", "genpolicy_owt", 1000, 50), ("rl", "chain_rl", 20, 1),
         ("reward", "pargs_masked", 60, 3)]  # fmt: skip


@pytest.mark.parametrize(("name", "experiment", "n_iters", "warmup"), SHORT)
def test_the_warm_up_of_an_experiment_follows_a_run_that_is_shortened(name, experiment, n_iters, warmup, capsys):
    """A twentieth of the updates: of GRPO there are two an iteration."""
    words = [f"experiment={experiment}", f"training.n_iters={n_iters}"]
    config = composed(f"train_{name}", words)
    assert with_fitting_warmup(config, words).optim.warmup == warmup < config.optim.warmup
    assert f"optim.warmup={config.optim.warmup} is for a longer run; {warmup} of" in capsys.readouterr().err
    whole = composed(f"train_{name}", words[:1])
    assert with_fitting_warmup(whole, words[:1]).optim.warmup == whole.optim.warmup  # an experiment as it was made


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dlm", ["training.n_iters=100", "optim.warmup=100"]),
        ("policy", ["training.n_iters=5", "optim.warmup=5"]),
        ("policy", ["experiment=chain_grpo", "optim.warmup=200"]),
        ("rl", ["optim.warmup=100"]),
        ("twist", ["training.epochs=2", "training.updates_per_epoch=3", "optim.warmup=6"]),
        ("reward", ["training.n_iters=10", "optim.warmup=10"]),
        ("preference", ["training.n_iters=10", "optim.warmup=11"]),
    ],
)
def test_a_warm_up_that_the_run_does_not_outlast_is_refused(name, words):
    config = composed(f"train_{name}", words)
    with pytest.raises(
        ValueError, match=r"optim.warmup=\d+ must be below the \d+ updates of .*, or the learning rate never"
    ):
        with_fitting_warmup(config, words)
    fewer = [*words[:-1], "optim.warmup=1"]
    assert with_fitting_warmup(composed(f"train_{name}", fewer), fewer).optim.warmup == 1


def test_a_resumed_run_keeps_its_warm_up():
    words = ["resume=output/run", "training.n_iters=10"]
    assert with_fitting_warmup(composed("train_policy", words), words).optim.warmup == 5


def test_every_experiment_names_its_commands_and_other_commands_refuse_it():
    known = {name.replace("_", "-") for name in COMMANDS} - {"sample"}
    for file in (CONFIGS / "experiment").glob("*.yaml"):
        commands = commands_of(file.stem)
        assert commands and set(commands) <= known, file.name
    with pytest.raises(
        ValueError, match=r"experiment=stories does not fit configs/train_policy.yaml; it belongs to train-dlm$"
    ):
        composed("train_policy", ["experiment=stories"])
    assert commands_of("pargs_smollm2") == ["train-reward", "train-preference"]
