// Views and exports of an image in the OPFS while it is written to, in a real browser; QEMU's tools judge the exports.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { RangeServer } from '../../web/test/http-server.mjs';
import { camelCase, Images, withoutQemu } from '../../web/test/qemu.mjs';
import { findChromium, launch } from './browser.mjs';
import { packageFile } from './package.mjs';

const executable = findChromium();
const missing = !executable ? 'no Chromium is installed' : withoutQemu || undefined;

const MIB = 1 << 20;

describe('views in a browser', { skip: missing }, () => {
  let images;
  let browser;
  let server;
  let page;
  /** The engine's modules that were fetched. */
  const modules = [];

  before(async () => {
    images = new Images();
    server = await RangeServer.start(Buffer.alloc(MIB, 7));
    server.others = packageFile;
    browser = await launch(executable);
    page = await browser.newPage();
    page.setDefaultTimeout(60_000);
    page.on('request', (request) => {
      const [, name] = /(\w+)_bg\.wasm$/.exec(request.url()) ?? [];
      if (name) modules.push(name);
    });
    await page.goto(`${server.origin}/`);
    await page.evaluate(async () => {
      globalThis.oxcow = await import('/oxcow/index.js');
      globalThis.engine = await globalThis.oxcow.start();
      globalThis.collected = async (stream) => new Uint8Array(await new Response(stream).arrayBuffer());
      globalThis.text = (bytes) => {
        let text = '';
        for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
        return btoa(text);
      };
    });
  });

  after(async () => {
    await browser?.close();
    await server?.close();
    images?.remove();
  });

  /** The disk in a qcow2 file that qemu-img finds whole. */
  function judged(text) {
    writeFileSync(images.path('exported.qcow2'), Buffer.from(text, 'base64'));
    const { checkErrors, corruptions, leaks } = camelCase(images.json('check', 'exported.qcow2'));
    assert.deepEqual({ checkErrors, corruptions, leaks }, { checkErrors: 0, corruptions: undefined, leaks: undefined });
    return images.raw('exported.qcow2');
  }

  test('only what reads is loaded for a file that is read, and the rest to write', async () => {
    const first = await page.evaluate(async () => {
      const image = await engine.open(new File([new Uint8Array(4096).fill(9)], 'disk.raw'));
      const [byte] = await image.read(4000, 1);
      await image.close();
      return byte;
    });
    assert.equal(first, 9);
    assert.deepEqual(modules, ['oxcow_reader']);
    await page.evaluate(async () => (await engine.create(oxcow.memoryStorage(), { size: 512 })).close());
    assert.deepEqual(modules, ['oxcow_reader', 'oxcow_web']);
  });

  for (const kept of ['by a snapshot', 'by copying into the OPFS', 'by copying into an object of the page']) {
    test(`a view that is kept ${kept} is exported as it was, while the image in the OPFS is written to`, async () => {
      const found = await page.evaluate(async (kept) => {
        const image = await engine.create({ opfs: 'active.qcow2' }, { size: 16 << 20, overwrite: true });
        for (let at = 0; at < 8; at += 1) await image.write(at << 20, new Uint8Array(1 << 20).fill(at + 1));
        const copies = { 'by copying into the OPFS': { opfs: 'copies.raw' }, 'by copying into an object of the page': oxcow.memoryStorage() }[kept];
        const view = await image.view({ copies, overwrite: true });
        const writing = (async () => {
          for (let at = 0; at < 60; at += 1) await image.write(at * 150_000, new Uint8Array(150_000).fill(0xee));
          await image.flush();
        })();
        const exported = text(await collected(view.export({ chunkSize: 256 << 10 })));
        await writing;
        const late = await view.read(0, 16);
        const snapshots = (await image.snapshots()).length;
        const now = await image.read(0, 16);
        await view.close();
        await image.close();
        return { exported, late: [...late], now: [...now], snapshots };
      }, kept);
      assert.deepEqual([found.late, found.now], [Array(16).fill(1), Array(16).fill(0xee)]);
      assert.equal(found.snapshots, kept === 'by a snapshot' ? 1 : 0);
      const expected = Buffer.alloc(16 * MIB);
      for (let at = 0; at < 8; at += 1) expected.fill(at + 1, at * MIB, (at + 1) * MIB);
      assert.ok(judged(found.exported).equals(expected));
    });
  }

  test('a disk on a server is exported through ranges; a stream that is cancelled ends', async () => {
    const { exported, left } = await page.evaluate(async () => {
      const image = await engine.open(new URL('/images/disk.qcow2', location.href), { format: 'raw' });
      const reader = image.export().getReader();
      await reader.read();
      await reader.cancel();
      const exported = text(await collected(image.export({ clusterSize: 4096 })));
      await image.close();
      const left = await image.read(0, 1).catch(({ code }) => code);
      return { exported, left };
    });
    assert.equal(left, 'closed');
    assert.ok(judged(exported).equals(Buffer.alloc(MIB, 7)));
  });
});
