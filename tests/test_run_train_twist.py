"""run_train_twist.py end to end on tiny models: every method and what may stand for the target, resuming, reuse, refusals."""

import json
import re

import pytest

from load_model import load_model
from tests.test_run_train_policy import record, saved
from tests.twist.tiny import QUICK, causal, classifier, run
from twist.model import load_twist
from twist.train import POSITIVES

MLP = ["twist.layers=2", "optim.lr=1e-2"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, list[str]]:
    """Overrides that put tiny models in the place of others: of infilling, of a class."""
    root = tmp_path_factory.mktemp("tiny")
    model = f"dlm.path={causal(root / 'llama')}"
    two = classifier(root / "classifier", 2)
    return {
        "infilling": [model, "training.updates_per_epoch=2", *MLP],
        "class": [model, "training.updates_per_epoch=2", *MLP, "target=sentiment", "target.classes=2",
                  f"target.classifier={two}", "prompt=I bought"],
    }  # fmt: skip


def evaluations(directory):
    return json.loads((directory / "evaluations.json").read_text())


CASES = sorted({(method, positives, kind) for method, all_of_them in POSITIVES.items() for positives in all_of_them
                for kind in ("infilling", "class")})  # fmt: skip


@pytest.mark.parametrize(("method", "positives", "kind"), CASES)
def test_every_method_with_all_that_may_stand_for_the_target(method, positives, kind, tiny, tmp_path):
    several = (
        ["training.particles=4"]
        if kind == "infilling" and (method == "ctl" or positives in ("sis", "smc", "csmc"))
        else []
    )
    directory = run(tmp_path / "run", *QUICK, *tiny[kind], f"method={method}", f"positives={positives}", *several)
    metrics = record(directory)
    updates = 4
    assert {"loss", "grad_norm", "lr"} <= metrics[1].keys() and metrics[1]["grad_norm"] > 0
    assert [entry["updates"] for entry in evaluations(directory)] == [0, 2, updates]
    last = evaluations(directory)[-1]
    assert {"f", "g", "log_z", "kl_q_sigma", "kl_sigma_q", "score", "kl_q_p", "bounds"} <= last.keys()
    kinds = {(bound["proposal"], bound["kind"], bound["particles"]) for bound in last["bounds"]}
    of_smc = {bound for bound in kinds if bound[1] == "smc"}
    assert len(kinds - of_smc) == 4 and len(of_smc) == (0 if method in ("dpg", "ppo") else 4)
    assert all(bound["upper"] is not None for bound in last["bounds"])
    assert saved(directory)["updates"] == updates * (4 if method == "ppo" else 1)
    model = load_model(re.sub("dlm.path=", "", tiny[kind][0]))[0]
    twist, about = load_twist(directory / "twist", model)
    assert about["method"] == method and twist.settings["bounded"] == (method == "fudge")
    assert len(list((directory / "samples" / f"iter_{updates}").glob("sample_*.txt"))) == 2
