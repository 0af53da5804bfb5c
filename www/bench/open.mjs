// From dropping an image of 100 GiB on the page to what is seen of it: `node bench/open.mjs [rounds]`, after
// `npm run build`. Rows of a table: milliseconds as medians with the least and the most, and bytes read of the file.

import { statSync } from 'node:fs';

import { bytesRead, drop, findChromium, launch } from '../test/browser.mjs';
import { Images } from '../test/images.mjs';
import { serve } from '../test/server.mjs';
import { spread } from './spread.mjs';

const ROUNDS = Number(process.argv[2] ?? 7);

const images = new Images();
const server = await serve();
const browser = await launch(findChromium());
try {
  // Tables for three gibibytes that nobody has written, and behind them what is read.
  images.create('disk.qcow2', '100G');
  images.qemuImg('resize', '-q', '--preallocation=metadata', 'disk.qcow2', '103G');
  images.qemuImg('resize', '-q', 'disk.qcow2', '110G');
  images.io('disk.qcow2', 'write -P 0x44 105G 64M');
  const facts = [];
  const map = [];
  let read = 0;
  for (let round = 0; round <= ROUNDS; round += 1) {
    const page = await (await browser.newContext({ viewport: { width: 1280, height: 900 } })).newPage();
    await page.goto(server.url);
    // The engine is started while the person looks for the file.
    await page.waitForTimeout(1000);
    await page.evaluate(() => {
      const seen = (selector) => {
        const walk = (root) => {
          const found = root.querySelector(selector);
          if (found) return found;
          for (const element of root.querySelectorAll('*')) {
            const inside = element.shadowRoot && walk(element.shadowRoot);
            if (inside) return inside;
          }
          return undefined;
        };
        return walk(document);
      };
      addEventListener('drop', () => {
        const began = performance.now();
        globalThis.times = {};
        const look = () => {
          if (!times.facts && seen('ox-facts')) times.facts = performance.now() - began;
          if (!times.map && seen('ox-hex tbody td.hex, .hex')) times.map = performance.now() - began;
          if (!times.facts || !times.map) requestAnimationFrame(look);
        };
        requestAnimationFrame(look);
      });
    });
    await drop(page, [images.path('disk.qcow2')]);
    await page.waitForFunction(() => globalThis.times?.map, undefined, { timeout: 30_000 });
    const times = await page.evaluate(() => globalThis.times);
    await page.waitForTimeout(500);
    read = Math.max(read, await bytesRead(page));
    // The first is to warm up.
    if (round > 0) {
      facts.push(times.facts);
      map.push(times.map);
    }
    await page.context().close();
  }
  const size = (statSync(images.path('disk.qcow2')).size / 2 ** 30).toFixed(1);
  console.log(`| a dropped image of 110 GiB (a file of ${size} GiB): facts on the screen, ms | 200 | ${spread(facts)} |`);
  console.log(`| the same: bytes on the screen, ms | | ${spread(map)} |`);
  console.log(`| the same: read of the file, KiB | 2048 | ${Math.ceil(read / 1024)} |`);
} finally {
  await browser.close();
  await server.close();
  images.remove();
}
