// The service worker: keeps the page's own files for when there is no network, and turns a stream from the
// page into a download. It fetches nothing but those files.

interface WorkerScope extends EventTarget {
  skipWaiting(): Promise<void>;
  clients: { claim(): Promise<void> };
  location: Location;
}

interface LifeEvent extends Event {
  waitUntil(work: Promise<unknown>): void;
}

interface FetchEvent extends LifeEvent {
  request: Request;
  respondWith(response: Promise<Response> | Response): void;
}

// The build fills these in; see vite.config.js.
declare const __ASSETS__: string[];
declare const __VERSION__: string;
declare const __POLICY__: Record<string, string>;

const scope = self as unknown as WorkerScope;
const CACHE = `oxcow-${__VERSION__}`;

scope.addEventListener('install', (event) => {
  const fill = async () => {
    const cache = await caches.open(CACHE);
    await cache.addAll(__ASSETS__.map((url) => new Request(url, { cache: 'reload' })));
    await scope.skipWaiting();
  };
  (event as LifeEvent).waitUntil(fill());
});

scope.addEventListener('activate', (event) => {
  const tidy = async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith('oxcow-') && name !== CACHE) await caches.delete(name);
    }
    await scope.clients.claim();
  };
  (event as LifeEvent).waitUntil(tidy());
});

scope.addEventListener('fetch', (event) => {
  const fetching = event as FetchEvent;
  const { request } = fetching;
  const url = new URL(request.url);
  if (request.method !== 'GET' || url.origin !== scope.location.origin) return;
  const download = /\/download\/([0-9a-f-]+)\//.exec(url.pathname)?.[1];
  fetching.respondWith(download ? downloadOf(download) : assetOf(request));
});

/** A file of the page: the kept one, so that all files are of one version; with the policy, whatever the host sends. */
async function assetOf(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(request, { ignoreSearch: true });
  if (!kept) return fetch(request);
  const headers = new Headers(kept.headers);
  for (const [name, value] of Object.entries(__POLICY__)) headers.set(name, value);
  return new Response(kept.body, { status: kept.status, statusText: kept.statusText, headers });
}

interface Download {
  name: string;
  size: number;
  port: MessagePort;
}

type FromPage = { type: 'chunk'; bytes: Uint8Array } | { type: 'end' } | { type: 'failed' } | { type: 'awake' };

/** Downloads that the page has announced and the browser has not asked for yet. */
const announced = new Map<string, Download>();

scope.addEventListener('message', (event) => {
  const { data, ports } = event as MessageEvent<{ type: string; id: string; name: string; size: number }>;
  const [port] = ports;
  if (data.type !== 'download' || !port) return;
  announced.set(data.id, { name: data.name, size: data.size, port });
  port.postMessage({ type: 'ready' });
});

/** How many chunks the page may send ahead of the browser's writing. */
const AHEAD = 4;

function downloadOf(id: string): Response {
  const download = announced.get(id);
  announced.delete(id);
  if (!download) return new Response('This download is over.', { status: 404 });
  const { name, size, port } = download;
  const arrived: (Uint8Array | 'end')[] = [];
  let wake = () => {};
  const body = new ReadableStream<Uint8Array>(
    {
      start(controller) {
        port.onmessage = ({ data }: MessageEvent<FromPage>) => {
          if (data.type === 'failed') controller.error(new Error('The page stopped the download'));
          else if (data.type === 'chunk') arrived.push(data.bytes);
          else if (data.type === 'end') arrived.push('end');
          wake();
        };
        for (let count = 0; count < AHEAD; count += 1) port.postMessage({ type: 'pull' });
      },
      async pull(controller) {
        while (arrived.length === 0) await new Promise<void>((resolve) => (wake = resolve));
        const next = arrived.shift();
        if (next === 'end' || next === undefined) {
          controller.close();
          return;
        }
        controller.enqueue(next);
        port.postMessage({ type: 'pull' });
      },
      cancel() {
        port.postMessage({ type: 'cancel' });
      },
    },
    { highWaterMark: 0 },
  );
  return new Response(body, {
    headers: {
      'Content-Type': 'application/octet-stream',
      'Content-Length': String(size),
      'Content-Disposition': `attachment; filename*=UTF-8''${encodeURIComponent(name)}`,
      ...__POLICY__,
    },
  });
}
