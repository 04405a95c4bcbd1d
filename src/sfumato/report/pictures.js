"use strict";

/* Pictures: one album at a time, chosen in either section. A training run has one album, a pre-training run one for
   each of its stages. */

let albums = [];
let shown;
let order = "gain";

function albumsOf(run) {
  if (!run.stages) return [{ ...run, run }];
  const title = runs.length > 1 ? `${run.name}: ` : "";
  return run.stages.map((stage) => ({ ...stage, name: title + stage.name, names: [], run }));
}

function chooser(place, name) {
  if (albums.length < 2) return;
  const set = element("fieldset", { class: "segments" }, element("legend", { class: "hidden" }, "Pictures of"));
  for (const album of albums) {
    const radio = element("input", { type: "radio", name });
    radio.checked = album === shown;
    radio.addEventListener("change", () => choose(album));
    const color = runs.length > 1 ? [swatch(album.run)] : [];
    set.append(element("label", {}, radio, element("span", {}, ...color, album.name)));
  }
  place.append(set);
}

function choose(album) {
  const step = shown.moments[find("#slider").value].step;
  shown = album;
  for (const set of document.querySelectorAll(".choose fieldset"))
    set.querySelectorAll("input")[albums.indexOf(album)].checked = true;
  const distances = album.moments.map((moment) => Math.abs(moment.step - step));
  showScenes(distances.indexOf(Math.min(...distances)));
  showPairs();
}

function pictureName(album, n) {
  return album.names[n] ?? `picture ${n + 1}`;
}

/* The number of decimals of all rewards of an album. */
function rewardDecimals(album) {
  return decimalsOf(album.moments.flatMap((moment) => moment.rewards ?? []));
}

/* A picture that can be enlarged; `about` returns its description. */
function picture(about, attributes = {}) {
  const image = element("img", { alt: "", ...attributes });
  const button = element("button", { type: "button", class: "picture" }, image);
  button.addEventListener("click", () => enlarge(image, about()));
  return [button, image];
}

function enlarge({ src, alt }, about) {
  const view = find("#view");
  view.querySelector("img").src = src;
  view.querySelector("img").alt = alt;
  view.querySelector("p").textContent = about;
  view.showModal();
}

/* The positions of pictures that belong together: adjacent ones with the same name, or a fixed number without names. */
function groups({ names, together = 2, moments }) {
  const all = [];
  for (let n = 0; n < moments[0].images.length; n++) {
    const group = all.at(-1);
    const fits = group && (names[n] ? names[n] === names[n - 1] : group.length < together);
    if (fits) group.push(n);
    else all.push([n]);
  }
  return all;
}

function showScenes(position) {
  const { moments, names, hint } = shown;
  const places = [];
  const decimals = rewardDecimals(shown);
  const grouped = groups(shown);
  const figures = grouped.map((group) => {
    const frames = group.map((n) => {
      const score = element("small");
      const about = () => (score.textContent ? `${image.alt}, reward ${score.textContent}` : image.alt);
      const [button, image] = picture(about);
      places[n] = { image, score };
      return element("div", {}, button, score);
    });
    const caption = names[group[0]] ? [element("figcaption", {}, names[group[0]])] : [];
    return element("figure", {}, element("div", { class: "frames" }, ...frames), ...caption);
  });
  // Groups of more pictures than fit beside others have rows of their own, so that all pictures have one size.
  const largest = Math.max(...grouped.map((group) => group.length));
  find("#scenes").style.setProperty("--span", largest > 4 ? "1 / -1" : `span ${largest === 3 ? 4 : largest}`);
  find("#scenes").replaceChildren(...figures);
  find("#training .hint").textContent = hint ?? "";
  const slider = find("#slider");
  slider.max = moments.length - 1;
  slider.disabled = moments.length < 2;
  slider.value = position;
  slider.oninput = () => {
    const { step, images, rewards } = moments[slider.value];
    const known = (rewards ?? []).filter((reward) => reward !== null);
    const mean = known.length ? `mean reward ${number(known.reduce((a, b) => a + b, 0) / known.length, decimals)}` : "";
    find("#moment").replaceChildren(element("b", {}, `Step ${step}`), mean && element("small", {}, `  ${mean}`));
    slider.setAttribute("aria-valuetext", `step ${step}${mean && `, ${mean}`}`);
    places.forEach(({ image, score }, n) => {
      image.src = images[n];
      image.alt = `${pictureName(shown, n)}, step ${step}`;
      score.textContent = rewards ? number(rewards[n], decimals) : "";
    });
  };
  slider.oninput();
}

function showPairs() {
  const [first, last] = [shown.moments[0], shown.moments.at(-1)];
  const rewarded = Boolean(first.rewards && last.rewards);
  const decimals = rewardDecimals(shown);
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
      const frames = pair.images.map((src, side) => {
        const alt = `${pictureName(shown, pair.n)}, ${["before", "after"][side]}`;
        const reward = rewarded ? number(pair.ends[side], decimals) : "";
        const [button] = picture(() => (reward ? `${alt}, reward ${reward}` : alt), { src, alt });
        return element("div", {}, button, ...(reward ? [element("small", {}, reward)] : []));
      });
      const caption = element("figcaption", {}, element("span", {}, shown.names[pair.n] ?? ""));
      if (pair.gain !== null) caption.append(element("b", {}, number(pair.gain, decimals, true)));
      return element("li", {}, element("figure", {}, element("div", { class: "frames" }, ...frames), caption));
    }),
  );
  for (const button of document.querySelectorAll("#pairs .sort button"))
    button.setAttribute("aria-pressed", String(button.value === order));
}

function showPictures() {
  albums = runs.flatMap(albumsOf).filter((album) => album.moments.length);
  shown = albums[0];
  find("#training").hidden = !shown;
  find("#pairs").hidden = !shown || Boolean(shown.run.stages);
  if (!shown) return;
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
  find("#view").addEventListener("click", () => find("#view").close());
  showScenes(shown.moments.length - 1);
  showPairs();
}
