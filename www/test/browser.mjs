// A Chromium for the tests, and what the tests do with its pages.

import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { chromium } from 'playwright-core';

/** The browser to test with: $CHROMIUM, or the first found on the PATH. */
export function findChromium() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  for (const name of ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']) {
    for (const folder of (process.env.PATH ?? '').split(delimiter)) {
      const path = join(folder, name);
      if (existsSync(path)) return path;
    }
  }
  return undefined;
}

const ARGS = [
  '--headless=new',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** A browser whose pages forget everything with their context: their own file system is in memory. */
export function launch(executablePath) {
  return chromium.launch({ executablePath, args: ARGS });
}

/** A browser as a person has it, with a profile in `folder`: what its pages store is on the disk. */
export function launchWithProfile(executablePath, folder) {
  return chromium.launchPersistentContext(folder, { executablePath, args: ARGS });
}

/** Drops files of this computer on the page as a person does, which no script of the page could. */
export async function drop(page, files) {
  const client = await page.context().newCDPSession(page);
  const data = { items: [], files, dragOperationsMask: 1 };
  const { width, height } = page.viewportSize();
  for (const type of ['dragEnter', 'dragOver', 'drop']) {
    await client.send('Input.dispatchDragEvent', { type, x: width / 2, y: height / 3, data });
  }
  await client.detach();
}

/** Chooses files with the page's own control. */
export async function choose(page, files, label = /Choose a disk image|Open another image/) {
  await page.getByLabel(label).setInputFiles(files);
}

/** How many bytes the page says it has read. */
export async function bytesRead(page) {
  const text = await page.locator('#traffic').textContent();
  return Number(text.replace(/\D/g, ''));
}
