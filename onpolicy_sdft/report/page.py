"""The report's page, as a Jinja template that needs no file beside it."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --text: #1d2129; --soft: #5b6472; --page: #fff;
  --card: #f5f6f8; --line: #d9dde3; --keep: #00734f; --other: #b04a00; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ec; --soft: #a3abb8; --page: #16181d; --card: #20242b;
    --line: #3a404a; --keep: #4fd0a5; --other: #f0a05a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 70rem; color: var(--text);
  background: var(--page); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; }
.soft { color: var(--soft); font-size: .9rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .5rem .9rem; }
.tile b { display: block; font-size: 1.15rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .35rem .55rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.missing { border-left: 4px solid var(--other); background: var(--card);
  padding: .4rem 1rem; margin: 1rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .5rem; padding: .8rem; }
figure img { width: 100%; height: auto; background: #fff; border-radius: .3rem; }
figcaption { font-size: .9rem; }
.rollout { border: 1px solid var(--line); border-radius: .5rem; margin: .8rem 0;
  padding: .7rem .9rem; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: .7rem; }
.texts > div { min-width: 0; }
pre { background: var(--card); border-radius: .4rem; padding: .6rem .8rem; margin: .2rem 0;
  font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 22rem; overflow-y: auto; }
.keep { color: var(--keep); font-weight: 600; }
.other { color: var(--other); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
{% if missing %}
<div class="missing"><p>Not in this run:</p>
<ul>{% for line in missing %}<li>{{ line }}</li>{% endfor %}</ul></div>
{% endif %}
{% if tiles %}
<div class="tiles">
{% for name, value in tiles %}<div class="tile"><span class="soft">{{ name }}</span>
<b>{{ value }}</b></div>
{% endfor %}</div>
{% endif %}
{% if table and table.rows %}
<h2>Scores</h2>
<div class="scroll"><table>
<thead><tr>{% for column in table.columns %}
<th{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ column }}</th>
{%- endfor %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr>{% for cell in row %}
<td{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endif %}
{% if kl %}<p>{{ kl }}</p>{% endif %}
{% if pictures %}
<h2>Curves</h2>
<div class="plots">
{% for picture in pictures %}
<figure><img src="data:image/png;base64,{{ picture.base64 }}" alt="{{ picture.title }}">
<figcaption><b>{{ picture.title }}.</b> {{ picture.caption }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}
{% if rollouts %}
<h2>Rollouts</h2>
<p class="soft">{{ rollouts|length }} of {{ num_rollouts }} recorded: the last of each verdict and
reason, and others spread over the run.</p>
{% for r in rollouts %}
<div class="rollout">
<p><span class="{{ 'keep' if r.verdict == 'keep' else 'other' }}">{{ r.verdict }}</span>
{%- if r.reason %} ({{ r.reason }}){% endif %}
<span class="soft">step {{ r.step }}, example {{ r.example_id }}
{%- if r.attempt %}, attempt {{ r.attempt }}{% endif %}
{%- if r.num_tokens is not none %}, {{ r.num_tokens }} tokens{% endif %}
{%- if r.logprob_mean is not none %}, mean log-prob {{ '%.2f'|format(r.logprob_mean) }} nats
{%- endif %}</span></p>
<div class="texts">
{% for name, text in r.texts %}<div><span class="soft">{{ name }}</span>
<pre>{{ text }}</pre></div>
{% endfor %}</div></div>
{% endfor %}
{% endif %}
{% if config %}
<h2>Config</h2>
<details><summary>config.yaml</summary><pre>{{ config }}</pre></details>
{% endif %}
{% if manifest %}
<h2>Manifest</h2>
<details><summary>manifest.json</summary><pre>{{ manifest }}</pre></details>
{% endif %}
</body>
</html>
"""
