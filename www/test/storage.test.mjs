// Images in the browser's own file system, through the package in a real browser; QEMU's tools judge what is exported.

import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, readSync, statSync, writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { RangeServer } from '../../web/test/http-server.mjs';
import { camelCase, Images, withoutQemu } from '../../web/test/qemu.mjs';
import { findChromium, launch } from './browser.mjs';
import { packageFile } from './package.mjs';

const executable = findChromium();
const missing = !executable ? 'no Chromium is installed' : withoutQemu || undefined;

const MIB = 1 << 20;

describe('images in the OPFS', { skip: missing }, () => {
  let images;
  let browser;
  let server;
  let context;

  before(async () => {
    images = new Images();
    images.create('base.qcow2', '64M');
    images.io('base.qcow2', 'write -P 0x51 0 9M', 'write -P 0x52 30M 8M');
    server = await RangeServer.start(readFileSync(images.path('base.qcow2')));
    server.others = packageFile;
    browser = await launch(executable);
  });

  after(async () => {
    await browser?.close();
    await server?.close();
    images?.remove();
  });

  async function prepared(page) {
    await page.evaluate(async () => {
      globalThis.oxcow = await import('/oxcow/index.js');
      globalThis.engine = await globalThis.oxcow.start();
      globalThis.codeOf = (promise) => promise.then(() => 'none', ({ code, message }) => `${code}: ${message}`);
      globalThis.filled = (length, value) => new Uint8Array(length).fill(value);
      /** The first byte of each MiB in the range; -1 where a MiB is not all the same. */
      globalThis.mibs = async (image, count) => {
        const found = [];
        for (let at = 0; at < count; at += 1) {
          const bytes = await image.read(at << 20, 1 << 20);
          found.push(bytes.every((byte) => byte === bytes[0]) ? bytes[0] : -1);
        }
        return found;
      };
    });
  }

  async function openPage() {
    const page = await context.newPage();
    page.setDefaultTimeout(60_000);
    await page.goto(`${server.origin}/`);
    await prepared(page);
    return page;
  }

  /** The file at `path` of the OPFS, as a download would bring it out. */
  async function exported(page, path, name, { killed = false } = {}) {
    const text = await page.evaluate(async (path) => {
      const bytes = new Uint8Array(await (await oxcow.opfs.file(path)).arrayBuffer());
      let text = '';
      for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
      return btoa(text);
    }, path);
    writeFileSync(images.path(name), Buffer.from(text, 'base64'));
    const { checkErrors, corruptions, leaks = 0 } = camelCase(images.json('check', name));
    assert.deepEqual({ checkErrors, corruptions }, { checkErrors: 0, corruptions: undefined });
    // What a killed worker had allocated and not used yet is lost, and nothing else.
    assert.ok(leaks === 0 || killed, `${leaks} leaks`);
    images.img('convert', '-O', 'raw', name, 'exported.raw');
    // Node reads no more than 2 GiB at once; nothing is written behind the first part.
    const bytes = Buffer.alloc(Math.min(statSync(images.path('exported.raw')).size, 300 * MIB));
    const file = openSync(images.path('exported.raw'), 'r');
    readSync(file, bytes, 0, bytes.length, 0);
    closeSync(file);
    return bytes;
  }

  function browserTest(name, body) {
    test(name, async () => {
      // A profile of its own: an empty OPFS.
      context = await browser.newContext();
      try {
        await body(await openPage());
      } finally {
        await context.close();
      }
    });
  }

  browserTest('create, write, snapshot; after a reload everything is there, and qemu-img agrees', async (page) => {
    const first = await page.evaluate(async () => {
      const image = await engine.create({ opfs: 'images/disk.qcow2' }, { size: 2 ** 31 });
      await image.write(2 ** 20, filled(2 ** 20, 0x11));
      await image.createSnapshot('one');
      await image.write(2 ** 20, filled(2 ** 20, 0x22));
      await image.flush();
      return { mibs: await mibs(image, 3), size: image.virtualSize, stored: await oxcow.opfs.list() };
    });
    assert.deepEqual(first.mibs, [0, 0x22, 0]);
    assert.equal(first.size, 2 ** 31);
    assert.deepEqual(first.stored.map(({ path }) => path), ['images/disk.qcow2']);
    assert.ok(first.stored[0].size > 2 * MIB && first.stored[0].size < 4 * MIB);

    // The image was never closed: what was flushed is there all the same.
    await page.reload();
    await prepared(page);
    const again = await page.evaluate(async () => {
      const image = await engine.open({ opfs: 'images/disk.qcow2' }, { writable: true });
      const before = await mibs(image, 3);
      await image.repair('leaks');
      const snapshot = await image.openSnapshot('one');
      const old = await mibs(snapshot, 3);
      await snapshot.close();
      await image.write(0, filled(2 ** 20, 0x33));
      await image.close();
      return { before, old, has: [await oxcow.opfs.has('images/disk.qcow2'), await oxcow.opfs.has('images/none')] };
    });
    assert.deepEqual(again, { before: [0, 0x22, 0], old: [0, 0x11, 0], has: [true, false] });
    const bytes = await exported(page, 'images/disk.qcow2', 'exported.qcow2');
    assert.deepEqual([0, MIB, 2 * MIB].map((at) => bytes[at]), [0x33, 0x22, 0]);
    assert.equal(images.json('info', 'exported.qcow2')['virtual-size'], 2 ** 31);
    await page.evaluate(() => oxcow.opfs.remove('images/disk.qcow2'));
    assert.deepEqual(await page.evaluate(() => oxcow.opfs.list()), []);
  });

  browserTest('a second tab is told, and corrupts nothing; it has its turn afterwards', async (page) => {
    await page.evaluate(async () => {
      globalThis.image = await engine.create({ opfs: 'disk.qcow2' }, { size: 2 ** 24 });
      await image.write(0, filled(2 ** 20, 1));
    });
    const other = await openPage();
    const told = await other.evaluate(async () => [
      await codeOf(engine.open({ opfs: 'disk.qcow2' }, { writable: true })),
      await codeOf(engine.open({ opfs: 'disk.qcow2' })),
      await codeOf(engine.create({ opfs: 'disk.qcow2' }, { size: 2 ** 24, overwrite: true })),
      await codeOf(oxcow.opfs.remove('disk.qcow2')),
    ]);
    for (const code of told) assert.match(code, /^busy: 'disk.qcow2' is open elsewhere/);
    await page.evaluate(async () => {
      await image.write(2 ** 20, filled(2 ** 20, 2));
      await image.close();
    });
    const found = await other.evaluate(async () => {
      const refused = await codeOf(engine.create({ opfs: 'disk.qcow2' }, { size: 2 ** 24 }));
      globalThis.image = await engine.open({ opfs: 'disk.qcow2' }, { writable: true });
      return [refused, await mibs(image, 3)];
    });
    assert.match(found[0], /^refused: /);
    assert.deepEqual(found[1], [1, 2, 0]);
    // A tab that goes away gives it back, in a moment.
    await other.close();
    await page.waitForFunction(() => engine.open({ opfs: 'disk.qcow2' }).then((image) => image.close()).then(() => true, () => false));
    assert.deepEqual(await page.evaluate(async () => mibs(await engine.open({ opfs: 'disk.qcow2' }), 3)), [1, 2, 0]);
  });

  browserTest('a full quota is ENOSPC: what was there stays, and it goes on when there is room', async (page) => {
    const client = await context.newCDPSession(page);
    const quota = (bytes) =>
      client.send('Storage.overrideQuotaForOrigin', { origin: server.origin, ...(bytes && { quotaSize: bytes }) });
    await page.evaluate(async () => {
      globalThis.image = await engine.create({ opfs: 'disk.qcow2' }, { size: 2 ** 30 });
      await image.write(0, filled(4 << 20, 1));
      await image.flush();
    });
    await quota(12 * MIB);
    const full = await page.evaluate(async () => {
      let written = 4;
      for (;;) {
        const code = await codeOf(image.write(written << 20, filled(1 << 20, 2)));
        if (code !== 'none') return { code, written };
        written += 1;
      }
    });
    assert.match(full.code, /^no-space: /);
    assert.ok(full.written > 4 && full.written < 12, String(full.written));
    const kept = await page.evaluate(async (written) => {
      await image.write(0, filled(1 << 20, 3)); // In place: needs no room.
      await image.flush();
      return mibs(image, written);
    }, full.written);
    const expected = [3, 1, 1, 1, ...Array(full.written - 4).fill(2)];
    assert.deepEqual(kept, expected);
    await quota();
    await page.evaluate(async (written) => {
      await image.write(written << 20, filled(1 << 20, 4));
      await image.close();
    }, full.written);
    const bytes = await exported(page, 'disk.qcow2', 'full.qcow2');
    assert.deepEqual([...expected, 4].map((_, at) => bytes[at * MIB]), [...expected, 4]);
  });

  browserTest('a worker that is killed loses nothing that was flushed', async (page) => {
    for (let round = 0; round < 5; round += 1) {
      const flushed = await page.evaluate(async (round) => {
        const worker = new Worker('/oxcow/worker.js', { type: 'module' });
        const engine = await oxcow.start({ worker });
        const options = { writable: true };
        const image = await (round ? engine.open({ opfs: 'disk.qcow2' }, options) : engine.create({ opfs: 'disk.qcow2' }, { size: 2 ** 28 }));
        let flushed = -1;
        const writing = (async () => {
          for (let at = 0; at < 200; at += 1) {
            await image.write(at << 20, filled(1 << 18, round * 40 + 1 + (at % 40)));
            if (at % 3 === 0) {
              await image.flush();
              flushed = at;
            }
          }
        })();
        await new Promise((resolve) => setTimeout(resolve, 20 + Math.random() * 100));
        worker.terminate();
        writing.catch(() => {});
        return flushed;
      }, round);
      // The browser takes a moment to give the file back.
      await page.waitForFunction(() => oxcow.opfs.file('disk.qcow2').then((file) => file.slice(0, 1).arrayBuffer()).then(() => true, () => false));
      const bytes = await exported(page, 'disk.qcow2', `killed-${round}.qcow2`, { killed: true });
      for (let at = 0; at <= flushed; at += 1) assert.equal(bytes[at * MIB], round * 40 + 1 + (at % 40), `MiB ${at} of round ${round}`);
    }
  });

  browserTest('an overlay over a chosen file, and a clone of a URL that fills itself and outlives its tab', async (page) => {
    const found = await page.evaluate(async (url) => {
      const response = await fetch(url);
      const file = new File([await response.arrayBuffer()], 'base.qcow2');
      const overlay = await engine.overlay({ opfs: 'over.qcow2' }, file);
      await overlay.write(0, filled(1 << 20, 7));
      const seen = await mibs(overlay, 2);
      const [{ backingFilename }] = await overlay.info();
      await overlay.close();
      globalThis.clone = await engine.clone({ opfs: 'clone.qcow2' }, { url });
      void clone.hydrate({ quiet: 0, batchBytes: 1 << 18, commitEvery: 50, limitRate: 8 << 20 }).catch(() => {});
      while ((await clone.hydration()).fetchedBytes < 2 << 20) await new Promise((resolve) => setTimeout(resolve, 10));
      await new Promise((resolve) => setTimeout(resolve, 200));
      return { seen, backingFilename, state: (await clone.hydration()).state };
    }, server.url);
    assert.deepEqual(found, { seen: [7, 0x51], backingFilename: 'base.qcow2', state: 'running' });

    await page.reload();
    await prepared(page);
    const filled = await page.evaluate(async (url) => {
      const clone = await engine.open({ opfs: 'clone.qcow2' }, { writable: true, resolve: () => ({ url }) });
      const before = await clone.hydration();
      const end = await clone.hydrate({ quiet: 0 });
      await clone.close();
      return { before, end };
    }, server.url);
    assert.ok(filled.before.hydrated > 0 && filled.before.hydrated < filled.before.total, JSON.stringify(filled.before));
    assert.deepEqual(filled.end, {});
    // The tab was killed in the middle of it.
    assert.deepEqual(await exported(page, 'clone.qcow2', 'clone.qcow2', { killed: true }), images.raw('base.qcow2'));
    assert.equal(images.json('info', 'clone.qcow2')['backing-filename'], undefined);
    const over = await exported(page, 'over.qcow2', 'over.qcow2');
    assert.deepEqual([0, MIB, 30 * MIB].map((at) => over[at]), [7, 0x51, 0x52]);
  });

  browserTest('a storage of the page\'s own is written through the worker, its errors come back', async (page) => {
    const found = await page.evaluate(async () => {
      const memory = oxcow.memoryStorage();
      let room = Infinity;
      const storage = {
        get size() {
          return memory.size;
        },
        read: (offset, length) => memory.read(offset, length),
        async write(offset, bytes) {
          if (offset + bytes.length > room) throw new DOMException('no room', 'QuotaExceededError');
          memory.write(offset, bytes);
        },
        flush() {},
        truncate: (size) => memory.truncate(size),
      };
      const image = await engine.create(storage, { size: 2 ** 24 });
      await image.write(0, filled(1 << 20, 5));
      room = memory.size;
      const code = await codeOf(image.write(1 << 20, filled(1 << 20, 6)));
      room = Infinity;
      await image.write(2 << 20, filled(1 << 20, 8));
      await image.close();
      const again = await engine.open(memory.bytes());
      const clean = await again.check();
      return { code, clean: [clean.corruptions, clean.leaks], mibs: await mibs(again, 4) };
    });
    assert.match(found.code, /^no-space/);
    assert.deepEqual(found.clean, [undefined, undefined]);
    assert.deepEqual(found.mibs, [5, 0, 8, 0]);
  });
});
