// The package in Firefox, where there is one: Playwright drives only a Firefox of its own, so a page of the tests' own
// does everything by itself and tells how it went.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { RangeServer } from '../../web/test/http-server.mjs';
import { packageFile } from './package.mjs';

function findFirefox() {
  const runs = (program) => {
    try {
      execFileSync(program, ['--version'], { stdio: 'ignore' });
      return true;
    } catch {
      return false;
    }
  };
  return process.env.FIREFOX ?? ['firefox', 'firefox-esr'].find(runs);
}

const firefox = findFirefox();

/** Runs in the page; what it gives is compared. */
async function everything({ memoryStorage, opfs, start }) {
  const engine = await start();
  const first = async (image, at) => (await image.read(at, 1))[0];
  const found = {};
  const file = await engine.open(new File([new Uint8Array(4096).fill(9)], 'disk.raw'));
  found.file = await first(file, 4000);
  const url = new URL('/images/disk.qcow2', location.href);
  const remote = await engine.open(url, { format: 'raw' });
  found.url = await first(remote, 70_000);

  const image = await engine.create({ opfs: 'disk.qcow2' }, { size: 2 ** 24, overwrite: true });
  for (let at = 0; at < 8; at += 1) await image.write(at * 2 ** 20, new Uint8Array(2 ** 20).fill(at + 1));
  await image.flush();
  found.stored = (await opfs.list()).map(({ path }) => path);
  const other = await start();
  found.other = await other.open({ opfs: 'disk.qcow2' }, { writable: true }).then(() => 'opened', ({ code }) => code);
  await other.close();

  const { id } = await image.createSnapshot('one');
  const view = await image.view({ copies: memoryStorage() });
  await image.write(0, new Uint8Array(512).fill(0xee));
  const exported = await engine.open(await new Response(view.export()).blob());
  found.view = [await first(view, 0), await first(exported, 0), await first(exported, 7 * 2 ** 20), await first(image, 0)];
  await view.close();
  await image.applySnapshot(id);
  found.applied = await first(image, 0);
  await image.convert({ opfs: 'small.qcow2' }, { format: 'qcow2', compress: true, overwrite: true });
  found.compressed = (await opfs.file('small.qcow2')).size < 2 ** 20;
  const { checkErrors, corruptions = 0, leaks = 0 } = await image.check();
  found.check = [checkErrors, corruptions, leaks];
  await image.close();
  const again = await engine.open({ opfs: 'disk.qcow2' }, { writable: true });
  found.again = await first(again, 2 ** 20);

  const clone = await engine.clone(memoryStorage(), url, { backingFormat: 'raw' });
  await clone.hydrate({ quiet: 0 });
  found.clone = (await clone.hydration()).state;
  await engine.close();
  return found;
}

const PAGE = `<!doctype html><title>x</title><script type="module">
import * as oxcow from '/oxcow/index.js';
const tell = (result) => fetch('/told?' + encodeURIComponent(JSON.stringify(result)));
(${everything})(oxcow).then(tell, (error) => tell(String(error.stack)));
</script>`;

test('the package works in Firefox', { skip: firefox ? false : 'no Firefox is installed', timeout: 120_000 }, async () => {
  const server = await RangeServer.start(Buffer.alloc(2 ** 20, 7));
  const profile = mkdtempSync(join(tmpdir(), 'oxcow-firefox-'));
  let running;
  try {
    const result = await new Promise((resolve, reject) => {
      server.others = (path) => {
        if (path === '/test') return ['text/html; charset=utf-8', PAGE];
        if (!path.startsWith('/told?')) return packageFile(path);
        resolve(JSON.parse(decodeURIComponent(path.slice('/told?'.length))));
        return ['text/plain', ''];
      };
      writeFileSync(join(profile, 'user.js'), 'user_pref("datareporting.policy.dataSubmissionEnabled", false);\n');
      const args = ['--headless', '--no-remote', '--profile', profile, `${server.origin}/test`];
      running = spawn(firefox, args, { stdio: 'ignore' });
      running.on('error', reject);
      running.on('exit', () => reject(new Error('Firefox has ended')));
    });
    assert.deepEqual(result, {
      file: 9,
      url: 7,
      stored: ['disk.qcow2'],
      other: 'busy',
      view: [1, 1, 8, 0xee],
      applied: 1,
      compressed: true,
      check: [0, 0, 0],
      again: 2,
      clone: 'complete',
    });
  } finally {
    const ended = new Promise((resolve) => running?.once('exit', resolve));
    if (running?.kill()) await ended;
    await server.close();
    rmSync(profile, { recursive: true, force: true });
  }
});
