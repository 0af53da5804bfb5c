// Images that the page keeps: made, changed, left and found again, taken out and judged by QEMU's tools.

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, statSync, utimesSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { RangeServer } from '../../web/test/http-server.mjs';
import { withoutQemu } from '../../web/test/qemu.mjs';
import { choose, drop, findChromium, launch } from './browser.mjs';
import { Images, sha256 } from './images.mjs';
import { LOOKS, noViolations, SCREENSHOTS } from './looks.mjs';
import { fileOf, serve } from './server.mjs';

const executable = findChromium();
const missing = !executable ? 'no Chromium is installed' : withoutQemu || undefined;

const MIB = 1 << 20;

/** A tab of the page, and what a person does in it. */
class Tab {
  constructor(page) {
    this.page = page;
  }

  card(name) {
    return this.page.getByRole('region', { name, exact: true });
  }

  button(name) {
    return this.page.getByRole('button', { name, exact: true });
  }

  get dialog() {
    return this.page.getByRole('dialog');
  }

  async title(name) {
    await this.page.getByRole('heading', { level: 1, name, exact: true }).waitFor();
    await this.page.getByRole('heading', { name: 'Map of the disk', exact: true }).waitFor();
  }

  /** Presses a button, reads the dialog that comes up, and says yes. */
  async confirmed(name, action) {
    await this.button(name).click();
    const text = await this.dialog.innerText();
    await this.dialog.getByRole('button', { name: action, exact: true }).click();
    return text;
  }

  async close() {
    await this.button('Close').click();
    await this.card('Kept in this browser').waitFor();
  }

  async snapshot(name) {
    await this.page.getByLabel('Name of a new snapshot').fill(name);
    await this.confirmed('Take a snapshot…', 'Take it');
    await this.page.getByRole('radio', { name: new RegExp(name) }).waitFor();
  }

  /** The disk shows `value` as the first byte at `offset`. */
  async holds(offset, value) {
    const { page } = this;
    await page.getByLabel('Offset on the disk').fill(`0x${offset.toString(16)}`);
    await page.getByRole('button', { name: 'Go', exact: true }).click();
    const row = page.locator('ox-hex tbody tr').first();
    await row.filter({ hasText: new RegExp(`^\\s*${offset.toString(16).padStart(8, '0')}\\s*${value.toString(16).padStart(2, '0')} `) }).waitFor();
  }

  /** What the browser saves after `act`, as a file of the test's. */
  async saved(act) {
    const { page } = this;
    await page.evaluate(() => delete window.showSaveFilePicker);
    await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
    const [download] = await Promise.all([page.waitForEvent('download', { timeout: 120_000 }), act()]);
    return download.path();
  }

  saveAs(name) {
    return this.saved(async () => {
      await this.card('Save the disk').getByRole('radio', { name: new RegExp(`^${name}`) }).check();
      await this.button(`Save as ${name}`).click();
    });
  }

  /** Writes to the disk that is open, as a machine that uses it would: the page itself has no control for that. */
  write(...writes) {
    return this.page.evaluate(async (writes) => {
      const { base } = document.querySelector('ox-app').session;
      for (const [offset, length, value] of writes) {
        for (let at = 0; at < length; at += 1 << 20) await base.write(offset + at, new Uint8Array(Math.min(length - at, 1 << 20)).fill(value));
      }
      await base.flush();
    }, writes);
  }
}

describe('images that the page keeps', { skip: missing }, () => {
  let images;
  let server;
  let browser;
  let context;
  let tab;
  let complaints;

  before(async () => {
    mkdirSync(SCREENSHOTS, { recursive: true });
    images = new Images();
    server = await serve();
    browser = await launch(executable);
  });

  after(async () => {
    await browser?.close();
    await server?.close();
    images?.remove();
  });

  async function openTab(url = server.url) {
    const page = await context.newPage();
    page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(String(error)));
    await page.goto(url);
    return new Tab(page);
  }

  /** A test in a profile of its own, where nothing is kept yet. */
  function keptTest(name, body, options = {}) {
    const { url, ...look } = options;
    test(name, { timeout: 120_000 }, async () => {
      context = await browser.newContext({ acceptDownloads: true, ...look });
      context.setDefaultTimeout(20_000);
      complaints = [];
      try {
        tab = await openTab(url?.());
        await body();
        assert.deepEqual(complaints, []);
      } catch (error) {
        await tab?.page.screenshot({ path: `${SCREENSHOTS}failed.png`, fullPage: true }).catch(() => {});
        throw error;
      } finally {
        await context.close();
      }
    });
  }

  /** The image at `path` is clean for qemu-img, and has the content of another; `options` choose a snapshot of both. */
  function judged(path, expected, ...options) {
    images.qemuImg('check', '-q', path);
    const state = (path) => {
      if (options.length === 0) return path;
      images.states = (images.states ?? 0) + 1;
      images.qemuImg('convert', ...options, '-O', 'qcow2', path, `state-${images.states}.qcow2`);
      return images.path(`state-${images.states}.qcow2`);
    };
    const [found, wanted] = [state(path), state(expected)];
    images.qemuImg('compare', '-q', found, wanted);
    assert.equal(infoOf(found)['virtual-size'], infoOf(wanted)['virtual-size']);
  }

  function infoOf(path) {
    return JSON.parse(images.qemuImg('info', '--output=json', path));
  }

  /** A server's disk of 3 GiB: little of it is there. */
  function base() {
    if (images.base) return images.base;
    images.create('server.qcow2', '3G');
    images.io('server.qcow2', 'write -P 0x51 0 9M', 'write -P 0x52 1500M 8M', 'write -P 0x53 3071M 1M');
    images.base = images.path('server.qcow2');
    return images.base;
  }

  keptTest('a writable copy: changed, left, asked for its file again, and taken out', async () => {
    const before = await sha256(base());
    await drop(tab.page, [base()]);
    await tab.title('server.qcow2');
    await tab.button('Make a writable copy').click();
    await tab.title('server-copy.qcow2');
    await tab.write([MIB, 2 * MIB, 0x61], [2000 * MIB, MIB, 0x62]);
    await tab.holds(2000 * MIB, 0x62);

    await tab.page.reload();
    await tab.button('Open server-copy.qcow2').click();
    await tab.page.getByRole('alert').getByText('A file is missing').waitFor();
    assert.equal(await tab.page.getByRole('heading', { name: 'Bytes', exact: true }).count(), 0);
    await tab.page.getByLabel('Choose server.qcow2').setInputFiles(base());
    await tab.page.getByRole('heading', { name: 'Bytes', exact: true }).waitFor();
    await tab.holds(MIB, 0x61);
    await tab.holds(3071 * MIB, 0x53);

    images.qemuImg('convert', '-O', 'qcow2', base(), 'expected.qcow2');
    images.io('expected.qcow2', 'write -P 0x61 1M 2M', 'write -P 0x62 2000M 1M');
    const expected = images.path('expected.qcow2');
    const whole = await tab.saveAs('qcow2');
    judged(whole, expected);
    assert.equal(infoOf(whole)['backing-filename'], undefined);
    const small = await tab.saveAs('compressed qcow2');
    judged(small, expected);
    assert.ok(statSync(small).size < statSync(whole).size / 4);
    // What was converted on the way out is gone.
    await tab.page.getByText('Saved.', { exact: true }).waitFor();
    const left = await tab.page.evaluate(async () => {
      const names = [];
      const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('oxcow');
      for await (const name of (await root.getDirectoryHandle('unfinished')).keys()) names.push(name);
      return names;
    });
    assert.deepEqual(left, []);

    // The copy itself: what qemu-img makes of it over the same file.
    await tab.close();
    const overlay = await tab.saved(() => tab.button('Download server-copy.qcow2').click());
    assert.equal(infoOf(overlay)['backing-filename'], 'server.qcow2');
    images.qemuImg('rebase', '-u', '-b', base(), '-F', 'qcow2', overlay);
    judged(overlay, expected);
    assert.equal(await sha256(base()), before, 'the dropped file is as it was');
  });

  keptTest('a file that has changed since is refused in words', async () => {
    images.create('moving.qcow2', '64M');
    images.io('moving.qcow2', 'write -P 1 0 1M');
    const path = images.path('moving.qcow2');
    const mtime = new Date(1_760_000_000_000); // Whole seconds, which every clock keeps.
    utimesSync(path, mtime, mtime);
    await choose(tab.page, [path]);
    await tab.button('Make a writable copy').click();
    await tab.title('moving-copy.qcow2');
    await tab.write([0, 4096, 9]);
    const reopened = async () => {
      await tab.page.reload();
      await tab.button('Open moving-copy.qcow2').click();
      await tab.page.getByLabel('Choose moving.qcow2').setInputFiles(path);
    };
    const original = readFileSync(path);

    images.damage('moving.qcow2', original.length - 1000, Buffer.from([7]));
    utimesSync(path, mtime, mtime);
    await reopened();
    await tab.page.getByText(/“moving.qcow2” has changed since it was chosen: its content is different/).waitFor();
    await tab.page.getByRole('alert').getByText('A file does not fit').waitFor();

    images.write('moving.qcow2', original);
    utimesSync(path, mtime, new Date(mtime.getTime() - 60_000));
    await reopened();
    await tab.page.getByText(/it was last written on/).waitFor();

    images.write('moving.qcow2', Buffer.concat([original, Buffer.alloc(512)]));
    await reopened();
    await tab.page.getByText(/it was .* \(\d+ bytes\), and is/).waitFor();

    images.write('moving.qcow2', original);
    utimesSync(path, mtime, mtime);
    await tab.page.getByLabel('Choose moving.qcow2').setInputFiles(path);
    await tab.page.getByRole('heading', { name: 'Bytes', exact: true }).waitFor();
    await tab.holds(0, 9);
    await tab.holds(MIB - 512, 1);
  });

  keptTest('an import, in both ways; rename, download, delete', async () => {
    images.create('states.qcow2', '2G');
    images.io('states.qcow2', 'write -P 0x11 0 4M');
    images.qemuImg('snapshot', '-c', 'first', 'states.qcow2');
    images.io('states.qcow2', 'write -P 0x22 2M 4M');

    await choose(tab.page, [images.path('states.qcow2')]);
    await tab.title('states.qcow2');
    await tab.button('Import…').click();
    await tab.dialog.getByRole('radio', { name: /The disk as it is now/ }).check();
    await tab.dialog.getByRole('button', { name: 'Import', exact: true }).click();
    await tab.page.getByText('kept in this browser.').waitFor();
    await tab.title('states.qcow2');
    assert.equal(await tab.page.getByRole('radio', { name: /first/ }).count(), 0);

    await choose(tab.page, [images.path('states.qcow2')]);
    await tab.button('Import…').click();
    assert.ok(await tab.dialog.getByRole('radio', { name: /An exact copy/ }).isChecked(), 'snapshots are not left behind unasked');
    await tab.dialog.getByRole('button', { name: 'Import', exact: true }).click();
    await tab.title('states-2.qcow2');
    await tab.page.getByRole('radio', { name: /first/ }).waitFor();
    await tab.close();

    const plain = await tab.saved(() => tab.button('Download states.qcow2').click());
    judged(plain, images.path('states.qcow2'));
    const copy = await tab.saved(() => tab.button('Download states-2.qcow2').click());
    judged(copy, images.path('states.qcow2'));
    judged(copy, images.path('states.qcow2'), '-l', 'first');

    await tab.button('Rename states-2.qcow2').click();
    await tab.dialog.getByLabel('New name').fill('with snapshots.qcow2');
    await tab.dialog.getByRole('button', { name: 'Rename', exact: true }).click();
    await tab.button('Open with snapshots.qcow2').waitFor();
    assert.equal(await tab.button('Open states-2.qcow2').count(), 0);

    // Not confirmed: nothing happens.
    await tab.button('Delete states.qcow2').click();
    assert.match(await tab.dialog.innerText(), /Lost: The whole disk[\s\S]*Safe: All other images/);
    await tab.page.keyboard.press('Escape');
    await tab.page.reload();
    const text = await tab.confirmed('Delete states.qcow2', 'Delete');
    assert.match(text, /It cannot be brought back/);
    await tab.button('Open states.qcow2').waitFor({ state: 'detached' });
    await tab.button('Open with snapshots.qcow2').click();
    await tab.title('with snapshots.qcow2');
  });

  keptTest('an import can be stopped, and leaves nothing', async () => {
    images.create('long.qcow2', '400M');
    images.io('long.qcow2', 'write -P 0x77 0 400M');
    await choose(tab.page, [images.path('long.qcow2')]);
    await tab.confirmed('Import…', 'Import');
    await tab.page.getByRole('progressbar', { name: 'Importing' }).waitFor();
    await tab.card('Work on it').getByRole('button', { name: 'Cancel' }).click();
    await tab.page.getByText('Cancelled. What was there before is as it was.').waitFor();
    await tab.close();
    await tab.page.getByText('Nothing yet.').waitFor();
  });

  keptTest('snapshots: taken, looked at, compared, applied and deleted, each only when confirmed', async () => {
    await choose(tab.page, [base()]);
    await tab.button('Make a writable copy').click();
    await tab.title('server-copy.qcow2');
    await tab.snapshot('clean');
    await tab.write([0, MIB, 0x71], [2500 * MIB, 2 * MIB, 0x72]);
    await tab.snapshot('upgraded');
    await tab.write([0, MIB, 0x73]);

    await tab.page.getByRole('radio', { name: /clean/ }).check();
    await tab.page.getByText('Snapshot “clean”').first().waitFor();
    await tab.holds(0, 0x51);
    await tab.page.getByRole('radio', { name: 'Active state' }).check();
    await tab.holds(0, 0x73);

    // 1 MiB at the beginning and 2 MiB further on.
    const compare = tab.card('Compare two states');
    await compare.getByLabel('From').selectOption({ label: 'clean' });
    await compare.getByLabel('To').selectOption({ label: 'upgraded' });
    await tab.button('Compare').click();
    await compare.getByText('3 MiB differ').waitFor();
    await compare.getByText(/between “clean” and “upgraded”, in 2 places/).waitFor();
    const legend = (page) => page.getByRole('list', { name: 'What the cells of the map of differences mean' });
    assert.match(await legend(tab.page).innerText(), /Differs\s+3 MiB/);
    await compare.getByLabel('From').selectOption({ label: 'upgraded' });
    await compare.getByLabel('To').selectOption({ label: 'Active state' });
    await tab.button('Compare').click();
    await compare.getByText('1 MiB differ').waitFor();

    // Not confirmed: not done.
    await tab.button('Apply clean').click();
    assert.match(await tab.dialog.innerText(), /Lost: What was changed on the disk since/);
    await tab.dialog.getByRole('button', { name: 'Cancel' }).click();
    await tab.holds(0, 0x73);
    await tab.confirmed('Apply clean', 'Apply');
    await tab.dialog.waitFor({ state: 'detached' });
    await tab.page.locator('ox-hex tbody td.hex').first().getByText('51 51').waitFor();
    await tab.snapshot('another way');

    // The tree: "upgraded" and "another way" both came from "clean".
    const depths = () =>
      tab.page.locator('ox-snapshots tbody tr').evaluateAll((rows) =>
        rows.map((row) => `${row.querySelectorAll('.step').length} ${row.querySelector('.name')?.textContent ?? 'active'}`),
      );
    assert.deepEqual(await depths(), ['0 clean', '1 upgraded', '1 another way', '2 active']);
    await tab.confirmed('Delete clean', 'Delete');
    await tab.button('Apply clean').waitFor({ state: 'detached' });
    assert.deepEqual(await depths(), ['0 upgraded', '0 another way', '1 active']);

    await tab.close();
    const path = await tab.saved(() => tab.button('Download server-copy.qcow2').click());
    images.qemuImg('rebase', '-u', '-b', base(), '-F', 'qcow2', path);
    judged(path, base());
    images.qemuImg('convert', '-O', 'qcow2', base(), 'upgraded.qcow2');
    images.io('upgraded.qcow2', 'write -P 0x71 0 1M', 'write -P 0x72 2500M 2M');
    images.qemuImg('convert', '-l', 'upgraded', '-O', 'qcow2', path, 'found.qcow2');
    judged(images.path('found.qcow2'), images.path('upgraded.qcow2'));
    assert.deepEqual(infoOf(path).snapshots.map(({ name }) => name), ['upgraded', 'another way']);
  });

  keptTest('two snapshots of a dropped image are compared as qemu-img does', async () => {
    images.create('dropped.qcow2', '64M');
    images.io('dropped.qcow2', 'write -P 1 0 8M', 'write -P 2 32M 1M');
    images.qemuImg('snapshot', '-c', 'a', 'dropped.qcow2');
    // Written anew with the same bytes; other bytes; zeros over data; data over nothing; nothing over data.
    images.io('dropped.qcow2', 'write -P 1 0 1M', 'write -P 3 2M 64k', 'write -z 4M 1M', 'write -P 4 40M 128k', 'discard 32M 1M');
    images.qemuImg('snapshot', '-c', 'b', 'dropped.qcow2');
    const [a, b] = ['a', 'b'].map((name) => readFileSync(images.raw('dropped.qcow2', '-l', name, ...(name === 'b' ? ['-W'] : []))));
    const expected = [];
    for (let at = 0; at < a.length; at += 65536) {
      if (a.compare(b, at, at + 65536, at, at + 65536) === 0) continue;
      if (expected.at(-1)?.[1] === at) expected.at(-1)[1] = at + 65536;
      else expected.push([at, at + 65536]);
    }
    await choose(tab.page, [images.path('dropped.qcow2')]);
    const compare = tab.card('Compare two states');
    await compare.getByLabel('From').selectOption({ label: 'a' });
    await compare.getByLabel('To').selectOption({ label: 'b' });
    await tab.button('Compare').click();
    await compare.getByText('The same as a table').click();
    const rows = compare.getByRole('region', { name: 'Extents of the map of differences' }).locator('tbody tr');
    await rows.nth(expected.length - 1).waitFor();
    assert.deepEqual(await rows.locator('td:first-child').allInnerTexts(), expected.map(([start]) => `0x${start.toString(16)}`));
    assert.deepEqual(
      await rows.locator('td:nth-child(2)').evaluateAll((cells) => cells.map(({ title }) => Number(title.replace(/\D/g, '')))),
      expected.map(([start, end]) => end - start),
    );
  });

  keptTest('resize: grown, and shrunk only with a warning', async () => {
    await choose(tab.page, [base()]);
    await tab.confirmed('Import…', 'Import');
    await tab.page.getByText('kept in this browser.').waitFor();
    await tab.title('server.qcow2');
    await tab.page.getByLabel('New size').fill('a lot');
    await tab.button('Resize…').click();
    await tab.page.getByText('That is no size.').waitFor();
    await tab.page.getByLabel('New size').fill('4.5 GiB');
    assert.match(await tab.confirmed('Resize…', 'Grow'), /Safe: Everything on the disk/);
    await tab.page.getByText('The disk has 4.5 GiB').waitFor();
    await tab.page.getByLabel('New size').fill('1G');
    assert.match(await tab.confirmed('Resize…', 'Shrink'), /Lost: The last 3.5 GiB of the disk/);
    await tab.page.getByText('The disk has 1 GiB').waitFor();
    await tab.snapshot('small');
    await tab.page.getByLabel('New size').fill('512M');
    await tab.button('Resize…').click();
    await tab.page.getByText('A disk with snapshots can only grow').waitFor();
    const path = await tab.saveAs('qcow2');
    images.qemuImg('convert', '-O', 'qcow2', base(), 'shrunk.qcow2');
    images.qemuImg('resize', '-q', '--shrink', 'shrunk.qcow2', '1G');
    judged(path, images.path('shrunk.qcow2'));
  });

  keptTest('leaks and errors are repaired, after a preview', async () => {
    images.create('broken.qcow2', '64M');
    images.io('broken.qcow2', 'write -P 5 0 1M');
    const file = readFileSync(images.path('broken.qcow2'));
    const refcounts = Number(file.readBigUInt64BE(Number(file.readBigUInt64BE(48))));
    images.write('whole.qcow2', file);
    images.damage('broken.qcow2', refcounts + 2 * 8, Buffer.from([0, 0])); // A cluster in use, as free.
    images.damage('broken.qcow2', refcounts + 2 * 21, Buffer.from([0, 1])); // The last, leaked.
    await choose(tab.page, [images.path('broken.qcow2')]);
    await tab.button('Check this image').click();
    await tab.page.getByText('A dropped file is never changed').waitFor();
    await tab.button('Import…').click();
    await tab.dialog.getByRole('radio', { name: /An exact copy/ }).check();
    await tab.dialog.getByRole('button', { name: 'Import', exact: true }).click();
    await tab.page.getByText('kept in this browser.').waitFor();
    await tab.button('Check this image').click();
    const text = await tab.confirmed('Repair 2 errors…', 'Repair');
    assert.match(text, /ERROR cluster 8 refcount=0 reference=1/);
    await tab.page.getByText('Repaired.', { exact: true }).waitFor();
    await tab.button('Check this image').click();
    await tab.page.getByText('No errors.').waitFor();
    await tab.close();
    const path = await tab.saved(() => tab.button('Download broken.qcow2').click());
    judged(path, images.path('whole.qcow2'));
  });

  keptTest('an image that is marked as corrupt can be read, and is changed only after a repair', async () => {
    images.create('marked.qcow2', '64M');
    images.io('marked.qcow2', 'write -P 6 0 1M');
    images.write('unmarked.qcow2', readFileSync(images.path('marked.qcow2')));
    const file = readFileSync(images.path('marked.qcow2'));
    const refcounts = Number(file.readBigUInt64BE(Number(file.readBigUInt64BE(48))));
    images.damage('marked.qcow2', refcounts + 2 * 8, Buffer.from([0, 0])); // A cluster in use, as free.
    images.damage('marked.qcow2', 79, Buffer.from([2])); // The incompatible feature "corrupt".
    await choose(tab.page, [images.path('marked.qcow2')]);
    await tab.title('marked.qcow2');
    await tab.button('Import…').click();
    await tab.dialog.getByRole('radio', { name: /An exact copy/ }).check();
    await tab.dialog.getByRole('button', { name: 'Import', exact: true }).click();
    await tab.page.getByText('This image is marked as corrupt.').waitFor();
    await tab.holds(0, 6);
    assert.equal(await tab.button('Take a snapshot…').count(), 0);
    await tab.button('Check this image').click();
    await tab.confirmed('Repair 2 errors…', 'Repair');
    await tab.button('Take a snapshot…').waitFor();
    await tab.page.getByText('Repaired.', { exact: true }).waitFor();
    assert.equal(await tab.page.getByText('This image is marked as corrupt.').count(), 0);
    await tab.close();
    const path = await tab.saved(() => tab.button('Download marked.qcow2').click());
    judged(path, images.path('unmarked.qcow2'));
    assert.equal(infoOf(path)['format-specific'].data.corrupt, false);
  });

  keptTest('a second tab is told that the image is open elsewhere', async () => {
    await choose(tab.page, [base()]);
    await tab.button('Make a writable copy').click();
    await tab.title('server-copy.qcow2');
    const other = await openTab();
    await other.button('Open server-copy.qcow2').click();
    await other.page.getByRole('alert').getByText(/This image is open elsewhere\.[\s\S]*Nothing was changed/).waitFor();
    await other.button('Close').click();
    await other.confirmed('Delete server-copy.qcow2', 'Delete');
    await other.page.getByRole('alert').getByText('open in another tab or window').waitFor();
    await tab.write([0, MIB, 0x44]);
    await tab.close();
    await other.button('Open server-copy.qcow2').click();
    await other.page.getByLabel('Choose server.qcow2').setInputFiles(base());
    await other.page.getByRole('heading', { name: 'Bytes', exact: true }).waitFor();
    await other.holds(0, 0x44);
  });

  keptTest('no room: said in words, and nothing is lost', async () => {
    images.create('big.qcow2', '2G');
    images.io('big.qcow2', 'write -P 0x21 0 64M');
    await choose(tab.page, [base()]);
    await tab.button('Make a writable copy').click();
    await tab.title('server-copy.qcow2');
    await tab.write([0, MIB, 0x66]);
    const client = await context.newCDPSession(tab.page);
    const { origin } = new URL(server.url);
    const { usage } = await tab.page.evaluate(() => navigator.storage.estimate());
    await client.send('Storage.overrideQuotaForOrigin', { origin, quotaSize: usage + 16 * MIB });
    await choose(tab.page, [images.path('big.qcow2')]);
    await tab.confirmed('Import…', 'Import');
    await tab.page.getByRole('alert').getByText(/Not imported\.[\s\S]*There is no room left for this page\. Nothing that was saved is lost/).waitFor({ timeout: 60_000 });
    await client.send('Storage.overrideQuotaForOrigin', { origin });
    await tab.close();
    assert.equal(await tab.button('Open big.qcow2').count(), 0);
    await tab.button('Open server-copy.qcow2').click();
    await tab.page.getByLabel('Choose server.qcow2').setInputFiles(base());
    await tab.page.getByRole('heading', { name: 'Bytes', exact: true }).waitFor();
    await tab.holds(0, 0x66);
  });

  describe('a clone of a URL', () => {
    let range;

    before(async () => {
      range = await RangeServer.start(readFileSync(base()));
      range.others = async (url) => (url.startsWith('/images/') ? undefined : fileOf(url));
    });

    after(() => range?.close());

    keptTest(
      'fills itself, goes on when the page is opened again, and is complete',
      async () => {
        range.latency = 40;
        await tab.page.getByLabel('Address of a qcow2 or raw image').fill('images/disk.qcow2');
        await tab.button('Clone').click();
        await tab.title('disk.qcow2');
        await tab.holds(1500 * MIB, 0x52);
        await tab.page.getByText(/Filling in the background: [1-9]/).waitFor();
        await tab.page.close();

        range.latency = 0;
        tab = await openTab(`${range.origin}/`);
        await tab.button('Open disk.qcow2').waitFor();
        await tab.page.getByText(/clone of http/).waitFor({ state: 'detached', timeout: 60_000 });
        const path = await tab.saved(() => tab.button('Download disk.qcow2').click());
        assert.equal(infoOf(path)['backing-filename'], undefined);
        judged(path, base());
        range.forget();
        await tab.button('Open disk.qcow2').click();
        await tab.title('disk.qcow2');
        await tab.holds(0, 0x51);
        assert.equal(range.log.filter(({ path }) => path.startsWith('/images/')).length, 0, 'the server is needed no more');
      },
      { url: () => `${range.origin}/` },
    );

    keptTest(
      'another server is out of bounds, and one that is not there is told',
      async () => {
        const address = tab.page.getByLabel('Address of a qcow2 or raw image');
        await address.fill('https://example.org/disk.qcow2');
        await tab.button('Clone').click();
        await tab.page.getByText(/This page may only ask 127\.0\.0\.1/).waitFor();
        range.behave = () => ({ status: 404 });
        await address.fill('images/none.qcow2');
        await tab.button('Clone').click();
        await tab.page.getByRole('alert').getByText('Not cloned.').waitFor();
        range.forget();
        complaints.length = 0; // The browser reports the answer 404.
      },
      { url: () => `${range.origin}/` },
    );
  });

  for (const look of LOOKS) {
    const name = `${look.colorScheme}-${look.viewport.width}`;
    keptTest(
      `no accessibility violations and pictures, ${name}`,
      async () => {
        const shot = (what) => tab.page.screenshot({ path: `${SCREENSHOTS}${what}-${name}.png`, fullPage: true });
        const fits = async (what) => {
          const [scroll, client] = await tab.page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
          assert.ok(scroll <= client, `${what}: ${scroll} wide in a window of ${client}`);
        };
        await choose(tab.page, [base()]);
        await tab.title('server.qcow2');
        await noViolations(tab.page, 'what can be done with a dropped image');
        await tab.button('Import…').click();
        await noViolations(tab.page, 'the dialog of an import');
        await tab.page.screenshot({ path: `${SCREENSHOTS}import-${name}.png` });
        await tab.dialog.getByRole('button', { name: 'Cancel' }).click();
        await tab.button('Make a writable copy').click();
        await tab.title('server-copy.qcow2');
        await tab.snapshot('clean install');
        await tab.write([0, 40 * MIB, 0x71], [900 * MIB, 25 * MIB, 0x72], [2200 * MIB, 30 * MIB, 0x73]);
        await tab.snapshot('before upgrade');
        await tab.write([400 * MIB, 30 * MIB, 0x74]);
        const compare = tab.card('Compare two states');
        await compare.getByLabel('From').selectOption({ label: 'clean install' });
        await tab.button('Compare').click();
        await compare.getByText(/between “clean install” and the active state/).waitFor();
        await compare.getByText(/cells of/).waitFor();
        await noViolations(tab.page, 'a stored image');
        await fits('a stored image');
        await shot('kept');
        await tab.button('Apply clean install').click();
        await noViolations(tab.page, 'a dialog that says what is lost');
        await tab.page.screenshot({ path: `${SCREENSHOTS}apply-${name}.png` });
        await tab.dialog.getByRole('button', { name: 'Cancel' }).click();
        await tab.close();
        await tab.page.getByText(/in use of the/).waitFor();
        await noViolations(tab.page, 'the list of what is kept');
        await fits('the list of what is kept');
        await shot('list');
      },
      look,
    );
  }
});

if (missing) test(`left out: ${missing}`, { skip: missing }, () => {});
