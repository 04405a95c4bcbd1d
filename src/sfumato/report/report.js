"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { runs } = data;
const illustrated = runs.filter((run) => run.moments.length);
const SVG = "http://www.w3.org/2000/svg";

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
  for (const [title, name, hint] of [
    ["KL", "kl", "to the reference, last step"],
    ["Throughput", "images_per_second", "images per second, median"],
  ]) {
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
  const [places, figures] = [[], []];
  let frames;
  for (let n = 0; n < moments[0].images.length; n++) {
    const place = { image: element("img", { alt: "" }), score: element("small") };
    places.push(place);
    // Pictures with the same name are grouped, up to four; pictures without a name are grouped in pairs.
    if (!n || names[n] !== names[n - 1] || frames.childElementCount === (names[n] ? 4 : 2)) {
      frames = element("div", { class: "frames" });
      figures.push(element("figure", {}, frames, ...(names[n] ? [element("figcaption", {}, names[n])] : [])));
    }
    frames.append(element("div", {}, place.image, place.score));
  }
  find("#scenes").replaceChildren(...figures);
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
  find("#pairs .lead").textContent =
    first === last
      ? "There is only one set of pictures so far, so there is nothing to compare."
      : `Step ${first.step} on the left and step ${last.step} on the right, with the same seed` +
        (rewarded ? "; the rewards and their change are below." : ".");
  find("#pairs .sort").hidden = !rewarded || first === last;
  find(".pairs").replaceChildren(
    ...(first === last ? [] : pairs).map((pair) => {
      const frames = pair.images.map((source, side) =>
        element(
          "div",
          {},
          element("img", { src: source, alt: `${pictureName(shown, pair.n)}, ${["before", "after"][side]}` }),
          ...(rewarded ? [element("small", {}, number(pair.ends[side]))] : []),
        ),
      );
      const caption = element("figcaption", {}, element("span", {}, shown.names[pair.n] ?? ""));
      if (pair.gain !== null) caption.append(element("b", {}, number(pair.gain, true)));
      return element("li", {}, element("figure", {}, element("div", { class: "frames" }, ...frames), caption));
    }),
  );
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
  for (const [value, text] of [
    ["gain", "Largest gain"],
    ["loss", "Largest loss"],
    ["drawn", "As drawn"],
  ]) {
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
      const change =
        typeof before[name] === "number" && typeof after[name] === "number" ? after[name] - before[name] : null;
      return [titled(name), number(before[name]), number(after[name]), number(change, true)];
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
          difference !== undefined && `${number(difference, true)}${range(sure)}`,
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

function titled(name) {
  const [title, unit] =
    { class_accuracy_top1: ["Class accuracy", "top-1"], class_accuracy_top5: ["Class accuracy", "top-5"] }[name] ??
    titleOf(name);
  return name === "reward_mean" ? "Reward" : `${title}${unit && `, ${unit}`}`;
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
showSettings();
showTheme();
for (const section of document.querySelectorAll("main > section:not([hidden])"))
  find("nav").append(element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
find("footer p").textContent =
  `Written by sfumato report, version ${data.version}. This file is self-contained and loads nothing else.`;
