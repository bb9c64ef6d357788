"""Shapes and settings of byte models: the one place where their defaults live.

The defaults of `BltConfig` are those of the released 1B model: a byte encoder of one layer, a
latent transformer of 25 over patches, a byte decoder of nine, and an entropy model that decides
where patches begin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mlx_companion.errors import ConfigError
from mlx_companion.text.byte_text import VOCABULARY

PatchMode = Literal["entropy", "monotonic", "combined", "space", "static", "byte", "topk"]
PATCH_MODES: tuple[PatchMode, ...] = (
    "entropy",
    "monotonic",
    "combined",
    "space",
    "static",
    "byte",
    "topk",
)
# Modes whose boundaries come from an entropy model.
ENTROPY_MODES: tuple[PatchMode, ...] = ("entropy", "monotonic", "combined", "topk")


@dataclass(frozen=True)
class BlockConfig:
    """A stack of transformer layers of one width.

    Args:
        width: D, of the residual stream.
        layers: how many; at least 1.
        heads: attention heads; D must be a multiple, and D / heads even (for RoPE).
        ffn: hidden width of the SwiGLU feed-forward.
        window: a position sees itself and the `window` - 1 before it; None for all before it.
        kv_heads: heads of keys and values; None for as many as `heads`.
        rope_theta: base of the rotary position embedding.
        norm_eps: of RMSNorm.

    Raises:
        ConfigError: a value outside its range.
    """

    width: int
    layers: int
    heads: int
    ffn: int
    window: int | None = None
    kv_heads: int | None = None
    rope_theta: float = 500000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "ffn"):
            _at_least(self, name, 1)
        for name in ("window", "kv_heads"):
            if getattr(self, name) is not None:
                _at_least(self, name, 1)
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(
                f"width {self.width} does not split into {self.heads} heads of even width; "
                "choose a width that is a multiple of twice the number of heads"
            )
        if self.heads % self.kv_count:
            raise ConfigError(f"kv_heads is {self.kv_heads}; it must divide heads = {self.heads}")

    @property
    def kv_count(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """D / heads."""
        return self.width // self.heads


@dataclass(frozen=True)
class HashConfig:
    """Hash n-gram embeddings of the byte encoder.

    Args:
        group_sizes: n of the n-grams.
        functions: hash functions; each has tables of its own.
        vocabulary: V_h, rows of each of the `functions` x `len(group_sizes)` tables.

    Raises:
        ConfigError: a value outside its range.
    """

    group_sizes: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    functions: int = 1
    vocabulary: int = 500002

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_sizes", tuple(self.group_sizes))  # JSON gives a list
        _at_least(self, "functions", 0)
        _at_least(self, "vocabulary", 1)
        if any(size < 1 for size in self.group_sizes):
            raise ConfigError(f"group_sizes is {self.group_sizes}; each must be 1 or more")

    @property
    def tables(self) -> int:
        """G, the number of tables."""
        return self.functions * len(self.group_sizes)

    @property
    def rows(self) -> int:
        """Rows of all tables together."""
        return self.tables * self.vocabulary


@dataclass(frozen=True)
class PatchConfig:
    """Where patches begin; see `patchers` for the definitions.

    Args:
        mode: "entropy" (over a threshold), "monotonic" (rises by more than it), "combined",
            "space", "static" (every `size` bytes), "byte", or "topk" (a share of 1 / `size`).
        threshold: of the next byte's entropy, or (monotonic) of its rise, in nats.
        rise_threshold: of the rise in mode "combined", in nats.
        size: bytes per patch of modes "static" and "topk".
        max_length: longer patches are split; None for no limit.

    Raises:
        ConfigError: a value outside its range, or "combined" without `rise_threshold`.
    """

    mode: PatchMode = "entropy"
    threshold: float = 1.335442066192627
    rise_threshold: float | None = None
    size: int = 4
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in PATCH_MODES:
            raise ConfigError(
                f"patching mode is {self.mode!r}; expected one of {', '.join(PATCH_MODES)}"
            )
        if self.mode == "combined" and self.rise_threshold is None:
            raise ConfigError('mode "combined" needs rise_threshold, the least rise in nats')
        _at_least(self, "size", 1)
        if self.max_length is not None:
            _at_least(self, "max_length", 1)

    @property
    def needs_entropies(self) -> bool:
        """Whether boundaries come from an entropy model."""
        return self.mode in ENTROPY_MODES


@dataclass(frozen=True)
class BltConfig:
    """A byte latent transformer.

    Args:
        encoder, decoder: the local models over bytes, of one width.
        latent: the transformer over patches.
        entropy: the byte model that places boundaries; None when the mode needs none, or when
            patches come from outside.
        cross_k: k, vectors of the local width that a patch is made of.
        hash: hash n-gram embeddings.
        patching: where patches begin.
        cross_all_encoder, cross_all_decoder: patch cross-attention at every layer, instead of
            once (after the encoder's last, before the decoder's first).
        vocabulary: V.
        context: bytes per row in training; longer texts are evaluated in windows of it.

    Raises:
        ConfigError: parts that do not fit together.

    Reference: Pagnoni et al. 2024, "Byte Latent Transformer: Patches Scale Better Than Tokens",
    arXiv 2412.09871.
    """

    encoder: BlockConfig = field(default_factory=lambda: BlockConfig(1024, 1, 16, 2730, window=512))
    latent: BlockConfig = field(default_factory=lambda: BlockConfig(2048, 25, 16, 5632))
    decoder: BlockConfig = field(default_factory=lambda: BlockConfig(1024, 9, 16, 2816, window=512))
    entropy: BlockConfig | None = field(
        default_factory=lambda: BlockConfig(768, 14, 12, 2048, window=512, rope_theta=10000.0)
    )
    cross_k: int = 2
    hash: HashConfig = field(default_factory=HashConfig)
    patching: PatchConfig = field(default_factory=PatchConfig)
    cross_all_encoder: bool = False
    cross_all_decoder: bool = True
    vocabulary: int = VOCABULARY
    context: int = 4096

    def __post_init__(self) -> None:
        _at_least(self, "cross_k", 1)
        _at_least(self, "vocabulary", VOCABULARY)
        _at_least(self, "context", 2)
        if self.encoder.width != self.decoder.width:
            raise ConfigError(
                f"encoder and decoder have widths {self.encoder.width} and {self.decoder.width}; "
                "the decoder reads the encoder's states, so they must be equal"
            )

    @property
    def patch_width(self) -> int:
        """Width of a patch before the latent transformer's own: k x D."""
        return self.cross_k * self.encoder.width


@dataclass(frozen=True)
class ByteLMConfig:
    """A flat transformer over bytes, or over any other vocabulary.

    Args:
        block: its layers.
        vocabulary: V.
        context: positions per row in training.

    Raises:
        ConfigError: a value outside its range.
    """

    block: BlockConfig
    vocabulary: int = VOCABULARY
    context: int = 4096

    def __post_init__(self) -> None:
        _at_least(self, "vocabulary", 1)
        _at_least(self, "context", 2)


def _at_least(config: object, name: str, least: int) -> None:
    value = getattr(config, name)
    if value < least:
        raise ConfigError(f"{name} is {value!r}; expected {least} or more")
