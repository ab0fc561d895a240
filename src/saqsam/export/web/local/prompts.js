// Prompts in pixels of the model's input, and the grid of prompts that finds everything.

const GRID = 16; // points a side
const AT_ONCE = 8; // points per call of the decoder
const LEAST_IOU = 0.5;
const LEAST_STABILITY = 0.5;
const SAME_BOX = 0.7; // IoU of boxes from which two masks count as one

// Size [width, height] with at most `limit` pixels a side.
export function bounded(width, height, limit) {
  const scale = Math.min(1, limit / Math.max(width, height));
  return [width, height].map((side) => Math.max(1, Math.round(side * scale)));
}

// Points, labels and box of a prompt in pixels of a picture, scaled to the model's input. Points beyond the border count
// as on it.
export function labelledPoints({ points = [], labels = [], box }, { width, height, input }) {
  const scale = [input.size[0] / width, input.size[1] / height];
  const within = (value, size) => Math.min(Math.max(value, 0), size - 1e-3);
  const scaled = box && [
    Math.min(box[0], box[2]) * scale[0],
    Math.min(box[1], box[3]) * scale[1],
    Math.max(box[0], box[2]) * scale[0],
    Math.max(box[1], box[3]) * scale[1],
  ];
  if (!scaled && !labels.includes(1)) throw new Error("prompt: expected a box, or a point on the object");
  return {
    points: points.map(([x, y]) => [within(x, width) * scale[0], within(y, height) * scale[1]]),
    labels,
    box: scaled,
  };
}

// Box [x0, y0, x1, y1] and stability of logits [side, side], within the part that the picture covers.
function measured(logits, side, [width, height]) {
  let [x0, y0, x1, y1, inside, outside] = [width, height, -1, -1, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = logits[y * side + x];
      if (value <= -1) continue;
      outside++;
      if (value > 1) inside++;
      if (value > 0) {
        if (x < x0) x0 = x;
        if (x > x1) x1 = x;
        if (y < y0) y0 = y;
        if (y > y1) y1 = y;
      }
    }
  }
  return { box: [x0, y0, x1, y1], stability: outside ? inside / outside : 0 };
}

function overlap(one, other) {
  const width = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const height = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  return (width * height) / (area(one) + area(other) - width * height);
}

// The distinct masks of a grid of points: [{ logits, predicted }], the best first.
//
// `decode` maps points in pixels of the model's input to logits and predicted IoUs of all their masks; `progress` gets
// the share that is done. Masks are filtered at the decoder's resolution.
export async function findEverything(decode, side, input, progress) {
  const area = side * side;
  const covered = input.size.map((length) => Math.max(1, Math.round((length * side) / input.side)));
  const points = Array.from({ length: GRID * GRID }, (_, i) => [
    (((i % GRID) + 0.5) / GRID) * input.size[0],
    ((Math.floor(i / GRID) + 0.5) / GRID) * input.size[1],
  ]);
  const candidates = [];
  for (let start = 0; start < points.length; start += AT_ONCE) {
    await progress(start / points.length);
    const part = points.slice(start, start + AT_ONCE);
    const { logits, ious } = await decode(part);
    const masks = ious.length / part.length;
    ious.forEach((predicted, i) => {
      // The first of several masks is the single one, for prompts that are not ambiguous.
      if ((masks > 1 && i % masks === 0) || predicted <= LEAST_IOU) return;
      const own = logits.subarray(i * area, (i + 1) * area);
      const { box, stability } = measured(own, side, covered);
      if (box[2] < 0 || stability <= LEAST_STABILITY) return;
      candidates.push({ logits: own, predicted, box });
    });
  }
  candidates.sort((one, other) => other.predicted - one.predicted);
  const kept = [];
  for (const one of candidates) {
    if (kept.every((other) => overlap(one.box, other.box) <= SAME_BOX)) kept.push(one);
  }
  return kept;
}
