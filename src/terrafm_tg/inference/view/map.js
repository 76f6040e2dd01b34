"use strict";
// The page's arithmetic. Nothing here touches the document, so that any JavaScript engine can test it.

const MISSING = -128; // of a vector, in all of its dimensions

/** Unpacks base64 of zlib's bytes. */
async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The vector of a pixel; null where it is missing. */
function vectorAt(layer, pixel) {
  const count = layer.width * layer.height;
  if (layer.values[pixel] === MISSING) return null;
  return Float64Array.from(layer.scale, (scale, k) => layer.values[k * count + pixel] * scale + layer.offset[k]);
}

/** Cosines of all pixels with a vector, NaN where they are missing. */
function cosines(layer, vector) {
  const count = layer.width * layer.height, values = layer.values;
  const products = new Float32Array(count), squares = new Float32Array(count);
  let length = 0;
  for (let k = 0; k < vector.length; k++) {
    const scale = layer.scale[k], offset = layer.offset[k], plane = k * count, weight = vector[k];
    length += weight * weight;
    for (let pixel = 0; pixel < count; pixel++) {
      const value = values[plane + pixel] * scale + offset;
      products[pixel] += value * weight;
      squares[pixel] += value * value;
    }
  }
  length = Math.sqrt(length);
  for (let pixel = 0; pixel < count; pixel++) {
    products[pixel] = values[pixel] === MISSING ? NaN : products[pixel] / (length * Math.sqrt(squares[pixel]));
  }
  return products;
}

/** The most similar pixels, none within `apart` pixels of another or of the one that was asked about. */
function nearest(similarities, width, own, count, apart) {
  const near = (a, b) =>
    Math.max(Math.abs((a % width) - (b % width)), Math.abs(Math.floor(a / width) - Math.floor(b / width))) < apart;
  const taken = own === null ? [] : [own], found = [];
  // A pixel that is taken hides fewer than (2 apart)² others: so many of the best hold all that are wanted.
  const most = (count + 1) * (2 * apart) ** 2;
  for (const pixel of best(similarities, most)) {
    if (found.length === count) break;
    if (taken.some((other) => near(pixel, other))) continue;
    taken.push(pixel);
    found.push(pixel);
  }
  return found;
}

/** Places of the largest numbers, in falling order; those of NaN are left out. */
function best(numbers, count) {
  const known = numbers.filter((number) => number === number).sort();
  const least = known[Math.max(0, known.length - count)];
  const places = [];
  for (let place = 0; place < numbers.length; place++) if (numbers[place] >= least) places.push(place);
  return places.sort((a, b) => numbers[b] - numbers[a] || a - b);
}

/** The least and largest of the numbers but for a share at the lower end. */
function ends(numbers, share) {
  const known = numbers.filter((number) => number === number).sort();
  return known.length ? [known[Math.floor(share * (known.length - 1))], known[known.length - 1]] : [0, 0];
}

/** Longitude and latitude of a place in the scene's CRS, between points where they are known; null elsewhere. */
function lonLat(scene, x, y) {
  if (!scene.lon) return null;
  const [west, south, east, north] = scene.bounds, last = scene.points - 1;
  const u = ((x - west) / (east - west)) * last, v = ((north - y) / (north - south)) * last;
  const i = Math.min(Math.max(Math.floor(u), 0), last - 1), j = Math.min(Math.max(Math.floor(v), 0), last - 1);
  const between = (table) => {
    const at = (row, column) => table[row * scene.points + column];
    const [a, b] = [0, 1].map((d) => at(j + d, i) * (1 - (u - i)) + at(j + d, i + 1) * (u - i));
    return a * (1 - (v - j)) + b * (v - j);
  };
  const lon = between(scene.lon);
  return [((((lon + 180) % 360) + 360) % 360) - 180, between(scene.lat)];
}

/** The pixel of a layer at a place in the CRS; null outside. */
function pixelAt(layer, x, y) {
  const [left, top, dx, dy] = layer.place;
  const column = Math.floor((x - left) / dx), row = Math.floor((top - y) / dy);
  return column >= 0 && row >= 0 && column < layer.width && row < layer.height ? row * layer.width + column : null;
}

/** The place of a pixel's middle in the CRS. */
function placeOf(layer, pixel) {
  const [left, top, dx, dy] = layer.place;
  return [left + ((pixel % layer.width) + 0.5) * dx, top - (Math.floor(pixel / layer.width) + 0.5) * dy];
}

// A view: the place in the CRS at the middle of the window, and units of the CRS (of y) per pixel of the screen.

/** The view that shows all of a scene. */
function fit(scene, width, height) {
  const [west, south, east, north] = scene.bounds;
  const unit = 1.04 * Math.max(((east - west) * scene.aspect) / width, (north - south) / height);
  return { x: (west + east) / 2, y: (south + north) / 2, unit };
}

/** The place in the CRS under a point of the window. */
function toMap(view, scene, size, px, py) {
  return [view.x + ((px - size[0] / 2) * view.unit) / scene.aspect, view.y - (py - size[1] / 2) * view.unit];
}

/** The point of the window over a place in the CRS. */
function toScreen(view, scene, size, x, y) {
  return [size[0] / 2 + ((x - view.x) * scene.aspect) / view.unit, size[1] / 2 - (y - view.y) / view.unit];
}

/** The view in which what lay under one point of the window lies under another, enlarged by a factor. */
function moved(view, scene, size, from, to, factor) {
  const whole = fit(scene, ...size).unit;
  const unit = Math.min(Math.max(view.unit / factor, scene.pixel / 64), whole * 4);
  const [x, y] = toMap(view, scene, size, ...from);
  const [west, south, east, north] = scene.bounds;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  return {
    x: clamp(x - ((to[0] - size[0] / 2) * unit) / scene.aspect, west, east),
    y: clamp(y + (to[1] - size[1] / 2) * unit, south, north),
    unit,
  };
}

/** A length of 1, 2 or 5 times a power of ten that is at most `most`. */
function round125(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].find((step) => step * power <= most) * power;
}

/** Colors of a layer's pixels, four bytes each, as `paint` gives them: [red, green, blue], or null for none. */
function painted(count, paint) {
  const colors = new Uint8ClampedArray(count * 4);
  for (let pixel = 0; pixel < count; pixel++) {
    const color = paint(pixel);
    if (color) {
      colors.set(color, pixel * 4);
      colors[pixel * 4 + 3] = 255;
    }
  }
  return colors;
}

/** Red, green and blue of a pixel by its vector's principal components. */
function componentPaint(layer) {
  const count = layer.width * layer.height;
  const parts = [0, 1, 2].map((k) => layer.colors[Math.min(k, layer.colors.length - 1)]);
  return (pixel) =>
    layer.values[pixel] === MISSING
      ? null
      : parts.map(([k, low, high]) => {
          const value = layer.values[k * count + pixel] * layer.scale[k] + layer.offset[k];
          return (255 * (value - low)) / (high - low || 1);
        });
}

/** The numbers of one band of scores, NaN where they are missing. */
function scoresOf(layer, band) {
  const count = layer.width * layer.height, [, low, high] = layer.bands[band];
  const levels = layer.values.subarray(band * count, (band + 1) * count);
  return Float32Array.from(levels, (level) => (level ? low + ((level - 1) / 254) * (high - low) : NaN));
}

/** Colors of numbers between two ends, out of a table of 256. */
function rampPaint(table, numbers, low, high) {
  return (pixel) => {
    const share = (numbers[pixel] - low) / (high - low || 1);
    if (share !== share) return null;
    const level = Math.min(Math.max(Math.round(share * 255), 0), 255) * 3;
    return table.subarray(level, level + 3);
  };
}
