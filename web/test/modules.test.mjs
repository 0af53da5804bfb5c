// Which of the engine's two modules is loaded when, and what goes from one to the other.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

const { instantiate } = WebAssembly;
/** What the modules of the engine export, in the order in which they were loaded; Node's own are none of them. */
const loaded = [];
WebAssembly.instantiate = async (...args) => {
  const result = await instantiate(...args);
  const { module } = result instanceof WebAssembly.Instance ? { module: args[0] } : result;
  const names = WebAssembly.Module.exports(module).map(({ name }) => name);
  if (names.includes('engineimage_open')) loaded.push(names);
  return result;
};

const { memoryStorage, start } = await import('oxcow');
const { LocalEngine } = await import('../dist/local.js');
const { loadReader } = await import('../dist/modules.js');
const file = (name) => readFileSync(new URL(`../dist/wasm/${name}_bg.wasm`, import.meta.url));

const writes = (exports) => exports.includes('engineimage_write');

test('reading loads the module that only reads; the other one comes with the first write, once', async () => {
  // What could not be fetched once is asked for again.
  const answers = [new Uint8Array(3), file('oxcow_web')];
  await loadReader(file('oxcow_reader'), () => answers.shift());
  const engine = new LocalEngine();
  assert.deepEqual(loaded.map(writes), [false]);

  const bytes = new Uint8Array(1 << 20).map((_, at) => at % 253);
  const image = await engine.open(bytes);
  assert.equal((await image.info())[0].format, 'raw');
  assert.deepEqual(await image.read(1000, 3000), bytes.slice(1000, 4000));
  assert.deepEqual((await engine.inspect(bytes)).format, 'raw');
  assert.equal(image.writable, false);
  await assert.rejects(image.write(0, bytes), { code: 'read-only' });
  await assert.rejects(image.createSnapshot('no'), { code: 'read-only' });
  assert.deepEqual(loaded.map(writes), [false]);

  const failed = engine.create(memoryStorage(), { size: 512 });
  await assert.rejects(failed, { code: 'internal', message: /^The engine could not be loaded: / });
  assert.deepEqual(await image.read(0, 10), bytes.slice(0, 10));
  // Both at once, and the same module for both.
  const storages = [memoryStorage(), memoryStorage()];
  const disks = await Promise.all(storages.map((storage) => engine.create(storage, { size: 1 << 20 })));
  assert.deepEqual(loaded.map(writes), [false, true]);
  await disks[0].write(0, bytes);
  await Promise.all(disks.map((disk) => disk.close()));

  const again = await engine.open(storages[0].bytes());
  assert.deepEqual(await again.read(0, 1 << 20), bytes);
  await again.close();
  await image.close();
  await engine.close();
  assert.equal(loaded.length, 2);
});

test('an image that is read is converted with its backing file, at the snapshot in use, asking nothing again', async () => {
  const engine = await start();
  const base = new Uint8Array(1 << 20).fill(1);
  const storage = memoryStorage();
  const overlay = await engine.overlay(storage, base, { backingName: 'base', backingFormat: 'raw' });
  await overlay.write(4096, new Uint8Array(4096).fill(2));
  await overlay.createSnapshot('early');
  await overlay.write(8192, new Uint8Array(4096).fill(3));
  await overlay.close();

  const asked = [];
  const image = await engine.open(storage.bytes(), {
    resolve: ({ name }) => {
      asked.push(name);
      return base;
    },
  });
  const expected = { now: Uint8Array.from(base).fill(2, 4096, 8192).fill(3, 8192, 12288), early: Uint8Array.from(base).fill(2, 4096, 8192) };
  const copy = async (of) => {
    const target = memoryStorage();
    await of.convert(target);
    return target.bytes();
  };
  assert.deepEqual(await copy(image), expected.now);
  const early = await image.openSnapshot('early');
  assert.deepEqual(await copy(early), expected.early);
  await early.close();
  await image.useSnapshot('early');
  assert.deepEqual(await copy(image), expected.early);
  assert.deepEqual(await image.read(0, 1 << 20), expected.early);
  assert.equal((await image.hydration()).state, 'idle');
  await image.close();
  assert.deepEqual(asked, ['base']);
  await engine.close();
});
