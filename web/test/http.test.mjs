// Files on an HTTP server as sources, against a server that misbehaves on demand.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { after, before, describe, test } from 'node:test';

import { fileSource, httpSource, OxcowError, start } from 'oxcow';
import { backOff, retryAfter } from '../dist/http/retry.js';
import { RangeServer, versionOf } from './http-server.mjs';
import { Images, withoutQemu } from './qemu.mjs';

const KIB = 1024;
const MIB = 1024 * KIB;
/** What the first request asks for. */
const HEAD = 384 * KIB;
/** Retries come quickly, so that tests do. */
const QUICK = { retryDelay: 1, retries: 3 };

describe('a file on an HTTP server', () => {
  const bytes = randomBytes(MIB + 77);
  let server;
  let engine;

  before(async () => {
    server = await RangeServer.start(bytes);
    engine = await start();
  });

  after(async () => {
    await engine?.close();
    await server?.close();
  });

  /** A test that finds the server as it was. */
  function served(name, body) {
    test(name, async () => {
      server.version = versionOf(bytes);
      server.headers = {};
      server.latency = 0;
      server.forget();
      await body();
    });
  }

  /** Opens the file and forgets the request for that. */
  async function opened(options = {}) {
    const source = await httpSource(server.url, { ...QUICK, ...options });
    server.forget();
    return source;
  }

  const part = (offset, length) => bytes.subarray(offset, offset + length);

  async function readsRight(source, offset, length) {
    assert.deepEqual(Buffer.from(await source.read(offset, length)), part(offset, length));
  }

  /** Short where a test waits for it, so long elsewhere that a slow machine does not matter. */
  const patience = (odd) => (odd.stall === undefined ? {} : { timeout: 400 });

  /** Misbehaves in the first `count` requests. */
  function atFirst(count, odd) {
    server.behave = (_, number) => (number <= count ? odd : undefined);
  }

  served('is opened with one request, which also brings its first bytes', async () => {
    const source = await httpSource(server.url);
    assert.equal(source.size, bytes.length);
    assert.equal(source.name, server.url);
    assert.equal(source.etag, server.version.etag);
    await readsRight(source, 0, HEAD);
    assert.deepEqual(server.ranges, [`0-${HEAD - 1}`]);
    assert.equal(server.log[0].headers['if-match'], undefined);
    assert.equal(server.log[0].headers['accept-encoding'], 'identity');

    await readsRight(source, HEAD - 10, 30);
    await readsRight(source, bytes.length - 5, 100);
    assert.deepEqual(server.ranges.slice(1), [`${HEAD}-${HEAD + 19}`, `${bytes.length - 5}-${bytes.length - 1}`]);
    for (const { headers } of server.log.slice(1)) assert.equal(headers['if-match'], server.version.etag);
    assert.equal((await source.read(bytes.length, 10)).length, 0);
  });

  served('without a strong ETag is told apart by its date, without both by its length', async () => {
    const weak = { etag: 'W/"1"' };
    for (const [more, header, changed] of [
      [weak, 'if-unmodified-since', { ...weak, lastModified: 'Sun, 02 Nov 2025 10:00:00 GMT' }],
      [{ ...weak, lastModified: undefined }, undefined, { etag: 'W/"2"', lastModified: undefined }],
      [{ etag: undefined, lastModified: undefined }, undefined, { bytes: bytes.subarray(1) }],
    ]) {
      server.version = versionOf(bytes, more);
      const source = await opened();
      await readsRight(source, 500 * KIB, 10);
      assert.equal('if-match' in server.log[0].headers, false);
      assert.equal(Object.keys(server.log[0].headers).find((name) => name.startsWith('if-')), header);
      server.version = { ...server.version, ...changed };
      await assert.rejects(source.read(600 * KIB, 10), { code: 'changed' });
    }
  });

  served('that is empty, or ends within the first request, needs no more', async () => {
    server.version = versionOf(Buffer.alloc(0));
    const empty = await httpSource(server.url);
    assert.equal(empty.size, 0);
    assert.equal((await empty.read(0, 10)).length, 0);
    server.version = versionOf(part(0, 700));
    server.forget();
    const image = await engine.open(new URL(server.url));
    assert.deepEqual(Buffer.from(await image.read(100, 600)), part(100, 600));
    assert.equal(server.log.length, 1);
    await image.close();
  });

  served('on a server without ranges is taken as a whole if it fits', async () => {
    for (const gzip of [false, true]) {
      server.forget();
      server.behave = () => ({ whole: true, gzip });
      const source = await httpSource(server.url, QUICK);
      await readsRight(source, 0, bytes.length);
      assert.equal(server.log.length, 1);

      await assert.rejects(httpSource(server.url, { ...QUICK, cacheBytes: MIB }), (error) => {
        assert.ok(error instanceof OxcowError);
        assert.equal(error.code, 'io');
        assert.match(error.message, /does not support range requests/);
        return true;
      });
      assert.equal(server.log.length, 2, 'it is no use to try that again');
    }
  });

  for (const [what, odd, rest] of [
    ['ends too early', { short: 1000 }, 0],
    ['breaks off', { cut: 40_000 }, 40_000],
    ['is reset', { cut: -1 }, 0],
    ['stalls before it begins', { stall: -1 }, 0],
    ['stalls half-way', { stall: 20_000 }, 20_000],
    ['is 503', { status: 503 }, 0],
    ['is 500', { status: 500 }, 0],
    ['is 429', { status: 429 }, 0],
    ['is 408', { status: 408 }, 0],
  ]) {
    served(`an answer that ${what} is asked for again`, async () => {
      const source = await opened(patience(odd));
      atFirst(2, odd);
      await readsRight(source, 500 * KIB, 100_000);
      const first = 500 * KIB;
      const last = first + 99_999;
      // What has arrived over a connection that then broke is not fetched again.
      assert.deepEqual(server.ranges, [0, rest, 2 * rest].map((done) => `${first + done}-${last}`));
    });

    served(`a server whose every answer ${what} is given up`, async () => {
      atFirst(1, undefined);
      const source = await opened(patience(odd));
      server.behave = () => odd;
      await assert.rejects(source.read(500 * KIB, 600_000), (error) => {
        assert.equal(error.code, 'io');
        assert.ok(error.message.includes(server.url), error.message);
        assert.ok(error.message.includes('bytes 512000-1048652'), error.message);
        assert.match(error.message, /tried 4 times/);
        return true;
      });
      assert.equal(server.log.length, 4);
      server.behave = () => undefined;
      await readsRight(source, 500 * KIB, 600_000);
    });

    served(`the first answer, too, is asked for again when it ${what}`, async () => {
      atFirst(1, odd);
      const source = await httpSource(server.url, { ...QUICK, ...patience(odd) });
      await readsRight(source, 0, 1000);
      assert.equal(server.log.length, 2);
    });
  }

  served('Retry-After is heeded by all requests, and not waited for too long', async () => {
    let refusals = 0;
    const counting = async (...args) => {
      const response = await fetch(...args);
      if (response.status === 503) setTimeout(() => (refusals += 1), 10); // Once the source has seen it.
      return response;
    };
    const source = await opened({ parallel: 2, fetch: counting });
    atFirst(1, { status: 503, headers: { 'Retry-After': '1' } });
    const first = readsRight(source, 500 * KIB, 10);
    while (refusals === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    await Promise.all([first, readsRight(source, 600 * KIB, 10)]);
    const [refused, ...later] = server.log.map(({ at }) => at);
    assert.equal(later.length, 2);
    for (const at of later) assert.ok(at - refused >= 990, `after ${at - refused} ms`);

    server.forget();
    server.behave = () => ({ status: 503, headers: { 'Retry-After': '3600' } });
    await assert.rejects(source.read(700 * KIB, 10), /HTTP 503 .*again in 3600 s/);
    assert.equal(server.log.length, 1);
  });

  for (const [what, odd, words] of [
    ['another range', { range: 'bytes 0-9/1048653' }, /sent bytes 0-9 instead/],
    ['a longer range', { range: 'bytes 512000-512010/1048653' }, /sent bytes 512000-512010 instead/],
    ['no range', { range: null }, /does not say which range/],
    ['nonsense as range', { range: 'bytes 9-0/zero' }, /sent the range "bytes 9-0\/zero"/],
    ['a range of unknown whole', { range: 'bytes 512000-512009/*' }, /sent the range/],
    ['the whole file', { whole: true }, /whole file instead of the range/],
    ['more than it says', { short: -1 }, /longer than the range/],
    ['a compressed form', { gzip: true }, /Content-Encoding: gzip/],
    ['404', { status: 404 }, /HTTP 404 Not Found/],
    ['403', { status: 403 }, /HTTP 403 Forbidden/],
  ]) {
    served(`a server that sends ${what} is told at once, and nothing of it is used`, async () => {
      const source = await opened();
      server.behave = () => odd;
      await assert.rejects(source.read(500 * KIB, 10), (error) => {
        assert.equal(error.code, 'io');
        assert.match(error.message, words);
        return true;
      });
      assert.equal(server.log.length, 1);
      server.behave = () => undefined;
      await readsRight(source, 500 * KIB, 10);
    });
  }

  for (const [what, change] of [
    ['ETag', () => versionOf(randomBytes(bytes.length))],
    ['length', () => ({ ...server.version, bytes: Buffer.concat([bytes, Buffer.alloc(10)]) })],
    ['length, shorter than what is read', () => ({ ...server.version, bytes: bytes.subarray(0, 100) })],
    ['ETag, no longer told', () => ({ ...server.version, etag: undefined })],
  ]) {
    served(`a file that changes while it is open is noticed: ${what}`, async () => {
      for (const unconditional of [true, false]) {
        for (const whole of [false, true]) {
          server.version = versionOf(bytes);
          server.forget();
          const source = await opened({ retries: 0 });
          await readsRight(source, 500 * KIB, 10);
          server.version = change();
          server.forget();
          server.behave = () => ({ unconditional, whole });
          const noticed = (error) => {
            assert.equal(error.code, 'changed');
            assert.match(error.message, /has changed on the server: its (ETag|length) was/);
            return true;
          };
          if (whole && what.startsWith('length')) {
            await assert.rejects(source.read(600 * KIB, 10), { code: 'io' });
            continue;
          }
          await assert.rejects(source.read(600 * KIB, 10), noticed);
          const requests = server.log.length;
          assert.ok(requests <= 2);
          await assert.rejects(source.read(700 * KIB, 10), noticed);
          assert.equal(server.log.length, requests, 'it stays so, whatever the server says later');
        }
      }
    });
  }

  served('a server that misunderstands If-Match is read all the same', async () => {
    const source = await opened();
    server.behave = (request) => (request.headers['if-match'] ? { status: 412 } : undefined);
    await readsRight(source, 500 * KIB, 10);
    await readsRight(source, 600 * KIB, 10);
    assert.equal(server.log.length, 3);
  });

  served('one version is never mixed with another, whenever it is replaced and whatever fails', async () => {
    const later = versionOf(Buffer.from(bytes.map((byte) => byte ^ 0xff)), { lastModified: 'Sun, 02 Nov 2025 10:00:00 GMT' });
    const faults = [{}, {}, { cut: 3000 }, { short: 7 }, { status: 503 }, { cut: -1 }];
    const outcomes = new Set();
    for (let round = 0; round < 60; round += 1) {
      server.version = versionOf(bytes);
      server.forget();
      const replaced = 1 + (round % 15);
      server.behave = (_, number) => {
        if (number === replaced) server.version = later;
        const fault = faults[Math.floor(Math.random() * (number === 1 ? faults.length - 1 : faults.length))];
        return { ...fault, unconditional: Math.random() < 0.5 };
      };
      const image = await engine.open({ url: server.url, retryDelay: 0, retries: 200, windowBytes: 16 * KIB, parallel: 3 });
      const reads = Array.from({ length: 12 }, async () => {
        const offset = Math.floor(Math.random() * (bytes.length - 70_000));
        const is = (version, read) => read.equals(version.bytes.subarray(offset, offset + 60_000));
        try {
          const read = Buffer.from(await image.read(offset, 60_000));
          return is(later, read) ? 'new' : read.equals(part(offset, 60_000)) ? 'old' : 'mixed';
        } catch (error) {
          assert.equal(error.code, 'changed', error.stack);
          return 'refused';
        }
      });
      const found = [...new Set(await Promise.all(reads))].sort().join(' and ');
      assert.ok(['new', 'old', 'refused', 'old and refused'].includes(found), `${found}, replaced at request ${replaced}`);
      outcomes.add(found);
      await image.close();
    }
    assert.ok(outcomes.has('new') && outcomes.has('old and refused'), [...outcomes].join());
  });

  served('requests run in parallel up to the limit, and readers of one window share one', async () => {
    server.latency = 20;
    const image = await engine.open({ url: server.url, windowBytes: 16 * KIB, parallel: 4 });
    server.forget();
    await Promise.all(Array.from({ length: 20 }, (_, at) => image.read(400 * KIB + at * 32 * KIB, 100)));
    assert.equal(server.mostInFlight, 4);
    assert.equal(server.log.length, 20);

    server.forget();
    await Promise.all(Array.from({ length: 20 }, (_, at) => image.read(1000 * KIB + at, 1)));
    assert.equal(server.log.length, 1);
    await image.close();
  });

  served('what was read is kept, as much as is allowed', async () => {
    server.version = versionOf(randomBytes(12 * MIB));
    const image = await engine.open({ url: server.url, windowBytes: 64 * KIB, cacheBytes: 5 * MIB });
    const at = (index) => MIB + index * 128 * KIB;
    for (let index = 0; index < 80; index += 1) await image.read(at(index), 512);
    server.forget();
    for (let index = 79; index >= 0; index -= 1) {
      assert.deepEqual(Buffer.from(await image.read(at(index), 512)), server.version.bytes.subarray(at(index), at(index) + 512));
      // 5 MiB are 80 windows; the file's first bytes are not among them.
      if (index === 1) assert.equal(server.log.length, 0);
    }
    for (let index = 0; index < 90; index += 1) await image.read(6 * MIB + index * 64 * KIB - 100, 512);
    server.forget();
    await image.read(at(0), 512);
    assert.equal(server.log.length, 1, 'the oldest went');
    await image.close();
  });

  served('a read that is cancelled ends its request, and no other one', async () => {
    const image = await engine.open({ url: server.url, ...QUICK, windowBytes: 16 * KIB });
    server.forget();
    server.behave = (request) => (request.headers.range.startsWith('bytes=655360-') ? { stall: 1000 } : undefined);
    const stop = new AbortController();
    const reading = image.read(640 * KIB, 100, { signal: stop.signal });
    while (server.sent === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    stop.abort(new Error('enough'));
    await assert.rejects(reading, { code: 'cancelled' });
    while (!server.log[0].closed) await new Promise((resolve) => setTimeout(resolve, 1));
    server.behave = () => undefined;
    assert.deepEqual(Buffer.from(await image.read(640 * KIB, 100)), part(640 * KIB, 100));
    assert.equal(server.log.length, 2, 'and it is not tried again on its own');
    await assert.rejects(image.read(640 * KIB, 100, { signal: stop.signal }), { code: 'cancelled' });
    await image.close();

    // A stream that waits for a chunk.
    const streamed = await engine.open({ url: server.url, ...QUICK });
    server.forget();
    server.behave = () => ({ stall: 0 });
    const stopStream = new AbortController();
    const piping = streamed.stream({ signal: stopStream.signal }).pipeTo(new WritableStream());
    while (server.log.length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    stopStream.abort();
    await assert.rejects(piping, { code: 'cancelled' });
    await streamed.close();
    server.forget();

    // While waiting for a turn, for a retry, and for the first answer.
    const source = await opened({ parallel: 1, retryDelay: 60_000 });
    server.behave = (_, number) => (number === 1 ? { status: 503 } : { stall: -1 });
    const waiting = [500, 600].map((kib) => {
      const stop = new AbortController();
      return { stop, read: source.read(kib * KIB, 10, { signal: stop.signal }) };
    });
    for (const { stop, read } of waiting.reverse()) {
      setTimeout(() => stop.abort(), 20);
      await assert.rejects(read, { code: 'cancelled' });
    }
    const opening = new AbortController();
    setTimeout(() => opening.abort(), 20);
    await assert.rejects(engine.open({ url: server.url }, { signal: opening.signal }), { code: 'cancelled' });
    await assert.rejects(engine.inspect({ url: server.url }, { signal: opening.signal }), { code: 'cancelled' });
  });

  served('where a redirection leads is asked from then on, without what was meant for the first server', async () => {
    const mirror = await RangeServer.start(bytes);
    try {
      server.headers = { Location: mirror.url };
      server.behave = () => ({ status: 302 });
      const headers = { Authorization: 'Bearer x', Cookie: 'a=b', 'X-Mine': 'yes' };
      const source = await httpSource(server.url, { ...QUICK, headers });
      assert.equal(server.log[0].headers.authorization, 'Bearer x');
      assert.equal(server.log[0].headers['x-mine'], 'yes');
      await readsRight(source, 500 * KIB, 10);
      await readsRight(source, 600 * KIB, 10);
      assert.equal(server.log.length, 1);
      assert.equal(mirror.log.length, 3);
      for (const { headers } of mirror.log) {
        assert.equal(headers.authorization, undefined);
        assert.equal(headers.cookie, undefined);
        assert.equal(headers['x-mine'], 'yes');
      }

      // A signed address that has expired: the first server gives another.
      mirror.behave = (_, number) => (number === 4 ? { status: 403 } : undefined);
      await readsRight(source, 700 * KIB, 10);
      assert.deepEqual([server.log.length, mirror.log.length], [2, 5]);
    } finally {
      await mirror.close();
    }
  });

  served('names and errors do not show what may be secret', async () => {
    const url = new URL(server.url);
    url.username = 'me';
    url.password = 'pässword';
    url.search = '?signature=abc';
    const source = await httpSource(url, QUICK);
    assert.equal(source.name, server.url);
    const [{ headers, path }] = server.log;
    assert.equal(headers.authorization, `Basic ${Buffer.from('me:pässword').toString('base64')}`);
    assert.equal(path, '/images/disk.qcow2?signature=abc');
    server.behave = () => ({ status: 404 });
    await assert.rejects(source.read(500 * KIB, 1), ({ message }) => !/signature|word/.test(message) && message.includes(server.url));
  });

  served('a `fetch` of the caller\'s is used, and need not heed signals', async () => {
    const asked = [];
    const own = async (url, init) => {
      asked.push([url, init.headers.get('range')]);
      if (asked.length === 2) return new Promise(() => {});
      return fetch(url, init);
    };
    const source = await httpSource(server.url, { ...QUICK, fetch: own, timeout: 400 });
    await readsRight(source, 500 * KIB, 10);
    assert.deepEqual(asked.map(([, range]) => range), [`bytes=0-${HEAD - 1}`, 'bytes=512000-512009', 'bytes=512000-512009']);
  });

  served('what cannot be opened says why', async () => {
    const closed = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => closed.once('listening', resolve));
    const { port } = closed.address();
    await new Promise((resolve) => closed.close(resolve));
    let tries = 0;
    const counting = (...args) => ((tries += 1), fetch(...args));
    const unreachable = { url: `http://127.0.0.1:${port}/disk.qcow2`, fetch: counting, retryDelay: 1 };
    await assert.rejects(engine.open(unreachable), (error) => {
      assert.equal(error.code, 'io');
      assert.match(error.message, /disk\.qcow2: .*ECONNREFUSED/);
      return true;
    });
    assert.equal(tries, 3);
    await assert.rejects(engine.open({ url: 'disk.qcow2' }), (error) => error.code === 'io' && /no URL/.test(error.message));
    await assert.rejects(engine.open(new URL('file:///disk.qcow2')), (error) => error.code === 'io' && /Only http/.test(error.message));
    await assert.rejects(engine.open({ url: server.url, parallel: 0 }), { code: 'out-of-range' });
    await assert.rejects(engine.open({ url: server.url, timeout: NaN }), { code: 'out-of-range' });
    await assert.rejects(engine.open(server.url), { code: 'io' });
  });

  describe('an image', { skip: withoutQemu }, () => {
    let images;
    before(() => {
      images = new Images();
    });
    after(() => images?.remove());

    served('is read, mapped and checked as the local file is, its backing file from another server', async () => {
      images.create('base.qcow2', '64M');
      images.io('base.qcow2', 'write -P 0x31 0 20M', 'write -P 0x32 50M 1M');
      images.img('convert', '-c', '-O', 'qcow2', 'base.qcow2', 'compressed.qcow2');
      images.create('overlay.qcow2', '64M', '-b', 'compressed.qcow2', '-F', 'qcow2');
      images.io('overlay.qcow2', 'write -P 0x33 10M 3M');
      const base = await RangeServer.start(readFileSync(images.path('compressed.qcow2')));
      try {
        server.version = versionOf(readFileSync(images.path('overlay.qcow2')));
        const asked = [];
        const image = await engine.open(
          { url: server.url, ...QUICK },
          {
            resolve: (wanted) => {
              asked.push(wanted);
              return { url: new URL(wanted.name, `${base.origin}/images/`), ...QUICK };
            },
          },
        );
        assert.deepEqual(asked.map(({ name, base }) => [name, base]), [['compressed.qcow2', server.url]]);
        let faults = 0;
        base.behave = server.behave = (_, number) => (number % 3 === 2 ? (faults += 1, { cut: 1000 }) : undefined);
        const content = [];
        for await (const chunk of image.stream()) content.push(chunk);
        assert.ok(Buffer.concat(content).equals(images.raw('overlay.qcow2')));
        assert.ok(faults > 0);
        assert.equal((await image.check()).corruptions, undefined);
        assert.equal(base.log.every(({ path }) => path === '/images/compressed.qcow2'), true);

        const local = await engine.open(fileSource(images.path('overlay.qcow2')), { resolve: ({ name }) => fileSource(images.path(name)) });
        assert.deepEqual(await image.map(), await local.map());
        await local.close();
        await image.close();

        base.behave = () => ({ status: 404 });
        const missing = engine.open({ url: server.url, ...QUICK }, { resolve: ({ name }) => ({ url: new URL(name, base.url) }) });
        await assert.rejects(missing, (error) => {
          assert.equal(error.code, 'dependency');
          assert.equal(error.cause.code, 'io');
          assert.match(error.message, /HTTP 404/);
          return true;
        });
      } finally {
        await base.close();
      }
    });

    served('that changes while it is open says so in every call, and what was read stays as it was', async () => {
      images.create('changes.qcow2', '16M');
      images.io('changes.qcow2', 'write -P 0x41 0 8M');
      server.version = versionOf(readFileSync(images.path('changes.qcow2')));
      const source = await httpSource(server.url, QUICK);
      const report = await engine.inspect(source);
      assert.equal(report.verdict, 'safe');
      const image = await engine.open(source);
      await image.read(4 * MIB, 512);
      images.io('changes.qcow2', 'write -P 0x42 0 8M');
      server.version = versionOf(readFileSync(images.path('changes.qcow2')));
      await assert.rejects(image.read(7 * MIB, 512), { code: 'changed' });
      await assert.rejects(image.stream().pipeTo(new WritableStream()), { code: 'changed' });
      assert.deepEqual(await image.read(4 * MIB, 2), new Uint8Array([0x41, 0x41]));
      await image.close();
      const again = await engine.open({ url: server.url });
      assert.deepEqual(await again.read(7 * MIB, 2), new Uint8Array([0x42, 0x42]));
      await again.close();
    });

    served('with tables far apart: they are fetched together, and the map is the local file\'s', async () => {
      images.create('spread.qcow2', '64G');
      images.io('spread.qcow2', ...Array.from({ length: 24 }, (_, at) => `write -P ${at + 1} ${at * 2}G 256k`));
      server.version = versionOf(readFileSync(images.path('spread.qcow2')));
      const local = await engine.open(fileSource(images.path('spread.qcow2')));
      const [{ extents }, overview] = [await local.map(), await local.overview({ cells: 100 })];
      await local.close();
      server.latency = 5;
      for (const [walk, expected] of [
        [(image) => image.map().then(({ extents }) => extents), extents],
        [(image) => image.overview({ cells: 100 }), overview],
      ]) {
        const image = await engine.open({ url: server.url, windowBytes: 64 * KIB });
        server.forget();
        assert.deepEqual(await walk(image), expected);
        assert.ok(server.mostInFlight >= 3, `${server.mostInFlight} at once`);
        assert.ok(server.log.length <= 24, `${server.log.length} requests for 24 tables`);
        await image.close();
      }
    });

    served('made by qemu-img is opened with one request', async () => {
      images.create('fresh.qcow2', '100G');
      images.io('fresh.qcow2', 'write -P 1 0 4M', 'write -P 1 50G 4M');
      server.version = versionOf(readFileSync(images.path('fresh.qcow2')));
      const image = await engine.open({ url: server.url });
      await image.info();
      assert.deepEqual(server.ranges, [`0-${HEAD - 1}`]);
      await image.close();
    });
  });
});

test('a server may ask to come back after seconds or at a date', () => {
  const now = Date.parse('2025-11-01T10:00:00Z');
  assert.equal(retryAfter(null, now), undefined);
  assert.equal(retryAfter('7', now), 7000);
  assert.equal(retryAfter('Sat, 01 Nov 2025 10:00:30 GMT', now), 30_000);
  assert.equal(retryAfter('Sat, 01 Nov 2025 09:00:00 GMT', now), 0);
  assert.equal(retryAfter('soon', now), undefined);
});

test('waits between tries double up to 10 s, and are spread', () => {
  for (const [failures, least, most] of [[1, 100, 200], [2, 200, 400], [4, 800, 1600], [30, 5000, 10_000]]) {
    const waits = Array.from({ length: 100 }, () => backOff(failures, 200));
    assert.ok(Math.min(...waits) >= least && Math.max(...waits) <= most);
    assert.ok(new Set(waits).size > 50);
  }
});
