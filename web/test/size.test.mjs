// What a page has to load, and when.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';

/** Bytes, compressed as servers compress. */
const BUDGETS = {
  // At once: it opens, shows and checks.
  oxcow_reader: 250 * 1024,
  // When something is to be written: everything. This keeps it from growing.
  oxcow_web: 468 * 1024,
};

for (const [name, budget] of Object.entries(BUDGETS)) {
  test(`the module ${name} is within its budget`, async () => {
    const module = await readFile(new URL(`../dist/wasm/${name}_bg.wasm`, import.meta.url));
    const size = gzipSync(module, { level: 9 }).length;
    console.log(`${name} has ${size} bytes, compressed`);
    assert.ok(size <= budget, `${size} bytes are more than ${budget}`);
  });
}
