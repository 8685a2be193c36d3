"""The LaTeX reward: right about sixty formulas, honest about what the published one can be gamed with, terms as written."""

import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import rewards.latex
from data.chain import chain_tokenizer
from data.text import train_bpe
from rewards.latex import LONGEST, WEIGHTS, LatexReward, main, repetition, score, spans, unfinished, verdict, written

GOOD = [
    r"x", r"\frac{1}{2}", r"\frac12", r"\sqrt{2}", r"\sqrt[3]{x+1}", r"a^2 + b^2 = c^2", r"x_{i}^{2}", r"\alpha\beta",
    r"\sum_{k=1}^{n} k = \frac{n(n+1)}{2}", r"\prod_{i=0}^\infty a_i", r"\int_0^1 x\,dx", r"\int_0^ dx",
    r"\lim_{x \to 0} \frac{\sin x}{x}", r"\left( \frac{a}{b} \right)", r"\left[0, 1\right)", r"[0, 1)",
    r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{cases} x & x > 0 \\ -x & x \leq 0 \end{cases}",
    r"\binom{n}{k}", r"\{1, 2, 3\}", r"f'(x)", r"\text{if } x > 0", r"\operatorname{argmax}_\theta L", r"\mathbf{v} \cdot w",
    r"\overline{z}", r"\widetilde{x}", r"x \in \mathbb{R}", r"\left| x \right|", r"\dfrac{1}{1 + \dfrac{1}{x}}", r"abcd - 1",
]  # fmt: skip
BAD = [
    "", "   ", r"{}", r"\frac{1}{2", r"\frac{1}", r"\frac", r"\sqrt", r"x^", r"x_{", r"x}", r"}{", r"x^2^3", r"x__2",
    r"\left( x", r"x \right)", r"\left( x \right", r"\begin{pmatrix} 1 & 2", r"\begin{pmatrix} 1 \end{bmatrix}",
    r"1 \end{pmatrix}", r"x & y", r"\alhpa", r"\frca{1}{2}", r"\foo", r"a $ b", r"\def\a{b}\a", r"% \frac", r"integer limit",
    r"sum", r"\quad\quad", r"#",
]  # fmt: skip


@pytest.mark.parametrize("formula", GOOD)
def test_good_formulas_are_valid(formula):
    assert verdict(formula) == (True, 1.0, "") or verdict(formula).valid, verdict(formula)


@pytest.mark.parametrize("formula", BAD)
def test_bad_formulas_are_not(formula):
    found = verdict(formula)
    assert not found.valid and found.reason and 0 <= found.progress <= 1


@pytest.mark.parametrize(
    "formula, reason",
    [
        (r"\text{integer limit summary}", "it is text alone"), (r"\mathrm{ab} \mathrm{cd}", "it is text alone"),
        (r"\text{so} \mbox{it} \text{is}", "it is text alone"), ("is it so", "'is it so' is no product"),
        (r"\begin{matrix}\end{matrix}", "nothing stands"), (r"\hspace{1cm}", "nothing stands"), (r"\color{red}", "nothing stands"),
        (r"\phantom{x}", "nothing stands"), (r"\text{}", "nothing stands"), (r"\mathrm{}", "nothing stands"),
        (r"\sum", r"nothing follows \sum"), (r"\int \sum \lim", r"nothing follows \lim"), (r"x + \sum_{k=1}^n ", "nothing follows"),
    ],
)  # fmt: skip
def test_what_converts_and_says_nothing_is_no_formula(formula, reason):
    assert verdict(formula).reason.startswith(reason) and score(f"${formula}$")["total"] < score("$x$")["total"] / 2


@pytest.mark.parametrize(
    "formula",
    ["+", "=", r"\text{speed}", r"\int f \, dx dy dz", r"\text{if } x > 0", r"\color{red} x", r"\sum_i \sum_j a"],
)
def test_short_things_that_are_formulas_stay_so(formula):
    assert verdict(formula).valid


def test_there_are_sixty():
    assert len(set(GOOD)) == len(set(BAD)) == 30


# --------------------------------------------------------------------------------------------------- the published reward

COMMANDS = [
    "frac",
    "sqrt",
    "sum",
    "int",
    "lim",
    "prod",
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "theta",
    "lambda",
    "mu",
    "pi",
    "sigma",
    "omega",
    "phi",
    "infty",
    "partial",
    "nabla",
    "cdot",
    "times",
    "leq",
    "geq",
    "neq",
    "approx",
    "sin",
    "cos",
    "tan",
    "log",
]
STRUCTURES = ("frac", "sqrt", "sum", "int", "lim")


def published(text):
    """SEDD-LaTeX-RLHF's reward, written down from its description: counts of brackets and words."""
    syntax = -0.1 * sum(abs(text.count(a) - text.count(b)) for a, b in ("{}", "[]", "()"))
    syntax -= 0.2 * (text.count("$") % 2) + 0.1 * bool(re.search(r"\\[a-z]+\{$", text))
    words = 0.15 * sum(f"\\{name}" in text for name in COMMANDS)
    words += min(0.05 * len(re.findall(r"[+\-=*/^_<>]", text)), 1.5) + 0.3 * sum(name in text for name in STRUCTURES)
    outside = max(0, 50 - len(text), len(text) - 150)
    extra = 0.3 * (text.count("$") // 2) + 0.4 * text.count("$$") + 0.25 * sum(name in text for name in STRUCTURES)
    extra += 0.3 * (50 <= len(text) <= 150)
    total = max(-0.8, syntax) + 0.5 * min(2.5, words) - 0.1 * outside + extra
    return min(1.0, max(-0.6, total))


GAMED = [
    r"}}}{{{ \frac\frac \alpha\beta \sqrt\sqrt }}} \sum \int \lim $$ $$ {{{", "integer limit summary " * 4, "$" * 60,
    "$$ " * 20, r"$\frac$ " * 10, r"\frac \sqrt \sum \int \lim \alpha \beta \gamma \pi \infty \cdot", "$sum int lim frac sqrt$ " * 3,
    "$$" + "sum of the fraction " * 4 + "$$",
]  # fmt: skip
SHORT = ["$x$", "$1$", r"$\pi$", r"$\frac{1}{2}$", "$a+b$", "$x^2$", r"\(x_1\)", r"\[\sqrt{2}\]", "$$n!$$"]


@pytest.mark.parametrize("text", GAMED)
def test_what_the_published_reward_likes_best_is_below_any_valid_short_formula(text):
    assert published(text) == 1.0
    assert score(text)["total"] <= 0.1 < 0.6 < min(score(short)["total"] for short in SHORT)


def test_the_published_reward_is_the_wrong_way_round():
    assert published(r"$\frac{1}{2}$") == -0.6 and published("x" * 100) == pytest.approx(0.3)
    assert score(r"$\frac{1}{2}$")["total"] > 0.7 and score("x" * 100)["total"] == 0


@pytest.mark.parametrize(
    "text", [*GAMED[:4], "x" * 100, "sum int lim frac sqrt", "integer limit summary", "{" * 40, ""]
)
def test_no_gibberish_passes_as_a_bare_formula(text):
    assert score(text, bare=True)["total"] <= 0.1
    assert score("x", bare=True)["total"] > 0.6


@pytest.mark.parametrize(
    "text",
    [r"$x$ }}} \frac", r"$x$ and $\frac{1}{$", r"\) $x$", r"$x$ $", "$% }}{{$ $x$", r"$\newcommand{\x}{y}\x$ $x$"],
)
def test_a_valid_formula_does_not_cover_broken_ones(text):
    assert score(text)["valid"] == 0.5 and score(text)["total"] < min(score(short)["total"] for short in SHORT)


# ------------------------------------------------------------------------------------------------------------------- terms


def test_formulas_are_found_between_all_delimiters():
    pieces, outside = spans(r"a $x$ b $$y$$ c \(z\) d \[w\] e \$5 f $u$$v$ g")
    assert [piece.text for piece in pieces] == ["x", "y", "z", "w", "u", "v"]
    assert outside.split() == ["a", "b", "c", "d", "e", r"\$5", "f", "g"]
    assert [piece.text for piece in spans("$a$$$b$$ $c$")[0]] == ["a", "b", "c"]
    pieces, _ = spans(r"$a \\ b$ and $$ x $ y $$ then \(open")
    assert [(piece.text, piece.closed) for piece in pieces] == [(r"a \\ b", True), (" x $ y ", True), ("open", False)]


ALIGNED = ("align", "align*", "flalign", "flalign*", "eqnarray", "eqnarray*", "alignat", "alignat*")
PLAIN = ("equation", "equation*", "gather", "gather*", "multline", "multline*", "displaymath", "math")


@pytest.mark.parametrize("name", [*ALIGNED, *PLAIN])
def test_an_environment_that_stands_by_itself_is_a_formula(name):
    columns, body = (
        "{2}" * name.startswith("alignat"),
        r"a &= \frac{b}{2} \\ &= c" if name in ALIGNED else r"a = \frac{b}{2}",
    )
    text = rf"\begin{{{name}}}{columns} {body} \end{{{name}}}"
    assert score(text) == score(f"$${text}$$") and score(text)["valid"] == 1
    assert score(f"so {text} and $x$")["valid"] == 1 and score(f"so {text} and \\frac")["valid"] == 0.5
    assert [piece.text for piece in spans(f"$x$ {text} $y$")[0]] == ["x", text, "y"]
    broken = rf"\begin{{{name}}}{columns} \frac{{1}} \end{{{name}}}"
    for wrong in (
        broken,
        text.replace(r"\end", r"\emd"),
        rf"\begin{{{name}}}{columns}\end{{{name}}}",
        text.split(r"\end")[0],
    ):
        assert score(wrong)["valid"] == 0, wrong


def test_other_environments_stand_inside_of_a_formula_alone():
    for text in (
        r"\begin{pmatrix} 1 \end{pmatrix}",
        r"\begin{split} a &= b \end{split}",
        r"\begin{align} a \end{align*}",
    ):
        assert score(text)["valid"] == 0
    for text in (r"$\begin{split} a &= b \end{split}$", r"$\begin{smallmatrix} 1 & 2 \end{smallmatrix}$",
                 r"\begin{equation}\begin{split} a &= b \\ &= c \end{split}\end{equation}"):  # fmt: skip
        assert score(text)["valid"] == 1


@pytest.mark.parametrize("opener", ["$", "$$", r"\(", r"\[", r"\begin{align}"])
def test_a_formula_that_is_not_closed_is_broken(opener):
    for text in (f"{opener} x + y", f"so {opener} x + y", f"$a$ and {opener} x + y"):
        terms = score(text)
        assert spans(text)[0][-1].closed is False and terms["valid"] == terms["progress"] == 0.5 * text.startswith(
            "$a$"
        )
    assert score(f"{opener} x + y")["total"] == 0


def test_the_error_offset_is_a_dense_term():
    broken = [r"$\foo + 1 + 2$", r"$1 + \foo + 2$", r"$1 + 2 + \foo$"]
    assert [score(text)["progress"] for text in broken] == pytest.approx([0, 4 / 12, 8 / 12])
    totals = [score(text)["total"] for text in broken]
    assert totals == sorted(totals) and totals[0] < totals[2] < score("$x$")["total"]


def test_the_total_is_what_the_terms_say():
    terms = score(r"$\frac{a}{b} + \sqrt{c}$ and $\sum_{k} k$ and $}$")
    assert (
        terms["valid"] == pytest.approx(2 / 3) and terms["structure"] == 1 and terms["commands"] == pytest.approx(0.6)
    )
    bonus = 0.15 + 0.1 * 0.6 + 0.05 - 0.3 * terms["repetition"]
    assert terms["total"] == pytest.approx(0.6 * 2 / 3 + 0.1 * terms["progress"] + 2 / 3 * bonus)
    best = score(r"$\int_0^1 \frac{\sin x}{x} \, dx = \sum_{k} \alpha_k$")
    assert best["total"] == pytest.approx(1.0) == sum(WEIGHTS.values()) - WEIGHTS["repetition"]


def test_bonuses_are_capped_and_not_for_hollow_structures():
    many = score(r"$\frac{a}{b} \sqrt{c} \sum_k \int \lim \binom{a}{b} \alpha\beta\gamma\delta\pi\rho\tau$")
    assert many["structure"] == many["commands"] == 1
    hollow = score(r"$\frac{}{}\sqrt{}\sum_{}^{}\int x$")
    assert hollow["valid"] == 1 and hollow["structure"] == hollow["commands"] == 0


def test_length_window():
    assert score("$x$")["length"] == 0.25 and score("$x+yz$")["length"] == 1
    text = "$" + "+".join(map(str, range(100, 170))) + "$"
    assert score(text)["length"] == pytest.approx(2 - 279 / 200)
    assert score("$" + "+".join(map(str, range(100, 250))) + "$")["length"] == 0


def test_repetition_is_a_penalty():
    assert repetition(["x"]) == repetition([]) == 0 and repetition(["x", "x", "x", "x"]) == 0.75
    assert repetition([r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}"]) == 0
    assert repetition(["a+b+c=a+b+c+d+e"]) == 0  # two of twelve runs, less than what is free
    assert repetition(["a+b=c+d, a+b=c+e"]) == pytest.approx((3 / 12 - 0.2) / 0.8)
    assert repetition([r"\sqrt{x+" * 12 + "x" + "}" * 12]) > 0.7
    assert score("$1+1+1+1+1+1+1+1+1+1+1+1+1$")["total"] < score("$x$")["total"]
    assert score("$x$ " * 20)["total"] < score("$x$")["total"] - 0.2


@pytest.mark.parametrize("mark", ["{", r"\sqrt", "x^{", r"\left(", r"\frac{"])
def test_long_and_deep_formulas_do_not_overflow(mark):
    deep = mark * (LONGEST // len(mark))
    assert not verdict(deep).valid
    assert verdict(mark * 100_000).reason == "longer than 2000 characters"


# ------------------------------------------------------------------------------------------------------- rows of tokens


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([r"the root of a $\sqrt{a}$ $\frac{1}{2}$ \left( \right)"] * 3, 270)


def finished(tokenizer, *texts, length=40, given="say "):
    """Canvases that begin with what is given and end with the end of text; `_` is a mask."""
    mask, rows, prompt = len(tokenizer), [], tokenizer(given)["input_ids"]
    for text in texts:
        pieces = [tokenizer(piece)["input_ids"] for piece in text.split("_")]
        row = prompt + [token for number, piece in enumerate(pieces) for token in [mask] * (number > 0) + piece]
        rows.append(row + [tokenizer.eos_token_id] * (length - len(row)))
    tokens = torch.tensor(rows)
    prompts = (torch.arange(length) < len(prompt)).expand_as(tokens)
    return SimpleNamespace(tokens=tokens, prompt=prompts, evaluations=torch.ones(len(rows), dtype=torch.long))


def test_the_answer_is_what_was_not_given_up_to_the_end(tokenizer):
    samples = finished(tokenizer, "$x$", "", given=r"\frac{ ")
    samples.tokens[1, -1] = tokenizer("z")["input_ids"][0]  # behind the end of text
    assert written(samples.tokens, samples.prompt, tokenizer, len(tokenizer)) == ["$x$", ""]


def test_the_reward_of_rows(tokenizer):
    samples = finished(
        tokenizer, r"$\frac{1}{2}$", r"$\frac{1}$", "no formula", r"$\frac{_}{2}$", r"}_", given="Question {"
    )
    output = LatexReward(tokenizer, len(tokenizer))(samples)
    assert output.total[0] == pytest.approx(score(r"$\frac{1}{2}$")["total"])
    assert output.total[1:].tolist() == pytest.approx([score(r"$\frac{1}$")["total"], 0.0, 0.1, 0.0])
    assert output.terms["still_masked"].tolist() == [0, 0, 0, 1, 1]
    assert output.terms.keys() == {*WEIGHTS, "still_masked"}


def test_a_row_that_cannot_be_scored_is_dropped_and_named(tokenizer, monkeypatch):
    def scored(text, *more):
        if text == "$b$":
            raise RuntimeError("no verdict")
        return {"total": 1.0}

    monkeypatch.setattr(rewards.latex, "score", scored)
    reward = LatexReward(tokenizer, len(tokenizer))
    output = reward(finished(tokenizer, "$a$", "$b$"))
    assert output.failed == {1: "raises RuntimeError: no verdict"} and output.total[0] == 1
    with pytest.raises(FloatingPointError, match="1 of 1 rows have no reward: the reward of row 0 raises RuntimeError"):
        reward(finished(tokenizer, "$b$"))


@pytest.mark.parametrize("pieces, progress", [(["$", None, "$"], 1), (["}", None], 0), ([None, "x{$"], 0)])
def test_text_with_masks_is_scored_by_its_brackets(pieces, progress):
    terms = unfinished(pieces, slack=2)
    assert terms["progress"] == progress and terms["total"] == pytest.approx(0.1 * progress) and terms["valid"] == 0


def test_settings_that_do_not_fit_are_refused():
    words = chain_tokenizer()
    with pytest.raises(ValueError, match=r"reward\.terms: speed unknown or missing"):
        LatexReward(words, 0, weights={**WEIGHTS, "speed": 1.0})
    with pytest.raises(ValueError, match=r"reward\.window=\[9, 3\] must be two numbers"):
        LatexReward(words, 0, window=(9, 3))


# -------------------------------------------------------------------------------------------------------------- the command


def test_the_command_scores_a_file(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("$x$\n\nno formula\n", encoding="utf-8")
    command = [sys.executable, "-m", "rewards.latex", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].split() == ["total", *WEIGHTS, "text"] and len(lines) == 4
    assert lines[1].split()[1] == "1.000" and lines[3].endswith("mean of 2")


@pytest.mark.parametrize(
    "text, message", [(None, "there is no file"), (b" \n", "has no text"), (b"$x$\n\xff", r"is not UTF-8 (byte 4)")]
)
def test_the_command_refuses(tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "file").write_bytes(text)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "file")])
    assert message in capsys.readouterr().err


def test_a_thousand_formulas_a_second_at_least():
    texts = [rf"$\frac{{{n}}}{{x_{{{n}}}}} + \sqrt{{{n}}}$" for n in range(1000)]
    start = time.process_time()
    assert all(score(text)["valid"] == 1 for text in texts)
    assert time.process_time() - start < 0.5
