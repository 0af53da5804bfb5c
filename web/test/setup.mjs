// What the tests of a file share: a folder of images, and an engine in this thread.

import { after, before } from 'node:test';

import { start } from 'oxcow';
import { Images, withoutQemu } from './qemu.mjs';

/** For tests that need QEMU's tools. */
export const skip = { skip: withoutQemu };
export let images;
export let engine;

before(async () => {
  images = new Images();
  engine = await start();
});

after(async () => {
  await engine?.close();
  images?.remove();
});

/** So many bytes of one value. */
export const filled = (length, value) => new Uint8Array(length).fill(value);
