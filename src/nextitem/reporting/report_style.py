"""Style sheet of the HTML report, for light and dark pages, small and large screens."""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --soft: #5b6470; --line: #c9d0d8;
  --card: #f5f7f9; --hit: #d9f2e3; --hit-text: #0b5a32; --best: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e6e9ed; --soft: #9aa5b1; --line: #3a424c;
  --card: #1c2127; --hit: #143d29; --hit-text: #8ee0b2; --best: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 78rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p, ul { margin: .3rem 0 .8rem; }
ul { padding-left: 1.2rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem .38rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page);
  color: var(--text); font-weight: 600; }
td.words { white-space: normal; text-align: left; min-width: 16rem; }
th[aria-sort] { color: var(--text); }
th button { all: unset; cursor: pointer; font: inherit; color: inherit; }
th button { text-decoration: underline dotted var(--line) 2px; text-underline-offset: 3px; }
th button:hover { text-decoration-color: var(--soft); }
th[aria-sort="ascending"] button::after { content: " ↑"; }
th[aria-sort="descending"] button::after { content: " ↓"; }
:focus-visible, th button:focus-visible { outline: 2px solid var(--best); outline-offset: 2px; }
nav { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .9rem; }
a { color: var(--best); }
section { scroll-margin-top: 1rem; }
h4 { font-size: .95rem; margin: 0 0 .3rem; }
h4 .soft { font-weight: 400; font-size: .85rem; }
.grid.summary { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.summary ul { margin: 0; padding-left: 1.1rem; }
.summary li { margin: .35rem 0; }
.bar { position: relative; min-width: 8rem; }
.bar span { position: absolute; inset: .25rem auto .25rem 0; background: var(--hit); z-index: -1; }
small { color: var(--soft); font-size: .75rem; white-space: nowrap; }
.lists { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(13rem, 1fr); gap: .6rem; overflow-x: auto;
  margin: .6rem 0 1.6rem; padding-bottom: .4rem; scroll-snap-type: x proximity; }
.lists .card { scroll-snap-align: start; }
.best { color: var(--best); font-weight: 700; }
.between { display: block; color: var(--soft); font-size: .75rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
h3 + .grid { margin-bottom: 1.4rem; }
.grid.narrow { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.card { background: var(--card); border-radius: .6rem; padding: .9rem; min-width: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; list-style: none; font-size: .9rem; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .35rem;
  vertical-align: -.05rem; }
.mark { display: inline-block; width: 1.1rem; }
figure { margin: 0; min-width: 0; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.cell { stroke: var(--page); stroke-width: .6; fill-opacity: .75; }
.code { text-anchor: middle; dominant-baseline: central; font-weight: 700; fill: #fff; stroke: #0009;
  stroke-width: 3px; paint-order: stroke; pointer-events: none; }
ol { margin: 0; padding-left: 1.5rem; font-size: .9rem; }
li { margin: .1rem 0; }
.hit { background: var(--hit); color: var(--hit-text); border-radius: .3rem; padding: 0 .3rem; font-weight: 600; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--soft); }
@media print {
  :root { color-scheme: light; --page: #ffffff; --text: #1b1f24; --soft: #444444; --line: #c9d0d8; --card: #ffffff;
    --hit: #d9f2e3; --hit-text: #0b5a32; --best: #0b4f99; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, th button::after { display: none; }
  .wide, .lists { overflow: visible; }
  .lists { grid-auto-flow: row; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  .card { border: 1px solid var(--line); }
  .card, tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
