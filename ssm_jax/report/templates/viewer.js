"use strict";
(() => {
  // Pixels of wheel travel that go on by one slice.
  const WHEEL = 30;
  const viewers = [];
  let active = null;

  // The runs of a COCO run-length encoding: from 0 on, alternately outside and inside, column by
  // column. Five bits a character, least first; from the third run on the difference to the run
  // before the last is stored.
  function runs(text) {
    const counts = [];
    for (let at = 0; at < text.length;) {
      let value = 0, shift = 0, more = true;
      while (more) {
        const code = text.charCodeAt(at++) - 48;
        value |= (code & 31) << shift;
        shift += 5;
        more = (code & 32) !== 0;
        if (!more && code & 16) value |= -1 << shift;
      }
      counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
    }
    return counts;
  }

  // Mixes a mask into straight-alpha pixels [height, width, 4].
  function paint(pixels, height, width, counts, color) {
    let place = 0;
    counts.forEach((length, index) => {
      if (index % 2) {
        for (let k = place; k < place + length; k++) {
          const at = 4 * ((k % height) * width + Math.floor(k / height));
          pixels[at] = color[0];
          pixels[at + 1] = color[1];
          pixels[at + 2] = color[2];
          pixels[at + 3] = 255;
        }
      }
      place += length;
    });
  }

  function viewer(root) {
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    const find = (name) => root.querySelector("." + name);
    const stage = find("stage"), image = stage.querySelector("img");
    const canvas = stage.querySelector("canvas"), boxes = stage.querySelector("svg");
    const slider = find("slice-slider"), overlay = find("overlay"), outlines = find("outlines");
    const opacity = find("opacity"), threshold = find("threshold");
    const chart = root.querySelector(".along svg"), bars = [...root.querySelectorAll(".shares meter")];
    const percents = [...root.querySelectorAll(".shares .percent")];
    const count = data.slices.length;
    let current = 0, travel = 0;

    const css = (color) => "rgb(" + color.join(",") + ")";
    const colorOf = ({ rank, label }) =>
      data.colors[(data.by_class ? label - 1 : rank) % data.colors.length];

    function shown(slice) {
      const least = Number(threshold.value);
      return slice.detections
        .map((detection, rank) => ({ ...detection, rank }))
        .filter((detection) => detection.score > least);
    }

    function drawMasks(slice, detections) {
      const [height, width] = slice.size;
      canvas.width = width;
      canvas.height = height;
      // Pixels are only ever put there one by one, which a canvas in memory does best.
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const pixels = context.createImageData(width, height);
      // Detections come in decreasing score: the best is drawn last, on top.
      for (const detection of [...detections].reverse()) {
        if (detection.counts === null) continue;
        paint(pixels.data, height, width, runs(detection.counts), colorOf(detection));
      }
      context.putImageData(pixels, 0, 0);
    }

    function drawBoxes(slice, detections) {
      const [height, width] = slice.size;
      boxes.setAttribute("viewBox", `0 0 ${width} ${height}`);
      boxes.replaceChildren();
      // Pixels of the slice to one of the screen.
      const unit = width / Math.max(stage.clientWidth, 1);
      for (const detection of [...detections].reverse()) {
        const [x1, y1, x2, y2] = detection.box;
        const box = document.createElementNS(boxes.namespaceURI, "rect");
        box.setAttribute("x", x1);
        box.setAttribute("y", y1);
        box.setAttribute("width", Math.max(x2 - x1, 0));
        box.setAttribute("height", Math.max(y2 - y1, 0));
        box.style.stroke = css(colorOf(detection));
        const text = document.createElementNS(boxes.namespaceURI, "text");
        const above = y1 > 16 * unit ? y1 - 4 * unit : y2 + 14 * unit;
        text.setAttribute("transform", `translate(${x1} ${above}) scale(${unit})`);
        text.style.fill = css(colorOf(detection));
        text.textContent = detection.score.toFixed(2);
        boxes.append(box, text);
      }
    }

    function list(slice, detections) {
      const all = slice.detections.length;
      const noun = all === 1 ? "lesion" : "lesions";
      find("found").textContent = all
        ? `${detections.length} of ${all} ${noun} shown`
        : "No lesion was found.";
      const body = root.querySelector(".lesions tbody");
      body.replaceChildren();
      for (const detection of detections) {
        const row = document.createElement("tr"), key = document.createElement("i");
        const first = document.createElement("th");
        key.style.background = css(colorOf(detection));
        first.scope = "row";
        first.append(key, String(detection.rank + 1));
        row.append(first);
        const size = detection.box.map((v) => Math.round(v));
        for (const value of [detection.score.toFixed(3), data.lesions[detection.label - 1], size.join(", ")]) {
          const cell = document.createElement("td");
          cell.textContent = value;
          row.append(cell);
        }
        body.append(row);
      }
      root.querySelector(".lesions").hidden = !detections.length;
    }

    function overlays() {
      const slice = data.slices[current], readable = slice.error === null;
      const detections = readable ? shown(slice) : [];
      const visible = readable && overlay.checked;
      canvas.toggleAttribute("hidden", !visible);
      boxes.toggleAttribute("hidden", !(visible && outlines.checked));
      canvas.style.opacity = opacity.value;
      if (visible) drawMasks(slice, detections);
      if (visible) drawBoxes(slice, detections);
      find("opacity-value").textContent = Math.round(100 * opacity.value) + "%";
      find("threshold-value").textContent = Number(threshold.value).toFixed(2);
      list(slice, detections);
      if (!readable) find("found").textContent = "This slice could not be read.";
    }

    function cursor() {
      if (!chart) return;
      const line = chart.querySelector(".cursor"), { left, step } = chart.dataset;
      const x = Number(left) + Number(step) * (current + 0.5);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }

    function go(to) {
      current = Math.min(Math.max(to, 0), count - 1);
      const slice = data.slices[current], readable = slice.error === null;
      slider.value = current + 1;
      slider.setAttribute("aria-valuetext", `slice ${current + 1} of ${count}`);
      image.toggleAttribute("hidden", !readable);
      find("unreadable").toggleAttribute("hidden", readable);
      find("unreadable").textContent = readable ? "" : `Could not be read: ${slice.error}`;
      if (readable) {
        const [height, width] = slice.size;
        stage.style.aspectRatio = `${width} / ${height}`;
        // As high as the stage may be, it is no wider than the slice asks for.
        stage.style.maxWidth = `calc(78vh * ${width / height})`;
        image.src = slice.image;
        image.alt = slice.name;
      }
      find("name").textContent = slice.name;
      const place = slice.position === null ? "" : `, at ${slice.position.toFixed(1)} mm`;
      const what = slice.predicted === null ? "" : `: ${data.classes[slice.predicted]}`;
      find("where").textContent = `Slice ${current + 1} of ${count}${place}${what}`;
      bars.forEach((bar, k) => {
        const share = slice.probabilities[k];
        bar.value = share === undefined ? 0 : share;
        percents[k].textContent = share === undefined ? "–" : (100 * share).toFixed(1) + "%";
        percents[k].classList.toggle("best", slice.predicted === k);
      });
      for (const jump of root.querySelectorAll(".jumps button"))
        jump.setAttribute("aria-pressed", String(Number(jump.dataset.slice) === current));
      cursor();
      overlays();
    }

    slider.addEventListener("input", () => go(Number(slider.value) - 1));
    for (const control of [overlay, outlines, opacity, threshold])
      control.addEventListener("input", overlays);
    find("back").addEventListener("click", () => go(current - 1));
    find("on").addEventListener("click", () => go(current + 1));
    for (const jump of root.querySelectorAll(".jumps button"))
      jump.addEventListener("click", () => go(Number(jump.dataset.slice)));
    for (const jump of root.querySelectorAll("button.to-slice"))
      jump.addEventListener("click", () => {
        go(Number(jump.dataset.slice));
        stage.scrollIntoView({ block: "center" });
      });
    stage.addEventListener("wheel", (event) => {
      if (event.ctrlKey || count < 2) return;
      event.preventDefault();
      travel += event.deltaY * (event.deltaMode ? WHEEL : 1);
      if (Math.abs(travel) >= WHEEL) {
        go(current + Math.sign(travel));
        travel = 0;
      }
    }, { passive: false });
    if (chart) {
      chart.addEventListener("click", (event) => {
        const frame = chart.getBoundingClientRect();
        const x = (event.clientX - frame.left) * chart.viewBox.baseVal.width / frame.width;
        go(Math.floor((x - Number(chart.dataset.left)) / Number(chart.dataset.step)));
      });
    }
    root.addEventListener("pointerenter", () => { active = self; });
    root.addEventListener("focusin", () => { active = self; });
    new ResizeObserver(() => {
      if (data.slices[current].error === null)
        drawBoxes(data.slices[current], shown(data.slices[current]));
    }).observe(stage);

    const self = {
      // Whether the key meant something here.
      key(name, inStage) {
        const steps = { ArrowLeft: -1, ArrowRight: 1 };
        const more = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 };
        if (name in steps) go(current + steps[name]);
        else if (inStage && name in more) go(current + more[name]);
        else if (inStage && name === "Home") go(0);
        else if (inStage && name === "End") go(count - 1);
        else if (name === "o") {
          overlay.checked = !overlay.checked;
          overlays();
        } else return false;
        return true;
      },
    };
    viewers.push(self);
    go(data.first);
  }

  for (const root of document.querySelectorAll(".scan-viewer")) viewer(root);
  active = viewers[0];
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !active) return;
    // Sliders and fields have keys of their own.
    if (event.target.closest("input, select, textarea") && event.key !== "o") return;
    const inStage = event.target.closest(".stage") !== null;
    if (active.key(event.key, inStage)) event.preventDefault();
  });
})();
