"""The style sheet of the page."""

from __future__ import annotations

from cudd_core.reporting import theme

CSS = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f5f6f7; color: {theme.INK}; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }}
main {{ max-width: 1000px; margin: 0 auto; padding: 40px 24px 64px; }}
h1 {{ margin: 0 0 8px; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }}
h2 {{ margin: 0 0 4px; font-size: 1.2rem; }}
h3 {{ margin: 24px 0 6px; font-size: 0.95rem; overflow-wrap: anywhere; }}
h3 + figure {{ margin-top: 4px; }}
p {{ margin: 0 0 14px; max-width: 72ch; }}
.eyebrow {{ margin: 0 0 2px; color: {theme.ACCENT}; font-size: 0.85rem; font-weight: 600; }}
.note, figcaption, dt, dd small {{ color: {theme.MUTED}; font-size: 0.88rem; }}
section {{ margin-top: 20px; padding: 24px 28px 26px; background: #fff; border: 1px solid {theme.RULE};
  border-radius: 10px; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 24px 0 0; }}
.tile {{ padding: 16px 20px 14px; background: #fff; border: 1px solid {theme.RULE}; border-radius: 10px; }}
.tile dd {{ margin: 0; }}
.tile .figure {{ display: block; font-size: 1.75rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }}
.tile.main .figure {{ color: {theme.ACCENT}; }}
.tile.below .figure {{ color: #a5502b; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; min-width: 50%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 7px 22px 7px 0; text-align: left; vertical-align: top; border-bottom: 1px solid {theme.RULE}; }}
th {{ color: {theme.MUTED}; font-weight: 600; font-size: 0.85rem; vertical-align: bottom; }}
th.number, td.number {{ text-align: right; padding: 7px 0 7px 22px; }}
th.number {{ max-width: 17ch; }}
td.number {{ white-space: nowrap; }}
.scroll + .note {{ margin-top: 10px; }}
section > :last-child {{ margin-bottom: 0; }}
td.number small {{ margin-left: 8px; }}
td small {{ color: {theme.MUTED}; font-size: 0.85em; }}
td small.below {{ display: block; max-width: 44ch; white-space: normal; }}
.swatch {{ display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 50%; }}
.bar {{ display: inline-block; width: 150px; height: 8px; background: #eceff1; border-radius: 4px; overflow: hidden; }}
.bar i {{ display: block; height: 100%; background: {theme.ACCENT}; }}
figure {{ margin: 16px 0 0; }}
figure img {{ display: block; max-width: 100%; height: auto; }}
.columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 8px 40px; }}
.columns td {{ white-space: nowrap; }}
dl.facts {{ display: grid; align-content: start; grid-template-columns: max-content 1fr; gap: 6px 20px;
  align-items: baseline; margin: 12px 0 0; }}
dl.facts dd {{ margin: 0; font-size: 0.95rem; overflow-wrap: anywhere; }}
code, pre {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 0.86em; }}
pre {{ margin: 10px 0 0; padding: 12px 16px; background: #f5f6f7; border-radius: 8px; overflow-x: auto; }}
details {{ margin-top: 16px; }}
summary {{ cursor: pointer; color: {theme.ACCENT}; font-size: 0.92rem; }}
a {{ color: {theme.ACCENT}; }}
@media (max-width: 560px) {{ main {{ padding: 24px 14px 40px; }} section {{ padding: 18px 16px 20px; }}
  .columns {{ grid-template-columns: 1fr; }} dl.facts {{ grid-template-columns: 1fr; gap: 0; }}
  dl.facts dd {{ margin-bottom: 8px; }} }}
@media print {{ body {{ background: #fff; }} main {{ max-width: none; padding: 0; }}
  section, .tile {{ border-color: #ccc; }} figure, tr {{ break-inside: avoid; }} }}
"""
