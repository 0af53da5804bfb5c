// The package's example of v86 in a real browser: GRUB writes to an overlay in the OPFS; QEMU's tools and mtools judge.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { RangeServer } from '../../web/test/http-server.mjs';
import { Images } from '../../web/test/qemu.mjs';
import {
  Console,
  FIRMWARE,
  hashOf,
  HELLO,
  makeDisks,
  savedIn,
  V86_VERSIONS,
  withoutMachine,
} from '../../web/test/v86-machine.mjs';
import { findChromium, launch } from './browser.mjs';

const executable = findChromium();
const missing = !executable ? 'no Chromium is installed' : withoutMachine || undefined;

const TYPES = { html: 'text/html; charset=utf-8', wasm: 'application/wasm' };

/** The folder web/ as any static server would send it. */
async function webFile(path) {
  const { pathname } = new URL(path, 'http://localhost');
  const file = fileURLToPath(new URL(`../../web${pathname}${pathname.endsWith('/') ? 'index.html' : ''}`, import.meta.url));
  const type = TYPES[file.split('.').at(-1)] ?? 'text/javascript; charset=utf-8';
  return readFile(file).then((content) => [type, content], () => undefined);
}

describe('GRUB in v86 in a browser', { skip: missing, concurrency: true }, () => {
  let images;
  let browser;
  let server;

  before(async () => {
    images = new Images();
    makeDisks(images);
    server = await RangeServer.start(Buffer.alloc(0));
    server.others = webFile;
    browser = await launch(executable);
  });

  after(async () => {
    await browser?.close();
    await server?.close();
    images?.remove();
  });

  for (const version of V86_VERSIONS) {
    test(`${version}: boots from a compressed file, writes to the OPFS, with a snapshot taken while it runs`, async () => {
      const base = hashOf(images.path('base.qcow2'));
      // A profile of its own: an empty OPFS.
      const page = await browser.newPage();
      page.setDefaultTimeout(60_000);
      const problems = [];
      page.on('pageerror', (error) => problems.push(error.message));
      page.on('console', (message) => message.type() === 'error' && problems.push(message.text()));
      const status = page.getByRole('status');
      const says = (text) => status.filter({ hasText: text }).waitFor();

      await page.goto(`${server.origin}/examples/v86/?v86=${version}`);
      await says('ready');
      await page.getByLabel('BIOS (seabios: bios.bin)', { exact: true }).setInputFiles(FIRMWARE.bios);
      await page.getByLabel('VGA BIOS').setInputFiles(FIRMWARE.vgaBios);
      await page.getByLabel('boot from').setInputFiles(images.path('boot.qcow2'));
      await page.getByLabel('write to').setInputFiles(images.path('base.qcow2'));
      await page.getByRole('button', { name: 'Start' }).click();
      await says('running');

      const text = () => page.locator('#screen').innerText().then((text) => text.replaceAll('\u00a0', ' ').trimEnd());
      const press = (key) => (key === '_' ? page.keyboard.press('Shift+Minus') : page.keyboard.type(key));
      const console = new Console(text, press);
      await console.boot();
      assert.match(await console.command('root=hd1,msdos1;cat /hello.txt'), new RegExp(HELLO));
      await console.save('a', 'one');
      await page.getByRole('button', { name: 'Take a snapshot' }).click();
      await says('snapshot 1: ');
      const [, snapshot] = /: (.*)$/.exec(await status.textContent());
      await console.save('b', 'two');
      await page.getByRole('button', { name: 'Stop' }).click();
      await says('stopped');
      const downloading = page.waitForEvent('download');
      await page.getByRole('button', { name: 'Download' }).click();
      const name = `${version}.qcow2`;
      await (await downloading).saveAs(images.path(name));
      await page.close();

      assert.deepEqual(problems, []);
      const { 'check-errors': errors, corruptions, leaks } = images.json('check', name);
      assert.deepEqual({ errors, corruptions, leaks }, { errors: 0, corruptions: undefined, leaks: undefined });
      assert.deepEqual(savedIn(images, name), { a: 'one', b: 'two' });
      assert.deepEqual(savedIn(images, name, snapshot), { a: 'one' });
      assert.equal(hashOf(images.path('base.qcow2')), base);
    });
  }
});
