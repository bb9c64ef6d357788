"""From a `config.json` to the shape of its model: every parameter of it, and no weights.

Families of decoders differ in a few points only (fused projections, biases, norms, experts), which
`_FAMILIES` lists. A family that is not there is built by mlx-lm without computing its weights
(`plan_modules`). Tests compare each with the module itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_companion.errors import ConfigError
from mlx_companion.quant.plan_shapes import Attention, Matrix, ModelShape

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """Where decoders differ.

    Args:
        fused: whether q, k, v and gate, up are one matrix each.
        qkv_bias, out_bias, mlp_bias, norm_bias, head_bias: what has a bias.
        bias_keys: whether the configuration's `attention_bias` and `mlp_bias` count.
        head_norms: whether queries and keys have a norm of their own.
        norms: per layer.
        gated: SwiGLU or another gate; False for two plain matrices.
        output: name of the attention's output projection.
        tied: whether head and embedding are one where the configuration does not say.
        moe: path of the experts in a layer, where they replace the feed-forward.
        windows: how the configuration names layers with a window; None where mlx-lm has none.
    """

    fused: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    head_bias: bool = False
    bias_keys: bool = False
    head_norms: bool = False
    norms: int = 2
    gated: bool = True
    output: str = "o_proj"
    tied: bool = False
    moe: str | None = None
    windows: str | None = None


_LLAMA = Family(bias_keys=True, tied=True, windows="types")
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family(qkv_bias=True, tied=True),
    "qwen3": Family(head_norms=True, tied=True),
    "phi3": Family(fused=True),
    "phi": Family(
        qkv_bias=True, out_bias=True, mlp_bias=True, norm_bias=True, head_bias=True,
        norms=1, gated=False, output="dense",
    ),
    "mixtral": Family(moe="block_sparse_moe"),
    "qwen3_moe": Family(head_norms=True, moe="mlp"),
    "gemma3_text": Family(head_norms=True, norms=4, tied=True, windows="pattern"),
}  # fmt: skip
FAMILIES = (*_FAMILIES, "bert")


def family_shape(config: Config, name: str) -> ModelShape:
    """The shape of a model of a family that is listed here.

    Args:
        config: content of its `config.json`.
        name: what to call it.

    Raises:
        ConfigError: an entry is missing or no whole number.
    """
    if config["model_type"] == "bert":
        return _bert(config, name)
    return _Decoder(config, _FAMILIES[config["model_type"]]).shape(name)


class _Decoder:
    """One decoder; collects matrices and counts vectors on the way."""

    def __init__(self, config: Config, family: Family) -> None:
        self.config, self.family = config, family
        self.width = whole(config, "hidden_size")
        self.layers = whole(config, "num_hidden_layers")
        self.vocabulary = whole(config, "vocab_size")
        self.heads = whole(config, "num_attention_heads")
        self.kv_heads = whole(config, "num_key_value_heads", self.heads) or self.heads
        default = 256 if config["model_type"] == "gemma3_text" else self.width // self.heads
        self.head = whole(config, "head_dim", default)
        self.matrices: list[Matrix] = []
        self.vectors = 0

    def shape(self, name: str) -> ModelShape:
        tied = bool(self.config.get("tie_word_embeddings", self.family.tied))
        self._embedding(tied)
        hidden = [self._layer(i) for i in range(self.layers)]
        self._norm()
        if not tied:
            self._linear("lm_head", self.vocabulary, self.width, self.family.head_bias, "head")
        return ModelShape(
            name,
            self.config["model_type"],
            self.width,
            self.vocabulary,
            tuple(self.matrices),
            self.vectors,
            tuple(self._attention(i) for i in range(self.layers)),
            tuple(hidden),
            self.family.gated,
            whole(self.config, "max_position_embeddings", 0) or None,
        )

    def _embedding(self, tied: bool) -> None:
        share = 1.0 if tied else 0.0
        at = "model.embed_tokens"
        self.matrices.append(Matrix(at, self.vocabulary, self.width, "embedding", share=share))

    def _layer(self, i: int) -> int:
        """Adds a layer; returns the feed-forward width that one token sees."""
        at, own = f"model.layers.{i}.", self.family
        wide, narrow = self.heads * self.head, self.kv_heads * self.head
        bias = own.qkv_bias or self._says("attention_bias")
        if own.fused:
            self._linear(f"{at}self_attn.qkv_proj", wide + 2 * narrow, self.width, bias)
        else:
            for letter, rows in (("q", wide), ("k", narrow), ("v", narrow)):
                self._linear(f"{at}self_attn.{letter}_proj", rows, self.width, bias)
        out = own.out_bias or self._says("attention_bias")
        self._linear(f"{at}self_attn.{own.output}", self.width, wide, out)
        for _ in range(own.norms):
            self._norm()
        if own.head_norms:
            self.vectors += 2 * self.head
        if own.moe is not None and self._has_experts(i):
            return self._experts(f"{at}{own.moe}.")
        return self._feed_forward(f"{at}mlp.")

    def _feed_forward(self, at: str) -> int:
        inner, own = whole(self.config, "intermediate_size"), self.family
        bias = own.mlp_bias or self._says("mlp_bias")
        if not own.gated:
            self._linear(f"{at}fc1", inner, self.width, bias)
            self._linear(f"{at}fc2", self.width, inner, bias)
            return inner
        if own.fused:
            self._linear(f"{at}gate_up_proj", 2 * inner, self.width, bias)
        else:
            self._linear(f"{at}gate_proj", inner, self.width, bias)
            self._linear(f"{at}up_proj", inner, self.width, bias)
        self._linear(f"{at}down_proj", self.width, inner, bias)
        return inner

    def _has_experts(self, i: int) -> bool:
        step = whole(self.config, "decoder_sparse_step", 1)
        return i not in self.config.get("mlp_only_layers", ()) and (i + 1) % step == 0

    def _experts(self, at: str) -> int:
        named = "num_local_experts" if "num_local_experts" in self.config else "num_experts"
        count, chosen = whole(self.config, named), whole(self.config, "num_experts_per_tok")
        inner = whole(self.config, "moe_intermediate_size", 0)
        inner = inner or whole(self.config, "intermediate_size")
        self._linear(f"{at}gate", count, self.width, False)
        for part in ("gate_proj", "up_proj", "down_proj"):
            shape = (self.width, inner) if part == "down_proj" else (inner, self.width)
            path = f"{at}switch_mlp.{part}"
            self.matrices.append(
                Matrix(path, *shape, "experts", experts=count, share=chosen / count)
            )
        return inner * chosen

    def _attention(self, i: int) -> Attention:
        return Attention(self.heads, self.kv_heads, self.head, self.head, self._window(i))

    def _window(self, i: int) -> int | None:
        if self.family.windows == "types":
            types = self.config.get("layer_types") or ()
            slides = i < len(types) and types[i] == "sliding_attention"
            return whole(self.config, "sliding_window") if slides else None
        if self.family.windows == "pattern":
            every = whole(self.config, "sliding_window_pattern", 6)
            return None if (i + 1) % every == 0 else whole(self.config, "sliding_window", 512)
        return None

    def _linear(self, path: str, rows: int, columns: int, bias: bool, role: Any = "linear") -> None:
        self.matrices.append(Matrix(path, rows, columns, role))
        self.vectors += rows if bias else 0

    def _norm(self) -> None:
        self.vectors += self.width * (2 if self.family.norm_bias else 1)

    def _says(self, key: str) -> bool:
        return self.family.bias_keys and bool(self.config.get(key, False))


def _bert(config: Config, name: str) -> ModelShape:
    D, M = whole(config, "hidden_size"), whole(config, "intermediate_size")
    layers, heads = whole(config, "num_hidden_layers"), whole(config, "num_attention_heads")
    tables = {"word": "vocab_size", "position": "max_position_embeddings"}
    tables["token_type"] = "type_vocab_size"
    matrices = [
        Matrix(f"embeddings.{part}_embeddings", whole(config, key), D, "embedding", share=0.0)
        for part, key in tables.items()
    ]
    for i in range(layers):
        names = [f"attention.{part}" for part in ("query", "key", "value", "output")]
        matrices += [Matrix(f"layers.{i}.{part}", D, D) for part in names]
        matrices += [Matrix(f"layers.{i}.intermediate", M, D), Matrix(f"layers.{i}.output", D, M)]
    vectors = 2 * D + layers * (4 * D + M + D + 4 * D)
    attention = Attention(heads, heads, D // heads, D // heads)
    return ModelShape(
        name, "bert", D, whole(config, "vocab_size"), tuple(matrices), vectors,
        (attention,) * layers, (M,) * layers, gated=False,
        context=whole(config, "max_position_embeddings"), generates=False,
    )  # fmt: skip


def whole(config: Config, key: str, default: int | None = None) -> int:
    """A whole number of a configuration.

    Raises:
        ConfigError: it is missing without a default, or is something else.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    least = 0 if default is not None else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            f"the model's configuration says {key} = {value!r}; expected a whole number of "
            f"{least} or more"
        )
    return value
