// The model behind the page, computed in this browser. Other pages may import this module, too:
//
//     await (await connect((text) => console.log(text))).ready;
//     const image = await open(blob, "photo.jpg");
//     const { answers } = await predict({ image: image.id, prompt: { points: [[x, y]], labels: [1] } });

const SHOWN_SIDE = 1024; // longest side of the masks that the page shows; downloads have the size of the image
const READ_SIDE = 4096; // longest side of the canvas that a picture is read from: phones offer no larger one

let worker = null;
let loaded = null; // settles when the model is ready
let pictures = 0;
let requests = 0;
const answers = new Map(); // by number of the request

// A function with one instruction of WebAssembly's 128-bit SIMD.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

function checkBrowser() {
  const missing = [
    ["WebAssembly SIMD", () => typeof WebAssembly === "object" && WebAssembly.validate(Uint8Array.from(SIMD))],
    ["OffscreenCanvas", () => typeof OffscreenCanvas === "function"],
    ["CompressionStream", () => typeof CompressionStream === "function"],
  ].find(([, isThere]) => !isThere());
  if (missing) throw new Error(`This browser is too old: it has no ${missing[0]}. Update it, or use another one.`);
}

function ask(kind, content, progress) {
  const number = ++requests;
  worker.postMessage({ number, kind, ...content });
  return new Promise((resolve, reject) => answers.set(number, { resolve, reject, progress }));
}

function startWorker() {
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data: { number, result, error, progress, isStale } }) => {
    const answer = answers.get(number);
    if (progress !== undefined) {
      answer.progress?.(progress);
      return;
    }
    answers.delete(number);
    if (error === undefined) answer.resolve(result);
    else answer.reject(Object.assign(new Error(error), { isStale }));
  });
  // Errors of the script itself, such as a file that is missing.
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    const error = new Error(`worker.js cannot run${event.message ? `: ${event.message}` : "; copy the folder again"}`);
    for (const { reject } of answers.values()) reject(error);
    answers.clear();
  });
}

async function loadModel(manifest, notify) {
  const wanted = new URLSearchParams(location.search).get("backend") || "wasm";
  // More threads than these gain little, and phones have cores that are slower.
  const threads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const start = (backend) => ask("load", { manifest, backend, threads }, (text) => notify(text, false));
  if (wanted !== "webgpu") return start("wasm");
  let reason = "this browser offers no adapter";
  if (await navigator.gpu?.requestAdapter().catch(() => null)) {
    try {
      return await start("webgpu");
    } catch (error) {
      // Errors of onnxruntime-web go on with places in its source.
      reason = error.message.length > 120 ? "onnxruntime-web cannot run these graphs on it" : error.message;
    }
    // onnxruntime-web starts once per thread.
    worker.terminate();
    startWorker();
  }
  return { ...(await start("wasm")), notice: `WebGPU cannot be used (${reason}); the model runs on WebAssembly.` };
}

async function readManifest() {
  const response = await fetch(new URL("export.json", import.meta.url));
  if (!response.ok) throw new Error("export.json is missing; export the model again");
  return response.json();
}

// Start to load the model. Returns what the page shows of it; `ready` settles when the model answers.
export async function connect(notify) {
  checkBrowser();
  const manifest = await readManifest();
  const bytes = Object.values(manifest.details.bytes).reduce((sum, one) => sum + one, 0);
  const model = { name: manifest.name, kind: "", bytes };
  startWorker();
  loaded = loadModel(manifest, notify).then(({ backend, threads, notice }) => {
    model.kind = threads > 1 ? `${backend}, ${threads} threads` : backend;
    return notice;
  });
  loaded.catch(() => {}); // whoever waits for it gets the error
  return { models: [model], samples: manifest.details.samples, sides: 1, ready: loaded };
}

// Read an image; its id replaces that of the image before.
export async function open(blob, name) {
  await loaded;
  const image = ++pictures;
  const { width, height, read } = await ask("open", { image, blob, name, limit: READ_SIDE });
  const note = read[0] < width ? `read at ${read[0]} × ${read[1]}` : "";
  return { id: image, width, height, note };
}

// Predict the mask of a prompt, at the size that the page shows.
export async function predict({ image, prompt }) {
  await loaded;
  return ask("predict", { image, prompt, shownSide: SHOWN_SIDE });
}

// Find the masks of everything.
export async function everything({ image }, progress) {
  await loaded;
  return ask("everything", { image, shownSide: SHOWN_SIDE }, progress);
}

// Predict the mask of a prompt at the size of the image, as a PNG or a COCO JSON file.
export async function mask({ image, prompt, format }) {
  await loaded;
  return ask("mask", { image, prompt, format });
}
