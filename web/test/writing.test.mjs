// Writing, in every storage, with QEMU's tools as the judge.

import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';

import { fileSource, fileStorage, memoryStorage } from 'oxcow';
import { camelCase } from './qemu.mjs';
import { engine, images, skip } from './setup.mjs';

const KIB = 1024;
const MIB = KIB * KIB;

/** A storage that answers later, and in another order than it was asked. */
function slowStorage(bytes) {
  const memory = memoryStorage(bytes);
  const later = async (work) => {
    await wait(Math.random() * 3);
    return work();
  };
  return {
    name: 'slow',
    size: memory.size,
    read: (offset, length) => later(() => memory.read(offset, length)),
    write: (offset, bytes) => later(() => memory.write(offset, bytes)),
    truncate: (size) => later(() => memory.truncate(size)),
    flush: () => later(() => {}),
    bytes: () => memory.bytes(),
  };
}

/** What the issue names: `{ read, write, flush, size }`, and nothing else. */
function leastStorage() {
  const memory = memoryStorage();
  return {
    size: 0,
    read: (offset, length) => memory.read(offset, length),
    write: (offset, bytes) => memory.write(offset, bytes),
    flush() {},
    bytes: () => memory.bytes(),
  };
}

/** Where images are written to, and how their bytes come out. */
const STORAGES = {
  memory: () => memoryStorage(),
  slow: () => slowStorage(),
  least: () => leastStorage(),
  file: (name) => {
    const storage = fileStorage(images.path(name), { create: true });
    return Object.assign(storage, { bytes: () => readFileSync(images.path(name)) });
  },
};

/** qemu-img's check of an image; gives the disk's bytes. */
function judged(name, ...options) {
  const { checkErrors, corruptions, leaks } = camelCase(images.json('check', name));
  assert.deepEqual({ checkErrors, corruptions, leaks }, { checkErrors: 0, corruptions: undefined, leaks: undefined }, name);
  return images.raw(name, ...options);
}

/** A disk as it should be. */
class Model {
  constructor(size) {
    this.bytes = Buffer.alloc(size);
  }

  write(offset, bytes) {
    this.bytes.set(bytes, offset);
  }

  zero(offset, length) {
    this.bytes.fill(0, offset, offset + length);
  }
}

function pattern(length, seed) {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 1) bytes[at] = (at * 31 + seed * 7 + (at >> 8)) & 255;
  return bytes;
}

describe('every storage', skip, () => {
  for (const [kind, make] of Object.entries(STORAGES)) {
    test(`${kind}: create, write, zero, discard, flush, resize, snapshots; qemu-img agrees`, async () => {
      const name = `${kind}.qcow2`;
      const storage = make(name);
      const image = await engine.create(storage, { size: 8 * MIB, name });
      assert.equal(image.writable, true);
      assert.equal(image.virtualSize, 8 * MIB);
      const model = new Model(8 * MIB);
      const write = async (offset, bytes) => {
        await image.write(offset, bytes);
        model.write(offset, bytes);
      };
      await Promise.all([write(0, pattern(300 * KIB, 1)), write(5 * MIB - 3, pattern(70_000, 2)), write(8 * MIB - 512, pattern(512, 3))]);
      await image.flush();
      await image.writeCompressed(2 * MIB, pattern(128 * KIB, 4).fill(9, 100));
      model.write(2 * MIB, pattern(128 * KIB, 4).fill(9, 100));
      await image.writeZeroes(64 * KIB, 100 * KIB, { unmap: true });
      model.zero(64 * KIB, 100 * KIB);

      const snapshot = await image.createSnapshot('first', { date: new Date(1_700_000_000_123), vmClockNsec: 5e9 });
      const before = Buffer.from(model.bytes);
      assert.deepEqual([snapshot.name, snapshot.dateSec, snapshot.dateNsec, snapshot.vmClockSec], ['first', 1_700_000_000, 123e6, 5]);
      await image.discard(5 * MIB, 64 * KIB);
      model.zero(5 * MIB, 64 * KIB);
      await write(10_000, pattern(100, 5));
      const old = await image.openSnapshot('first');
      assert.deepEqual(Buffer.from(await old.read(0, 8 * MIB)), before);
      await assert.rejects(image.deleteSnapshot('first'), { code: 'refused' });
      await assert.rejects(old.write(0, new Uint8Array(1)), { code: 'read-only' });
      await old.close();
      assert.deepEqual(Buffer.from(await image.read(0, 8 * MIB)), model.bytes);
      const report = await image.check();
      assert.deepEqual([report.checkErrors, report.corruptions, report.messages], [0, undefined, []]);
      await image.close();
      await assert.rejects(image.read(0, 1), { code: 'closed' });
      await image.close();

      writeFileSync(images.path(name), storage.bytes());
      assert.deepEqual(judged(name), model.bytes);
      assert.deepEqual(judged(name, '-l', 'first'), before);

      // What QEMU has written to is written to again.
      images.io(name, 'write -P 0x77 1M 1M');
      model.write(MIB, new Uint8Array(MIB).fill(0x77));
      const again = await engine.open(fileStorage(images.path(name)), { writable: true });
      await again.resize(9 * MIB);
      assert.equal(again.virtualSize, 9 * MIB);
      assert.deepEqual(Buffer.from(await again.read(0, 8 * MIB)), model.bytes);
      await again.applySnapshot('first');
      assert.equal(again.virtualSize, 8 * MIB);
      await again.deleteSnapshot(snapshot.id);
      assert.deepEqual(await again.snapshots(), []);
      await again.close();
      assert.deepEqual(judged(name), before);
    });
  }
});

describe('overlays and copies', skip, () => {
  test('an overlay stores only what differs, and asks for its backing file by name', async () => {
    images.create('base.qcow2', '4M', '-o', 'compression_type=zstd');
    images.io('base.qcow2', 'write -c -P 1 0 1M', 'write -P 2 2M 1M');
    const before = images.raw('base.qcow2');
    const model = new Model(4 * MIB);
    model.write(0, before);
    const overlay = await engine.overlay(fileStorage(images.path('over.qcow2'), { create: true }), fileSource(images.path('base.qcow2')), {
      backingName: 'base.qcow2',
      extendedL2: true,
      clusterSize: 128 * KIB,
    });
    assert.equal(overlay.virtualSize, 4 * MIB);
    await overlay.write(MIB - 700, pattern(2000, 1));
    model.write(MIB - 700, pattern(2000, 1));
    await overlay.close();
    assert.deepEqual(judged('over.qcow2'), model.bytes);
    const [info] = camelCase([images.json('info', 'over.qcow2')]);
    assert.deepEqual([info.backingFilename, info.backingFilenameFormat, info.formatSpecific.data.extendedL2], ['base.qcow2', 'qcow2', true]);
    assert.deepEqual(images.raw('base.qcow2'), before);

    const asked = [];
    const again = await engine.open(fileStorage(images.path('over.qcow2')), {
      writable: true,
      resolve: ({ name }) => {
        asked.push(name);
        return fileSource(images.path(name));
      },
    });
    await again.write(0, pattern(512, 9));
    model.write(0, pattern(512, 9));
    await again.close();
    assert.deepEqual(asked, ['base.qcow2']);
    assert.deepEqual(judged('over.qcow2'), model.bytes);
  });

  test('a clone fills itself, pauses, goes on after it was stopped, and needs its source no more', async () => {
    images.create('source.qcow2', '16M');
    images.io('source.qcow2', 'write -P 3 0 5M', 'write -P 4 9M 3M');
    const model = new Model(16 * MIB);
    model.write(0, images.raw('source.qcow2'));
    const bytes = readFileSync(images.path('source.qcow2'));
    const reads = [];
    const source = {
      name: 'source.qcow2',
      size: bytes.length,
      read: async (offset, length) => {
        reads.push([offset, length]);
        await wait(2);
        return new Uint8Array(bytes.subarray(offset, offset + length));
      },
    };
    const storage = memoryStorage();
    let clone = await engine.clone(storage, source);
    assert.deepEqual(Buffer.from(await clone.read(MIB, 512)), model.bytes.subarray(MIB, MIB + 512));
    await clone.write(2 * MIB, pattern(100 * KIB, 1));
    model.write(2 * MIB, pattern(100 * KIB, 1));

    const stop = new AbortController();
    const options = { batchBytes: 256 * KIB, parallel: 2, quiet: 0, signal: stop.signal };
    const told = [];
    const stopped = clone.hydrate({ ...options, onProgress: (done, total) => told.push([done, total]) });
    while ((await clone.hydration()).state !== 'running') await wait(1);
    await assert.rejects(clone.hydrate(), { code: 'refused' });
    while ((await clone.hydration()).fetchedBytes < 1.5 * MIB) await wait(1);
    await clone.pauseHydration();
    while ((await clone.hydration()).hydrating > 0) await wait(1);
    const paused = await clone.hydration();
    assert.equal(paused.state, 'paused');
    const before = reads.length;
    await wait(50);
    assert.equal(reads.length, before, 'nothing is fetched meanwhile');
    await clone.resumeHydration();
    while ((await clone.hydration()).hydrated === paused.hydrated) await wait(1);
    stop.abort();
    await assert.rejects(stopped, { code: 'cancelled' });
    assert.ok(told.length > 2 && told.every(([done, total]) => done <= total && total === 16 * MIB), String(told));
    const { state, hydrated, total } = await clone.hydration();
    assert.equal(state, 'idle');
    assert.ok(hydrated > 0 && hydrated < total);
    await clone.close();

    const memory = memoryStorage(storage.bytes());
    clone = await engine.open(memory, { writable: true, resolve: () => source });
    assert.equal((await clone.hydration()).hydrated, hydrated);
    assert.deepEqual(await clone.hydrate({ quiet: 0 }), {});
    assert.equal((await clone.hydration()).state, 'complete');
    assert.equal((await clone.info()).length, 1);
    await clone.write(15 * MIB, pattern(512, 2));
    model.write(15 * MIB, pattern(512, 2));
    await clone.close();
    writeFileSync(images.path('clone.qcow2'), memory.bytes());
    assert.deepEqual(judged('clone.qcow2'), model.bytes);
    assert.equal(images.json('info', 'clone.qcow2')['backing-filename'], undefined);
  });

  test('a snapshot that needs the source keeps it', async () => {
    const source = pattern(2 * MIB, 1);
    const storage = memoryStorage();
    const clone = await engine.clone(storage, source, { backingName: 'bytes', backingFormat: 'raw' });
    const { id } = await clone.createSnapshot('early');
    assert.deepEqual(await clone.hydrate({ quiet: 0 }), { neededBySnapshot: id });
    await clone.deleteSnapshot('early');
    assert.deepEqual(await clone.hydrate({ quiet: 0 }), {});
    await clone.close();
    writeFileSync(images.path('needed.qcow2'), storage.bytes());
    assert.deepEqual(judged('needed.qcow2'), Buffer.from(source));
  });

  test('a view stays what the disk was while it is written to, and goes with its snapshot', async () => {
    const storage = memoryStorage();
    const image = await engine.create(storage, { size: 4 * MIB });
    await image.write(0, pattern(2 * MIB, 1));
    const before = Buffer.from(await image.read(0, 4 * MIB));
    const view = await image.view('backup');
    const copy = memoryStorage();
    const [chunks] = await Promise.all([
      (async () => {
        const chunks = [];
        for await (const chunk of view.stream({ chunkSize: 100 * KIB })) chunks.push(chunk);
        return Buffer.concat(chunks);
      })(),
      view.convert(copy, { format: 'qcow2', compress: true, clusterSize: 4096 }),
      (async () => {
        for (let at = 0; at < 40; at += 1) await image.write(at * 50 * KIB, pattern(50 * KIB, at + 9));
      })(),
    ]);
    assert.deepEqual(chunks, before);
    assert.deepEqual((await image.snapshots()).map(({ name }) => name), ['backup']);
    await view.close();
    assert.deepEqual(await image.snapshots(), []);
    const left = await image.view();
    await image.close();
    await assert.rejects(left.read(0, 1), { code: 'closed' });
    writeFileSync(images.path('viewed.qcow2'), storage.bytes());
    writeFileSync(images.path('copy.qcow2'), copy.bytes());
    judged('viewed.qcow2');
    assert.deepEqual(judged('copy.qcow2'), before);
  });

  test('a disk is streamed as a qcow2 file that qemu-img finds whole, of the size that is told', async () => {
    images.create('parent.qcow2', '70M');
    images.io('parent.qcow2', 'write -P 5 1M 3M', 'write -c -P 6 40M 128k');
    images.create('child.qcow2', '71000064', '-b', 'parent.qcow2', '-F', 'qcow2');
    images.io('child.qcow2', 'write -P 7 2M 10k', 'write -z 3M 64k', 'write -P 8 70999552 512');
    const expected = images.raw('child.qcow2');
    const image = await engine.open(fileSource(images.path('child.qcow2')), {
      resolve: ({ name }) => fileSource(images.path(name)),
    });
    for (const [index, options] of [
      {},
      { clusterSize: 512, refcountBits: 64, chunkSize: 700_001 },
      { clusterSize: 2 * MIB, extendedL2: true },
      { version: '0.10', clusterSize: 4 * KIB, chunkSize: 64 * KIB },
    ].entries()) {
      const name = `export-${index}.qcow2`;
      const told = [];
      const stream = image.export({ ...options, onProgress: (done, total) => told.push([done, total]) });
      const bytes = Buffer.from(await new Response(stream).arrayBuffer());
      assert.ok(told.every(([, total]) => total === bytes.length) && told.at(-1)[0] === bytes.length, String(told.at(-1)));
      writeFileSync(images.path(name), bytes);
      assert.deepEqual(judged(name), expected);
      images.img('compare', '-f', 'qcow2', '-F', 'qcow2', name, 'child.qcow2');
      if (index === 0) assert.ok(bytes.length < 4 * MIB, `${bytes.length}: only what is stored`);
    }
    const raw = Buffer.from(await new Response(image.export({ format: 'raw' })).arrayBuffer());
    assert.deepEqual(raw, expected);
    await image.close();
  });

  test('an export reads only what is asked for, can be stopped, and fails with its image', async () => {
    const image = await engine.open(pattern(40 * MIB, 1));
    assert.throws(() => image.export({ format: 'vmdk' }), { code: 'unsupported' });
    const reader = image.export().getReader();
    assert.equal((await image.traffic()).bytes < MIB, true);
    const { value } = await reader.read();
    assert.deepEqual([...value.subarray(0, 4)], [...'QFI\xfb'].map((letter) => letter.charCodeAt(0)));
    await reader.cancel();
    assert.ok((await image.traffic()).bytes < 20 * MIB, 'the rest is not read');

    const stop = new AbortController();
    const stopped = image.export({ signal: stop.signal, onProgress: () => stop.abort() });
    await assert.rejects(new Response(stopped).arrayBuffer(), { code: 'cancelled' });
    await assert.rejects(new Response(image.export({ clusterSize: 1000 })).arrayBuffer(), { code: 'out-of-range' });

    const left = image.export().getReader();
    await left.read();
    await image.close();
    await assert.rejects(async () => {
      while (!(await left.read()).done);
    }, { code: 'closed' });
  });

  test('an image that is written to is exported as it was at one moment, by a view', async () => {
    const storage = memoryStorage();
    const image = await engine.create(storage, { size: 8 * MIB });
    await image.write(0, pattern(4 * MIB, 1));
    const before = Buffer.from(await image.read(0, 8 * MIB));
    const view = await image.view();
    const chunks = [];
    for await (const chunk of view.export({ chunkSize: 256 * KIB })) {
      chunks.push(chunk);
      await image.write(chunks.length * 200 * KIB, pattern(200 * KIB, chunks.length));
    }
    await view.close();
    await image.close();
    writeFileSync(images.path('moment.qcow2'), Buffer.concat(chunks));
    assert.deepEqual(judged('moment.qcow2'), before);
  });

  test('a view that is kept by copying leaves the image alone, of a raw disk, too', async () => {
    for (const kind of ['raw', 'qcow2']) {
      const storage = kind === 'raw' ? memoryStorage(pattern(4 * MIB, 1)) : memoryStorage();
      const image =
        kind === 'raw'
          ? await engine.open(storage, { writable: true, format: 'raw' })
          : await engine.create(storage, { size: 4 * MIB });
      if (kind === 'qcow2') await image.write(0, pattern(3 * MIB, 1));
      const before = Buffer.from(await image.read(0, 4 * MIB));
      const copies = memoryStorage();
      const view = await image.view({ copies });
      assert.deepEqual([view.writable, view.virtualSize], [false, 4 * MIB]);
      const target = memoryStorage();
      const [chunks] = await Promise.all([
        (async () => {
          const chunks = [];
          for await (const chunk of view.stream({ chunkSize: 100 * KIB })) chunks.push(chunk);
          return Buffer.concat(chunks);
        })(),
        view.convert(target, { format: 'qcow2' }),
        (async () => {
          for (let at = 0; at < 30; at += 1) await image.write(at * 50 * KIB + 7, pattern(50 * KIB, at + 9));
          await image.writeZeroes(2 * MIB, MIB);
        })(),
      ]);
      assert.ok(chunks.equals(before), kind);
      assert.ok(Buffer.from(await view.read(0, 4 * MIB)).equals(before), kind);
      assert.ok(copies.size > 0);
      await assert.rejects(image.view({ copies }), { code: 'refused' });
      if (kind === 'qcow2') {
        assert.deepEqual(await image.snapshots(), []);
        assert.ok((await view.map()).extents.some(({ zero }) => zero), 'what the image does not store is known to be zeros');
      }
      await assert.rejects(view.write(0, new Uint8Array(1)), { code: 'read-only' });
      await view.close();

      // Nothing is copied for a view that has ended.
      const { written } = await image.traffic();
      await image.write(3 * MIB, pattern(KIB, 5));
      assert.ok((await image.traffic()).written - written < 512 * KIB);
      const left = await image.view({ copies, overwrite: true });
      await image.close();
      await assert.rejects(left.read(0, 1), { code: 'closed' });
      writeFileSync(images.path('fleeced.qcow2'), target.bytes());
      assert.deepEqual(judged('fleeced.qcow2'), before);
    }
  });

  test('where a copy cannot be made, the write fails or the view breaks, as was wished', async () => {
    const full = () => {
      const memory = memoryStorage();
      return Object.assign(memory, {
        write: () => {
          throw new DOMException('no room', 'QuotaExceededError');
        },
      });
    };
    const image = await engine.create(memoryStorage(), { size: MIB });
    await image.write(0, pattern(MIB, 1));
    await assert.rejects(image.view({ copies: memoryStorage(), onError: 'ignore' }), { code: 'out-of-range' });
    const strict = await image.view({ copies: full() });
    await assert.rejects(image.write(0, pattern(512, 2)), { code: 'no-space' });
    assert.deepEqual(await strict.read(0, MIB), pattern(MIB, 1));
    await strict.close();
    const loose = await image.view({ copies: full(), onError: 'break-view' });
    assert.deepEqual(await loose.read(0, 512), pattern(MIB, 1).slice(0, 512));
    await image.write(0, pattern(512, 2));
    await assert.rejects(loose.read(MIB / 2, 512), { code: 'stopped' });
    await loose.close();

    const slow = slowStorage();
    const view = await image.view({ copies: slow, timeout: 20 });
    let answer;
    slow.write = () => new Promise((resolve) => (answer = resolve));
    await assert.rejects(image.write(0, pattern(512, 3)), { code: 'io' });
    assert.deepEqual(await view.read(0, 512), pattern(512, 2));
    // It waits for what is left of the copy: a write is never taken back.
    const closing = view.close();
    answer();
    await closing;
    await image.close();
  });

  test('raw and qcow2 copies are qemu-img\'s disk; nothing is written over unasked', async () => {
    images.create('convert.qcow2', '70M');
    images.io('convert.qcow2', 'write -P 5 1M 3M', 'write -P 6 69M 64k');
    const expected = images.raw('convert.qcow2');
    const image = await engine.open(fileSource(images.path('convert.qcow2')));
    for (const [name, options] of Object.entries({
      'out.raw': {},
      'out.qcow2': { format: 'qcow2' },
      'packed.qcow2': { format: 'qcow2', compress: true, compressionType: 'zstd' },
    })) {
      const told = [];
      const target = () => fileStorage(images.path(name), { create: true });
      await image.convert(target(), { ...options, onProgress: (done, total) => told.push([done, total]) });
      assert.ok(told.length > 0 && told.at(-1)[0] === told.at(-1)[1], `${name}: ${told.at(-1)}`);
      if (name.endsWith('.raw')) assert.deepEqual(readFileSync(images.path(name)), expected);
      else assert.deepEqual(judged(name), expected);
      await assert.rejects(image.convert(target(), options), { code: 'refused' });
      await image.convert(target(), { ...options, overwrite: true });
    }
    const stop = new AbortController();
    const stopped = image.convert(slowStorage(), { signal: stop.signal, onProgress: () => stop.abort() });
    await assert.rejects(stopped, { code: 'cancelled' });
    await assert.rejects(image.convert(memoryStorage(), { format: 'vmdk' }), { code: 'unsupported' });
    await image.close();
    assert.ok(existsSync(images.path('packed.qcow2')));
  });
});
