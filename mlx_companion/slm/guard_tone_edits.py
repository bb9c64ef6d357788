from __future__ import annotations


def mend_tone(revision, draft, detector, rewriter):
    pass
