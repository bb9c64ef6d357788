"""The texts that come with the context tracker: its lexicon, statements and training sentences.

They lie in `data/tracker_training`. The lexicon is in every pack as well; from here it is read when
a pack is made, and when rules alone have to do::

    written("lexicon"); written("statements"); written("senses")
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from mlx_companion.errors import SLMError


def written(name: str) -> str:
    """The text "lexicon", "statements", "senses", "pairs", "depth" or "topics".

    Raises:
        SLMError: it is missing from the installation.
    """
    folder = Path(str(resources.files("mlx_companion.slm"))) / "data" / "tracker_training"
    ending = "yaml" if name == "statements" else "txt"
    try:
        return (folder / f"{name}.{ending}").read_text("utf-8")
    except OSError as error:
        raise SLMError(
            f"the tracker's text '{name}' is missing; install the package again"
        ) from error
