// Writes that go over data in place, straight from the caller's bytes into a storage that answers at once.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';

import { memoryStorage } from 'oxcow';
import { camelCase } from './qemu.mjs';
import { engine, filled, images, skip } from './setup.mjs';

const MIB = 1 << 20;

/** A storage in memory that answers at once; `wrote` is told of every write, and may answer in its stead. */
function watched(wrote) {
  const memory = memoryStorage();
  return {
    get size() {
      return memory.size;
    },
    read: memory.read.bind(memory),
    readInto: memory.readInto.bind(memory),
    write: (offset, bytes) => wrote(offset, bytes) ?? memory.write(offset, bytes),
    truncate: memory.truncate.bind(memory),
    flush() {
      this.flushes = (this.flushes ?? 0) + 1;
    },
    bytes: () => memory.bytes(),
    memory,
  };
}

/** The disk that native qemu-img finds whole. */
function judged(name, storage) {
  writeFileSync(images.path(name), storage.bytes());
  const { checkErrors, corruptions, leaks } = camelCase(images.json('check', name));
  assert.deepEqual({ checkErrors, corruptions, leaks }, { checkErrors: 0, corruptions: undefined, leaks: undefined });
  return images.raw(name);
}

test('the storage gets the caller\'s own bytes where they go over data, and copies elsewhere', skip, async () => {
  const given = [];
  const storage = watched((_, bytes) => void given.push(bytes.buffer));
  const image = await engine.create(storage, { size: 8 * MIB });
  const fresh = filled(MIB, 1);
  await image.write(0, fresh);
  await image.flush();
  assert.ok(!given.includes(fresh.buffer));
  const whole = filled(MIB, 2);
  await image.write(0, whole);
  assert.equal(given.at(-1), whole.buffer);
  const part = filled(1000, 3);
  await image.write(70_001, part.subarray(10, 500));
  assert.equal(given.at(-1), part.buffer);
  // Into a hole, and where a snapshot has the same clusters, it is copied.
  const hole = filled(512, 4);
  await image.write(5 * MIB, hole);
  await image.createSnapshot('before');
  const shared = filled(65536, 5);
  await image.write(65536 * 3, shared);
  assert.ok(!given.includes(hole.buffer) && !given.includes(shared.buffer));
  await image.close();
  const disk = judged('in-place.qcow2', storage);
  const expected = Buffer.alloc(8 * MIB);
  expected.fill(2, 0, MIB);
  expected.fill(3, 70_001, 70_491);
  expected.fill(4, 5 * MIB, 5 * MIB + 512);
  expected.fill(5, 65536 * 3, 65536 * 4);
  assert.ok(disk.equals(expected));
});

test('a write that fails at once is waited for before it is tried again, and told', skip, async () => {
  let failing = false;
  const storage = watched(() => {
    if (failing) throw new Error('no');
  });
  const image = await engine.create(storage, { size: MIB });
  await image.write(0, filled(65536, 1));
  await image.flush();
  const { flushes } = storage;
  failing = true;
  await assert.rejects(image.write(0, filled(65536, 2)), { code: 'io' });
  failing = false;
  // Nobody knows what is left of the first attempt when the second begins.
  assert.equal(storage.flushes, flushes + 1);
  await image.write(0, filled(512, 3));
  await image.close();
  const disk = judged('failing.qcow2', storage);
  assert.deepEqual([disk[0], disk[511], disk[512]], [3, 3, 1]);
});

test('a storage that reads at once and writes later is not overtaken by itself', skip, async () => {
  const order = [];
  const storage = watched((offset, bytes) => {
    const copy = bytes.slice();
    // The first one over data takes the longest.
    const turns = copy[0] === 2 ? 5 : 1;
    return (async () => {
      for (let turn = 0; turn < turns; turn += 1) await new Promise((resolve) => setImmediate(resolve));
      order.push(copy[0]);
      storage.memory.write(offset, copy);
    })();
  });
  storage.flush = () => new Promise((resolve) => setImmediate(resolve));
  const image = await engine.create(storage, { size: MIB });
  await image.write(0, filled(65536, 1));
  await image.flush();
  await image.write(0, filled(65536, 2));
  await image.write(0, filled(65536, 3));
  await image.flush();
  assert.equal(order.filter((value) => value === 2 || value === 3).at(-1), 3);
  assert.deepEqual(await image.read(0, 2), filled(2, 3));
  await image.close();
  assert.equal(judged('later.qcow2', storage)[0], 3);
});
