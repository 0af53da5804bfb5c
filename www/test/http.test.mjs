// The package in a real browser, with images on web servers: the page's own and another one's.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { RangeServer, versionOf } from '../../web/test/http-server.mjs';
import { withoutQemu } from '../../web/test/qemu.mjs';
import { findChromium, launch } from './browser.mjs';
import { Images, sha256 } from './images.mjs';
import { packageFile } from './package.mjs';

const executable = findChromium();
const missing = !executable ? 'no Chromium is installed' : withoutQemu || undefined;

const MIB = 1 << 20;
const SHARED = { 'Access-Control-Allow-Origin': '*', 'Access-Control-Expose-Headers': 'Content-Range, ETag' };

describe('an image on a web server, in the browser', { skip: missing }, () => {
  let images;
  let browser;
  /** Serves the page and an image. */
  let own;
  /** Another origin, with the image only. */
  let foreign;
  let version;
  let expected;
  let page;

  before(async () => {
    images = new Images();
    images.create('disk.qcow2', '64M');
    images.io('disk.qcow2', 'write -P 0x51 0 9M', 'write -P 0x52 30M 8M', 'write -P 0x53 63M 1M');
    expected = await sha256(images.raw('disk.qcow2'));
    const bytes = readFileSync(images.path('disk.qcow2'));
    version = versionOf(bytes);
    own = await RangeServer.start(bytes);
    foreign = await RangeServer.start(bytes);
    own.others = packageFile;
    own.headers = {
      'Content-Security-Policy': `default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self' ${foreign.origin}`,
    };
    browser = await launch(executable);
  });

  after(async () => {
    await browser?.close();
    await own?.close();
    await foreign?.close();
    images?.remove();
  });

  /** A test on a page of its own, which has `oxcow` and `engine`. */
  function browserTest(name, body) {
    test(name, async () => {
      own.version = foreign.version = version;
      foreign.headers = SHARED;
      page = await browser.newPage();
      page.setDefaultTimeout(30_000);
      try {
        await page.goto(`${own.origin}/`);
        await page.evaluate(async () => {
          globalThis.oxcow = await import('/oxcow/index.js');
          globalThis.engine = await globalThis.oxcow.start();
          globalThis.codeOf = (promise) => promise.then(() => 'none', ({ code, message }) => `${code}: ${message}`);
          globalThis.hashOf = async (image) => {
            const bytes = await new Response(image.stream()).arrayBuffer();
            const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
            return [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('');
          };
        });
        own.forget();
        foreign.forget();
        await body();
      } finally {
        await page.close();
      }
    });
  }

  browserTest('of the page\'s own origin: a relative URL, conditions with every request but the first', async () => {
    const hash = await page.evaluate(async () => {
      const image = await engine.open({ url: 'images/disk.qcow2' });
      return hashOf(image);
    });
    assert.equal(hash, expected);
    const [first, ...rest] = own.log;
    assert.equal(first.path, '/images/disk.qcow2');
    assert.equal(first.headers['if-match'], undefined);
    assert.ok(rest.length > 0 && rest.every(({ headers }) => headers['if-match'] === version.etag));
  });

  browserTest('of another origin: parallel, without preflights, and faults are mended', async () => {
    foreign.latency = 10;
    foreign.behave = (_, number) => [, , , { cut: 5000 }, { status: 503 }, { short: 9 }, { cut: -1 }][number];
    const hash = await page.evaluate(async (url) => {
      const image = await engine.open(new URL(url));
      return hashOf(image);
    }, foreign.url);
    foreign.latency = 0;
    assert.equal(hash, expected);
    assert.deepEqual([...new Set(foreign.log.map(({ method }) => method))], ['GET']);
    assert.ok(foreign.mostInFlight > 1 && foreign.mostInFlight <= 6, `${foreign.mostInFlight} at once`);
  });

  browserTest('through a `fetch` of the page\'s, which stays in its thread', async () => {
    const [hash, calls] = await page.evaluate(async (url) => {
      let calls = 0;
      const own = (...args) => ((calls += 1), fetch(...args));
      const image = await engine.open({ url, fetch: own });
      return [await hashOf(image), calls];
    }, foreign.url);
    assert.equal(hash, expected);
    assert.equal(calls, foreign.log.length);
  });

  browserTest('a cancelled read ends its request, in the worker as in the page', async () => {
    for (const inPage of [false, true]) {
      foreign.forget();
      const stalled = foreign.version.bytes.length - 2 * MIB;
      foreign.behave = (request) => (Number(/=(\d+)/.exec(request.headers.range)[1]) > stalled ? { stall: 10 } : undefined);
      const code = await page.evaluate(
        async ([url, inPage]) => {
          const image = await engine.open({ url, ...(inPage && { fetch: (...args) => fetch(...args) }) });
          const stop = new AbortController();
          const reading = codeOf(image.read(63 * 2 ** 20 + 2 ** 19, 512, { signal: stop.signal }));
          setTimeout(() => stop.abort(), 200);
          return reading;
        },
        [foreign.url, inPage],
      );
      assert.match(code, /^cancelled/);
      const until = performance.now() + 10_000;
      while (!foreign.log.at(-1).closed && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 10));
      assert.ok(foreign.log.at(-1).closed, 'the server sees that nobody waits');
    }
  });

  browserTest('a file that changes is noticed in the page, with the code for it', async () => {
    await page.evaluate(async (url) => {
      globalThis.image = await engine.open({ url });
      await image.read(0, 512);
    }, foreign.url);
    foreign.version = versionOf(Buffer.from(version.bytes.map((byte) => byte ^ 1)));
    const code = await page.evaluate(() => codeOf(image.read(30 * 2 ** 20, 512)));
    assert.match(code, /^changed: .*has changed on the server: its ETag was/);
  });

  browserTest('a server that shares too little is told what it has to send', async () => {
    foreign.headers = { 'Access-Control-Allow-Origin': '*' };
    const opening = (url) => page.evaluate((url) => codeOf(engine.open({ url })), url);
    assert.match(await opening(foreign.url), /^io: .*Access-Control-Expose-Headers: Content-Range, ETag/);
    foreign.headers = {};
    assert.match(await opening(foreign.url), /^io: .*CORS/);
  });
});
