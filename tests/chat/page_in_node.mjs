// Runs the script of the chat page with a document of its own, against a server: `node page_in_node.mjs ADDRESS`.
// Prints what a user would see, as JSON.

class Element {
  constructor(kind) { Object.assign(this, {kind, children: [], own: "", value: "", className: "", hidden: false, disabled: false, listeners: {}}); }
  append(...added) { for (const one of added) { one.parent = this; this.children.push(one); } }
  remove() { this.parent.children = this.parent.children.filter((one) => one !== this); }
  set textContent(text) { this.own = text; this.children = []; }
  get textContent() { return this.own + this.children.map((one) => one.textContent).join("\n"); }
  get classList() { return {contains: (name) => this.className.split(" ").includes(name)}; }
  setAttribute() {}
  addEventListener(name, listener) { this.listeners[name] = listener; }
  scrollIntoView() {}
  getBoundingClientRect() { return {top: this.kind === "div" ? 900 : 700}; }
  focus() {}
  click() {}
}

const address = process.argv[2];
const page = await (await fetch(address + "/")).text();
const elements = {};
const find = (id) => elements[id] ??= new Element(id);
find("settings").own = /id="settings">(.*?)<\/script>/s.exec(page)[1];
globalThis.document = {getElementById: find, createElement: (kind) => new Element(kind)};
const send = globalThis.fetch;
let reach = address;
globalThis.fetch = (path, options) => send(reach + path, options);
globalThis.addEventListener = () => {};
const {talk, say, undo, save} = (0, eval)(`(() => {${/<script>(.*?)<\/script>/s.exec(page)[1]}; return {talk, say: send, undo, save}; })()`);

find("words").value = "I want to die";
await say();
const seen = find("talk").textContent;
const leads = [!find("below").hidden];
find("words").value = "And <b>now</b>?";
find("strategy").value = "Clarification";
await say();
const spoken = talk.map(({role, content, strategy}) => ({role, content, strategy}));
await save();
const saved = find("status").textContent;
leads.push(!find("below").hidden);
undo();
const [left, back, boxes] = [talk.length, find("words").value, find("talk").children.length];
find("words").value = "My draft";
undo();
const draft = find("words").value;
reach = "http://127.0.0.1:9";  // where nobody listens
await say();
const gone = [find("status").textContent];
await save();
gone.push(find("status").textContent);
console.log(JSON.stringify({seen, leads, spoken, saved, left, back, boxes, draft, gone}));
