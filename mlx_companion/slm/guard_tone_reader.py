"""The encoder's say on tone: tuned lower layers of it read the sentences that may be cheer.

N-grams know the cheer that they have seen. What praise means, in words of every day, shows in the
hidden states of a sentence encoder, after a low-rank update of its lower layers. It costs a
thousand times more, so it reads only what the n-grams do not find harmless, and each sentence
once::

    reading = ToneReading.of_pack(pack)           # None: a pack without it
    reading.logits(["Your socks deserve a museum of their own."])      # None: no encoder here

The encoder is opened where it is on this disk, at the first sentence that needs it; it is never
fetched for this (`prepare` of the guard does that, when asked).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_companion.errors import SLMError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.bert_rows import BertRows
from mlx_companion.slm.encoder_files import cached_encoder, fetch_encoder, open_encoder
from mlx_companion.slm.linear import Calibration
from mlx_companion.slm.tuned_encoder import head_logits, stored

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mlx_companion.slm.packs import Pack

# Of one sentence; longer ones are cut.
MOST_TOKENS = 64
# Of one reply, the likeliest ones first.
MOST_SENTENCES, MOST_TOKENS_OF_REPLY = 8, 80
_KEPT = 1024

_log = get_logger(__name__)


class ToneReading:
    """Reads sentences with the encoder. Safe between threads.

    Args:
        settings: `sha256` of the encoder, `layers`, `gate`, `share`, `slope`, `offset` and
            `threshold`.
        arrays: of the pack: the update and the head.

    Attributes:
        gate: logit of the n-grams below which a sentence is not read.
        share: of the n-grams' logit in the sum with the encoder's.
        calibration: from that sum to a probability.
        threshold: at and above which a sentence cheers.

    Raises:
        SLMError: a setting or an array is missing.
    """

    def __init__(self, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        try:
            self._sha256, self._layers = str(settings["sha256"]), int(settings["layers"])
            self.gate, self.share = float(settings["gate"]), float(settings["share"])
            self.calibration = Calibration(settings["slope"], settings["offset"])
            self.threshold = float(settings["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise SLMError(f"the pack's settings of tone do not fit ({error!r})") from error
        self._update, self._head = stored(arrays)
        self._lock = threading.Lock()
        self._looked = False
        self._opened: tuple[Tokenizer, BertRows] | None = None
        self._known: OrderedDict[str, float] = OrderedDict()

    @classmethod
    def of_pack(cls, pack: Pack) -> ToneReading | None:
        """The reading of a pack; None when its tone goes by n-grams alone.

        Raises:
            SLMError: its arrays do not fit.
        """
        settings = pack.settings.get("tone", {}).get("encoder")
        return None if settings is None else cls(settings, pack.arrays)

    @property
    def degraded(self) -> str | None:
        """Why the encoder is not read; None when it is. Opens it."""
        if self._open() is not None:
            return None
        return "the encoder that hears cheer is not on this disk; n-grams judge tone alone"

    def fetch(self) -> None:
        """Have the encoder on this disk; the lack of it is no error."""
        fetch_encoder("tone is judged")
        with self._lock:
            self._looked = self._opened is not None

    def logits(self, sentences: Sequence[str]) -> np.ndarray | None:
        """Logits (N,) of sentences; None where there is no encoder."""
        opened = self._open()
        if opened is None:
            return None
        with self._lock:
            missing = [one for one in dict.fromkeys(sentences) if one not in self._known]
        found = dict(zip(missing, self._read(opened, missing), strict=True))
        with self._lock:
            found |= {one: self._known[one] for one in sentences if one in self._known}
            self._known.update(found)
            for one in sentences:
                self._known.move_to_end(one)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return np.array([found[one] for one in sentences])

    def chosen(self, logits: np.ndarray, sentences: Sequence[str]) -> list[int]:
        """Which sentences of a reply are read: the likeliest that are not plainly harmless.

        Args:
            logits: (N,) of the n-grams.
            sentences: N of them; letters count for the length.
        """
        order = [int(i) for i in np.argsort(-logits, kind="stable") if logits[i] >= self.gate]
        taken: list[int] = []
        left = MOST_TOKENS_OF_REPLY
        for at in order[:MOST_SENTENCES]:
            # About four letters to a token, and two around them.
            left -= min(MOST_TOKENS, len(sentences[at]) // 4 + 2)
            if left < 0 and taken:
                break
            taken.append(at)
        return taken

    def _read(self, opened: tuple[Tokenizer, BertRows], sentences: list[str]) -> list[float]:
        tokenizer, rows = opened
        if not sentences:
            return []
        states = rows([one.ids for one in tokenizer.encode_batch(sentences)])
        return [float(logit) for logit in head_logits(states, self._head)]

    def _open(self) -> tuple[Tokenizer, BertRows] | None:
        with self._lock:
            if not self._looked:
                self._opened, self._looked = self._found(), True
            return self._opened

    def _found(self) -> tuple[Tokenizer, BertRows] | None:
        folder = cached_encoder(self._sha256)
        if folder is None:
            return None
        try:
            tokenizer, rows = open_encoder(folder, self._layers, self._update)
            if len(self._head) != 2 * rows.width + 1:
                raise SLMError("the head is for an encoder of another width")
        except SLMError as error:
            _log.warning("tone is judged without the encoder: %s", error)
            return None
        tokenizer.enable_truncation(max_length=min(MOST_TOKENS, rows.places))
        return tokenizer, rows
