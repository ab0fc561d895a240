// The model, in a thread of its own: onnxruntime-web, the sessions, and the picture that is open.

import { cocoFile, maskOf, png, rowRuns } from "./masks.js";
import { preprocess } from "./pixels.js";
import { bounded, findEverything, labelledPoints } from "./prompts.js";

const BACKENDS = { wasm: "WebAssembly", webgpu: "WebGPU" };

let ort = null;
let manifest = null;
let sessions = null; // { encoder, decoder }
let picture = null; // { number, name, pixels, features, input, encodeMs, width, height }
let newest = 0; // number of the picture that was opened last
const waiting = [];
let isBusy = false;

class Stale extends Error {}

// Loading

async function fetched(path, what, remedy = "export the model again", integrity = "") {
  let response;
  try {
    response = await fetch(path, integrity ? { integrity } : {});
  } catch {
    throw new Error(`${what} cannot be loaded from ${new URL(path, self.location.href).host}: not reachable, or altered`);
  }
  if (response.status === 404) throw new Error(`${what} is missing; ${remedy}`);
  if (!response.ok) throw new Error(`${what} cannot be loaded: the server answered ${response.status}`);
  return response;
}

// Files of the folder are imported as they are. Those of another server are checked by their hashes first.
async function importRuntime({ base, version, files, integrity }, backend) {
  const [script, binary] = files[backend];
  const address = (name) => new URL(name, new URL(base, self.location.href)).href;
  const isOwn = new URL(address(script)).origin === self.location.origin;
  const what = `onnxruntime-web ${version}`;
  if (isOwn) {
    // A failed import does not say why, so the file is asked for before.
    await fetched(address(script), `${base}${script}`, `copy it from the npm package of ${what}`);
    ort = await import(address(script));
    ort.env.wasm.wasmPaths = { wasm: address(binary) };
    return;
  }
  const [code, program] = await Promise.all(
    [script, binary].map(async (name) => (await fetched(address(name), what, "", integrity[name])).blob()),
  );
  ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = await program.arrayBuffer();
}

async function load({ manifest: content, backend, threads }, progress) {
  manifest = content;
  const { runtime, bytes } = manifest.details;
  progress(`Loading onnxruntime-web ${runtime.version} …`);
  await importRuntime(runtime, backend);
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  progress("Loading the model …");
  const open = async (name) => {
    const content = await (await fetched(name, name)).arrayBuffer();
    if (content.byteLength !== bytes[name]) {
      throw new Error(`${name}: expected ${bytes[name]} bytes, got ${content.byteLength}; copy the folder again`);
    }
    return ort.InferenceSession.create(new Uint8Array(content), {
      executionProviders: [backend],
      graphOptimizationLevel: "all",
      logSeverityLevel: 4, // errors are thrown, too
    });
  };
  sessions = { encoder: await open("encoder.onnx"), decoder: await open("decoder.onnx") };
  progress("Warming up …");
  await warmUp();
  return { backend: BACKENDS[backend], threads: backend === "wasm" ? ort.env.wasm.numThreads : 0 };
}

// Browsers compile WebAssembly in two steps. The second one happens here instead of on the first picture.
async function warmUp() {
  const features = await encode(new Float32Array(3 * manifest.details.side ** 2));
  const middle = manifest.details.side / 2;
  await decode(features, [[[middle, middle]]], [[1]], null);
}

// Computing

const floats = (values, shape) => new ort.Tensor("float32", values, shape);

function encode(pixels) {
  const { side } = manifest.details;
  return sessions.encoder.run({ pixel_values: floats(pixels, [1, 3, side, side]) });
}

// Logits [P, M, 4h, 4w] and predicted IoUs [P, M] of P prompts with as many points each, and perhaps a box each, in
// pixels of the model's input.
async function decode(features, points, labels, boxes) {
  const { mask_side: side, pads_boxes: padsBoxes } = manifest.details;
  const count = points.length;
  const coords = points.map((own, i) => {
    const corners = boxes ? [boxes[i].slice(0, 2), boxes[i].slice(2)] : [];
    return [...own, ...corners, ...(!boxes || padsBoxes ? [[0, 0]] : [])];
  });
  const all = labels.map((own) => [...own, ...(boxes ? [2, 3] : []), ...(!boxes || padsBoxes ? [-1] : [])]);
  return sessions.decoder.run({
    ...features,
    point_coords: floats(Float32Array.from(coords.flat(2)), [count, all[0].length, 2]),
    point_labels: floats(Float32Array.from(all.flat()), [count, all[0].length]),
    mask_input: floats(new Float32Array(side * side), [1, 1, side, side]),
    has_mask_input: floats(new Float32Array(1), [1]),
  });
}

function indexOfBest(values, from, to) {
  let best = from;
  for (let i = from + 1; i < to; i++) if (values[i] > values[best]) best = i;
  return best;
}

// A single point is ambiguous: the best of three masks is taken. Other prompts get the single mask, or the best of the
// others where the family says that an unstable one is replaced.
function choose(logits, ious, isAmbiguous) {
  const area = manifest.details.mask_side ** 2;
  const count = ious.length;
  if (count === 1) return 0;
  if (isAmbiguous) return indexOfBest(ious, 1, count);
  const rule = manifest.details.stability;
  if (!rule) return 0;
  let [inner, outer] = [0, 0];
  for (let i = 0; i < area; i++) {
    if (logits[i] > rule.delta) inner++;
    if (logits[i] > -rule.delta) outer++;
  }
  const isStable = !outer || Math.fround(inner / outer) >= rule.threshold;
  return isStable ? 0 : indexOfBest(ious, 1, count);
}

async function readPicture({ image, blob, name, limit }) {
  let bitmap;
  try {
    // Without color management, as Pillow reads files.
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    const kind = blob.type.startsWith("video/") ? "this is a video" : "this browser cannot decode it";
    throw new Error(`${name}: expected a readable image, but ${kind}`);
  }
  const { width, height } = bitmap;
  const [shownWidth, shownHeight] = bounded(width, height, limit);
  const canvas = new OffscreenCanvas(shownWidth, shownHeight);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, shownWidth, shownHeight);
  bitmap.close();
  picture = { number: image, name, width, height, pixels: context.getImageData(0, 0, shownWidth, shownHeight) };
  return { width, height, read: [shownWidth, shownHeight] };
}

async function features() {
  if (!picture.features) {
    const start = performance.now();
    const { pixels, side, size } = preprocess(picture.pixels, manifest.processor);
    picture.pixels = null;
    picture.input = { side, size, isPadded: Boolean(manifest.processor.pad_size) };
    picture.features = await encode(pixels);
    picture.encodeMs = performance.now() - start;
  }
  return picture.features;
}

// Logits of the mask of a prompt, in pixels of the picture, and its predicted IoU.
async function logitsOf(prompt) {
  const embedded = await features();
  const { points, labels, box } = labelledPoints(prompt, picture);
  const output = await decode(embedded, [points], [labels], box && [box]);
  const [logits, ious] = [output.low_res_masks.data, output.iou_predictions.data];
  const area = manifest.details.mask_side ** 2;
  const chosen = choose(logits, ious, !box && points.length === 1);
  return { logits: logits.subarray(chosen * area, (chosen + 1) * area), predicted: ious[chosen] };
}

function upscaled(logits, size) {
  return maskOf(logits, manifest.details.mask_side, picture.input.isPadded ? picture.input : null, size);
}

const answerOf = ({ mask, pixels, stability }, [width, height], predicted, ms) => ({
  runs: rowRuns(mask),
  size: [height, width],
  pixels,
  predicted_iou: predicted,
  stability,
  ms,
});

async function predict({ prompt, shownSide }) {
  await features();
  const start = performance.now();
  const { logits, predicted } = await logitsOf(prompt);
  const size = bounded(picture.width, picture.height, shownSide);
  const mask = upscaled(logits, size);
  const answer = answerOf(mask, size, predicted, performance.now() - start);
  return { answers: [{ ...answer, encode_ms: picture.encodeMs }] };
}

async function downloaded({ prompt, format }) {
  const { logits, predicted } = await logitsOf(prompt);
  const { width, height, name } = picture;
  const found = upscaled(logits, [width, height]);
  if (format === "png") return png(found.mask, width, height);
  return cocoFile(found, width, height, name, prompt, predicted);
}

async function everything({ shownSide }, progress) {
  const embedded = await features();
  const start = performance.now();
  const size = bounded(picture.width, picture.height, shownSide);
  const [input, side] = [picture.input, manifest.details.mask_side];
  const { number } = picture;
  const decodePoints = async (points) => {
    const output = await decode(embedded, points.map((point) => [point]), points.map(() => [1]), null);
    return { logits: output.low_res_masks.data, ious: output.iou_predictions.data };
  };
  const found = await findEverything(decodePoints, side, input, async (share) => {
    progress(`Segmenting everything: ${Math.round(100 * share)} % …`);
    await nextTurn();
    // A mask under the pointer does not wait for all of them.
    while (waiting[0]?.kind === "predict") await answer(waiting.shift());
    if (number !== newest) throw new Stale("another image was opened");
  });
  const answers = found.map(({ logits, predicted }) => answerOf(upscaled(logits, size), size, predicted, 0));
  answers.sort((one, other) => other.pixels - one.pixels);
  const masks = answers.filter((one) => one.pixels > 0);
  return { answers: [{ masks, ms: Math.round(performance.now() - start) }] };
}

// Requests, one at a time. Those of a picture that is no longer open are dropped.

const ACTIONS = { load, open: readPicture, predict, everything, mask: downloaded };

// Lets the messages in that arrived while WebAssembly held the thread.
const nextTurn = () => new Promise((resolve) => setTimeout(resolve));

async function answer(request) {
  const { number, kind, image } = request;
  try {
    if (image !== undefined && image !== newest) throw new Stale("another image was opened");
    const progress = (text) => postMessage({ number, progress: text });
    postMessage({ number, result: await ACTIONS[kind](request, progress) });
  } catch (error) {
    postMessage({ number, error: error.message || String(error), isStale: error instanceof Stale });
  }
}

async function work() {
  if (isBusy) return;
  isBusy = true;
  while (waiting.length) {
    await answer(waiting.shift());
    await nextTurn();
  }
  isBusy = false;
}

self.addEventListener("message", ({ data }) => {
  if (data.kind === "open") newest = data.image;
  waiting.push(data);
  work();
});
