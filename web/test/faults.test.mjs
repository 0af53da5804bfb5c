// Storages that misbehave, and callers that change their minds: what the image is afterwards.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';

import { fileSource, memoryStorage } from 'oxcow';
import { camelCase } from './qemu.mjs';
import { engine, filled, images, skip } from './setup.mjs';

const KIB = 1024;
const MIB = KIB * KIB;

/** A storage in memory that asks `behave(what, offset, length)` first: it may throw, or wait. */
function wayward() {
  const memory = memoryStorage();
  const storage = {
    behave: () => undefined,
    get size() {
      return memory.size;
    },
    async read(offset, length) {
      return (await storage.behave('read', offset, length)) ?? memory.read(offset, length);
    },
    async write(offset, bytes) {
      await storage.behave('write', offset, bytes.length);
      memory.write(offset, bytes);
    },
    async truncate(size) {
      await storage.behave('truncate', size, 0);
      memory.truncate(size);
    },
    async flush() {
      await storage.behave('flush', 0, 0);
    },
    bytes: () => memory.bytes(),
  };
  return storage;
}

/** What qemu-img says of the bytes; gives the disk. */
function judged(name, bytes) {
  writeFileSync(images.path(name), bytes);
  const { checkErrors, corruptions } = camelCase(images.json('check', name));
  assert.deepEqual({ checkErrors, corruptions }, { checkErrors: 0, corruptions: undefined });
  return images.raw(name);
}

/** Every sector of the range is all `old` or all `new`. */
function oldOrNew(disk, start, length, before, after) {
  for (let at = start; at < start + length; at += 512) {
    const sector = disk.subarray(at, at + 512);
    assert.ok([before, after].includes(sector[0]) && sector.every((byte) => byte === sector[0]), `sector at ${at}`);
  }
}

describe('misbehaving storages', skip, () => {
  test('a full storage is `no-space`; the image goes on when there is room', async () => {
    for (const error of [
      Object.assign(new Error('no room'), { code: 'ENOSPC' }),
      new DOMException('no room', 'QuotaExceededError'),
    ]) {
      const storage = wayward();
      const image = await engine.create(storage, { size: 8 * MIB });
      await image.write(0, filled(MIB, 1));
      await image.flush();
      const end = storage.size;
      storage.behave = (what, offset, length) => {
        if (what === 'write' && offset + length > end) throw error;
      };
      await assert.rejects(image.write(2 * MIB, filled(MIB, 2)), { code: 'no-space' });
      await image.write(0, filled(100, 3));
      assert.deepEqual(await image.read(2 * MIB, 16), filled(16, 0));
      storage.behave = () => undefined;
      await image.write(2 * MIB, filled(MIB, 4));
      await image.close();
      const disk = judged('full.qcow2', storage.bytes());
      assert.deepEqual([0, 100, 2 * MIB, 3 * MIB].map((at) => disk[at]), [3, 1, 4, 0]);
    }
  });

  test('a write of the guest\'s that fails is its own; a flush that fails stops the image', async () => {
    const storage = wayward();
    const image = await engine.create(storage, { size: 8 * MIB });
    await image.write(0, filled(MIB, 1));
    await image.flush();
    storage.behave = (what, offset, length) => {
      if (what === 'write' && length > 100 * KIB) throw new Error('the cable is out');
    };
    await assert.rejects(image.write(4 * MIB, filled(MIB, 2)), (error) => error.code === 'io' && error.message.includes('the cable is out'));
    await image.write(2 * MIB, filled(64 * KIB, 5));
    await image.flush();
    storage.behave = (what) => {
      if (what === 'flush') throw new Error('nobody knows');
    };
    await image.write(3 * MIB, filled(64 * KIB, 6));
    await assert.rejects(image.flush(), { code: 'io' });
    storage.behave = () => undefined;
    await assert.rejects(image.write(0, filled(512, 7)), { code: 'stopped' });
    await assert.rejects(image.createSnapshot('x'), { code: 'stopped' });
    await assert.rejects(image.close(), { code: 'stopped' });
    await image.close().catch(() => {});
    const disk = judged('stopped.qcow2', storage.bytes());
    assert.deepEqual([0, 2 * MIB].map((at) => disk[at]), [1, 5]);
    const again = await engine.open(memoryStorage(storage.bytes()), { writable: true });
    await again.write(0, filled(512, 8));
    await again.close();
  });

  test('a read that gives too much, too little or nothing fails, and nothing else', async () => {
    const storage = wayward();
    let image = await engine.create(storage, { size: MIB });
    await image.write(0, filled(MIB, 1));
    await image.close();
    image = await engine.open(storage);
    await image.read(0, 512);
    for (const given of [new Uint8Array(5000), new Uint8Array(0), 'text']) {
      storage.behave = (what, offset) => (what === 'read' && offset >= 64 * KIB ? given : undefined);
      await assert.rejects(image.read(70_000, 512), { code: 'io' });
    }
    storage.behave = () => undefined;
    assert.deepEqual(await image.read(70_000, 512), filled(512, 1));
    await image.close();
    const greedy = { size: MIB, read: () => assert.fail('readInto is used'), readInto: () => 2 ** 32 - 8, write() {}, flush() {} };
    await assert.rejects(engine.open(greedy), { code: 'io' });
  });

  test('what cannot be written to is told before anything happens', async () => {
    images.create('there.qcow2', '1M');
    const source = fileSource(images.path('there.qcow2'));
    await assert.rejects(engine.open(source, { writable: true }), { code: 'read-only' });
    const image = await engine.open(source);
    for (const change of [
      () => image.write(0, filled(1, 1)),
      () => image.flush(),
      () => image.createSnapshot('x'),
      () => image.resize(MIB),
      () => image.hydrate(),
      () => image.repair('all'),
      () => image.view(),
    ]) {
      await assert.rejects(change(), { code: 'read-only' });
    }
    await image.close();
    source.close();
    const storage = memoryStorage(filled(10, 1));
    await assert.rejects(engine.create(storage, { size: MIB }), { code: 'refused' });
    await assert.rejects(engine.create(memoryStorage(), { size: MIB, clusterSize: 1000 }), { code: 'out-of-range' });
    await assert.rejects(engine.create(memoryStorage(), { size: MIB, version: '0.10', extendedL2: true }), { code: 'unsupported' });
    assert.deepEqual(storage.bytes(), filled(10, 1));
  });
});

describe('callers that change their minds', skip, () => {
  test('a write that is stopped half way goes on behind the scenes; the next flush waits for it', async () => {
    for (let round = 0; round < 12; round += 1) {
      const storage = wayward();
      const image = await engine.create(storage, { size: 8 * MIB });
      await image.write(0, filled(4 * MIB, 1));
      await image.flush();
      let underWay = 0;
      storage.behave = async (what) => {
        underWay += 1;
        await wait(Math.random() * 4);
        underWay -= 1;
        if (what === 'flush') assert.equal(underWay, 0, 'nothing is on its way when it flushes');
      };
      const stop = new AbortController();
      const writing = [0, 1, 2].map((each) => image.write((each * MIB * 3) / 2, filled(MIB, 2), { signal: stop.signal }));
      await wait(round);
      stop.abort();
      const settled = await Promise.allSettled(writing);
      for (const { status, reason } of settled) assert.ok(status === 'fulfilled' || reason.code === 'cancelled');
      await image.flush();
      const first = Buffer.from(await image.read(0, 8 * MIB));
      await wait(10);
      assert.deepEqual(Buffer.from(await image.read(0, 8 * MIB)), first, 'nothing changes any more');
      await image.write(5 * MIB, filled(MIB, 3));
      storage.behave = () => undefined;
      await image.close();
      const disk = judged('aborted.qcow2', storage.bytes());
      oldOrNew(disk, 0, MIB, 1, 2);
      oldOrNew(disk, (MIB * 3) / 2, MIB, 1, 2);
      oldOrNew(disk, 3 * MIB, MIB, 1, 2);
      assert.equal(disk[4 * MIB], 0);
      assert.equal(disk[5 * MIB], 3);
    }
  });

  test('an image that is closed ends what is under way, and is closed once', async () => {
    const storage = wayward();
    let closed = 0;
    storage.close = () => void (closed += 1);
    const bytes = filled(4 * MIB, 9);
    const clone = await engine.clone(storage, { size: bytes.length, name: 'x', read: async (at, length) => (await wait(5), bytes.subarray(at, at + length)) });
    const filling = assert.rejects(clone.hydrate({ quiet: 0, batchBytes: 64 * KIB, parallel: 1 }), { code: 'cancelled' });
    while ((await clone.hydration()).fetchedBytes === 0) await wait(1);
    const writing = clone.write(0, filled(MIB, 1));
    await Promise.all([clone.close(), clone.close(), filling, writing]);
    assert.equal(closed, 1);
    await assert.rejects(clone.hydration(), { code: 'closed' });
    const again = await engine.open(memoryStorage(storage.bytes()), { resolve: () => bytes });
    assert.deepEqual(await again.read(0, MIB), filled(MIB, 1));
    const { corruptions, leaks, checkErrors } = await again.check();
    assert.deepEqual([corruptions, leaks, checkErrors], [undefined, undefined, 0]);
    await again.close();
  });

  test('an opening that is stopped or fails leaves the caller\'s storage open', async () => {
    const storage = wayward();
    let closed = 0;
    storage.close = () => void (closed += 1);
    const stop = new AbortController();
    storage.behave = async () => {
      stop.abort();
      await wait(5);
    };
    await assert.rejects(engine.create(storage, { size: MIB, signal: stop.signal }), { code: 'cancelled' });
    assert.equal(closed, 0);
    storage.behave = () => undefined;
    await wait(10);
    await (await engine.create(storage, { size: MIB, overwrite: true })).close();
    assert.equal(closed, 1);
  });

  test('a damaged image is repaired: leaks, or all', async () => {
    images.create('leaky.qcow2', '64M');
    images.io('leaky.qcow2', 'write -P 1 0 1M');
    const bytes = readFileSync(images.path('leaky.qcow2'));
    // A refcount of 1 for a cluster behind the end that nothing refers to, and 0 for one that is in use.
    const table = Number(bytes.readBigUInt64BE(48));
    const block = Number(bytes.readBigUInt64BE(table));
    const clusters = bytes.length / 65536;
    const leaky = Buffer.concat([bytes, Buffer.alloc(65536)]);
    leaky.writeUInt16BE(1, block + 2 * clusters);
    const damaged = Buffer.from(leaky);
    damaged.writeUInt16BE(0, block + 2 * (clusters - 1));
    for (const [content, what, expected] of [
      [leaky, 'leaks', [1, undefined]],
      [damaged, 'all', [1, 1]],
    ]) {
      const storage = memoryStorage(content);
      const image = await engine.open(storage, { repair: true });
      const report = await image.repair(what);
      assert.deepEqual([report.leaksFixed, report.corruptionsFixed, report.leaks, report.corruptions], [...expected, undefined, undefined]);
      assert.ok(report.messages.length > 0);
      await image.write(2 * MIB, filled(512, 3));
      await image.close();
      const disk = judged('repaired.qcow2', storage.bytes());
      assert.deepEqual([disk[0], disk[2 * MIB]], [1, 3]);
    }
  });

  test('an image that is marked as corrupt is not written to before it is repaired', async () => {
    images.create('marked.qcow2', '1M');
    images.io('marked.qcow2', 'write -P 1 0 64k');
    const bytes = readFileSync(images.path('marked.qcow2'));
    bytes[79] |= 2; // the incompatible feature "corrupt"
    const storage = memoryStorage(bytes);
    const reading = await engine.open(bytes);
    assert.equal((await reading.read(0, 1))[0], 1);
    await reading.close();
    await assert.rejects(engine.open(storage, { writable: true }), {
      code: 'corrupt',
      message: 'Image is corrupt; cannot be opened read/write',
      place: { structure: 'header' },
    });
    assert.deepEqual(Buffer.from(storage.bytes()), bytes);
    const image = await engine.open(storage, { repair: true });
    await image.repair('all');
    await image.write(512, filled(512, 2));
    await image.close();
    const disk = judged('marked.qcow2', storage.bytes());
    assert.deepEqual([disk[0], disk[512]], [1, 2]);
  });
});
