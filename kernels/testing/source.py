"""From the Metal Shading Language to C++: the few things that a header cannot do.

    threadgroup float x[64];   becomes storage that the threads of a group share
    0.5, 1.0h                  become float and half: Metal has no double
    c ? half : float           gets a type; C++ finds the two ambiguous
    #include <metal_stdlib>    goes; the bench's own header stands for it

Lines keep their numbers, so that messages name the lines of the kernel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<directive>^[ \t]*\#(?:\\.|[^\n\\])*)
  | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
  | (?P<number>(?:0[xX][\da-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\w*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<space>\s+)
  | (?P<mark><<=|>>=|->|\+\+|--|&&|\|\||::|[<>=!+\-*/%&|^]=|<<|>>|.)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_FLOAT = re.compile(r"(?:\d+\.\d*|\.\d+|\d+(?=[eEhH]))(?:[eE][+-]?\d+)?(?P<suffix>[fFhH]?)")
_OPEN, _CLOSE = "([{", ")]}"


@dataclass
class Token:
    """A piece of source: its kind (a group of `_TOKEN`) and its text."""

    kind: str
    text: str

    @property
    def blank(self) -> bool:
        """Whether the compiler does not see it."""
        return self.kind in ("comment", "space")


def translate(source: str, *, small_floats: bool, first_id: int = 0) -> str:
    """The source as the C++ compiler gets it.

    Args:
        source: a kernel's body or header.
        small_floats: 16-bit floats occur, so conditional expressions need a type.
        first_id: the number of the first `threadgroup` variable, unique in a kernel.
    """
    tokens = [_plain(t) for t in tokenize(source)]
    tokens = _share(tokens, first_id)
    return "".join(t.text for t in (_typed_conditionals(tokens) if small_floats else tokens))


def tokenize(source: str) -> list[Token]:
    """The source in pieces, nothing left out."""
    return [Token(str(m.lastgroup), m.group()) for m in _TOKEN.finditer(source)]


def without_comments(source: str) -> str:
    """The source with each comment as one space."""
    return "".join(" " if t.kind == "comment" else t.text for t in tokenize(source))


def _plain(token: Token) -> Token:
    if token.kind == "number":
        return Token("number", _as_float(token.text))
    if token.kind == "directive":
        if re.match(r"\s*#\s*(?:include\s*<metal|pragma)", token.text):
            return Token("space", "\n" * token.text.count("\n"))
        if re.match(r"\s*#\s*define", token.text):
            # Without its mark the line is not one directive but the tokens that it holds.
            start = token.text.index("#") + 1
            pieces = tokenize(token.text[start:])
            text = "".join(_as_float(p.text) if p.kind == "number" else p.text for p in pieces)
            return Token("directive", token.text[:start] + text)
    return token


def _as_float(number: str) -> str:
    found = _FLOAT.fullmatch(number)
    if found is None:
        return number
    suffix = found["suffix"]
    digits = number[: -len(suffix)] if suffix else number
    if "." not in digits and "e" not in digits.lower():
        digits += ".0"
    return f"half({digits}f)" if suffix in ("h", "H") else digits + "f"


def _share(tokens: list[Token], first_id: int) -> list[Token]:
    result: list[Token] = []
    number, i = first_id, 0
    before = ";"
    while i < len(tokens):
        token = tokens[i]
        if token.text == "threadgroup" and before in ";{}:":
            end, declared = _declaration(tokens, i, number)
            if declared is not None:
                result.append(Token("mark", declared))
                number += 16
                i, before = end, ";"
                continue
        if not token.blank and token.kind != "directive":
            before = token.text
        result.append(token)
        i += 1
    return result


def _declaration(tokens: list[Token], start: int, number: int) -> tuple[int, str | None]:
    """The rewritten declaration at `start` and where it ends; None for pointers and functions."""
    end, depth, angle = start + 1, 0, 0
    cuts: list[int] = []
    while end < len(tokens):
        text = tokens[end].text
        if text in _OPEN or text in _CLOSE:
            if (text == "(" and depth == 0) or text == "{":
                return start, None
            depth += 1 if text in _OPEN else -1
        elif depth == 0:
            # Before the first declarator `<` opens template arguments.
            if text in ("<", ">", ">>") and not cuts:
                angle += {"<": 1, ">": -1, ">>": -2}[text]
            elif text in "*&=" and angle == 0:
                return start, None
            elif text in ",;" and angle == 0:
                cuts.append(end)
                if text == ";":
                    break
        end += 1
    else:
        return start, None
    parts = [tokens[a:b] for a, b in zip([start + 1, *[c + 1 for c in cuts]], cuts, strict=False)]
    kind, first = _split_type(parts[0])
    written = ""
    for k, part in enumerate([first, *parts[1:]]):
        text = _text(part)
        name = re.match(r"\s*(\w+)", text)
        if name is None:
            return start, None
        alias = f"mb_type_{number + k}"
        rest = text[name.end() :]
        written += f"typedef {kind} {alias}{rest}; "
        written += f'{alias}& {name[1]} = mb_shared<{alias}>("{name[1]}", {number + k}); '
    lines = sum(t.text.count("\n") for t in tokens[start:end])
    return end + 1, written + "\n" * lines


def _split_type(part: list[Token]) -> tuple[str, list[Token]]:
    last = 0
    for k, token in enumerate(part):
        if token.text == "[":
            break
        if token.kind == "name":
            last = k
    return _text(part[:last]).strip(), part[last:]


def _text(tokens: list[Token]) -> str:
    return " ".join(t.text for t in tokens if not t.blank)


def _typed_conditionals(tokens: list[Token]) -> list[Token]:
    result: list[Token] = []
    i = 0
    while i < len(tokens):
        if tokens[i].text == "?" and tokens[i].kind == "mark":
            colon = _until(tokens, i + 1, colon=True)
            end = _until(tokens, colon + 1, colon=False)
            if colon < end <= len(tokens):
                yes = _typed_conditionals(tokens[i + 1 : colon])
                no = _typed_conditionals(tokens[colon + 1 : end])
                side = f"mb_side<decltype(({_text(yes)})), decltype(({_text(no)}))>("
                result += [Token("mark", f"? {side}"), *yes, Token("mark", f") : {side}"), *no]
                result.append(Token("mark", ")"))
                i = end
                continue
        result.append(tokens[i])
        i += 1
    return result


def _until(tokens: list[Token], start: int, *, colon: bool) -> int:
    """Where an operand of a conditional expression that begins at `start` ends."""
    depth = inner = 0
    for i in range(start, len(tokens)):
        text = tokens[i].text if tokens[i].kind == "mark" else ""
        if text and text in _OPEN:
            depth += 1
        elif text and text in _CLOSE:
            depth -= 1
            if depth < 0:
                return i
        elif depth == 0 and text == "?":
            inner += 1
        elif depth == 0 and text == ":":
            if inner == 0:
                return i
            inner -= 1
        elif depth == 0 and not colon and text in (",", ";"):
            return i
    return len(tokens)
