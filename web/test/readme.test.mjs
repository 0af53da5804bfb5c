// The examples of README.md, as they stand there.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';

import * as oxcow from 'oxcow';
import { RangeServer } from './http-server.mjs';
import { Images, withoutQemu } from './qemu.mjs';

const EXAMPLES = [...readFileSync(new URL('../README.md', import.meta.url), 'utf8').matchAll(/^```js\n(.*?)^```$/gms)].map(
  ([, code]) => code,
).filter((code) => !code.includes('{ opfs:')); // Those are for browsers, which the page's tests have.
const AsyncFunction = (async () => {}).constructor;

let images;
let server;
let folder;

before(async () => {
  if (withoutQemu) return;
  images = new Images();
  images.create('base.qcow2', '4M');
  images.io('base.qcow2', 'write -P 1 0 1M');
  images.create('disk.qcow2', '4M', '-b', 'base.qcow2', '-F', 'qcow2');
  server = await RangeServer.start(readFileSync(images.path('base.qcow2')));
  folder = process.cwd();
  process.chdir(images.folder);
});

after(async () => {
  if (withoutQemu) return;
  process.chdir(folder);
  await server.close();
  images.remove();
});

test('the examples are found', () => assert.ok(EXAMPLES.length >= 7));

for (const [index, code] of EXAMPLES.entries()) {
  test(`example ${index + 1}: ${code.trim().split('\n').at(-1)}`, { skip: withoutQemu }, async () => {
    const base = new Blob([readFileSync('base.qcow2')]);
    const overlay = new Blob([readFileSync('disk.qcow2')]);
    if (code.includes("fileSource('disk.qcow2')")) images.create('disk.qcow2', '4M');
    const engine = await oxcow.start();
    // What an example takes for granted, and the module's own exports in place of its imports.
    const scope = {
      ...oxcow,
      engine,
      file: base,
      overlay,
      filesTheUserChose: new Map([['base.qcow2', base]]),
      allowed: new Set(['base.qcow2']),
      storage: oxcow.memoryStorage(),
      somewhere: new WritableStream(),
      elsewhere: new WritableStream(),
      signal: undefined,
      onProgress: () => {},
      console: { log() {} },
    };
    const body = code
      .replace(/^import .*$/gm, '')
      .replaceAll('https://example.org/disk.qcow2', server.url)
      .replaceAll('https://example.org/', `${server.origin}/`);
    const taken = Object.keys(scope).filter((name) => !new RegExp(`const (\\{ )?${name}\\b`).test(body));
    await new AsyncFunction(...taken, body)(...taken.map((name) => scope[name]));
    await engine.close();
  });
}
