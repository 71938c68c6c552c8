"""The look of a run's report: one style sheet, for light and dark screens and for paper."""

from tessera.look import DARK, LIGHT, variables

STYLE = f"""
:root {{ color-scheme: light dark; {variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}
"""
STYLE += """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0 0 6px; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 6px; }
p { margin: 4px 0 12px; }
.dim, .legend, figcaption { color: var(--dim); font-size: 14px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 22px 24px; margin:
  18px 0; }
header { margin-bottom: 22px; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 3px; }
header p.links { font-size: 14px; margin: 0 0 10px; }
td .status { margin-left: 0; padding: 0 8px; font-size: 12px; vertical-align: 0; }
header p { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; background:
  var(--rule); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.tiles div { background: var(--card); padding: 14px 18px; }
.tiles b { display: block; font-size: 24px; font-weight: 650; white-space: nowrap; line-height: 1.25;
  font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.tiles div:first-child b { color: var(--accent); }
.tiles span { color: var(--dim); font-size: 13px; }
.status { display: inline-block; font-size: 13px; border-radius: 99px; padding: 1px 11px; border: 1px solid; color:
  var(--good); vertical-align: 5px; margin-left: 10px; letter-spacing: 0; font-weight: 500; }
.status.open { color: var(--warn); }
h3 .status { vertical-align: 0; margin-left: 4px; padding: 0 8px; font-size: 12px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12.5px; fill: var(--dim); }
svg text.name, svg text.value { fill: var(--ink); font-size: 15px; }
svg text.value { font-variant-numeric: tabular-nums; font-weight: 600; }
.grid { stroke: var(--rule); fill: none; }
.axis { stroke: var(--dim); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.accent { stroke: var(--accent); }
.line.second { stroke: var(--second); }
.line.faint { stroke: var(--faint); stroke-width: 1.2; }
.line.ink { stroke: var(--ink); }
.line.warn { stroke: var(--warn); stroke-width: 1.5; stroke-dasharray: 6 4; }
circle.accent, rect.accent { fill: var(--accent); }
circle.second, rect.second { fill: var(--second); }
rect.faint { fill: var(--faint); }
circle.faint { fill: var(--faint); }
circle.ink, rect.ink { fill: var(--ink); }
circle.kept { fill: var(--good); stroke: var(--card); stroke-width: 2; r: 6.5px; }
.legend span { margin-right: 20px; white-space: nowrap; }
.legend i { display: inline-block; width: 16px; height: 3px; border-radius: 2px; margin-right: 7px; vertical-align:
  4px; }
i.accent { background: var(--accent); }
i.second { background: var(--second); }
i.faint { background: var(--faint); }
i.ink { background: var(--ink); }
i.kept { background: var(--good); }
i.warn { background: var(--warn); }
.band { fill: var(--faint); opacity: .35; }
.band.accent { fill: var(--accent); opacity: .16; }
.band.second { fill: var(--second); opacity: .16; }
.band.ink { fill: var(--ink); opacity: .12; }
i.band { background: var(--faint); height: 10px; vertical-align: 0; opacity: .6; }
i.band.accent { background: var(--accent); opacity: .25; }
i.band.second { background: var(--second); opacity: .25; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 20px 26px; }
.two > * { min-width: 0; }
svg + .two { margin-top: 16px; }
.two.half { grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 20px 18px; }
.three > * { min-width: 0; }
.drawn { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 20px 18px; }
.drawn img { width: 100%; image-rendering: pixelated; border-radius: 6px; }
.drawn figcaption { font-weight: 400; font-size: 13px; color: var(--dim); }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: 4px; color: var(--ink); }
pre { background: var(--code); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; margin: 0;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, "SF Mono", Menlo,
  Consolas, "DejaVu Sans Mono", monospace; }
pre .prompt { color: var(--dim); }
pre .made { color: var(--accent); font-weight: 500; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.pair { margin-top: 20px; }
.pair .two { margin-top: 6px; }
.pair p.dim { margin: 4px 0 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th { text-align: left; color: var(--dim); font-weight: 500; font-size: 13px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td:last-child, th:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--dim); font-size: 14px; margin-bottom: 8px; }
section.warnings { background: var(--warn-ground); }
section.warnings ul { margin: 6px 0 0; padding-left: 20px; }
@media (max-width: 640px) { section { overflow-x: auto; } section > svg { min-width: 600px; } main { padding: 24px
  12px; } section { padding: 18px 16px; } }
@media print { section { break-inside: avoid; } body { background: #fff; } }
"""
