// A clone of an image on a web server, filled in the background: how much of the link it uses, and what the guest
// notices of it. The server is local, with 50 ms before each answer and 100 MB/s for all of them together.
//
//   node web/bench/http.mjs [MiB [MiB]]
//
// The second number is the length of the disk that a system starts from: so long that its hydration is under way all the
// while.

import { execFileSync } from 'node:child_process';
import { createServer } from 'node:http';
import { fstatSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

const LATENCY = 50;
const RATE = 100e6;
const MIB = 1 << 20;
/** How much is sent at once, so that answers share the link. */
const PIECE = 64 << 10;

if (isMainThread) await main();
else serve();

/** The server, in a thread of its own: what it costs is not the engine's. */
function serve() {
  const file = openSync(workerData);
  const { size } = fstatSync(file);
  // The link: each piece takes its turn behind all that were handed over before.
  let free = 0;
  const server = createServer(async (request, response) => {
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '').map(Number);
    const end = Math.min(last + 1, size);
    await wait(LATENCY);
    response.writeHead(206, {
      ETag: '"1"',
      'Content-Length': end - first,
      'Content-Range': `bytes ${first}-${end - 1}/${size}`,
    });
    for (let at = first; at < end && !response.destroyed; at += PIECE) {
      const piece = new Uint8Array(Math.min(PIECE, end - at));
      readSync(file, piece, 0, piece.length, at);
      const now = performance.now();
      free = Math.max(free, now) + (piece.length / RATE) * 1000;
      // Timers are coarse: a few milliseconds may be sent in advance, never more than the link carries.
      if (free - now > 4) await wait(free - now - 2);
      if (!response.write(piece)) await drained(response);
    }
    response.end();
  });
  server.listen(0, '127.0.0.1', () => parentPort.postMessage(`http://127.0.0.1:${server.address().port}/disk.qcow2`));
}

function drained(response) {
  return new Promise((resolve) => {
    const done = () => {
      response.off('drain', done).off('close', done);
      resolve();
    };
    response.on('drain', done).on('close', done);
  });
}

async function main() {
  const { fileStorage, memoryStorage, start } = await import('oxcow');
  const [size, bootSize] = [process.argv[2] ?? 512, process.argv[3] ?? 4096].map(Number);
  const folder = mkdtempSync(join(tmpdir(), 'oxcow-http-'));
  const servers = [];
  const served = async (name, size) => {
    // Random bytes: nothing is known to be zeros, everything has to travel.
    const [raw, path] = [join(folder, 'disk.raw'), join(folder, name)];
    execFileSync('sh', ['-c', `head -c ${size}M /dev/urandom > '${raw}' && qemu-img convert -O qcow2 '${raw}' '${path}' && rm '${raw}'`]);
    const server = new Worker(new URL(import.meta.url), { workerData: path });
    servers.push(server);
    return new Promise((resolve) => server.once('message', resolve));
  };
  try {
    const url = await served('disk.qcow2', size);
    const engine = await start();
    const report = (what, value) => console.log(`${what.padEnd(58)} ${value}`);
    const clone = (of = url) => engine.clone(memoryStorage(), { url: of }, { backingName: 'disk.qcow2' });

    // The link itself: what fetch brings, several ranges at once.
    const plain = await link(url, size * MIB);
    report(`the link, by fetch alone (MB/s)`, (plain / 1e6).toFixed(1));

    {
      const times = [];
      const opens = [];
      for (let round = 0; round < 7; round += 1) {
        let begun = performance.now();
        const image = await clone();
        opens.push(performance.now() - begun);
        begun = performance.now();
        await image.read(Math.floor((size * MIB * (round + 1)) / 9 / 4096) * 4096, 4096);
        times.push(performance.now() - begun);
        await image.close();
      }
      report(`opening a clone (ms; median of 7)`, median(opens).toFixed(0));
      const one = await request(url);
      report(`a request by itself (ms)`, one.toFixed(0));
      report(`first 4 KiB of a cold clone (ms; median of 7)`, median(times).toFixed(0));
      report(`  beyond the request, in round trips of ${LATENCY} ms`, ((median(times) - one) / LATENCY).toFixed(2));
    }

    // Into memory, where nothing but the link is slow, and into a file with its flushes.
    for (const into of ['memory', 'a file']) {
      const rates = [];
      for (let round = 0; round < 5; round += 1) {
        const path = join(folder, 'filled.qcow2');
        const storage = into === 'memory' ? memoryStorage() : fileStorage(path, { create: true });
        const image = await engine.clone(storage, { url }, { backingName: 'disk.qcow2' });
        const begun = performance.now();
        await image.hydrate({ onProgress: () => {} });
        rates.push((size * MIB) / (performance.now() - begun) / 1e3);
        await image.close();
        rmSync(path, { force: true });
      }
      const share = ((median(rates) / (RATE / 1e6)) * 100).toFixed(1);
      const [least, most] = [Math.min(...rates), Math.max(...rates)].map((rate) => rate.toFixed(1));
      report(`background hydration into ${into} (MB/s; median of 5)`, `${median(rates).toFixed(1)} (${least}-${most})`);
      report(`  share of the link's ${RATE / 1e6} MB/s`, `${share} %`);
    }

    const source = await served('boot.qcow2', bootSize);
    const trace = boot(bootSize * MIB);
    const alone = [];
    const during = [];
    for (let round = 0; round < 3; round += 1) {
      for (const [times, hydrate] of [[alone, false], [during, true]]) {
        const image = await clone(source);
        const stop = new AbortController();
        const hydration = hydrate ? image.hydrate({ signal: stop.signal }).catch(() => {}) : undefined;
        const begun = performance.now();
        for (const { think, reads } of trace) {
          if (think) await wait(think);
          await Promise.all(reads.map(([offset, length]) => image.read(offset, length)));
        }
        times.push(performance.now() - begun);
        const { hydrated, total } = await image.hydration();
        if (hydrate && round === 0) report(`  hydrated meanwhile`, total ? `${((hydrated / total) * 100).toFixed(0)} %` : 'all');
        stop.abort();
        await hydration;
        await image.close();
      }
    }
    report(`a boot's reads from a clone (s; best of 3)`, (Math.min(...alone) / 1000).toFixed(2));
    report(`the same while it is hydrated (s; best of 3)`, (Math.min(...during) / 1000).toFixed(2));
    report(`  ratio`, (Math.min(...during) / Math.min(...alone)).toFixed(3));
    await engine.close();
  } finally {
    await Promise.all(servers.map((server) => server.terminate()));
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The bytes per second that ranges of 4 MiB, eight at a time, arrive at. */
async function link(url, size) {
  const begun = performance.now();
  let next = 0;
  const all = Math.min(size, 256 * MIB);
  await Promise.all(
    Array.from({ length: 8 }, async () => {
      while (next < all) {
        const at = next;
        next += 4 * MIB;
        const response = await fetch(url, { headers: { range: `bytes=${at}-${at + 4 * MIB - 1}` } });
        await response.arrayBuffer();
      }
    }),
  );
  return all / ((performance.now() - begun) / 1000);
}

/** How long one request of 4 KiB takes. */
async function request(url) {
  const times = [];
  for (let round = 0; round < 7; round += 1) {
    const begun = performance.now();
    const response = await fetch(url, { headers: { range: `bytes=${round * MIB}-${round * MIB + 4095}` } });
    await response.arrayBuffer();
    times.push(performance.now() - begun);
  }
  return median(times);
}

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/**
 * About 3000 reads as a starting system makes them: files of a few places on the disk, each read in order in pieces of
 * 4 to 128 KiB, some at once, some again, with moments in which it computes instead.
 */
function boot(size) {
  let seed = 42;
  const random = (below) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  const places = Array.from({ length: 12 }, () => random(size - 32 * MIB));
  const steps = [];
  let count = 0;
  while (count < 3000) {
    const place = places[random(places.length)] + random(24 * MIB);
    const length = random(10) < 7 ? 4096 << random(4) : 65536 << random(4);
    const step = random(10) < 8 ? 4096 * (1 + random(4)) : 131072;
    let at = Math.floor(place / 4096) * 4096;
    const end = Math.min(at + length, size);
    while (at < end) {
      const reads = [];
      for (let each = 0; each < 1 + random(3) && at < end; each += 1) {
        const bytes = Math.min(step, end - at);
        reads.push([at, bytes]);
        at += bytes;
      }
      count += reads.length;
      // Some 8 s of computing in all, in pieces of 1 to 60 ms.
      steps.push({ think: random(10) < 2 ? 1 + random(60) : 0, reads });
    }
  }
  return steps;
}
