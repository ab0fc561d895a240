// The page of `saqsam serve` and of web exports: prompts from pointer and keyboard, answers of two models and their
// comparison, or of one. `models.js` answers: a server's in one case, computed in the browser in the other.

import * as backend from "./models.js";

const COLORS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [204, 121, 167], [0, 114, 178], [213, 94, 0]];
const DRAG = 6; // pixels of the screen from which a press is a box
const LONG_PRESS = 550; // milliseconds
const WELCOME = "Open, drop or paste an image, or choose a sample.";
const byId = (id) => document.getElementById(id);
const stage = byId("stage");
const sides = [...document.querySelectorAll(".side")].map((element) => ({
  canvas: element.querySelector("canvas"),
  select: element.querySelector("select"),
  masks: [],
}));

let models = [];
let image = null; // { id, width, height, bitmap }
let prompts = []; // [{ kind: "point", x, y, label } | { kind: "box", box }], in the order they were given
let hover = null; // { x, y } under the pointer while there is no prompt
let cursor = null; // place of the keyboard's cross
let dragged = null; // box that is being drawn
let opening = 0; // number of the last image that was opened
let asking = false;
let again = false;
let everything = false;

function say(text, isError = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("error", isError);
}

// Answers about an image that is no longer open are of no interest.
function fail(error) {
  if (!error.isStale) say(error.message, true);
}

const chosen = () => sides.map((side) => side.select.value);

// Images

async function open(blob, name) {
  const number = ++opening;
  say(`Reading ${name} …`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    bitmap = null; // a server may know formats that the browser does not
  }
  let size;
  try {
    const opened = await backend.open(blob, name);
    if (number !== opening) return;
    if (!bitmap) throw new Error(`${name}: this browser cannot show it`);
    image = { id: opened.id, name, width: opened.width, height: opened.height, bitmap };
    size = [`${opened.width} × ${opened.height}`, opened.note].filter(Boolean).join(", ");
  } catch (error) {
    if (number === opening) say(error.message, true);
    return;
  }
  prompts = [];
  hover = cursor = dragged = null;
  everything = false;
  clearMasks();
  stage.classList.remove("empty");
  byId("everything").disabled = false;
  draw();
  say(`${name}, ${size}: encoding …`);
  // The first answer waits for the encoders. The middle of the image stands in for the pointer.
  try {
    const middle = { points: [[image.width / 2, image.height / 2]], labels: [1] };
    const result = await predict(middle);
    if (number !== opening) return;
    showEncoding(result);
    say(`${name}, ${size}. Move over the image, click, or drag a box.`);
  } catch (error) {
    if (number === opening) say(error.message, true);
  }
}

function clearMasks() {
  for (const side of sides) side.masks = [];
  for (const field of ["decode", "predicted", "pixels"]) sides.forEach((_, i) => (byId(field + i).textContent = ""));
  showIou();
  update();
}

// Prompts and answers

function current() {
  const points = prompts.filter((one) => one.kind === "point");
  const boxes = prompts.filter((one) => one.kind === "box");
  if (dragged) boxes.push({ box: dragged });
  if (!points.some((one) => one.label) && !boxes.length) {
    return hover && !points.length ? { points: [[hover.x, hover.y]], labels: [1] } : null;
  }
  const prompt = { points: points.map((one) => [one.x, one.y]), labels: points.map((one) => one.label) };
  if (boxes.length) prompt.box = boxes[boxes.length - 1].box;
  return prompt;
}

const predict = (prompt) => backend.predict({ image: image.id, models: chosen(), prompt });

// One request at a time; whatever happened meanwhile is asked once more afterwards.
async function refresh() {
  draw();
  update();
  if (!image) return;
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  try {
    do {
      again = false;
      const prompt = current();
      const asked = image;
      if (!prompt) {
        if (!everything) clearMasks();
        draw();
        continue;
      }
      const result = await predict(prompt);
      if (asked !== image) continue;
      everything = false;
      result.answers.forEach((answer, i) => {
        sides[i].masks = [maskPicture(answer, COLORS[i === 0 ? 1 : 0])];
      });
      showNumbers(result);
      draw();
    } while (again);
  } catch (error) {
    fail(error);
  } finally {
    asking = false;
  }
}

async function segmentEverything() {
  if (!image) return;
  const asked = image;
  say("Segmenting everything …");
  byId("everything").disabled = true;
  try {
    const result = await backend.everything({ image: image.id, models: chosen() }, say);
    if (asked !== image) return;
    prompts = [];
    hover = null;
    clearMasks();
    everything = true;
    result.answers.forEach((answer, i) => {
      sides[i].masks = answer.masks.map((mask, k) => maskPicture(mask, COLORS[k % COLORS.length]));
      byId(`decode${i}`).textContent = `${answer.ms} ms for ${answer.masks.length} masks`;
    });
    say(`Everything: ${result.answers.map((answer) => answer.masks.length).join(" and ")} masks.`);
    draw();
  } catch (error) {
    fail(error);
  } finally {
    byId("everything").disabled = false;
  }
}

function maskPicture({ runs, size: [height, width] }, [red, green, blue]) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  const words = new Uint32Array(data.data.buffer);
  const color = (150 << 24) | (blue << 16) | (green << 8) | red;
  let at = 0;
  runs.forEach((length, i) => {
    if (i % 2) words.fill(color, at, at + length);
    at += length;
  });
  context.putImageData(data, 0, 0);
  return canvas;
}

// Numbers

const bytes = (count) => (count ? `${(count / 1e6).toFixed(1)} MB` : "");

function showEncoding(result) {
  result.answers.forEach((answer, i) => {
    byId(`encode${i}`).textContent = `${answer.encode_ms.toFixed(0)} ms`;
  });
}

function showNumbers(result) {
  showEncoding(result);
  result.answers.forEach((answer, i) => {
    byId(`decode${i}`).textContent = `${answer.ms.toFixed(1)} ms`;
    byId(`predicted${i}`).textContent = answer.predicted_iou.toFixed(3);
    const scale = (image.width * image.height) / (answer.size[0] * answer.size[1]);
    byId(`pixels${i}`).textContent = Math.round(answer.pixels * scale).toLocaleString("en");
  });
  showIou(result.iou);
}

function showIou(value) {
  if (sides.length > 1) byId("iou").textContent = value === undefined ? "–" : value.toFixed(3);
}

function showModels() {
  sides.forEach((side, i) => {
    const model = models.find((one) => one.name === side.select.value);
    byId(`name${i}`).textContent = model.name;
    byId(`bytes${i}`).textContent = [bytes(model.bytes), model.kind].filter(Boolean).join(", ");
  });
}

function update() {
  byId("undo").disabled = byId("clear").disabled = !prompts.length && !everything;
  const canDownload = prompts.some((one) => one.kind === "box" || one.label);
  for (const button of document.querySelectorAll("[data-format]")) button.disabled = !canDownload;
}

// Drawing

function draw() {
  if (!image) return;
  const isWipe = stage.classList.contains("wipe");
  const scale = Math.min(1, 1024 / Math.max(image.width, image.height));
  stage.style.setProperty("--aspect", image.width / image.height);
  sides.forEach((side, i) => {
    const { canvas } = side;
    const [width, height] = [image.width * scale, image.height * scale].map((value) => Math.max(1, Math.round(value)));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.drawImage(image.bitmap, 0, 0, width, height);
    if (isWipe && i === 0) {
      const border = (width * byId("slider").value) / 100;
      drawMasks(context, sides[0].masks, 0, border, width, height);
      drawMasks(context, sides[1].masks, border, width, width, height);
      context.fillStyle = "#fff";
      context.fillRect(border - 1, 0, 2, height);
    } else {
      drawMasks(context, side.masks, 0, width, width, height);
    }
    drawPrompts(context, scale, width / (canvas.clientWidth || width));
  });
}

function drawMasks(context, masks, from, to, width, height) {
  context.save();
  context.beginPath();
  context.rect(from, 0, to - from, height);
  context.clip();
  for (const mask of masks) context.drawImage(mask, 0, 0, width, height);
  context.restore();
}

function drawPrompts(context, scale, unit) {
  const isHover = hover && !prompts.length && !dragged;
  for (const one of prompts) {
    if (one.kind === "point") dot(context, one.x * scale, one.y * scale, unit, one.label ? "#12a150" : "#d62f2f");
    else frame(context, one.box, scale, unit);
  }
  if (dragged) frame(context, dragged, scale, unit);
  if (isHover) dot(context, hover.x * scale, hover.y * scale, unit * 0.6, "#ffffffcc");
  if (cursor) {
    context.strokeStyle = "#fff";
    context.lineWidth = 2 * unit;
    const [x, y, arm] = [cursor.x * scale, cursor.y * scale, 12 * unit];
    context.beginPath();
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    context.moveTo(x, y - arm);
    context.lineTo(x, y + arm);
    context.stroke();
  }
}

function dot(context, x, y, unit, color) {
  context.beginPath();
  context.arc(x, y, 6 * unit, 0, 2 * Math.PI);
  context.fillStyle = color;
  context.fill();
  context.lineWidth = 2 * unit;
  context.strokeStyle = "#fff";
  context.stroke();
}

function frame(context, [x0, y0, x1, y1], scale, unit) {
  context.lineWidth = 2.5 * unit;
  context.strokeStyle = "#12a150";
  context.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
}

// Pointer, touch and keys

function place(event, canvas) {
  const area = canvas.getBoundingClientRect();
  const within = (value, limit) => Math.min(Math.max(value, 0), limit - 0.01);
  return {
    x: within(((event.clientX - area.left) / area.width) * image.width, image.width),
    y: within(((event.clientY - area.top) / area.height) * image.height, image.height),
  };
}

function add(prompt) {
  if (prompt.kind === "box") prompts = prompts.filter((one) => one.kind !== "box");
  prompts.push(prompt);
  hover = dragged = null;
  refresh();
}

function undo() {
  if (everything) everything = false;
  else prompts.pop();
  refresh();
}

function clear() {
  prompts = [];
  hover = cursor = null;
  everything = false;
  refresh();
}

for (const { canvas } of sides) {
  let press = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (!image || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    const isNegative = event.button === 2 || event.altKey;
    press = { x: event.clientX, y: event.clientY, start: place(event, canvas), isNegative, isBox: false, isDone: false };
    if (event.pointerType === "touch") {
      press.timer = setTimeout(() => {
        if (!press || press.isBox) return;
        press.isDone = true;
        add({ kind: "point", ...press.start, label: 0 });
        navigator.vibrate?.(20);
      }, LONG_PRESS);
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!image || !event.isPrimary) return;
    const at = place(event, canvas);
    if (press && !press.isDone && !press.isNegative) {
      press.isBox ||= Math.hypot(event.clientX - press.x, event.clientY - press.y) > DRAG;
      if (press.isBox) {
        clearTimeout(press.timer);
        const { start } = press;
        dragged = [Math.min(start.x, at.x), Math.min(start.y, at.y), Math.max(start.x, at.x), Math.max(start.y, at.y)];
        draw();
      }
    } else if (!press && event.pointerType !== "touch" && !prompts.length && !everything) {
      hover = at;
      refresh();
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!press) return;
    const { start, isNegative, isBox, isDone, timer } = press;
    clearTimeout(timer);
    press = null;
    if (isDone) return;
    if (isBox && dragged && dragged[2] > dragged[0] && dragged[3] > dragged[1]) add({ kind: "box", box: dragged });
    else add({ kind: "point", ...place(event, canvas), label: isNegative ? 0 : 1, ...(isBox ? {} : start) });
  });
  canvas.addEventListener("pointercancel", () => {
    if (press) clearTimeout(press.timer);
    press = dragged = null;
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    if (!press && hover) {
      hover = null;
      refresh();
    }
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("keydown", (event) => {
    if (!image) return;
    const step = Math.max(image.width, image.height) / (event.shiftKey ? 100 : 30);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (!moves[event.key] && event.key !== "Enter" && event.key !== " ") return;
    cursor ||= { x: image.width / 2, y: image.height / 2 };
    if (moves[event.key]) {
      cursor = {
        x: Math.min(Math.max(cursor.x + moves[event.key][0], 0), image.width - 0.01),
        y: Math.min(Math.max(cursor.y + moves[event.key][1], 0), image.height - 0.01),
      };
      if (!prompts.length && !everything) hover = cursor;
      refresh();
    } else {
      add({ kind: "point", ...cursor, label: event.shiftKey ? 0 : 1 });
    }
    event.preventDefault();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  const actions = { z: undo, Escape: clear, e: segmentEverything, w: toggleWipe };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (action && image) action();
});

function toggleWipe() {
  if (sides.length < 2) return;
  const isWipe = stage.classList.toggle("wipe");
  byId("wipe").setAttribute("aria-pressed", String(isWipe));
  draw();
}

// Files

async function download(side, format) {
  const prompt = current();
  if (!prompt || !image) return;
  try {
    const blob = await backend.mask({ image: image.id, models: [sides[side].select.value], prompt, format });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${image.name.replace(/\.[^.]*$/, "")}.${format === "png" ? "mask.png" : "coco.json"}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  } catch (error) {
    fail(error);
  }
}

function openFirst(files) {
  const file = [...files].find((one) => one.type.startsWith("image/")) || files[0];
  if (file) open(file, file.name || "pasted image");
}

byId("open").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  openFirst(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => openFirst(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.toggle("dragging", kind === "dragover");
    if (kind === "drop") openFirst(event.dataTransfer.files);
  });
}
byId("undo").addEventListener("click", undo);
byId("clear").addEventListener("click", clear);
byId("everything").addEventListener("click", segmentEverything);
byId("wipe").addEventListener("click", toggleWipe);
byId("slider").addEventListener("input", draw);
addEventListener("resize", draw);
for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => download(Number(button.dataset.side), button.dataset.format));
}

// One model has one picture, and nothing to compare with.
function keepOneSide() {
  for (const element of document.querySelectorAll(".pair")) element.remove();
  stage.classList.add("single");
  sides.splice(1);
  sides[0].canvas.ariaLabel = "Image with the mask of the model";
  document.title = "saqsam: click, and segment";
}

async function start() {
  const state = await backend.connect(say);
  models = state.models;
  if (state.sides === 1) keepOneSide();
  sides.forEach((side, i) => {
    for (const model of models) side.select.add(new Option(model.name, model.name));
    side.select.value = models[Math.min(i, models.length - 1)].name;
    side.select.addEventListener("change", () => {
      showModels();
      byId(`encode${i}`).textContent = "";
      everything = false;
      clearMasks();
      refresh();
    });
  });
  for (const name of state.samples) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = button.ariaLabel = `Open the sample ${name}`;
    const picture = document.createElement("img");
    picture.src = `samples/${name}`;
    picture.alt = "";
    button.append(picture);
    button.addEventListener("click", async () => open(await (await fetch(picture.src)).blob(), name));
    byId("samples").append(button);
  }
  showModels();
  document.body.dataset.ready = "true";
  if (state.ready) {
    const notice = await state.ready;
    showModels();
    if (notice) byId("notice").textContent = notice;
  }
  document.body.dataset.loaded = "true";
  if (!opening) say(WELCOME);
}

try {
  await start();
} catch (error) {
  say(error.message, true);
}
