(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const place = `esckit.study.${data.study}.${data.rater}`;
const byId = (id) => document.getElementById(id);
const isPair = data.kind === "ab";
let at = 0;
let answers = {};
let isKept = true;
try { answers = JSON.parse(localStorage.getItem(place)) || {}; } catch { isKept = false; }

function el(tag, attributes, ...kids) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== false) node.setAttribute(name, value === true ? "" : value);
  node.append(...kids);
  return node;
}
const talk = (turns) => el("div", { class: "talk" }, ...turns.map(([speaker, text]) => el("p", { dir: "auto" }, el("b", {}, speaker), text)));
const isDone = ([id]) => data.dimensions.every(([name]) => (answers[id] || {})[name]);

function keep(id, name, value) {
  answers[id] = { ...answers[id], [name]: value };
  try { localStorage.setItem(place, JSON.stringify(answers)); } catch { isKept = false; }
  count();
}
function count() {
  const n = data.questions.filter(isDone).length;
  byId("progress").textContent = `Question ${at + 1} of ${data.questions.length}; ${n} answered`;
  byId("bar").max = data.questions.length;
  byId("bar").value = n;
  byId("open").disabled = n === data.questions.length;
  byId("kept").textContent = isKept
    ? "Your answers are kept in this browser until you save them."
    : "This browser keeps nothing: save your answers before you close the page.";
}
function choices(id, [name, sentence]) {
  const marks = data.values.map((value) => {
    const input = el("input", { type: "radio", name: `${id}.${name}`, value, checked: (answers[id] || {})[name] === value });
    input.addEventListener("change", () => keep(id, name, value));
    const shown = isPair ? (value === "tie" ? "no difference" : `answer ${value}`) : value;
    return el("label", {}, input, shown);
  });
  return el("fieldset", {}, el("legend", {}, name), el("p", {}, sentence), el("div", { class: "choices" }, ...marks));
}
function show() {
  const [id, situation, before, shown] = data.questions[at];
  const comment = el("textarea", { id: "comment", maxlength: "2000" });
  comment.value = (answers[id] || {}).comment || "";
  comment.addEventListener("input", () => keep(id, "comment", comment.value));
  const scale = isPair ? "" : "From 1 (not at all) to 5 (very much)";
  byId("content").replaceChildren(
    ...(situation ? [el("h2", {}, "Situation"), talk([["", situation]])] : []),
    el("h2", {}, "Conversation"), talk(before),
    el("h2", {}, isPair ? "Two answers" : "Answer"),
    el("div", { class: "answers" }, ...shown.map((turns, i) => el("section", {}, el("h3", {}, isPair ? `Answer ${i + 1}` : ""), talk(turns)))),
    el("h2", {}, "Your answers"), el("p", {}, scale),
    ...data.dimensions.map((dimension) => choices(id, dimension)),
    el("h2", {}, el("label", { for: "comment" }, "Comment (may stay empty)")), comment);
  byId("back").disabled = at === 0;
  byId("next").disabled = at === data.questions.length - 1;
  count();
}
function go(to) {
  at = Math.max(0, Math.min(data.questions.length - 1, to));
  show();
  window.scrollTo(0, 0);
  byId("content").focus();
}
// A spreadsheet would take some texts for formulas.
const plain = (text) => String(text ?? "").replace(/(^|[\n\r\t;,])(?=[=+@\t\r]|-(?!\)))/g, "$1 ");
const cell = (text) => `"${plain(text).replace(/"/g, '""')}"`;
function save() {
  const left = data.questions.filter((question) => !isDone(question)).length;
  if (left && !window.confirm(`${left} of ${data.questions.length} questions are not answered. Save all the same?`)) return;
  const names = [...data.dimensions.map(([name]) => name), "comment"];
  const rows = data.questions.map(([id]) => [data.study, data.rater, id, ...names.map((name) => (answers[id] || {})[name])]);
  const text = [["study", "rater", "question", ...names], ...rows].map((row) => row.map(cell).join(",")).join("\r\n");
  const link = el("a", { download: `${data.rater}.csv`, href: URL.createObjectURL(new Blob(["\ufeff", text, "\r\n"], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
byId("back").addEventListener("click", () => go(at - 1));
byId("next").addEventListener("click", () => go(at + 1));
byId("open").addEventListener("click", () => go(data.questions.findIndex((question) => !isDone(question))));
byId("save").addEventListener("click", save);
show();
})();
