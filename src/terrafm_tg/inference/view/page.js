// The document: layers drawn on a canvas, and what mouse, fingers and keys do to them.

const content = JSON.parse(document.getElementById("content").textContent);
const $ = (id) => document.getElementById(id);
const canvas = $("map"), context = canvas.getContext("2d");
const PLACES = 8, APART = 4; // nearest places that are listed, and pixels between them
const TITLES = {
  picture: "Composite", components: "Principal components", classes: "Classes", scores: "Scores", similarity: "Similarity",
};
const THEMES = ["components", "classes", "scores", "similarity"]; // one is shown at first, over the composite
const SOLID = { picture: 1, components: 0.65, classes: 0.75, scores: 0.85, similarity: 0.8 };
const ramps = content.heat.map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
const state = { scene: null, layers: [], view: null, size: [1, 1], query: null, places: [], cross: false };

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Layers

/** Unpacks what a layer of the page holds; once. */
async function unpack(layer) {
  if (layer.kind === "picture" && !layer.image) {
    const bytes = Uint8Array.from(atob(layer.data), (letter) => letter.charCodeAt(0));
    layer.image = await createImageBitmap(new Blob([bytes], { type: "image/webp" }));
  } else if (layer.kind !== "picture" && !layer.values) {
    const bytes = await inflate(layer.data);
    layer.values = layer.kind === "embeddings" ? new Int8Array(bytes.buffer) : bytes;
  }
  layer.data = null; // a phone has little memory
  return layer;
}

function picture(source, paint) {
  const image = make("canvas", { width: source.width, height: source.height });
  const colors = painted(source.width * source.height, paint);
  image.getContext("2d").putImageData(new ImageData(colors, source.width, source.height), 0, 0);
  return image;
}

function shownLayer(kind, source, image, legend = null) {
  return { kind, source, image, legend, visible: kind === "picture", opacity: SOLID[kind] };
}

/** The layers to draw for one of the page's, bottom to top. */
function drawable(layer) {
  if (layer.kind === "picture") return [shownLayer("picture", layer, layer.image)];
  if (layer.kind === "classes") {
    const paint = (pixel) => layer.classes[layer.values[pixel]]?.[1];
    return [shownLayer("classes", layer, picture(layer, paint), classLegend(layer))];
  }
  if (layer.kind === "scores") {
    return [showBand(shownLayer("scores", layer, null), 0)];
  }
  const text = "Red, green and blue are the three directions in which embeddings differ most: similar colors, similar embeddings.";
  return [
    shownLayer("components", layer, picture(layer, componentPaint(layer)), make("p", { className: "note", textContent: text })),
    shownLayer("similarity", layer, null),
  ];
}

/** Shows one band of scores. */
function showBand(layer, band) {
  const { source } = layer, [, low, high] = source.bands[band];
  layer.band = band;
  layer.numbers = scoresOf(source, band);
  layer.image = picture(source, rampPaint(ramps[1], layer.numbers, low, high));
  layer.legend = rampLegend(ramps[1], low, high);
  return layer;
}

function bandChooser(layer) {
  const options = layer.source.bands.map(([name], value) => make("option", { value, textContent: name, selected: value === layer.band }));
  const chooser = make("select", {}, ...options);
  chooser.setAttribute("aria-label", `Band of ${layer.source.name}`);
  chooser.addEventListener("change", () => {
    showBand(layer, Number(chooser.value));
    listLayers();
    draw();
  });
  return chooser;
}

function classLegend(layer) {
  const rows = layer.classes.map(([name, color]) => {
    const swatch = make("span");
    swatch.style.background = `rgb(${color.join(" ")})`;
    return make("li", {}, swatch, make("span", { textContent: name }));
  });
  return make("ul", {}, ...rows);
}

function rampLegend(table, low, high) {
  const image = make("canvas", { width: 256, height: 1 });
  const colors = painted(256, (level) => table.subarray(level * 3, level * 3 + 3));
  image.getContext("2d").putImageData(new ImageData(colors, 256, 1), 0, 0);
  const numbers = make("div", { className: "ends" }, ...[low, high].map((end) => make("span", { textContent: written(end) })));
  return make("div", {}, image, numbers);
}

const written = (number) => String(Number(number.toPrecision(3)));

/** Lists the layers with their switches, the topmost first. */
function listLayers() {
  const rows = state.layers.filter((layer) => layer.image).map((layer) => {
    const title = TITLES[layer.kind];
    const box = make("input", { type: "checkbox", checked: layer.visible });
    const slider = make("input", { type: "range", min: 0, max: 100, value: Math.round(layer.opacity * 100) });
    const share = make("output", { textContent: `${slider.value} %` });
    slider.setAttribute("aria-label", `Opacity of ${title}, ${layer.source.name}`);
    box.addEventListener("change", () => {
      layer.visible = box.checked;
      draw();
    });
    slider.addEventListener("input", () => {
      layer.opacity = slider.value / 100;
      share.textContent = `${slider.value} %`;
      draw();
    });
    const row = make("li", {}, make("label", { className: "row" }, box, make("span", { textContent: title })));
    row.append(make("p", { className: "file", textContent: layer.source.name }));
    if (layer.source.bands?.length > 1) row.append(make("div", { className: "bands" }, bandChooser(layer)));
    if (layer.legend) row.append(make("div", { className: "legend" }, layer.legend));
    row.append(make("div", { className: "opacity" }, make("span", { textContent: "Opacity" }), slider, share));
    row.dataset.kind = layer.kind;
    return row;
  });
  $("layers").replaceChildren(...rows.reverse());
}

// Scenes

async function show(index) {
  $("wait").textContent = "Unpacking the map …";
  const scene = content.scenes[index];
  const layers = await Promise.all(scene.layers.map((place) => unpack(content.layers[place])));
  if ($("scene").value !== String(index)) return; // another was chosen meanwhile
  const drawn = layers.flatMap(drawable).sort((a, b) => THEMES.indexOf(a.kind) - THEMES.indexOf(b.kind));
  Object.assign(state, { scene, layers: drawn, view: fit(scene, ...state.size), places: [] });
  const components = layerOf("components");
  if (!layerOf("picture")) for (const layer of drawn) layer.opacity = 1;
  canvas.setAttribute("aria-label", `Map of ${scene.name}`);
  $("search").hidden = !components;
  $("about").replaceChildren(...scene.facts.flatMap(([name, text]) => [
    make("dt", { textContent: name }), make("dd", { textContent: text }),
  ]));
  if (state.query && components && components.source.basis === state.query.basis) compare();
  else forget();
  $("wait").textContent = "";
}

const layerOf = (kind) => state.layers.find((layer) => layer.kind === kind);

/** Shows one theme alone over the composite: they hide each other. */
function feature(theme) {
  for (const layer of state.layers) if (THEMES.includes(layer.kind)) layer.visible = layer === theme;
}

// Search

/** Compares all embeddings with that of a pixel. */
function search(pixel) {
  const { source } = layerOf("components");
  const vector = vectorAt(source, pixel);
  if (!vector) {
    $("asked").textContent = "There is no embedding at this place.";
    return;
  }
  if (!state.query) feature(layerOf("similarity"));
  state.query = { vector, pixel, scene: state.scene, basis: source.basis, place: placeOf(source, pixel) };
  compare();
}

function compare() {
  const layer = layerOf("similarity"), { source } = layer, { query } = state;
  const own = query.scene === state.scene ? query.pixel : null;
  layer.numbers = cosines(source, query.vector);
  const [low, high] = ends(layer.numbers, 0.02);
  layer.image = picture(source, rampPaint(ramps[0], layer.numbers, low, high));
  layer.legend = rampLegend(ramps[0], low, high);
  if (own === null) feature(layer);
  layer.visible = true;
  state.places = nearest(layer.numbers, source.width, own, PLACES, APART).map((pixel) => placeOf(source, pixel).concat(pixel));
  $("asked").textContent = `Cosine similarity to the embedding at ${degrees(query.scene, ...query.place)}${own === null ? ` in ${query.scene.name}` : ""}.`;
  $("places").replaceChildren(...state.places.map(([x, y, pixel], rank) => {
    const button = make("button", { type: "button" });
    button.append(make("b", { textContent: rank + 1 }), make("span", { textContent: degrees(state.scene, x, y) }), make("i", { textContent: layer.numbers[pixel].toFixed(4) }));
    button.setAttribute("aria-label", `Place ${rank + 1}, ${degrees(state.scene, x, y)}, similarity ${layer.numbers[pixel].toFixed(4)}: move the map there`);
    button.addEventListener("click", () => {
      Object.assign(state.view, { x, y });
      draw();
    });
    return make("li", {}, button);
  }));
  $("forget").hidden = false;
  listLayers();
  draw();
}

function forget() {
  const similarity = layerOf("similarity");
  if (similarity) Object.assign(similarity, { image: null, numbers: null });
  feature(state.layers.find((layer) => THEMES.includes(layer.kind)));
  Object.assign(state, { query: null, places: [] });
  $("places").replaceChildren();
  $("asked").textContent = "Click or tap a place: every other one is colored by how similar its embedding is.";
  $("forget").hidden = true;
  listLayers();
  draw();
}

// Drawing

let waiting = 0;

function draw() {
  waiting ||= requestAnimationFrame(() => {
    waiting = 0;
    drawNow();
  });
}

function drawNow() {
  const { view, scene, size } = state;
  if (!scene) return;
  const dense = canvas.width / size[0];
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, ...size);
  for (const { image, visible, opacity, source } of state.layers) {
    if (!visible || !image) continue;
    const [left, top, dx, dy] = source.place;
    const [x0, y0] = toScreen(view, scene, size, left, top);
    const [x1, y1] = toScreen(view, scene, size, left + source.width * dx, top - source.height * dy);
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = source.kind === "picture";
    context.drawImage(image, x0, y0, x1 - x0, y1 - y0);
  }
  const marks = state.places.map(([x, y], rank) => ["place", rank + 1, ...toScreen(view, scene, size, x, y)]);
  if (state.query?.scene === scene) marks.push(["asked", "", ...toScreen(view, scene, size, ...state.query.place)]);
  if (state.cross) marks.push(["cross", "+", size[0] / 2, size[1] / 2]);
  $("marks").replaceChildren(...marks.map(([className, textContent, x, y]) => {
    const mark = make("span", { className, textContent });
    mark.style.transform = `translate(${x}px, ${y}px)`;
    return mark;
  }));
  const length = round125(120 * view.unit * scene.meters);
  $("scale").style.width = `${length / scene.meters / view.unit}px`;
  $("scale").textContent = length < 1000 ? `${length} m` : `${length / 1000} km`;
}

// Coordinates

function degrees(scene, x, y) {
  const found = lonLat(scene, x, y);
  if (!found) return `${x.toFixed(0)}, ${y.toFixed(0)}`;
  const [lon, lat] = found;
  return `${Math.abs(lat).toFixed(5)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(5)}° ${lon < 0 ? "W" : "E"}`;
}

/** Says what lies under a point of the window. */
function say(px, py) {
  const { scene, view, size } = state;
  if (!scene) return;
  const [x, y] = toMap(view, scene, size, px, py);
  const parts = [degrees(scene, x, y)];
  if (!scene.geographic) parts.push(`${scene.crs}: ${x.toFixed(0)}, ${y.toFixed(0)}`);
  for (const { kind, source, visible, numbers, band } of state.layers) {
    const pixel = pixelAt(source, x, y);
    if (pixel === null || !visible) continue;
    if (kind === "components") parts.push(`row ${Math.floor(pixel / source.width)}, column ${pixel % source.width}`);
    if (kind === "classes") parts.push(source.classes[source.values[pixel]]?.[0] ?? "no class");
    if (!numbers || Number.isNaN(numbers[pixel])) continue;
    if (kind === "similarity") parts.push(`similarity ${numbers[pixel].toFixed(4)}`);
    if (kind === "scores") parts.push(`${source.bands[band][0]} ${written(numbers[pixel])}`);
  }
  $("where").textContent = parts.join(" · ");
}

// Mouse, fingers and keys

function change(from, to, factor) {
  if (!state.scene) return;
  state.view = moved(state.view, state.scene, state.size, from, to, factor);
  draw();
}

const middle = () => [state.size[0] / 2, state.size[1] / 2];
const zoom = (factor) => change(middle(), middle(), factor);

function ask(px, py) {
  const components = layerOf("components");
  const pixel = components && pixelAt(components.source, ...toMap(state.view, state.scene, state.size, px, py));
  if (pixel !== null && pixel !== undefined) search(pixel);
  say(px, py);
}

const fingers = new Map();
let far = 0; // how far the pointer has gone since it came down

function point(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

/** Middle of one or two fingers, and the distance between them. */
function grip() {
  const [a, b = a] = fingers.values();
  return { at: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], apart: Math.hypot(a[0] - b[0], a[1] - b[1]) };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  if (!fingers.size) far = 0;
  fingers.set(event.pointerId, point(event));
  if (fingers.size > 1) far = Infinity;
  state.cross = false;
});
canvas.addEventListener("pointermove", (event) => {
  say(...point(event));
  if (!fingers.has(event.pointerId) || fingers.size > 2) return;
  const before = grip(), last = fingers.get(event.pointerId);
  fingers.set(event.pointerId, point(event));
  const after = grip();
  far += Math.hypot(point(event)[0] - last[0], point(event)[1] - last[1]);
  if (far > 5) change(before.at, after.at, before.apart && after.apart ? after.apart / before.apart : 1);
});
canvas.addEventListener("pointerup", (event) => {
  if (fingers.delete(event.pointerId) && far <= 5 && state.scene) ask(...point(event));
});
canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const step = event.deltaMode ? 0.05 : event.ctrlKey ? 0.01 : 0.0015;
  change(point(event), point(event), Math.exp(-event.deltaY * step));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.scene) return;
  const [x, y] = middle(), step = event.shiftKey ? 200 : 40;
  const keys = {
    ArrowLeft: () => change([x - step, y], [x, y], 1),
    ArrowRight: () => change([x + step, y], [x, y], 1),
    ArrowUp: () => change([x, y - step], [x, y], 1),
    ArrowDown: () => change([x, y + step], [x, y], 1),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: all,
    Enter: () => ask(x, y), " ": () => ask(x, y), Escape: forget,
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  state.cross = true;
  keys[event.key]();
  if (!["Enter", " "].includes(event.key)) say(x, y);
});

function all() {
  state.view = fit(state.scene, ...state.size);
  draw();
}

$("in").addEventListener("click", () => zoom(1.5));
$("out").addEventListener("click", () => zoom(1 / 1.5));
$("all").addEventListener("click", () => state.scene && all());
$("forget").addEventListener("click", forget);
$("scene").addEventListener("change", (event) => show(Number(event.target.value)));
new ResizeObserver(() => {
  const { width, height } = canvas.getBoundingClientRect(), first = state.size[0] === 1;
  state.size = [width, height];
  [canvas.width, canvas.height] = [width, height].map((edge) => Math.round(edge * devicePixelRatio));
  if (first && width) show(Number($("scene").value));
  else drawNow();
}).observe(canvas);
