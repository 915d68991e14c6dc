"use strict";
(() => {
  const [
    RUN, STEP, EXAMPLE, ATTEMPT, VERDICT, REASON, TOKENS, LOGPROB, SURPRISE, LEAK,
    PROMPT, DEMONSTRATION, ROLLOUT, TARGET,
  ] = Array.from({ length: 14 }, (_, i) => i);
  const NAMES = [[PROMPT, "prompt"], [DEMONSTRATION, "demonstration"], [ROLLOUT, "rollout"], [TARGET, "target"]];
  const PER_PAGE = 20;
  const { runs, texts, rows } = JSON.parse(document.getElementById("rollout-data").textContent);
  const find = (id) => document.getElementById(id);
  const controls = {
    run: find("by-run"), verdict: find("by-verdict"), reason: find("by-reason"),
    words: find("by-words"), order: find("by-order"),
  };
  const list = find("rollout-list"), count = find("rollout-count");
  let shown = [], page = 0;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const number = (value) => value.toLocaleString("en");
  const show = (value) => (value === null || value === "" ? "(none)" : String(value));

  function fill(select, field, name, label) {
    const found = new Map();
    for (const row of rows) found.set(row[field], (found.get(row[field]) || 0) + 1);
    const all = element("option", "", `all ${name} (${number(rows.length)})`);
    all.value = "all";
    select.append(all);
    const values = [...found.keys()].sort((a, b) => (a === b ? 0 : label(a) < label(b) ? -1 : 1));
    select.values = values;
    values.forEach((value, place) => {
      const option = element("option", "", `${label(value)} (${number(found.get(value))})`);
      option.value = String(place);
      select.append(option);
    });
    select.parentElement.hidden = values.length < 2;
  }

  const chosen = (select) => (select.value === "all" ? undefined : select.values[Number(select.value)]);

  function matching(words) {
    if (!words) return null;
    const places = new Set();
    texts.forEach((text, place) => { if (text.toLowerCase().includes(words)) places.add(place); });
    return places;
  }

  const ORDERS = {
    newest: [STEP, -1], oldest: [STEP, 1], longest: [TOKENS, -1], shortest: [TOKENS, 1],
    likely: [LOGPROB, -1], unlikely: [LOGPROB, 1], surprising: [SURPRISE, -1], leaking: [LEAK, -1],
  };

  function sort(places, order) {
    const [field, sign] = ORDERS[order];
    const known = (row) => typeof row[field] === "number";
    places.sort((a, b) => {
      const x = rows[a], y = rows[b];
      if (known(x) !== known(y)) return known(x) ? -1 : 1;
      const difference = known(x) ? sign * (x[field] - y[field]) : 0;
      return difference || (order === "newest" ? b - a : a - b);
    });
  }

  function update() {
    const words = controls.words.value.trim().toLowerCase();
    const run = chosen(controls.run), verdict = chosen(controls.verdict), reason = chosen(controls.reason);
    const found = matching(words);
    shown = [];
    rows.forEach((row, place) => {
      if (run !== undefined && row[RUN] !== run) return;
      if (verdict !== undefined && row[VERDICT] !== verdict) return;
      if (reason !== undefined && row[REASON] !== reason) return;
      if (found && !NAMES.some(([field]) => found.has(row[field]))
        && !String(row[EXAMPLE]).toLowerCase().includes(words)) return;
      shown.push(place);
    });
    sort(shown, controls.order.value);
    page = 0;
    draw();
  }

  function textOf(row, field) {
    const text = texts[row[field]];
    if (field === TARGET && text) {
      for (const [other, name] of [[ROLLOUT, "rollout"], [DEMONSTRATION, "demonstration"]]) {
        if (row[other] >= 0 && texts[row[other]].trim() === text.trim()) return `(the ${name})`;
      }
    }
    return text;
  }

  function card(row) {
    const made = element("div", "rollout");
    made.dataset.verdict = show(row[VERDICT]);
    made.dataset.reason = show(row[REASON]);
    made.dataset.tokens = show(row[TOKENS]);
    const head = element("p");
    head.append(element("span", row[VERDICT] === "keep" ? "keep" : "other", show(row[VERDICT])));
    if (row[REASON]) head.append(` (${row[REASON]})`);
    const facts = [`step ${show(row[STEP])}`, `example ${show(row[EXAMPLE])}`];
    if (runs.length > 1) facts.unshift(runs[row[RUN]]);
    if (row[ATTEMPT]) facts.push(`attempt ${row[ATTEMPT]}`);
    if (typeof row[TOKENS] === "number") facts.push(`${number(row[TOKENS])} tokens`);
    if (typeof row[LOGPROB] === "number") facts.push(`mean log-prob ${row[LOGPROB].toFixed(2)} nats`);
    if (typeof row[SURPRISE] === "number") facts.push(`surprise ${row[SURPRISE].toFixed(2)}`);
    if (typeof row[LEAK] === "number") facts.push(`leak ${row[LEAK].toFixed(2)}`);
    head.append(" ", element("span", "soft", facts.join(", ")));
    const grid = element("div", "texts");
    for (const [field, name] of NAMES) {
      if (row[field] < 0) continue;
      const box = element("div");
      box.append(element("span", "soft", name), element("pre", "", textOf(row, field)));
      grid.append(box);
    }
    made.append(head, grid);
    return made;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    const start = page * PER_PAGE, some = shown.slice(start, start + PER_PAGE);
    const of = some.length ? `, ${number(start + 1)} to ${number(start + some.length)} on this page` : "";
    count.textContent = `${number(shown.length)} of ${number(rows.length)} rollouts${of}`;
    for (const each of document.querySelectorAll(".rollout-page")) each.textContent = `page ${page + 1} of ${pages}`;
    for (const each of document.querySelectorAll(".rollout-back")) each.disabled = page === 0;
    for (const each of document.querySelectorAll(".rollout-next")) each.disabled = page + 1 >= pages;
    list.replaceChildren(...some.map((place) => card(rows[place])));
  }

  const turn = (by) => () => {
    page += by;
    draw();
    find("rollouts").scrollIntoView();
  };

  fill(controls.run, RUN, "runs", (value) => runs[value]);
  fill(controls.verdict, VERDICT, "verdicts", show);
  fill(controls.reason, REASON, "reasons", show);
  for (const each of [controls.run, controls.verdict, controls.reason, controls.order]) {
    each.addEventListener("change", update);
  }
  controls.words.addEventListener("input", update);
  for (const each of document.querySelectorAll(".rollout-back")) each.addEventListener("click", turn(-1));
  for (const each of document.querySelectorAll(".rollout-next")) each.addEventListener("click", turn(1));
  update();
})();
