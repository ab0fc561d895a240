// Segment an image with transformers.js: node transformers_js.mjs MODULES FOLDER PNG POINTS LABELS OUT.
// MODULES is a node_modules folder with @huggingface/transformers; POINTS and LABELS are JSON; OUT receives JSON.
import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, folder, png, points, labels, out] = process.argv.slice(2);
const entry = createRequire(resolve(modules, "package.json")).resolve("@huggingface/transformers");
const { AutoProcessor, RawImage, SamModel, env } = await import(pathToFileURL(entry));
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder));

const model = await SamModel.from_pretrained(basename(folder));
const processor = await AutoProcessor.from_pretrained(basename(folder));
const image = await RawImage.read(png);
const inputs = await processor(image, { input_points: JSON.parse(points), input_labels: JSON.parse(labels) });
const outputs = await model(inputs);
const masks = await processor.post_process_masks(
  outputs.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes,
);
writeFileSync(out, JSON.stringify({
  pixels: Array.from(inputs.pixel_values.data),
  logits: { dims: outputs.pred_masks.dims, data: Array.from(outputs.pred_masks.data) },
  scores: { dims: outputs.iou_scores.dims, data: Array.from(outputs.iou_scores.data) },
  masks: { dims: masks[0].dims, data: Array.from(masks[0].data, Number) },
}));
