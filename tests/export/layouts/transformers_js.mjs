// Segment an image with transformers.js: node transformers_js.mjs MODULES CLASS FOLDER PNG PROMPT OUT.
// MODULES is a node_modules folder with @huggingface/transformers, CLASS a class of models. PROMPT is JSON: input_points,
// input_labels and input_boxes. OUT receives JSON.
import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, kind, folder, png, prompt, out] = process.argv.slice(2);
const entry = createRequire(resolve(modules, "package.json")).resolve("@huggingface/transformers");
const { AutoProcessor, RawImage, env, ...classes } = await import(pathToFileURL(entry));
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder));

const model = await classes[kind].from_pretrained(basename(folder));
const processor = await AutoProcessor.from_pretrained(basename(folder));
const image = await RawImage.read(png);
const inputs = await processor(image, JSON.parse(prompt));
const outputs = await model(inputs);
const masks = await processor.post_process_masks(
  outputs.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes,
);
const plain = (tensor) => ({ dims: tensor.dims, data: Array.from(tensor.data, Number) });
writeFileSync(out, JSON.stringify({
  pixels: plain(inputs.pixel_values),
  masks: plain(masks[0]),
  ...Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, plain(tensor)])),
}));
