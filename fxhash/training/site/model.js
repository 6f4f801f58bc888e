// The model: loading it, and the probabilities that it gives. model.json says what it takes.

/** The description of the model, its session, and how both were loaded. */
export const loaded = load();

async function load() {
  const description = await (await fetched("model.json")).json();
  const runtime = await import(`./${description.runtime.module}`);
  runtime.env.wasm.wasmPaths = { wasm: new URL(description.runtime.binary, import.meta.url).href };
  // More threads need headers that few servers of static files send.
  runtime.env.wasm.numThreads = 1;
  const provider = description.runtime.webgpu && (await navigator.gpu?.requestAdapter()) ? "webgpu" : "wasm";
  const bytes = await (await fetched("model.onnx")).arrayBuffer();
  const start = performance.now();
  const session = await runtime.InferenceSession.create(bytes, { executionProviders: [provider] });
  const milliseconds = performance.now() - start;
  return { description, runtime, session, provider, bytes, milliseconds };
}

async function fetched(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} can't be loaded: ${response.status} ${response.statusText}`);
  return response;
}

/**
 * Probabilities of the classes.
 *
 * @param {Uint8Array[]} planes a plane of height x width bytes for each channel
 * @returns {Promise<number[]>} in the order of the classes
 */
export async function classify(planes) {
  const { description, runtime, session } = await loaded;
  const { channels, size: [height, width], mean, std } = description;
  const area = height * width;
  const input = new Float32Array(channels * area);
  planes.forEach((plane, channel) => {
    for (let i = 0; i < area; i++) input[channel * area + i] = (plane[i] / 255 - mean[channel]) / std[channel];
  });
  const tensor = new runtime.Tensor("float32", input, [1, channels, height, width]);
  const outputs = await session.run({ [session.inputNames[0]]: tensor });
  return softmax(await outputs[session.outputNames[0]].getData());
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}
