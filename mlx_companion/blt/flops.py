"""What a byte costs: floating-point operations of a forward pass, part by part.

A product of matrices counts 2 per multiply-add; attention counts its two products over the
positions that are in sight on average. Norms, activations and softmax are left out, and so are
embeddings and hash tables, which are gathered and not multiplied. Latent layers run once per patch,
so their cost per byte falls with the mean patch length. Training costs three times the forward
pass of whatever is trained.

    cost = inference_flops(model.config, mean_patch_bytes=4.6)
    print(cost.total, cost.latent)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from mlx_companion.blt.config import BlockConfig, BltConfig, ByteLMConfig

# A backward pass has two products where the forward pass has one.
TRAINING_FACTOR = 3.0


@dataclass(frozen=True)
class FlopsPerByte:
    """Floating-point operations per byte of a forward pass.

    Attributes:
        entropy: of the entropy model that places the boundaries.
        encoder: of the local encoder and its patch cross-attention.
        latent: of the latent transformer, or of a flat model's layers.
        decoder: of the local decoder, its cross-attention, and what it makes of latent vectors.
        head: of the output head.
    """

    entropy: float
    encoder: float
    latent: float
    decoder: float
    head: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def trained(self) -> float:
        """All parts but the entropy model, which is trained before."""
        return self.total - self.entropy


def inference_flops(
    config: BltConfig | ByteLMConfig,
    mean_patch_bytes: float = 1.0,
    context: int | None = None,
) -> FlopsPerByte:
    """Cost of a forward pass over a text.

    Args:
        config: of the model.
        mean_patch_bytes: bytes per patch; of a flat model, bytes per position.
        context: bytes per text; None for the model's own.
    """
    if isinstance(config, ByteLMConfig):
        positions = context / mean_patch_bytes if context else config.context
        layers = stack_flops(config.block, positions) / mean_patch_bytes
        head = 2 * config.block.width * config.vocabulary / mean_patch_bytes
        return FlopsPerByte(0.0, 0.0, layers, 0.0, head)
    length = context or config.context
    return FlopsPerByte(
        entropy=_entropy(config, length),
        encoder=_encoder(config, length, mean_patch_bytes),
        latent=_latent(config, length, mean_patch_bytes),
        decoder=_decoder(config, length, mean_patch_bytes),
        head=2 * config.decoder.width * config.vocabulary,
    )


def stack_flops(config: BlockConfig, length: float) -> float:
    """A stack's operations per position, for texts of `length` positions."""
    kv_width = config.kv_count * config.head_width
    matrices = 2 * config.width**2 + 2 * config.width * kv_width + 3 * config.width * config.ffn
    attention = 4 * mean_sight(length, config.window) * config.width
    return config.layers * (2 * matrices + attention)


def mean_sight(length: float, window: int | None) -> float:
    """Positions that a position sees on average: the mean of min(t, window) for t = 1..length."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def _entropy(config: BltConfig, length: int) -> float:
    if config.entropy is None or not config.patching.needs_entropies:
        return 0.0
    head = 2 * config.entropy.width * config.vocabulary
    return stack_flops(config.entropy, length) + head


def _encoder(config: BltConfig, length: int, patch: float) -> float:
    D, k = config.encoder.width, config.cross_k
    kv = config.encoder.kv_count * config.encoder.head_width
    per_byte = 2 * 2 * D * kv + 4 * k * D  # keys and values; k queries look at each byte once
    per_patch = 2 * D * k * D + 2 * 2 * k * D * D  # to k queries; query and output projections
    return stack_flops(config.encoder, length) + per_byte + per_patch / patch


def _latent(config: BltConfig, length: int, patch: float) -> float:
    width = config.latent.width
    projection = 2 * config.patch_width * width if config.patch_width != width else 0
    return (stack_flops(config.latent, length / patch) + projection) / patch


def _decoder(config: BltConfig, length: int, patch: float) -> float:
    D, k = config.decoder.width, config.cross_k
    kv = config.decoder.kv_count * config.decoder.head_width
    crossings = config.decoder.layers if config.cross_all_decoder else 1
    per_byte = crossings * (2 * 2 * D * D + 4 * k * D)
    per_patch = 2 * config.latent.width * k * D + crossings * 2 * 2 * k * D * kv
    return stack_flops(config.decoder, length) + per_byte + per_patch / patch
