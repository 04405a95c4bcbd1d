"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { runs } = data;
const illustrated = runs.filter((run) => run.moments.length);
const SVG = "http://www.w3.org/2000/svg";

/* Elements. All text goes in as text, never as HTML. */

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

function number(value, sign = false) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const digits = size >= 100 ? 1 : size >= 10 ? 2 : 3;
  const text = size > 0 && size < 0.0005 && !sign ? size.toExponential(1) : size.toFixed(digits);
  return (value < 0 ? "−" : sign ? "+" : "") + text;
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
  const { before = {}, after = {} } = run.evaluation;
  const list = element("dl");
  const state = (title, text, hint = "") =>
    list.append(element("div", {}, element("dt", {}, title), element("dd", {}, text, element("small", {}, hint))));
  const change = (title, name, hint) => {
    if (name in before) state(title, number(before[name]) + (name in after ? ` → ${number(after[name])}` : ""), hint);
  };
  const rewards = (run.curves.reward_mean?.[1] ?? []).filter((value) => value !== null);
  if ("reward_mean" in before) change("Reward", "reward_mean", `${before.images} fresh images`);
  else if (rewards.length) state("Reward", `${number(rewards[0])} → ${number(rewards.at(-1))}`, "first and last step");
  change("Class accuracy", "class_accuracy_top1", "top-1");
  for (const [title, name, hint] of [["KL", "kl", "to the reference, last step"], ["Throughput", "images_per_second", "images a second, median"]]) {
    const values = (run.curves[name]?.[1] ?? []).filter((value) => value !== null);
    if (name === "images_per_second") values.sort((a, b) => a - b);
    if (values.length) state(title, number(name === "kl" ? values.at(-1) : values[values.length >> 1]), hint);
  }
  const steps = run.done < run.steps ? `${run.done} of ${run.steps} steps, not finished` : `${run.done} steps`;
  const about = [run.model, `reward ${run.reward}`, `${steps} of ${run.images_per_step} images`];
  const article = element("article", { class: "card" });
  if (runs.length > 1) article.append(element("header", {}, swatch(run), element("h3", {}, run.name)));
  article.append(element("p", {}, about.join(" · ")), list);
  if (run.notes.length) article.append(element("ul", {}, ...run.notes.map((note) => element("li", {}, note))));
  return article;
}

/* Pictures: one run at a time, chosen in either section. */

let shown = illustrated[0];
let order = "gain";

function chooser(place, name) {
  if (illustrated.length < 2) return;
  const set = element("fieldset", { class: "segments" }, element("legend", { class: "hidden" }, "Run"));
  for (const run of illustrated) {
    const radio = element("input", { type: "radio", name });
    radio.checked = run === shown;
    radio.addEventListener("change", () => choose(run));
    set.append(element("label", {}, radio, element("span", {}, swatch(run), run.name)));
  }
  place.append(set);
}

function choose(run) {
  const step = shown.moments[find("#slider").value].step;
  shown = run;
  for (const set of document.querySelectorAll(".choose fieldset"))
    set.querySelectorAll("input")[illustrated.indexOf(run)].checked = true;
  const distances = run.moments.map((moment) => Math.abs(moment.step - step));
  showScenes(distances.indexOf(Math.min(...distances)));
  showPairs();
}

function pictureName(run, n) {
  return run.names[n] ?? `picture ${n + 1}`;
}

function showScenes(position) {
  const { moments, names } = shown;
  const places = [];
  for (let n = 0; n < moments[0].images.length; n++) {
    const image = element("img", { alt: "", draggable: "false" });
    const score = element("small");
    const frame = element("div", {}, image, score);
    places.push({ image, score });
    if (n && names[n] !== undefined && names[n] === names[n - 1] && places.group.childElementCount < 4) {
      places.group.append(frame);
      continue;
    }
    places.group = element("div", { class: "frames" }, frame);
    places.groups = [...(places.groups ?? []), element("figure", {}, places.group)];
    if (names[n] !== undefined) places.groups.at(-1).append(element("figcaption", {}, names[n]));
  }
  find("#scenes").replaceChildren(...places.groups);
  const slider = find("#slider");
  slider.max = moments.length - 1;
  slider.disabled = moments.length < 2;
  slider.value = position;
  slider.oninput = () => {
    const { step, images, rewards } = moments[slider.value];
    const known = (rewards ?? []).filter((reward) => reward !== null);
    const mean = known.length ? `mean reward ${number(known.reduce((a, b) => a + b, 0) / known.length)}` : "";
    find("#moment").replaceChildren(element("b", {}, `Step ${step}`), mean && element("small", {}, `  ${mean}`));
    slider.setAttribute("aria-valuetext", `step ${step}${mean && `, ${mean}`}`);
    places.forEach(({ image, score }, n) => {
      image.src = images[n];
      image.alt = `${pictureName(shown, n)}, step ${step}`;
      score.textContent = rewards ? number(rewards[n]) : "";
    });
  };
  slider.oninput();
}

function showPairs() {
  const [first, last] = [shown.moments[0], shown.moments.at(-1)];
  const rewarded = Boolean(first.rewards && last.rewards);
  const pairs = first.images.map((image, n) => {
    const ends = [first.rewards?.[n], last.rewards?.[n]];
    const known = ends.every((reward) => typeof reward === "number");
    return { n, images: [image, last.images[n]], ends, gain: known ? ends[1] - ends[0] : null };
  });
  const sign = { gain: -1, loss: 1 }[rewarded ? order : "drawn"] ?? 0;
  const rank = ({ gain }) => (gain === null ? Infinity : sign * gain);
  if (sign) pairs.sort((a, b) => rank(a) - rank(b) || a.n - b.n);
  find("#pairs .lead").textContent = first === last
    ? "There is only one set of pictures yet: nothing to compare."
    : `Step ${first.step} on the left, step ${last.step} on the right, from the same seed` + (rewarded ? "; the reward below, and its change." : ".");
  find("#pairs .sort").hidden = !rewarded || first === last;
  find(".pairs").replaceChildren(...(first === last ? [] : pairs).map((pair) => {
    const frames = pair.images.map((source, side) => element("div", {},
      element("img", { src: source, alt: `${pictureName(shown, pair.n)}, ${["before", "after"][side]}` }),
      ...(rewarded ? [element("small", {}, number(pair.ends[side]))] : [])));
    const caption = element("figcaption", {}, element("span", {}, shown.names[pair.n] ?? ""));
    if (pair.gain !== null) caption.append(element("b", {}, number(pair.gain, true)));
    return element("li", {}, element("figure", {}, element("div", { class: "frames" }, ...frames), caption));
  }));
  for (const button of document.querySelectorAll("#pairs .sort button"))
    button.setAttribute("aria-pressed", String(button.value === order));
}

function showPictures() {
  if (!illustrated.length) {
    find("#training").hidden = find("#pairs").hidden = true;
    return;
  }
  chooser(find("#training .choose"), "run-of-training");
  chooser(find("#pairs .choose"), "run-of-pairs");
  for (const [value, text] of [["gain", "Largest gain"], ["loss", "Largest loss"], ["drawn", "As drawn"]]) {
    const button = element("button", { type: "button", value }, text);
    button.addEventListener("click", () => {
      order = value;
      showPairs();
    });
    find("#pairs .sort").append(button);
  }
  showScenes(shown.moments.length - 1);
  showPairs();
}

/* Curves. One cursor for all of them. */

const TITLES = {
  reward_mean: ["Reward", "mean of a step"],
  reward_std: ["Reward", "standard deviation in a step"],
  kl: ["KL to the reference", "nats a token"],
  entropy: ["Entropy", "nats a token"],
  images_per_second: ["Throughput", "images a second"],
  clip_fraction: ["Clip fraction", ""],
  grad_norm: ["Gradient norm", ""],
  learning_rate: ["Learning rate", ""],
  ratio_mean: ["Ratio", "mean"],
  equal_groups: ["Groups of equal rewards", "share"],
  unscored: ["Images without a score", "share"],
  "fixed_set/reward_mean": ["Reward of the fixed pictures", "mean"],
  "fixed_set/entropy": ["Entropy of the fixed pictures", "nats a token"],
};
const charts = [];

function titleOf(name) {
  if (name in TITLES) return TITLES[name];
  const [kind, ...rest] = name.split("/");
  const part = rest.join("/").replaceAll("_", " ");
  const kinds = { reward: "Reward", reward_std: "Standard deviation", reward_correlation: "Correlation with the reward", held_out: "Held out", seconds: "Seconds" };
  return part && kinds[kind] ? [`${kinds[kind]}: ${part}`, ""] : [name.replaceAll("_", " "), ""];
}

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) found.push(k * step);
  return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
}

function addChart(place, name) {
  const curves = runs.flatMap((run, n) => run.curves[name] ? [{ run, n, steps: run.curves[name][0], values: run.curves[name][1] }] : []);
  const [title, unit] = titleOf(name);
  const values = element("span", { class: "values" });
  const plot = element("div", { class: "plot", tabindex: 0, role: "slider", "aria-label": `${title}${unit && `, ${unit}`}` });
  const heading = element("h3", {}, title, " ", element("small", {}, unit));
  place.append(element("figure", {}, element("figcaption", {}, heading, values), plot));
  const steps = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const chart = { name, curves, steps, plot, values, step: null };
  charts.push(chart);
  plot.setAttribute("aria-valuemin", steps[0]);
  plot.setAttribute("aria-valuemax", steps.at(-1));
  new ResizeObserver(() => draw(chart)).observe(plot);
  plot.addEventListener("pointermove", (event) => {
    if (chart.stepAt) moveCursor(chart.stepAt(event.clientX - plot.getBoundingClientRect().left));
  });
  plot.addEventListener("pointerleave", () => moveCursor(null));
  plot.addEventListener("blur", () => moveCursor(null));
  plot.addEventListener("keydown", (event) => {
    const at = nearest(steps, chart.step ?? steps.at(-1));
    const leap = Math.max(1, Math.round(steps.length / 10));
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - leap, PageUp: at + leap, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    moveCursor(steps[Math.min(Math.max(to, 0), steps.length - 1)]);
  });
  mark(chart, null);
}

function nearest(steps, step) {
  let best = 0;
  for (let n = 1; n < steps.length; n++) if (Math.abs(steps[n] - step) < Math.abs(steps[best] - step)) best = n;
  return best;
}

function draw(chart) {
  const { plot, curves, steps } = chart;
  const [width, height] = [plot.clientWidth, plot.clientHeight];
  if (!width) return;
  const spread = chart.name === "reward_mean" && curves.length === 1 ? curves[0].run.curves.reward_std?.[1] : null;
  const known = curves.flatMap((curve) => curve.values).filter((value) => value !== null);
  const ends = spread ? curves[0].values.flatMap((value, n) => value === null || spread[n] === null ? [] : [value - spread[n], value + spread[n]]) : [];
  let [low, high] = [...known, ...ends].reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  if (!known.length) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
  [low, high] = [low - (high - low) * 0.05, high + (high - low) * 0.05];
  const [marks, decimals] = ticks(low, high, 4);
  const labels = marks.map((value) => decimals > 4 ? value.toExponential(0) : value.toFixed(decimals).replace("-", "−"));
  const left = 12 + 6.6 * Math.max(...labels.map((label) => label.length), 1);
  const [right, top, bottom] = [width - 6, 6, height - 22];
  const [first, last] = [steps[0], Math.max(steps.at(-1), steps[0] + 1)];
  chart.x = (step) => left + (right - left) * (step - first) / (last - first);
  chart.y = (value) => bottom - (bottom - top) * (value - low) / (high - low);
  chart.stepAt = (x) => steps[nearest(steps, first + (x - left) / (right - left) * (last - first))];
  const svg = drawn("svg", { "aria-hidden": "true" });
  marks.forEach((value, n) => {
    svg.append(drawn("line", { x1: left, x2: right, y1: chart.y(value), y2: chart.y(value) }));
    svg.append(drawn("text", { x: left - 8, y: chart.y(value) + 4, "text-anchor": "end" }, labels[n]));
  });
  for (const step of ticks(first, last, Math.min(6, width / 70))[0].filter(Number.isInteger))
    svg.append(drawn("text", { x: chart.x(step), y: height - 3, "text-anchor": step === last ? "end" : "middle" }, step));
  for (const curve of curves) {
    const points = curve.values.map((value, n) => value === null ? null : [chart.x(curve.steps[n]), chart.y(value)]);
    const line = points.map((point, n) => point && `${points[n - 1] ? "L" : "M"}${point.map((at) => at.toFixed(1))}`).filter(Boolean).join("");
    if (spread && line) {
      const side = (sign) => curve.values.flatMap((value, n) => value === null || spread[n] === null ? [] : [`${chart.x(curve.steps[n]).toFixed(1)},${chart.y(value + sign * spread[n]).toFixed(1)}`]);
      svg.append(drawn("path", { class: "band", d: `M${side(1).join("L")}L${side(-1).reverse().join("L")}Z`, style: `fill:var(--run-${curve.n % 6})` }));
    }
    svg.append(drawn("path", { d: line || "M0,0", ...stroke(curve.n) }));
    if (points.length < 30) for (const point of points) if (point) svg.append(drawn("circle", { cx: point[0], cy: point[1], r: 2.6, fill: `var(--run-${curve.n % 6})`, style: "stroke:none" }));
  }
  chart.overlay = drawn("g", {});
  svg.append(chart.overlay);
  plot.replaceChildren(svg);
  mark(chart, chart.step);
}

function moveCursor(step) {
  for (const chart of charts) mark(chart, step === null ? null : chart.steps[nearest(chart.steps, step)]);
}

function mark(chart, step) {
  chart.step = step;
  const at = step ?? chart.steps.at(-1);
  const found = chart.curves.flatMap((curve) => {
    const n = step === null ? curve.steps.length - 1 : curve.steps.indexOf(at);
    return n < 0 ? [] : [{ ...curve, step: curve.steps[n], value: curve.values[n] }];
  });
  const several = runs.length > 1;
  chart.values.replaceChildren(
    ...(step === null ? [] : [element("span", {}, `step ${at}`)]),
    ...found.map(({ run, value }) => element("span", {}, ...(several ? [swatch(run)] : []), element("b", {}, number(value)))));
  chart.plot.setAttribute("aria-valuenow", at);
  chart.plot.setAttribute("aria-valuetext", `step ${at}: ${found.map(({ run, value }) => `${several ? `${run.name} ` : ""}${number(value)}`).join(", ")}`);
  if (!chart.overlay) return;
  chart.overlay.replaceChildren();
  if (step === null) return;
  chart.overlay.append(drawn("line", { class: "cursor", x1: chart.x(at), x2: chart.x(at), y1: 6, y2: chart.plot.clientHeight - 22 }));
  for (const { n, value } of found)
    if (value !== null) chart.overlay.append(drawn("circle", { cx: chart.x(at), cy: chart.y(value), r: 4.5, fill: `var(--run-${n % 6})` }));
}

function showCurves() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  find("#curves").hidden = !names.length;
  const several = runs.some((run) => Object.keys(run.curves).filter((name) => name.startsWith("reward/")).length > 1);
  const parts = names.filter((name) => several && name.startsWith("reward/"));
  const main = ["reward_mean", ...parts, "kl", "entropy", "images_per_second", ...names.filter((name) => name.startsWith("held_out/"))];
  const [place, more] = document.querySelectorAll("#curves .charts");
  if (runs.length > 1) find("#curves .legend").append(...runs.map((run) => element("span", {}, swatch(run), run.name)));
  for (const name of main) if (names.includes(name)) addChart(place, name);
  for (const name of names) if (!main.includes(name)) addChart(more, name);
  find("#curves details").hidden = !more.children.length;
}

/* Tables. */

function table(title, hint, head, rows, kind = "") {
  const cell = (content, n) => element(n ? "td" : "th", n ? {} : { scope: "row" }, ...[content].flat());
  const header = element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map(cell)));
  const whole = element("table", kind ? { class: kind } : {},
    element("caption", {}, title, " ", element("small", {}, hint)), element("thead", {}, header), element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, whole);
}

function showEvaluation() {
  const place = find("#evaluation .tables");
  for (const run of runs) {
    const { before, after = {} } = run.evaluation;
    if (!before) continue;
    const parts = Object.keys(before).filter((name) => name.startsWith("reward/"));
    const alone = parts.length === 1 && before[parts[0]] === before.reward_mean ? parts[0] : ""; // says the same twice
    const names = Object.keys({ ...before, ...after }).filter((name) => name !== "images" && name !== alone);
    const rows = names.map((name) => {
      const change = typeof before[name] === "number" && typeof after[name] === "number" ? after[name] - before[name] : null;
      return [titled(name), number(before[name]), number(after[name]), number(change, true)];
    });
    place.append(table(run.name, `${before.images} fresh images, the same seeds`, ["", "before", "after", "change"], rows));
  }
  for (const { name, suite, settings, targets } of data.evaluations) {
    const figures = [...new Set(Object.values(targets).flatMap((target) => Object.keys(target)))];
    const range = (interval) => (interval ? ` [${interval.map((end) => number(end)).join(", ")}]` : "");
    const rows = figures.map((figure) => [figure, ...Object.values(targets).map((target) => {
      const { value, interval, difference, difference_interval: sure } = target[figure] ?? {};
      const lines = [interval && range(interval), difference !== undefined && `${number(difference, true)}${range(sure)}`];
      return [number(value), ...lines.filter(Boolean).map((line) => element("small", {}, line))];
    })]);
    const hint = Object.values(targets).length > 1 ? `${suite}; below, 95 % intervals and differences to the first` : `${suite}; below, 95 % intervals`;
    const whole = element("div", {}, table(name, hint, ["", ...Object.keys(targets)], rows));
    const options = Object.entries(settings);
    if (options.length) whole.append(element("details", {}, element("summary", {}, "How it was measured"), table("Options", "", ["option", "value"], options, "text")));
    place.append(whole);
  }
  find("#evaluation").hidden = !place.children.length;
}

function titled(name) {
  const [title, unit] = { class_accuracy_top1: ["Class accuracy", "top-1"], class_accuracy_top5: ["Class accuracy", "top-5"] }[name] ?? titleOf(name);
  return name === "reward_mean" ? "Reward" : `${title}${unit && `, ${unit}`}`;
}

function showSettings() {
  const place = find("#settings .tables");
  const head = ["setting", ...runs.map((run) => run.name)];
  const row = ({ name, values }) => [name, ...values.map((value) => value ?? "–")];
  const different = data.settings.filter(({ differs }) => differs);
  if (runs.length > 1) {
    const title = different.length ? "What differs" : "The settings of all runs are the same";
    const whole = different.length ? table(title, "", head, different.map(row), "text") : element("p", {}, `${title}.`);
    whole.classList.add("wide");
    place.append(whole);
  }
  const all = element("details", { class: "wide" }, element("summary", {}, "All settings"), table("All settings", "", head, data.settings.map(row), "text"));
  all.open = runs.length === 1;
  place.append(all);
}

/* The page. */

function showTheme(scheme) {
  if (scheme) document.documentElement.style.colorScheme = scheme;
  const dark = (scheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  find("#theme").textContent = dark ? "Light" : "Dark";
  find("#theme").setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colours`);
  find("#theme").onclick = () => showTheme(dark ? "light" : "dark");
}

find("#runs").append(...runs.map(card));
showPictures();
showCurves();
showEvaluation();
showSettings();
showTheme();
for (const section of document.querySelectorAll("main > section:not([hidden])"))
  find("nav").append(element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
find("footer p").textContent = `Written by sfumato report, version ${data.version}. This file holds all that it shows and fetches nothing.`;
