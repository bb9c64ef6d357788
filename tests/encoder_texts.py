"""Texts whose vectors by sentence-transformers are stored in fixtures/minilm_vectors.npz."""

from __future__ import annotations

TEXTS = [
    "",
    "a",
    "The kettle is warm.",
    "How do I mend a bicycle tyre without a patch kit?",
    "def add(a, b):\n    return a + b\n",
    "Caf\u00e9 na\u00efve \u00fcber co\u00f6perate; d\u00e9j\u00e0 vu",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a \u0434\u0435\u043b\u0430?",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "emoji \U0001f600\U0001f680 and \u2603",
    "1234567890 3.14159 1e-9 $5.00 50%",
    "UPPER lower MiXeD",
    "  leading and   inner   spaces\t and tabs\n\nnewlines  ",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "[CLS] [SEP] [MASK] literal specials",
    "What is the capital of Portugal, and how far is it from Porto?",
    "Rain fell on the roof all night, and by morning the river had risen.",
    "Never gonna give you up, never gonna let you down. " * 8,
    "A very long text that must be cut at the limit of the model. " * 60,
    "\x00control\x07characters\u200bzero width\ufeff",
    "Is this sentence about gardens, beans and carrots?",
]
