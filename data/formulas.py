r"""LaTeX formulas with descriptions in plain English: fractions, roots, powers, sums, integrals, limits, matrices,
binomials, cases, Greek letters, subscripts, nested.

    {"question": "s is at most 2 over u sub n", "answer": "$s \\leq \\frac{2}{u_{n}}$"}

Both come from one draw of a grammar; row number n is a function of (seed, n). A share of rows is broken in one of the ways
in which models break formulas: a missing brace or argument, an unknown command, `\left` and `\right` or the ends of an
environment that do not match. math-core finds every other row valid, and every broken row invalid.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from itertools import accumulate
from random import Random

from rewards.latex import is_valid

Both = tuple[str, str]  # LaTeX, English

VARIABLES = ["a", "b", "c", "d", "k", "m", "n", "p", "q", "r", "s", "t", "u", "v", "w", "x", "y", "z"]
GREEK = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "theta",
    "lambda",
    "mu",
    "pi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "omega",
]
FUNCTIONS = {"sin": "sine", "cos": "cosine", "tan": "tangent", "ln": "natural logarithm", "exp": "exponential"}
SIGNS = (("+", "plus"), ("-", "minus"), (r"\cdot", "times"))
RELATIONS = (
    ("=", "equals"),
    (r"\leq", "is at most"),
    (r"\geq", "is at least"),
    ("<", "is less than"),
    (r"\neq", "is not"),
)
MATRICES = {"pmatrix": "matrix", "bmatrix": "matrix in brackets", "vmatrix": "determinant"}
ORDINALS = {2: "squared", 3: "cubed"}
HELD_OUT = 0.05

# ----------------------------------------------------------------------------------------------------------------- grammar


def letter(random: Random) -> Both:
    """Draw a letter, Latin or Greek; a Latin letter sometimes with a subscript."""
    draw = random.random()
    if draw < 0.25:
        name = random.choice(GREEK)
        return f"\\{name}", name
    name = random.choice(VARIABLES)
    if draw < 0.4:
        index = random.choice("ijkn012")
        return f"{name}_{{{index}}}", f"{name} sub {index}"
    return name, name


def atom(random: Random) -> Both:
    """Draw a letter or a number."""
    if random.random() < 0.3:
        number = str(random.randrange(1, 10) if random.random() < 0.8 else random.randrange(10, 100))
        return number, number
    return letter(random)


def fraction(random: Random, depth: int) -> Both:
    """Draw a fraction."""
    (top, above), (bottom, below) = term(random, depth - 1), term(random, depth - 1)
    return f"\\frac{{{top}}}{{{bottom}}}", f"{above} over {below}"


def root(random: Random, depth: int) -> Both:
    """Draw a square root, or a root of degree 3, 4 or 5."""
    inside, english = term(random, depth - 1)
    if random.random() < 0.25:
        degree = random.choice((3, 4, 5))
        return f"\\sqrt[{degree}]{{{inside}}}", f"the root of degree {degree} of {english}"
    return f"\\sqrt{{{inside}}}", f"the square root of {english}"


def power(random: Random, depth: int) -> Both:
    """Draw a power."""
    base, english = letter(random)
    if random.random() < 0.6:
        number = random.choice((2, 3))
        return f"{base}^{{{number}}}", f"{english} {ORDINALS[number]}"
    exponent, raised = term(random, depth - 1)
    return f"{base}^{{{exponent}}}", f"{english} to the power {raised}"


def total(random: Random, depth: int) -> Both:
    """Draw a sum or a product over an index."""
    body, english = term(random, depth - 1)
    index, start, end = random.choice("ijkn"), random.choice("01"), random.choice((r"\infty", "n", "m", "N", "10"))
    command, word = random.choice(((r"\sum", "sum"), (r"\sum", "sum"), (r"\prod", "product")))
    last = "infinity" if end == r"\infty" else end
    return (
        f"{command}_{{{index}={start}}}^{{{end}}} {body}",
        f"the {word} from {index} equals {start} to {last} of {english}",
    )


def integral(random: Random, depth: int) -> Both:
    """Draw an integral."""
    body, english = term(random, depth - 1)
    variable = random.choice("xtuy")
    if random.random() < 0.3:
        return f"\\int {body} \\, d{variable}", f"the integral of {english} over {variable}"
    low, high = random.choice(("0", "1", "a", "-1")), random.choice(("1", "b", r"\infty", r"\pi"))
    spoken = high.lstrip("\\").replace("infty", "infinity")
    return (
        f"\\int_{{{low}}}^{{{high}}} {body} \\, d{variable}",
        f"the integral from {low} to {spoken} of {english} over {variable}",
    )


def limit(random: Random, depth: int) -> Both:
    """Draw a limit."""
    body, english = term(random, depth - 1)
    variable, end = random.choice("xnth"), random.choice(("0", "1", r"\infty"))
    spoken = end.lstrip("\\").replace("infty", "infinity")
    return f"\\lim_{{{variable} \\to {end}}} {body}", f"the limit as {variable} goes to {spoken} of {english}"


def function(random: Random, depth: int) -> Both:
    """Draw a named function with its argument."""
    name = random.choice(list(FUNCTIONS))
    inside, english = term(random, depth - 1)
    return f"\\{name}\\left({inside}\\right)", f"the {FUNCTIONS[name]} of {english}"


def bracketed(random: Random, depth: int) -> Both:
    """Draw an expression in brackets."""
    inside, english = expression(random, depth - 1)
    left, right, word = random.choice((("(", ")", "parentheses"), ("[", "]", "brackets"), ("|", "|", "absolute value")))
    spoken = f"the absolute value of {english}" if left == "|" else f"in {word} {english}"
    return f"\\left{left}{inside}\\right{right}", spoken


def binomial(random: Random, depth: int) -> Both:
    """Draw a binomial coefficient."""
    (top, above), (bottom, below) = atom(random), atom(random)
    return f"\\binom{{{top}}}{{{bottom}}}", f"{above} choose {below}"


def derivative(random: Random, depth: int) -> Both:
    """Draw a derivative."""
    body, english = letter(random)
    variable = random.choice("xtu")
    sign, word = random.choice((("d", "derivative"), (r"\partial ", "partial derivative")))
    return f"\\frac{{{sign}{body}}}{{{sign}{variable}}}", f"the {word} of {english} by {variable}"


def matrix(random: Random, depth: int) -> Both:
    """Draw a matrix or a determinant."""
    name = random.choice(list(MATRICES))
    cells = [[atom(random) for _ in range(2)] for _ in range(2)]
    body = r" \\ ".join(" & ".join(latex for latex, _ in row) for row in cells)
    listed = " and ".join(" ".join(english for _, english in row) for row in cells)
    return f"\\begin{{{name}}} {body} \\end{{{name}}}", f"the {MATRICES[name]} of rows {listed}"


def cases(random: Random, depth: int) -> Both:
    """Draw a definition by cases."""
    (one, first), (two, second) = atom(random), atom(random)
    variable = random.choice("xtn")
    body = f"{one} & {variable} > 0 \\\\ {two} & {variable} \\leq 0"
    return (
        f"\\begin{{cases}} {body} \\end{{cases}}",
        f"{first} if {variable} is more than 0 and {second} if {variable} is at most 0",
    )


NESTED: dict[Callable[[Random, int], Both], int] = {
    fraction: 6, root: 4, power: 5, total: 3, integral: 3, limit: 2, function: 3, bracketed: 3, binomial: 1, derivative: 1,
    matrix: 2, cases: 1,
}  # fmt: skip
DRAWN = list(NESTED)
CUMULATIVE = list(accumulate(NESTED.values()))


def term(random: Random, depth: int) -> Both:
    """Return a term with at most `depth` nested structures."""
    if depth <= 0 or random.random() < 0.3:
        return atom(random)
    return random.choices(DRAWN, cum_weights=CUMULATIVE)[0](random, depth)


def expression(random: Random, depth: int) -> Both:
    """Draw an expression of one or two terms."""
    latex, english = term(random, depth)
    if random.random() < 0.5:
        sign, word = random.choice(SIGNS)
        right, term_english = term(random, depth - 1)
        latex, english = f"{latex} {sign} {right}", f"{english} {word} {term_english}"
    return latex, english


def formula(random: Random, depth: int = 2) -> Both:
    """Return a formula and its description: a structure, possibly with another term, possibly as one side of a relation."""
    latex, english = random.choices(DRAWN, cum_weights=CUMULATIVE)[0](random, random.randint(1, depth))
    if random.random() < 0.4:
        sign, word = random.choice(SIGNS)
        right, atom_english = atom(random)
        latex, english = f"{latex} {sign} {right}", f"{english} {word} {atom_english}"
    if random.random() < 0.3:
        sign, word = random.choice(RELATIONS)
        left, atom_english = letter(random)
        latex, english = f"{left} {sign} {latex}", f"{atom_english} {word} {english}"
    return latex, english


# ---------------------------------------------------------------------------------------------------------------- breaking


def _pick(random: Random, pattern: str, latex: str) -> re.Match | None:
    found = list(re.finditer(pattern, latex))
    return random.choice(found) if found else None


def without_brace(random: Random, latex: str) -> str | None:
    """Remove a brace."""
    place = _pick(random, r"[{}]", latex)
    return place and latex[: place.start()] + latex[place.end() :]


def without_argument(random: Random, latex: str) -> str | None:
    """Remove an argument: the innermost last one of a command, an exponent or an index."""
    place = _pick(random, r"(?<=\})\{[^{}]*\}|(?<=\\sqrt)\{[^{}]*\}|(?<=[\^_])\{[^{}]*\}", latex)
    return place and latex[: place.start()] + latex[place.end() :]


def with_unknown_command(random: Random, latex: str) -> str | None:
    """Swap two letters of a command, or double its last letter."""
    place = _pick(random, r"\\[a-zA-Z]{2,}", latex)
    if place is None:
        return None
    name = place[0]
    at = random.randrange(1, len(name))
    wrong = f"{name[:at]}{name[at + 1]}{name[at]}{name[at + 2 :]}" if at + 1 < len(name) else name + name[-1]
    return latex[: place.start()] + wrong + latex[place.end() :]


def without_side(random: Random, latex: str) -> str | None:
    r"""Remove one of a pair of `\left` and `\right`."""
    place = _pick(random, r"\\(?:left|right)(?=[()\[\]|])", latex)
    return place and latex[: place.start()] + latex[place.end() :]


def without_end(random: Random, latex: str) -> str | None:
    """Remove the end of an environment, or replace it by another environment's."""
    place = _pick(random, r"\\end\{[a-z]*\}", latex)
    other = random.choice(("", r"\end{matrix}", r"\end{array}"))
    return place and latex[: place.start()] + other + latex[place.end() :]


BREAKING = (without_brace, without_argument, with_unknown_command, without_side, without_end)


def broken(random: Random, latex: str) -> str:
    """Return the formula broken in one of these ways: the first, in a random order, that applies and leaves no valid
    formula.
    """
    for how in random.sample(BREAKING, len(BREAKING)):
        wrong = how(random, latex)
        if wrong is not None and not is_valid(wrong):
            return wrong
    return latex + "}"


# -------------------------------------------------------------------------------------------------------------------- rows


def row(seed: int, number: int, share: float, depth: int = 2) -> tuple[dict[str, str], bool]:
    """Return row `number` (question and answer), and whether the answer is broken, which it is with probability `share`."""
    random = Random(seed * 1_000_003 + number)
    latex, english = formula(random, depth)
    is_broken = random.random() < share
    if is_broken:
        latex = broken(random, latex)
    return {"question": english, "answer": f"${latex}$"}, is_broken


def is_held_out(question: str) -> bool:
    """Mark one question in twenty, by a hash of the question, so that no question is on both sides."""
    return int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32
