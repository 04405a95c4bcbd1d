"use strict";

/* Curves, with one shared cursor. */

const TITLES = {
  reward_mean: ["Reward", "mean per step"],
  reward_std: ["Reward", "standard deviation per step"],
  kl: ["KL to the reference", "nats per token"],
  entropy: ["Entropy", "nats per token"],
  images_per_second: ["Throughput", "images per second"],
  peak_memory: ["Peak memory", "GiB so far, of the first process"],
  clip_fraction: ["Clip fraction", ""],
  grad_norm: ["Gradient norm", ""],
  learning_rate: ["Learning rate", ""],
  ratio_mean: ["Ratio", "mean"],
  equal_groups: ["Groups with equal rewards", "share"],
  unscored: ["Images without a score", "share"],
  "fixed_set/reward_mean": ["Reward of the fixed pictures", "mean"],
  "fixed_set/entropy": ["Entropy of the fixed pictures", "nats per token"],
  "held_out/optimized": ["Held out: the reward itself", "on fixed images"],
};
const KINDS = {
  reward: "Reward",
  reward_std: "Standard deviation",
  reward_correlation: "Correlation with the reward",
  held_out: "Held out",
  seconds: "Seconds",
};
const STAGE_TITLES = {
  psnr: "PSNR",
  grad_norm: "gradient norm",
  codes_used: "share of the codes in use",
  bit_balance: "balance of the bits",
};
const charts = [];
let smoothing = 0;

function titleOf(name) {
  if (name in TITLES) return TITLES[name];
  const [kind, ...rest] = name.split("/");
  const part = rest.join("/").replace(/^reward\//, "");
  if (!part) return [titled(name), ""];
  if (kind in KINDS) return [`${KINDS[kind]}: ${kind.startsWith("reward") ? part : part.replaceAll("_", " ")}`, ""];
  return [`${titled(kind)}: ${STAGE_TITLES[part] ?? part.replaceAll("_", " ")}`, ""];
}

function titled(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/* The curve of the same figure on held-out images, which shares its chart: generator/val_loss for generator/loss. */
function validationOf(name) {
  const [stage, part] = name.split("/");
  return `${stage}/val_${part}`;
}

/* An exponential moving average with the weight of the first values corrected (as in Adam); gaps stay gaps. */
function smoothed(values, weight) {
  let [mean, total] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const marks = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) marks.push(k * step);
  return [marks, step];
}

/* Labels of ticks, with as many digits as tell them apart. Very small and very large ones share an exponent. */
function tickLabels(marks, step) {
  const digit = Math.floor(Math.log10(step) + 1e-9);
  const size = marks.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const exponent = Math.floor(Math.log10(size || 1) + 1e-9);
  const shared = digit < -4 || exponent > 5;
  const decimals = Math.max(0, shared ? exponent - digit : -digit);
  return marks.map((value) => {
    if (Math.abs(value) < step / 2) return "0";
    const text = shared ? `${(value / 10 ** exponent).toFixed(decimals)}e${exponent}` : value.toFixed(decimals);
    return text.replaceAll("-", "−");
  });
}

function addChart(place, name) {
  const curveOf = (run, n, name) => ({ run, n, steps: run.curves[name]?.[0], values: run.curves[name]?.[1] });
  const curves = runs.map((run, n) => curveOf(run, n, name)).filter((curve) => curve.steps);
  const validated = runs.map((run, n) => curveOf(run, n, validationOf(name))).filter((curve) => curve.steps);
  curves.push(...validated.map((curve) => ({ ...curve, dashed: true })));
  if (name === "reward_mean" && curves.length === 1) curves[0].spread = curves[0].run.curves.reward_std?.[1];
  const title = titleOf(name)[0];
  const unit = validated.length ? "dashed: held-out images" : titleOf(name)[1];
  const values = element("span", { class: runs.length > 1 ? "values several" : "values" });
  const plot = element("div", {
    class: "plot",
    tabindex: 0,
    role: "slider",
    "aria-label": `${title}${unit && `, ${unit}`}`,
  });
  const heading = element("h3", {}, title, " ", element("small", {}, unit));
  place.append(element("figure", {}, element("figcaption", {}, heading, values), plot));
  const steps = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const decimals = decimalsOf(curves.flatMap((curve) => curve.values));
  const chart = { name, curves, steps, decimals, plot, values, step: null };
  charts.push(chart);
  plot.setAttribute("aria-valuemin", steps[0]);
  plot.setAttribute("aria-valuemax", steps.at(-1));
  new ResizeObserver(() => draw(chart)).observe(plot);
  plot.addEventListener("pointermove", (event) => {
    if (chart.stepAt) moveCursor(chart.stepAt(event.clientX - plot.getBoundingClientRect().left));
  });
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && moveCursor(null));
  plot.addEventListener("focus", () => moveCursor(chart.step ?? steps.at(-1)));
  plot.addEventListener("blur", () => moveCursor(null));
  plot.addEventListener("keydown", (event) => {
    const at = nearest(steps, chart.step ?? steps.at(-1));
    const leap = Math.max(1, Math.round(steps.length / 10));
    const to = {
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      PageDown: at - leap,
      PageUp: at + leap,
      Home: 0,
      End: steps.length - 1,
    }[event.key];
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
  if (!chart.plot.clientWidth) return;
  Object.assign(chart, scales(chart));
  const svg = drawn("svg", { "aria-hidden": "true" });
  svg.append(...grid(chart), ...chart.curves.flatMap((curve) => trace(chart, curve)));
  chart.overlay = drawn("g", {});
  svg.append(chart.overlay);
  chart.plot.replaceChildren(svg);
  mark(chart, chart.step);
}

/* Scales for the current size of a plot: from steps and values to pixels, and from pixels to steps. */
function scales({ plot, curves, steps }) {
  const known = curves
    .flatMap(({ values, spread }) => values.flatMap((value, n) => [value, ...band(value, spread?.[n])]))
    .filter((value) => value !== null);
  let low = known.reduce((a, b) => Math.min(a, b), known[0] ?? 0);
  let high = known.reduce((a, b) => Math.max(a, b), known[0] ?? 1);
  if (low === 0 && high === 0) high = 1; // a constant zero lies on the axis
  const margin = low === high ? Math.abs(low) / 10 : (high - low) / 20;
  [low, high] = [low - margin, high + margin];
  const [marks, step] = ticks(low, high, 4);
  const labels = tickLabels(marks, step);
  const left = 12 + 6.6 * Math.max(...labels.map((label) => label.length), 1);
  const [right, top, bottom] = [plot.clientWidth - 6, 6, plot.clientHeight - 22];
  const [first, last] = [steps[0], Math.max(steps.at(-1), steps[0] + 1)];
  return {
    area: { left, right, top, bottom },
    marks: marks.map((value, n) => [value, labels[n]]),
    x: (step) => left + ((right - left) * (step - first)) / (last - first),
    y: (value) => bottom - ((bottom - top) * (value - low)) / (high - low),
    stepAt: (x) => steps[nearest(steps, first + ((x - left) / (right - left)) * (last - first))],
  };
}

function band(value, spread) {
  return typeof value === "number" && typeof spread === "number" ? [value - spread, value + spread] : [];
}

function grid({ area, marks, steps, x, y }) {
  const { left, right, bottom } = area;
  const rows = marks.flatMap(([value, label]) => [
    drawn("line", { x1: left, x2: right, y1: y(value), y2: y(value) }),
    drawn("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, label),
  ]);
  const [columns] = ticks(steps[0], steps.at(-1), Math.min(6, right / 70));
  const anchor = (step) => (step === steps.at(-1) ? "end" : "middle");
  const below = columns.filter(Number.isInteger);
  return [
    ...rows,
    ...below.map((step) => drawn("text", { x: x(step), y: bottom + 19, "text-anchor": anchor(step) }, step)),
  ];
}

/* A curve: a line with gaps at missing values, points if there are few, and a band of one standard deviation. */
function trace({ x, y }, { n, steps, values, spread, dashed }) {
  const colour = `var(--run-${n % 6})`;
  const place = (at, value) => `${x(steps[at]).toFixed(1)},${y(value).toFixed(1)}`;
  const known = steps.map((_, at) => at).filter((at) => values[at] !== null);
  const line = (values) =>
    known.map((at) => (at && values[at - 1] !== null ? "L" : "M") + place(at, values[at])).join("");
  const style = { ...stroke(n), ...(dashed ? { "stroke-dasharray": "5 4" } : {}) };
  const shapes = [drawn("path", { d: line(values), ...style })];
  if (smoothing) {
    shapes[0].setAttribute("class", "faint");
    shapes.push(drawn("path", { d: line(smoothed(values, smoothing)), ...style }));
  }
  if (steps.length < 30) {
    const look = { r: 2.6, fill: colour, style: "stroke:none", class: smoothing ? "faint" : "" };
    shapes.push(...known.map((at) => drawn("circle", { cx: x(steps[at]), cy: y(values[at]), ...look })));
  }
  const edges = spread ? known.filter((at) => spread[at] !== null) : [];
  if (edges.length) {
    const side = (sign) => edges.map((at) => place(at, values[at] + sign * spread[at]));
    const around = [...side(1), ...side(-1).reverse()].join("L");
    shapes.unshift(drawn("path", { class: "band", d: `M${around}Z`, style: `fill:${colour}` }));
  }
  return shapes;
}

function moveCursor(step) {
  for (const chart of charts) mark(chart, step === null ? null : chart.steps[nearest(chart.steps, step)]);
}

function mark(chart, step) {
  chart.step = step;
  const at = step ?? chart.steps.at(-1);
  const readings = chart.curves
    .filter(({ steps }) => step === null || (steps[0] <= at && at <= steps.at(-1)))
    .map(({ run, n, steps, values, dashed }) => {
      const here = step === null ? steps.length - 1 : nearest(steps, at);
      return { run, n, step: steps[here], value: values[here], kind: dashed ? "held out " : "" };
    });
  const several = runs.length > 1;
  chart.values.replaceChildren(
    ...(step === null ? [] : [element("span", {}, `step ${at}`)]),
    ...readings.map(({ run, value, kind }) =>
      element("span", {}, ...(several ? [swatch(run)] : []), kind, element("b", {}, number(value, chart.decimals))),
    ),
  );
  chart.plot.setAttribute("aria-valuenow", at);
  const spoken = readings.map(
    ({ run, value, kind }) => (several ? `${run.name} ` : "") + kind + number(value, chart.decimals),
  );
  chart.plot.setAttribute("aria-valuetext", `step ${at}: ${spoken.join(", ")}`);
  if (!chart.overlay) return;
  chart.overlay.replaceChildren();
  if (step === null) return;
  chart.overlay.append(
    drawn("line", { class: "cursor", x1: chart.x(at), x2: chart.x(at), y1: chart.area.top, y2: chart.area.bottom }),
  );
  for (const { n, step, value } of readings) {
    const dot = { cx: chart.x(step), cy: chart.y(value), r: 4.5, fill: `var(--run-${n % 6})` };
    if (value !== null) chart.overlay.append(drawn("circle", dot));
  }
}

/* The order of the curves that everybody looks at; -1 for the others, which are below them. */
function rankOf(name, several) {
  if (runs.some((run) => run.stages))
    return ["loss", "psnr", "accuracy", "codes_used", "bit_balance"].includes(name.split("/").at(-1)) ? 0 : -1;
  const groups = [
    name === "reward_mean",
    several && name.startsWith("reward/"),
    name === "kl",
    name === "entropy",
    name === "images_per_second",
    name.startsWith("held_out/"),
  ];
  return groups.indexOf(true);
}

function showCurves() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  find("#curves").hidden = !names.length;
  const several = runs.some((run) => Object.keys(run.curves).filter((name) => name.startsWith("reward/")).length > 1);
  const beside = new Set(names.map(validationOf).filter((name) => names.includes(name))); // shares a chart
  const [place, more] = document.querySelectorAll("#curves .charts");
  if (runs.length > 1) find("#curves .legend").append(...runs.map((run) => element("span", {}, swatch(run), run.name)));
  const rank = (name) => rankOf(name, several);
  const main = names.filter((name) => rank(name) >= 0).sort((a, b) => rank(a) - rank(b));
  for (const name of main) if (!beside.has(name)) addChart(place, name);
  for (const name of names) if (!main.includes(name) && !beside.has(name)) addChart(more, name);
  find("#curves details").hidden = !more.children.length;
  find("#smoothing").addEventListener("input", (event) => {
    smoothing = Number(event.target.value);
    event.target.setAttribute("aria-valuetext", smoothing ? smoothing.toFixed(2) : "none");
    for (const chart of charts) draw(chart);
  });
  find("#csv").addEventListener("click", saveMetrics);
}
