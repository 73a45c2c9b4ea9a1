(() => {
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const OUTCOMES = ["RESOLVED", "DISENGAGED", "MAX_TURNS", "FAILED"];
const WORDS = { RESOLVED: "resolved", DISENGAGED: "disengaged", MAX_TURNS: "max turns", FAILED: "failed", solved: "solved", unsolved: "not solved" };

/* ---------- making elements: text only ever becomes text ---------- */
function fill(node, attributes, kids) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const kid of kids.flat(Infinity)) if (kid !== null && kid !== undefined && kid !== "") node.append(kid);
  return node;
}
const el = (tag, attributes, ...kids) => fill(document.createElement(tag), attributes, kids);
const draw = (tag, attributes, ...kids) => fill(document.createElementNS(SVG, tag), attributes, kids);
const several = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;
const fixed = (x, digits = 3) => (x === null || x === undefined ? "–" : Number.isInteger(x) ? String(x) : x.toFixed(digits).replace("-", "−"));
const percent = (x) => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(1)} %`);
const tag = (text, kind = "") => el("span", { class: `tag ${kind}` }, el("bdi", {}, text));
const outcomeTag = (outcome) => tag(WORDS[outcome] || outcome, outcome);

/* A text, or the number of its words where texts are left out. */
function words(text, element = "p", kind = "") {
  if (typeof text !== "number") return el(element, { class: kind || null, dir: "auto" }, text === null || text === undefined ? "–" : text);
  return el(element, { class: `${kind} left-out` }, `${several(text, "word")}, left out`);
}
function bubble(speaker, text, strategy, extra) {
  const who = el("div", { class: "who" }, speaker === "seeker" ? "Seeker" : "Supporter", strategy ? tag(strategy, "strategy") : null);
  return el("div", { class: `turn ${speaker === "seeker" ? "seeker" : "supporter"}` }, who, extra || null, words(text));
}
const talk = (turns) => el("div", { class: "talk" }, turns.map(([speaker, text, strategy]) => bubble(speaker, text, strategy)));
function fold(title, ...kids) {
  return el("details", { class: "fold" }, el("summary", {}, title), ...kids);
}

/* ---------- critic readings ---------- */
function shade(quarter) {
  const steps = { "-4": "neg3", "-2": "neg2", "-1": "neg1", 0: "zero", 1: "pos1", 2: "pos2", 4: "pos3" };
  return `m${steps[quarter] || "zero"}`;
}
function reading(name, found, presets) {
  const preset = presets[name] || { levels: [], quarters: [] };
  const parts = found.c || found.w || [];
  const order = parts.map((_, i) => i).sort((a, b) => (preset.quarters[a] || 0) - (preset.quarters[b] || 0));
  const whole = parts.reduce((sum, x) => sum + x, 0) || 1;
  let x = 0;
  const bar = draw("svg", { class: "meter", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    order.filter((i) => parts[i]).map((i) => {
      const width = (100 * parts[i]) / whole;
      const piece = draw("rect", { class: shade(preset.quarters[i]), x: x.toFixed(2), y: 0, width: width.toFixed(2), height: 10 });
      x += width;
      return piece;
    }));
  const value = `${found.r[0]}/${found.r[1]}`.replace("-", "−");
  const exact = found.r[1] > 10000 ? fixed(found.v) : `${value} = ${fixed(found.v)}`;
  const rows = order.slice().reverse().map((i) => [
    el("span", {}, el("bdi", {}, preset.levels[i] || `level ${i + 1}`)), el("span", {}, found.c ? `${parts[i]}×` : percent(parts[i])),
    el("span", {}, fixed((preset.quarters[i] || 0) / 4, 2))]);
  return el("details", { class: "reading" },
    el("summary", {}, el("bdi", {}, name), bar, el("b", {}, exact), found.u ? `${found.u} unreadable` : null, found.z ? "nothing parsed: 0" : null),
    el("div", { class: "levels" }, rows), found.m === null || found.m === undefined ? null : el("p", {}, `Probability of naming a level: ${percent(found.m)}`));
}
function spark(values) {
  if (values.length < 2) return null;
  const x = (i) => 3 + (86 * i) / (values.length - 1), y = (v) => 13 - 11 * v;
  const path = values.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  return draw("svg", { class: "spark", viewBox: "0 0 92 26", role: "img", "aria-label": `critic values ${values.map((v) => fixed(v, 2)).join(", ")}` },
    draw("line", { x1: 0, x2: 92, y1: y(0.5), y2: y(0.5) }), draw("path", { d: path }),
    draw("circle", { cx: x(values.length - 1).toFixed(1), cy: y(values[values.length - 1]).toFixed(1), r: 2.6 }));
}
const readValues = (exchanges) => exchanges.map((x) => Object.values(x.reads)[0]).filter(Boolean).map((r) => r.v);

function exchange(x, presets) {
  const form = x.form ? tag(`form: ${x.form}`, "MAX_TURNS") : null;
  const why = x.why === null || x.why === undefined ? null : el("details", { class: "why" }, el("summary", {}, "Reasoning"), words(x.why));
  const supporter = bubble("supporter", x.reply, x.s, why);
  if (form) supporter.querySelector(".who").append(form);
  const ratings = x.q ? el("p", { class: "reading" }, Object.entries(x.q).map(([name, value]) => `${name} ${value}`).join(" · ")) : null;
  return el("div", { class: "talk" }, supporter, x.seeker === null || x.seeker === undefined ? null : bubble("seeker", x.seeker),
    Object.entries(x.reads).map(([name, found]) => reading(name, found, presets)), ratings);
}
function failure(found) {
  if (!found) return null;
  const line = el("p", { class: "failure" }, "Failed: ", el("bdi", {}, `${found[0]} / ${found[1]} `));
  if (found[2] !== null && found[2] !== undefined) line.append(words(found[2], "span"));
  return line;
}

/* ---------- list and detail ---------- */
function chips(names, label, chosen) {
  const row = el("div", { class: "chips", role: "group", "aria-label": label });
  const press = (button, name) => {
    for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
    chosen(name);
  };
  for (const name of ["all", ...names]) {
    const button = el("button", { class: "chip", type: "button", "aria-pressed": String(name === "all") }, WORDS[name] || name);
    button.addEventListener("click", () => press(button, name === "all" ? null : name));
    row.append(button);
  }
  return names.length ? row : null;
}
/* A list of which one is chosen, by pointer or by arrow keys. */
function chooser(kind, label, options, choose) {
  const list = el("div", { class: kind, role: "listbox", "aria-label": label });
  const shown = () => options.filter((option) => !option.hidden);
  const select = (option, focus) => {
    for (const other of options) {
      other.setAttribute("aria-selected", String(other === option));
      other.tabIndex = other === option ? 0 : -1;
    }
    if (focus) option.focus();
    choose(options.indexOf(option));
  };
  list.addEventListener("keydown", (event) => {
    const all = shown(), at = all.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    select(all[Math.max(0, Math.min(all.length - 1, to))], true);
  });
  for (const option of options) {
    fill(option, { role: "option", type: "button", tabindex: -1 }, []);
    option.addEventListener("click", () => select(option, false));
    list.append(option);
  }
  return { list, select, shown };
}
function counted(shown, n, what) {
  return shown === n ? `${n} ${what}` : `${shown} of ${n} ${what}; the others did not fit this page`;
}

function listAndDetail(root, data, what, outcomes, item, outcomesOf, detail) {
  let filter = null;
  const pane = el("div", { class: "detail", tabindex: -1 });
  const options = data.items.map((entry) => el("button", { class: "item" }, item(entry)));
  let current = 0;
  const show = (index) => { current = index; pane.replaceChildren(...detail(data.items[index], filter).filter(Boolean)); pane.scrollTop = 0; };
  const choice = chooser("list", what, options, show);
  const count = el("span", { class: "count", "aria-live": "polite" }, counted(data.items.length, data.n, what));
  const present = outcomes.filter((name) => data.items.some((entry) => outcomesOf(entry).includes(name)));
  const filtered = (name) => {
    filter = name;
    options.forEach((option, i) => { option.hidden = Boolean(name) && !outcomesOf(data.items[i]).includes(name); });
    const left = choice.shown();
    count.textContent = name ? `${left.length} ${what} with “${WORDS[name]}”` : counted(data.items.length, data.n, what);
    if (left.length) choice.select(options[current].hidden ? left[0] : options[current], false);
  };
  root.append(el("div", { class: "bar" }, count, present.length > 1 ? chips(present, "Filter by outcome", filtered) : null),
    el("div", { class: "split" }, choice.list, pane));
  if (options.length) choice.select(options[0], false);
}

function about(entry) {
  return [el("div", { class: "tags" }, el("span", { class: "tag" }, el("bdi", {}, entry.id)), entry.labels.map((label) => tag(label))),
    entry.situation === null || entry.situation === undefined ? null : words(entry.situation, "p", "situation")];
}

/* ---------- futures ---------- */
function futures(root, data) {
  const all = (entry) => entry.sides.flat();
  const item = (entry) => [el("span", { class: "id" }, el("bdi", {}, entry.id)),
    el("span", { class: "sub" }, all(entry).map((future) => el("span", { class: `tag ${future.o}` }, future.r ? fixed(future.r[0] / future.r[1], 2) : "failed")))];
  const detail = (entry, filter) => {
    const last = entry.turns.slice(-2), before = entry.turns.slice(0, -2);
    const dropped = entry.dropped ? `, ${several(entry.dropped, "older turn")} cut off` : "";
    return [...about(entry),
      before.length ? fold(`${several(before.length, "earlier turn")} of the context${dropped}`, talk(before)) : null, talk(last),
      entry.reference.length ? fold("What the corpus's supporter said", talk(entry.reference)) : null,
      ...entry.sides.map((side, i) => el("div", { class: "side" }, el("h5", {}, entry.sides.length > 1 ? el("bdi", {}, data.names[i]) : "Candidates and their futures"),
        el("div", { class: "columns" }, side.map((future) => candidate(future, data.presets, filter)))))];
  };
  listAndDetail(root, data, "contexts", OUTCOMES, item, (entry) => all(entry).map((future) => future.o), detail);
}
function candidate(future, presets, filter) {
  const r = future.r;
  const head = el("h4", {}, `Candidate ${future.c}`, outcomeTag(future.o), spark(readValues(future.x)));
  const reward = r ? el("p", { class: "reward" }, `${r[0]}/${r[1]}`.replace("-", "−"), el("small", {}, ` = ${fixed(r[0] / r[1])} reward, k = ${future.k}`)) : null;
  return el("div", { class: filter && filter !== future.o ? "card dim" : "card" }, head, reward,
    future.x.map((x) => el("div", { class: "round" }, el("p", { class: "k" }, x.k ? `exchange ${x.k}` : "the candidate"), exchange(x, presets))), failure(future.f));
}

/* ---------- self-played dialogues ---------- */
function episodes(root, data) {
  const state = (side) => (!side ? [] : side.f ? ["FAILED"] : Object.values(side.solved).some((t) => t !== null) ? ["solved"] : ["unsolved"]);
  const item = (entry) => [el("span", { class: "id" }, el("bdi", {}, entry.id)),
    el("span", { class: "sub" }, entry.sides.filter(Boolean).map((side) => [tag(`${WORDS[state(side)[0]]}`, { solved: "RESOLVED", unsolved: "MAX_TURNS", FAILED: "FAILED" }[state(side)[0]]), spark(readValues(side.x))]).flat())];
  const detail = (entry) => [...about(entry), el("div", { class: "columns" }, entry.sides.map((side, i) => el("div", { class: "side" },
    entry.sides.length > 1 ? el("h4", {}, el("bdi", {}, data.names[i])) : null,
    side ? [el("div", { class: "tags" }, Object.entries(side.solved).map(([critic, t]) => tag(t === null ? `${critic}: not above 1/2` : `${critic}: above 1/2 at turn ${t}`, t === null ? "MAX_TURNS" : "RESOLVED")), spark(readValues(side.x))),
      side.x.map((x) => el("div", { class: "round" }, el("p", { class: "k" }, `turn ${x.k}`), exchange(x, data.presets))), failure(side.f)]
      : el("p", { class: "left-out" }, "not played in this run"))))];
  listAndDetail(root, data, "dialogues", ["solved", "unsolved", "FAILED"], item, (entry) => entry.sides.flatMap(state), detail);
}

/* ---------- trees ---------- */
const STOPS = [[233, 190, 106], [104, 168, 140], [38, 104, 150]];
function colour(t) {
  const at = Math.max(0, Math.min(1, t)) * (STOPS.length - 1), i = Math.min(STOPS.length - 2, Math.floor(at));
  return `rgb(${STOPS[i].map((c, j) => Math.round(c + (STOPS[i + 1][j] - c) * (at - i))).join(" ")})`;
}
/* Rows for leaves, means for inner nodes; siblings by visits. */
function layout(tree) {
  const kids = tree.nodes.map(() => []);
  tree.nodes.forEach((node, i) => { if (node.p >= 0) kids[node.p].push(i); });
  kids.forEach((each) => each.sort((a, b) => tree.nodes[b].n - tree.nodes[a].n));
  const depth = tree.nodes.map(() => 0), row = tree.nodes.map(() => 0);
  let rows = 0;
  const order = [];
  const stack = [[0, false]];
  while (stack.length) {
    const [i, done] = stack.pop();
    if (!kids[i].length) row[i] = rows++;
    else if (done) row[i] = (row[kids[i][0]] + row[kids[i][kids[i].length - 1]]) / 2;
    else {
      stack.push([i, true]);
      for (const kid of kids[i].slice().reverse()) { depth[kid] = depth[i] + 1; stack.push([kid, false]); }
    }
    if (!done) order.push(i);
  }
  return { kids, depth, row, rows, order, deepest: Math.max(...depth) };
}
function curve(x0, y0, x1, y1) {
  const middle = (x0 + x1) / 2;
  return `M${x0.toFixed(1)} ${y0.toFixed(1)}C${middle.toFixed(1)} ${y0.toFixed(1)} ${middle.toFixed(1)} ${y1.toFixed(1)} ${x1.toFixed(1)} ${y1.toFixed(1)}`;
}
function thumb(tree, scale) {
  const place = layout(tree);
  const x = (i) => 4 + (112 * place.depth[i]) / Math.max(1, place.deepest), y = (i) => 4 + (54 * (place.row[i] + 0.5)) / place.rows;
  const path = tree.nodes.map((node, i) => (node.p < 0 ? "" : `M${x(node.p).toFixed(1)} ${y(node.p).toFixed(1)}L${x(i).toFixed(1)} ${y(i).toFixed(1)}`)).join("");
  return draw("svg", { class: "thumb", viewBox: "0 0 120 62", "aria-hidden": "true" }, draw("path", { d: path }),
    tree.nodes.map((node, i) => (node.o ? draw("circle", { cx: x(i).toFixed(1), cy: y(i).toFixed(1), r: 2.2, fill: colour(scale(node.v)) }) : null)));
}
function shape(outcome, r) {
  if (outcome === "DISENGAGED") return draw("path", { d: `M0 ${-r * 1.25}L${r * 1.25} 0L0 ${r * 1.25}L${-r * 1.25} 0Z` });
  if (outcome === "MAX_TURNS" || outcome === "FAILED") return draw("rect", { x: -r, y: -r, width: 2 * r, height: 2 * r, rx: 1.5 });
  return draw("circle", { r });
}
const abbreviation = (node) => (node.p < 0 ? "root" : node.id.slice(node.id.lastIndexOf(".") + 1));

function trees(root, data) {
  // A few extreme leaves would leave one colour for all the rest.
  const values = data.items.flatMap((tree) => tree.nodes.map((node) => node.v)).sort((a, b) => a - b);
  const low = values[Math.floor(0.03 * (values.length - 1))], high = values[Math.ceil(0.97 * (values.length - 1))];
  const scale = (v) => (high > low ? (v - low) / (high - low) : 0.5);
  const area = el("div", { class: "tree-area" });
  const pane = el("div", { class: "detail" });
  let filter = null, view = null;
  const options = data.items.map((tree) => el("button", { class: "item", title: tree.id }, thumb(tree, scale), el("span", { class: "id" }, el("bdi", {}, tree.id)),
    el("span", { class: "sub" }, `${fixed(tree.nodes[0].v)} · ${several(tree.nodes.length, "node")}`, tree.status === "complete" ? null : tag(tree.status, tree.status === "failed" ? "FAILED" : ""))));
  const choice = chooser("forest", "trees", options, (index) => {
    view = picture(data.items[index], scale, pane, area.clientWidth);
    area.replaceChildren(view.svg);
    view.show(0, false);
    view.filter(filter);
    area.scrollTo({ left: 0, top: view.root - area.clientHeight / 2, behavior: "instant" });
    options[index].scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  const present = OUTCOMES.filter((name) => data.items.some((tree) => tree.nodes.some((node) => node.o === name)));
  root.append(el("div", { class: "bar" }, el("span", { class: "count" }, counted(data.items.length, data.n, "trees")),
    present.length ? chips(present, "Show the paths that end", (name) => { filter = name; if (view) view.filter(name); }) : null),
    choice.list, legend(low, high, present), el("div", { class: "tree-split" }, area, pane));
  const top = window.scrollY;
  if (options.length) choice.select(options[0], false);
  window.scrollTo({ top, behavior: "instant" });
}
function legend(low, high, present) {
  const ramp = draw("svg", { viewBox: "0 0 90 12", width: 90, "aria-hidden": "true" }, Array.from({ length: 30 }, (_, i) => draw("rect", { x: i * 3, y: 0, width: 3.2, height: 12, fill: colour(i / 29) })));
  const edges = draw("svg", { viewBox: "0 0 54 12", width: 54, "aria-hidden": "true" }, [1.5, 5, 10].map((w, i) => draw("line", { class: "edge", x1: 6 + i * 18, x2: 14 + i * 18, y1: 6, y2: 6, "stroke-width": w })));
  const marks = present.map((name) => {
    const mark = draw("g", { transform: "translate(7 7)", class: "node" }, name === "RESOLVED" ? draw("circle", { class: "ring", r: 7 }) : null, fill(shape(name, 4), { fill: "currentColor" }, []));
    return el("span", {}, draw("svg", { viewBox: "0 0 14 14", width: 14, "aria-hidden": "true" }, mark), WORDS[name]);
  });
  return el("div", { class: "tree-legend" }, el("span", {}, `value up to ${fixed(low, 2)}`, ramp, `from ${fixed(high, 2)}`), el("span", {}, edges, "visits"),
    el("span", {}, "% beside a node: prior"), marks, el("span", {}, el("kbd", {}, "←"), el("kbd", {}, "→"), el("kbd", {}, "↑"), el("kbd", {}, "↓"), "walk the tree"));
}
function picture(tree, scale, pane, room) {
  const place = layout(tree), whole = tree.nodes[0].n || 1;
  const left = 34, top = 30;
  const step = Math.max(88, Math.min(150, (room - left - 70) / Math.max(1, place.deepest))), height = place.rows < 10 ? 48 : 35;
  const x = (i) => left + place.depth[i] * step, y = (i) => top + place.row[i] * height;
  const radius = (node) => 4.5 + 6.5 * Math.sqrt(node.n / whole);
  const w = left + place.deepest * step + 60, h = top + place.rows * height;
  const edges = tree.nodes.map((node, i) => (node.p < 0 ? null : draw("path", { class: "edge", d: curve(x(node.p), y(node.p), x(i), y(i)), "stroke-width": (1 + (11 * node.n) / whole).toFixed(2) })));
  const groups = tree.nodes.map((node, i) => {
    const r = radius(node), prior = priorOf(tree, node);
    const label = draw("text", { "text-anchor": "middle", y: -r - 5 }, abbreviation(node), prior === null ? null : draw("tspan", { class: "prior", dx: 4 }, `${Math.round(100 * prior)} %`));
    const said = `${node.s < 0 ? "root" : tree.strategies[node.s]}, ${node.n} visits, value ${fixed(node.v)}${prior === null ? "" : `, prior ${percent(prior)}`}${node.o ? `, ${WORDS[node.o]}` : ""}`;
    const group = draw("g", { class: "node", role: "treeitem", tabindex: -1, "aria-level": place.depth[i] + 1, "aria-label": said, "aria-selected": "false", transform: `translate(${x(i).toFixed(1)} ${y(i).toFixed(1)})`, "data-node": i },
      draw("circle", { class: "hit", r: 16 }), draw("circle", { class: "halo", r: r + 5 }), node.o === "RESOLVED" ? draw("circle", { class: "ring", r: r + 3.2 }) : null,
      fill(shape(node.o, r), { class: "body", fill: colour(scale(node.v)) }, []), label);
    group.addEventListener("click", () => show(i, true));
    return group;
  });
  const svg = draw("svg", { class: "tree-picture", viewBox: `0 0 ${w} ${h}`, width: w, height: h, role: "tree", "aria-label": `Search tree ${tree.id}` }, edges, groups);
  svg.addEventListener("keydown", (event) => {
    const at = groups.indexOf(document.activeElement);
    const to = at < 0 ? undefined : neighbour(place, tree, at, event.key);
    if (to === undefined) return;
    event.preventDefault();
    show(to, true);
  });
  function show(i, focus) {
    const line = [];
    for (let at = i; at >= 0; at = tree.nodes[at].p) line.unshift(at);
    groups.forEach((group, j) => { group.setAttribute("aria-selected", String(j === i)); group.setAttribute("tabindex", j === i ? 0 : -1); });
    edges.forEach((edge, j) => { if (edge) edge.classList.toggle("on", line.includes(j)); });
    if (focus) { groups[i].focus({ preventScroll: true }); groups[i].scrollIntoView({ block: "nearest", inline: "nearest" }); }
    pane.replaceChildren(...nodeDetail(tree, place, line, i, show).filter(Boolean));
    pane.scrollTop = 0;
  }
  function filter(outcome) {
    const on = tree.nodes.map((node) => !outcome || node.o === outcome);
    for (let i = tree.nodes.length - 1; i > 0; i--) if (on[i]) on[tree.nodes[i].p] = true;
    groups.forEach((group, i) => { group.classList.toggle("dim", !on[i]); if (edges[i]) edges[i].classList.toggle("dim", !on[i]); });
  }
  return { svg, show, filter, root: y(0) };
}
function priorOf(tree, node) {
  const from = node.p < 0 ? null : tree.nodes[node.p].a;
  return from ? from[node.s] : null;
}
function neighbour(place, tree, at, key) {
  if (key === "Home") return 0;
  if (key === "ArrowLeft") return tree.nodes[at].p >= 0 ? tree.nodes[at].p : at;
  if (key === "ArrowRight") return place.kids[at].length ? place.kids[at][0] : at;
  if (key === "End") { while (place.kids[at].length) at = place.kids[at][0]; return at; }
  if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
  const level = place.order.filter((i) => place.depth[i] === place.depth[at]);
  const to = level.indexOf(at) + (key === "ArrowDown" ? 1 : -1);
  return level[Math.max(0, Math.min(level.length - 1, to))];
}
function nodeDetail(tree, place, line, i, show) {
  const node = tree.nodes[i];
  const crumbs = el("nav", { class: "crumbs", "aria-label": "Path from the root" }, line.flatMap((at, k) => {
    const name = el("bdi", {}, abbreviation(tree.nodes[at]));
    return [k ? "›" : null, at === i ? el("b", {}, name) : el("button", { type: "button", onclick: () => show(at, true) }, name)];
  }));
  const measures = [["visits", node.n], ["value", fixed(node.v)], ["prior", percent(priorOf(tree, node))], ["reward", fixed(node.r)], ["first return", fixed(node.f)]];
  const before = line.slice(0, -1).flatMap((at) => tree.nodes[at].t);
  return [...(i === 0 ? about(tree) : []), crumbs,
    el("h4", {}, el("bdi", {}, node.s < 0 ? "The opening" : tree.strategies[node.s]), " ", node.o ? outcomeTag(node.o) : null),
    el("dl", { class: "measures" }, measures.filter(([, value]) => value !== "–").map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value))))),
    before.length ? fold(`${several(before.length, "turn")} before`, talk(before)) : null, talk(node.t), node.q ? ratings(node.q) : null, priors(tree, place, i, show),
    i === 0 && tree.failures.length ? el("p", { class: "failure" }, `${several(tree.failures.length, "failed call")}: `, el("bdi", {}, tree.failures.map((f) => `${f[0]}/${f[1]}`).join(", "))) : null];
}
function meter(share, kind = "f0") {
  return draw("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, draw("rect", { class: "track", width: 100, height: 8, rx: 2 }), draw("rect", { class: kind, width: (100 * Math.max(0, Math.min(1, share))).toFixed(1), height: 8, rx: 2 }));
}
function ratings(found) {
  return el("div", {}, el("h5", {}, "Critic's ratings of the supporter's turn"), el("div", { class: "ratings" },
    Object.entries(found).flatMap(([name, value]) => [el("span", {}, el("bdi", {}, name)), meter((value - 1) / 4), el("span", {}, `${fixed(value, 2)} of 5`)])));
}
function priors(tree, place, i, show) {
  const node = tree.nodes[i];
  if (!node.a) return null;
  const visits = place.kids[i].reduce((sum, kid) => sum + tree.nodes[kid].n, 0) || 1;
  const rows = node.a.map((prior, s) => ({ prior, s, kid: place.kids[i].find((kid) => tree.nodes[kid].s === s) })).sort((a, b) => b.prior - a.prior)
    .map(({ prior, s, kid }) => {
      const name = el("bdi", {}, tree.strategies[s]), child = kid === undefined ? null : tree.nodes[kid];
      return el("tr", {}, el("td", {}, child ? el("button", { type: "button", onclick: () => show(kid, true) }, name) : name), el("td", {}, meter(prior)),
        el("td", { class: "num" }, percent(prior)), el("td", { class: "num" }, child ? percent(child.n / visits) : "–"), el("td", { class: "num" }, child ? fixed(child.v) : "–"));
    });
  const head = ["strategy", "", "prior", "visits", "value"].map((name, k) => el("th", { scope: "col", class: k > 1 ? "num" : null }, name));
  return el("div", {}, el("h5", {}, "What next: prior, share of visits, value"), el("table", { class: "prior-table" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
}

/* ---------- start ---------- */
document.documentElement.classList.add("js");
const kinds = { trees, futures, episodes };
for (const root of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(document.getElementById(root.dataset.source).textContent);
  kinds[root.dataset.kind](root, data);
}
})();
