// Keeps what the page is made of, for visits without a network: the network first, then what it gave last. The model's
// large files are kept by download.mjs.
const CACHE = "doge-page";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || request.url.endsWith(".onnx") || request.url.endsWith(".onnx_data")) return;
  event.respondWith(
    (async () => {
      const cache = await caches.open(CACHE);
      try {
        const response = await fetch(request);
        if (response.ok) await cache.put(request, response.clone());
        return response;
      } catch (error) {
        const kept = await cache.match(request, { ignoreSearch: request.mode === "navigate" });
        if (kept) return kept;
        throw error;
      }
    })(),
  );
});
