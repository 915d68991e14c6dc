"""The report's page, as a Jinja template that needs no file beside it."""

STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --soft: #5b6472; --page: #fff;
  --card: #f5f6f8; --line: #d9dde3; --keep: #00734f; --other: #b04a00; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ec; --soft: #a3abb8; --page: #16181d; --card: #20242b;
    --line: #3a404a; --keep: #4fd0a5; --other: #f0a05a; --link: #7db8f5; }
  figure img { filter: brightness(.9); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 70rem; color: var(--text);
  background: var(--page); font: 16px/1.5 system-ui, sans-serif; }
a { color: var(--link); }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; margin: 3rem 0 .2rem; padding-top: 1rem; border-top: 2px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
h4 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; }
nav ul { margin: .3rem 0; padding-left: 1.2rem; columns: 18rem; }
.soft { color: var(--soft); font-size: .9rem; }
.sources { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; margin: .3rem 0; }
.sources summary { font-weight: normal; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0 .4rem; }
.tile { background: var(--card); border-radius: .5rem; padding: .5rem .9rem; }
.tile b { display: block; font-size: 1.15rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .35rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: pre; }
td.long { white-space: pre-line; min-width: 18rem; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.missing { border-left: 4px solid var(--other); background: var(--card);
  padding: .4rem 1rem; margin: 1rem 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr));
  gap: 1rem; margin: .8rem 0; align-items: start; }
figure { margin: 0; background: var(--card); border-radius: .5rem; padding: .8rem; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto .4rem;
  background: #fff; border-radius: .3rem; }
figcaption { font-size: .9rem; }
.controls { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: end; margin: .8rem 0; }
.controls label { display: flex; flex-direction: column; font-size: .8rem; color: var(--soft); }
.controls [hidden] { display: none; }
select, input, button { font: inherit; font-size: .9rem; color: var(--text); background: var(--card);
  border: 1px solid var(--line); border-radius: .35rem; padding: .3rem .5rem; max-width: 100%; }
button:enabled { cursor: pointer; }
button:disabled { opacity: .5; }
.turn { display: flex; gap: .7rem; align-items: center; margin: .6rem 0; }
.rollout { border: 1px solid var(--line); border-radius: .5rem; margin: .8rem 0;
  padding: .7rem .9rem; overflow-wrap: anywhere; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: .7rem; }
.texts > div { min-width: 0; }
pre { background: var(--card); border-radius: .4rem; padding: .6rem .8rem; margin: .2rem 0;
  font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 22rem; overflow-y: auto; }
.keep { color: var(--keep); font-weight: 600; }
.other { color: var(--other); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; }
"""

PAGE = """\
{% macro sources(names) %}
{% if names|length > 4 %}<details class="sources"><summary>from {{ names|length }} files</summary>
{{- names|join(", ") }}</details>
{% elif names %}<p class="sources">from {{ names|join(", ") }}</p>{% endif %}
{% endmacro %}
{% macro show_table(block, title) %}
{% if block.title != title %}<h4>{{ block.title }}</h4>{% endif %}
{% if block.caption %}<p class="soft">{{ block.caption }}</p>{% endif %}
{% set numeric = block.text|to_right %}
<div class="scroll"><table>
<thead><tr>{% for column in block.text.columns %}
<th{% if numeric[loop.index0] %} class="number"{% endif %}>{{ column }}</th>
{%- endfor %}</tr></thead>
<tbody>{% for row in block.text.rows %}
<tr>{% for cell in row %}
<td{% if numeric[loop.index0] %} class="number"{% elif cell is long %} class="long"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>{% endfor %}
</tbody></table></div>
{% for note in block.notes %}<p class="soft">{{ note }}</p>{% endfor %}
{{ sources(block.sources) }}
{% endmacro %}
{% macro show_picture(block) %}
<figure{% if block.is_wide %} class="wide"{% endif %}>
<img src="data:image/png;base64,{{ block.png|base64 }}" alt="{{ block.title }}">
<figcaption><b>{{ block.title }}.</b> {{ block.caption }}{{ sources(block.sources) }}</figcaption></figure>
{% endmacro %}
{% macro show(kind, blocks, title) %}
{% if kind == "Picture" %}<div class="plots">{% for block in blocks %}{{ show_picture(block) }}{% endfor %}</div>
{% else %}{% for block in blocks %}
{% if kind == "Table" %}{{ show_table(block, title) }}
{% elif kind == "Tiles" %}<div class="tiles">{% for tile in block.tiles %}
<div class="tile"><span class="soft">{{ tile.title }}</span> <b>{{ tile.text }}</b></div>
{% endfor %}</div>{{ sources(block.sources) }}
{% elif kind == "Sentence" %}<p>{{ block.text }}</p>{{ sources(block.sources) }}
{% else %}<details><summary>{{ block.title }}</summary><pre>{{ block.text }}</pre>
{{ sources(block.sources) }}</details>{% endif %}
{% endfor %}{% endif %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'sha256-
{{- style|sha256 }}'; script-src 'sha256-{{ script|sha256 }}'; base-uri 'none'; form-action 'none'">
<title>{{ title }}</title>
<style>{{ style|trusted }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if contents|length > 1 %}
<nav><ul>{% for number, name in contents %}<li><a href="#{{ number }}">{{ name }}</a></li>{% endfor %}</ul></nav>
{% endif %}
{% for part in parts %}
{% if parts|length > 1 %}<h2 id="part-{{ loop.index }}">{{ part.title }} ({{ part.kind }})</h2>{% endif %}
{% set number = loop.index %}
{% if part.subtitle %}<p class="soft">{{ part.subtitle }}</p>{% endif %}
{% if part.missing %}
<div class="missing"><p>What is not here:</p>
<ul>{% for line in part.missing %}<li>{{ line }}</li>{% endfor %}</ul></div>
{% endif %}
{% for section in part.sections %}
<h3 id="part-{{ number }}-{{ loop.index }}">{{ section.title }}</h3>
{% for kind, blocks in section.groups %}{{ show(kind, blocks, section.title) }}{% endfor %}
{% endfor %}
{% endfor %}
{% if packed.num_recorded %}
<h3 id="rollouts">Browse the rollouts</h3>
{% if packed.notice %}<div class="missing"><p>{{ packed.notice }}</p></div>{% endif %}
<noscript><p>The rollouts are shown by a script inside this page, and scripts are off.</p></noscript>
<div class="controls">
<label>run <select id="by-run"></select></label>
<label>verdict <select id="by-verdict"></select></label>
<label>reason <select id="by-reason"></select></label>
<label>words <input id="by-words" type="search" placeholder="in any text, or an example id"></label>
<label>order <select id="by-order">
<option value="newest">step, newest first</option><option value="oldest">step, oldest first</option>
<option value="longest">longest first</option><option value="shortest">shortest first</option>
<option value="likely">highest mean log-prob first</option>
<option value="unlikely">lowest mean log-prob first</option>
<option value="surprising">most surprising first</option>
<option value="leaking">most leak first</option></select></label>
</div>
<div class="turn"><button class="rollout-back">back</button><span class="rollout-page"></span>
<button class="rollout-next">next</button><b id="rollout-count" aria-live="polite"></b></div>
<div id="rollout-list"></div>
<div class="turn"><button class="rollout-back">back</button><span class="rollout-page"></span>
<button class="rollout-next">next</button></div>
{{ sources(packed_sources) }}
<script type="application/json" id="rollout-data">{{ packed.text|trusted }}</script>
<script>{{ script|trusted }}</script>
{% endif %}
</body>
</html>
"""
