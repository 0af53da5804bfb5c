// The package itself for a page of the tests' own: its files and an empty page, as any static server would send them.

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const PACKAGE = new URL('../../web/dist/', import.meta.url);

/** A file as `[type, content]`; nothing where it is none of these. */
export function packageFile(path) {
  if (path === '/') return ['text/html; charset=utf-8', '<!doctype html><title>x</title>'];
  if (!path.startsWith('/oxcow/')) return undefined;
  const type = path.endsWith('.wasm') ? 'application/wasm' : 'text/javascript; charset=utf-8';
  return [type, readFileSync(fileURLToPath(new URL(path.slice('/oxcow/'.length), PACKAGE)))];
}
