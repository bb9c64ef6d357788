"""The judges of the loop: what makes a reply good, each part with a measure and a reason.

base        what a judge is; `Panel` runs several
style       rules of the profile, cut-off replies, echoes, stock sentences
relevance   is it about the prompt: sentence encoder, and likelihood under the base
feedback    what the person disliked; samples that repeat
"""

from mlx_companion.loop.judges.base import Candidate, Judge, Panel, Score, Verdict
from mlx_companion.loop.judges.feedback import DuplicateJudge, FeedbackJudge
from mlx_companion.loop.judges.relevance import (
    Calibration,
    LikelihoodJudge,
    RelevanceJudge,
    calibrate,
    information_gain,
    separation,
    similarity,
)
from mlx_companion.loop.judges.style import (
    EchoJudge,
    StockJudge,
    StyleJudge,
    TruncationJudge,
    normalized,
)

__all__ = [
    "Calibration",
    "Candidate",
    "DuplicateJudge",
    "EchoJudge",
    "FeedbackJudge",
    "Judge",
    "LikelihoodJudge",
    "Panel",
    "RelevanceJudge",
    "Score",
    "StockJudge",
    "StyleJudge",
    "TruncationJudge",
    "Verdict",
    "calibrate",
    "information_gain",
    "normalized",
    "separation",
    "similarity",
]
