/**
 * Disk images in Node: the same engine, in the calling thread.
 *
 * @example
 * import { fileSource, start } from 'oxcow';
 * const engine = await start();
 * const image = await engine.open(fileSource('disk.qcow2'));
 *
 * @module
 */

import { readFileSync } from 'node:fs';

import { loadEngine, LocalEngine, type ModuleSource } from './local.js';
import type { Engine } from './types.js';

export { OxcowError, type ErrorCode, type Place } from './errors.js';
export { httpSource } from './http/source.js';
export type { ModuleSource } from './local.js';
export { fileSource, fileStorage, type FileStorageOptions } from './storage/file.js';
export { memoryStorage } from './storage/memory.js';
export type { CustomStorage, MemoryStorage, OpfsFile, Storage } from './storage/types.js';
export * from './types.js';
export type * from './writing.js';

let loaded: Promise<void> | undefined;

/** Starts an engine; the first call loads the module. */
export async function start(options: { module?: ModuleSource } = {}): Promise<Engine> {
  loaded ??= loadEngine(options.module ?? readFileSync(new URL('./wasm/oxcow_web_bg.wasm', import.meta.url)));
  await loaded;
  return new LocalEngine();
}
