"use strict";
(() => {
  // One method lit up in all figures while the pointer is on it.
  const all = [...document.querySelectorAll("svg .series")];
  for (const it of all) {
    it.addEventListener("pointerenter", () => {
      document.body.classList.add("lit");
      for (const other of all) other.classList.toggle("on", other.dataset.method === it.dataset.method);
    });
    it.addEventListener("pointerleave", () => document.body.classList.remove("lit"));
  }

  // A table that goes on to the right fades out there, until it is scrolled to its end.
  const hint = (box) => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
  const boxes = [...document.querySelectorAll(".box")];
  const watch = new ResizeObserver(() => boxes.forEach(hint));
  for (const box of boxes) {
    box.addEventListener("scroll", () => hint(box), { passive: true });
    watch.observe(box);
    if (box.firstElementChild) watch.observe(box.firstElementChild);
  }

  // What is folded away is printed, too.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const it of folded) it.open = true;
  });
  addEventListener("afterprint", () => { for (const it of folded) it.open = false; });

  const source = document.getElementById("packed");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const form = document.getElementById("filters");
  const head = document.getElementById("head");
  const rows = document.getElementById("rows");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const STEP = 50;
  const text = (n) => (n < 0 ? null : data.texts[n]);
  const sought = new Map(); // number of a text -> the text in lower case
  const lower = (n) => {
    if (n < 0) return "";
    if (!sought.has(n)) sought.set(n, data.texts[n].toLowerCase());
    return sought.get(n);
  };

  const offset = []; // of each seed, where its probes begin
  data.probes.forEach((probe, i) => { if (!(probe[0] in offset)) offset[probe[0]] = i; });
  const runs = new Map(data.runs.map((run) => [`${run.method} ${run.seed}`, run]));
  const runOf = (method, seed) => runs.get(`${method} ${seed}`);

  const fill = (select, options) => {
    for (const [value, label] of options) select.add(new Option(label, value));
  };
  const named = data.methods.map((label, i) => [i, label]);
  fill(form.elements.method, named);
  fill(form.elements.other, [["", "nothing"], ...named]);
  fill(form.elements.seed, [["", "all"], ...data.seeds.map((seed, i) => [i, seed])]);
  const kinds = [...new Set(data.probes.map((probe) => probe[2]))].sort();
  fill(form.elements.group, [["", "all"], ...kinds.map((i) => [i, data.groups[i][0]])]);

  let found = [];
  let shown = 0;
  let methods = [];
  let heads = [];

  const result = (method, i, moment) => {
    const seed = data.probes[i][0];
    const run = runOf(method, seed);
    const at = i - offset[seed];
    if (!run || !run.after[moment]) return { n: -1, right: "-" };
    return { n: run.after[moment][at], right: run.right[moment][at] };
  };

  const search = () => {
    const want = Object.fromEntries(new FormData(form));
    const words = want.text.trim().toLowerCase();
    methods = [Number(want.method)];
    if (want.other !== "" && want.other !== want.method) methods.push(Number(want.other));
    const keeps = (probe, i) => {
      if (want.seed !== "" && probe[0] !== Number(want.seed)) return false;
      if (want.group !== "" && probe[2] !== Number(want.group)) return false;
      const last = result(methods[0], i, "final");
      if (!runOf(methods[0], probe[0])) return false;
      if ((want.right === "y" || want.right === "n") && last.right !== want.right) return false;
      if (want.right === "lost" && !(result(methods[0], i, "immediate").right === "y" && last.right === "n")) return false;
      if (want.right === "differ" && (methods.length < 2 || last.n === result(methods[1], i, "final").n)) return false;
      if (!words) return true;
      const places = [probe[3], probe[4], probe[5], ...methods.map((m) => result(m, i, "final").n)];
      return places.some((n) => lower(n).includes(words));
    };
    found = data.probes.map((_, i) => i).filter((i) => keeps(data.probes[i], i));
    shown = 0;
    rows.replaceChildren();
    const several = methods.map((m) => data.methods[m]);
    heads = ["Case", "Prompt", "Expected", "Before"];
    for (const name of several) heads.push(`${name}, right after`, `${name}, in the end`);
    const line = document.createElement("tr");
    for (const label of heads) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = label;
      line.append(cell);
    }
    head.replaceChildren(line);
    show();
  };

  const add = (line, label, value, mark) => {
    const cell = document.createElement("td");
    cell.dir = "auto";
    cell.dataset.head = label;
    cell.textContent = value ?? "–";
    if (mark === "y") cell.className = "y";
    if (mark === "n") cell.className = "n0";
    if (mark === "y" || mark === "n") cell.title = mark === "y" ? "right" : "wrong";
    line.append(cell);
  };

  const show = () => {
    const part = document.createDocumentFragment();
    for (const i of found.slice(shown, shown + STEP)) {
      const [seed, number, group, prompt, target, before] = data.probes[i];
      const [kind, meaning] = data.groups[group];
      const line = document.createElement("tr");
      const first = document.createElement("th");
      first.scope = "row";
      const small = document.createElement("small");
      small.textContent = `${kind}, ${meaning}`;
      first.append(`${data.seeds.length > 1 ? `seed ${data.seeds[seed]}, ` : ""}case ${number} `, small);
      line.append(first);
      add(line, heads[1], text(prompt));
      add(line, heads[2], text(target));
      add(line, heads[3], text(before));
      methods.forEach((m, j) => {
        ["immediate", "final"].forEach((moment, k) => {
          const it = result(m, i, moment);
          add(line, heads[4 + 2 * j + k], text(it.n), it.right);
        });
      });
      part.append(line);
    }
    rows.append(part);
    shown = Math.min(found.length, shown + STEP);
    const known = found.map((i) => result(methods[0], i, "final").right).filter((right) => right !== "-");
    const right = known.filter((it) => it === "y").length;
    count.textContent = `${found.length.toLocaleString("en")} answers, ${right.toLocaleString("en")} of ` +
      `${known.length.toLocaleString("en")} right in the end (${data.methods[methods[0]]}); ${shown} shown`;
    more.hidden = shown >= found.length;
  };

  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", show);
  search();
})();
