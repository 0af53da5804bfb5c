// What a page has to load.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';

/**
 * Bytes, compressed as servers compress. Reading alone fits into 250 KiB; with everything that writes the module does not
 * (docs/features.md), and this keeps it from growing.
 */
const BUDGET = 415 * 1024;

test('the module is within its budget', async () => {
  const module = await readFile(new URL('../dist/wasm/oxcow_web_bg.wasm', import.meta.url));
  const size = gzipSync(module, { level: 9 }).length;
  console.log(`the module has ${size} bytes, compressed`);
  assert.ok(size <= BUDGET, `${size} bytes are more than ${BUDGET}`);
});
