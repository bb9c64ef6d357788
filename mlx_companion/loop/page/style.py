"""The report's style sheet: two palettes, system fonts, and room to read at 360 pixels and up.

Teal is the new version, gray the old one, rust what got worse; each also differs in shape or
in words. Text keeps a contrast of 4.5:1 and marks of 3:1 on their grounds (tested). Print
uses the light palette.
"""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "SHEET"]

LIGHT = {
    "paper": "#f8f7f4", "card": "#ffffff", "ink": "#1d2128", "muted": "#5a606c",
    "line": "#e4e1da", "grid": "#ebe9e3",
    "before": "#737b8b", "after": "#0a7167", "worse": "#b4450e", "wait": "#7d5900",
    "after-soft": "#d7ece8", "worse-soft": "#fae5d8", "wait-soft": "#f5ebcf",
    "mid": "#5fb0a6", "pale": "#c9ced6", "band": "#c9e5e0",
}  # fmt: skip
DARK = {
    "paper": "#121418", "card": "#1a1d23", "ink": "#e6e8ec", "muted": "#a1a8b5",
    "line": "#2c3039", "grid": "#262a32",
    "before": "#949db0", "after": "#45c4b2", "worse": "#f2925a", "wait": "#e2b74d",
    "after-soft": "#15332f", "worse-soft": "#3b2417", "wait-soft": "#342b13",
    "mid": "#23806f", "pale": "#474e5b", "band": "#1d4a43",
}  # fmt: skip


def _palette(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


_PAGE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-print-color-adjust: exact;
  print-color-adjust: exact;
}
main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.5rem; }
main { padding-top: 3.5rem; }
footer { padding-block: 3rem; color: var(--muted); font-size: .8125rem; }
h1, h2, h3, h4, p, ul, ol, dl, dd { margin: 0; padding: 0; }
h1 {
  font-size: clamp(1.75rem, 4.6vw, 2.75rem); line-height: 1.15; font-weight: 650;
  letter-spacing: -.022em; max-width: 24em; text-wrap: balance;
}
h1 span { color: var(--muted); font-weight: 500; display: block; }
h2 { font-size: 1.375rem; line-height: 1.3; font-weight: 650; letter-spacing: -.012em; }
h3 { font-size: .9375rem; line-height: 1.4; font-weight: 600; }
h4 { font-size: .75rem; font-weight: 600; color: var(--muted); }
small { font-size: .8125em; color: var(--muted); font-weight: 400; }
code { font: .875em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
section { margin-top: 3.5rem; scroll-margin-top: 1rem; }
section > * + * { margin-top: 1.25rem; }
section > .lead { margin-top: .25rem; color: var(--muted); max-width: 44em; }
main > header > * + * { margin-top: 1rem; }
main > header > ul { list-style: none; max-width: 44em; }
main > header .panel { margin-top: 2rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: 1.5rem; font-size: .875rem; }
a { color: var(--after); text-underline-offset: .2em; text-decoration-thickness: 1px; }
:focus-visible, input:focus-visible + label {
  outline: 2px solid var(--after); outline-offset: 2px;
}
.sr {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap;
}
.above {
  display: flex; flex-wrap: wrap; align-items: center; gap: .375rem 1rem;
  color: var(--muted); font-size: .875rem;
}
.badge { padding: .1875rem .75rem; border-radius: 99px; font-weight: 600; font-size: .8125rem; }
.badge.up { background: var(--after-soft); color: var(--after); }
.badge.down { background: var(--worse-soft); color: var(--worse); }
.badge.wait { background: var(--wait-soft); color: var(--wait); }
.panel, .tile, .reply, details {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
.panel { padding: 1.25rem 1.5rem; min-width: 0; }
.panel > * + * { margin-top: .875rem; }
.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.25rem;
}
.three { grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.note { color: var(--muted); font-size: .8125rem; }
.alarm { color: var(--worse); }
.up { color: var(--after); }
.down { color: var(--worse); }
"""

_FIGURES = """
.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr));
  gap: 1rem;
}
.tile { padding: 1.125rem 1.375rem; display: flex; flex-direction: column; gap: .375rem; }
.tile h3 { color: var(--muted); font-weight: 500; font-size: .875rem; }
.tile .mark { margin-top: auto; padding-top: .25rem; }
.tile.failed { border-color: var(--worse); }
.value { font-size: 1.625rem; line-height: 1.2; font-weight: 500; letter-spacing: -.015em; }
.value b { font-weight: 650; }
.value .old, .value .arrow { color: var(--muted); font-weight: 400; }
.mark { font-size: .8125rem; font-weight: 600; white-space: nowrap; }
.mark.pass { color: var(--after); }
.mark.fail { color: var(--worse); }
.facts { display: grid; gap: .25rem; font-size: .875rem; }
.facts > div { display: flex; justify-content: space-between; gap: 1.5rem; }
.facts dt { color: var(--muted); }
.facts dd { text-align: right; overflow-wrap: anywhere; min-width: 0; }
.wide .facts { display: flex; flex-wrap: wrap; gap: .25rem 2rem; }
.wide .facts > div { gap: .5rem; }
.flow {
  list-style: none; display: grid; grid-template-columns: repeat(4, 1fr);
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
.flow li { padding: 1.125rem 1.5rem; display: flex; flex-direction: column; position: relative; }
.flow li + li { border-left: 1px solid var(--line); }
.flow li + li::before {
  content: "→"; position: absolute; left: -.75rem; top: 50%; width: 1.5rem; height: 1.5rem;
  margin-top: -.75rem; border-radius: 50%; background: var(--card); color: var(--muted);
  border: 1px solid var(--line); text-align: center; line-height: 1.375rem; font-size: .8125rem;
}
.flow b { font-size: 1.625rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; }
.flow span { font-size: .875rem; }
"""

_CHARTS = """
svg { display: block; overflow: visible; }
svg text { font-size: 11.5px; fill: var(--muted); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th { font-weight: 400; text-align: left; }
thead th { color: var(--muted); font-size: .75rem; padding-bottom: .25rem; vertical-align: bottom; }
.chart td, .chart th { padding: 0; line-height: 1.25; white-space: nowrap; }
.chart tbody th[scope=row] { padding-right: 1rem; width: 1%; }
.chart td:not(.track), .chart thead th:nth-child(n+3) {
  text-align: right; padding-left: 1.25rem; width: 1%;
}
.chart .track { padding: 0 1rem 0 .5rem; }
.chart svg { width: 100%; }
.dumbbells tbody tr:hover { background: color-mix(in srgb, var(--line) 35%, transparent); }
.dumbbells small { margin-left: .25rem; }
.new { font-weight: 600; }
.plain td, .plain th {
  padding: .375rem .75rem .375rem 0; vertical-align: top; border-top: 1px solid var(--line);
}
.plain thead th { border-top: 0; }
.plain .chosen { font-weight: 600; color: var(--after); }
.plain .chosen th { font-weight: 600; }
.grid { stroke: var(--grid); }
.tick { stroke: var(--muted); }
circle.before, circle.after { stroke-width: 2; }
circle.before { fill: var(--card); stroke: var(--before); }
circle.after { fill: var(--after); }
circle.after.down { fill: var(--worse); }
.way { stroke: var(--before); stroke-width: 3; opacity: .55; }
.way.up { stroke: var(--after); }
.way.down { stroke: var(--worse); stroke-dasharray: 3 3; }
.band { fill: var(--band); rx: 4px; }
.share svg, .stack { width: 100%; }
.share div {
  display: flex; justify-content: space-between; color: var(--muted); font-size: .75rem;
}
.keys, .legend {
  display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; font-size: .875rem; list-style: none;
}
.key, .legend li { display: inline-flex; align-items: center; gap: .4375rem; }
.legend .none { color: var(--muted); }
.swatch { flex: none; }
.whole { display: grid; gap: .625rem; }
.stack rect { stroke: var(--card); stroke-width: 2; }
.bar { fill: var(--before); }
.pair-good, .row-0 { fill: var(--after); }
.pair-improved, .row-3 { fill: var(--mid); }
.pair-worse { fill: var(--worse); }
.pair-bad, .row-4 { fill: var(--pale); }
.row-1 { fill: var(--before); }
.row-2 { fill: var(--wait); }
.row-5 { fill: var(--ink); }
.plot { width: calc(100% - 2.75rem); margin-left: 2.75rem; }
.plot .name { font-size: 11.5px; }
.plot .strong { fill: var(--ink); }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.line.train { stroke: var(--before); }
.line.valid { stroke: var(--after); stroke-width: 2.5; }
circle.train, rect.train { fill: var(--before); }
circle.valid, rect.valid { fill: var(--after); }
.area { stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.area.before { fill: var(--before); fill-opacity: .22; stroke: var(--before); }
.area.after { fill: var(--after); fill-opacity: .16; stroke: var(--after); stroke-width: 2; }
.threshold { stroke: var(--ink); stroke-dasharray: 4 3; }
.plot .broken { fill: var(--worse); font-size: 16px; text-anchor: middle; }
"""

_REPLIES = """
.group { display: grid; gap: .875rem; }
.group h3 small { margin-left: .375rem; }
.reply > header {
  padding: .875rem 1.25rem .75rem; display: flex; gap: .375rem .875rem; flex-wrap: wrap;
  align-items: baseline;
}
.reply > header .words { font-weight: 600; flex: 1 1 16rem; }
.chip {
  font-size: .75rem; color: var(--muted); border: 1px solid var(--line); border-radius: 99px;
  padding: 0 .5625rem;
}
.sides { display: grid; grid-template-columns: 1fr 1fr; border-top: 1px solid var(--line); }
.side {
  padding: .75rem 1.25rem 1rem; min-width: 0; display: flex; flex-direction: column;
  gap: .375rem;
}
.side + .side { border-left: 1px solid var(--line); }
.words {
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; font-size: .9375rem;
  line-height: 1.5;
}
.before .words { color: var(--muted); }
.words.nothing { color: var(--muted); font-style: italic; }
.about { margin-top: auto; font-size: .8125rem; color: var(--muted); }
.about > * { margin-right: .75rem; }
.reason { overflow-wrap: anywhere; min-width: 0; }
details { padding: 0 1.5rem; }
details > * + * { margin-bottom: 1.25rem; }
summary { padding: .875rem 0; font-weight: 600; font-size: .9375rem; cursor: pointer; }
summary::marker { color: var(--muted); }
.filter { display: flex; flex-wrap: wrap; gap: .5rem; }
.filter > input { position: absolute; opacity: 0; pointer-events: none; }
.filter > label {
  border: 1px solid var(--line); border-radius: 99px; padding: .1875rem .875rem;
  font-size: .8125rem; cursor: pointer;
}
.filter > input:checked + label {
  background: var(--ink); border-color: var(--ink); color: var(--card);
}
.replies { flex: 1 1 100%; display: grid; gap: .875rem; margin-top: .5rem; }
.replies .reply { background: var(--paper); }
#show-improved:checked ~ .replies > :not(.improved), #show-worse:checked ~ .replies > :not(.worse),
#show-bad:checked ~ .replies > :not(.bad), #show-good:checked ~ .replies > :not(.good) {
  display: none;
}
"""

_NARROW = """
@media (max-width: 40rem) {
  main, footer { padding-inline: 1rem; }
  main { padding-top: 2rem; }
  .panel { padding: 1rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .75rem; }
  .tile { padding: .875rem 1rem; }
  .value { font-size: 1.25rem; }
  .minor { display: none; }
  details { padding: 0 1rem; }
  .sides { grid-template-columns: 1fr; }
  .side + .side { border-left: 0; border-top: 1px dashed var(--line); }
  .flow { grid-template-columns: 1fr 1fr; }
  .flow li:nth-child(odd) { border-left: 0; }
  .flow li:nth-child(n+3) { border-top: 1px solid var(--line); }
  .flow li:nth-child(3)::before { display: none; }
  .chart td:not(.track), .chart thead th:nth-child(n+3) { padding-left: .5rem; }
  .dumbbells tr > :nth-child(5) { display: none; }
  .chart tbody th[scope=row] {
    width: 34%; padding-right: .25rem; white-space: normal; font-size: .8125rem; line-height: 1.1;
    overflow-wrap: anywhere;
  }
  .panel { overflow-x: auto; }
}
@media print {
  body { background: none; font-size: 11pt; }
  nav { display: none; }
  section { margin-top: 2rem; }
  .panel, .tile, .reply, .flow { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

SHEET = (
    f":root {{ color-scheme: light dark; {_palette(LIGHT)} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_palette(DARK)} }} }}"
    f"{_PAGE}{_FIGURES}{_CHARTS}{_REPLIES}{_NARROW}"
)
