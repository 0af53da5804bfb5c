// Reading and writing the browser's own file system through the engine, against its synchronous handle itself, in
// turn in one page: `node bench/opfs.mjs [rounds]`. Rows of a table: the handle's time divided by the engine's, inside
// its worker and called from the page, as medians with the least and the most. The handle and the worker read into the
// same array each time; what the page gets is a new one.

import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { findChromium, launchWithProfile } from '../test/browser.mjs';
import { packageFile } from '../test/package.mjs';
import { spread } from './spread.mjs';

const MIB = 1 << 20;
const ROUNDS = Number(process.argv[2] ?? 5);

/** What is measured: `bytes` in all, in pieces of `size`, in order or not. */
const CASES = [
  { name: 'read 1 MiB in order', kind: 'read', size: MIB, bytes: 256 * MIB, target: 0.8 },
  { name: 'write 1 MiB in order', kind: 'write', size: MIB, bytes: 256 * MIB, target: 0.8 },
  { name: 'read 64 KiB anywhere', kind: 'read', size: 64 << 10, bytes: 64 * MIB, random: true, target: 0.5 },
  { name: 'write 64 KiB anywhere', kind: 'write', size: 64 << 10, bytes: 64 * MIB, random: true, target: 0.5 },
  { name: 'read 4 KiB anywhere', kind: 'read', size: 4 << 10, bytes: 8 * MIB, random: true, target: '' },
  { name: 'write 4 KiB anywhere', kind: 'write', size: 4 << 10, bytes: 8 * MIB, random: true, target: '' },
];

const TYPES = { js: 'text/javascript', html: 'text/html' };

/** The same pieces in the same order for both. */
const SHARED = `
const DISK = 256 << 20;
function offsets({ size, bytes, random }) {
  const places = DISK / size;
  let seed = 12345;
  return Array.from({ length: bytes / size }, (_, index) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return (random ? seed % places : index % places) * size;
  });
}`;

/** The handle itself, in a worker, as only there it exists. */
const HANDLE = `${SHARED}
let handle;
onmessage = async ({ data }) => {
  if (!handle) {
    const root = await navigator.storage.getDirectory();
    handle = await (await root.getFileHandle('raw.img', { create: true })).createSyncAccessHandle();
    const piece = new Uint8Array(1 << 20).fill(7);
    for (let at = 0; at < DISK; at += piece.length) handle.write(piece, { at });
    handle.flush();
  }
  if (!data) return postMessage(0);
  const piece = new Uint8Array(data.size).fill(9);
  const began = performance.now();
  for (const at of offsets(data)) data.kind === 'read' ? handle.read(piece, { at }) : handle.write(piece, { at });
  if (data.kind === 'write') handle.flush();
  postMessage(performance.now() - began);
};`;

/** The engine inside such a worker, which is where a program calls it for every sector. */
const INSIDE = `${SHARED}
import { loadEngine, LocalEngine } from '/oxcow/local.js';
let image;
onmessage = async ({ data }) => {
  if (!image) {
    await loadEngine(new URL('/oxcow/wasm/oxcow_web_bg.wasm', location.origin));
    image = await new LocalEngine().open({ opfs: 'inside.qcow2' }, { writable: true });
  }
  if (!data) return postMessage(0);
  const piece = new Uint8Array(data.size).fill(9);
  const began = performance.now();
  for (const at of offsets(data)) await (data.kind === 'read' ? image.readInto(at, piece) : image.write(at, piece));
  if (data.kind === 'write') await image.flush();
  postMessage(performance.now() - began);
};`;

const PAGE = `<!doctype html><title>x</title><script type="module">${SHARED}
import { start } from '/oxcow/index.js';
const asked = (worker, message) => new Promise((resolve, reject) => {
  worker.onmessage = ({ data }) => resolve(data);
  worker.onerror = (event) => reject(new Error(event.message));
  worker.postMessage(message);
});
const engine = await start();
async function filled(name) {
  const image = await engine.create({ opfs: name }, { size: DISK, overwrite: true });
  const piece = new Uint8Array(1 << 20).fill(7);
  for (let at = 0; at < DISK; at += piece.length) await image.write(at, piece);
  await image.flush();
  return image;
}
const image = await filled('page.qcow2');
await (await filled('inside.qcow2')).close();
const handle = new Worker('/handle.js');
const inside = new Worker('/inside.js', { type: 'module' });
await asked(handle, null);
await asked(inside, null);
/** Milliseconds; from the page with so many calls at once. */
async function fromPage(test, depth) {
  const waiting = offsets(test).values();
  const piece = new Uint8Array(test.size).fill(9);
  const began = performance.now();
  await Promise.all(Array.from({ length: depth }, async () => {
    for (const at of waiting) await (test.kind === 'read' ? image.read(at, test.size) : image.write(at, piece));
  }));
  if (test.kind === 'write') await image.flush();
  return performance.now() - began;
}
const all = [
  ['handle', (test) => asked(handle, test)],
  ['worker', (test) => asked(inside, test)],
  ['page', (test) => fromPage(test, 8)],
];
/** Each in its turn, another one first in every round: whoever comes later may find a busier disk. */
globalThis.measure = async (test, round) => {
  const times = {};
  for (let at = 0; at < all.length; at += 1) {
    const [name, run] = all[(round + at) % all.length];
    times[name] = await run(test);
  }
  return times;
};
</script>`;

const server = createServer((request, response) => {
  const path = new URL(request.url, 'http://localhost').pathname;
  const own = { '/': PAGE, '/handle.js': HANDLE, '/inside.js': INSIDE }[path];
  const [type, content] = own ? [TYPES[path.split('.')[1] ?? 'html'], own] : packageFile(path) ?? [];
  response.writeHead(content ? 200 : 404, { 'Content-Type': type ?? 'text/plain' }).end(content);
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

// Not a context that forgets: there every read and write of the file system is a message to another process.
const profile = mkdtempSync(join(tmpdir(), 'oxcow-profile-'));
const browser = await launchWithProfile(findChromium(), profile);
try {
  const page = await browser.newPage();
  page.on('pageerror', (error) => console.error(error));
  page.on('console', (message) => console.error(message.text()));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForFunction(() => globalThis.measure, undefined, { timeout: 120_000 });
  for (const test of CASES) {
    const rounds = [];
    // The first is to warm up.
    for (let round = 0; round <= ROUNDS; round += 1) {
      const times = await page.evaluate(([test, round]) => measure(test, round), [test, round]);
      if (round > 0) rounds.push(times);
    }
    const ratio = (who) => spread(rounds.map((times) => times.handle / times[who]));
    const speed = spread(rounds.map((times) => test.bytes / 1e3 / times.handle));
    console.log(`| ${test.name}, MB/s of the handle: ${speed} | ${test.target} | ${ratio('worker')} | ${ratio('page')} |`);
  }
} finally {
  await browser.close();
  server.close();
  rmSync(profile, { recursive: true });
}
