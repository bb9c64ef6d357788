"""The sections of a round's report, one module for each group of them.

    markup.py   elements and escaping, the one place where text becomes HTML
    style.py    the style sheet and its two palettes, light and dark
    parts.py    building blocks that the sections share
    summary.py  headline, badge and key figures
    quality.py  rules, judges, topics, relevance; scales tried and calibration
    making.py   where the training rows came from, and the loss
    replies.py  replies side by side
    record.py   time, machine, versions, settings

A section is a function of the report dictionary that returns markup, or None when the
report holds nothing for it. `loop/report.py` puts them together.
"""
