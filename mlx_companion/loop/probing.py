"""Fixed questions put to the version that serves, against the answers that were accepted.

The drift monitor watches conversations, whose topics change; here the same twenty questions are
asked of each version, greedily and with the profile, so that nothing but the version differs::

    check_probes(served, store)                 # the first time: the answers are accepted
    check_probes(served, store).drift_detected  # later
"""

from __future__ import annotations

import dataclasses

from mlx_companion.loop.served import ServedModel
from mlx_companion.models.sampling import GREEDY
from mlx_companion.slm.drift import DriftMonitor
from mlx_companion.slm.drift_probes import PROBES
from mlx_companion.slm.results import DriftResult
from mlx_companion.store import Store

__all__ = ["check_probes"]

_KEY = "drift.probes"


def check_probes(served: ServedModel, store: Store, *, accept: bool = False) -> DriftResult | None:
    """Ask the questions, and compare or accept the answers.

    Args:
        served: the version that answers.
        store: where accepted answers lie, in its settings.
        accept: take the answers as those to compare with from now on.

    Returns:
        The comparison, with both versions in its details; None when the answers were accepted, as
        they are when there are none yet.
    """
    replies = served.reply_all(list(PROBES), seed=0, sampling=GREEDY)
    answers = dict(zip(PROBES, (reply.text for reply in replies), strict=True))
    stored = store.settings.get(_KEY)
    if accept or stored is None:
        store.settings.set(_KEY, {"version": served.version_id, "answers": answers})
        return None
    # N-grams alone: paired answers show more than a history does, and no second model is loaded.
    monitor = DriftMonitor(backbone=False, probe=answers.__getitem__)
    found = monitor.check_probes(stored["answers"])
    versions = {"accepted": stored["version"], "asked": served.version_id}
    return dataclasses.replace(found, details={**found.details, "versions": versions})
