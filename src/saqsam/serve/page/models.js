// The models behind the page, which the server of `saqsam serve` runs.

async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body });
  } catch {
    throw new Error("the server does not answer");
  }
  if (!response.ok) {
    const content = await response.json().catch(() => ({}));
    throw new Error(content.error || `the server answered ${response.status}`);
  }
  return response;
}

// Return the models and samples of the page.
export async function connect() {
  return { ...(await (await fetch("api/state")).json()), sides: 2 };
}

// Upload an image.
export async function open(blob, name) {
  const { image, width, height } = await (await ask(`api/images?name=${encodeURIComponent(name)}`, blob)).json();
  return { id: image, width, height, note: "" };
}

// Predict the masks of a prompt by some models, at the size that the page shows.
export async function predict({ image, models, prompt }) {
  return (await ask("api/predict", JSON.stringify({ image, models, prompt }))).json();
}

// Find the masks of everything by some models.
export async function everything({ image, models }) {
  return (await ask("api/everything", JSON.stringify({ image, models }))).json();
}

// Predict the mask of a prompt at the size of the image, as a PNG or a COCO JSON file.
export async function mask({ image, models, prompt, format }) {
  return (await ask("api/mask", JSON.stringify({ image, models, prompt, format }))).blob();
}
