"""One copy of the weights: the modules' backbone out of the model that answers.

Why: the companion answers with a model, and its modules read the hidden states of one, by default
the very same. Loaded twice it would take its memory twice. Here the backbone gets module objects
of its own over the arrays of the loaded model, which copies nothing::

    backbone = ServedBackbone("smollm2-135m", lm)    # lm answers meanwhile, on another thread
    backbone.features(["hello"])                     # bit by bit those of a model loaded apart
    backbone.shared                                  # True: no weights of its own

Adapters are put on a model by replacing its layers, so they never reach the backbone's. What is
shared has to be what the backbone's name would load: the same content of the weight files, and the
same tensors in number type, shape and packing. Otherwise (another model, another packing, such as
a quantized one) the backbone is loaded apart. Of a GGUF file that is told without reading its
weights again, as MLX keeps Python's lock while it reads one.

Arrays are computed before they are shared: one that is still to be computed belongs to the stream
of the thread that asked for it.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.backbone import LanguageModelAdapter, shared_backbone
from mlx_companion.slm.views import CpuBackbone

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from mlx_companion.models.load import LanguageModel

__all__ = ["ServedBackbone", "ServedCpuBackbone", "plain_view"]

_log = get_logger(__name__)


class ServedBackbone(LanguageModelAdapter):
    """A backbone by its name that takes its weights from a loaded model, where that is the same.

    Args:
        name: what `mc.load` takes.
        served: the loaded model; adapters may come and go on it.
    """

    def __init__(self, name: str, served: LanguageModel) -> None:
        super().__init__(name, name=name)
        # At once: the thread that answers may replace layers later.
        self._name, self._view = name, plain_view(served)
        self.shared: bool | None = None

    def _load(self) -> None:
        tokenizer = self._same_tokenizer()
        self.shared = tokenizer is not None
        if tokenizer is not None:
            self._source = dataclasses.replace(self._view, tokenizer=tokenizer, source=self._name)
        else:
            told = {"backbone": self._name, "served": self._view.source}
            _log.info("the modules' backbone is loaded apart from the model that answers", told)
            self._source = self._apart()
        super()._load()

    def _same_tokenizer(self) -> TokenizerWrapper | None:
        """A tokenizer of its own, as it is used on a thread of its own; None: another model."""
        from mlx_companion.models.load import gguf_tokenizer, load, would_load

        same = would_load(self._name, self._view)
        if same is None:
            expected = load(self._name, lazy=True)
            return expected.tokenizer if _same(expected, self._view) else None
        return gguf_tokenizer(self._name) if same else None

    def _apart(self) -> LanguageModel | str:
        return shared_backbone(self._name).language_model


class ServedCpuBackbone(ServedBackbone, CpuBackbone):
    """The same with its work kept on the CPU."""

    def _apart(self) -> LanguageModel | str:
        return self._name


def plain_view(lm: LanguageModel) -> LanguageModel:
    """The base of a model under module objects of its own; no array is copied.

    Args:
        lm: a loaded model, with adapters on it or without; it is left as it is.

    Returns:
        A model that adapters on `lm` do not change, and whose own adapters do not change `lm`.
    """
    import mlx.core as mx

    from mlx_companion.lora import detach

    made: dict[int, Any] = {}
    model = _twin(lm.model, made)
    detach(model)
    mx.eval([one for one in made.values() if isinstance(one, mx.array)])
    return dataclasses.replace(lm, model=model)


def _twin(value: Any, made: dict[int, Any]) -> Any:
    """A copy of modules and the containers between them; everything else is the very same."""
    import mlx.nn as nn

    if id(value) in made:
        return made[id(value)]
    if isinstance(value, nn.Module):
        new = made[id(value)] = copy.copy(value)
        # What is frozen is a set, which would be changed for both.
        new._no_grad = set(value._no_grad)
        for name, part in value.items():
            dict.__setitem__(new, name, _twin(part, made))
        return new
    if type(value) is dict:
        return {name: _twin(part, made) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_twin(part, made) for part in value)
    made[id(value)] = value
    return value


def _same(expected: LanguageModel, served: LanguageModel) -> bool:
    from mlx_companion.models.as_read import AsRead

    # The hash is of the files: training all weights in memory leaves it as it was, and moves norms.
    return expected.base_sha256 == served.base_sha256 and AsRead.of(
        expected.model, None, dequantize=False
    ).holds(served.model)
