// Masks from logits, and the forms that they are downloaded in.

// Rows of a bilinear resize as torch computes it (align_corners=False), one at a time into the same buffer.
function* resizedRows(source, stride, width, height, newWidth, newHeight) {
  const places = (from, to) =>
    Array.from({ length: to }, (_, i) => {
      const at = Math.max(0, ((i + 0.5) * from) / to - 0.5);
      const first = Math.min(Math.floor(at), from - 1);
      return [first, Math.min(first + 1, from - 1), at - first];
    });
  const columns = places(width, newWidth);
  const left = Int32Array.from(columns, ([first]) => first);
  const right = Int32Array.from(columns, ([, second]) => second);
  const share = Float32Array.from(columns, ([, , part]) => part);
  const blended = new Float32Array(width);
  const row = new Float32Array(newWidth);
  for (const [first, second, part] of places(height, newHeight)) {
    const [above, below] = [first * stride, second * stride];
    for (let x = 0; x < width; x++) blended[x] = source[above + x] * (1 - part) + source[below + x] * part;
    for (let x = 0; x < newWidth; x++) row[x] = blended[left[x]] * (1 - share[x]) + blended[right[x]] * share[x];
    yield row;
  }
}

// The mask of logits [side, side] at a size [width, height].
//
// `input` says how the picture lies in the square input of the model: its side and the picture's size in it, or null for
// a picture that was stretched. Returns a byte per pixel, the count of pixels, and the stability score.
export function maskOf(logits, side, input, [width, height]) {
  let [source, stride, inner] = [logits, side, [side, side]];
  if (input) {
    [stride, inner] = [input.size[0], input.size];
    source = new Float32Array(inner[0] * inner[1]);
    let y = 0;
    for (const row of resizedRows(logits, side, side, side, input.side, input.side)) {
      if (y === inner[1]) break;
      source.set(row.subarray(0, inner[0]), y++ * inner[0]);
    }
  }
  const mask = new Uint8Array(width * height);
  let [at, pixels, inside, outside] = [0, 0, 0, 0];
  for (const row of resizedRows(source, stride, ...inner, width, height)) {
    for (let x = 0; x < width; x++, at++) {
      const value = row[x];
      if (value > -1) {
        outside++;
        if (value > 0) {
          mask[at] = 1;
          pixels++;
          if (value > 1) inside++;
        }
      }
    }
  }
  return { mask, pixels, stability: outside ? inside / outside : 1 };
}

// Lengths of runs along the rows of a mask, the first of them of background.
export function rowRuns(mask) {
  const runs = [];
  let [value, start] = [0, 0];
  while (start < mask.length) {
    let end = mask.indexOf(1 - value, start);
    if (end < 0) end = mask.length;
    runs.push(end - start);
    [value, start] = [1 - value, end];
  }
  return Int32Array.from(runs);
}

// Bounding box [x, y, width, height] of the pixels of a mask; zeros for an empty one.
export function boxOf(mask, width, height) {
  let [x0, y0, x1, y1] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) {
    const row = mask.subarray(y * width, (y + 1) * width);
    const first = row.indexOf(1);
    if (first < 0) continue;
    [x0, x1] = [Math.min(x0, first), Math.max(x1, row.lastIndexOf(1) + 1)];
    [y0, y1] = [Math.min(y0, y), y + 1];
  }
  return x1 > x0 ? [x0, y0, x1 - x0, y1 - y0] : [0, 0, 0, 0];
}

// COCO's compressed run lengths of a mask: columns one after the other, each number as groups of five bits, and from the
// fourth on as the difference from the one two places before.
export function cocoCounts(mask, width, height) {
  const counts = [];
  let [value, length] = [0, 0];
  for (let x = 0; x < width; x++) {
    for (let y = 0, at = x; y < height; y++, at += width) {
      if (mask[at] !== value) {
        counts.push(length);
        [value, length] = [1 - value, 0];
      }
      length++;
    }
  }
  counts.push(length);
  const characters = [];
  counts.forEach((count, i) => {
    let rest = i > 2 ? count - counts[i - 2] : count;
    for (;;) {
      const group = rest & 31;
      rest >>= 5;
      // The last group's fifth bit is the sign.
      const isLast = rest === (group & 16 ? -1 : 0);
      characters.push(String.fromCharCode(48 + (isLast ? group : group | 32)));
      if (isLast) break;
    }
  });
  return characters.join("");
}

const CRC = Uint32Array.from({ length: 256 }, (_, i) => {
  let value = i;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < bytes.length - 4; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(bytes.length - 4, ~crc >>> 0);
  return bytes;
}

// A mask as a gray PNG, 255 on the mask and 0 elsewhere. A canvas would write four channels, and bounds the size.
export async function png(mask, width, height) {
  const lines = new Uint8Array((width + 1) * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) lines[y * (width + 1) + x + 1] = 255 * mask[y * width + x];
  }
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 0, 0, 0, 0], 8); // 8 bits, gray
  const start = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const parts = [start, chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", new Uint8Array(0))];
  return new Blob(parts, { type: "image/png" });
}

const short = (value) => String(Number(value.toPrecision(6)));

function described({ points, labels, box }) {
  const parts = box ? [`box ${box.map(short).join(",")}`] : [];
  const places = (points || []).map(([x, y], i) => `${short(x)},${short(y)}${labels[i] ? "" : ",0"}`);
  if (places.length) parts.push(`${places.length > 1 ? "points" : "point"} ${places.join(";")}`);
  return parts.join(", ");
}

// A COCO annotation file of one mask, with the fields that `saqsam segment` writes.
export function cocoFile({ mask, pixels, stability }, width, height, name, prompt, predicted) {
  const rounded = (value) => Number(value.toFixed(6));
  const annotation = {
    id: 1,
    image_id: 1,
    category_id: 1,
    bbox: boxOf(mask, width, height),
    area: pixels,
    iscrowd: 0,
    score: rounded(predicted),
    predicted_iou: rounded(predicted),
    stability_score: rounded(stability),
    prompt: described(prompt),
    segmentation: { size: [height, width], counts: cocoCounts(mask, width, height) },
  };
  const content = {
    info: { description: "Masks predicted by saqsam" },
    images: [{ id: 1, file_name: name, height, width }],
    annotations: [annotation],
    categories: [{ id: 1, name: "object" }],
  };
  return new Blob([`${JSON.stringify(content)}\n`], { type: "application/json" });
}
