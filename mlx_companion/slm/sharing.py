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
a quantized one) the backbone is loaded apart.

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
    import mlx.core as mx
    import mlx.nn as nn

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
        from mlx_companion.models.load import load

        expected = load(self._name, lazy=True)
        self.shared = _same(expected, self._view)
        if self.shared:
            # A tokenizer of its own, as it is used on a thread of its own.
            self._source = dataclasses.replace(
                self._view, tokenizer=expected.tokenizer, source=expected.source
            )
        else:
            told = {"backbone": self._name, "served": self._view.source}
            _log.info("the modules' backbone is loaded apart from the model that answers", told)
            self._source = self._apart()
        super()._load()

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
    if expected.base_sha256 != served.base_sha256:
        return False
    theirs, ours = _arrays(expected.model), _arrays(served.model)
    if {name: _layout(one) for name, one in theirs.items()} != {
        name: _layout(one) for name, one in ours.items()
    }:
        return False
    # The hash is of the files: training all weights in memory leaves it as it was, and moves norms.
    return all(_equal(one, ours[name]) for name, one in theirs.items() if one.ndim == 1)


def _arrays(model: nn.Module) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    arrays: Any = tree_flatten(model.parameters())
    return dict(arrays)


def _layout(array: mx.array) -> tuple[Any, ...]:
    return array.dtype, tuple(array.shape)


def _equal(one: mx.array, other: mx.array) -> bool:
    import mlx.core as mx

    return bool(mx.array_equal(one, other))
