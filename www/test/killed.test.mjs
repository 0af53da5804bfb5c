// The page's engine is killed at random moments: its worker, or the whole page. What was flushed before is there, and
// qemu-img finds nothing wrong. OXCOW_KILLS sets how often.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { RangeServer } from '../../web/test/http-server.mjs';
import { withoutQemu } from '../../web/test/qemu.mjs';
import { findChromium, launch } from './browser.mjs';
import { Images } from './images.mjs';
import { packageFile } from './package.mjs';

const executable = findChromium();
const missing = !executable ? 'no Chromium is installed' : withoutQemu || undefined;

const KILLS = Number(process.env.OXCOW_KILLS ?? 50);
/** As often the whole page goes as this, one in so many; otherwise the worker. */
const PAGES = 10;
/** After so many kills the image is taken out and judged; the page itself looks after each. */
const JUDGED = 20;
const SIZE = 2 ** 31;
/** Places of the disk that are written to, far from each other. */
const PLACES = 96;
const SPAN = 1 << 16;

/** Repeatable: `OXCOW_SEED` is printed by every run. */
const SEED = Number(process.env.OXCOW_SEED ?? Date.now() % 1_000_000);

function random(seed) {
  let state = seed >>> 0 || 1;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

describe('an engine that is killed', { skip: missing }, () => {
  let images;
  let browser;
  let context;
  let server;

  before(async () => {
    images = new Images();
    server = await RangeServer.start(Buffer.alloc(512));
    server.others = packageFile;
    browser = await launch(executable);
    context = await browser.newContext();
  });

  after(async () => {
    await browser?.close();
    await server?.close();
    images?.remove();
  });

  /** A page that writes, takes and deletes snapshots at random, and tells what it has begun and what is flushed. */
  async function writer(told) {
    const page = await context.newPage();
    page.setDefaultTimeout(60_000);
    await page.exposeBinding('tell', (_, what) => told(what));
    await page.goto(`${server.origin}/`);
    await page.evaluate(async () => {
      globalThis.oxcow = await import('/oxcow/index.js');
      globalThis.PATH = 'images/disk.qcow2';
      /** A worker of its own, that can be killed without a word. */
      globalThis.begin = async () => {
        globalThis.worker = new Worker('/oxcow/worker.js', { type: 'module' });
        // Compiled once for all workers of the page.
        globalThis.module ??= await WebAssembly.compileStreaming(fetch('/oxcow/wasm/oxcow_web_bg.wasm'));
        return oxcow.start({ worker, module });
      };
      /** The browser takes a moment to give a killed worker's file back. */
      globalThis.opened = async (engine) => {
        for (let tries = 0; ; tries += 1) {
          try {
            return await engine.open({ opfs: PATH }, { writable: true });
          } catch (error) {
            if (error.code !== 'busy' || tries > 200) throw error;
            await new Promise((resolve) => setTimeout(resolve, 20));
          }
        }
      };
    });
    return page;
  }

  /** What qemu-img says of the image in the OPFS. */
  async function checked(page, name) {
    const text = await page.evaluate(async () => {
      const bytes = new Uint8Array(await (await oxcow.opfs.file(PATH)).arrayBuffer());
      let text = '';
      for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
      return btoa(text);
    });
    writeFileSync(images.path(name), Buffer.from(text, 'base64'));
    const { stdout } = spawnSync('qemu-img', ['check', '--output=json', images.path(name)], { encoding: 'utf8' });
    return JSON.parse(stdout);
  }

  /** The image as the kill has left it has no errors; without the clusters that a crash may leak it is clean. */
  async function judged(page, name) {
    const left = await checked(page, name);
    assert.equal(left.corruptions ?? 0, 0, `${name}: ${JSON.stringify(left)}`);
    assert.equal(left['check-errors'], 0, name);
    await page.evaluate(async () => {
      const engine = await begin();
      const image = await opened(engine);
      await image.repair('leaks');
      await image.close();
      await engine.close();
    });
    const { corruptions = 0, leaks = 0 } = await checked(page, name);
    assert.deepEqual({ corruptions, leaks }, { corruptions: 0, leaks: 0 }, name);
  }

  test(`${KILLS} times at random moments: every flushed byte is there, and qemu-img check finds no error`, { timeout: 3_600_000 }, async (t) => {
    t.diagnostic(`OXCOW_SEED=${SEED}`);
    const pick = random(SEED);
    /** What each place holds for certain, and what it may hold besides: writes that no flush has covered. */
    const certain = Array(PLACES).fill(0);
    const maybe = Array.from({ length: PLACES }, () => new Set());
    let page;
    let value = 0;
    let flushes = 0;
    let kills = 0;
    let tells = 0;
    const failures = [];
    const told = ({ kind, place, value }) => {
      tells += 1;
      if (kind === 'failed') failures.push(value);
      if (kind === 'write') maybe[place].add(value);
      if (kind === 'flushed') {
        flushes += 1;
        for (const [at, written] of Object.entries(value)) {
          certain[at] = written;
          maybe[at].clear();
        }
      }
    };

    page = await writer(told);
    await page.evaluate(async (size) => {
      const engine = await begin();
      await (await engine.create({ opfs: PATH }, { size })).close();
      await engine.close();
    }, SIZE);

    while (kills < KILLS) {
      const round = { seed: pick(2 ** 31), value, places: PLACES, span: SPAN, size: SIZE };
      // Looks at what the kill before has left, and goes on from there.
      const found = await page.evaluate(async ({ places, span, size }) => {
        const engine = await begin();
        globalThis.image = await opened(engine);
        const step = size / places;
        const found = [];
        for (const reading of Array.from({ length: places }, (_, place) => image.read(place * (step - (step % 512)), span))) {
          const bytes = await reading;
          const words = new Uint32Array(bytes.buffer, bytes.byteOffset, span / 4);
          // A write that was not flushed may have come through in part, in whole sectors.
          const values = new Set();
          for (let sector = 0; sector < words.length; sector += 128) {
            const [first] = words.subarray(sector, sector + 1);
            values.add(words.subarray(sector, sector + 128).every((word) => word === first) ? first : -1);
          }
          found.push([...values]);
        }
        return found;
      }, round);
      for (const [place, values] of found.entries()) {
        for (const one of values) {
          assert.ok(one === certain[place] || maybe[place].has(one), `kill ${kills}, place ${place}: ${one} is neither ${certain[place]} nor one of ${[...maybe[place]]}`);
        }
        if (values.length === 1) {
          // It may still be only in the browser's memory; a killed process does not take that along.
          certain[place] = values[0];
          maybe[place].clear();
        }
      }
      const until = tells + pick(16);
      const whole = pick(PAGES) === 0;
      await page.evaluate((round) => {
        globalThis.working = (async () => {
          let state = round.seed;
          const pick = (below) => Math.floor(((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32) * below);
          let { value } = round;
          for (;;) {
            const written = {};
            for (let count = 1 + pick(6); count > 0; count -= 1) {
              const place = pick(round.places);
              value += 1;
              await tell({ kind: 'write', place, value });
              const step = round.size / round.places;
              await image.write(place * (step - (step % 512)), new Uint8Array(new Uint32Array(round.span / 4).fill(value).buffer));
              written[place] = value;
            }
            if (pick(4) === 0) {
              const snapshots = await image.snapshots();
              if (snapshots.length > 3) await image.deleteSnapshot(snapshots[pick(snapshots.length)].id);
              else await image.createSnapshot(`at ${value}`);
            }
            await image.flush();
            await tell({ kind: 'flushed', value: written });
          }
        })().catch((error) => tell({ kind: 'failed', value: String(error) }));
      }, round);
      // After so many steps of it, and then somewhere in the next one.
      for (const late = Date.now() + 5000; tells < until && Date.now() < late; ) await new Promise((resolve) => setTimeout(resolve, 1));
      await new Promise((resolve) => setTimeout(resolve, pick(12)));
      value += 100_000;
      kills += 1;
      if (whole) {
        await page.close({ runBeforeUnload: false });
        page = await writer(told);
      } else {
        await page.evaluate(() => worker.terminate());
      }
      if (kills % JUDGED === 0 || kills === KILLS) {
        await judged(page, `killed-${kills}.qcow2`);
      }
    }
    t.diagnostic(`${kills} kills, ${flushes} flushes`);
    assert.deepEqual(failures, [], 'nothing fails but by being killed');
    assert.ok(flushes > KILLS / 4, `${flushes} flushes`);
  });
});

if (missing) test(`left out: ${missing}`, { skip: missing }, () => {});
