// The disk that v86 gets, called as v86 calls it.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';

import { memoryStorage, start } from 'oxcow';
import { v86Disk } from 'oxcow/v86';

const SECTOR = 512;
const SIZE = 1 << 24;

let engine;
before(async () => {
  engine = await start();
});
after(() => engine?.close());

/** A storage that is slow, counts flushes, and fails while `broken` says what to throw. */
class Faulty {
  memory = memoryStorage();
  flushes = 0;
  broken = undefined;

  get size() {
    return this.memory.size;
  }

  async read(offset, length) {
    await wait(1);
    return this.memory.read(offset, length);
  }

  async write(offset, bytes) {
    await wait(1);
    // Without room what is there can still be written over.
    if (this.broken?.write && offset + bytes.length > this.memory.size) throw this.broken.write;
    this.memory.write(offset, bytes);
  }

  truncate(size) {
    this.memory.truncate(size);
  }

  flush() {
    if (this.broken?.flush) throw this.broken.flush;
    this.flushes += 1;
  }
}

async function prepared(options) {
  const storage = new Faulty();
  const image = await engine.create(storage, { size: SIZE });
  const troubles = [];
  const disk = v86Disk(image, { onError: (trouble) => troubles.push(trouble), ...options });
  return { storage, image, disk, troubles };
}

const sector = (value, count = 1) => new Uint8Array(count * SECTOR).fill(value);
const read = (disk, offset, length = SECTOR) => new Promise((resolve) => disk.get(offset, length, resolve));
const written = (disk, offset, bytes) => new Promise((resolve) => disk.set(offset, bytes, resolve));
const full = () => Object.assign(new Error('no room'), { code: 'ENOSPC' });

describe('a disk for v86', () => {
  test('tells its size, and that it is loaded', async () => {
    const { disk } = await prepared();
    let loaded = false;
    disk.onload = () => (loaded = true);
    disk.load();
    assert.equal(loaded, true);
    assert.equal(disk.byteLength, SIZE);
    await disk.close();
  });

  test('has what was in the memory that it was given, and reads stay behind writes', async () => {
    const { disk } = await prepared();
    const reused = new Uint8Array(SECTOR);
    const reads = [];
    // Programmed I/O: v86 uses one buffer again and again, and waits for nothing.
    for (let value = 1; value <= 200; value += 1) {
      disk.set((value % 50) * SECTOR, reused.fill(value));
      reads.push(read(disk, (value % 50) * SECTOR));
    }
    const seen = await Promise.all(reads);
    seen.forEach((bytes, at) => assert.ok(bytes.every((byte) => byte >= at + 1 && byte === bytes[0]), `read ${at}`));
    const all = await read(disk, 0, 50 * SECTOR);
    for (let at = 0; at < 50; at += 1) assert.equal(all[at * SECTOR], at === 0 ? 200 : 150 + at);
    await disk.close();
  });

  test('writes that follow each other become few, each of them is answered', async () => {
    const { disk, image } = await prepared();
    const before = await image.traffic();
    await Promise.all(Array.from({ length: 1024 }, (_, at) => written(disk, at * SECTOR, sector(at & 255))));
    const { writes } = await image.traffic();
    assert.ok(writes - before.writes < 100, `${writes - before.writes} writes`);
    const bytes = await read(disk, 0, 1024 * SECTOR);
    for (let at = 0; at < 1024; at += 1) assert.equal(bytes[at * SECTOR + 511], at & 255);
    await disk.close();
  });

  test('a flush comes after a pause, and now and then without one', async () => {
    const { disk, storage } = await prepared({ idle: 60, flushEvery: 300 });
    const start = storage.flushes;
    await written(disk, 0, sector(1));
    await wait(200);
    const paused = storage.flushes;
    assert.ok(paused > start);
    await wait(200);
    assert.equal(storage.flushes, paused, 'there was nothing more to flush');
    for (let at = 0; at < 50; at += 1) {
      await written(disk, at * SECTOR, sector(2));
      await wait(15);
    }
    assert.ok(storage.flushes > paused);
    await disk.close();
  });

  test('sectors that v86 wants at once are there, and follow writes', async () => {
    const { disk } = await prepared();
    assert.equal(disk.get_from_cache(0, SECTOR), undefined);
    await written(disk, 0, sector(7));
    const first = new Promise((resolve) => disk.get_and_cache(0, SECTOR, resolve));
    disk.set(0, sector(8)); // While the read is under way.
    await first;
    assert.deepEqual(disk.get_from_cache(0, SECTOR), sector(8));
    disk.set(0, sector(9));
    assert.deepEqual(disk.get_from_cache(0, SECTOR), sector(9));
    assert.equal(disk.get_from_cache(0, 2 * SECTOR), undefined);
    await disk.close();
  });

  test('a snapshot has every write before it, and none after', async () => {
    const { disk, image } = await prepared();
    for (let at = 0; at < 100; at += 1) disk.set(at * 2 * SECTOR, sector(1));
    const made = disk.snapshot('between');
    for (let at = 0; at < 100; at += 1) disk.set(at * 2 * SECTOR, sector(2));
    const { id, name, moment } = await made;
    await disk.flush();
    assert.equal(name, 'between');
    assert.notEqual(moment, disk.moment);
    const view = await image.openSnapshot(id);
    for (let at = 0; at < 100; at += 1) {
      assert.equal((await view.read(at * 2 * SECTOR, 1))[0], 1);
      assert.equal((await image.read(at * 2 * SECTOR, 1))[0], 2);
    }
    await view.close();
    await disk.close();
  });

  test('a state goes with its moment only', async () => {
    const { disk, storage } = await prepared();
    disk.set(0, sector(1));
    const state = JSON.parse(JSON.stringify(disk.get_state()));
    const snapshot = await disk.snapshot('with the state');
    disk.set_state(state);
    disk.set(0, sector(2));
    assert.throws(() => disk.set_state(state), { code: 'refused' });
    await disk.restore(snapshot);
    disk.set_state(state);
    assert.deepEqual(await read(disk, 0), sector(1));
    await disk.close();

    // In another session the page says which moment the image is at.
    const image = await engine.open(storage.memory, { writable: true });
    assert.throws(() => v86Disk(image).set_state(state), { code: 'refused' });
    const again = v86Disk(image, { moment: snapshot.moment });
    again.set_state(state);
    again.set(0, sector(3));
    assert.throws(() => again.set_state(state), { code: 'refused' });
    await again.close();
  });

  test('a full storage holds the guest, loses nothing, and goes on when there is room', async () => {
    const { disk, storage, troubles } = await prepared();
    await written(disk, 0, sector(1));
    storage.broken = { write: full() };
    const done = [];
    for (let at = 0; at < 10; at += 1) disk.set((1 + at) * 65536, sector(10 + at), () => done.push(at));
    const late = read(disk, 3 * 65536);
    await assert.rejects(disk.snapshot('not now'), { code: 'no-space' });
    await assert.rejects(disk.flush(), { code: 'no-space' });
    assert.deepEqual(
      troubles.map(({ error, operation, offset, length }) => [error.code, operation, offset, length]),
      [['no-space', 'write', 65536, SECTOR]],
    );
    assert.equal(disk.failure.code, 'no-space');
    assert.deepEqual(done, []);
    assert.deepEqual(await read(disk, 0), sector(1), 'what does not wait for a write is read');
    storage.broken = undefined;
    disk.retry();
    assert.deepEqual(await late, sector(12));
    await disk.flush();
    assert.equal(done.length, 10);
    await disk.close();
    const image = await engine.open(storage.memory);
    for (let at = 0; at < 10; at += 1) assert.equal((await image.read((1 + at) * 65536, 1))[0], 10 + at);
    await image.close();
  });

  test('a flush that fails is told once, and so is the end at close', async () => {
    const { disk, storage, troubles } = await prepared({ idle: 10 });
    storage.broken = { flush: new Error('the disk is gone') };
    await written(disk, 0, sector(1));
    await wait(100);
    assert.deepEqual(troubles.map(({ operation }) => operation), ['flush']);
    await assert.rejects(disk.close(), { name: 'OxcowError' });
  });

  test('a read that fails waits for another try', async () => {
    const { disk, image, troubles } = await prepared();
    await written(disk, 0, sector(5));
    const { read: good } = image;
    image.read = () => Promise.reject(new Error('the network is gone'));
    const waiting = read(disk, 0);
    await wait(5);
    assert.deepEqual(troubles.map(({ operation, error }) => [operation, error.code]), [['read', 'io']]);
    image.read = good;
    disk.retry();
    assert.deepEqual(await waiting, sector(5));
    await disk.close();
  });

  test('an image that is only read holds writes, and gives all of its bytes', async () => {
    const { disk, storage } = await prepared();
    await written(disk, SECTOR, sector(6));
    await disk.close();
    const troubles = [];
    const only = v86Disk(await engine.open(storage.memory), { onError: (trouble) => troubles.push(trouble) });
    const bytes = new Uint8Array(await new Promise((resolve) => only.get_buffer(resolve)));
    assert.equal(bytes.length, SIZE);
    assert.deepEqual(bytes.subarray(SECTOR, 2 * SECTOR), sector(6));
    only.set(0, sector(1));
    await wait(5);
    assert.deepEqual(troubles.map(({ error }) => error.code), ['read-only']);
    await assert.rejects(only.close(), { code: 'read-only' });
  });

  for (let seed = 1; seed <= 3; seed += 1) {
    test(`keeps its promises whatever the order is, with failures in between (seed ${seed})`, async () => {
      const random = generator(seed);
      const storage = new Faulty();
      const image = await engine.create(storage, { size: SIZE, clusterSize: 4096 });
      const disk = v86Disk(image, { idle: 5, flushEvery: 20, onError: () => setTimeout(again, 3) });
      const again = () => {
        storage.broken = undefined;
        disk.retry();
      };
      const SECTORS = 400;
      const model = new Array(SECTORS).fill(0); // The number of the write that a sector is from.
      const reused = new Uint8Array(16 * SECTOR);
      const snapshots = [];
      const waiting = [];
      let refused = 0;
      for (let step = 1; step <= 400; step += 1) {
        const first = Math.floor(random() * SECTORS);
        const count = Math.min(SECTORS - first, 1 + Math.floor(random() * 16));
        const kind = random();
        if (kind < 0.6) {
          const bytes = reused.subarray(0, count * SECTOR);
          const numbers = new DataView(bytes.buffer);
          for (let at = 0; at < bytes.length; at += SECTOR) numbers.setUint32(at, step);
          model.fill(step, first, first + count);
          disk.set(first * SECTOR, bytes);
        } else if (kind < 0.9) {
          const least = model.slice(first, first + count);
          const check = (bytes) => least.forEach((number, at) => assert.ok(numberAt(bytes, at) >= number, `step ${step}`));
          waiting.push(read(disk, first * SECTOR, count * SECTOR).then(check));
        } else if (kind < 0.95) {
          const then = [...model];
          const made = disk.snapshot(`at ${step}`);
          waiting.push(made.then(({ id }) => snapshots.push({ id, then }), ({ code }) => (refused += code === 'no-space')));
        } else if (kind < 0.96) {
          storage.broken = { write: full() };
        }
        if (random() < 0.3) await wait(Math.floor(random() * 4));
      }
      storage.broken = undefined;
      await wait(10);
      await Promise.all(waiting);
      await disk.close();
      assert.ok(snapshots.length + refused > 3);

      const result = await engine.open(storage.memory);
      const { corruptions, leaks } = await result.check();
      assert.deepEqual({ corruptions, leaks }, { corruptions: undefined, leaks: undefined });
      for (const { id, then } of [...snapshots, { id: undefined, then: model }]) {
        await result.useSnapshot(id);
        const bytes = await result.read(0, SECTORS * SECTOR);
        assert.deepEqual(then.map((_, at) => numberAt(bytes, at)), then);
      }
      await result.close();
    });
  }
});

function numberAt(bytes, sector) {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(sector * SECTOR);
}

/** Numbers from 0 to 1 that are the same for the same seed. */
function generator(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
