"""mlx-companion: a small language-model companion that runs, tunes and improves itself locally.

The public surface is the short list in `__all__`; everything else is reached through the
sub-packages, which a newcomer reads in the order in which data flows: text, models, lora,
training, store, loop. Names are imported on first use (PEP 562), so that `import mlx_companion`
costs milliseconds and does not import MLX::

    import mlx_companion as mc

    model = mc.load("smollm2-135m")
    print(mc.generate(model, "What is a glacier?"))

Importing the package loads a fast BLAS on Linux without a GPU; that must happen before anything
imports `mlx.core`, so import this package first (see `runtime/blas.py`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_companion import errors
from mlx_companion.runtime.blas import load_blas as _load_blas

if TYPE_CHECKING:  # for editors and type checkers; a test compares it with `_LAZY`
    from mlx_companion.loop.companion import Companion as Companion
    from mlx_companion.loop.config import LoopConfig as LoopConfig
    from mlx_companion.loop.rounds import improve as improve
    from mlx_companion.lora.config import LoraConfig as LoraConfig
    from mlx_companion.models.encoder import load_encoder as load_encoder
    from mlx_companion.models.generation import batch_generate as batch_generate
    from mlx_companion.models.generation import generate as generate
    from mlx_companion.models.generation import stream_generate as stream_generate
    from mlx_companion.models.load import load as load
    from mlx_companion.models.sampling import Sampling as Sampling
    from mlx_companion.personality.profile import Profile as Profile
    from mlx_companion.quant.quantize_api import quantize as quantize
    from mlx_companion.runtime.config import load_config as load_config
    from mlx_companion.runtime.seeds import seed_everything as seed_everything
    from mlx_companion.runtime.stop import NEVER as NEVER
    from mlx_companion.runtime.stop import StopSwitch as StopSwitch
    from mlx_companion.store.store import Store as Store
    from mlx_companion.training.config import TrainConfig as TrainConfig
    from mlx_companion.training.finetune import finetune as finetune

__version__ = "0.1.0"

_LAZY: dict[str, str] = {
    "Companion": "mlx_companion.loop.companion:Companion",
    "LoopConfig": "mlx_companion.loop.config:LoopConfig",
    "LoraConfig": "mlx_companion.lora.config:LoraConfig",
    "NEVER": "mlx_companion.runtime.stop:NEVER",
    "Profile": "mlx_companion.personality.profile:Profile",
    "Sampling": "mlx_companion.models.sampling:Sampling",
    "StopSwitch": "mlx_companion.runtime.stop:StopSwitch",
    "Store": "mlx_companion.store.store:Store",
    "TrainConfig": "mlx_companion.training.config:TrainConfig",
    "batch_generate": "mlx_companion.models.generation:batch_generate",
    "finetune": "mlx_companion.training.finetune:finetune",
    "generate": "mlx_companion.models.generation:generate",
    "improve": "mlx_companion.loop.rounds:improve",
    "load": "mlx_companion.models.load:load",
    "load_config": "mlx_companion.runtime.config:load_config",
    "load_encoder": "mlx_companion.models.encoder:load_encoder",
    "quantize": "mlx_companion.quant.quantize_api:quantize",
    "seed_everything": "mlx_companion.runtime.seeds:seed_everything",
    "stream_generate": "mlx_companion.models.generation:stream_generate",
}

__all__ = ["__version__", "errors", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    target = _LAZY.get(name)
    if target is None:
        raise AttributeError(f"module 'mlx_companion' has no attribute '{name}'")
    module, _, attribute = target.partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_load_blas()
