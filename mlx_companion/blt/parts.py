"""The parts of a model as compiled functions of a few new positions.

A byte costs hundreds of small operations; compiled, those between two products become one, and
Python takes no part in them. Weights are read anew at each call, so that a model may be trained
between two bytes. Each function takes keys and values and returns them with the new positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_companion.blt.byte_lm import ByteLM, FlatTransformer
from mlx_companion.blt.cache import ByteModel
from mlx_companion.blt.encoder import CrossAttention
from mlx_companion.blt.entropy import entropy
from mlx_companion.blt.fused import MASKED, attend
from mlx_companion.blt.hash_table import MappedHashEmbedding
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.rolling import KeysValues, View, forward_new, write

_LOWEST = -1e30


class Parts:
    """Compiled functions of one model.

    Args:
        model: of either kind. The functions use its weights as they are at each call.
    """

    def __init__(self, model: ByteModel) -> None:
        # Either kind: each of the functions belongs to one.
        self.model: Any = model
        self.key = _key(model)
        if isinstance(model, ByteLM):
            self.flat = _compiled(self._flat, [model.model])
            return
        parts = model.model
        table = parts.get("encoder_hash_tok_embedding")
        self.vectors = model.config.cross_k
        self.entropy = _compiled(self._entropy, [parts.get("patcher", {})])
        # A mapped table is read by NumPy, which cannot be compiled.
        mapped = isinstance(table, MappedHashEmbedding)
        encoder = [parts.local_encoder, {} if table is None else table]
        self.encode = self._encode if mapped else _compiled(self._encode, encoder)
        self.pool = _compiled(self._pool, [parts.local_encoder])
        latent = [parts.global_transformer, parts.local_decoder]
        self.latents = _compiled(self._latents, latent)
        self.close = _compiled(self._close, [parts.local_encoder, *latent])
        decoder = [parts.local_decoder, model.lm_head]
        self.decode = _compiled(self._decode, decoder)
        self.decode_many = _compiled(self._decode_many, decoder)

    @classmethod
    def of(cls, model: ByteModel) -> Parts:
        """Those of a model, made at the first call."""
        known = model.__dict__.get("_parts")
        if known is None or known.key != _key(model):
            known = cls(model)
            # Past nn.Module's own attributes: this is no parameter and is not saved.
            object.__setattr__(model, "_parts", known)
        return known

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a model makes its own.
        return type(None), ()

    def _flat(self, ids: mx.array, kept: Sequence[KeysValues], view: View) -> Any:
        """(B, L) -> logits (B, L, V)."""
        return _flat(self.model.model, ids, kept, view)

    def _entropy(self, ids: mx.array, kept: Sequence[KeysValues], view: View) -> Any:
        """(B, L) -> entropies (B, L), nats."""
        logits, kept = _flat(self.model.model.patcher, ids, kept, view)
        return entropy(logits), kept

    def _encode(
        self, recent: mx.array, ids: mx.array, kept: Sequence[KeysValues], view: View
    ) -> Any:
        """The W bytes before (B, W) and new ones (B, L) -> states (B, L, D)."""
        parts = self.model.model
        e = parts.local_encoder.embed_tokens(ids)
        if "encoder_hash_tok_embedding" in parts:
            texts = mx.concatenate([recent[:, 1:], ids], axis=1)
            table = parts.encoder_hash_tok_embedding
            e = e + table(texts, self.model.config.hash, last=ids.shape[1])
        return forward_new(parts.local_encoder.layers, e, kept, view)

    def _pool(self, states: mx.array, bias: mx.array) -> mx.array:
        """Bytes of patches (R, m, D), those that count by bias (R, 1, k, m) -> (R, 1, kD)."""
        encoder = self.model.model.local_encoder
        # The bias says for attention which bytes count; the maximum needs it as a mask.
        counts = bias[:, 0, 0, :, None] > MASKED / 2
        pooled = mx.where(counts, states, _LOWEST).max(axis=1, keepdims=True)
        # As in `LocalEncoder.read`: only the last crossing's result is left.
        queries = encoder.patch_queries(pooled)[:, 0]
        crossing = encoder.cross_attn_layers[-1]
        keys, values = crossing.keys_values(states)
        read = _read(crossing, queries, keys, values, bias)
        return (queries + read).reshape(states.shape[0], 1, -1)

    def _latents(
        self, vectors: mx.array, kept: Sequence[KeysValues], view: View
    ) -> tuple[list[KeysValues], list[KeysValues]]:
        """(B, P, kD) -> the decoder's memory of the patches, pairs of (B, P, k, H, W)."""
        latent = self.model.model.global_transformer
        x, new = forward_new(latent.layers, latent.embed(vectors), kept, view)
        return self.model.model.local_decoder.memory(x), new

    def _close(
        self,
        states: mx.array,
        bias: mx.array,
        kept: Sequence[KeysValues],
        view: View,
        compact: tuple[mx.array, mx.array, mx.array] | None,
        keep: mx.array | None,
        memory: Sequence[KeysValues],
    ) -> Any:
        """One latent step.

        Args:
            states, bias: of the rows that are computed, see `_pool`.
            kept: keys and values of all rows.
            view: of the rows that are computed.
            compact: None where these are all rows; else their numbers (R,), for every row the place
                of its result among them (B,), and every row's next slot (B, 1).
            keep: (B,) bool, rows whose memory stays; None for none.
            memory: of all rows.
        """
        vectors = self._pool(states, bias)
        if compact is None:
            new, kept = self._latents(vectors, kept, view)
        else:
            rows, back, slots = compact
            own = [(k[rows], v[rows]) for k, v in kept]
            new, own = self._latents(vectors, own, view)
            new = [(k[back], v[back]) for k, v in new]
            kept = [
                _put_back(a, b, view.slots, back, slots) for a, b in zip(kept, own, strict=True)
            ]
        if keep is None:
            return new, kept
        stay = keep.reshape(-1, 1, 1, 1, 1)
        joined = [
            (mx.where(stay, old[0], one[0]), mx.where(stay, old[1], one[1]))
            for old, one in zip(memory, new, strict=True)
        ]
        return joined, kept

    def _decode(
        self, h: mx.array, memory: Sequence[KeysValues], kept: Sequence[KeysValues], view: View
    ) -> Any:
        """States of one byte per row (B, 1, D) -> logits (B, V)."""
        decoder = self.model.model.local_decoder
        nothing = mx.zeros((1, memory[0][0].shape[2]))
        new: list[KeysValues] = []
        for index, layer in enumerate(decoder.layers):
            if index < len(memory):
                keys, values = memory[index]
                # The residual is doubled, as in `LocalDecoder`.
                h = h + _read(
                    decoder.cross_attn_layers[index], h, keys[:, 0], values[:, 0], nothing
                )
            h, own = forward_new([layer], h, kept[index : index + 1], view)
            new += own
        return self.model.lm_head(decoder.norm(h))[:, 0], new

    def _decode_many(
        self,
        h: mx.array,
        memory: Sequence[KeysValues],
        source: mx.array,
        kept: Sequence[KeysValues],
        view: View,
    ) -> Any:
        """States (B, L, D), each byte reading patch `source` (B, L) of its row -> (B, L, V)."""
        decoder = self.model.model.local_decoder
        new: list[KeysValues] = []
        for index, layer in enumerate(decoder.layers):
            if index < len(memory):
                h = h + decoder.cross_attn_layers[index].across(h, memory[index], source)
            h, own = forward_new([layer], h, kept[index : index + 1], view)
            new += own
        return self.model.lm_head(decoder.norm(h)), new


def join_close(old: KeysValues, new: KeysValues) -> KeysValues:
    """Memory of patches (B, P, k, H, W) followed by that of later ones."""
    return mx.concatenate([old[0], new[0]], axis=1), mx.concatenate([old[1], new[1]], axis=1)


def _flat(model: FlatTransformer, ids: mx.array, kept: Sequence[KeysValues], view: View) -> Any:
    x, new = forward_new(model.layers, model.embed_tokens(ids), kept, view)
    return model.lm_head(model.norm(x)), new


def _read(
    crossing: CrossAttention, x: mx.array, keys: mx.array, values: mx.array, bias: mx.array
) -> mx.array:
    """Cross-attention of (B, L, D) over keys and values (B, S, H, W), own state added."""
    q = crossing.queries(x).swapaxes(1, 2)
    out = attend(q, keys.swapaxes(1, 2), values.swapaxes(1, 2), bias)
    return x + crossing.o_proj(out.swapaxes(1, 2).flatten(-2))


def _put_back(
    kept: KeysValues, own: KeysValues, slots: mx.array, back: mx.array, all_slots: mx.array
) -> KeysValues:
    """What rows of `own` have in `slots` (R, 1), to `all_slots` (B, 1) of `kept`."""

    def put(kept: mx.array, own: mx.array) -> mx.array:
        R, K, _, W = own.shape
        index = mx.broadcast_to(slots[:, None, :, None], (R, K, 1, W))
        return write(kept, mx.take_along_axis(own, index, axis=2)[back], all_slots)

    return put(kept[0], own[0]), put(kept[1], own[1])


def _compiled(function: Callable[..., Any], weights: list[Any]) -> Callable[..., Any]:
    return mx.compile(function, inputs=weights)


def _key(model: ByteModel) -> list[int]:
    """Which top parts a model has: compiled functions follow weights, not exchanged parts."""
    if isinstance(model, BltModel):
        return [id(part) for part in (*model.model.values(), model.lm_head)]
    return [id(model.model)]
