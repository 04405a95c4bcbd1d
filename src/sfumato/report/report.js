"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { runs } = data;
const SVG = "http://www.w3.org/2000/svg";
const [TOP_1, TOP_5] = ["top\u20111", "top\u20115"]; // with a hyphen at which lines do not break
const WEIGHTS = {
  base: "base model",
  network: "network of the base model",
  tokenizer: "tokenizer of the base model",
  trained: "newest checkpoint of the run",
};

/* Elements. All text is inserted as text, never as HTML. */

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function drawn(tag, attributes, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function find(selector) {
  return document.querySelector(selector);
}

/* The number of decimals: the usual one for the size of the values, or as many as show two digits of their spread. */
function decimalsOf(values) {
  const known = values.filter((value) => typeof value === "number");
  const low = known.reduce((a, b) => Math.min(a, b), Infinity);
  const high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const size = Math.max(Math.abs(low), Math.abs(high));
  if (!known.length || !size) return 3;
  const usual = size >= 100 ? 1 : size >= 10 ? 2 : 3;
  const spread = high - low > 1e-6 * size ? high - low : size;
  return Math.max(usual, 1 - Math.floor(Math.log10(spread)));
}

function number(value, decimals = decimalsOf([value]), sign = false) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = decimals > 7 && size ? size.toExponential(2).replace("-", "−") : size.toFixed(Math.min(decimals, 7));
  return (value < 0 ? "−" : sign ? "+" : "") + text;
}

/* A change, with the same decimals at both ends. */
function change(before, after) {
  const decimals = decimalsOf([before, after]);
  return number(before, decimals) + (after === undefined ? "" : ` → ${number(after, decimals)}`);
}

function known(run, name) {
  return (run.curves[name]?.[1] ?? []).filter((value) => value !== null);
}

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

function duration(seconds) {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${number(seconds, 1)} s`;
}

function stroke(n) {
  return { stroke: `var(--run-${n % 6})`, "stroke-dasharray": ["none", "6 4", "2 4"][Math.floor(n / 6) % 3] };
}

function swatch(run) {
  const svg = drawn("svg", { class: "swatch", viewBox: "0 0 24 10", "aria-hidden": "true" });
  svg.append(drawn("line", { x1: 1, x2: 23, y1: 5, y2: 5, "stroke-width": 4, ...stroke(runs.indexOf(run)) }));
  return svg;
}

/* Runs, at the top. */

function card(run) {
  const list = element("dl");
  const state = (title, text, hint = "") =>
    list.append(element("div", {}, element("dt", {}, title), element("dd", {}, text, element("small", {}, hint))));
  const about = run.stages ? stateStages(run, state) : stateTraining(run, state);
  const article = element("article", { class: "card" });
  if (runs.length > 1) article.append(element("header", {}, swatch(run), element("h3", {}, run.name)));
  article.append(element("p", {}, about.join(" · ")), list);
  if (run.notes.length) article.append(element("ul", {}, ...run.notes.map((note) => element("li", {}, note))));
  return article;
}

function progress(done, steps) {
  return done < steps ? `${done} of ${steps} steps, not finished` : `${done} steps`;
}

function stateTraining(run, state) {
  const { before = {}, after = {} } = run.evaluation;
  const rewards = known(run, "reward_mean");
  if ("reward_mean" in before)
    state("Reward", change(before.reward_mean, after.reward_mean), `${before.images} fresh images`);
  else if (rewards.length) state("Reward", change(rewards[0], rewards.at(-1)), "first and last step");
  if ("class_accuracy_top1" in before)
    state("Class accuracy", change(before.class_accuracy_top1, after.class_accuracy_top1), TOP_1);
  const [kl, speed, memory] = ["kl", "images_per_second", "peak_memory"].map((name) => known(run, name));
  if (kl.length) state("KL", number(kl.at(-1)), "to the reference, last step");
  if (speed.length) state("Throughput", number(median(speed)), "images per second, median");
  if (memory.length) state("Peak memory", number(memory.at(-1)), "GiB, of the first process");
  const terms = Object.entries(run.reward).filter(([, weight]) => weight);
  const measured = Object.entries(run.reward).filter(([, weight]) => !weight);
  return [
    run.model,
    ...(terms.length ? [`reward ${terms.map(([name, weight]) => `${name} × ${weight}`).join(" + ")}`] : []),
    ...(measured.length ? [`measured only: ${measured.map(([name]) => name).join(", ")}`] : []),
    `${progress(run.done, run.steps)} of ${run.images_per_step} images`,
  ];
}

function stateStages(run, state) {
  for (const { name, done, steps } of run.stages) {
    const [loss, validation] = [known(run, `${name}/loss`), known(run, `${name}/val_loss`)];
    const title = titled(name);
    if (loss.length) state(`${title} loss`, change(loss[0], loss.at(-1)), progress(done, steps));
    if (!validation.length) continue;
    const lowest = `lowest ${number(Math.min(...validation))}`;
    state(`${title} validation`, change(validation[0], validation.at(-1)), lowest);
  }
  return [
    run.start_from ? `started from ${run.start_from}` : "from scratch",
    ...(run.images ? [`${run.images} images${run.held_out ? `, ${run.held_out} of them held out` : ""}`] : []),
    ...(run.classes ? [`${run.classes} classes`] : []),
  ];
}

/* Tables. */

function table(title, hint, head, rows, kind = "") {
  const cell = (content, n) => element(n ? "td" : "th", n ? {} : { scope: "row" }, ...[content].flat());
  const header = element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map(cell)));
  const whole = element(
    "table",
    kind ? { class: kind } : {},
    element("caption", {}, title, " ", element("small", {}, hint)),
    element("thead", {}, header),
    element("tbody", {}, ...body),
  );
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, whole);
}

function showEvaluation() {
  const place = find("#evaluation .tables");
  for (const run of runs) {
    const { before, after = {} } = run.evaluation;
    if (!before) continue;
    const parts = Object.keys(before).filter((name) => name.startsWith("reward/"));
    const alone = parts.length === 1 && before[parts[0]] === before.reward_mean ? parts[0] : ""; // would repeat the mean
    const names = Object.keys({ ...before, ...after }).filter((name) => name !== "images" && name !== alone);
    const rows = names.map((name) => {
      const ends = [before[name], after[name]];
      const gain = ends.every((value) => typeof value === "number") ? ends[1] - ends[0] : null;
      const decimals = decimalsOf(ends);
      return [figureTitle(name), ...ends.map((value) => number(value, decimals)), number(gain, decimals, true)];
    });
    place.append(
      table(run.name, `${before.images} fresh images, with the same seeds`, ["", "before", "after", "change"], rows),
    );
  }
  for (const { name, suite, settings, targets } of data.evaluations) {
    const figures = [...new Set(Object.values(targets).flatMap((target) => Object.keys(target)))];
    const range = (interval) => (interval ? ` [${interval.map((end) => number(end)).join(", ")}]` : "");
    const rows = figures.map((figure) => [
      figure,
      ...Object.values(targets).map((target) => {
        const { value, interval, difference, difference_interval: sure } = target[figure] ?? {};
        const lines = [
          interval && range(interval),
          difference !== undefined && `${number(difference, undefined, true)}${range(sure)}`,
        ];
        return [number(value), ...lines.filter(Boolean).map((line) => element("small", {}, line))];
      }),
    ]);
    const hint =
      Object.values(targets).length > 1
        ? `${suite}; below each value, its 95 % interval and its difference to the first`
        : `${suite}; below each value, its 95 % interval`;
    const whole = element("div", {}, table(name, hint, ["", ...Object.keys(targets)], rows));
    const options = Object.entries(settings);
    if (options.length)
      whole.append(
        element(
          "details",
          {},
          element("summary", {}, "How it was measured"),
          table("Options", "", ["option", "value"], options, "text"),
        ),
      );
    place.append(whole);
  }
  find("#evaluation").hidden = !place.children.length;
}

function figureTitle(name) {
  const [title, unit] =
    { class_accuracy_top1: ["Class accuracy", TOP_1], class_accuracy_top5: ["Class accuracy", TOP_5] }[name] ??
    titleOf(name);
  return name === "reward_mean" ? "Reward" : `${title}${unit && `, ${unit}`}`;
}

/* How the runs were run: weights, starts, and where the time of a step goes. */
function showMachines() {
  const place = find("#machines .tables");
  for (const make of [weightsOf, timesOf, startsOf]) place.append(...runs.map(make).filter(Boolean));
  find("#machines").hidden = !place.children.length;
}

function weightsOf(run) {
  const rows = Object.entries(run.weights ?? {}).map(([part, file]) => [WEIGHTS[part], file]);
  return rows.length && table(`Weights${of(run)}`, "", ["part", "from"], rows, "text");
}

function timesOf(run) {
  const names = Object.keys(run.curves).filter((name) => name.startsWith("seconds/"));
  const phases = names.map((name) => [name.slice("seconds/".length), median(known(run, name)) ?? 0]);
  const total = phases.reduce((sum, [, seconds]) => sum + seconds, 0);
  const share = (seconds) => `${total ? Math.round((100 * seconds) / total) : 0} %`;
  const rows = [...phases, ["all", total]].map(([phase, seconds]) => [phase, number(seconds), share(seconds)]);
  return phases.length && table(`Time of a step${of(run)}`, "medians", ["", "seconds", "share"], rows);
}

function startsOf(run) {
  const items = run.starts.map((start) => element("li", {}, ...startLines(start)));
  const title = element("h3", {}, `Starts${of(run)}`);
  return items.length && element("div", { class: "starts" }, title, element("ol", {}, ...items));
}

function startLines({ started = "", seconds, host = "", version = "", command = "" }) {
  const time = started.replace("T", " ").replace("+00:00", " UTC");
  const length = typeof seconds === "number" ? `took ${duration(seconds)}` : "still running, or killed";
  const about = [time, length, host && `on ${host}`, version && `version ${version}`].filter(Boolean);
  return [element("p", {}, about.join(" · ")), element("code", {}, command)];
}

function of(run) {
  return runs.length > 1 ? ` of ${run.name}` : "";
}

function showSettings() {
  const place = find("#settings .tables");
  if (runs.length === 1) {
    const pairs = data.settings.map(({ name, values }) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, values[0])),
    );
    place.append(element("dl", { class: "columns wide" }, ...pairs));
    return;
  }
  const head = ["setting", ...runs.map((run) => run.name)];
  const row = ({ name, values }) => [name, ...values.map((value) => value ?? "–")];
  const different = data.settings.filter(({ differs }) => differs);
  const difference = different.length
    ? table("What differs", "", head, different.map(row), "text")
    : element("p", {}, "All runs have the same settings.");
  difference.classList.add("wide");
  const all = table("All settings", "", head, data.settings.map(row), "text");
  place.append(difference, element("details", { class: "wide" }, element("summary", {}, "All settings"), all));
}

/* The metrics as a file, one row for each run and step. Names come from users, so cells are quoted. */

function metricsCsv() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  const rows = runs.flatMap((run) => {
    const bySteps = new Map();
    for (const name of names)
      run.curves[name]?.[0].forEach((step, at) => {
        if (!bySteps.has(step)) bySteps.set(step, {});
        bySteps.get(step)[name] = run.curves[name][1][at];
      });
    const steps = [...bySteps.keys()].sort((a, b) => a - b);
    return steps.map((step) => [run.name, step, ...names.map((name) => bySteps.get(step)[name] ?? "")]);
  });
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
  return [["run", "step", ...names], ...rows].map((row) => row.map(quoted).join(",") + "\n").join("");
}

function saveMetrics() {
  const address = URL.createObjectURL(new Blob([metricsCsv()], { type: "text/csv" }));
  element("a", { href: address, download: "metrics.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/* The page. */

function showTheme(scheme) {
  if (scheme) document.documentElement.style.colorScheme = scheme;
  const dark = (scheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  find("#theme").textContent = dark ? "Light" : "Dark";
  find("#theme").setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colors`);
  find("#theme").onclick = () => showTheme(dark ? "light" : "dark");
}

find("#runs").append(...runs.map(card));
showPictures();
showCurves();
showEvaluation();
showMachines();
showSettings();
showTheme();
for (const section of document.querySelectorAll("main > section:not([hidden])"))
  find("nav").append(element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
find("footer p").textContent =
  `Written by sfumato report, version ${data.version}. This file is self-contained and loads nothing else.`;
