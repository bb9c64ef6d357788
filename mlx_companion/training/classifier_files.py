"""A tuned classifier on disk: the head and, where there is one, the adapter it was trained with.

    save_tuned("runs/intents", classifier)
    classifier = load_tuned("runs/intents")          # loads the base model by its name, too

    head.safetensors, classifier.json    see `models.classifier`
    adapter/                             see `lora.save_adapter`

The folder appears whole or not at all, so head and adapter always belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_companion.errors import WeightsError
from mlx_companion.lora import attached_config, detach, is_attached, load_adapter, save_adapter
from mlx_companion.models.classifier import (
    CONFIG_FILE,
    Classifier,
    load_classifier,
    read_classifier,
)
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.files import atomic_dir

ADAPTER = "adapter"
RESULT_FOLDER = "classifier"
# Those that come with the package.
_PACKAGED = Path(__file__).parent / "data"


def find_classifier(name: str | Path) -> Path:
    """The folder of a classifier.

    Args:
        name: the folder, that of the run that made it, or the name of one that comes with the
            package (`packaged_classifiers`).

    Raises:
        WeightsError: there is none.
    """
    for folder in (Path(name), Path(name) / RESULT_FOLDER, _PACKAGED / str(name)):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise WeightsError(
        f"there is no classifier at {name}; give its folder, that of its run, or one that comes "
        f"with the package: {', '.join(packaged_classifiers())}"
    )


def packaged_classifiers() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(path.parent.name for path in _PACKAGED.glob(f"*/{CONFIG_FILE}"))


def save_tuned(
    folder: str | Path, classifier: Classifier, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier and its model's adapter, replacing an older one in one step.

    Args:
        folder: where to.
        classifier: its model may carry an adapter.
        extra: JSON values to keep with it.

    Raises:
        DiskFullError: no space; an older one is untouched.
    """
    lm = classifier.language_model
    config = attached_config(lm.model) if is_attached(lm.model) else None
    with atomic_dir(folder) as temporary:
        about = {"model": lm.source, "adapter_sha256": None, **(extra or {})}
        if config is not None:
            sha256 = save_adapter(temporary / ADAPTER, lm.model, config, lm.base_sha256)
            about["adapter_sha256"] = sha256
        classifier.write(temporary, about)


def load_tuned(folder: str | Path, lm: LanguageModel | None = None) -> Classifier:
    """Read what `save_tuned` wrote.

    Args:
        folder: where it is; what `find_classifier` takes.
        lm: the base model, if it is loaded already; adapters on it are taken off or replaced.

    Raises:
        WeightsError: missing, damaged, or made for another model.
        AdapterError: the same of the adapter.
        ModelError: the base model cannot be loaded.
    """
    folder = find_classifier(folder)
    about = read_classifier(folder)
    extra = about["extra"]
    if lm is None:
        if "model" not in extra:
            raise WeightsError(f"{folder} does not name its model; load that and give it as `lm`")
        lm = load(extra["model"])
    if extra.get("adapter_sha256") is None:
        detach(lm.model)
    else:
        load_adapter(folder / ADAPTER, lm.model, lm.base_sha256, extra["adapter_sha256"])
    return load_classifier(folder, lm)
