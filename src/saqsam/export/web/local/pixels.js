// Pixels of a picture as the model's processor makes them: resized as Pillow does, normalized, padded to a square.

const PRECISION = 22; // bits of the fraction of a weight, as many as Pillow's 8-bit resampling has

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// By Pillow's number of the filter: half its width in pixels, and its value at a distance from the center.
const FILTERS = {
  1: { support: 3, at: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
  2: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  3: { support: 2, at: bicubic },
  4: { support: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  5: { support: 1, at: (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0) },
};

function bicubic(distance) {
  const [x, a] = [Math.abs(distance), -0.5];
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// For each place of the output: the first place of the input that it reads, and the weights from there on.
function weightsOf(from, to, number) {
  const scale = from / to;
  if (number === 0) {
    // Nearest neighbors, by coordinates with 16 bits of fraction.
    const [first, step] = [scale / 2, scale].map((value) => Math.floor(value * 65536 + 0.5));
    return Array.from({ length: to }, (_, i) => [Math.floor((first + i * step) / 65536), [1 << PRECISION]]);
  }
  const { support, at } = FILTERS[number];
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(from, Math.trunc(center + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(at((x - center + 0.5) / stretch));
    const total = weights.reduce((sum, one) => sum + one, 0);
    return [first, weights.map((one) => Math.round((one / total) * (1 << PRECISION)))];
  });
}

const HALF = 1 << (PRECISION - 1);
const level = (sum) => Math.min(255, Math.max(0, sum >> PRECISION));

// Resize rows of pixels with some channels, of which the first three are kept.
function resizeRows(source, channels, width, height, newWidth, number) {
  const columns = weightsOf(width, newWidth, number);
  const result = new Uint8Array(3 * newWidth * height);
  for (let y = 0, out = 0; y < height; y++) {
    for (const [first, weights] of columns) {
      let [red, green, blue] = [HALF, HALF, HALF];
      let at = channels * (y * width + first);
      for (let i = 0; i < weights.length; i++, at += channels) {
        const weight = weights[i];
        red += source[at] * weight;
        green += source[at + 1] * weight;
        blue += source[at + 2] * weight;
      }
      result[out++] = level(red);
      result[out++] = level(green);
      result[out++] = level(blue);
    }
  }
  return result;
}

// Resize columns of rows of `row` bytes.
function resizeColumns(source, row, height, newHeight, number) {
  const result = new Uint8Array(row * newHeight);
  const sums = new Int32Array(row);
  weightsOf(height, newHeight, number).forEach(([first, weights], y) => {
    sums.fill(HALF);
    weights.forEach((weight, i) => {
      const from = (first + i) * row;
      for (let x = 0; x < row; x++) sums[x] += source[from + x] * weight;
    });
    for (let x = 0; x < row; x++) result[y * row + x] = level(sums[x]);
  });
  return result;
}

// Resize RGBA to RGB, uint8, with one of Pillow's filters by its number.
export function resize(rgba, width, height, newWidth, newHeight, number = 2) {
  // The order decides which pass is rounded to bytes first; Pillow 13 chooses it like this.
  if (newHeight < height && height - newHeight > 2 * (width - newWidth)) {
    const low = resizeColumns(rgba, 4 * width, height, newHeight, number);
    return resizeRows(low, 4, width, newHeight, newWidth, number);
  }
  const narrow = resizeRows(rgba, 4, width, height, newWidth, number);
  return resizeColumns(narrow, 3 * newWidth, height, newHeight, number);
}

// Size [width, height] of a picture within the square input.
export function inputSize(width, height, processor) {
  if (Array.isArray(processor.size)) return [processor.size[1], processor.size[0]];
  const scale = processor.size / Math.max(width, height);
  return [Math.trunc(width * scale + 0.5), Math.trunc(height * scale + 0.5)];
}

// A side so thin that it would be resized to nothing is repeated; prompts and masks still refer to the picture.
function repeatThinSides({ data, width, height }, longest) {
  const needed = Math.floor(Math.max(width, height) / (2 * longest)) + 1;
  const [across, down] = [width, height].map((side) => (side < needed ? Math.ceil(needed / side) : 1));
  if (across * down === 1) return { data, width, height };
  const source = new Uint32Array(data.buffer, data.byteOffset, width * height);
  const result = new Uint32Array(width * across * height * down);
  for (let i = 0; i < result.length; i++) {
    const [x, y] = [i % (width * across), Math.floor(i / (width * across))];
    result[i] = source[Math.floor(y / down) * width + Math.floor(x / across)];
  }
  return { data: new Uint8Array(result.buffer), width: width * across, height: height * down };
}

// Values of each level by channel.
function valuesOf(processor) {
  return [0, 1, 2].map((channel) =>
    Float32Array.from({ length: 256 }, (_, i) => {
      const value = processor.do_rescale ? Math.fround(i * processor.rescale_factor) : i;
      if (!processor.do_normalize) return value;
      return (value - Math.fround(processor.image_mean[channel])) / Math.fround(processor.image_std[channel]);
    }),
  );
}

// Pixel values, float32 [3, side, side], of an ImageData, and the size [width, height] of the picture in them.
export function preprocess(picture, processor) {
  const side = (processor.pad_size || processor.size)[0];
  const source = Array.isArray(processor.size) ? picture : repeatThinSides(picture, processor.size);
  const [width, height] = inputSize(source.width, source.height, processor);
  const rgb = resize(source.data, source.width, source.height, width, height, processor.resample);
  const pixels = new Float32Array(3 * side * side);
  valuesOf(processor).forEach((values, channel) => {
    for (let y = 0; y < height; y++) {
      const [from, to] = [3 * y * width + channel, channel * side * side + y * side];
      for (let x = 0; x < width; x++) pixels[to + x] = values[rgb[from + 3 * x]];
    }
  });
  return { pixels, side, size: [width, height] };
}
