"""Infilling of a masked model: the text is written with masks behind it, what follows is revealed from the left; all by enumeration."""

import json
from itertools import product

import pytest
import torch

from tests.enumerable import random_radd
from tests.twist.test_source import all_paths, settings
from tests.twist.tiny import QUICK, masked, run
from training.processes import ALONE, Processes
from twist.algorithms import TwistLearning
from twist.network import TwistModel
from twist.paths import path_densities
from twist.source import Source
from twist.tail import with_tail
from twist.targets import build_target
from twist.train import new_twist_learner
from unmask.commands import sample as sample_command

VOCABULARY, LENGTH, TAIL = 3, 2, 2
SETTINGS = {"kind": "infilling", "tokens": TAIL}
PROMPT = torch.tensor([2, 1])


@pytest.fixture(scope="module")
def source():
    model = with_tail(random_radd(width=16, vocabulary=VOCABULARY, blocks=1, length=8), SETTINGS)
    twist = TwistModel(model, "own", 2, condition="tokens").requires_grad_(False)
    torch.nn.init.normal_(twist.head.last.weight, std=0.7, generator=torch.Generator().manual_seed(0))
    return Source(twist, build_target(SETTINGS, model, len(PROMPT), LENGTH), PROMPT, LENGTH, TAIL)


def tails():
    return torch.tensor(list(product(range(VOCABULARY), repeat=TAIL)))


def joint(source):
    """p(text, what follows), [text, tail], by enumeration of paths; and the texts."""
    path = all_paths(source, VOCABULARY)
    seen = path_densities(source.twist, path, LENGTH, source.twist.encode(tails()[:1]).expand(len(path.tokens), -1))
    texts, number = torch.unique(path.tokens, dim=0, return_inverse=True)
    p = torch.zeros(len(texts), dtype=torch.float64).index_add_(0, number, seen.log_p.double().sum(1).exp())
    phi = torch.stack([source.log_phi(texts, tail.expand(len(texts), -1)).double().exp() for tail in tails()], 1)
    return p.unsqueeze(1) * phi, texts


def test_the_text_is_written_with_masks_behind_it(source):
    model, tokens = source.model, torch.tensor([[2, 1, 3, 0], [2, 1, 3, 3]])
    whole = torch.cat((tokens, torch.full((2, TAIL), model.mask_id)), 1)
    assert model.max_length == 8 - TAIL and torch.equal(model.log_probs(tokens), model.whole.log_probs(whole)[:, :4])
    assert not torch.equal(model.log_probs(tokens), model.whole.log_probs(tokens))


def test_texts_and_what_follows_have_a_joint_law(source):
    p, texts = joint(source)
    assert p.shape == (VOCABULARY**LENGTH, VOCABULARY**TAIL) and abs(float(p.sum()) - 1) < 1e-5
    rows = 6000
    path, given = source.pairs(rows, 3)
    number = (texts.unsqueeze(0) == path.tokens.unsqueeze(1)).all(2).long().argmax(1) * VOCABULARY**TAIL
    number += (tails().unsqueeze(0) == given.unsqueeze(1)).all(2).long().argmax(1)
    share = torch.bincount(number, minlength=p.numel()).double() / rows
    assert ((share - p.flatten()).abs() < 4.5 * (p.flatten() / rows).sqrt() + 1e-9).all()
    again, _ = source.pairs(10, 3, 5)
    assert torch.equal(again.tokens, path.tokens[5:15])  # numbered through the batch


@pytest.mark.parametrize("proposal", ["twist", "base"])
@pytest.mark.parametrize("resample", ["never", "every"])
def test_zhat_is_unbiased_for_what_is_given(source, proposal, resample):
    p, _ = joint(source)
    for column in (0, 5):
        given = tails()[column].expand(1500, -1)
        z = source.sweep(1500, 2, 11, given, proposal=proposal, resample=resample).log_z.exp()
        assert abs(float(z.mean() - p[:, column].sum())) < 4.5 * float(z.std()) / len(z) ** 0.5


def test_pairs_are_reordered_on_request_the_same_by_any_number_of_processes(source):
    """Texts and what follows them stay; both orders of two positions come up alike."""

    twist = TwistModel(source.model, "own", 2, condition="tokens")

    def conditions(order, processes):
        config = settings("target=infilling", f"target.tokens={TAIL}", f"posterior.order={order}", "method=ctl",
                          "positives=exact", "training.batch_size=2000", "training.particles=2", "training.n_iters=1")  # fmt: skip
        learning = TwistLearning(source, new_twist_learner(twist, None, config, processes), None, config)
        return learning.conditions(5)

    given, written = conditions("written", ALONE)
    again, anew = conditions("uniform", ALONE)
    assert torch.equal(again, given) and torch.equal(anew.tokens, written.tokens)
    first = [float((path.unmasked_at[:, 2] == 0).double().mean()) for path in (written, anew)]
    assert abs(first[1] - 0.5) < 0.07 and torch.equal(anew.unmasked_at[:, 2:].sum(1), torch.ones(1000).long())
    assert not torch.equal(anew.unmasked_at, written.unmasked_at)
    for rank in (0, 1):
        _, half = conditions("uniform", Processes(rank, 2, torch.device("cpu")))
        assert torch.equal(half.unmasked_at, anew.unmasked_at[500 * rank :][:500])
        assert torch.equal(half.tokens, anew.tokens[500 * rank :][:500])


def test_it_is_learnt_and_sampled_from_by_the_commands(tmp_path, capsys):
    words = [
        f"dlm.path={masked(tmp_path / 'model')}",
        "target=infilling",
        "target.tokens=2",
        "training.particles=4",
        "prompt=Once",
    ]
    directory = run(tmp_path / "run", *QUICK, *words, "method=ctl", "training.updates_per_epoch=1")
    last = json.loads((directory / "evaluations.json").read_text())[-1]
    assert last["updates"] == 2 and last["g"]["value"] < 0 and last["f"]["value"] < 0
    told = ["--strategy", "twisted_smc", "--twist", str(directory), "--num_samples", "2", "--no-eval", "--json", "-"]
    sample_command.main([*told, "--suffix", "im"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["length"] == 4 + 3 and len(record["log_z"]) == 2  # what follows is told, and not written
    with pytest.raises(ValueError, match="the suffix 'ime' is 3 tokens and this twist was learnt for 2 that follow"):
        sample_command.main([*told, "--suffix", "ime"])  # p has as many masks behind the text as it was learnt with
    directory = run(tmp_path / "fixed", *QUICK, words[0], "target=continuation", "target.text=tim", "prompt=Once", "method=rl",
                    "posterior.count=0", "training.updates_per_epoch=1")  # fmt: skip
    assert json.loads((directory / "evaluations.json").read_text())[-1]["f"]
