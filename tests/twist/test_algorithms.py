"""Updates as training makes them: each method, from its own samples, on a model whose twist can be a table; labels; memory."""

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

from dlm import draws
from dlm.masked_lm import LOGITS_PER_CHUNK
from tests.enumerable import TableLM, inconsistent
from tests.twist.test_source import KINDS, TableTarget, all_paths, exact_kls, new_source, settings
from training.processes import ALONE
from twist.algorithms import POSITIVES, TwistLearning
from twist.bounds import Posterior
from twist.evaluate import evaluate
from twist.network import TwistModel
from twist.objectives import LEVELLED
from twist.paths import canvases, path_densities, path_features, path_states
from twist.source import Source, collect_posterior
from twist.train import new_twist_learner, new_value_head


def learning_of(source: Source, *words, posterior: Posterior | None = None) -> TwistLearning:
    config = settings(*words)
    value = new_value_head(source.twist, config)
    return TwistLearning(source, new_twist_learner(source.twist, value, config, ALONE), value, config, posterior)


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_of_what_follows_the_token_that_is_scored(kind):
    """On average phi given the state with it; the published sigma variant took the state before."""
    source = new_source(kind, length=3, vocabulary=3)
    every = all_paths(source, 3)
    with torch.no_grad():
        p = path_densities(source.twist, every, 3).log_p.double().sum(1).exp()
    phi = source.target.log_phi(every.tokens).double().exp()
    rows, mask = 6000, source.model.mask_id
    path = source.prior(rows, 4)
    label = learning_of(source, "method=fudge", "training.n_iters=1").labels(7, path, None).double().exp()
    assert torch.equal(label[:, -1], source.target.log_phi(path.tokens).double().exp())
    compared = 0
    for step in range(2):
        known, place = torch.unique(canvases(every, mask, step + 1, step + 2), dim=0, return_inverse=True)
        total = torch.zeros(2, len(known), dtype=torch.float64).index_add_(1, place, torch.stack((p, p * phi)))
        expected = total[1] / total[0]  # E[phi | state]
        drawn = canvases(path, mask, step + 1, step + 2)
        of = (drawn.unsqueeze(1) == known.unsqueeze(0)).all(2).long().argmax(1)
        for state in range(len(known)):
            own = label[of == state, step]
            if len(own) >= 100:
                compared += 1
                assert abs(float(own.mean() - expected[state])) < 4.5 * float(own.std()) / len(own) ** 0.5 + 1e-9
    assert compared >= 6


# ------------------------------------------------------------------------------------------------ learning


class OneHotLM(TableLM):
    """A hidden state for every canvas and position: a linear head on it is a table."""

    def __init__(self, table):
        super().__init__(table)
        self.hidden_size = self.table.shape[0] * self.length

    def hidden_rows(self, tokens, read, sigma):
        row, position = read.nonzero().unbind(1)
        return torch.nn.functional.one_hot(self.state(tokens)[row] * self.length + position, self.hidden_size).float()

    def head(self, hidden):
        place = hidden.argmax(1)
        logits = self.table[place // self.length, place % self.length]
        return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)


FAST = {"ctl": "sis", "rl": "none", "sixo": "smc", "fudge": "exact", "dpg": "sis", "ppo": "none"}
WAYS = [pytest.param(method, positives, marks=() if positives == FAST[method] else pytest.mark.slow)
        for method, known in POSITIVES.items() for positives in dict.fromkeys(known)]  # fmt: skip


@pytest.mark.parametrize(("method", "positives"), WAYS)
def test_every_method_reaches_the_target_from_its_own_samples(method, positives):
    """Both divergences of paths below 1e-2, where the conditionals are those of no joint."""
    model = OneHotLM(inconsistent(3, 2).table.detach()).requires_grad_(False)
    torch.manual_seed(0)
    twist = TwistModel(model, "own", 1, bounded=method == "fudge", level=method in LEVELLED)
    source = Source(twist, TableTarget(3, 2), torch.tensor([], dtype=torch.long), 2)
    posterior = collect_posterior(source, 4000, 4000, 3) if positives in ("exact", "csmc") else None
    start = exact_kls(source, 3)
    updates = 150 if method == "rl" else 75  # its own sums stand for the truth at first
    rate = 0.03 if method == "ppo" else 0.1  # each of its updates makes several steps
    words = [f"method={method}", f"positives={positives}", "length=2", "training.batch_size=400",
             f"training.n_iters={updates}", f"optim.lr={rate}", "optim.schedule=cosine"]  # fmt: skip
    learning = learning_of(source, *words, posterior=posterior)
    for step in range(updates):
        learning.iteration(step)
    _, forward, backward = exact_kls(source, 3)
    assert min(start[1:]) > 0.05 and max(forward, backward) < 1e-2, (start, forward, backward)


# ------------------------------------------------------------------------------------------------ what stands still


@pytest.mark.parametrize("kind", KINDS)
def test_the_epochs_of_an_update_share_what_the_frozen_model_says(kind, monkeypatch):
    asked = []
    for epochs in (1, 4):
        source = new_source(kind, length=3, vocabulary=3)
        learning = learning_of(source, "method=ppo", "training.n_iters=1", f"ppo.epochs={epochs}")
        hidden, calls = source.model.hidden_rows, []
        monkeypatch.setattr(
            source.model, "hidden_rows", lambda *a, calls=calls, hidden=hidden: calls.append(1) or hidden(*a)
        )
        learning.iteration(0)
        asked.append(len(calls))
    assert asked[0] == asked[1] > 0


@pytest.mark.parametrize("trunk", ["own", "separate"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_there_already_change_nothing(kind, trunk):
    own = new_source(kind, length=3, vocabulary=3)
    torch.manual_seed(0)
    twist = TwistModel(own.model, trunk)
    torch.nn.init.normal_(twist.head.last.weight)
    path = own.prior(6, 1)
    states = path_states(twist, path, 3)
    with torch.no_grad():
        fresh, shared = path_densities(twist, path, 3), path_densities(twist, path, 3, None, states)
    for name in ("log_p", "log_psi", "log_normalizer"):
        assert torch.equal(getattr(fresh, name), getattr(shared, name))
    assert torch.equal(path_features(twist, path, 3), path_features(twist, path, 3, states))


# ------------------------------------------------------------------------------------------------ memory


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes, backward passes included."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and not func.is_view and not tensor.is_meta:
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // max(1, tensor.element_size()))
        return made


class SumTarget:
    beta = 1.0

    def log_phi(self, tokens, given=None):
        return logsigmoid(tokens.float().sum(1).sin())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", [*POSITIVES, "evaluation"])
def test_nothing_is_held_for_all_rows_positions_and_tokens(kind, work, monkeypatch):
    """A logit for each row, position and token would be 1.2 million numbers; chunks are of 20 positions."""
    method = "ctl" if work == "evaluation" else work
    rows, vocabulary, length = 64, 3000, 6
    monkeypatch.setitem(LOGITS_PER_CHUNK, "cpu", 20 * vocabulary)
    monkeypatch.setitem(draws.TOKENS_PER_CHUNK, "cpu", 20 * vocabulary)
    own = new_source(kind, length=2, vocabulary=vocabulary, target=SumTarget())
    twist = TwistModel(own.model, "own", 1, bounded=method == "fudge", level=method in LEVELLED)
    source = Source(twist, SumTarget(), own.prompt, length)
    learning = learning_of(source, f"method={method}", f"training.batch_size={rows}", "training.n_iters=1", "length=6")
    measured = settings("eval.particles=[32]", "eval.samples=64", "eval.sweeps=2").eval
    with Largest() as seen:
        if work == "evaluation":
            evaluate(source, collect_posterior(source, 4, rows, 0), measured, method, 0)
        else:
            learning.iteration(0)
    weights = vocabulary * own.model.hidden_size  # of the head, whose gradient is as large
    assert seen.elements <= 3 * weights < rows * length * vocabulary / 7
