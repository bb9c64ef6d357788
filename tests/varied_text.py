"""Varied strings for tokenizer tests: many scripts, digits, code, white space, emoji, specials.

The same seed gives the same strings on every machine, so that stored token ids stay valid.
"""

from __future__ import annotations

import random


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_WORDS = _split(
    "the quick brown fox it's we'll they're I'd don't o'clock John's naive caf\u00e9 na\u00efve "
    "\u00fcber Stra\u00dfe gar\u00e7on pi\u00f1ata \u0141\u00f3d\u017a \u010desk\u00fd "
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u0395\u03bb\u03bb\u03ac\u03b4\u03b1 "
    "\u4f60\u597d \u4e16\u754c \u6771\u4eac \u3053\u3093\u306b\u3061\u306f \u30ab\u30bf "
    "\ud55c\uad6d\uc5b4 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 HELLO World mIxEd "
    "can'T IT'S y'all 'tis"
)
_NUMBERS = _split(
    "0 7 42 007 1234567890 3.14159 -2.5e-10 1,000,000 0xFF 12:34:56 2024-02-29 50% $9.99 "
    "\u0664\u0665\u0666 \u00bd \u2167 \u00b2 1st 22nd v1.2.3"
)
_SPACES = (" ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000", "    \t  ", "")
_CODE = (
    "def f(x):\n    return x**2\n",
    "for (int i=0;i<n;++i){a[i]+=1;}",
    "SELECT * FROM t WHERE id>=10;",
    "if (a && b || !c) {\n\t\treturn;\n}",
    "x = {'k': [1, 2], \"s\": None}",
    '<div class="a">&nbsp;</div>',
    "#!/bin/sh\necho $HOME | grep -v '^#'",
    "\\frac{a}{b}^2_i",
)
_SIGNS = _split(
    "! ? ... -- \u2014 \u201cquote\u201d (a) [b] {c} <d> @e #f /g \\h ~ ` ^ & * = + | ; :"
)
_EMOJI = (
    "\U0001f600",
    "\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u2764\ufe0f",
    "\U0001f1f5\U0001f1f9",
    "\u2603",
)
_ODD = (
    "\u0000",
    "\u200b",
    "\ufeff",
    "e\u0301",
    "\ufffd",
    "\u2028",
    "\U0010ffff",
    "a" * 70,
    "=" * 40,
)


def varied_strings(count: int, seed: int = 0, specials: tuple[str, ...] = ()) -> list[str]:
    """`count` strings of 0 to 12 pieces each.

    Args:
        count: how many.
        seed: of the choice.
        specials: special tokens to put into some of them.
    """
    rng = random.Random(seed)
    kinds: list[tuple[str, ...]] = (
        [_WORDS] * 6 + [_NUMBERS] * 3 + [_CODE, _SIGNS, _SIGNS, _EMOJI, _ODD]
    )
    kinds += [specials] if specials else []
    texts = []
    for _ in range(count):
        pieces = []
        for _ in range(rng.randint(0, 12)):
            pieces.append(rng.choice(rng.choice(kinds)))
            pieces.append(rng.choice(_SPACES) if rng.random() < 0.5 else " ")
        texts.append("".join(pieces))
    return texts


SMOLLM2_STRINGS = varied_strings(
    3000, seed=0, specials=("<|im_start|>", "<|im_end|>", "<|endoftext|>")
)
