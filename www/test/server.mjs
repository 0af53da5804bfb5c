// Serves the built page as `npm run serve` does, and keeps a log of what was asked for.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

import { HEADERS } from '../policy.js';

const DIST = fileURLToPath(new URL('../dist', import.meta.url));

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.wasm': 'application/wasm',
  '.svg': 'image/svg+xml',
  '.webmanifest': 'application/manifest+json',
};

/** A file of the page as `[type, content]`; nothing where there is none. */
export async function fileOf(url) {
  const { pathname } = new URL(url, 'http://localhost');
  const path = normalize(pathname.endsWith('/') ? `${pathname}index.html` : pathname);
  try {
    return [TYPES[extname(path)] ?? 'application/octet-stream', await readFile(join(DIST, path))];
  } catch {
    return undefined;
  }
}

export async function serve() {
  const requests = [];
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost');
    requests.push({ method: request.method, path: pathname });
    const file = await fileOf(request.url);
    if (file) response.writeHead(200, { ...HEADERS, 'Content-Type': file[0] }).end(file[1]);
    else response.writeHead(404, HEADERS).end('no such file\n');
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${server.address().port}/`;
  const close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url, requests, close };
}
