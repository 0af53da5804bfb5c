// The built page in a real browser, with images made by QEMU's tools, which are also the judge.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdirSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { withoutQemu } from '../../web/test/qemu.mjs';
import { bytesRead, choose, drop, findChromium, launch } from './browser.mjs';
import { Images, sha256 } from './images.mjs';
import { LOOKS, noViolations, SCREENSHOTS } from './looks.mjs';
import { serve } from './server.mjs';

const executable = findChromium();
const missing = !executable ? 'no Chromium is installed' : withoutQemu || undefined;

describe('the page', { skip: missing }, () => {
  let images;
  let server;
  let browser;
  let context;
  let page;
  /** What the browser asked for in a test, and what it complained about. */
  let requests;
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

  /** A test with a page of its own that must not complain or ask for anything but its own files. */
  function pageTest(name, body, options = {}) {
    test(name, async () => {
      context = await browser.newContext({ acceptDownloads: true, ...options });
      requests = [];
      complaints = [];
      context.on('request', (request) => requests.push(request.url()));
      context.setDefaultTimeout(15_000);
      page = await context.newPage();
      page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
      page.on('pageerror', (error) => complaints.push(String(error)));
      await page.goto(server.url);
      try {
        await body();
        assert.deepEqual(complaints, []);
        const strangers = requests.filter((url) => !url.startsWith(server.url) && !url.startsWith(`blob:${server.url}`));
        assert.deepEqual(strangers, [], 'nothing leaves the tab');
      } catch (error) {
        await page.screenshot({ path: `${SCREENSHOTS}failed.png`, fullPage: true }).catch(() => {});
        throw error;
      } finally {
        await context.close();
      }
    });
  }

  const heading = (name) => page.getByRole('heading', { name, exact: true });
  const card = (name) => page.getByRole('region', { name, exact: true });
  const opened = () => heading('Map of the disk').waitFor();
  const mapDrawn = () => page.getByText(/cells of/).waitFor();

  /** The text of a region, through the shadow roots in it. */
  function textOf(region) {
    return region.evaluate((element) => {
      const parts = [];
      const walk = (node) => {
        if (node.nodeType === Node.TEXT_NODE) parts.push(node.data.trim());
        if (['STYLE', 'SCRIPT'].includes(node.nodeName)) return;
        for (const child of (node.shadowRoot ?? node).childNodes) walk(child);
      };
      walk(element);
      return parts.filter(Boolean).join(' ');
    });
  }

  async function factOf(name) {
    const fact = page.locator('.fact', { has: page.locator('dt', { hasText: new RegExp(`^${name}$`) }) });
    return (await fact.locator('dd').innerText()).replace(/\s+/g, ' ');
  }

  /** The bytes that the hex view shows. */
  async function shownBytes() {
    const rows = await page.locator('ox-hex tbody td.hex').allInnerTexts();
    return Buffer.from(rows.join(' ').replace(/\s+/g, ''), 'hex');
  }

  async function goTo(offset) {
    await page.getByLabel('Offset on the disk').fill(offset);
    await page.getByRole('button', { name: 'Go', exact: true }).click();
  }

  pageTest('a chosen image: facts, map, bytes and check are those of qemu-img', async () => {
    images.create('plain.qcow2', '256M', '-o', 'cluster_size=32k');
    images.io('plain.qcow2', 'write -P 0x61 0 1M', 'write -P 0x62 100M 64k', 'write -z 200M 1M');
    await choose(page, [images.path('plain.qcow2')]);
    await opened();

    assert.match(await factOf('Format'), /^qcow2, version 3/);
    assert.match(await factOf('Disk size'), /^256 MiB 268,435,456 bytes/);
    assert.match(await factOf('Cluster size'), /^32 KiB 32,768 bytes/);
    assert.match(await factOf('File size'), new RegExp(statSync(images.path('plain.qcow2')).size.toLocaleString('en-US')));
    assert.match(await textOf(card('Safety report')), /Nothing suspicious/);

    await mapDrawn();
    const extents = JSON.parse(images.qemuImg('map', '--output=json', 'plain.qcow2'));
    const stored = extents.filter(({ data }) => data).reduce((sum, { length }) => sum + length, 0);
    const legend = page.getByRole('list', { name: 'What the cells mean' }).getByRole('listitem').filter({ hasText: /^\s*Stored/ });
    assert.equal(await legend.locator('.muted').getAttribute('title'), `${stored.toLocaleString('en-US')} bytes`);

    await page.getByText('The same as a table').click();
    const rows = page.getByRole('region', { name: 'Extents of the disk' }).locator('tbody tr');
    await rows.nth(extents.length - 1).waitFor();
    const starts = await rows.locator('td:first-child').allInnerTexts();
    assert.deepEqual(starts, extents.map(({ start }) => `0x${start.toString(16)}`));

    for (const offset of [0, 1 << 20, 100 << 20, (100 << 20) + 65024, (256 << 20) - 512]) {
      await goTo(`0x${offset.toString(16)}`);
      await page.locator('ox-hex tbody th').first().getByText(offset.toString(16).padStart(8, '0'), { exact: true }).waitFor();
      assert.deepEqual(await shownBytes(), images.rawBytes('plain.qcow2', offset, 512), `bytes at ${offset}`);
    }
    await goTo('256M');
    await page.getByText('The disk ends at 0x10000000.').waitFor();
    await goTo('everywhere');
    await page.getByText('That is no offset.').waitFor();

    await page.getByRole('button', { name: 'Check this image' }).click();
    await page.getByText('No errors.').waitFor();
    const check = JSON.parse(images.qemuImg('check', '--output=json', 'plain.qcow2'));
    assert.match(await textOf(card('Check')), new RegExp(`${check['allocated-clusters']} of ${check['total-clusters'].toLocaleString('en-US')} clusters`));
  });

  pageTest('a dropped image opens; a second drop replaces it', async () => {
    images.create('dropped.qcow2', '1G');
    images.create('second.qcow2', '2G');
    await drop(page, [images.path('dropped.qcow2')]);
    await opened();
    assert.equal(await page.getByRole('heading', { level: 1 }).innerText(), 'dropped.qcow2');
    await drop(page, [images.path('second.qcow2')]);
    await page.getByRole('heading', { level: 1, name: 'second.qcow2' }).waitFor();
    await opened();
    assert.match(await factOf('Disk size'), /^2 GiB/);
  });

  pageTest('compressed images, zlib and zstd', async () => {
    images.create('source.qcow2', '16M');
    images.io('source.qcow2', 'write -P 0x63 0 5M');
    for (const type of ['zlib', 'zstd']) {
      const name = `${type}.qcow2`;
      images.qemuImg('convert', '-c', '-O', 'qcow2', '-o', `compression_type=${type}`, 'source.qcow2', name);
      await choose(page, [images.path(name)]);
      await page.getByRole('heading', { level: 1, name }).waitFor();
      await opened();
      assert.match(await factOf('Compression'), new RegExp(`^${type}`));
      await page.locator('ox-hex tbody td.hex').first().waitFor();
      assert.deepEqual(await shownBytes(), images.rawBytes(name, 0, 512));
    }
  });

  pageTest('snapshots and bitmaps are listed, and a snapshot can be looked at', async () => {
    images.create('states.qcow2', '8M');
    images.io('states.qcow2', 'write -P 0x11 0 1M');
    images.qemuImg('snapshot', '-c', 'before', 'states.qcow2');
    images.io('states.qcow2', 'write -P 0x22 0 1M');
    images.qemuImg('bitmap', '--add', '-g', '128k', 'states.qcow2', 'backup');
    await choose(page, [images.path('states.qcow2')]);
    await opened();
    await page.locator('ox-hex tbody td.hex').first().waitFor();
    assert.deepEqual(await shownBytes(), Buffer.alloc(512, 0x22));
    assert.match(await textOf(card('Bitmaps')), /backup\s+128 KiB\s+recording/);

    await page.getByRole('radio', { name: /before/ }).check();
    await page.locator('ox-hex tbody td.hex').first().getByText('11 11').waitFor();
    assert.deepEqual(await shownBytes(), Buffer.alloc(512, 0x11));
    const [download] = await saved(() => page.getByRole('button', { name: /Save as raw/ }).click());
    assert.equal(download.suggestedFilename(), 'states-before.raw');
    assert.equal(await sha256(await download.path()), await sha256(images.raw('states.qcow2', '-l', 'before')));

    await page.getByRole('radio', { name: 'Active state' }).check();
    await page.locator('ox-hex tbody td.hex').first().getByText('22 22').waitFor();
  });

  /** Makes the browser save by the service worker, as one without a file picker does. */
  async function saved(act) {
    await page.evaluate(() => delete window.showSaveFilePicker);
    await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
    return Promise.all([page.waitForEvent('download'), act()]);
  }

  pageTest('a missing backing file is asked for by name, and taken when chosen or dropped', async () => {
    images.create('base.qcow2', '64M');
    images.io('base.qcow2', 'write -P 0x71 0 1M');
    images.create('overlay.qcow2', '64M', '-b', 'base.qcow2', '-F', 'qcow2');
    images.io('overlay.qcow2', 'write -P 0x72 64k 64k');

    await choose(page, [images.path('overlay.qcow2')]);
    await page.getByRole('alert').getByText('A file is missing').waitFor();
    await opened();
    assert.match(await textOf(card('Safety report')), /backing file 'base.qcow2'/);
    assert.equal(await heading('Bytes').count(), 0, 'incomplete content is not shown as if it were whole');
    await page.getByLabel('Choose base.qcow2').setInputFiles(images.path('base.qcow2'));
    await heading('Bytes').waitFor();
    await page.locator('ox-hex tbody td.hex').first().waitFor();
    assert.deepEqual(await shownBytes(), Buffer.alloc(512, 0x71));
    assert.match(await textOf(card('Files it consists of')), /overlay\.qcow2[\s\S]*base\.qcow2/);

    await choose(page, [images.path('overlay.qcow2')]);
    await page.getByRole('alert').getByText('A file is missing').waitFor();
    await drop(page, [images.path('base.qcow2')]);
    await heading('Bytes').waitFor();
    assert.equal(await page.getByRole('heading', { level: 1 }).innerText(), 'overlay.qcow2');

    // Both at once, in the wrong order.
    await choose(page, [images.path('base.qcow2'), images.path('overlay.qcow2')]);
    await page.getByRole('heading', { level: 1, name: 'overlay.qcow2' }).waitFor();
    await heading('Bytes').waitFor();
    const [download] = await saved(() => page.getByRole('button', { name: /Save as raw/ }).click());
    assert.equal(await sha256(await download.path()), await sha256(images.raw('overlay.qcow2')));
  });

  pageTest('one can go on without a backing file, and is told what that means', async () => {
    images.create('alone.qcow2', '64M', '-u', '-b', '/somewhere/else.raw', '-F', 'raw');
    await choose(page, [images.path('alone.qcow2')]);
    await page.getByRole('button', { name: 'Go on without it' }).click();
    await heading('Bytes').waitFor();
    await page.getByText(/reads as zeros here/).waitFor();
  });

  pageTest('an external data file is asked for', async () => {
    images.create('with-data.qcow2', '16M', '-o', 'data_file=content.raw');
    images.io('with-data.qcow2', 'write -P 0x33 0 1M');
    await choose(page, [images.path('with-data.qcow2')]);
    await page.getByText('It holds the content of the disk').waitFor();
    await page.getByLabel('Choose content.raw').setInputFiles(images.path('content.raw'));
    await heading('Bytes').waitFor();
    await page.locator('ox-hex tbody td.hex').first().waitFor();
    assert.deepEqual(await shownBytes(), Buffer.alloc(512, 0x33));
  });

  pageTest('a damaged image gets a clear error and its safety report', async () => {
    images.create('damaged.qcow2', '64M');
    images.io('damaged.qcow2', 'write 0 1M');
    images.damage('damaged.qcow2', 40, Buffer.from('7fffffffffff0000', 'hex'));
    await choose(page, [images.path('damaged.qcow2')]);
    await page.getByRole('alert').getByText('This image is damaged.').waitFor();
    assert.match(await textOf(card('Safety report')), /Do not trust this image[\s\S]*L1 table/);
    await noViolations(page, 'a damaged image');
    await page.getByRole('button', { name: /own bytes/ }).click();
    await heading('Bytes').waitFor();
    await page.locator('ox-hex tbody td.hex').first().waitFor();
    assert.deepEqual(await shownBytes(), readFileSync(images.path('damaged.qcow2')).subarray(0, 512));
  });

  pageTest('errors that a check finds are told in words', async () => {
    images.create('errors.qcow2', '64M');
    images.io('errors.qcow2', 'write 0 1M');
    const file = readFileSync(images.path('errors.qcow2'));
    const refcounts = Number(file.readBigUInt64BE(Number(file.readBigUInt64BE(48))));
    images.damage('errors.qcow2', refcounts + 2 * 8, Buffer.from([0, 0]));
    await choose(page, [images.path('errors.qcow2')]);
    await page.getByRole('button', { name: 'Check this image' }).click();
    const { corruptions } = JSON.parse(qemuCheck('errors.qcow2'));
    await page.getByText(`${corruptions} errors found.`).waitFor();
    assert.match(await page.getByRole('list', { name: 'What was found' }).innerText(), /ERROR cluster 8 refcount=0 reference=1/);
  });

  /** `qemu-img check` tells what it found by its exit code, too. */
  function qemuCheck(name) {
    try {
      return images.qemuImg('check', '--output=json', name);
    } catch (error) {
      return error.stdout;
    }
  }

  pageTest('encrypted and foreign images are told as what they are', async () => {
    images.qemuImg('create', '-q', '-f', 'qcow2', '--object', 'secret,id=key,data=abc', '-o', 'encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10', 'luks.qcow2', '16M');
    await choose(page, [images.path('luks.qcow2')]);
    await opened();
    assert.match(await factOf('Encryption'), /^Yes \(LUKS\)/);
    await page.getByText('The content is encrypted, and oxcow cannot decrypt it yet').waitFor();

    images.qemuImg('create', '-q', '-f', 'vmdk', 'other.vmdk', '16M');
    await choose(page, [images.path('other.vmdk')]);
    await page.getByRole('alert').getByText('VMDK is not supported yet.').waitFor();
    await page.getByText('VMware disk image; oxcow reads qcow2 and raw images').waitFor();

    images.write('empty.img', Buffer.alloc(0));
    await choose(page, [images.path('empty.img')]);
    await page.getByRole('heading', { level: 1, name: 'empty.img' }).waitFor();
    await page.getByText('The disk is empty.').waitFor();
  });

  pageTest('a large image: only what is needed is read, and a check can be stopped', async () => {
    images.create('large.qcow2', '256G', '-o', 'preallocation=metadata');
    assert.ok(statSync(images.path('large.qcow2')).size > 2 ** 31);
    await choose(page, [images.path('large.qcow2')]);
    await opened();
    await page.getByRole('button', { name: 'Check this image' }).click();
    const progress = page.getByRole('progressbar', { name: 'Checking' });
    await progress.waitFor();
    await card('Check').getByRole('button', { name: 'Cancel' }).click();
    await page.getByText('Cancelled. The image is as it was.').waitFor();
    await page.getByRole('button', { name: 'Check this image' }).click();
    await page.getByText('No errors.').waitFor();

    // Tables for three gibibytes that nobody has written, and behind them what is read.
    images.create('sparse.qcow2', '100G');
    images.qemuImg('resize', '-q', '--preallocation=metadata', 'sparse.qcow2', '103G');
    images.qemuImg('resize', '-q', 'sparse.qcow2', '110G');
    images.io('sparse.qcow2', 'write -P 0x44 105G 64M');
    assert.ok(statSync(images.path('sparse.qcow2')).size > 2 ** 31);
    await choose(page, [images.path('sparse.qcow2')]);
    await page.getByRole('heading', { level: 1, name: 'sparse.qcow2' }).waitFor();
    await opened();
    await mapDrawn();
    await page.locator('ox-hex tbody td.hex').first().waitFor();
    assert.ok((await bytesRead(page)) <= 2 << 20, `${await bytesRead(page)} bytes were read`);
    await goTo('105 GiB');
    await page.locator('ox-hex tbody td.hex').first().getByText('44 44').waitFor();
    assert.deepEqual(await shownBytes(), Buffer.alloc(512, 0x44));
    assert.ok((await bytesRead(page)) <= 3 << 20, `${await bytesRead(page)} bytes were read`);
  });

  pageTest('the map is read and zoomed by keyboard', async () => {
    images.create('zoom.qcow2', '4G');
    images.io('zoom.qcow2', 'write -P 0x55 3G 64k');
    await choose(page, [images.path('zoom.qcow2')]);
    await opened();
    await mapDrawn();
    const map = page.getByRole('slider', { name: 'Position in the cluster map' });
    await map.focus();
    await page.keyboard.press('End');
    const last = Number(await map.getAttribute('aria-valuemax'));
    assert.equal(Number(await map.getAttribute('aria-valuenow')), last);
    await page.keyboard.press('Home');
    const cells = last + 1;
    const target = Math.floor((cells * 3) / 4);
    const columns = await page.evaluate(async () => {
      const slider = document.querySelector('ox-app').shadowRoot.querySelector('ox-map').shadowRoot.querySelector('.map');
      slider.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown' }));
      await new Promise((resolve) => setTimeout(resolve, 50));
      return Number(slider.getAttribute('aria-valuenow'));
    });
    for (let row = 1; row < Math.floor(target / columns); row += 1) await page.keyboard.press('ArrowDown');
    for (let column = 0; column < target % columns; column += 1) await page.keyboard.press('ArrowRight');
    assert.match(await map.getAttribute('aria-valuetext'), /stored in this image/);
    for (const size of ['1 GiB', '256 MiB', '64 MiB']) {
      await page.keyboard.press('+');
      await page.getByText(new RegExp(`${size} from 0x[0-9a-f]+: .* cells of`)).waitFor();
    }
    await page.getByText(/64 MiB from 0x[0-9a-f]+: 1,024 cells of 64 KiB/).waitFor();
    await page.keyboard.press('0');
    await page.getByText('All 4 GiB').waitFor();
    await page.keyboard.press('Home');
    await page.keyboard.press('Enter');
    assert.ok(await page.getByRole('region', { name: 'Bytes of the disk' }).evaluate((region) => region.matches(':focus')));
  });

  pageTest('a disk is saved as a stream by the service worker, equal to what qemu-img converts', async () => {
    images.create('stream.qcow2', '640M');
    images.io('stream.qcow2', 'write -P 0x65 10M 64M', 'write -P 0x66 400M 32M', 'write -P 0x67 671088128 512');
    await choose(page, [images.path('stream.qcow2')]);
    await opened();
    const [download] = await saved(() => page.getByRole('button', { name: /Save as raw/ }).click());
    assert.equal(download.suggestedFilename(), 'stream.raw');
    const path = await download.path();
    assert.equal(statSync(path).size, 640 << 20);
    assert.equal(await sha256(path), await sha256(images.raw('stream.qcow2')));
    await page.getByText('Saved.', { exact: true }).waitFor();
    const heap = await page.evaluate(() => performance.memory.usedJSHeapSize);
    assert.ok(heap < 128 << 20, `the page holds ${heap} bytes`);
  });

  pageTest('a save can be stopped', async () => {
    images.create('stopped.qcow2', '64G');
    await choose(page, [images.path('stopped.qcow2')]);
    await opened();
    const [download] = await saved(() => page.getByRole('button', { name: /Save as raw/ }).click());
    await page.getByRole('progressbar', { name: 'Saving' }).waitFor();
    await card('Save the disk').getByRole('button', { name: 'Cancel' }).click();
    await page.getByText('Cancelled. The file is not complete.').waitFor();
    assert.notEqual(await download.failure(), null);
  });

  pageTest('a disk is written through a file picker where there is one, without its zeros', async () => {
    images.create('picked.qcow2', '1G');
    images.io('picked.qcow2', 'write -P 0x75 1M 5M', 'write -P 0x76 700M 3M', 'write -P 0x77 1073741312 512');
    await page.evaluate(() => {
      // No one is there to answer a picker; a file of the page's own takes its place.
      window.showSaveFilePicker = async ({ suggestedName }) => {
        const root = await navigator.storage.getDirectory();
        return root.getFileHandle(suggestedName, { create: true });
      };
    });
    await choose(page, [images.path('picked.qcow2')]);
    await opened();
    await page.getByRole('button', { name: /Save as raw/ }).click();
    await page.getByText('Saved.', { exact: true }).waitFor();
    const PLACES = [[0, 8 << 20], [(700 << 20) - 4096, 4 << 20], [2 ** 30 - 4096, 4096]];
    const found = await page.evaluate(async (places) => {
      const root = await navigator.storage.getDirectory();
      const file = await (await root.getFileHandle('picked.raw')).getFile();
      const at = async (offset, length) => [...new Uint8Array(await file.slice(offset, offset + length).arrayBuffer())];
      const sums = {};
      for (const [offset, length] of places) {
        const digest = await crypto.subtle.digest('SHA-256', await file.slice(offset, offset + length).arrayBuffer());
        sums[offset] = [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
      }
      return { size: file.size, sums, middle: await at(512 << 20, 4) };
    }, PLACES);
    const oracle = openSync(images.raw('picked.qcow2'), 'r');
    assert.equal(found.size, 2 ** 30);
    assert.deepEqual(found.middle, [0, 0, 0, 0]);
    for (const [offset, length] of PLACES) {
      const bytes = Buffer.alloc(length);
      const count = readSync(oracle, bytes, 0, length, offset);
      assert.equal(found.sums[offset], createHash('sha256').update(bytes.subarray(0, count)).digest('hex'), `bytes at ${offset}`);
    }
  });

  pageTest('it works offline once it was there', async () => {
    images.create('offline.qcow2', '64M');
    await page.getByText('it works without a network').waitFor();
    await context.setOffline(true);
    const before = server.requests.length;
    await page.reload();
    await choose(page, [images.path('offline.qcow2')]);
    await opened();
    assert.match(await factOf('Disk size'), /^64 MiB/);
    assert.equal(server.requests.length, before, 'the server was asked for nothing');
  });

  pageTest('the browser itself keeps the page from sending anything', async () => {
    const blocked = await page.evaluate(async () => {
      const violations = [];
      document.addEventListener('securitypolicyviolation', ({ effectiveDirective }) => violations.push(effectiveDirective));
      await fetch('http://127.0.0.1:9/').catch(() => {});
      new Image().src = 'http://127.0.0.1:9/x.png';
      navigator.sendBeacon('http://127.0.0.1:9/', 'bytes');
      const style = document.createElement('style');
      style.textContent = 'body { color: red }';
      document.head.append(style);
      await new Promise((resolve) => setTimeout(resolve, 300));
      return violations;
    });
    assert.ok(blocked.includes('connect-src'), String(blocked));
    assert.ok(blocked.includes('img-src'), String(blocked));
    assert.ok(blocked.some((directive) => directive.startsWith('style-src')), String(blocked));
    complaints.length = 0; // They were provoked.
    requests.length = 0;
    const meta = await page.locator('meta[http-equiv="Content-Security-Policy"]').getAttribute('content');
    const header = (await (await fetch(server.url)).headers.get('content-security-policy')).split('; ');
    assert.deepEqual(header.filter((rule) => !rule.startsWith('frame-ancestors')), meta.split('; '));
    assert.ok(!meta.includes('unsafe-inline') && !meta.includes("'unsafe-eval'"));
  });

  /** Images worth a picture: a server's disk over its installed system, with a boot sector to look at. */
  function showcase() {
    const sector = Buffer.alloc(512);
    sector.set([0xeb, 0x63, 0x90, 0x10, 0x8e, 0xd0, 0xbc, 0x00, 0xb0, 0xb8, 0x00, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0xfb, 0xbe, 0x00, 0x7c]);
    sector.write('GRUB \0Geom\0Hard Disk\0Read\0 Error\r\n', 0x180, 'latin1');
    sector.set([0x80, 0x20, 0x21, 0x00, 0x83, 0xfe, 0xff, 0xff, 0x00, 0x08, 0x00, 0x00, 0x00, 0xf0, 0x7f, 0x02], 0x1be);
    sector.set([0x55, 0xaa], 0x1fe);
    images.write('boot.bin', sector);
    const scattered = (from, to, step, length, pattern) => {
      const writes = [];
      for (let at = from, n = 0; at < to; at += step, n += 1) writes.push(`write -P ${pattern} ${at + ((n * 37) % 11)}M ${(n % 3) * length + length}M`);
      return writes;
    };
    images.create('installed.qcow2', '20G');
    images.io('installed.qcow2', ...scattered(1, 2400, 160, 16, 0x10), 'write -P 0x31 9G 64M', `write -s ${images.path('boot.bin')} 0 512`);
    images.qemuImg('convert', '-c', '-O', 'qcow2', 'installed.qcow2', 'debian-12.qcow2');
    images.create('web-server.qcow2', '20G', '-b', 'debian-12.qcow2', '-F', 'qcow2');
    images.io('web-server.qcow2', ...scattered(300, 3200, 410, 18, 0x40), 'write -z 1050M 190M', ...scattered(5200, 9000, 640, 24, 0x41));
    images.qemuImg('snapshot', '-c', 'clean install', 'web-server.qcow2');
    images.io('web-server.qcow2', ...scattered(12000, 15000, 390, 20, 0x42));
    images.qemuImg('snapshot', '-c', 'before upgrade', 'web-server.qcow2');
    images.qemuImg('bitmap', '--add', 'web-server.qcow2', 'nightly-backup');
  }

  pageTest('a supplied file that does not fit is told, and another can be chosen', async () => {
    images.create('right.qcow2', '8M');
    images.io('right.qcow2', 'write -P 0x21 0 1M');
    images.create('asking.qcow2', '8M', '-b', 'right.qcow2', '-F', 'qcow2');
    images.write('wrong.img', Buffer.alloc(4096, 1));
    await choose(page, [images.path('asking.qcow2')]);
    await page.getByLabel('Choose right.qcow2').setInputFiles(images.path('wrong.img'));
    await page.getByRole('alert').getByText('A file does not fit').waitFor();
    await page.getByLabel('Choose right.qcow2').setInputFiles(images.path('right.qcow2'));
    await heading('Bytes').waitFor();
    await page.locator('ox-hex tbody td.hex').first().waitFor();
    assert.deepEqual(await shownBytes(), Buffer.alloc(512, 0x21));
  });

  pageTest(
    'it can be used with forced colours, and without motion',
    async () => {
      images.create('forced.qcow2', '64M');
      images.io('forced.qcow2', 'write -P 1 0 9M', 'write -z 20M 9M');
      await choose(page, [images.path('forced.qcow2')]);
      await opened();
      await mapDrawn();
      await noViolations(page, 'forced colours');
      const moving = await page.evaluate(() => document.getAnimations().length);
      assert.equal(moving, 0);
      await page.screenshot({ path: `${SCREENSHOTS}forced-colors.png`, fullPage: true });
    },
    { forcedColors: 'active', reducedMotion: 'reduce' },
  );

  for (const look of LOOKS) {
    const name = `${look.colorScheme}-${look.viewport.width}`;
    pageTest(
      `it has no accessibility violations and a picture of itself, ${name}`,
      async () => {
        await page.screenshot({ path: `${SCREENSHOTS}empty-${name}.png`, fullPage: true });
        await noViolations(page, 'the empty page');

        if (!images.shown) {
          showcase();
          images.shown = [images.path('web-server.qcow2'), images.path('debian-12.qcow2')];
        }
        await choose(page, images.shown);
        await opened();
        await mapDrawn();
        await page.getByRole('button', { name: 'Check this image' }).click();
        await page.getByText('No errors.').waitFor();
        await page.getByText('The same as a table').click();
        await page.getByRole('region', { name: 'Extents of the disk' }).locator('tbody tr').first().waitFor();
        await noViolations(page, 'an open image');
        await page.getByText('The same as a table').click();
        const [scrollWidth, clientWidth] = await page.evaluate(() => {
          const { scrollWidth, clientWidth } = document.documentElement;
          return [scrollWidth, clientWidth];
        });
        assert.ok(scrollWidth <= clientWidth, `the page is ${scrollWidth} wide in a window of ${clientWidth}`);
        await page.screenshot({ path: `${SCREENSHOTS}image-${name}.png`, fullPage: true });
        if (name === 'light-1280') {
          // For the README: as far as the map.
          await page.evaluate(() => scrollTo(0, 0));
          const { y, height } = await card('Map of the disk').boundingBox();
          const clip = { x: 0, y: 0, width: 1280, height: Math.ceil(y + height + 20) };
          await page.screenshot({ path: `${SCREENSHOTS}readme.png`, fullPage: true, clip });
        }

        await choose(page, images.shown.slice(0, 1));
        await page.getByRole('alert').getByText('A file is missing').waitFor();
        await opened();
        await noViolations(page, 'an image whose backing file is missing');
        await page.screenshot({ path: `${SCREENSHOTS}missing-${name}.png`, fullPage: true });
      },
      look,
    );
  }
});

if (missing) test(`left out: ${missing}`, { skip: missing }, () => {});
