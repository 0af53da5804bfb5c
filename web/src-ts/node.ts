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

import { LocalEngine } from './local.js';
import { loadEngine, loadReader, type ModuleSource } from './modules.js';
import type { Engine } from './types.js';

export { OxcowError, type ErrorCode, type Place } from './errors.js';
export { httpSource } from './http/source.js';
export type { ModuleSource } from './modules.js';
export { fileSource, fileStorage, type FileStorageOptions } from './storage/file.js';
export { memoryStorage } from './storage/memory.js';
export type { CustomStorage, MemoryStorage, OpfsFile, Storage } from './storage/types.js';
export * from './types.js';
export type * from './writing.js';

const file = (name: string) => readFileSync(new URL(`./wasm/${name}_bg.wasm`, import.meta.url));

let loaded: Promise<void> | undefined;

/**
 * Starts an engine; the first call loads what only reads, and what writes is loaded when it is needed. A `module` of the
 * caller's (`oxcow/oxcow.wasm`) has everything.
 */
export async function start(options: { module?: ModuleSource } = {}): Promise<Engine> {
  const { module } = options;
  loaded ??= module ? loadEngine(module) : loadReader(file('oxcow_reader'), () => file('oxcow_web'));
  await loaded;
  return new LocalEngine();
}
