"use strict";
(() => {
  // Gray values in [0, 1] of straight-alpha pixels [height, width, 4], as Pillow's "L" has them.
  function gray(pixels) {
    return Float32Array.from({ length: pixels.length / 4 }, (_, k) => {
      const [red, green, blue] = pixels.subarray(4 * k, 4 * k + 3);
      return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) / 255;
    });
  }

  // Height and width after resizing: the short side becomes `size`, unless that makes the long one
  // longer than `most`.
  function resizedShape(height, width, size, most) {
    const scale = Math.min(size / Math.min(height, width), most / Math.max(height, width));
    return [height, width].map((side) => Math.max(1, Math.floor(side * scale)));
  }

  // The two pixels that each of `target` pixels interpolates, and the weight of the second.
  function taps(size, target) {
    return Array.from({ length: target }, (_, k) => {
      const source = Math.max((k + 0.5) * (size / target) - 0.5, 0);
      const low = Math.min(Math.floor(source), size - 1);
      return [low, Math.min(low + 1, size - 1), source - low];
    });
  }

  // Bilinear resizing with half-pixel centers, clamped at the border.
  function resize(values, [height, width], [rows, columns]) {
    const down = taps(height, rows), across = taps(width, columns);
    const found = new Float32Array(rows * columns);
    down.forEach(([top, bottom, lower], y) => across.forEach(([left, right, farther], x) => {
      const row = (k) =>
        values[k * width + left] * (1 - farther) + values[k * width + right] * farther;
      found[y * columns + x] = row(top) * (1 - lower) + row(bottom) * lower;
    }));
    return found;
  }

  // Indices of the pixels of a slice that a predicted mask [bins, bins] marks: it is padded by one
  // bin, its box [x1, y1, x2, y2] grown to match and truncated to whole pixels.
  function lesionPixels(mask, bins, box, height, width) {
    const factor = (bins + 2) / bins;
    const ends = [0, 1].map((axis) => {
      const center = (box[axis + 2] + box[axis]) / 2;
      const half = ((box[axis + 2] - box[axis]) / 2) * factor;
      return [Math.trunc(center - half), Math.trunc(center + half)];
    });
    const weights = ends.map(([low, high], axis) => {
      const length = Math.max(high - low + 1, 1), found = [];
      const last = Math.min(high, (axis ? height : width) - 1);
      for (let pixel = Math.max(low, 0); pixel <= last; pixel++) {
        const place = (pixel - low + 0.5) * ((bins + 2) / length) - 0.5;
        const position = Math.min(Math.max(place, 0), bins + 1), near = Math.floor(position);
        found.push([pixel, near, position - near]);
      }
      return found;
    });
    const at = (row, column) => {
      const inside = row > 0 && row <= bins && column > 0 && column <= bins;
      return inside ? mask[(row - 1) * bins + column - 1] : 0;
    };
    const pixels = [];
    for (const [y, row, lower] of weights[1]) {
      for (const [x, column, farther] of weights[0]) {
        const above = at(row, column) * (1 - farther) + at(row, column + 1) * farther;
        const below = at(row + 1, column) * (1 - farther) + at(row + 1, column + 1) * farther;
        if (above * (1 - lower) + below * lower > 0.5) pixels.push(y * width + x);
      }
    }
    return pixels;
  }

  // What the outputs of the model say of a slice: its lesions in its own pixels, and the
  // probabilities of its classes.
  function read(outputs, [height, width], [rows, columns]) {
    const lesions = [], masks = outputs.mask_probabilities;
    outputs.valid.data.forEach((used, k) => {
      if (!used) return;
      const box = Array.from(outputs.boxes.data.slice(4 * k, 4 * k + 4), (value, side) =>
        side % 2 ? value * (height / rows) : value * (width / columns));
      const bins = masks ? masks.dims[3] : 0;
      const mask = masks && masks.data.subarray(k * bins * bins, (k + 1) * bins * bins);
      lesions.push({
        box,
        score: outputs.scores.data[k],
        label: Number(outputs.labels.data[k]),
        pixels: masks ? lesionPixels(mask, bins, box, height, width) : [],
      });
    });
    const logits = outputs.class_logits ? Array.from(outputs.class_logits.data) : [];
    const powers = logits.map((value) => Math.exp(value - Math.max(...logits)));
    const sum = powers.reduce((total, power) => total + power, 0);
    return { lesions, classes: powers.map((power) => power / sum) };
  }

  if (typeof document === "undefined") {
    module.exports = { gray, resizedShape, resize, lesionPixels, read }; // for tests
    return;
  }

  const $ = (id) => document.getElementById(id);
  const settings = JSON.parse($("settings").textContent);
  const bytes = (id) => Uint8Array.from(atob($(id).textContent), (sign) => sign.charCodeAt(0));
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

  async function load() {
    await painted();
    const url = URL.createObjectURL(new Blob([bytes("runtime")], { type: "text/javascript" }));
    const runtime = await import(url);
    URL.revokeObjectURL(url);
    runtime.env.wasm.wasmBinary = bytes("wasm");
    runtime.env.wasm.numThreads = 1; // more need headers that only a server can send
    const session = await runtime.InferenceSession.create(bytes("model"));
    $("state").textContent = "The model is ready.";
    return { runtime, session };
  }

  function fail(error) {
    $("error").textContent = error.message || String(error);
    $("error").hidden = false;
    $("state").textContent = "";
    $("result").hidden = $("lesions").hidden = true;
  }

  async function pixelsOf(file) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    } catch {
      throw new Error(`${file.name} is no picture that this browser reads; take a PNG or JPEG.`);
    }
    const canvas = $("picture");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  }

  const colorOf = ({ label }, rank) => {
    const index = settings.lesion_classes.length > 1 ? label - 1 : rank;
    return settings.colors[index % settings.colors.length];
  };

  function show(image, { lesions, classes }, seconds) {
    const context = $("picture").getContext("2d");
    lesions.forEach((lesion, rank) => {
      const color = colorOf(lesion, rank);
      for (const pixel of lesion.pixels) {
        for (let k = 0; k < 3; k++) {
          const at = 4 * pixel + k;
          image.data[at] = 0.6 * image.data[at] + 0.4 * color[k];
        }
      }
    });
    context.putImageData(image, 0, 0);
    context.lineWidth = Math.max(1, image.width / 400);
    lesions.forEach((lesion, rank) => {
      const [left, top, right, bottom] = lesion.box;
      context.strokeStyle = `rgb(${colorOf(lesion, rank).join(",")})`;
      context.strokeRect(left, top, right - left, bottom - top);
    });
    const named = classes.map((share, k) => `${settings.image_classes[k]} ${share.toFixed(3)}`);
    const noun = lesions.length === 1 ? "lesion" : "lesions";
    const count = `${lesions.length} ${noun} with a score above ${settings.score_threshold}`;
    $("told").textContent = [count, ...named, `${seconds.toFixed(1)} s`].join(" · ");
    const cell = (kind, text) =>
      Object.assign(document.createElement(kind), { textContent: text });
    const rows = lesions.map((lesion, rank) => {
      const row = document.createElement("tr"), number = cell("th", rank + 1);
      number.scope = "row";
      const label = settings.lesion_classes[lesion.label - 1];
      row.append(number, cell("td", lesion.score.toFixed(3)), cell("td", label));
      row.append(cell("td", lesion.pixels.length));
      return row;
    });
    $("lesions").querySelector("tbody").replaceChildren(...rows);
    $("lesions").hidden = !lesions.length;
    $("result").hidden = false;
    $("state").textContent = "";
  }

  const loading = load();
  loading.catch(fail);
  let line = Promise.resolve(); // one slice after the other

  async function predict(file) {
    $("error").hidden = true;
    $("state").textContent = `${file.name}: at work…`;
    const { runtime, session } = await loading;
    const image = await pixelsOf(file);
    await painted();
    const start = performance.now(), own = [image.height, image.width];
    const shape = resizedShape(...own, settings.image_size, settings.max_size);
    const values = resize(gray(image.data), own, shape);
    const images = new runtime.Tensor("float32", values, [1, ...shape]);
    const outputs = await session.run({ images });
    show(image, read(outputs, own, shape), (performance.now() - start) / 1000);
  }

  function take(files) {
    if (files.length) line = line.then(() => predict(files[0])).catch(fail);
  }

  $("file").addEventListener("change", (event) => take([...event.target.files]));
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    $("drop").addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", over);
      if (name === "drop") take([...event.dataTransfer.files]);
    });
  }
})();
