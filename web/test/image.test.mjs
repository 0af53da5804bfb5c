// The package in Node, on the real engine, with QEMU's tools as the judge.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, truncateSync } from 'node:fs';
import { test } from 'node:test';

import { fileSource, fileStorage, OVERVIEW_KINDS, OxcowError } from 'oxcow';
import { camelCase } from './qemu.mjs';
import { engine, images, skip } from './setup.mjs';

/** Files of the test's folder stand in for what an image names. */
function beside(asked = []) {
  return (wanted) => {
    asked.push(wanted);
    return fileSource(images.path(wanted.name));
  };
}

async function open(name, options = {}) {
  return engine.open(fileSource(images.path(name)), { resolve: beside(), ...options });
}

const KINDS = {
  'plain.qcow2': ['64M'],
  'old.qcow2': ['64M', '-o', 'compat=0.10'],
  'small-clusters.qcow2': ['8M', '-o', 'cluster_size=512,refcount_bits=1'],
  'subclusters.qcow2': ['64M', '-o', 'extended_l2=on,cluster_size=128k'],
  'zstd.qcow2': ['64M', '-o', 'compression_type=zstd'],
  'lazy.qcow2': ['64M', '-o', 'lazy_refcounts=on'],
};

for (const [name, [size, ...options]] of Object.entries(KINDS)) {
  test(`${name}: info, map, check and bytes are qemu-img's`, skip, async () => {
    images.create(name, size, ...options);
    images.io(name, 'write -P 0x5a 0 200k', 'write -P 1 1M 64k', 'write -z 3M 256k', 'write -P 7 5000k 1000', 'write -P 9 7M 64k');
    const image = await open(name);

    const expected = camelCase(images.json('info', name));
    const [info] = await image.info();
    for (const report of [expected, info]) {
      for (const known of ['filename', 'actualSize', 'children']) delete report[known];
    }
    assert.deepEqual(info, expected);

    const extents = [];
    for await (const extent of image.extents({ limit: 3 })) extents.push(extent);
    assert.deepEqual(extents, camelCase(images.json('map', name)));

    const { messages, filename, ...check } = await image.check();
    const { filename: _, ...expectedCheck } = camelCase(images.json('check', name));
    assert.deepEqual(check, expectedCheck);
    assert.deepEqual(messages, []);

    const bytes = images.raw(name);
    assert.equal(image.virtualSize, bytes.length);
    for (const [offset, length] of [[0, 512], [200 * 1024 - 3, 7], [1 << 20, 65536], [5000 * 1024 - 1, 1002], [bytes.length - 5, 5]]) {
      assert.deepEqual(Buffer.from(await image.read(offset, length)), bytes.subarray(offset, offset + length));
    }
    await image.close();
  });
}

test('compressed clusters, by zlib and zstd, stream as qemu-img converts them', skip, async () => {
  images.create('source.qcow2', '32M');
  images.io('source.qcow2', 'write -P 0x41 0 10M', 'write -P 0x42 20M 3M');
  for (const type of ['zlib', 'zstd']) {
    images.img('convert', '-c', '-O', 'qcow2', '-o', `compression_type=${type}`, 'source.qcow2', 'compressed.qcow2');
    const image = await open('compressed.qcow2');
    const hash = createHash('sha256');
    const told = [];
    for await (const chunk of image.stream({ chunkSize: 300_000, onProgress: (done) => told.push(done) })) hash.update(chunk);
    assert.equal(hash.digest('hex'), createHash('sha256').update(images.raw('compressed.qcow2')).digest('hex'), type);
    assert.equal(told.at(-1), 32 << 20);
    assert.ok(told.length > 100);
    await image.close();
  }
});

test('snapshots are read, each at its own size, and left again', skip, async () => {
  images.create('snapshots.qcow2', '4M');
  images.io('snapshots.qcow2', 'write -P 1 0 1M');
  images.img('snapshot', '-c', 'first', 'snapshots.qcow2');
  images.img('resize', '-q', 'snapshots.qcow2', '6M');
  images.io('snapshots.qcow2', 'write -P 2 0 1M');
  const image = await open('snapshots.qcow2');

  const [snapshot] = await image.snapshots();
  const [expected] = camelCase(images.json('info', 'snapshots.qcow2')).snapshots;
  assert.deepEqual(snapshot, { ...expected, diskSize: 4 << 20 });

  assert.equal(image.virtualSize, 6 << 20);
  assert.deepEqual(await image.read(0, 4), new Uint8Array(4).fill(2));
  await image.useSnapshot('first');
  assert.equal(image.snapshot, snapshot.id);
  assert.equal(image.virtualSize, 4 << 20);
  assert.deepEqual(await image.read(0, 4), new Uint8Array(4).fill(1));
  await assert.rejects(image.useSnapshot('nothing'), { code: 'out-of-range' });
  assert.equal(image.snapshot, snapshot.id, 'a failed choice changes nothing');
  await image.useSnapshot(undefined);
  assert.equal(image.virtualSize, 6 << 20);
  assert.deepEqual(await image.read(0, 4), new Uint8Array(4).fill(2));
  await image.close();
});

test('bitmaps are listed with their flags', skip, async () => {
  images.create('bitmaps.qcow2', '16M');
  images.img('bitmap', '--add', '-g', '128k', 'bitmaps.qcow2', 'backup');
  images.img('bitmap', '--add', '--disable', 'bitmaps.qcow2', 'kept');
  const image = await open('bitmaps.qcow2');
  assert.deepEqual(await image.bitmaps(), camelCase(images.json('info', 'bitmaps.qcow2')).formatSpecific.data.bitmaps);
  await image.close();
});

test('a backing file is asked for, never opened by itself', skip, async () => {
  images.create('base.qcow2', '8M');
  images.io('base.qcow2', 'write -P 3 0 1M');
  images.create('overlay.qcow2', '8M', '-b', 'base.qcow2', '-F', 'qcow2');
  images.io('overlay.qcow2', 'write -P 4 512k 64k');

  await assert.rejects(open('overlay.qcow2', { resolve: undefined }), (error) => {
    assert.ok(error instanceof OxcowError);
    assert.equal(error.code, 'dependency');
    assert.equal(error.file, 'base.qcow2');
    assert.equal(error.cause.code, 'refused');
    return true;
  });

  const asked = [];
  const image = await open('overlay.qcow2', { resolve: beside(asked) });
  assert.deepEqual(asked, [
    { role: 'backing', name: 'base.qcow2', base: images.path('overlay.qcow2'), format: 'qcow2', depth: 1 },
  ]);
  assert.deepEqual((await image.info()).map(({ virtualSize }) => virtualSize), [8 << 20, 8 << 20]);
  assert.deepEqual(Buffer.from(await image.read(0, 1 << 20)), images.raw('overlay.qcow2').subarray(0, 1 << 20));

  const { shares, totals } = await image.overview({ cells: 8 });
  const stored = camelCase(images.json('map', 'overlay.qcow2')).filter(({ data }) => data);
  const sum = (depth) => stored.filter((extent) => extent.depth === depth).reduce((all, { length }) => all + length, 0);
  assert.equal(totals[OVERVIEW_KINDS.indexOf('data')], sum(0));
  assert.equal(totals[OVERVIEW_KINDS.indexOf('backing')], sum(1));
  assert.equal(shares.length, 8 * OVERVIEW_KINDS.length);
  await image.close();

  const alone = await open('overlay.qcow2', { backing: 'ignore', resolve: () => assert.fail('it asks nobody') });
  assert.deepEqual(await alone.read(0, 4), new Uint8Array(4));
  await alone.close();
});

test('a data file is asked for; without it the tables can still be read', skip, async () => {
  images.create('with-data.qcow2', '8M', '-o', 'data_file=content.raw,data_file_raw=on');
  images.io('with-data.qcow2', 'write -P 6 1M 64k');
  const asked = [];
  const image = await open('with-data.qcow2', { resolve: beside(asked) });
  assert.deepEqual(asked.map(({ role, name }) => [role, name]), [['data-file', 'content.raw']]);
  assert.deepEqual(await image.read(1 << 20, 4), new Uint8Array(4).fill(6));
  await image.close();

  const tables = await open('with-data.qcow2', { dataFile: 'ignore', resolve: undefined });
  assert.equal((await tables.info())[0].formatSpecific.data.dataFile, 'content.raw');
  await assert.rejects(tables.read(1 << 20, 4), OxcowError);
  await tables.close();
});

test('the safety report names what an image wants without opening it, damaged or not', skip, async () => {
  images.create('wants.qcow2', '1G', '-u', '-b', '/etc/passwd', '-F', 'raw');
  const report = await engine.inspect(fileSource(images.path('wants.qcow2')));
  assert.equal(report.format, 'qcow2');
  assert.equal(report.virtualSize, 1 << 30);
  assert.deepEqual(report.wants.map(({ role, name, reach }) => [role, name, reach]), [['backing', '/etc/passwd', 'absolute']]);
  assert.notEqual(report.verdict, 'safe');

  truncateSync(images.path('wants.qcow2'), 300);
  const damaged = await engine.inspect(fileSource(images.path('wants.qcow2')));
  assert.notEqual(damaged.verdict, 'safe');
  assert.ok(damaged.findings.length > 0);
});

test('what goes wrong has a code and, in a damaged image, a place', skip, async () => {
  images.create('damaged.qcow2', '64M');
  images.io('damaged.qcow2', 'write 0 64k');
  const bytes = readFileSync(images.path('damaged.qcow2'));
  const l1 = Number(bytes.readBigUInt64BE(40));
  bytes.writeBigUInt64BE(0x8000_0000_0000_0200n, l1);
  const image = await engine.open(new Uint8Array(bytes));
  await assert.rejects(image.read(0, 1), (error) => {
    assert.equal(error.code, 'corrupt');
    assert.equal(error.place.structure, 'l1-table');
    assert.equal(error.place.offset, l1);
    return true;
  });
  const { totals } = await image.overview({ cells: 4 });
  assert.equal(totals[OVERVIEW_KINDS.indexOf('damaged')], 64 << 20);
  await assert.rejects(image.read(64 << 20, 1), { code: 'out-of-range' });
  await assert.rejects(image.read(-1, 1), { code: 'out-of-range' });
  await image.close();
  await assert.rejects(image.read(0, 1), { code: 'closed' });
  await image.close();

  await assert.rejects(engine.open(new TextEncoder().encode('KDMV and so on'.padEnd(600))), { code: 'unsupported' });
  await assert.rejects(engine.open(new Uint8Array(64), { format: 'qcow2' }), { code: 'not-this-format' });
  const failing = { size: 1 << 20, read: () => Promise.reject(new Error('the cable is out')) };
  await assert.rejects(engine.open(failing), (error) => error.code === 'io' && error.message.includes('the cable is out'));
  const lying = { size: 1 << 20, read: () => new Uint8Array(0) };
  await assert.rejects(engine.open(lying), { code: 'io' });
});

test('sizes past 2^53 are bigints', skip, async () => {
  images.create('huge.qcow2', '1E', '-o', 'cluster_size=2M');
  images.io('huge.qcow2', 'write -P 8 1152921504606844928 512');
  const image = await open('huge.qcow2');
  assert.equal(image.virtualSize, 2n ** 60n);
  assert.equal((await image.info())[0].virtualSize, 2n ** 60n);
  assert.deepEqual(await image.read(2n ** 60n - 2048n, 2), new Uint8Array([8, 8]));
  const extents = [];
  for await (const extent of image.extents({ start: 2n ** 60n - 2n ** 22n })) extents.push(extent);
  assert.equal(extents.at(-1).start + BigInt(extents.at(-1).length), 2n ** 60n);
  await image.close();
});

test('a long check tells its progress and stops when its signal says so', skip, async () => {
  images.create('long.qcow2', '256G', '-o', 'preallocation=metadata');
  const image = await open('long.qcow2');
  const stop = new AbortController();
  const told = [];
  const started = performance.now();
  const checking = image.check({
    signal: stop.signal,
    onProgress: (done, total) => {
      told.push(done / total);
      // Only a turn of the event loop brings this in, as it would a message of another thread.
      if (told.length === 1) setTimeout(() => stop.abort(), 0);
    },
  });
  await assert.rejects(checking, { code: 'cancelled' });
  assert.ok(told.length > 0 && told.at(-1) < 1, String(told.slice(-3)));
  assert.ok(performance.now() - started < 5000);
  await image.close();
});

test('a dear source is read in windows, once each, and only where needed', skip, async () => {
  images.create('sparse.qcow2', '100G');
  images.io('sparse.qcow2', 'write -P 5 50G 1M');
  const bytes = readFileSync(images.path('sparse.qcow2'));
  const reads = [];
  const source = {
    name: 'sparse.qcow2',
    size: bytes.length,
    windowed: true,
    async read(offset, length) {
      reads.push([offset, length]);
      await new Promise((resolve) => setTimeout(resolve, 1));
      return new Uint8Array(bytes.subarray(offset, offset + length));
    },
  };
  const image = await engine.open(source);
  await Promise.all([image.info(), image.overview({ cells: 1000 }), image.read(50 * 2 ** 30, 65536), image.read(50 * 2 ** 30, 65536)]);
  const traffic = await image.traffic();
  assert.equal(traffic.reads, reads.length);
  assert.ok(traffic.bytes <= 2 << 20, `${traffic.bytes} bytes were read`);
  assert.equal(new Set(reads.map(([offset]) => offset)).size, reads.length, 'no window is fetched twice');
  await image.close();
});

test('bytes and an ArrayBuffer are sources, too', async () => {
  const bytes = new Uint8Array(2048).map((_, at) => at * 7);
  for (const source of [bytes, bytes.buffer, new Blob([bytes])]) {
    const image = await engine.open(source);
    assert.equal((await image.info())[0].format, 'raw');
    assert.deepEqual(await image.read(1000, 100), bytes.subarray(1000, 1100));
    await image.close();
  }
  await assert.rejects(engine.open('disk.qcow2'), { code: 'io' });
});

test('what is read at once is what is read by waiting, into new bytes and into the caller’s', skip, async () => {
  images.create('base.qcow2', '8M');
  images.io('base.qcow2', 'write -P 1 0 3M', 'write -P 2 7M 1M');
  images.create('over.qcow2', '9M', '-b', 'base.qcow2', '-F', 'qcow2');
  images.io('over.qcow2', 'write -P 3 100k 300k', 'write -z 2M 128k', 'write -P 4 5M 70k', 'write -P 5 8900k 10k');
  images.img('convert', '-c', '-O', 'qcow2', 'over.qcow2', 'packed.qcow2');
  images.img('convert', '-O', 'raw', 'over.qcow2', 'plain.raw');
  const waiting = (name) => {
    const { size, read, close } = fileSource(images.path(name));
    return { name, size, close, read: async (offset, length) => read(offset, length) };
  };
  const expected = images.raw('over.qcow2');
  for (const name of ['over.qcow2', 'packed.qcow2', 'plain.raw']) {
    for (const source of [(name) => fileSource(images.path(name)), waiting, (name) => readFileSync(images.path(name))]) {
      const image = await engine.open(source(name), { resolve: (wanted) => source(wanted.name) });
      const before = (await image.traffic()).bytes;
      for (let offset = 0, step = 1; offset < expected.length; offset += step, step = (step * 7 + 4099) % 400_000) {
        const bytes = expected.subarray(offset, Math.min(offset + step, expected.length));
        assert.ok(bytes.equals(await image.read(offset, bytes.length)), `${name}: ${bytes.length} bytes at ${offset}`);
        const into = new Uint8Array(bytes.length + 2).fill(0xee);
        await image.readInto(BigInt(offset), into.subarray(1, -1));
        await image.readInto(offset, into.subarray(1, -1));
        assert.ok(bytes.equals(into.subarray(1, -1)), `${name}: ${bytes.length} bytes at ${offset}`);
        assert.deepEqual([into[0], into.at(-1)], [0xee, 0xee]);
      }
      assert.ok((await image.traffic()).bytes > before);
      for (const [offset, length] of [[-1, 1], [0.5, 1], [0, 1.5], [0, -1], [expected.length, 1], [expected.length - 1, 2], [2 ** 60, 1]]) {
        await assert.rejects(image.read(offset, length), { code: 'out-of-range' }, `${length} bytes at ${offset}`);
        if (length === 1) await assert.rejects(image.readInto(offset, new Uint8Array(1)), { code: 'out-of-range' });
      }
      await assert.rejects(image.readInto(0, new Uint8Array(1), { signal: AbortSignal.abort() }), { code: 'cancelled' });
      await image.close();
      await assert.rejects(image.readInto(0, new Uint8Array(1)), { code: 'closed' });
    }
  }
});

test('a read that could be answered at once overtakes no write', skip, async () => {
  images.create('order.qcow2', '1M');
  const image = await engine.open(fileStorage(images.path('order.qcow2')), { writable: true });
  await image.write(0, new Uint8Array(65536).fill(1));
  const bytes = new Uint8Array(4);
  const write = image.write(0, new Uint8Array(65536).fill(2));
  const reads = [image.read(0, 4), image.readInto(4, bytes)];
  await write;
  const [first] = await Promise.all(reads);
  assert.deepEqual([...first, ...bytes], [2, 2, 2, 2, 2, 2, 2, 2]);
  await image.close();
});
