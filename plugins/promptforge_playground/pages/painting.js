"use strict";

// What the page shows: the template in colour, and the answers. Used by page.js, which it shares its scope with.

function paintTemplate(wrong = null) {
  const lines = [make("span", "line")];
  for (const piece of template.value.split(/(\{\{[^]*?(?:\}\}|$)|\{%[^]*?(?:%\}|$)|\{#[^]*?(?:#\}|$))/)) {
    const kind = piece.startsWith("{#") ? "comment" : /^\{[{%]/.test(piece) ? "code" : "";
    piece.split("\n").forEach((text, i) => {
      if (i) lines.push(make("span", "line"));
      lines.at(-1).append(kind ? make("span", kind, text) : text);
    });
  }
  if (wrong) lines[Math.min(wrong, lines.length) - 1].classList.add("wrong");
  $("painted").replaceChildren(...lines);
}

function kindOf(part) {
  if (part.part !== "text") return part.part;
  const place = state.inputs.indexOf(part.source);
  return place >= 0 ? `column-${place % 4}` : part.source ? "expression" : "template";
}

function paintPrompt(rendered) {
  const legend = new Map(), out = [];
  for (const part of rendered.parts) {
    const kind = kindOf(part);
    const name = part.part === "text" ? part.source || "template" : part.part;
    const text = part.part === "text" ? part.text
      : part.part === "mask" ? (part.length > 1 ? `mask ×${part.length}` : "mask")
      : part.part === "soft" ? part.text || `soft ×${part.n}` : "sep";
    const made = make("span", `part ${kind}${part.tail ? " tail" : ""}`, text);
    made.title = part.tail ? `${name}, read only where the model reads what follows the mask` : name;
    out.push(made);
    legend.set(name, kind);
  }
  $("parts").replaceChildren(...out);
  $("legend").replaceChildren(...[...legend].map(([name, kind]) => make("span", `part ${kind}`, name)));
  const cut = Object.entries(rendered.cut).map(([source, n]) => `${n} tokens of ${source}`);
  $("cut").hidden = !cut.length;
  $("cut").textContent = cut.length ? `Cut to fit the model: ${cut.join(", ")}.` : "";
  paintTokens(rendered);
}

function paintTokens(rendered) {
  const kinds = new Map();
  for (const s of rendered.slots) for (let i = 0; i < s.length; i++) kinds.set(s.start + i, "slot");
  for (const s of rendered.soft) for (let i = 0; i < s.length; i++) kinds.set(s.start + i, "soft");
  const chip = (piece, kind, title) => {
    const made = make("span", kind);
    made.title = title;
    for (const text of piece.split(/( |\n|\t)/)) {
      if (text === " " || text === "\n" || text === "\t") made.append(make("i", "", text === " " ? "·" : text === "\n" ? "⏎" : "→"));
      else if (text) made.append(text);
    }
    if (!piece) made.append(make("i", "", "∅"));
    return made;
  };
  const out = rendered.pieces.map((piece, i) => chip(piece, kinds.get(i), `${rendered.tokens[i]}, id ${rendered.ids[i]}`));
  if (!rendered.slots.some((s) => s.length)) out.push(chip("mask", "slot", "the model writes here"));
  rendered.decoder_pieces.forEach((piece, i) => out.push(chip(piece, i ? "" : "begins", `decoder: ${rendered.decoder_tokens[i]}`)));
  $("tokens").replaceChildren(...out);
  $("count").textContent = `${rendered.ids.length} of at most ${rendered.most}`;
}

function bar(name, probability, best, chip = "", full = 1) {
  const label = make("span", `name${best ? " best" : ""}${chip ? " label" : ""}`);
  label.append(name);
  if (chip) label.append(make("span", "chip", chip));
  const track = make("span", "track"), fill = make("i");
  fill.style.width = `${(100 * probability) / full}%`;
  track.append(fill);
  return [label, track, make("span", `value${best ? " best" : ""}`, percent(probability))];
}

function paintRead(read) {
  const owner = new Map();
  for (const [label, words] of Object.entries(current.words)) for (const word of words) owner.set(word.trim(), label);
  $("likely").replaceChildren(...read.words.flatMap((place, i) => {
    const bars = make("div", "bars");
    for (const f of place) {
      bars.append(...bar(make("span", "word", f.word.replace(/^ /, "").replaceAll("\n", "⏎") || "·"), f.probability, false, owner.get(f.word.trim()), place[0].probability));
    }
    return read.words.length > 1 ? [make("h3", "", `mask ${i + 1}`), bars] : [bars];
  }));
  const classes = Object.entries(read.classes || {});
  const most = Math.max(...classes.map(([, p]) => p));
  const truth = rows[row].own ? null : state.rows[row].label;
  $("classes").replaceChildren(...classes.flatMap(([label, p]) => bar(label, p, p === most, label === truth ? "true" : "")));
  const wrong = [read.error, ...read.notes].filter(Boolean).join("\n") ||
    (classes.length ? "" : "Give each label a word to see the classes.");
  $("words-error").hidden = !wrong;
  $("words-error").textContent = wrong;
}
