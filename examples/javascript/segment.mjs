// Segment an object from its box with an export, in Node.js (WebAssembly); a browser uses the same calls.
//
//     npm install onnxruntime-web
//     node segment.mjs EXPORT pixels.f32 x0 y0 x1 y1 logits.f32
//
// pixels.f32: float32 [1, 3, S, S], normalized and padded as by the processor; the box is in pixels of that square.
// logits.f32: float32 [4, 4h, 4w]; a pixel belongs to a mask if its logit is above 0. Use the first mask for a box.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-web";

const [folder, pixelsFile, ...rest] = process.argv.slice(2);
const box = rest.slice(0, 4).map(Number);
const floats = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);
const bytes = readFileSync(pixelsFile);
const pixels = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const size = Math.sqrt(pixels.length / 3);

ort.env.wasm.numThreads = 1;
const open = (name) => ort.InferenceSession.create(readFileSync(join(folder, name)));
const encoder = await open("encoder.onnx");
const decoder = await open("decoder.onnx");

const { image_embeddings } = await encoder.run({ pixel_values: floats(pixels, [1, 3, size, size]) });
const side = 4 * image_embeddings.dims[3];
const { iou_predictions, low_res_masks } = await decoder.run({
  image_embeddings,
  point_coords: floats(box, [1, 2, 2]), // the two corners of the box
  point_labels: floats([2, 3], [1, 2]), // labels of box corners
  mask_input: floats(new Float32Array(side * side), [1, 1, side, side]),
  has_mask_input: floats([0], [1]),
  orig_im_size: floats([size, size], [2]),
});
writeFileSync(rest[4], new Uint8Array(low_res_masks.data.buffer));
console.log(JSON.stringify({ shape: low_res_masks.dims, iou: [...iou_predictions.data] }));
