"""Writes the texts and numbers of a report as LaTeX that any pdflatex sets, without a package of its own.

Texts are as the Markdown reports have them: `code`, **bold**, [1] for a note, 1.2e+11, 0.10 ± 0.02, N*,
C^-alpha.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?"
VALUE = rf"[+\-−]?{DIGITS}"
INTERVAL = rf"\[({VALUE}), ({VALUE})\]"
ESTIMATE = re.compile(rf"({VALUE})(?: ± ({DIGITS}))?")
BRACKETED = re.compile(rf"(?:({VALUE}) )?{INTERVAL}")
BELOW = re.compile(rf"([<>]) ({VALUE})")
MARKED = re.compile(r"(.*?\S) ((?:\[\d+\])+)$", re.DOTALL)
DASH = "-"

GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
)  # fmt: skip
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "~": r"$\sim$", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}",
    "²": r"$^{2}$", "³": r"$^{3}$", "¹": r"$^{1}$", "⁻": "$^{-}$", "⁰": r"$^{0}$", "→": r"$\to$",
    "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "≠": r"$\neq$", "√": r"$\surd$", "∞": r"$\infty$",
    "∝": r"$\propto$", "∈": r"$\in$", "µ": r"$\mu$", "°": r"$^{\circ}$", "«": r"$\ll$", "»": r"$\gg$",
    "“": "``", "”": "''", "‘": "`", "’": "'", "„": ",,", "ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}",
    "æ": r"{\ae}", "Æ": r"{\AE}", "œ": r"{\oe}", "Œ": r"{\OE}", "ł": r"{\l}", "Ł": r"{\L}", "ı": r"{\i}",
    "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,", "\u2011": "-", "\u2010": "-",
}  # fmt: skip
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c",
}  # fmt: skip
PIECES = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\*\*(?P<bold>.+?)\*\*"
    r"|(?P<formula>\bL = (?:\(?[A-Za-z](?:_[a-z]+)?(?:\^-?\w+)?\)?(?:\^-?\w+)?|[-+])"
    r"(?: (?:\(?[A-Za-z](?:_[a-z]+)?(?:\^-?\w+)?\)?(?:\^-?\w+)?|[-+])(?!\w))*)"
    r"|(?<![\w.^-])(?P<scientific>[+\-−]?\d(?:\.\d+)?e[+-]?\d{1,3})(?!\w)"
    r"|(?<![\w^])(?P<base>[A-Za-z]\w*)\^(?P<power>-?\w+)"
    r"|\b(?P<star>[ND])\*"
    rf"|(?<![\w.=/_-])(?P<greek>{'|'.join(GREEK)})(?![A-Za-z0-9=/_-]| method)"
    r"|(?<=\d) (?P<percent>%)"
    r"|(?P<arrow>->)"
    r"|(?P<minus>(?<![\w)\]*-])-(?=\.?\d)|(?<= )-(?= ))"
    r"|(?P<hyphens>--+)"
    r"|(?P<slash>(?<=\w)/(?=\w))"
    r"|(?P<other>[^\w\s]|_|[^\x00-\x7f])"
)
VARIABLE = re.compile(r"(?<![\w.-])(?P<name>[A-Za-z])(?![\w.*^'-])")


def prose(text: str) -> str:
    """A sentence, a label or a caption."""
    return PIECES.sub(_piece, text)


def heading(text: str) -> str:
    """The name of a column; single letters in it are variables."""
    parts, end = [], 0
    for found in VARIABLE.finditer(text):
        parts += [prose(text[end : found.start()]), f"${found['name']}$"]
        end = found.end()
    return "".join([*parts, prose(text[end:])])


def code(text: str) -> str:
    """A name that a program reads, such as a run id or a key."""
    return rf"\texttt{{{''.join('-{}' if c == '-' else character(c) for c in text)}}}" if text else ""


def character(c: str) -> str:
    """One character of text; accents by commands, and of what pdflatex has no sign for, the code point."""
    if c in SPECIAL:
        return SPECIAL[c]
    if c.isascii():
        # Control characters end a run of pdflatex.
        return c if c.isprintable() else " "
    greek = unicodedata.name(c, "").lower().split()
    if greek[:2] in (["greek", "small"], ["greek", "capital"]) and greek[3:4] and len(greek) == 4:
        return _greek_letter(greek[3].replace("lamda", "lambda"), greek[1] == "capital")
    base, *marks = list(unicodedata.normalize("NFKD", c))
    if base.isascii() and base.isprintable() and all(unicodedata.combining(mark) for mark in marks):
        out = character(base)
        for mark in marks:
            accent = ACCENTS.get(mark)
            out = rf"\{accent}{{{out}}}" if accent else out
        return out
    return f"[U+{ord(c):04X}]"


def _greek_letter(name: str, capital: bool) -> str:
    if name not in GREEK:
        return {"omicron": "O" if capital else "o", "final": r"$\varsigma$"}.get(name, f"[{name}]")
    upright = {"alpha": "A", "beta": "B", "epsilon": "E", "zeta": "Z", "eta": "H", "iota": "I", "kappa": "K"}
    upright |= {"mu": "M", "nu": "N", "rho": "P", "tau": "T", "chi": "X"}
    if capital:
        return upright.get(name, rf"$\{name.capitalize()}$")
    return rf"$\{name}$"


def _piece(found: re.Match[str]) -> str:
    kind, text = found.lastgroup, found.group()
    if kind == "code":
        return code(found["code"])
    if kind == "bold":
        return rf"\textbf{{{prose(found['bold'])}}}"
    if kind == "formula":
        return f"${_formula(text)}$"
    if kind == "scientific":
        return f"${mathematics(text)}$"
    if kind == "power":
        return f"${_formula(text)}$"
    fixed = {"star": f"${text[0]}^*$", "greek": rf"$\{text}$", "percent": r"\,\%", "arrow": r"$\to$"}
    fixed |= {"minus": "$-$", "hyphens": "-{}" * len(text), "slash": r"/\allowbreak{}"}
    return fixed[kind] if kind in fixed else "".join(map(character, text))


def _formula(text: str) -> str:
    """A formula in letters, powers and sums, inside dollars."""
    text = re.sub(r"\^(-?\w+)", lambda m: f"^{{{_name(m[1])}}}", text)
    return re.sub(r"_([a-z]+)", r"_{\\mathrm{\1}}", text)


def _name(exponent: str) -> str:
    sign, name = ("-", exponent[1:]) if exponent.startswith("-") else ("", exponent)
    return sign + (rf"\{name}" if name in GREEK else name.replace("_", r"\_"))


def mathematics(number: str) -> str:
    """A number inside dollars: `1.23e+11` is a product with a power of ten."""
    mantissa, _, exponent = number.replace("−", "-").partition("e")
    mantissa = mantissa.replace(",", "{,}")
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa}\times{power}"


@dataclass(frozen=True)
class Cell:
    """A cell, taken apart: what it holds, its note marks such as `[1][2]`, and whether it is bold."""

    text: str
    marks: str = ""
    bold: bool = False

    @staticmethod
    def of(text: str) -> Cell:
        """Take a cell apart."""
        found = MARKED.fullmatch(text)
        body, marks = (found[1], found[2]) if found else (text, "")
        bold = len(body) > 4 and body.startswith("**") and body.endswith("**")
        return Cell(body[2:-2] if bold else body, marks, bold)

    @property
    def empty(self) -> bool:
        """Whether there is no number and no word."""
        return self.text in ("", DASH)

    @property
    def numeric(self) -> bool:
        """Whether it is a number, an estimate with its error, an interval, or an estimate with one."""
        return any(kind.fullmatch(self.text) for kind in (ESTIMATE, BRACKETED, BELOW))

    def latex(self) -> str:
        """The cell; a single letter is a variable."""
        if inner := _number(self.text):
            body = f"${inner}$"
        else:
            body = (
                "--" if self.text == DASH else heading(self.text) if len(self.text) == 1 else prose(self.text)
            )
        body = rf"\textbf{{\boldmath {body}}}" if self.bold else body
        return body + (rf"\textsuperscript{{{self.marks}}}" if self.marks else "")


def _number(text: str) -> str:
    """A number, inside dollars; empty where it is none."""
    if found := ESTIMATE.fullmatch(text):
        return mathematics(found[1]) if found[2] is None else _with_error(found[1], found[2])
    if found := BRACKETED.fullmatch(text):
        start = rf"{mathematics(found[1])}\;" if found[1] else ""
        return start + _interval(found[2], found[3])
    if found := BELOW.fullmatch(text):
        return f"{found[1]}{mathematics(found[2])}"
    return ""


def _interval(low: str, high: str) -> str:
    """`[9.35e+07, 1.124e+08]` has one power of ten for both ends."""
    (first, _, one), (second, _, other) = low.partition("e"), high.partition("e")
    if not one or not other or abs(int(one) - int(other)) > 1:
        return f"[{mathematics(low)}, {mathematics(high)}]"
    power = max(int(one), int(other))
    ends = [
        f"{float(text) * 10.0 ** (int(own) - power):.{_decimals(text) + power - int(own)}f}"
        for text, own in ((first, one), (second, other))
    ]
    return rf"[{', '.join(ends)}]\times10^{{{power}}}"


def _with_error(value: str, error: str) -> str:
    """`1.23e+04 ± 2.1e+02` has one power of ten for both."""
    mantissa, _, exponent = value.partition("e")
    if not exponent:
        return rf"{mathematics(value)}\pm{mathematics(error)}"
    digits, _, lower = error.partition("e")
    places = max(_decimals(mantissa), _decimals(digits) + int(exponent) - int(lower or 0))
    shared = float(error.replace(",", "")) / 10.0 ** int(exponent)
    return rf"({mathematics(mantissa)}\pm{shared:.{places}f})\times10^{{{int(exponent)}}}"


def column(cells: Sequence[Cell]) -> list[str]:
    """The cells of a column of numbers, set flush right: decimal points and ± beneath each other."""
    found = [ESTIMATE.fullmatch(cell.text) for cell in cells]
    others = [cell for cell, match in zip(cells, found, strict=True) if match is None and not cell.empty]
    longest = max((cell.marks for cell in cells), key=len, default="")
    plain = not others and not any("e" in cell.text for cell in cells if not cell.empty)
    tails = [match[2] or "" for match in found if match is not None]
    decimals = max((_decimals(match[1]) for match in found if match is not None), default=0)
    tail = max((len(text.partition(".")[0]) for text in tails), default=0)
    out = []
    for cell, match in zip(cells, found, strict=True):
        if plain and match is not None:
            text = _aligned(match[1], match[2] or "", decimals, tail if any(tails) else 0)
            text = rf"\textbf{{\boldmath ${text}$}}" if cell.bold else f"${text}$"
            text += rf"\textsuperscript{{{cell.marks}}}" if cell.marks else ""
        else:
            text = cell.latex()
        rest = longest[len(cell.marks) :]
        out.append(text + (rf"\phantom{{\textsuperscript{{{rest}}}}}" if rest and text else ""))
    return out


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _aligned(value: str, error: str, decimals: int, tail: int) -> str:
    """A number inside dollars, with blanks as wide as the digits that it lacks behind its point."""
    own = _decimals(value)
    fill = ("." if own == 0 and decimals else "") + "0" * (decimals - own)
    blank = rf"\phantom{{{fill}}}" if fill else ""
    text = mathematics(value) + blank
    if not tail:
        return text
    if not error:
        return text + rf"\phantom{{{{}}\pm{'0' * tail}{'.' if decimals else ''}{'0' * decimals}}}"
    missing = tail - len(error.partition(".")[0])
    left = rf"\phantom{{{'0' * missing}}}" if missing else ""
    return rf"{text}\pm{left}{mathematics(error)}{blank}"
