"""How a report looks: its style sheet. In: nothing. Out: CSS text, without any address.

Hues are those that people with the common kinds of colour blindness tell apart; text keeps a contrast of 4.5 to 1 on
paper and on dark.
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fefefe; --ink: #1c2126; --soft: #59626b; --faint: #8a9199;
  --rule: #dfe3e6; --band: #f4f6f7; --blue: #0071b2; --orange: #d45e00; --cell: #0071b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e6e9eb; --soft: #a4adb5; --faint: #767f88;
  --rule: #31373d; --band: #1e2327; --blue: #5ab4ea; --orange: #f0954a; --cell: #3d97d2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans",
  sans-serif; overflow-wrap: anywhere; }
main, header, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 1.6rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, caption, figcaption, dt { color: var(--soft); font-size: .88rem; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; }
a { color: var(--blue); text-underline-offset: .2em; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--orange); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.1rem 0;
  padding: 0; }
.cards > div { background: var(--band); border-radius: .5rem; padding: .7rem .9rem; }
.cards dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.cards dd + dd { font-size: .82rem; font-weight: 400; color: var(--soft); line-height: 1.35; }
.note { border-left: 3px solid var(--orange); padding: .1rem 0 .1rem .8rem; margin: .7rem 0; max-width: 46rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem 2rem;
  align-items: start; }
figure { margin: .8rem 0; min-width: 0; } figure svg { display: block; width: 100%; height: auto; max-width: 34rem; }
.wide figure svg { max-width: none; min-width: 38rem; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; overflow-wrap: normal; } tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 6rem; }
td.n, th.n { text-align: right; white-space: nowrap; padding-left: .5rem; } tr.here > * { font-weight: 600; }
code, pre, td.code { font: .84rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
td.code { min-width: 11rem; }
pre { background: var(--band); padding: .8rem; border-radius: .5rem; overflow-x: auto; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--blue); }
ul { padding-left: 1.2rem; margin: .3rem 0 .8rem; } footer { padding: 1.4rem 1.1rem 3rem; }
@media (max-width: 34rem) { body { font-size: 15px; } .cards { grid-template-columns: 1fr 1fr; }
  table { font-size: .84rem; } th, td { padding-right: .45rem; } td.n, th.n { padding-left: .1rem; }
  tbody th { min-width: 4.5rem; } }
@media print { nav, .skip { display: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
