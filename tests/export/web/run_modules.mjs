// Run functions of a web export's modules in Node: node run_modules.mjs FOLDER REQUEST, both paths; REQUEST is JSON.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [folder, file] = process.argv.slice(2);
const request = JSON.parse(readFileSync(file));
const module = (name) => import(join(folder, name));
const { width, height } = request;

const actions = {
  async resize() {
    const { resize } = await module("pixels.js");
    const rgba = new Uint8ClampedArray(readFileSync(request.input));
    return resize(rgba, width, height, request.newWidth, request.newHeight, request.filter);
  },
  async preprocess() {
    const { preprocess } = await module("pixels.js");
    const data = new Uint8ClampedArray(readFileSync(request.input));
    return new Uint8Array(preprocess({ data, width, height }, request.processor).pixels.buffer);
  },
  async mask() {
    const { maskOf, rowRuns, cocoFile, png } = await module("masks.js");
    const logits = new Float32Array(new Uint8Array(readFileSync(request.input)).buffer);
    const found = maskOf(logits, request.side, request.placed, [width, height]);
    writeFileSync(`${request.output}.png`, new Uint8Array(await (await png(found.mask, width, height)).arrayBuffer()));
    const coco = cocoFile(found, width, height, "photo.jpg", request.prompt, 0.75);
    const { pixels, stability } = found;
    const answer = { pixels, stability, runs: [...rowRuns(found.mask)], coco: JSON.parse(await coco.text()) };
    return JSON.stringify(answer);
  },
};
writeFileSync(request.output, await actions[request.action]());
