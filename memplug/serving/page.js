"use strict";
const at = id => document.getElementById(id);
const tell = (id, text, wrong = false) => { at(id).textContent = text; at(id).className = wrong ? "wrong" : ""; };
let key = "", last = null, model = "", search = "", turns = { edited: [], base: [] };

// Texts come into the page as text nodes alone, so that no markup in them means anything.
function make(tag, given = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), given);
  made.append(...inside.map(one => one ?? ""));
  return made;
}
const show = prompt => typeof prompt === "string" ? prompt : prompt.map(turn => `${turn.role}: ${turn.content}`).join(" | ");
const given = form => Object.fromEntries([...new FormData(form)].filter(([, value]) => value));

async function call(method, path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({ error: { message: `the server answered ${answer.status}` } }));
  throw Object.assign(new Error(error.message), { code: error.code });
}
const get = async path => (await call("GET", path)).json();

// ---------------------------------------------------------------- asking

async function answered(place, id, asked, chat) {
  const [path, prompt] = chat ? ["/v1/chat/completions", { messages: asked }] : ["/v1/completions", { prompt: asked }];
  const answer = await call("POST", path, { model: id, temperature: 0, max_tokens: 128, stream: true, ...prompt });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let kept = "";;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended before the answer did");
    const events = (kept + value).split("\n\n");
    kept = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return place.textContent;
      const said = JSON.parse(event.slice(6));
      if (said.error) throw new Error(said.error.message);
      place.textContent += said.choices[0].delta?.content ?? said.choices[0].text;
    }
  }
}

function why(found) {
  const names = found.edits?.map(edit => `${edit.id} (${edit.target})`).join(", ");
  const head = found.edits === null ? "edits are in the weights" : names ? `recalled ${names}` : "nothing was recalled";
  const made = make("details", { open: true }, make("summary", {}, `Why: ${head}`));
  if (found.heat) {
    const { subject, votes, quorum, tokens, layers } = found.heat;
    made.append(make("p", {}, `Words that match “${subject}”: ${votes} of ${layers.length} layers vote, ${quorum} needed.`));
    const table = make("table", { className: "heat" }, make("caption", {}, "Similarity of the words that end at each token"));
    table.append(make("tr", {}, make("th", { scope: "col" }, "layer"), ...tokens.map(token => make("th", { scope: "col" }, token)),
      make("th", { scope: "col" }, "vote")));
    for (const { layer, heat, voted, token } of layers) {
      const cells = heat.map(value => {
        const cell = make("td", {}, value === null ? "" : value.toFixed(2));
        if (value > (made.most ?? 0)) Object.assign(made, { most: value, best: cell });
        const share = Math.max(0, Math.min(1, value ?? 0)) ** 2 * 70;
        cell.style.background = `color-mix(in srgb, var(--mark) ${share}%, transparent)`;
        return cell;
      });
      table.append(make("tr", {}, make("th", { scope: "row" }, layer), ...cells, make("td", {}, voted ? `yes, at ${token}` : "no")));
    }
    const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Votes by layer" }, table);
    made.append(scroll);
  }
  made.append(make("pre", {}, found.lines.join("\n")));
  return made;
}

at("ask").onsubmit = async event => {
  event.preventDefault();
  const { text, form } = given(event.target), chat = form === "chat", button = event.submitter ?? event.target.querySelector("button");
  const asked = side => chat ? [...turns[side], { role: "user", content: text }] : text;
  const places = { edited: make("p", { className: "text" }), base: make("p", { className: "text" }) };
  const reason = make("div");
  at("chat").append(make("p", { className: "text question" }, text), make("div", { className: "pair" },
    make("article", {}, make("h3", {}, "Edited model"), places.edited),
    make("article", {}, make("h3", {}, "Base model"), places.base)), reason);
  const sides = { edited: asked("edited"), base: asked("base") }, mine = turns;
  tell("asked", "asking …");
  button.disabled = true;
  const explained = call("POST", "/explain", { prompt: sides.edited }).then(answer => answer.json())
    .then(found => {
      const made = why(found), box = made.best?.closest(".scroll");
      reason.append(made);
      if (box) box.scrollLeft = made.best.offsetLeft - box.clientWidth / 2;  // what matched is in sight
    }, error => {
      if (error.code !== "ask_only") throw error;
      reason.append(make("p", {}, "This key may ask, and not see why an edit was recalled."));
    });
  const done = await Promise.allSettled([answered(places.edited, model, sides.edited, chat),
    answered(places.base, `${model}:base`, sides.base, chat), explained]);
  const failed = done.find(one => one.status === "rejected");
  if (chat && !failed) {
    mine.edited = [...sides.edited, { role: "assistant", content: done[0].value }];
    mine.base = [...sides.base, { role: "assistant", content: done[1].value }];
  }
  if (!failed) event.target.elements.text.value = "";
  button.disabled = false;
  tell("asked", failed ? failed.reason.message : "answered", failed);
};
at("fresh").onclick = () => { turns = { edited: [], base: [] }; at("chat").replaceChildren(); tell("asked", ""); };

// ---------------------------------------------------------------- changing

function row(table, names, cells) {
  const made = at(table).insertRow();
  cells.forEach((cell, place) => {
    const one = made.insertCell();
    one.dataset.name = names[place];
    if (cell) one.append(cell);
  });
  return made;
}

async function list(after = null) {
  const page = await get(`/edits?${new URLSearchParams({ limit: 50, search, ...(after ? { after } : {}) })}`);
  if (!after) at("edits").replaceChildren();
  for (const edit of page.data) {
    const path = `/edits/${encodeURIComponent(edit.id)}`;
    const on = make("input", { type: "checkbox", checked: edit.enabled, ariaLabel: `${edit.id} in force` });
    on.onchange = () => change("PATCH", path, { enabled: on.checked });
    const gone = make("button", { type: "button", ariaLabel: `Delete ${edit.id}` }, "Delete");
    gone.onclick = () => confirm(`Delete ${edit.id}?`) && change("DELETE", path);
    row("edits", ["id", "in force", "prompt", "answer", "subject", "action"],
      [edit.id, on, make("span", {}, show(edit.prompt)), edit.target, edit.subject, gone]).className = edit.enabled ? "" : "off";
  }
  last = page.data.at(-1)?.id ?? last;
  at("total").textContent = `(${page.total})`;
  at("more").hidden = !page.has_more;
}

async function history() {
  const all = [];
  try {
    for (let more = true; more;) {
      const page = await get(`/history?limit=1000&after=${all.at(-1)?.number ?? 0}`);
      all.push(...page.data);
      more = page.has_more;
    }
  } catch (error) { if (error.code !== "no_store") throw error; return; }
  at("past").hidden = false;
  at("history").replaceChildren();
  for (const one of all.reverse()) {
    const back = make("button", { type: "button", ariaLabel: `Go back to revision ${one.number}` }, "Go back");
    back.onclick = () => confirm(`Go back to revision ${one.number}?`) && change("POST", "/rollback", { revision: one.number });
    row("history", ["revision", "time", "who", "change", "edits", "reason", "action"], [String(one.number),
      new Date(one.time).toLocaleString(), one.who, one.action, one.edits.join(", "), one.why, one.kept ? back : "pruned"]);
  }
}

async function ended(method, path, body) {
  let job = await (await call(method, path, body)).json();
  while (["queued", "running"].includes(job.status)) {
    tell("changed", `${job.kind} ${job.id}: ${job.status}, ${Math.max(0, Math.round(Date.now() / 1000 - job.created))} s`);
    await new Promise(resolve => setTimeout(resolve, 300));
    job = await get(`/jobs/${job.id}`);
  }
  if (job.error) throw new Error(job.error.message);
  return job;
}

async function change(method, path, body) {
  const held = document.activeElement?.ariaLabel;
  let done = false;
  try {
    const job = await ended(method, path, body);
    const doubt = job.unlearned.length ? `; the model does not answer its own prompt so: ${job.unlearned.join(", ")}` : "";
    tell("changed", `${job.kind} ${job.edits.join(", ")}: ${job.status}${doubt}${job.note ? `; ${job.note}` : ""}`, job.status !== "succeeded");
    done = true;
  } catch (error) { tell("changed", error.message, true); }
  await Promise.all([list(), history()]).catch(error => tell("changed", error.message, true));
  // The tables are new: the focus goes to what held it, or where that is gone, to the search.
  if (held) ([...document.querySelectorAll("td [aria-label]")].find(one => one.ariaLabel === held) ?? at("search").elements.search).focus();
  return done;
}

at("edit").onsubmit = async event => {
  event.preventDefault();
  const { prompts, ...edit } = given(event.target);
  if (await change("POST", "/edits", edit)) { event.target.reset(); at("previewed").replaceChildren(); }
};
at("preview").onclick = async () => {
  if (!at("edit").reportValidity()) return;
  const { prompts = "", ...edit } = given(at("edit"));
  const asked = prompts.split("\n").map(line => line.trim()).filter(Boolean);
  at("preview").disabled = true;
  try {
    const job = await ended("POST", "/preview", { ...edit, prompts: asked });
    const lines = [edit.prompt, ...asked].map((prompt, place) => ({ prompt, ...job.answers[place] }));
    at("previewed").replaceChildren(...[["These prompts will change", true], ["These will not", false]].flatMap(([name, changed]) => {
      const these = lines.filter(line => (line.before !== line.after) === changed);
      return [make("h3", {}, `${name} (${these.length})`), make("ul", {}, ...these.map(({ prompt, before, after }) =>
        make("li", { className: "text" }, `${prompt}\n`, ...(changed ? [`${before.trim()} → `,
          make("span", { className: "changed" }, after.trim())] : [after.trim()]))))];
    }));
    const doubt = job.unlearned.length ? "; the model would not answer so when it is asked with its own prompt" : "";
    tell("changed", `preview ready, nothing is kept${doubt}`, doubt);
  } catch (error) { tell("changed", error.message, true); }
  at("preview").disabled = false;
};

function records(text) {  // RFC 4180
  const rows = [[""]];
  let quoted = false;
  for (let i = text.charCodeAt(0) === 0xfeff ? 1 : 0; i < text.length; i++) {
    const letter = text[i], fields = rows.at(-1), end = fields.length - 1;
    if (quoted) {
      if (letter !== '"') fields[end] += letter;
      else if (text[i + 1] === '"') { fields[end] += letter; i++; } else quoted = false;
    } else if (letter === '"' && !fields[end]) quoted = true;
    else if (letter === ",") fields.push("");
    else if (letter === "\n") rows.push([""]);
    else if (letter !== "\r") fields[end] += letter;
  }
  if (quoted) throw new Error("the file ends inside a quoted field");
  return rows.filter(fields => fields.length > 1 || fields[0]);
}

at("csv").onsubmit = async event => {
  event.preventDefault();
  try {
    const [head = [], ...rows] = records(await event.target.elements.file.files[0].text());
    const names = head.map(name => name.trim().toLowerCase()), known = ["prompt", "target", "subject"];
    if (!names.includes("prompt") || !names.includes("target")) throw new Error("the file's first line names no columns prompt and target");
    const edits = rows.map(fields => Object.fromEntries(names.map((name, place) => [name, fields[place]])
      .filter(([name, value]) => known.includes(name) && value)));
    if (await change("POST", "/edits", { edits, why: "CSV import" })) event.target.reset();
  } catch (error) { tell("changed", error.message, true); }
};

at("search").onsubmit = event => {
  event.preventDefault();
  search = given(event.target).search ?? "";
  list().catch(error => tell("changed", error.message, true));
};
at("more").onclick = () => list(last).catch(error => tell("changed", error.message, true));

async function begin() {
  try {
    model = (await get("/v1/models")).data[0].id;
    at("name").textContent = model;
    tell("asked", "");
    await Promise.all([list(), history()]);
    tell("changed", "");
  } catch (error) { tell(model ? "changed" : "asked", error.message, true); }
}
at("key").onsubmit = event => { event.preventDefault(); key = given(event.target).key ?? ""; begin(); };
begin();
