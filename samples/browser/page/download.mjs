// Files of an exported folder: fetched once, compared with the manifest, kept in the browser's cache.
const CACHE = "doge-models";

/** Returns the JSON of a file; with a manifest the file must be the one that it lists. */
export async function jsonOf(model, name, manifest) {
  const bytes = manifest ? await bytesOf(model, name, manifest) : await fetched(model + name);
  return JSON.parse(new TextDecoder().decode(bytes));
}

/**
 * Returns the bytes of a file that the manifest lists, from the cache or from the network.
 *
 * @param progress called with the bytes loaded so far and those of the whole file
 */
export async function bytesOf(model, name, manifest, progress = () => {}) {
  const listed = manifest.files[name];
  if (!listed) throw new Error(`The manifest does not list ${name}: export the folder again.`);
  const key = `${model}${name}?sha256=${listed.sha256}`;
  const cache = await self.caches?.open(CACHE).catch(() => undefined);
  const kept = await cache?.match(key);
  if (kept) return new Uint8Array(await kept.arrayBuffer());
  const bytes = await fetched(model + name, listed.bytes, progress);
  const problem = await difference(bytes, listed);
  if (problem) throw new Error(`${name} is damaged or was cut off (${problem}): reload the page to fetch it again.`);
  // No room, or a private window: the page works all the same, and fetches the file again next time.
  await cache?.put(key, new Response(bytes)).catch(() => {});
  return bytes;
}

async function fetched(url, total, progress) {
  let response;
  try {
    response = await fetch(url, { cache: "no-store" });
  } catch {
    throw new Error(`${url} cannot be reached: connect to the network, and reload the page.`);
  }
  if (!response.ok) throw new Error(`${url} is not there (${response.status}): is the model's folder served as model/?`);
  const parts = [];
  let loaded = 0;
  const reader = response.body.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      loaded += part.value.length;
      progress?.(loaded, total);
    }
  } catch {
    throw new Error(`The download of ${url} was cut off: reload the page to fetch it again.`);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function difference(bytes, listed) {
  if (bytes.length !== listed.bytes) return `${bytes.length} bytes, ${listed.bytes} expected`;
  if (!self.crypto?.subtle) return null; // of pages from https and from this machine only
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex === listed.sha256 ? null : "another sha256";
}
