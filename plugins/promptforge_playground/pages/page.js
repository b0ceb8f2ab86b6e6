"use strict";

// A keystroke is answered in two steps: the parts and tokens, which take no model, then what the
// model says. The newest wins: what is under way for an older one is broken off, here and there.
const IDLE = 350; // ms before the other rows are read
const GRACE = 250; // ms before a mistake is shown: while one types, most templates are half written
const page = crypto.randomUUID();
const $ = (id) => document.getElementById(id);
const template = $("template");
const drafts = new Map(); // pattern -> what is written, and what was saved
let state, current, row = 0;
let sent = 0, edits = 0, timer, idle, under = new AbortController();
let rows = []; // of each: its values as changed here, and the last answer

const make = (tag, name = "", text = "") => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
};
const percent = (p) => `${(100 * p).toFixed(1)} %`;
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const dirty = (d) => d.template !== d.saved.template || !same(d.words, d.saved.words);

async function ask(what, extra = {}, signal = undefined) {
  const body = {
    pattern: current.pattern, template: current.template, words: state.labels.length ? current.words : null,
    row: row + 1, values: rows[row].values, page, serial: ++sent, ...extra,
  };
  const answer = await fetch(what, {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal,
  });
  return answer.json();
}

// --- asking -----------------------------------------------------------------------------------

function changed(since = performance.now()) {
  edits += 1;
  under.abort();
  under = new AbortController();
  clearTimeout(timer);
  clearTimeout(idle);
  $("see").setAttribute("aria-busy", "true");
  for (const [i, one] of rows.entries()) { one.old = true; if (one.line) one.line.classList.toggle("old", true); }
  const mine = edits;
  timer = setTimeout(() => look(mine, under.signal, since).catch(gone)); // after what else the key changes on the page
}

function gone(error) {
  if (error.name === "AbortError") return;
  $("see").classList.add("old");
  say("The playground does not answer: start it again. What you wrote is still here; copy it before you leave.", true);
}

async function look(mine, signal, since) {
  const rendered = await ask("render", {}, signal);
  if (mine !== edits || rendered.stale) return;
  if (rendered.error && $("error").hidden) {
    await new Promise((resolve) => setTimeout(resolve, GRACE));
    if (mine !== edits) return;
  }
  complain(rendered.error);
  $("see").classList.toggle("old", Boolean(rendered.error));
  if (rendered.error) return answered(mine, since);
  const reading = ask("read", {}, signal); // the model works while the prompt is painted
  paintPrompt(rendered);
  const read = await reading;
  if (mine !== edits || read.stale) return;
  complain(read.error && read.error.message ? read.error : null);
  if (!read.words) return answered(mine, since);
  paintRead(read);
  keep(row, read);
  answered(mine, since);
  idle = setTimeout(() => readOthers(mine, signal).catch(gone), IDLE);
}

function answered(mine, since) {
  $("see").setAttribute("aria-busy", "false");
  document.documentElement.dataset.answered = String(mine);
  requestAnimationFrame(() => setTimeout(() => {
    if (mine === edits) $("speed").textContent = `answered in ${Math.round(performance.now() - since)} ms`;
  }));
}

async function readOthers(mine, signal) {
  for (const i of rows.keys()) {
    if (!rows[i].old) continue;
    const read = await ask("read", { row: i + 1, values: rows[i].values }, signal);
    if (mine !== edits || read.stale) return;
    keep(i, read);
  }
}

function complain(error, conflict = false) {
  const box = $("error");
  box.hidden = !error;
  $("reload").hidden = !conflict;
  paintTemplate(error ? error.line : null);
  template.setAttribute("aria-invalid", String(Boolean(error && !conflict)));
  if (!error) return;
  const text = box.querySelector("p");
  const place = /^.*?, line \d+: /.exec(error.message);
  if (place && error.line) {
    text.replaceChildren(make("b", "", `Line ${error.line}: `), error.message.slice(place[0].length));
  } else text.replaceChildren(error.message);
}

// --- rows -------------------------------------------------------------------------------------

function keep(i, read) {
  const one = rows[i];
  one.old = false;
  one.decided = read.decided === undefined ? null : read.decided;
  one.probability = read.classes ? Math.max(...Object.values(read.classes)) : null;
  one.word = read.words ? read.words[0][0] : null;
  const truth = one.own ? null : state.rows[i].label;
  const value = one.line.querySelector(".value");
  one.line.classList.remove("old");
  one.right = state.scale || truth === null || one.decided === null ? null : one.decided === truth;
  value.className = `value ${one.right === null ? "" : one.right ? "yes" : "no"}`;
  const mark = one.right === null ? "" : one.right ? "\u00a0✓" : "\u00a0✗";
  value.textContent = read.error && !read.words ? "error"
    : one.decided !== null ? (state.scale ? one.decided.toFixed(2) : `${one.decided} ${Math.round(100 * one.probability)}\u00a0%${mark}`)
    : one.word ? one.word.word.trim() : "";
  value.title = read.error ? read.error.message || read.error : truth === null ? "" : `true: ${truth}`;
  const judged = rows.filter((r) => !r.old && r.right !== null);
  const to = rows.filter((r) => r.old).length;
  $("right").textContent = judged.length
    ? `${judged.filter((r) => r.right).length} of ${judged.length} right${to ? `, ${to} to read` : ""}` : "";
}

function listRows() {
  $("rows-section").hidden = rows.length < 2;
  rows.forEach((one, i) => {
    one.line = make("tr", "old");
    const open = make("button", "", state.inputs.map((c) => state.rows[i].values[c]).join(" · ") || "(empty)");
    open.type = "button";
    open.addEventListener("click", () => show(i));
    const cell = make("td");
    cell.append(open);
    one.line.append(cell, make("td", "value"));
    $("rows").tBodies[0].append(one.line);
  });
}

function show(i) {
  row = Math.max(0, Math.min(i, rows.length - 1));
  $("row-number").textContent = rows.length > 1 ? `${row + 1} of ${rows.length}` : "";
  $("previous").disabled = row === 0;
  $("next").disabled = row === rows.length - 1;
  $("columns").replaceChildren(...state.inputs.map((column) => {
    const field = make("div", "field"), label = make("label", "", column), area = make("textarea");
    area.id = `column-${column}`;
    area.rows = 1;
    label.htmlFor = area.id;
    area.value = rows[row].values[column] ?? state.rows[row].values[column];
    area.addEventListener("input", (event) => {
      rows[row].values[column] = area.value;
      rows[row].own = true;
      tellTruth();
      changed(event.timeStamp);
    });
    field.append(label, area);
    return field;
  }));
  rows.forEach((one, n) => { one.line.classList.toggle("current", n === row); });
  tellTruth();
  changed();
}

function tellTruth() {
  const truth = state.rows[row].label;
  $("truth").textContent = rows[row].own ? "changed here, so its label is not known" : truth === null ? "" : `label: ${truth}`;
}

// --- patterns, words, saving ------------------------------------------------------------------

const joined = (words) => words.map((w) => w.replaceAll(",", "\\,")).join(", ");
const parted = (text) => text.split(/(?<!\\),/).map((w) => w.replaceAll("\\,", ",").trim()).filter(Boolean);

function open(name) {
  current = drafts.get(name);
  template.value = current.template;
  $("about").textContent = current.description;
  writeWords();
  complain(null);
  mark();
  say(state.refusal);
  changed();
}

function writeWords() {
  $("words").replaceChildren(...state.labels.map((label) => {
    const field = make("div", "field"), name = make("label", "", label), input = make("input");
    input.id = `words-${label}`;
    name.htmlFor = input.id;
    input.value = joined(current.words[label]);
    input.spellcheck = false;
    input.addEventListener("input", (event) => {
      current.words = { ...current.words, [label]: parted(input.value) };
      mark();
      changed(event.timeStamp);
    });
    field.append(name, input);
    return field;
  }));
}

function mark() {
  for (const [name, draft] of drafts) $(`pattern-${name}`).parentElement.classList.toggle("dirty", dirty(draft));
  const now = dirty(current);
  $("revert").disabled = !now;
  $("save").disabled = Boolean(state.refusal) || (!now && current.stamp !== null);
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("warn", wrong);
}

// As if it were typed, so that undo brings back what stood there.
function type(text, all = false) {
  template.focus();
  if (all) template.select();
  if (text ? !document.execCommand("insertText", false, text) : !document.execCommand("delete")) {
    template.setRangeText(text, template.selectionStart, template.selectionEnd, "end");
    template.dispatchEvent(new Event("input"));
  }
}

function taken(draft, found) {
  draft.stamp = found.stamp;
  draft.saved = { template: found.template, words: found.words };
}

// What this page's own save changed of the other patterns; what was written here of them stays.
function follow(others) {
  for (const found of others) {
    const draft = drafts.get(found.pattern);
    if (draft.stamp !== found.was) continue; // somebody else changed it too: saving it says so
    const old = draft.saved;
    taken(draft, found);
    if (draft.template === old.template) draft.template = found.template;
    if (same(draft.words, old.words)) draft.words = found.words;
    if (draft === current) open(found.pattern); // the person went there meanwhile
  }
}

async function save() {
  if ($("save").disabled) return say(state.refusal || "There is nothing to save.");
  const draft = current;
  try {
    const found = await ask("save", { stamp: draft.stamp });
    if (current === draft) complain(found.error, found.conflict);
    if (found.error) return say("Not saved.", true);
    // What was typed after a save began stays, and is not saved yet.
    if (draft.template.trimEnd() === found.template) draft.template = found.template;
    if (current === draft && template.value.trimEnd() === found.template) template.value = found.template;
    taken(draft, found);
    follow(found.others);
    paintTemplate();
    say(`Saved to ${found.saved}.`);
    mark();
  } catch (error) { gone(error); }
}

async function reload() {
  try {
    const found = await ask("reload");
    if (found.error) return complain(found.error, true);
    taken(current, found);
    current.words = found.words;
    writeWords();
    type(found.template, true);
    complain(null);
    say(`Loaded from ${found.file}.`);
    mark();
    changed();
  } catch (error) { gone(error); }
}

function revert() {
  const { template: text, words } = current.saved;
  current.words = words;
  writeWords();
  if (template.value !== text) type(text, true);
  else changed();
  mark();
}

// --- beginning --------------------------------------------------------------------------------

async function begin() {
  state = await (await fetch("state")).json();
  document.title = `${state.task} · PromptForge playground`;
  $("task").textContent = state.task;
  $("description").textContent = state.description;
  $("model").textContent = `${state.model} (${state.family})`;
  $("version").textContent = state.version;
  $("words-section").hidden = $("classes-section").hidden = !state.labels.length;
  $("save").title = state.refusal || `to ${state.folder}`;
  for (const found of state.patterns) {
    drafts.set(found.pattern, { ...found, saved: { template: found.template, words: found.words } });
    const label = make("label"), choice = make("input");
    choice.type = "radio";
    choice.name = "pattern";
    choice.id = `pattern-${found.pattern}`;
    choice.addEventListener("change", () => open(found.pattern));
    label.append(choice, found.pattern);
    $("patterns").append(label);
  }
  const columns = state.expressions.map((e) => `{{ ${e} }}`);
  for (const text of [...columns, "{{ mask }}", "{{ sep }}", '{{ soft("It was") }}', '{{ tail(".") }}']) {
    const button = make("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => type(text));
    $("insert").append(button);
  }
  rows = state.rows.map(() => ({ values: {}, own: false, old: true }));
  listRows();
  current = drafts.get(state.patterns[0].pattern);
  $(`pattern-${current.pattern}`).checked = true;
  template.addEventListener("input", (event) => {
    current.template = template.value;
    paintTemplate();
    if (!state.refusal) say("");
    mark();
    changed(event.timeStamp || performance.now());
  });
  $("save").addEventListener("click", save);
  $("reload").addEventListener("click", reload);
  $("revert").addEventListener("click", revert);
  $("previous").addEventListener("click", () => show(row - 1));
  $("next").addEventListener("click", () => show(row + 1));
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") {
      event.preventDefault();
      save();
    } else if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      show(row + (event.key === "ArrowDown" ? 1 : -1));
    }
  });
  addEventListener("beforeunload", (event) => {
    if ([...drafts.values()].some(dirty)) event.preventDefault();
  });
  open(current.pattern);
  show(0);
}

begin().catch(gone);
