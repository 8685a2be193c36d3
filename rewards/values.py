r"""Parsing of values from text: one normal form and one exact arithmetic for GSM8K, MATH and Countdown (the table is in
docs/tasks.md).

    normal(r"**\[ 1\,250 \]**")                         "1250"
    number_of(r"about 2\frac{1}{2} cups", boxed=True)  5/2
    number_of("20 - 2", boxed=True)                     18
    number_of("3:30", boxed=True)                       None: a part of an expression is never taken for its value

A value is an expression of numbers, + - * /, powers, fractions, roots and brackets, optionally with a unit behind it and
words before it. It is computed exactly, as a Fraction. Nothing is evaluated as Python.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

LONGEST = 500  # characters of an expression
DEEPEST = 40  # brackets in each other
LARGEST = 10_000  # bits of a power

# ------------------------------------------------------------------------------------------------------------- normal form

SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"  # a range of a regular expression
SPACE = rf"(?:\\[,;: ]|~|\\(?:thin|med|thick|en)?space(?![A-Za-z])|\\q?quad(?![A-Za-z])|\\hspace\*?\{{[^{{}}]*\}}|[{SPACES}])"
# Between groups of three digits. A comma in front of a space other than \! separates two numbers. A comma in front of a digit
# makes it another number or a pair; a comma that ends a clause does not.
THOUSANDS = re.compile(rf"(?<![\d.,])(\d{{1,3}})((?:(?:\{{,\}}(?:\\!)?|,\\!|\\!|['’]|{SPACE})\d{{3}})+)(?!,?\d)")
PLAIN_THOUSANDS = re.compile(r"\d{1,3}(?: \d{3})+(?:\.\d+)?")
SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
CHARACTERS = str.maketrans({
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full width
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),  # of no width
    **dict.fromkeys("−–‐‑﹣", "-"), **dict.fromkeys("×✕⨯∗", "*"), **dict.fromkeys("⋅·∙•", "*"), **dict.fromkeys("÷∕⁄", "/"),
    "—": " ; ", "≈": r"\approx ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty ",
    "√": r"\sqrt ", "∅": r"\emptyset ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": " ", "→": r"\to ", "⇒": r"\Rightarrow ",
    **dict.fromkeys("€£¥₹₽₩₺₴₦₫₱₪฿¢", "$"), **dict.fromkeys("‘’", "'"), **dict.fromkeys('`"“”„«»✓✔✅', " "), "\ufe0f": None,
})  # fmt: skip
SINGLE = r"[\dA-Za-z]|\\(?:pi|theta|alpha|beta|phi)(?![A-Za-z])"  # an argument without braces
TEXTS = re.compile(
    r"\\(?:mbox|hbox|underline|emph|text(?:bf|rm|it|tt|sf|normal)|math(?:rm|bf|it|sf|tt)|boldsymbol|bm)(?![A-Za-z])\s*(?=\{)"
)
WHOLE_TEXT = re.compile(r"\\text\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
REWRITES = [(re.compile(pattern), to) for pattern, to in (
    (r"\\(?:boxed|fbox)(?![A-Za-z])\s*", ""),
    (r"\\(?:left|right|[bB]ig+[lrm]?)(?![A-Za-z])\s*\.?", ""),
    (r"\\(?:display|text|script)style(?![A-Za-z])|\\n?limits(?![A-Za-z])", " "),
    (r"\\(?:tiny|small|[lL]arge|LARGE|[hH]uge|bf|rm|it|bfseries)(?![A-Za-z])", " "),
    (r"\\(?:begin|end)\{(?:align(?:ed)?|gather(?:ed)?|equation|math|displaymath|center)\*?\}", " "),
    (r"(?<![\w'])'([^'\n]+)'(?![\w'])", r" \1 "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", " "),
    (r"\\%|%", " "),
    (r"\b(?:USD|US|EUR|GBP|Rs\.?)\s*(?=\\?\$?\s?\d)", " "),
    (r"(?<![A-Za-z\\$])[A-Z]{1,3}(?=\\?\$\s?\d)", " "),  # A$18
    (r"([-+])\s*\\?\$\s*(?=[\d.])", r"\1"),
    (r"\\?\$", " "),
    (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le "), (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge "),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "), (r"(?<![A-Za-z}])\{\s*\}", ""),
    (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (rf"\\frac\s*({SINGLE})\s*({SINGLE})", r"\\frac{\1}{\2}"), (rf"\\frac\s*({SINGLE})\s*\{{", r"\\frac{\1}{"),
    (rf"(\\frac\{{[^{{}}]*\}})\s*({SINGLE})", r"\1{\2}"),
    (rf"(?<!\\){SPACE}", " "), (r"(?<!\\)\\!", ""), (r"(?<!\\)\\\s*$", ""),
)]  # fmt: skip
DISPLAY = re.compile(r"\\\\|\\[\[\]()]")
BOLD = re.compile(
    r"(?<![\w)\]}*])(?<!\d\s)(\*\*|__|\*)(?=[^\s*])((?:(?!\1).){1,200}?)(?<=[^\s*])\1(?![\w({\[*])", re.DOTALL
)


def _without_text(found: re.Match) -> str:
    r"""Return the contents of a \text without words (digits, signs, commands); otherwise the whole \text."""
    return found[0] if re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", found[1])) else f" {found[1]} "


def normal(text: str) -> str:
    r"""Return LaTeX in one spelling.

    Removed: dollars, display brackets, bold, boxes, \left and \right, degrees, percent and currency signs. Other signs and
    spaces of Unicode become LaTeX or ASCII; grouped digits become one number (`1\,250`, `1{,}250`; `1,250` stays, because
    `(1,250)` may be a pair); fractions, text, comparisons and the empty set have one spelling.
    """
    text = WHOLE_TEXT.sub(_without_text, TEXTS.sub(r"\\text", text))
    text = BOLD.sub(r"\2", BOLD.sub(r"\2", text))
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: "^{" + "".join(SUPERSCRIPTS[c] for c in found[0]) + "}", text)
    text = re.sub(r"[¼-¾⅐-⅞↉]", lambda found: f" {unicodedata.normalize('NFKD', found[0])} ", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text).translate(CHARACTERS)
    text = THOUSANDS.sub(lambda found: found[1] + "".join(re.findall(r"\d{3}", found[2])), text)
    text = DISPLAY.sub(lambda found: found[0] if found[0] == "\\\\" else " ", text)
    for pattern, to in REWRITES:
        text = pattern.sub(to, text)
    text = "\n".join(" ".join(line.split()) for line in text.split("\n")).strip()
    return text.rstrip(".,;: \n") if not text.endswith("...") else text


def words(text: str) -> str | None:
    r"""Return the words of an answer that consists of words, in lower case (`\text{(C)}`, `**East**.`: "c", "east"); else
    None.
    """
    inside = normal(text)
    whole = WHOLE_TEXT.fullmatch(inside)
    found = " ".join((whole[1] if whole else inside).strip(" ().,").lower().split())
    return (
        found
        if re.fullmatch(r"(?:[a-z]+[ '-])*[a-z]+", found) and not re.fullmatch(r"(?:[a-z][ -])+[a-z]", found)
        else None
    )


# -------------------------------------------------------------------------------------------------------------- expressions


@dataclass(frozen=True)
class Value:
    """number: exact; literals: the numbers in the expression; is_elementary: it has only whole numbers, + - * / and
    brackets.
    """

    number: Fraction
    literals: tuple[Fraction, ...]
    is_elementary: bool


TOKEN = re.compile(
    r"(?P<number>\d*\.\d*\\overline\{\d+\}|(?:(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?!,?\d)|\d+)(?:\.\d*)?(?:[eE][-+]?\d{1,4}(?!\d))?|\.\d+)"
    r"|(?P<word>[^\W\d_](?:['_-]?[^\W_])*(?:_\{[^{}]*\})?(?:\s?\^\s?(?:\{\s*[-+]?\d+\s*\}|[-+]?\d+))?)"
    r"|(?P<command>\\[A-Za-z]+)"
    r"|(?P<operator>\*\*|[-+*/^])|(?P<bracket>\\?[({\[\])}])|(?P<join>[:,_&|!])|(?P<other>\\?\S)"
)
ARITHMETIC = {r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/", r"\frac": r"\frac", r"\sqrt": r"\sqrt"}
BRACKETS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Token:
    """kind: number, word, part (of an expression), join (between numbers that are not one value), or other."""

    kind: str
    text: str
    start: int
    end: int


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of a text in normal form."""
    found = []
    for match in TOKEN.finditer(text):
        kind, word = str(match.lastgroup), match[0]
        if kind == "command":
            kind, word = ("part", ARITHMETIC[word]) if word in ARITHMETIC else ("other", word)
        elif kind in ("operator", "bracket"):
            kind, word = "part", {"**": "^"}.get(word, word.lstrip("\\"))
        found.append(Token(kind, word, match.start(), match.end()))
    return found


class ExpressionReader:
    """Recursive-descent parser of one expression.

    Raises:
        ValueError: it is not an expression.
        ZeroDivisionError: a division by zero.
        OverflowError: a power is too large.
    """

    def __init__(self, tokens: list[Token]):
        self.tokens, self.place, self.depth = tokens, 0, 0
        self.literals: list[Fraction] = []
        self.is_elementary = True

    def value(self) -> Value:
        number = self.sum()
        if self.place < len(self.tokens):
            self.refuse()
        return Value(number, tuple(self.literals), self.is_elementary)

    def refuse(self) -> NoReturn:
        raise ValueError("this is no expression of numbers")

    @property
    def next(self) -> str:
        """Return the text of the next token, "0" for a number, "" at the end."""
        if self.place >= len(self.tokens):
            return ""
        token = self.tokens[self.place]
        return "0" if token.kind == "number" else token.text

    def take(self, *texts: str) -> str:
        """Consume the next token if it is one of these, and return it; otherwise return ""."""
        found = self.next if self.next in texts else ""
        self.place += bool(found)
        return found

    def touches(self) -> bool:
        """Return whether the next token follows without a space."""
        return self.tokens[self.place - 1].end == self.tokens[self.place].start

    def sum(self) -> Fraction:
        total = self.product()
        while sign := self.take("+", "-"):
            total = total + self.product() if sign == "+" else total - self.product()
        return total

    def product(self) -> Fraction:
        total = self.signed()
        while True:
            if sign := self.take("*", "/"):
                factor = self.signed()
                total = total * factor if sign == "*" else total / factor
            elif self.next in (r"\frac", r"\sqrt") or (self.next in ("(", "[") and self.touches()):
                total *= self.power()  # nothing between: a product
            else:
                return total

    def signed(self) -> Fraction:
        sign = self.take("+", "-")
        if sign and self.next in ("+", "-"):
            self.refuse()
        return -self.power() if sign == "-" else self.power()

    def power(self) -> Fraction:
        base = self.atom()
        return power(base, self.exponent()) if self.take("^") else base

    def exponent(self) -> Fraction:
        self.is_elementary = False
        self.depth += 1
        if self.depth > DEEPEST:
            self.refuse()
        number = self.signed()
        self.depth -= 1
        return number

    def atom(self) -> Fraction:
        if self.next == "0":
            return self.literal()
        if command := self.take(r"\frac", r"\sqrt"):
            if command == r"\frac":
                return self.enclosed("{") / self.enclosed("{")
            self.is_elementary = False
            degree = self.enclosed("[") if self.next == "[" else Fraction(2)
            return power(self.enclosed("{"), 1 / degree)
        if self.next and self.next in BRACKETS:
            return self.enclosed(self.next)
        self.refuse()

    def enclosed(self, opener: str) -> Fraction:
        self.depth += 1
        if self.depth > DEEPEST or not self.take(opener):
            self.refuse()
        number = self.sum()
        if not self.take(BRACKETS[opener]):
            self.refuse()
        self.depth -= 1
        return number

    def literal(self) -> Fraction:
        r"""Parse a number, or a mixed number: a whole number followed by a proper fraction (`1 1/4`, `1\frac{1}{4}`)."""
        token = self.tokens[self.place]
        self.place += 1
        number = decimal(token.text)
        if not token.text.replace(",", "").isdigit():
            self.is_elementary = False
        self.literals.append(number)
        if self.place > 1 and self.tokens[self.place - 2].text in ("/", "^"):
            return number
        rest = self.tokens[self.place : self.place + 3]
        if (
            [part.kind for part in rest] == ["number", "part", "number"]
            and rest[1].text == "/"
            and rest[0].start > token.end
        ):
            self.place += 3
            return self.mixed(number, decimal(rest[0].text), decimal(rest[2].text))
        if self.next == r"\frac":
            self.place += 1
            return self.mixed(number, self.enclosed("{"), self.enclosed("{"))
        return number

    def mixed(self, whole: Fraction, above: Fraction, below: Fraction) -> Fraction:
        self.is_elementary = False
        if not 0 < above < below or any(part.denominator > 1 for part in (whole, above, below)):
            self.refuse()
        return whole + above / below


def decimal(text: str) -> Fraction:
    r"""Parse a number with commas between thousands, an exponent, or a repeating part (`0.1\overline{6}`)."""
    start, _, repeated = text.replace(",", "").rstrip("}").partition("\\overline{")
    number = Fraction(start.rstrip(".") or 0)
    if not repeated:
        return number
    places = len(start.partition(".")[2])
    return number + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10**places)


def root(number: int, degree: int) -> int:
    """Return the integer root of a nonnegative integer. ValueError if there is none."""
    found = round(number ** (1 / degree)) if number < 2**50 else 0
    if not found and number:
        low, high = 0, 1 << (number.bit_length() // degree + 1)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if middle**degree < number else (low, middle)
        found = low
    if found**degree != number:
        raise ValueError(f"{number} has no whole root")
    return found


def power(base: Fraction, exponent: Fraction) -> Fraction:
    """Return base to the exponent. ValueError if it is irrational, OverflowError if it has more than LARGEST bits."""
    if exponent.denominator > 1:
        degree = exponent.denominator
        if degree > 100 or (base < 0 and degree % 2 == 0):
            raise ValueError("no rational root")
        sign = -1 if base < 0 else 1
        base = sign * Fraction(root(abs(base.numerator), degree), root(base.denominator, degree))
    bits = max(abs(base.numerator), base.denominator).bit_length()
    if abs(base.numerator) > 1 or base.denominator > 1:
        if abs(exponent.numerator) * bits > LARGEST:
            raise OverflowError("a power of too many digits")
    else:
        exponent = Fraction(
            exponent.numerator % 2 + 2 * (exponent > 0)
        )  # of 0, 1 and -1 only its parity and sign count
        if base == 0 and exponent.numerator < 2:
            raise ValueError("0 to the power of 0 or less")
    return base**exponent.numerator


def expression(text: str) -> Value | None:
    """Return the value of a text that is an expression and nothing else; None for other texts and divisions by zero.

    Raises:
        OverflowError: a power is too large.
    """
    return _evaluated(tokens_of(normal(text)))


def _evaluated(tokens: list[Token]) -> Value | None:
    if not tokens or tokens[-1].end - tokens[0].start > LONGEST:
        return None
    if all(token.kind == "number" for token in tokens) and PLAIN_THOUSANDS.fullmatch(
        together := " ".join(token.text for token in tokens)
    ):
        tokens = [Token("number", together.replace(" ", ""), tokens[0].start, tokens[-1].end)]
    try:
        return ExpressionReader(tokens).value()
    except (ValueError, ZeroDivisionError):
        return None


# ------------------------------------------------------------------------------------------------------- values in a text

# Letters and pairs of letters that stand for a unit. Longer words may all be units.
UNITS = re.compile(
    r"[mgshlLAKNJWVCF]|kg|mg|cm|mm|km|nm|dm|ml|mL|dl|cl|cc|in|ft|yd|mi|sq|oz|lb|pt|qt|hr|ms|am|pm|yr|mo|wk|ha|Hz|kW|MW|kB|MB|GB|px|ct"
)
MULTIPLES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SHORT_WORDS = frozenset("aAI")
FUNCTIONS = re.compile(r"sin|cos|tan|cot|sec|csc|log|ln|lg|exp|max|min|gcd|lcm|mod|sqrt|det")
COMMA = r"(?<=[^\d\s]),(?=\s)|(?<=\d),(?=\s*[^\d\s+.-])"  # none between two numbers
CLAUSE_END = re.compile(rf"\n(?!\s*=)|[.;!?]+(?=\s|$)|{COMMA}")
BOX_END = re.compile(rf"(?<!\.)[.;](?=\s|$)|{COMMA}")  # 5! in a box is a factorial
SAME = re.compile(
    r"(?<![<>!:])=+(?!>)|=>|->|\\(?:approx|equiv|sim|simeq|to|[Ll]?(?:ong)?[Rr]ightarrow|implies|therefore)(?![A-Za-z])"
    r"|\b(?:is|are|was|were|be|equals?|makes?|gives?)\b|(?<!\d)(?<!\d\s):|(?<=\d):(?!\s*\d)"
)
TAG = re.compile(r"<[/\\]?\s?[A-Za-z,][^<>\n]{0,20}[>}]")
REMARK = re.compile(r"(?<=\s)\([^()]*[A-Za-z]{2}[^()]*\)")  # 5 (rounded)
TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=\d)")


def sides(text: str, boxed: bool) -> list[Value | None] | None:
    """Return the values of the sides of a text's last equation (one side without an equals sign or `is`); sides without a
    number are left out.

    A side is None if it has a number but is not a value, because something beside the number belongs to it. The result is
    None for an equation that is not solved (`2x = 10`), and for a box with several answers.

    Args:
        boxed: the whole text is the answer; otherwise it is prose, whose last clause with a number counts.
    """
    clauses = [[tokens_of(side) for side in SAME.split(clause)] for clause in _clauses(text, boxed)]
    numbered = [clause for clause in clauses if any(map(_has_number, clause))]
    if not numbered:
        return []
    if boxed and len(numbered) > 1:
        return None
    is_all = boxed or len(clauses) == 1
    equation = numbered[-1]
    found = {place: _side(side, is_all or place > 0) for place, side in enumerate(equation) if _has_number(side)}
    unsolved = any(side and _is_algebra(side) for place, side in enumerate(equation[:-1]) if found.get(place) is None)
    return None if unsolved else list(found.values())


def _clauses(text: str, boxed: bool) -> list[str]:
    """Split a text into clauses. Tags and remarks are removed, `\\text{}` is unwrapped, a cross between numbers becomes `*`."""
    text = normal(text if boxed else TAG.sub("\n", text).rstrip("<>/\\ \n"))
    text = WHOLE_TEXT.sub(r" \1 ", WHOLE_TEXT.sub(r" \1 ", text.replace("\n", " ") if boxed else text))
    text = TIMES.sub(" * ", REMARK.sub("", text))
    return (BOX_END if boxed else CLAUSE_END).split(text)


def _is_algebra(tokens: list[Token]) -> bool:
    """Return whether a side computes with letters: `2x` and `x + 5` do; `x`, `f(2)`, `x^2` and prose do not."""
    if tokens[-1].text == ")" and tokens[0].kind == "word" and tokens[1].text == "(":
        return False
    names = [re.split(r"[\s^]", token.text)[0] for token in tokens if token.kind == "word"]
    computes = any(token.kind == "number" or token.text in ("+", "-", "*", "/") for token in tokens)
    return computes and bool(names) and max(map(len, names)) == 1


def _has_number(tokens: list[Token]) -> bool:
    return any(token.kind == "number" for token in tokens)


def _side(tokens: list[Token], may_begin_with_sign: bool) -> Value | None:
    """Return the value of one side. may_begin_with_sign: a dash and a space before its number are not a bullet."""
    inner = {place for place, token in enumerate(tokens) if token.kind in ("number", "part", "join")}
    numbers = [place for place, token in enumerate(tokens) if token.kind == "number"]
    first, last = numbers[0], numbers[-1]
    if not set(range(first, last + 1)) <= inner:
        return None  # two numbers, with words between them
    while first > 0 and first - 1 in inner:
        first -= 1
    while last + 1 < len(tokens) and last + 1 in inner:
        last += 1
    if tokens[last].end - tokens[first].start > LONGEST:
        return None
    before = tokens[first - 1] if first else None
    behind = tokens[last + 1] if last + 1 < len(tokens) else None
    first, last = _trimmed(tokens, first, last)
    group = tokens[first : last + 1]
    value = _evaluated(group) if _stands_apart(group, before, behind, may_begin_with_sign) else None
    if value is not None and behind is not None and behind.text in MULTIPLES:
        return Value(value.number * MULTIPLES[behind.text], value.literals, False)
    return value


def _trimmed(tokens: list[Token], first: int, last: int) -> tuple[int, int]:
    """Drop brackets that only open or only close, and a slash or hyphen in front of a unit (`5/day`, `5-year`)."""
    group = [token.text for token in tokens]
    while group[first] in BRACKETS and group[first : last + 1].count(group[first]) > group[first : last + 1].count(
        BRACKETS[group[first]]
    ):
        first += 1
    for opener, closer in BRACKETS.items():
        if group[last] == closer and group[first : last + 1].count(closer) > group[first : last + 1].count(opener):
            last -= 1
    if last + 1 < len(tokens) and tokens[last + 1].kind == "word":
        touches = tokens[last].start == tokens[last - 1].end and tokens[last].end == tokens[last + 1].start
        last -= group[last] == "/" or (group[last] == "-" and touches)
    return first, last


def _stands_apart(group: list[Token], before: Token | None, behind: Token | None, may_begin_with_sign: bool) -> bool:
    """Return whether the tokens beside a group of numbers leave its value unchanged."""
    if before is None and not may_begin_with_sign and _starts_with_dash(group):
        return False
    if before is not None and not _ends_before(before, group):
        return False
    return behind is None or _is_unit(behind, attached=behind.start == group[-1].end)


def _starts_with_dash(group: list[Token]) -> bool:
    """Return whether a group begins with a sign and a space, as a list item does."""
    return group[0].text in ("+", "-") and group[0].end < group[1].start


def _ends_before(before: Token, group: list[Token]) -> bool:
    """Return whether the token before a group of numbers is a word that does not change its value."""
    if before.kind != "word" or len(before.text) == 1 or FUNCTIONS.fullmatch(before.text):
        return False
    attached = before.end == group[0].start
    is_argument = attached and group[0].text in ("(", "[")
    is_operand = (attached and group[0].text in ("+", "-")) or _starts_with_dash(group)
    return not is_argument and not is_operand


def _is_unit(behind: Token, attached: bool) -> bool:
    """Return whether the token after a number is a unit or prose, not a factor. attached: no space separates them."""
    if behind.kind != "word":
        return False
    name = re.sub(r"(?<=[^\W\d_]{2})[23]$", "", re.split(r"[\s^]", behind.text)[0])  # cm2
    if re.search(r"\d", name):
        return False
    if name.isascii() and len(name) < (3 if attached else 2):  # 5x is no five; 5cm is
        return bool(UNITS.fullmatch(name)) or (name in SHORT_WORDS and not attached)
    return True


def number_of(text: str, boxed: bool) -> Fraction | None:
    """Return the number of a text: the last side of its last equation.

    None if there is none, if it is part of something else, or if it is a power that is too large.
    """
    try:
        found = sides(text, boxed)
    except OverflowError:
        return None
    return found[-1].number if found and found[-1] is not None else None


def same_number(given: Fraction, wanted: Fraction) -> bool:
    """Return whether two numbers differ by less than 1e-6, or, if `wanted` is below 1, by less than a millionth of it."""
    return given == wanted or abs(given - wanted) < Fraction(1, 1_000_000) * min(1, abs(wanted))
